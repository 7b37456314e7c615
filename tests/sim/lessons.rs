//! Faults that other overlays shipped, as far as engines and a gateway show them: docs/field-lessons.md
//! has the whole list.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use agentnet::{
    engine::{
        Forwarded, Time,
        path::Path,
        session::{Listener, Screened, Session, SessionKeys},
    },
    id::{OverlayIp, TunnelSecret},
    wire::{
        datagram::{Datagram, WireGuard},
        drop::DropReason,
    },
};

use crate::pair::{World, drops, membership, now};

const SECOND: Duration = Duration::from_secs(1);

/// A2G header, before the message that a frame carries (protocol.md section 5).
const HEADER: usize = 56; // bytes

/// Agents `a` and `b`, who trust each other, on hosts that reach each other.
fn world() -> World {
    let mut world = World::new(7);
    world.is_open = true;
    world.add("a", 10);
    world.add("b", 11);
    world.trust("a", "b", "udp/8000");
    world
}

fn talk(world: &mut World, seconds: u32) {
    for _ in 0..seconds * 10 {
        world.send("a", "b", b"tick");
        world.send("b", "a", b"tock");
        world.pass(SECOND / 10);
    }
}

fn path(world: &World, from: &str, to: &str) -> Option<Path> {
    let (local, peer) = (world.local(from), world.local(to));
    let paths = world.hosts[from].engine.paths(local, peer, now());
    paths.and_then(|view| view.current)
}

fn is_direct(world: &World, from: &str, to: &str) -> bool {
    path(world, from, to) == Some(Path::Direct(world.hosts[to].at))
}

/// The WireGuard message of a datagram, in a frame or bare.
fn message(datagram: &[u8]) -> Option<(WireGuard, &[u8])> {
    let inner = match Datagram::classify(datagram)? {
        Datagram::Frame => datagram.get(HEADER..)?,
        Datagram::Channel | Datagram::Discover | Datagram::Stun | Datagram::WireGuard(_) => {
            datagram
        }
    };
    match Datagram::classify(inner)? {
        Datagram::WireGuard(kind) => Some((kind, inner)),
        Datagram::Channel | Datagram::Discover | Datagram::Frame | Datagram::Stun => None,
    }
}

/// Returns the messages of a kind that `from` sent.
fn sent(world: &World, from: SocketAddr, kind: WireGuard) -> Vec<Vec<u8>> {
    let of = world.wire.iter().filter(|(source, _, _)| *source == from);
    let messages = of.filter_map(|(_, _, bytes)| message(bytes));
    let of_kind = messages.filter(|(found, _)| *found == kind);
    of_kind.map(|(_, message)| message.to_vec()).collect()
}

/// Rules 5 and 7 of dataplane.md section 5: the index of a session is random, no two sessions share one, and a
/// restart draws others.
#[test]
fn session_indices_are_random_and_unused() {
    let mut world = world();
    let names = ["c", "d", "e", "f", "g", "h"];
    for (name, n) in names.into_iter().zip(12..) {
        world.add(name, n);
        world.trust(name, "a", "udp/8000");
    }
    let mut seen = BTreeSet::new();
    for run in 0..4 {
        world.wire.clear();
        for name in names {
            world.send("a", name, b"hello");
        }
        world.pass(SECOND);
        let at = world.hosts["a"].at;
        // The index of the session, without the number of its handshake.
        let index =
            |message: Vec<u8>| u32::from_le_bytes(*message[4..].first_chunk().unwrap()) >> 8;
        let initiations = sent(&world, at, WireGuard::Initiation);
        let drawn = initiations.into_iter().map(index).collect::<BTreeSet<_>>();

        assert!(drawn.len() >= names.len(), "run {run}: {drawn:?}");
        assert!(seen.is_disjoint(&drawn), "run {run}: {drawn:?} in {seen:?}");
        seen.extend(drawn);
        world.restart("a");
    }
    // Of this many random numbers of 24 bits some are in each quarter; 0, 1, 2, ... are in one.
    let quarters = seen
        .iter()
        .map(|index| index >> 22)
        .collect::<BTreeSet<_>>();
    assert_eq!(quarters.len(), 4, "{seen:?}");
}

/// Rule 8: the tunnel of a peer lives on while consent stands, so that a handshake of long ago is not
/// answered however much was said, renewed and forgotten since.
#[test]
fn a_recorded_handshake_is_not_answered_an_hour_later() {
    let mut world = world();
    world.send("a", "b", b"first");
    talk(&mut world, 130);
    let (a, b) = (world.hosts["a"].at, world.hosts["b"].at);
    let recorded = sent(&world, a, WireGuard::Initiation);
    assert!(recorded.len() >= 3, "to the gateway, first, and a rekey");
    world.pass(3600 * SECOND);
    // A newer record of the peer is no new peer.
    let (local, time) = (world.local("a"), now());
    let record = world.host("a").engine.record(local, time).unwrap();
    let to = world.local("b");
    let engine = &mut world.host("b").engine;
    let taken = engine.handle_statement(to, Forwarded::Record, record.text(), time);
    taken.unwrap();
    world.run();

    world.wire.clear();
    let elsewhere = "192.0.2.66:4444".parse().unwrap();
    for from in [elsewhere, a] {
        for message in &recorded {
            world.deliver(from, b, message.clone());
            world.pass(6 * SECOND);
        }
    }

    assert_eq!(sent(&world, b, WireGuard::Response), Vec::<Vec<u8>>::new());
    assert!(world.wire.iter().all(|(_, to, _)| *to != elsewhere));
}

/// Rule 8: no agent asks for cookies, so a cookie for a handshake with one is nobody's, and the next
/// handshake has none.
#[test]
fn a_cookie_reply_in_the_name_of_a_peer_is_dropped() {
    let mut world = world();
    world.send("a", "b", b"first");
    talk(&mut world, 1);
    let (a, b) = (world.hosts["a"].at, world.hosts["b"].at);
    world.host("b").is_online = false;
    world.wire.clear();
    world.send("a", "b", b"into the void");
    world.pass(6 * SECOND);
    let key = Listener::new(&TunnelSecret::from_seed([11; 32]), 0);
    let cookies = sent(&world, a, WireGuard::Initiation).into_iter();
    let cookies = cookies.filter_map(|initiation| match key.screen(a, &initiation) {
        Screened::Cookie(cookie) => Some(cookie),
        Screened::Dropped(_) | Screened::Pass => None,
    });
    let cookies = cookies.collect::<Vec<_>>();
    let dropped = |world: &World| drops(&world.hosts["a"], DropReason::HandshakeUnknown);
    let before = dropped(&world);

    for cookie in &cookies {
        world.deliver(b, a, cookie.clone());
    }
    world.wire.clear();
    world.pass(6 * SECOND);

    assert!(!cookies.is_empty());
    assert_eq!(dropped(&world), before + cookies.len() as u64);
    let later = sent(&world, a, WireGuard::Initiation);
    // Where a cookie's MAC would be (WireGuard paper section 5.4.4).
    assert!(!later.is_empty() && later.iter().all(|message| message[132..] == [0; 16]));
    world.host("b").is_online = true;
    world.pass(6 * SECOND);
    talk(&mut world, 1);
    assert!(world.arrived("b") >= 10);
}

/// Rule 9: on a host with many agents a handshake from an unknown place is tried with sixteen keys; one
/// from where a peer answered is tried with the key of the agent that it spoke to first of all.
#[test]
fn a_direct_handshake_is_tried_with_few_keys() {
    let mut world = world();
    let year = 365 * 86_400 * SECOND;
    let ours = world.local("b");
    let others = (20..200).map(|n| membership(n, "x", year));
    let before = others.filter(|other| other.address().is_some_and(|at| at < ours));
    for (n, other) in before.take(16).enumerate() {
        let is_last = n == 15;
        if is_last {
            assert!(
                shakes_hands(&mut world, "192.0.2.66:4444"),
                "with 15 others"
            );
        }
        world.host("b").engine.add(other, now());
        world.run();
    }
    assert_eq!(world.hosts["b"].engine.locals().count(), 17);

    assert!(
        !shakes_hands(&mut world, "192.0.2.67:4444"),
        "its key is the 17th"
    );
    world.send("a", "b", b"by the gateway");
    talk(&mut world, 1);
    assert!(is_direct(&world, "b", "a"));
    let known = world.hosts["a"].at.to_string();
    assert!(shakes_hands(&mut world, &known));
}

/// Tells whether `b` answers a handshake of `a`'s keys from some place.
fn shakes_hands(world: &mut World, from: &str) -> bool {
    // As time goes on between two handshakes of one key.
    world.pass(SECOND);
    let (a, b) = (world.local("a"), world.local("b"));
    let trusted = world.hosts["a"].engine.membership(a).unwrap();
    let trusted = trusted.trusted(now().unix);
    let psk = trusted.iter().find(|peer| peer.member.address == b);
    let keys = SessionKeys {
        local: TunnelSecret::from_seed([10; 32]),
        peer: TunnelSecret::from_seed([11; 32]).public(),
        psk: psk.map(|peer| peer.psk),
        index: 5,
    };
    let initiation = Session::new(&keys, now().now).initiate(now().now).unwrap();
    let (from, to) = (from.parse::<SocketAddr>().unwrap(), world.hosts["b"].at);
    world.wire.clear();
    world.deliver(from, to, initiation);
    world.run();
    let mut wire = world.wire.iter();
    wire.any(|(_, to, bytes)| {
        let response = message(bytes).is_some_and(|(kind, _)| kind == WireGuard::Response);
        *to == from && response
    })
}

/// WireGuard lineage: peers that have nothing to say say nothing; what goes on is the heartbeat of each
/// with its gateway.
#[test]
fn idle_peers_do_not_keep_each_other_awake() {
    let mut world = world();
    world.send("a", "b", b"first");
    talk(&mut world, 5);
    assert!(is_direct(&world, "a", "b"));
    world.pass(600 * SECOND);
    world.wire.clear();

    world.pass(3600 * SECOND);

    let gateway = world.gateway_at;
    let ends = |(from, to, _): &(SocketAddr, SocketAddr, Vec<u8>)| [*from, *to].contains(&gateway);
    for w in world.wire.iter().filter(|w| !ends(w)) {
        eprintln!(
            "{:?} {} {} {:?} len {}",
            w.0,
            w.1,
            w.2.len(),
            message(&w.2).map(|m| m.0),
            world.wire.len()
        );
    }
    assert!(world.wire.iter().all(ends));
    assert!(world.wire.iter().all(|(_, _, bytes)| bytes.len() == HEADER));
    // Each asks every 25 s and is answered.
    let most = 2 * 2 * (3600 / 25 + 1);
    assert!(world.wire.len() <= most, "{}", world.wire.len());
}

/// tailscale#19457: a path on which small probes are answered and data is lost is left within 3 s.
#[test]
fn a_direct_path_that_answers_probes_and_drops_data_is_left_within_3_s() {
    let mut world = world();
    world.send("a", "b", b"first");
    talk(&mut world, 5);
    assert!(is_direct(&world, "a", "b"));
    world.arrived("b");

    world.longest_direct = Some(600);
    let mut came = None;
    for tick in 1..=100 {
        world.send("a", "b", &[7; 1000]);
        world.pass(SECOND / 10);
        if world.arrived("b") > 0 {
            came.get_or_insert(tick);
        } else {
            assert_eq!(came, None, "it is lost again");
        }
    }

    assert!(came.is_some_and(|tick| tick <= 30), "{came:?} tenths");
    assert_eq!(path(&world, "a", "b"), Some(Path::Relay));
}

/// headscale#3346: what does not hold is refused by itself, and blocks nothing that comes after.
#[test]
fn one_bad_statement_blocks_no_other() {
    let mut world = World::new(7);
    world.add("a", 10);
    world.add("b", 11);
    let (at, time) = (world.local("b"), now());
    let forged = forged(&mut world, time);
    for kind in [
        Forwarded::Consent,
        Forwarded::Gateway,
        Forwarded::Record,
        Forwarded::Request,
        Forwarded::Revocation,
    ] {
        for text in ["", "no statement", &forged] {
            let engine = &mut world.host("b").engine;
            let taken = engine.handle_statement(at, kind, text, time);
            assert!(taken.is_err(), "{kind:?} {text}");
        }
    }

    world.trust("a", "b", "udp/8000");
    world.send("a", "b", b"hello");

    assert_eq!(world.arrived("b"), 1);
}

/// The record of `a` with another signature.
fn forged(world: &mut World, time: Time) -> String {
    let local: OverlayIp = world.local("a");
    let record = world.host("a").engine.record(local, time).unwrap();
    let (signed, _) = record.text().rsplit_once('.').unwrap();
    let other = world.local("b");
    let theirs = world.host("b").engine.record(other, time).unwrap();
    let (_, signature) = theirs.text().rsplit_once('.').unwrap();
    format!("{signed}.{signature}")
}

//! Two agents find the direct path, lose it and find it again, in simulated time.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use agentnet::engine::{
    path::{Mode, Path, Reason},
    session::{Session, SessionKeys},
};
use agentnet::id::TunnelSecret;
use agentnet::wire::drop::DropReason;

use crate::pair::{World, drops, now};

const SECOND: Duration = Duration::from_secs(1);

/// Two agents that trust each other, on hosts that reach each other or not.
fn world(is_open: bool) -> World {
    let mut world = World::new(7);
    world.is_open = is_open;
    world.add("a", 10);
    world.add("b", 11);
    world.trust("a", "b", "udp/8000");
    world
}

fn path(world: &World, from: &str, to: &str) -> Option<Path> {
    let (local, peer) = (world.local(from), world.local(to));
    let paths = world.hosts[from].engine.paths(local, peer, now());
    paths.and_then(|view| view.current)
}

fn at(world: &World, name: &str) -> SocketAddr {
    world.hosts[name].at
}

fn is_direct(world: &World) -> bool {
    let (a, b) = (at(world, "a"), at(world, "b"));
    path(world, "a", "b") == Some(Path::Direct(b)) && path(world, "b", "a") == Some(Path::Direct(a))
}

/// Both send every 100 ms for `seconds`; returns how many packets were lost.
fn talk(world: &mut World, seconds: u32) -> usize {
    let mut lost = 0;
    for _ in 0..seconds * 10 {
        world.send("a", "b", b"tick");
        world.send("b", "a", b"tock");
        world.pass(SECOND / 10);
        lost += 2_usize.saturating_sub(world.arrived("a") + world.arrived("b"));
    }
    lost
}

/// Returns how many datagrams went between the hosts, and whether the gateway had any.
fn between(world: &World, from: &str, to: &str) -> usize {
    let (from, to) = (at(world, from), at(world, to));
    let all = world.wire.iter().filter(|(f, t, _)| *f == from && *t == to);
    all.count()
}

/// Issue 3: the first packet by relay, and the direct path within a second.
#[test]
fn an_open_network_gives_a_direct_path_within_a_second() {
    let mut world = world(true);

    world.send("a", "b", b"first");
    assert_eq!(world.arrived("b"), 1, "it waits for nothing");
    world.pass(SECOND);

    assert!(is_direct(&world));
    world.wire.clear();
    world.send("a", "b", b"second");
    assert_eq!(world.arrived("b"), 1);
    assert_eq!(between(&world, "a", "b"), 1);
    assert!(world.wire.iter().all(|(_, to, _)| *to == at(&world, "b")));
}

/// Issue 3: block and unblock mid-transfer; it goes on through both switches.
#[test]
fn data_survives_that_the_direct_path_is_blocked_and_opened() {
    let mut world = world(true);
    world.send("a", "b", b"first");
    world.pass(SECOND);
    assert_eq!(talk(&mut world, 10), 0);

    world.is_open = false;
    let lost = talk(&mut world, 5);
    assert!(lost <= 70, "{lost} packets, of both ways, in 3.1 s");
    assert_eq!(path(&world, "a", "b"), Some(Path::Relay));
    assert_eq!(talk(&mut world, 60), 0);

    world.is_open = true;
    assert_eq!(talk(&mut world, 90), 0, "the way back costs nothing");
    assert!(is_direct(&world));
}

/// What was closed from the beginning and is opened later is found while data flows.
#[test]
fn a_network_that_is_opened_later_is_found() {
    let mut world = world(false);
    assert_eq!(talk(&mut world, 30), 0);
    assert_eq!(path(&world, "a", "b"), Some(Path::Relay));

    world.is_open = true;
    assert_eq!(talk(&mut world, 130), 0);

    assert!(is_direct(&world));
}

/// Issue 3: with the gateway stopped direct paths keep working through rekeys.
#[test]
fn direct_paths_outlive_the_gateway_for_ten_minutes_of_rekeys() {
    let mut world = world(true);
    world.send("a", "b", b"first");
    world.pass(SECOND);
    assert!(is_direct(&world));
    world.arrived("b");

    world.gateway = None;
    let (mut lost, mut rekeys) = (0, 0);
    for _ in 0..10 {
        world.wire.clear();
        lost += talk(&mut world, 60);
        rekeys += responses(&world);
    }

    assert_eq!(lost, 0);
    assert!(is_direct(&world));
    // WireGuard makes new keys every 120 s.
    assert!(rekeys >= 4, "{rekeys}");
}

/// Returns how many answers to handshakes went between the hosts.
fn responses(world: &World) -> usize {
    let ends = [at(world, "a"), at(world, "b")];
    let between = world
        .wire
        .iter()
        .filter(|(from, to, _)| ends.contains(from) && ends.contains(to));
    between.filter(|(_, _, bytes)| bytes[0] == 2).count()
}

/// The same when little is said: a session that ended is made again without the gateway.
#[test]
fn direct_paths_outlive_the_gateway_and_silence() {
    let mut world = world(true);
    world.send("a", "b", b"first");
    world.pass(SECOND);
    world.gateway = None;
    world.pass(30 * SECOND);
    world.arrived("b");

    for _ in 0..5 {
        world.pass(400 * SECOND);
        world.send("a", "b", b"again");
        world.pass(2 * SECOND);
        assert_eq!(world.arrived("b"), 1);
    }
}

/// protocol.md section 6: hidden agents send no candidates and no probes.
#[test]
fn an_agent_that_hides_is_never_spoken_to_directly() {
    for hidden in [Mode::Hidden, Mode::Relay] {
        let mut world = world(true);
        world.host("a").engine.set_path_mode(hidden, now());
        let hosts = ["192.168.7.7:16200".parse().unwrap()];
        world.host("a").engine.set_host_candidates(&hosts, now());

        world.send("a", "b", b"first");
        let lost = talk(&mut world, 30);

        assert_eq!(lost, 0);
        assert_eq!(
            (between(&world, "a", "b"), between(&world, "b", "a")),
            (0, 0)
        );
        assert!(world.wire.iter().all(|(_, to, _)| *to != hosts[0]));
    }
}

/// A hidden agent is as silent to its peers' direct messages as to a stranger's.
#[test]
fn an_agent_that_hides_answers_nothing_that_comes_directly() {
    let mut world = world(true);
    world.send("a", "b", b"first");
    world.pass(SECOND);
    world.host("a").engine.set_path_mode(Mode::Hidden, now());
    world.pass(SECOND);
    world.arrived("a");
    world.wire.clear();

    world.send("b", "a", b"directly");
    world.pass(SECOND);

    assert_eq!(world.arrived("a"), 0);
    assert_eq!(between(&world, "a", "b"), 0);
    talk(&mut world, 5);
    assert_eq!(path(&world, "b", "a"), Some(Path::Relay));
    assert_eq!(talk(&mut world, 5), 0);
}

/// A consented peer that names strangers: they get five datagrams, and one more after two minutes.
#[test]
fn strangers_named_by_a_peer_get_few_probes() {
    let mut world = world(true);
    world.send("a", "b", b"first");
    let stranger = |n: u8| SocketAddr::new([203, 0, 113, 100 + n].into(), 53);
    for round in 0..30_u8 {
        let named = (0..15)
            .map(|n| stranger((n + round) % 20))
            .collect::<Vec<_>>();
        world.host("b").engine.set_host_candidates(&named, now());
        talk(&mut world, 20);
    }

    let mut got = BTreeMap::<SocketAddr, usize>::new();
    for (_, to, _) in &world.wire {
        *got.entry(*to).or_default() += 1;
    }
    for n in 0..20 {
        let count = got.get(&stranger(n)).copied().unwrap_or_default();
        assert!((1..=7).contains(&count), "{} got {count}", stranger(n));
    }
}

/// Whatever is replayed from elsewhere, nothing goes there and data stays where it was.
#[test]
fn recorded_messages_sent_from_elsewhere_move_nothing() {
    let mut world = world(true);
    world.send("a", "b", b"first");
    talk(&mut world, 130);
    let elsewhere = "192.0.2.66:4444".parse().unwrap();
    let (recorded, b) = (world.wire.clone(), at(&world, "b"));

    for (_, _, bytes) in recorded.into_iter().filter(|(_, to, _)| *to == b) {
        world.deliver(elsewhere, b, bytes);
    }
    talk(&mut world, 10);

    assert!(is_direct(&world));
    assert!(world.wire.iter().all(|(_, to, _)| *to != elsewhere));
}

/// P-013: an agent without consent gets no answer to a direct handshake either, cookies included.
#[test]
fn a_direct_handshake_of_a_stranger_meets_silence() {
    let mut world = world(true);
    world.add("c", 12);
    let keys = SessionKeys {
        local: TunnelSecret::from_seed([12; 32]),
        peer: TunnelSecret::from_seed([11; 32]).public(),
        psk: None,
        index: 5,
    };
    let mut session = Session::new(&keys, now().now);
    let (b, c) = (at(&world, "b"), at(&world, "c"));
    world.wire.clear();

    for _ in 0..100 {
        let initiation = session.initiate(now().now).unwrap();
        world.deliver(c, b, initiation);
        world.run();
    }

    assert_eq!(world.wire, []);
    let of = |reason| drops(&world.hosts["b"], reason);
    assert_eq!(of(DropReason::HandshakeUnknown), 20);
    assert_eq!(of(DropReason::HandshakeLimited), 80);
}

/// The peer's host moves: data goes on by relay at once, and directly soon after.
#[test]
fn a_host_that_moves_is_found_again_within_a_second() {
    let mut world = world(true);
    world.send("a", "b", b"first");
    talk(&mut world, 5);
    assert!(is_direct(&world));

    world.host("b").at = "198.51.100.77:16200".parse().unwrap();
    let hosts = [at(&world, "b")];
    let host = world.host("b");
    host.engine.set_host_candidates(&hosts, now());
    host.engine.handle_network_change(now());
    world.run();
    let lost = talk(&mut world, 1);

    assert!(lost <= 1, "{lost}");
    assert!(is_direct(&world));
}

/// Who begins anew elsewhere, as each program of `agentnet run` does, is answered there from the first packet on;
/// a renewal of the session where all is well moves nothing.
#[test]
fn who_begins_anew_elsewhere_is_answered_there() {
    let mut world = world(true);
    world.send("a", "b", b"first");
    talk(&mut world, 5);
    for _ in 0..3 {
        talk(&mut world, 130);
        assert!(is_direct(&world));
        let view = world.hosts["b"]
            .engine
            .paths(world.local("b"), world.local("a"), now());
        assert_ne!(view.unwrap().reason, Reason::NetworkChanged);
    }

    world.host("a").at = "198.51.100.77:16200".parse().unwrap();
    world.restart("a");
    world.send("a", "b", b"from elsewhere");
    assert_eq!(world.arrived("b"), 1);
    world.send("b", "a", b"to there");

    assert_eq!(world.arrived("a"), 1);
}

/// `--path direct`: no data through the gateway, which still carries the handshake.
#[test]
fn direct_or_not_at_all() {
    let mut world = world(false);
    for name in ["a", "b"] {
        world.host(name).engine.set_path_mode(Mode::Direct, now());
    }
    world.send("a", "b", b"by no gateway");
    world.pass(10 * SECOND);
    assert_eq!((world.arrived("b"), path(&world, "a", "b")), (0, None));

    world.is_open = true;
    for name in ["a", "b"] {
        world.host(name).engine.handle_network_change(now());
    }
    world.pass(SECOND);
    world.send("a", "b", b"directly");

    assert_eq!(world.arrived("b"), 1);
}

/// The programs' own addresses never become candidates, and the view says why a path is used.
#[test]
fn the_view_tells_why() {
    let mut world = world(true);
    let (local, peer) = (world.local("a"), world.local("b"));
    let tun = SocketAddr::new(local.ip().into(), 16200);
    world.host("a").engine.set_host_candidates(&[tun], now());
    world.send("a", "b", b"first");
    world.pass(SECOND);

    let view = world.host("a").engine.paths(local, peer, now()).unwrap();
    assert_eq!(view.reason, Reason::Nearer);
    let view = world.host("b").engine.paths(peer, local, now()).unwrap();
    assert!(view.pairs.iter().all(|p| p.path != Path::Direct(tun)));
}

/// Issue 3: a host that slept for an hour attaches and speaks to whom it talked to at once, though
/// every key is too old by then; no data is needed for that.
#[test]
fn a_host_that_slept_is_back_within_a_second() {
    let mut world = world(true);
    world.send("a", "b", b"first");
    talk(&mut world, 5);
    assert!(is_direct(&world));
    let slept = SECOND * 3600;

    let sleeper = world.hosts.remove("a").unwrap();
    world.pass(slept);
    world.hosts.insert("a", sleeper);
    world.wire.clear();
    world.host("a").engine.handle_resume(slept, now());
    world.pass(SECOND);

    assert!(is_direct(&world), "and no data flowed");
    world.arrived("b");
    assert_eq!(talk(&mut world, 5), 0);
}

/// Of many peers only those are spoken to that were talked to when the host fell asleep.
#[test]
fn a_host_that_slept_leaves_those_alone_it_did_not_talk_to() {
    for (silent, talked) in [(300, false), (100, true)] {
        let mut world = world(true);
        world.send("a", "b", b"first");
        world.pass(SECOND * silent);
        let (b, slept) = (at(&world, "b"), SECOND * 600);

        let sleeper = world.hosts.remove("a").unwrap();
        world.pass(slept);
        world.hosts.insert("a", sleeper);
        world.wire.clear();
        world.host("a").engine.handle_resume(slept, now());
        world.run();

        assert_eq!(
            world.wire.iter().any(|(_, to, _)| *to == b),
            talked,
            "{silent} s"
        );
    }
}

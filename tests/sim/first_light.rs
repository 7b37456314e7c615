//! Two agents and a gateway: consent, silence, restarts and revocation, without a kernel.

use std::{collections::BTreeMap, time::Duration};

use agentnet::{statement::Scope, wire::drop::DropReason};

use crate::pair::{World, drops, name, now, udp};

const SECOND: Duration = Duration::from_secs(1);

fn world() -> World {
    let mut world = World::new(1);
    world.add("a", 10);
    world.add("b", 11);
    world
}

/// P-012, P-013: packets pass once both consented, and not before.
#[test]
fn packets_pass_after_both_consents_and_not_before() {
    let mut world = world();
    world.send("a", "b", b"too early");
    assert_eq!(world.arrived("b"), 0);

    world.trust("a", "b", "udp/8000");
    world.send("a", "b", b"hello");
    world.send("b", "a", b"hello back");

    assert_eq!((world.arrived("a"), world.arrived("b")), (1, 1));
}

/// Pilot Protocol: knowing key, address and endpoint gives nothing before consent: not one reply.
#[test]
fn a_node_is_silent_to_an_agent_it_did_not_consent_to() {
    let mut world = world();
    // a consents to b, so a's node speaks; b never answers the request.
    world.change("a", |m, unix| m.request(name("b"), Scope::Any, None, unix));
    world.pass(SECOND);
    let b_at = world.host("b").at;
    world.wire.clear();

    let target = world.local("b");
    let packet = udp(world.local("a"), target, b"anyone there?");
    let local = world.local("a");
    world
        .host("a")
        .engine
        .handle_packet(local, target, &packet, now());
    world.pass(5 * SECOND);

    assert!(
        world.wire.iter().all(|(from, _, _)| *from != b_at),
        "b sent something"
    );
}

/// P-018, A-084: the underlay carries neither payload nor overlay addresses in the clear.
#[test]
fn the_underlay_shows_no_payload_and_no_address() {
    let mut world = world();
    world.trust("a", "b", "udp/8000");
    let marker = b"MARKER-0123456789-MARKER";
    world.send("a", "b", marker);
    assert_eq!(world.arrived("b"), 1);

    let hidden = [
        marker.to_vec(),
        world.local("a").ip().octets().to_vec(),
        world.local("b").ip().octets().to_vec(),
        b"acme".to_vec(),
    ];
    for (_, _, bytes) in &world.wire {
        for text in &hidden {
            assert!(!bytes.windows(text.len()).any(|w| w == text.as_slice()));
        }
    }
}

/// P-015: nothing is sent or delivered once revoke returned, by either side's restart neither.
#[test]
fn a_revoked_peer_is_gone_at_once_and_stays_gone() {
    let mut world = world();
    world.trust("a", "b", "udp/8000");
    world.send("a", "b", b"before");
    assert_eq!(world.arrived("b"), 1);
    // The registry is away: a does not hear of it.
    world.has_registry = false;
    world.change("b", |m, unix| m.revoke(&name("a"), unix).map(drop));

    for round in 0..3 {
        world.send("a", "b", b"after");
        world.send("b", "a", b"after");
        assert_eq!(
            (world.arrived("a"), world.arrived("b")),
            (0, 0),
            "round {round}"
        );
        world.pass(10 * SECOND);
        world.restart("a");
        world.restart("b");
        world.pass(SECOND);
    }
}

/// tailscale#13075 and REQ-6: with the registry away trust that stands goes on, also after restarts.
#[test]
fn trust_outlives_restarts_without_the_registry() {
    let mut world = world();
    world.trust("a", "b", "udp/8000");
    world.has_registry = false;
    for restarted in ["a", "b"] {
        world.send("a", "b", b"x");
        assert_eq!(world.arrived("b"), 1);
        world.restart(restarted);

        // Either side may be the first to speak.
        for (from, to) in [("a", "b"), ("b", "a")] {
            world.send(from, to, b"y");
            world.pass(5 * SECOND);
            world.send(from, to, b"z");
            assert!(
                world.arrived(to) > 0,
                "{from} to {to} after {restarted} restarted"
            );
        }
        world.arrived("a");
        world.arrived("b");
    }
}

/// A gateway without memory: agents are told so, attach again, and packets flow within 5 s.
#[test]
fn a_gateway_that_restarts_is_found_again() {
    let mut world = world();
    world.trust("a", "b", "udp/8000");
    world.send("a", "b", b"x");
    assert_eq!(world.arrived("b"), 1);
    let recovery = world.gateway.as_ref().unwrap().recovery();

    world.start_gateway();
    world.gateway.as_mut().unwrap().recover(recovery, now().now);
    world.pass(5 * SECOND);
    world.send("a", "b", b"y");

    assert_eq!(world.arrived("b"), 1);
}

/// A peer that is away is asked again; what waited is sent when it is back.
#[test]
fn packets_that_wait_are_sent_when_the_peer_is_back() {
    let mut world = world();
    world.trust("a", "b", "udp/8000");
    world.host("b").is_online = false;
    world.send("a", "b", b"waits");
    world.pass(7 * SECOND);
    assert_eq!(world.arrived("b"), 0);

    world.host("b").is_online = true;
    world.pass(6 * SECOND);

    assert_eq!(world.arrived("b"), 1);
}

/// Every queue has a bound: a program that floods an absent peer costs a bounded queue.
#[test]
fn a_flood_to_an_absent_peer_is_bounded_and_counted() {
    let mut world = world();
    world.trust("a", "b", "udp/8000");
    world.host("b").is_online = false;
    for _ in 0..1000 {
        world.send("a", "b", b"flood");
    }
    assert!(drops(world.host("a"), DropReason::PeerQueueFull) > 900);

    world.host("b").is_online = true;
    world.pass(10 * SECOND);

    assert!(world.arrived("b") <= 64);
}

/// Returns what the engine of a host shows of what it dropped: how many packets for each reason.
fn shown(world: &mut World, name: &str) -> BTreeMap<DropReason, u64> {
    let (host, mut shown) = (world.host(name), BTreeMap::new());
    while let Some(dropped) = host.engine.poll_dropped() {
        assert_eq!(dropped.local, host.local);
        assert_eq!(dropped.bytes.first().map(|first| first >> 4), Some(6));
        *shown.entry(dropped.reason).or_default() += 1;
    }
    shown
}

/// Issue 6: whoever looks sees what is dropped, with its reason; what waits in vain is no longer dropped in silence.
#[test]
fn what_is_dropped_is_shown_to_who_looks() {
    let mut world = world();
    world.trust("a", "b", "udp/8000");
    world.host("b").is_online = false;
    for _ in 0..64 {
        world.send("a", "b", b"waits");
    }
    world.send("a", "b", b"nobody looks");
    assert!(shown(&mut world, "a").is_empty());

    world.host("a").engine.keep_dropped(true);
    for _ in 0..3 {
        world.send("a", "b", b"too many");
    }
    assert_eq!(
        shown(&mut world, "a"),
        [(DropReason::PeerQueueFull, 3)].into()
    );
    assert_eq!(drops(world.host("a"), DropReason::PeerQueueFull), 4);

    world.pass(100 * SECOND);
    assert_eq!(shown(&mut world, "a"), [(DropReason::NoSession, 64)].into());
    assert_eq!(drops(world.host("a"), DropReason::NoSession), 64);

    // Trust ends while they wait.
    for _ in 0..5 {
        world.send("a", "b", b"wait again");
    }
    world.change("a", |m, unix| m.revoke(&name("b"), unix).map(drop));
    world.run();
    assert_eq!(shown(&mut world, "a"), [(DropReason::NoPeer, 5)].into());

    let (own, nobody) = (world.local("a"), world.local("b"));
    let stray = udp(own, nobody, b"whoever");
    world.host("a").engine.handle_unknown(own, &stray, now());
    assert_eq!(shown(&mut world, "a"), [(DropReason::NoPeer, 1)].into());
}

/// Sessions are renewed while packets flow: an hour without a lost packet.
#[test]
fn an_hour_of_packets_passes_through_rekeys() {
    let mut world = world();
    world.trust("a", "b", "udp/8000");
    world.send("a", "b", b"first");
    let mut arrived = world.arrived("b");
    for _ in 0..720 {
        world.pass(5 * SECOND);
        world.send("a", "b", b"tick");
        world.send("b", "a", b"tock");
        arrived += world.arrived("b");
    }
    assert_eq!(arrived, 721);
}

/// A probe through the session is answered by the peer's node itself.
#[test]
fn a_ping_is_answered_by_the_peer() {
    let mut world = world();
    world.trust("a", "b", "");
    let (local, peer) = (world.local("a"), world.local("b"));

    assert!(world.host("a").engine.probe(local, peer, now()).is_some());
    world.pass(SECOND);

    assert_eq!(world.host("a").pongs, 1);
    assert!(world.arrived("b") == 0, "a control message reached a TUN");
}

/// A look-up of a name wakes the peer: the session is there before the first packet.
#[test]
fn a_look_up_wakes_the_peer_and_shows_only_trusted_names() {
    let mut world = world();
    let asker = world.local("a");
    let full = agentnet::id::FullName::parse("b.acme.agent", &Default::default()).unwrap();
    assert_eq!(world.host("a").engine.by_name(asker, &full, now()), None);

    world.trust("a", "b", "");
    world.wire.clear();

    let b = world.local("b");
    assert_eq!(world.host("a").engine.by_name(asker, &full, now()), Some(b));
    world.run();
    assert!(!world.wire.is_empty());
    assert_eq!(world.host("a").engine.by_address(asker, b), Some(full));
}

/// P-021, P-059: an agent that asked, one that was revoked and one that never was are looked up
/// alike: nothing is found, sent, kept or woken, and a packet there gets the same answer.
#[test]
fn a_look_up_of_a_hidden_agent_does_what_one_of_an_absent_does() {
    let mut world = world();
    world.add("c", 12);
    world.trust("a", "b", "");
    world.change("c", |m, unix| m.request(name("a"), Scope::Any, None, unix));
    world.change("a", |m, unix| m.revoke(&name("b"), unix).map(drop));
    world.pass(SECOND);
    let asker = world.local("a");
    let absent = agentnet::os::random::seed();
    let absent = world.hosts["a"]
        .engine
        .membership(asker)
        .unwrap()
        .prefix
        .address(u64::from_be_bytes(absent[..8].try_into().unwrap()));
    let addresses = [world.local("b"), world.local("c"), absent];
    let kept = world.hosts["a"].state();
    world.wire.clear();
    let mut answers = vec![];
    for (text, address) in ["b", "c", "zz"].into_iter().zip(addresses) {
        let full = format!("{text}.acme.agent");
        let full = agentnet::id::FullName::parse(&full, &Default::default()).unwrap();
        let engine = &mut world.host("a").engine;
        let due = engine.poll_timeout();
        assert_eq!(engine.by_name(asker, &full, now()), None);
        assert_eq!(engine.by_address(asker, address), None);
        engine.handle_unknown(asker, &udp(asker, address, b"x"), now());
        let (_, mut answer) = engine.poll_injection().unwrap();
        // It comes as from the address asked, which is quoted, and summed up in the checksum.
        assert_eq!(answer[8..24], address.ip().octets());
        answer[8..24].fill(0);
        answers.push((answer.len(), answer[..42].to_vec()));
        assert_eq!((engine.poll_timeout(), engine.poll_event()), (due, None));
    }
    world.run();

    assert!(answers.windows(2).all(|pair| pair[0] == pair[1]));
    assert!(world.wire.is_empty() && world.hosts["a"].state() == kept);
}

/// Garbage, truncated and replayed datagrams are counted and never answered.
#[test]
fn strange_datagrams_are_counted_and_not_answered() {
    let mut world = world();
    world.trust("a", "b", "udp/8000");
    world.send("a", "b", b"x");
    world.arrived("b");
    let seen = world
        .wire
        .iter()
        .map(|(_, _, bytes)| bytes.clone())
        .collect::<Vec<_>>();
    world.wire.clear();
    let stranger = "192.0.2.66:4444".parse().unwrap();

    let b = world.host("b");
    for datagram in &seen {
        for cut in [datagram.len(), datagram.len() / 2, 1, 0] {
            b.engine.handle_datagram(stranger, &datagram[..cut], now());
        }
    }
    for first in 0..=255_u8 {
        b.engine.handle_datagram(stranger, &[first; 2000], now());
    }
    let answers = std::iter::from_fn(|| b.engine.poll_transmit());

    assert_eq!(
        answers.filter(|transmit| transmit.to == stranger).count(),
        0
    );
    assert!(b.received.is_empty());
    assert!(b.engine.counters().total() > 256);
}

/// The same seed gives the same bytes on the wire.
#[test]
fn the_same_seed_gives_the_same_wire() {
    let story = |seed| {
        let tell = move || {
            let mut world = World::new(seed);
            world.add("a", 10);
            world.add("b", 11);
            world.trust("a", "b", "udp/8000");
            world.send("a", "b", b"x");
            world.pass(30 * SECOND);
            world.wire
        };
        // A thread of its own: std draws the keys of its hash maps once a thread.
        std::thread::spawn(tell).join().unwrap()
    };

    let (once, again, other) = (story(5), story(5), story(6));
    let differs = once.iter().zip(&again).position(|(a, b)| a != b);
    assert_eq!((differs, once.len()), (None, again.len()));
    assert!(once != other);
}

/// A session does not outlive the chain its consent rests on.
#[test]
fn a_peer_is_gone_when_its_membership_ends() {
    let mut world = World::new(1);
    world.add("a", 10);
    world.add_for("b", 11, 30 * SECOND);
    world.trust("a", "b", "udp/8000");
    world.send("a", "b", b"x");
    assert_eq!(world.arrived("b"), 1);
    let (local, peer) = (world.local("a"), world.local("b"));
    assert!(world.host("a").engine.has_peer(local, peer));

    world.pass(31 * SECOND);

    assert!(!world.host("a").engine.has_peer(local, peer));
    assert!(!world.host("b").engine.has_peer(peer, local));
}

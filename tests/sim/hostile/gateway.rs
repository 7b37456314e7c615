//! An evil gateway: it drops, delays, repeats, reorders, changes and forges, and lies to who attaches.

use std::{net::SocketAddr, time::Duration};

use agentnet::engine::path::Path;
use agentnet::engine::session::{Session, SessionKeys};
use agentnet::id::{OverlayIp, TunnelSecret};
use agentnet::wire::a2g::Kind;
use agentnet::wire::control::{Control, Farewell, Refusal};
use agentnet::wire::drop::DropReason;

use crate::hostile::evil::{Evil, Frame, honest};
use crate::hostile::{Ledger, SECOND, got, sent_by};
use crate::pair::{World, drops, now};

const ALL: [(&str, &str); 3] = [("a", "b"), ("a", "c"), ("b", "c")];

/// Three agents that trust each other, attached to a gateway that is evil; hosts reach each other
/// or not.
fn world(is_open: bool) -> World {
    let mut world = World::new(21);
    world.is_open = is_open;
    world.evil = Some(Evil::new());
    for (name, n) in [("a", 10), ("b", 11), ("c", 12)] {
        world.add(name, n);
    }
    for (one, other) in ALL {
        world.trust(one, other, "udp/8000");
    }
    world
}

fn evil(world: &mut World) -> &mut Evil {
    world.evil.as_mut().unwrap()
}

fn behave(world: &mut World) {
    let evil = evil(world);
    evil.act = Box::new(honest);
    evil.lie = Box::new(|_| {});
    evil.answer = None;
}

/// The gateway is honest again: everything works as before within `seconds`.
fn recovers(world: &mut World, ledger: &mut Ledger, seconds: u32) {
    behave(world);
    ledger.talk(world, &ALL, seconds);
    let (sent, arrived) = ledger.talk(world, &ALL, 10);
    assert_eq!(sent, arrived);
}

fn path(world: &World, from: &str, to: &str) -> Option<Path> {
    let (local, peer) = (world.local(from), world.local(to));
    let paths = world.hosts[from].engine.paths(local, peer, now());
    paths.and_then(|view| view.current)
}

/// What it drops is lost, and nothing else; data that goes directly is not its business.
#[test]
fn one_that_drops_everything_stops_no_direct_path_and_is_recovered_from() {
    let (mut relayed, mut ledger) = (world(false), Ledger::default());
    assert_eq!(ledger.talk(&mut relayed, &ALL, 2), (60, 60));
    evil(&mut relayed).act = Box::new(|_| vec![]);
    relayed.wire.clear();
    assert_eq!(ledger.talk(&mut relayed, &ALL, 30).1, 0);
    let effort = sent_by(&relayed, "a");
    assert!(effort < 600, "{effort} datagrams for 300 packets");
    recovers(&mut relayed, &mut ledger, 6);

    let (mut direct, mut ledger) = (world(true), Ledger::default());
    ledger.talk(&mut direct, &ALL, 5);
    evil(&mut direct).act = Box::new(|_| vec![]);
    assert_eq!(
        ledger.talk(&mut direct, &ALL, 400),
        (12_000, 12_000),
        "through two rekeys"
    );
}

/// Whatever it does with what it gets, what goes directly arrives: all of it, through two rekeys.
#[test]
fn one_that_misbehaves_in_any_way_touches_nothing_that_goes_directly() {
    type Act = fn(&Frame) -> crate::hostile::evil::Deeds;
    let acts: [(&str, Act); 5] = [
        ("delays", |frame| vec![(20 * SECOND, frame.clone())]),
        ("replays", |frame| {
            let again = [0, 1, 30, 200].map(|after| (after * SECOND, frame.clone()));
            again.to_vec()
        }),
        ("changes", |frame| {
            let mut frame = frame.clone();
            let last = frame.payload.len() - 1;
            frame.payload[last] ^= 1;
            vec![(Duration::ZERO, frame)]
        }),
        ("turns", |frame| {
            let (from, to) = (frame.to, frame.from);
            let payload = frame.payload.clone();
            vec![(Duration::ZERO, Frame { from, to, payload })]
        }),
        ("forges", |frame| {
            let payload = vec![4; frame.payload.len()];
            vec![(
                Duration::ZERO,
                Frame {
                    payload,
                    ..frame.clone()
                },
            )]
        }),
    ];
    for (what, act) in acts {
        let (mut world, mut ledger) = (world(true), Ledger::default());
        ledger.talk(&mut world, &[("a", "b")], 5);
        assert!(matches!(path(&world, "a", "b"), Some(Path::Direct(_))));
        evil(&mut world).act = Box::new(act);

        let (sent, arrived) = ledger.talk(&mut world, &[("a", "b")], 300);

        assert_eq!(sent, arrived, "{what}");
        assert!(
            matches!(path(&world, "a", "b"), Some(Path::Direct(_))),
            "{what}"
        );
    }
}

/// Each packet arrives once and as it was sent, whatever is lost, late, early and repeated.
#[test]
fn one_that_loses_delays_reorders_and_repeats_delivers_at_most_once_unchanged() {
    let (mut world, mut ledger) = (world(false), Ledger::default());
    let mut n = 0_u64;
    evil(&mut world).act = Box::new(move |frame| {
        n += 1;
        let late = |k: u64| Duration::from_millis((n * 7919 + k * 1543) % 4000);
        match n % 5 {
            0 => vec![],
            1 => vec![(late(0), frame.clone())],
            2 => vec![(late(1), frame.clone()), (late(2), frame.clone())],
            3 => vec![
                (Duration::ZERO, frame.clone()),
                (40 * SECOND, frame.clone()),
            ],
            _ => honest(frame),
        }
    });

    let (sent, arrived) = ledger.talk(&mut world, &ALL, 200);

    assert!(arrived > sent / 4, "{arrived} of {sent}");
    recovers(&mut world, &mut ledger, 6);
}

/// All it ever saw, again at once and minutes later: nothing arrives twice, nothing breaks.
#[test]
fn one_that_replays_everything_it_ever_saw_changes_nothing() {
    let (mut world, mut ledger) = (world(false), Ledger::default());
    ledger.talk(&mut world, &ALL, 130);

    let seen = evil(&mut world).seen.clone();
    world.wire.clear();
    for frame in &seen {
        evil(&mut world).put(frame, now().now);
    }
    world.run();

    assert_eq!(ledger.check(&mut world), 0);
    let answers = ["a", "b", "c"].map(|name| sent_by(&world, name));
    // A new session may follow for each of the six ends: a handshake, and what it tells in it.
    assert!(
        answers.iter().sum::<usize>() <= 18,
        "{answers:?} to {}",
        seen.len()
    );
    recovers(&mut world, &mut ledger, 2);
}

/// A payload changed anywhere does not open, and what was changed is all that is lost.
#[test]
fn one_that_changes_payloads_delivers_nothing_of_them() {
    let (mut world, mut ledger) = (world(false), Ledger::default());
    ledger.talk(&mut world, &ALL, 2);
    for at in [0, 4, 8, 15, 16, 31, 63] {
        evil(&mut world).act = Box::new(move |frame| {
            let mut frame = frame.clone();
            let place = at % frame.payload.len();
            frame.payload[place] ^= 0x40;
            vec![(Duration::ZERO, frame)]
        });
        assert_eq!(ledger.talk(&mut world, &ALL, 2).1, 0, "byte {at}");
    }
    recovers(&mut world, &mut ledger, 6);
}

/// Frames turned to another agent, or given another source, open nowhere and reach no program.
#[test]
fn one_that_turns_frames_aside_or_forges_their_source_delivers_nothing_wrongly() {
    let (mut world, mut ledger) = (world(false), Ledger::default());
    ledger.talk(&mut world, &ALL, 2);
    let all = ["a", "b", "c"].map(|name| world.local(name));
    let other = move |not: [OverlayIp; 2]| all.into_iter().find(|a| !not.contains(a)).unwrap();
    let turns: [fn(&Frame, OverlayIp) -> Frame; 4] = [
        |f, other| Frame {
            to: other,
            ..f.clone()
        },
        |f, other| Frame {
            from: other,
            ..f.clone()
        },
        |f, _| Frame {
            from: f.to,
            to: f.from,
            payload: f.payload.clone(),
        },
        |f, _| Frame {
            from: f.to,
            ..f.clone()
        },
    ];

    for turn in turns {
        evil(&mut world).act = Box::new(move |frame| {
            let turned = turn(frame, other([frame.from, frame.to]));
            vec![(Duration::ZERO, turned)]
        });
        assert_eq!(ledger.talk(&mut world, &ALL, 8).1, 0);
    }
    recovers(&mut world, &mut ledger, 7);
}

/// The claimed source of a frame opens no session: the keys of the session decide.
#[test]
fn one_that_begins_sessions_in_the_name_of_a_peer_gets_no_answer() {
    let (mut world, mut ledger) = (world(false), Ledger::default());
    ledger.talk(&mut world, &ALL, 2);
    let (a, b) = (world.local("a"), world.local("b"));
    // With a key of its own, and with the one it has as a gateway.
    for seed in [66, crate::pair::GATEWAY] {
        let keys = SessionKeys {
            local: TunnelSecret::from_seed([seed; 32]),
            peer: TunnelSecret::from_seed([10; 32]).public(),
            psk: None,
            index: 77,
        };
        let mut session = Session::new(&keys, now().now);
        for _ in 0..50 {
            world.wire.clear();
            let payload = session.initiate(now().now).unwrap();
            let forged = Frame {
                from: b,
                to: a,
                payload,
            };
            evil(&mut world).put(&forged, now().now);
            world.run();
            assert_eq!(sent_by(&world, "a"), 0);
        }
    }
    assert_eq!(
        drops(&world.hosts["a"], DropReason::NoPeer),
        0,
        "it named a peer"
    );
    recovers(&mut world, &mut ledger, 1);
}

/// It says where it sees an agent. What it makes up is probed within the same bounds as ever.
#[test]
fn one_that_names_strangers_as_the_agents_own_endpoints_reflects_next_to_nothing() {
    let mut world = world(true);
    let stranger =
        |n: u32| SocketAddr::new([203, 0, 113, 7].into(), 1000 + u16::try_from(n).unwrap());
    let mut n = 0;
    evil(&mut world).lie = Box::new(move |told| {
        n += 1;
        told.observed = stranger(n);
    });
    let mut ledger = Ledger::default();
    world.wire.clear();
    for _ in 0..150 {
        let now = now().now;
        evil(&mut world).reset_all(now);
        ledger.talk(&mut world, &[("a", "b")], 4);
    }

    let at_stranger = |to: &SocketAddr| to.ip() == stranger(0).ip();
    let got = got(&world);
    let most = got
        .iter()
        .filter(|(to, _)| at_stranger(to))
        .map(|(_, n)| *n)
        .max();
    let sum = got
        .iter()
        .filter(|(to, _)| at_stranger(to))
        .map(|(_, n)| n)
        .sum::<usize>();
    // 150 resets of three agents, each new endpoint told to two peers that ask it five times.
    println!("strangers got {sum} datagrams in 600 s, one endpoint at most {most:?}");
    assert!((1..=5).contains(&most.unwrap()));
    assert!(sum <= 150 * 3 * 2 * 5, "{sum}");
}

/// Resets, displacement and refusals without end cost one handshake a second or so, and no more.
#[test]
fn one_that_sends_its_agents_away_without_end_costs_them_little() {
    type Torment = fn(&mut Evil, OverlayIp);
    let torments: [(&str, Torment); 6] = [
        ("reset", |evil, _| evil.reset_all(now().now)),
        ("displaced", |evil, a| {
            evil.signal(a, Kind::Displaced, now().now);
        }),
        ("end", |evil, a| evil.signal(a, Kind::SessionEnd, now().now)),
        ("refusal", |evil, _| {
            let (code, text) = (Refusal::Full, "x".repeat(190));
            evil.answer = Some(Control::AttachRefused { code, text });
            evil.reset_all(now().now);
        }),
        ("goodbye", |evil, _| {
            let reason = Farewell::Revoked;
            evil.answer = Some(Control::Goodbye { reason });
            evil.reset_all(now().now);
        }),
        ("nonsense", |evil, _| {
            let reason = Control::Probe { id: 1, path: 1 };
            evil.answer = Some(reason);
            evil.reset_all(now().now);
        }),
    ];
    for (what, torment) in torments {
        let mut world = world(false);
        let a = world.local("a");
        world.wire.clear();
        evil(&mut world).handshakes = 0;
        for _ in 0..600 {
            torment(evil(&mut world), a);
            world.pass(SECOND / 10);
        }
        let (handshakes, sent) = (evil(&mut world).handshakes, sent_by(&world, "a"));
        println!("{what}: {handshakes} handshakes of three, {sent} datagrams in 60 s");
        assert!(handshakes <= 3 * 60 && sent <= 60 * 20, "{what}");

        let mut ledger = Ledger::default();
        behave(&mut world);
        // Who was told that it is elsewhere keeps quiet for ten minutes.
        world.pass(if what == "displaced" {
            601 * SECOND
        } else {
            62 * SECOND
        });
        recovers(&mut world, &mut ledger, 6);
    }
}

/// Leases, sizes, ids and secrets that make no sense break nothing, and are gone with the truth.
#[test]
fn one_that_lies_about_the_attachment_breaks_nothing() {
    use agentnet::wire::control::Attached;
    let lies: [(&str, fn(&mut Attached)); 8] = [
        ("no lease", |told| told.lease = 0),
        ("endless lease", |told| told.lease = u32::MAX),
        ("no room", |told| told.mtu = 0),
        ("all room", |told| told.mtu = u16::MAX),
        ("same ids", |told| told.down = told.up),
        ("id 0", |told| told.down = 0),
        ("nowhere", |told| {
            told.observed = "0.0.0.0:0".parse().unwrap();
        }),
        ("itself", |told| {
            told.observed = "203.0.113.1:16201".parse().unwrap();
        }),
    ];
    for (what, lie) in lies {
        let mut world = world(true);
        world.wire.clear();
        evil(&mut world).handshakes = 0;
        evil(&mut world).lie = Box::new(lie);
        let now = now().now;
        evil(&mut world).reset_all(now);
        let mut ledger = Ledger::default();
        ledger.talk(&mut world, &ALL, 60);
        let (handshakes, sent) = (evil(&mut world).handshakes, sent_by(&world, "a"));
        println!("{what}: {handshakes} handshakes of three, {sent} datagrams in 60 s");
        assert!(handshakes <= 3 * 60, "{what}: {handshakes}");
        let noticed = got(&world)
            .get(&"203.0.113.1:16201".parse().unwrap())
            .copied();
        assert!(noticed.unwrap_or_default() < 60 * 60, "{what}: {noticed:?}");

        behave(&mut world);
        let now = crate::pair::now().now;
        evil(&mut world).reset_all(now);
        recovers(&mut world, &mut ledger, 10);
    }
}

/// Cut off for a minute and back: relayed data flows again, direct data never stopped.
#[test]
fn one_that_is_gone_for_a_minute_is_found_again() {
    let (mut world, mut ledger) = (world(true), Ledger::default());
    ledger.talk(&mut world, &[("a", "b")], 5);
    assert!(matches!(path(&world, "a", "b"), Some(Path::Direct(_))));

    let mut gone = world.evil.take().unwrap();
    world.gateway = None;
    let (sent, arrived) = ledger.talk(&mut world, &[("a", "b")], 60);
    assert_eq!(sent, arrived);

    behave_alone(&mut gone);
    world.evil = Some(gone);
    recovers(&mut world, &mut ledger, 12);
}

fn behave_alone(evil: &mut Evil) {
    evil.act = Box::new(honest);
}

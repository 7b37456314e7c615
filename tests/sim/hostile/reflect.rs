//! A consented peer that would have its host's peers hit strangers, or have data go to these.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use agentnet::engine::path::Path;
use agentnet::wire::control::{Control, ProbeReply};
use agentnet::wire::drop::DropReason;

use crate::hostile::SECOND;
use crate::hostile::peer::{Evil, others_talk, path, world};
use crate::pair::{World, drops, now, udp};

/// Returns the ids of the probes that the evil one was sent since the last call.
fn asked(evil: &mut Evil, world: &World) -> Vec<u64> {
    let probe = |message| {
        let Control::Probe { id, .. } = message else {
            return None;
        };
        Some(id)
    };
    evil.heard(world).into_iter().filter_map(probe).collect()
}

/// A list of every address that must not be probed gets not one datagram.
#[test]
fn one_that_names_what_is_nobodys_gets_nothing_probed() {
    let (mut world, mut evil) = world();
    let tun = SocketAddr::new(world.local("a").ip().into(), 16200);
    let other = SocketAddr::new(world.local("c").ip().into(), 8000);
    let mut named = vec![tun, other, evil.victim];
    for text in [
        "127.0.0.1:53",
        "127.1.2.3:16200",
        "0.0.0.0:1",
        "255.255.255.255:67",
        "224.0.0.251:5353",
        "169.254.169.254:80",
        "192.0.2.9:0",
        "[::1]:16200",
        "[::]:9",
        "[ff02::fb]:5353",
        "[fe80::1]:16200",
        "[::ffff:127.0.0.1]:53",
        "[fd12:3456:789a:1::1]:1",
    ] {
        named.push(text.parse().unwrap());
    }
    assert_eq!(named.len(), 16);
    world
        .host("a")
        .engine
        .set_host_candidates(&[evil.victim], now());
    evil.unread(&world);

    evil.name(&mut world, 1, &named);
    world.pass(10 * SECOND);

    let to = evil.unread(&world).into_iter().map(|(to, _)| to);
    let to = to.collect::<BTreeSet<_>>();
    assert!(
        to.iter()
            .all(|to| *to == evil.at || *to == world.gateway_at),
        "{to:?}"
    );
}

/// One that has a stranger bombarded: five probes an endpoint, twenty a second, and two a second in
/// the long run, however it goes about it.
#[test]
fn one_that_names_a_stranger_without_end_has_it_hit_by_little() {
    let (mut world, mut evil) = world();
    let stranger = IpAddr::from([203, 0, 113, 9]);
    let mut hits = BTreeMap::<u64, usize>::new();
    let (mut to_stranger, mut told, mut seq) = (0, 0, 0);
    let mut each = BTreeMap::<SocketAddr, usize>::new();
    let begun = now().now;
    for round in 0..600_u16 {
        if round % 100 == 0 {
            evil.handshake(&mut world);
        }
        let ports = (0..16).map(|n| SocketAddr::new(stranger, 1000 + 16 * round + n));
        seq += 1;
        told += evil.name(&mut world, seq, &ports.collect::<Vec<_>>());
        world.pass(SECOND);
        let second = now().now.duration_since(begun).as_secs();
        for (to, bytes) in evil.unread(&world) {
            if to.ip() == stranger {
                *hits.entry(second).or_default() += 1;
                *each.entry(to).or_default() += 1;
                to_stranger += bytes.len();
            }
        }
    }

    let (sum, peak) = (hits.values().sum::<usize>(), hits.values().max().unwrap());
    println!(
        "{sum} probes of {to_stranger} bytes in 600 s, {peak} in a second; told by {told} bytes"
    );
    assert!(*peak <= 21 && sum <= 320 + 2 * 601, "{peak}, {sum}");
    assert!(each.values().all(|n| *n <= 5));
    assert!(to_stranger < told, "no more goes there than was spent");
    others_talk(&mut world);
}

/// The same few endpoints named over and over: five probes each, for ever.
#[test]
fn one_that_names_the_same_strangers_over_and_over_gets_five_probes_each() {
    let (mut world, mut evil) = world();
    let at = |n: u16| SocketAddr::new(IpAddr::from([203, 0, 113, 10]), 1 + n);
    let mut each = BTreeMap::<SocketAddr, usize>::new();
    for round in 0..200_u16 {
        if round % 50 == 0 {
            evil.handshake(&mut world);
        }
        let list = (0..16)
            .map(|n| at((n + round * 8) % 40))
            .collect::<Vec<_>>();
        evil.name(&mut world, 1000 + u64::from(round), &list);
        world.pass(2 * SECOND);
        for (to, _) in evil.unread(&world) {
            *each.entry(to).or_default() += 1;
        }
    }

    let hits = (0..40).map(|n| each.get(&at(n)).copied().unwrap_or_default());
    let hits = hits.collect::<Vec<_>>();
    assert!(hits.iter().all(|n| (1..=5).contains(n)), "{hits:?}");
}

/// Messages that seem to come from strangers have these hit by no more than was spent on it.
#[test]
fn one_that_forges_the_source_of_its_datagrams_reflects_next_to_nothing() {
    let (mut world, mut evil) = world();
    let stranger = IpAddr::from([203, 0, 113, 11]);
    let (mut spent, mut reflected, mut count) = (0, 0, 0);
    evil.unread(&world);
    for n in 0..6000_u16 {
        if n % 1000 == 0 {
            evil.handshake(&mut world);
        }
        let from = SocketAddr::new(stranger, 1000 + n);
        let message = if n % 2 == 0 {
            Control::Probe {
                id: n.into(),
                path: 9,
            }
            .packet()
            .unwrap()
        } else {
            udp(evil.local, world.local("a"), b"x")
        };
        // 28: the headers of IPv4 and UDP.
        spent += evil.say_from(&mut world, from, &message) + 28;
        world.pass(SECOND / 10);
        for (to, bytes) in evil.unread(&world) {
            if to.ip() == stranger {
                reflected += bytes.len() + 28;
                count += 1;
            }
        }
    }

    println!("{count} datagrams, {reflected} bytes reflected in 600 s; {spent} spent");
    assert!(reflected < spent, "{reflected} of {spent}");
    assert_ne!(
        path(&world, evil.local),
        Some(Path::Direct(SocketAddr::new(stranger, 1)))
    );
    others_talk(&mut world);
}

/// Promote only: a reply moves data to the way its probe went, and to no other.
#[test]
fn one_that_answers_probes_from_elsewhere_moves_no_data_there() {
    let (mut world, mut evil) = world();
    let victim = SocketAddr::from(([203, 0, 113, 12], 443));
    evil.name(&mut world, 1, &[evil.at, victim]);
    let mut ids = vec![];
    for _ in 0..20 {
        world.pass(SECOND / 10);
        ids.extend(asked(&mut evil, &world));
    }
    assert!(!ids.is_empty());
    let replied = |id| {
        let reply = ProbeReply {
            id,
            observed: None,
            received: 1,
        };
        Control::ProbeReply(reply).packet().unwrap()
    };
    let (from, known) = (evil.local, ids.clone());
    for id in known.into_iter().chain(0..200) {
        evil.say_from(&mut world, victim, &replied(id));
    }
    world.pass(SECOND);
    assert_eq!(
        path(&world, from),
        Some(Path::Relay),
        "each reply counts once, on its own way"
    );

    evil.handshake(&mut world);
    evil.name(&mut world, 2, &[evil.at]);
    let probe = (0..100).find_map(|_| {
        world.pass(SECOND / 10);
        let words = udp(evil.local, world.local("a"), b"x");
        evil.say(&mut world, &words);
        asked(&mut evil, &world).pop()
    });
    evil.say(&mut world, &replied(probe.unwrap()));
    assert_eq!(path(&world, from), Some(Path::Direct(evil.at)));
}

/// Who is not on the path knows no id and no key: whatever it sends changes no path.
#[test]
fn one_off_the_path_that_guesses_replies_moves_nothing() {
    let (mut world, mut evil) = world();
    let a = world.local("a");
    let c = world.local("c");
    others_talk(&mut world);
    let (way, at) = (path(&world, c), world.hosts["c"].at);
    assert_eq!(way, Some(Path::Direct(at)));
    world.host("c").is_online = false;
    let id = world.host("a").engine.probe(a, c, now()).unwrap();
    // b, a peer itself, answers what c was asked; and repeats c's words from elsewhere.
    world.host("a").pongs = 0;
    let reply = ProbeReply {
        id,
        observed: Some(evil.at),
        received: 0,
    };
    evil.control(&mut world, &Control::ProbeReply(reply));
    assert_eq!(world.host("a").pongs, 0);
    world.host("c").is_online = true;
    let words = world
        .wire
        .iter()
        .filter(|(from, to, _)| *from == at && *to == evil.victim);
    let words = words.map(|(_, _, bytes)| bytes.clone()).collect::<Vec<_>>();
    assert!(words.len() > 10);
    let before = drops(&world.hosts["a"], DropReason::SessionInvalid);

    for (n, mut message) in (0_u16..).zip(words) {
        let from = SocketAddr::new(IpAddr::from([198, 51, 100, 99]), 1000 + n);
        evil.put(&mut world, from, message.clone());
        let last = message.len() - 1;
        message[last] ^= 1;
        evil.put(&mut world, at, message);
    }
    world.pass(SECOND);

    assert_eq!(path(&world, c), way);
    assert!(drops(&world.hosts["a"], DropReason::SessionInvalid) > before);
    let strange = world
        .wire
        .iter()
        .filter(|(_, to, _)| to.ip() == IpAddr::from([198, 51, 100, 99]));
    assert_eq!(strange.count(), 0);
    others_talk(&mut world);
}

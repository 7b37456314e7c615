//! Gateways of one domain find each other, and agents of different gateways talk (protocol.md section 5).

mod foreign;
mod hostile;
mod wire;

use std::time::Duration;

use agentnet::gateway::core::MeshConfig;
use agentnet::gateway::status::Standing;
use agentnet::os::clock;
use agentnet::statement::{Head, Revocation, RevokedKey, Statement};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;

use crate::attach::{YEAR, secs};
use crate::mesh::wire::{DELAY, LEASE, World, registry, signers, statement};
use crate::network::{key, tunnel};

const fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Two gateways that are there for each other, and agents 10 and 11, one at each.
fn pair(seed: u64) -> (World, usize, usize) {
    let mut world = World::new(seed, 2);
    let (a, b) = (world.add(10, 0), world.add(11, 1));
    world.run(secs(2));
    assert!(world.is_whole() && world.is_attached(a) && world.is_attached(b));
    (world, a, b)
}

fn is_down(world: &World, gate: usize, other: usize) -> bool {
    let standing = world.standing(gate, other);
    standing.is_none_or(|peer| peer.state != Standing::Up && peer.routes == 0)
}

/// F-051, F-057, F-058, F-061, F-065.
#[test]
fn agents_of_two_gateways_talk() {
    let (mut world, a, b) = pair(1);

    for _ in 0..3 {
        assert!(world.talk(a, b) && world.talk(b, a));
    }

    let peer = world.standing(0, 1).unwrap();
    assert_eq!((peer.state, peer.routes), (Standing::Up, 1));
    assert_eq!(peer.rtt_us, Some(20_000));
    assert!(world.drops(0).is_empty() && world.drops(1).is_empty());
}

/// The first frame after an attachment is not too early at the other gateway.
#[test]
fn an_agent_that_just_attached_is_reached_from_elsewhere() {
    let (mut world, a, _) = pair(2);
    let late = world.add(12, 1);

    let attached = world.until(secs(5), "it is attached", |w| w.is_attached(2));

    assert!(attached < secs(2) && world.talk(late, a) && world.talk(a, late));
}

/// F-055: who leaves, or moves to the other gateway, is followed.
#[test]
fn an_agent_that_moves_is_found_where_it_is() {
    let (mut world, a, b) = pair(3);

    world.move_to(b, 0, &[0]);
    world.run(secs(1));
    assert!(world.talk(a, b) && world.talk(b, a));
    // It said nothing to gateway 1, where its attachment stands still.
    let c = world.add(12, 1);
    world.run(secs(1));
    assert!(world.talk(c, b) && world.talk(b, c));

    world.move_to(b, 1, &[1]);
    world.run(secs(1));
    assert!(world.talk(a, b) && world.talk(c, b) && world.talk(b, a));
}

/// F-062, F-063: a dead gateway takes with it the ways by it, and no others.
#[test]
fn a_dead_gateway_is_noticed_within_seconds() {
    let mut world = World::new(4, 3);
    let [a, b, c] = [0, 1, 2].map(|gate| world.add(10 + gate as u16, gate));
    world.run(secs(2));
    assert!(world.talk(a, b) && world.talk(a, c));

    world.kill(1);
    let noticed = world.until(secs(20), "it is noticed", |w| {
        is_down(w, 0, 1) && is_down(w, 2, 1)
    });

    assert!(noticed < secs(6), "{noticed:?}");
    assert!(!world.talk(a, b) && world.talk(a, c) && world.talk(c, a));
    assert_eq!(world.standing(0, 2).unwrap().routes, 1);
}

/// F-064: a gateway that ends its work says so.
#[test]
fn a_farewell_is_heard_at_once() {
    let (mut world, a, b) = pair(5);

    world.close(1);
    world.run(DELAY * 2);

    assert!(is_down(&world, 0, 1) && !world.talk(a, b));
}

/// One that restarts is back as soon as it runs, whoever notices first.
#[test]
fn a_restarted_gateway_is_back_within_seconds() {
    let (mut world, a, b) = pair(6);

    for pause in [0, 1, 4, 30] {
        world.kill(1);
        world.run(secs(pause));
        world.start(1);
        // An agent at rest would notice by its next heartbeat.
        world.mark(b, a);
        let whole = world.until(secs(20), "it is back", World::is_whole);
        let back = world.until(secs(20), "its agent is back", |w| {
            let knows = |a, b| w.standing(a, b).is_some_and(|p| p.routes == 1);
            w.is_attached(1) && knows(0, 1) && knows(1, 0)
        });

        assert!(whole + back < secs(5), "{pause}: {whole:?}, {back:?}");
        let talk = (world.talk(a, b), world.talk(b, a));
        let drops = (world.drops(0), world.drops(1));
        assert_eq!(talk, (true, true), "{pause}: {drops:?}");
    }
}

/// A frame to a gateway that forgot us is answered by a Reset, which only that gateway can make.
#[test]
fn a_gateway_that_forgot_us_says_so() {
    let (mut world, a, b) = pair(7);
    world.kill(1);
    // It knows nobody, and so greets nobody.
    world.start_alone(1);
    world.run(DELAY);

    world.mark(a, b);
    let back = world.until(secs(5), "it is met again", |w| {
        w.standing(0, 1).is_some_and(|p| p.state == Standing::Up)
            && w.peers(0)[0].routes + w.peers(1).len() == 1
    });

    assert!(back < secs(1), "{back:?}");
    let forged = agentnet::wire::a2g::Reset {
        hop: 1,
        token: [1; 16],
    };
    let (from, to) = (world.gates[1].at, world.gates[0].at);
    world.put(from, to, forged.encode().to_vec());
    world.run(DELAY * 2);
    assert!(world.drops(0).contains_key("frame_malformed"));
}

/// F-057, F-058: a gateway that the registry did not tell of yet introduces itself.
#[test]
fn a_new_gateway_introduces_itself_by_its_statement() {
    let mut world = World::new(8, 2);
    world.kill(0);
    world.kill(1);
    world.start_alone(0);
    let (a, b) = (world.add(10, 0), world.add(11, 1));
    world.start_alone(1);
    world.tell(1, &world.statement(0));

    let met = world.until(secs(5), "they met", |w| {
        w.standing(0, 1).is_some_and(|p| p.state == Standing::Up)
    });

    assert!(met < secs(2), "{met:?}");
    world.run(secs(1));
    assert!(world.talk(a, b) && world.talk(b, a));
}

/// F-059: neither another domain's gateway, nor one whose statement ended, nor another's key.
#[test]
fn who_is_no_gateway_of_the_domain_is_refused() {
    let mut world = World::new(9, 2);
    world.kill(0);
    world.kill(1);
    world.start_alone(0);
    let at = world.gates[1].at;
    let own = tunnel(world.gates[1].n);
    let n = world.gates[1].n;
    let short = statement(&registry(), n, (&own, at), secs(1));
    world.run(secs(2));
    let (now, unix) = (clock::now(), clock::unix());
    for bad in [
        statement(&key(77), n, (&own, at), YEAR),
        // A gateway signs no gateways.
        statement(&key(world.gates[0].n), n, (&own, at), YEAR),
        short,
    ] {
        let core = world.gates[0].core.as_mut().unwrap();
        assert!(core.add_gateway(&bad, vec![at], now, unix).is_err());

        // It is no better when it says so itself.
        world.start_alone(1);
        let core = world.gates[1].core.as_mut().unwrap();
        core.set_domain(signers(), Some(&bad));
        world.tell(1, &world.statement(0));
        world.run(secs(3));
        assert!(world.peers(0).is_empty());
    }
    // A statement of another gateway, in a session of one's own key.
    let other = statement(&registry(), 999, (&tunnel(999), at), YEAR);
    world.gates[1].n = 999;
    world.start_alone(1);
    let core = world.gates[1].core.as_mut().unwrap();
    core.set_domain(signers(), Some(&other));
    world.tell(1, &world.statement(0));
    world.run(secs(3));
    assert!(world.peers(0).is_empty() && world.drops(0).contains_key("control_refused"));
}

/// A statement's end ends the session, and a newer one with another key begins another.
#[test]
fn a_gateway_lasts_as_long_as_its_statement_and_its_key() {
    let mut world = World::new(10, 2);
    let (a, b) = (world.add(10, 0), world.add(11, 1));
    world.run(secs(2));
    assert!(world.talk(a, b));

    world.kill(1);
    world.gates[1].tunnel = tunnel(777);
    world.start(1);
    world.tell(0, &world.statement(1));
    world.move_to(b, 1, &[1]);
    world.run(secs(3));
    assert!(world.is_whole() && world.talk(a, b) && world.talk(b, a));
    assert_eq!(world.peers(0).len(), 1);

    let (at, n) = (world.gates[1].at, world.gates[1].n);
    let short = statement(&registry(), n, (&tunnel(777), at), secs(60));
    world.tell(0, &short);
    world.run(secs(50));
    assert!(world.talk(a, b));
    world.run(secs(13));
    assert!(world.standing(0, 1).is_none() && !world.talk(a, b));
}

/// A /128 needs a record that lists the gateway: who is attached elsewhere is served there alone.
#[test]
fn an_agent_that_does_not_list_its_gateway_is_known_there_only() {
    let mut world = World::new(11, 2);
    let (a, b) = (world.add(10, 0), world.add_listing(11, 1, &[]));
    let c = world.add(12, 1);
    world.run(secs(2));

    assert!(world.talk(c, b) && world.talk(b, c) && world.talk(a, c));
    assert!(!world.talk(a, b) && !world.talk(b, a));
    assert_eq!(world.drops(1).get("frame_target"), None);
    assert_eq!(world.drops(1).get("frame_source"), None);
    assert_eq!(world.drops(0)["frame_source"], 1);
}

/// Networks are tenants across gateways too.
#[test]
fn agents_of_two_networks_do_not_reach_each_other() {
    let mut world = World::new(12, 2);
    let (a, other) = (world.add(10, 0), world.add(50, 1));
    world.run(secs(2));

    assert!(!world.talk(a, other) && !world.talk(other, a));
    assert_eq!(world.drops(0)["frame_network"], 1);
    assert_eq!(world.drops(1)["frame_network"], 1);
}

/// A revocation detaches at every gateway, whatever the agent's own still says.
#[test]
fn a_revoked_agent_is_reached_by_no_gateway() {
    let (mut world, a, b) = pair(13);
    let network = &world.networks[0];
    let now = clock::unix();
    let head = Head {
        subject: network.root.did(),
        network: Some(network.id()),
        issued: now,
        expires: now + YEAR,
        seq: now.as_millis(),
    };
    let claims = Revocation {
        keys: vec![RevokedKey {
            key: key(11).did(),
            at: now,
        }],
        grants: vec![],
        chain: vec![network.grant.text().to_owned()],
    };
    let revocation = Statement::sign(&network.root, head, claims).unwrap();

    let core = world.gates[0].core.as_mut().unwrap();
    core.add_revocation(&revocation, now).unwrap();

    assert!(!world.talk(a, b) && !world.talk(b, a));
    assert_eq!(world.drops(0)["frame_target"], 1);
    assert_eq!(world.drops(0)["frame_source"], 1);
    assert_eq!(world.standing(0, 1).unwrap().routes, 0);
}

/// Of an agent's several gateways the first of its record is taken, and another once that is gone.
#[test]
fn an_agent_of_two_gateways_is_reached_by_the_one_that_is_left() {
    let mut world = World::new(14, 3);
    let a = world.add(10, 0);
    let first = world.add_listing(11, 1, &[1, 2]);
    // The same agent's second attachment, on the same host.
    let second = world.add_listing(11, 2, &[1, 2]);
    world.run(secs(2));

    for (to, other) in [(first, second), (second, first)] {
        let message = world.mark(a, first);
        world.run(DELAY * 4);
        assert_eq!(world.count(to, &message), 1);
        assert_eq!(world.count(other, &message), 0);
        assert!(world.talk(to, a));
        world.kill(1);
        world.run(secs(6));
    }
}

/// What was missed while a link was cut is told when it is mended, and everything else stays.
#[test]
fn a_mended_link_brings_what_was_missed() {
    let (mut world, a, b) = pair(15);
    let c = world.add(12, 1);
    world.run(secs(1));

    for (n, seconds) in (20..).zip([2, 4, 60, 400]) {
        world.cut.insert((0, 1));
        world.run(secs(seconds) / 2);
        let late = world.add(n, 1);
        world.run(secs(seconds) / 2);
        world.cut.clear();
        world.until(secs(30), "all are known", |w| {
            let there = w.standing(0, 1).map(|peer| peer.routes);
            let here = w.standing(1, 0).map(|peer| peer.routes);
            (here, there) == (Some(1), Some(w.agents.len() - 1))
        });

        let talk = [(a, b), (a, c), (a, late), (late, a)].map(|(a, b)| world.talk(a, b));
        let drops = (world.drops(0), world.drops(1));
        assert_eq!(talk, [true; 4], "{seconds}: {drops:?}");
    }
}

/// Announcements survive loss.
#[test]
fn many_agents_are_announced_over_a_bad_line() {
    let mut world = World::new(16, 2);
    world.loss = 10;
    for n in 10..40 {
        world.add(n, usize::from(n % 2));
    }

    world.until(secs(60), "all are known", |w| {
        (0..2).all(|gate| {
            w.standing(gate, 1 - gate)
                .is_some_and(|peer| peer.routes == 15)
        })
    });
}

/// F-062: a day and an hour without anything but heartbeats: sessions, secrets and hops are renewed.
#[test]
fn a_mesh_lasts() {
    let (mut world, a, b) = pair(17);

    for hours in [2, 23] {
        world.run(secs(hours * 3600));
        world.until(secs(5), "both are attached", |w| {
            w.is_attached(0) && w.is_attached(1)
        });
        world.run(secs(1));
        assert!(world.is_whole() && world.talk(a, b) && world.talk(b, a));
    }
}

/// No gateway takes more routes or gateways than it may.
#[test]
fn tables_are_bounded() {
    let few = MeshConfig {
        max_gateways: 1,
        max_routes: 3,
    };
    let mut world = World::bounded(18, 3, few);
    for n in 10..16 {
        world.add(n, 1);
    }
    world.run(secs(3));

    assert_eq!(world.peers(0).len(), 1);
    assert_eq!(world.standing(0, 1).unwrap().routes, 3);
    assert_eq!(world.drops(0)["frame_quota"], 3);
}

/// an agent that fell silent here and is heard at another gateway is reached there.
#[test]
fn an_agent_that_is_cut_off_from_one_gateway_is_reached_by_another() {
    let mut world = World::new(20, 2);
    let a = world.add(10, 0);
    // One agent's two attachments, by one record; the first falls silent.
    let cut_off = world.add_listing(11, 0, &[0, 1]);
    let heard = world.add_listing(11, 1, &[0, 1]);
    world.run(secs(2));
    assert!(world.talk(a, cut_off));

    world.agents.swap_remove(cut_off);
    let heard = heard.min(cut_off);
    world.run(LEASE + secs(1));

    assert!(world.talk(a, heard) && world.talk(heard, a));
}

/// A silent agent is withdrawn everywhere once its gateway gives it up (A-076, F-053, F-054).
#[test]
fn a_silent_agent_is_withdrawn_everywhere() {
    let (mut world, a, b) = pair(19);

    world.agents[b].at = "198.51.100.99:1".parse().unwrap();
    world.agents.truncate(1);
    world.run(LEASE * 2 - secs(3));
    assert_eq!(world.standing(0, 1).unwrap().routes, 1);
    world.run(secs(4));

    assert_eq!(world.standing(0, 1).unwrap().routes, 0);
    assert!(world.is_attached(a));
}

/// whatever is cut and restarted, no frame passes from gateway to gateway more than once,
/// none arrives twice, and once the links stand all agents reach each other again.
fn storm(seed: u64, is_ring: bool) {
    let mut world = World::new(seed, 4);
    let mut dice = ChaCha20Rng::seed_from_u64(seed);
    let opposite = [(0, 2), (1, 3)];
    if is_ring {
        world.cut.extend(opposite);
    }
    for gate in 0..4 {
        for n in 0..2 {
            let next = (gate + 1) % 4;
            world.add_listing(10 + 2 * gate as u16 + n, gate, &[gate, next]);
        }
    }
    let mut marks = vec![];
    for _ in 0..25 {
        let (gate, other) = (dice.random_range(0..4), dice.random_range(0..4_usize));
        let link = (gate.min(other), gate.max(other));
        match dice.random_range(0..6) {
            0 if world.gates[gate].core.is_some() => world.kill(gate),
            1 if world.gates[gate].core.is_some() => world.close(gate),
            0..3 if world.gates[gate].core.is_none() => world.start(gate),
            3 if gate != other => drop(world.cut.insert(link)),
            4 if !(is_ring && opposite.contains(&link)) => drop(world.cut.remove(&link)),
            // An agent moves to another gateway, or comes back.
            _ => {
                let agent = dice.random_range(0..8);
                world.move_to(agent, gate, &[gate, other]);
            }
        }
        for _ in 0..4 {
            let (from, to) = (dice.random_range(0..8), dice.random_range(0..8));
            marks.push((to, world.mark(from, to)));
        }
        world.run(millis(dice.random_range(1..8000)));
    }
    world.loss = 0;
    world.cut.clear();
    if is_ring {
        world.cut.extend(opposite);
    }
    for gate in 0..4 {
        if world.gates[gate].core.is_none() {
            world.start(gate);
        }
    }
    for (place, gate) in (0..8).zip((0..4).cycle()) {
        world.move_to(place, gate, &[gate]);
    }
    let home = |w: &World| {
        let counted = |a: usize, b: usize| w.standing(a, b).is_some_and(|p| p.routes == 2);
        let all = (0..4).flat_map(|a| (0..4).map(move |b| (a, b)));
        let mut linked = all.filter(|(a, b)| a != b && w.is_linked(*a, *b));
        linked.all(|(a, b)| counted(a, b)) && (0..8).all(|agent| w.is_attached(agent))
    };
    // Attachments that were left without a word end after two leases.
    world.until(LEASE * 3, "all are where they belong", home);

    for (from, to) in (0..8).flat_map(|a| (0..8).map(move |b| (a, b))) {
        let reach = from % 4 == to % 4 || world.is_linked(from % 4, to % 4);
        assert_eq!(world.talk(from, to), reach, "{from} {to}");
    }
    for (to, mark) in marks {
        assert!(world.count(to, &mark) <= 1);
    }
    assert!(world.passed.len() > 20);
    assert!(world.passed.values().all(|times| *times == 1));
}

#[test]
fn a_ring_of_gateways_that_come_and_go_never_loops() {
    for seed in 100..103 {
        storm(seed, true);
    }
}

#[test]
fn a_full_mesh_of_gateways_that_come_and_go_never_loops() {
    for seed in 200..204 {
        storm(seed, false);
    }
}

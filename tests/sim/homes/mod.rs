//! An agent at several gateways: what happens when one of them fails (protocol.md section 5).

mod carried;
mod choice;
mod world;

use std::time::Duration;

use agentnet::engine::Forwarded;
use agentnet::engine::attach::State;
use agentnet::os::clock;

use crate::pair::now;
use world::World;

const SECOND: Duration = Duration::from_secs(1);

/// The promise is two seconds.
const FAILOVER: Duration = Duration::from_millis(1500);

/// Agents a and b at so many gateways, in a talk.
fn talking(seed: u64, gateways: usize) -> World {
    let mut world = World::new(seed, gateways);
    world.add("a", 10);
    world.add("b", 11);
    world.trust("a", "b");
    world.pass(SECOND);
    world.talk("a", "b", SECOND * 3);
    for host in ["a", "b"] {
        let views = world.views(host);
        assert_eq!(views.len(), gateways.min(3));
        assert!(
            views.iter().all(|view| view.state == State::Attached),
            "{views:?}"
        );
    }
    world
}

#[track_caller]
fn both_agree(world: &World) -> usize {
    let ways = (world.relay("a", "b"), world.relay("b", "a"));
    assert_eq!(ways.0, ways.1);
    ways.0.unwrap()
}

/// data is relayed on by another gateway in less than two seconds.
#[test]
fn data_flows_on_when_a_gateway_dies() {
    for seed in 0..5 {
        let mut world = talking(seed, 3);
        for _ in 0..2 {
            let used = both_agree(&world);
            let died = clock::now();

            world.gateways[used] = None;
            world.talk("a", "b", SECOND * 4);

            for host in ["a", "b"] {
                let outage = world.outage(host, died);
                assert!(outage < FAILOVER, "{seed}: {outage:?} at {host}");
            }
            assert_ne!(both_agree(&world), used);
        }
    }
}

/// The same where only one end sends, so that nothing but the gateway itself can tell.
#[test]
fn a_stream_without_answers_flows_on_when_a_gateway_dies() {
    for (from, to) in [("a", "b"), ("b", "a")] {
        let mut world = talking(21, 2);
        let send = |world: &mut World| {
            for _ in 0..200 {
                world.send(from, to);
                world.pass(Duration::from_millis(20));
            }
        };
        send(&mut world);
        let used = world.relay(from, to).unwrap();
        let died = clock::now();

        world.gateways[used] = None;
        send(&mut world);

        let outage = world.outage(to, died);
        assert!(outage < FAILOVER, "{outage:?} at {to}");
    }
}

/// netbird#4498: a gateway that one side alone does not reach any more is left by both.
#[test]
fn a_gateway_down_for_one_side_is_left_by_both() {
    for seed in 30..33 {
        for side in ["a", "b"] {
            let mut world = talking(seed, 2);
            let used = both_agree(&world);
            let cut = clock::now();

            world.cut.insert((side, used));
            world.talk("a", "b", SECOND * 20);

            for host in ["a", "b"] {
                let outage = world.outage(host, cut);
                assert!(
                    outage < FAILOVER,
                    "{seed}: {outage:?} at {host}, {side} cut off"
                );
            }
            assert_ne!(both_agree(&world), used);
        }
    }
}

/// It is so at the begin as well: each side reaches another gateway, and one gateway both.
#[test]
fn two_that_share_one_gateway_find_it() {
    for (of_a, of_b) in [(0, 1), (1, 2), (2, 0)] {
        let mut world = World::new(41, 3);
        world.cut.insert(("a", of_a));
        world.cut.insert(("b", of_b));
        world.add("a", 10);
        world.add("b", 11);
        world.trust("a", "b");

        world.talk("a", "b", SECOND * 10);
        let since = clock::now();
        world.talk("a", "b", SECOND * 30);

        for host in ["a", "b"] {
            let outage = world.outage(host, since);
            assert!(outage < SECOND / 10, "{outage:?} at {host}");
        }
    }
}

#[test]
fn all_gateways_dead_and_back() {
    let mut world = talking(50, 3);

    for n in 0..3 {
        world.gateways[n] = None;
    }
    world.talk("a", "b", SECOND * 120);
    assert!(
        world
            .views("a")
            .iter()
            .all(|view| view.state != State::Attached)
    );
    let back = clock::now();
    for n in 0..3 {
        world.start(n);
    }
    world.talk("a", "b", SECOND * 6);

    for host in ["a", "b"] {
        let outage = world.outage(host, back);
        assert!(outage < SECOND * 5, "{outage:?} at {host}");
    }
    world.talk("a", "b", SECOND * 60);
    let views = world.views("a");
    assert!(
        views.iter().all(|view| view.state == State::Attached),
        "{views:?}"
    );
}

/// who moves tells all of its gateways at once.
#[test]
fn a_change_of_network_is_announced_everywhere() {
    let mut world = talking(60, 3);
    let moved = "192.0.2.77:16200".parse().unwrap();

    let host = world.host("a");
    host.at = moved;
    host.engine.handle_network_change(now());
    let since = clock::now();
    world.talk("a", "b", SECOND * 2);

    for gateway in world.gateways.iter().flatten() {
        let status = gateway.status(clock::now());
        let mut all = status.attachments.iter();
        assert!(all.any(|attached| attached.endpoint == moved), "{status:?}");
    }
    let outage = world.outage("a", since);
    assert!(outage < SECOND / 2, "{outage:?}");
}

/// who leaves is forgotten everywhere at once.
#[test]
fn who_leaves_tells_every_gateway() {
    let mut world = talking(61, 3);

    world.host("a").engine.detach(now());
    world.pass(SECOND / 10);

    for gateway in world.gateways.iter().flatten() {
        assert_eq!(gateway.status(clock::now()).attached, 1);
    }
}

/// three attachments cost three heartbeats, and nothing else, while nothing is said.
#[test]
fn an_idle_agent_is_silent_but_for_heartbeats() {
    let mut world = World::new(62, 3);
    world.add("a", 10);
    world.pass(SECOND * 60);
    let before = world.sent;

    world.pass(SECOND * 600);

    let sent = world.sent - before;
    assert!((66..=75).contains(&sent), "{sent}");
}

/// The newest attachment wins at all gateways, and the other host is at rest.
#[test]
fn a_copy_takes_over_at_all_gateways() {
    let mut world = talking(63, 3);
    let kept = world.kept("b");

    world.boot("c", 12, &kept);
    world.pass(SECOND);
    assert!(
        world
            .views("c")
            .iter()
            .all(|view| view.state == State::Attached)
    );
    assert!(
        world
            .views("b")
            .iter()
            .all(|view| view.state == State::Displaced)
    );
    let host = world.host("c");
    let record = host.engine.record(host.local, now()).unwrap();
    let host = world.host("b");
    let kind = Forwarded::Record;
    drop(
        host.engine
            .handle_statement(host.local, kind, record.text(), now()),
    );
    world.pass(SECOND);
    assert!(
        world.hosts["b"]
            .engine
            .is_at_rest(world.hosts["b"].local, now())
    );
    world.host("b").arrived.clear();
    world.host("c").arrived.clear();

    world.talk("a", "c", SECOND * 20);

    assert!(world.hosts["b"].arrived.is_empty());
    assert!(
        world.hosts["c"].arrived.len() > 600,
        "{}",
        world.hosts["c"].arrived.len()
    );
}

/// One gateway cannot end what goes by the others by saying that the agent is elsewhere.
#[test]
fn a_copy_at_one_gateway_alone_ends_nothing_without_proof() {
    let mut world = talking(64, 3);
    let kept = world.kept("b");
    let used = both_agree(&world);
    for n in (0..3).filter(|n| *n != used) {
        world.cut.insert(("c", n));
    }

    world.boot("c", 12, &kept);
    world.pass(SECOND);
    world.hosts.remove("c");
    let since = clock::now();
    world.talk("a", "b", SECOND * 30);

    let states = world
        .views("b")
        .iter()
        .map(|view| view.state)
        .collect::<Vec<_>>();
    let of = |state| states.iter().filter(|s| **s == state).count();
    assert_eq!((of(State::Displaced), of(State::Attached)), (1, 2));
    let outage = world.outage("b", since);
    assert!(outage < SECOND * 2, "{outage:?}");
}

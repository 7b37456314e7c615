//! Which gateways an agent attaches to, and which of them it likes best.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use agentnet::engine::attach::State;
use agentnet::os::clock;

use crate::homes::{
    SECOND, talking,
    world::{World, gateway_key},
};

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn chosen(world: &World, host: &str) -> Vec<usize> {
    let views = world.views(host);
    let number = |id| (0..world.gateways.len()).find(|n| gateway_key(*n).did() == id);
    views.iter().map(|view| number(view.id).unwrap()).collect()
}

/// the nearest is preferred, and the record says so.
#[test]
fn the_nearest_gateway_comes_first() {
    for seed in 0..6 {
        let mut world = World::new(seed, 3);
        let order = [
            [0, 1, 2],
            [0, 2, 1],
            [1, 0, 2],
            [1, 2, 0],
            [2, 0, 1],
            [2, 1, 0],
        ];
        let order = order[usize::try_from(seed).unwrap()];
        for (n, delay) in order.into_iter().zip([10, 30, 60]) {
            world.delays.insert(("a", n), ms(delay));
        }
        world.add("a", 10);

        world.pass(SECOND * 120);

        assert_eq!(chosen(&world, "a"), order);
        let views = world.views("a");
        let rtts = views.iter().map(|view| view.rtt.unwrap().as_millis());
        assert_eq!(rtts.collect::<Vec<_>>(), [20, 60, 120]);
        let local = world.hosts["a"].local;
        let record = world.host("a").engine.record(local, crate::pair::now());
        let listed = record.unwrap().claims().gateways.clone();
        assert_eq!(listed, views.iter().map(|view| view.id).collect::<Vec<_>>());
    }
}

/// Delays that vary change nothing: neither order nor record, nor the gateway that relays.
#[test]
fn jitter_does_not_make_gateways_change() {
    let mut world = World::new(7, 3);
    world.jitter = 100;
    world.add("a", 10);
    world.add("b", 11);
    world.trust("a", "b");
    world.pass(SECOND * 60);
    let before = world.hosts["a"].records.len();
    let mut relays = BTreeMap::<usize, u32>::new();

    for _ in 0..60 {
        world.talk("a", "b", SECOND / 2);
        *relays.entry(world.relay("a", "b").unwrap()).or_default() += 1;
        world.pass(SECOND * 59);
    }

    let changes = world.hosts["a"].records.len() - before;
    assert!(
        changes <= 2,
        "{changes} in an hour: {:?}",
        world.hosts["a"].records
    );
    assert!(relays.len() <= 2, "{relays:?}");
}

/// Of many the three nearest are found, wherever they stand in the list.
#[test]
fn of_many_gateways_the_three_nearest_are_used() {
    let mut world = World::new(8, 9);
    for n in 0..9 {
        world.delays.insert(("a", n), ms(80));
    }
    for (n, delay) in [(2, 10), (5, 20), (7, 40)] {
        world.delays.insert(("a", n), ms(delay));
    }
    world.add("a", 10);

    // Where it had just attached when the nearest were known, it is forgotten after two leases.
    world.pass(SECOND * 240);

    assert_eq!(chosen(&world, "a"), [2, 5, 7]);
    let attached = |n: usize| {
        world.gateways[n]
            .as_ref()
            .unwrap()
            .status(clock::now())
            .attached
    };
    let attached = (0..9).filter(|n| attached(*n) > 0).collect::<Vec<_>>();
    assert_eq!(attached, [2, 5, 7], "the others were left");
}

/// One that is not reached gives its place to another.
#[test]
fn of_many_gateways_those_that_answer_are_used() {
    let mut world = World::new(9, 6);
    world.add("a", 10);
    world.pass(SECOND * 5);
    for n in chosen(&world, "a").into_iter().take(2) {
        world.gateways[n] = None;
    }

    world.pass(SECOND * 120);

    let views = world.views("a");
    assert!(
        views.iter().all(|view| view.state == State::Attached),
        "{views:?}"
    );
    let used = chosen(&world, "a").into_iter().collect::<BTreeSet<_>>();
    assert!(
        used.iter().all(|n| world.gateways[*n].is_some()),
        "{used:?}"
    );
    let before = world.hosts["a"].records.len();
    world.pass(SECOND * 1200);
    assert_eq!(world.hosts["a"].records.len(), before);
}

/// Agents of one network meet at the same gateways though there are many, with each as good as another.
#[test]
fn agents_of_one_network_choose_the_same_gateways() {
    let mut world = World::new(10, 12);
    for (n, host) in (10..16).zip(["a", "b", "c", "d", "e", "f"]) {
        world.add(host, n);
    }

    world.pass(SECOND * 30);

    let of = |host| chosen(&world, host).into_iter().collect::<BTreeSet<_>>();
    let first = of("a");
    for host in ["b", "c", "d", "e", "f"] {
        assert_eq!(of(host), first);
    }
    let best = world.hosts.keys().map(|host| chosen(&world, host)[0]);
    assert!(
        best.collect::<BTreeSet<_>>().len() > 1,
        "they share them out"
    );
}

/// A gateway that was left comes into use again when it is back, once.
#[test]
fn a_gateway_that_is_back_is_used_again() {
    let mut world = talking(11, 2);
    let used = world.relay("a", "b").unwrap();
    world.gateways[used] = None;
    world.talk("a", "b", SECOND * 5);
    world.start(used);
    let back = clock::now();

    world.talk("a", "b", SECOND * 150);

    assert_eq!(world.relay("a", "b"), Some(used));
    let outage = world.outage("b", back);
    assert!(outage < SECOND / 5, "{outage:?}");
}

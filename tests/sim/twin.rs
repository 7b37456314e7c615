//! The state of one agent on two hosts: the newest attachment wins, and the other is at rest.

use std::time::Duration;

use agentnet::engine::{Forwarded, attach::State, path::Path};

use crate::pair::{World, now};

const SECOND: Duration = Duration::from_secs(1);

/// Hosts a and b, which talk directly, and c, where nothing runs yet.
fn world() -> World {
    let mut world = World::new(31);
    world.is_open = true;
    world.add("a", 10);
    world.add("b", 11);
    world.trust("a", "b", "udp/8000");
    world.send("a", "b", b"first");
    talk(&mut world, 5);
    assert!(matches!(path(&world), Some(Path::Direct(_))));
    world
}

/// Lets a send to agent b every 100 ms; returns how many packets each host of it got.
fn talk(world: &mut World, seconds: u32) -> (usize, usize) {
    for _ in 0..seconds * 10 {
        world.send("a", "b", b"tick");
        world.pass(SECOND / 10);
    }
    let of_c = world.hosts.contains_key("c").then(|| world.arrived("c"));
    (world.arrived("b"), of_c.unwrap_or_default())
}

fn path(world: &World) -> Option<Path> {
    let (local, peer) = (world.local("a"), world.local("b"));
    let paths = world.hosts["a"].engine.paths(local, peer, now());
    paths.and_then(|view| view.current)
}

fn state(world: &World, name: &str) -> State {
    let host = &world.hosts[name];
    host.engine.gateway(host.local).unwrap().state
}

fn is_at_rest(world: &World, name: &str) -> bool {
    let host = &world.hosts[name];
    host.engine.is_at_rest(host.local, now())
}

/// Shows `to` the record that `from`, which runs the same agent, puts to the registry.
fn refresh(world: &mut World, from: &str, to: &str) {
    let host = world.host(from);
    let record = host.engine.record(host.local, now()).unwrap();
    let host = world.host(to);
    let record = record.text();
    host.engine
        .handle_statement(host.local, Forwarded::Record, record, now())
        .unwrap();
    world.run();
}

/// Issue 3: the newest attachment wins, the other is at rest, and its peer finds the new host.
#[test]
fn a_copy_takes_over_within_two_seconds() {
    let mut world = world();

    world.copy("b", "c");
    assert_eq!(
        (state(&world, "b"), state(&world, "c")),
        (State::Displaced, State::Attached)
    );
    refresh(&mut world, "c", "b");
    assert!(is_at_rest(&world, "b"));
    let (of_b, of_c) = talk(&mut world, 2);
    println!("in 2 s {of_b} arrived at b and {of_c} at c");
    assert_eq!(of_b, 0);

    let (of_b, of_c) = talk(&mut world, 10);
    assert_eq!((of_b, of_c), (0, 100));
    assert_eq!(path(&world), Some(Path::Direct(world.hosts["c"].at)));
}

/// It stays so for as long as the other host is there, and ends when that is gone for a lease.
#[test]
fn an_agent_at_rest_is_ours_again_when_the_other_host_is_gone() {
    let mut world = world();
    world.copy("b", "c");
    for _ in 0..4 {
        refresh(&mut world, "c", "b");
        let (of_b, _) = talk(&mut world, 200);
        assert_eq!((of_b, state(&world, "c")), (0, State::Attached));
        assert!(is_at_rest(&world, "b"));
    }

    world.hosts.remove("c");
    world.pass(401 * SECOND);
    assert_eq!(state(&world, "b"), State::Attached);
    talk(&mut world, 5);

    assert_eq!(talk(&mut world, 5), (50, 0));
}

/// A gateway alone cannot end what goes past it by saying that an agent is elsewhere.
#[test]
fn without_proof_an_agent_keeps_its_direct_paths() {
    let mut world = world();

    world.copy("b", "c");
    world.hosts.remove("c");

    assert_eq!(state(&world, "b"), State::Displaced);
    assert!(!is_at_rest(&world, "b"));
    assert_eq!(talk(&mut world, 300), (3000, 0));
}

/// What the agent signed itself proves nothing, whoever shows it again.
#[test]
fn own_records_of_before_prove_nothing() {
    let mut world = world();
    let host = world.host("b");
    let old = (0..40)
        .map(|_| host.engine.record(host.local, now()).unwrap())
        .collect::<Vec<_>>();

    world.copy("b", "c");
    let host = world.host("b");
    for record in &old {
        let text = record.text();
        host.engine
            .handle_statement(host.local, Forwarded::Record, text, now())
            .unwrap();
    }

    assert!(!is_at_rest(&world, "b"));
}

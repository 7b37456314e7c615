//! A node that is killed at any moment: what others learnt of it, it remembers.

use std::time::Duration;

use agentnet::engine::Forwarded;
use agentnet::statement::Scope;

use crate::hostile::SECOND;
use crate::pair::{World, name, now};

const NAMES: [&str; 3] = ["a", "b", "c"];

/// Three agents whose disks are watched: nothing leaves a host that its disk does not know of.
fn world() -> World {
    let mut world = World::new(51);
    world.checks_disks = true;
    world.is_open = true;
    for (name, n) in [("a", 10), ("b", 11), ("c", 12)] {
        world.add(name, n);
    }
    world
}

/// Kills every host in turn, and whatever each was about to say is as it was.
fn kill_all(world: &mut World) {
    let told = |world: &World| NAMES.map(|name| world.hosts[name].engine.tables());
    let before = told(world);
    for name in NAMES {
        let host = &world.hosts[name];
        assert!(host.kept == host.state(), "{name} forgets something");
        world.restart(name);
    }
    assert_eq!(before, told(world));
}

/// P-015: every kind of change is on disk before the datagram or statement that follows from it.
#[test]
fn nothing_leaves_a_node_before_it_is_on_disk() {
    let mut world = world();
    world.trust("a", "b", "udp/8000");
    kill_all(&mut world);
    world.trust("c", "a", "udp/8000");
    world.send("a", "b", b"x");
    world.send("c", "a", b"x");
    kill_all(&mut world);
    world.change("b", |m, unix| {
        let scope = "udp/9".parse::<Scope>().unwrap();
        m.approve(&name("a"), scope, unix).map(drop)
    });
    kill_all(&mut world);

    // Sessions, paths and gossip for a while, in which what is told is kept too.
    for _ in 0..40 {
        world.send("a", "b", b"x");
        world.send("a", "c", b"x");
        world.pass(SECOND);
    }
    let host = world.host("b");
    let record = host.engine.record(host.local, now()).unwrap();
    let host = world.host("a");
    host.engine
        .handle_statement(host.local, Forwarded::Record, record.text(), now())
        .unwrap();
    world.run();
    kill_all(&mut world);
    world.has_registry = false;
    world.change("a", |m, unix| m.revoke(&name("b"), unix).map(drop));
    kill_all(&mut world);
    world.pass(Duration::from_secs(600));
    kill_all(&mut world);

    let (a, b) = (world.local("a"), world.local("b"));
    assert!(!world.hosts["a"].engine.has_peer(a, b));
    assert!(world.hosts["a"].engine.has_peer(a, world.local("c")));
}

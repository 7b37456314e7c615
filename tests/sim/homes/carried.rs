//! Gateways that are reached by connections while no UDP passes (protocol.md section 5).

use std::{net::SocketAddr, time::Duration};

use agentnet::engine::attach::State;
use agentnet::os::clock;

use crate::homes::world::{World, at, carrier_at};
use crate::pair::now;

const SECOND: Duration = Duration::from_secs(1);

/// Hosts a and b at one gateway that takes connections too, in a talk; `blocked` when no UDP passes.
fn talking(seed: u64, blocked: bool) -> World {
    let mut world = World::new(seed, 1);
    world.has_carriers = true;
    if blocked {
        world.without_udp.extend(["a", "b"]);
    }
    world.add("a", 10);
    world.add("b", 11);
    world.trust("a", "b");
    world.pass(SECOND * 3);
    world.talk("a", "b", SECOND);
    world
}

/// Where both send to.
fn endpoints(world: &World) -> [Option<SocketAddr>; 2] {
    ["a", "b"].map(|host| {
        let views = world.views(host);
        assert_eq!(views.len(), 1);
        assert_eq!(views[0].state, State::Attached, "{views:?}");
        views[0].endpoint
    })
}

#[track_caller]
fn assert_flows(world: &mut World) {
    let since = clock::now();
    world.talk("a", "b", SECOND);
    for host in ["a", "b"] {
        assert!(world.outage(host, since) < SECOND / 2, "{host}");
    }
}

/// F-058: UDP is tried first, and the connection when it gave no answer.
#[test]
fn where_no_udp_passes_gateways_are_reached_by_connections() {
    for seed in 0..3 {
        let (mut free, mut blocked) = (talking(seed, false), talking(seed, true));

        assert_eq!(endpoints(&free), [Some(at(0)); 2]);
        assert_eq!(endpoints(&blocked), [Some(carrier_at(0)); 2]);
        assert_flows(&mut free);
        assert_flows(&mut blocked);
        for host in ["a", "b"] {
            let seen = blocked.views(host)[0].observed;
            assert_eq!(seen.map(|at| at.port()), Some(0));
        }
    }
}

/// F-060: UDP is asked for in the background, and taken without a break.
#[test]
fn udp_is_gone_back_to_once_it_works() {
    for seed in 0..2 {
        let mut world = talking(seed, true);
        world.pass(SECOND * 15);
        assert_eq!(endpoints(&world), [Some(carrier_at(0)); 2]);

        let since = clock::now();
        world.without_udp.clear();
        world.talk("a", "b", SECOND * 35);

        assert_eq!(endpoints(&world), [Some(at(0)); 2]);
        for host in ["a", "b"] {
            let outage = world.outage(host, since);
            assert!(outage < SECOND / 4, "{seed}: {outage:?} at {host}");
        }
    }
}

/// The same at once after a change of network, which an idle agent does not wait for either.
#[test]
fn in_another_network_udp_is_tried_at_once() {
    let mut world = talking(7, true);
    world.pass(SECOND * 20);
    world.without_udp.clear();

    world.host("a").engine.handle_network_change(now());
    world.pass(SECOND);

    assert_eq!(endpoints(&world), [Some(at(0)), Some(carrier_at(0))]);
    assert_flows(&mut world);
}

/// F-060: when UDP stops, connections take over within seconds.
#[test]
fn connections_take_over_when_udp_stops() {
    for seed in 0..3 {
        let mut world = talking(seed, false);
        let since = clock::now();

        world.without_udp.extend(["a", "b"]);
        world.talk("a", "b", SECOND * 10);

        assert_eq!(endpoints(&world), [Some(carrier_at(0)); 2]);
        for host in ["a", "b"] {
            let outage = world.outage(host, since);
            assert!(outage < SECOND * 6, "{seed}: {outage:?} at {host}");
        }
    }
}

/// What is lost is made anew by whoever hears of it: the gateway learns of the new connection at once.
#[test]
fn a_connection_that_was_lost_is_spoken_through_again() {
    let mut world = talking(9, true);
    // Past the heartbeats that follow traffic.
    world.pass(SECOND * 20);
    let (lost, moment) = (carrier_at(0), Duration::from_millis(1));
    let mut sent = |host: &str, at| {
        let before = world.sent;
        world.host(host).engine.handle_carrier_lost(at, now());
        world.pass(moment);
        world.sent - before
    };

    let (of_a, of_b) = (sent("a", lost), sent("b", at(0)));

    // One heartbeat of a, and none of b, who is nowhere else.
    assert_eq!((of_a, of_b), (1, 0));
    world.pass(SECOND);
    assert_eq!(endpoints(&world), [Some(lost); 2]);
}

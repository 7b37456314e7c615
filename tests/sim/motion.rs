//! Gateways that come back, agents that move, and two of one: attachments in motion (protocol.md
//! section 5).

use agentnet::engine::attach::State;
use agentnet::gateway::core::Core;
use agentnet::os::clock;

use crate::attach::{YEAR, exchange, pair, secs};

/// A gateway that dies without a word is noticed, and found again within 3 s of its return.
#[test]
fn a_gateway_that_comes_back_is_found_within_3_s() {
    let (mut world, network, a, b) = pair(9);
    world.gateway = None;
    world.send(a, network.address(11), b"into the void");
    world.run(secs(5));
    assert_eq!(world.state(a), State::Handshaking);
    world.run(secs(120));

    world.start_gateway(&[network.id()]);
    world.run(secs(3));

    exchange(&mut world, &network, a, b);
}

#[test]
fn an_idle_agent_notices_a_dead_gateway_by_its_heartbeat() {
    let (mut world, _, a, _) = pair(10);
    world.gateway = None;

    world.run(secs(30));

    assert_eq!(world.state(a), State::Handshaking);
}

/// P-003: an agent that moves keeps its attachment; the gateway follows its frames.
#[test]
fn an_agent_that_moves_is_followed() {
    let (mut world, network, a, b) = pair(18);
    let before = world.to_gateway.len();
    world.agents[a].at = "192.0.2.77:1234".parse().unwrap();

    world.agents[a].attachment.announce(clock::now());
    world.deliver();

    exchange(&mut world, &network, a, b);
    assert_eq!(world.to_gateway.len() - before, 3);
}

/// Agents under traffic are back within a second of a restart; the others take their time.
#[test]
fn agents_with_traffic_come_back_first() {
    let (mut world, network, a, b) = pair(28);
    exchange(&mut world, &network, a, b);
    let recovery = world.gateway.as_ref().map(Core::recovery).unwrap();
    world.start_gateway(&[network.id()]);

    let gateway = world.gateway.as_mut().unwrap();
    gateway.recover(recovery, clock::now());
    world.run(secs(1));

    exchange(&mut world, &network, a, b);
}

/// A router that lost its mappings lets nothing in before something went out: an agent that only
/// listens makes a new one soon after the traffic stopped.
#[test]
fn a_listener_whose_mapping_was_lost_is_reached_again_within_2_s() {
    let (mut world, network, a, b) = pair(29);
    exchange(&mut world, &network, a, b);
    world.run(secs(2));
    world.send(a, network.address(11), b"before");
    assert_eq!(world.received(b).len(), 1);

    world.agents[b].at = "192.0.2.78:41000".parse().unwrap();
    world.send(a, network.address(11), b"lost");
    assert!(world.received(b).is_empty());
    world.run(secs(2));
    world.send(a, network.address(11), b"after");

    assert_eq!(world.received(b).len(), 1);
}

/// After traffic there are four heartbeats, then silence until the next is due anyway.
#[test]
fn quiet_after_traffic_costs_four_heartbeats() {
    let (mut world, network, a, b) = pair(30);
    world.send(a, network.address(11), b"one");
    assert_eq!(world.received(b).len(), 1);

    let before = world.to_gateway.len();
    world.run(secs(24));

    assert_eq!(world.to_gateway.len() - before, 2 * 4);
}

/// The newest attachment of an agent wins, and the old one keeps quiet instead of fighting.
#[test]
fn a_copy_of_an_agent_displaces_it() {
    let (mut world, network, a, b) = pair(19);
    let copy = world.add(&network, 11, YEAR);

    world.run(secs(60));

    assert_eq!(
        (world.state(b), world.state(copy)),
        (State::Displaced, State::Attached)
    );
    assert_eq!(world.attached(), 2);
    world.send(a, network.address(11), b"hello");
    assert_eq!(
        (world.received(copy).len(), world.received(b).len()),
        (1, 0)
    );
}

//! Gateways of two domains that peer: frames pass by the /48 of each (protocol.md section 5).

use std::net::SocketAddr;

use agentnet::os::clock;
use agentnet::statement::peering::Peering;
use agentnet::statement::{Head, Registry, Statement};
use agentnet::wire::mesh::Entry;

use crate::attach::{YEAR, secs};
use crate::mesh::hostile::Evil;
use crate::mesh::wire::{DOMAIN, OTHER, World, statement};
use crate::network::{Network, key, tunnel};

/// What a domain hands to others: its registry, and the gateways of these places.
fn file(world: &World, domain: u16, gates: &[usize]) -> String {
    let now = clock::unix();
    let head = Head {
        subject: key(domain + 1).did(),
        network: None,
        issued: now,
        expires: now + YEAR,
        seq: now.as_millis(),
    };
    let claims = Registry { pin: String::new() };
    let registry = Statement::sign(&key(domain), head, claims).unwrap();
    let gateways = gates.iter().map(|gate| world.statement(*gate));
    Peering::write(key(domain).did().into(), registry, gateways.collect())
}

/// Has a gateway take a file, and meet whom it names.
fn peer(world: &mut World, gate: usize, file: &str) {
    let peering = Peering::parse(file).unwrap();
    let gateways = peering.gateways().to_vec();
    world.core(gate).set_peerings(vec![peering]);
    for gateway in &gateways {
        world.tell(gate, gateway);
    }
}

/// Gateways 0 and 1 of one domain and 2 and 3 of another, which know those of their own only.
fn strangers(seed: u64) -> World {
    let mut world = World::new(seed, 4);
    for gate in 0..4 {
        world.kill(gate);
        world.gates[gate].domain = if gate < 2 { DOMAIN } else { OTHER };
    }
    for (gate, other) in [(0, 1), (1, 0), (2, 3), (3, 2)] {
        world.start_alone(gate);
        world.tell(gate, &world.statement(other));
    }
    world
}

/// The same, all of which peer, with agents 10 and 11 of one domain and 80 and 81 of the other, one at
/// each gateway.
fn domains(seed: u64) -> (World, [usize; 4]) {
    let mut world = strangers(seed);
    let (ours, theirs) = (file(&world, DOMAIN, &[0, 1]), file(&world, OTHER, &[2, 3]));
    for gate in 0..4 {
        peer(&mut world, gate, if gate < 2 { &theirs } else { &ours });
    }
    let agents = [(10, 0), (11, 1), (80, 2), (81, 3)].map(|(n, gate)| world.add(n, gate));
    world.run(secs(3));
    assert!(world.is_whole() && (0..4).all(|agent| world.is_attached(agent)));
    (world, agents)
}

fn count(world: &World, gate: usize, reason: &str) -> u64 {
    world.drops(gate).get(reason).copied().unwrap_or_default()
}

/// F-039, F-047, F-065: whichever gateways of two domains they are at.
#[test]
fn agents_of_two_domains_reach_each_other_by_their_prefixes() {
    let (mut world, agents) = domains(60);

    for (from, to) in (0..4).flat_map(|a| (0..4).map(move |b| (a, b))) {
        let (from, to) = (agents[from], agents[to]);
        assert!(from == to || world.talk(from, to), "{from} {to}");
    }

    let whole = format!("{}/48", world.networks[2].prefix.domain().first());
    let stands = world.standing(0, 2).unwrap();
    assert_eq!((stands.routes, stands.prefixes), (0, vec![whole]));
    // None was told who is where in the other domain.
    assert!((0..4).all(|gate| world.peers(gate).iter().map(|p| p.routes).sum::<usize>() == 1));
    assert!((0..4).all(|gate| world.drops(gate).is_empty()));
}

/// F-062, F-063: a dead gateway takes its way with it, and the domain's other one is left.
#[test]
fn a_domain_is_reached_by_the_gateway_that_is_left() {
    let (mut world, [a, _, dead, alive]) = domains(61);

    world.kill(2);
    world.run(secs(6));
    assert!(world.talk(a, alive) && world.talk(alive, a) && !world.talk(a, dead));

    world.kill(3);
    world.run(secs(6));
    assert!(!world.talk(a, alive));
    assert_eq!(count(&world, 0, "frame_target"), 1);
}

/// F-059: whose file nobody took, is nobody; and one side alone is not enough.
#[test]
fn a_domain_that_was_not_named_is_refused() {
    let mut world = strangers(62);
    let (ours, theirs) = (file(&world, DOMAIN, &[0]), file(&world, OTHER, &[2]));
    let (a, b) = (world.add(10, 0), world.add(80, 2));

    peer(&mut world, 2, &ours);
    world.run(secs(5));
    assert!(world.standing(0, 2).is_none() && !world.talk(a, b) && !world.talk(b, a));
    assert!(count(&world, 0, "control_refused") > 0);

    peer(&mut world, 0, &theirs);
    world.run(secs(20));
    assert!(world.talk(a, b) && world.talk(b, a));
}

/// F-039: longest match: a gateway that carries one network is taken before one that carries all.
#[test]
fn a_network_that_a_gateway_carries_goes_by_it() {
    let mut world = strangers(63);
    let whole = file(&world, OTHER, &[2]);
    let mut part: serde_json::Value = serde_json::from_str(&whole).unwrap();
    part["prefixes"] = vec![Network::of(4, OTHER).prefix.to_string()].into();
    let ours = file(&world, DOMAIN, &[0]);
    peer(&mut world, 2, &ours);
    peer(&mut world, 0, &part.to_string());
    let (a, b) = (world.add(10, 0), world.add(80, 2));
    world.run(secs(5));

    // Network 4 is carried, and network 3, where agent 80 is, is not: neither to it nor from it.
    assert!(!world.talk(a, b) && !world.talk(b, a));
    assert_eq!(count(&world, 0, "frame_target"), 1);
    assert_eq!(count(&world, 0, "frame_source"), 1);
}

/// A foreign gateway sends for its domain alone, and reaches nobody beyond ours.
#[test]
fn a_foreign_gateway_sends_for_its_own_domain_alone() {
    let (mut world, [a, b, _, c]) = domains(64);
    let (own, other) = (world.address(11), world.address(10));

    let mut evil = Evil::meet(&mut world, 2);
    evil.frame(&mut world, other, own);
    assert_eq!(count(&world, 0, "frame_source"), 1);
    // Nor does it get through to its own domain, or a third one, or by a way that is not its own.
    let (there, theirs) = (world.address(81), world.address(80));
    evil.frame(&mut world, there, theirs);
    evil.frame(&mut world, Network::of(9, 220).address(1), theirs);
    assert_eq!(count(&world, 0, "frame_target"), 2);
    assert!(world.agents[a].received.is_empty());

    // To whom it may it does, at both gateways of ours.
    evil.frame(&mut world, other, theirs);
    evil.frame(&mut world, own, theirs);
    assert_eq!(
        (
            world.agents[a].received.len(),
            world.agents[b].received.len()
        ),
        (1, 1)
    );
    assert!(world.talk(a, b) && world.talk(c, a));
}

/// A foreign registry that signs for a gateway of ours takes nobody's place.
#[test]
fn a_foreign_statement_about_our_gateway_changes_nothing() {
    let (mut world, [a, b, ..]) = domains(65);
    world.run(secs(1));
    let at: SocketAddr = "192.0.2.66:1".parse().unwrap();
    let lie = statement(&key(OTHER + 1), world.gates[1].n, (&tunnel(666), at), YEAR);
    let (now, unix) = (clock::now(), clock::unix());
    world
        .core(0)
        .add_gateway(&lie, vec![at], now, unix)
        .unwrap();
    world.run(secs(2));
    assert!(world.talk(a, b) && world.talk(b, a));

    // Nor does it keep the place of one that is not known yet.
    world.kill(0);
    world.start_alone(0);
    let theirs = file(&world, OTHER, &[2, 3]);
    peer(&mut world, 0, &theirs);
    world
        .core(0)
        .add_gateway(&lie, vec![at], now, unix)
        .unwrap();
    world.tell(0, &world.statement(1));
    world.move_to(a, 0, &[0]);
    world.run(secs(5));
    assert!(world.talk(a, b) && world.talk(b, a));
}

/// What a gateway of another domain announces is not listened to.
#[test]
fn a_foreign_gateway_announces_nobody() {
    let (mut world, [a, ..]) = domains(66);
    let listed = world.did(2);
    let record = world.networks[0].record_at(13, YEAR, vec![listed]);
    let mut evil = Evil::meet(&mut world, 2);
    let before = count(&world, 0, "control_refused");

    evil.announce(&mut world, vec![Entry::Agent(record)]);

    assert_eq!(count(&world, 0, "control_refused"), before + 1);
    assert_eq!(world.standing(0, 2).unwrap().routes, 0);
    assert!(world.is_attached(a));
}

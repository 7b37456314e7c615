//! Agents attach to a gateway and exchange frames through it (protocol.md section 5).

use std::{net::SocketAddr, time::Duration};

use agentnet::engine::attach::State;
use agentnet::engine::session::{Session, SessionKeys};
use agentnet::gateway::core::{Core, CoreConfig};
use agentnet::gateway::quota::QuotaConfig;
use agentnet::os::clock;
use agentnet::statement::{Head, Revocation, RevokedKey, Statement};
use agentnet::wire::a2g::{HEADER, RESET, Reset};
use agentnet::wire::control::Refusal;
use agentnet::wire::drop::DropReason;

use crate::gateway::{LEASE, World};
use crate::network::{Network, key, tunnel};

pub(crate) const YEAR: Duration = Duration::from_secs(365 * 86_400);

pub(crate) const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Two attached agents of one network.
pub(crate) fn pair(seed: u64) -> (World, Network, usize, usize) {
    let mut world = World::new(seed);
    let network = Network::new(1);
    world.start_gateway(&[network.id()]);
    let a = world.add(&network, 10, YEAR);
    let b = world.add(&network, 11, YEAR);
    world.run(secs(1));
    assert_eq!(
        (world.state(a), world.state(b)),
        (State::Attached, State::Attached)
    );
    (world, network, a, b)
}

/// Takes the membership of agent `n` back.
fn revocation(network: &Network, n: u16) -> Statement<Revocation> {
    let now = clock::unix();
    let head = Head {
        subject: network.root.did(),
        network: Some(network.id()),
        issued: now,
        expires: now + Duration::from_secs(86_400),
        seq: now.as_millis(),
    };
    let claims = Revocation {
        keys: vec![RevokedKey {
            key: key(n).did(),
            at: now,
        }],
        grants: vec![],
        chain: vec![network.grant.text().to_owned()],
    };
    Statement::sign(&network.root, head, claims).unwrap()
}

pub(crate) fn exchange(world: &mut World, network: &Network, a: usize, b: usize) {
    world.received(a);
    world.received(b);
    assert!(world.send(a, network.address(11), b"to b"));
    assert!(world.send(b, network.address(10), b"to a"));
    let to_b = vec![(network.address(10), b"to b".to_vec())];
    let to_a = vec![(network.address(11), b"to a".to_vec())];
    assert_eq!((world.received(b), world.received(a)), (to_b, to_a));
}

/// agents attach by their record and reach each other.
#[test]
fn attached_agents_exchange_frames() {
    let (mut world, network, a, b) = pair(1);

    exchange(&mut world, &network, a, b);

    let status = world.gateway.as_ref().unwrap().status(clock::now());
    assert_eq!(
        (status.attached, status.routes, status.forwarded_frames),
        (2, 2, 2)
    );
    let hop = world.agents[a].attachment.hop().unwrap();
    assert_eq!(hop.observed(), world.agents[a].at);
    assert!(status.drops.is_empty(), "{:?}", status.drops);
}

/// P-075: no address of the overlay is on the wire in clear.
#[test]
fn addresses_are_masked_on_the_wire() {
    let (mut world, network, a, b) = pair(2);

    exchange(&mut world, &network, a, b);

    let addresses = [network.address(10), network.address(11)];
    let all = world.to_gateway.iter().chain(&world.from_gateway);
    for (_, bytes) in all {
        for address in addresses {
            let interface = &address.ip().octets()[8..];
            assert!(!bytes.windows(8).any(|w| w == interface));
        }
    }
}

#[test]
fn a_restarted_gateway_is_found_by_the_next_frame() {
    let (mut world, network, a, b) = pair(3);
    world.start_gateway(&[network.id()]);

    world.send(a, network.address(11), b"lost");
    world.send(b, network.address(10), b"lost");
    assert_eq!(world.state(a), State::Waiting);
    world.run(secs(4));

    exchange(&mut world, &network, a, b);
}

#[test]
fn a_restarted_gateway_tells_the_agents_it_remembers() {
    let (mut world, network, a, b) = pair(4);
    let recovery = world.gateway.as_ref().map(Core::recovery).unwrap();
    assert_eq!(recovery.hops.len(), 2);
    world.start_gateway(&[network.id()]);

    let gateway = world.gateway.as_mut().unwrap();
    gateway.recover(recovery, clock::now());
    world.run(secs(4));

    exchange(&mut world, &network, a, b);
}

/// A Reset is believed by its token alone, and is shorter than what it answers.
#[test]
fn a_forged_reset_does_nothing() {
    let (mut world, network, a, b) = pair(5);
    let hop = world.agents[a].attachment.hop().unwrap().up();
    let at = world.agents[a].at;

    let forged = Reset {
        hop,
        token: [0; 16],
    };
    world.arrive(at, &forged.encode());

    assert_eq!(world.agents[a].dropped, [DropReason::FrameTag]);
    exchange(&mut world, &network, a, b);
}

#[test]
fn unknown_hops_are_answered_by_a_shorter_reset_within_limits() {
    let (mut world, _, _, _) = pair(6);
    world.from_gateway.clear();
    let from: SocketAddr = "192.0.2.9:9".parse().unwrap();

    for n in 0..500_u32 {
        let mut frame = vec![0; HEADER];
        frame[..4].copy_from_slice(&[0xa2, 0x10, 8, 128]);
        frame[4..8].copy_from_slice(&n.to_be_bytes());
        world.inject(from, frame);
    }
    world.deliver();

    let sent = &world.from_gateway;
    assert!(
        sent.iter()
            .all(|(to, bytes)| *to == from && bytes.len() == RESET)
    );
    assert_eq!(sent.len(), 100);
    assert_eq!(world.drops()["frame_hop_unknown"], 500);
}

/// F-052, F-053, A-075, A-076: an idle agent keeps its attachment by heartbeats.
#[test]
fn an_idle_agent_stays_attached_and_a_silent_one_does_not() {
    let (mut world, network, a, b) = pair(7);
    let sent = world.to_gateway.len();

    world.run(secs(600));
    let heartbeats = world.to_gateway.len() - sent;
    assert!((40..=60).contains(&heartbeats), "{heartbeats}");
    exchange(&mut world, &network, a, b);

    let gone = world.agents.remove(b);
    world.run(LEASE + secs(1));
    let status = world.gateway.as_ref().unwrap().status(clock::now());
    assert_eq!(status.attached, 2);
    assert_eq!(status.attachments.iter().filter(|x| x.stale).count(), 1);
    world.run(LEASE);
    assert_eq!(world.attached(), 1);
    drop(gone);
}

/// an agent that leaves is forgotten at once.
#[test]
fn a_detached_agent_is_gone_at_once() {
    let (mut world, network, a, b) = pair(8);

    world.agents[b].attachment.detach(clock::now());
    world.deliver();
    world.send(a, network.address(11), b"late");

    assert_eq!((world.state(b), world.attached()), (State::Detached, 1));
    assert_eq!(world.drops()["frame_target"], 1);
    assert_eq!(world.agents[b].attachment.poll_timeout(), None);
}

/// what was seen on the wire is of no use to others.
#[test]
fn replayed_frames_are_dropped() {
    let (mut world, network, a, b) = pair(11);
    exchange(&mut world, &network, a, b);
    let (from, frame) = world.to_gateway.iter().rev().nth(1).unwrap().clone();
    let (to, onward) = world.from_gateway.last().unwrap().clone();

    world.inject(from, frame.clone());
    world.inject("192.0.2.66:6".parse().unwrap(), frame);
    world.deliver();
    world.arrive(to, &onward);

    assert_eq!(world.drops()["frame_replayed"], 2);
    assert!(world.received(a).is_empty() && world.received(b).is_empty());
    exchange(&mut world, &network, a, b);
}

#[test]
fn frames_changed_on_the_way_are_dropped() {
    let (mut world, network, a, b) = pair(12);
    exchange(&mut world, &network, a, b);
    let (from, frame) = world.to_gateway.last().unwrap().clone();

    for at in [2, 8, 20, 40, 50, HEADER] {
        let mut changed = frame.clone();
        changed[at] ^= 1;
        world.inject(from, changed);
    }
    world.deliver();

    assert_eq!(world.drops()["frame_tag"], 6);
    exchange(&mut world, &network, a, b);
}

/// an agent speaks for itself only.
#[test]
fn an_agent_cannot_send_as_another_nor_to_another_network() {
    let (mut world, network, a, _) = pair(13);
    let other = Network::new(2);
    world.gateway.as_mut().unwrap().add_network(other.id());
    let c = world.add(&other, 12, YEAR);
    world.run(secs(1));
    let (hop_network, address) = (other.address(12), network.address(11));

    world.send(a, hop_network, b"across networks");
    world.send(c, address, b"across networks");

    assert_eq!(world.drops()["frame_network"], 2);
    assert!(world.received(c).is_empty());
}

/// Membership decides: another network, key, or a revoked or expired membership does not attach.
#[test]
fn only_members_of_served_networks_attach() {
    let (mut world, network, _, _) = pair(14);
    let foreign = Network::new(3);
    let stranger = world.add(&foreign, 20, YEAR);
    let expired = world.add(&network, 21, secs(1));
    world.sim.advance(secs(2));
    world.run(secs(10));

    let refused = |agent: usize| world.agents[agent].attachment.refused().map(|(c, _)| *c);
    assert_eq!(refused(stranger), Some(Refusal::NotServed));
    assert_eq!(refused(expired), Some(Refusal::BadRecord));
    assert_eq!(world.attached(), 2);
}

/// The record binds the session: a record seen elsewhere attaches nobody else.
#[test]
fn a_record_with_another_tunnel_key_is_refused() {
    let (mut world, network, _, _) = pair(15);
    let thief = world.add(&network, 30, YEAR);
    let victim = network.record(11, YEAR);
    world.agents[thief]
        .attachment
        .set_record(victim, clock::now());

    world.run(secs(2));

    let refused = world.agents[thief].attachment.refused();
    assert_eq!(refused.map(|(code, _)| *code), Some(Refusal::WrongKey));
    assert_eq!(world.attached(), 2);
}

#[test]
fn a_revoked_agent_is_detached_and_stays_out() {
    let (mut world, network, a, b) = pair(16);
    let revocation = revocation(&network, 11);
    world.sim.advance(secs(1));

    let gateway = world.gateway.as_mut().unwrap();
    gateway.add_revocation(&revocation, clock::unix()).unwrap();
    world.run(secs(10));

    assert_eq!((world.attached(), world.state(b)), (1, State::Waiting));
    assert_eq!(world.state(a), State::Attached);
    let refused = world.agents[b].attachment.refused();
    assert_eq!(refused.map(|(code, _)| *code), Some(Refusal::BadRecord));
}

#[test]
fn a_lapsed_membership_ends_the_attachment_until_it_is_renewed() {
    let (mut world, network, a, _) = pair(17);
    let short = world.add(&network, 40, secs(100));
    world.run(secs(1));
    assert_eq!(world.state(short), State::Attached);

    world.run(secs(300));
    assert_ne!(world.state(short), State::Attached);
    let record = network.record(40, YEAR);
    world.agents[short]
        .attachment
        .set_record(record, clock::now());
    world.run(secs(1));

    assert_eq!(world.state(short), State::Attached);
    assert_eq!(world.state(a), State::Attached);
}

/// A hop secret is not used for more than a day, and its renewal loses no frame.
#[test]
fn a_hop_is_renewed_before_its_secret_is_a_day_old() {
    let (mut world, network, a, b) = pair(20);
    let first = world.agents[a].attachment.hop().unwrap().up();

    for _ in 0..25 {
        world.run(secs(3600));
        exchange(&mut world, &network, a, b);
    }

    assert_ne!(world.agents[a].attachment.hop().unwrap().up(), first);
    assert_eq!(world.drops().get("frame_hop_unknown"), None);
}

/// Garbage is counted and answered by nothing longer than itself.
#[test]
fn garbage_leaves_the_gateway_working() {
    let (mut world, network, a, b) = pair(21);
    let from: SocketAddr = "192.0.2.66:6".parse().unwrap();
    let mut seed = 1_u64;
    world.from_gateway.clear();

    for length in 0..300_usize {
        for first in [0, 1, 2, 3, 4, 5, 0x20, 0xa2, 0xa3, 0xff] {
            let mut bytes = vec![0; length];
            for byte in &mut bytes {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                *byte = seed.to_be_bytes()[0];
            }
            if let Some(byte) = bytes.first_mut() {
                *byte = first;
            }
            let zeros = bytes.iter_mut().skip(1).take(3);
            zeros.for_each(|byte| *byte = 0);
            let sent = world.from_gateway.len();
            world.inject(from, bytes);
            world.deliver();
            let answers = &world.from_gateway[sent..];
            assert!(answers.iter().all(|(_, answer)| answer.len() < length));
        }
    }

    exchange(&mut world, &network, a, b);
}

/// Nothing that comes from the gateway's side can break an agent's end.
#[test]
fn garbage_leaves_an_agent_working() {
    let (mut world, network, a, b) = pair(26);
    let at = world.agents[a].at;
    let (_, frame) = world.from_gateway.last().unwrap().clone();

    for length in 0..200_usize {
        for first in [0, 1, 2, 3, 4, 0x20, 0xa2, 0xa3] {
            let mut bytes = vec![0; length];
            let known = bytes.iter_mut().zip(&frame).skip(4);
            known.for_each(|(to, from)| *to = *from);
            if let Some(byte) = bytes.first_mut() {
                *byte = first;
            }
            world.arrive(at, &bytes);
        }
    }

    assert_eq!(world.agents[a].dropped.len(), 1600);
    exchange(&mut world, &network, a, b);
}

/// A flood of handshakes under random keys is bounded; agents that are attached do not feel it.
#[test]
fn a_flood_of_strangers_is_bounded_and_attached_agents_go_on() {
    let (mut world, network, a, b) = pair(22);
    let gateway = tunnel(201).public();

    for n in 0..600_u32 {
        let mut seed = [9; 32];
        seed[..4].copy_from_slice(&n.to_be_bytes());
        let keys = SessionKeys {
            local: agentnet::id::TunnelSecret::from_seed(seed),
            peer: gateway,
            psk: None,
            index: n,
        };
        let initiation = Session::new(&keys, clock::now()).initiate(clock::now());
        let from = SocketAddr::from((0xc000_0200_u32.wrapping_add(n).to_be_bytes(), 9));
        let sent = world.from_gateway.len();
        world.inject(from, initiation.unwrap());
        world.deliver();
        assert!(
            world.from_gateway[sent..]
                .iter()
                .all(|(_, bytes)| bytes.len() < 148)
        );
        assert!(
            world
                .gateway
                .as_ref()
                .unwrap()
                .status(clock::now())
                .attaching
                <= 64
        );
    }
    exchange(&mut world, &network, a, b);

    let late = world.add(&network, 50, YEAR);
    world.run(secs(6));
    assert_eq!(world.state(late), State::Attached);
    world.run(secs(20));
    assert_eq!(
        world
            .gateway
            .as_ref()
            .unwrap()
            .status(clock::now())
            .attaching,
        0
    );
}

/// A thousand agents of one router are back within seconds of a restart, spread over them, with
/// cookies where the gateway asks for them.
#[test]
fn a_thousand_agents_are_back_within_seconds_of_a_restart() {
    let mut world = World::new(27);
    let network = Network::new(1);
    world.config = CoreConfig {
        max_attachments: 1000,
        max_handshakes: 2048,
        handshakes_per_second: 300,
        per_source: 200,
        burst: 1000,
        ..world.config
    };
    world.start_gateway(&[network.id()]);
    for n in 1000..2000 {
        world.add(&network, n, YEAR);
    }
    world.run(secs(15));
    assert_eq!(world.attached(), 1000);

    let recovery = world.gateway.as_ref().map(Core::recovery).unwrap();
    world.start_gateway(&[network.id()]);
    world
        .gateway
        .as_mut()
        .unwrap()
        .recover(recovery, clock::now());
    world.from_gateway.clear();
    world.run(secs(2));
    let early = world.attached();
    world.run(secs(6));

    assert!((300..900).contains(&early), "{early}");
    assert_eq!(world.attached(), 1000);
    assert!(
        world
            .from_gateway
            .iter()
            .any(|(_, bytes)| bytes.starts_with(&[3, 0, 0, 0]))
    );
}

/// One source gets its share of handshakes and no more.
#[test]
fn one_source_cannot_take_all_handshakes() {
    let (mut world, _, _, _) = pair(23);
    let keys = SessionKeys {
        local: tunnel(77),
        peer: tunnel(201).public(),
        psk: None,
        index: 77,
    };
    let mut session = Session::new(&keys, clock::now());
    for _ in 0..150 {
        world.sim.advance(Duration::from_millis(1));
        let initiation = session.initiate(clock::now()).unwrap();
        world.inject("192.0.2.5:5".parse().unwrap(), initiation);
    }
    world.deliver();

    assert!(world.drops()["handshake_limited"] >= 40);
}

/// Equal seeds give equal bytes, so a failure can be run again.
#[test]
fn the_same_seed_gives_the_same_wire() {
    let run = |seed| {
        let (mut world, network, a, b) = pair(seed);
        exchange(&mut world, &network, a, b);
        world.to_gateway
    };

    assert!(run(24) == run(24));
    assert!(run(24) != run(25));
}

/// F-044: of one network, and from one address, as many attach as may; who is attached may come back.
#[test]
fn attachments_are_bounded_by_network_and_by_source() {
    let (mut world, network, a, b) = pair(29);
    let other = Network::new(2);
    world.start_gateway(&[network.id(), other.id()]);
    let quota = QuotaConfig {
        network_agents: 3,
        ..QuotaConfig::default()
    };
    world.gateway.as_mut().unwrap().set_quota(quota);
    for agent in [a, b] {
        world.send(agent, network.address(10), b"lost");
    }
    world.run(secs(4));

    let third = world.add(&network, 12, YEAR);
    world.run(secs(1));
    let fourth = world.add(&network, 13, YEAR);
    let elsewhere = world.add(&other, 14, YEAR);
    world.run(secs(4));
    let attached = [a, b, third, fourth, elsewhere].map(|n| world.state(n) == State::Attached);
    assert_eq!(attached, [true, true, true, false, true]);
    // All are behind one address.
    let quota = QuotaConfig {
        source_agents: 4,
        ..QuotaConfig::default()
    };
    world.gateway.as_mut().unwrap().set_quota(quota);
    let fifth = world.add(&other, 15, YEAR);
    world.run(secs(2));
    assert_ne!(world.state(fifth), State::Attached);
    world.agents[a].attachment.renew(clock::now());
    world.run(secs(2));
    assert_eq!((world.state(a), world.attached()), (State::Attached, 4));
    exchange(&mut world, &network, a, b);
}

//! A host whose state directory fell into the wrong hands.

use std::collections::{BTreeMap, BTreeSet};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use agentnet::engine::channel::{ChannelChange, DataKey, NewChannel};
use agentnet::engine::session::{Opened, Session, SessionKeys};
use agentnet::engine::{Engine, membership::State};
use agentnet::id::TunnelSecret;
use agentnet::wire::a2g::HEADER;
use agentnet::wire::channel::{Suite, Suites};

use crate::hostile::{Ledger, SECOND};
use crate::pair::{World, key, name, now};

/// Agents a and b trust each other, and c and b; hosts reach each other or not.
fn world(is_open: bool) -> World {
    let mut world = World::new(41);
    world.is_open = is_open;
    for (name, n) in [("a", 10), ("b", 11), ("c", 12)] {
        world.add(name, n);
    }
    world.trust("a", "b", "udp/8000");
    world.trust("c", "b", "udp/8000");
    world
}

/// Returns every WireGuard message between agents that was on the wire, in frames or without.
fn recorded(world: &World) -> Vec<Vec<u8>> {
    let is_message = |bytes: &[u8]| matches!(bytes, [1..=4, 0, 0, 0, ..]);
    let wire = world.wire.iter();
    let messages = wire.filter_map(|(_, to, bytes)| match bytes.as_slice() {
        [0xa2, ..] => bytes.get(HEADER..),
        // What is for the gateway itself is of sessions with the gateway.
        _ => Some(bytes.as_slice()).filter(|_| *to != world.gateway_at),
    });
    let messages = messages.filter(|message| is_message(message));
    messages.map(<[u8]>::to_vec).collect()
}

/// P-018: with the long-term keys of both ends, recorded traffic stays closed.
#[test]
fn what_was_recorded_stays_closed_to_who_has_all_keys_of_both_hosts() {
    for is_open in [false, true] {
        let (mut world, mut ledger) = (world(is_open), Ledger::default());
        let before = [world.hosts["a"].state(), world.hosts["b"].state()];
        let (_, arrived) = ledger.talk(&mut world, &[("a", "b")], 130);
        assert!(arrived > 1000, "through a rekey: {arrived}");
        let after = [world.hosts["a"].state(), world.hosts["b"].state()];
        assert_eq!(before, after, "a session leaves nothing on disk");

        // All handshakes, and some of the data that followed each.
        let mut messages = recorded(&world);
        let mut n = 0;
        messages.retain(|message| {
            n = if message[0] == 4 { n + 1 } else { 0 };
            n % 25 == 0 || n == 1
        });
        let (mut initiations, mut data) = (0, 0);
        for (own, other, seeds) in [("a", "b", [10, 11]), ("b", "a", [11, 10])] {
            let (local, peer) = (world.local(own), world.local(other));
            let membership = world.hosts[own].engine.membership(local).unwrap();
            let trusted = membership.trusted(now().unix);
            let trusted = trusted.iter().find(|t| t.member.address == peer).unwrap();
            assert_eq!(
                trusted.tunnel,
                TunnelSecret::from_seed([seeds[1]; 32]).public()
            );
            for message in &messages {
                let index = u32::from_le_bytes(message[4..8].try_into().unwrap());
                let keys = SessionKeys {
                    local: TunnelSecret::from_seed([seeds[0]; 32]),
                    peer: trusted.tunnel,
                    psk: Some(trusted.psk),
                    index: index >> 8,
                };
                // One that waits, and one that itself began and so has an ephemeral key.
                for begins in [false, true] {
                    let mut session = Session::new(&keys, now().now);
                    if begins {
                        session.initiate(now().now).unwrap();
                    }
                    match (message[0], session.open(message, now().now)) {
                        // The handshake is what the keys are for; its answer has a fresh key.
                        (1, Opened::Reply(_)) => initiations += 1,
                        (_, Opened::Dropped(_)) => data += 1,
                        (_, opened) => panic!("{opened:?}"),
                    }
                }
            }
        }
        assert!(
            initiations >= 2,
            "the keys are the right ones: {initiations}"
        );
        assert!(data > 200, "{data}");
    }
}

/// What the data plane of a host knows of channels.
#[derive(Default)]
struct Channels {
    live: BTreeMap<u32, NewChannel>,
    made: BTreeSet<u32>,
}

impl Channels {
    fn follow(&mut self, world: &mut World, host: &str) {
        while let Some(event) = world.host(host).engine.poll_channel() {
            match event.change {
                ChannelChange::New(new) => {
                    self.made.insert(new.id);
                    self.live.insert(new.id, new);
                }
                ChannelChange::End(id) => drop(self.live.remove(&id)),
                ChannelChange::Mtu(_) | ChannelChange::Route(_) | ChannelChange::Send(_) => {}
            }
        }
    }
}

fn cipher(key: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).unwrap())
}

fn nonce(counter: u8) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4] = counter;
    Nonce::assume_unique_for_key(nonce)
}

fn opens(key: &[u8; 32], counter: u8, sealed: &[u8]) -> bool {
    let mut bytes = sealed.to_vec();
    let opened = cipher(key).open_in_place(nonce(counter), Aad::empty(), &mut bytes);
    opened.is_ok()
}

/// P-018: with all that both hosts hold once a data channel is gone, its packets stay closed.
#[test]
fn what_a_channel_sealed_stays_closed_once_it_is_gone() {
    let mut world = world(true);
    for host in ["a", "b"] {
        let suites = Suites::of(&[Suite::Aes256Gcm]);
        world.host(host).engine.set_suites(suites);
    }
    let before = ["a", "b"].map(|host| world.hosts[host].state());
    let mut channels = [Channels::default(), Channels::default()];
    world.send("a", "b", b"the first");
    world.pass(2 * SECOND);
    for (host, channels) in ["a", "b"].into_iter().zip(&mut channels) {
        channels.follow(&mut world, host);
        assert_eq!(channels.live.len(), 1);
    }
    let [at_a, at_b] = channels.each_ref().map(|found| found.live.values());
    let both = at_a.chain(at_b).collect::<Vec<_>>();
    let seal = |key: &DataKey, counter| {
        let mut bytes = b"a packet".to_vec();
        let sealer = cipher(key.as_bytes());
        let sealed = sealer.seal_in_place_append_tag(nonce(counter), Aad::empty(), &mut bytes);
        sealed.unwrap();
        bytes
    };
    let recorded = [(0, 1), (1, 2)].map(|(from, n): (usize, u8)| (n, seal(&both[from].seal, n)));
    for ((counter, sealed), to) in recorded.iter().zip([1, 0]) {
        let key: &NewChannel = both[to];
        assert!(opens(key.open.as_bytes(), *counter, sealed), "while it is");
    }

    // One more came with the next session, made while the packet was not long ago.
    world.pass(600 * SECOND);

    for (host, channels) in ["a", "b"].into_iter().zip(&mut channels) {
        channels.follow(&mut world, host);
        assert!(channels.live.is_empty() && !channels.made.is_empty());
    }
    let after = ["a", "b"].map(|host| world.hosts[host].state());
    assert_eq!(before, after, "a channel leaves nothing on disk");
    // Every secret there is: identities, tunnel keys, what binds a pair.
    let membership = world.hosts["a"].engine.membership(world.local("a"));
    let trusted = membership.unwrap().trusted(now().unix);
    let kept = [[10; 32], [11; 32], trusted[0].psk];
    let keys = [10, 11].map(|n| TunnelSecret::from_seed([n; 32]));
    let agreed = keys[0].agree(&keys[1].public()).unwrap();
    for key in kept.iter().chain([&*agreed]) {
        for (counter, sealed) in &recorded {
            assert!(!opens(key, *counter, sealed));
        }
    }
}

/// Its own secrets, and of others what these show everybody they trust.
#[test]
fn a_captured_host_holds_the_secrets_of_no_other_agent() {
    let mut world = world(false);
    Ledger::default().talk(&mut world, &[("a", "b"), ("c", "b")], 2);
    let secrets = |n: u8| {
        let tunnel = TunnelSecret::from_seed([n; 32]);
        [
            serde_json::to_string(&key(n)).unwrap(),
            serde_json::to_string(&tunnel).unwrap(),
        ]
    };
    for (name, own) in [("a", 10), ("b", 11), ("c", 12)] {
        let state = world.hosts[name].state();
        for n in [10, 11, 12] {
            for secret in secrets(n) {
                assert_eq!(state.contains(&secret), n == own, "{n} at {name}");
            }
        }
    }
    // What a does not trust is not there at all.
    let (c, b) = (key(12).did().to_string(), key(11).did().to_string());
    let a = world.hosts["a"].state();
    assert!(!a.contains(&c) && a.contains(&b));
}

/// With the state it is the agent, until its peers take their consents back.
#[test]
fn a_captured_agent_is_nobody_once_it_is_revoked() {
    let (mut world, mut ledger) = (world(false), Ledger::default());
    ledger.talk(&mut world, &[("a", "b")], 2);
    let stolen = world.hosts["a"].kept.clone();
    world.hosts.remove("a");
    world.run();
    // The thief starts it somewhere else.
    world.add("thief", 66);
    let state = serde_json::from_str::<State>(&stolen).unwrap();
    let thief = world.host("thief");
    thief.engine = Engine::new(state, [66; 32], now());
    thief.local = thief.engine.locals().next().unwrap();
    world.run();
    world.send("thief", "b", b"as a");
    world.pass(2 * SECOND);
    assert_eq!(world.arrived("b"), 1, "keys are identities");

    world.change("b", |m, unix| m.revoke(&name("a"), unix).map(drop));

    // The thief's node would honour it; the thief does not.
    let state = serde_json::from_str::<State>(&stolen).unwrap();
    world.host("thief").engine = Engine::new(state, [67; 32], now());
    world.run();
    for _ in 0..30 {
        world.send("thief", "b", b"as a");
        world.pass(SECOND);
    }
    assert_eq!(world.arrived("b"), 0);
    ledger.talk(&mut world, &[("c", "b")], 1);
    let (sent, arrived) = ledger.talk(&mut world, &[("c", "b")], 5);
    assert_eq!(sent, arrived);
}

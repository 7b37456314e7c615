//! Peers that speak WireGuard and nothing else, beside agents, in simulated time.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use agentnet::engine::{
    Engine, PeerState, Transmit,
    membership::State,
    session::{Listener, Opened, Screened, Session, SessionKeys},
    trust::TrustError,
    wireguard::{Which, WireGuard, WireGuardError, WireGuardView},
};
use agentnet::id::{OverlayIp, TunnelSecret, WireGuardKey};
use agentnet::os::clock;
use agentnet::statement::issue;

use crate::clock::Simulation;
use crate::pair::{membership, now, prefix, udp};

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A node with one agent, and the other end: a session and nothing else.
struct World {
    sim: Simulation,
    engine: Engine,
    local: OverlayIp,
    peer: OverlayIp,
    session: Session,
    /// Where the other end is now.
    here: SocketAddr,
    /// Handshakes that the node began, and that it answered.
    began: usize,
    answered: usize,
    /// Packets the other end got.
    got: Vec<Vec<u8>>,
    /// Packets the node got out of the session.
    taken: Vec<Vec<u8>>,
    /// Calls of the engine's `handle_timeout`.
    wakes: usize,
}

fn secret() -> TunnelSecret {
    TunnelSecret::from_seed([77; 32])
}

fn kept(endpoint: Option<&str>) -> WireGuard {
    let key = WireGuardKey::of(&secret());
    WireGuard {
        key,
        address: prefix().address_of_wireguard(&key).unwrap(),
        endpoint: endpoint.map(at),
        allow: "udp/8000".parse().unwrap(),
        preshared_key: None,
    }
}

impl World {
    fn new(endpoint: Option<&str>) -> Self {
        let sim = Simulation::start(7);
        let member = membership(1, "a", issue::ROOT_LIFE);
        let (local, tunnel) = (member.address().unwrap(), member.tunnel.public());
        let state = State {
            identities: BTreeMap::new(),
            memberships: vec![member],
            left: vec![],
        };
        let mut engine = Engine::new(state, [3; 32], now());
        let kept = kept(endpoint);
        let peer = kept.address;
        engine.add_wireguard(local, kept, now()).unwrap().unwrap();
        let keys = SessionKeys {
            local: secret(),
            peer: tunnel,
            psk: None,
            index: 0xabc,
        };
        Self {
            sim,
            engine,
            local,
            peer,
            session: Session::new(&keys, clock::now()),
            here: at("192.0.2.5:51820"),
            began: 0,
            answered: 0,
            got: vec![],
            taken: vec![],
            wakes: 0,
        }
    }

    fn view(&self) -> WireGuardView {
        self.engine.wireguard(self.local, now()).remove(0)
    }

    /// Carries all that both ends have to say.
    fn settle(&mut self) {
        while self.engine.poll_event().is_some() {}
        assert!(self.engine.poll_channel().is_none());
        while let Some(packet) = self.engine.poll_packet() {
            assert_eq!((packet.local, packet.peer), (self.local, self.peer));
            self.taken.push(packet.bytes);
        }
        while let Some(Transmit { to, bytes, .. }) = self.engine.poll_transmit() {
            if to == self.here {
                self.arrive(&bytes);
            }
        }
    }

    /// Takes a message of the node at the other end.
    fn arrive(&mut self, message: &[u8]) {
        self.began += usize::from(message[0] == 1);
        self.answered += usize::from(message[0] == 2);
        match self.session.open(message, clock::now()) {
            Opened::Confirmed { reply, packet } => {
                self.got.extend(packet);
                if let Some(reply) = reply {
                    self.say(&reply);
                }
            }
            Opened::Reply(reply) => self.say(&reply),
            Opened::Packet(packet) => self.got.push(packet),
            Opened::Nothing => {}
            Opened::Dropped(reason) => panic!("{reason}"),
        }
    }

    /// Sends a message of the other end.
    fn say(&mut self, message: &[u8]) {
        self.engine.handle_datagram(self.here, message, now());
        self.settle();
    }

    fn send(&mut self, payload: &[u8]) {
        let packet = udp(self.local, self.peer, payload);
        self.engine
            .handle_packet(self.local, self.peer, &packet, now());
        self.settle();
    }

    fn answer(&mut self, payload: &[u8]) {
        let packet = udp(self.peer, self.local, payload);
        let sealed = self.session.seal(&packet, clock::now()).unwrap();
        self.say(&sealed);
    }

    fn begin(&mut self) {
        let initiation = self.session.initiate(clock::now()).unwrap();
        self.say(&initiation);
    }

    /// Lets time pass, with every deadline on its moment.
    fn run(&mut self, time: Duration) {
        let end = clock::now() + time;
        loop {
            let node = self.engine.poll_timeout().map(|(at, _)| at);
            let other = self.session.poll_timeout().map(|(at, _)| at);
            let now = clock::now();
            let due = node.into_iter().chain(other).min().filter(|at| *at <= end);
            let Some(due) = due else {
                self.sim.advance(end - now);
                return;
            };
            self.sim.advance(due.saturating_duration_since(now));
            if node.is_some_and(|at| at <= clock::now()) {
                self.wakes += 1;
                self.engine.handle_timeout(crate::pair::now());
                self.settle();
            }
            for message in self.session.handle_timeout(clock::now()) {
                self.say(&message);
            }
        }
    }
}

/// Neither probes nor candidates, statements or offers of a channel: it would take them for packets.
#[test]
fn a_plain_peer_is_sent_what_programs_send_and_nothing_else() {
    let mut world = World::new(Some("192.0.2.5:51820"));

    for n in 0..600_u16 {
        world.send(&n.to_be_bytes());
        world.answer(&n.to_be_bytes());
        world.run(secs(1));
    }

    let sent = (0..600_u16).map(|n| udp(world.local, world.peer, &n.to_be_bytes()));
    assert_eq!(world.got, sent.collect::<Vec<_>>());
    assert_eq!(world.taken.len(), 600);
    // One handshake at first, and one each 120 s.
    assert_eq!((world.began, world.answered), (5, 0));
    let stats = world.view().stats;
    assert!(stats.sent == stats.received && stats.last_handshake.is_some());
}

#[test]
fn a_plain_peer_that_begins_is_known_by_its_key_and_renews() {
    let mut world = World::new(None);
    world.send(b"nowhere to");
    assert_eq!(
        (world.view().state, world.view().endpoint),
        (PeerState::Idle, None)
    );

    world.begin();
    for n in 0..600_u16 {
        world.answer(&n.to_be_bytes());
        world.send(&n.to_be_bytes());
        world.run(secs(1));
    }

    assert_eq!((world.taken.len(), world.got.len()), (600, 600));
    assert_eq!((world.began, world.answered), (0, 5));
    assert_eq!(world.view().endpoint, Some(world.here));
}

/// Authentic messages alone tell where it is.
#[test]
fn a_plain_peer_roams() {
    let mut world = World::new(Some("192.0.2.5:51820"));
    world.send(b"one");
    let sealed = {
        let packet = udp(world.peer, world.local, b"late");
        world.session.seal(&packet, clock::now()).unwrap()
    };

    world.here = at("[2001:db8::5]:4000");
    world.answer(b"from there");
    world.send(b"two");
    assert_eq!(world.view().endpoint, Some(world.here));
    assert_eq!(world.got.len(), 2);

    // A copy, and a message that was changed, move nothing.
    let elsewhere = at("203.0.113.66:1");
    let mut changed = sealed.clone();
    *changed.last_mut().unwrap() ^= 1;
    world.engine.handle_datagram(elsewhere, &changed, now());
    assert_eq!(world.view().endpoint, Some(world.here));
    world.say(&sealed);
    world.engine.handle_datagram(elsewhere, &sealed, now());
    assert_eq!(world.view().endpoint, Some(world.here));
    // Nor does one from inside the overlay, where it would come back to us.
    let inside = SocketAddr::new(prefix().address(9).ip().into(), 9);
    let packet = udp(world.peer, world.local, b"loop");
    let looped = world.session.seal(&packet, clock::now()).unwrap();
    world.engine.handle_datagram(inside, &looped, now());
    world.settle();
    assert_eq!(world.view().endpoint, Some(world.here));
    assert_eq!(world.taken.len(), 3);
}

/// A peer under load asks for a proof that we are where we say; nobody else may.
#[test]
fn a_plain_peer_under_load_is_answered() {
    let mut world = World::new(Some("192.0.2.5:51820"));
    let listener = Listener::new(&secret(), 0);
    let packet = udp(world.local, world.peer, b"one");
    let us = at("192.0.2.1:16200");
    let initiation = |world: &mut World| {
        let sent = world.engine.poll_transmit().unwrap();
        assert_eq!((sent.to, sent.bytes[0]), (world.here, 1));
        sent.bytes
    };
    world
        .engine
        .handle_packet(world.local, world.peer, &packet, now());
    let Screened::Cookie(cookie) = listener.screen(us, &initiation(&mut world)) else {
        panic!("no cookie");
    };

    let elsewhere = at("203.0.113.66:1");
    world.engine.handle_datagram(elsewhere, &cookie, now());
    world.sim.advance(secs(5));
    world.engine.handle_timeout(now());
    let again = initiation(&mut world);
    let Screened::Cookie(cookie) = listener.screen(us, &again) else {
        panic!("it was taken from elsewhere");
    };
    world.engine.handle_datagram(world.here, &cookie, now());
    world.sim.advance(secs(5));
    world.engine.handle_timeout(now());

    assert_eq!(listener.screen(us, &initiation(&mut world)), Screened::Pass);
}

/// P-015: what the operator takes back is over at once, and nothing is left to wake up for.
#[test]
fn a_plain_peer_that_is_removed_meets_silence() {
    let mut world = World::new(Some("192.0.2.5:51820"));
    world.send(b"one");
    let which = Which::Address(world.peer);
    let local = world.local;

    let removed = world
        .engine
        .change(local, now(), |m, _| m.remove_wireguard(which));

    assert_eq!(removed.unwrap().unwrap().address, world.peer);
    assert!(world.engine.tables().is_empty() && !world.engine.has_peer(local, world.peer));
    world.settle();
    let (taken, answered) = (world.taken.len(), world.answered);
    world.answer(b"two");
    world.begin();
    world.run(secs(300));
    assert_eq!((world.taken.len(), world.answered), (taken, answered));
    let again = world
        .engine
        .change(local, now(), |m, _| m.remove_wireguard(which));
    assert_eq!(again.unwrap().unwrap_err(), WireGuardError::NotFound);
    let state = serde_json::to_string(&world.engine.state()).unwrap();
    assert!(!state.contains(&WireGuardKey::of(&secret()).to_string()));
}

/// One that is away costs a handshake each 5 s for 90 s after the last packet, and then nothing.
#[test]
fn a_plain_peer_that_is_away_is_given_up() {
    let mut world = World::new(Some("192.0.2.99:1"));
    world.send(b"one");

    world.run(secs(200));

    assert_eq!(world.view().state, PeerState::Idle);
    let before = world.wakes;
    world.run(secs(600));
    // The look for consents that end, each minute.
    assert!(world.wakes - before <= 11, "{}", world.wakes - before);
}

/// The network's owner bounds it as any consent, and a membership that ended carries nobody.
#[test]
fn a_plain_peer_is_kept_on_disk_and_goes_with_the_membership() {
    let mut world = World::new(Some("192.0.2.5:51820"));
    let state = serde_json::to_string(&world.engine.state()).unwrap();
    let state = serde_json::from_str::<State>(&state).unwrap();

    world.engine = Engine::new(state, [4; 32], now());
    world.send(b"one");

    assert_eq!(world.got.len(), 1);
    let table = world.engine.tables().remove(0);
    assert_eq!(table.2[0].to_string(), "udp/8000");
    world.sim.advance(issue::ROOT_LIFE);
    world.engine.handle_timeout(now());
    assert!(world.engine.tables().is_empty());
}

#[test]
fn keys_and_addresses_that_are_others_are_refused() {
    let mut world = World::new(None);
    let local = world.local;
    let mut add = |change: &dyn Fn(&mut WireGuard)| {
        let mut new = WireGuard {
            key: WireGuardKey::of(&TunnelSecret::from_seed([78; 32])),
            address: prefix().address(5),
            ..kept(None)
        };
        change(&mut new);
        world.engine.add_wireguard(local, new, now()).unwrap()
    };
    let own = membership(1, "a", issue::ROOT_LIFE).tunnel;

    let outside = "fd00::5".parse().unwrap();
    for (change, error) in [
        (
            &(|new: &mut WireGuard| new.address = outside) as &dyn Fn(&mut WireGuard),
            WireGuardError::AddressOutside(outside, prefix()),
        ),
        (
            &|new| new.address = prefix().address(0),
            WireGuardError::AddressOutside(prefix().address(0), prefix()),
        ),
        (
            &|new| new.address = local,
            WireGuardError::AddressOwn(local),
        ),
        (
            &|new| new.address = kept(None).address,
            WireGuardError::AddressTaken(kept(None).address),
        ),
        (
            &|new| new.key = WireGuardKey::of(&own),
            WireGuardError::KeyOwn,
        ),
        (
            &|new| new.key = kept(None).key,
            WireGuardError::KeyTaken(kept(None).address),
        ),
        (
            &|new| new.endpoint = Some(at("0.0.0.0:9")),
            WireGuardError::Endpoint(at("0.0.0.0:9")),
        ),
    ] {
        assert_eq!(add(change), Err(error));
    }
    assert_eq!(add(&|_| {}), Ok(()));
}

/// An agent's address is proven, so it is none to give away; and no agent gets in under a key that the
/// operator wrote down for somebody else.
#[test]
fn agents_and_plain_peers_do_not_take_each_others_place() {
    let mut world = crate::pair::World::new(9);
    world.add("a", 1);
    world.add("b", 2);
    world.trust("a", "b", "udp/8000");
    let (a, b) = (world.hosts["a"].local, world.hosts["b"].local);
    let b_key = WireGuardKey::of(&TunnelSecret::from_seed([2; 32]));
    let engine = &mut world.hosts.get_mut("a").unwrap().engine;
    assert!(engine.has_peer(a, b));
    let mut add = |new| engine.add_wireguard(a, new, now()).unwrap();

    let taken = add(WireGuard {
        address: b,
        ..kept(None)
    });
    let claimed = add(WireGuard {
        key: b_key,
        ..kept(None)
    });

    assert_eq!(taken, Err(WireGuardError::AddressOfAgent(b)));
    assert_eq!(claimed, Err(WireGuardError::KeyOfAgent));
    // One that was written down before the agent was known.
    engine
        .change(a, now(), |membership, _| {
            membership.wireguard.push(WireGuard {
                key: b_key,
                ..kept(None)
            });
            Ok::<_, TrustError>(())
        })
        .unwrap()
        .unwrap();
    assert!(!engine.has_peer(a, b) && engine.has_peer(a, kept(None).address));
}

//! What a gateway of the domain can do to the others once it is evil: its key and statement are good.

use agentnet::engine::session::{Opened, Session, SessionKeys};
use agentnet::gateway::status::Standing;
use agentnet::id::OverlayIp;
use agentnet::os::clock;
use agentnet::wire::a2g::{Direction, Header, HopKeys};
use agentnet::wire::control::{Control, Part};
use agentnet::wire::datagram::{Datagram, WireGuard};
use agentnet::wire::mesh::{Delta, Entry, Hello, Mark, Message};
use agentnet::wire::part::Reassembler;

use crate::attach::{YEAR, secs};
use crate::mesh::wire::{DELAY, World};
use crate::network::{Network, key, tunnel};

/// The evil gateway, by its place.
const EVIL: usize = 2;

/// An evil gateway: a session with gateway 0, and by what that takes frames.
pub(super) struct Evil {
    /// Its place.
    gate: usize,
    session: Session,
    hop: u32,
    keys: HopKeys,
    next: u64,
    told: u64,
}

/// Gateways 0 and 1 with agents 10 and 11, and an evil one that greeted gateway 0.
fn world(seed: u64) -> (World, Evil, usize, usize) {
    let mut world = World::new(seed, 3);
    let (a, b) = (world.add(10, 0), world.add(11, 1));
    world.run(secs(2));
    let evil = Evil::meet(&mut world, EVIL);
    (world, evil, a, b)
}

fn hello(instance: u64) -> Hello {
    Hello {
        instance,
        hop: 99,
        secret: [9; 32],
        reset_token: [9; 16],
        heard: 0,
        epoch: 0,
        upto: 0,
        asks: true,
        statement: String::new(),
    }
}

impl Evil {
    /// Stands in the place of a gateway, with its keys, and greets gateway 0.
    pub(super) fn meet(world: &mut World, gate: usize) -> Self {
        world.close(gate);
        world.run(secs(1));
        let keys = SessionKeys {
            local: world.gates[gate].tunnel.clone(),
            peer: world.gates[0].tunnel.public(),
            psk: None,
            index: 5,
        };
        let mut evil = Self {
            gate,
            session: Session::new(&keys, clock::now()),
            hop: 0,
            keys: HopKeys::derive(&[0; 32], Direction::Up),
            next: 0,
            told: 0,
        };
        world.gates[gate].inbox.clear();
        let initiation = evil.session.initiate(clock::now()).unwrap();
        evil.put(world, initiation);
        world.run(DELAY * 3);
        evil.listen(world);
        evil.say(world, &Message::Hello(hello(1)));
        world.run(DELAY * 3);
        evil.listen(world);
        assert!(evil.hop != 0 && world.standing(0, gate).unwrap().state == Standing::Up);
        evil
    }

    pub(super) fn put(&self, world: &mut World, bytes: Vec<u8>) {
        let (from, to) = (world.gates[self.gate].at, world.gates[0].at);
        world.put(from, to, bytes);
    }

    fn say(&mut self, world: &mut World, message: &Message) {
        self.told += 1;
        let number = u32::try_from(self.told).unwrap();
        for packet in Control::Mesh(message.clone()).packets(number) {
            let sealed = self.session.seal(&packet, clock::now()).unwrap();
            self.put(world, sealed);
        }
    }

    /// Announces, and lets it arrive.
    pub(super) fn announce(&mut self, world: &mut World, entries: Vec<Entry>) {
        let delta = Delta {
            mark: Mark {
                instance: 1,
                epoch: 1,
                upto: self.told + 1,
            },
            from: if self.next_from() { 0 } else { self.told },
            is_all: false,
            entries,
        };
        self.say(world, &Message::Delta(delta));
        world.run(DELAY * 2);
    }

    /// Tells whether nothing was announced yet; the Hello was the first thing said.
    fn next_from(&self) -> bool {
        self.told == 1
    }

    /// Sends a frame to gateway 0, and lets it arrive.
    pub(super) fn frame(
        &mut self,
        world: &mut World,
        target: OverlayIp,
        source: OverlayIp,
    ) -> Vec<u8> {
        self.frame_with(world, target, source, |_| {})
    }

    /// Does the same with another header.
    pub(super) fn frame_with(
        &mut self,
        world: &mut World,
        target: OverlayIp,
        source: OverlayIp,
        change: impl FnOnce(&mut Header),
    ) -> Vec<u8> {
        let mut header = Header::data(self.hop, self.next, target, source);
        self.next += 1;
        change(&mut header);
        let frame = header.frame(&self.keys, b"message of evil");
        self.put(world, frame.clone());
        world.run(DELAY * 4);
        frame
    }

    /// Takes what came, and learns by what frames go to gateway 0.
    fn listen(&mut self, world: &mut World) {
        let mut reassembler = Reassembler::default();
        for bytes in std::mem::take(&mut world.gates[self.gate].inbox) {
            let is_ours = matches!(
                Datagram::classify(&bytes),
                Some(Datagram::WireGuard(
                    WireGuard::Response | WireGuard::Transport
                ))
            );
            if !is_ours {
                continue;
            }
            let packet = match self.session.open(&bytes, clock::now()) {
                Opened::Confirmed { reply, packet } => {
                    if let Some(reply) = reply {
                        self.put(world, reply);
                    }
                    packet
                }
                Opened::Packet(packet) => Some(packet),
                Opened::Dropped(_) | Opened::Nothing | Opened::Reply(_) => None,
            };
            let message = match packet.as_deref().and_then(Control::parse) {
                Some(Control::Part(part)) => reassembler.take(part, clock::now()),
                other => other,
            };
            if let Some(Control::Mesh(Message::Hello(hello))) = message {
                self.hop = hello.hop;
                self.keys = HopKeys::derive(&hello.secret, Direction::Up);
            }
        }
    }
}

fn refused(world: &World) -> u64 {
    let drops = world.drops(0);
    drops.get("control_refused").copied().unwrap_or_default()
}

fn routes(world: &World) -> usize {
    world.standing(0, EVIL).unwrap().routes
}

/// It announces only agents whose records list it, and these are signed by the agents.
#[test]
fn one_that_announces_what_it_may_not_is_not_believed() {
    let (mut world, mut evil, a, b) = world(50);
    let network = &world.networks[0];
    let own = world.did(EVIL);
    let listed = network.record_at(11, YEAR, vec![world.did(1)]);
    let none = network.record_at(12, YEAR, vec![]);
    let good = network.record_at(13, YEAR, vec![own]);
    let mut forged = good.clone();
    forged.replace_range(good.len() - 4.., "AAAA");
    let strange = Network::new(9).record_at(14, YEAR, vec![own]);
    let short = network.record_at(15, secs(1), vec![own]);
    world.run(secs(2));

    for bad in [listed, none, forged, strange, short, "a.b.c".to_owned()] {
        let before = refused(&world);
        evil.announce(&mut world, vec![Entry::Agent(bad)]);
        assert_eq!((refused(&world), routes(&world)), (before + 1, 0));
    }
    evil.announce(&mut world, vec![Entry::Agent(good)]);

    assert_eq!(routes(&world), 1);
    assert!(world.talk(a, b) && world.talk(b, a));
    let gone = world.address(11);
    evil.announce(&mut world, vec![Entry::Gone(gone)]);
    assert!(world.talk(a, b) && world.talk(b, a));
}

/// An agent that was its own once and moved is found where it is, whatever the evil one says of before.
#[test]
fn one_that_announces_what_was_replaces_nothing() {
    let (mut world, mut evil, a, b) = world(51);
    let own = world.did(EVIL);
    let before = world.networks[0].record_at(11, YEAR, vec![own]);
    world.move_to(b, 1, &[1]);
    world.run(secs(1));

    evil.announce(&mut world, vec![Entry::Agent(before)]);
    assert_eq!((refused(&world), routes(&world)), (1, 0));
    assert!(world.talk(a, b));

    // The other way round: what it has is over once there is something newer.
    let last = world.networks[0].record_at(11, YEAR, vec![own]);
    evil.announce(&mut world, vec![Entry::Agent(last.clone())]);
    assert!(routes(&world) == 1 && !world.talk(a, b));
    world.move_to(b, 1, &[1]);
    world.run(secs(1));
    assert!(routes(&world) == 0 && world.talk(a, b) && world.talk(b, a));
    evil.announce(&mut world, vec![Entry::Agent(last)]);
    assert!(world.talk(a, b) && world.talk(b, a));
}

/// it sends only as agents that it announces, each frame once, and to agents of the receiver only.
#[test]
fn one_that_sends_as_others_reaches_nobody() {
    let (mut world, mut evil, a, b) = world(52);
    let own = world.did(EVIL);
    let good = world.networks[0].record_at(13, YEAR, vec![own]);
    let other = world.networks[1].record_at(60, YEAR, vec![own]);
    evil.announce(&mut world, vec![Entry::Agent(good), Entry::Agent(other)]);
    let [a_at, b_at, own_at, other_at] = [10, 11, 13, 60].map(|n| world.address(n));
    assert_eq!(routes(&world), 2);

    evil.frame(&mut world, a_at, b_at);
    evil.frame(&mut world, a_at, world_address(99));
    assert_eq!(world.drops(0)["frame_source"], 2);
    evil.frame(&mut world, a_at, other_at);
    assert_eq!(world.drops(0)["frame_network"], 1);
    // It would have to go on to another gateway.
    evil.frame(&mut world, b_at, own_at);
    assert_eq!(world.drops(0)["frame_target"], 1);
    assert!(world.agents[a].received.is_empty() && world.agents[b].received.is_empty());

    let frame = evil.frame(&mut world, a_at, own_at);
    evil.put(&mut world, frame.clone());
    let mut changed = frame;
    changed[30] ^= 1;
    evil.put(&mut world, changed);
    world.run(DELAY * 4);
    assert_eq!(world.agents[a].received.len(), 1);
    let drops = world.drops(0);
    assert_eq!((drops["frame_replayed"], drops["frame_tag"]), (1, 1));
}

/// a frame that has been everywhere ends, and one to a prefix is for nobody.
#[test]
fn frames_between_gateways_end_with_their_ttl_and_name_one_agent() {
    let (mut world, mut evil, a, _) = world(55);
    let own = world.did(EVIL);
    let good = world.networks[0].record_at(13, YEAR, vec![own]);
    evil.announce(&mut world, vec![Entry::Agent(good)]);
    let [a_at, own_at] = [10, 13].map(|n| world.address(n));

    evil.frame_with(&mut world, a_at, own_at, |header| header.ttl = 0);
    assert_eq!(world.drops(0)["frame_ttl"], 1);
    for (n, length) in (1..).zip([0, 48, 64, 127]) {
        evil.frame_with(&mut world, a_at, own_at, |header| {
            header.prefix_len = length;
        });
        assert_eq!(world.drops(0)["frame_target"], n, "{length}");
    }

    assert!(world.agents[a].received.is_empty());
    evil.frame_with(&mut world, a_at, own_at, |header| header.ttl = 1);
    assert_eq!(world.agents[a].received.len(), 1);
}

fn world_address(n: u16) -> OverlayIp {
    Network::new(1).address(n)
}

/// What it says costs the others a bounded time and memory.
#[test]
fn one_that_announces_without_end_is_held_back() {
    let (mut world, mut evil, a, b) = world(53);
    let bad = |n: u64| Entry::Agent(format!("a.b.{n}"));

    for round in 0..40 {
        // Refused for more than it costs: each has to be opened.
        evil.announce(&mut world, (0..100).map(|n| bad(round * 100 + n)).collect());
    }

    let refused = refused(&world);
    assert!((2000..3500).contains(&refused), "{refused}");
    assert!(routes(&world) == 0 && world.talk(a, b));
}

/// It greets anew without end, and sends nonsense: nobody else notices.
#[test]
fn one_that_talks_nonsense_disturbs_nobody() {
    let (mut world, mut evil, a, b) = world(54);
    for round in 0..200 {
        evil.say(&mut world, &Message::Hello(hello(round)));
        evil.say(&mut world, &Message::Ack(Mark::default()));
        let part = Control::Part(Part {
            message: round as u32,
            n: 0,
            of: 15,
            bytes: vec![1; 1000],
        });
        let sealed = evil.session.seal(&part.packet().unwrap(), clock::now());
        evil.put(&mut world, sealed.unwrap());
        world.run(DELAY);
    }

    assert!(world.talk(a, b) && world.talk(b, a));
    // Whose statement it is not, it is not.
    let other = crate::mesh::wire::statement(
        &crate::mesh::wire::registry(),
        444,
        (&tunnel(444), world.gates[EVIL].at),
        YEAR,
    );
    let lie = Hello {
        statement: other.text().to_owned(),
        ..hello(1)
    };
    evil.say(&mut world, &Message::Hello(lie));
    world.run(DELAY * 2);
    assert!(refused(&world) == 1);
    let known = world.peers(0).into_iter().map(|peer| peer.gateway);
    assert!(!known.into_iter().any(|gateway| gateway == key(444).did()));
}

//! A whole engine and the data channels it makes with a peer that is ours: it holds a real session and
//! says in it what the input says, by the rules of the handshake or against them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use agentnet::engine::channel::{
    Arrival, ChannelChange, DataKey, End, Ends, NewChannel, Passed, Schedule, Volume,
};
use agentnet::engine::session::{Opened, Session, SessionKeys};
use agentnet::engine::{Engine, Time};
use agentnet::id::{OverlayIp, TunnelSecret};
use agentnet::os::clock;
use agentnet::wire::channel::{Accept, Confirm, Message, Offer, Suite, Suites, Terms, parse};
use agentnet::wire::control::{Control, ProbeReply};

use super::clock::Simulation;
use super::input::Input;
use super::members::{self, Members};
use super::memory::held;

/// Steps of one run: a longer input does the rest of nothing.
const MAX_STEPS: usize = 150;

/// Channels an engine may have with one peer (protocol.md section 7).
const MAX_LIVE: usize = 4;

/// What all of it may hold beyond what it began with.
const MAX_HELD: isize = 1 << 20; // bytes

/// What the peer proved itself by, and the keys it takes the channel to have.
struct Agreed {
    terms: Terms,
    keys: Schedule,
}

struct World {
    sim: Simulation,
    engine: Engine,
    local: OverlayIp,
    peer: OverlayIp,
    session: Session,
    ends: Ends,
    /// Whether the engine is L.
    is_low: bool,
    /// The newest offer on the wire; with the peer's ephemeral key when it is the peer's.
    offer: Option<(Offer, Option<TunnelSecret>)>,
    /// What the peer agreed to by the rules, by the engine's id.
    agreed: BTreeMap<u32, Agreed>,
    /// The last of them.
    last: Option<u32>,
    /// Channels the engine told of.
    live: BTreeMap<u32, NewChannel>,
    sending: Option<u32>,
    /// Ids that the engine may seal by: what the peer confirmed, or used.
    proven: Vec<u32>,
    next: u8,
}

/// Only who has the keys makes a channel, its keys are the ones both derive, it ends once, and after
/// all of it a channel can still be made.
pub(super) fn channel(data: &[u8]) {
    super::on_a_thread(|| run(data));
}

fn run(data: &[u8]) {
    // The head of what came from the wire.
    if let Some((id, counter)) = parse(data) {
        assert!(
            data.len() >= agentnet::wire::channel::HEADER,
            "{id} {counter}"
        );
    }
    let mut input = Input::new(data);
    let first = input.byte();
    let mut world = World::new(Simulation::start(u64::from(first)), first & 1 == 0);
    world.open();
    let before = held();
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        world.step(&mut input);
    }
    let held = held() - before;
    assert!(held < MAX_HELD, "{held} bytes more are held");
    world.still_works();
}

fn now() -> Time {
    Time {
        now: clock::now(),
        unix: clock::unix(),
    }
}

fn both() -> Suites {
    Suites::of(&[Suite::Aes256Gcm, Suite::ChaCha20Poly1305])
}

fn at() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 9], 16200))
}

impl World {
    /// The engine carries `a`, or else `b`: one of them is L.
    fn new(sim: Simulation, is_a: bool) -> Self {
        let members = Members::get();
        let (own, other) = if is_a {
            (&members.a, &members.b)
        } else {
            (&members.b, &members.a)
        };
        let mut engine = Engine::new(members::state(own), [5; 32], now());
        engine.set_suites(both());
        let trusted = own.trusted(clock::unix()).remove(0);
        let keys = SessionKeys {
            local: other.tunnel.clone(),
            peer: own.tunnel.public(),
            psk: Some(trusted.psk),
            index: 0xabc,
        };
        let end = |member: &agentnet::engine::membership::Membership| End {
            identity: member.id(),
            tunnel: member.tunnel.public(),
        };
        let ends = Ends::new(members::network(), end(own), end(other));
        Self {
            sim,
            engine,
            local: own.address().expect("a member has one"),
            peer: trusted.member.address,
            session: Session::new(&keys, clock::now()),
            is_low: ends.low == end(own),
            ends,
            offer: None,
            agreed: BTreeMap::new(),
            last: None,
            live: BTreeMap::new(),
            sending: None,
            proven: vec![],
            next: 0,
        }
    }

    /// Makes a session and a direct path, and sends data so that a channel is wanted.
    fn open(&mut self) {
        if let Some(initiation) = self.session.initiate(clock::now()) {
            self.arrive(&initiation);
        }
        for _ in 0..20 {
            self.data();
            self.pass(Duration::from_millis(200));
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let choice = input.byte();
        match choice & 0xf {
            0 | 1 => self.data(),
            2 | 3 => self.pass(Duration::from_millis(u64::from(input.byte()) * 16)),
            4 => self.pass(Duration::from_secs(u64::from(input.byte()))),
            5 => self.say(&raw(choice >> 4, input.chunk())),
            6..=8 => self.agree(choice >> 4, input),
            9 => self.confirm(choice >> 4, input),
            10 => {
                let id = self.id(input);
                self.used(id);
            }
            11 => self.passed(input),
            12 => {
                let sets = [both(), Suites::of(&[Suite::ChaCha20Poly1305]), Suites::NONE];
                self.engine.set_suites(sets[usize::from(input.byte() % 3)]);
                self.drain();
            }
            13 => {
                self.pass(Duration::from_millis(1));
                if let Some(initiation) = self.session.initiate(clock::now()) {
                    self.arrive(&initiation);
                }
            }
            14 => {
                let packet = udp(self.local, self.peer);
                self.engine
                    .handle_packet(self.local, self.peer, &packet, now());
                self.drain();
            }
            _ => {
                // As it was said before, once more.
                if let Some((offer, Some(_))) = &self.offer {
                    let again = Message::Offer(*offer);
                    self.say(&Control::Channel(again).packet().expect("it is short"));
                }
            }
        }
    }

    /// The peer's part of an agreement: offers as L, accepts as H; `twist` changes something.
    fn agree(&mut self, twist: u8, input: &mut Input<'_>) {
        self.next = self.next.wrapping_add(1);
        let ephemeral = TunnelSecret::from_seed([self.next | 1; 32]);
        let public = *ephemeral.public().as_bytes();
        if !self.is_low {
            let mut offer = Offer {
                low: 0xabc0_0000 | u32::from(self.next),
                suites: both(),
                ephemeral: public,
            };
            if twist == 1 {
                offer.ephemeral = [input.byte(); 32];
            }
            self.offer = Some((offer, Some(ephemeral)));
            self.say_channel(Message::Offer(offer));
            return;
        }
        let Some((offer, _)) = self.offer else {
            return;
        };
        let terms = Terms {
            low: offer.low,
            high: 0xabc0_0000 | u32::from(self.next),
            suite: Suite::ChaCha20Poly1305,
            ephemeral: public,
        };
        let Some(keys) = Schedule::derive(&ephemeral, &offer.ephemeral, &self.ends, &offer, &terms)
        else {
            return;
        };
        let mut accept = Accept {
            terms,
            mac: keys.mac_high,
        };
        match twist {
            1 => accept.mac[0] ^= 1 << (input.byte() % 8),
            2 => accept.terms.high ^= 1,
            3 => accept.terms.suite = Suite::Aes256Gcm,
            4 => accept.terms.ephemeral[31] ^= 1,
            5 => accept.mac = keys.mac_low,
            _ => drop(self.agreed.insert(terms.low, Agreed { terms, keys })),
        }
        self.say_channel(Message::Accept(accept));
    }

    /// The peer confirms as L what the engine accepted last.
    fn confirm(&mut self, twist: u8, input: &mut Input<'_>) {
        let Some(agreed) = self.last.and_then(|id| self.agreed.get(&id)) else {
            return;
        };
        let (high, mut mac) = (agreed.terms.high, agreed.keys.mac_low);
        if twist == 1 {
            mac[0] ^= 1 << (input.byte() % 8);
        } else {
            self.proven.push(high);
        }
        self.say_channel(Message::Confirm(Confirm { high, mac }));
    }

    fn id(&self, input: &mut Input<'_>) -> u32 {
        let n = input.byte();
        let mut known = self.live.keys().copied();
        let found = known.nth(usize::from(n % 8));
        found.unwrap_or_else(|| u32::from(n))
    }

    fn used(&mut self, id: u32) {
        self.proven.push(id);
        self.engine
            .handle_channel_used(self.local, self.peer, id, now());
        self.drain();
    }

    fn passed(&mut self, input: &mut Input<'_>) {
        let volume = |n: u8| Volume {
            packets: u64::from(n & 3),
            bytes: u64::from(n & 3) << (n >> 2),
        };
        let passed = Passed {
            local: self.local,
            peer: self.peer,
            sent: volume(input.byte()),
            received: volume(input.byte()),
            from: Some(Arrival::Direct(at())).filter(|_| input.byte() & 1 == 0),
            relayed: Default::default(),
            unknown: u64::from(input.byte() & 1),
        };
        self.engine.handle_passed(&[passed], now());
        self.drain();
    }

    fn data(&mut self) {
        self.say(&udp(self.peer, self.local));
    }

    fn say_channel(&mut self, message: Message) {
        self.say(&Control::Channel(message).packet().expect("it is short"));
    }

    fn say(&mut self, packet: &[u8]) {
        if let Some(sealed) = self.session.seal(packet, clock::now()) {
            self.arrive(&sealed);
        }
    }

    fn arrive(&mut self, message: &[u8]) {
        self.engine.handle_datagram(at(), message, now());
        self.drain();
    }

    /// Takes out all the engine says; the peer answers probes and handshakes.
    fn drain(&mut self) {
        for _ in 0..8 {
            while self.engine.poll_event().is_some() {}
            while self.engine.poll_packet().is_some() {}
            self.follow();
            let sent = std::iter::from_fn(|| self.engine.poll_transmit());
            let sent = sent.filter(|sent| sent.to == at()).collect::<Vec<_>>();
            if sent.is_empty() {
                return;
            }
            for sent in sent {
                self.take(&sent.bytes);
            }
        }
    }

    fn take(&mut self, message: &[u8]) {
        let (reply, packet) = match self.session.open(message, clock::now()) {
            Opened::Confirmed { reply, packet } => (reply, packet),
            Opened::Reply(reply) => (Some(reply), None),
            Opened::Packet(packet) => (None, Some(packet)),
            Opened::Nothing | Opened::Dropped(_) => (None, None),
        };
        if let Some(reply) = reply {
            self.engine.handle_datagram(at(), &reply, now());
        }
        match packet.and_then(|packet| Control::parse(&packet)) {
            Some(Control::Probe { id, .. }) => {
                let reply = Control::ProbeReply(ProbeReply {
                    id,
                    observed: None,
                    received: 0,
                });
                let packet = reply.packet().expect("it is short");
                if let Some(sealed) = self.session.seal(&packet, clock::now()) {
                    self.engine.handle_datagram(at(), &sealed, now());
                }
            }
            Some(Control::Channel(message)) => self.hear(&message),
            _ => {}
        }
    }

    /// Takes a message of the engine's, which goes by the rules.
    fn hear(&mut self, message: &Message) {
        match message {
            Message::Offer(offer) => {
                assert!(self.is_low, "only L offers");
                self.offer = Some((*offer, None));
            }
            Message::Accept(accept) => {
                assert!(!self.is_low, "only H accepts");
                let Some((offer, Some(ephemeral))) = &self.offer else {
                    return;
                };
                let terms = accept.terms;
                if offer.low != terms.low || offer.ephemeral != *ephemeral.public().as_bytes() {
                    return;
                }
                let theirs = &terms.ephemeral;
                let keys = Schedule::derive(ephemeral, theirs, &self.ends, offer, &terms);
                let keys = keys.expect("the engine's key is a good one");
                assert_eq!(keys.mac_high, accept.mac, "H proves itself");
                self.last = Some(terms.high);
                if let Some(new) = self.live.get(&terms.high) {
                    same_keys(new, &keys.high_to_low, &keys.low_to_high);
                }
                self.agreed.insert(terms.high, Agreed { terms, keys });
            }
            Message::Confirm(confirm) => {
                assert!(self.is_low, "only L confirms");
                let mut agreed = self.agreed.values();
                let agreed = agreed.find(|agreed| agreed.terms.high == confirm.high);
                let agreed = agreed.expect("what the peer accepted by the rules");
                assert_eq!(agreed.keys.mac_low, confirm.mac, "L proves itself");
            }
        }
    }

    /// Follows what whoever seals is told.
    fn follow(&mut self) {
        while let Some(event) = self.engine.poll_channel() {
            assert_eq!((event.local, event.peer), (self.local, self.peer));
            match event.change {
                ChannelChange::New(new) => {
                    if self.is_low {
                        let agreed = self.agreed.get(&new.id);
                        let agreed = agreed.expect("the peer proved itself");
                        assert_eq!(
                            (new.remote, new.suite),
                            (agreed.terms.high, agreed.terms.suite)
                        );
                        same_keys(&new, &agreed.keys.low_to_high, &agreed.keys.high_to_low);
                        self.proven.push(new.id);
                    }
                    let id = new.id;
                    assert!(self.live.insert(id, new).is_none(), "{id:x} is new");
                }
                ChannelChange::Mtu(_) | ChannelChange::Route(_) => {}
                ChannelChange::Send(id) => {
                    assert!(self.live.contains_key(&id), "{id:x} is there");
                    assert!(self.proven.contains(&id), "the peer has the keys of {id:x}");
                    self.sending = Some(id);
                }
                ChannelChange::End(id) => {
                    assert!(self.live.remove(&id).is_some(), "{id:x} ends once");
                    self.sending = self.sending.filter(|sending| *sending != id);
                    self.agreed.remove(&id);
                }
            }
        }
        assert!(self.live.len() <= MAX_LIVE, "{} channels", self.live.len());
    }

    fn pass(&mut self, time: Duration) {
        let end = clock::now() + time;
        for _ in 0..400 + 60 * time.as_secs() {
            let engine = self.engine.poll_timeout().map(|(at, _)| at);
            let session = self.session.poll_timeout().map(|(at, _)| at);
            let due = engine.into_iter().chain(session).min();
            let Some(due) = due.filter(|at| *at <= end) else {
                let left = end.saturating_duration_since(clock::now());
                self.sim.advance(left);
                return;
            };
            let step = due.saturating_duration_since(clock::now());
            self.sim.advance(step.max(Duration::from_millis(1)));
            self.engine.handle_timeout(now());
            self.drain();
            for message in self.session.handle_timeout(clock::now()) {
                self.arrive(&message);
            }
        }
        panic!("timers do not rest: {:?}", self.engine.poll_timeout());
    }

    /// Whatever was said, two ends that go by the rules have a channel soon.
    fn still_works(&mut self) {
        self.engine.set_suites(both());
        self.pass(Duration::from_secs(400));
        self.open();
        for _ in 0..5 {
            self.data();
            self.agree(0, &mut Input::new(&[]));
            if !self.is_low {
                self.confirm(0, &mut Input::new(&[]));
            }
            self.pass(Duration::from_secs(2));
        }
        assert!(self.sending.is_some(), "no channel after all");
    }
}

fn same_keys(new: &NewChannel, seal: &DataKey, open: &DataKey) {
    assert!(new.seal.as_bytes() == seal.as_bytes() && new.open.as_bytes() == open.as_bytes());
}

/// A message of a channel with any body.
fn raw(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut message = vec![0, 12 + kind % 4];
    let length = u16::try_from(body.len()).expect("a chunk is short");
    message.extend(length.to_be_bytes());
    message.extend(body);
    super::engine::control(&message)
}

fn udp(from: OverlayIp, to: OverlayIp) -> Vec<u8> {
    super::engine::udp(from, to, b"data")
}

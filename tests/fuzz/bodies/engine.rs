//! A whole engine with one installed peer. Gateway and peer are ours: they hold real sessions with it,
//! and say in them what the input says.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use agentnet::engine::membership::Membership;
use agentnet::engine::path::Mode;
use agentnet::engine::{Engine, Forwarded, Time};
use agentnet::id::OverlayIp;
use agentnet::os::clock;
use agentnet::statement::{
    Consent, ConsentState, Head, Revocation, RevokedKey, Scope, Statement, issue,
};
use agentnet::wire::control::{Control, FROM, ProbeReply, TO};
use agentnet::wire::have::{Have, Summary};

use super::clock::Simulation;
use super::input::Input;
use super::members::{self, Members};
use super::memory::held;
use super::others::{Others, STUN_PORT};

/// Steps of one run: a longer input does the rest of nothing.
const MAX_STEPS: usize = 200;

/// What one engine with one peer may hold beyond what it began with: queues, paths and statements.
const MAX_HELD: isize = 4 << 20; // bytes

/// Datagrams one input may lead to: 64 packets that waited, each way of a handshake, and probes.
const MAX_OUT: usize = 160;

struct World {
    sim: Simulation,
    engine: Engine,
    local: OverlayIp,
    peer: OverlayIp,
    /// The peer's end of everything that is signed.
    b: Membership,
    others: Others,
    /// Where datagrams may go: the gateway, and what the peer named or was heard from.
    known: BTreeSet<SocketAddr>,
    /// Payloads the peer sent that may still come out.
    sent: Vec<Vec<u8>>,
    /// Whether the others answer what they are asked.
    is_answering: bool,
}

/// An engine is given anything in any order; only the peer's packets come out, and only to known
/// places anything goes.
pub(super) fn engine(data: &[u8]) {
    super::on_a_thread(|| run(data));
}

fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let sim = Simulation::start(u64::from(input.byte()));
    let mut world = World::new(sim);
    world.drain();
    let before = held();
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        world.step(&mut input);
    }
    let held = held() - before;
    assert!(held < MAX_HELD, "{held} bytes more are held");
}

fn now() -> Time {
    Time {
        now: clock::now(),
        unix: clock::unix(),
    }
}

impl World {
    fn new(sim: Simulation) -> Self {
        let members = Members::get();
        let engine = Engine::new(members::state(&members.a), [5; 32], now());
        let trusted = members.a.trusted(clock::unix());
        let peer = trusted[0].member.address;
        let local = members.a.address().expect("a is a member");
        Self {
            sim,
            engine,
            local,
            peer,
            b: members.b.clone(),
            others: Others::new((local, peer), trusted[0].psk),
            // A gateway has a second port, which it names (others.rs).
            known: BTreeSet::from([
                members::gateway_at(),
                SocketAddr::new(members::gateway_at().ip(), STUN_PORT),
            ]),
            sent: vec![],
            is_answering: true,
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let choice = input.byte();
        let way = choice >> 5;
        match choice & 0x1f {
            0..=2 => self.say_packet(way, input.chunk()),
            3..=5 => self.say_control(way, &control(input.chunk())),
            6 | 7 => self.pass(Duration::from_millis(u64::from(input.byte()) * 8)),
            8 => self.pass(Duration::from_secs(u64::from(input.byte()))),
            9..=11 => {
                let packet = udp(self.local, self.peer, input.chunk());
                self.engine
                    .handle_packet(self.local, self.peer, &packet, now());
            }
            12 => self.stranger(input.chunk()),
            13 => self.replay(input),
            14 => self.changed(input),
            15 => self.gateway_says(&control(input.chunk())),
            16 => self.others.forget_hop(),
            17 => self.statement(way, input),
            18 => self.command(way, input),
            19 => self.is_answering = way & 1 == 0,
            20 => {
                self.is_answering = true;
                self.begin(way);
            }
            21 => self.frame(input),
            22 => self.probe(),
            23 => self
                .engine
                .handle_packet(self.local, self.peer, input.chunk(), now()),
            24 => self.engine.handle_unknown(self.local, input.chunk(), now()),
            29 => self.sleep(Duration::from_secs(u64::from(input.number()))),
            30 => self.tell(way, input),
            31 => self.have(way, input),
            _ => self.say_control(way, &candidates(input, way)),
        }
        self.drain();
    }

    /// Carries what the engine sends to the others, and their answers back, until all is quiet.
    fn drain(&mut self) {
        for _ in 0..8 {
            let mut sent = vec![];
            while self.engine.poll_event().is_some_and(|event| {
                if let agentnet::engine::Event::Gateway { local } = event {
                    let (did, at) = (members::key(members::GATEWAY).did(), members::gateway_at());
                    let found = self.engine.set_gateway(local, did, vec![at], now());
                    // A membership that ended presents nothing.
                    drop(found);
                }
                true
            }) {}
            while let Some(transmit) = self.engine.poll_transmit() {
                assert!(self.known.contains(&transmit.to), "to {}", transmit.to);
                assert!(transmit.bytes.len() <= 65_535 + 100);
                sent.push(transmit);
            }
            assert!(sent.len() <= MAX_OUT, "{} datagrams at once", sent.len());
            self.take_packets();
            let mut answers = vec![];
            for transmit in sent {
                self.others.take(transmit.to, &transmit.bytes, &mut answers);
            }
            if !self.is_answering || answers.is_empty() {
                return;
            }
            for (from, bytes) in answers {
                self.engine.handle_datagram(from, &bytes, now());
            }
        }
    }

    fn take_packets(&mut self) {
        while let Some(packet) = self.engine.poll_packet() {
            assert_eq!((packet.local, packet.peer), (self.local, self.peer));
            assert!(
                self.engine.has_peer(self.local, self.peer),
                "after consent ended"
            );
            let place = self.sent.iter().position(|sent| *sent == packet.bytes);
            let place = place.expect("the peer sent it, and it comes out once");
            self.sent.swap_remove(place);
        }
        while let Some((local, error)) = self.engine.poll_injection() {
            assert!(local == self.local && error.len() <= 1280);
        }
    }

    /// The peer sends an IP packet.
    fn say_packet(&mut self, way: u8, payload: &[u8]) {
        let packet = udp(self.peer, self.local, payload);
        if let Some(sealed) = self.others.seal(&packet) {
            self.sent.push(packet);
            if self.sent.len() > 64 {
                self.sent.remove(0);
            }
            self.arrive(way, sealed);
        }
    }

    fn say_control(&mut self, way: u8, packet: &[u8]) {
        if let Some(Control::Candidates(told)) = Control::parse(packet) {
            self.known.extend(told.list.iter().map(|c| c.endpoint));
        }
        if let Some(sealed) = self.others.seal(packet) {
            self.arrive(way, sealed);
        }
    }

    /// Brings a message of the peer: by the gateway, or from one of its endpoints.
    fn arrive(&mut self, way: u8, message: Vec<u8>) {
        let (from, bytes) = self.others.carry(way, message);
        self.known.insert(from);
        self.engine.handle_datagram(from, &bytes, now());
    }

    fn begin(&mut self, way: u8) {
        if let Some(initiation) = self.others.initiate() {
            self.arrive(way, initiation);
        }
    }

    /// The gateway says something in the session over which the agent attaches.
    fn gateway_says(&mut self, packet: &[u8]) {
        if let Some(sealed) = self.others.gateway_seal(packet) {
            self.engine
                .handle_datagram(members::gateway_at(), &sealed, now());
        }
    }

    /// A frame of the gateway with any header, under the right keys.
    fn frame(&mut self, input: &mut Input<'_>) {
        if let Some(frame) = self.others.frame(input) {
            self.engine
                .handle_datagram(members::gateway_at(), &frame, now());
        }
    }

    fn probe(&mut self) {
        let id = self.engine.probe(self.local, self.peer, now());
        let reply = Control::ProbeReply(ProbeReply {
            id: id.unwrap_or(1),
            observed: None,
            received: 0,
        });
        self.say_control(0, &reply.packet().expect("it is short"));
    }

    /// Bytes that nobody with a key made: nothing comes of them.
    fn stranger(&mut self, bytes: &[u8]) {
        self.drain();
        let from = SocketAddr::from(([192, 0, 2, 66], 6666));
        self.engine.handle_datagram(from, bytes, now());
        assert_eq!(self.engine.poll_transmit(), None, "an answer to a stranger");
        assert_eq!(self.engine.poll_packet(), None);
    }

    /// What was on the wire comes again, from somewhere else: nothing goes there.
    fn replay(&mut self, input: &mut Input<'_>) {
        let Some(bytes) = self.others.recorded(input.byte()).cloned() else {
            return;
        };
        let from = SocketAddr::from(([192, 0, 2, 67], 6667));
        self.engine.handle_datagram(from, &bytes, now());
        self.take_packets();
    }

    fn changed(&mut self, input: &mut Input<'_>) {
        let Some(mut bytes) = self.others.recorded(input.byte()).cloned() else {
            return;
        };
        let bit = usize::from(input.number());
        let at = bit / 8 % bytes.len();
        bytes[at] ^= 1 << (bit % 8);
        let from = SocketAddr::from(([192, 0, 2, 68], 6668));
        self.engine.handle_datagram(from, &bytes, now());
        assert_eq!(self.engine.poll_packet(), None);
    }

    fn command(&mut self, way: u8, input: &mut Input<'_>) {
        let (local, peer, time) = (self.local, self.peer, now());
        let engine = &mut self.engine;
        match way {
            0 => {
                let modes = [Mode::Auto, Mode::Direct, Mode::Relay, Mode::Hidden];
                engine.set_path_mode(modes[usize::from(input.byte() % 4)], time);
            }
            1 => {
                let at = SocketAddr::from((input.array::<4>(), input.number()));
                engine.set_host_candidates(&[at], time);
            }
            2 => engine.handle_network_change(time),
            3 => drop(engine.record(local, time)),
            4 => {
                let ours = engine.by_address(local, peer);
                assert_eq!(ours.is_some(), engine.has_peer(local, peer));
                ours.and_then(|name| engine.by_name(local, &name, time));
            }
            5 => {
                let name = "b".parse().expect("a name");
                let revoked = engine.change(local, time, |m, unix| m.revoke(&name, unix));
                let is_over = revoked.is_some_and(|revoked| revoked.is_ok());
                assert!(!is_over || !engine.has_peer(local, peer), "revoked");
            }
            6 => engine.detach(time),
            _ => {
                let kept = engine.state();
                self.engine = Engine::new(kept, [6; 32], time);
            }
        }
    }

    /// A statement that the registry brings: of the peer, of the owner, or of nobody.
    fn statement(&mut self, way: u8, input: &mut Input<'_>) {
        let Some((kind, text)) = self.signed(way, input) else {
            let kinds = [
                Forwarded::Consent,
                Forwarded::Gateway,
                Forwarded::Record,
                Forwarded::Request,
                Forwarded::Revocation,
            ];
            let kind = kinds[usize::from(way % 5)];
            let text = String::from_utf8_lossy(input.chunk()).into_owned();
            let taken = self.engine.handle_statement(self.local, kind, &text, now());
            assert!(taken.is_err(), "{kind:?} of nobody");
            return;
        };
        let taken = self.engine.handle_statement(self.local, kind, &text, now());
        let has_peer = self.engine.has_peer(self.local, self.peer);
        assert!(
            !(way == 1 && taken.is_ok() && has_peer),
            "consent was taken back"
        );
    }

    /// The peer tells a statement in the session, in parts when it is long.
    fn tell(&mut self, way: u8, input: &mut Input<'_>) {
        let kind = input.byte() % 6;
        let signed = self.signed(kind, input).map(|(_, text)| text);
        let text = signed.unwrap_or_else(|| String::from_utf8_lossy(input.chunk()).into_owned());
        for packet in (Control::Statement { text }).packets(u32::from(input.byte())) {
            self.say_control(way, &packet);
        }
    }

    /// The peer claims to have what the input says.
    fn have(&mut self, way: u8, input: &mut Input<'_>) {
        let claimed = Have {
            revocations: Summary {
                count: input.byte().into(),
                hash: [input.byte(); 32],
            },
            record: u64::from(input.byte()) << 36,
            consent: u64::from(input.byte()) << 36,
        };
        let packet = Control::Have(claimed).packet();
        self.say_control(way, &packet.expect("it is short"));
    }

    /// The host sleeps, and nothing is done in time.
    fn sleep(&mut self, slept: Duration) {
        self.sim.advance(slept);
        self.engine.handle_resume(slept, now());
    }

    /// Signs what the peer, the owner or a stranger could say; None for what nobody signed.
    fn signed(&mut self, way: u8, input: &mut Input<'_>) -> Option<(Forwarded, String)> {
        // Never the same sequence number twice.
        self.sim.advance(Duration::from_millis(1));
        let time = now();
        let a = Members::get().a.id().did();
        let made = match way {
            0 | 1 => {
                let state = if way == 0 {
                    ConsentState::Active
                } else {
                    ConsentState::Revoked
                };
                let claims = Consent {
                    inbound: Scope::Any,
                    children: false,
                    state,
                    re: None,
                };
                let signed = Statement::sign(&members::key(11), head(a, time), claims);
                (
                    Forwarded::Consent,
                    signed.expect("it is short").text().to_owned(),
                )
            }
            2 => {
                let record = self
                    .b
                    .sign_record(vec![], time.unix)
                    .expect("b is a member");
                (Forwarded::Record, record.text().to_owned())
            }
            3 => (Forwarded::Revocation, self.revocation(input.byte(), time)),
            4 => {
                let mut c = Members::get().c.clone();
                let name = "a".parse().expect("a name");
                drop(c.request(name, Scope::Any, None, time.unix));
                let request = c.outgoing.into_values().next();
                let text = request.map(|r| r.text().to_owned());
                (Forwarded::Request, text.unwrap_or_default())
            }
            _ => return None,
        };
        Some(made)
    }

    /// The owner, or one without authority, revokes the peer or its grant.
    fn revocation(&self, choice: u8, time: Time) -> String {
        let author = if choice & 1 == 0 { members::OWNER } else { 12 };
        let chain = if choice & 1 == 0 {
            &self.b.chain[..1]
        } else {
            &self.b.chain[..]
        };
        let key = if choice & 2 == 0 { 12 } else { 11 };
        let claims = Revocation {
            keys: vec![RevokedKey {
                key: members::key(key).did(),
                at: time.unix,
            }],
            grants: vec![],
            chain: chain.to_vec(),
        };
        let head = head(members::network().did(), time);
        let signed = Statement::sign(&members::key(author), head, claims);
        signed.expect("it is short").text().to_owned()
    }

    /// Lets time pass, deadline by deadline; timers that never rest are a fault.
    fn pass(&mut self, time: Duration) {
        let end = clock::now() + time;
        let most = 200 + 60 * time.as_secs();
        for _ in 0..most {
            let due = self
                .engine
                .poll_timeout()
                .map(|(at, _)| at)
                .filter(|at| *at <= end);
            let Some(at) = due else {
                self.sim
                    .advance(end.saturating_duration_since(clock::now()));
                return;
            };
            let step = at.saturating_duration_since(clock::now());
            self.sim.advance(step.max(Duration::from_millis(1)));
            self.engine.handle_timeout(now());
            self.drain();
        }
        panic!("timers do not rest: {:?}", self.engine.poll_timeout());
    }
}

fn head(subject: agentnet::id::Did, time: Time) -> Head {
    Head {
        subject,
        network: Some(members::network()),
        issued: time.unix,
        expires: time.unix + issue::ROOT_LIFE / 2,
        seq: time.unix.as_millis(),
    }
}

/// Puts the header of control messages before any bytes.
pub(super) fn control(body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).expect("a chunk is short");
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([253, 255]);
    packet.extend(FROM.octets());
    packet.extend(TO.octets());
    packet.extend(body);
    packet
}

/// Candidates with a sequence number that counts, at endpoints of the input's choice.
fn candidates(input: &mut Input<'_>, n: u8) -> Vec<u8> {
    let mut body = vec![0, 8];
    let mut rest = vec![];
    rest.extend((u64::from(input.number()) << 8).to_be_bytes());
    rest.push(n);
    for _ in 0..n {
        rest.push(input.byte() % 4);
        rest.extend([0; 10]);
        rest.extend([0xff, 0xff]);
        rest.extend(input.array::<4>());
        rest.extend(input.array::<2>());
        rest.extend([0, 0, 0, 1]);
    }
    body.extend(
        u16::try_from(rest.len())
            .expect("at most seven")
            .to_be_bytes(),
    );
    body.extend(rest);
    control(&body)
}

pub(super) fn udp(from: OverlayIp, to: OverlayIp, payload: &[u8]) -> Vec<u8> {
    let builder = etherparse::PacketBuilder::ipv6(from.ip().octets(), to.ip().octets(), 64);
    let mut packet = Vec::new();
    let written = builder.udp(5000, 8000).write(&mut packet, payload);
    written.expect("a chunk fits a packet");
    packet
}

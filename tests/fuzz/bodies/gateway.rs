//! A gateway's core with three agents whose sessions and hops are ours, and strangers.

use std::net::SocketAddr;
use std::time::Duration;

use agentnet::engine::session::{Opened, Session, SessionKeys};
use agentnet::gateway::core::Core;
use agentnet::gateway::recovery::{RecoveredHop, Recovery};
use agentnet::id::OverlayIp;
use agentnet::os::clock;
use agentnet::statement::{Head, Revocation, RevokedKey, Statement};
use agentnet::wire::a2g::{Direction, HEADER, Header, HopKeys, Kind, Reset};
use agentnet::wire::control::{Attached, Control, FROM, TO};
use agentnet::wire::datagram::{Datagram, WireGuard};

use super::clock::Simulation;
use super::input::Input;
use super::members::{self, Members, tunnel};
use super::memory::held;

const MAX_STEPS: usize = 200;
const MAX_RECORDED: usize = 64;

/// What a gateway of four attachments may hold beyond what it began with.
const MAX_HELD: isize = 4 << 20; // bytes

struct Agent {
    address: OverlayIp,
    at: SocketAddr,
    session: Session,
    record: String,
    hop: Option<(Attached, HopKeys, HopKeys)>,
    next: u64,
}

struct World {
    sim: Simulation,
    core: Core,
    agents: Vec<Agent>,
    /// What was sent to the gateway, and by whom.
    recorded: Vec<(SocketAddr, Vec<u8>)>,
    /// The last payload that an agent sent, and from whom.
    payload: (OverlayIp, Vec<u8>),
}

/// A gateway is given anything in any order; it forwards what attached agents send, unchanged, and
/// sends strangers less than they sent.
pub(super) fn gateway(data: &[u8]) {
    super::on_a_thread(|| run(data));
}

fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let sim = Simulation::start(u64::from(input.byte()));
    let mut world = World::new(sim);
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

impl World {
    fn new(sim: Simulation) -> Self {
        let (members, config) = (Members::get(), members::gateway_config());
        let mut core = Core::new(config, members::gateway_keys(), [3; 32]);
        core.set_networks(&[members::network()]);
        let all = [&members.a, &members.b, &members.c];
        let agents = all.into_iter().zip(10..).map(|(member, n)| {
            let keys = SessionKeys {
                local: tunnel(n),
                peer: tunnel(members::GATEWAY).public(),
                psk: None,
                index: u32::from(n),
            };
            let record = member.clone().sign_record(vec![], clock::unix());
            Agent {
                address: member.address().expect("it is a member"),
                at: SocketAddr::from(([198, 51, 100, n], 16200)),
                session: Session::new(&keys, clock::now()),
                record: record.expect("it is a member").text().to_owned(),
                hop: None,
                next: 0,
            }
        });
        let agents = agents.collect::<Vec<_>>();
        let payload = (agents[0].address, vec![]);
        Self {
            sim,
            core,
            agents,
            recorded: vec![],
            payload,
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let choice = input.byte();
        let n = usize::from(choice >> 4) % 3;
        match choice & 0xf {
            0 => self.initiate(n),
            1 => self.attach(n, n),
            2 => self.attach(n, usize::from(input.byte()) % 3),
            3 => self.say(n, &control(input.chunk())),
            4 | 5 => {
                let to = usize::from(input.byte()) % 3;
                let target = self.agents[to].address;
                self.data(n, target, input.chunk());
            }
            6 => self.frame(n, input),
            7 => self.strange(input.byte(), input.chunk().to_vec()),
            8 => self.again(input),
            9 => self.pass(Duration::from_millis(u64::from(input.byte()) * 8)),
            10 => self.pass(Duration::from_secs(u64::from(input.byte()))),
            11 => self.move_to(n, input.byte()),
            12 => self.operator(input),
            13 => {
                self.initiate(n);
                self.attach(n, n);
            }
            14 => self.recover(input),
            _ => self.said(n, &control(input.long_chunk())),
        }
    }

    /// Gives the gateway a datagram, and what it sends to whom that is for.
    fn give(&mut self, from: SocketAddr, bytes: Vec<u8>) {
        if self.recorded.len() >= MAX_RECORDED {
            self.recorded.remove(0);
        }
        self.recorded.push((from, bytes.clone()));
        self.core
            .handle_datagram(from, bytes, clock::now(), clock::unix());
        self.drain(2);
    }

    fn drain(&mut self, most: usize) {
        let mut count = 0;
        while let Some((to, bytes)) = self.core.poll_transmit() {
            count += 1;
            let place = self.agents.iter().position(|agent| agent.at == to);
            if let Some(n) = place {
                self.arrive(n, &bytes);
            }
        }
        assert!(count <= most, "{count} datagrams for one");
        let status = self.core.status(clock::now());
        assert!(status.attached <= 4 && status.attaching <= 4 && status.routes <= status.attached);
        for attached in status.attachments {
            let owner = self
                .agents
                .iter()
                .find(|agent| agent.address == attached.agent);
            let owner = owner.expect("nobody else is a member");
            assert_eq!(owner.at.ip(), attached.endpoint.ip(), "attached as another");
        }
    }

    /// An agent takes a datagram of the gateway.
    fn arrive(&mut self, n: usize, bytes: &[u8]) {
        let agent = &mut self.agents[n];
        let now = clock::now();
        match Datagram::classify(bytes) {
            Some(Datagram::WireGuard(WireGuard::CookieReply)) => {
                agent.session.open_cookie(bytes, now);
            }
            Some(Datagram::WireGuard(_)) => match agent.session.open(bytes, now) {
                Opened::Confirmed { reply, .. } => {
                    let at = agent.at;
                    if let Some(reply) = reply {
                        self.core.handle_datagram(at, reply, now, clock::unix());
                    }
                }
                Opened::Packet(packet) => {
                    if let Some(Control::Attached(attached)) = Control::parse(&packet) {
                        let up = HopKeys::derive(&attached.secret, Direction::Up);
                        let down = HopKeys::derive(&attached.secret, Direction::Down);
                        agent.hop = Some((attached, up, down));
                        agent.next = 0;
                    }
                }
                Opened::Dropped(_) | Opened::Nothing | Opened::Reply(_) => {}
            },
            Some(Datagram::Frame) if Reset::parse(bytes).is_none() => {
                let Some((_, _, down)) = &agent.hop else {
                    return;
                };
                let Ok(header) = Header::open(down, bytes) else {
                    return;
                };
                if header.kind == Kind::Data {
                    let (source, sent) = &self.payload;
                    assert_eq!(
                        (header.source, header.target),
                        (source.ip(), agent.address.ip())
                    );
                    assert_eq!(&bytes[HEADER..], sent, "a payload was changed");
                }
            }
            Some(_) | None => {}
        }
    }

    fn initiate(&mut self, n: usize) {
        self.sim.advance(Duration::from_millis(1));
        let initiation = self.agents[n].session.initiate(clock::now());
        self.give(self.agents[n].at, initiation.expect("it can always begin"));
    }

    /// Agent `n` asks to attach with the record of agent `of`; only its own is taken.
    fn attach(&mut self, n: usize, of: usize) {
        let record = self.agents[of].record.clone();
        let had = self.agents[n].hop.take();
        for packet in (Control::Attach { record }).packets(7) {
            self.say(n, &packet);
        }
        if self.agents[n].hop.is_none() {
            self.agents[n].hop = had;
        }
    }

    fn say(&mut self, n: usize, packet: &[u8]) {
        let agent = &mut self.agents[n];
        let at = agent.at;
        if let Some(sealed) = agent.session.seal(packet, clock::now()) {
            self.give(at, sealed);
        }
    }

    /// A control message in parts that need not fit together.
    fn said(&mut self, n: usize, packet: &[u8]) {
        for (place, bytes) in packet.chunks(200).enumerate() {
            let mut body = vec![0, 1, 0, u8::try_from(bytes.len() + 6).unwrap_or(0)];
            body.extend([0, 0, 0, 9, u8::try_from(place).unwrap_or(255), 3]);
            body.extend(bytes);
            self.say(n, &control(&body));
        }
    }

    fn data(&mut self, n: usize, target: OverlayIp, payload: &[u8]) {
        let agent = &mut self.agents[n];
        let Some((attached, up, _)) = &agent.hop else {
            return;
        };
        agent.next += 1;
        let header = Header::data(attached.up, agent.next, target, agent.address);
        let frame = header.frame(up, payload);
        self.payload = (agent.address, payload.to_vec());
        self.give(self.agents[n].at, frame);
    }

    /// A frame under an agent's keys whose header is the input's.
    fn frame(&mut self, n: usize, input: &mut Input<'_>) {
        let agent = &mut self.agents[n];
        let Some((attached, up, _)) = &agent.hop else {
            return;
        };
        let kinds = [
            Kind::Data,
            Kind::Heartbeat,
            Kind::SessionEnd,
            Kind::Displaced,
        ];
        let choice = input.byte();
        agent.next = agent
            .next
            .saturating_add(u64::from(input.number()) << (choice & 0x30));
        let mut header = Header::data(attached.up, agent.next, agent.address, agent.address);
        header.kind = kinds[usize::from(choice & 3)];
        header.ttl = input.byte();
        header.prefix_len = input.byte();
        header.target = std::net::Ipv6Addr::from(input.array::<16>());
        if choice & 4 != 0 {
            header.source = std::net::Ipv6Addr::from(input.array::<16>());
        }
        let payload = input.chunk();
        let payload = if header.kind == Kind::Data {
            payload
        } else {
            &[]
        };
        let frame = header.frame(up, payload);
        self.payload = (self.agents[n].address, payload.to_vec());
        self.give(self.agents[n].at, frame);
    }

    /// Bytes of one who proved nothing: less comes back, and to nobody else.
    fn strange(&mut self, n: u8, bytes: Vec<u8>) {
        let from = SocketAddr::from(([192, 0, 2, n], 6666));
        let (before, length) = (self.core.changes(), bytes.len());
        self.core
            .handle_datagram(from, bytes, clock::now(), clock::unix());
        let mut answered = 0;
        while let Some((to, answer)) = self.core.poll_transmit() {
            assert_eq!(to, from);
            answered += answer.len();
        }
        assert!(
            answered == 0 || answered < length,
            "{answered} bytes for {length}"
        );
        assert_eq!(
            self.core.changes(),
            before,
            "a stranger changed attachments"
        );
    }

    /// What was sent before comes again from elsewhere, with a bit changed or not.
    fn again(&mut self, input: &mut Input<'_>) {
        if self.recorded.is_empty() {
            return;
        }
        let at = usize::from(input.byte()) % self.recorded.len();
        let mut bytes = self.recorded[at].1.clone();
        let bit = usize::from(input.number());
        if bit != 0 && !bytes.is_empty() {
            let at = bit / 8 % bytes.len();
            bytes[at] ^= 1 << (bit % 8);
        }
        self.strange(66, bytes);
    }

    fn move_to(&mut self, n: usize, port: u8) {
        let address = 10 + u8::try_from(n).unwrap_or(0);
        self.agents[n].at = SocketAddr::from(([198, 51, 100, address], 16200 + u16::from(port)));
    }

    fn operator(&mut self, input: &mut Input<'_>) {
        match input.byte() % 4 {
            0 => self.core.set_networks(&[]),
            1 => self.core.set_networks(&[members::network()]),
            2 => self.core.add_network(members::key(7).did().into()),
            _ => {
                let unix = clock::unix();
                let owner = members::key(members::OWNER);
                let claims = Revocation {
                    keys: vec![RevokedKey {
                        key: members::key(12).did(),
                        at: unix,
                    }],
                    grants: vec![],
                    chain: Members::get().a.chain[..1].to_vec(),
                };
                let head = Head {
                    subject: owner.did(),
                    network: Some(members::network()),
                    issued: unix,
                    expires: unix + Duration::from_secs(60),
                    seq: unix.as_millis(),
                };
                let signed = Statement::sign(&owner, head, claims).expect("it is short");
                if self.core.add_revocation(&signed, unix).is_ok() {
                    self.agents[2].hop = None;
                }
            }
        }
        self.drain(4);
    }

    /// The gateway restarts with a memory of the input's making.
    fn recover(&mut self, input: &mut Input<'_>) {
        let kept = self.core.recovery();
        assert!(kept.hops.len() <= 4);
        let mut hops = kept.hops;
        for _ in 0..input.byte() % 8 {
            hops.push(RecoveredHop {
                hop: u32::from(input.number()),
                endpoint: SocketAddr::from((input.array::<4>(), input.number())),
            });
        }
        self.core.recover(Recovery { hops }, clock::now());
        self.pass(Duration::from_millis(100));
    }

    fn pass(&mut self, time: Duration) {
        let end = clock::now() + time;
        for _ in 0..200 {
            let due = self
                .core
                .poll_timeout()
                .map(|(at, _)| at)
                .filter(|at| *at <= end);
            let Some(at) = due else {
                self.sim
                    .advance(end.saturating_duration_since(clock::now()));
                return;
            };
            self.sim.advance(at.saturating_duration_since(clock::now()));
            self.core.handle_timeout(clock::now(), clock::unix());
            self.drain(256);
        }
        panic!("timers do not rest: {:?}", self.core.poll_timeout());
    }

    /// Whatever happened: an agent that is a member attaches, and is heard.
    fn still_works(&mut self) {
        self.core.set_networks(&[members::network()]);
        self.drain(4);
        self.pass(Duration::from_secs(200));
        for n in [0, 1] {
            self.agents[n].hop = None;
            self.initiate(n);
            if self.agents[n].hop.is_none() && !self.agents[n].session.is_confirmed(clock::now()) {
                // A cookie may be asked for once.
                self.initiate(n);
            }
            self.attach(n, n);
            assert!(self.agents[n].hop.is_some(), "agent {n} cannot attach");
        }
        let (target, before) = (
            self.agents[1].address,
            self.core.status(clock::now()).forwarded_frames,
        );
        self.data(0, target, b"payload");
        assert_eq!(self.core.status(clock::now()).forwarded_frames, before + 1);
    }
}

/// Puts the header of control messages before any bytes.
fn control(body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap_or(u16::MAX);
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([253, 255]);
    packet.extend(FROM.octets());
    packet.extend(TO.octets());
    packet.extend(body);
    packet
}

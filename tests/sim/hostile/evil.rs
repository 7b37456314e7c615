//! A gateway that has the keys of a gateway and does what it likes.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

use agentnet::engine::Time;
use agentnet::engine::session::{Listener, Opened, Session, SessionKeys, receiver_index};
use agentnet::id::{DomainPrefix, OverlayIp, TunnelSecret};
use agentnet::statement::{Record, Statement};
use agentnet::wire::a2g::{Direction, HEADER, Header, HopKeys, Kind, Reset, hop_id};
use agentnet::wire::control::{Attached, Control};
use agentnet::wire::part::Reassembler;

use crate::pair::{DOMAIN, GATEWAY, key};

/// A payload on its way from one agent to another.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Frame {
    pub(crate) from: OverlayIp,
    pub(crate) to: OverlayIp,
    pub(crate) payload: Vec<u8>,
}

/// What becomes of a frame, after what time.
pub(crate) type Deeds = Vec<(Duration, Frame)>;

/// An attached agent.
pub(crate) struct Hop {
    pub(crate) agent: OverlayIp,
    pub(crate) at: SocketAddr,
    told: Attached,
    next: u64,
}

struct Guest {
    session: Session,
    parts: Reassembler,
}

/// The evil gateway.
pub(crate) struct Evil {
    secret: TunnelSecret,
    guests: BTreeMap<u32, Guest>,
    /// By the hop id of frames to the gateway.
    pub(crate) hops: BTreeMap<u32, Hop>,
    /// Every data frame that came, as it came.
    pub(crate) seen: Vec<Frame>,
    /// How often an agent attached.
    pub(crate) attached: u32,
    /// Handshakes of agents that want to attach.
    pub(crate) handshakes: u32,
    /// What is said instead of the truth when an agent attaches.
    pub(crate) lie: Box<dyn FnMut(&mut Attached)>,
    /// What is answered to Attach; None: the lie.
    pub(crate) answer: Option<Control>,
    /// What is done with each frame; honest: the same at once.
    pub(crate) act: Box<dyn FnMut(&Frame) -> Deeds>,
    held: VecDeque<(Instant, SocketAddr, Vec<u8>)>,
    next: u32,
}

/// Passes every frame on at once.
pub(crate) fn honest(frame: &Frame) -> Deeds {
    vec![(Duration::ZERO, frame.clone())]
}

impl Evil {
    pub(crate) fn new() -> Self {
        Self {
            secret: TunnelSecret::from_seed([GATEWAY; 32]),
            guests: BTreeMap::new(),
            hops: BTreeMap::new(),
            seen: vec![],
            attached: 0,
            handshakes: 0,
            lie: Box::new(|_| {}),
            answer: None,
            act: Box::new(honest),
            held: VecDeque::new(),
            next: 1,
        }
    }

    pub(crate) fn handle_datagram(&mut self, from: SocketAddr, bytes: &[u8], time: Time) {
        if let Some(up) = hop_id(bytes) {
            self.handle_frame(up, bytes, time);
        } else if let Some(index) = receiver_index(bytes) {
            self.handle_message(from, index >> 8, bytes, time);
        } else {
            self.handle_initiation(from, bytes, time);
        }
    }

    fn handle_initiation(&mut self, from: SocketAddr, bytes: &[u8], time: Time) {
        let listener = Listener::new(&self.secret, 1 << 40);
        let Some(peer) = listener.initiator(bytes) else {
            return;
        };
        self.handshakes += 1;
        self.next += 1;
        let keys = SessionKeys {
            local: self.secret.clone(),
            peer,
            psk: None,
            index: self.next,
        };
        let mut session = Session::new(&keys, time.now);
        if let Opened::Reply(reply) = session.open(bytes, time.now) {
            self.send(time.now, from, reply);
        }
        let parts = Reassembler::default();
        self.guests.insert(self.next, Guest { session, parts });
    }

    fn handle_message(&mut self, from: SocketAddr, index: u32, bytes: &[u8], time: Time) {
        let Some(guest) = self.guests.get_mut(&index) else {
            return;
        };
        let packet = match guest.session.open(bytes, time.now) {
            Opened::Confirmed { packet, .. } => packet,
            Opened::Packet(packet) => Some(packet),
            Opened::Dropped(_) | Opened::Nothing | Opened::Reply(_) => None,
        };
        let Some(Control::Part(part)) = packet.and_then(|p| Control::parse(&p)) else {
            return;
        };
        let Some(Control::Attach { record }) = guest.parts.take(part, time.now) else {
            return;
        };
        self.next += 2;
        let mut told = Attached {
            lease: 75,
            observed: from,
            up: self.next,
            down: self.next + 1,
            secret: [u8::try_from(self.next % 251).unwrap(); 32],
            mtu: 1452,
            reset_token: [9; 16],
            stun_port: 0,
        };
        (self.lie)(&mut told);
        self.attached += 1;
        let answer = self.answer.clone();
        let answer = answer.unwrap_or_else(|| Control::Attached(told.clone()));
        let sealed = guest.session.seal(&answer.packet().unwrap(), time.now);
        self.send(time.now, from, sealed.unwrap());
        let agent = Statement::<Record>::open(&record).unwrap().issuer();
        let prefix = DomainPrefix::of(&key(DOMAIN).did().into()).network(1);
        let agent = prefix.address_of(&agent.into()).unwrap();
        let hop = Hop {
            agent,
            at: from,
            next: 0,
            told: told.clone(),
        };
        self.hops.retain(|_, hop| hop.agent != agent);
        self.hops.insert(told.up, hop);
    }

    fn handle_frame(&mut self, up: u32, bytes: &[u8], time: Time) {
        let Some(hop) = self.hops.get(&up) else {
            return;
        };
        let keys = HopKeys::derive(&hop.told.secret, Direction::Up);
        let Ok(header) = Header::open(&keys, bytes) else {
            return;
        };
        let agent = hop.agent;
        match header.kind {
            Kind::Data => {
                let frame = Frame {
                    from: agent,
                    to: OverlayIp::new(header.target).unwrap(),
                    payload: bytes[HEADER..].to_vec(),
                };
                self.seen.push(frame.clone());
                for (after, frame) in (self.act)(&frame) {
                    self.put(&frame, time.now + after);
                }
            }
            Kind::Heartbeat => self.signal(agent, Kind::Heartbeat, time.now),
            Kind::Displaced | Kind::SessionEnd => {}
        }
    }

    /// Sends a frame under the keys of its receiver, as from whoever it says.
    pub(crate) fn put(&mut self, frame: &Frame, at: Instant) {
        let Some(hop) = self.hops.values_mut().find(|h| h.agent == frame.to) else {
            return;
        };
        let header = Header::data(hop.told.down, hop.next, frame.to, frame.from);
        hop.next += 1;
        let keys = HopKeys::derive(&hop.told.secret, Direction::Down);
        let (to, bytes) = (hop.at, header.frame(&keys, &frame.payload));
        self.send(at, to, bytes);
    }

    /// Sends a frame without payload to an agent.
    pub(crate) fn signal(&mut self, agent: OverlayIp, kind: Kind, now: Instant) {
        let Some(hop) = self.hops.values_mut().find(|h| h.agent == agent) else {
            return;
        };
        let header = Header::data(hop.told.down, hop.next, agent, agent).of_kind(kind);
        hop.next += 1;
        let keys = HopKeys::derive(&hop.told.secret, Direction::Down);
        let (to, bytes) = (hop.at, header.frame(&keys, &[]));
        self.send(now, to, bytes);
    }

    /// Sends every agent a Reset that it believes.
    pub(crate) fn reset_all(&mut self, now: Instant) {
        let resets = self.hops.values().map(|hop| {
            let (hop, at) = (&hop.told, hop.at);
            let (hop, token) = (hop.up, hop.reset_token);
            (at, Reset { hop, token }.encode().to_vec())
        });
        for (to, bytes) in resets.collect::<Vec<_>>() {
            self.send(now, to, bytes);
        }
    }

    pub(crate) fn send(&mut self, at: Instant, to: SocketAddr, bytes: Vec<u8>) {
        let place = self.held.iter().position(|(other, ..)| *other > at);
        let place = place.unwrap_or(self.held.len());
        self.held.insert(place, (at, to, bytes));
    }

    pub(crate) fn poll_transmit(&mut self, time: Time) -> Option<(SocketAddr, Vec<u8>)> {
        self.held.front().filter(|(at, ..)| *at <= time.now)?;
        let (_, to, bytes) = self.held.pop_front()?;
        Some((to, bytes))
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.held.front().map(|(at, ..)| *at)
    }
}

//! An agent's attachment to one gateway, as the agent sees it (protocol.md section 5).
//!
//! A WireGuard session carries Attach and Attached and is dropped then; what remains is the [`Hop`],
//! over which frames go. A new attachment is made before the old one is given up, unless the gateway
//! has forgotten it or is silent.

mod carried;
mod receive;
mod share;

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use rand::Rng;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::engine::hop::{FrameIds, Hop};
use crate::engine::rtt::Rtt;
use crate::engine::session::{Opened, Session, SessionKeys, receiver_index};
use crate::id::{AddressError, Did, OverlayIp, TunnelKey, TunnelSecret};
use crate::wire::a2g::{self, Kind, Reset, gateway_address};
use crate::wire::control::{Control, Refusal};
use crate::wire::datagram::{Datagram, WireGuard};
use crate::wire::drop::DropReason;

pub use crate::engine::hop::Received;

/// First wait for an answer to a handshake; doubled each time.
const FIRST_RETRY: Duration = Duration::from_millis(500);

/// Longest wait, jitter included: a gateway that comes back is found within this.
const MAX_RETRY: Duration = Duration::from_secs(3);

/// The same while the agent is attached elsewhere, which is time enough.
const MAX_SPARE_RETRY: Duration = Duration::from_secs(60);

/// How much of a wait is random.
const RETRY_JITTER_MS: u64 = 500;

/// Wait for an answer to Attach, and how often it is sent in one session.
const ATTACH_RETRY: Duration = Duration::from_secs(1);
const ATTACH_TRIES: u32 = 3;

/// Datagrams waiting to be sent; an Attach takes at most 15.
const MAX_TRANSMIT: usize = 64;

/// Endpoints of a gateway that are tried in turn.
pub(crate) const MAX_ENDPOINTS: usize = 16;

/// What an attachment is made of.
#[derive(Clone, Debug)]
pub struct AttachConfig {
    /// The agent's address.
    pub agent: OverlayIp,
    /// The agent's tunnel key.
    pub secret: TunnelSecret,
    pub gateway: Did,
    /// The gateway's tunnel key.
    pub key: TunnelKey,
    /// Where the gateway may be, best first.
    pub endpoints: Vec<SocketAddr>,
    /// 24 random bits that no other session of this socket has.
    pub index: u32,
}

/// How far an attachment is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum State {
    /// Frames go; a renewal may be under way.
    Attached,
    /// The gateway looks at the record.
    Attaching,
    /// Given up by this end.
    Detached,
    /// The same agent attached from elsewhere.
    Displaced,
    /// No answer to a handshake yet.
    Handshaking,
    /// The next attempt is not due yet, or there is no record.
    Waiting,
}

/// What a datagram of the gateway was.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Inbound {
    /// Of the attachment itself.
    Consumed,
    Dropped(DropReason),
    /// A payload for the agent.
    Received(Received),
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// Nothing under way: attached, or no record.
    Rest,
    Detached,
    Displaced {
        until: Instant,
    },
    Waiting {
        until: Instant,
    },
    Handshaking {
        retry: Instant,
    },
    Attaching {
        retry: Instant,
        tries: u32,
    },
}

/// An agent's attachment to one gateway.
#[derive(Debug)]
pub struct Attachment {
    config: AttachConfig,
    gateway_address: OverlayIp,
    /// None until the first record is made.
    record: Option<String>,
    rng: ChaCha20Rng,
    phase: Phase,
    /// None while no attachment is being made.
    session: Option<Session>,
    /// None while the gateway forwards nothing for the agent.
    hop: Option<Hop>,
    /// Which endpoint is tried.
    endpoint: usize,
    /// Attempts since the last success.
    attempts: u32,
    /// Whether the agent has another gateway.
    is_spare: bool,
    rtt: Rtt,
    /// When the handshake was sent whose answer tells how long the way takes; None when more than one
    /// could be answered.
    timed: Option<Instant>,
    /// Why the gateway refused; None since it last accepted.
    refused: Option<(Refusal, String)>,
    transmit: VecDeque<(SocketAddr, Vec<u8>)>,
    /// Makes what hands out the ids of a new hop's frames; None when nobody else makes any.
    make_ids: Option<fn(u64) -> Arc<dyn FrameIds>>,
}

impl Attachment {
    /// Makes an attachment that begins as soon as it has a record.
    pub fn new(config: AttachConfig, seed: [u8; 32]) -> Result<Self, AddressError> {
        let gateway_address = gateway_address(config.agent.network().domain(), config.gateway)?;
        let mut this = Self {
            config,
            gateway_address,
            record: None,
            rng: ChaCha20Rng::from_seed(seed),
            phase: Phase::Rest,
            session: None,
            hop: None,
            endpoint: 0,
            attempts: 0,
            is_spare: false,
            rtt: Rtt::default(),
            timed: None,
            refused: None,
            transmit: VecDeque::new(),
            make_ids: None,
        };
        this.config.endpoints.truncate(MAX_ENDPOINTS);
        Ok(this)
    }

    /// Returns the gateway's identity.
    pub const fn gateway(&self) -> Did {
        self.config.gateway
    }

    /// Returns the 24 bits that its sessions begin their indices with.
    pub const fn index(&self) -> u32 {
        self.config.index & 0x00ff_ffff
    }

    /// Returns the agent's address.
    pub const fn agent(&self) -> OverlayIp {
        self.config.agent
    }

    /// Returns how far the attachment is.
    pub const fn state(&self) -> State {
        match (self.hop.is_some(), self.phase) {
            (true, _) => State::Attached,
            (false, Phase::Attaching { .. }) => State::Attaching,
            (false, Phase::Detached) => State::Detached,
            (false, Phase::Displaced { .. }) => State::Displaced,
            (false, Phase::Handshaking { .. }) => State::Handshaking,
            (false, Phase::Rest | Phase::Waiting { .. }) => State::Waiting,
        }
    }

    /// Returns how long the way to the gateway and back takes; None before that was measured.
    pub const fn rtt(&self) -> Option<Duration> {
        self.rtt.get()
    }

    pub(crate) const fn smoothed(&self) -> Rtt {
        self.rtt
    }

    /// Tells whether frames go, and nothing speaks against it.
    pub(crate) fn is_sound(&self) -> bool {
        self.hop.as_ref().is_some_and(|hop| !hop.is_doubted())
    }

    /// Takes whether the agent is attached elsewhere: then there is no hurry here.
    pub(crate) fn set_spare(&mut self, is_spare: bool, now: Instant) {
        if std::mem::replace(&mut self.is_spare, is_spare) == is_spare || is_spare {
            return;
        }
        let soon = now + MAX_RETRY;
        if let Phase::Waiting { until: at } | Phase::Handshaking { retry: at } = &mut self.phase
            && self.refused.is_none()
        {
            self.attempts = 0;
            *at = soon.min(*at);
        }
    }

    /// Tells whether frames go.
    pub const fn is_attached(&self) -> bool {
        self.hop.is_some()
    }

    /// Returns the hop over which frames go; None while there is none.
    pub const fn hop(&self) -> Option<&Hop> {
        self.hop.as_ref()
    }

    /// Returns why the gateway last refused; None since it last accepted.
    pub const fn refused(&self) -> Option<&(Refusal, String)> {
        self.refused.as_ref()
    }

    /// Tells whether a datagram is one of this attachment's: WireGuard by index, frames by hop id.
    pub fn owns(&self, datagram: &[u8]) -> bool {
        if let Some(index) = receiver_index(datagram) {
            return index >> 8 == self.config.index & 0x00ff_ffff;
        }
        let hop = self.hop.as_ref();
        match Reset::parse(datagram) {
            Some(reset) => hop.is_some_and(|h| h.up() == reset.hop),
            None => hop.is_some_and(|h| Some(h.down()) == a2g::hop_id(datagram)),
        }
    }

    /// Tells whether there is a record to attach with.
    pub const fn has_record(&self) -> bool {
        self.record.is_some()
    }

    /// Takes the agent's newest record; an attachment that waits for one begins.
    pub fn set_record(&mut self, record: String, now: Instant) {
        if self.record.as_ref() == Some(&record) {
            return;
        }
        self.record = Some(record);
        let idle = matches!(self.phase, Phase::Rest | Phase::Waiting { .. });
        if idle && self.hop.is_none() {
            self.begin(now);
        }
    }

    /// Takes where the gateway may be now.
    pub fn set_endpoints(&mut self, mut endpoints: Vec<SocketAddr>, now: Instant) {
        endpoints.truncate(MAX_ENDPOINTS);
        if self.config.endpoints == endpoints {
            return;
        }
        self.config.endpoints = endpoints;
        self.endpoint = 0;
        if self.hop.is_none() && matches!(self.phase, Phase::Handshaking { .. }) {
            self.begin(now);
        }
    }

    /// Returns where the gateway may be.
    pub fn endpoints(&self) -> &[SocketAddr] {
        &self.config.endpoints
    }

    /// Wraps a message to `target`; None while not attached.
    pub fn wrap(
        &mut self,
        target: OverlayIp,
        payload: &[u8],
        now: Instant,
    ) -> Option<(SocketAddr, Vec<u8>)> {
        let hop = self.hop.as_mut()?;
        hop.wrap(self.config.agent, target, payload, now)
    }

    /// Takes a datagram that is this attachment's.
    pub fn handle_datagram(&mut self, from: SocketAddr, bytes: &[u8], now: Instant) -> Inbound {
        match Datagram::classify(bytes) {
            Some(Datagram::WireGuard(kind)) => self.handle_message(from, kind, bytes, now),
            Some(Datagram::Frame) => match Reset::parse(bytes) {
                Some(reset) => self.handle_reset(reset, now),
                None => self.handle_frame(bytes, now),
            },
            Some(Datagram::Channel | Datagram::Discover | Datagram::Stun) | None => {
                Inbound::Dropped(DropReason::DatagramUnknown)
            }
        }
    }

    /// Tells the gateway at once where the agent is now, as after a change of network.
    pub fn announce(&mut self, now: Instant) {
        if self.hop.is_some() {
            self.signal(Kind::Heartbeat, now);
        } else if !matches!(self.phase, Phase::Detached | Phase::Displaced { .. }) {
            self.begin(now);
        }
    }

    /// Attaches anew while the hop carries on, so that the gateway says where it sees us now.
    pub fn renew(&mut self, now: Instant) {
        if self.hop.is_some() && matches!(self.phase, Phase::Rest) {
            self.begin(now);
        }
    }

    /// Keeps quiet until `until` at least, if the agent is attached elsewhere.
    pub fn rest_until(&mut self, until: Instant) {
        if let Phase::Displaced { until: end } = &mut self.phase {
            *end = until.max(*end);
        }
    }

    /// Gives the attachment up until `until`, since the agent is another host's now.
    pub(crate) fn rest(&mut self, until: Instant, now: Instant) {
        if !matches!(self.phase, Phase::Detached) {
            self.detach(now);
            self.phase = Phase::Displaced { until };
        }
    }

    /// Gives the attachment up.
    pub fn detach(&mut self, now: Instant) {
        self.signal(Kind::SessionEnd, now);
        self.hop = None;
        self.session = None;
        self.phase = Phase::Detached;
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.flush_session(now);
        match self.phase {
            Phase::Displaced { until } | Phase::Waiting { until } if now >= until => {
                self.begin(now);
            }
            Phase::Handshaking { retry } if now >= retry => {
                self.endpoint = self.endpoint.wrapping_add(1);
                self.handshake(now);
            }
            Phase::Attaching { retry, tries } if now >= retry && tries < ATTACH_TRIES => {
                self.send_attach(tries + 1, now);
            }
            Phase::Attaching { retry, .. } if now >= retry => self.handshake(now),
            Phase::Rest
            | Phase::Detached
            | Phase::Displaced { .. }
            | Phase::Waiting { .. }
            | Phase::Handshaking { .. }
            | Phase::Attaching { .. } => {}
        }
        self.check_hop(now);
    }

    /// Returns when `handle_timeout` is due and why; None when nothing is.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let phase = match self.phase {
            Phase::Rest | Phase::Detached => None,
            Phase::Displaced { until } => Some((until, "attach after displacement")),
            Phase::Waiting { until } => Some((until, "attach again")),
            Phase::Handshaking { retry } => Some((retry, "gateway handshake")),
            Phase::Attaching { retry, .. } => Some((retry, "attach answer")),
        };
        let session = self.session.as_ref().and_then(Session::poll_timeout);
        let renewing = !matches!(self.phase, Phase::Rest);
        let hop = self.hop.as_ref().map(|hop| hop.poll_timeout(renewing));
        phase.into_iter().chain(session).chain(hop).min()
    }

    /// Returns the next datagram to send, and where to.
    pub fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        self.transmit.pop_front()
    }

    fn handle_message(
        &mut self,
        from: SocketAddr,
        kind: WireGuard,
        bytes: &[u8],
        now: Instant,
    ) -> Inbound {
        let known = self.config.endpoints.contains(&from);
        let Some(session) = self.session.as_mut() else {
            return Inbound::Dropped(DropReason::ChannelUnknown);
        };
        let opened = match kind {
            // No gateway begins a handshake.
            WireGuard::Initiation => return Inbound::Dropped(DropReason::HandshakeUnknown),
            WireGuard::CookieReply if known && session.is_initiating() => {
                session.open_cookie(bytes, now)
            }
            WireGuard::CookieReply | WireGuard::Response | WireGuard::Transport => {
                session.open(bytes, now)
            }
        };
        match opened {
            Opened::Confirmed { reply, .. } => {
                if let Some(sent) = self.timed.take() {
                    self.note_rtt(now.saturating_duration_since(sent));
                }
                // The answer may be to an earlier attempt, at another endpoint.
                let place = self.config.endpoints.iter().position(|at| *at == from);
                self.endpoint = place.unwrap_or(self.endpoint);
                self.send_all(reply);
                self.send_attach(1, now);
                Inbound::Consumed
            }
            Opened::Packet(packet) => match Control::parse(&packet) {
                Some(message) => self.handle_control(from, message, now),
                None => Inbound::Dropped(DropReason::ControlMalformed),
            },
            Opened::Dropped(reason) => Inbound::Dropped(reason),
            Opened::Nothing | Opened::Reply(_) => Inbound::Consumed,
        }
    }

    /// Begins a new attachment; one under way is given up, a hop stays until it is replaced.
    fn begin(&mut self, now: Instant) {
        self.session = None;
        self.phase = Phase::Rest;
        if self.record.is_some() {
            self.handshake(now);
        }
    }

    fn handshake(&mut self, now: Instant) {
        let session = self.session.get_or_insert_with(|| {
            let keys = SessionKeys {
                local: self.config.secret.clone(),
                peer: self.config.key,
                psk: None,
                index: self.config.index,
            };
            Session::new(&keys, now)
        });
        let initiation = session.initiate(now);
        self.send_all(initiation);
        self.timed = (self.attempts == 0).then_some(now);
        self.attempts += 1;
        let longest = if self.is_spare {
            MAX_SPARE_RETRY
        } else {
            MAX_RETRY
        };
        let retry = now + self.backoff(longest);
        self.phase = Phase::Handshaking { retry };
    }

    fn send_attach(&mut self, tries: u32, now: Instant) {
        let (Some(record), Some(session)) = (self.record.clone(), self.session.as_mut()) else {
            return;
        };
        let attach = Control::Attach { record };
        let packets = attach.packets(self.rng.random());
        let sealed: Vec<_> = packets
            .iter()
            .filter_map(|packet| session.seal(packet, now))
            .collect();
        self.send_all(sealed);
        self.phase = Phase::Attaching {
            retry: now + ATTACH_RETRY,
            tries,
        };
    }

    /// Sends what the session's own timers ask for.
    fn flush_session(&mut self, now: Instant) {
        let due = self.session.as_mut().map(|s| s.handle_timeout(now));
        self.send_all(due.into_iter().flatten());
    }

    fn check_hop(&mut self, now: Instant) {
        let Some(hop) = self.hop.as_ref() else {
            return;
        };
        let resting = matches!(self.phase, Phase::Rest);
        if hop.is_lost(now) {
            self.hop = None;
            if resting {
                self.attempts = 0;
                self.begin(now);
            }
            return;
        }
        if hop.is_heartbeat_due(now) {
            self.signal(Kind::Heartbeat, now);
        }
        if resting && self.hop.as_ref().is_some_and(|hop| hop.is_worn(now)) {
            self.begin(now);
        }
    }

    /// Sends a frame without payload to the gateway.
    fn signal(&mut self, kind: Kind, now: Instant) {
        let Some(hop) = self.hop.as_mut() else {
            return;
        };
        let frame = hop.signal(kind, self.config.agent, self.gateway_address, now);
        if let Some(frame) = frame {
            self.push(frame);
        }
    }

    fn send_all(&mut self, messages: impl IntoIterator<Item = Vec<u8>>) {
        let count = self.config.endpoints.len().max(1);
        let Some(to) = self.config.endpoints.get(self.endpoint % count).copied() else {
            return;
        };
        for message in messages {
            self.push((to, message));
        }
    }

    fn push(&mut self, datagram: (SocketAddr, Vec<u8>)) {
        if self.transmit.len() < MAX_TRANSMIT {
            self.transmit.push_back(datagram);
        }
    }

    /// Returns the wait after the attempts so far: doubling, random at its end, at most `longest`.
    fn backoff(&mut self, longest: Duration) -> Duration {
        let jitter = Duration::from_millis(self.rng.random_range(0..RETRY_JITTER_MS));
        let doublings = self.attempts.saturating_sub(1).min(16);
        let wait = FIRST_RETRY.saturating_mul(1 << doublings);
        let most = longest.saturating_sub(Duration::from_millis(RETRY_JITTER_MS));
        wait.min(most) + jitter
    }
}

//! One WireGuard session; the only file that knows boringtun and the rules it is driven by
//! (dataplane.md section 5).
//!
//! boringtun reads its own clock, but moves its timers only in `update_timers`: each call here does
//! that first, and what it wants sent because of it comes out of [`Session::handle_timeout`].

mod timers;

use std::{
    collections::VecDeque,
    fmt,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use boringtun::noise::{
    Packet, Tunn, TunnResult, errors::WireGuardError, handshake::parse_handshake_anon,
    rate_limiter::RateLimiter,
};
use boringtun::x25519::{PublicKey, StaticSecret};

use crate::engine::session::timers::{Sent, Timers};
use crate::id::{TunnelKey, TunnelSecret, hash};
use crate::wire::control::is_control;
use crate::wire::datagram::{Datagram, WireGuard};
use crate::wire::drop::DropReason;

/// How long a session's keys may be used (WireGuard paper section 6.1: Reject-After-Time).
const REJECT_AFTER: Duration = Duration::from_secs(180);

/// How many messages a session's keys may seal (WireGuard paper section 6.1: Reject-After-Messages,
/// rounded down); boringtun does not count.
const REJECT_AFTER_MESSAGES: u64 = 1 << 60;

/// boringtun's timers are looked at once in this time at most, when one of them is due.
const TICK: Duration = Duration::from_millis(250);

/// A packet of the peer is taken before boringtun's timers move when they moved so recently: it calls
/// for a handshake when the peer was not heard for 15 s as soon as something is sent, answered or not.
const ANSWER: Duration = Duration::from_secs(1);

/// Longest random delay of a repeated handshake (WireGuard paper section 6.1); boringtun has none.
const JITTER_MS: u64 = 334;

/// Sessions boringtun keeps, by the low bits of their index.
const RING: u32 = 8;

/// Messages waiting for `handle_timeout`; more than one handshake and one keepalive is not useful.
const MAX_WAITING: usize = 4;

/// Longest UDP payload; boringtun panics on a destination shorter than its message.
const MAX_DATAGRAM: usize = 65_535; // bytes

/// Room for any handshake message.
const HANDSHAKE: usize = 148; // bytes

/// What boringtun adds to a packet: header and tag.
pub(crate) const OVERHEAD: usize = 32; // bytes

/// What a session is made of.
#[derive(Clone, Debug)]
pub struct SessionKeys {
    pub local: TunnelSecret,
    pub peer: TunnelKey,
    /// None between an agent and a gateway.
    pub psk: Option<[u8; 32]>,
    /// 24 random bits that no other session of this socket has.
    pub index: u32,
}

/// What a datagram was.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Opened {
    /// The session became confirmed: packets can be sealed. At the initiator `reply` is to be sent,
    /// at the responder `packet` may hold the packet that confirmed it.
    Confirmed {
        reply: Option<Vec<u8>>,
        packet: Option<Vec<u8>>,
    },
    Dropped(DropReason),
    /// Authentic, and nothing to do.
    Nothing,
    /// An IP packet of the peer.
    Packet(Vec<u8>),
    /// The answer to the peer's handshake, to be sent.
    Reply(Vec<u8>),
}

/// A WireGuard session with one peer, over all its handshakes.
pub struct Session {
    tunn: Tunn,
    index: u32,
    /// Mirrors which sessions boringtun holds.
    ring: [Option<Keys>; RING as usize],
    /// Index of the keys packets are sealed with; None before the first confirmed ones.
    current: Option<u32>,
    /// When the unanswered handshake began; None when there is none.
    handshake: Option<Instant>,
    /// Messages boringtun wanted sent, and when.
    waiting: VecDeque<(Instant, Vec<u8>)>,
    repeats: u64,
    sealed: u64,
    last_tick: Instant,
    timers: Timers,
    last_received: Option<Instant>,
    last_sent: Option<Instant>,
}

#[derive(Clone, Copy)]
struct Keys {
    index: u32,
    since: Instant,
    confirmed: bool,
}

impl Keys {
    /// Returns when boringtun wipes them, if it is asked then.
    fn end(&self) -> Instant {
        self.since + REJECT_AFTER + TICK
    }
}

impl Session {
    /// Makes a session that waits for either end to begin.
    pub fn new(keys: &SessionKeys, now: Instant) -> Self {
        let index = keys.index & 0x00ff_ffff;
        // No limiter is passed in: one shared with the listening path would count twice.
        let tunn = Tunn::new(
            keys.local.x25519(),
            keys.peer.x25519(),
            keys.psk,
            None,
            index,
            None,
        );
        Self {
            tunn,
            index,
            ring: [None; RING as usize],
            current: None,
            handshake: None,
            waiting: VecDeque::new(),
            repeats: 0,
            sealed: 0,
            last_tick: now,
            timers: Timers::default(),
            last_received: None,
            last_sent: None,
        }
    }

    /// Returns the 24-bit index.
    pub const fn index(&self) -> u32 {
        self.index
    }

    /// Tells whether messages to `receiver_index` are for this session.
    pub const fn owns(&self, receiver_index: u32) -> bool {
        receiver_index >> 8 == self.index
    }

    /// Tells whether packets can be sealed: both ends are known to have the keys.
    pub fn is_confirmed(&self, now: Instant) -> bool {
        self.current_keys()
            .is_some_and(|keys| keys.confirmed && now < keys.since + REJECT_AFTER)
    }

    /// Tells whether a handshake of this end is unanswered.
    pub const fn is_initiating(&self) -> bool {
        self.handshake.is_some()
    }

    /// Returns when the last packet of the peer came, control messages aside.
    pub const fn last_received(&self) -> Option<Instant> {
        self.last_received
    }

    /// Returns when the last packet was sealed, control messages aside.
    pub const fn last_sent(&self) -> Option<Instant> {
        self.last_sent
    }

    /// Takes that user data of the peer came past the session, sealed by a channel made in it.
    pub fn note_received(&mut self, now: Instant) {
        self.last_received = self.last_received.max(Some(now));
    }

    /// Takes that user data went past the session.
    pub fn note_sent(&mut self, now: Instant) {
        self.last_sent = self.last_sent.max(Some(now));
    }

    /// Begins a new handshake, whatever is under way; the message is to be sent.
    pub fn initiate(&mut self, now: Instant) -> Option<Vec<u8>> {
        self.tick(now);
        self.waiting.retain(|(_, message)| !is_initiation(message));
        let mut buffer = vec![0; HANDSHAKE];
        let TunnResult::WriteToNetwork(message) =
            self.tunn.format_handshake_initiation(&mut buffer, true)
        else {
            return None;
        };
        let length = message.len();
        buffer.truncate(length);
        self.handshake.get_or_insert(now);
        self.timers.sent(Sent::Initiation, now);
        Some(buffer)
    }

    /// Seals an IP packet; None while the session is not confirmed, or when its keys are used up.
    pub fn seal(&mut self, plain: &[u8], now: Instant) -> Option<Vec<u8>> {
        self.tick(now);
        // boringtun would queue the packet, and start a handshake of its own.
        if !self.is_confirmed(now) || self.sealed >= REJECT_AFTER_MESSAGES {
            return None;
        }
        let mut buffer = vec![0; (plain.len() + OVERHEAD).max(HANDSHAKE)];
        let TunnResult::WriteToNetwork(message) = self.tunn.encapsulate(plain, &mut buffer) else {
            return None;
        };
        let length = message.len();
        buffer.truncate(length);
        self.sealed += 1;
        let is_empty = plain.is_empty();
        let what = if is_empty {
            Sent::Keepalive
        } else {
            Sent::Data
        };
        self.timers.sent(what, now);
        if !plain.is_empty() && !is_control(plain) {
            self.last_sent = Some(now);
        }
        Some(buffer)
    }

    /// Takes a WireGuard message; cookie replies are dropped (see [`Session::open_cookie`]).
    pub fn open(&mut self, datagram: &[u8], now: Instant) -> Opened {
        match Datagram::classify(datagram) {
            Some(Datagram::WireGuard(WireGuard::CookieReply)) => {
                Opened::Dropped(DropReason::CookieReply)
            }
            Some(Datagram::WireGuard(kind)) => self.open_kind(kind, datagram, now),
            Some(Datagram::Channel | Datagram::Discover | Datagram::Frame | Datagram::Stun)
            | None => Opened::Dropped(DropReason::DatagramMalformed),
        }
    }

    /// Takes a cookie reply; only for one from where a handshake of this session was sent.
    pub fn open_cookie(&mut self, datagram: &[u8], now: Instant) -> Opened {
        self.open_kind(WireGuard::CookieReply, datagram, now)
    }

    /// Returns the messages that are due.
    pub fn handle_timeout(&mut self, now: Instant) -> Vec<Vec<u8>> {
        self.tick(now);
        let (due, later) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|(at, _)| *at <= now);
        self.waiting = later;
        let due: VecDeque<(Instant, Vec<u8>)> = due;
        due.into_iter().map(|(_, message)| message).collect()
    }

    /// Returns when `handle_timeout` is due and why; None when nothing is alive.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let waiting = self
            .waiting
            .iter()
            .map(|(at, _)| (*at, "wireguard message"));
        let tick = self.timers.due().map(|at| (at, "wireguard timers"));
        let ends = self.ring.iter().flatten().map(Keys::end).min();
        let ends = ends.map(|at| (at, "wireguard keys end"));
        let soonest = self.last_tick + TICK;
        let ticks = tick.into_iter().chain(ends);
        let ticks = ticks.map(|(at, why)| (at.max(soonest), why));
        waiting.chain(ticks).min()
    }

    fn open_kind(&mut self, kind: WireGuard, datagram: &[u8], now: Instant) -> Opened {
        let is_prompt = kind == WireGuard::Transport && now < self.last_tick + ANSWER;
        let is_answer = is_prompt && self.timers.is_silent(now);
        if !is_answer {
            self.tick(now);
        }
        let opened = self.open_ticked(kind, datagram, now);
        if is_answer {
            self.tick(now);
        }
        opened
    }

    fn open_ticked(&mut self, kind: WireGuard, datagram: &[u8], now: Instant) -> Opened {
        if datagram.is_empty() || datagram.len() > MAX_DATAGRAM {
            return Opened::Dropped(DropReason::DatagramMalformed);
        }
        let mut buffer = vec![0; datagram.len().max(HANDSHAKE)];
        // Without a source address boringtun never answers with a cookie, as no node may.
        let length = match self.tunn.decapsulate(None, datagram, &mut buffer) {
            TunnResult::WriteToNetwork(out)
            | TunnResult::WriteToTunnelV4(out, _)
            | TunnResult::WriteToTunnelV6(out, _) => Some(out.len()),
            TunnResult::Done => None,
            TunnResult::Err(error) => return Opened::Dropped(reason(&error)),
        };
        buffer.truncate(length.unwrap_or(0));
        let made = length.map(|_| buffer);
        match (kind, made) {
            (WireGuard::Initiation, Some(reply)) => self.responded(reply, now),
            (WireGuard::Response, Some(reply)) => self.answered(reply, datagram, now),
            (WireGuard::Transport, packet) => self.received(packet, datagram, now),
            (WireGuard::CookieReply, _) => {
                self.timers.received(false, now);
                Opened::Nothing
            }
            (WireGuard::Initiation | WireGuard::Response, _) => Opened::Nothing,
        }
    }

    /// The peer began: its answer goes out, and nothing is sealed until it is used.
    fn responded(&mut self, reply: Vec<u8>, now: Instant) -> Opened {
        if let Some(index) = word(&reply, 4) {
            self.keep(index, now, false);
        }
        // boringtun does not repeat one of ours any more, though it would still take the answer.
        self.handshake = None;
        self.timers.received(false, now);
        self.timers.sent(Sent::Handshake, now);
        self.timers.established(false, now);
        Opened::Reply(reply)
    }

    /// The peer answered our handshake.
    fn answered(&mut self, reply: Vec<u8>, datagram: &[u8], now: Instant) -> Opened {
        self.handshake = None;
        self.repeats = 0;
        self.timers.received(false, now);
        self.timers.established(true, now);
        if let Some(index) = word(datagram, 8) {
            self.keep(index, now, true);
            self.use_keys(index);
        }
        Opened::Confirmed {
            reply: Some(reply),
            packet: None,
        }
    }

    /// A transport message opened; the first one under new keys confirms them.
    fn received(&mut self, packet: Option<Vec<u8>>, datagram: &[u8], now: Instant) -> Opened {
        // boringtun's time is that of the last tick.
        self.timers.received(packet.is_some(), self.last_tick);
        if packet.as_ref().is_some_and(|packet| !is_control(packet)) {
            self.last_received = Some(now);
        }
        let index = word(datagram, 4).unwrap_or_default();
        let keys = self.ring.get_mut(slot(index)).and_then(Option::as_mut);
        let confirms = keys.is_some_and(|keys| {
            let first = keys.index == index && !keys.confirmed;
            keys.confirmed |= first;
            first
        });
        if confirms {
            self.use_keys(index);
            return Opened::Confirmed {
                reply: None,
                packet,
            };
        }
        packet.map_or(Opened::Nothing, Opened::Packet)
    }

    fn keep(&mut self, index: u32, since: Instant, confirmed: bool) {
        if let Some(place) = self.ring.get_mut(slot(index)) {
            *place = Some(Keys {
                index,
                since,
                confirmed,
            });
        }
    }

    /// Seals with these keys from now on, unless those in use are newer.
    fn use_keys(&mut self, index: u32) {
        let since = |keys: Option<&Keys>| keys.map(|k| k.since);
        let new = self.ring.get(slot(index)).and_then(Option::as_ref);
        if since(new) >= since(self.current_keys()) {
            self.current = Some(index);
            self.sealed = 0;
        }
    }

    fn current_keys(&self) -> Option<&Keys> {
        let index = self.current?;
        let keys = self.ring.get(slot(index))?.as_ref();
        keys.filter(|keys| keys.index == index)
    }

    /// Moves boringtun's timers to now.
    fn tick(&mut self, now: Instant) {
        self.last_tick = self.last_tick.max(now);
        let mut buffer = [0; HANDSHAKE + OVERHEAD];
        match self.tunn.update_timers(&mut buffer) {
            TunnResult::WriteToNetwork(message) => {
                let message = message.to_vec();
                let mut due = now;
                let mut what = Sent::Keepalive;
                if is_initiation(&message) {
                    due += self.jitter();
                    self.handshake.get_or_insert(now);
                    what = Sent::Initiation;
                }
                self.timers.sent(what, now);
                if self.waiting.len() >= MAX_WAITING {
                    self.waiting.pop_front();
                }
                self.waiting.push_back((due, message));
            }
            TunnResult::Err(_) => {
                // Not terminal, but boringtun has forgotten all its sessions.
                self.ring = [None; RING as usize];
                self.current = None;
                self.handshake = None;
                self.timers.clear();
            }
            TunnResult::Done
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => self.timers.had_nothing(now),
        }
        self.forget_ended(now);
    }

    /// Forgets keys whose time is over, as boringtun just did.
    fn forget_ended(&mut self, now: Instant) {
        for place in &mut self.ring {
            if place.is_some_and(|keys| now >= keys.end()) {
                *place = None;
            }
        }
    }

    fn jitter(&mut self) -> Duration {
        self.repeats += 1;
        let random = hash(&[
            b"jitter",
            &self.index.to_be_bytes(),
            &self.repeats.to_be_bytes(),
        ]);
        let random = u64::from(u16::from_be_bytes([random[0], random[1]]));
        Duration::from_millis(random % JITTER_MS)
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("index", &self.index)
            .field("current", &self.current)
            .field("handshake", &self.handshake)
            .finish_non_exhaustive()
    }
}

/// What listens for handshakes to one key: tells who began, and answers with cookies under load.
pub struct Listener {
    secret: StaticSecret,
    public: PublicKey,
    limiter: RateLimiter,
}

/// What is to be done with a handshake message.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Screened {
    /// Too many came: this answer is to be sent instead.
    Cookie(Vec<u8>),
    Dropped(DropReason),
    Pass,
}

impl Listener {
    /// Makes a listener that answers with cookies beyond `per_second` handshake messages.
    pub fn new(local: &TunnelSecret, per_second: u64) -> Self {
        let secret = local.x25519();
        let public = PublicKey::from(&secret);
        let limiter = RateLimiter::new(&public, per_second);
        Self {
            secret,
            public,
            limiter,
        }
    }

    /// Checks a handshake message's MACs; the cookie covers address and port.
    pub fn screen(&self, from: SocketAddr, datagram: &[u8]) -> Screened {
        self.limiter.reset_count();
        let mut cookie = [0; 64];
        match self
            .limiter
            .verify_packet(Some(whole_address(from)), datagram, &mut cookie)
        {
            Ok(_) => Screened::Pass,
            Err(TunnResult::WriteToNetwork(cookie)) => Screened::Cookie(cookie.to_vec()),
            Err(TunnResult::Err(error)) => Screened::Dropped(reason(&error)),
            Err(
                TunnResult::Done
                | TunnResult::WriteToTunnelV4(..)
                | TunnResult::WriteToTunnelV6(..),
            ) => Screened::Dropped(DropReason::SessionInvalid),
        }
    }

    /// Returns the key that a screened handshake initiation claims, and proves to know only once
    /// its session is confirmed.
    pub fn initiator(&self, datagram: &[u8]) -> Option<TunnelKey> {
        let Ok(Packet::HandshakeInit(initiation)) = Tunn::parse_incoming_packet(datagram) else {
            return None;
        };
        let half = parse_handshake_anon(&self.secret, &self.public, &initiation).ok()?;
        Some(TunnelKey::from_bytes(half.peer_static_public))
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Listener")
    }
}

/// Returns the key that a handshake initiation to `local` claims; None when it is to another key.
pub fn initiator(local: &TunnelSecret, datagram: &[u8]) -> Option<TunnelKey> {
    let listener = Listener::new(local, u64::MAX);
    let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
    match listener.screen(nowhere, datagram) {
        Screened::Pass => listener.initiator(datagram),
        Screened::Cookie(_) | Screened::Dropped(_) => None,
    }
}

/// Returns the receiver index of a WireGuard message; None for initiations and other datagrams.
pub fn receiver_index(datagram: &[u8]) -> Option<u32> {
    let Some(Datagram::WireGuard(kind)) = Datagram::classify(datagram) else {
        return None;
    };
    match kind {
        WireGuard::Initiation => None,
        WireGuard::Response => word(datagram, 8),
        WireGuard::CookieReply | WireGuard::Transport => word(datagram, 4),
    }
}

/// boringtun's cookies cover an IP address only; this one stands for address and port.
fn whole_address(from: SocketAddr) -> IpAddr {
    let text = from.to_string();
    let hashed = hash(&[b"cookie", text.as_bytes()]);
    let (half, _) = hashed
        .split_first_chunk::<16>()
        .expect("32 is more than 16");
    IpAddr::from(*half)
}

fn is_initiation(message: &[u8]) -> bool {
    message.first() == Some(&1)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*word))
}

const fn slot(index: u32) -> usize {
    (index % RING) as usize
}

const fn reason(error: &WireGuardError) -> DropReason {
    match error {
        WireGuardError::WrongTai64nTimestamp => DropReason::HandshakeReplayed,
        WireGuardError::DuplicateCounter | WireGuardError::InvalidCounter => {
            DropReason::SessionInvalid
        }
        WireGuardError::NoCurrentSession | WireGuardError::WrongIndex => DropReason::ChannelUnknown,
        WireGuardError::UnderLoad => DropReason::HandshakeLimited,
        WireGuardError::InvalidPacket
        | WireGuardError::IncorrectPacketLength
        | WireGuardError::WrongPacketType => DropReason::DatagramMalformed,
        WireGuardError::ConnectionExpired
        | WireGuardError::DestinationBufferTooSmall
        | WireGuardError::InvalidAeadTag
        | WireGuardError::InvalidMac
        | WireGuardError::InvalidTai64nTimestamp
        | WireGuardError::LockFailed
        | WireGuardError::UnexpectedPacket
        | WireGuardError::WrongKey => DropReason::SessionInvalid,
    }
}

#[cfg(test)]
mod tests;

mod channel;
mod relay;
mod tell;
mod ways;

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::engine::{
    Travel,
    channel::{ChannelAgent, ChannelConfig, Route},
    gossip::Gossip,
    installed::Install,
    limits::Bucket,
    membership::Trusted,
    path::{Doubt, Mode, Path, PathAgent},
    session::{Opened, Session, SessionKeys},
};
use crate::id::{OverlayIp, TunnelSecret};
use crate::wire::{
    control::is_control,
    datagram::{Datagram, WireGuard},
    drop::DropReason,
    part::Reassembler,
};

use relay::Relay;
pub(crate) use relay::RelayWay;

/// Packets that may wait for a session; a TCP connection's first flight and a few look-ups.
const MAX_QUEUE: usize = 64;

/// First pause before a handshake is tried again; doubled up to [`MAX_RETRY`].
///
/// WireGuard waits 5 s (its REKEY_TIMEOUT); the peer or a gateway may just have restarted.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// Longest pause between handshakes while packets want to go.
const MAX_RETRY: Duration = Duration::from_secs(5);

/// How long packets may want to go before we give up (WireGuard's REKEY_ATTEMPT_TIME).
const GIVE_UP: Duration = Duration::from_secs(90);

/// Silence after sending that means the other end lost the session (protocol.md section 6).
const SILENCE: Duration = Duration::from_secs(5);

/// Shortest time between handshakes caused by packets of a session we do not know.
const UNKNOWN_SESSION: Duration = Duration::from_secs(5);

/// After this a rekey on a direct path is tried through the gateways too (protocol.md section 6).
const REKEY_ELSEWHERE: Duration = Duration::from_secs(1);

/// Probes of the peer that are answered: above the 20 per second that its paths need, and so few
/// that a peer that forges their source makes no flood of the answers.
const ANSWERS_PER_SECOND: u32 = 30;
const ANSWERS_BURST: u32 = 60;

/// Where the ephemeral key of an initiation is (WireGuard paper section 5.4.2): it tells copies of
/// one message, which came by several paths, from a repeated handshake.
const EPHEMERAL: std::ops::Range<usize> = 8..40;

/// What a peer wants done with the outside world.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum PeerOutput {
    /// A WireGuard message for the peer, and the way it goes.
    Datagram(Path, Vec<u8>),
    /// The same, which travels in a way of its own.
    Alone(Path, Vec<u8>, Travel),
    /// Sockets are to be opened towards this endpoint of the peer, by these messages.
    Open(SocketAddr, Vec<Vec<u8>>),
    /// Our endpoint may have changed.
    Doubt(Doubt),
    /// A packet that waited goes no further.
    Dropped(DropReason, Vec<u8>),
    /// A plain packet from the peer, user data or a control message, and the way it came.
    Packet(Path, Vec<u8>),
}

/// What a peer is made of.
#[derive(Clone, Debug)]
pub(crate) struct PeerConfig {
    pub(crate) local: TunnelSecret,
    /// 24 random bits that no other session has.
    pub(crate) index: u32,
    /// 32 random bytes.
    pub(crate) seed: [u8; 32],
    pub(crate) mode: Mode,
    /// Whether we choose the gateway rather than the peer.
    pub(crate) is_leader: bool,
    pub(crate) channel: ChannelConfig,
}

/// Whether packets flow to a peer now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PeerState {
    /// Nothing wanted to go, so no session was made.
    Idle,
    Handshaking,
    Up,
}

/// Figures of a peer since the daemon started.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PeerStats {
    /// Plain bytes from the peer.
    pub received: u64,
    /// Plain bytes to the peer.
    pub sent: u64,
    /// Last authenticated message of the peer; None before the first.
    pub last_received: Option<Instant>,
    /// Last confirmed handshake; None before the first.
    pub last_handshake: Option<Instant>,
    /// Confirmed handshakes.
    pub handshakes: u64,
}

#[derive(Clone, Copy, Debug)]
struct Handshake {
    since: Instant,
    retry_at: Instant,
    pause: Duration,
}

/// An installed peer: consent stands both ways, so its key is known to the tunnel.
#[derive(Debug)]
pub(crate) struct Peer {
    trusted: Trusted,
    session: Session,
    queue: VecDeque<Vec<u8>>,
    /// None while no handshake of ours is under way.
    handshake: Option<Handshake>,
    /// When we sent what nothing answered yet; None when all is answered.
    unanswered: Option<Instant>,
    /// Last handshake caused by an unknown session; None before the first.
    unknown: Option<Instant>,
    path: PathAgent,
    relay: Relay,
    /// When a rekey that went directly goes by the gateways too; None when none is unanswered.
    elsewhere: Option<Instant>,
    /// Ephemeral key of the last initiation of the peer; None before the first.
    initiation: Option<Vec<u8>>,
    /// Whether it, or a copy of it, came directly.
    began_directly: bool,
    /// Packets of user data from the peer, wrapping, as its probes are told.
    counted: u32,
    /// Answers to its probes that may go.
    answers: Bucket,
    stats: PeerStats,
    channel: ChannelAgent,
    /// Whether the session is new and no channel was made in it yet.
    channel_waits: bool,
    /// The way that was last told for sealed packets; None while there is no channel.
    routed: Option<Route>,
    /// The size that was last told for packets; None when it is not known.
    told_mtu: Option<u16>,
    /// When the peer is told that its data arrives; None while ours tells it.
    keepalive: Option<Instant>,
    gossip: Gossip,
    /// Whether what is to be told waits until user data flows again.
    gossip_waits: bool,
    /// Messages of the peer that come in parts.
    parts: Reassembler,
    /// Number of our last message in parts.
    message: u32,
}

impl Install for Peer {
    fn index(&self) -> u32 {
        self.session.index()
    }

    fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let retry = self.handshake.map(|h| (h.retry_at, "handshake retry"));
        let silence = match self.handshake {
            None => self.unanswered.map(|at| (at + SILENCE, "peer is silent")),
            Some(_) => None,
        };
        let elsewhere = self.elsewhere.map(|at| (at, "rekey by the gateways"));
        let (session, path) = (self.session.poll_timeout(), self.path.poll_timeout());
        let gossip = self.gossip_timeout().map(|at| (at, "gossip"));
        let channel = self.channel_timeout();
        [retry, silence, elsewhere, session, path, gossip, channel]
            .into_iter()
            .flatten()
            .min()
    }
}

impl Peer {
    pub(crate) fn new(trusted: Trusted, config: PeerConfig, now: Instant) -> Self {
        let (peer, psk) = (trusted.tunnel, Some(trusted.psk));
        let keys = SessionKeys {
            local: config.local,
            peer,
            psk,
            index: config.index,
        };
        Self {
            trusted,
            session: Session::new(&keys, now),
            queue: VecDeque::new(),
            handshake: None,
            unanswered: None,
            unknown: None,
            path: PathAgent::new(config.mode, config.seed, now),
            relay: Relay::new(config.is_leader),
            elsewhere: None,
            initiation: None,
            began_directly: false,
            counted: 0,
            answers: Bucket::new(ANSWERS_PER_SECOND, ANSWERS_BURST, now),
            stats: PeerStats::default(),
            channel: ChannelAgent::new(config.channel, now),
            channel_waits: false,
            routed: None,
            told_mtu: None,
            keepalive: None,
            gossip: Gossip::default(),
            gossip_waits: false,
            parts: Reassembler::default(),
            message: 0,
        }
    }

    pub(crate) const fn trusted(&self) -> &Trusted {
        &self.trusted
    }

    /// Takes what changed in trust; a new tunnel key needs a new peer instead.
    pub(crate) fn update(&mut self, trusted: Trusted) {
        self.trusted = trusted;
    }

    pub(crate) const fn address(&self) -> OverlayIp {
        self.trusted.member.address
    }

    pub(crate) const fn stats(&self) -> PeerStats {
        self.stats
    }

    pub(crate) fn state(&self, now: Instant) -> PeerState {
        if self.session.is_confirmed(now) {
            return PeerState::Up;
        }
        if self.handshake.is_some() {
            PeerState::Handshaking
        } else {
            PeerState::Idle
        }
    }

    /// Returns since when a handshake of ours is unanswered; None when none is.
    pub(crate) fn asked(&self) -> Option<Instant> {
        self.handshake.map(|handshake| handshake.since)
    }

    /// Returns when user data last went either way; None before any.
    pub(crate) fn last_data(&self) -> Option<Instant> {
        self.session.last_received().max(self.session.last_sent())
    }

    /// Seals a packet, or keeps it until there is a session.
    pub(crate) fn send(
        &mut self,
        packet: &[u8],
        now: Instant,
        out: &mut Vec<PeerOutput>,
    ) -> Result<(), DropReason> {
        if self.session.is_confirmed(now) && self.path.current().is_none() {
            return Err(DropReason::NoPath);
        }
        if self.send_now(packet, now, out) {
            self.drain(now, out);
            return Ok(());
        }
        self.wake(now, out);
        if self.queue.len() >= MAX_QUEUE {
            return Err(DropReason::PeerQueueFull);
        }
        self.queue.push_back(packet.to_vec());
        Ok(())
    }

    fn send_now(&mut self, packet: &[u8], now: Instant, out: &mut Vec<PeerOutput>) -> bool {
        let Some(path) = self.path.current() else {
            return false;
        };
        let Some(sealed) = self.session.seal(packet, now) else {
            return false;
        };
        self.stats.sent = self.stats.sent.saturating_add(packet.len() as u64);
        self.unanswered.get_or_insert(now);
        if !is_control(packet) {
            self.path.handle_sent(now);
        }
        out.push(PeerOutput::Datagram(path, sealed));
        true
    }

    /// Makes a session if there is none; costs one small packet if the peer is away.
    pub(crate) fn wake(&mut self, now: Instant, out: &mut Vec<PeerOutput>) {
        if !self.session.is_confirmed(now) && self.handshake.is_none() {
            self.begin(now, out);
        }
    }

    /// Returns the packets that wait for a session, now that none is to be had any more.
    pub(crate) fn into_waiting(self) -> impl Iterator<Item = Vec<u8>> {
        self.queue.into_iter()
    }

    pub(crate) const fn is_handshaking(&self) -> bool {
        self.handshake.is_some()
    }

    /// Repeats an unanswered handshake at once, as when a way to the peer was found.
    pub(crate) fn try_again(&mut self, now: Instant, out: &mut Vec<PeerOutput>) {
        if self.handshake.is_some() {
            self.begin(now, out);
        }
    }

    fn begin(&mut self, now: Instant, out: &mut Vec<PeerOutput>) {
        if !self.session.is_confirmed(now) {
            self.path.handle_no_session();
        }
        let initiation = self.session.initiate(now);
        self.send_everywhere(initiation, out);
        let retry_at = now + FIRST_RETRY;
        self.handshake = Some(Handshake {
            since: now,
            retry_at,
            pause: FIRST_RETRY,
        });
    }

    /// Takes a WireGuard message that claims to be from this peer and came on `from`.
    pub(crate) fn receive(
        &mut self,
        from: Path,
        message: &[u8],
        now: Instant,
        out: &mut Vec<PeerOutput>,
    ) -> Result<(), DropReason> {
        let kind = Datagram::classify(message);
        let is_initiation = kind == Some(Datagram::WireGuard(WireGuard::Initiation));
        let ephemeral = message.get(EPHEMERAL).filter(|_| is_initiation);
        let ephemeral = ephemeral.map(<[u8]>::to_vec);
        if is_initiation && self.initiation == ephemeral {
            self.began_directly |= from != Path::Relay;
            return Err(DropReason::HandshakeReplayed);
        }
        match self.session.open(message, now) {
            Opened::Confirmed { reply, packet } => {
                // The initiator's reply confirms the session to the peer, so it goes first.
                let is_answered = reply.is_some();
                self.send_everywhere(reply, out);
                if !is_answered && !self.began_directly {
                    self.path.handle_new_beginning(now);
                }
                self.confirmed(now, out);
                if !is_answered {
                    self.path.handle_authenticated(from, false, now);
                }
                out.extend(packet.map(|packet| self.received(from, packet, now)));
            }
            Opened::Reply(reply) => {
                self.initiation = ephemeral;
                self.began_directly = from != Path::Relay;
                let mut ways = self.everywhere();
                if !ways.contains(&from) {
                    ways.push(from);
                }
                let copies = ways.into_iter().map(|way| (way, reply.clone()));
                out.extend(copies.map(|(way, reply)| PeerOutput::Datagram(way, reply)));
            }
            Opened::Packet(packet) => {
                self.heard(now);
                let packet = self.received(from, packet, now);
                out.push(packet);
            }
            Opened::Nothing => {
                self.heard(now);
                if kind == Some(Datagram::WireGuard(WireGuard::Transport)) {
                    self.path.handle_authenticated(from, false, now);
                }
            }
            Opened::Dropped(reason) => {
                // A refused timestamp is a peer whose clock went back: it needs our handshake. An
                // unknown session is believed only of a gateway, which knows whom a frame is from.
                let is_unknown = reason == DropReason::ChannelUnknown && from == Path::Relay;
                if is_unknown || reason == DropReason::HandshakeReplayed {
                    self.unknown_session(now, out);
                }
                return Err(reason);
            }
        }
        self.drain(now, out);
        Ok(())
    }

    fn received(&mut self, from: Path, packet: Vec<u8>, now: Instant) -> PeerOutput {
        self.stats.received = self.stats.received.saturating_add(packet.len() as u64);
        let is_data = !is_control(&packet);
        if is_data {
            self.counted = self.counted.wrapping_add(1);
            // A channel would carry it, if the peer had not lost those before the session.
            if let Some(made) = self.stats.last_handshake {
                self.channel.forget(made);
            }
        }
        self.path.handle_authenticated(from, is_data, now);
        PeerOutput::Packet(from, packet)
    }

    fn heard(&mut self, now: Instant) {
        self.stats.last_received = Some(now);
        self.unanswered = None;
    }

    fn confirmed(&mut self, now: Instant, out: &mut Vec<PeerOutput>) {
        self.heard(now);
        self.stats.last_handshake = Some(now);
        self.stats.handshakes += 1;
        self.handshake = None;
        self.elsewhere = None;
        self.path.handle_session(now);
        self.channel_waits = true;
        self.gossip.handle_session(now);
        for packet in std::mem::take(&mut self.queue) {
            if !self.send_now(&packet, now, out) {
                out.push(PeerOutput::Dropped(DropReason::NoPath, packet));
            }
        }
    }

    /// One of us restarted: the peer uses a session that we do not have, so we make a new one.
    fn unknown_session(&mut self, now: Instant, out: &mut Vec<PeerOutput>) {
        let recently = self.unknown.is_some_and(|at| now < at + UNKNOWN_SESSION);
        if !recently && self.handshake.is_none() {
            self.unknown = Some(now);
            self.begin(now, out);
        }
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant, out: &mut Vec<PeerOutput>) {
        for message in self.session.handle_timeout(now) {
            self.send_session(message, now, out);
        }
        if self.elsewhere.is_some_and(|at| now >= at) {
            // The same message would be refused where the first one arrived.
            self.elsewhere = None;
            let initiation = self.session.initiate(now);
            self.send_everywhere(initiation, out);
        }
        self.path.handle_timeout(now);
        self.handle_channel_timeout(now, out);
        self.drain(now, out);
        if let Some(handshake) = self.handshake.filter(|h| now >= h.retry_at) {
            self.retry(handshake, now, out);
        }
        let silent = self.unanswered.is_some_and(|at| now >= at + SILENCE);
        if silent && self.handshake.is_none() {
            self.unanswered = None;
            self.begin(now, out);
        }
    }

    fn retry(&mut self, handshake: Handshake, now: Instant, out: &mut Vec<PeerOutput>) {
        if now >= handshake.since + GIVE_UP {
            self.handshake = None;
            let given_up = self.queue.drain(..);
            out.extend(given_up.map(|one| PeerOutput::Dropped(DropReason::NoSession, one)));
            return;
        }
        let pause = (handshake.pause * 2).min(MAX_RETRY);
        self.handshake = Some(Handshake {
            retry_at: now + pause,
            pause,
            ..handshake
        });
        let initiation = self.session.initiate(now);
        self.send_everywhere(initiation, out);
    }
}

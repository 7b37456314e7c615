use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::engine::{
    PeerState, PeerStats,
    installed::Install,
    session::{Opened, Session, SessionKeys},
    wireguard::{WireGuard, is_inside},
};
use crate::id::{OverlayIp, TunnelSecret, UnixTime};
use crate::statement::Scope;
use crate::wire::{
    datagram::{Datagram, WireGuard as Kind},
    drop::DropReason,
};

/// Packets that may wait for a session; a TCP connection's first flight and a few look-ups.
const MAX_QUEUE: usize = 64;

/// Pause between handshakes while packets want to go (WireGuard's REKEY_TIMEOUT).
const RETRY: Duration = Duration::from_secs(5);

/// How long packets may want to go before we give up (WireGuard's REKEY_ATTEMPT_TIME).
const GIVE_UP: Duration = Duration::from_secs(90);

/// What a peer wants done with the outside world.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum PlainOutput {
    /// A message for the peer, and where it goes.
    Datagram(SocketAddr, Vec<u8>),
    /// A packet that waited goes no further.
    Dropped(DropReason, Vec<u8>),
    /// A packet of the peer.
    Packet(Vec<u8>),
}

#[derive(Clone, Copy, Debug)]
struct Handshake {
    since: Instant,
    retry_at: Instant,
}

/// An installed peer that speaks only WireGuard: sessions and packets, and nothing of ours inside.
#[derive(Debug)]
pub(crate) struct PlainPeer {
    kept: WireGuard,
    /// What it may reach here; all must allow.
    inbound: Vec<Scope>,
    /// When our own membership, by which it is installed, ends.
    until: UnixTime,
    session: Session,
    /// Where the last authentic message came from, or where it is looked for.
    endpoint: Option<SocketAddr>,
    queue: VecDeque<Vec<u8>>,
    /// None while no handshake of ours is under way.
    handshake: Option<Handshake>,
    stats: PeerStats,
}

impl Install for PlainPeer {
    fn index(&self) -> u32 {
        self.session.index()
    }

    fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let retry = self.handshake.map(|h| (h.retry_at, "handshake retry"));
        retry.into_iter().chain(self.session.poll_timeout()).min()
    }
}

impl PlainPeer {
    /// Makes a peer that waits for either end to begin; `index` is 24 random bits that no other
    /// session has.
    pub(crate) fn new(kept: WireGuard, local: &TunnelSecret, index: u32, now: Instant) -> Self {
        let keys = SessionKeys {
            local: local.clone(),
            peer: kept.key.tunnel(),
            psk: kept.preshared_key.as_ref().map(|key| *key.as_bytes()),
            index,
        };
        Self {
            session: Session::new(&keys, now),
            endpoint: kept.endpoint,
            kept,
            inbound: Vec::new(),
            until: UnixTime::default(),
            queue: VecDeque::new(),
            handshake: None,
            stats: PeerStats::default(),
        }
    }

    pub(crate) const fn kept(&self) -> &WireGuard {
        &self.kept
    }

    pub(crate) fn inbound(&self) -> &[Scope] {
        &self.inbound
    }

    pub(crate) const fn until(&self) -> UnixTime {
        self.until
    }

    /// Takes what it may reach here, and until when; tells whether the former changed.
    pub(crate) fn update(&mut self, inbound: Vec<Scope>, until: UnixTime) -> bool {
        self.until = until;
        let changed = self.inbound != inbound;
        self.inbound = inbound;
        changed
    }

    pub(crate) const fn address(&self) -> OverlayIp {
        self.kept.address
    }

    pub(crate) const fn endpoint(&self) -> Option<SocketAddr> {
        self.endpoint
    }

    pub(crate) const fn stats(&self) -> PeerStats {
        self.stats
    }

    pub(crate) fn state(&self, now: Instant) -> PeerState {
        if self.session.is_confirmed(now) {
            PeerState::Up
        } else if self.handshake.is_some() {
            PeerState::Handshaking
        } else {
            PeerState::Idle
        }
    }

    /// Returns the packets that wait for a session, now that none is to be had any more.
    pub(crate) fn into_waiting(self) -> impl Iterator<Item = Vec<u8>> {
        self.queue.into_iter()
    }

    /// Seals a packet, or keeps it until there is a session.
    pub(crate) fn send(
        &mut self,
        packet: &[u8],
        now: Instant,
        out: &mut Vec<PlainOutput>,
    ) -> Result<(), DropReason> {
        let to = self.endpoint.ok_or(DropReason::NoPath)?;
        if let Some(sealed) = self.session.seal(packet, now) {
            self.stats.sent += packet.len() as u64;
            out.push(PlainOutput::Datagram(to, sealed));
            return Ok(());
        }
        if self.handshake.is_none() {
            self.begin(now, now, out);
        }
        if self.queue.len() >= MAX_QUEUE {
            return Err(DropReason::PeerQueueFull);
        }
        self.queue.push_back(packet.to_vec());
        Ok(())
    }

    /// Sends a handshake on behalf of packets that wait since `since`.
    fn begin(&mut self, since: Instant, now: Instant, out: &mut Vec<PlainOutput>) {
        let retry_at = now + RETRY;
        self.handshake = Some(Handshake { since, retry_at });
        let initiation = self.session.initiate(now);
        self.transmit(initiation, out);
    }

    fn transmit(&self, message: Option<Vec<u8>>, out: &mut Vec<PlainOutput>) {
        if let (Some(to), Some(message)) = (self.endpoint, message) {
            out.push(PlainOutput::Datagram(to, message));
        }
    }

    /// Takes a message that claims to be from this peer; what is authentic tells where it is.
    pub(crate) fn receive(
        &mut self,
        from: SocketAddr,
        message: &[u8],
        now: Instant,
        out: &mut Vec<PlainOutput>,
    ) -> Result<(), DropReason> {
        let is_cookie = Datagram::classify(message) == Some(Datagram::WireGuard(Kind::CookieReply));
        let opened = if is_cookie {
            if self.endpoint != Some(from) {
                return Err(DropReason::CookieReply);
            }
            self.session.open_cookie(message, now)
        } else {
            self.session.open(message, now)
        };
        match opened {
            Opened::Confirmed { reply, packet } => {
                self.heard(from, now);
                self.transmit(reply, out);
                self.confirmed(now, out);
                out.extend(packet.map(|packet| self.received(packet)));
            }
            Opened::Reply(reply) => {
                self.heard(from, now);
                self.transmit(Some(reply), out);
            }
            Opened::Packet(packet) => {
                self.heard(from, now);
                out.push(self.received(packet));
            }
            Opened::Nothing => self.heard(from, now),
            Opened::Dropped(reason) => return Err(reason),
        }
        Ok(())
    }

    fn heard(&mut self, from: SocketAddr, now: Instant) {
        self.stats.last_received = Some(now);
        // An endpoint inside the overlay would send the tunnel into itself.
        if !is_inside(self.kept.address.network(), from) {
            self.endpoint = Some(from);
        }
    }

    fn received(&mut self, packet: Vec<u8>) -> PlainOutput {
        self.stats.received += packet.len() as u64;
        PlainOutput::Packet(packet)
    }

    fn confirmed(&mut self, now: Instant, out: &mut Vec<PlainOutput>) {
        self.stats.last_handshake = Some(now);
        self.stats.handshakes += 1;
        self.handshake = None;
        for packet in std::mem::take(&mut self.queue) {
            if let Err(reason) = self.send(&packet, now, out) {
                out.push(PlainOutput::Dropped(reason, packet));
            }
        }
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant, out: &mut Vec<PlainOutput>) {
        for message in self.session.handle_timeout(now) {
            self.transmit(Some(message), out);
        }
        let Some(handshake) = self.handshake.filter(|h| now >= h.retry_at) else {
            return;
        };
        if now >= handshake.since + GIVE_UP {
            self.handshake = None;
            let given_up = self.queue.drain(..);
            out.extend(given_up.map(|one| PlainOutput::Dropped(DropReason::NoSession, one)));
        } else {
            self.begin(handshake.since, now, out);
        }
    }
}

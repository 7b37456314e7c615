//! Pure: attached agents and the frames between them.

#[cfg(test)]
pub(crate) mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::engine::window::{Fresh, ReplayWindow};
use crate::gateway::mft::{Mft, Route, agent};
use crate::id::{NetworkId, OverlayIp, TunnelKey, UnixTime};
use crate::wire::a2g::{Direction, Header, HopKeys, Kind, MAX_FRAMES, hop_id};
use crate::wire::drop::DropReason;

/// Hop secrets last at most this long (protocol.md section 5); agents renew up to an hour before.
const LIFE: Duration = Duration::from_secs(24 * 3600);

/// What a new attachment is made of.
#[derive(Debug)]
pub(crate) struct NewHop {
    pub(crate) agent: OverlayIp,
    pub(crate) network: NetworkId,
    /// The agent's tunnel key.
    pub(crate) key: TunnelKey,
    /// The record's sequence number.
    pub(crate) seq: u64,
    /// The record, to be checked again when something is revoked.
    pub(crate) record: String,
    /// When the membership lapses.
    pub(crate) expires: UnixTime,
    pub(crate) gateway: OverlayIp,
    pub(crate) up: u32,
    pub(crate) down: u32,
    pub(crate) secret: [u8; 32],
    pub(crate) endpoint: SocketAddr,
}

/// An attached agent.
#[derive(Debug)]
pub(crate) struct Hop {
    pub(crate) new: NewHop,
    pub(crate) stale: bool,
    keys_up: HopKeys,
    keys_down: HopKeys,
    window: ReplayWindow,
    next: u64,
    made: Instant,
    last_heard: Instant,
}

/// What became of a frame.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Another frame is the answer to it.
    Answer(SocketAddr, Vec<u8>),
    Dropped(DropReason),
    /// The agent gave its attachment up.
    Ended,
    /// It was made anew where it lies, and goes on.
    Forward(SocketAddr),
    /// The hop id names no attachment.
    Unknown(u32),
}

/// All attached agents.
#[derive(Debug)]
pub(crate) struct Hops {
    lease: Duration,
    /// By the hop id in frames to the gateway.
    hops: BTreeMap<u32, Hop>,
    mft: Mft,
    /// When to look whether a hop is stale or gone; never later than that is due.
    due: BTreeSet<(Instant, u32)>,
    /// Raised when hop ids or endpoints change.
    changes: u64,
}

impl Hops {
    /// Makes an empty table of at most `routes` routes, which are hashed under `key`.
    pub(crate) fn new(lease: Duration, routes: usize, key: [u8; 16]) -> Self {
        Self {
            lease,
            hops: BTreeMap::new(),
            mft: Mft::new(routes, key),
            due: BTreeSet::new(),
            changes: 0,
        }
    }

    /// Returns how many agents are attached.
    pub(crate) fn len(&self) -> usize {
        self.hops.len()
    }

    /// Returns the number of routes.
    pub(crate) const fn routes(&self) -> usize {
        self.mft.len()
    }

    /// Returns a number that differs after hop ids or endpoints changed.
    pub(crate) const fn changes(&self) -> u64 {
        self.changes
    }

    /// Tells whether a hop id is in use.
    pub(crate) fn contains(&self, up: u32) -> bool {
        self.hops.contains_key(&up)
    }

    /// Returns the attachments, by hop id.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Hop> {
        self.hops.values()
    }

    /// Returns the attachment of an agent.
    pub(crate) fn of(&self, agent: OverlayIp) -> Option<&Hop> {
        self.hops.get(&self.mft.local(agent.ip())?)
    }

    /// Attaches an agent; the newest wins, and the one before is told if it is elsewhere.
    pub(crate) fn insert(&mut self, new: NewHop, now: Instant) -> Option<(SocketAddr, Vec<u8>)> {
        let old = self.of(new.agent).map(|hop| hop.new.up);
        let old = old.and_then(|up| self.remove(up));
        let farewell = old
            .filter(|hop| hop.new.endpoint != new.endpoint)
            .and_then(|mut hop| hop.signal(Kind::Displaced));
        self.mft
            .insert(agent(new.agent.ip()), 0, Route::Local(new.up));
        self.due.insert((now + self.lease, new.up));
        let hop = Hop {
            keys_up: HopKeys::derive(&new.secret, Direction::Up),
            keys_down: HopKeys::derive(&new.secret, Direction::Down),
            stale: false,
            window: ReplayWindow::new(),
            next: 0,
            made: now,
            last_heard: now,
            new,
        };
        self.hops.insert(hop.new.up, hop);
        self.changes += 1;
        farewell
    }

    /// Takes an attachment away.
    pub(crate) fn remove(&mut self, up: u32) -> Option<Hop> {
        let hop = self.hops.remove(&up)?;
        self.mft.remove(agent(hop.new.agent.ip()), Route::Local(up));
        self.changes += 1;
        Some(hop)
    }

    /// Keeps the attachments that `keep` wants.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&Hop) -> bool) -> Vec<Hop> {
        let gone = self.hops.values().filter(|hop| !keep(hop));
        let gone: Vec<u32> = gone.map(|hop| hop.new.up).collect();
        gone.into_iter().filter_map(|up| self.remove(up)).collect()
    }

    /// Takes a frame from an agent; one that goes on gets its new header in place.
    pub(crate) fn handle_frame(
        &mut self,
        from: SocketAddr,
        frame: &mut [u8],
        now: Instant,
        unix: UnixTime,
    ) -> Outcome {
        let Some(up) = hop_id(frame) else {
            return Outcome::Dropped(DropReason::FrameMalformed);
        };
        let Some(hop) = self.hops.get_mut(&up) else {
            return Outcome::Unknown(up);
        };
        if unix >= hop.new.expires || now >= hop.made + LIFE {
            self.remove(up);
            return Outcome::Unknown(up);
        }
        let (header, moved) = match hop.open(from, frame, now) {
            Ok(opened) => opened,
            Err(reason) => return Outcome::Dropped(reason),
        };
        self.changes += u64::from(moved);
        let (source, network) = (hop.new.agent, hop.new.network);
        match header.kind {
            Kind::Data => self.forward(&header, network, frame),
            Kind::Heartbeat => hop
                .signal(Kind::Heartbeat)
                .map_or(Outcome::Dropped(DropReason::FrameQuota), |(to, frame)| {
                    Outcome::Answer(to, frame)
                }),
            Kind::SessionEnd => {
                tracing::debug!(agent = %source, "Agent gave its attachment up");
                self.remove(up);
                Outcome::Ended
            }
            Kind::Displaced => Outcome::Dropped(DropReason::FrameMalformed),
        }
    }

    /// Looks for agents that are silent or whose time is over.
    pub(crate) fn handle_timeout(&mut self, now: Instant, unix: UnixTime) {
        while let Some((at, up)) = self.due.first().copied().filter(|(at, _)| *at <= now) {
            self.due.remove(&(at, up));
            let Some(hop) = self.hops.get_mut(&up) else {
                continue;
            };
            let gone = now >= hop.last_heard + self.lease * 2;
            if gone || unix >= hop.new.expires || now >= hop.made + LIFE {
                tracing::debug!(agent = %hop.new.agent, "Attachment ended");
                self.remove(up);
                continue;
            }
            hop.stale = now >= hop.last_heard + self.lease;
            let leases = if hop.stale { 2 } else { 1 };
            let next = hop.last_heard + self.lease * leases;
            self.due.insert((next.max(now), up));
        }
    }

    /// Returns when the next agent is to be looked at.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    fn forward(&mut self, header: &Header, network: NetworkId, frame: &mut [u8]) -> Outcome {
        let Some(ttl) = header.ttl.checked_sub(1) else {
            return Outcome::Dropped(DropReason::FrameTtl);
        };
        let Some(Route::Local(up)) = self.mft.lookup(header.target, header.prefix_len) else {
            return Outcome::Dropped(DropReason::FrameTarget);
        };
        let Some(hop) = self.hops.get_mut(&up) else {
            return Outcome::Dropped(DropReason::FrameTarget);
        };
        // Networks are tenants: what is of one never reaches another through its gateway.
        if hop.new.network != network {
            return Outcome::Dropped(DropReason::FrameNetwork);
        }
        let Some(message) = hop.next_message() else {
            return Outcome::Dropped(DropReason::FrameQuota);
        };
        let onward = Header {
            ttl,
            hop: hop.new.down,
            message,
            ..*header
        };
        onward.seal(&hop.keys_down, frame);
        Outcome::Forward(hop.new.endpoint)
    }
}

impl Hop {
    /// Checks a frame of this agent; true when it moved the agent to a new endpoint.
    fn open(
        &mut self,
        from: SocketAddr,
        frame: &[u8],
        now: Instant,
    ) -> Result<(Header, bool), DropReason> {
        let header = Header::open(&self.keys_up, frame).map_err(|_| DropReason::FrameTag)?;
        let fresh = self
            .window
            .take(header.message)
            .filter(|_| header.message < MAX_FRAMES)
            .ok_or(DropReason::FrameReplayed)?;
        if header.source != self.new.agent.ip() {
            return Err(DropReason::FrameSource);
        }
        if header.kind != Kind::Data && header.target != self.new.gateway.ip() {
            return Err(DropReason::FrameTarget);
        }
        self.last_heard = now;
        self.stale = false;
        // Frames overtaken on the old path do not move the agent back.
        let moved = fresh == Fresh::Newest && self.new.endpoint != from;
        if moved {
            tracing::debug!(agent = %self.new.agent, "Agent moved");
            self.new.endpoint = from;
        }
        Ok((header, moved))
    }

    /// Makes a frame without payload to the agent.
    fn signal(&mut self, kind: Kind) -> Option<(SocketAddr, Vec<u8>)> {
        let message = self.next_message()?;
        let header = Header::data(self.new.down, message, self.new.agent, self.new.gateway);
        let frame = header.of_kind(kind).frame(&self.keys_down, &[]);
        Some((self.new.endpoint, frame))
    }

    fn next_message(&mut self) -> Option<u64> {
        let message = self.next;
        if message >= MAX_FRAMES {
            return None;
        }
        self.next += 1;
        Some(message)
    }
}

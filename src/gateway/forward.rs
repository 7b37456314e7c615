//! Pure: attached agents and the frames between them.

mod foreign;
mod remote;
#[cfg(test)]
pub(crate) mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::engine::limits::Source;
use crate::engine::window::{Fresh, ReplayWindow};
use crate::gateway::forward::foreign::Foreign;
use crate::gateway::links::Links;
use crate::gateway::mft::{Mft, PeerId, Route, agent};
use crate::gateway::quota::{Allowance, Quota, QuotaConfig, Tenants};
use crate::gateway::rate::Meter;
use crate::gateway::routes::{Claim, Routes};
use crate::id::{Did, NetworkId, OverlayIp, TunnelKey, UnixTime};
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
    /// The gateways that the record lists, best first.
    pub(crate) gateways: Vec<Did>,
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
    quota: Quota,
    /// Of frames to unknown targets.
    unknown: Quota,
    pub(crate) sent: Meter,
    pub(crate) received: Meter,
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

/// Who sent a frame here, and in which network the one is by whom it is, as far as that is known.
#[derive(Clone, Copy, Debug)]
enum Sender {
    Agent(NetworkId),
    /// A gateway of another domain, for anybody there.
    Foreign,
    /// Another gateway of the domain, for an agent that it announces.
    Gateway(NetworkId),
    /// Another gateway of the domain, for somebody in another domain.
    Passed,
}

/// All attached agents, and the ways to those of other gateways.
#[derive(Debug)]
pub(crate) struct Hops {
    own: Did,
    lease: Duration,
    /// By the hop id in frames to the gateway.
    hops: BTreeMap<u32, Hop>,
    mft: Mft,
    pub(crate) links: Links,
    routes: Routes,
    foreign: Foreign,
    /// What agents and networks may.
    pub(crate) quota: QuotaConfig,
    pub(crate) tenants: Tenants,
    /// Agents that attached or went since they were asked for.
    changed: BTreeSet<OverlayIp>,
    /// When to look whether a hop is stale or gone; never later than that is due.
    due: BTreeSet<(Instant, u32)>,
    /// Raised when hop ids or endpoints change.
    changes: u64,
}

impl Hops {
    /// Makes an empty table of gateway `own`, which knows at most `most` ways to agents of others; they
    /// are hashed under `key`.
    pub(crate) fn new(own: Did, lease: Duration, most: usize, key: [u8; 16]) -> Self {
        Self {
            own,
            lease,
            hops: BTreeMap::new(),
            // Those who attach here are bounded by whoever lets them.
            mft: Mft::new(usize::MAX, key),
            links: Links::default(),
            routes: Routes::new(most),
            foreign: Foreign::default(),
            quota: QuotaConfig::default(),
            tenants: Tenants::default(),
            changed: BTreeSet::new(),
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
        self.hops.contains_key(&up) || self.links.contains(up)
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
        if self.routes.network(new.agent.ip()).is_some() {
            self.routes.note_here(new.claim(), &mut self.mft);
        }
        let rank = self.routes.rank_here(new.agent, new.seq, self.own);
        let here = Route::Local(new.up);
        self.mft.insert(agent(new.agent.ip()), rank, here);
        self.changed.insert(new.agent);
        let source = Source::of(new.endpoint);
        self.tenants.add(new.network, source, now);
        self.due.insert((now + self.lease, new.up));
        let hop = Hop {
            keys_up: HopKeys::derive(&new.secret, Direction::Up),
            keys_down: HopKeys::derive(&new.secret, Direction::Down),
            stale: false,
            window: ReplayWindow::new(),
            quota: Quota::new(now),
            unknown: Quota::new(now),
            sent: Meter::new(now),
            received: Meter::new(now),
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
        self.changed.insert(hop.new.agent);
        let source = Source::of(hop.new.endpoint);
        self.tenants.remove(hop.new.network, source);
        self.changes += 1;
        Some(hop)
    }

    /// Keeps the attachments that `keep` wants.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&Hop) -> bool) -> Vec<Hop> {
        let gone = self.hops.values().filter(|hop| !keep(hop));
        let gone: Vec<u32> = gone.map(|hop| hop.new.up).collect();
        gone.into_iter().filter_map(|up| self.remove(up)).collect()
    }

    /// Takes a frame from an agent or another gateway; one that goes on gets its new header in place.
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
            return self.handle_gateways(up, frame, now);
        };
        if unix >= hop.new.expires || now >= hop.made + LIFE {
            self.remove(up);
            return Outcome::Unknown(up);
        }
        let (was_stale, before) = (hop.stale, hop.new.endpoint);
        let (header, moved) = match hop.open(from, frame, now) {
            Ok(opened) => opened,
            Err(reason) => return Outcome::Dropped(reason),
        };
        if moved {
            self.changes += 1;
            self.tenants.move_to(Source::of(before), Source::of(from));
        }
        let (source, network, size) = (hop.new.agent, hop.new.network, frame.len());
        hop.sent.note(size, now);
        if header.kind == Kind::Data {
            let is_allowed = hop.quota.take(self.quota.agent, size, now)
                && self.tenants.take(&network, self.quota.network, size, now);
            if !is_allowed {
                return Outcome::Dropped(DropReason::FrameQuota);
            }
        }
        if was_stale {
            self.rank(source);
        }
        match header.kind {
            Kind::Data => {
                let outcome = self.forward(&header, Sender::Agent(network), frame, now);
                if matches!(outcome, Outcome::Dropped(DropReason::FrameTarget)) {
                    return self.note_unknown(up, now);
                }
                outcome
            }
            Kind::Heartbeat => {
                let hop = self.hops.get_mut(&up);
                let answer = hop.and_then(|hop| hop.signal(Kind::Heartbeat));
                answer.map_or(Outcome::Dropped(DropReason::FrameQuota), |(to, frame)| {
                    Outcome::Answer(to, frame)
                })
            }
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
            let agent = hop.new.agent;
            self.rank(agent);
        }
    }

    /// Returns when the next agent is to be looked at.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Takes that an agent sent to nobody.
    fn note_unknown(&mut self, up: u32, now: Instant) -> Outcome {
        let allowed = Allowance {
            packets: self.quota.unknown,
            bytes: 0,
        };
        let hop = self.hops.get_mut(&up);
        let is_allowed = hop.is_some_and(|hop| hop.unknown.take(allowed, 0, now));
        Outcome::Dropped(if is_allowed {
            DropReason::FrameTarget
        } else {
            DropReason::FrameScan
        })
    }

    /// Takes a frame of another gateway: only from agents that it announces, or of other domains.
    fn handle_gateways(&mut self, hop: u32, frame: &mut [u8], now: Instant) -> Outcome {
        let (gateway, header) = match self.links.take(hop, frame) {
            None => return Outcome::Unknown(hop),
            Some(Err(reason)) => return Outcome::Dropped(reason),
            Some(Ok(taken)) => taken,
        };
        let announced = || self.routes.network_by(header.source, gateway);
        let sender = self.foreign.sender(gateway, header.source);
        let sender = sender.unwrap_or_else(|| announced().map(Sender::Gateway));
        sender.map_or(Outcome::Dropped(DropReason::FrameSource), |sender| {
            self.forward(&header, sender, frame, now)
        })
    }

    fn forward(
        &mut self,
        header: &Header,
        sender: Sender,
        frame: &mut [u8],
        now: Instant,
    ) -> Outcome {
        let Some(ttl) = header.ttl.checked_sub(1) else {
            return Outcome::Dropped(DropReason::FrameTtl);
        };
        let header = Header { ttl, ..*header };
        let found = || self.mft.lookup(header.target, header.prefix_len);
        let route = match sender {
            Sender::Agent(_) => found(),
            // Nobody's frames go through to a third domain.
            Sender::Foreign => found().filter(|route| !self.foreign.leads(*route)),
            // Every gateway of a domain knows all others, so what one of them sent is where it belongs:
            // it goes to nobody but agents, and can never come round.
            Sender::Gateway(_) | Sender::Passed => self.mft.local(header.target).map(Route::Local),
        };
        match route.filter(|_| header.prefix_len == 128) {
            Some(Route::Local(up)) => self.deliver(&header, (up, sender), frame, now),
            Some(Route::Gateway(gateway)) => self.pass(&header, (gateway, sender), frame),
            None => Outcome::Dropped(DropReason::FrameTarget),
        }
    }

    /// Hands a frame to another gateway.
    fn pass(
        &mut self,
        header: &Header,
        (gateway, sender): (PeerId, Sender),
        frame: &mut [u8],
    ) -> Outcome {
        let is_abroad = self.foreign.leads(Route::Gateway(gateway));
        let target = || self.routes.network(header.target);
        if !is_abroad && !sender.may_reach(target()) {
            return Outcome::Dropped(DropReason::FrameNetwork);
        }
        match self.links.seal(gateway, header, frame) {
            Ok(to) => Outcome::Forward(to),
            Err(reason) => Outcome::Dropped(reason),
        }
    }

    /// Hands a frame to an agent that is attached here.
    fn deliver(
        &mut self,
        header: &Header,
        (up, sender): (u32, Sender),
        frame: &mut [u8],
        now: Instant,
    ) -> Outcome {
        let Some(hop) = self.hops.get_mut(&up) else {
            return Outcome::Dropped(DropReason::FrameTarget);
        };
        if !sender.may_reach(Some(hop.new.network)) {
            return Outcome::Dropped(DropReason::FrameNetwork);
        }
        let Some(message) = hop.next_message() else {
            return Outcome::Dropped(DropReason::FrameQuota);
        };
        let onward = Header {
            hop: hop.new.down,
            message,
            ..*header
        };
        onward.seal(&hop.keys_down, frame);
        hop.received.note(frame.len(), now);
        Outcome::Forward(hop.new.endpoint)
    }
}

impl Sender {
    /// Tells whether its frames may go to an agent of a network, if that is known.
    ///
    /// Networks are tenants: what is of one never reaches another of the domain through its gateways.
    /// Of other domains the gateway knows no network, and the agents' nodes take nothing from whom they
    /// did not consent to.
    fn may_reach(self, network: Option<NetworkId>) -> bool {
        match self {
            Self::Agent(own) | Self::Gateway(own) => network == Some(own),
            Self::Foreign | Self::Passed => network.is_some(),
        }
    }
}

impl NewHop {
    fn claim(&self) -> Claim {
        Claim {
            agent: self.agent,
            network: self.network,
            seq: self.seq,
            expires: self.expires,
            gateways: self.gateways.clone(),
            record: self.record.clone(),
        }
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

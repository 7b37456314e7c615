//! Pure: the mesh of gateways: who the others are, the sessions with them, what each announces.
//!
//! Whether a statement or a record holds is not decided here: [`Effect`]s ask whoever knows.

mod log;
mod peer;
mod stream;

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

use rand::Rng;
use rand_chacha::ChaCha20Rng;

use crate::engine::session::{Session, SessionKeys};
use crate::gateway::links::Outgoing;
use crate::gateway::mesh::log::Log;
use crate::gateway::mesh::peer::{Peer, Voice};
use crate::gateway::mft::PeerId;
use crate::id::{Did, DomainPrefix, OverlayIp, TunnelKey, TunnelSecret, UnixTime};
use crate::wire::a2g::Reset;
use crate::wire::datagram::WireGuard;
use crate::wire::drop::DropReason;
use crate::wire::mesh::Delta;

pub(crate) use peer::{Incoming, Named};

/// Indices of sessions with gateways have this bit, and no others.
const INDEX_BIT: u32 = 1 << 23;

/// Gateways whose newest statement is remembered; the registry makes no more.
const MAX_SEEN: usize = 65_536;

/// What follows from what the mesh was told.
#[derive(Debug)]
pub(crate) enum Effect {
    /// Announcements to be checked; then [`Mesh::took`] is to be told.
    Delta(PeerId, Delta),
    /// A gateway is not there any more, and nothing by it.
    Down(PeerId),
    /// A gateway may have forgotten by what it sent: it is to be told another secret.
    Forgotten(PeerId),
    /// A gateway sends from here now.
    Moved(PeerId, SocketAddr),
    Send(SocketAddr, Vec<u8>),
    /// A gateway's statement about itself, to be checked.
    Statement(PeerId, String),
    /// Frames go to a gateway by this.
    Up(PeerId, Outgoing),
}

/// Whether another gateway is there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum PeerState {
    Down,
    /// There is a session, and it did not say yet how to send to it.
    Greeting,
    Up,
}

/// What an operator sees of another gateway.
#[derive(Clone, Debug)]
pub(crate) struct PeerView {
    pub(crate) id: PeerId,
    pub(crate) gateway: Did,
    pub(crate) state: PeerState,
    /// None before it was first heard.
    pub(crate) at: Option<SocketAddr>,
    /// None before its first answer.
    pub(crate) rtt: Option<Duration>,
}

/// All other gateways.
pub(crate) struct Mesh {
    own: Did,
    secret: TunnelSecret,
    /// Random; one for each start.
    instance: u64,
    /// Our own statement; empty until it is known.
    statement: String,
    most: usize,
    /// The number of each gateway's newest statement, which outlasts that, so that no older one is
    /// believed again.
    seen: BTreeMap<(Option<DomainPrefix>, Did), u64>,
    peers: BTreeMap<PeerId, Peer>,
    by_gateway: BTreeMap<Did, PeerId>,
    by_key: BTreeMap<TunnelKey, PeerId>,
    by_index: BTreeMap<u32, PeerId>,
    last: u32,
    log: Log,
    /// Whether somebody may have to be told something.
    is_busy: bool,
    /// When something is due, as far as was known after the last call; None when nothing is.
    due: Option<(Instant, &'static str)>,
    effects: VecDeque<Effect>,
    rng: ChaCha20Rng,
}

impl std::fmt::Debug for Mesh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mesh")
            .field("peers", &self.peers.len())
            .finish_non_exhaustive()
    }
}

impl Mesh {
    /// Makes a mesh of this gateway alone, that takes at most `most` others.
    pub(crate) fn new(own: Did, secret: TunnelSecret, most: usize, mut rng: ChaCha20Rng) -> Self {
        Self {
            own,
            secret,
            instance: rng.random(),
            statement: String::new(),
            most,
            seen: BTreeMap::new(),
            peers: BTreeMap::new(),
            by_gateway: BTreeMap::new(),
            by_key: BTreeMap::new(),
            by_index: BTreeMap::new(),
            last: 0,
            log: Log::default(),
            is_busy: false,
            due: None,
            effects: VecDeque::new(),
            rng,
        }
    }

    /// Takes our own statement, which introduces us to gateways that do not know us yet.
    pub(crate) fn set_statement(&mut self, statement: String) {
        self.statement = statement;
    }

    /// Tells whether a statement of this gateway says something new.
    pub(crate) fn is_news(&self, named: &Named) -> bool {
        if self
            .seen
            .get(&(named.domain, named.gateway))
            .is_some_and(|seq| *seq > named.seq)
        {
            return false;
        }
        let known = self.by_gateway.get(&named.gateway);
        let known = known.and_then(|id| self.peers.get(id));
        known.is_none_or(|peer| {
            peer.named.seq < named.seq
                || peer.named.seq == named.seq && peer.named.endpoints != named.endpoints
        })
    }

    /// Takes what a verified statement says of another gateway; `ours` is by what it shall send, if it
    /// is new.
    pub(crate) fn add(&mut self, named: Named, ours: Incoming, now: Instant) -> Option<PeerId> {
        if named.gateway == self.own || !self.is_news(&named) {
            return None;
        }
        let about = (named.domain, named.gateway);
        if self.seen.len() < MAX_SEEN || self.seen.contains_key(&about) {
            self.seen.insert(about, named.seq);
        }
        if let Some(id) = self.by_gateway.get(&named.gateway).copied() {
            let same_key = |peer: &&mut Peer| peer.named.key == named.key;
            if let Some(peer) = self.peers.get_mut(&id).filter(same_key) {
                let endpoints = std::mem::take(&mut peer.named.endpoints);
                peer.named = named;
                // Whoever does not know where it is says nothing about that.
                if peer.named.endpoints.is_empty() {
                    peer.named.endpoints = endpoints;
                }
                self.note_due(now);
                return None;
            }
            // Another key is another end of a session; what was by the old one is over.
            self.remove(id, now);
        }
        if self.peers.len() >= self.most || self.by_key.contains_key(&named.key) {
            tracing::warn!(gateway = %named.gateway, "No room for another gateway");
            return None;
        }
        self.last += 1;
        let id = PeerId(self.last);
        let index = loop {
            let index = INDEX_BIT | self.rng.random::<u32>() >> 9;
            if !self.by_index.contains_key(&index) {
                break index;
            }
        };
        let keys = SessionKeys {
            local: self.secret.clone(),
            peer: named.key,
            psk: None,
            index,
        };
        self.by_gateway.insert(named.gateway, id);
        self.by_key.insert(named.key, id);
        self.by_index.insert(index, id);
        let session = Session::new(&keys, now);
        let peer = Peer::new(id, named, session, ours, now, &mut self.rng);
        self.peers.insert(id, peer);
        self.note_due(now);
        Some(id)
    }

    /// Takes a gateway out.
    pub(crate) fn remove(&mut self, id: PeerId, now: Instant) {
        self.with(id, now, |peer, voice| {
            peer.leave(now, voice);
            peer.lose(now, voice);
        });
        let Some(peer) = self.peers.remove(&id) else {
            return;
        };
        self.by_gateway.remove(&peer.named.gateway);
        self.by_key.remove(&peer.named.key);
        self.by_index.remove(&peer.session().index());
        self.note_due(now);
    }

    /// Returns the gateways whose statements ended.
    pub(crate) fn expired(&self, unix: UnixTime) -> Vec<PeerId> {
        let peers = self.peers.iter();
        let expired = peers.filter(|(_, peer)| unix >= peer.named.expires);
        expired.map(|(id, _)| *id).collect()
    }

    /// Returns the gateway of a tunnel key.
    pub(crate) fn of_key(&self, key: &TunnelKey) -> Option<PeerId> {
        self.by_key.get(key).copied()
    }

    /// Returns the gateway in whose session a message with this receiver index is.
    pub(crate) fn of_index(&self, receiver_index: u32) -> Option<PeerId> {
        self.by_index.get(&(receiver_index >> 8)).copied()
    }

    /// Returns the key of a gateway.
    pub(crate) fn gateway(&self, id: PeerId) -> Option<Did> {
        self.peers.get(&id).map(|peer| peer.named.gateway)
    }

    /// Returns the gateways whose secrets for frames to here are due to be changed.
    pub(crate) fn worn(&self, now: Instant) -> Vec<PeerId> {
        let worn = self.peers.iter().filter(|(_, peer)| peer.is_worn(now));
        worn.map(|(id, _)| *id).collect()
    }

    /// Takes another secret for frames of a gateway, and returns the one before.
    pub(crate) fn renew(&mut self, id: PeerId, ours: Incoming, now: Instant) -> Option<Incoming> {
        let peer = self.peers.get_mut(&id)?;
        let before = peer.ours();
        peer.renew(ours, now);
        self.note_due(now);
        Some(before)
    }

    /// Takes a WireGuard message of a gateway.
    pub(crate) fn handle(
        &mut self,
        id: PeerId,
        kind: WireGuard,
        (from, bytes): (SocketAddr, &[u8]),
        now: Instant,
    ) -> Result<(), DropReason> {
        let mut taken = Ok(());
        self.with(id, now, |peer, voice| {
            taken = peer.handle(kind, from, bytes, now, voice);
            peer.handle_timeout(now, voice);
        });
        taken
    }

    /// Takes a Reset, if it is a gateway's own: it forgot us, and is greeted anew.
    pub(crate) fn handle_reset(&mut self, reset: &Reset, now: Instant) -> bool {
        let told = |(_, peer): &(&PeerId, &Peer)| peer.is_reset_by(reset);
        let Some(id) = self.peers.iter().find(told).map(|(id, _)| *id) else {
            return false;
        };
        self.with(id, now, |peer, voice| {
            peer.lose(now, voice);
            peer.handle_timeout(now, voice);
        });
        true
    }

    /// Takes whether an agent is announced now.
    pub(crate) fn note(&mut self, agent: OverlayIp, is_announced: bool) {
        self.log.note(agent, is_announced);
        self.is_busy = true;
    }

    /// Tells every gateway what it was not told yet; `record` is of who is announced.
    pub(crate) fn pump(&mut self, now: Instant, record: impl Fn(OverlayIp) -> Option<String>) {
        if !std::mem::take(&mut self.is_busy) {
            return;
        }
        let behind = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.is_behind(&self.log));
        let behind: Vec<PeerId> = behind.map(|(id, _)| *id).collect();
        for id in behind {
            let log = std::mem::take(&mut self.log);
            self.with(id, now, |peer, voice| peer.pump(&log, &record, now, voice));
            self.log = log;
        }
        self.is_busy = false;
    }

    /// Tells whether nothing follows from what was told, and nobody is to be told anything.
    pub(crate) fn is_quiet(&self) -> bool {
        self.effects.is_empty() && !self.is_busy
    }

    /// Returns the number of the statement by which a gateway is known.
    pub(crate) fn seq(&self, gateway: &Did) -> Option<u64> {
        let id = self.by_gateway.get(gateway)?;
        self.peers.get(id).map(|peer| peer.named.seq)
    }

    /// Returns the gateway of a key.
    pub(crate) fn of_gateway(&self, gateway: &Did) -> Option<PeerId> {
        self.by_gateway.get(gateway).copied()
    }

    /// Returns the domain of a gateway; None for our own.
    pub(crate) fn domain(&self, id: PeerId) -> Option<DomainPrefix> {
        self.peers.get(&id).and_then(|peer| peer.named.domain)
    }

    /// Returns the tunnel key of a gateway.
    pub(crate) fn key(&self, id: PeerId) -> Option<TunnelKey> {
        self.peers.get(&id).map(|peer| peer.named.key)
    }

    /// Takes a token for the check of one record of a gateway; false when it has none left.
    pub(crate) fn may_check(&mut self, id: PeerId, now: Instant) -> bool {
        let peer = self.peers.get_mut(&id);
        peer.is_some_and(|peer| peer.may_check(now))
    }

    /// Takes that a Delta was taken.
    pub(crate) fn took(&mut self, id: PeerId, delta: &Delta, now: Instant) {
        self.with(id, now, |peer, voice| peer.took(delta, now, voice));
    }

    /// Says farewell to all.
    pub(crate) fn leave(&mut self, now: Instant) {
        let all: Vec<PeerId> = self.peers.keys().copied().collect();
        for id in all {
            self.with(id, now, |peer, voice| {
                peer.leave(now, voice);
                peer.lose(now, voice);
            });
        }
    }

    /// Does what is due.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if self.due.is_none_or(|(at, _)| at > now) {
            return;
        }
        let all: Vec<PeerId> = self.peers.keys().copied().collect();
        for id in all {
            self.with(id, now, |peer, voice| peer.handle_timeout(now, voice));
        }
        self.note_due(now);
    }

    /// Returns when `handle_timeout` is due and why; None when nothing is.
    pub(crate) const fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        self.due
    }

    /// Returns what follows from what was told.
    pub(crate) fn poll(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Returns what an operator sees.
    pub(crate) fn peers(&self) -> impl Iterator<Item = PeerView> {
        self.peers.iter().map(|(id, peer)| PeerView {
            id: *id,
            gateway: peer.named.gateway,
            state: peer.state(),
            at: peer.at(),
            rtt: peer.rtt(),
        })
    }

    fn with(&mut self, id: PeerId, now: Instant, act: impl FnOnce(&mut Peer, &mut Voice<'_>)) {
        if let Some(peer) = self.peers.get_mut(&id) {
            let mut voice = Voice {
                instance: self.instance,
                statement: &self.statement,
                rng: &mut self.rng,
                effects: &mut self.effects,
            };
            act(peer, &mut voice);
            self.is_busy = true;
            self.note_due(now);
        }
    }

    /// Looks once for all frames that come until something changes.
    fn note_due(&mut self, now: Instant) {
        let due = self.peers.values().filter_map(|p| p.poll_timeout(now));
        self.due = due.min();
    }
}

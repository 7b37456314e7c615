//! Which way to a peer is used: through the gateways at first, directly as soon as that is proven.
//!
//! [`PathAgent`] knows neither sessions nor sockets. It is told what was sent and what arrived, says
//! which probes to send, and names the path for data. Probes only promote: a direct path carries
//! data after a reply to a probe of ours on that very path. Lack of data demotes (protocol.md
//! section 6). After each `handle_*` take out everything of [`PathAgent::poll_probe`],
//! [`PathAgent::poll_candidates`] and [`PathAgent::poll_doubt`], then wait no longer than [`PathAgent::poll_timeout`] says.

mod candidate;
mod choice;
mod evidence;
mod mtu;
mod pair;
mod probes;
mod punch;
mod record;
mod remote;
mod schedule;
#[cfg(test)]
mod tests;
mod view;

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::engine::{
    limits::Bucket,
    path::{candidate::same_list, evidence::Evidence, pair::Pair, probes::Probes, punch::Punch},
};
use crate::wire::candidate::{Candidate, Candidates, MAX_CANDIDATES};
use crate::wire::control::ProbeReply;

pub use candidate::{Class, is_usable};
pub use choice::Reason;
pub(crate) use punch::predicted;
pub use punch::{Opening, ROUNDS};
pub use view::{Obstacle, PairState, PairView, PathView};

/// Endpoints of a peer that nobody named but authentic messages came from, as from behind a NAT that
/// maps by destination; more would let a peer that roams quickly fill our memory.
const MAX_LEARNED: usize = 8;

/// Candidates are told again at these times after the first, since nothing acknowledges them.
const TELL_AGAIN: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3)];

/// Probes to endpoints that never answered: two full lists of candidates at once, twice over, and
/// then few, so that a peer that names strangers without end makes next to nothing of it.
const STRANGE_BURST: u32 = 320;
const STRANGE_PER_SECOND: u32 = 2;

/// Shortest time between fresh starts of a path that is heard but does not answer.
const REVIVE: Duration = Duration::from_secs(5);

/// A way to a peer.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Path {
    /// To an endpoint of the peer.
    Direct(SocketAddr),
    /// Through the gateways.
    Relay,
}

/// A probe to send.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Probe {
    pub id: u64,
    /// Our number of the path.
    pub number: u16,
    pub path: Path,
    /// How long the packet is to be made, and then it must arrive in one piece or not at all; None for
    /// the shortest.
    pub size: Option<u16>,
    /// Whether it is to open the NATs on our side alone, and nobody is expected to answer.
    pub is_brief: bool,
}

/// Why our endpoint may be another than the one that the peer was told, as after a reboot of a NAT.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Doubt {
    /// No reply to a direct probe, and no direct path.
    Vain,
    /// A direct path lost data.
    Lost,
}

/// Which paths an agent wants.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Mode {
    /// The best there is.
    #[default]
    Auto,
    /// Like `Hidden`, since the network's root grant wants it so, whatever this node wishes.
    Border,
    /// Data goes directly or not at all; handshakes and control messages still use the gateways.
    Direct,
    /// Like `Relay`, and what comes directly is ignored.
    Hidden,
    /// Only the gateways; no endpoint is told and none is probed.
    Relay,
}

impl Mode {
    /// Tells whether endpoints are told and probed.
    pub const fn seeks(self) -> bool {
        matches!(self, Self::Auto | Self::Direct)
    }

    /// Tells whether what comes directly is ignored, as if nobody were here.
    pub const fn hides(self) -> bool {
        matches!(self, Self::Border | Self::Hidden)
    }
}

/// The paths to one peer, and the choice among them.
#[derive(Debug)]
pub struct PathAgent {
    mode: Mode,
    /// Whether a session carries control messages now.
    is_up: bool,
    /// Whether the session was renewed while nobody used it, and the peer was told nothing of us in it.
    is_quiet: bool,
    /// Whether the gateways carry frames now.
    has_relay: bool,
    pairs: BTreeMap<Path, Pair>,
    /// None while no path may carry data.
    current: Option<Path>,
    reason: Reason,
    since: Instant,
    /// The path before, and until when it is kept; None when that is over.
    previous: Option<(Path, Instant)>,
    evidence: Evidence,
    probes: Probes,
    punch: Punch,
    /// What may go to endpoints that never answered.
    strange: Bucket,
    local: Vec<Candidate>,
    seq: u64,
    /// When the candidates are told, first one first.
    tell: VecDeque<Instant>,
    /// Whether they are to be told now.
    is_telling: bool,
    /// None while there is no doubt that was not polled.
    doubt: Option<Doubt>,
    /// Highest sequence number of the peer's candidates; None before the first of a session.
    remote_seq: Option<u64>,
    /// Endpoints that did not answer so many probes, though no longer named.
    silent: VecDeque<(SocketAddr, u8)>,
    next_number: u16,
}

impl PathAgent {
    /// Makes an agent that relays until told more; `seed` is 32 random bytes.
    pub fn new(mode: Mode, seed: [u8; 32], now: Instant) -> Self {
        let current = (mode != Mode::Direct).then_some(Path::Relay);
        Self {
            mode,
            is_up: false,
            is_quiet: false,
            has_relay: true,
            pairs: BTreeMap::from([(Path::Relay, Pair::relay())]),
            current,
            reason: if mode == Mode::Auto {
                Reason::First
            } else {
                Reason::Mode
            },
            since: now,
            previous: None,
            evidence: Evidence::default(),
            probes: Probes::new(seed, now),
            punch: Punch::default(),
            strange: Bucket::new(STRANGE_PER_SECOND, STRANGE_BURST, now),
            local: Vec::new(),
            seq: 0,
            tell: VecDeque::new(),
            is_telling: false,
            doubt: None,
            remote_seq: None,
            silent: VecDeque::new(),
            next_number: 2,
        }
    }

    /// Returns the path for data now; None while only a direct one would do and none is proven.
    pub const fn current(&self) -> Option<Path> {
        self.current
    }

    /// Tells whether the session was renewed while nobody used it, and is not used since.
    pub const fn is_quiet(&self) -> bool {
        self.is_quiet
    }

    /// Returns which paths the agent wants.
    pub const fn mode(&self) -> Mode {
        self.mode
    }

    /// Returns the endpoints that answered once, for handshakes; at most 24.
    pub fn endpoints(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.pairs.iter().filter_map(|(path, pair)| match path {
            Path::Direct(endpoint) if pair.has_answered => Some(*endpoint),
            Path::Direct(_) | Path::Relay => None,
        })
    }

    /// Takes a new wish; everything begins anew with the relay.
    pub fn set_mode(&mut self, mode: Mode, now: Instant) {
        if self.mode == mode {
            return;
        }
        self.mode = mode;
        self.forget_probes();
        self.evidence.prove();
        let fallback = (mode != Mode::Direct).then_some(Path::Relay);
        self.switch(fallback, Reason::Mode, now);
        if mode.seeks() {
            self.restart_all(now);
            self.schedule_telling(now);
        } else {
            self.pairs.retain(|path, _| *path == Path::Relay);
            self.previous = None;
            self.tell.clear();
            self.is_telling = false;
        }
    }

    /// Takes whether the gateways carry frames.
    pub fn set_relay(&mut self, has_relay: bool, now: Instant) {
        if has_relay && !self.has_relay {
            self.restart(Path::Relay, now);
            if let Some(pair) = self.pairs.get_mut(&Path::Relay) {
                pair.mtu.restart();
            }
        }
        self.has_relay = has_relay;
    }

    /// Takes the largest packet that the gateway forwards, in bytes as programs send them.
    pub fn set_relay_mtu(&mut self, most: u16) {
        if let Some(pair) = self.pairs.get_mut(&Path::Relay) {
            pair.mtu.bound(most);
        }
    }

    /// Returns the largest packet that the path for data carries; None while that is not known.
    pub fn mtu(&self) -> Option<u16> {
        let pair = self.current.and_then(|path| self.pairs.get(&path));
        pair.and_then(|pair| pair.mtu.size())
    }

    /// Takes our own candidates; unusable ones and those beyond 16 are left out.
    pub fn set_candidates(&mut self, local: &[Candidate], now: Instant) {
        let local = candidate::clean(local);
        if same_list(&self.local, &local) {
            return;
        }
        let is_known = |new: &Candidate| self.local.iter().any(|c| c.endpoint == new.endpoint);
        let is_elsewhere = !local.iter().all(is_known);
        self.local = local;
        self.seq += 1;
        self.schedule_telling(now);
        self.review_meeting(now);
        if is_elsewhere {
            self.meet(now);
        }
    }

    /// Takes that a session was confirmed: control messages reach the peer, who may have forgotten
    /// our candidates.
    ///
    /// WireGuard takes control messages for data and renews the keys of a session that has any: where
    /// each renewal brought new ones, peers would keep each other awake for ever.
    pub fn handle_session(&mut self, now: Instant) {
        self.is_quiet = self.is_up && self.evidence.is_unused(now);
        self.is_up = true;
        self.remote_seq = None;
        if !self.is_quiet {
            self.begin(now);
        }
    }

    /// Takes that the peer began a session and knew no direct way to us: it may have begun anew, elsewhere, so
    /// what answered directly may be nobody now.
    pub fn handle_new_beginning(&mut self, now: Instant) {
        if let Some(path @ Path::Direct(_)) = self.current {
            self.distrust(path, now);
        }
    }

    /// Tells and asks everything at the beginning of a session.
    fn begin(&mut self, now: Instant) {
        self.is_quiet = false;
        self.schedule_telling(now);
        self.restart(Path::Relay, now);
        self.wake(now);
    }

    /// Takes that the session is used, if it was renewed for nobody.
    pub(super) fn rouse(&mut self, now: Instant) {
        if self.is_quiet {
            self.begin(now);
        }
    }

    /// Takes that there is no session: nothing is sent until the next.
    pub fn handle_no_session(&mut self) {
        self.is_up = false;
        self.is_quiet = false;
        self.is_telling = false;
        self.tell.clear();
        self.stop_guessing();
        self.forget_probes();
    }

    fn forget_probes(&mut self) {
        self.probes.forget();
        for pair in self.pairs.values_mut() {
            pair.mtu.restart();
        }
    }

    /// Takes that data was sent on the current path.
    pub fn handle_sent(&mut self, now: Instant) {
        self.rouse(now);
        if self.evidence.is_idle(now) {
            self.wake(now);
        }
        let has_choice = self.pairs.iter().any(|(path, pair)| {
            let is_open = *path == Path::Relay && self.has_relay;
            self.current != Some(*path) && (is_open || pair.has_answered)
        });
        self.evidence.sent(now, has_choice);
    }

    /// Takes that an authentic message came on `from`; `is_data` tells user data from control.
    pub fn handle_authenticated(&mut self, from: Path, is_data: bool, now: Instant) {
        if is_data {
            self.rouse(now);
            if self.evidence.is_idle(now) {
                self.wake(now);
            }
            self.evidence.heard(self.current == Some(from), now);
        }
        let Path::Direct(endpoint) = from else {
            if let Some(pair) = self.pairs.get_mut(&from) {
                pair.inbound = Some(now);
            }
            return;
        };
        if !self.mode.seeks() || !candidate::is_reachable(endpoint) {
            return;
        }
        if !self.pairs.contains_key(&from) {
            let pair = Pair::learned(endpoint, self.number(), now);
            self.pairs.insert(from, pair);
            self.bound_learned();
        }
        if let Some(pair) = self.pairs.get_mut(&from) {
            pair.inbound = Some(now);
            if !self.is_quiet {
                pair.heard(now);
            }
        }
    }

    /// Takes that somebody wants to know whether there is a direct path, though no data flows.
    pub fn handle_interest(&mut self, now: Instant) {
        self.rouse(now);
        if matches!(self.current, Some(Path::Direct(_))) {
            return;
        }
        if self.evidence.is_idle(now) {
            self.wake(now);
        }
        for pair in self.pairs.values_mut() {
            pair.retry_for(now);
        }
    }

    /// Takes the reply to a probe, which came on `from`.
    pub fn handle_reply(&mut self, from: Path, reply: &ProbeReply, now: Instant) {
        let Some(sent) = self.probes.answered(reply.id) else {
            return;
        };
        // Only the way a probe went is proven by its reply.
        if sent.path != from {
            return;
        }
        let Some(pair) = self.pairs.get_mut(&from) else {
            return;
        };
        if let Some(size) = sent.size {
            return pair.mtu.answered(size, now);
        }
        pair.replied(now.saturating_duration_since(sent.at), now);
        pair.observed = reply.observed.or(pair.observed);
        let on_current = self.current == Some(from);
        self.evidence.reported(reply.received, sent.at, on_current);
        self.consider(from, now);
    }

    /// Takes that our network changed: all paths are probed at once while the relay carries data.
    pub fn handle_network_change(&mut self, now: Instant) {
        self.silent.clear();
        self.forget_meeting(now);
        self.evidence.prove();
        for pair in self.pairs.values_mut() {
            pair.mtu.restart();
        }
        self.restart_all(now);
        self.schedule_telling(now);
        if self.has_relay && self.mode == Mode::Auto && self.current != Some(Path::Relay) {
            self.switch(Some(Path::Relay), Reason::NetworkChanged, now);
        }
    }

    /// Returns the next probe to send.
    pub fn poll_probe(&mut self) -> Option<Probe> {
        self.probes.poll()
    }

    /// Returns our candidates when they are to be told to the peer.
    pub fn poll_candidates(&mut self) -> Option<Candidates> {
        if !std::mem::take(&mut self.is_telling) {
            return None;
        }
        let (seq, list) = (self.seq, self.local.clone());
        Some(Candidates { seq, list })
    }

    /// Returns why our endpoint may have changed, when there was a new reason to think so.
    pub fn poll_doubt(&mut self) -> Option<Doubt> {
        self.doubt.take()
    }

    /// Takes that no reply came to a probe of a direct path.
    fn note_silence(&mut self, path: Path) {
        let is_direct = matches!(self.current, Some(Path::Direct(_)));
        let failing = self.pairs.get(&path).is_some_and(Pair::is_failing);
        let is_vain = !is_direct || (self.current == Some(path) && failing);
        if path != Path::Relay && is_vain {
            self.doubt = self.doubt.max(Some(Doubt::Vain));
        }
    }

    fn number(&mut self) -> u16 {
        let number = self.next_number;
        self.next_number = number.checked_add(1).unwrap_or(2);
        number
    }
}

const _: () = assert!(MAX_CANDIDATES + MAX_LEARNED <= 24, "see endpoints()");

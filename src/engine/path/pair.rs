use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::engine::path::{
    PairState, REVIVE,
    candidate::Class,
    mtu::Mtu,
    record::{Bar, Fates},
};
use crate::wire::candidate::{Candidate, Kind};

/// Pauses between the probes of an endpoint: quick enough to meet the peer's in the NATs, spread
/// enough to survive its being told late. With the first they are the 5 of protocol.md section 6.
const GAPS: [Duration; 4] = [
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
];

/// Most probes to an endpoint that does not answer.
pub(super) const MAX_TRIES: u8 = 5;

/// Wait for a reply to the last of them.
const VERDICT: Duration = Duration::from_secs(1);

/// Pause between probes of a path that answers: until its RTT is known, and after.
const LEARN: Duration = Duration::from_secs(1);
const REFRESH: Duration = Duration::from_secs(15);

/// Samples that make an RTT known.
pub(super) const SAMPLES: u8 = 3;

/// Probes lost in a row that end a path not in use.
const MISSES: u8 = 3;

/// Pause before a path that once answered is tried again, doubled up to the longest.
const RETRY: Duration = Duration::from_secs(5);
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// The same for one that never answered, and may be a stranger's: soon enough that a firewall opened
/// since is found without anybody's doing, and so rare that being named costs a stranger nothing.
const STRANGE_RETRY: Duration = Duration::from_secs(120);
const LONGEST_STRANGE_RETRY: Duration = Duration::from_secs(600);

/// Time from opening the NATs on our side to the first probe, in which the peer opens those on its side.
///
/// A probe that comes to a router before its own host has sent there makes some of them take another
/// port for that host: Linux does, without a filter on what is for itself, as container hosts are.
const OPENING: Duration = Duration::from_millis(150);

/// Shortest pause before a silent endpoint is asked because somebody wants to know.
const CURIOUS: Duration = Duration::from_secs(10);

/// One path to the peer and all that is known of it.
#[derive(Debug)]
pub(super) struct Pair {
    /// None for the relay and for endpoints that the peer did not name.
    pub(super) kind: Option<Kind>,
    pub(super) class: Class,
    pub(super) priority: u32,
    /// Our number of the path in probes.
    pub(super) number: u16,
    /// Whether NATs may be on the way.
    has_nats: bool,
    /// Whether those on our side are to be opened before the first probe.
    pub(super) is_shut: bool,
    /// Whether the peer names it now.
    pub(super) is_listed: bool,
    pub(super) state: PairState,
    /// Whether a probe of ours was ever answered.
    pub(super) has_answered: bool,
    /// Where the peer sees us on this path; None before a reply, and on the relay.
    pub(super) observed: Option<SocketAddr>,
    /// Last authentic message on this path; None before the first.
    pub(super) inbound: Option<Instant>,
    /// When a probe is wanted out of turn; None when none is.
    wanted: Option<Instant>,
    /// Last probe; None before the first.
    asked: Option<Instant>,
    /// Probes without a reply since the path was begun anew.
    tries: u8,
    misses: u8,
    samples: u8,
    retry: Duration,
    pub(super) fates: Fates,
    /// When it was last begun anew for being heard; None when never.
    revived: Option<Instant>,
    pub(super) bar: Bar,
    pub(super) mtu: Mtu,
}

impl Pair {
    fn new(class: Class, number: u16) -> Self {
        Self {
            kind: None,
            class,
            priority: 0,
            number,
            has_nats: false,
            is_shut: false,
            is_listed: false,
            state: PairState::Unprobed,
            has_answered: false,
            observed: None,
            inbound: None,
            wanted: None,
            asked: None,
            tries: 0,
            misses: 0,
            samples: 0,
            retry: RETRY,
            fates: Fates::default(),
            revived: None,
            bar: Bar::default(),
            mtu: Mtu::new(),
        }
    }

    fn to(endpoint: SocketAddr, number: u16) -> Self {
        let mut pair = Self::new(Class::of(endpoint), number);
        pair.has_nats = endpoint.is_ipv4() && pair.class == Class::Wan;
        pair
    }

    pub(super) fn relay() -> Self {
        Self::new(Class::Relay, 1)
    }

    /// An endpoint the peer named, which left `tries` probes unanswered before.
    pub(super) fn listed(candidate: &Candidate, number: u16, tries: u8, now: Instant) -> Self {
        let mut pair = Self::to(candidate.endpoint, number);
        pair.is_shut = pair.has_nats;
        pair.list(candidate);
        pair.tries = tries;
        if tries >= MAX_TRIES {
            pair.kill();
            pair.asked = Some(now);
        } else {
            pair.wanted = Some(now);
        }
        pair
    }

    /// An endpoint that something authentic came from.
    pub(super) fn learned(endpoint: SocketAddr, number: u16, now: Instant) -> Self {
        let mut pair = Self::to(endpoint, number);
        pair.revived = Some(now);
        pair
    }

    pub(super) const fn list(&mut self, candidate: &Candidate) {
        self.kind = Some(candidate.kind);
        self.priority = candidate.priority;
        self.is_listed = true;
    }

    /// Begins anew: up to five probes, the first at once or as soon as the NATs are open.
    pub(super) const fn restart(&mut self, now: Instant) {
        self.is_shut = self.has_nats;
        self.state = PairState::Unprobed;
        self.tries = 0;
        self.misses = 0;
        self.retry = RETRY;
        self.wanted = Some(now);
    }

    /// Forgets replies of long ago; nothing is asked until there is data.
    pub(super) const fn lapse(&mut self) {
        self.state = PairState::Dead;
        self.wanted = None;
    }

    /// Wants a probe out of turn.
    pub(super) const fn want(&mut self, now: Instant) {
        self.wanted = Some(now);
    }

    /// Something authentic came on this path, so the way here is open: the way there may be now.
    pub(super) fn heard(&mut self, now: Instant) {
        self.is_shut = false;
        match self.state {
            PairState::Alive { .. } => {}
            PairState::Dead => {
                if self.revived.is_none_or(|at| now >= at + REVIVE) {
                    self.revived = Some(now);
                    self.tries = 0;
                    self.state = PairState::Unprobed;
                    self.wanted = Some(now);
                }
            }
            PairState::Unprobed => self.wanted = Some(now),
            PairState::Probing { sent, tries } => {
                // Once per pause: each message of a burst would cost a probe.
                if tries < MAX_TRIES && now >= sent + GAPS[0] {
                    self.wanted = Some(now);
                }
            }
        }
    }

    /// The NATs on our side were opened.
    pub(super) fn opened(&mut self, now: Instant) {
        self.is_shut = false;
        self.wanted = Some(now + OPENING);
    }

    pub(super) fn asked(&mut self, now: Instant) {
        self.asked = Some(now);
        self.wanted = None;
        self.tries = self.tries.saturating_add(1);
        match self.state {
            PairState::Alive { .. } => {}
            PairState::Dead => {
                let longest = if self.has_answered {
                    LONGEST_RETRY
                } else {
                    LONGEST_STRANGE_RETRY
                };
                self.retry = (self.retry * 2).min(longest);
            }
            PairState::Probing { .. } | PairState::Unprobed => {
                let (sent, tries) = (now, self.tries);
                self.state = PairState::Probing { sent, tries };
            }
        }
    }

    pub(super) fn replied(&mut self, rtt: Duration, now: Instant) {
        let smoothed = match self.state {
            // RFC 6298 section 2: one eighth of each new sample.
            PairState::Alive { rtt: before, .. } => (before * 7 + rtt) / 8,
            PairState::Dead | PairState::Probing { .. } | PairState::Unprobed => {
                self.samples = 0;
                // It may lead elsewhere than when it answered before.
                self.mtu.restart();
                rtt
            }
        };
        self.state = PairState::Alive {
            rtt: smoothed,
            last: now,
        };
        self.samples = self.samples.saturating_add(1);
        self.has_answered = true;
        self.tries = 0;
        self.misses = 0;
        self.retry = RETRY;
        self.fates.add(true);
    }

    /// A probe was lost; a path in use is not judged by that.
    pub(super) fn lost(&mut self, is_current: bool) {
        self.fates.add(false);
        self.misses = self.misses.saturating_add(1);
        if self.is_alive() && self.misses >= MISSES && !is_current {
            self.kill();
        }
    }

    /// Tells whether more than one probe in a row was lost.
    pub(super) const fn is_failing(&self) -> bool {
        self.misses > 1
    }

    pub(super) const fn kill(&mut self) {
        self.state = PairState::Dead;
        self.wanted = None;
        self.retry = if self.has_answered {
            RETRY
        } else {
            STRANGE_RETRY
        };
    }

    /// Wants a probe because somebody asks, if it is silent and was not asked just now.
    pub(super) fn retry_for(&mut self, now: Instant) {
        let is_dead = matches!(self.state, PairState::Dead);
        if is_dead && self.asked.is_none_or(|at| now >= at + CURIOUS) {
            self.want(now);
        }
    }

    /// Begins a silent path anew because the peer is about to probe us from there, or goes on.
    ///
    /// One that never answered gets one probe, as its probes bring more, and none soon after another:
    /// NATs stay open for half a minute, and who makes us change our mind all the time is to gain
    /// nothing by it.
    pub(super) fn meet(&mut self, now: Instant) {
        match self.state {
            PairState::Dead if self.has_answered => self.restart(now),
            PairState::Dead => {
                if self.asked.is_none_or(|at| now >= at + self.retry / 4) {
                    self.want(now);
                }
            }
            PairState::Alive { .. } | PairState::Probing { .. } | PairState::Unprobed => {}
        }
    }

    /// Ends the hope for a reply when it is time.
    pub(super) fn judge(&mut self, now: Instant) {
        if self.verdict_at().is_some_and(|at| now >= at) {
            self.kill();
        }
    }

    fn verdict_at(&self) -> Option<Instant> {
        match self.state {
            PairState::Probing { sent, tries } => (tries >= MAX_TRIES).then(|| sent + VERDICT),
            PairState::Alive { .. } | PairState::Dead | PairState::Unprobed => None,
        }
    }

    /// Returns when a probe or a verdict is due in turn; `active_until` bounds what only serves data.
    pub(super) fn due(&self, active_until: Option<Instant>) -> Option<(Instant, Due)> {
        let serves = |at: &Instant| active_until.is_some_and(|end| *at < end);
        let turn = match self.state {
            PairState::Alive { .. } => {
                let pause = if self.samples < SAMPLES {
                    LEARN
                } else {
                    REFRESH
                };
                self.asked.map(|at| at + pause).filter(serves)
            }
            PairState::Dead => self.asked.map(|at| at + self.retry).filter(serves),
            PairState::Unprobed => None,
            PairState::Probing { sent, tries } => {
                if let Some(at) = self.verdict_at() {
                    return Some((at, Due::Verdict));
                }
                let gap = GAPS.get(usize::from(tries.saturating_sub(1)));
                gap.map(|gap| sent + *gap)
            }
        };
        let first = turn.into_iter().chain(self.wanted).min();
        first.map(|at| (at, Due::Probe))
    }

    pub(super) const fn is_alive(&self) -> bool {
        matches!(self.state, PairState::Alive { .. })
    }

    /// Returns the smoothed RTT and the last reply; None unless alive.
    pub(super) const fn alive(&self) -> Option<(Duration, Instant)> {
        match self.state {
            PairState::Alive { rtt, last } => Some((rtt, last)),
            PairState::Dead | PairState::Probing { .. } | PairState::Unprobed => None,
        }
    }

    /// Returns the smoothed RTT; None unless alive.
    pub(super) fn rtt(&self) -> Option<Duration> {
        self.alive().map(|(rtt, _)| rtt)
    }

    pub(super) const fn knows_rtt(&self) -> bool {
        self.is_alive() && self.samples >= SAMPLES
    }

    pub(super) const fn asked_at(&self) -> Option<Instant> {
        self.asked
    }

    pub(super) const fn tries(&self) -> u8 {
        self.tries
    }
}

/// What a pair's deadline is for.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Due {
    Probe,
    Verdict,
}

//! The reference: who may exchange what, in sets of facts and nothing of the code's.
//!
//! Facts are consents, revocations and memberships. Each agent surely knows those it made itself and
//! those the registry brought while both were connected. It may know more, since peers tell each
//! other too; so a [`Belief`] is sure only where every fact in between gives the same answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

/// How sure something is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Belief {
    No,
    Maybe,
    Yes,
}

impl Belief {
    pub(crate) const fn from_bool(is: bool) -> Self {
        if is { Self::Yes } else { Self::No }
    }
}

/// What a consent lets in.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Allow {
    Any,
    Both,
    High,
    Low,
    Replies,
}

/// The ports programs serve.
pub(crate) const LOW: u16 = 8000;
pub(crate) const HIGH: u16 = 9000;

impl Allow {
    pub(crate) const ALL: [Self; 5] = [Self::Any, Self::Both, Self::High, Self::Low, Self::Replies];

    /// Returns it as people write it.
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::Both => "udp/8000-9000",
            Self::High => "udp/9000",
            Self::Low => "udp/8000",
            Self::Replies => "",
        }
    }

    pub(crate) const fn lets_in(self, port: u16) -> bool {
        match self {
            Self::Any | Self::Both => true,
            Self::High => port == HIGH,
            Self::Low => port == LOW,
            Self::Replies => false,
        }
    }
}

/// One consent, or its end.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Version {
    /// None once it is taken back.
    pub(crate) allow: Option<Allow>,
    /// The request it answers, by its hash; None when it answers none.
    pub(crate) answers: Option<String>,
    /// Whether others may refuse it, since its issuer's clock was ahead.
    pub(crate) is_doubtful: bool,
}

/// A request, as it was made last.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) hash: String,
    pub(crate) offer: Allow,
    /// Whether its maker still waits for the answer.
    pub(crate) is_open: bool,
    /// Whether it did before the world last settled.
    pub(crate) was_open: bool,
    pub(crate) is_posted: bool,
    /// Whether it surely waits at the one asked, while it lasts.
    pub(crate) is_waiting: bool,
    pub(crate) is_doubtful: bool,
    /// Bounds of when it ends, as the membership of its maker did when it was made.
    ends: (Instant, Instant),
    /// Whether what its maker signed since is numbered above it: its clock was not set back.
    is_before: bool,
    /// How often its maker had consented to the one asked, or taken that back, when it was made.
    given: usize,
}

/// How an agent is a member.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Life {
    /// By the owner's own grant, which ends.
    Granted { until: Instant },
    /// By a token and the registry, which renews it while the agent is connected.
    Admitted { length: Duration },
}

/// What the model knows of one agent and its host.
#[derive(Clone, Debug)]
pub(crate) struct AgentModel {
    pub(crate) life: Life,
    pub(crate) is_member: bool,
    pub(crate) is_running: bool,
    pub(crate) is_awake: bool,
    pub(crate) is_revoked: bool,
    /// Tunnel keys so far.
    pub(crate) joins: u8,
    /// Bounds of when its admission ends, as it is at its own host.
    pub(crate) ends: (Instant, Instant),
    /// How far its clock is ahead, in milliseconds, and was within the last minute.
    pub(crate) skew: i64,
    pub(crate) past_skew: (i64, Instant),
    /// Until when its statements are numbered ahead of the true time; None when they are not.
    pub(crate) ahead_until: Option<Instant>,
    /// Whom it answers by itself, and with what.
    pub(crate) autos: Vec<(usize, Allow)>,
}

impl AgentModel {
    /// Returns bounds of when its membership ends, as it is at its own host.
    const fn own_ends(&self) -> (Instant, Instant) {
        match self.life {
            Life::Granted { until } => (until, until),
            Life::Admitted { .. } => self.ends,
        }
    }
}

/// The clock is believed within this; less than what the registry still takes.
const MAX_SKEW: i64 = 45_000; // ms

/// How long an agent may take to notice that its clock was set.
const NOTICE: Duration = Duration::from_secs(61);

/// How near to an end nothing is sure.
const EDGE: Duration = Duration::from_secs(2);

/// How often a record, and with it an admission, is refreshed; and some.
const REFRESH: Duration = Duration::from_secs(205);

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    start: Instant,
    pub(crate) agents: Vec<AgentModel>,
    pub(crate) is_registry_up: bool,
    pub(crate) registry_cuts: BTreeSet<usize>,
    pub(crate) is_token_revoked: bool,
    /// All consents ever, by issuer and subject, oldest first.
    pub(crate) consents: BTreeMap<(usize, usize), Vec<Version>>,
    /// How many of them the registry surely took.
    posted: BTreeMap<(usize, usize), usize>,
    /// How many of them their subject surely knows.
    heard: BTreeMap<(usize, usize), usize>,
    /// Requests by who asked and who is asked.
    pub(crate) asked: BTreeMap<(usize, usize), Asked>,
    /// Whose tunnel key who surely knows: observer and agent, and which.
    keys: BTreeMap<(usize, usize), u8>,
    /// The earliest end of an agent's membership that an observer may know.
    ends: BTreeMap<(usize, usize), Instant>,
    /// Who surely knows of which agent that it is revoked.
    knows_revoked: BTreeSet<(usize, usize)>,
}

impl Model {
    pub(crate) fn new(agents: Vec<AgentModel>, start: Instant) -> Self {
        Self {
            start,
            agents,
            is_registry_up: true,
            registry_cuts: BTreeSet::new(),
            is_token_revoked: false,
            consents: BTreeMap::new(),
            posted: BTreeMap::new(),
            heard: BTreeMap::new(),
            asked: BTreeMap::new(),
            keys: BTreeMap::new(),
            ends: BTreeMap::new(),
            knows_revoked: BTreeSet::new(),
        }
    }

    pub(crate) fn pairs(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let n = self.agents.len();
        (0..n).flat_map(move |a| (0..n).filter(move |b| *b != a).map(move |b| (a, b)))
    }

    /// Returns the newest consent of one to another; None before any.
    pub(crate) fn newest(&self, from: usize, to: usize) -> Option<&Version> {
        self.consents.get(&(from, to))?.last()
    }

    /// Returns what `at` lets in from `from` by its own will; None without consent.
    pub(crate) fn allows(&self, at: usize, from: usize) -> Option<Allow> {
        self.newest(at, from)?.allow
    }

    /// Takes that an agent consented, or took its consent back (`allow` is None).
    pub(crate) fn consent(
        &mut self,
        from: usize,
        to: usize,
        allow: Option<Allow>,
        answers: Option<String>,
        now: Instant,
    ) {
        let version = Version {
            allow,
            answers,
            is_doubtful: self.is_doubtful(from, now),
        };
        self.consents.entry((from, to)).or_default().push(version);
        if self.allows(from, to).is_some() && self.allows(to, from).is_some() {
            // What stands needs no answer any more, whoever asked whom.
            for pair in [(from, to), (to, from)] {
                if let Some(asked) = self.asked.get_mut(&pair) {
                    asked.is_waiting = false;
                }
            }
        }
    }

    /// Takes that an agent asked another.
    pub(crate) fn ask(&mut self, from: usize, to: usize, hash: String, offer: Allow, now: Instant) {
        let asked = Asked {
            hash,
            offer,
            is_open: true,
            was_open: true,
            is_posted: false,
            is_waiting: false,
            is_doubtful: self.is_doubtful(from, now),
            ends: self.agents[from].own_ends(),
            is_before: true,
            given: self.consents.get(&(from, to)).map_or(0, Vec::len),
        };
        self.asked.insert((from, to), asked);
    }

    /// Takes that an agent does not wait any more for the answer of another.
    pub(crate) fn close(&mut self, from: usize, to: usize) {
        if let Some(asked) = self.asked.get_mut(&(from, to)) {
            asked.is_open = false;
        }
    }

    /// Remembers who waits for an answer now, of whom some have it once the world has settled.
    pub(crate) fn note_open(&mut self) {
        for asked in self.asked.values_mut() {
            asked.was_open = asked.is_open;
        }
    }

    /// Tells whether others may refuse what the agent signs now.
    fn is_doubtful(&self, agent: usize, now: Instant) -> bool {
        let agent = &self.agents[agent];
        agent.skew > MAX_SKEW || agent.ahead_until.is_some_and(|until| now < until)
    }

    /// Tells whether an agent's clock is near enough for others.
    pub(crate) fn has_good_clock(&self, agent: usize, now: Instant) -> bool {
        self.agents[agent].skew.abs() <= MAX_SKEW && !self.is_doubtful(agent, now)
    }

    /// Takes that a clock was set.
    pub(crate) fn set_clock(&mut self, agent: usize, skew: i64, now: Instant) {
        if skew < self.agents[agent].skew {
            let own = self
                .asked
                .iter_mut()
                .filter(|((from, _), _)| *from == agent);
            own.for_each(|(_, asked)| asked.is_before = false);
        }
        let agent = &mut self.agents[agent];
        agent.past_skew = (agent.skew, now + NOTICE);
        agent.skew = skew;
        if skew > MAX_SKEW {
            let ahead = Duration::from_millis(skew.unsigned_abs());
            // One that was refused meanwhile tries again this much later at most.
            let until = now + ahead + Duration::from_secs(20);
            agent.ahead_until = Some(agent.ahead_until.map_or(until, |at| at.max(until)));
        }
    }

    /// Takes that an agent joined.
    pub(crate) fn join(&mut self, agent: usize, now: Instant) {
        let found = &mut self.agents[agent];
        found.is_member = true;
        found.joins += 1;
        if let Life::Admitted { length } = found.life {
            found.ends = (now + length - EDGE, now + length + EDGE);
        }
    }

    /// Takes that an agent left: it forgets what it knew of others, but not what it said.
    pub(crate) fn leave(&mut self, agent: usize) {
        let found = &mut self.agents[agent];
        found.is_member = false;
        found.autos.clear();
        self.heard.retain(|(_, subject), _| *subject != agent);
        self.keys.retain(|(observer, _), _| *observer != agent);
        self.ends.retain(|(observer, _), _| *observer != agent);
        for ((from, to), asked) in &mut self.asked {
            asked.is_open &= *from != agent;
            // It comes again by the registry, should the agent come back.
            asked.is_waiting &= *to != agent;
        }
        self.knows_revoked
            .retain(|(observer, _)| *observer != agent);
    }

    /// Tells whether an agent is surely connected to the registry, once it had time.
    pub(crate) fn is_linked(&self, agent: usize, now: Instant) -> bool {
        let found = &self.agents[agent];
        self.can_link(agent)
            && self.has_good_clock(agent, now)
            && found.is_awake
            && self.holds(agent, agent, now) == Belief::Yes
    }

    /// Tells whether an agent may be connected to the registry.
    fn can_link(&self, agent: usize) -> bool {
        let found = &self.agents[agent];
        self.is_registry_up
            && found.is_running
            && found.is_member
            && !self.registry_cuts.contains(&agent)
    }

    /// Takes that an agent whose admission may be renewed was so until now.
    pub(crate) fn note_links(&mut self, now: Instant) {
        for agent in 0..self.agents.len() {
            let may_be = self.can_link(agent);
            let is_sure = self.is_linked(agent, now);
            let found = &mut self.agents[agent];
            let Life::Admitted { length } = found.life else {
                continue;
            };
            if may_be {
                // With a clock that is off it may end that much later by the true time.
                found.ends.1 = found.ends.1.max(now + length + EDGE);
            }
            if is_sure {
                let least = now + (length / 2).saturating_sub(REFRESH);
                found.ends.0 = found.ends.0.max(least);
            }
        }
    }

    /// Takes that the world had time to settle: who is connected knows what the registry has.
    pub(crate) fn settle(&mut self, now: Instant) {
        self.note_links(now);
        let linked = (0..self.agents.len()).filter(|agent| self.is_linked(*agent, now));
        let linked = linked.collect::<BTreeSet<_>>();
        let news = self.asked.iter().filter(|((from, to), asked)| {
            // One that is withdrawn or answered is not sent any more.
            let is_sent = asked.is_open && self.has_answer(*from, *to) == Belief::No;
            !asked.is_posted && linked.contains(from) && !asked.is_doubtful && is_sent
        });
        for pair in news.map(|(pair, _)| *pair).collect::<Vec<_>>() {
            if let Some(asked) = self.asked.get_mut(&pair) {
                asked.is_posted = true;
                asked.is_waiting = linked.contains(&pair.1);
            }
        }
        for ((from, to), versions) in &self.consents {
            if !linked.contains(from) {
                continue;
            }
            let is_sure = versions.last().is_some_and(|newest| !newest.is_doubtful);
            if is_sure {
                self.posted.insert((*from, *to), versions.len());
            }
        }
        for (pair, posted) in &self.posted {
            if linked.contains(&pair.1) {
                self.heard.insert(*pair, *posted);
            }
        }
        for (observer, agent) in self.pairs() {
            if linked.contains(&observer) {
                self.settle_one((observer, agent), linked.contains(&agent), now);
            }
            self.settle_request(observer, agent);
        }
    }

    /// An agent that surely has its answer waits for it no more.
    fn settle_request(&mut self, from: usize, to: usize) {
        let agent = &self.agents[from];
        let is_up = agent.is_running && agent.is_awake;
        let has_answer = self.has_answer(from, to) == Belief::Yes;
        if let Some(asked) = self.asked.get_mut(&(from, to)) {
            // By their numbers a consent is not newer than what an earlier clock signed.
            asked.is_open &= !(is_up && has_answer && asked.is_before);
        }
    }

    /// Tells whether `from` consented after it asked, and knows of the other's consent.
    fn has_answer(&self, from: usize, to: usize) -> Belief {
        let given = self.consents.get(&(from, to)).map_or(0, Vec::len);
        let asked = self.asked.get(&(from, to));
        let has_consented = asked.is_some_and(|asked| given > asked.given);
        Belief::from_bool(has_consented && self.allows(from, to).is_some())
            .min(self.hears_consent(from, to))
    }

    fn settle_one(&mut self, (observer, agent): (usize, usize), is_linked: bool, now: Instant) {
        let found = &self.agents[agent];
        if found.is_revoked {
            self.knows_revoked.insert((observer, agent));
        }
        let is_shown = self.allows(agent, observer).is_some();
        let has_asked = self.asked.get(&(agent, observer)).is_some_and(|asked| {
            asked.is_posted && lasts(asked.ends, self.clock_of(observer, now)) == Belief::Yes
        });
        if is_linked && (is_shown || has_asked) {
            self.keys.insert((observer, agent), found.joins);
            self.ends.insert((observer, agent), found.own_ends().0);
        }
    }

    /// Takes that everybody knows of revocations: it was made.
    pub(crate) fn revoke_agent(&mut self, agent: usize) {
        self.agents[agent].is_revoked = true;
    }

    /// Tells whether `observer` surely knows the newest tunnel key of `agent`.
    pub(crate) fn has_key(&self, observer: usize, agent: usize) -> bool {
        self.keys.get(&(observer, agent)) == Some(&self.agents[agent].joins)
    }

    /// Tells whether, to `observer`, the membership of `agent` holds.
    pub(crate) fn holds(&self, observer: usize, agent: usize, now: Instant) -> Belief {
        let found = &self.agents[agent];
        if self.knows_revoked.contains(&(observer, agent)) {
            return Belief::No;
        }
        let mut ends = found.own_ends();
        if observer != agent {
            let known = self.ends.get(&(observer, agent)).copied();
            ends.0 = known.unwrap_or(self.start);
        }
        let by_time = lasts(ends, self.clock_of(observer, now));
        let by_revocation = if found.is_revoked {
            Belief::Maybe
        } else {
            Belief::Yes
        };
        by_time.min(by_revocation)
    }

    /// Returns between which moments the clock of an agent surely is.
    fn clock_of(&self, agent: usize, now: Instant) -> (Instant, Instant) {
        let found = &self.agents[agent];
        let past = if now < found.past_skew.1 {
            found.past_skew.0
        } else {
            found.skew
        };
        let shift = |skew: i64| {
            let by = Duration::from_millis(skew.unsigned_abs());
            if skew < 0 { now - by } else { now + by }
        };
        let (one, other) = (shift(found.skew), shift(past));
        // Others' statements drag a slow clock along; those of clocks a little ahead, too.
        (
            one.min(other).min(now),
            one.max(other).max(now) + Duration::from_secs(61),
        )
    }

    /// Tells whether a request, if it was not answered, waits at the one asked.
    pub(crate) fn waits(&self, from: usize, to: usize, now: Instant) -> Belief {
        let Some(asked) = self.asked.get(&(from, to)) else {
            return Belief::No;
        };
        let is_there = Belief::from_bool(asked.is_waiting).max(Belief::Maybe);
        is_there.min(lasts(asked.ends, self.clock_of(to, now)))
    }

    /// Tells whether `at` has `peer` installed.
    pub(crate) fn trusts(&self, at: usize, peer: usize, now: Instant) -> Belief {
        if !self.agents[at].is_member || self.allows(at, peer).is_none() {
            return Belief::No;
        }
        let consent = self.hears_consent(at, peer);
        let memberships = self.holds(at, at, now).min(self.holds(at, peer, now));
        let knows = if self.keys.contains_key(&(at, peer)) {
            Belief::Yes
        } else {
            Belief::Maybe
        };
        consent.min(memberships).min(knows)
    }

    /// Tells whether `at` knows of a consent of `peer` to it that stands.
    fn hears_consent(&self, at: usize, peer: usize) -> Belief {
        let none = Vec::new();
        let versions = self.consents.get(&(peer, at)).unwrap_or(&none);
        let sure = self.heard.get(&(peer, at)).copied().unwrap_or(0);
        let possible = &versions[sure.saturating_sub(1).min(versions.len())..];
        let mut stands = possible.iter().map(|version| version.allow.is_some());
        if sure == 0 {
            let any = stands.any(|stands| stands);
            return if any { Belief::Maybe } else { Belief::No };
        }
        let all = stands.collect::<BTreeSet<_>>();
        match (all.contains(&true), all.contains(&false)) {
            (true, false) => Belief::Yes,
            (true, true) => Belief::Maybe,
            (false, _) => Belief::No,
        }
    }

    /// Tells whether `at`, which asked `peer`, may, or must, know of an answer to that request.
    pub(crate) fn is_answered(&self, at: usize, peer: usize, now: Instant) -> Belief {
        let Some(asked) = self.asked.get(&(at, peer)).filter(|asked| asked.is_open) else {
            return Belief::No;
        };
        let answers = |version: &&Version| {
            version.allow.is_some() && version.answers.as_deref() == Some(&asked.hash)
        };
        let versions = self
            .consents
            .get(&(peer, at))
            .map_or(&[][..], Vec::as_slice);
        let sure = self.heard.get(&(peer, at)).copied().unwrap_or(0);
        let possible = &versions[sure.saturating_sub(1).min(versions.len())..];
        let any = possible.iter().any(|version| answers(&version));
        let lasts = lasts(asked.ends, self.clock_of(at, now)) == Belief::Yes;
        let is_sure = sure > 0 && sure == versions.len() && any && lasts;
        match (is_sure && self.keys.contains_key(&(at, peer)), any) {
            (true, _) => Belief::Yes,
            (false, true) => Belief::Maybe,
            (false, false) => Belief::No,
        }
    }
}

/// Tells whether what ends between two moments stands by a clock that is between two.
fn lasts(ends: (Instant, Instant), clock: (Instant, Instant)) -> Belief {
    if ends.0 > clock.1 + EDGE {
        Belief::Yes
    } else if ends.1 + EDGE <= clock.0 {
        Belief::No
    } else {
        Belief::Maybe
    }
}

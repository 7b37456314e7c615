//! Whether deployment and model agree, and what must hold at every moment.

use std::time::{Duration, Instant};

use agentnet::engine::{
    PeerState,
    path::{Mode, Path},
};
use agentnet::os::clock;
use agentnet::statement::ConsentState;

use crate::world::internet::{Node, Weather};
use crate::world::ledger::Delivery;
use crate::world::model::{Allow, Belief};
use crate::world::play::{Play, link};
use crate::world::trust::scope;

/// Where deployment and model differ.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Failure {
    pub(crate) what: String,
    /// Between whom; one twice when it is about one; None when it is about nobody.
    pub(crate) pair: Option<(usize, usize)>,
}

impl Failure {
    pub(crate) fn between(one: usize, other: usize, what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            pair: Some((one, other)),
        }
    }

    pub(crate) fn of(one: usize, what: impl Into<String>) -> Self {
        Self::between(one, one, what)
    }
}

/// Within this data arrives between two that trust and reach each other; and on a bad network.
const BOUND: Duration = Duration::from_secs(20);
const BAD_BOUND: Duration = Duration::from_secs(90);

/// A NAT that forgot all lets nothing in before the host behind it sends something, an idle one every
/// 25 s; the other end's handshake is then repeated within 5 s.
const REOPENED: Duration = Duration::from_secs(25 + 5 + 5);

/// Within this a direct path is found; one that was lost is tried again less and less often, and so is
/// a gateway asked where it sees a host whose NAT forgot all.
const DIRECT_BOUND: Duration = Duration::from_secs(10);
const DIRECT_AGAIN: Duration = Duration::from_secs(100);

/// How long a direct path that carried data is surely there with the gateway away.
const FRESH: Duration = Duration::from_secs(60);

/// Within this a handshake has its answer or is given up: 90 s, and the longest pause between two tries.
const HANDSHAKE: Duration = Duration::from_secs(90 + 5 + 1);

/// Pause between two packets while something is waited for.
const STEP: Duration = Duration::from_millis(250);

/// Endpoints an engine may keep of one peer: 16 named, 8 learnt, and the relay (`engine/path`).
const MAX_PATHS: usize = 25;

/// A packet that must arrive, or one after it.
#[derive(Debug)]
struct Open {
    from: usize,
    to: usize,
    said: u64,
    end: Instant,
}

impl Play {
    /// Lets the world settle, and compares it with the model.
    pub(crate) fn agree(&mut self) -> Result<(), Failure> {
        self.look()?;
        let before = (clock::now(), self.world.sent.clone());
        self.model.note_open();
        self.world.pass(self.settle);
        self.look()?;
        self.model.settle(clock::now());
        self.adopt()?;
        self.model.settle(clock::now());
        self.forget_paths();
        self.check_trust()?;
        self.check_handshakes()?;
        self.check_bounds(before.0, &before.1)?;
        self.look()
    }

    /// Judges what programs got since the last look.
    pub(crate) fn look(&mut self) -> Result<(), Failure> {
        if let Some(what) = self.world.broken.take() {
            return Err(Failure { what, pair: None });
        }
        let now = clock::now();
        let all = std::mem::take(&mut self.world.ledger.deliveries);
        let (due, later) = all.into_iter().partition(|delivery| delivery.at <= now);
        self.world.ledger.deliveries = later;
        let due: Vec<Delivery> = due;
        due.iter().try_for_each(|delivery| self.judge(delivery))
    }

    fn judge(&mut self, delivery: &Delivery) -> Result<(), Failure> {
        let (from, to) = (delivery.from, delivery.to);
        let wrong = |what: &str| Err(Failure::between(from, to, what));
        let Some(number) = delivery.said.filter(|_| delivery.is_unchanged) else {
            return wrong("a program got what the other's never sent");
        };
        self.world
            .trail
            .note((from, to, number, delivery.at - self.world.start));
        let Some(said) = self.world.ledger.said(number) else {
            return wrong("a program got a packet of long ago");
        };
        if said.deliveries > 1 {
            return wrong("a program got a packet twice");
        }
        if self.forbidden.contains(&number) {
            return wrong("a packet arrived that its sender might not send");
        }
        let Some(allow) = self.model.allows(to, from) else {
            return wrong("a packet arrived without the receiver's consent");
        };
        // An answer told in session completes a request of the receiver before this model knows.
        let asked = self.model.asked.get(&(to, from));
        let asked = asked.filter(|asked| asked.is_open || asked.was_open);
        let is_offered = asked.is_some_and(|asked| asked.offer.lets_in(said.port));
        if !said.is_reply && !allow.lets_in(said.port) && !is_offered {
            return wrong("a packet arrived at a port that the consent does not let in");
        }
        if self.model.trusts(to, from, delivery.at) == Belief::No {
            return wrong("a packet arrived without trust at its receiver");
        }
        Ok(())
    }

    // ---- trust

    /// Takes over consents that agents gave by themselves, if they had reason to.
    fn adopt(&mut self) -> Result<(), Failure> {
        // One agent's consent may be the reason of another's.
        loop {
            let mut has_news = false;
            let mut unfounded = None;
            for (at, peer) in self.model.pairs() {
                let Some(given) = self.given(at, peer) else {
                    continue;
                };
                let known = self.model.allows(at, peer);
                let answers = self.answered_at(at, peer);
                let newest = self.model.newest(at, peer);
                let is_same = newest.is_none_or(|newest| newest.answers == answers);
                if given == known && (is_same || given.is_none()) {
                    self.check_complete(at, peer)?;
                } else if self.adopt_one(at, peer, given) {
                    has_news = true;
                } else {
                    let what = format!("the consent is {given:?} and {known:?} in the model");
                    unfounded = Some(Failure::between(at, peer, what));
                }
            }
            match (has_news, unfounded) {
                (true, _) => {}
                (false, Some(failure)) => return Err(failure),
                (false, None) => return Ok(()),
            }
        }
    }

    /// Takes over a consent that answers a request, or completes one; false if it does neither.
    fn adopt_one(&mut self, at: usize, peer: usize, given: Option<Allow>) -> bool {
        let asked = self.model.asked.get(&(at, peer));
        let asked = asked.filter(|asked| asked.is_open || asked.was_open);
        let answer = asked.map(|asked| asked.offer);
        let answers = self.answered_at(at, peer);
        let is_open = self.model.is_answered(at, peer, clock::now()) != Belief::No;
        let rules = self.model.agents[at].autos.iter();
        let mut rules = rules
            .filter(|(who, _)| *who == peer)
            .map(|(_, allow)| *allow);
        let was_asked = self.model.asked.contains_key(&(peer, at));
        let completes = is_open && answers.is_none() && given == answer;
        // Two requests that cross are two consents; either waits for its answer all the same.
        let crosses = answers.is_some() && was_asked && given == answer;
        let by_rule = answers.is_some() && was_asked && given == rules.next();
        if given.is_none() || !(completes || crosses || by_rule) {
            return false;
        }
        if completes {
            self.model.close(at, peer);
        } else if let Some(asked) = self.model.asked.get_mut(&(peer, at)) {
            asked.is_waiting = false;
        }
        self.model.consent(at, peer, given, answers, clock::now());
        true
    }

    /// A request that was surely answered was surely completed.
    fn check_complete(&self, at: usize, peer: usize) -> Result<(), Failure> {
        let agent = &self.model.agents[at];
        let now = clock::now();
        let is_due = agent.is_awake
            && self.model.is_answered(at, peer, now) == Belief::Yes
            && self
                .model
                .holds(at, at, now)
                .min(self.model.holds(at, peer, now))
                == Belief::Yes;
        if is_due && self.model.allows(at, peer).is_none() {
            let what = "its request was answered, but it did not consent in turn";
            return Err(Failure::between(at, peer, what));
        }
        Ok(())
    }

    /// Returns what `at` lets `peer` do by what it keeps; the outer None where nothing is kept.
    fn given(&self, at: usize, peer: usize) -> Option<Option<Allow>> {
        let membership = self.world.hosts[at].membership()?;
        let given = membership.given.get(&self.world.hosts[peer].identity.did());
        let active = given.filter(|given| given.claims().state == ConsentState::Active);
        let found = active.map(|given| {
            let all = Allow::ALL.into_iter();
            let mut same = all.filter(|allow| scope(*allow) == given.claims().inbound);
            same.next().expect("agents give scopes of the model")
        });
        Some(found)
    }

    fn check_trust(&self) -> Result<(), Failure> {
        let now = clock::now();
        for (at, peer) in self.model.pairs() {
            let (host, agent) = (&self.world.hosts[at], &self.model.agents[at]);
            let Some(engine) = host.engine.as_ref().filter(|_| agent.is_awake) else {
                continue;
            };
            let has = engine.has_peer(host.local, self.world.hosts[peer].local);
            let believed = self.model.trusts(at, peer, now);
            let differs = believed != Belief::Maybe && Belief::from_bool(has) != believed;
            if differs {
                let what = format!("installed: {has}, in the model: {believed:?}");
                return Err(Failure::between(at, peer, what));
            }
        }
        for (at, host) in self.world.hosts.iter().enumerate() {
            for (pair, scopes) in &host.tables {
                let peer = self.world.host_of(pair.peer).unwrap_or(at);
                let allow = self.model.allows(at, peer).map(scope);
                if scopes.first() != allow.as_ref() {
                    let what = format!("the filter has {scopes:?}, the model {allow:?}");
                    return Err(Failure::between(at, peer, what));
                }
            }
        }
        Ok(())
    }

    /// With a peer goes what was known of the ways to it.
    fn forget_paths(&mut self) {
        for (at, peer) in self.model.pairs() {
            let (host, other) = (&self.world.hosts[at], self.world.hosts[peer].local);
            let engine = host.engine.as_ref();
            if !engine.is_some_and(|engine| engine.has_peer(host.local, other)) {
                self.paths.fresh.remove(&link(at, peer));
                self.paths.proven.remove(&link(at, peer));
            }
        }
    }

    /// No handshake goes on for ever: one without an answer is given up.
    fn check_handshakes(&self) -> Result<(), Failure> {
        for (at, host) in self.world.hosts.iter().enumerate() {
            let Some(engine) = host.engine.as_ref().filter(|_| host.asleep.is_none()) else {
                continue;
            };
            let time = self.world.time_at(at);
            let stuck = engine.peers(host.local, time).into_iter().find(|peer| {
                let since = peer.asked.filter(|_| peer.state == PeerState::Handshaking);
                since.is_some_and(|since| time.now >= since + HANDSHAKE)
            });
            if let Some(other) = stuck.and_then(|peer| self.world.host_of(peer.address)) {
                let what = "a handshake is not given up";
                return Err(Failure::between(at, other, what));
            }
        }
        Ok(())
    }

    // ---- exchange

    pub(crate) fn is_calm(&self) -> bool {
        self.world.internet.weather == Weather::default()
    }

    /// Tells whether a packet to this port arrives.
    pub(crate) fn exchanges(&self, from: usize, to: usize, port: u16) -> Belief {
        let now = clock::now();
        let (there, here) = (
            self.model.trusts(from, to, now),
            self.model.trusts(to, from, now),
        );
        let lets_in = self
            .model
            .allows(to, from)
            .is_some_and(|allow| allow.lets_in(port));
        there
            .min(here)
            .min(Belief::from_bool(lets_in))
            .min(self.reaches(from, to))
    }

    /// Tells whether there is surely a way between two.
    fn reaches(&self, one: usize, other: usize) -> Belief {
        let now = clock::now();
        let both = [one, other];
        let agents = both.map(|at| &self.model.agents[at]);
        let is_up = agents
            .iter()
            .all(|a| a.is_running && a.is_awake && a.is_member);
        let knows = self.model.has_key(one, other) && self.model.has_key(other, one);
        if !is_up {
            return Belief::No;
        }
        if !knows {
            return Belief::Maybe;
        }
        let relays = self.is_relayed(one, other);
        let fresh = self.paths.fresh.get(&link(one, other));
        let is_direct = fresh.is_some_and(|at| now < *at + FRESH) && !self.is_cut(one, other);
        Belief::from_bool(relays || is_direct).max(Belief::Maybe)
    }

    /// Tells whether the gateway surely carries data between two.
    fn is_relayed(&self, one: usize, other: usize) -> bool {
        let takes = |at: usize| self.world.hosts[at].mode != Mode::Direct;
        takes(one) && takes(other) && self.is_signalled(one, other)
    }

    /// Tells whether the gateway surely carries what is not data between two.
    fn is_signalled(&self, one: usize, other: usize) -> bool {
        let now = clock::now();
        let is_attached = |at: usize| {
            !self.gateway_cuts.contains(&at)
                && self.model.has_good_clock(at, now)
                && self.model.holds(at, at, now) == Belief::Yes
        };
        self.world.gateway.is_some() && is_attached(one) && is_attached(other)
    }

    fn is_cut(&self, one: usize, other: usize) -> bool {
        self.world
            .internet
            .is_cut(Node::Host(one), Node::Host(other))
    }

    /// Tells whether probes that go between two now must find a way, unless they were spent.
    pub(crate) fn is_direct_due(&self, one: usize, other: usize) -> bool {
        let seeks = |at: usize| self.world.hosts[at].mode.seeks();
        let agents = [one, other].map(|at| &self.model.agents[at]);
        let is_up = agents
            .iter()
            .all(|a| a.is_running && a.is_awake && a.is_member);
        let has_key = self.model.has_key(one, other) && self.model.has_key(other, one);
        is_up
            && has_key
            && seeks(one)
            && seeks(other)
            && self.is_calm()
            && self.is_signalled(one, other)
            && !self.is_cut(one, other)
            && self.world.internet.permits(one, other, clock::now())
    }

    /// Sends a packet each to see who reaches whom, and has those arrive that must.
    pub(crate) fn exchange(&mut self, pairs: &[(usize, usize)]) -> Result<(), Failure> {
        let mut open = Vec::new();
        for (from, to) in pairs.iter().copied() {
            let port = self.open_port(from, to);
            let must = self.exchanges(from, to, port) == Belief::Yes;
            let said = self.say(from, to, port, true);
            if must {
                let end = self.due_at(from, to);
                open.push(Open {
                    from,
                    to,
                    said,
                    end,
                });
            }
        }
        self.wait(&mut open)?;
        self.check_paths(pairs)
    }

    /// Returns until when something of what two send each other from now on must arrive.
    fn due_at(&self, from: usize, to: usize) -> Instant {
        let bound = if self.is_calm() { BOUND } else { BAD_BOUND };
        let both = [from, to].into_iter();
        let reopened = both.filter_map(|at| self.paths.rebooted.get(&at));
        let reopened = reopened.map(|at| *at + REOPENED);
        reopened
            .chain([clock::now() + bound])
            .max()
            .expect("there always is a bound")
    }

    fn wait(&mut self, open: &mut Vec<Open>) -> Result<(), Failure> {
        loop {
            self.world.pass(STEP);
            self.look()?;
            let ledger = &self.world.ledger;
            open.retain(|waiting| !ledger.is_done(waiting.said));
            // An end that came meanwhile ends what was to be expected.
            let mut still = std::mem::take(open);
            still.retain(|waiting| {
                let port = self.open_port(waiting.from, waiting.to);
                self.exchanges(waiting.from, waiting.to, port) == Belief::Yes
            });
            *open = still;
            if open.is_empty() {
                return Ok(());
            }
            let now = clock::now();
            if let Some(Open { from, to, .. }) = open.iter().find(|waiting| now >= waiting.end) {
                let what = "nothing of many packets arrived";
                return Err(Failure::between(*from, *to, what));
            }
            for waiting in open.iter_mut() {
                let port = self.open_port(waiting.from, waiting.to);
                waiting.said = self.say(waiting.from, waiting.to, port, true);
            }
        }
    }

    // ---- paths

    pub(crate) fn path(&self, from: usize, to: usize) -> Option<Path> {
        let (host, peer) = (&self.world.hosts[from], self.world.hosts[to].local);
        let view = host
            .engine
            .as_ref()?
            .paths(host.local, peer, self.world.time_at(from));
        view.and_then(|view| view.current)
    }

    pub(crate) fn is_direct(&self, one: usize, other: usize) -> bool {
        let is_direct = |path| matches!(path, Some(Path::Direct(_)));
        is_direct(self.path(one, other)) && is_direct(self.path(other, one))
    }

    fn check_paths(&mut self, pairs: &[(usize, usize)]) -> Result<(), Failure> {
        for (one, other) in pairs.iter().copied() {
            let port = self.open_port(one, other);
            if self.exchanges(one, other, port) == Belief::Yes {
                self.check_path(one, other, port)?;
            }
        }
        Ok(())
    }

    fn check_path(&mut self, one: usize, other: usize, port: u16) -> Result<(), Failure> {
        let key = link(one, other);
        let is_spent = self.paths.spoiled.contains(&key);
        let is_proven = self.paths.proven.contains(&key);
        let is_stale = [one, other].iter().any(|at| self.paths.stale.contains(at));
        let bound = match (is_spent, is_proven) {
            (false, _) if is_stale => DIRECT_AGAIN,
            (false, _) => DIRECT_BOUND,
            (true, true) => DIRECT_AGAIN,
            (true, false) => Duration::ZERO,
        };
        let end = clock::now() + bound;
        let is_due = |play: &Self| {
            play.is_direct_due(one, other) && play.exchanges(one, other, port) == Belief::Yes
        };
        while is_due(self) && clock::now() < end && !self.is_direct(one, other) {
            self.say(one, other, port, true);
            self.world.pass(STEP);
            self.look()?;
        }
        if self.is_direct(one, other) {
            if self.is_direct_due(one, other) {
                self.paths.spoiled.remove(&key);
                self.paths.proven.insert(key);
                self.paths.fresh.insert(key, clock::now());
            }
            return Ok(());
        }
        if is_due(self) && !bound.is_zero() {
            return Err(Failure::between(one, other, "no direct path was found"));
        }
        Ok(())
    }

    // ---- bounds

    fn check_bounds(&self, since: Instant, sent: &[u64]) -> Result<(), Failure> {
        let n = self.world.hosts.len();
        let seconds = (clock::now() - since).as_secs() + 1;
        // Each peer costs at most 20 probes a second, and as many answers.
        let most = 200 + seconds * 40 * n as u64;
        for (at, host) in self.world.hosts.iter().enumerate() {
            if self.world.sent[at] - sent[at] > most {
                let what = format!(
                    "{} datagrams in {seconds} s",
                    self.world.sent[at] - sent[at]
                );
                return Err(Failure::of(at, what));
            }
            self.check_paths_kept(at)?;
            let Some(kept) = host.membership() else {
                continue;
            };
            let sizes = [
                ("outbox", kept.outbox.len(), 2 * n),
                ("records", kept.records.len(), n),
                ("given", kept.given.len(), n),
                ("received", kept.received.len(), n),
                ("incoming", kept.incoming.len(), n),
                ("outgoing", kept.outgoing.len(), n),
                ("gateways", kept.gateways.len(), 1),
                ("revocations", kept.revocations.statements().len(), n + 1),
            ];
            let over = sizes.iter().find(|(_, size, most)| size > most);
            if let Some((what, size, most)) = over {
                return Err(Failure::of(
                    at,
                    format!("{size} {what}, at most {most} expected"),
                ));
            }
        }
        self.check_gateway(n)
    }

    fn check_paths_kept(&self, at: usize) -> Result<(), Failure> {
        let host = &self.world.hosts[at];
        let Some(engine) = &host.engine else {
            return Ok(());
        };
        let time = self.world.time_at(at);
        for peer in host.peers() {
            let kept = engine
                .paths(host.local, peer, time)
                .map_or(0, |view| view.pairs.len());
            if kept > MAX_PATHS {
                return Err(Failure::of(at, format!("{kept} paths of one peer")));
            }
        }
        Ok(())
    }

    fn check_gateway(&self, n: usize) -> Result<(), Failure> {
        let status = self
            .world
            .gateway
            .as_ref()
            .map(|core| core.status(clock::now()));
        let over = status.filter(|status| status.attached > n || status.routes > n);
        over.map_or(Ok(()), |status| {
            Err(Failure {
                what: format!(
                    "{} attachments and {} routes",
                    status.attached, status.routes
                ),
                pair: None,
            })
        })
    }
}

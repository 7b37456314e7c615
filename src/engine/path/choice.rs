use std::time::{Duration, Instant};

use crate::engine::path::{Doubt, MAX_LEARNED, Mode, PairState, Path, PathAgent, pair::Pair};
use crate::engine::rtt;

/// How long the path before is kept after a switch (protocol.md section 6).
const DRAIN: Duration = Duration::from_secs(10);

/// Why the path in use is in use.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reason {
    /// Another path of the same class had a longer RTT.
    Faster,
    /// Nothing else was tried yet.
    First,
    /// The path before was not used for long, so it may be gone.
    Idle,
    /// The path before lost data.
    Lost,
    /// The wish was changed.
    Mode,
    /// Our network changed, or the peer's.
    NetworkChanged,
    /// It is nearer than the path before.
    Nearer,
}

impl Reason {
    /// Returns the name that `--json` carries; it never changes.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Faster => "faster",
            Self::First => "first",
            Self::Idle => "idle",
            Self::Lost => "lost",
            Self::Mode => "mode",
            Self::NetworkChanged => "network_changed",
            Self::Nearer => "nearer",
        }
    }

    /// Returns the reason as a sentence.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Faster => "it answers faster than the path before, which is as near",
            Self::First => "sessions begin this way, and nothing nearer has answered yet",
            Self::Idle => "nothing was sent for long, so what was known of direct paths is too old",
            Self::Lost => "data on the path before did not arrive",
            Self::Mode => "the settings (path.mode) ask for it",
            Self::NetworkChanged => "the network changed, here or at the peer",
            Self::Nearer => "it is nearer than the path before and answered a probe",
        }
    }
}

impl PathAgent {
    /// Looks whether `path`, which just answered, is better than the current one.
    pub(super) fn consider(&mut self, path: Path, now: Instant) {
        if self.evidence.is_lost(now) {
            self.leave(now);
        }
        if let Some(reason) = self.why_better(path, now) {
            self.switch(Some(path), reason, now);
        }
    }

    fn why_better(&self, path: Path, now: Instant) -> Option<Reason> {
        let pair = self.pairs.get(&path).filter(|pair| pair.is_alive())?;
        let is_wanted = path != Path::Relay || self.mode != Mode::Direct;
        if self.current == Some(path) || !is_wanted || pair.bar.until(now).is_some() {
            return None;
        }
        let Some(current) = self.current.and_then(|current| self.pairs.get(&current)) else {
            return Some(Reason::Nearer);
        };
        if pair.class != current.class {
            return (pair.class < current.class).then_some(Reason::Nearer);
        }
        is_faster(pair, current).then_some(Reason::Faster)
    }

    /// Leaves the current path, whose data is lost, for the best that answered since.
    pub(super) fn leave(&mut self, now: Instant) {
        let Some(lost_since) = self.evidence.unproven() else {
            return;
        };
        let answers = |pair: &Pair| pair.alive().is_some_and(|(_, at)| at >= lost_since);
        let is_wanted = |path: Path| path != Path::Relay || self.mode != Mode::Direct;
        let best = self
            .pairs
            .iter()
            .filter(|(path, pair)| {
                self.current != Some(**path) && is_wanted(**path) && answers(pair)
            })
            .min_by_key(|(_, pair)| (pair.bar.until(now).is_some(), pair.class, pair.rtt()))
            .map(|(path, _)| *path);
        let Some(best) = best else {
            return;
        };
        if let Some(left) = self.current.and_then(|path| self.pairs.get_mut(&path)) {
            if answers(left) {
                left.bar.set(now);
            } else {
                left.kill();
            }
        }
        if matches!(self.current, Some(Path::Direct(_))) {
            self.doubt = Some(Doubt::Lost);
        }
        self.switch(Some(best), Reason::Lost, now);
    }

    pub(super) fn switch(&mut self, to: Option<Path>, reason: Reason, now: Instant) {
        if self.current == to {
            return;
        }
        self.previous = self.current.map(|path| (path, now + DRAIN));
        self.current = to;
        self.reason = reason;
        self.since = now;
        self.evidence.prove();
    }

    /// Goes back to the relay, if there is one, because `path` may lead nowhere now.
    pub(super) fn distrust(&mut self, path: Path, now: Instant) {
        if self.has_relay && self.mode == Mode::Auto {
            self.switch(Some(Path::Relay), Reason::NetworkChanged, now);
            self.restart(path, now);
        } else if let Some(pair) = self.pairs.get_mut(&path) {
            pair.want(now);
        }
    }

    /// Begins a path anew.
    pub(super) fn restart(&mut self, path: Path, now: Instant) {
        if let Some(pair) = self.pairs.get_mut(&path).filter(|_| self.mode.seeks()) {
            pair.restart(now);
        }
    }

    /// Probes anew what is silent: the peer is told of another endpoint of ours, and what it sends
    /// there opens its NAT for us as ours is opened for it.
    pub(super) fn meet(&mut self, now: Instant) {
        let seeks = self.mode.seeks();
        for (path, pair) in &mut self.pairs {
            if seeks && *path != Path::Relay {
                pair.meet(now);
            }
        }
    }

    /// Begins all paths anew, and lets data use those that lost some elsewhere.
    pub(super) fn restart_all(&mut self, now: Instant) {
        let keeps = self.current.filter(|_| !self.has_relay);
        for (path, pair) in &mut self.pairs {
            pair.bar.lift();
            if keeps == Some(*path) {
                // The only path there is stays in use until it fails.
                pair.want(now);
            } else {
                pair.restart(now);
            }
        }
    }

    /// Asks the paths that answered once, since data begins to flow again.
    pub(super) fn wake(&mut self, now: Instant) {
        for pair in self.pairs.values_mut().filter(|pair| pair.has_answered) {
            match pair.state {
                PairState::Alive { .. } => pair.want(now),
                PairState::Dead | PairState::Unprobed => pair.restart(now),
                PairState::Probing { .. } => {}
            }
        }
    }

    /// Keeps no more endpoints than we may that the peer does not name.
    pub(super) fn bound_learned(&mut self) {
        let previous = self.previous.map(|(path, _)| path);
        loop {
            let learned = self.pairs.iter().filter(|(path, pair)| {
                **path != Path::Relay && !pair.is_listed && self.current != Some(**path)
            });
            let learned = learned.collect::<Vec<_>>();
            if learned.len() < MAX_LEARNED {
                return;
            }
            // One that proved itself is worth more than one a packet came from.
            let worst = learned.into_iter().min_by_key(|(path, pair)| {
                (
                    previous == Some(**path),
                    pair.is_alive(),
                    pair.has_answered,
                    pair.number,
                )
            });
            let Some(worst) = worst.map(|(path, _)| *path) else {
                return;
            };
            self.pairs.remove(&worst);
        }
    }
}

fn is_faster(pair: &Pair, current: &Pair) -> bool {
    if !pair.knows_rtt() || !current.knows_rtt() {
        return false;
    }
    let (Some(new), Some(old)) = (pair.rtt(), current.rtt()) else {
        return false;
    };
    rtt::is_faster(new, old)
}

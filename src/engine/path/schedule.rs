use std::{
    cmp::Reverse,
    time::{Duration, Instant},
};

use crate::engine::path::{
    Mode, Path, PathAgent, TELL_AGAIN,
    candidate::Class,
    choice::Reason,
    evidence::IDLE,
    mtu::BASE,
    pair::{Due, Pair},
};

/// Keeps NAT mappings and firewall state of the path in use; below the 30 s seen in the wild
/// (RFC 4787 section 4.3 REQ-5 asks for 120 s).
const KEEPALIVE: Duration = Duration::from_secs(25);

/// Wait for the answer to a probe that asks for a size, of which a loss costs little and is expected. By
/// the shorter one a path that became narrow is known before it is left for lost data.
const SIZED_PATIENCE: Duration = Duration::from_secs(1);
const LEAST_PATIENCE: Duration = Duration::from_millis(300);

/// A path that answered so recently is alive, while one is asked every second.
const RECENT: Duration = Duration::from_secs(2);

impl PathAgent {
    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        for lost in self.probes.lost(now) {
            let is_current = self.current == Some(lost.path);
            match (self.pairs.get_mut(&lost.path), lost.size) {
                (Some(pair), Some(size)) => {
                    let is_alive = pair.alive().is_some_and(|(_, at)| now <= at + RECENT);
                    pair.mtu.lost(size, is_alive, now);
                    if size <= BASE {
                        // Is the path narrow, or is it dead?
                        pair.want(now);
                    }
                }
                (Some(pair), None) => {
                    pair.lost(is_current);
                    self.note_silence(lost.path);
                }
                (None, _) => {}
            }
        }
        if self.previous.is_some_and(|(_, until)| now >= until) {
            self.previous = None;
        }
        self.judge(now);
        self.look(now);
        if self.lapse_at().is_some_and(|at| now >= at) {
            self.lapse(now);
        }
        if self.is_up && self.mode.seeks() {
            self.tell_due(now);
            self.probe_due(now);
            self.punch(now);
        }
        self.ask_size(now);
    }

    /// Asks for a size of the path in use if it is time.
    fn ask_size(&mut self, now: Instant) {
        let is_due = self.size_due().is_some_and(|at| at <= now);
        let Some(path) = self.current.filter(|_| is_due) else {
            return;
        };
        if let Some(pair) = self.pairs.get_mut(&path) {
            pair.mtu.begin(now);
            if let Some(size) = pair.mtu.ask(now) {
                let patience = pair.rtt().map_or(SIZED_PATIENCE, |rtt| rtt * 4);
                let patience = patience.clamp(LEAST_PATIENCE, SIZED_PATIENCE);
                self.probes
                    .make(path, pair.number, Some((size, patience)), now);
            }
        }
    }

    /// Returns when a size is to be asked for; None while no data serves by it.
    fn size_due(&self) -> Option<Instant> {
        let active_until = self.evidence.active_until().filter(|_| self.is_up)?;
        let path = self
            .current
            .filter(|path| *path != Path::Relay || self.has_relay)?;
        let pair = self.pairs.get(&path)?;
        let at = pair.mtu.due().unwrap_or(self.since);
        let at = Some(at).filter(|_| pair.mtu.due().is_some() || pair.mtu.is_new())?;
        let at = at.max(self.probes.free_at());
        (at < active_until).then_some(at)
    }

    /// Returns when `handle_timeout` is due and why; None when nothing is.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let drained = self.previous.map(|(_, at)| (at, "old path ends"));
        let lapse = self.lapse_at().map(|at| (at, "path lapses"));
        let look = self.evidence.next_look().map(|at| (at, "path in doubt"));
        let loss = self.probes.next_loss().map(|at| (at, "probe lost"));
        let rest = [drained, lapse, look, loss].into_iter().flatten();
        let active = self.is_up && self.mode.seeks();
        let size = self.size_due().map(|at| (at, "path MTU"));
        let tell = self.tell.front().filter(|_| active);
        let tell = tell.map(|at| (*at, "candidates"));
        let pairs = self.pairs.iter().filter_map(|(path, pair)| {
            let (at, due) = self.due(*path, pair)?;
            match due {
                Due::Probe => active.then(|| (at.max(self.probes.free_at()), "path probe")),
                Due::Verdict => Some((at, "path verdict")),
            }
        });
        let punch = self.punch_due().map(|at| (at, "ports to guess"));
        pairs.chain(tell).chain(size).chain(punch).chain(rest).min()
    }

    /// Returns what is due of a pair, and when: its own turn, or a keepalive.
    fn due(&self, path: Path, pair: &Pair) -> Option<(Instant, Due)> {
        let turn = pair.due(self.evidence.active_until());
        let is_kept = self.current == Some(path) && pair.class == Class::Wan;
        let kept = pair.asked_at().filter(|_| is_kept && pair.is_alive());
        let kept = kept.map(|at| at + KEEPALIVE);
        let kept = kept.filter(|at| *at < self.idle_at());
        let due = turn.into_iter().chain(kept.map(|at| (at, Due::Probe)));
        let (at, due) = due.min()?;
        let is_bounded = due == Due::Probe && is_strange(path, pair);
        let free_at = if is_bounded {
            self.strange.free_at()
        } else {
            at
        };
        Some((at.max(free_at), due))
    }

    fn judge(&mut self, now: Instant) {
        for pair in self.pairs.values_mut() {
            pair.judge(now);
        }
    }

    /// Asks every path that may answer whether there is a way out, and takes it when it is time.
    fn look(&mut self, now: Instant) {
        if !self.evidence.takes_look(now) {
            return;
        }
        for (path, pair) in &mut self.pairs {
            let is_open = *path == Path::Relay && self.has_relay;
            if is_open || pair.has_answered {
                pair.want(now);
            }
            if self.current == Some(*path) {
                pair.mtu.doubt(now);
            }
        }
        if self.evidence.is_lost(now) {
            self.leave(now);
        }
    }

    fn probe_due(&mut self, now: Instant) {
        if now < self.probes.free_at() {
            return;
        }
        let due = self.pairs.iter().filter(|(path, pair)| {
            let due = self.due(**path, pair);
            due.is_some_and(|(at, due)| due == Due::Probe && at <= now)
        });
        // What is in use first, then NATs to open, then whoever was asked least often, near before far.
        let next = due.min_by_key(|(path, pair)| {
            let is_spare = self.current != Some(**path) && **path != Path::Relay;
            (
                is_spare,
                !pair.is_shut,
                pair.tries(),
                pair.class,
                Reverse(pair.priority),
                **path,
            )
        });
        let Some(path) = next.map(|(path, _)| *path) else {
            return;
        };
        if let Some(pair) = self.pairs.get_mut(&path) {
            if is_strange(path, pair) {
                self.strange.take(now);
            }
            if pair.is_shut {
                pair.opened(now);
                self.probes.open(path, pair.number, now);
            } else {
                pair.asked(now);
                self.probes.make(path, pair.number, None, now);
            }
        }
    }

    pub(super) fn schedule_telling(&mut self, now: Instant) {
        if self.mode.seeks() && self.seq > 0 {
            let again = TELL_AGAIN.into_iter().map(|pause| now + pause);
            self.tell = std::iter::once(now).chain(again).collect();
        }
    }

    fn tell_due(&mut self, now: Instant) {
        while self.tell.front().is_some_and(|at| *at <= now) {
            self.tell.pop_front();
            self.is_telling = true;
        }
    }

    /// Returns when what is known of direct paths is too old; None while they are used, or needed.
    fn lapse_at(&self) -> Option<Instant> {
        let is_direct = matches!(self.current, Some(Path::Direct(_)));
        (is_direct && self.has_relay && self.mode == Mode::Auto).then(|| self.idle_at())
    }

    fn idle_at(&self) -> Instant {
        let data = self.evidence.last_data().unwrap_or(self.since);
        data.max(self.since) + IDLE
    }

    fn lapse(&mut self, now: Instant) {
        self.evidence.lapse();
        for (path, pair) in &mut self.pairs {
            if *path != Path::Relay && pair.has_answered {
                pair.lapse();
            }
        }
        self.switch(Some(Path::Relay), Reason::Idle, now);
    }
}

/// Tells whether whoever is at an endpoint may never have wanted to hear of us.
fn is_strange(path: Path, pair: &Pair) -> bool {
    path != Path::Relay && !pair.has_answered
}

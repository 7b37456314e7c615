use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::engine::path::{Class, Mode, Path, PathAgent, Reason};
use crate::wire::candidate::Kind;

/// The paths to a peer, as `agentnet path` shows them.
#[derive(Clone, Debug)]
pub struct PathView {
    pub mode: Mode,
    /// None while no path may carry data.
    pub current: Option<Path>,
    pub since: Instant,
    /// Why `current` is in use.
    pub reason: Reason,
    /// The path before, while it is kept.
    pub previous: Option<Path>,
    pub pairs: Vec<PairView>,
}

/// How far a path is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PairState {
    /// It answered.
    Alive {
        /// Smoothed over the last few replies.
        rtt: Duration,
        /// Last reply to a probe of ours.
        last: Instant,
    },
    /// It does not answer.
    Dead,
    /// Asked `tries` times, last at `sent`.
    Probing { sent: Instant, tries: u8 },
    /// Not asked yet.
    Unprobed,
}

/// One path to a peer.
#[derive(Clone, Debug)]
pub struct PairView {
    pub path: Path,
    /// None for the relay and for endpoints that the peer did not name.
    pub kind: Option<Kind>,
    pub class: Class,
    pub state: PairState,
    /// None unless alive.
    pub rtt: Option<Duration>,
    /// Percent of the last 16 probes; None before the first reply or loss.
    pub loss: Option<u8>,
    /// Where the peer sees us on this path; None before a reply, and on the relay.
    pub observed: Option<SocketAddr>,
    /// Until when it is kept from data because it lost some; None when it is not.
    pub barred_until: Option<Instant>,
}

impl PathAgent {
    /// Returns all paths, and why the one in use is.
    pub fn view(&self, now: Instant) -> PathView {
        let pairs = self.pairs.iter().map(|(path, pair)| PairView {
            path: *path,
            kind: pair.kind,
            class: pair.class,
            state: pair.state,
            rtt: pair.rtt(),
            loss: pair.fates.loss(),
            observed: pair.observed,
            barred_until: pair.bar.until(now),
        });
        PathView {
            mode: self.mode,
            current: self.current,
            since: self.since,
            reason: self.reason,
            previous: self.previous.map(|(path, _)| path),
            pairs: pairs.collect(),
        }
    }
}

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::engine::path::{Class, Mode, Path, PathAgent, Reason, pair::Pair};
use crate::wire::candidate::{Candidate, Kind};

/// The paths to a peer, as `agentnet path` shows them.
#[derive(Clone, Debug)]
pub struct PathView {
    pub mode: Mode,
    /// None while no path may carry data.
    pub current: Option<Path>,
    pub since: Instant,
    /// Why `current` is in use.
    pub reason: Reason,
    /// What keeps data from a direct path; None when it takes one.
    pub obstacle: Option<Obstacle>,
    /// The path before, while it is kept.
    pub previous: Option<Path>,
    /// Whether the gateways carry frames.
    pub has_relay: bool,
    /// Our own endpoints, as the peer is told them.
    pub local: Vec<Candidate>,
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
    /// The largest packet that passes whole, in bytes; None while that is not known.
    pub mtu: Option<u16>,
    /// Where the peer sees us on this path; None before a reply, and on the relay.
    pub observed: Option<SocketAddr>,
    /// Last authentic message of the peer on this path; None before the first.
    pub inbound: Option<Instant>,
    /// Until when it is kept from data because it lost some; None when it is not.
    pub barred_until: Option<Instant>,
}

/// What keeps data from a direct path.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Obstacle {
    /// All that answered lost data of late.
    Barred,
    /// The network gives no locators but gateways.
    Border,
    /// There was no data for so long that direct paths are not kept.
    Idle,
    /// We are told to use the gateways alone.
    Mode,
    /// No endpoint of the peer answers.
    NoAnswer,
    /// The peer named no endpoint that we may use, nor was it heard from one.
    NoEndpoint,
    /// There is no session in which paths could be probed.
    NoSession,
    /// It is being found out.
    Probing,
}

impl Obstacle {
    /// Returns the name that `--json` carries; it never changes.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Barred => "penalized",
            Self::Border => "border",
            Self::Idle => "idle",
            Self::Mode => "mode",
            Self::NoAnswer => "no_answer",
            Self::NoEndpoint => "no_endpoint",
            Self::NoSession => "no_session",
            Self::Probing => "probing",
        }
    }

    /// Returns the obstacle as a sentence.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Barred => "the direct paths that answer lost data and are kept out for a while",
            Self::Border => "the network's owner wants its agents reached by gateways alone",
            Self::Idle => {
                "nothing was sent for long; direct paths are tried again with the next data"
            }
            Self::Mode => "this node is told to use the gateway alone",
            Self::NoAnswer => "no endpoint of the peer answers",
            Self::NoEndpoint => "the peer named no endpoint",
            Self::NoSession => "there is no session with the peer",
            Self::Probing => "its endpoints are being probed",
        }
    }

    /// Returns what a person can do about it.
    pub const fn cure(self) -> &'static str {
        match self {
            Self::Barred => "look for packet loss or a smaller MTU between the hosts",
            Self::Border => "use another network, made without --border",
            Self::Idle | Self::Probing => "wait a moment",
            Self::Mode => "start the daemon with --path auto",
            Self::NoAnswer => {
                "a firewall may block UDP between the hosts, or both NATs map by destination: \
                 open the node's UDP port towards the other host on one side"
            }
            Self::NoEndpoint => {
                "the peer may be hidden or told to use the gateway alone (its path.mode)"
            }
            Self::NoSession => "see that the peer runs and that one of you reaches a gateway",
        }
    }
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
            mtu: pair.mtu.size(),
            observed: pair.observed,
            inbound: pair.inbound,
            barred_until: pair.bar.until(now),
        });
        PathView {
            mode: self.mode,
            current: self.current,
            since: self.since,
            reason: self.reason,
            obstacle: self.obstacle(now),
            previous: self.previous.map(|(path, _)| path),
            has_relay: self.has_relay,
            local: self.local.clone(),
            pairs: pairs.collect(),
        }
    }

    fn obstacle(&self, now: Instant) -> Option<Obstacle> {
        if matches!(self.current, Some(Path::Direct(_))) {
            return None;
        }
        if self.mode == Mode::Border {
            return Some(Obstacle::Border);
        }
        if !self.mode.seeks() {
            return Some(Obstacle::Mode);
        }
        if !self.is_up {
            return Some(Obstacle::NoSession);
        }
        let direct = self.pairs.iter().filter(|(path, _)| **path != Path::Relay);
        let direct = direct.map(|(_, pair)| pair).collect::<Vec<_>>();
        let is_barred = |pair: &&Pair| pair.is_alive() && pair.bar.until(now).is_some();
        Some(if direct.is_empty() {
            Obstacle::NoEndpoint
        } else if direct.iter().any(is_barred) {
            Obstacle::Barred
        } else if direct.iter().any(|pair| pair.state != PairState::Dead) {
            Obstacle::Probing
        } else if self.reason == Reason::Idle {
            Obstacle::Idle
        } else {
            Obstacle::NoAnswer
        })
    }
}

//! How one whose NAT gives an endpoint for all destinations meets one whose NAT gives each another.
//!
//! Nobody knows the port there. So that end opens many sockets towards the other's endpoint, each of
//! which gets a port of its own, and the other guesses ports: first near where the NAT counts, then
//! any, until one is one of these. Among 64,512 ports, 1,024 guesses meet 256 sockets in 98 of 100
//! cases (the birthday paradox). It is tried once for each pair of networks.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use crate::engine::path::{Path, PathAgent, candidate::Class, pair::Pair};
use crate::wire::candidate::{Candidate, Kind};

/// Time for ordinary probes, and for the peer to get as far as we.
const PATIENCE: Duration = Duration::from_secs(4);

/// Guesses of one attempt, and how many go at once: 100 a second, so that no NAT on the way fills up.
const GUESSES: u16 = 1024;
const AT_ONCE: u16 = 5;
const PAUSE: Duration = Duration::from_millis(50);

/// Shortest time between attempts in one network of ours, doubled each time up to the longest: a peer
/// that names ever other addresses is to make nothing of it.
const AGAIN: Duration = Duration::from_secs(120);
const LONGEST_AGAIN: Duration = Duration::from_secs(3840);

/// Guesses after each endpoint that the peer predicts: other hosts there take ports as well.
const NEAR: u16 = 24;

/// Ports that NATs give out (RFC 4787 section 4.2.2).
const FIRST_PORT: u16 = 1024;

/// Rounds in which sockets are opened and kept open: NATs forget one that was not answered within 30 s.
pub const ROUNDS: usize = 2;

/// Sockets to be opened towards a peer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Opening {
    /// The peer's endpoint.
    pub to: SocketAddr,
    /// The probes' ids, one for each round.
    pub ids: [u64; ROUNDS],
}

/// Which end does what, and between which addresses.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Meeting {
    /// The peer's NAT gives out any port of `theirs`.
    Guess { own: IpAddr, theirs: IpAddr },
    /// Ours does; the peer is at `to`.
    Open { own: IpAddr, to: SocketAddr },
}

impl Meeting {
    /// Tells whether it is between the same networks.
    fn is_like(self, other: Self) -> bool {
        match (self, other) {
            (Self::Guess { .. }, Self::Guess { .. }) => self == other,
            (Self::Open { own, to }, Self::Open { own: o, to: t }) => own == o && to.ip() == t.ip(),
            (Self::Guess { .. }, Self::Open { .. }) | (Self::Open { .. }, Self::Guess { .. }) => {
                false
            }
        }
    }
}

/// Guesses under way.
#[derive(Debug)]
struct Guessing {
    theirs: IpAddr,
    /// Ports to be guessed before any others, the last one first.
    near: Vec<u16>,
    left: u16,
    next: Instant,
}

/// The attempt to meet a peer that way.
#[derive(Debug, Default)]
pub(super) struct Punch {
    /// What is to be tried, and from when on; None when nothing is.
    due: Option<(Meeting, Instant)>,
    /// What was tried last; None since the last change of our network.
    tried: Option<Meeting>,
    /// When the next may be tried, and the pause before; None before the first.
    again: Option<(Instant, Duration)>,
    guessing: Option<Guessing>,
    opening: Option<Opening>,
}

impl PathAgent {
    /// Returns the sockets that are to be opened, once.
    pub fn poll_opening(&mut self) -> Option<Opening> {
        self.punch.opening.take()
    }

    /// Looks anew whether there is somebody to be met.
    pub(super) fn review_meeting(&mut self, now: Instant) {
        let new = |meeting: &Meeting| {
            self.punch
                .tried
                .is_none_or(|tried| !tried.is_like(*meeting))
        };
        let meeting = self.meeting().filter(new);
        let begun = self.punch.due.filter(|(known, _)| Some(*known) == meeting);
        let at = self.punch.again.map_or(now, |(at, _)| at.max(now)) + PATIENCE;
        self.punch.due = begun.or_else(|| meeting.map(|meeting| (meeting, at)));
    }

    /// Takes that our network changed, by which everything may be tried again.
    pub(super) fn forget_meeting(&mut self, now: Instant) {
        self.punch = Punch::default();
        self.review_meeting(now);
    }

    /// Stops guessing, as when there is no session.
    pub(super) fn stop_guessing(&mut self) {
        self.punch.guessing = None;
        self.punch.opening = None;
    }

    fn meeting(&self) -> Option<Meeting> {
        let is_hard = |candidate: &&Candidate| candidate.kind == Kind::Predicted;
        let mut ours = self.local.iter().filter(|own| is_far(own.endpoint));
        let own = ours.clone().next()?.endpoint.ip();
        let theirs = || {
            let listed = self.pairs.iter().filter(|(_, pair)| pair.is_listed);
            listed.filter_map(|(path, pair)| Some((endpoint(*path)?, pair)))
        };
        let predicted = |(_, pair): &(SocketAddr, &Pair)| pair.kind == Some(Kind::Predicted);
        match (ours.find(is_hard), theirs().find(predicted)) {
            (None, Some((at, _))) => Some(Meeting::Guess {
                own,
                theirs: at.ip(),
            }),
            (Some(_), None) => {
                let seen = |(_, pair): &(SocketAddr, &Pair)| {
                    matches!(pair.kind, Some(Kind::Mapped | Kind::Reflexive))
                };
                let (to, _) = theirs().find(seen).or_else(|| theirs().next())?;
                Some(Meeting::Open { own, to })
            }
            (Some(_), Some(_)) | (None, None) => None,
        }
    }

    /// Returns when there is something to do; None while a direct path answers or no data flows.
    pub(super) fn punch_due(&self) -> Option<Instant> {
        let is_met = |(path, pair): (&Path, &Pair)| *path != Path::Relay && pair.is_alive();
        if !self.is_up || !self.mode.seeks() || self.pairs.iter().any(is_met) {
            return None;
        }
        if let Some(guessing) = &self.punch.guessing {
            return Some(guessing.next);
        }
        let active_until = self.evidence.active_until()?;
        let (_, at) = self.punch.due?;
        (at < active_until).then_some(at)
    }

    /// Does what is due.
    pub(super) fn punch(&mut self, now: Instant) {
        if self.punch_due().is_none_or(|at| now < at) {
            return;
        }
        if let Some(guessing) = self.punch.guessing.take() {
            self.guess(guessing, now);
            return;
        }
        let Some((meeting, _)) = self.punch.due.take() else {
            return;
        };
        self.punch.tried = Some(meeting);
        let pause = self.punch.again.map_or(AGAIN, |(_, pause)| pause * 2);
        let pause = pause.min(LONGEST_AGAIN);
        self.punch.again = Some((now + pause, pause));
        match meeting {
            Meeting::Guess { theirs, .. } => {
                let near = self.near(theirs);
                let guessing = Guessing {
                    theirs,
                    near,
                    left: GUESSES,
                    next: now,
                };
                self.guess(guessing, now);
            }
            Meeting::Open { to, .. } => {
                let ids = [(); ROUNDS].map(|()| self.probes.number());
                self.punch.opening = Some(Opening { to, ids });
            }
        }
    }

    /// Guesses some ports.
    fn guess(&mut self, mut guessing: Guessing, now: Instant) {
        for _ in 0..AT_ONCE.min(guessing.left) {
            let port = guessing.near.pop();
            let port = port.unwrap_or_else(|| self.probes.port(FIRST_PORT));
            let to = SocketAddr::new(guessing.theirs, port);
            self.probes.guess(Path::Direct(to));
            guessing.left -= 1;
        }
        guessing.next = now + PAUSE;
        self.punch.guessing = Some(guessing).filter(|guessing| guessing.left > 0);
    }

    /// Returns the ports from those on that the peer predicts, the first of each last.
    fn near(&self, theirs: IpAddr) -> Vec<u16> {
        let predicted = self.pairs.iter().filter_map(|(path, pair)| {
            let at = endpoint(*path).filter(|at| at.ip() == theirs)?;
            (pair.is_listed && pair.kind == Some(Kind::Predicted)).then_some(at.port())
        });
        let predicted = predicted.collect::<Vec<_>>();
        let each = |step: u16| {
            predicted
                .iter()
                .filter_map(move |port| port.checked_add(step))
        };
        let mut near = Vec::new();
        for port in (0..NEAR).flat_map(each) {
            if !near.contains(&port) {
                near.push(port);
            }
        }
        near.reverse();
        near
    }
}

/// Returns the endpoint of a direct path that NATs of IPv4 may be on.
fn endpoint(path: Path) -> Option<SocketAddr> {
    match path {
        Path::Direct(at) if is_far(at) => Some(at),
        Path::Direct(_) | Path::Relay => None,
    }
}

fn is_far(at: SocketAddr) -> bool {
    at.is_ipv4() && Class::of(at) == Class::Wan
}

/// Returns where a NAT that maps by destination may have our next endpoint, by where servers see us;
/// nowhere when it maps alike for all.
///
/// One that counts is predicted for the next four; of another, one endpoint tells peers to guess.
pub(crate) fn predicted(seen: &[SocketAddr]) -> Vec<SocketAddr> {
    /// Steps beyond it are no counting, but chance.
    const LARGEST_STEP: u16 = 8;
    let mut far = seen.iter().filter(|at| is_far(**at));
    let Some(ip) = far.clone().next().map(SocketAddr::ip) else {
        return Vec::new();
    };
    let is_one_address = far.all(|at| at.ip() == ip);
    let here = seen.iter().filter(|at| at.ip() == ip);
    let mut ports = here.map(SocketAddr::port).collect::<Vec<_>>();
    ports.sort_unstable();
    ports.dedup();
    let (Some(last), true, true) = (ports.last().copied(), is_one_address, ports.len() > 1) else {
        return Vec::new();
    };
    let steps = ports
        .windows(2)
        .filter_map(|pair| Some(pair.last()? - pair.first()?));
    let step = steps.min().filter(|step| *step <= LARGEST_STEP);
    let next = |n: u16| last.checked_add(step.unwrap_or(1).checked_mul(n)?);
    let count = if step.is_some() { 4 } else { 1 };
    let ports = (1..=count).filter_map(next);
    ports.map(|port| SocketAddr::new(ip, port)).collect()
}

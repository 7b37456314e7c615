//! Time is driven by hand against a peer that is a table of which paths answer.

mod choosing;
mod probing;
mod properties;
mod punch;
mod seeing;
mod sizes;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::engine::path::{Mode, Path, PathAgent, Probe};
use crate::wire::candidate::{Candidate, Candidates, Kind};
use crate::wire::control::ProbeReply;

const LAN: &str = "192.168.1.7:16200";
const WAN: &str = "198.51.100.7:16200";
const WAN2: &str = "198.51.100.8:16200";

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn direct(text: &str) -> Path {
    Path::Direct(at(text))
}

fn host(text: &str) -> Candidate {
    Candidate {
        kind: Kind::Host,
        endpoint: at(text),
        priority: 1,
    }
}

fn named(seq: u64, list: &[&str]) -> Candidates {
    let list = list.iter().map(|text| host(text)).collect();
    Candidates { seq, list }
}

#[expect(clippy::disallowed_methods, reason = "tests need an epoch")]
pub(super) fn epoch() -> Instant {
    Instant::now()
}

/// An agent and a peer who answers.
struct World {
    agent: PathAgent,
    start: Instant,
    now: Instant,
    /// RTT of the paths that answer probes.
    rtt: BTreeMap<Path, Duration>,
    /// Paths that carry data.
    carries: BTreeSet<Path>,
    /// What the peer received.
    received: u32,
    /// Whether the peer answers data with data.
    echoes: bool,
    replies: BTreeMap<Instant, Vec<(Path, u64)>>,
    /// Every probe: when and where to.
    sent: Vec<(Duration, Path)>,
    /// The same of those that open the NATs on our side.
    opened: Vec<(Duration, Path)>,
    told: Vec<Duration>,
    /// The largest packet that any path carries.
    widest: u16,
}

impl World {
    fn new(mode: Mode) -> Self {
        let now = epoch();
        Self {
            agent: PathAgent::new(mode, [7; 32], now),
            start: now,
            now,
            rtt: BTreeMap::from([(Path::Relay, ms(40))]),
            carries: BTreeSet::from([Path::Relay]),
            received: 0,
            echoes: true,
            replies: BTreeMap::new(),
            sent: Vec::new(),
            opened: Vec::new(),
            told: Vec::new(),
            widest: 1440,
        }
    }

    /// A session is up and the peer named `list`.
    fn up(list: &[&str]) -> Self {
        let mut world = Self::new(Mode::Auto);
        world
            .agent
            .set_candidates(&[host("10.0.0.2:16200")], world.now);
        world.agent.handle_session(world.now);
        world.agent.handle_candidates(&named(1, list), world.now);
        world
    }

    /// Makes a path answer and carry.
    fn open(&mut self, path: &str, rtt: Duration) {
        self.rtt.insert(direct(path), rtt);
        self.carries.insert(direct(path));
    }

    fn close(&mut self, path: Path) {
        self.rtt.remove(&path);
        self.carries.remove(&path);
    }

    /// Sends data on whatever path is in use.
    fn data(&mut self) {
        let Some(path) = self.agent.current() else {
            return;
        };
        self.agent.handle_sent(self.now);
        if self.carries.contains(&path) {
            self.received += 1;
            if self.echoes {
                self.agent.handle_authenticated(path, true, self.now);
            }
        }
    }

    /// Sends data every 100 ms for `span`.
    fn talk(&mut self, span: Duration) {
        let end = self.now + span;
        while self.now < end {
            self.data();
            self.pass(ms(100).min(end - self.now));
        }
    }

    /// Lets time pass, deadline by deadline.
    fn pass(&mut self, span: Duration) {
        let end = self.now + span;
        for _ in 0..100_000 {
            self.drain();
            let reply = self.replies.keys().next().copied();
            let due = self.agent.poll_timeout().map(|(at, _)| at);
            let next = [reply, due].into_iter().flatten().min();
            let Some(next) = next.filter(|at| *at <= end) else {
                self.now = end;
                return;
            };
            self.now = self.now.max(next);
            while let Some(entry) = self.replies.first_entry().filter(|e| *e.key() <= self.now) {
                for (path, id) in entry.remove() {
                    let reply = self.reply(id);
                    self.agent.handle_authenticated(path, false, self.now);
                    self.agent.handle_reply(path, &reply, self.now);
                }
            }
            if due.is_some_and(|at| at <= self.now) {
                self.agent.handle_timeout(self.now);
            }
        }
        panic!("time does not pass: {:?}", self.agent.poll_timeout());
    }

    fn reply(&self, id: u64) -> ProbeReply {
        ProbeReply {
            id,
            observed: None,
            received: self.received,
        }
    }

    fn drain(&mut self) {
        while let Some(probe) = self.agent.poll_probe() {
            let Probe { id, path, .. } = probe;
            if probe.is_brief {
                self.opened.push((self.now - self.start, path));
                continue;
            }
            match probe.size {
                Some(size) if size > self.widest => continue,
                Some(_) => {}
                None => self.sent.push((self.now - self.start, path)),
            }
            if let Some(rtt) = self.rtt.get(&path) {
                let arrives = self.now + *rtt;
                self.replies.entry(arrives).or_default().push((path, id));
            }
        }
        if self.agent.poll_candidates().is_some() {
            self.told.push(self.now - self.start);
        }
    }

    fn probes_to(&self, path: Path) -> usize {
        self.sent.iter().filter(|(_, to)| *to == path).count()
    }

    fn current(&self) -> Option<Path> {
        self.agent.current()
    }
}

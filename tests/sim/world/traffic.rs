//! Transitions of traffic: programs talk, time passes, and what strangers send.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use agentnet::id::Suffix;
use agentnet::os::clock;

use crate::pair::name;
use crate::world::check::Failure;
use crate::world::internet::Node;
use crate::world::model::{Belief, HIGH, LOW};
use crate::world::play::{Play, link};
use crate::world::transition::Transition;

/// How long data may be lost, between two that trust and reach each other, as a path changes.
const GAP: Duration = Duration::from_secs(12);

impl Play {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "`apply` sorts all kinds of transition"
    )]
    pub(super) fn carry_traffic(&mut self, transition: Transition) -> Result<bool, Failure> {
        match transition {
            Transition::Burst { one, other, count } => {
                for _ in 0..count {
                    for (from, to) in [(one, other), (other, one)] {
                        self.say(from, to, self.open_port(from, to), false);
                    }
                }
                Ok(true)
            }
            Transition::Garbage { host, count } => {
                self.send_garbage(host, count);
                Ok(true)
            }
            Transition::Lookup { from, to } => Ok(self.look_up(from, to)),
            Transition::Pass { seconds } => {
                self.world.pass(Duration::from_secs(seconds));
                Ok(true)
            }
            Transition::Ping { from, to } => {
                self.note_traffic(from, to);
                let peer = self.world.hosts[to].local;
                let sent = self
                    .world
                    .with(from, |e, local, time| e.probe(local, peer, time));
                Ok(sent.flatten().is_some())
            }
            Transition::Replay { count } => Ok(self.replay(count)),
            Transition::Talk {
                one,
                other,
                seconds,
            } => {
                self.talk(one, other, seconds)?;
                Ok(true)
            }
            other => unreachable!("{other} is no traffic"),
        }
    }

    /// Lets a program speak; what its own end surely may not say must never arrive.
    pub(super) fn say(&mut self, from: usize, to: usize, port: u16, wants_reply: bool) -> u64 {
        let is_forbidden = self.model.trusts(from, to, clock::now()) == Belief::No;
        let said = self.world.say(from, to, port, wants_reply);
        if is_forbidden {
            self.forbidden.insert(said);
        }
        self.note_traffic(from, to);
        said
    }

    /// Takes that probes may go between two: where they cannot meet now, they are spent.
    pub(super) fn note_traffic(&mut self, one: usize, other: usize) {
        if !self.is_direct_due(one, other) {
            self.paths.spoiled.insert(link(one, other));
        }
    }

    /// Returns a port that `to` lets `from` reach, or any.
    pub(super) fn open_port(&self, from: usize, to: usize) -> u16 {
        let allow = self.model.allows(to, from);
        let is_high_only = allow.is_some_and(|a| a.lets_in(HIGH) && !a.lets_in(LOW));
        if is_high_only { HIGH } else { LOW }
    }

    fn look_up(&mut self, from: usize, to: usize) -> bool {
        self.note_traffic(from, to);
        let called = name(&self.world.hosts[to].name);
        let name = called.full(&"acme".parse().unwrap(), &Suffix::default());
        let found = self
            .world
            .with(from, |e, local, time| e.by_name(local, &name, time));
        found.is_some()
    }

    /// Two talk once a second; where nothing is in the way, no gap may be long.
    fn talk(&mut self, one: usize, other: usize, seconds: u64) -> Result<(), Failure> {
        let mut last = [clock::now(); 2];
        let mut open = Vec::<(usize, u64, Instant)>::new();
        for _ in 0..seconds {
            for (way, (from, to)) in [(one, other), (other, one)].into_iter().enumerate() {
                let port = self.open_port(from, to);
                if self.exchanges(from, to, port) == Belief::Yes && self.is_calm() {
                    open.push((way, self.say(from, to, port, false), clock::now()));
                } else {
                    self.say(from, to, port, false);
                    last[way] = clock::now();
                }
            }
            self.world.pass(Duration::from_secs(1));
            self.look()?;
            open.retain(|(way, said, at)| {
                let is_done = self.world.ledger.is_done(*said);
                if is_done {
                    last[*way] = last[*way].max(*at);
                }
                !is_done && clock::now() < *at + GAP
            });
            let gap = last.map(|at| clock::now() - at);
            if gap.iter().any(|gap| *gap > GAP) {
                let what = format!("talking, nothing arrived for {:?}", gap.iter().max());
                return Err(Failure::between(one, other, what));
            }
        }
        Ok(())
    }

    fn replay(&mut self, count: usize) -> bool {
        let all = &self.world.captured;
        let again = all.iter().skip(all.len().saturating_sub(count)).cloned();
        let again = again.collect::<Vec<_>>();
        for flight in &again {
            let late = self.world.dice.within(Duration::from_millis(300));
            self.world.put(clock::now() + late, flight.clone());
        }
        !again.is_empty()
    }

    /// Sends a host and the gateway random bytes, and datagrams of others with some bytes changed.
    fn send_garbage(&mut self, host: usize, count: usize) {
        for n in 0..count {
            let dice = &mut self.world.dice;
            let captured = &self.world.captured;
            let of_others = captured.get(dice.below(captured.len()));
            let mut bytes = match of_others.filter(|_| n % 2 == 0) {
                Some(flight) => flight.bytes.clone(),
                None => dice.seed().repeat(1 + dice.below(6)),
            };
            if n % 4 == 1 {
                // As if it were a message of some kind.
                bytes[..4].copy_from_slice(&[1 + (n % 4) as u8, 0, 0, 0]);
            }
            for _ in 0..3 {
                let at = dice.below(bytes.len());
                bytes[at] ^= 1 << dice.below(8);
            }
            let from = SocketAddr::from(([192, 0, 2, 77], 7));
            let to = if n % 3 == 0 {
                Node::Gateway
            } else {
                Node::Host(host)
            };
            let late = dice.within(Duration::from_millis(300));
            if let Some(flight) = self.world.internet.forge(from, to, bytes) {
                self.world.put(clock::now() + late, flight);
            }
        }
    }
}

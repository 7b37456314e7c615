//! A whole deployment in simulated time: hosts, gateway and registry on an internet, moved from
//! event to event.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

use agentnet::engine::{Engine, Event, Time, Transmit};
use agentnet::gateway::core::Core;
use agentnet::gateway::recovery::Recovery;
use agentnet::id::OverlayIp;
use agentnet::os::clock;

use crate::clock::Simulation;
use crate::pair::{new_gateway, now};
use crate::world::dice::Dice;
use crate::world::faults::Fault;
use crate::world::host::Host;
use crate::world::internet::{Flight, Internet, Node, freely};
use crate::world::ledger::Ledger;
use crate::world::nat::NatKind;
use crate::world::registry::Registry;
use crate::world::trail::Trail;

/// Datagrams kept for whoever replays them.
const MAX_CAPTURED: usize = 64;

/// Timers that fire without time passing, beyond which an engine spins.
const MAX_SPINS: u32 = 200;

/// Everything that exists.
#[derive(Debug)]
pub(crate) struct Deployment {
    pub(crate) sim: Simulation,
    pub(crate) start: Instant,
    pub(crate) internet: Internet,
    pub(crate) hosts: Vec<Host>,
    /// None while it is down.
    pub(crate) gateway: Option<Core>,
    /// What the gateway keeps on disk: attachments, and how many revocations it was told.
    recovery: Recovery,
    told: usize,
    gateway_wake: Option<Instant>,
    pub(crate) registry: Registry,
    pub(crate) is_registry_up: bool,
    /// Hosts that do not reach the registry.
    pub(crate) registry_cuts: BTreeSet<usize>,
    flights: BTreeMap<(Instant, u64), Flight>,
    serial: u64,
    pub(crate) dice: Dice,
    pub(crate) ledger: Ledger,
    pub(crate) trail: Trail,
    pub(crate) captured: VecDeque<Flight>,
    /// Datagrams that hosts sent, by host.
    pub(crate) sent: Vec<u64>,
    /// What is deliberately wrong with this world; None but in tests of the checks.
    pub(crate) fault: Option<Fault>,
    /// What no engine may do, seen while it was moved; None so far.
    pub(crate) broken: Option<String>,
    spins: u32,
}

impl Deployment {
    /// Makes a deployment whose gateway and registry run, and whose hosts do not yet.
    pub(crate) fn new(seed: u64, hosts: usize, sites: &[Option<NatKind>]) -> Self {
        let sim = Simulation::start(seed);
        let start = clock::now();
        let mut dice = Dice::new(seed);
        let internet = Internet::new(sites, dice.next());
        let mut deployment = Self {
            sim,
            start,
            internet,
            hosts: (0..hosts).map(|place| Host::new(place, start)).collect(),
            gateway: None,
            recovery: Recovery::default(),
            told: 0,
            gateway_wake: None,
            registry: Registry::new(),
            is_registry_up: true,
            registry_cuts: BTreeSet::new(),
            flights: BTreeMap::new(),
            serial: 0,
            dice,
            ledger: Ledger::default(),
            trail: Trail::default(),
            captured: VecDeque::new(),
            sent: vec![0; hosts],
            fault: None,
            broken: None,
            spins: 0,
        };
        deployment.start_gateway();
        deployment
    }

    /// Returns both clocks as a host has them; its own calls to the clock agree until the next.
    pub(crate) fn time_at(&self, host: usize) -> Time {
        self.sim.set_skew(self.hosts[host].skew);
        now()
    }

    /// Returns both clocks without any error.
    pub(crate) fn true_time(&self) -> Time {
        self.sim.set_skew(0);
        now()
    }

    pub(crate) fn host_of(&self, address: OverlayIp) -> Option<usize> {
        self.hosts.iter().position(|host| host.local == address)
    }

    /// Lets an engine do something, with everything that follows at once; None when it cannot.
    pub(crate) fn with<T>(
        &mut self,
        host: usize,
        act: impl FnOnce(&mut Engine, OverlayIp, Time) -> T,
    ) -> Option<T> {
        let time = self.time_at(host);
        let local = self.hosts[host].local;
        let done = self.hosts[host]
            .running()
            .map(|engine| act(engine, local, time));
        self.drain(host);
        done
    }

    /// Lets `duration` pass.
    pub(crate) fn pass(&mut self, duration: Duration) {
        let end = clock::now() + duration;
        while self.broken.is_none() {
            let next = self.next().filter(|at| *at <= end);
            let now = clock::now();
            let Some(at) = next else {
                self.sim.advance(end.saturating_duration_since(now));
                return;
            };
            if at > now {
                self.sim.advance(at - now);
                self.spins = 0;
            } else {
                self.spins += 1;
                self.check_spin();
            }
            self.turn();
        }
    }

    fn next(&self) -> Option<Instant> {
        let flight = self.flights.keys().next().map(|(at, _)| *at);
        let awake = self.hosts.iter().filter(|host| host.asleep.is_none());
        let hosts = awake.flat_map(|host| [host.due, host.link.wake]);
        let gateway = self.gateway.as_ref().and_then(Core::poll_timeout);
        let rest = [flight, gateway.map(|(at, _)| at), self.gateway_wake];
        hosts.chain(rest).flatten().min()
    }

    fn check_spin(&mut self) {
        if self.spins < MAX_SPINS {
            return;
        }
        // boringtun's timers are coarser than ours, so time moves at least a little.
        self.spins = 0;
        self.sim.advance(Duration::from_millis(1));
    }

    /// Does one thing that is due.
    fn turn(&mut self) {
        let now = clock::now();
        if let Some(entry) = self.flights.first_entry()
            && entry.key().0 <= now
        {
            let flight = entry.remove();
            self.arrive(&flight, now);
            return;
        }
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let awake = |host: &Host| host.asleep.is_none();
        let timer = self.hosts.iter().position(|h| awake(h) && is_due(h.due));
        if let Some(host) = timer {
            self.with(host, |engine, _, time| engine.handle_timeout(time));
            return;
        }
        let link = self
            .hosts
            .iter()
            .position(|h| awake(h) && is_due(h.link.wake));
        if let Some(host) = link {
            self.sync(host);
            return;
        }
        if is_due(self.gateway_wake) {
            self.gateway_wake = None;
            self.tell_gateway();
            return;
        }
        let time = self.true_time();
        if let Some(gateway) = &mut self.gateway {
            gateway.handle_timeout(time.now, time.unix);
        }
        self.drain_gateway();
    }

    // ---- datagrams

    fn arrive(&mut self, flight: &Flight, now: Instant) {
        let receiver = self.internet.arrive(flight, now);
        self.trail.arrived(flight, receiver, now - self.start);
        match receiver {
            Some(Node::Gateway) => {
                let time = self.true_time();
                if let Some(gateway) = &mut self.gateway {
                    let bytes = flight.bytes.clone();
                    gateway.handle_datagram(flight.from, bytes, time.now, time.unix);
                }
                self.drain_gateway();
            }
            Some(Node::Host(host)) => {
                self.with(host, |engine, _, time| {
                    engine.handle_datagram(flight.from, &flight.bytes, time);
                });
            }
            None => {}
        }
    }

    /// Puts a datagram on the internet.
    pub(crate) fn transmit(&mut self, sender: Node, transmit: Transmit) {
        let (now, to) = (clock::now(), transmit.to);
        self.trail
            .sent(sender, to, &transmit.bytes, now - self.start);
        if let Node::Host(host) = sender {
            self.sent[host] += 1;
        }
        if self.is_lost_by_fault(sender, to, &transmit.bytes) {
            return;
        }
        for (at, flight) in self.internet.send(sender, transmit, now) {
            if self.captured.len() >= MAX_CAPTURED {
                self.captured.pop_front();
            }
            self.captured.push_back(flight.clone());
            self.put(at, flight);
        }
    }

    /// Puts a datagram on its way as if it had been sent before.
    pub(crate) fn put(&mut self, at: Instant, flight: Flight) {
        self.serial += 1;
        self.flights.insert((at, self.serial), flight);
    }

    fn is_lost_by_fault(&self, sender: Node, to: SocketAddr, bytes: &[u8]) -> bool {
        let is_direct = sender != Node::Gateway && to != self.internet.gateway;
        match self.fault {
            Some(Fault::LosesProbes) => is_direct,
            // Handshakes pass, so that all looks well.
            Some(Fault::LosesRelayed) => !is_direct && is_relayed(bytes),
            Some(
                Fault::DeliversLate
                | Fault::DeliversTwice
                | Fault::FlipsBytes
                | Fault::IgnoresScopes
                | Fault::TrustsByItself,
            )
            | None => false,
        }
    }

    fn drain_gateway(&mut self) {
        while let Some((to, bytes)) = self.gateway.as_mut().and_then(Core::poll_transmit) {
            self.transmit(Node::Gateway, freely(to, bytes));
        }
    }

    /// Does what an engine wants done.
    pub(crate) fn drain(&mut self, host: usize) {
        let time = self.time_at(host);
        let gateway = self.internet.gateway;
        loop {
            let made = self.hosts[host].drain(gateway, time);
            if made.events.is_empty() && made.transmits.is_empty() && made.packets.is_empty() {
                self.hosts[host].follow_timers();
                return;
            }
            for event in &made.events {
                self.trail.event(host, event, time.now - self.start);
                self.handle_event(host, event);
            }
            for (peer, bytes) in made.packets {
                self.deliver(host, peer, bytes);
            }
            for transmit in made.transmits {
                self.transmit(Node::Host(host), transmit);
            }
        }
    }

    fn handle_event(&mut self, host: usize, event: &Event) {
        match event {
            Event::Outbox { .. } if self.hosts[host].link.is_connected => {
                self.wake_link(host, Duration::ZERO);
            }
            Event::Withheld { .. } => {
                let name = self.hosts[host].name.clone();
                self.broken = Some(format!("{name} says that an honest registry withholds"));
            }
            Event::Displaced { .. } | Event::Twin { .. } => {
                let name = self.hosts[host].name.clone();
                self.broken = Some(format!("{name} says that it runs elsewhere too: {event:?}"));
            }
            Event::Changed { .. }
            | Event::Gateway { .. }
            | Event::Outbox { .. }
            | Event::Pending { .. }
            | Event::Pong { .. }
            | Event::Tables => {}
        }
    }

    // ---- programs

    /// Lets a program send a packet to a port of another agent; a reply is wanted or not.
    pub(crate) fn say(&mut self, from: usize, to: usize, port: u16, wants_reply: bool) -> u64 {
        let (source, target) = (self.hosts[from].local, self.hosts[to].local);
        let now = clock::now();
        let said = self
            .ledger
            .request((from, source), (to, target), port, wants_reply, now);
        self.send(from, to, said);
        said
    }

    fn send(&mut self, from: usize, to: usize, said: u64) {
        let packet = self.ledger.packet(said).to_vec();
        let target = self.hosts[to].local;
        let time = self.time_at(from);
        self.hosts[from].send(target, &packet, time);
        self.drain(from);
    }

    fn deliver(&mut self, host: usize, peer: OverlayIp, mut bytes: Vec<u8>) {
        let now = clock::now();
        let passes = self.hosts[host].lets_in(peer, &bytes, now);
        if !passes && self.fault != Some(Fault::IgnoresScopes) {
            return;
        }
        if self.fault == Some(Fault::FlipsBytes)
            && let Some(last) = bytes.last_mut()
        {
            *last ^= 1;
        }
        let Some(from) = self.host_of(peer) else {
            self.broken = Some("a packet came from nobody".to_owned());
            return;
        };
        let copies = 1 + usize::from(self.fault == Some(Fault::DeliversTwice));
        let late = if self.fault == Some(Fault::DeliversLate) {
            Duration::from_secs(3)
        } else {
            Duration::ZERO
        };
        let mut reply = None;
        for _ in 0..copies {
            reply = self
                .ledger
                .delivered((from, host), &bytes, now + late)
                .or(reply);
        }
        if let Some(reply) = reply {
            self.send(host, from, reply);
        }
    }

    // ---- gateway

    /// Starts the gateway from what it keeps on disk.
    pub(crate) fn start_gateway(&mut self) {
        let time = self.true_time();
        let mut gateway = new_gateway(self.dice.seed());
        for revocation in self.registry.revocations().take(self.told) {
            // It held when it was first told.
            drop(gateway.add_revocation(revocation, time.unix));
        }
        gateway.recover(std::mem::take(&mut self.recovery), time.now);
        self.gateway = Some(gateway);
        self.wake_gateway();
        self.drain_gateway();
    }

    /// Kills the gateway.
    pub(crate) fn stop_gateway(&mut self) {
        if let Some(gateway) = self.gateway.take() {
            self.recovery = gateway.recovery();
        }
    }

    /// Lets the gateway look at the registry soon, if both run.
    pub(crate) fn wake_gateway(&mut self) {
        let soon = self.dice.within(Duration::from_millis(500));
        self.gateway_wake = Some(clock::now() + soon);
    }

    fn tell_gateway(&mut self) {
        let time = self.true_time();
        let Some(gateway) = self.gateway.as_mut().filter(|_| self.is_registry_up) else {
            return;
        };
        for revocation in self.registry.revocations().skip(self.told) {
            drop(gateway.add_revocation(revocation, time.unix));
            self.told += 1;
        }
        self.drain_gateway();
    }
}

/// Tells whether a datagram is a frame with a sealed packet in it.
fn is_relayed(bytes: &[u8]) -> bool {
    bytes.first() == Some(&0xa2) && bytes.get(56) == Some(&4)
}

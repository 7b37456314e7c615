//! One host: an engine, the filter before its programs, a clock of its own, and what it keeps on disk.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

use agentnet::engine::{
    Engine, Event, Time, Transmit,
    membership::{Membership, State},
    path::Mode,
};
use agentnet::id::{IdentityKey, OverlayIp};
use agentnet::policy::{Filter, Limits, Pair, Verdict};
use agentnet::statement::Scope;
use agentnet::wire::ip::Ipv6View;

use crate::pair::{GATEWAY, key};

/// A port that programs send from; nobody serves it, so what comes to it is a reply.
pub(crate) const CLIENT: u16 = 5000;

/// How a host stands with the registry, as the daemon's registry task keeps it.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) is_connected: bool,
    /// Epoch and version up to which changes were handled; None before any.
    pub(crate) cursor: Option<(u64, u64)>,
    /// When to look next; None when only news wake it.
    pub(crate) wake: Option<Instant>,
    pub(crate) refresh_at: Instant,
}

/// What came out of an engine after one input.
#[derive(Debug, Default)]
pub(crate) struct Made {
    pub(crate) transmits: Vec<Transmit>,
    /// Packets for programs: from whom, and the bytes.
    pub(crate) packets: Vec<(OverlayIp, Vec<u8>)>,
    pub(crate) events: Vec<Event>,
}

/// A host and its agent.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) identity: IdentityKey,
    pub(crate) local: OverlayIp,
    /// None while the daemon does not run.
    pub(crate) engine: Option<Engine>,
    /// What a start begins with: the state at the last [`Event::Changed`].
    pub(crate) disk: State,
    pub(crate) filter: Filter,
    pub(crate) tables: BTreeMap<Pair, Vec<Scope>>,
    /// How far its wall clock is ahead, in milliseconds.
    pub(crate) skew: i64,
    pub(crate) mode: Mode,
    pub(crate) link: Link,
    /// When the engine wants its timers handled; None when it does not.
    pub(crate) due: Option<Instant>,
    /// Since when it sleeps; None while it is awake.
    pub(crate) asleep: Option<Instant>,
    /// How often it joined, which makes each tunnel key another.
    pub(crate) joins: u8,
}

impl Host {
    pub(crate) fn new(place: usize, now: Instant) -> Self {
        let number = 10 + u8::try_from(place).expect("at most eight hosts");
        let identity = key(number);
        let local = crate::pair::prefix().address_of(&identity.did().into());
        Self {
            name: char::from(b'a' + number - 10).to_string(),
            local: local.expect("test keys do not collide"),
            identity,
            engine: None,
            disk: State::default(),
            filter: Filter::new(Limits::default(), now),
            tables: BTreeMap::new(),
            skew: 0,
            mode: Mode::Auto,
            link: Link {
                is_connected: false,
                cursor: None,
                wake: None,
                refresh_at: now,
            },
            due: None,
            asleep: None,
            joins: 0,
        }
    }

    /// Starts the daemon from what is on disk.
    pub(crate) fn start(&mut self, at: SocketAddr, seed: [u8; 32], time: Time) {
        let kept = serde_json::to_string(&self.disk).expect("state is plain data");
        let state = serde_json::from_str::<State>(&kept).expect("what was written is read");
        let mut engine = Engine::new(state, seed, time);
        engine.set_path_mode(self.mode, time);
        engine.set_host_candidates(&[at], time);
        self.engine = Some(engine);
        self.filter = Filter::new(Limits::default(), time.now);
        self.tables.clear();
        self.link.is_connected = false;
        self.link.cursor = None;
        self.asleep = None;
    }

    /// Kills the daemon.
    pub(crate) fn stop(&mut self) {
        self.engine = None;
        self.due = None;
        self.tables.clear();
        self.link.is_connected = false;
        self.link.wake = None;
    }

    /// Returns the engine if it can do anything now.
    pub(crate) fn running(&mut self) -> Option<&mut Engine> {
        let is_awake = self.asleep.is_none();
        self.engine.as_mut().filter(|_| is_awake)
    }

    pub(crate) fn is_member(&self) -> bool {
        let engine = self.engine.as_ref();
        engine.is_some_and(|engine| engine.membership(self.local).is_some())
    }

    pub(crate) fn membership(&self) -> Option<&Membership> {
        self.engine.as_ref()?.membership(self.local)
    }

    /// Takes out what the engine has to say, in the order in which the daemon does.
    pub(crate) fn drain(&mut self, gateway: SocketAddr, time: Time) -> Made {
        let mut made = Made::default();
        let Some(engine) = self.engine.as_mut() else {
            return made;
        };
        let mut tables = false;
        let mut changed = false;
        while let Some(event) = engine.poll_event() {
            match &event {
                Event::Gateway { local } => {
                    let set = engine.set_gateway(*local, key(GATEWAY).did(), vec![gateway], time);
                    // A membership that lapsed cannot attach; nothing else is wrong with it.
                    drop(set);
                }
                Event::Tables => tables = true,
                Event::Changed { .. } => changed = true,
                Event::Displaced { .. }
                | Event::Outbox { .. }
                | Event::Twin { .. }
                | Event::Pending { .. }
                | Event::Pong { .. }
                | Event::Withheld { .. } => {}
            }
            made.events.push(event);
        }
        if changed {
            self.disk = engine.state();
        }
        if tables {
            self.publish(time.now);
        }
        let Some(engine) = self.engine.as_mut() else {
            return made;
        };
        while let Some(packet) = engine.poll_packet() {
            made.packets.push((packet.peer, packet.bytes));
        }
        while engine.poll_injection().is_some() {}
        while let Some(transmit) = engine.poll_transmit() {
            made.transmits.push(transmit);
        }
        made
    }

    /// Takes when the engine wants its timers handled, once it was drained.
    pub(crate) fn follow_timers(&mut self) {
        let timeout = self.engine.as_ref().and_then(Engine::poll_timeout);
        self.due = timeout.map(|(at, _)| at);
    }

    /// Puts the engine's tables in force, as the data plane does.
    fn publish(&mut self, now: Instant) {
        let Some(engine) = &self.engine else {
            return;
        };
        let new = engine.tables().into_iter();
        let new = new.map(|(local, peer, scopes)| (Pair { local, peer }, scopes));
        let new = new.collect::<BTreeMap<_, _>>();
        let old = std::mem::replace(&mut self.tables, new);
        for (pair, scopes) in old {
            match self.tables.get(&pair) {
                Some(kept) if *kept == scopes => {}
                Some(kept) => drop(self.filter.narrow(pair, kept, now)),
                None => drop(self.filter.forget(pair, now)),
            }
        }
    }

    /// Judges a packet of a peer; true when programs get it.
    pub(crate) fn lets_in(&mut self, peer: OverlayIp, bytes: &[u8], now: Instant) -> bool {
        let pair = Pair {
            local: self.local,
            peer,
        };
        let Some(scopes) = self.tables.get(&pair) else {
            return false;
        };
        let Ok(view) = Ipv6View::parse(bytes) else {
            return false;
        };
        self.filter.inbound(pair, &view, scopes, now) == Verdict::Pass
    }

    /// Takes a packet of a program, as the data plane does.
    pub(crate) fn send(&mut self, peer: OverlayIp, bytes: &[u8], time: Time) {
        let pair = Pair {
            local: self.local,
            peer,
        };
        let view = Ipv6View::parse(bytes).expect("programs send whole packets");
        let scopes = self.tables.get(&pair);
        let passes = scopes.map(|scopes| self.filter.outbound(pair, &view, scopes, time.now));
        let Some(engine) = self.running() else {
            return;
        };
        match passes {
            Some(Verdict::Pass) => engine.handle_packet(pair.local, peer, bytes, time),
            Some(Verdict::Drop(_)) => {}
            None => engine.handle_unknown(pair.local, bytes, time),
        }
    }

    /// Returns the peers installed now.
    pub(crate) fn peers(&self) -> BTreeSet<OverlayIp> {
        let engine = self.engine.iter();
        let tables = engine.flat_map(Engine::tables);
        tables.map(|(_, peer, _)| peer).collect()
    }
}

/// How long a daemon waits at first for a registry that went away, and at most.
pub(crate) const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(4));

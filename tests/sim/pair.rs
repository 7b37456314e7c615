//! Whole engines behind one gateway, with a registry that forwards at once, in simulated time.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use agentnet::{
    engine::{
        Engine, Event, Forwarded, Time, Travel,
        membership::{Membership, Outgoing, Start, State},
        trust::TrustError,
    },
    gateway::core::{Core, CoreConfig, CoreKeys},
    id::{
        DomainPrefix, IdentityKey, MemberName, NetworkId, NetworkPrefix, OverlayIp, Suffix,
        TunnelSecret, UnixTime,
    },
    os::clock,
    statement::{Gateway, Grant, Head, Scope, Statement, issue},
    wire::drop::DropReason,
};

use crate::clock::{Simulation, Skew};
use crate::hostile::evil::Evil;

/// More rounds than any exchange takes; a loop names its culprit instead of hanging.
const MAX_ROUNDS: usize = 100_000;

pub(crate) const DOMAIN: u8 = 200;
pub(crate) const REGISTRY: u8 = 201;
pub(crate) const GATEWAY: u8 = 202;
pub(crate) const OWNER: u8 = 203;

pub(crate) fn key(n: u8) -> IdentityKey {
    IdentityKey::from_seed([n; 32])
}

pub(crate) fn network() -> NetworkId {
    key(OWNER).did().into()
}

pub(crate) fn now() -> Time {
    Time {
        now: clock::now(),
        unix: clock::unix(),
    }
}

/// One host with one engine, and what reached its programs.
pub(crate) struct Host {
    pub(crate) engine: Engine,
    pub(crate) local: OverlayIp,
    pub(crate) at: SocketAddr,
    /// What its TUN was given: from whom, and the packet.
    pub(crate) received: Vec<(OverlayIp, Vec<u8>)>,
    pub(crate) pongs: usize,
    /// How often its engine reported a registry that keeps something back.
    pub(crate) withheld: usize,
    /// Seconds by which its wall clock is ahead.
    pub(crate) skew: i64,
    /// False while nothing it sends arrives.
    pub(crate) is_online: bool,
    /// What is on its disk: the state as it was when the engine last said that it changed.
    pub(crate) kept: String,
}

impl Host {
    /// Returns the state as it would be written now.
    pub(crate) fn state(&self) -> String {
        serde_json::to_string(&self.engine.state()).unwrap()
    }
}

/// Hosts, a gateway and a registry without delay.
pub(crate) struct World {
    pub(crate) sim: Simulation,
    /// None while the gateway is down.
    pub(crate) gateway: Option<Core>,
    /// Stands in the gateway's place, with its keys; None while the gateway is honest.
    pub(crate) evil: Option<Evil>,
    pub(crate) gateway_at: SocketAddr,
    pub(crate) hosts: BTreeMap<&'static str, Host>,
    pub(crate) has_registry: bool,
    /// Whether hosts reach each other without the gateway.
    pub(crate) is_open: bool,
    /// Longest datagram that arrives from host to host, in bytes; None where all do.
    pub(crate) longest_direct: Option<usize>,
    /// Every datagram that was on the underlay: from, to, bytes.
    pub(crate) wire: Vec<(SocketAddr, SocketAddr, Vec<u8>)>,
    seed: u8,
    /// Whether it is checked that nothing leaves a host before what it follows from is on disk.
    pub(crate) checks_disks: bool,
    /// Every statement that the registry was handed and passed on.
    pub(crate) mail: Vec<(Forwarded, String)>,
    /// What happens to what hosts send; None while all of it arrives once and in order.
    pub(crate) weather: Option<Weather>,
}

/// What a bad network does to datagrams, in percent.
#[derive(Debug, Default)]
pub(crate) struct Weather {
    pub(crate) lose: u64,
    pub(crate) double: u64,
    /// Held back until after the next one.
    pub(crate) hold: u64,
    pub(crate) held: Vec<(SocketAddr, SocketAddr, Vec<u8>)>,
    pub(crate) state: u64,
}

impl Weather {
    /// Returns what arrives now that this was sent.
    fn fate(
        &mut self,
        sent: (SocketAddr, SocketAddr, Vec<u8>),
    ) -> Vec<(SocketAddr, SocketAddr, Vec<u8>)> {
        // Knuth's MMIX generator; its high bits are good.
        self.state = self
            .state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let dice = (self.state >> 33) % 100;
        let mut arrives = match dice {
            n if n < self.lose => vec![],
            n if n < self.lose + self.double => vec![sent.clone(), sent],
            n if n < self.lose + self.double + self.hold => {
                return std::mem::replace(&mut self.held, vec![sent]);
            }
            _ => vec![sent],
        };
        arrives.append(&mut self.held);
        arrives
    }
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut world = Self {
            sim: Simulation::start(seed),
            gateway: None,
            evil: None,
            gateway_at: "203.0.113.1:16201".parse().unwrap(),
            hosts: BTreeMap::new(),
            has_registry: true,
            is_open: false,
            longest_direct: None,
            wire: vec![],
            seed: 0,
            checks_disks: false,
            mail: vec![],
            weather: None,
        };
        world.start_gateway();
        world
    }

    /// Starts the gateway, or starts it anew without memory.
    pub(crate) fn start_gateway(&mut self) {
        self.gateway = Some(new_gateway(self.next_seed()));
    }

    fn next_seed(&mut self) -> [u8; 32] {
        self.seed += 1;
        [self.seed; 32]
    }

    /// Adds a host with agent number `n` called `name`.
    pub(crate) fn add(&mut self, name: &'static str, n: u8) {
        self.add_for(name, n, issue::ROOT_LIFE);
    }

    /// Adds a host whose agent is a member for `life`.
    pub(crate) fn add_for(&mut self, name: &'static str, n: u8, life: Duration) {
        let membership = membership(n, name, life);
        self.add_membership(name, n, membership);
    }

    /// Adds a host whose agent has another name than the host.
    pub(crate) fn add_as(&mut self, host: &'static str, name: &str, n: u8) {
        self.add_membership(host, n, membership(n, name, issue::ROOT_LIFE));
    }

    pub(crate) fn add_membership(&mut self, name: &'static str, n: u8, membership: Membership) {
        let local = membership.address().unwrap();
        let state = State {
            identities: BTreeMap::new(),
            memberships: vec![membership],
            left: vec![],
        };
        let engine = Engine::new(state, self.next_seed(), now());
        let at = SocketAddr::new([198, 51, 100, n].into(), 16200);
        let mut host = Host {
            engine,
            local,
            at,
            received: vec![],
            pongs: 0,
            withheld: 0,
            skew: 0,
            is_online: true,
            kept: String::new(),
        };
        host.kept = host.state();
        self.hosts.insert(name, host);
        self.run();
    }

    /// Kills a host's daemon and starts it anew from what it kept.
    pub(crate) fn restart(&mut self, name: &'static str) {
        let seed = self.next_seed();
        let host = self.hosts.get_mut(name).unwrap();
        let clock = Skew::of(host.skew);
        host.engine = Engine::new(serde_json::from_str(&host.kept).unwrap(), seed, now());
        drop(clock);
        self.run();
    }

    /// Starts a node on host `to`, elsewhere, from a copy of what `from` keeps.
    pub(crate) fn copy(&mut self, from: &str, to: &'static str) {
        let seed = self.next_seed();
        let host = &self.hosts[from];
        let (local, kept) = (host.local, host.kept.clone());
        let engine = Engine::new(serde_json::from_str(&kept).unwrap(), seed, now());
        let host = Host {
            engine,
            local,
            at: SocketAddr::new([198, 51, 100, 200].into(), 16200),
            received: vec![],
            pongs: 0,
            withheld: 0,
            skew: 0,
            is_online: true,
            kept,
        };
        self.hosts.insert(to, host);
        self.run();
    }

    pub(crate) fn host(&mut self, name: &str) -> &mut Host {
        self.hosts.get_mut(name).unwrap()
    }

    pub(crate) fn local(&self, name: &str) -> OverlayIp {
        self.hosts[name].local
    }

    /// Changes trust at `name`, then lets everything settle.
    pub(crate) fn change(
        &mut self,
        name: &str,
        change: impl FnOnce(&mut Membership, UnixTime) -> Result<(), TrustError>,
    ) {
        let host = self.host(name);
        let clock = Skew::of(host.skew);
        let changed = host.engine.change(host.local, now(), change);
        changed.unwrap().unwrap();
        drop(clock);
        self.run();
    }

    /// Makes `from` and `to` trust each other; `to` lets in `allow`.
    pub(crate) fn trust(&mut self, from: &str, to: &str, allow: &str) {
        let (asked, asking) = (name(to), name(from));
        self.change(from, |m, unix| {
            m.request(asked, Scope::replies_only(), None, unix)
        });
        let allow = allow.parse::<Scope>().unwrap();
        self.change(to, |m, unix| m.approve(&asking, allow, unix).map(drop));
    }

    /// Sends a UDP packet of `from`'s programs to `to`.
    pub(crate) fn send(&mut self, from: &str, to: &str, payload: &[u8]) {
        let (source, target) = (self.local(from), self.local(to));
        let packet = udp(source, target, payload);
        let host = self.host(from);
        let clock = Skew::of(host.skew);
        host.engine.handle_packet(source, target, &packet, now());
        drop(clock);
        self.run();
    }

    /// Returns how many packets reached `name` since the last call.
    pub(crate) fn arrived(&mut self, name: &str) -> usize {
        std::mem::take(&mut self.host(name).received).len()
    }

    /// Lets `duration` pass, deadline by deadline.
    pub(crate) fn pass(&mut self, duration: Duration) {
        let end = clock::now() + duration;
        for _ in 0..MAX_ROUNDS {
            self.run();
            let hosts = self.hosts.values().filter_map(|h| h.engine.poll_timeout());
            let gateway = self.gateway.as_ref().and_then(Core::poll_timeout);
            let evil = self.evil.as_ref().and_then(Evil::poll_timeout);
            let next = hosts
                .chain(gateway)
                .map(|(at, _)| at)
                .chain(evil)
                .min()
                .unwrap_or(end)
                .min(end);
            let now_ = clock::now();
            // boringtun's timers are coarser than ours, so time moves at least a little.
            self.sim.advance(
                next.saturating_duration_since(now_)
                    .max(Duration::from_millis(1)),
            );
            let time = now();
            for host in self.hosts.values_mut() {
                let _clock = Skew::of(host.skew);
                host.engine.handle_timeout(now());
            }
            if let Some(gateway) = &mut self.gateway {
                gateway.handle_timeout(time.now, time.unix);
            }
            if clock::now() >= end {
                self.run();
                return;
            }
        }
        panic!(
            "time does not pass: {:?}",
            self.hosts["a"].engine.poll_timeout()
        );
    }

    /// Carries everything on the wire and between the registry's users until all is quiet.
    pub(crate) fn run(&mut self) {
        for _ in 0..MAX_ROUNDS {
            let mut busy = false;
            for name in self.hosts.keys().copied().collect::<Vec<_>>() {
                busy |= self.drain(name);
            }
            busy |= self.drain_gateway();
            if !busy {
                return;
            }
        }
        panic!("the world does not come to rest");
    }

    fn drain(&mut self, name: &'static str) -> bool {
        let gateway_at = self.gateway_at;
        let host = self.hosts.get_mut(name).unwrap();
        let clock = Skew::of(host.skew);
        let mut busy = false;
        let (mut outbox, mut wire) = (false, VecDeque::new());
        while let Some(event) = host.engine.poll_event() {
            busy = true;
            match event {
                Event::Gateway { local } => {
                    let did = key(GATEWAY).did();
                    host.engine
                        .set_gateway(local, did, vec![gateway_at], now())
                        .unwrap();
                }
                Event::Outbox { .. } => outbox = true,
                Event::Pong { .. } => host.pongs += 1,
                Event::Withheld { .. } => host.withheld += 1,
                Event::Changed { .. } => host.kept = host.state(),
                Event::Displaced { .. }
                | Event::Pending { .. }
                | Event::Tables
                | Event::Twin { .. } => {}
            }
            let waiting = host.engine.outbox(host.local);
            if self.checks_disks && outbox {
                let is_kept =
                    |out: &Outgoing| host.kept.contains(&serde_json::to_string(out).unwrap());
                assert!(
                    waiting.iter().all(is_kept),
                    "{name} told the registry too early"
                );
            }
        }
        while let Some(packet) = host.engine.poll_packet() {
            host.received.push((packet.peer, packet.bytes));
        }
        while host.engine.poll_injection().is_some() {}
        let sent = std::iter::from_fn(|| host.engine.poll_transmit());
        wire.extend(sent.filter(|sent| sent.travel != Travel::Briefly));
        if self.checks_disks && !wire.is_empty() {
            assert!(host.kept == host.state(), "{name} sent too early");
        }
        let (at, is_online) = (host.at, host.is_online);
        drop(clock);
        for transmit in wire {
            busy = true;
            self.wire.push((at, transmit.to, transmit.bytes.clone()));
            if !is_online {
                continue;
            }
            let sent = (at, transmit.to, transmit.bytes);
            let arrives = match &mut self.weather {
                Some(weather) => weather.fate(sent),
                None => vec![sent],
            };
            for (from, to, bytes) in arrives {
                self.deliver(from, to, bytes);
            }
        }
        if outbox && self.has_registry {
            self.forward(name);
        }
        busy
    }

    /// Brings a datagram of a host to where it goes, if anything is there.
    pub(crate) fn deliver(&mut self, from: SocketAddr, to: SocketAddr, bytes: Vec<u8>) {
        let time = now();
        if to == self.gateway_at {
            if let Some(evil) = &mut self.evil {
                evil.handle_datagram(from, &bytes, time);
            } else if let Some(gateway) = &mut self.gateway {
                gateway.handle_datagram(from, bytes, time.now, time.unix);
            }
            return;
        }
        let is_open = self.is_open && self.longest_direct.is_none_or(|most| bytes.len() <= most);
        let mut hosts = self.hosts.values_mut().filter(|h| h.is_online);
        if let Some(host) = hosts.find(|h| h.at == to).filter(|_| is_open) {
            let _clock = Skew::of(host.skew);
            host.engine.handle_datagram(from, &bytes, now());
        }
    }

    /// Does what a registry does: takes the outbox, gives each statement to whom it concerns.
    fn forward(&mut self, name: &'static str) {
        let host = self.host(name);
        let (local, clock) = (host.local, Skew::of(host.skew));
        let record = host.engine.record(local, now()).unwrap();
        drop(clock);
        for outgoing in host.engine.outbox(local) {
            self.host(name).engine.sent(local, &outgoing);
            let (kind, text) = match &outgoing {
                Outgoing::Consent(c) => (Forwarded::Consent, c.text()),
                Outgoing::Request(r) => (Forwarded::Request, r.text()),
            };
            self.mail.push((kind, text.to_owned()));
            self.mail
                .push((Forwarded::Record, record.text().to_owned()));
            for (other, host) in &mut self.hosts {
                if *other == name {
                    continue;
                }
                let (to, kind, text) = match &outgoing {
                    Outgoing::Consent(c) => (c.subject(), Forwarded::Consent, c.text()),
                    Outgoing::Request(r) => {
                        let asked = r.claims().to.to_string() == *other;
                        let id = host.engine.membership(host.local).unwrap().id().did();
                        (
                            if asked { id } else { r.subject() },
                            Forwarded::Request,
                            r.text(),
                        )
                    }
                };
                let _clock = Skew::of(host.skew);
                if host.engine.membership(host.local).unwrap().id().did() == to {
                    let time = now();
                    drop(host.engine.handle_statement(host.local, kind, text, time));
                    let record = record.text();
                    drop(
                        host.engine
                            .handle_statement(host.local, Forwarded::Record, record, time),
                    );
                }
            }
        }
    }

    fn drain_gateway(&mut self) -> bool {
        let mut busy = false;
        while let Some((to, bytes)) = match (&mut self.evil, &mut self.gateway) {
            (Some(evil), _) => evil.poll_transmit(now()),
            (None, Some(gateway)) => gateway.poll_transmit(),
            (None, None) => None,
        } {
            busy = true;
            self.wire.push((self.gateway_at, to, bytes.clone()));
            if let Some(host) = self.hosts.values_mut().find(|h| h.at == to && h.is_online) {
                let _clock = Skew::of(host.skew);
                host.engine.handle_datagram(self.gateway_at, &bytes, now());
            }
        }
        busy
    }
}

/// Makes a gateway without memory that serves the network.
pub(crate) fn new_gateway(seed: [u8; 32]) -> Core {
    let config = CoreConfig {
        lease: Duration::from_secs(75),
        mtu: 1452,
        max_attachments: 100,
        max_handshakes: 64,
        handshakes_per_second: 200,
        per_source: 50,
        burst: 100,
        mesh: agentnet::gateway::core::MeshConfig::default(),
    };
    let keys = CoreKeys {
        gateway: key(GATEWAY).did(),
        tunnel: TunnelSecret::from_seed([GATEWAY; 32]),
        reset: [GATEWAY; 32],
    };
    let mut core = Core::new(config, keys, seed);
    core.add_network(network());
    core
}

pub(crate) fn name(text: &str) -> MemberName {
    text.parse().unwrap()
}

/// Returns how often `host` dropped something for `reason`.
pub(crate) fn drops(host: &Host, reason: DropReason) -> u64 {
    host.engine.counters().of(reason)
}

pub(crate) fn prefix() -> NetworkPrefix {
    DomainPrefix::of(&key(DOMAIN).did().into()).network(1)
}

pub(crate) fn root_grant(unix: UnixTime) -> Statement<Grant> {
    issue::root_grant(&key(OWNER), "acme".parse().unwrap(), prefix(), unix).unwrap()
}

pub(crate) fn membership(n: u8, name: &str, life: Duration) -> Membership {
    let unix = clock::unix();
    let root = root_grant(unix);
    let member = name.parse().unwrap();
    let did = key(n).did();
    let grant = issue::agent_grant(&key(OWNER), &root, did, &member, unix, unix + life).unwrap();
    let chain = vec![root.text().to_owned(), grant.text().to_owned()];
    membership_by(chain, name, key(n), TunnelSecret::from_seed([n; 32]))
}

pub(crate) fn membership_by(
    chain: Vec<String>,
    name: &str,
    identity: IdentityKey,
    tunnel: TunnelSecret,
) -> Membership {
    let gateway = gateway_statement(clock::unix());
    let start = Start {
        agent: name.to_owned(),
        identity,
        tunnel,
        network: network(),
        prefix: prefix(),
        url: String::new(),
        pin: String::new(),
        domain: key(DOMAIN).did().into(),
        registry: key(REGISTRY).did(),
        chain,
        suffix: Suffix::default(),
    };
    Membership {
        gateways: BTreeMap::from([(gateway.subject(), gateway)]),
        ..Membership::new(start)
    }
}

pub(crate) fn gateway_statement(unix: UnixTime) -> Statement<Gateway> {
    let claims = Gateway {
        tunnel: TunnelSecret::from_seed([GATEWAY; 32]).public(),
        udp: vec!["203.0.113.1:16201".to_owned()],
        wss: vec![],
        region: None,
        features: vec![],
        ttl: 600,
    };
    let head = Head {
        subject: key(GATEWAY).did(),
        network: None,
        issued: unix,
        expires: unix + Duration::from_secs(86_400),
        seq: unix.as_millis(),
    };
    Statement::sign(&key(REGISTRY), head, claims).unwrap()
}

/// Makes a UDP packet from port 5000 to port 8000.
pub(crate) fn udp(source: OverlayIp, target: OverlayIp, payload: &[u8]) -> Vec<u8> {
    udp_between((source, 5000), (target, 8000), payload)
}

pub(crate) fn udp_between(
    (source, from): (OverlayIp, u16),
    (target, to): (OverlayIp, u16),
    payload: &[u8],
) -> Vec<u8> {
    let ends = [source, target].map(|end| end.ip().octets());
    let mut packet = vec![];
    let builder = etherparse::PacketBuilder::ipv6(ends[0], ends[1], 64).udp(from, to);
    builder.write(&mut packet, payload).unwrap();
    packet
}

//! Engines and several gateways on a network with delays, in simulated time; the registry is at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

use agentnet::{
    engine::{
        Engine, Event, Forwarded,
        membership::{Outgoing, State},
        view::GatewayView,
    },
    gateway::core::{Core, CoreConfig, CoreKeys, MeshConfig},
    id::{Did, IdentityKey, OverlayIp, TunnelSecret, UnixTime},
    os::clock,
    statement::{Gateway, Head, Scope, Statement, issue},
    wire::carrier,
};

use crate::clock::Simulation;
use crate::pair::{REGISTRY, key, membership, name, network, now, udp};

/// More rounds than any scenario takes; a loop names its culprit instead of hanging.
const MAX_ROUNDS: usize = 10_000_000;

/// Delay of what nothing else is said of, one way.
const DELAY: Duration = Duration::from_millis(10);

pub(crate) struct Host {
    pub(crate) engine: Engine,
    pub(crate) local: OverlayIp,
    pub(crate) at: SocketAddr,
    /// When packets reached its programs.
    pub(crate) arrived: Vec<Instant>,
    kept: String,
    /// Gateways of each record it signed, one entry for each change.
    pub(crate) records: Vec<Vec<Did>>,
}

pub(crate) struct World {
    pub(crate) sim: Simulation,
    /// None while one is down.
    pub(crate) gateways: Vec<Option<Core>>,
    pub(crate) hosts: BTreeMap<&'static str, Host>,
    /// Between whom nothing passes.
    pub(crate) cut: BTreeSet<(&'static str, usize)>,
    /// One way; [`DELAY`] where nothing is said.
    pub(crate) delays: BTreeMap<(&'static str, usize), Duration>,
    /// By how much delays vary, in percent.
    pub(crate) jitter: u64,
    /// Whether gateways are reached by connections too.
    pub(crate) has_carriers: bool,
    /// Hosts to and from which no UDP passes.
    pub(crate) without_udp: BTreeSet<&'static str>,
    /// Datagrams that hosts sent to gateways.
    pub(crate) sent: usize,
    on_wire: BTreeMap<(Instant, u64), (SocketAddr, SocketAddr, Vec<u8>)>,
    count: u64,
    dice: u64,
}

pub(crate) fn gateway_key(n: usize) -> IdentityKey {
    key(150 + u8::try_from(n).unwrap())
}

fn tunnel(n: usize) -> TunnelSecret {
    TunnelSecret::from_seed([150 + u8::try_from(n).unwrap(); 32])
}

pub(crate) fn at(n: usize) -> SocketAddr {
    SocketAddr::new([203, 0, 113, u8::try_from(n + 1).unwrap()].into(), 16201)
}

/// What stands for the connection to gateway `n` at a host.
pub(crate) fn carrier_at(n: usize) -> SocketAddr {
    carrier::endpoint(n as u64 + 1, SocketAddr::from(([0; 4], 0)))
}

/// What stands for the connection of a host at a gateway.
fn carrier_of(host: SocketAddr) -> SocketAddr {
    carrier::endpoint(7, host)
}

fn statement(n: usize, unix: UnixTime) -> Statement<Gateway> {
    let claims = Gateway {
        tunnel: tunnel(n).public(),
        udp: vec![at(n).to_string()],
        wss: vec![],
        region: None,
        features: vec![],
        ttl: 600,
    };
    let head = Head {
        subject: gateway_key(n).did(),
        network: None,
        issued: unix,
        expires: unix + Duration::from_secs(30 * 86_400),
        seq: unix.as_millis(),
    };
    Statement::sign(&key(REGISTRY), head, claims).unwrap()
}

impl World {
    /// Begins with so many gateways.
    pub(crate) fn new(seed: u64, gateways: usize) -> Self {
        let mut world = Self {
            sim: Simulation::start(seed),
            gateways: (0..gateways).map(|_| None).collect(),
            hosts: BTreeMap::new(),
            cut: BTreeSet::new(),
            delays: BTreeMap::new(),
            jitter: 0,
            has_carriers: false,
            without_udp: BTreeSet::new(),
            sent: 0,
            on_wire: BTreeMap::new(),
            count: 0,
            dice: seed,
        };
        for n in 0..gateways {
            world.start(n);
        }
        world
    }

    /// Starts a gateway, or starts it anew without memory.
    pub(crate) fn start(&mut self, n: usize) {
        let config = CoreConfig {
            lease: Duration::from_secs(75),
            mtu: 1452,
            max_attachments: 100,
            max_handshakes: 64,
            handshakes_per_second: 200,
            per_source: 50,
            burst: 100,
            mesh: MeshConfig::default(),
        };
        let keys = CoreKeys {
            gateway: gateway_key(n).did(),
            tunnel: tunnel(n),
            reset: [7; 32],
        };
        let [seed, ..] = self.draw().to_be_bytes();
        let mut core = Core::new(config, keys, [seed; 32]);
        core.set_networks(&[network()]);
        self.gateways[n] = Some(core);
    }

    fn draw(&mut self) -> u64 {
        // Knuth's MMIX generator; its high bits are good.
        self.dice = self.dice.wrapping_mul(6_364_136_223_846_793_005);
        self.dice = self.dice.wrapping_add(1_442_695_040_888_963_407);
        self.dice
    }

    /// Adds agent `n` on a host.
    pub(crate) fn add(&mut self, host: &'static str, n: u8) {
        let mut member = membership(n, host, issue::ROOT_LIFE);
        let unix = clock::unix();
        let all = (0..self.gateways.len()).map(|n| statement(n, unix));
        member.gateways = all.map(|gateway| (gateway.subject(), gateway)).collect();
        let state = State {
            identities: BTreeMap::new(),
            memberships: vec![member],
            left: vec![],
        };
        let text = serde_json::to_string(&state).unwrap();
        self.boot(host, n, &text);
    }

    /// Starts an engine of what another host, or this one, kept.
    pub(crate) fn boot(&mut self, host: &'static str, n: u8, kept: &str) {
        let state = serde_json::from_str::<State>(kept).unwrap();
        let local = state.memberships[0].address().unwrap();
        let [seed, ..] = self.draw().to_be_bytes();
        let engine = Engine::new(state, [seed; 32], now());
        let host_ = Host {
            engine,
            local,
            at: SocketAddr::new([198, 51, 100, n].into(), 16200),
            arrived: vec![],
            kept: kept.to_owned(),
            records: vec![],
        };
        self.hosts.insert(host, host_);
        self.drain();
    }

    pub(crate) fn kept(&self, host: &str) -> String {
        self.hosts[host].kept.clone()
    }

    pub(crate) fn host(&mut self, host: &str) -> &mut Host {
        self.hosts.get_mut(host).unwrap()
    }

    /// Makes `a` and `b` trust each other.
    pub(crate) fn trust(&mut self, a: &'static str, b: &'static str) {
        let allow = "udp/8000".parse::<Scope>().unwrap();
        let (asked, asking, offered) = (name(b), name(a), allow.clone());
        let host = self.host(a);
        let request = host.engine.change(host.local, now(), |m, unix| {
            m.request(asked, offered, None, unix)
        });
        request.unwrap().unwrap();
        self.mail(a, b);
        let host = self.host(b);
        let approve = host.engine.change(host.local, now(), |m, unix| {
            m.approve(&asking, allow, unix).map(drop)
        });
        approve.unwrap().unwrap();
        self.mail(b, a);
        self.mail(a, b);
    }

    /// Carries what waits for the registry at `from` to `to`, with the record.
    fn mail(&mut self, from: &str, to: &str) {
        let host = self.host(from);
        let record = host.engine.record(host.local, now()).unwrap();
        let waiting = host.engine.outbox(host.local);
        for outgoing in &waiting {
            host.engine.sent(host.local, outgoing);
        }
        let host = self.host(to);
        for outgoing in &waiting {
            let (kind, text) = match outgoing {
                Outgoing::Consent(c) => (Forwarded::Consent, c.text()),
                Outgoing::Request(r) => (Forwarded::Request, r.text()),
            };
            drop(host.engine.handle_statement(host.local, kind, text, now()));
        }
        let record = record.text();
        // Before either asked the other it is nobody's business.
        drop(
            host.engine
                .handle_statement(host.local, Forwarded::Record, record, now()),
        );
        self.drain();
    }

    /// Sends a packet of `from`'s programs.
    pub(crate) fn send(&mut self, from: &str, to: &str) {
        let (source, target) = (self.hosts[from].local, self.hosts[to].local);
        let packet = udp(source, target, b"payload");
        self.host(from)
            .engine
            .handle_packet(source, target, &packet, now());
        self.drain();
    }

    /// Lets `a` and `b` send to each other every 20 ms.
    pub(crate) fn talk(&mut self, a: &str, b: &str, duration: Duration) {
        let end = clock::now() + duration;
        while clock::now() < end {
            self.send(a, b);
            self.send(b, a);
            self.pass(Duration::from_millis(20));
        }
    }

    /// Returns the longest time without a packet at a host since `since`, up to now.
    pub(crate) fn outage(&self, host: &str, since: Instant) -> Duration {
        let arrived = self.hosts[host].arrived.iter().copied();
        let times = std::iter::once(since)
            .chain(arrived.filter(|at| *at > since))
            .chain([clock::now()]);
        let times = times.collect::<Vec<_>>();
        let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
        gaps.max().unwrap()
    }

    pub(crate) fn views(&self, host: &str) -> Vec<GatewayView> {
        let host = &self.hosts[host];
        host.engine.gateways(host.local)
    }

    /// Returns by which gateway `from` sends to `to`.
    pub(crate) fn relay(&self, from: &str, to: &str) -> Option<usize> {
        let (local, peer) = (self.hosts[from].local, self.hosts[to].local);
        let view = self.hosts[from].engine.relay(local, peer)?;
        (0..self.gateways.len()).find(|n| gateway_key(*n).did() == view.id)
    }

    /// Lets `duration` pass, deadline by deadline.
    pub(crate) fn pass(&mut self, duration: Duration) {
        let end = clock::now() + duration;
        for _ in 0..MAX_ROUNDS {
            self.drain();
            let hosts = self.hosts.values().filter_map(|h| h.engine.poll_timeout());
            let gateways = self.gateways.iter().flatten();
            let due = hosts.chain(gateways.filter_map(Core::poll_timeout));
            let wire = self.on_wire.keys().next().map(|(at, _)| *at);
            let next = due.map(|(at, _)| at).chain(wire).chain([end]).min();
            let next = next.unwrap_or(end).min(end);
            let step = next.saturating_duration_since(clock::now());
            // boringtun's timers are coarser than ours, so time moves at least a little.
            let least = if wire.is_some_and(|at| at <= clock::now()) {
                Duration::ZERO
            } else {
                Duration::from_millis(1)
            };
            self.sim.advance(step.max(least));
            self.arrive();
            let time = now();
            for host in self.hosts.values_mut() {
                host.engine.handle_timeout(time);
            }
            for gateway in self.gateways.iter_mut().flatten() {
                gateway.handle_timeout(time.now, time.unix);
            }
            if clock::now() >= end {
                self.drain();
                return;
            }
        }
        panic!("time does not pass");
    }

    /// Hands over what is due on the wire.
    fn arrive(&mut self) {
        while let Some(entry) = self.on_wire.first_entry() {
            if entry.key().0 > clock::now() {
                return;
            }
            let (from, to, bytes) = entry.remove();
            let time = now();
            let gateway = (0..self.gateways.len()).find(|n| [at(*n), carrier_at(*n)].contains(&to));
            if let Some(core) = gateway.and_then(|n| self.gateways[n].as_mut()) {
                core.handle_datagram(from, bytes, time.now, time.unix);
            } else if let Some(host) = self.hosts.values_mut().find(|host| host.at == to) {
                host.engine.handle_datagram(from, &bytes, time);
            }
            self.drain();
        }
    }

    fn drain(&mut self) {
        for name in self.hosts.keys().copied().collect::<Vec<_>>() {
            let gateways = self.gateways.len();
            let host = self.hosts.get_mut(name).unwrap();
            while let Some(event) = host.engine.poll_event() {
                if let Event::Gateway { local } = event {
                    let carrier = |n| Some(carrier_at(n)).filter(|_| self.has_carriers);
                    let endpoints = |n| [at(n)].into_iter().chain(carrier(n)).collect();
                    let all = (0..gateways).map(|n| (gateway_key(n).did(), endpoints(n)));
                    let all = all.collect();
                    host.engine.set_gateways(local, all, now()).unwrap();
                } else if matches!(event, Event::Changed { .. }) {
                    host.kept = serde_json::to_string(&host.engine.state()).unwrap();
                }
            }
            let views = host.engine.gateways(host.local);
            let listed = views.iter().map(|view| view.id).collect::<Vec<_>>();
            if host.records.last() != Some(&listed) {
                host.records.push(listed);
            }
            while let Some(packet) = host.engine.poll_packet() {
                host.arrived.push(clock::now());
                drop(packet);
            }
            while host.engine.poll_injection().is_some() {}
            let (from, mut sent) = (host.at, vec![]);
            while let Some(transmit) = host.engine.poll_transmit() {
                sent.push((transmit.to, transmit.bytes));
            }
            for (to, bytes) in sent {
                self.sent += 1;
                if let Some(n) = (0..gateways).find(|n| carrier_at(*n) == to) {
                    self.carry((name, n), carrier_of(from), to, bytes);
                } else if let Some(n) = (0..gateways).find(|n| at(*n) == to)
                    && !self.without_udp.contains(name)
                {
                    self.carry((name, n), from, to, bytes);
                }
            }
        }
        for n in 0..self.gateways.len() {
            while let Some((to, bytes)) = self.gateways[n].as_mut().and_then(Core::poll_transmit) {
                let peer = carrier::peer(to);
                let host = self
                    .hosts
                    .iter()
                    .find(|(_, host)| host.at == peer.unwrap_or(to));
                let Some((name, to)) = host.map(|(name, host)| (*name, host.at)) else {
                    continue;
                };
                if peer.is_some() {
                    self.carry((name, n), carrier_at(n), to, bytes);
                } else if !self.without_udp.contains(name) {
                    self.carry((name, n), at(n), to, bytes);
                }
            }
        }
    }

    fn carry(
        &mut self,
        way: (&'static str, usize),
        from: SocketAddr,
        to: SocketAddr,
        bytes: Vec<u8>,
    ) {
        if self.cut.contains(&way) {
            return;
        }
        let delay = self.delays.get(&way).copied().unwrap_or(DELAY);
        let most = u64::try_from(delay.as_micros()).unwrap() * self.jitter / 100;
        let jitter = (self.draw() >> 20) % (most + 1);
        let due = clock::now() + delay + Duration::from_micros(jitter);
        self.count += 1;
        self.on_wire.insert((due, self.count), (from, to, bytes));
    }
}

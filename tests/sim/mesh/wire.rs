//! Several gateways and agents on one simulated wire with delay, whose links can be cut.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

use agentnet::engine::attach::{AttachConfig, Attachment, Inbound, State};
use agentnet::gateway::core::{Core, CoreConfig, CoreKeys, MeshConfig, Signers};
use agentnet::gateway::status::{PeerStatus, Standing};
use agentnet::id::{Did, DomainPrefix, IdentityKey, OverlayIp, TunnelSecret};
use agentnet::os::clock;
use agentnet::statement::{Gateway, Head, Statement};
use agentnet::wire::a2g::HEADER;

use crate::attach::YEAR;
use crate::clock::Simulation;
use crate::network::{Network, key, tunnel};

pub(super) const LEASE: Duration = Duration::from_secs(75);
/// From one end of the wire to the other.
pub(super) const DELAY: Duration = Duration::from_millis(10);
/// More turns than anything here takes; a loop names its culprit instead of hanging.
const MAX_TURNS: usize = 10_000_000;
/// Keys of gateways begin here; those of agents are lower.
const FIRST: u16 = 300;
/// Root keys of the two domains; that of its registry is the next.
pub(super) const DOMAIN: u16 = 200;
pub(super) const OTHER: u16 = 210;
/// What a message that must not come round begins with.
const MARK: &[u8] = b"message ";

/// A gateway; its core is None while it is down.
pub(super) struct Gate {
    pub(super) n: u16,
    /// By the number of its domain's root key.
    pub(super) domain: u16,
    pub(super) core: Option<Core>,
    pub(super) at: SocketAddr,
    pub(super) tunnel: TunnelSecret,
    /// What came while nobody was there.
    pub(super) inbox: Vec<Vec<u8>>,
}

/// An agent and its one attachment.
pub(super) struct Agent {
    pub(super) n: u16,
    pub(super) attachment: Attachment,
    pub(super) at: SocketAddr,
    pub(super) received: Vec<(OverlayIp, Vec<u8>)>,
}

/// Everything on the wire.
pub(super) struct World {
    pub(super) sim: Simulation,
    pub(super) networks: Vec<Network>,
    pub(super) gates: Vec<Gate>,
    pub(super) agents: Vec<Agent>,
    /// Pairs of gateways that do not reach each other, the lower first.
    pub(super) cut: BTreeSet<(usize, usize)>,
    /// What is on its way: when it is there, from where, to where.
    flying: BTreeMap<(Instant, u64), (SocketAddr, SocketAddr, Vec<u8>)>,
    sent: u64,
    /// How often each marked message went from one gateway to another.
    pub(super) passed: BTreeMap<Vec<u8>, u32>,
    /// Whether messages are lost on the way as well, in percent.
    pub(super) loss: u64,
    pub(super) config: CoreConfig,
}

impl World {
    /// Begins with `count` gateways that know each other and serve two networks.
    pub(super) fn new(seed: u64, count: u16) -> Self {
        let mesh = MeshConfig {
            max_gateways: 8,
            max_routes: 100,
        };
        Self::bounded(seed, count, mesh)
    }

    /// Does the same with other bounds.
    pub(super) fn bounded(seed: u64, count: u16, mesh: MeshConfig) -> Self {
        let mut world = Self {
            sim: Simulation::start(seed),
            networks: vec![Network::new(1), Network::new(2), Network::of(3, OTHER)],
            gates: vec![],
            agents: vec![],
            cut: BTreeSet::new(),
            flying: BTreeMap::new(),
            sent: 0,
            passed: BTreeMap::new(),
            loss: 0,
            config: CoreConfig {
                lease: LEASE,
                mtu: 1452,
                max_attachments: 100,
                max_handshakes: 64,
                handshakes_per_second: 200,
                per_source: 50,
                burst: 100,
                mesh,
            },
        };
        for n in 0..count {
            let at = SocketAddr::from(([203, 0, 113, 1 + n as u8], 16201));
            world.gates.push(Gate {
                n: FIRST + n,
                domain: DOMAIN,
                core: None,
                at,
                tunnel: tunnel(FIRST + n),
                inbox: vec![],
            });
        }
        for gate in 0..usize::from(count) {
            world.start(gate);
        }
        world
    }

    /// Starts a gateway without memory, that is told of all others as by its registry.
    pub(super) fn start(&mut self, gate: usize) {
        self.start_alone(gate);
        for other in 0..self.gates.len() {
            self.tell(gate, &self.statement(other));
        }
    }

    /// Starts a gateway that knows nobody but who signs for the domain.
    pub(super) fn start_alone(&mut self, gate: usize) {
        self.sent += 1;
        let own = self.statement(gate);
        let it = &mut self.gates[gate];
        let keys = CoreKeys {
            gateway: key(it.n).did(),
            tunnel: it.tunnel.clone(),
            reset: [it.n as u8; 32],
        };
        let mut seed = [it.n as u8; 32];
        seed[..8].copy_from_slice(&self.sent.to_be_bytes());
        let mut core = Core::new(self.config, keys, seed);
        let prefix = DomainPrefix::of(&key(it.domain).did().into());
        let networks = self.networks.iter();
        let networks = networks.filter(|network| network.prefix.domain() == prefix);
        core.set_networks(&networks.map(Network::id).collect::<Vec<_>>());
        core.set_domain(signers_of(it.domain), Some(&own));
        it.core = Some(core);
    }

    pub(super) fn core(&mut self, gate: usize) -> &mut Core {
        self.gates[gate].core.as_mut().unwrap()
    }

    /// Stops a gateway that cannot say farewell any more.
    pub(super) fn kill(&mut self, gate: usize) {
        self.gates[gate].core = None;
    }

    /// Stops a gateway as its operator does.
    pub(super) fn close(&mut self, gate: usize) {
        if let Some(core) = &mut self.gates[gate].core {
            core.close(clock::now());
        }
        self.collect();
        self.kill(gate);
    }

    /// Tells a gateway of another's statement.
    pub(super) fn tell(&mut self, gate: usize, statement: &Statement<Gateway>) {
        let endpoint = statement.claims().udp[0].parse().unwrap();
        let (now, unix) = (clock::now(), clock::unix());
        if let Some(core) = &mut self.gates[gate].core {
            core.add_gateway(statement, vec![endpoint], now, unix)
                .unwrap();
        }
    }

    /// Returns the registry's statement about a gateway.
    pub(super) fn statement(&self, gate: usize) -> Statement<Gateway> {
        let gate = &self.gates[gate];
        let registry = key(gate.domain + 1);
        statement(&registry, gate.n, (&gate.tunnel, gate.at), YEAR)
    }

    pub(super) fn did(&self, gate: usize) -> Did {
        key(self.gates[gate].n).did()
    }

    /// Adds an agent of network 1 (2 from agent 50 on, 3 of the other domain from 80 on) that attaches to a gateway and lists it.
    pub(super) fn add(&mut self, n: u16, gate: usize) -> usize {
        self.add_listing(n, gate, &[gate])
    }

    pub(super) fn add_listing(&mut self, n: u16, gate: usize, listed: &[usize]) -> usize {
        let place = self.agents.len();
        let attachment = self.attachment(n, gate, listed);
        let port = 16200 + u16::try_from(place).unwrap();
        self.agents.push(Agent {
            n,
            attachment,
            at: SocketAddr::from(([198, 51, 100, 1], port)),
            received: vec![],
        });
        place
    }

    /// Has an agent attach anew, by a newer record.
    pub(super) fn move_to(&mut self, agent: usize, gate: usize, listed: &[usize]) {
        let attachment = self.attachment(self.agents[agent].n, gate, listed);
        self.agents[agent].attachment = attachment;
    }

    fn attachment(&mut self, n: u16, gate: usize, listed: &[usize]) -> Attachment {
        self.sent += 1;
        // Records of one agent are numbered by time.
        self.sim.advance(Duration::from_millis(1));
        let gateway = &self.gates[gate];
        let config = AttachConfig {
            agent: self.address(n),
            secret: tunnel(n),
            gateway: key(gateway.n).did(),
            key: gateway.tunnel.public(),
            endpoints: vec![gateway.at],
            index: (u32::from(n) << 12) ^ (self.sent as u32 & 0xfff),
        };
        let listed = listed.iter().map(|gate| self.did(*gate)).collect();
        let record = self.network(n).record_at(n, YEAR, listed);
        let mut attachment = Attachment::new(config, [self.sent as u8; 32]).unwrap();
        attachment.set_record(record, clock::now());
        attachment
    }

    pub(super) fn network(&self, n: u16) -> &Network {
        &self.networks[usize::from(n >= 50) + usize::from(n >= 80)]
    }

    pub(super) fn address(&self, n: u16) -> OverlayIp {
        self.network(n).address(n)
    }

    /// Lets `time` pass, with everything that happens meanwhile.
    pub(super) fn run(&mut self, time: Duration) {
        let end = clock::now() + time;
        for _ in 0..MAX_TURNS {
            self.collect();
            let now = clock::now();
            let next = self.next().filter(|(at, _)| *at <= end);
            let Some((at, _)) = next else {
                self.sim.advance(end - now);
                return;
            };
            self.sim.advance(at.saturating_duration_since(now));
            self.turn();
        }
        panic!("busy with {:?}", self.next());
    }

    /// Runs until `fact` holds; fails when it does not in `patience`.
    pub(super) fn until(
        &mut self,
        patience: Duration,
        what: &str,
        fact: impl Fn(&Self) -> bool,
    ) -> Duration {
        let start = clock::now();
        while !fact(self) {
            assert!(
                clock::now() < start + patience,
                "{what}: not within {patience:?}: {:#?}",
                self.all_peers()
            );
            self.run(Duration::from_millis(50));
        }
        clock::now().duration_since(start)
    }

    /// Sends a payload from one agent toward another; false when it is not attached.
    pub(super) fn send(&mut self, from: usize, to: usize, payload: &[u8]) -> bool {
        let target = self.address(self.agents[to].n);
        let agent = &mut self.agents[from];
        let Some((gateway, frame)) = agent.attachment.wrap(target, payload, clock::now()) else {
            return false;
        };
        let at = agent.at;
        self.put(at, gateway, frame);
        true
    }

    /// Sends a marked message, and returns it.
    pub(super) fn mark(&mut self, from: usize, to: usize) -> Vec<u8> {
        self.sent += 1;
        let message = [MARK, &self.sent.to_be_bytes()].concat();
        self.send(from, to, &message);
        message
    }

    /// Returns how often a message reached an agent, and forgets it.
    pub(super) fn count(&mut self, agent: usize, message: &[u8]) -> usize {
        let received = &mut self.agents[agent].received;
        let before = received.len();
        received.retain(|(_, payload)| payload != message);
        before - received.len()
    }

    /// Tells whether a message gets from one agent to another now.
    pub(super) fn talk(&mut self, from: usize, to: usize) -> bool {
        let message = self.mark(from, to);
        self.run(DELAY * 4);
        self.count(to, &message) == 1
    }

    pub(super) fn is_attached(&self, agent: usize) -> bool {
        self.agents[agent].attachment.state() == State::Attached
    }

    pub(super) fn peers(&self, gate: usize) -> Vec<PeerStatus> {
        let core = self.gates[gate].core.as_ref();
        core.map(|core| core.status(clock::now()).peers)
            .unwrap_or_default()
    }

    pub(super) fn drops(&self, gate: usize) -> BTreeMap<String, u64> {
        let core = self.gates[gate].core.as_ref();
        core.map(|core| core.status(clock::now()).drops)
            .unwrap_or_default()
    }

    /// Tells how one gateway stands to another.
    pub(super) fn standing(&self, gate: usize, other: usize) -> Option<PeerStatus> {
        let other = self.did(other);
        let peers = self.peers(gate).into_iter();
        peers.rev().find(|peer| peer.gateway == other)
    }

    /// Tells whether all gateways that run and reach each other are there for each other.
    pub(super) fn is_whole(&self) -> bool {
        let up = |gate: usize| self.gates[gate].core.is_some();
        let all = 0..self.gates.len();
        all.clone().all(|a| {
            all.clone().all(|b| {
                let is_reached = a != b && up(a) && up(b) && self.is_linked(a, b);
                let stands = self.standing(a, b).is_some_and(|p| p.state == Standing::Up);
                !is_reached || stands
            })
        })
    }

    pub(super) fn is_linked(&self, a: usize, b: usize) -> bool {
        !self.cut.contains(&(a.min(b), a.max(b)))
    }

    fn all_peers(&self) -> Vec<Vec<PeerStatus>> {
        (0..self.gates.len()).map(|gate| self.peers(gate)).collect()
    }

    fn next(&self) -> Option<(Instant, &'static str)> {
        let agents = self.agents.iter();
        let agents = agents.filter_map(|agent| agent.attachment.poll_timeout());
        let gates = self.gates.iter().filter_map(|gate| gate.core.as_ref());
        let gates = gates.filter_map(Core::poll_timeout);
        let flying = self.flying.keys().next();
        let flying = flying.map(|(at, _)| (*at, "the wire"));
        agents.chain(gates).chain(flying).min()
    }

    fn turn(&mut self) {
        let (now, unix) = (clock::now(), clock::unix());
        while let Some(entry) = self.flying.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let (from, to, bytes) = entry.remove();
            self.arrive(from, to, &bytes);
        }
        for agent in &mut self.agents {
            agent.attachment.handle_timeout(now);
        }
        for core in self.gates.iter_mut().filter_map(|gate| gate.core.as_mut()) {
            core.handle_timeout(now, unix);
        }
    }

    /// Puts on the wire what is to be sent.
    pub(super) fn collect(&mut self) {
        let mut sent = vec![];
        for agent in &mut self.agents {
            while let Some((to, bytes)) = agent.attachment.poll_transmit() {
                sent.push((agent.at, to, bytes));
            }
        }
        for gate in &mut self.gates {
            while let Some((to, bytes)) = gate.core.as_mut().and_then(Core::poll_transmit) {
                sent.push((gate.at, to, bytes));
            }
        }
        for (from, to, bytes) in sent {
            self.put(from, to, bytes);
        }
    }

    /// Puts a datagram on the wire, unless the link is cut or loses it.
    pub(super) fn put(&mut self, from: SocketAddr, to: SocketAddr, bytes: Vec<u8>) {
        let gate = |at: SocketAddr| self.gates.iter().position(|gate| gate.at == at);
        if let (Some(a), Some(b)) = (gate(from), gate(to)) {
            if !self.is_linked(a, b) {
                return;
            }
            if let Some(payload) = bytes.get(HEADER..).filter(|p| p.starts_with(MARK)) {
                *self.passed.entry(payload.to_vec()).or_default() += 1;
            }
        }
        self.sent += 1;
        if self.sent.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32 & 0xffff < self.loss * 655 {
            return;
        }
        let at = clock::now() + DELAY;
        self.flying.insert((at, self.sent), (from, to, bytes));
    }

    fn arrive(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        let (now, unix) = (clock::now(), clock::unix());
        for gate in self.gates.iter_mut().filter(|gate| gate.at == to) {
            if let Some(core) = &mut gate.core {
                core.handle_datagram(from, bytes.to_vec(), now, unix);
            } else {
                gate.inbox.push(bytes.to_vec());
            }
        }
        for agent in self.agents.iter_mut().filter(|agent| agent.at == to) {
            if let Inbound::Received(got) = agent.attachment.handle_datagram(from, bytes, now) {
                let payload = bytes[got.payload].to_vec();
                agent.received.push((got.source, payload));
            }
        }
    }
}

/// The key of the domain's registry, which signs statements of gateways.
pub(super) fn registry() -> IdentityKey {
    key(201)
}

pub(super) fn signers() -> Signers {
    signers_of(DOMAIN)
}

fn signers_of(domain: u16) -> Signers {
    Signers {
        domain: key(domain).did().into(),
        registry: Some(key(domain + 1).did()),
    }
}

/// Signs a statement about gateway `n`.
pub(super) fn statement(
    by: &IdentityKey,
    n: u16,
    (tunnel, at): (&TunnelSecret, SocketAddr),
    life: Duration,
) -> Statement<Gateway> {
    let now = clock::unix();
    let head = Head {
        subject: key(n).did(),
        network: None,
        issued: now,
        expires: now + life,
        seq: now.as_millis(),
    };
    let claims = Gateway {
        tunnel: tunnel.public(),
        udp: vec![at.to_string()],
        wss: vec![],
        region: None,
        features: vec!["udp".to_owned()],
        ttl: 3600,
    };
    Statement::sign(by, head, claims).unwrap()
}

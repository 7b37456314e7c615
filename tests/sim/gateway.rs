//! A gateway and agents on one simulated wire, without delay or loss.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use agentnet::engine::attach::{AttachConfig, Attachment, Inbound, State};
use agentnet::gateway::core::{Core, CoreConfig, CoreKeys, MeshConfig};
use agentnet::id::{NetworkId, OverlayIp};
use agentnet::os::clock;
use agentnet::wire::drop::DropReason;

use crate::clock::Simulation;
use crate::network::{Network, key, tunnel};

pub(crate) const LEASE: Duration = Duration::from_secs(75);

/// More rounds than any exchange takes; a loop names its culprit instead of hanging.
const MAX_ROUNDS: usize = 1_000_000;

/// An agent's end, and what reached it.
pub(crate) struct Agent {
    pub(crate) attachment: Attachment,
    pub(crate) at: SocketAddr,
    pub(crate) received: Vec<(OverlayIp, Vec<u8>)>,
    pub(crate) dropped: Vec<DropReason>,
}

/// Everything on the wire.
pub(crate) struct World {
    pub(crate) sim: Simulation,
    /// None while the gateway is down.
    pub(crate) gateway: Option<Core>,
    pub(crate) gateway_at: SocketAddr,
    pub(crate) agents: Vec<Agent>,
    /// Every datagram sent to the gateway, by whom.
    pub(crate) to_gateway: Vec<(SocketAddr, Vec<u8>)>,
    /// Every datagram the gateway sent.
    pub(crate) from_gateway: Vec<(SocketAddr, Vec<u8>)>,
    /// What the gateway is started with.
    pub(crate) config: CoreConfig,
    seed: u16,
}

impl World {
    /// Begins with a gateway that serves `networks`.
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            sim: Simulation::start(seed),
            gateway: None,
            gateway_at: "203.0.113.1:16201".parse().unwrap(),
            agents: vec![],
            to_gateway: vec![],
            from_gateway: vec![],
            config: CoreConfig {
                lease: LEASE,
                mtu: 1452,
                max_attachments: 100,
                max_handshakes: 64,
                handshakes_per_second: 200,
                per_source: 50,
                burst: 100,
                mesh: MeshConfig::default(),
            },
            seed: 0,
        }
    }

    /// Starts the gateway, or starts it anew without memory.
    pub(crate) fn start_gateway(&mut self, networks: &[NetworkId]) {
        let keys = CoreKeys {
            gateway: key(201).did(),
            tunnel: tunnel(201),
            reset: [7; 32],
        };
        self.seed += 1;
        let mut core = Core::new(self.config, keys, seed(self.seed));
        core.set_networks(networks);
        self.gateway = Some(core);
    }

    /// Adds agent `n` of a network and returns its place.
    pub(crate) fn add(&mut self, network: &Network, n: u16, life: Duration) -> usize {
        let config = AttachConfig {
            agent: network.address(n),
            secret: tunnel(n),
            gateway: key(201).did(),
            key: tunnel(201).public(),
            endpoints: vec![self.gateway_at],
            index: u32::from(n) << 10 ^ u32::from(self.seed),
        };
        self.seed += 1;
        let place = self.agents.len();
        let mut attachment = Attachment::new(config, seed(self.seed)).unwrap();
        attachment.set_record(network.record(n, life), clock::now());
        self.agents.push(Agent {
            attachment,
            at: SocketAddr::from(([198, 51, 100, 1], 16200 + u16::try_from(place).unwrap())),
            received: vec![],
            dropped: vec![],
        });
        place
    }

    /// Lets `time` pass, with everything that happens meanwhile.
    pub(crate) fn run(&mut self, time: Duration) {
        let end = clock::now() + time;
        for _ in 0..MAX_ROUNDS {
            self.deliver();
            let now = clock::now();
            let next = self.next_timeout().filter(|(at, _)| *at <= end);
            let Some((at, _)) = next else {
                self.sim.advance(end - now);
                return;
            };
            self.sim.advance(at.saturating_duration_since(now));
            self.timeout();
        }
        panic!("busy with {:?}", self.next_timeout());
    }

    /// Sends a payload from one agent toward an address; true when the agent is attached.
    pub(crate) fn send(&mut self, from: usize, to: OverlayIp, payload: &[u8]) -> bool {
        let agent = &mut self.agents[from];
        let wrapped = agent.attachment.wrap(to, payload, clock::now());
        let Some((_, frame)) = wrapped else {
            return false;
        };
        let at = agent.at;
        self.inject(at, frame);
        self.deliver();
        true
    }

    /// Puts a datagram on the wire to the gateway.
    pub(crate) fn inject(&mut self, from: SocketAddr, bytes: Vec<u8>) {
        self.to_gateway.push((from, bytes.clone()));
        if let Some(gateway) = &mut self.gateway {
            gateway.handle_datagram(from, bytes, clock::now(), clock::unix());
        }
    }

    pub(crate) fn state(&self, agent: usize) -> State {
        self.agents[agent].attachment.state()
    }

    /// Returns what reached an agent since it was last asked.
    pub(crate) fn received(&mut self, agent: usize) -> Vec<(OverlayIp, Vec<u8>)> {
        std::mem::take(&mut self.agents[agent].received)
    }

    /// Returns what the gateway dropped, by reason.
    pub(crate) fn drops(&self) -> BTreeMap<String, u64> {
        self.gateway.as_ref().unwrap().status(clock::now()).drops
    }

    pub(crate) fn attached(&self) -> usize {
        self.gateway.as_ref().unwrap().status(clock::now()).attached
    }

    fn next_timeout(&self) -> Option<(Instant, &'static str)> {
        let agents = self.agents.iter();
        let agents = agents.filter_map(|agent| agent.attachment.poll_timeout());
        let gateway = self.gateway.as_ref().and_then(Core::poll_timeout);
        agents.chain(gateway).min()
    }

    fn timeout(&mut self) {
        let (now, unix) = (clock::now(), clock::unix());
        for agent in &mut self.agents {
            agent.attachment.handle_timeout(now);
        }
        if let Some(gateway) = &mut self.gateway {
            gateway.handle_timeout(now, unix);
        }
    }

    /// Carries what is to be sent until nothing is.
    pub(crate) fn deliver(&mut self) {
        for _ in 0..MAX_ROUNDS {
            let mut sent = vec![];
            for agent in &mut self.agents {
                while let Some((_, bytes)) = agent.attachment.poll_transmit() {
                    sent.push((agent.at, bytes));
                }
            }
            let mut moved = !sent.is_empty();
            for (from, bytes) in sent {
                self.inject(from, bytes);
            }
            while let Some((to, bytes)) = self.gateway.as_mut().and_then(Core::poll_transmit) {
                moved = true;
                self.from_gateway.push((to, bytes.clone()));
                self.arrive(to, &bytes);
            }
            if !moved {
                return;
            }
        }
        panic!("the wire never falls silent");
    }

    /// Hands a datagram of the gateway to whoever is at `to`.
    pub(crate) fn arrive(&mut self, to: SocketAddr, bytes: &[u8]) {
        let (gateway_at, now) = (self.gateway_at, clock::now());
        for agent in self.agents.iter_mut().filter(|agent| agent.at == to) {
            match agent.attachment.handle_datagram(gateway_at, bytes, now) {
                Inbound::Received(got) => {
                    let payload = bytes[got.payload].to_vec();
                    agent.received.push((got.source, payload));
                }
                Inbound::Dropped(reason) => agent.dropped.push(reason),
                Inbound::Consumed => {}
            }
        }
    }
}

fn seed(n: u16) -> [u8; 32] {
    let mut seed = [0; 32];
    seed[..2].copy_from_slice(&n.to_be_bytes());
    seed
}

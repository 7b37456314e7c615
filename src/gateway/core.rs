//! Pure: a gateway as a state machine; datagrams and time in, datagrams and deadlines out.

mod attach;
mod mesh;
mod peering;
mod strangers;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

use aws_lc_rs::hmac;
use rand::Rng;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::engine::limits::{Limits, Source};
use crate::gateway::attach::{GuestLimits, Guests};
use crate::gateway::batch::{Run, Runs};
use crate::gateway::core::strangers::Waiting;
use crate::gateway::discover::Discovery;
use crate::gateway::forward::{Hop, Hops, Outcome};
use crate::gateway::mesh::Mesh;
use crate::gateway::quota::QuotaConfig;
use crate::gateway::rate::Meter;
use crate::gateway::recovery::{MAX_RECOVERED, RecoveredHop, Recovery};
use crate::gateway::status::{AttachmentStatus, GatewayStatus, MAX_LISTED};
use crate::gateway::stun::StunServer;
use crate::id::{Did, DomainPrefix, NetworkId, TunnelSecret, UnixTime};
use crate::statement::peering::Peering;
use crate::statement::{ChainError, Record, Revocation, Revocations, Statement, verify_record};
use crate::wire::a2g::Reset;
use crate::wire::carrier::{self, Carrier};
use crate::wire::datagram::Datagram;
use crate::wire::drop::{Counters, DropReason};
use crate::wire::stun::Change;

pub use mesh::{MeshConfig, NoGateway, Signers};

/// Datagrams waiting to be sent; the shell empties the queue after every input.
const MAX_TRANSMIT: usize = 4096;

/// Sources remembered apart by the limit of Resets.
const MAX_SOURCES: usize = 16_384;

/// After a restart this many agents are told at once, and as many again after the pause.
const RECOVERY_BATCH: usize = 256;
const RECOVERY_PAUSE: Duration = Duration::from_millis(20);

/// What a gateway allows.
#[derive(Clone, Copy, Debug)]
pub struct CoreConfig {
    /// Silence after which an agent is taken for gone; after two it is.
    pub lease: Duration,
    /// Largest frame agents are asked to send, in bytes of UDP payload.
    pub mtu: u16,
    pub max_attachments: usize,
    /// Agents that may be attaching at once.
    pub max_handshakes: usize,
    /// Handshakes a second beyond which cookies are asked for.
    pub handshakes_per_second: u32,
    /// Handshakes, and Resets, a second for one source.
    pub per_source: u32,
    /// The same at once.
    pub burst: u32,
    pub mesh: MeshConfig,
}

/// A gateway's secrets; both outlive a restart.
#[derive(Clone, Debug)]
pub struct CoreKeys {
    pub gateway: Did,
    pub tunnel: TunnelSecret,
    /// Makes the tokens of Resets.
    pub reset: [u8; 32],
}

/// A gateway.
#[derive(Debug)]
pub struct Core {
    config: CoreConfig,
    gateway: Did,
    reset_key: hmac::Key,
    networks: BTreeMap<NetworkId, Revocations>,
    guests: Guests,
    waiting: Waiting,
    hops: Hops,
    mesh: Mesh,
    /// None until it is known; no other gateway is believed before.
    signers: Option<Signers>,
    /// Other domains whose gateways are believed.
    peerings: BTreeMap<DomainPrefix, Peering>,
    reset_limits: Limits,
    stun: StunServer,
    discovery: Discovery,
    rng: ChaCha20Rng,
    transmit: VecDeque<(SocketAddr, Vec<u8>)>,
    /// What of the batch taken last goes on.
    runs: Runs,
    recovered: VecDeque<RecoveredHop>,
    /// When the next batch of `recovered` goes; None when there is none.
    recover_at: Option<Instant>,
    drops: Counters,
    /// Frames and bytes sent on to an agent.
    forwarded: (u64, u64),
    /// The same, a second; None before the first.
    forwarding: Option<Meter>,
}

impl Core {
    /// Makes a gateway that serves no network yet.
    pub fn new(config: CoreConfig, keys: CoreKeys, seed: [u8; 32]) -> Self {
        let mut rng = ChaCha20Rng::from_seed(seed);
        let limits = GuestLimits {
            most: config.max_handshakes,
            per_second: config.handshakes_per_second,
            per_source: config.per_source,
            burst: config.burst,
        };
        let guests_rng = ChaCha20Rng::from_seed(rng.random());
        let mesh_rng = ChaCha20Rng::from_seed(rng.random());
        let (routes, gateways) = (config.mesh.max_routes, config.mesh.max_gateways);
        Self {
            config,
            gateway: keys.gateway,
            reset_key: hmac::Key::new(hmac::HMAC_SHA256, &keys.reset),
            networks: BTreeMap::new(),
            guests: Guests::new(keys.tunnel.clone(), limits, guests_rng),
            waiting: Waiting::default(),
            hops: Hops::new(keys.gateway, config.lease, routes, rng.random()),
            mesh: Mesh::new(keys.gateway, keys.tunnel, gateways, mesh_rng),
            signers: None,
            peerings: BTreeMap::new(),
            reset_limits: Limits::new(config.per_source, config.burst, MAX_SOURCES),
            stun: StunServer::new(),
            discovery: Discovery::new(),
            rng,
            transmit: VecDeque::new(),
            runs: Runs::default(),
            recovered: VecDeque::new(),
            recover_at: None,
            drops: Counters::default(),
            forwarded: (0, 0),
            forwarding: None,
        }
    }

    /// Serves exactly these networks; agents of others are detached, revocations are kept.
    pub fn set_networks(&mut self, networks: &[NetworkId]) {
        let mut old = std::mem::take(&mut self.networks);
        let kept = networks
            .iter()
            .map(|network| (*network, old.remove(network).unwrap_or_default()));
        self.networks = kept.collect();
        let served = &self.networks;
        let gone = self
            .hops
            .retain(|hop| served.contains_key(&hop.new.network));
        self.hops
            .retain_remote(|claim| served.contains_key(&claim.network));
        self.tell_gone(gone.iter().map(|hop| (hop.new.up, hop.new.endpoint)));
    }

    /// Lets agents and networks do as much as this.
    pub const fn set_quota(&mut self, quota: QuotaConfig) {
        self.hops.quota = quota;
    }

    /// Serves one more network.
    pub fn add_network(&mut self, network: NetworkId) {
        self.networks.entry(network).or_default();
    }

    /// Takes a revocation; agents whose membership it ends are detached.
    pub fn add_revocation(
        &mut self,
        statement: &Statement<Revocation>,
        unix: UnixTime,
    ) -> Result<(), ChainError> {
        let network = statement.network().ok_or(ChainError::WrongNetwork)?;
        let revoked = self
            .networks
            .get_mut(&network)
            .ok_or(ChainError::WrongNetwork)?;
        if !revoked.add(statement, &network, unix)? {
            return Ok(());
        }
        let holds = |of: &NetworkId, record: &str| {
            *of != network
                || Statement::<Record>::open(record)
                    .is_ok_and(|record| verify_record(&record, &network, revoked, unix).is_ok())
        };
        let gone = self
            .hops
            .retain(|hop| holds(&hop.new.network, &hop.new.record));
        self.hops
            .retain_remote(|claim| holds(&claim.network, &claim.record));
        self.tell_gone(gone.iter().map(|hop| (hop.new.up, hop.new.endpoint)));
        Ok(())
    }

    /// Takes what was remembered before a restart: those agents are told to attach again.
    pub fn recover(&mut self, recovery: Recovery, now: Instant) {
        self.recovered = recovery.hops.into_iter().take(MAX_RECOVERED).collect();
        self.recover_at = (!self.recovered.is_empty()).then_some(now);
    }

    /// Returns what is to be remembered over a restart.
    pub fn recovery(&self) -> Recovery {
        // A connection does not outlive this process.
        let lasting = |hop: &&Hop| !carrier::is_carrier(hop.new.endpoint);
        let hops = self.hops.iter().filter(lasting).map(|hop| RecoveredHop {
            hop: hop.new.up,
            endpoint: hop.new.endpoint,
        });
        Recovery {
            hops: hops.take(MAX_RECOVERED).collect(),
        }
    }

    /// Returns a number that differs once [`Core::recovery`] does.
    pub const fn changes(&self) -> u64 {
        self.hops.changes()
    }

    /// Takes a datagram; all that follows from it is to be sent.
    pub fn handle_datagram(
        &mut self,
        from: SocketAddr,
        mut bytes: Vec<u8>,
        now: Instant,
        unix: UnixTime,
    ) {
        if let Some(to) = self.take(from, &mut bytes, now, unix) {
            self.send(to, bytes);
        }
        while self.has_strangers() {
            self.turn(now, unix);
        }
        self.settle(now, unix);
    }

    /// Takes datagrams of one sender that lie end to end, each but the last `stride` bytes long.
    ///
    /// Frames that go on are made anew where they lie: until the next call, [`Core::poll_run`] says
    /// what of `bytes` is to be sent. Strangers wait for [`Core::handle_stranger`].
    pub fn handle_batch(
        &mut self,
        from: SocketAddr,
        bytes: &mut [u8],
        stride: usize,
        now: Instant,
        unix: UnixTime,
    ) {
        self.runs.clear();
        if bytes.is_empty() {
            self.drops.count(DropReason::DatagramUnknown);
        }
        let mut start = 0;
        for datagram in bytes.chunks_mut(stride.max(1)) {
            let place = start..start + datagram.len();
            start = place.end;
            if let Some(to) = self.take(from, datagram, now, unix) {
                self.runs.add(to, place);
            }
        }
        self.settle(now, unix);
    }

    /// Takes a datagram, and returns where it goes on if it does.
    fn take(
        &mut self,
        from: SocketAddr,
        bytes: &mut [u8],
        now: Instant,
        unix: UnixTime,
    ) -> Option<SocketAddr> {
        match Datagram::classify(bytes) {
            Some(Datagram::Frame) => return self.handle_frame(from, bytes, now, unix),
            Some(Datagram::WireGuard(kind)) => self.handle_wireguard(from, kind, bytes, now),
            Some(Datagram::Stun) => self.handle_stun(Change::NONE, from, bytes, now),
            Some(Datagram::Discover) => {
                if let Some(offer) = self.discover(from, bytes, now) {
                    self.send(from, offer);
                }
            }
            Some(Datagram::Channel) | None => self.drops.count(DropReason::DatagramUnknown),
        }
        None
    }

    /// Returns the answer to a GW-DISCOVER, which came here or to the link's group.
    pub fn discover(&mut self, from: SocketAddr, bytes: &[u8], now: Instant) -> Option<Vec<u8>> {
        let answer = self.discovery.answer(from, bytes, now);
        answer.map_err(|reason| self.drops.count(reason)).ok()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant, unix: UnixTime) {
        self.guests.handle_timeout(now);
        self.hops.handle_timeout(now, unix);
        self.handle_mesh_timeout(now, unix);
        if self.recover_at.is_some_and(|at| at <= now) {
            let count = self.recovered.len().min(RECOVERY_BATCH);
            let batch: Vec<_> = self.recovered.drain(..count).collect();
            // An id that is in use again belongs to an agent that is back already.
            self.tell_gone(batch.iter().map(|known| (known.hop, known.endpoint)));
            self.recover_at = (!self.recovered.is_empty()).then_some(now + RECOVERY_PAUSE);
        }
        self.settle(now, unix);
    }

    /// Returns when `handle_timeout` is due and why; None when nothing is.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let guests = self
            .guests
            .poll_timeout()
            .map(|at| (at, "handshake expiry"));
        let hops = self.hops.poll_timeout().map(|at| (at, "attachment lease"));
        let recover = self.recover_at.map(|at| (at, "restart notices"));
        let mesh = self.mesh.poll_timeout();
        let own = guests.into_iter().chain(hops).chain(recover);
        own.chain(mesh).min()
    }

    /// Returns the next datagram to send, and where to.
    pub fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        self.transmit.pop_front()
    }

    /// Takes on which endpoints, beside its own, it answers STUN; those of the version, one's own first.
    pub fn set_stun_endpoints(&mut self, endpoints: &[(Change, SocketAddr)]) {
        self.stun.set_endpoints(endpoints);
    }

    /// Takes a STUN message that came to the endpoint at `place`.
    pub fn handle_stun(&mut self, place: Change, from: SocketAddr, bytes: &[u8], now: Instant) {
        match self.stun.answer(place, from, bytes, now) {
            Ok((Change::NONE, answer)) => self.send(from, answer),
            Ok((place, answer)) => self.stun.queue(place, from, answer),
            Err(reason) => self.drops.count(reason),
        }
    }

    /// Returns the next STUN answer that leaves from another endpoint than one's own.
    pub fn poll_stun(&mut self) -> Option<(Change, SocketAddr, Vec<u8>)> {
        self.stun.poll()
    }

    /// Returns what of the batch taken last goes on next.
    pub fn poll_run(&mut self) -> Option<Run> {
        self.runs.poll()
    }

    /// Counts datagrams that could not be sent.
    pub fn count_unsent(&mut self, reason: DropReason, datagrams: usize) {
        self.drops.add(reason, datagrams as u64);
    }

    /// Returns what an operator may see.
    pub fn status(&self, now: Instant) -> GatewayStatus {
        let attachments = self.hops.iter().take(MAX_LISTED);
        let attachments = attachments.map(|hop| AttachmentStatus {
            agent: hop.new.agent,
            network: hop.new.network,
            endpoint: carrier::peer(hop.new.endpoint).unwrap_or(hop.new.endpoint),
            carrier: Carrier::of(hop.new.endpoint),
            stale: hop.stale,
            sent: hop.sent.rate(now),
            received: hop.received.rate(now),
        });
        let drops = self.drops.nonzero();
        GatewayStatus {
            gateway: self.gateway,
            networks: self.networks.len(),
            attached: self.hops.len(),
            attaching: self.guests.len(),
            routes: self.hops.routes(),
            // The shell's to tell.
            connections: 0,
            forwarded_frames: self.forwarded.0,
            forwarded_bytes: self.forwarded.1,
            forwarding: self.forwarding.map(|m| m.rate(now)).unwrap_or_default(),
            drops: drops
                .map(|(reason, n)| (reason.label().to_owned(), n))
                .collect(),
            attachments: attachments.collect(),
            peers: self.peers(),
        }
    }

    /// Takes a frame, and returns where it goes on if it does.
    fn handle_frame(
        &mut self,
        from: SocketAddr,
        frame: &mut [u8],
        now: Instant,
        unix: UnixTime,
    ) -> Option<SocketAddr> {
        if let Some(reset) = Reset::parse(frame) {
            self.handle_reset(&reset, now);
            return None;
        }
        match self.hops.handle_frame(from, frame, now, unix) {
            Outcome::Answer(to, answer) => self.send(to, answer),
            Outcome::Forward(to) => {
                self.forwarded.0 += 1;
                self.forwarded.1 += frame.len() as u64;
                let meter = self.forwarding.get_or_insert_with(|| Meter::new(now));
                meter.note(frame.len(), now);
                return Some(to);
            }
            Outcome::Unknown(hop) => {
                self.drops.count(DropReason::FrameHopUnknown);
                if self.reset_limits.take(Source::of(from), now) {
                    self.tell_gone([(hop, from)].into_iter());
                }
            }
            Outcome::Dropped(reason) => self.drops.count(reason),
            Outcome::Ended => {}
        }
        None
    }

    /// Tells agents that their hop ids, if they are unknown here, are of no use any more.
    fn tell_gone(&mut self, hops: impl Iterator<Item = (u32, SocketAddr)>) {
        for (hop, endpoint) in hops {
            if !self.hops.contains(hop) {
                let token = self.token(hop);
                self.send(endpoint, Reset { hop, token }.encode().to_vec());
            }
        }
    }

    /// Returns the token that proves a Reset to be this gateway's (as RFC 9000 section 10.3.2).
    fn token(&self, hop: u32) -> [u8; 16] {
        let mut message = b"agentnet reset".to_vec();
        message.extend(hop.to_be_bytes());
        let tag = hmac::sign(&self.reset_key, &message);
        let (token, _) = tag
            .as_ref()
            .split_first_chunk()
            .expect("a SHA-256 tag has 32 bytes");
        *token
    }

    fn send(&mut self, to: SocketAddr, bytes: Vec<u8>) {
        if self.transmit.len() < MAX_TRANSMIT {
            self.transmit.push_back((to, bytes));
        } else {
            self.drops.count(DropReason::UdpSend);
        }
    }
}

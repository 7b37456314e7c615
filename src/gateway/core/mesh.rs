//! Pure: a gateway among the others of its domain.

use std::net::SocketAddr;
use std::time::Instant;

use rand::Rng;
use thiserror::Error;

use crate::gateway::core::Core;
use crate::gateway::mesh::{Effect, Incoming, Named, PeerState};
use crate::gateway::mft::PeerId;
use crate::gateway::routes::{Claim, Unbelieved};
use crate::gateway::status::{PeerStatus, Standing};
use crate::id::{Did, DomainId, DomainPrefix, TunnelKey, UnixTime};
use crate::statement::{Gateway, Record, Statement, StatementError, verify_record};
use crate::wire::a2g::Reset;
use crate::wire::datagram::WireGuard;
use crate::wire::drop::DropReason;
use crate::wire::mesh::{Delta, Entry};

/// Endpoints of a gateway that are tried (protocol.md section 3).
const MAX_ENDPOINTS: usize = 8;

/// How much of a mesh is allowed.
#[derive(Clone, Copy, Debug)]
pub struct MeshConfig {
    /// Other gateways.
    pub max_gateways: usize,
    /// Ways to agents of others.
    pub max_routes: usize,
}

impl Default for MeshConfig {
    fn default() -> Self {
        Self {
            max_gateways: 256,
            max_routes: 100_000,
        }
    }
}

/// Whose gateway statements are believed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Signers {
    pub domain: DomainId,
    /// None while no registry of the domain is known.
    pub registry: Option<Did>,
}

/// Why a gateway's statement is not believed.
#[derive(Debug, Error)]
pub enum NoGateway {
    #[error("it is signed neither for this domain nor for one that is peered with")]
    Foreign,
    #[error("it names another gateway or key than the session's")]
    OtherKey,
    #[error(transparent)]
    Statement(#[from] StatementError),
}

impl Core {
    /// Takes whose gateway statements are believed, and our own.
    pub fn set_domain(&mut self, signers: Signers, own: Option<&Statement<Gateway>>) {
        self.signers = Some(signers);
        if let Some(own) = own.filter(|own| own.subject() == self.gateway) {
            self.mesh.set_statement(own.text().to_owned());
            self.discovery.set_statement(own.text().to_owned());
        }
    }

    /// Takes a statement about another gateway of the domain, and where that is: it is met at once.
    pub fn add_gateway(
        &mut self,
        statement: &Statement<Gateway>,
        endpoints: Vec<SocketAddr>,
        now: Instant,
        unix: UnixTime,
    ) -> Result<(), NoGateway> {
        let domain = self.check_gateway(statement, unix)?;
        self.meet(named(statement, domain, endpoints), now);
        self.mesh.handle_timeout(now);
        self.settle(now, unix);
        Ok(())
    }

    /// Says farewell to the other gateways, which look for other ways at once.
    pub fn close(&mut self, now: Instant) {
        self.mesh.leave(now);
        while let Some(effect) = self.mesh.poll() {
            if let Effect::Send(to, bytes) = effect {
                self.send(to, bytes);
            }
        }
    }

    /// Returns of which domain a gateway is by its statement; None is our own.
    fn check_gateway(
        &self,
        statement: &Statement<Gateway>,
        unix: UnixTime,
    ) -> Result<Option<DomainPrefix>, NoGateway> {
        let by = statement.issuer();
        let is_own = |of: &Signers| by == of.domain.did() || Some(by) == of.registry;
        if self.signers.as_ref().is_some_and(is_own) {
            statement.check_time(unix)?;
            return Ok(None);
        }
        self.check_foreign(statement, unix).map(Some)
    }

    fn meet(&mut self, named: Named, now: Instant) {
        if named.gateway == self.gateway || !self.mesh.is_news(&named) {
            return;
        }
        let known = self.mesh.of_gateway(&named.gateway);
        let other = known.filter(|id| self.mesh.domain(*id) != named.domain);
        match other {
            // Another domain may name whomever it likes, and takes nobody's place by that.
            Some(_) if named.domain.is_some() => return,
            Some(squatter) => self.remove_gateway(squatter, now),
            None => {}
        }
        let (domain, ours) = (named.domain, self.new_incoming());
        if let Some(id) = self.mesh.add(named, ours, now) {
            if let Some(old) = known {
                self.end(old);
            }
            self.hops.links.listen(id, ours.hop, &ours.secret);
            if let Some(peering) = domain.and_then(|domain| self.peerings.get(&domain)) {
                self.hops.add_foreign(id, peering.prefixes().to_vec());
            }
        }
    }

    /// Takes a gateway out.
    fn remove_gateway(&mut self, id: PeerId, now: Instant) {
        self.mesh.remove(id, now);
        self.end(id);
    }

    fn end(&mut self, id: PeerId) {
        self.hops.lose(id);
        self.hops.forget_foreign(id);
        self.hops.links.end(id);
    }

    /// Has another gateway send by another secret from now on.
    fn renew(&mut self, id: PeerId, now: Instant) {
        let ours = self.new_incoming();
        if let Some(before) = self.mesh.renew(id, ours, now) {
            self.hops.links.retire(id, before.hop, now);
            self.hops.links.listen(id, ours.hop, &ours.secret);
        }
    }

    fn new_incoming(&mut self) -> Incoming {
        let hop = loop {
            let hop = self.rng.random();
            if hop != 0 && !self.hops.contains(hop) {
                break hop;
            }
        };
        Incoming {
            hop,
            secret: self.rng.random(),
            token: self.token(hop),
        }
    }

    pub(super) fn handle_peer(
        &mut self,
        id: PeerId,
        kind: WireGuard,
        received: (SocketAddr, &[u8]),
        now: Instant,
    ) {
        if let Err(reason) = self.mesh.handle(id, kind, received, now) {
            self.drops.count(reason);
        }
    }

    /// Meets a gateway that the registry did not tell of yet, by its own statement.
    pub(super) fn introduce(
        &mut self,
        from: SocketAddr,
        key: TunnelKey,
        statement: &str,
        (now, unix): (Instant, UnixTime),
    ) {
        match self.open_gateway(statement, unix) {
            Ok((statement, domain)) if statement.claims().tunnel == key => {
                let mut endpoints = literal(&statement);
                endpoints.insert(0, from);
                self.meet(named(&statement, domain, endpoints), now);
                self.mesh.handle_timeout(now);
            }
            Ok(_) => self.refuse_gateway(&NoGateway::OtherKey),
            Err(error) => self.refuse_gateway(&error),
        }
    }

    fn open_gateway(
        &self,
        text: &str,
        unix: UnixTime,
    ) -> Result<(Statement<Gateway>, Option<DomainPrefix>), NoGateway> {
        let statement = Statement::<Gateway>::open(text)?;
        let domain = self.check_gateway(&statement, unix)?;
        Ok((statement, domain))
    }

    fn refuse_gateway(&mut self, error: &NoGateway) {
        tracing::debug!(%error, "Gateway statement refused");
        self.drops.count(DropReason::ControlRefused);
    }

    /// Takes a Reset, if another gateway sent it.
    pub(super) fn handle_reset(&mut self, reset: &Reset, now: Instant) {
        if !self.mesh.handle_reset(reset, now) {
            self.drops.count(DropReason::FrameMalformed);
        }
    }

    /// Does what is due in the mesh.
    pub(super) fn handle_mesh_timeout(&mut self, now: Instant, unix: UnixTime) {
        if self.mesh.poll_timeout().is_none_or(|(at, _)| at > now) {
            return;
        }
        self.mesh.handle_timeout(now);
        self.hops.expire_remote(unix);
        for id in self.mesh.expired(unix) {
            tracing::info!("The statement of a gateway ended");
            self.remove_gateway(id, now);
        }
        for id in self.mesh.worn(now) {
            self.renew(id, now);
        }
        self.hops.links.handle_timeout(now);
    }

    /// Does all that follows from what the mesh was told, and tells other gateways what changed here.
    pub(super) fn settle(&mut self, now: Instant, unix: UnixTime) {
        while self.hops.is_changed() || !self.mesh.is_quiet() {
            for agent in self.hops.take_changed() {
                let is_announced = self.hops.announced(agent).is_some();
                self.mesh.note(agent, is_announced);
            }
            while let Some(effect) = self.mesh.poll() {
                self.apply(effect, now, unix);
            }
            let hops = &self.hops;
            self.mesh
                .pump(now, |agent| hops.announced(agent).map(str::to_owned));
        }
    }

    fn apply(&mut self, effect: Effect, now: Instant, unix: UnixTime) {
        match effect {
            Effect::Delta(id, delta) => self.take_delta(id, &delta, now, unix),
            Effect::Down(id) => self.hops.lose(id),
            Effect::Forgotten(id) => self.renew(id, now),
            Effect::Moved(id, endpoint) => self.hops.links.move_to(id, endpoint),
            Effect::Send(to, bytes) => self.send(to, bytes),
            Effect::Statement(id, text) => self.restate(id, &text, now, unix),
            Effect::Up(id, outgoing) => {
                self.hops.links.open_to(id, &outgoing);
                self.hops.open_foreign(id);
            }
        }
    }

    /// Takes a gateway's newer statement about itself.
    fn restate(&mut self, id: PeerId, text: &str, now: Instant, unix: UnixTime) {
        let known = (self.mesh.gateway(id), self.mesh.key(id));
        match self.open_gateway(text, unix) {
            Ok((_, domain)) if domain != self.mesh.domain(id) => {
                self.refuse_gateway(&NoGateway::OtherKey);
            }
            Ok((statement, domain)) => {
                let key = statement.claims().tunnel;
                if (Some(statement.subject()), Some(key)) != known {
                    self.refuse_gateway(&NoGateway::OtherKey);
                } else if self.mesh.seq(&statement.subject()) < Some(statement.seq()) {
                    let endpoints = literal(&statement);
                    self.meet(named(&statement, domain, endpoints), now);
                }
            }
            Err(error) => self.refuse_gateway(&error),
        }
    }

    /// Takes announcements of a gateway; what is not believed is passed over, and counted.
    fn take_delta(&mut self, id: PeerId, delta: &Delta, now: Instant, unix: UnixTime) {
        let Some(gateway) = self.mesh.gateway(id) else {
            return;
        };
        if self.mesh.domain(id).is_some() {
            // Of another domain nothing is believed but its prefix.
            self.drops.count(DropReason::ControlRefused);
            return;
        }
        let epoch = delta.mark.epoch;
        for entry in &delta.entries {
            match entry {
                Entry::Agent(record) => {
                    let by = (id, gateway);
                    let taken = match self.hops.announce_again(by, record, epoch) {
                        Some(taken) => taken.map_err(|_| DropReason::ControlRefused),
                        // Checking costs: it is told again once there is time.
                        None if !self.mesh.may_check(id, now) => return,
                        None => self.believe(by, record, epoch, unix),
                    };
                    if let Err(reason) = taken {
                        self.drops.count(reason);
                    }
                }
                Entry::Gone(agent) => self.hops.withdraw(id, *agent),
            }
        }
        if delta.is_all {
            self.hops.end_epoch(id, epoch);
        }
        self.mesh.took(id, delta, now);
    }

    /// Takes an announcement if the agent's record holds and lists the gateway.
    fn believe(
        &mut self,
        by: (PeerId, Did),
        text: &str,
        epoch: u32,
        unix: UnixTime,
    ) -> Result<(), DropReason> {
        let refused = DropReason::ControlRefused;
        let record = Statement::<Record>::open(text).map_err(|_| refused)?;
        let network = record.network().ok_or(refused)?;
        let revoked = self.networks.get(&network).ok_or(refused)?;
        let member = verify_record(&record, &network, revoked, unix).map_err(|_| refused)?;
        let claim = Claim {
            agent: member.address,
            network,
            seq: record.seq(),
            expires: member.expires.min(record.expires()),
            gateways: record.claims().gateways.clone(),
            record: text.to_owned(),
        };
        let announced = self.hops.announce(by, claim, epoch);
        announced.map_err(|why| match why {
            Unbelieved::Full => DropReason::FrameQuota,
            Unbelieved::NotListed => refused,
        })
    }

    /// Returns what an operator sees of the other gateways.
    pub(super) fn peers(&self) -> Vec<PeerStatus> {
        let peers = self.mesh.peers().map(|peer| PeerStatus {
            gateway: peer.gateway,
            state: match peer.state {
                PeerState::Down => Standing::Down,
                PeerState::Greeting => Standing::Greeting,
                PeerState::Up => Standing::Up,
            },
            endpoint: peer.at,
            rtt_us: peer
                .rtt
                .map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX)),
            routes: self.hops.remote().of(peer.id),
            prefixes: self
                .hops
                .carried(peer.id)
                .iter()
                .map(ToString::to_string)
                .collect(),
        });
        peers.collect()
    }
}

fn named(
    statement: &Statement<Gateway>,
    domain: Option<DomainPrefix>,
    mut endpoints: Vec<SocketAddr>,
) -> Named {
    endpoints.truncate(MAX_ENDPOINTS);
    Named {
        gateway: statement.subject(),
        key: statement.claims().tunnel,
        seq: statement.seq(),
        expires: statement.expires(),
        endpoints,
        domain,
    }
}

/// Returns the endpoints of a statement that are no names.
fn literal(statement: &Statement<Gateway>) -> Vec<SocketAddr> {
    let texts = statement.claims().udp.iter();
    texts.filter_map(|text| text.parse().ok()).collect()
}

//! Peers that speak WireGuard and nothing else: the operator of this node wrote them down.
//!
//! There is no statement, no record and no name: consent is the operator's own, for one key at one
//! address. What our own grants allow at our ports bounds it as any consent.

mod peer;

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::engine::{Engine, PeerState, PeerStats, Time, local::Local, membership::Membership};
use crate::id::{AgentId, Did, NetworkPrefix, OverlayIp, PresharedKey, TunnelKey, WireGuardKey};
use crate::statement::Scope;
use crate::wire::candidate::Candidate;

pub(crate) use peer::{PlainOutput, PlainPeer};

/// Most peers of one agent; each is written down by a person.
pub const MAX_WIREGUARD: usize = 1024;

/// A peer that speaks only WireGuard, as it is kept on disk.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct WireGuard {
    pub key: WireGuardKey,
    /// The one address it may send from, and is sent what goes to.
    pub address: OverlayIp,
    /// Where it is reached at first; None when it has to begin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<SocketAddr>,
    /// What it may reach here.
    pub allow: Scope,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preshared_key: Option<PresharedKey>,
}

/// Which peer is meant.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Which {
    Address(OverlayIp),
    Key(WireGuardKey),
}

/// Why a peer that speaks only WireGuard cannot be added or removed.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum WireGuardError {
    #[error("{0} is not an address of the agent's network, {1}")]
    AddressOutside(OverlayIp, NetworkPrefix),
    #[error("{0} is the address of an agent that is known here")]
    AddressOfAgent(OverlayIp),
    #[error("{0} is the address of another WireGuard peer")]
    AddressTaken(OverlayIp),
    #[error("{0} is an agent of this node")]
    AddressOwn(OverlayIp),
    #[error("nothing can be sent to {0}")]
    Endpoint(SocketAddr),
    #[error("at most {MAX_WIREGUARD} WireGuard peers may be kept")]
    Full,
    #[error("the key is that of an agent that is known here")]
    KeyOfAgent,
    #[error("the key is of this node itself")]
    KeyOwn,
    #[error("the key is that of the WireGuard peer {0}")]
    KeyTaken(OverlayIp),
    #[error("there is no such WireGuard peer")]
    NotFound,
}

/// A peer that speaks only WireGuard, as an operator sees it.
#[derive(Clone, Debug)]
pub struct WireGuardView {
    pub kept: WireGuard,
    pub state: PeerState,
    /// Where it was last heard from, or is looked for; None when it has to begin.
    pub endpoint: Option<SocketAddr>,
    pub stats: PeerStats,
}

impl Membership {
    /// Adds a peer that speaks only WireGuard, unless its key or address is known as another's.
    pub(crate) fn add_wireguard(&mut self, new: WireGuard) -> Result<(), WireGuardError> {
        let address = new.address;
        if !self.prefix.contains(address.ip()) || self.prefix.address(0) == address {
            return Err(WireGuardError::AddressOutside(address, self.prefix));
        }
        if self.address() == Some(address) {
            return Err(WireGuardError::AddressOwn(address));
        }
        if self.tunnel.public() == new.key.tunnel() {
            return Err(WireGuardError::KeyOwn);
        }
        if self
            .known()
            .any(|did| self.address_of(did) == Some(address))
        {
            return Err(WireGuardError::AddressOfAgent(address));
        }
        let mut records = self.records.values().map(|r| r.claims().tunnel);
        let mut gateways = self.gateways.values().map(|g| g.claims().tunnel);
        if records.any(|key| key == new.key.tunnel()) || gateways.any(|key| key == new.key.tunnel())
        {
            return Err(WireGuardError::KeyOfAgent);
        }
        for kept in &self.wireguard {
            if kept.key == new.key {
                return Err(WireGuardError::KeyTaken(kept.address));
            }
            if kept.address == address {
                return Err(WireGuardError::AddressTaken(address));
            }
        }
        if self.wireguard.len() >= MAX_WIREGUARD {
            return Err(WireGuardError::Full);
        }
        self.wireguard.push(new);
        Ok(())
    }

    /// Forgets a peer that speaks only WireGuard.
    pub fn remove_wireguard(&mut self, which: Which) -> Result<WireGuard, WireGuardError> {
        let is_meant = |kept: &WireGuard| match which {
            Which::Address(address) => kept.address == address,
            Which::Key(key) => kept.key == key,
        };
        let at = self.wireguard.iter().position(is_meant);
        let at = at.ok_or(WireGuardError::NotFound)?;
        Ok(self.wireguard.remove(at))
    }

    /// Tells whether a peer with this key was written down: an agent that claims it is not believed.
    pub(crate) fn is_wireguard(&self, key: &TunnelKey) -> bool {
        let mut kept = self.wireguard.iter();
        kept.any(|kept| kept.key.tunnel() == *key)
    }

    /// Returns the peers that may be installed beside these agents, whose addresses are proven.
    pub(crate) fn wireguard_beside(&self, agents: &[Did]) -> Vec<WireGuard> {
        let taken = agents.iter().filter_map(|did| self.address_of(did));
        let taken = taken.chain(self.address()).collect::<Vec<_>>();
        let own = self.tunnel.public();
        let fits = |kept: &&WireGuard| {
            let address = kept.address;
            let is_free = self.prefix.contains(address.ip()) && !taken.contains(&address);
            is_free && kept.key.tunnel() != own
        };
        self.wireguard.iter().filter(fits).cloned().collect()
    }

    /// Returns the agents that anything is kept of.
    fn known(&self) -> impl Iterator<Item = &Did> {
        let consents = self.given.keys().chain(self.received.keys());
        let told = self.records.keys().chain(self.incoming.keys());
        consents.chain(told)
    }

    fn address_of(&self, did: &Did) -> Option<OverlayIp> {
        self.prefix.address_of(&AgentId::from(*did)).ok()
    }
}

impl Engine {
    /// Adds a peer that speaks only WireGuard; None when there is no agent `local`.
    pub fn add_wireguard(
        &mut self,
        local: OverlayIp,
        new: WireGuard,
        time: Time,
    ) -> Option<Result<(), WireGuardError>> {
        if self.locals.contains_key(&new.address) {
            return Some(Err(WireGuardError::AddressOwn(new.address)));
        }
        let is_own = |local: &Local| local.membership.tunnel.public() == new.key.tunnel();
        if self.locals.values().any(is_own) {
            return Some(Err(WireGuardError::KeyOwn));
        }
        if let Some(endpoint) = new.endpoint
            && (!is_sendable(endpoint) || self.leads_inside(endpoint))
        {
            return Some(Err(WireGuardError::Endpoint(endpoint)));
        }
        self.change(local, time, |membership, _| membership.add_wireguard(new))
    }

    /// Tells whether what is sent there would come back to a TUN of ours.
    fn leads_inside(&self, endpoint: SocketAddr) -> bool {
        let mut prefixes = self.locals.values().map(|local| local.membership.prefix);
        prefixes.any(|prefix| is_inside(prefix, endpoint))
    }

    /// Returns the peers of one agent that speak only WireGuard.
    pub fn wireguard(&self, local: OverlayIp, time: Time) -> Vec<WireGuardView> {
        let Some(found) = self.locals.get(&local) else {
            return Vec::new();
        };
        let view = |kept: &WireGuard| {
            let peer = found.wireguard.get(&kept.address);
            let peer = peer.filter(|peer| peer.kept() == kept);
            WireGuardView {
                kept: kept.clone(),
                state: peer.map_or(PeerState::Idle, |peer| peer.state(time.now)),
                endpoint: peer.map_or(kept.endpoint, PlainPeer::endpoint),
                stats: peer.map(PlainPeer::stats).unwrap_or_default(),
            }
        };
        found.membership.wireguard.iter().map(view).collect()
    }

    /// Returns where others may reach an agent directly, most likely first.
    pub fn endpoints(&self, local: OverlayIp) -> Vec<Candidate> {
        let found = self.locals.get(&local);
        found.map(Local::candidates).unwrap_or_default()
    }
}

/// Tells whether a datagram can be sent to `endpoint` at all.
fn is_sendable(endpoint: SocketAddr) -> bool {
    let ip = endpoint.ip();
    let is_broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    endpoint.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && !is_broadcast
}

/// Tells whether `endpoint` is of the overlay that `prefix` is of.
fn is_inside(prefix: NetworkPrefix, endpoint: SocketAddr) -> bool {
    match endpoint.ip().to_canonical() {
        IpAddr::V4(_) => false,
        IpAddr::V6(ip) => prefix.domain().contains(ip),
    }
}

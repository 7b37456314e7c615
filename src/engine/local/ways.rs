//! What an agent's peers share of paths: candidates, the wish, and what comes directly.

use std::{net::SocketAddr, time::Instant};

use crate::engine::{
    attach::Attachment,
    event::{Out, Time},
    hop::Hop,
    local::Local,
    path::{Mode, PathAgent, predicted},
    peer::{Peer, PeerOutput},
    reflexive::Reflexive,
    session::{self, initiator},
};
use crate::id::{OverlayIp, TunnelKey};
use crate::wire::a2g::HEADER;
use crate::wire::candidate::{Candidate, Kind};
use crate::wire::carrier::is_carrier;

/// What is tried first: an interface's own endpoint needs no NAT to agree.
const HOST_PRIORITY: u32 = 2;
/// Opened for us, it needs no luck; but one inside the same site is nearer.
const MAPPED_PRIORITY: u32 = 1;
const REFLEXIVE_PRIORITY: u32 = 1;
/// A guess, after what somebody saw.
const PREDICTED_PRIORITY: u32 = 0;

impl Local {
    /// Returns where peers may reach us directly.
    pub(crate) fn candidates(&self) -> Vec<Candidate> {
        let host = |endpoint: &SocketAddr| Candidate {
            kind: Kind::Host,
            endpoint: *endpoint,
            priority: HOST_PRIORITY,
        };
        let seen = |endpoint: SocketAddr| {
            // Without a NAT it is an interface's, and better known as such (RFC 8445 section 5.1.3).
            let known = Some(host(&endpoint)).filter(|_| self.hosts.contains(&endpoint));
            known.unwrap_or(Candidate {
                kind: Kind::Reflexive,
                endpoint,
                priority: REFLEXIVE_PRIORITY,
            })
        };
        let mapped = self.mapped.map(|endpoint| Candidate {
            kind: Kind::Mapped,
            endpoint,
            priority: MAPPED_PRIORITY,
        });
        let seen_at = self.reflexive.endpoint().into_iter();
        let seen_at = seen_at.chain(self.observed.iter().copied());
        let seen_by_gateways = self.seen_by_gateways.iter().map(|(observed, _)| *observed);
        let mut seen_by_all = seen_by_gateways.collect::<Vec<_>>();
        seen_by_all.extend(self.reflexive.endpoint());
        seen_by_all.extend(self.observed.iter().chain(&self.seen_beside));
        let predicted = predicted(&seen_by_all)
            .into_iter()
            .map(|endpoint| Candidate {
                kind: Kind::Predicted,
                endpoint,
                priority: PREDICTED_PRIORITY,
            });
        // First, since what is beyond the sixteenth is left out.
        mapped
            .into_iter()
            .chain(seen_at.filter(|at| self.mapped != Some(*at)).map(seen))
            .chain(predicted)
            .chain(self.hosts.iter().map(host))
            .collect()
    }

    /// Takes where our interfaces are.
    pub(crate) fn set_hosts(&mut self, hosts: &[SocketAddr], time: Time, out: &mut Out) {
        self.hosts = hosts.to_vec();
        self.tell_candidates(time, out);
    }

    /// Takes where the router takes datagrams for us.
    pub(crate) fn set_mapped(&mut self, mapped: Option<SocketAddr>, time: Time, out: &mut Out) {
        self.mapped = mapped;
        self.tell_candidates(time, out);
    }

    /// Takes where STUN servers see us, and where second ports of gateways do, which is no news to peers
    /// unless the NAT maps by port.
    pub(crate) fn set_observed(
        &mut self,
        observed: &[SocketAddr],
        beside: &[SocketAddr],
        time: Time,
        out: &mut Out,
    ) {
        self.observed = observed.to_vec();
        self.seen_beside = beside.to_vec();
        self.tell_candidates(time, out);
    }

    /// Takes which paths our peers' data may go.
    pub(crate) fn set_mode(&mut self, mode: Mode, time: Time, out: &mut Out) {
        let mode = self.membership.path_mode(mode);
        self.mode = mode;
        self.with_all_paths(time, out, |path| path.set_mode(mode, time.now));
    }

    /// Returns which paths our peers' data may go.
    pub(crate) const fn mode(&self) -> Mode {
        self.mode
    }

    /// Takes that our network changed: gateway and peers are told where we are now.
    pub(crate) fn change_network(&mut self, time: Time, out: &mut Out) {
        self.homes.change_network(time.now);
        self.drain_gateways(out);
        self.follow_gateways(time, out);
        self.with_all_paths(time, out, |path| path.handle_network_change(time.now));
        // Peers leave an endpoint that is no longer named at once.
        self.reflexive = Reflexive::default();
        self.tell_candidates(time, out);
    }

    /// Makes sessions with the peers that data went to or came from since `since`; None is ever.
    pub(crate) fn wake_all(&mut self, since: Option<Instant>, time: Time, out: &mut Out) {
        let is_late = |at: Instant| since.is_none_or(|since| at >= since);
        let talked = |peer: &&Peer| peer.last_data().is_some_and(is_late);
        let talked = self.peers.values().filter(talked).map(Peer::address);
        for peer in talked.collect::<Vec<_>>() {
            self.wake(peer, time, out);
        }
    }

    /// Returns where datagrams go: the gateways' endpoints, and those of peers that answered.
    pub(crate) fn remotes(&self) -> Vec<SocketAddr> {
        let gateways = self.homes.iter().flat_map(Attachment::endpoints).copied();
        let peers = self.peers.values().flat_map(|peer| peer.path().endpoints());
        let all = gateways.chain(peers);
        all.filter(|at| !is_carrier(*at)).collect()
    }

    /// Lets paths know how gateways are reached, and where the best of them sees us.
    ///
    /// What it saw last stays a candidate while it is away: the mapping may well hold.
    pub(super) fn follow_attachment(&mut self, time: Time, out: &mut Out) {
        let hop = self.homes.best_hop();
        let told = hop.map(|hop| (hop.down(), hop.observed()));
        if let Some((id, observed)) = told.filter(|(id, _)| self.told_by != Some(*id)) {
            self.tell_relay_mtu(time, out);
            self.told_by = Some(id);
            // Port 0 is nowhere: the gateway is reached by a connection.
            if observed.port() != 0 {
                self.learn_reflexive(observed, time, out);
            }
        }
        let seen = || {
            let hops = self.homes.iter().filter_map(Attachment::hop);
            let seen = hops.filter(|hop| hop.observed().port() != 0);
            seen.map(|hop| (hop.observed(), hop.observer()))
        };
        if !seen().eq(self.seen_by_gateways.iter().copied()) {
            self.seen_by_gateways = seen().collect();
            out.is_seen_anew = true;
            self.tell_candidates(time, out);
        }
        let is_attached = self.homes.is_attached();
        if is_attached != self.had_relay {
            self.had_relay = is_attached;
            self.with_all_paths(time, out, |path| path.set_relay(is_attached, time.now));
        }
    }

    /// Returns where frames to the best gateway go; None while not attached.
    pub(crate) fn gateway_endpoint(&self) -> Option<SocketAddr> {
        self.homes.best_hop().map(Hop::endpoint)
    }

    /// Takes where the gateway sees us, which peers are told; tells whether that is news.
    pub(crate) fn learn_reflexive(
        &mut self,
        endpoint: SocketAddr,
        time: Time,
        out: &mut Out,
    ) -> bool {
        let is_news = self.reflexive.learn(endpoint);
        if is_news {
            self.tell_candidates(time, out);
        }
        is_news
    }

    /// Lets paths know how large a packet the gateway forwards.
    fn tell_relay_mtu(&mut self, time: Time, out: &mut Out) {
        let most = self.relay_mtu();
        self.with_all_paths(time, out, |path| path.set_relay_mtu(most));
    }

    /// Returns the largest packet that every gateway of ours forwards inside session and frame.
    pub(super) fn relay_mtu(&self) -> u16 {
        let hops = self.homes.iter().filter_map(Attachment::hop);
        let around = u16::try_from(session::OVERHEAD + HEADER).unwrap_or(u16::MAX);
        let least = hops.map(Hop::mtu).min();
        least.unwrap_or(u16::MAX).saturating_sub(around)
    }

    fn tell_candidates(&mut self, time: Time, out: &mut Out) {
        let candidates = self.candidates();
        self.with_all_paths(time, out, |path| path.set_candidates(&candidates, time.now));
    }

    fn with_all_paths(&mut self, time: Time, out: &mut Out, tell: impl Fn(&mut PathAgent)) {
        for peer in self.peers.keys().copied().collect::<Vec<_>>() {
            self.with_path(peer, time, out, &tell);
        }
    }

    pub(super) fn with_path(
        &mut self,
        peer: OverlayIp,
        time: Time,
        out: &mut Out,
        tell: impl FnOnce(&mut PathAgent),
    ) {
        self.with_peer(peer, time, out, |peer, made| {
            peer.with_path(time.now, made, tell);
        });
    }

    pub(super) fn with_peer(
        &mut self,
        address: OverlayIp,
        time: Time,
        out: &mut Out,
        act: impl FnOnce(&mut Peer, &mut Vec<PeerOutput>),
    ) {
        let mut made = Vec::new();
        if let Some(peer) = self.peers.get_mut(&address) {
            act(peer, &mut made);
        }
        self.carry_out(address, made, time, out);
    }

    /// Finds the peer whose session has this index; None when we ignore what comes directly.
    pub(crate) fn peer_by_index(&self, index: u32) -> Option<OverlayIp> {
        let agent = self.peers.by_index(index >> 8);
        let agent = agent.filter(|_| !self.mode.hides());
        agent.or_else(|| self.wireguard.by_index(index >> 8))
    }

    /// Finds the installed peer that a handshake initiation claims to be from.
    pub(crate) fn peer_by_initiation(&self, datagram: &[u8]) -> Option<OverlayIp> {
        self.direct_keys().next()?;
        let key = initiator(&self.membership.tunnel, datagram)?;
        let found = self.direct_keys().find(|(known, _)| *known == key);
        found.map(|(_, address)| address)
    }

    fn direct_keys(&self) -> impl Iterator<Item = (TunnelKey, OverlayIp)> {
        let agents = self.direct_peers();
        let agents = agents.map(|peer| (peer.trusted().tunnel, peer.address()));
        let plain = self.wireguard.values();
        agents.chain(plain.map(|peer| (peer.kept().key.tunnel(), peer.address())))
    }

    fn direct_peers(&self) -> impl Iterator<Item = &Peer> {
        let peers = (!self.mode.hides()).then_some(&self.peers);
        peers.into_iter().flat_map(|peers| peers.values())
    }

    /// Tells whether a peer of ours answered from `endpoint` before.
    pub(crate) fn knows(&self, endpoint: SocketAddr) -> bool {
        let mut peers = self.direct_peers();
        let mut plain = self.wireguard.values();
        peers.any(|peer| peer.path().endpoints().any(|known| known == endpoint))
            || plain.any(|peer| peer.endpoint() == Some(endpoint))
    }
}

//! What an operator may see of the engine.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::engine::{
    Engine, PeerState, PeerStats, Time,
    attach::{Attachment, State},
    hop::Hop,
    local::Local,
    path::Path,
    peer::Peer,
};
use crate::id::{AgentId, Did, FullName, OverlayIp, UnixTime};
use crate::statement::Scope;
use crate::wire::channel::Suite;

/// An installed peer, as `agentnet peers` shows it.
#[derive(Clone, Debug)]
pub struct PeerView {
    pub name: FullName,
    pub id: AgentId,
    pub address: OverlayIp,
    pub state: PeerState,
    /// The way our packets take now; None without a session or a way.
    pub path: Option<Path>,
    /// What our packets are sealed with past the session; None while there is no data channel.
    pub suite: Option<Suite>,
    pub stats: PeerStats,
    /// Since when we ask it for a session, or for a sign of life, in vain; None when we do not.
    pub asked: Option<Instant>,
    /// What the peer may reach here; all must allow.
    pub inbound: Vec<Scope>,
    /// What we may reach there.
    pub outbound: Scope,
    pub until: UnixTime,
}

/// An attachment, as `agentnet status` shows it.
#[derive(Clone, Debug)]
pub struct GatewayView {
    pub id: Did,
    pub state: State,
    /// Where its frames go; None while not attached.
    pub endpoint: Option<SocketAddr>,
    /// Where the gateway sees us; None while not attached.
    pub observed: Option<SocketAddr>,
    /// When the attachment was last made or lost.
    pub since: Instant,
    /// How long the way there and back takes; None before that was measured.
    pub rtt: Option<Duration>,
    /// Whether it is the best that works now.
    pub is_best: bool,
    /// Why the gateway refused us; None since it last accepted.
    pub refused: Option<String>,
}

impl Engine {
    /// Returns one agent's whole name.
    pub fn name(&self, local: OverlayIp) -> Option<FullName> {
        self.locals.get(&local).map(|l| l.name.clone())
    }

    /// Returns the installed peers of one agent.
    pub fn peers(&self, local: OverlayIp, time: Time) -> Vec<PeerView> {
        let Some(found) = self.locals.get(&local) else {
            return Vec::new();
        };
        found
            .peers
            .values()
            .map(|peer| view(found, peer, time.now))
            .collect()
    }

    /// Returns the way packets to an installed peer take now; None without a session or a way.
    pub fn path(&self, local: OverlayIp, peer: OverlayIp, time: Time) -> Option<Path> {
        current(self.locals.get(&local)?.peers.get(&peer)?, time.now)
    }

    /// Returns the attachment of one agent that is best now; None until a gateway is known.
    pub fn gateway(&self, local: OverlayIp) -> Option<GatewayView> {
        self.gateways(local).into_iter().find(|view| view.is_best)
    }

    /// Returns the attachments of one agent, in order of preference.
    pub fn gateways(&self, local: OverlayIp) -> Vec<GatewayView> {
        let Some(found) = self.locals.get(&local) else {
            return Vec::new();
        };
        let best = found.homes.best().map(Attachment::gateway);
        let view = |(attachment, since): (&Attachment, Instant)| {
            let hop = attachment.hop();
            let is_best = best == Some(attachment.gateway());
            // The best one is asked again once there is doubt.
            let asked = found.reflexive.endpoint().filter(|_| is_best);
            GatewayView {
                id: attachment.gateway(),
                state: attachment.state(),
                endpoint: hop.map(Hop::endpoint),
                observed: hop.map(|hop| asked.unwrap_or_else(|| hop.observed())),
                since,
                rtt: attachment.rtt(),
                is_best,
                refused: attachment.refused().map(|(_, text)| text.clone()),
            }
        };
        found.homes.views().map(view).collect()
    }

    /// Returns the gateway that relays to a peer now; None while none does.
    pub fn relay(&self, local: OverlayIp, peer: OverlayIp) -> Option<GatewayView> {
        let found = self.locals.get(&local)?;
        let chosen = found.peers.get(&peer)?.relay().chosen()?;
        let gateway = found.homes.get(chosen)?.gateway();
        let mut all = self.gateways(local).into_iter();
        all.find(|view| view.id == gateway)
    }
}

fn view(local: &Local, peer: &Peer, now: Instant) -> PeerView {
    let trusted = peer.trusted();
    PeerView {
        name: local.full_name(&trusted.member.name),
        id: trusted.member.agent,
        address: peer.address(),
        state: peer.state(now),
        path: current(peer, now),
        suite: peer.suite(),
        stats: peer.stats(),
        asked: peer.asked(),
        inbound: trusted.inbound.clone(),
        outbound: trusted.outbound.clone(),
        until: trusted.until,
    }
}

fn current(peer: &Peer, now: Instant) -> Option<Path> {
    let path = peer.path().current();
    path.filter(|_| peer.state(now) == PeerState::Up)
}

//! What a node is at one moment, read without a look at disk or network.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::dataplane::Snapshot;
use crate::engine::attach::State;
use crate::engine::view::PeerView;
use crate::id::{OverlayIp, UnixTime};
use crate::node::control::list::{session, wall};
use crate::node::control::path_kind;
use crate::node::control::warnings::SILENCE;
use crate::node::driver::{Core, now};
use crate::node::running::Node;
use crate::wire::api::local::{LinkState, PathKind, RegistryStatus, SessionState};
use crate::wire::drop::Counters;

/// A node at one moment.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    pub(super) started: UnixTime,
    pub(super) agents: usize,
    /// Agents whose network device is there.
    pub(super) devices: usize,
    pub(super) is_unsaved: bool,
    /// Agents that some gateway takes packets of.
    pub(super) attached: usize,
    pub(super) registry: BTreeMap<LinkState, u64>,
    pub(super) gateways: BTreeMap<LinkState, u64>,
    pub(super) plane: Snapshot,
    /// Of data plane and engine together.
    pub(super) drops: Counters,
    pub(super) peers: Vec<PeerReading>,
}

/// A peer of an agent.
#[derive(Clone, Debug)]
pub(super) struct PeerReading {
    pub(super) agent: String,
    pub(super) peer: String,
    pub(super) state: SessionState,
    pub(super) path: Option<PathKind>,
    /// None while nothing measured it.
    pub(super) rtt: Option<Duration>,
    /// Whether packets go to it and nothing comes back.
    pub(super) is_silent: bool,
    pub(super) handshakes: u64,
    /// None before the first.
    pub(super) last_handshake: Option<UnixTime>,
    /// None before the first.
    pub(super) last_inbound: Option<UnixTime>,
    pub(super) received: u64,
    pub(super) sent: u64,
}

/// Reads a node; None when it is stopping.
pub(super) async fn of(node: &Node) -> Option<Reading> {
    let (links, started) = (node.links(), node.started);
    let devices = node.devices().into_keys().collect::<BTreeSet<_>>();
    let plane = node.handle.call(|core| core.dataplane().clone()).await;
    let plane = plane.ok()?.counters().await;
    let read = move |core: &mut Core| reading(core, &links, &devices, (started, plane));
    node.handle.call(read).await.ok()
}

fn reading(
    core: &Core,
    links: &BTreeMap<OverlayIp, RegistryStatus>,
    devices: &BTreeSet<OverlayIp>,
    (started, plane): (UnixTime, Snapshot),
) -> Reading {
    let locals = core.engine.locals().collect::<Vec<_>>();
    let has_device =
        |local: &&OverlayIp| devices.contains(*local) && !core.has_lost_device(**local);
    let (mut attached, mut gateways) = (0, BTreeMap::new());
    for local in &locals {
        let states = core.engine.gateways(*local).into_iter();
        let states = states.map(|view| match view.state {
            _ if view.refused.is_some() => LinkState::Refused,
            State::Attached => LinkState::Connected,
            State::Attaching | State::Handshaking | State::Waiting | State::Detached => {
                LinkState::Connecting
            }
            State::Displaced => LinkState::Displaced,
        });
        let states = states.collect::<Vec<_>>();
        attached += usize::from(states.contains(&LinkState::Connected));
        for state in states {
            *gateways.entry(state).or_insert(0) += 1;
        }
    }
    let mut registry = BTreeMap::new();
    for link in locals.iter().filter_map(|local| links.get(local)) {
        *registry.entry(link.state).or_insert(0) += 1;
    }
    let mut drops = plane.drops;
    drops.merge(core.engine.counters());
    Reading {
        started,
        agents: locals.len(),
        devices: locals.iter().filter(has_device).count(),
        is_unsaved: core.unsaved().is_some(),
        attached,
        registry,
        gateways,
        plane,
        drops,
        peers: locals
            .iter()
            .flat_map(|local| peers(core, *local))
            .collect(),
    }
}

fn peers(core: &Core, local: OverlayIp) -> Vec<PeerReading> {
    let Some(agent) = core.engine.name(local) else {
        return Vec::new();
    };
    let agent = agent.to_string();
    let views = core.engine.peers(local, now());
    views
        .iter()
        .map(|view| peer(core, (local, &agent), view))
        .collect()
}

fn peer(core: &Core, (local, agent): (OverlayIp, &str), view: &PeerView) -> PeerReading {
    let time = now();
    let paths = core.engine.paths(local, view.address, time);
    let rtt = paths.zip(view.path).and_then(|(paths, used)| {
        let used = paths.pairs.iter().find(|pair| pair.path == used);
        used.and_then(|pair| pair.rtt)
    });
    PeerReading {
        agent: agent.to_owned(),
        peer: view.name.to_string(),
        state: session(view.state),
        path: view.path.map(path_kind),
        rtt,
        is_silent: view.asked.is_some_and(|at| time.now >= at + SILENCE),
        handshakes: view.stats.handshakes,
        last_handshake: view.stats.last_handshake.map(wall),
        last_inbound: view.stats.last_received.map(wall),
        received: view.stats.received,
        sent: view.stats.sent,
    }
}

use crate::engine::path::{Mode, PairState as State, PairView, Path, PathView};
use crate::engine::{PeerState, path::Obstacle, view::GatewayView};
use crate::id::{FullName, OverlayIp};
use crate::node::{
    control::{choose, list, member_name, path_kind},
    driver::{Core, now},
};
use crate::os::clock;
use crate::wire::api::{
    local::{
        Endpoint, EndpointKind, Family, PairState, PathPair, PathQuery, PathReport, Warning, Why,
    },
    problem::{Code, Problem},
};
use crate::wire::candidate::{Candidate, Kind};
use crate::wire::carrier::{self, Carrier, is_carrier};

/// Finds the local agent and the whole name of the other one that a caller means.
pub(in crate::node) fn target(
    core: &Core,
    agent: Option<&str>,
    name: &str,
) -> Result<(OverlayIp, FullName), Problem> {
    let local = choose(core, agent)?;
    let membership = core.engine.membership(local);
    let membership = membership.ok_or_else(|| Problem::new(Code::NotFound))?;
    let member = member_name(membership, name)?;
    let own = core.engine.name(local);
    let own = own.ok_or_else(|| Problem::new(Code::NotFound))?;
    Ok((local, member.full(own.network(), &membership.suffix)))
}

/// The problem of a name that is no peer's.
pub(in crate::node) fn nobody(name: &FullName) -> Problem {
    let what = format!("{name} is not known here, or there is no trust with it");
    Problem::with(Code::NotFound, what)
}

/// Returns every path to a peer; looking makes no session and sends nothing.
pub(super) fn report(core: &Core, query: &PathQuery) -> Result<PathReport, Problem> {
    let (local, name) = target(core, query.agent.as_deref(), &query.name)?;
    let own = core.engine.name(local);
    let own = own.ok_or_else(|| Problem::new(Code::NotFound))?;
    if own == name {
        let what = format!("{name} is on this node, so no path is needed");
        return Err(Problem::with(Code::BadRequest, what));
    }
    let time = now();
    let peers = core.engine.peers(local, time);
    let peer = peers.into_iter().find(|peer| peer.name == name);
    let peer = peer.ok_or_else(|| nobody(&name))?;
    let view = core.engine.paths(local, peer.address, time);
    let view = view.ok_or_else(|| nobody(&name))?;
    let gateway = core.engine.relay(local, peer.address);
    let is_up = peer.state == PeerState::Up;
    let obstacle = match view.obstacle {
        _ if !is_up => Some(Obstacle::NoSession),
        known => known,
    };
    let mut pairs = view.pairs.iter().collect::<Vec<_>>();
    pairs.sort_by_key(|pair| pair.path != Path::Relay);
    let pair = |pair: &PairView| path_pair(pair, &view, gateway.as_ref());
    Ok(PathReport {
        now: clock::unix(),
        name: name.to_string(),
        address: peer.address,
        agent: own.to_string(),
        state: list::session(peer.state),
        mode: mode(view.mode).to_owned(),
        path: view.current.filter(|_| is_up).map(path_kind),
        since: list::wall(view.since),
        why: Why {
            code: view.reason.label().to_owned(),
            text: view.reason.text().to_owned(),
        },
        not_direct: obstacle.map(|obstacle| Warning {
            code: obstacle.label().to_owned(),
            text: obstacle.text().to_owned(),
            cure: obstacle.cure().to_owned(),
        }),
        local: view.local.iter().map(endpoint).collect(),
        pairs: pairs.into_iter().map(pair).collect(),
    })
}

fn path_pair(pair: &PairView, view: &PathView, gateway: Option<&GatewayView>) -> PathPair {
    let named = |at| {
        let known = view.local.iter().find(|own| own.endpoint == at);
        known.map_or(EndpointKind::Observed, |own| kind(own.kind))
    };
    let relay = gateway.filter(|_| view.has_relay && pair.path == Path::Relay);
    let carrier = relay.and_then(|gateway| gateway.endpoint).map(Carrier::of);
    let (seen, remote, via) = match pair.path {
        Path::Direct(at) => {
            let kind = pair.kind.map_or(EndpointKind::Observed, kind);
            // Of a socket of its own, where it leads to.
            let at = carrier::peer(at).unwrap_or(at);
            (pair.observed, Some(Endpoint { at, kind }), None)
        }
        Path::Relay => {
            let attached = gateway.filter(|_| view.has_relay);
            let remote = attached.and_then(|gateway| gateway.endpoint);
            let remote = remote.filter(|at| !is_carrier(*at));
            let remote = remote.map(|at| Endpoint {
                at,
                kind: EndpointKind::Gateway,
            });
            let seen = attached.and_then(|gateway| gateway.observed);
            let seen = seen.filter(|at| at.port() != 0);
            (seen, remote, attached.map(|gateway| gateway.id))
        }
    };
    PathPair {
        path: path_kind(pair.path),
        in_use: view.current == Some(pair.path),
        state: state(pair, view),
        family: remote.map(|remote| Family::of(remote.at)),
        local: seen.map(|at| Endpoint {
            at,
            kind: named(at),
        }),
        remote,
        carrier,
        gateway: via,
        rtt_ms: pair.rtt.map(|rtt| rtt.as_secs_f64() * 1000.0),
        loss_percent: pair.loss,
        mtu: pair.mtu,
        last_inbound: pair.inbound.map(list::wall),
        penalized_until: pair.barred_until.map(list::wall_ahead),
    }
}

fn state(pair: &PairView, view: &PathView) -> PairState {
    match pair.state {
        _ if pair.path == Path::Relay && !view.has_relay => PairState::Failed,
        State::Alive { .. } if pair.barred_until.is_some() => PairState::Penalized,
        State::Alive { .. } => PairState::Answering,
        State::Dead => PairState::Failed,
        State::Probing { .. } => PairState::Probing,
        State::Unprobed => PairState::Unprobed,
    }
}

const fn endpoint(candidate: &Candidate) -> Endpoint {
    Endpoint {
        at: candidate.endpoint,
        kind: kind(candidate.kind),
    }
}

const fn kind(kind: Kind) -> EndpointKind {
    match kind {
        Kind::Host => EndpointKind::Host,
        Kind::Mapped => EndpointKind::Mapped,
        Kind::Predicted => EndpointKind::Predicted,
        Kind::Reflexive => EndpointKind::Reflexive,
    }
}

const fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Auto => "auto",
        Mode::Border => "border",
        Mode::Direct => "direct",
        Mode::Hidden => "hidden",
        Mode::Relay => "relay",
    }
}

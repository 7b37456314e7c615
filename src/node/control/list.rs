use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
    time::Instant,
};

use crate::engine::{
    PeerState,
    attach::State,
    membership::{Membership, Selector},
    stun::{Mapping, mapping},
    view::{GatewayView, PeerView},
};
use crate::id::{Did, FullName, OverlayIp, UnixTime};
use crate::node::{
    carriers,
    control::{choose, path_kind, warnings, wireguard},
    driver::{Core, now},
    portmap::PortMap,
    running::Node,
};
use crate::os::clock;
use crate::statement::{Chain, Consent, ConsentState, Scope, Statement};
use crate::wire::api::{
    local::{
        AgentStatus, AutoFrom, AutoRule, AutoRules, ConsentView, GatewayStatus, LinkState,
        MembershipStatus, NatMapping, Peer, Peers, Pending, PendingRequest, PortMappingStatus,
        RegistryStatus, SessionState, Status, StunStatus, Trust, TrustList, Whois, WhoisQuery,
    },
    problem::{Code, Problem},
};
use crate::wire::carrier::{Carrier, is_carrier};

/// Returns the agents meant by `agent`: the one named, or all.
pub(super) fn meant(core: &Core, agent: Option<&str>) -> Result<Vec<OverlayIp>, Problem> {
    match agent {
        Some(_) => Ok(vec![choose(core, agent)?]),
        None => Ok(core.engine.locals().collect()),
    }
}

/// Turns a moment of the monotonic clock into wall time.
pub(in crate::node) fn wall(at: Instant) -> UnixTime {
    let time = now();
    time.unix.before(time.now.saturating_duration_since(at))
}

/// Turns a moment to come of the monotonic clock into wall time.
pub(super) fn wall_ahead(at: Instant) -> UnixTime {
    let time = now();
    time.unix + at.saturating_duration_since(time.now)
}

pub(super) async fn status(node: &Node) -> Result<Status, Problem> {
    let links = node.links();
    let (devices, deaf) = (node.devices(), node.deaf());
    let plane = node.handle.call(|core| core.dataplane().clone()).await?;
    let mut drops = plane.counters().await.drops;
    let (port, dns, started) = (node.port, node.dns.borrow().clone(), node.started);
    let port_mapping = port_mapping(&node.mapped.borrow());
    let made = node.handle.call(move |core| {
        let mut agents = Vec::new();
        for local in core.engine.locals().collect::<Vec<_>>() {
            let Some(link) = links.get(&local) else {
                continue;
            };
            let device = devices.get(&local).filter(|_| !core.has_lost_device(local));
            agents.extend(agent(core, local, link.clone(), device.cloned()));
        }
        drops.merge(core.engine.counters());
        let drops = drops
            .nonzero()
            .map(|(r, n)| (r.label().to_owned(), n))
            .collect();
        let mut warnings = warnings::all(core, &agents);
        warnings.extend(warnings::names(&agents, &deaf, &dns));
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            now: clock::unix(),
            started,
            pid: std::process::id(),
            udp: vec![
                (Ipv4Addr::UNSPECIFIED, port).into(),
                (Ipv6Addr::UNSPECIFIED, port).into(),
            ],
            dns: dns.owner,
            stun: observers(core),
            port_mapping,
            nat_mapping: nat_mapping(core, &agents),
            agents,
            drops,
            warnings,
        }
    });
    Ok(made.await?)
}

fn port_mapping(found: &PortMap) -> Option<PortMappingStatus> {
    let none = PortMappingStatus {
        external: None,
        protocol: None,
        error: None,
    };
    match found {
        PortMap::None => None,
        PortMap::Refused(error) => Some(PortMappingStatus {
            error: Some(error.clone()),
            ..none
        }),
        PortMap::Mapped(external, protocol) => Some(PortMappingStatus {
            external: Some(*external),
            protocol: Some((*protocol).to_owned()),
            ..none
        }),
    }
}

fn observers(core: &Core) -> Vec<StunStatus> {
    let all = core.engine.observers().into_iter();
    all.map(|observer| StunStatus {
        server: observer.server,
        observed: observer.observed,
    })
    .collect()
}

fn nat_mapping(core: &Core, agents: &[AgentStatus]) -> Option<NatMapping> {
    let gateways = agents.iter().flat_map(|agent| &agent.gateways);
    // All agents of a node attach from one socket.
    let mut seen = gateways
        .map(|gateway| (gateway.endpoint.clone(), gateway.observed))
        .collect::<BTreeMap<_, _>>()
        .into_values()
        .flatten()
        .collect::<Vec<_>>();
    seen.extend(core.engine.observers().iter().filter_map(|o| o.observed));
    // At one address two ports may see us alike and others differently (RFC 4787 section 4.1).
    let beside = core.engine.seen_beside().filter(|at| !seen.contains(at));
    seen.extend(beside.collect::<Vec<_>>());
    mapping(&seen).map(|mapping| match mapping {
        Mapping::EndpointDependent => NatMapping::EndpointDependent,
        Mapping::EndpointIndependent => NatMapping::EndpointIndependent,
    })
}

fn agent(
    core: &Core,
    local: OverlayIp,
    registry: RegistryStatus,
    device: Option<(String, Option<u32>)>,
) -> Option<AgentStatus> {
    let membership = core.engine.membership(local)?;
    let name = core.engine.name(local)?;
    let views = core.engine.gateways(local).into_iter();
    Some(AgentStatus {
        network: name.network().clone(),
        name: name.to_string(),
        id: membership.id(),
        address: local,
        network_id: membership.network,
        membership: validity(membership),
        registry,
        gateway: core
            .engine
            .gateway(local)
            .map(|view| gateway(core, local, &view)),
        gateways: views.map(|view| gateway(core, local, &view)).collect(),
        program: device.as_ref().and_then(|(_, program)| *program),
        device: device.map(|(name, _)| name),
        apart: membership.placement.apart,
        bound: membership.placement.bound.clone(),
        peers: u32::try_from(core.engine.peers(local, now()).len()).unwrap_or(u32::MAX),
        pending: u32::try_from(membership.incoming.len()).unwrap_or(u32::MAX),
    })
}

fn validity(membership: &Membership) -> MembershipStatus {
    let chain = Chain::parse(&membership.chain).ok();
    let admission = chain.as_ref().and_then(Chain::admission);
    let last = chain.as_ref().and_then(|chain| chain.grants().last());
    let since = admission
        .map(Statement::issued)
        .or_else(|| last.map(Statement::issued));
    let expires = membership.member(clock::unix()).map(|m| m.expires);
    let lapsed = admission.map(Statement::expires).unwrap_or_default();
    MembershipStatus {
        since: since.unwrap_or_default(),
        expires: expires.unwrap_or(lapsed),
        renews: admission.is_some(),
    }
}

fn gateway(core: &Core, local: OverlayIp, view: &GatewayView) -> GatewayStatus {
    let state = match view.state {
        State::Attached => LinkState::Connected,
        State::Attaching | State::Handshaking | State::Waiting | State::Detached => {
            LinkState::Connecting
        }
        State::Displaced => LinkState::Displaced,
    };
    let carrier = view.endpoint.map(Carrier::of).unwrap_or_default();
    let (by, proxy) = match core.carriers().and_then(|all| all.state(&view.id)) {
        Some(carriers::State::Connected { target, proxy }) if carrier == Carrier::Wss => {
            (Some(target), proxy)
        }
        Some(_) | None => (None, None),
    };
    let of_udp = view.endpoint.filter(|at| !is_carrier(*at));
    GatewayStatus {
        id: view.id,
        carrier,
        proxy,
        endpoint: of_udp
            .map(|at| at.to_string())
            .or(by)
            .or_else(|| announced(core, local, &view.id))
            .unwrap_or_default(),
        state: if view.refused.is_some() {
            LinkState::Refused
        } else {
            state
        },
        since: wall(view.since),
        // Port 0 is nowhere: nobody sees us by a connection.
        observed: view.observed.filter(|at| at.port() != 0),
        rtt_ms: view.rtt.map(|rtt| rtt.as_secs_f64() * 1000.0),
    }
}

/// Where the gateway's statement says it is, for as long as no attachment shows it.
fn announced(core: &Core, local: OverlayIp, gateway: &Did) -> Option<String> {
    let statement = core.engine.membership(local)?.gateways.get(gateway)?;
    statement.claims().udp.first().cloned()
}

pub(super) fn peers(core: &Core, agent: Option<&str>) -> Result<Peers, Problem> {
    let (mut peers, mut plain) = (Vec::new(), Vec::new());
    for local in meant(core, agent)? {
        let Some(own) = core.engine.name(local) else {
            continue;
        };
        plain.extend(wireguard::of_agent(core, local));
        let views = core.engine.peers(local, now());
        peers.extend(views.into_iter().map(|view| peer(&own, &view)));
    }
    Ok(Peers {
        now: clock::unix(),
        peers,
        wireguard: plain,
    })
}

fn peer(own: &FullName, view: &PeerView) -> Peer {
    Peer {
        name: view.name.to_string(),
        id: view.id,
        address: view.address,
        agent: own.to_string(),
        state: session(view.state),
        path: view.path.map(path_kind),
        suite: view.suite,
        last_handshake: view.stats.last_handshake.map(wall),
        last_inbound: view.stats.last_received.map(wall),
        rx_bytes: view.stats.received,
        tx_bytes: view.stats.sent,
        inbound: view.inbound.first().cloned(),
        outbound: Some(view.outbound.clone()),
    }
}

pub(in crate::node) const fn session(state: PeerState) -> SessionState {
    match state {
        PeerState::Idle => SessionState::None,
        PeerState::Handshaking => SessionState::Handshaking,
        PeerState::Up => SessionState::Up,
    }
}

/// Tells who has an address; with `end` as the agent that it talks to knows it.
pub(super) fn whois(core: &Core, query: WhoisQuery) -> Result<Whois, Problem> {
    let end = query.end.map(OverlayIp::new).transpose();
    match end {
        Ok(Some(end)) => whois_of(core, &[end], query.address),
        Ok(None) => {
            let all = core.engine.locals().collect::<Vec<_>>();
            whois_of(core, &all, query.address)
        }
        Err(error) => Err(Problem::with(Code::BadRequest, error)),
    }
}

/// Tells who has an address, as some of our agents know it.
pub(super) fn whois_of(
    core: &Core,
    locals: &[OverlayIp],
    address: Ipv6Addr,
) -> Result<Whois, Problem> {
    let unknown = || {
        let what = format!("{address} is no agent that is known here");
        Problem::with(Code::NotFound, what)
    };
    let wanted = OverlayIp::new(address).map_err(|_| unknown())?;
    for local in locals.iter().copied() {
        let Some(membership) = core.engine.membership(local) else {
            continue;
        };
        if local == wanted {
            return own(core, local, membership).ok_or_else(unknown);
        }
        let trusted = membership.trusted(clock::unix());
        let Some(found) = trusted.into_iter().find(|t| t.member.address == wanted) else {
            continue;
        };
        let name = core.engine.by_address(local, wanted).ok_or_else(unknown)?;
        return Ok(Whois {
            name: name.to_string(),
            id: found.member.agent,
            address: wanted,
            network: found.member.label.clone(),
            network_id: found.member.network,
            local: false,
            tags: found.member.authority.tags.iter().cloned().collect(),
            membership_expires: found.member.expires,
            inbound: found.inbound.first().cloned(),
            outbound: Some(found.outbound),
        });
    }
    Err(unknown())
}

fn own(core: &Core, local: OverlayIp, membership: &Membership) -> Option<Whois> {
    let member = membership.member(clock::unix()).ok()?;
    Some(Whois {
        name: core.engine.name(local)?.to_string(),
        id: member.agent,
        address: local,
        network: member.label,
        network_id: member.network,
        local: true,
        tags: member.authority.tags.iter().cloned().collect(),
        membership_expires: member.expires,
        inbound: None,
        outbound: None,
    })
}

pub(super) fn pending(core: &Core, agent: Option<&str>) -> Result<Pending, Problem> {
    let (mut incoming, mut outgoing) = (Vec::new(), Vec::new());
    for local in meant(core, agent)? {
        let (Some(membership), Some(own)) =
            (core.engine.membership(local), core.engine.name(local))
        else {
            continue;
        };
        let full =
            |name: &crate::id::MemberName| name.full(own.network(), &membership.suffix).to_string();
        for (did, request) in &membership.incoming {
            let Some(name) = membership.name_of(did) else {
                continue;
            };
            incoming.push(PendingRequest {
                name: full(&name),
                id: Some((*did).into()),
                address: membership.prefix.address_of(&(*did).into()).ok(),
                agent: own.to_string(),
                offers: request.claims().inbound.clone(),
                reason: request.claims().reason.clone(),
                since: request.issued(),
                expires: request.expires(),
            });
        }
        for request in membership.outgoing.values() {
            outgoing.push(PendingRequest {
                name: full(&request.claims().to),
                id: None,
                address: None,
                agent: own.to_string(),
                offers: request.claims().inbound.clone(),
                reason: request.claims().reason.clone(),
                since: request.issued(),
                expires: request.expires(),
            });
        }
    }
    Ok(Pending {
        now: clock::unix(),
        incoming,
        outgoing,
    })
}

pub(super) fn trust(core: &Core, agent: Option<&str>) -> Result<TrustList, Problem> {
    let mut trust = Vec::new();
    for local in meant(core, agent)? {
        let (Some(membership), Some(own)) =
            (core.engine.membership(local), core.engine.name(local))
        else {
            continue;
        };
        let mut peers = BTreeMap::new();
        for did in membership.given.keys().chain(membership.received.keys()) {
            peers.insert(*did, ());
        }
        trust.extend(
            peers
                .keys()
                .filter_map(|did| consents(membership, &own, did)),
        );
    }
    Ok(TrustList {
        now: clock::unix(),
        trust,
    })
}

fn consents(membership: &Membership, own: &FullName, did: &Did) -> Option<Trust> {
    let given = membership.given.get(did).and_then(consent);
    let received = membership.received.get(did).and_then(consent);
    if given.is_none() && received.is_none() {
        return None;
    }
    let name = membership.name_of(did);
    let name = name.map(|name| name.full(own.network(), &membership.suffix).to_string());
    Some(Trust {
        name: name.unwrap_or_else(|| did.to_string()),
        id: (*did).into(),
        agent: own.to_string(),
        given,
        received,
    })
}

fn consent(consent: &Statement<Consent>) -> Option<ConsentView> {
    let claims = consent.claims();
    let active = claims.state == ConsentState::Active && clock::unix() < consent.expires();
    active.then(|| ConsentView {
        scope: claims.inbound.clone(),
        since: consent.issued(),
        expires: consent.expires(),
    })
}

pub(super) fn auto(core: &Core, agent: Option<&str>) -> Result<AutoRules, Problem> {
    let mut rules = Vec::new();
    for local in meant(core, agent)? {
        let Some(membership) = core.engine.membership(local) else {
            continue;
        };
        let own = core.engine.name(local).map(|name| name.to_string());
        for rule in &membership.auto {
            let from = match &rule.from {
                Selector::Name(pattern) => AutoFrom::Name(pattern.clone()),
                Selector::Tag(tag) => AutoFrom::Tag(tag.clone()),
            };
            let allow: Scope = rule.allow.clone();
            rules.push(AutoRule {
                agent: own.clone(),
                from,
                allow,
            });
        }
    }
    Ok(AutoRules { rules })
}

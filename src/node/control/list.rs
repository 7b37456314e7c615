use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
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
    control::{choose, path_kind, wireguard},
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
        RegistryStatus, SessionState, Status, StunStatus, Trust, TrustList, Warning, Whois,
    },
    problem::{Code, Problem},
};
use crate::wire::carrier::{Carrier, is_carrier};

/// How long a peer is asked in vain before that is told: a restart of its node is over by then.
const SILENCE: Duration = Duration::from_secs(5);

/// Returns the agents meant by `agent`: the one named, or all.
pub(super) fn meant(core: &Core, agent: Option<&str>) -> Result<Vec<OverlayIp>, Problem> {
    match agent {
        Some(_) => Ok(vec![choose(core, agent)?]),
        None => Ok(core.engine.locals().collect()),
    }
}

/// Turns a moment of the monotonic clock into wall time.
pub(super) fn wall(at: Instant) -> UnixTime {
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
    let (port, dns, started) = (node.port, node.dns, node.started);
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
        let mut warnings = warnings(core, &agents);
        warnings.extend(agents.iter().filter_map(|agent| deaf_warning(agent, &deaf)));
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            now: clock::unix(),
            started,
            pid: std::process::id(),
            udp: vec![
                (Ipv4Addr::UNSPECIFIED, port).into(),
                (Ipv6Addr::UNSPECIFIED, port).into(),
            ],
            dns: dns.as_str().to_owned(),
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
    device: Option<String>,
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
        device,
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

/// What needs a person, most urgent first.
fn warnings(core: &Core, agents: &[AgentStatus]) -> Vec<Warning> {
    let mut all = Vec::new();
    if let Some(why) = core.unsaved() {
        let text = format!("the state cannot be written: {why}");
        let cure = "free space or mend the disk; changes since then are lost when agentnet stops";
        all.push(warning("state_unsaved", text, cure));
    }
    if agents.is_empty() {
        let cure = "join a network: agentnet join --token-file FILE";
        all.push(warning("no_agent", "no agent joined yet".to_owned(), cure));
    }
    let time = clock::unix();
    for agent in agents {
        all.extend(membership_warning(agent, time));
        all.extend(device_warning(agent));
        all.extend(registry_warning(agent));
        all.extend(withheld_warning(core, agent));
        all.extend(gateway_warning(agent));
        all.extend(carrier_warning(core, agent));
        all.extend(silence_warning(core, agent));
    }
    all
}

fn warning(code: &str, text: String, cure: &str) -> Warning {
    Warning {
        code: code.to_owned(),
        text,
        cure: cure.to_owned(),
    }
}

fn membership_warning(agent: &AgentStatus, time: UnixTime) -> Option<Warning> {
    let (name, membership) = (&agent.name, &agent.membership);
    if time >= membership.expires {
        let cure = "join again with a new token from the network's owner";
        let text = format!("{name} is no member any more");
        return Some(warning("membership_lapsed", text, cure));
    }
    membership.lapses_soon(time).then(|| {
        let text = format!("the membership of {name} ends {}", membership.expires);
        let cure = "see that the registry is reachable, or ask the owner for a new grant";
        warning("membership_lapses", text, cure)
    })
}

fn device_warning(agent: &AgentStatus) -> Option<Warning> {
    agent.device.is_none().then(|| {
        let text = format!("{} has no network device", agent.name);
        let cure = "the daemon's log says why; one that was taken away is tried again every 5 s, else \
                    restart agentnet";
        warning("no_device", text, cure)
    })
}

fn deaf_warning(agent: &AgentStatus, deaf: &BTreeMap<OverlayIp, String>) -> Option<Warning> {
    let why = deaf.get(&agent.address)?;
    let text = format!(
        "names are not answered at the address of {}: {why}",
        agent.name
    );
    let cure = "other agents of this host answer for it; stop what uses port 53 there and restart \
                agentnet";
    Some(warning("no_resolver", text, cure))
}

fn registry_warning(agent: &AgentStatus) -> Option<Warning> {
    if matches!(agent.registry.state, LinkState::Connected) {
        return None;
    }
    let why = agent.registry.error.as_deref().unwrap_or("connecting");
    let text = format!("{}: {why}", agent.name);
    let cure = "existing trust works meanwhile; check the registry and the way to it";
    Some(warning("registry_lost", text, cure))
}

fn withheld_warning(core: &Core, agent: &AgentStatus) -> Option<Warning> {
    let withheld = core.engine.withheld(agent.address, now());
    let peer = withheld.first()?;
    let peer = peer.as_ref().map(|name| format!(" {name}"));
    let text = format!(
        "{}: peer{} knew of a revocation that the registry did not tell",
        agent.name,
        peer.unwrap_or_default()
    );
    let cure = "it holds here; ask the registry's operator why it is kept back or was lost";
    Some(warning("revocation_withheld", text, cure))
}

/// Says that data does not pass, which a registry and a gateway that answer do not show.
fn silence_warning(core: &Core, agent: &AgentStatus) -> Option<Warning> {
    let time = now();
    let is_silent = |peer: &PeerView| peer.asked.is_some_and(|at| time.now >= at + SILENCE);
    let peers = core.engine.peers(agent.address, time);
    let mut silent = peers.iter().filter(|peer| is_silent(peer));
    let first = &silent.next()?.name;
    let others = match silent.count() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let text = format!(
        "{}: nothing comes from {first}{others}, though packets go there",
        agent.name
    );
    let cure = "see whether its node runs; agentnet path NAME shows which ways were tried";
    Some(warning("peer_silent", text, cure))
}

fn gateway_warning(agent: &AgentStatus) -> Option<Warning> {
    let name = &agent.name;
    let Some(gateway) = &agent.gateway else {
        let cure = "run a gateway in this domain: agentnet gateway init, then serve";
        let text = format!("{name} knows no gateway");
        return Some(warning("no_gateway", text, cure));
    };
    if matches!(gateway.state, LinkState::Connected) {
        return None;
    }
    if matches!(gateway.state, LinkState::Displaced) {
        let text = format!("{name} runs on another host, which attached later; it is at rest here");
        let cure = "if it moved, stop agentnet here; to have it back, restart agentnet here; if you \
                    know of no other host, its keys were stolen: have it revoked";
        return Some(warning("displaced", text, cure));
    }
    let at = &gateway.endpoint;
    let text = format!("{name} is not attached to the gateway at {at}");
    let cure = "check that the gateway runs and that UDP, or TCP port 443, to it is let through";
    Some(warning("gateway_lost", text, cure))
}

/// Says why a gateway that is not reached by UDP is not reached by WebSocket either.
fn carrier_warning(core: &Core, agent: &AgentStatus) -> Option<Warning> {
    let gateway = agent.gateway.as_ref()?;
    if matches!(gateway.state, LinkState::Connected) {
        return None;
    }
    match core.carriers()?.state(&gateway.id)? {
        carriers::State::Failed { code, text, cure } => {
            let text = format!("{}: no WebSocket to the gateway: {text}", agent.name);
            Some(warning(code, text, cure))
        }
        carriers::State::Connected { .. } | carriers::State::Connecting | carriers::State::Idle => {
            None
        }
    }
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

pub(super) const fn session(state: PeerState) -> SessionState {
    match state {
        PeerState::Idle => SessionState::None,
        PeerState::Handshaking => SessionState::Handshaking,
        PeerState::Up => SessionState::Up,
    }
}

pub(super) fn whois(core: &Core, address: Ipv6Addr) -> Result<Whois, Problem> {
    let unknown = || {
        let what = format!("{address} is no agent that is known here");
        Problem::with(Code::NotFound, what)
    };
    let wanted = OverlayIp::new(address).map_err(|_| unknown())?;
    for local in core.engine.locals().collect::<Vec<_>>() {
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

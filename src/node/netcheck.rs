//! Finds out what the network this host is in does to agents: `agentnet netcheck`.
//!
//! It has sockets of its own, so it needs no running node and disturbs none: the NAT before this host
//! treats them like the node's.

mod ask;
mod behaviour;
mod findings;
mod web;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{
    net::{UdpSocket, lookup_host},
    time::timeout,
};

use crate::config::{NodeConfig, PathSettings, SearchSettings};
use crate::engine::membership::Membership;
use crate::id::{Did, UnixTime};
use crate::node::carriers;
use crate::node::driver::Core;
use crate::node::netcheck::ask::{Answer, Asker, Question};
use crate::node::settle::wants_mapping;
use crate::node::store;
use crate::os::files::FileError;
use crate::os::wss::Proxies;
use crate::os::{clock, link::Links, portmap, underlay};
use crate::wire::api::local::{
    Netcheck, NetcheckFamily, NetcheckGateway, NetcheckRegistry, NetcheckServer, NetcheckTargets,
    PortMappingStatus,
};

/// Longest look-up of all names.
const LOOK_UP: Duration = Duration::from_secs(2);

/// Longest wait for what a router does; one that answers takes milliseconds.
const ROUTER: Duration = Duration::from_millis(8500);

/// Most that is asked of each kind, so that a check stays short.
const MAX_SERVERS: usize = 16;
const MAX_URLS: usize = 4;

/// What a check is made with.
#[derive(Debug)]
pub struct Plan {
    pub targets: NetcheckTargets,
    /// Whether a running node named the targets.
    pub daemon: bool,
    proxies: Proxies,
    asks_router: bool,
}

impl Plan {
    /// Makes a plan by the settings; the error tells why the proxy cannot be used.
    pub fn new(
        config: &NodeConfig,
        targets: NetcheckTargets,
        daemon: bool,
    ) -> Result<Self, String> {
        Ok(Self {
            targets: with_settings(targets, &config.path, &config.search),
            daemon,
            proxies: carriers::proxies(&config.wss)?,
            asks_router: wants_mapping(&config.path),
        })
    }
}

/// Reads whom to ask from the state on disk, for a host whose daemon does not run.
pub fn stored(config: &NodeConfig) -> Result<NetcheckTargets, FileError> {
    let state = store::read(&config.state)?;
    let memberships = state.memberships.iter().collect::<Vec<_>>();
    Ok(targets(&memberships, clock::unix()))
}

/// Returns whom a running node knows of.
pub(super) fn known(core: &Core) -> NetcheckTargets {
    let locals = core.engine.locals();
    let memberships = locals.filter_map(|local| core.engine.membership(local));
    let memberships = memberships.collect::<Vec<_>>();
    let observers = core.engine.observers().into_iter();
    NetcheckTargets {
        stun: observers.map(|observer| observer.server).collect(),
        ..targets(&memberships, clock::unix())
    }
}

/// Returns whom agents' memberships name.
fn targets(memberships: &[&Membership], now: UnixTime) -> NetcheckTargets {
    let mut found = NetcheckTargets::default();
    for membership in memberships {
        let registry = NetcheckRegistry {
            url: membership.url.clone(),
            pin: membership.pin.clone(),
            domain: membership.domain,
        };
        if !found.registries.contains(&registry) {
            found.registries.push(registry);
        }
        let valid = membership.gateways.values();
        for gateway in valid.filter(|gateway| now < gateway.expires()) {
            let named = NetcheckGateway {
                id: Some(gateway.subject()),
                udp: gateway.claims().udp.clone(),
                wss: gateway.claims().wss.clone(),
            };
            if !found.gateways.contains(&named) {
                found.gateways.push(named);
            }
        }
    }
    found
}

fn with_settings(
    mut targets: NetcheckTargets,
    path: &PathSettings,
    search: &SearchSettings,
) -> NetcheckTargets {
    for server in &path.stun {
        if !targets.stun.contains(server) {
            targets.stun.push(*server);
        }
    }
    let is_known = |udp: &String| targets.gateways.iter().any(|one| one.udp.contains(udp));
    let named = search.discover.iter().filter(|udp| !is_known(udp));
    let named = named.cloned().collect::<Vec<_>>();
    if !named.is_empty() {
        targets.gateways.push(NetcheckGateway {
            id: None,
            udp: named,
            wss: Vec::new(),
        });
    }
    targets
}

/// Checks; takes some 10 s at most.
pub async fn run(plan: &Plan) -> Netcheck {
    let begun = clock::now();
    let wss = plan
        .targets
        .gateways
        .iter()
        .flat_map(|gateway| &gateway.wss);
    let wss = wss.take(MAX_URLS).cloned().collect::<Vec<_>>();
    let registries = plan.targets.registries.iter().take(MAX_URLS);
    let registries = registries.cloned().collect::<Vec<_>>();
    let hosts = hosts(&plan.targets);
    let (udp, wss, registries, captive_portal, port_mapping) = tokio::join!(
        datagrams(&plan.targets),
        web::websockets(&wss, &plan.proxies),
        web::registries(&registries),
        web::portal(&hosts),
        router(plan.asks_router),
    );
    let (servers, ipv4, ipv6) = udp;
    let mut check = Netcheck {
        now: clock::unix(),
        daemon: plan.daemon,
        took_ms: begun.elapsed().as_secs_f64() * 1e3,
        ipv4,
        ipv6,
        servers,
        proxy: wss.iter().find_map(|wss| wss.proxy.clone()),
        wss,
        registries,
        port_mapping,
        captive_portal,
        findings: Vec::new(),
    };
    check.findings = findings::findings(&check);
    check
}

/// Tells whether no gateway is reached in any way, though some are known.
pub fn is_cut_off(check: &Netcheck) -> bool {
    findings::is_cut_off(check)
}

/// Returns the hosts that are ours, each once, without ports.
fn hosts(targets: &NetcheckTargets) -> Vec<String> {
    let registries = targets.registries.iter().filter_map(|registry| {
        let (_, rest) = registry.url.split_once("://")?;
        rest.split('/').next()
    });
    let gateways = targets.gateways.iter().flat_map(|gateway| &gateway.udp);
    let mut found = Vec::new();
    for at in registries.chain(gateways.map(String::as_str)) {
        let host = match at.parse::<SocketAddr>() {
            Ok(at) => at.ip().to_string(),
            Err(_) => {
                let bare = at.trim_matches(['[', ']']);
                let is_ip = bare.parse::<IpAddr>().is_ok();
                let name = at.rsplit_once(':').map_or(at, |(host, _)| host);
                if is_ip { bare } else { name }.to_owned()
            }
        };
        if !found.contains(&host) && found.len() < MAX_URLS {
            found.push(host);
        }
    }
    found
}

/// A server with what it said.
type Said = (Named, Option<Answer>);

/// A server's endpoint.
#[derive(Clone, Debug)]
struct Named {
    at: SocketAddr,
    name: String,
    gateway: Option<Did>,
    /// Whether it is a gateway, so that it answers long requests.
    is_gateway: bool,
}

async fn datagrams(
    targets: &NetcheckTargets,
) -> (Vec<NetcheckServer>, NetcheckFamily, NetcheckFamily) {
    let named = look_up(targets).await;
    let of = |v4: bool| {
        let mine = named.iter().filter(move |one| one.at.is_ipv4() == v4);
        mine.cloned().collect::<Vec<_>>()
    };
    let (v4, v6) = tokio::join!(family(of(true)), family(of(false)));
    let (mut said, ipv4) = v4;
    said.extend(v6.0);
    said.sort_by_key(|(_, answer)| (answer.is_none(), answer.map(|answer| answer.rtt)));
    let servers = said.into_iter().map(|(named, answer)| NetcheckServer {
        at: named.at,
        name: named.name,
        gateway: named.gateway,
        rtt_ms: answer.map(|answer| answer.rtt.as_secs_f64() * 1e3),
        observed: answer.map(|answer| answer.mapped),
        other: answer.and_then(|answer| answer.origin.other),
    });
    (servers.collect(), ipv4, v6.1)
}

async fn look_up(targets: &NetcheckTargets) -> Vec<Named> {
    let gateways = targets.gateways.iter();
    let names = gateways.flat_map(|gateway| gateway.udp.iter().map(|name| (name, gateway.id)));
    let found = names.map(async |(name, gateway)| {
        let found = timeout(LOOK_UP, lookup_host(name)).await;
        let found = found.ok().and_then(Result::ok).into_iter().flatten();
        let named = found.map(|at| Named {
            at,
            name: name.clone(),
            gateway,
            is_gateway: true,
        });
        named.collect::<Vec<_>>()
    });
    let mut all = join_all(found).await.concat();
    all.extend(targets.stun.iter().map(|at| Named {
        at: *at,
        name: at.to_string(),
        gateway: None,
        is_gateway: false,
    }));
    all.truncate(MAX_SERVERS);
    all
}

/// Finds out all about one IP version.
async fn family(servers: Vec<Named>) -> (Vec<Said>, NetcheckFamily) {
    let nothing = NetcheckFamily::default();
    let Some(first) = servers.first() else {
        return (Vec::new(), nothing);
    };
    let address = source(first.at).await;
    let family = NetcheckFamily {
        address,
        udp: Some(false),
        ..nothing
    };
    let Ok(asker) = Asker::open(first.at.is_ipv4()) else {
        return (servers.into_iter().map(|one| (one, None)).collect(), family);
    };
    let questions = servers.iter().map(|one| Question::whereabouts(one.at));
    let outcomes = asker.ask(&questions.collect::<Vec<_>>()).await;
    let answers = outcomes.iter().map(ask::Outcome::answer);
    let said = servers.into_iter().zip(answers).collect::<Vec<Said>>();
    let family = match behaviour(&asker, address, &said).await {
        Ok(Some(found)) => found,
        Ok(None) => family,
        Err(error) => {
            tracing::debug!(%error, "Not checked");
            family
        }
    };
    (said, family)
}

/// Finds out how the NAT behaves; None where no server answers.
async fn behaviour(
    asker: &Asker,
    address: Option<IpAddr>,
    said: &[Said],
) -> io::Result<Option<NetcheckFamily>> {
    let answered = said
        .iter()
        .filter_map(|(named, answer)| Some((named, (*answer)?)));
    let mut nearest = answered.clone().collect::<Vec<_>>();
    nearest.sort_by_key(|(_, answer)| answer.rtt);
    let Some((server, answer)) = nearest.first().map(|(named, answer)| (named.at, *answer)) else {
        return Ok(None);
    };
    let port = asker.port()?;
    let own = address.map(|ip| SocketAddr::new(ip, port));
    let is_nat = own.map(|own| own != answer.mapped);
    let told = nearest
        .iter()
        .find(|(_, answer)| answer.origin.other.is_some());
    let told = told.map(|(named, answer)| (named.at, *answer));
    let seen = answered.map(|(named, answer)| (named.at, answer.mapped));
    let seen = seen.collect::<Vec<_>>();
    let gateway = nearest.iter().find(|(named, _)| named.is_gateway);
    let gateway = gateway.map(|(named, _)| named.at);
    let asks_others = told.map_or(server, |(at, _)| at);
    let (mapping, filtering, hairpin, mtu) = tokio::join!(
        behaviour::mapping(asker, told, &seen),
        behaviour::filtering(asks_others),
        async {
            match is_nat {
                Some(true) => behaviour::hairpin(server).await,
                Some(false) | None => Ok(None),
            }
        },
        async {
            match gateway {
                Some(gateway) => behaviour::mtu(gateway).await,
                None => Ok(None),
            }
        },
    );
    Ok(Some(NetcheckFamily {
        address,
        udp: Some(true),
        observed: Some(answer.mapped),
        nat: is_nat,
        mapping: mapping.filter(|_| is_nat != Some(false)),
        port_kept: is_nat.map(|_| answer.mapped.port() == port),
        filtering: filtering?,
        hairpin: hairpin?,
        mtu: mtu?,
    }))
}

/// Returns the address that datagrams to `server` leave from; sends none to find out.
async fn source(server: SocketAddr) -> Option<IpAddr> {
    let any = if server.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let socket = UdpSocket::bind(any).await.ok()?;
    socket.connect(server).await.ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// Has the router map a port for a moment, and tells how that went; None when it is not to be asked.
async fn router(asks: bool) -> Option<PortMappingStatus> {
    if !asks {
        return None;
    }
    let mut status = PortMappingStatus {
        external: None,
        protocol: None,
        error: None,
    };
    let tried = timeout(ROUTER, try_router()).await;
    match tried.unwrap_or_else(|_elapsed| Err("the router gave no answer in time".to_owned())) {
        Ok((external, protocol)) => {
            status.external = Some(external);
            status.protocol = Some(protocol.to_owned());
        }
        Err(error) => status.error = Some(error),
    }
    Some(status)
}

async fn try_router() -> Result<(SocketAddr, &'static str), String> {
    let links = Links::open().map_err(|error| error.to_string())?;
    let routes = links.routes().await.map_err(|error| error.to_string())?;
    let router = underlay::default_router(&routes).ok_or("there is no router")?;
    // Held until the mapping is gone, so that it leads to nobody else.
    let socket = UdpSocket::bind("0.0.0.0:0").await;
    let socket = socket.map_err(|error| error.to_string())?;
    let port = socket.local_addr().map_err(|error| error.to_string())?;
    let port = NonZeroU16::new(port.port()).ok_or("there is no port")?;
    let mapping = portmap::open_briefly(router, port).await;
    let mapping = mapping.map_err(|error| error.to_string())?;
    let found = (mapping.external(), mapping.protocol().as_str());
    mapping.close().await;
    Ok(found)
}

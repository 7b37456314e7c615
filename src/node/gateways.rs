//! Looks up where gateways are: their statements name hosts, the engine wants addresses.
//!
//! All of them are looked up, and the engine chooses. An agent that is attached to none looks elsewhere
//! too, as the settings say; whatever is found ends in the same attachment.

mod ask;
mod search;
mod srv;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures_util::FutureExt as _;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tracing::debug;

use crate::config::SearchSettings;
use crate::engine::Forwarded;
use crate::id::{Did, OverlayIp};
use crate::node::driver::{Core, Handle, Stopped, now};
use crate::node::gateways::search::Search;
use crate::os::clock;
use crate::statement::{Gateway, Statement};

/// Longest look-up of one host name.
const LOOK_UP: Duration = Duration::from_secs(5);

/// First pause before a look-up that found nothing is tried again: the host's nameserver may be our
/// own resolver, which is about to start. Doubled up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// Addresses taken from one host name.
const MAX_ADDRESSES: usize = 8;

/// Pause before a host that is attached to no gateway looks for one elsewhere than the registry says:
/// mostly it is attached by then. Doubled up to [`MAX_SEARCH_PAUSE`].
const SEARCH_PAUSE: Duration = Duration::from_secs(1);
const MAX_SEARCH_PAUSE: Duration = Duration::from_secs(60);

/// Where gateways are that offered themselves, by what they were asked at.
type Offers = BTreeMap<Did, SocketAddr>;

/// Serves the agents that come out of `wanted` until the daemon stops.
pub(super) async fn run(
    handle: Handle,
    mut wanted: mpsc::Receiver<OverlayIp>,
    search: SearchSettings,
) {
    let search = Arc::new(Search::new(search));
    // Apart, so that one slow name does not hold up the other agents; all end with this task.
    let mut attaching = JoinSet::new();
    let mut under_way = BTreeMap::<OverlayIp, Arc<Notify>>::new();
    loop {
        tokio::select! {
            local = wanted.recv() => match local {
                // What is looked at now may be the statement before this one.
                Some(local) => match under_way.entry(local) {
                    Entry::Occupied(found) => found.get().notify_one(),
                    Entry::Vacant(place) => {
                        let news = place.insert(Arc::default());
                        let (handle, search) = (handle.clone(), Arc::clone(&search));
                        attaching.spawn(attach(handle, local, search, Arc::clone(news)));
                    }
                },
                None => return,
            },
            Some(Ok((local, news))) = attaching.join_next() => {
                under_way.remove(&local);
                // One that came while the task ended.
                if news.notified().now_or_never().is_some() {
                    let (handle, search) = (handle.clone(), Arc::clone(&search));
                    under_way.insert(local, Arc::clone(&news));
                    attaching.spawn(attach(handle, local, search, news));
                }
            }
        }
    }
}

async fn attach(
    handle: Handle,
    local: OverlayIp,
    search: Arc<Search>,
    news: Arc<Notify>,
) -> (OverlayIp, Arc<Notify>) {
    let mut offers = Offers::new();
    // None only when the daemon stops.
    let _stopped = look(&handle, local, &search, &news, &mut offers).await;
    (local, news)
}

/// Looks until all gateways that are known were found and, where there is elsewhere to look, the agent
/// is attached to one.
async fn look(
    handle: &Handle,
    local: OverlayIp,
    search: &Search,
    news: &Notify,
    offers: &mut Offers,
) -> Result<(), Stopped> {
    let (mut pause, mut search_at) = (FIRST_PAUSE, clock::now() + SEARCH_PAUSE);
    let mut search_pause = SEARCH_PAUSE;
    loop {
        let is_complete = attach_once(handle, local, offers).await?;
        let is_found = search.is_empty() || is_attached(handle, local).await?;
        if is_complete && is_found {
            return Ok(());
        }
        let search_in = search_at.saturating_duration_since(clock::now());
        let wait = if is_complete {
            search_in
        } else {
            pause.min(search_in.max(FIRST_PAUSE))
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = news.notified() => {}
            () = search.hinted(), if !is_found => search_at = clock::now(),
        }
        pause = (pause * 2).min(MAX_PAUSE);
        if clock::now() >= search_at && !search.is_empty() && !is_attached(handle, local).await? {
            offers.extend(find(handle, local, search).await?);
            search_pause = (search_pause * 2).min(MAX_SEARCH_PAUSE);
            search_at = clock::now() + search_pause;
        }
    }
}

async fn is_attached(handle: &Handle, local: OverlayIp) -> Result<bool, Stopped> {
    // One that left meanwhile looks for nothing.
    let is = move |core: &mut Core| {
        core.engine.membership(local).is_none() || core.engine.is_attached(local)
    };
    handle.call(is).await
}

/// Asks wherever gateways may be, and returns where those are whose statements hold.
async fn find(handle: &Handle, local: OverlayIp, search: &Search) -> Result<Offers, Stopped> {
    let agent = move |core: &mut Core| core.engine.membership(local).map(|m| m.id().did());
    let Some(agent) = handle.call(agent).await? else {
        return Ok(Offers::new());
    };
    let mut found = Offers::new();
    for offered in search.ask(agent, local).await {
        let text = offered.statement.clone();
        let take = move |core: &mut Core| {
            let taken = core
                .engine
                .handle_statement(local, Forwarded::Gateway, &text, now());
            let subject = Statement::<Gateway>::open(&text).map(|gateway| gateway.subject());
            taken.map(|()| subject.ok())
        };
        match (handle.call(take).await?, offered.from) {
            (Ok(Some(gateway)), Some(from)) => {
                found.insert(gateway, from);
            }
            (Ok(_), _) => debug!("A gateway of a link offered itself"),
            (Err(refused), _) => debug!(%refused, "An offer does not hold"),
        }
    }
    Ok(found)
}

/// Tells the engine where an agent's gateways are; false when some were not found.
async fn attach_once(handle: &Handle, local: OverlayIp, offers: &Offers) -> Result<bool, Stopped> {
    let wanted = handle.call(move |core| current(core, local)).await?;
    let mut looking = JoinSet::new();
    for (gateway, hosts, wss) in wanted {
        let offered = offers.get(&gateway).copied();
        looking.spawn(async move {
            let mut endpoints = look_up(hosts).await;
            // Last, since it may be an address of several gateways.
            endpoints.extend(offered.filter(|at| !endpoints.contains(at)));
            (gateway, endpoints, wss)
        });
    }
    let (mut found, mut is_complete) = (Vec::new(), true);
    while let Some(Ok((gateway, mut endpoints, wss))) = looking.join_next().await {
        endpoints.retain(|endpoint| is_underlay(*endpoint, local));
        is_complete &= !endpoints.is_empty();
        found.push((gateway, endpoints, wss));
    }
    let set = move |core: &mut Core| {
        let found = with_carriers(core, local, found);
        // None is known before the first statement, which brings another event.
        if found.is_empty() {
            return Ok(());
        }
        core.engine.set_gateways(local, found, now())
    };
    if let Err(refused) = handle.call(set).await? {
        debug!(agent = %local, reason = %refused, "Not attached");
    }
    Ok(is_complete)
}

/// Adds to where gateways are by UDP what stands for their WebSockets; those that are nowhere are left out.
fn with_carriers(
    core: &mut Core,
    local: OverlayIp,
    found: Vec<(Did, Vec<SocketAddr>, Vec<String>)>,
) -> Vec<(Did, Vec<SocketAddr>)> {
    let domain = local.network().domain();
    let all = found.into_iter().map(|(gateway, udp, wss)| {
        let endpoints = match core.carriers_mut() {
            Some(carriers) => carriers.endpoints(gateway, &wss, udp, domain),
            None => udp,
        };
        (gateway, endpoints)
    });
    all.filter(|(_, endpoints)| !endpoints.is_empty()).collect()
}

/// Tells whether an endpoint is none of the overlay, through which the underlay is never reached.
fn is_underlay(endpoint: SocketAddr, local: OverlayIp) -> bool {
    match endpoint.ip() {
        IpAddr::V4(_) => true,
        IpAddr::V6(ip) => {
            OverlayIp::new(ip).map_or(true, |ip| ip.network().domain() != local.network().domain())
        }
    }
}

async fn look_up(hosts: Vec<String>) -> Vec<SocketAddr> {
    let mut endpoints = Vec::new();
    for host in hosts {
        let found = tokio::time::timeout(LOOK_UP, tokio::net::lookup_host(&host)).await;
        match found {
            Ok(Ok(addresses)) => endpoints.extend(addresses.take(MAX_ADDRESSES)),
            Ok(Err(error)) => debug!(%host, %error, "Gateway host not found"),
            Err(_elapsed) => debug!(%host, "Looking up the gateway host took too long"),
        }
    }
    endpoints
}

/// Returns the gateways whose statements have not expired, the hosts they name, and their WebSockets.
fn current(core: &Core, local: OverlayIp) -> Vec<(Did, Vec<String>, Vec<String>)> {
    let Some(membership) = core.engine.membership(local) else {
        return Vec::new();
    };
    let now = membership.clock(clock::unix());
    let all = membership.gateways.values();
    let valid = all.filter(|gateway| now < gateway.expires());
    valid
        .map(|gateway| {
            let Gateway { udp, wss, .. } = gateway.claims();
            (gateway.subject(), udp.clone(), wss.clone())
        })
        .collect()
}

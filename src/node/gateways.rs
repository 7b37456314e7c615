//! Looks up where gateways are: their statements name hosts, the engine wants addresses.
//!
//! All of them are looked up, and the engine chooses.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::debug;

use crate::id::{Did, OverlayIp};
use crate::node::driver::{Core, Handle, Stopped, now};
use crate::os::clock;
use crate::statement::Gateway;

/// Longest look-up of one host name.
const LOOK_UP: Duration = Duration::from_secs(5);

/// First pause before a look-up that found nothing is tried again: the host's nameserver may be our
/// own resolver, which is about to start. Doubled up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// Addresses taken from one host name.
const MAX_ADDRESSES: usize = 8;

/// Serves the agents that come out of `wanted` until the daemon stops.
pub(super) async fn run(handle: Handle, mut wanted: mpsc::Receiver<OverlayIp>) {
    // Apart, so that one slow name does not hold up the other agents; all end with this task.
    let mut attaching = JoinSet::new();
    let mut under_way = BTreeSet::new();
    let mut again = BTreeSet::new();
    loop {
        tokio::select! {
            local = wanted.recv() => match local {
                Some(local) if under_way.insert(local) => {
                    attaching.spawn(attach(handle.clone(), local));
                }
                // What is looked at now may be the statement before this one.
                Some(local) => {
                    again.insert(local);
                }
                None => return,
            },
            Some(Ok(local)) = attaching.join_next() => {
                if again.remove(&local) {
                    attaching.spawn(attach(handle.clone(), local));
                } else {
                    under_way.remove(&local);
                }
            }
        }
    }
}

async fn attach(handle: Handle, local: OverlayIp) -> OverlayIp {
    let mut pause = FIRST_PAUSE;
    loop {
        match attach_once(&handle, local).await {
            Ok(true) | Err(Stopped) => return local,
            Ok(false) => tokio::time::sleep(pause).await,
        }
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

/// Tells the engine where an agent's gateways are; false when some were not found.
async fn attach_once(handle: &Handle, local: OverlayIp) -> Result<bool, Stopped> {
    let wanted = handle.call(move |core| current(core, local)).await?;
    let mut looking = JoinSet::new();
    for (gateway, hosts, wss) in wanted {
        looking.spawn(async move { (gateway, look_up(hosts).await, wss) });
    }
    let (mut found, mut is_complete) = (Vec::new(), true);
    while let Some(Ok((gateway, mut endpoints, wss))) = looking.join_next().await {
        // The underlay is never reached through the overlay.
        endpoints.retain(|endpoint: &SocketAddr| match endpoint.ip() {
            IpAddr::V4(_) => true,
            IpAddr::V6(ip) => OverlayIp::new(ip)
                .map_or(true, |ip| ip.network().domain() != local.network().domain()),
        });
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
        debug!(%local, %refused, "Not attached");
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

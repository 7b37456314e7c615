//! Looks up where gateways are: their statements name hosts, the engine wants addresses.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::debug;

use crate::id::{Did, OverlayIp};
use crate::node::driver::{Core, Handle, Stopped, now};
use crate::os::clock;

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

/// Attaches an agent to its gateway; false when no endpoint was found.
async fn attach_once(handle: &Handle, local: OverlayIp) -> Result<bool, Stopped> {
    let Some((gateway, hosts)) = handle.call(move |core| newest(core, local)).await? else {
        // None is known; the next statement brings another event.
        return Ok(true);
    };
    let mut endpoints = Vec::new();
    for host in hosts {
        let found = tokio::time::timeout(LOOK_UP, tokio::net::lookup_host(&host)).await;
        match found {
            Ok(Ok(addresses)) => endpoints.extend(addresses.take(MAX_ADDRESSES)),
            Ok(Err(error)) => debug!(%host, %error, "Gateway host not found"),
            Err(_elapsed) => debug!(%host, "Looking up the gateway host took too long"),
        }
    }
    // The underlay is never reached through the overlay.
    endpoints.retain(|endpoint: &SocketAddr| match endpoint.ip() {
        std::net::IpAddr::V4(_) => true,
        std::net::IpAddr::V6(ip) => {
            OverlayIp::new(ip).map_or(true, |ip| ip.network().domain() != local.network().domain())
        }
    });
    if endpoints.is_empty() {
        return Ok(false);
    }
    let set = move |core: &mut Core| core.engine.set_gateway(local, gateway, endpoints, now());
    if let Err(refused) = handle.call(set).await? {
        debug!(%local, %refused, "Not attached");
    }
    Ok(true)
}

/// Returns the gateway whose statement is newest, of those that have not expired.
fn newest(core: &Core, local: OverlayIp) -> Option<(Did, Vec<String>)> {
    let membership = core.engine.membership(local)?;
    let now = membership.clock(clock::unix());
    let valid = membership
        .gateways
        .values()
        .filter(|gateway| now < gateway.expires());
    let newest = valid.max_by_key(|gateway| gateway.seq())?;
    Some((newest.subject(), newest.claims().udp.clone()))
}

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tracing::{debug, info, warn};

use crate::id::OverlayIp;
use crate::node::driver::{Handle, Stopped, now};
use crate::os::{
    link::{LinkError, Links},
    underlay::{Route, leads_elsewhere},
};

/// One change of network comes as several messages; they are taken together.
const TOGETHER: Duration = Duration::from_millis(100);

/// What was last seen of the host's network.
#[derive(Debug)]
struct Seen {
    endpoints: Vec<SocketAddr>,
    routes: BTreeSet<Route>,
}

/// Keeps the engine told of the host's own addresses and routes until the daemon stops.
pub(super) async fn follow(handle: Handle, port: u16) {
    let mut links = match Links::open() {
        Ok(links) => links,
        Err(error) => {
            warn!(%error, "Changes of network are not noticed");
            return;
        }
    };
    // None until it was looked at once.
    let mut known = None;
    loop {
        match look(&links, port).await {
            Ok(found) => match tell(&handle, known.take(), found).await {
                Ok(told) => known = Some(told),
                Err(Stopped) => return,
            },
            Err(error) => debug!(%error, "Network not looked at"),
        }
        if !links.changed().await {
            warn!("Changes of network are not noticed any more");
            return;
        }
        tokio::time::sleep(TOGETHER).await;
        links.forget();
    }
}

async fn look(links: &Links, port: u16) -> Result<Seen, LinkError> {
    Ok(Seen {
        endpoints: endpoints(links.addresses().await?, port),
        routes: links.routes().await?,
    })
}

/// Tells the engine where we are, and whether that is another place than before.
async fn tell(handle: &Handle, before: Option<Seen>, found: Seen) -> Result<Seen, Stopped> {
    let told = handle.call(move |core| {
        let time = now();
        let Some(before) = before else {
            core.engine.set_host_candidates(&found.endpoints, time);
            return found;
        };
        let has_moved = before.endpoints != found.endpoints;
        let remotes = core.engine.remotes();
        if has_moved {
            core.engine.set_host_candidates(&found.endpoints, time);
        }
        if has_moved || leads_elsewhere(&before.routes, &found.routes, &remotes) {
            info!(addresses = has_moved, "The network changed");
            core.engine.handle_network_change(time);
        }
        found
    });
    told.await
}

/// Returns where peers may find our socket; the underlay is never reached through the overlay.
fn endpoints(found: Vec<IpAddr>, port: u16) -> Vec<SocketAddr> {
    let is_underlay = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => !ip.is_loopback(),
        IpAddr::V6(ip) => !ip.is_loopback() && OverlayIp::new(*ip).is_err(),
    };
    let underlay = found.into_iter().filter(is_underlay);
    underlay.map(|ip| SocketAddr::new(ip, port)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// EasyTier#1150, mycelium#162: the underlay is never routed into our own TUN.
    #[test]
    fn neither_loopback_nor_overlay_is_named_to_peers() {
        let all = ["127.0.0.1", "::1", "fd00::1", "192.0.2.1", "2001:db8::1"];
        let all = all.map(|ip| ip.parse().unwrap()).to_vec();

        let named = endpoints(all, 16200);

        assert_eq!(
            named,
            ["192.0.2.1:16200", "[2001:db8::1]:16200"].map(|at| at.parse().unwrap())
        );
    }
}

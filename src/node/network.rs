use std::{net::IpAddr, net::SocketAddr, time::Duration};

use tracing::{debug, info, warn};

use crate::id::OverlayIp;
use crate::node::driver::{Handle, now};
use crate::os::link::Links;

/// One change of network comes as several messages; they are taken together.
const TOGETHER: Duration = Duration::from_millis(100);

/// Keeps the engine told of the host's own addresses until the daemon stops.
pub(super) async fn follow(handle: Handle, port: u16) {
    let mut links = match Links::open() {
        Ok(links) => links,
        Err(error) => {
            warn!(%error, "Changes of network are not noticed");
            return;
        }
    };
    let mut known: Option<Vec<SocketAddr>> = None;
    loop {
        match links.addresses().await {
            Ok(found) => {
                let found = endpoints(found, port);
                if known.as_ref() != Some(&found) {
                    let has_moved = known.is_some();
                    known = Some(found.clone());
                    if !tell(&handle, found, has_moved).await {
                        return;
                    }
                }
            }
            Err(error) => debug!(%error, "Addresses not listed"),
        }
        if !links.changed().await {
            warn!("Changes of network are not noticed any more");
            return;
        }
        tokio::time::sleep(TOGETHER).await;
        links.forget();
    }
}

/// Tells the engine where we are; false when the daemon stops.
async fn tell(handle: &Handle, found: Vec<SocketAddr>, has_moved: bool) -> bool {
    let told = handle.call(move |core| {
        core.engine.set_host_candidates(&found, now());
        if has_moved {
            info!("The network changed");
            core.engine.handle_network_change(now());
        }
    });
    told.await.is_ok()
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

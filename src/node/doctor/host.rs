//! What this host has for agents and what stands in their way.

use std::{collections::BTreeSet, io::ErrorKind, path::Path};

use crate::config::NodeConfig;
use crate::id::OverlayIp;
use crate::node::causes::with_causes;
use crate::node::doctor::{broken, judge, odd, unknown, well};
use crate::os::files::FileError;
use crate::os::inspect;
use crate::os::link::Links;
use crate::os::lock::{LockError, StateLock};
use crate::os::namespace::{self, Cause};
use crate::os::route::{RouteError, Routing};
use crate::os::sandbox::{self, Enforced};
use crate::os::tun::TunError;
use crate::os::udp::{self, UdpError};
use crate::os::underlay::Route;
use crate::wire::api::local::{Check, Status};

/// The state of a node with thousands of peers, written anew beside the old one.
const LOW: u64 = 64 << 20; // bytes

/// A device by any other name is not ours.
const DEVICE_NAMES: &str = "agn*";

pub(super) fn kernel() -> Check {
    let landlock = sandbox::offered().unwrap_or(Enforced::CapabilitiesOnly);
    judge::kernel(&inspect::kernel(), inspect::has_ipv6(), landlock)
}

/// Namespaces without root are for `agentnet run` alone.
pub(super) fn user_namespaces() -> Check {
    let forbidden = namespace::forbidden(Path::new("/"));
    if let Some(off @ Cause::UserNamespacesOff) = forbidden {
        let text = "`agentnet run` does not work without root: user namespaces are switched off";
        return odd(
            "namespaces",
            off.as_str(),
            text,
            off.hint().unwrap_or_default(),
        );
    }
    let text = if forbidden == Some(Cause::AppArmor) {
        "for programs that AppArmor lets have them (the package brings a profile)"
    } else {
        "for everybody, so `agentnet run` needs no root"
    };
    well("namespaces", text)
}

/// What a running node has is no question of our own rights.
pub(super) fn tun(status: Option<&Status>) -> Check {
    let agents = status
        .map(|status| status.agents.as_slice())
        .unwrap_or_default();
    let devices = agents.iter().filter_map(|agent| agent.device.as_deref());
    let devices = devices.collect::<Vec<_>>();
    if !agents.is_empty() && devices.len() == agents.len() {
        return well(
            "tun",
            format!("the agents have their devices: {}", devices.join(" ")),
        );
    }
    match inspect::tun_features() {
        Ok(features) => {
            let has = [
                (features.has_queues, "several queues"),
                (features.has_offload, "TCP offload"),
                (features.has_udp_offload, "UDP offload"),
            ];
            let has = has.iter().filter(|(has, _)| *has).map(|(_, name)| *name);
            let has = has.collect::<Vec<_>>().join(", ");
            well("tun", format!("devices can be made ({has})"))
        }
        Err(TunError::NoDevice) => {
            let cure = "as root: modprobe tun; a container is given it by --device /dev/net/tun";
            broken("tun", "tun_missing", "there is no /dev/net/tun", cure)
        }
        Err(TunError::Unopened) => {
            let cure = "as root: chmod 0666 /dev/net/tun, as udev does";
            broken("tun", "tun_denied", "/dev/net/tun may not be opened", cure)
        }
        Err(error) => {
            let cure = if inspect::is_network_admin() {
                "the kernel, or who confines this process (container, seccomp), refuses it: see dmesg"
            } else {
                "run as root, or give the program CAP_NET_ADMIN (systemd's unit does); `agentnet run` needs neither"
            };
            broken("tun", "tun_denied", error.to_string(), cure)
        }
    }
}

pub(super) fn disk(config: &NodeConfig) -> Check {
    let dir = &config.state;
    let shown = dir.display();
    if !dir.exists() {
        return well("disk", format!("{shown} is not there yet"));
    }
    let error = match inspect::disk(dir) {
        Ok(left) if left < LOW => {
            let text = format!("{} MB are left at {shown}", left >> 20);
            return odd("disk", "disk_low", text, "free some space on that disk");
        }
        Ok(left) => {
            return well(
                "disk",
                format!("{shown} can be written, {} MB left", left >> 20),
            );
        }
        Err(error) => error,
    };
    let kind = match &error {
        FileError::Write { source, .. } | FileError::Read { source, .. } => source.kind(),
        FileError::Damaged { .. }
        | FileError::Exists(_)
        | FileError::Newer { .. }
        | FileError::TooLarge { .. } => ErrorKind::Other,
    };
    let text = format!("{shown} cannot be written: {}", with_causes(&error));
    judge::disk(&shown.to_string(), kind, text)
}

/// Tells of another node that has our directory.
pub(super) fn state(config: &NodeConfig, status: Option<&Status>) -> Option<Check> {
    if status.is_some() || !config.state.exists() {
        return None;
    }
    match StateLock::take(&config.state) {
        Err(error @ LockError::Held { .. }) => {
            let cure =
                "name its socket with --socket PATH (as it was started), or stop that process";
            Some(broken("state", "node_elsewhere", error.to_string(), cure))
        }
        Ok(_) | Err(LockError::Io { .. }) => None,
    }
}

/// Tells who else has our port.
pub(super) fn port(config: &NodeConfig, status: Option<&Status>) -> Option<Check> {
    let port = config.port;
    if status.is_some() || port == 0 {
        return None;
    }
    Some(match udp::bind_shared(port, 1) {
        Ok(_) => well("port", format!("UDP port {port} is free")),
        Err(error @ UdpError::PortInUse(_)) => broken(
            "port",
            "port_taken",
            error.to_string(),
            "stop that program (ss -lnup shows it), or choose another port: udp.port, --port",
        ),
        Err(error) => unknown("port", error.to_string()),
    })
}

/// Looks for others that have our addresses, or a way to our networks.
pub(super) async fn addresses(agents: &[OverlayIp], status: Option<&Status>) -> Check {
    let routing = match Routing::open() {
        Ok(routing) => routing,
        Err(error) => return unknown("addresses", error.to_string()),
    };
    for local in agents {
        let own = status.into_iter().flat_map(|status| &status.agents);
        let own = own.filter(|agent| agent.address == *local);
        let device = own.filter_map(|agent| agent.device.as_deref()).next();
        match routing.check(*local, device).await {
            Ok(()) => {}
            Err(error @ RouteError::PrefixRouted { .. }) => {
                let prefix = local.network();
                let cure =
                    format!("remove that route (ip -6 route del {prefix}), or stop what made it");
                return broken("addresses", "prefix_routed", error.to_string(), cure);
            }
            Err(error @ RouteError::AddressTaken { .. }) => {
                let cure =
                    "take it from that device (ip -6 address del), or stop the node that has it";
                return broken("addresses", "address_taken", error.to_string(), cure);
            }
            Err(error) => return unknown("addresses", error.to_string()),
        }
    }
    match agents.len() {
        0 => well("addresses", "no agent joined yet"),
        _ => well("addresses", "nobody else has our addresses or networks"),
    }
}

/// Tells of several ways out of which strict filtering allows one.
pub(super) async fn routes() -> Check {
    let routes = match Links::open() {
        Ok(links) => links.routes().await,
        Err(error) => return unknown("routes", error.to_string()),
    };
    let routes = match routes {
        Ok(routes) => routes,
        Err(error) => return unknown("routes", error.to_string()),
    };
    let defaults = routes.iter().filter(|route| route.is_default_v4());
    let (count, devices) = (
        defaults.clone().count(),
        defaults.flat_map(Route::devices).collect::<BTreeSet<_>>(),
    );
    let mut strict = devices.iter().filter(|of| inspect::filters_strictly(**of));
    if devices.len() > 1 && strict.next().is_some() {
        let text = "several default routes, and the kernel drops what comes by another one than answers take";
        let cure = "as root: sysctl -w net.ipv4.conf.all.rp_filter=2";
        return odd("routes", "rp_filter", text, cure);
    }
    well("routes", format!("{count} default routes over IPv4"))
}

pub(super) async fn firewall() -> Check {
    let Some(chains) = inspect::closed_chains(DEVICE_NAMES).await else {
        return unknown(
            "firewall",
            "not looked at: that takes root and the program nft",
        );
    };
    let Some(chain) = chains.first() else {
        return well(
            "firewall",
            "no chain of nftables drops by default what comes in by agents' devices",
        );
    };
    let text = format!(
        "the chain `{chain}` drops what comes in unless a rule says otherwise: peers reach no server here without one"
    );
    let cure = format!(
        "as root: nft insert rule {chain} iifname \"{DEVICE_NAMES}\" accept; agentnet's own filter stands behind it"
    );
    odd("firewall", "firewall_closed", text, cure)
}

/// Tells of other nodes in this network.
pub(super) fn daemons(status: Option<&Status>) -> Option<Check> {
    let own = status.map(|status| status.pid);
    let others = inspect::nodes().into_iter().filter(|pid| Some(*pid) != own);
    let others = others.map(|pid| pid.to_string()).collect::<Vec<_>>();
    if others.is_empty() {
        return None;
    }
    let text = format!(
        "other nodes run on this host: process {}",
        others.join(", ")
    );
    let cure = "one node carries any number of agents: agentnet --socket PATH down stops another; where both \
                are meant, give one --state, --port and --dns none of its own";
    Some(odd("node", "two_nodes", text, cure))
}

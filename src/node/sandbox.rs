//! What a node and a gateway keep of their rights (docs/security.md): each its own files, the network, and
//! nothing of what else is on the host.

use std::path::Path;

use nix::unistd::geteuid;
use rustix::thread::CapabilitySet;
use tracing::debug;

use crate::config::NodeConfig;
use crate::node::gateway::GatewayConfig;
use crate::node::local_api;
use crate::os::dns;
use crate::os::files;
use crate::os::sandbox::{self, Sandbox};

/// Settings of devices: whether they carry IPv6.
const NETWORK_SETTINGS: &str = "/proc/sys/net";

/// Returns what a node keeps; its own folders are there afterwards.
pub fn of_node(config: &NodeConfig) -> Sandbox {
    let hints = config.search.hints.clone();
    let proxy = config.wss.proxy_file.clone();
    let socket = config.socket.parent().map(Path::to_owned);
    let mut writes = vec![config.state.clone(), NETWORK_SETTINGS.into()];
    writes.extend(socket);
    prepare(&config.state, &config.socket);
    let mut runs_programs = false;
    if geteuid().is_root() {
        let (folders, by_programs) = dns::needs(config.dns);
        writes.extend(folders);
        runs_programs = by_programs;
        if sandbox::is_foreign(&config.state) {
            // What is of root alone is kept beside it (os::dns).
            writes.extend(config.state.parent().map(Path::to_owned));
        }
    }
    let mut capabilities = CapabilitySet::NET_ADMIN | CapabilitySet::NET_BIND_SERVICE;
    if config.dataplane.realtime {
        capabilities |= CapabilitySet::SYS_NICE;
    }
    Sandbox {
        reads: hints.into_iter().chain(proxy).collect(),
        writes,
        capabilities,
        runs_programs,
    }
}

/// Returns what a gateway keeps.
pub fn of_gateway(config: &GatewayConfig) -> Sandbox {
    let settings = &config.settings;
    let mut reads = settings.peering.files.clone();
    reads.extend(settings.wss.certificate.clone());
    reads.extend(settings.wss.key.clone());
    Sandbox {
        reads,
        writes: vec![config.dir.clone()],
        // The first to make the kernel keep a burst; it does without.
        capabilities: CapabilitySet::NET_ADMIN | CapabilitySet::NET_BIND_SERVICE,
        runs_programs: false,
    }
}

/// Makes the folders that are to be written in: only what is there can be named. What fails here is told by
/// whoever needs it.
fn prepare(state: &Path, socket: &Path) {
    if let Err(error) = files::create_folder(state) {
        debug!(%error, "No state directory");
    }
    if let Err(error) = local_api::make_folder(socket) {
        debug!(%error, "No folder for the socket");
    }
}

//! The gateway daemon: its keys, its registry, the server between them and its status socket.

mod follow;
mod multicast;
mod others;
mod peering;
mod setup;
mod status;
mod told;

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};

use crate::config::GatewaySettings;
use crate::gateway::alternates::AlternatesConfig;
use crate::gateway::core::{CoreConfig, CoreKeys, MeshConfig};
use crate::gateway::quota::{Allowance, QuotaConfig};
use crate::gateway::server::{self, Gateway};
use crate::node::gateway::told::Told;
use crate::node::local_api::{self, SocketError};
use crate::os::files::FileError;
use crate::os::lock::{LockError, StateLock};
use crate::os::page;
use crate::os::wss::CertificateError;
use crate::registry::client::ClientError;
use crate::statement::StatementError;
use crate::statement::peering::PeeringError;

pub use peering::export;
pub use setup::{Initialised, Plan, init};

/// Commands that may wait for the server.
const MAX_COMMANDS: usize = 256;

/// Why a gateway cannot be made or run.
#[derive(Debug, Error)]
pub enum GatewayError {
    #[error("{} exists already; this directory holds a gateway", .0.display())]
    Exists(PathBuf),
    #[error("there is no gateway in {}", .0.display())]
    Missing(PathBuf),
    #[error("agents cannot reach {0}: name what they use, as gateway.example.org:16201")]
    NeedsAddress(SocketAddr),
    #[error("the operator token's registry pin is damaged")]
    BadPin,
    #[error("cannot serve metrics at {at}")]
    Metrics {
        at: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("{}: {why}", .file.display())]
    Peering { file: PathBuf, why: PeeringError },
    #[error("cannot read {}", .file.display())]
    PeeringFile {
        file: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is of this gateway's own domain", .0.display())]
    OwnDomain(PathBuf),
    #[error("the registry knows no gateway of the domain yet")]
    NoGateways,
    #[error(transparent)]
    Statement(#[from] StatementError),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Registry(Box<ClientError>),
    #[error(transparent)]
    Server(#[from] server::GatewayError),
    #[error(transparent)]
    Socket(#[from] SocketError),
}

impl From<ClientError> for GatewayError {
    fn from(error: ClientError) -> Self {
        Self::Registry(Box::new(error))
    }
}

/// What a gateway runs with: settings whose places are known.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    pub dir: PathBuf,
    pub settings: GatewaySettings,
}

impl GatewayConfig {
    /// Completes settings by the directory of the file they came from.
    pub fn new(settings: GatewaySettings, file: &Path) -> Self {
        let beside = || file.parent().unwrap_or_else(|| Path::new("."));
        let dir = settings
            .state
            .clone()
            .unwrap_or_else(|| beside().to_owned());
        Self { dir, settings }
    }

    /// Returns where the running gateway tells its status.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("gateway.sock")
    }

    fn quota(&self) -> QuotaConfig {
        let quota = &self.settings.quota;
        QuotaConfig {
            agent: Allowance {
                packets: quota.packets,
                bytes: quota.bytes,
            },
            network: Allowance {
                packets: quota.network_packets,
                bytes: quota.network_bytes,
            },
            unknown: quota.unknown,
            network_agents: quota.network_agents,
            source_agents: quota.source_agents,
        }
    }

    fn core(&self) -> CoreConfig {
        let (attach, mesh) = (&self.settings.attach, &self.settings.mesh);
        CoreConfig {
            lease: Duration::from_secs(attach.lease),
            mtu: self.settings.udp.mtu,
            max_attachments: attach.max_agents,
            max_handshakes: attach.max_handshakes,
            handshakes_per_second: attach.handshakes_per_second,
            per_source: attach.handshakes_per_source,
            burst: attach.burst_per_source,
            mesh: MeshConfig {
                max_gateways: mesh.max_gateways,
                max_routes: mesh.max_routes,
            },
        }
    }
}

/// Runs a gateway until `shutdown` ends; calls `ready` with its addresses once it listens.
///
/// What `settings` becomes is taken up as far as [`GatewaySettings::LIVE`](crate::config::Settings::LIVE) goes.
pub async fn serve(
    config: GatewayConfig,
    settings: watch::Receiver<GatewaySettings>,
    shutdown: impl Future<Output = ()> + Send,
    ready: impl FnOnce(Vec<SocketAddr>) + Send,
) -> Result<(), GatewayError> {
    let keys = setup::load(&config.dir)?;
    let _lock = StateLock::take(&config.dir)?;
    let known = follow::Known::open(&config.dir)?;
    let peerings = peering::load(&config, &keys.domain)?;
    let listener = local_api::bind(&config.socket())?;
    let (wss, certificate) = setup::wss(&config.settings)?.unzip();
    let server = server::GatewayConfig {
        listen: config.settings.udp.listen.clone(),
        recovery: config.dir.join("attachments.json"),
        core: config.core(),
        offload: config.settings.udp.offload,
        wss,
        stun: AlternatesConfig {
            port: config.settings.stun.port(),
            addresses: config.settings.stun.alternate_addresses.clone(),
        },
    };
    let core = CoreKeys {
        gateway: keys.identity.did(),
        tunnel: keys.tunnel.clone(),
        reset: keys.reset_key(),
    };
    let metrics = match config.settings.metrics.listen {
        Some(at) => {
            let bound = page::bind(at).await;
            Some(bound.map_err(|source| GatewayError::Metrics { at, source })?)
        }
        None => None,
    };
    let gateway = Gateway::bind(&server, core)?;
    let (commands, received) = mpsc::channel(MAX_COMMANDS);
    let told = Told {
        config: config.clone(),
        domain: keys.domain,
        commands: commands.clone(),
        certificate,
    };
    let told = tokio::spawn(told.follow(peerings, settings));
    let (stopping, stopped) = oneshot::channel::<()>();
    let asked = commands.clone();
    let read = move || status::metrics(asked.clone());
    let metrics = metrics.map(|listener| tokio::spawn(page::serve(listener, read)));
    let status = tokio::spawn(status::serve(listener, commands.clone(), async {
        drop(stopped.await);
    }));
    let reach = setup::reach(
        &config.settings,
        &gateway.addresses(),
        gateway.wss_address(),
    );
    let multicast = config.settings.discover.multicast;
    let multicast = multicast.then(|| tokio::spawn(multicast::listen(commands.clone())));
    let region = config.settings.udp.region.clone();
    let follow = follow::Follow::new(keys, reach, region, commands, known);
    let follow = tokio::spawn(follow.run());
    ready(gateway.addresses());
    gateway.run(received, shutdown).await;
    follow.abort();
    told.abort();
    if let Some(metrics) = metrics {
        metrics.abort();
    }
    if let Some(multicast) = multicast {
        multicast.abort();
    }
    drop(stopping);
    // It ends by itself soon; what it still had to say is of no use to anybody.
    drop(status.await);
    Ok(())
}

//! The node daemon: puts the parts together, keeps them, and takes them apart.

mod naming;

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use thiserror::Error;
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    task::{AbortHandle, JoinHandle},
};
use tracing::{error, info, warn};

use crate::config::{
    DataplaneSettings, MAX_WORKERS, NodeConfig, PathMode, PathSettings, SuiteChoice,
};
use crate::dataplane::{self, DataplaneConfig, DataplaneHandle, FromWorker};
use crate::engine::{Engine, membership::Membership, path::Mode};
use crate::id::{OverlayIp, Suffix};
use crate::node::carriers::{self, Carriers};
use crate::node::{
    agent::{self, DeviceError},
    driver::{self, Core, Handle, Stopped, now},
    gateways,
    host_dns::HostNames,
    local_api::{self, SocketError},
    network, portmap,
    resolver::Resolver,
    running::{Change, Facts, Node},
    store::{Store, StoreError},
    suspend,
    sync::{Link, Sync},
};
use crate::os::{
    clock, cpu,
    dns::DnsError,
    random,
    timer::Alarm,
    udp::{self, UdpError, UdpPort},
};
use crate::wire::channel::{Suite, Suites};

/// Agents of one node, and so gateways that may have to be looked up at once.
const MAX_AGENTS: usize = 1024;

/// Changes of agents that may wait.
const MAX_CHANGES: usize = 16;

/// Pause before a device that could not be made anew is tried again.
const DEVICE_RETRY: Duration = Duration::from_secs(5);

/// Why the daemon does not run.
#[derive(Debug, Error)]
pub enum DaemonError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Udp(#[from] UdpError),
    #[error("cannot start the data plane: {0}")]
    Dataplane(#[source] std::io::Error),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Dns(#[from] DnsError),
    #[error("the proxy cannot be used: {0}")]
    Proxy(String),
    #[error("cannot answer names at {0}: {1}")]
    Resolver(SocketAddr, #[source] std::io::Error),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(transparent)]
    Stopped(#[from] Stopped),
    #[error("cannot make a timer: {0}")]
    Timer(#[source] std::io::Error),
    #[error("the membership is not on disk: {0}")]
    Unsaved(String),
}

/// One agent at work.
#[derive(Debug)]
struct Running {
    membership: Membership,
    facts: Facts,
    resolver: Option<Resolver>,
    registry: AbortHandle,
}

/// Everything the daemon keeps.
struct Daemon {
    handle: Handle,
    /// Whether the kernel may merge and cut packets of devices.
    offload: bool,
    names: HostNames,
    /// Answers at a loopback address, where the owner of the host's DNS needs one.
    loopback: Option<Resolver>,
    suffix: Suffix,
    running: BTreeMap<OverlayIp, Running>,
    facts: watch::Sender<BTreeMap<OverlayIp, Facts>>,
    sent: Arc<Notify>,
    device_lost: Arc<Notify>,
}

/// Runs a node until `shutdown` ends or somebody asks it to stop; `ready` is called once it answers.
pub async fn run(
    config: NodeConfig,
    shutdown: impl Future<Output = ()> + Send,
    ready: impl FnOnce() + Send,
) -> Result<(), DaemonError> {
    let (store, state) = Store::open(&config.state)?;
    let listener = local_api::bind(&config.socket)?;
    let udp = udp::bind_shared(config.port, dataplane::SOCKETS)?;
    let port = udp.first().map_or(Ok(config.port), UdpPort::port);
    let port = port.map_err(DaemonError::Dataplane)?;
    let (plane, worker) = start_workers(&config, udp)?;
    let (handle, jobs) = driver::channel();
    let (lookups, wanted) = mpsc::channel(MAX_AGENTS);
    let memberships = state.memberships.clone();
    let mut core = Core::new(store, state, random::seed(), plane, lookups);
    settle(&mut core.engine, &config);
    let lost = make_carriers(&config, &mut core)?;
    let device_lost = core.device_lost();
    let alarm = Alarm::open().map_err(DaemonError::Timer)?;
    let driver = tokio::spawn(driver::run(core, jobs, worker, alarm));
    let lookups = tokio::spawn(gateways::run(handle.clone(), wanted, config.search));
    let lost = tokio::spawn(carriers::follow(handle.clone(), lost));
    let network = tokio::spawn(network::follow(handle.clone(), port));
    let suspend = tokio::spawn(suspend::follow(handle.clone()));
    let mapping = portmap::keep(handle.clone(), port, wants_mapping(&config.path));
    let (facts, seen) = watch::channel(BTreeMap::new());
    let (names, dns) = HostNames::new(config.dns, &config.state, &config.socket);
    let (changes, mut asked) = mpsc::channel(MAX_CHANGES);
    let node = Arc::new(Node {
        handle: handle.clone(),
        port,
        dns,
        started: clock::unix(),
        stop: Arc::new(Notify::new()),
        sent: Arc::new(Notify::new()),
        suffix: config.suffix.clone(),
        changes,
        facts: seen,
        mapped: mapping.told.clone(),
    });
    let mut daemon = Daemon {
        handle,
        offload: config.offload,
        names,
        loopback: None,
        suffix: config.suffix,
        running: BTreeMap::new(),
        facts,
        sent: Arc::clone(&node.sent),
        device_lost,
    };
    let mut up = daemon.bring_up(memberships).await;
    if up.is_ok() {
        let (stopping, stopped) = oneshot::channel::<()>();
        let ended = async { drop(stopped.await) };
        let api = tokio::spawn(local_api::serve(listener, Arc::clone(&node) as _, ended));
        ready();
        up = daemon.serve(shutdown, &node.stop, &mut asked).await;
        drop(stopping);
        wait_for_api(api).await;
    }
    for task in [lookups, lost, network, suspend] {
        task.abort();
    }
    daemon.take_down().await;
    mapping.end().await;
    drop(node);
    drop(daemon);
    // The driver ends when the last handle is gone; the gateways learn that we leave.
    match driver.await {
        Ok(core) => core.close().await,
        Err(failed) => error!(%failed, "The engine's task failed"),
    }
    up
}

/// Has the engine work as the settings say.
fn settle(engine: &mut Engine, config: &NodeConfig) {
    engine.set_path_mode(path_mode(config.path.mode), now());
    engine.set_stun_servers(&config.path.stun, now());
    engine.set_suites(suites(config.suite));
    engine.set_frame_ids(dataplane::frame_ids);
}

/// Makes what reaches gateways where UDP does not; returns what tells of lost connections.
fn make_carriers(
    config: &NodeConfig,
    core: &mut Core,
) -> Result<mpsc::Receiver<SocketAddr>, DaemonError> {
    let proxies = carriers::proxies(&config.wss).map_err(DaemonError::Proxy)?;
    let plane = core.dataplane().clone();
    let (carriers, lost) = Carriers::new(plane, config.wss.mode, proxies);
    core.set_carriers(carriers);
    Ok(lost)
}

/// Tells whether the router is to be asked: peers are told no address of ours in the other modes.
pub(super) const fn wants_mapping(path: &PathSettings) -> bool {
    matches!(path.mode, PathMode::Auto | PathMode::Direct) && path.port_mapping
}

const fn path_mode(mode: PathMode) -> Mode {
    match mode {
        PathMode::Auto => Mode::Auto,
        PathMode::Direct => Mode::Direct,
        PathMode::Hidden => Mode::Hidden,
        PathMode::Relay => Mode::Relay,
    }
}

fn start_workers(
    config: &NodeConfig,
    udp: Vec<UdpPort>,
) -> Result<(DataplaneHandle, mpsc::Receiver<FromWorker>), DaemonError> {
    if !config.offload {
        udp.iter().for_each(UdpPort::forbid_offload);
    }
    let started = dataplane::start(DataplaneConfig {
        udp,
        workers: workers(config.dataplane),
        is_realtime: config.dataplane.realtime,
    });
    started.map_err(DaemonError::Dataplane)
}

fn workers(settings: DataplaneSettings) -> usize {
    let most = usize::from(MAX_WORKERS);
    let wanted = settings.workers.map(usize::from);
    wanted.unwrap_or_else(cpu::count).clamp(1, most)
}

fn suites(choice: SuiteChoice) -> Suites {
    match choice {
        SuiteChoice::Auto if cpu::has_aes() => {
            Suites::of(&[Suite::Aes256Gcm, Suite::ChaCha20Poly1305])
        }
        SuiteChoice::Auto | SuiteChoice::ChaCha20Poly1305 => Suites::of(&[Suite::ChaCha20Poly1305]),
        SuiteChoice::Off => Suites::NONE,
    }
}

async fn wait_for_api(api: JoinHandle<std::io::Result<()>>) {
    match api.await {
        Ok(Ok(())) => {}
        Ok(Err(failed)) => warn!(%failed, "Local API failed"),
        Err(failed) => error!(%failed, "Local API failed"),
    }
}

impl Daemon {
    async fn bring_up(&mut self, memberships: Vec<Membership>) -> Result<(), DaemonError> {
        let is_only = memberships.len() == 1;
        for membership in memberships {
            let Some(local) = membership.address() else {
                continue;
            };
            let device = match agent::bring_up(&self.handle, local, self.offload).await {
                Err(error) if is_only => return Err(error.into()),
                Err(error) => {
                    // The others need not suffer; `status` says which one does.
                    error!(%error, "An agent has no network device");
                    None
                }
                Ok(device) => Some(device),
            };
            self.start(local, membership, device).await?;
        }
        self.renew_names().await
    }

    async fn serve(
        &mut self,
        shutdown: impl Future<Output = ()> + Send,
        stop: &Notify,
        changes: &mut mpsc::Receiver<Change>,
    ) -> Result<(), DaemonError> {
        tokio::pin!(shutdown);
        let handle = self.handle.clone();
        let device_lost = Arc::clone(&self.device_lost);
        loop {
            tokio::select! {
                () = &mut shutdown => return Ok(()),
                () = stop.notified() => return Ok(()),
                // A daemon without its engine looks alive and carries nothing: better to be restarted.
                () = handle.stopped() => return Err(Stopped.into()),
                () = device_lost.notified() => self.restore_devices().await?,
                () = self.names.changed() => self.follow_host_dns().await,
                change = changes.recv() => match change {
                    // Nobody waits for the answer of a caller that went away.
                    Some(Change::Add(membership, done)) => {
                        let added = self.add(*membership).await.map_err(|error| error.to_string());
                        drop(done.send(added));
                    }
                    Some(Change::Remove(local, done)) => drop(done.send(self.remove(local).await)),
                    Some(Change::ApplyDns(done)) => {
                        self.names.resume();
                        self.follow_host_dns().await;
                        drop(done.send(self.names.report()));
                    }
                    Some(Change::RevertDns(done)) => {
                        self.names.hold().await;
                        drop(done.send(self.names.report()));
                    }
                    None => return Ok(()),
                },
            }
        }
    }

    /// Adds an agent that just joined: kept first, then brought up.
    async fn add(&mut self, membership: Membership) -> Result<(), DaemonError> {
        let kept = membership.clone();
        let added = self.handle.call(move |core| {
            let added = core.engine.add(kept, now());
            core.keep();
            (added, core.unsaved().map(str::to_owned))
        });
        let (added, unsaved) = added.await?;
        if let Some(why) = unsaved {
            return Err(DaemonError::Unsaved(why));
        }
        let Some(local) = added else {
            return Ok(());
        };
        let device = agent::bring_up(&self.handle, local, self.offload).await?;
        self.start(local, membership, Some(device)).await?;
        self.renew_names().await
    }

    /// Makes those devices anew that somebody took away.
    async fn restore_devices(&mut self) -> Result<(), Stopped> {
        let lost = self.handle.call(|core| core.lost_devices()).await?;
        for local in lost {
            match agent::bring_up(&self.handle, local, self.offload).await {
                Ok(device) => {
                    if let Some(running) = self.running.get_mut(&local) {
                        running.facts.device = Some(device);
                    }
                    let back = move |core: &mut Core| core.device_is_back(local);
                    self.handle.call(back).await?;
                }
                Err(error) => {
                    error!(%error, "A network device that was removed cannot be made anew");
                    let again = Arc::clone(&self.device_lost);
                    tokio::spawn(async move {
                        tokio::time::sleep(DEVICE_RETRY).await;
                        again.notify_one();
                    });
                }
            }
        }
        if let Err(failed) = self.renew_names().await {
            warn!(%failed, "Names are not answered");
        }
        self.publish_facts();
        Ok(())
    }

    fn publish_facts(&self) {
        let all = self.running.iter();
        let all = all.map(|(local, running)| (*local, running.facts.clone()));
        self.facts.send_replace(all.collect());
    }

    async fn remove(&mut self, local: OverlayIp) -> Option<Membership> {
        // One whose device could not be made is a member all the same, and may leave.
        if let Some(gone) = self.running.remove(&local) {
            gone.registry.abort();
            if let Some(resolver) = gone.resolver {
                resolver.stop().await;
            }
        }
        let removed = self.handle.call(move |core| {
            core.close_outbox(local);
            (core.engine.remove(local, now()), core.dataplane().clone())
        });
        let (removed, plane) = removed.await.ok()?;
        plane.remove_tun(local).await;
        if let Err(failed) = self.renew_names().await {
            warn!(%failed, "Names are not answered");
        }
        removed
    }

    /// Keeps an agent in touch with its registry; one without a device is still a member.
    async fn start(
        &mut self,
        local: OverlayIp,
        membership: Membership,
        device: Option<String>,
    ) -> Result<(), DaemonError> {
        let outbox = self.handle.call(move |core| core.outbox(local)).await?;
        let (link, seen) = watch::channel(Link::new());
        let handle = self.handle.clone();
        let sent = Arc::clone(&self.sent);
        let registry = tokio::spawn(
            Sync {
                handle,
                local,
                outbox,
                sent,
                link,
            }
            .run(),
        )
        .abort_handle();
        let facts = Facts {
            device,
            deaf: None,
            url: membership.url.clone(),
            link: seen,
        };
        self.running.insert(
            local,
            Running {
                membership,
                facts,
                resolver: None,
                registry,
            },
        );
        self.publish_facts();
        Ok(())
    }

    async fn take_down(&mut self) {
        self.names.forget().await;
        if let Some(resolver) = self.loopback.take() {
            resolver.stop().await;
        }
        for (_, running) in std::mem::take(&mut self.running) {
            running.registry.abort();
            if let Some(resolver) = running.resolver {
                resolver.stop().await;
            }
        }
        info!("Stopped");
    }
}

//! The node daemon: puts the parts together, keeps them, and takes them apart.

mod naming;
mod residents;
mod visitors;

use std::{collections::BTreeMap, net::SocketAddr, os::unix::net::UnixListener, sync::Arc};

use thiserror::Error;
use tokio::{
    sync::{Notify, mpsc, watch},
    task::{AbortHandle, JoinHandle, JoinSet},
};
use tracing::{error, info, warn};

use crate::config::{NodeConfig, NodeSettings, SearchSettings};
use crate::dataplane::{self, Realm};
use crate::engine::membership::{Membership, State};
use crate::id::{OverlayIp, Suffix};
use crate::node::carriers::{self, Carriers};
use crate::node::{
    agent::{self, DeviceError},
    driver::{self, Core, HOST, Handle, Stopped, now},
    gateways,
    host_dns::HostNames,
    lent::Lent,
    local_api::{self, LocalListener, SocketError},
    metrics, network, portmap, programs,
    resolver::Resolver,
    running::{Change, Facts, Node},
    settle,
    store::{Store, StoreError},
    suspend,
    sync::{Link, Sync},
};
use crate::os::{
    clock,
    dns::DnsError,
    random,
    timer::Alarm,
    udp::{self, UdpError, UdpPort},
};

/// Agents of one node, and so gateways that may have to be looked up at once.
const MAX_AGENTS: usize = 1024;

/// Changes of agents that may wait.
const MAX_CHANGES: usize = 16;

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
    #[error("cannot serve metrics at {0}")]
    Metrics(SocketAddr, #[source] std::io::Error),
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
    /// Where its device is.
    realm: Realm,
    /// What answers names there, if that is not the host.
    apart: Vec<Resolver>,
}

/// The one program that a node runs for, and its agent.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) local: OverlayIp,
    pub(super) lent: Lent,
    /// Where the program reaches the local API; None where it does not.
    pub(super) api: Option<UnixListener>,
}

/// Where the program of a node of its own is.
const GUEST: Realm = Realm(1);

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
    /// The program's that came last.
    realm: Realm,
    /// Whether all agents were started: their registries come after, or a thousand keep the node from answering.
    is_up: watch::Sender<bool>,
}

/// Runs a node until `shutdown` ends or somebody asks it to stop; `ready` is called once it answers.
///
/// What `settings` becomes is taken up as far as [`NodeSettings::LIVE`](crate::config::Settings::LIVE) goes.
pub async fn run(
    config: NodeConfig,
    settings: Option<watch::Receiver<NodeSettings>>,
    shutdown: impl Future<Output = ()> + Send,
    ready: impl FnOnce() + Send,
) -> Result<(), DaemonError> {
    run_for(None, (config, settings), shutdown, ready).await
}

/// Does what [`run`] does; for a guest, if there is one, and no other agent.
pub(super) async fn run_for(
    guest: Option<Guest>,
    (config, settings): (NodeConfig, Option<watch::Receiver<NodeSettings>>),
    shutdown: impl Future<Output = ()> + Send,
    ready: impl FnOnce() + Send,
) -> Result<(), DaemonError> {
    let (store, state) = open(&config, guest.as_ref())?;
    let mut listeners = vec![local_api::bind(&config.socket)?];
    let (programs, metrics) = bind_others(guest.as_ref(), &config).await?;
    let udp = udp::bind_shared(config.port, dataplane::SOCKETS)?;
    let port = udp.first().map_or(Ok(config.port), UdpPort::port);
    let port = port.map_err(DaemonError::Dataplane)?;
    let (plane, worker) = settle::start_workers(&config, udp).map_err(DaemonError::Dataplane)?;
    let (handle, jobs) = driver::channel();
    let (lookups, wanted) = mpsc::channel(MAX_AGENTS);
    let memberships = state.memberships.clone();
    let mut core = Core::new(store, state, random::seed(), plane, lookups);
    settle::engine(&mut core.engine, &config);
    let lost = make_carriers(&config, &mut core)?;
    let device_lost = core.device_lost();
    let installed = core.installed();
    let alarm = Alarm::open().map_err(DaemonError::Timer)?;
    let driver = tokio::spawn(driver::run(core, jobs, worker, alarm));
    let mut followers = follow(&handle, port, (wanted, config.search), lost);
    let mapping = portmap::keep(handle.clone(), port, settle::wants_mapping(&config.path));
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
        installed,
        suffix: config.suffix.clone(),
        changes,
        is_private: guest.is_some(),
        offload: config.offload,
        queues: settle::workers(config.dataplane),
        facts: seen,
        mapped: mapping.told.clone(),
    });
    metrics.map(|at| followers.spawn(at.serve(Arc::downgrade(&node))));
    let mut daemon = Daemon::new(&node, (names, facts), device_lost);
    let mut up = daemon.bring_up(memberships, guest, &mut listeners).await;
    if up.is_ok() {
        daemon.is_up.send_replace(true);
        let open = Open::at((listeners, programs), &node);
        ready();
        up = daemon
            .serve(shutdown, &node.stop, (&mut asked, settings))
            .await;
        open.close().await;
    }
    drop(followers);
    daemon.take_down().await;
    mapping.end().await;
    drop((node, daemon, handle));
    // The driver ends when the last handle is gone; the gateways learn that we leave.
    match driver.await {
        Ok(core) => core.close().await,
        Err(failed) => error!(%failed, "The engine's task failed"),
    }
    up
}

/// Reads what is kept; of agents a guest's alone, and the others stay on disk as they are.
fn open(config: &NodeConfig, guest: Option<&Guest>) -> Result<(Store, State), StoreError> {
    let (store, mut state) = Store::open(&config.state)?;
    if let Some(guest) = guest {
        let is_guest = |m: &Membership| m.address() == Some(guest.local);
        state.memberships.retain(is_guest);
    }
    Ok((store, state))
}

/// Where others reach the node.
struct Open {
    /// Tells those that serve to end, by being dropped.
    stopping: watch::Sender<()>,
    api: JoinSet<std::io::Result<()>>,
    programs: Option<JoinHandle<()>>,
}

impl Open {
    fn at(
        (listeners, programs): (Vec<LocalListener>, Option<LocalListener>),
        node: &Arc<Node>,
    ) -> Self {
        let (stopping, stopped) = watch::channel(());
        let api = serve_api(listeners, node, &stopped);
        let programs = programs.map(|at| programs::serve(at, Arc::clone(node), stopped));
        Self {
            stopping,
            api,
            programs: programs.map(tokio::spawn),
        }
    }

    async fn close(self) {
        drop(self.stopping);
        wait_for_api(self.api).await;
        if let Some(programs) = self.programs {
            drop(programs.await);
        }
    }
}

/// Takes where programs and readers of metrics ask. A guest's node has neither: many may run beside the node that has
/// them.
async fn bind_others(
    guest: Option<&Guest>,
    config: &NodeConfig,
) -> Result<(Option<LocalListener>, Option<metrics::Listener>), DaemonError> {
    if guest.is_some() {
        return Ok((None, None));
    }
    let programs = programs::bind(&config.socket)?;
    let metrics = metrics::bind(config.metrics).await;
    let metrics = metrics.map_err(|(at, error)| DaemonError::Metrics(at, error))?;
    Ok((Some(programs), metrics))
}

/// Starts what follows the world for the engine; it ends when this is dropped.
fn follow(
    handle: &Handle,
    port: u16,
    (wanted, search): (mpsc::Receiver<OverlayIp>, SearchSettings),
    lost: mpsc::Receiver<SocketAddr>,
) -> JoinSet<()> {
    let mut followers = JoinSet::new();
    followers.spawn(gateways::run(handle.clone(), wanted, search));
    followers.spawn(carriers::follow(handle.clone(), lost));
    followers.spawn(network::follow(handle.clone(), port));
    followers.spawn(suspend::follow(handle.clone()));
    followers
}

/// Serves the local API at each of the listeners until the sender of `stopped` is dropped.
fn serve_api(
    listeners: Vec<LocalListener>,
    node: &Arc<Node>,
    stopped: &watch::Receiver<()>,
) -> JoinSet<std::io::Result<()>> {
    let serve = |listener| {
        let mut stopped = stopped.clone();
        let ended = async move { while stopped.changed().await.is_ok() {} };
        local_api::serve(listener, Arc::clone(node) as _, ended)
    };
    listeners.into_iter().map(serve).collect()
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

/// Waits for other settings; None when there will be none.
async fn renewed(settings: Option<&mut watch::Receiver<NodeSettings>>) -> Option<NodeSettings> {
    let settings = settings?;
    settings.changed().await.ok()?;
    Some(settings.borrow_and_update().clone())
}

async fn wait_for_api(mut api: JoinSet<std::io::Result<()>>) {
    while let Some(ended) = api.join_next().await {
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(failed)) => warn!(%failed, "Local API failed"),
            Err(failed) => error!(%failed, "Local API failed"),
        }
    }
}

impl Running {
    /// Tells whether programs of the host can use the agent.
    fn is_on_host(&self) -> bool {
        self.realm == HOST && self.facts.device.is_some()
    }

    /// Ends what keeps the agent in touch with others.
    async fn end(self) {
        self.registry.abort();
        for resolver in self.resolver.into_iter().chain(self.apart) {
            resolver.stop().await;
        }
    }
}

impl Daemon {
    fn new(
        node: &Node,
        (names, facts): (HostNames, watch::Sender<BTreeMap<OverlayIp, Facts>>),
        device_lost: Arc<Notify>,
    ) -> Self {
        Self {
            handle: node.handle.clone(),
            offload: node.offload,
            names,
            loopback: None,
            suffix: node.suffix.clone(),
            running: BTreeMap::new(),
            facts,
            sent: Arc::clone(&node.sent),
            device_lost,
            realm: GUEST,
            is_up: watch::Sender::new(false),
        }
    }

    async fn bring_up(
        &mut self,
        memberships: Vec<Membership>,
        guest: Option<Guest>,
        listeners: &mut Vec<LocalListener>,
    ) -> Result<(), DaemonError> {
        if let Some(guest) = guest {
            for membership in memberships {
                self.start(guest.local, membership, None).await?;
            }
            listeners.extend(guest.api.map(LocalListener::of).transpose()?);
            return self.take_in(guest.local, guest.lent, GUEST).await;
        }
        let is_apart = |m: &Membership| m.placement.apart;
        let is_only = memberships.iter().filter(|m| !is_apart(m)).count() == 1;
        for membership in memberships {
            let Some(local) = membership.address() else {
                continue;
            };
            if membership.placement.apart {
                self.start(local, membership, None).await?;
                continue;
            }
            let device = match agent::bring_up(&self.handle, local, self.offload).await {
                Err(error) if is_only => return Err(error.into()),
                Err(error) => {
                    // The others need not suffer; `status` says which one does.
                    error!(code = "no_device", reason = %error, "An agent has no network device");
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
        (changes, mut settings): (
            &mut mpsc::Receiver<Change>,
            Option<watch::Receiver<NodeSettings>>,
        ),
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
                Some(new) = renewed(settings.as_mut()) => self.take_up(new).await?,
                change = changes.recv() => match change {
                    // Nobody waits for the answer of a caller that went away.
                    Some(Change::Add(membership, done)) => {
                        drop(done.send(self.add(*membership).await));
                    }
                    Some(Change::TakeIn(local, visitor, done)) => {
                        let taken = self.welcome(local, *visitor).await;
                        if let Err(Ok((local, realm))) = done.send(taken).map_err(|t| t.map(|r| (local, r))) {
                            self.let_go(local, realm).await;
                        }
                    }
                    Some(Change::LetGo(local, realm)) => self.let_go(local, realm).await,
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

    /// Works by other settings from now on.
    async fn take_up(&mut self, new: NodeSettings) -> Result<(), Stopped> {
        let dns = new.dns.mode;
        self.handle
            .call(move |core| settle::again(&mut core.engine, &new))
            .await?;
        if self.names.set_mode(dns).await
            && let Err(failed) = self.renew_names().await
        {
            warn!(%failed, "Names are not answered");
        }
        Ok(())
    }

    /// Adds an agent that just joined: kept first, then brought up.
    async fn add(&mut self, membership: Membership) -> Result<(), DaemonError> {
        let kept = membership.clone();
        let added = self.handle.call(move |core| {
            let added = core.engine.add(kept, now());
            if let Some(local) = added {
                core.keep(local);
            }
            let unsaved = core.unsaved().map(str::to_owned);
            if let Some(local) = added.filter(|_| unsaved.is_some()) {
                // Its key is kept, by which it joins again.
                core.engine.remove(local, now());
            }
            (added, unsaved)
        });
        let (added, unsaved) = added.await?;
        if let Some(why) = unsaved {
            return Err(DaemonError::Unsaved(why));
        }
        let Some(local) = added else {
            return Ok(());
        };
        if membership.placement.apart {
            return self.start(local, membership, None).await;
        }
        let device = agent::bring_up(&self.handle, local, self.offload).await?;
        self.start(local, membership, Some(device)).await?;
        self.add_names().await
    }

    fn publish_facts(&self) {
        let all = self.running.iter();
        let all = all.map(|(local, running)| (*local, running.facts.clone()));
        self.facts.send_replace(all.collect());
    }

    async fn remove(&mut self, local: OverlayIp) -> Option<Membership> {
        // One whose device could not be made is a member all the same, and may leave.
        if let Some(gone) = self.running.remove(&local) {
            gone.end().await;
        }
        let removed = self.handle.call(move |core| {
            core.close_outbox(local);
            core.forget_place(local);
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
        let sync = Sync {
            handle,
            local,
            outbox,
            sent,
            link,
        };
        let mut is_up = self.is_up.subscribe();
        let registry = tokio::spawn(async move {
            if is_up.wait_for(|is_up| *is_up).await.is_ok() {
                sync.run().await;
            }
        })
        .abort_handle();
        let facts = Facts {
            device,
            program: None,
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
                realm: HOST,
                apart: Vec::new(),
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
            running.end().await;
        }
        self.unsettle_residents().await;
        info!("Stopped");
    }
}

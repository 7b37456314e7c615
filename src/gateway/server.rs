//! The gateway's shell: sockets, clock and files around [`Core`].

use std::{
    fmt::{self, Debug},
    future::{pending, ready},
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use thiserror::Error;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

use crate::gateway::alternates::{Alternates, AlternatesConfig};
use crate::gateway::batch::Run;
use crate::gateway::core::{Core, CoreConfig, CoreKeys, Signers};
use crate::gateway::port::Port;
use crate::gateway::quota::QuotaConfig;
use crate::gateway::recovery::{RECOVERY_VERSION, Recovery};
use crate::gateway::share::Share;
use crate::gateway::status::GatewayStatus;
use crate::gateway::wss::{Wss, WssConfig};
use crate::id::{NetworkId, UnixTime};
use crate::os::files::StateFile;
use crate::os::udp::{UdpError, bind_at};
use crate::os::{clock, random};
use crate::statement::peering::Peering;
use crate::statement::{self, Revocation, Statement};
use crate::wire::carrier::is_carrier;
use crate::wire::drop::DropReason;
use crate::wire::ecn::Ecn;

/// Calls that receive from one socket before the others, commands and timers have their turn.
const RECEIVES: usize = 16;

/// How long strangers are worked on before sockets are looked at again: what comes meanwhile waits there.
const TURN: Duration = Duration::from_millis(1);

/// Longest UDP payload, and as much as the kernel hands over at once.
const MAX_RECEIVED: usize = 65_535; // bytes

/// How long changes are gathered before they are written: what a crash may forget meanwhile is
/// found again by the next frame.
const WRITE_AFTER: Duration = Duration::from_secs(1);

/// What a gateway is run with.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// At most one address of each IP version.
    pub listen: Vec<SocketAddr>,
    /// Where attachments are remembered over a restart.
    pub recovery: PathBuf,
    pub core: CoreConfig,
    /// Whether the kernel may merge datagrams that arrive and cut those that leave.
    pub offload: bool,
    /// None where frames come by UDP alone.
    pub wss: Option<WssConfig>,
    pub stun: AlternatesConfig,
}

/// A gateway's identity and secrets.
pub type GatewayKeys = CoreKeys;

/// What the rest of the process tells a running gateway.
pub enum GatewayCommand {
    /// Meet another gateway of the domain at these endpoints.
    AddGateway(Box<Statement<statement::Gateway>>, Vec<SocketAddr>),
    /// Serve one more network.
    AddNetwork(NetworkId),
    /// Answer a GW-DISCOVER that came to the link's group.
    Discover(SocketAddr, Vec<u8>, oneshot::Sender<Vec<u8>>),
    /// Take a revocation.
    Revoke(Box<Statement<Revocation>>),
    /// Believe gateway statements of these signers, and show others our own.
    SetDomain(Signers, Option<Box<Statement<statement::Gateway>>>),
    /// Let each agent send as much as this.
    SetQuota(QuotaConfig),
    /// Serve exactly these networks.
    SetNetworks(Vec<NetworkId>),
    /// Carry frames of exactly these other domains.
    SetPeerings(Vec<Peering>),
    /// Tell the state at this moment.
    Status(oneshot::Sender<GatewayStatus>),
}

impl Debug for GatewayCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AddGateway(..) => "AddGateway",
            Self::AddNetwork(_) => "AddNetwork",
            Self::Discover(..) => "Discover",
            Self::Revoke(_) => "Revoke",
            Self::SetDomain(..) => "SetDomain",
            Self::SetNetworks(_) => "SetNetworks",
            Self::SetPeerings(_) => "SetPeerings",
            Self::SetQuota(_) => "SetQuota",
            Self::Status(_) => "Status",
        })
    }
}

/// Why a gateway cannot start.
#[derive(Debug, Error)]
pub enum GatewayError {
    #[error("cannot listen on {address}")]
    Listen {
        address: SocketAddr,
        #[source]
        source: UdpError,
    },
    #[error("cannot use the socket")]
    Socket(#[source] io::Error),
    #[error("there is no address to listen on")]
    NoAddress,
    #[error("cannot listen on {address} for WebSocket")]
    Wss {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
}

/// A gateway whose sockets are bound.
#[derive(Debug)]
pub struct Gateway {
    core: Core,
    /// At most one of each IP version.
    sockets: Vec<Port>,
    alternates: Alternates,
    /// None where frames come by UDP alone.
    wss: Option<Wss>,
    recovery: Memory,
    share: Share,
}

enum Event {
    /// A socket for STUN alone has something.
    Asked(usize),
    /// A connection brought datagrams that lie end to end, each but the last so many bytes long.
    Came(SocketAddr, Vec<u8>, usize),
    Command(Option<GatewayCommand>),
    Readable(usize),
    Shutdown,
    Timeout,
}

impl Gateway {
    /// Binds the sockets and recalls who was attached; must be called within a tokio runtime.
    pub fn bind(config: &GatewayConfig, keys: GatewayKeys) -> Result<Self, GatewayError> {
        let mut sockets = Vec::new();
        for address in &config.listen {
            match bind_at(*address) {
                Ok(socket) => {
                    let port = Port::new(socket, config.offload);
                    sockets.push(port.map_err(GatewayError::Socket)?);
                }
                // The default listens on both versions; a host may have one only.
                Err(UdpError::Os { source, .. })
                    if address.ip().is_unspecified()
                        && config.listen.len() > 1
                        && is_without_version(&source) =>
                {
                    tracing::info!(%address, "This host does not have the IP version");
                }
                Err(source) => {
                    let address = *address;
                    return Err(GatewayError::Listen { address, source });
                }
            }
        }
        if sockets.is_empty() {
            return Err(GatewayError::NoAddress);
        }
        let bound = config.wss.as_ref().map(|wss| {
            let address = wss.listen;
            Wss::bind(wss).map_err(|source| GatewayError::Wss { address, source })
        });
        let wss = bound.transpose()?;
        let mut core = Core::new(config.core, keys, random::seed());
        let own = sockets.iter().map(|port| port.local).collect::<Vec<_>>();
        let alternates = Alternates::bind(&config.stun, &own);
        let alternates =
            alternates.map_err(|(address, source)| GatewayError::Listen { address, source })?;
        core.set_stun_endpoints(&alternates.endpoints(&own));
        let (recovery, known) = Memory::open(&config.recovery);
        core.recover(known, clock::now());
        Ok(Self {
            core,
            sockets,
            alternates,
            wss,
            recovery,
            share: Share::default(),
        })
    }

    /// Returns the addresses it listens on.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.sockets.iter().map(|port| port.local).collect()
    }

    /// Returns the address it listens on for WebSocket; None where frames come by UDP alone.
    pub fn wss_address(&self) -> Option<SocketAddr> {
        self.wss.as_ref().map(Wss::local)
    }

    /// Serves until `shutdown` is done; what was told before is remembered for the next start.
    pub async fn run(
        mut self,
        mut commands: mpsc::Receiver<GatewayCommand>,
        shutdown: impl Future<Output = ()>,
    ) {
        tokio::pin!(shutdown);
        let mut buffer = vec![0; MAX_RECEIVED];
        let mut commanded = true;
        loop {
            let deadline = self.deadline();
            let event = tokio::select! {
                () = &mut shutdown => Event::Shutdown,
                command = commands.recv(), if commanded => Event::Command(command),
                () = readable(self.sockets.first()) => Event::Readable(0),
                () = readable(self.sockets.get(1)) => Event::Readable(1),
                socket = self.alternates.readable() => Event::Asked(socket),
                Some((from, bytes, stride)) = came(self.wss.as_mut()) => {
                    Event::Came(from, bytes, stride)
                }
                () = sleep_until(deadline) => Event::Timeout,
                // A timer would be a millisecond late.
                () = ready(()), if self.core.has_strangers() => Event::Timeout,
            };
            let (now, unix) = (clock::now(), clock::unix());
            let mut is_idle = true;
            match event {
                Event::Asked(socket) => {
                    self.alternates
                        .receive(socket, &mut self.core, &mut buffer, now);
                }
                Event::Came(from, bytes, stride) => {
                    self.take_all((from, bytes, stride), now, unix);
                }
                Event::Command(Some(command)) => self.handle_command(command, now, unix),
                Event::Command(None) => commanded = false,
                Event::Readable(socket) => {
                    is_idle = self.receive(socket, &mut buffer, now, unix);
                }
                Event::Shutdown => break,
                // Strangers may wait, and frames too that nobody told of yet.
                Event::Timeout => {
                    for socket in 0..self.sockets.len() {
                        is_idle &= self.receive(socket, &mut buffer, now, unix);
                    }
                }
            }
            self.core.handle_timeout(now, unix);
            self.transmit();
            if self.core.has_strangers() {
                self.greet(now, is_idle, unix);
                // Or sockets would not be looked at while strangers wait.
                tokio::task::yield_now().await;
            }
            self.recovery.note(&self.core, now);
        }
        self.core.close(clock::now());
        self.transmit();
        self.recovery.close(&self.core).await;
    }

    fn deadline(&self) -> Option<Instant> {
        let core = self.core.poll_timeout().map(|(at, _)| at);
        core.into_iter().chain(self.recovery.due).min()
    }

    /// Gives strangers their turn: a while where there is nothing else to do, and of a busy gateway as much
    /// as is due to them.
    fn greet(&mut self, since: Instant, is_idle: bool, unix: UnixTime) {
        let begun = clock::now();
        self.share
            .note_frames(begun.saturating_duration_since(since));
        let mut now = begun;
        while self.core.has_strangers() {
            let is_due = if is_idle {
                now < begun + TURN
            } else {
                self.share.is_earned()
            };
            if !is_due {
                return;
            }
            self.core.handle_stranger(now, unix);
            self.transmit();
            let done = clock::now();
            self.share
                .note_stranger(done.saturating_duration_since(now));
            now = done;
        }
    }

    fn handle_command(&mut self, command: GatewayCommand, now: Instant, unix: UnixTime) {
        match command {
            GatewayCommand::AddGateway(statement, endpoints) => {
                let added = self.core.add_gateway(&statement, endpoints, now, unix);
                if let Err(error) = added {
                    tracing::warn!(%error, gateway = %statement.subject(), "Gateway not met");
                }
            }
            GatewayCommand::AddNetwork(network) => self.core.add_network(network),
            GatewayCommand::Discover(from, bytes, answer) => {
                if let Some(offer) = self.core.discover(from, &bytes, clock::now()) {
                    // Nobody waits any more once the listener ended.
                    drop(answer.send(offer));
                }
            }
            GatewayCommand::Revoke(statement) => {
                if let Err(error) = self.core.add_revocation(&statement, unix) {
                    tracing::warn!(%error, "Revocation refused");
                }
            }
            GatewayCommand::SetDomain(signers, own) => {
                self.core.set_domain(signers, own.as_deref());
            }
            GatewayCommand::SetNetworks(networks) => self.core.set_networks(&networks),
            GatewayCommand::SetPeerings(peerings) => self.core.set_peerings(peerings),
            GatewayCommand::SetQuota(quota) => self.core.set_quota(quota),
            GatewayCommand::Status(reply) => {
                // Whoever asked may have gone.
                let connections = self.wss.as_ref().map_or(0, Wss::len);
                drop(reply.send(GatewayStatus {
                    connections,
                    ..self.core.status(now)
                }));
            }
        }
    }

    /// Takes what a socket has, until the others have their turn; tells whether that was all.
    fn receive(&mut self, socket: usize, buffer: &mut [u8], now: Instant, unix: UnixTime) -> bool {
        for _ in 0..RECEIVES {
            let Some(port) = self.sockets.get(socket) else {
                return true;
            };
            match port.receive(buffer) {
                // Nobody is there: whoever says so would pass for a connection.
                Ok(received) if is_carrier(received.from) => {
                    self.core.count_unsent(DropReason::DatagramUnknown, 1);
                }
                Ok(received) => {
                    let (from, stride) = (received.from, received.stride);
                    let bytes = buffer.get_mut(..received.length).unwrap_or_default();
                    self.core.handle_batch(from, bytes, stride, now, unix);
                    self.pass_on(bytes, received.ecn);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                // An error about an earlier datagram; the socket goes on.
                Err(error) => tracing::debug!(%error, "Receive error"),
            }
            self.transmit();
        }
        false
    }

    /// Takes what connections brought, until the others have their turn.
    fn take_all(&mut self, first: (SocketAddr, Vec<u8>, usize), now: Instant, unix: UnixTime) {
        let (mut next, mut left) = (Some(first), RECEIVES);
        while let Some((from, mut bytes, stride)) = next.take() {
            self.core.handle_batch(from, &mut bytes, stride, now, unix);
            self.pass_on(&bytes, Ecn::NotEct);
            self.transmit();
            left -= 1;
            let wss = self.wss.as_mut().filter(|_| left > 0);
            next = wss.and_then(Wss::receive_now);
        }
    }

    /// Sends what of a batch goes on, and with it what routers said of congestion so far.
    fn pass_on(&mut self, bytes: &[u8], ecn: Ecn) {
        while let Some(Run { to, place, stride }) = self.core.poll_run() {
            let bytes = bytes.get(place).unwrap_or_default();
            self.send(to, bytes, stride, ecn);
        }
    }

    fn transmit(&mut self) {
        while let Some((to, bytes)) = self.core.poll_transmit() {
            self.send(to, &bytes, bytes.len(), Ecn::NotEct);
        }
        self.alternates.transmit(&mut self.core);
    }

    /// Sends datagrams that lie end to end, or counts those that the kernel does not take.
    fn send(&mut self, to: SocketAddr, mut bytes: &[u8], stride: usize, ecn: Ecn) {
        if is_carrier(to) {
            let wss = self.wss.as_ref();
            if !wss.is_some_and(|wss| wss.send(to, bytes, stride)) {
                let unsent = bytes.len().div_ceil(stride.max(1));
                self.core.count_unsent(DropReason::CarrierQueueFull, unsent);
            }
            return;
        }
        let mut ports = self.sockets.iter();
        let port = ports.find(|port| port.local.is_ipv4() == to.is_ipv4());
        while !bytes.is_empty() {
            // Past the reactor, which would refuse until it has seen the socket writable.
            let sent = port.map(|port| port.udp.send_some(bytes, stride, to, ecn));
            let Some(Ok(count)) = sent else {
                let unsent = bytes.len().div_ceil(stride);
                self.core.count_unsent(DropReason::UdpSend, unsent);
                return;
            };
            bytes = bytes.get(count * stride..).unwrap_or_default();
        }
    }
}

/// Binds and runs a gateway.
pub async fn run(
    config: &GatewayConfig,
    keys: GatewayKeys,
    commands: mpsc::Receiver<GatewayCommand>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), GatewayError> {
    Gateway::bind(config, keys)?.run(commands, shutdown).await;
    Ok(())
}

/// What is remembered over a restart, written by a task of its own so that no frame waits for a disk.
#[derive(Debug)]
struct Memory {
    /// None when the file cannot be used; it is left as it is.
    writer: Option<(watch::Sender<Recovery>, JoinHandle<()>)>,
    /// The changes that were written.
    written: u64,
    /// When changes are written; None when there are none.
    due: Option<Instant>,
}

impl Memory {
    fn open(path: &Path) -> (Self, Recovery) {
        let (writer, known) = match StateFile::open::<Recovery>(path, RECOVERY_VERSION) {
            Ok((file, known)) => (Some(writer(file)), known.unwrap_or_default()),
            Err(error) => {
                tracing::warn!(%error, "Attachments are not remembered over a restart");
                (None, Recovery::default())
            }
        };
        let this = Self {
            writer,
            written: 0,
            due: None,
        };
        (this, known)
    }

    /// Gathers changes, and hands them to the writer when they are due.
    fn note(&mut self, core: &Core, now: Instant) {
        if self.due.is_some_and(|at| at <= now) {
            self.write(core);
        } else if self.due.is_none() && core.changes() != self.written {
            self.due = Some(now + WRITE_AFTER);
        }
    }

    fn write(&mut self, core: &Core) {
        self.due = None;
        self.written = core.changes();
        if let Some((writer, _)) = &self.writer {
            writer.send_replace(core.recovery());
        }
    }

    async fn close(mut self, core: &Core) {
        if self.written != core.changes() {
            self.write(core);
        }
        if let Some((writer, task)) = self.writer.take() {
            drop(writer);
            if let Err(error) = task.await {
                tracing::warn!(%error, "The writer of attachments ended early");
            }
        }
    }
}

fn writer(file: StateFile) -> (watch::Sender<Recovery>, JoinHandle<()>) {
    let (sender, mut receiver) = watch::channel(Recovery::default());
    let task = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Handle::current();
        while runtime.block_on(receiver.changed()).is_ok() {
            let recovery = receiver.borrow_and_update().clone();
            if let Err(error) = file.save(&recovery) {
                tracing::warn!(%error, "Attachments not remembered");
            }
        }
    });
    (sender, task)
}

/// Cancel safe, as [`Wss::receive`] is.
async fn came(wss: Option<&mut Wss>) -> Option<(SocketAddr, Vec<u8>, usize)> {
    match wss {
        Some(wss) => wss.receive().await,
        None => pending().await,
    }
}

/// Cancel safe: waits only.
async fn readable(port: Option<&Port>) {
    match port {
        Some(port) if port.readiness.readable().await.is_ok() => {}
        Some(_) | None => pending().await,
    }
}

/// Cancel safe: waits only.
async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => pending().await,
    }
}

fn is_without_version(error: &io::Error) -> bool {
    use nix::errno::Errno;
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(
        errno,
        Some(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL | Errno::EPROTONOSUPPORT)
    )
}

use std::{
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc,
    },
    task::{Context, Poll},
};

use nix::{errno::Errno, sys::eventfd::EventFd};
use tokio::sync::oneshot;

use crate::dataplane::counters::Snapshot;
use crate::dataplane::tables::{Realm, Tables};
use crate::engine::channel::Passed;
use crate::engine::{ChannelEvent, HopEvent};
use crate::id::OverlayIp;
use crate::wire::drop::DropReason;

/// Packets the engine may have under way to the worker: 10 ms at full rate, 6 MB at most.
const MAX_QUEUED: usize = 4096;

/// A packet of a local program that wants out.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OutPacket {
    pub local: OverlayIp,
    pub peer: OverlayIp,
    pub bytes: Vec<u8>,
}

/// A decrypted packet of a peer's session that wants in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct InPacket {
    /// The session's own agent, which must be the packet's destination.
    pub local: OverlayIp,
    /// The session's peer, which must be the packet's source.
    pub peer: OverlayIp,
    pub bytes: Vec<u8>,
}

/// A TUN device as the worker takes it over.
#[derive(Debug)]
pub struct Device {
    pub fd: OwnedFd,
    /// Whether a virtio header stands before each packet, and packets may be longer than the MTU.
    pub has_header: bool,
    /// Whether UDP datagrams may be handed over merged.
    pub has_udp_offload: bool,
}

/// What the worker has for the engine.
#[derive(Debug)]
pub enum FromWorker {
    /// The first packet of our channel `id` opened: the peer has the keys.
    ChannelUsed {
        local: OverlayIp,
        peer: OverlayIp,
        id: u32,
    },
    /// Datagrams of the underlay, with where they came from.
    Datagrams(Vec<(SocketAddr, Vec<u8>)>),
    /// Packets to installed peers that passed the filter and that no channel seals.
    Packets(Vec<OutPacket>),
    /// What channels carried since the last report.
    Passed(Vec<Passed>),
    /// The agent's device is gone: somebody deleted it.
    TunGone(OverlayIp),
    /// A packet to an agent that is not installed; once it is, [`DataplaneHandle::resume`] it, so
    /// that the filter sees its flow.
    Unknown(OutPacket),
}

/// What the engine has for the worker, in order.
#[derive(Debug)]
pub(super) enum Command {
    AddTun {
        local: OverlayIp,
        realm: Realm,
        device: Device,
        done: oneshot::Sender<io::Result<()>>,
    },
    Channel(ChannelEvent),
    Counters(oneshot::Sender<Snapshot>),
    Deliver(Vec<InPacket>),
    Hop(HopEvent),
    Inject {
        local: OverlayIp,
        bytes: Vec<u8>,
    },
    Publish(Tables, oneshot::Sender<()>),
    RemoveTun(OverlayIp, oneshot::Sender<()>),
    Resume(Vec<OutPacket>),
    Send(Vec<(SocketAddr, Vec<u8>)>),
    SendWhole(SocketAddr, Vec<u8>),
    Shutdown,
}

impl Command {
    /// Returns how many packets it carries.
    fn packets(&self) -> usize {
        match self {
            Self::Deliver(packets) => packets.len(),
            Self::Inject { .. } | Self::SendWhole(..) => 1,
            Self::Resume(packets) => packets.len(),
            Self::Send(datagrams) => datagrams.len(),
            Self::AddTun { .. }
            | Self::Channel(_)
            | Self::Counters(_)
            | Self::Hop(_)
            | Self::Publish(..)
            | Self::RemoveTun(..)
            | Self::Shutdown => 0,
        }
    }
}

/// What both ends of the command queue see.
#[derive(Debug)]
struct Shared {
    wake: EventFd,
    /// Packets in the queue.
    queued: AtomicUsize,
    /// Packets that found it full.
    overflown: AtomicU64,
}

/// The engine's end: no call ever waits for the worker.
///
/// Packets beyond the queue's bound are dropped and counted. What changes the worker's state is
/// never dropped, and takes effect after everything that was called before it.
#[derive(Clone, Debug)]
pub struct DataplaneHandle {
    // Dropped before `shared` wakes the worker, which then sees that nobody is left.
    commands: mpsc::Sender<Command>,
    shared: WakesOnDrop,
}

#[derive(Clone, Debug)]
struct WakesOnDrop(Arc<Shared>);

impl Drop for WakesOnDrop {
    fn drop(&mut self) {
        self.0.wake();
    }
}

impl DataplaneHandle {
    /// Sends datagrams into the underlay.
    pub fn send(&self, datagrams: Vec<(SocketAddr, Vec<u8>)>) {
        self.submit(Command::Send(datagrams));
    }

    /// Sends a datagram that is never cut in fragments.
    pub fn send_whole(&self, to: SocketAddr, bytes: Vec<u8>) {
        self.submit(Command::SendWhole(to, bytes));
    }

    /// Delivers decrypted packets to local programs, if the filter lets them.
    pub fn deliver(&self, packets: Vec<InPacket>) {
        self.submit(Command::Deliver(packets));
    }

    /// Makes, uses or ends a data channel; none is known before the tables name its pair.
    pub fn change_channel(&self, event: ChannelEvent) {
        self.submit(Command::Channel(event));
    }

    /// Makes or ends the hop by which an agent's frames go.
    pub fn change_hop(&self, event: HopEvent) {
        self.submit(Command::Hop(event));
    }

    /// Offers packets that came as [`FromWorker::Unknown`] again, now that their peer is published.
    pub fn resume(&self, packets: Vec<OutPacket>) {
        self.submit(Command::Resume(packets));
    }

    /// Puts a packet of our own making, such as an ICMPv6 error, into the TUN of `local`.
    pub fn inject(&self, local: OverlayIp, bytes: Vec<u8>) {
        self.submit(Command::Inject { local, bytes });
    }

    /// Replaces the tables.
    ///
    /// When the future resolves, nothing of a peer that `tables` lack is delivered any more, and
    /// the local ends of its connections have been reset. It need not be awaited to take effect.
    pub fn publish(&self, tables: Tables) -> Published {
        let (done, published) = oneshot::channel();
        self.submit(Command::Publish(tables, done));
        Published(published)
    }

    /// Hands over the TUN of `local`, which lives in `realm`; a former one is closed.
    pub async fn add_tun(&self, local: OverlayIp, realm: Realm, device: Device) -> io::Result<()> {
        let (done, added) = oneshot::channel();
        self.submit(Command::AddTun {
            local,
            realm,
            device,
            done,
        });
        added.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Closes the TUN of `local`, by which its device goes away, before it returns.
    pub async fn remove_tun(&self, local: OverlayIp) {
        let (done, removed) = oneshot::channel();
        self.submit(Command::RemoveTun(local, done));
        // A worker that has ended has closed it too.
        let _ended = removed.await;
    }

    /// Returns what the worker counted; empty once it has ended.
    pub async fn counters(&self) -> Snapshot {
        let (done, counters) = oneshot::channel();
        self.submit(Command::Counters(done));
        let mut snapshot = counters.await.unwrap_or_default();
        let overflown = self.shared.0.overflown.load(Ordering::Relaxed);
        snapshot.drops.add(DropReason::WorkerQueueFull, overflown);
        snapshot
    }

    /// Ends the worker after everything called before; its receiver ends once its socket and devices
    /// are closed.
    pub fn shutdown(&self) {
        self.submit(Command::Shutdown);
    }

    fn submit(&self, command: Command) {
        let n = command.packets();
        let before = self.shared.0.queued.fetch_add(n, Ordering::AcqRel);
        if n > 0 && before + n > MAX_QUEUED {
            self.shared.0.queued.fetch_sub(n, Ordering::AcqRel);
            self.shared
                .0
                .overflown
                .fetch_add(n as u64, Ordering::Relaxed);
            return;
        }
        // An error means that the worker has ended: dropped replies tell who waits for one.
        if self.commands.send(command).is_ok() {
            self.shared.0.wake();
        }
    }
}

/// Resolves when the worker works by the published tables.
#[derive(Debug)]
#[must_use = "await it where something must not happen before the tables are in force"]
pub struct Published(oneshot::Receiver<()>);

impl Future for Published {
    type Output = io::Result<()>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0)
            .poll(context)
            .map(|result| result.map_err(|_| gone()))
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the data plane has ended")
}

impl Shared {
    fn wake(&self) {
        // EAGAIN means that the counter is at its top, and so readable already.
        if let Err(errno) = self.wake.write(1)
            && errno != Errno::EAGAIN
        {
            tracing::error!(%errno, "Cannot wake the data plane");
        }
    }
}

/// The worker's end.
#[derive(Debug)]
pub(super) struct Commands {
    queue: mpsc::Receiver<Command>,
    shared: Arc<Shared>,
}

/// Makes both ends; `wake` becomes readable with every command.
pub(super) fn channel(wake: EventFd) -> (DataplaneHandle, Commands) {
    let (commands, queue) = mpsc::channel();
    let shared = Arc::new(Shared {
        wake,
        queued: AtomicUsize::new(0),
        overflown: AtomicU64::new(0),
    });
    let handle = DataplaneHandle {
        commands,
        shared: WakesOnDrop(Arc::clone(&shared)),
    };
    (handle, Commands { queue, shared })
}

impl Commands {
    /// Returns what becomes readable with every command.
    pub(super) fn wake(&self) -> &EventFd {
        &self.shared.wake
    }

    /// Makes `wake` readable, so that the worker comes back.
    pub(super) fn again(&self) {
        self.shared.wake();
    }

    /// Makes `wake` unreadable until the next command.
    pub(super) fn settle(&self) {
        // EAGAIN means that it was so already.
        let _count = self.shared.wake.read();
    }

    /// Takes the next command; all handles being dropped means shutdown.
    pub(super) fn next(&self) -> Option<Command> {
        match self.queue.try_recv() {
            Ok(command) => {
                let n = command.packets();
                self.shared.queued.fetch_sub(n, Ordering::AcqRel);
                Some(command)
            }
            Err(mpsc::TryRecvError::Empty) => None,
            Err(mpsc::TryRecvError::Disconnected) => Some(Command::Shutdown),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (DataplaneHandle, Commands) {
        channel(EventFd::from_flags(nix::sys::eventfd::EfdFlags::EFD_NONBLOCK).unwrap())
    }

    fn datagrams(n: usize) -> Vec<(SocketAddr, Vec<u8>)> {
        vec![("127.0.0.1:9".parse().unwrap(), vec![0]); n]
    }

    #[test]
    fn packets_beyond_the_bound_are_dropped_but_state_changes_are_not() {
        let (handle, commands) = pair();

        handle.send(datagrams(MAX_QUEUED));
        handle.send(datagrams(2));
        let _published = handle.publish(Tables::default());

        assert_eq!(handle.shared.0.overflown.load(Ordering::Relaxed), 2);
        assert!(matches!(commands.next(), Some(Command::Send(d)) if d.len() == MAX_QUEUED));
        assert!(matches!(commands.next(), Some(Command::Publish(..))));
        assert!(commands.next().is_none());
        handle.send(datagrams(1));
        assert!(matches!(commands.next(), Some(Command::Send(_))));
    }

    #[test]
    fn a_dropped_handle_ends_the_worker_and_an_ended_worker_is_told() {
        let (handle, commands) = pair();
        drop(handle);
        assert!(matches!(commands.next(), Some(Command::Shutdown)));

        let (handle, commands) = pair();
        drop(commands);
        let mut published = std::pin::pin!(handle.publish(Tables::default()));
        let mut context = Context::from_waker(std::task::Waker::noop());
        assert!(matches!(
            published.as_mut().poll(&mut context),
            Poll::Ready(Err(_))
        ));
    }
}

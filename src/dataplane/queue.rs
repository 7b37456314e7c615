mod carried;
#[cfg(test)]
mod tests;

use std::{
    cell::Cell,
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        mpsc,
    },
    task::{Context, Poll},
};

use nix::{errno::Errno, sys::eventfd::EventFd};
use tokio::sync::{Semaphore, oneshot};

pub(super) use carried::Carried;

use crate::dataplane::counters::Snapshot;
use crate::dataplane::shard::owner;
use crate::dataplane::tables::{Realm, Tables};
use crate::dataplane::tap::{self, Capture, MAX_TAPS, Tap, Wanted};
use crate::engine::channel::Passed;
use crate::engine::{ChannelEvent, HopEvent, Transmit};
use crate::id::OverlayIp;
use crate::os::wss;
use crate::policy::Pair;
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

/// A TUN device as the workers take it over.
#[derive(Debug)]
pub struct Device {
    /// Its queues: worker n reads the one at n and writes to it. Workers for whom there is none
    /// write to those of others.
    pub fds: Vec<OwnedFd>,
    /// Whether a virtio header stands before each packet, and packets may be longer than the MTU.
    pub has_header: bool,
    /// Whether UDP datagrams may be handed over merged.
    pub has_udp_offload: bool,
}

impl Device {
    /// Returns what each of `workers` workers gets of it.
    fn share(self, workers: usize) -> io::Result<Vec<Queue>> {
        let others = (self.fds.len()..workers).map(|n| {
            let fd = self.fds.get(n % self.fds.len().max(1));
            let none = || io::Error::new(io::ErrorKind::InvalidInput, "a device without queues");
            fd.ok_or_else(none)?.try_clone()
        });
        let others = others.collect::<io::Result<Vec<_>>>()?;
        let read = std::iter::repeat_n(true, self.fds.len());
        let fds = self.fds.into_iter().zip(read);
        let fds = fds.chain(others.into_iter().map(|fd| (fd, false)));
        let queue = |(fd, is_read)| Queue {
            fd,
            is_read,
            has_header: self.has_header,
            has_udp_offload: self.has_udp_offload,
        };
        Ok(fds.take(workers).map(queue).collect())
    }
}

/// One worker's part of a TUN device.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) fd: OwnedFd,
    /// Whether this worker reads it; one that another reads it only writes to.
    pub(super) is_read: bool,
    pub(super) has_header: bool,
    pub(super) has_udp_offload: bool,
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

/// What the engine has for one worker, in order.
#[derive(Debug)]
pub(super) enum Command {
    AddTun {
        local: OverlayIp,
        realm: Realm,
        queue: Queue,
        done: oneshot::Sender<io::Result<()>>,
    },
    /// Datagrams to an endpoint that stands for a connection go there.
    Carrier(SocketAddr, wss::Queue),
    /// Datagrams that a connection brought.
    Carried(Carried),
    Channel(ChannelEvent),
    Counters(oneshot::Sender<Snapshot>),
    Deliver(Vec<InPacket>),
    Hop(HopEvent),
    Inject {
        local: OverlayIp,
        bytes: Vec<u8>,
    },
    Publish {
        /// Rises with every publication.
        number: u64,
        tables: Arc<Tables>,
        done: oneshot::Sender<()>,
    },
    RemoveTun(OverlayIp, oneshot::Sender<()>),
    Resume(Vec<OutPacket>),
    Send(Vec<(SocketAddr, Vec<u8>)>),
    SendAlone(Transmit),
    Shutdown,
    /// Packets are shown there.
    Tap(Tap),
}

impl Command {
    /// Returns how many packets it carries.
    fn packets(&self) -> usize {
        match self {
            Self::Carried(all) => all.count(),
            Self::Deliver(packets) => packets.len(),
            Self::Inject { .. } | Self::SendAlone(_) => 1,
            Self::Resume(packets) => packets.len(),
            Self::Send(datagrams) => datagrams.len(),
            Self::AddTun { .. }
            | Self::Carrier(..)
            | Self::Channel(_)
            | Self::Counters(_)
            | Self::Hop(_)
            | Self::Publish { .. }
            | Self::RemoveTun(..)
            | Self::Shutdown
            | Self::Tap(_) => 0,
        }
    }
}

/// What both ends of one worker's command queue see.
#[derive(Debug)]
struct Shared {
    wake: EventFd,
    /// Packets in the queue.
    queued: AtomicUsize,
    /// Packets that found it full.
    overflown: AtomicU64,
    /// Whether a worker failed, and so none is to go on.
    has_failed: AtomicBool,
}

/// The engine's end: no call ever waits for the workers.
///
/// Packets beyond the queues' bound are dropped and counted. What changes the workers' state is
/// never dropped. What is of one pair takes effect in the order of the calls, and so does what is
/// for all workers with respect to it.
#[derive(Clone, Debug)]
pub struct DataplaneHandle(Arc<Lanes>);

#[derive(Debug)]
struct Lanes {
    lanes: Vec<Lane>,
    publications: AtomicU64,
    /// Places of those who capture.
    taps: Arc<Semaphore>,
}

/// The queue to one worker.
#[derive(Debug)]
struct Lane {
    // Dropped before `shared` wakes the worker, which then sees that nobody is left.
    commands: mpsc::Sender<Command>,
    shared: WakesOnDrop,
}

#[derive(Debug)]
struct WakesOnDrop(Arc<Shared>);

impl Drop for WakesOnDrop {
    fn drop(&mut self) {
        self.0.wake();
    }
}

impl DataplaneHandle {
    /// Returns how many workers there are, each with a queue of a device if it has that many.
    pub fn workers(&self) -> usize {
        self.0.lanes.len()
    }

    /// Sends datagrams into the underlay.
    pub fn send(&self, datagrams: Vec<(SocketAddr, Vec<u8>)>) {
        self.submit_first(Command::Send(datagrams));
    }

    /// Sends a datagram that travels in a way of its own.
    pub fn send_alone(&self, transmit: Transmit) {
        self.submit_first(Command::SendAlone(transmit));
    }

    /// Delivers decrypted packets to local programs, if the filter lets them.
    pub fn deliver(&self, packets: Vec<InPacket>) {
        let pair = |packet: &InPacket| Pair {
            local: packet.local,
            peer: packet.peer,
        };
        self.submit_parts(packets, pair, Command::Deliver);
    }

    /// Makes, uses or ends a data channel; none is known before the tables name its pair.
    pub fn change_channel(&self, event: ChannelEvent) {
        let pair = Pair {
            local: event.local,
            peer: event.peer,
        };
        if let Some(lane) = self.0.owner(&pair) {
            lane.submit(Command::Channel(event));
        }
    }

    /// Makes or ends the hop by which an agent's frames go.
    pub fn change_hop(&self, event: &HopEvent) {
        for lane in &self.0.lanes {
            lane.submit(Command::Hop(event.clone()));
        }
    }

    /// Offers packets that came as [`FromWorker::Unknown`] again, now that their peer is published.
    pub fn resume(&self, packets: Vec<OutPacket>) {
        let pair = |packet: &OutPacket| Pair {
            local: packet.local,
            peer: packet.peer,
        };
        self.submit_parts(packets, pair, Command::Resume);
    }

    /// Puts a packet of our own making, such as an ICMPv6 error, into the TUN of `local`.
    pub fn inject(&self, local: OverlayIp, bytes: Vec<u8>) {
        self.submit_first(Command::Inject { local, bytes });
    }

    /// Replaces the tables.
    ///
    /// When the future resolves, nothing of a peer that `tables` lack is delivered or sent any more,
    /// and the local ends of its connections have been reset. It need not be awaited to take effect.
    pub fn publish(&self, tables: Tables) -> Published {
        let number = self.0.publications.fetch_add(1, Ordering::Relaxed) + 1;
        let tables = Arc::new(tables);
        Published(self.submit_all(|done| Command::Publish {
            number,
            tables: Arc::clone(&tables),
            done,
        }))
    }

    /// Hands over the TUN of `local`, which lives in `realm`; a former one is closed.
    pub async fn add_tun(&self, local: OverlayIp, realm: Realm, device: Device) -> io::Result<()> {
        let queues = device.share(self.0.lanes.len())?;
        let mut added = Vec::with_capacity(queues.len());
        for (lane, queue) in self.0.lanes.iter().zip(queues) {
            let (done, is_added) = oneshot::channel();
            lane.submit(Command::AddTun {
                local,
                realm,
                queue,
                done,
            });
            added.push(is_added);
        }
        let mut result = Ok(());
        for added in added {
            result = result.and(added.await.unwrap_or_else(|_| Err(gone())));
        }
        if result.is_err() {
            self.remove_tun(local).await;
        }
        result
    }

    /// Closes the TUN of `local`, by which its device goes away, before it returns.
    pub async fn remove_tun(&self, local: OverlayIp) {
        for removed in self.submit_all(|done| Command::RemoveTun(local, done)) {
            // A worker that has ended has closed it too.
            let _ended = removed.await;
        }
    }

    /// Begins to show the packets that are wanted, also what the caller shows at the second end; None while too
    /// many capture already.
    pub fn capture(&self, wanted: Wanted) -> Option<(Capture, Tap)> {
        let place = Arc::clone(&self.0.taps).try_acquire_owned().ok()?;
        let (tap, capture) = tap::open(wanted, place);
        for lane in &self.0.lanes {
            lane.submit(Command::Tap(tap.clone()));
        }
        Some((capture, tap))
    }

    /// Returns what the workers counted; empty once they have ended.
    pub async fn counters(&self) -> Snapshot {
        let mut all: Option<Snapshot> = None;
        for counted in self.submit_all(Command::Counters) {
            let counted = counted.await.unwrap_or_default();
            match &mut all {
                Some(all) => all.merge(&counted),
                None => all = Some(counted),
            }
        }
        let mut all = all.unwrap_or_default();
        for lane in &self.0.lanes {
            let overflown = lane.shared.0.overflown.load(Ordering::Relaxed);
            all.drops.add(DropReason::WorkerQueueFull, overflown);
        }
        all
    }

    /// Ends the workers after everything called before; their receiver ends once their sockets and
    /// devices are closed.
    pub fn shutdown(&self) {
        for lane in &self.0.lanes {
            lane.submit(Command::Shutdown);
        }
    }

    fn submit_first(&self, command: Command) {
        if let Some(lane) = self.0.lanes.first() {
            lane.submit(command);
        }
    }

    /// Gives all workers a command, and returns their answers.
    fn submit_all<T>(
        &self,
        command: impl Fn(oneshot::Sender<T>) -> Command,
    ) -> Vec<oneshot::Receiver<T>> {
        let ask = |lane: &Lane| {
            let (done, answer) = oneshot::channel();
            lane.submit(command(done));
            answer
        };
        self.0.lanes.iter().map(ask).collect()
    }

    /// Gives each worker what is of its own pairs, in order.
    fn submit_parts<T>(
        &self,
        all: Vec<T>,
        pair: impl Fn(&T) -> Pair,
        command: impl Fn(Vec<T>) -> Command,
    ) {
        if let [only] = self.0.lanes.as_slice() {
            only.submit(command(all));
            return;
        }
        let mut parts = self.0.lanes.iter().map(|_| Vec::new()).collect::<Vec<_>>();
        for one in all {
            let owner = owner(&pair(&one), parts.len());
            if let Some(part) = parts.get_mut(owner) {
                part.push(one);
            }
        }
        for (lane, part) in self.0.lanes.iter().zip(parts) {
            if !part.is_empty() {
                lane.submit(command(part));
            }
        }
    }
}

impl Lanes {
    fn owner(&self, pair: &Pair) -> Option<&Lane> {
        self.lanes.get(owner(pair, self.lanes.len()))
    }
}

impl Lane {
    fn submit(&self, command: Command) {
        let n = command.packets();
        let shared = &self.shared.0;
        let before = shared.queued.fetch_add(n, Ordering::AcqRel);
        if n > 0 && before + n > MAX_QUEUED {
            shared.queued.fetch_sub(n, Ordering::AcqRel);
            shared.overflown.fetch_add(n as u64, Ordering::Relaxed);
            return;
        }
        // An error means that the worker has ended: dropped replies tell who waits for one.
        if self.commands.send(command).is_ok() {
            shared.wake();
        }
    }
}

/// Resolves when all workers work by the published tables.
#[derive(Debug)]
#[must_use = "await it where something must not happen before the tables are in force"]
pub struct Published(Vec<oneshot::Receiver<()>>);

impl Future for Published {
    type Output = io::Result<()>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(last) = self.0.last_mut() {
            match Pin::new(last).poll(context) {
                Poll::Ready(Ok(())) => drop(self.0.pop()),
                Poll::Ready(Err(_)) => return Poll::Ready(Err(gone())),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
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

/// One worker's end.
#[derive(Debug)]
pub(super) struct Commands {
    queue: mpsc::Receiver<Command>,
    shared: Arc<Shared>,
    /// Those of all workers.
    all: Arc<[Arc<Shared>]>,
    /// Whether it was told to end.
    is_over: Cell<bool>,
}

/// Makes both ends; each of `wakes` becomes readable with every command to its worker.
pub(super) fn channel(wakes: Vec<EventFd>) -> (DataplaneHandle, Vec<Commands>) {
    let shared = |wake| {
        Arc::new(Shared {
            wake,
            queued: AtomicUsize::new(0),
            overflown: AtomicU64::new(0),
            has_failed: AtomicBool::new(false),
        })
    };
    let all = wakes.into_iter().map(shared).collect::<Arc<[_]>>();
    let mut lanes = Vec::with_capacity(all.len());
    let mut ends = Vec::with_capacity(all.len());
    for shared in &*all {
        let (commands, queue) = mpsc::channel();
        lanes.push(Lane {
            commands,
            shared: WakesOnDrop(Arc::clone(shared)),
        });
        ends.push(Commands {
            queue,
            shared: Arc::clone(shared),
            all: Arc::clone(&all),
            is_over: Cell::new(false),
        });
    }
    let publications = AtomicU64::new(0);
    let handle = DataplaneHandle(Arc::new(Lanes {
        lanes,
        publications,
        taps: Arc::new(Semaphore::new(MAX_TAPS)),
    }));
    (handle, ends)
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

    /// Takes the next command; all handles being dropped means shutdown, as another worker's failure
    /// does: half a data plane is worse than none.
    pub(super) fn next(&self) -> Option<Command> {
        let next = match self.queue.try_recv() {
            _ if self.shared.has_failed.load(Ordering::Acquire) => Some(Command::Shutdown),
            Ok(command) => {
                let n = command.packets();
                self.shared.queued.fetch_sub(n, Ordering::AcqRel);
                Some(command)
            }
            Err(mpsc::TryRecvError::Empty) => None,
            Err(mpsc::TryRecvError::Disconnected) => Some(Command::Shutdown),
        };
        if matches!(next, Some(Command::Shutdown)) {
            self.is_over.set(true);
        }
        next
    }
}

impl Drop for Commands {
    fn drop(&mut self) {
        if !self.is_over.get() {
            for shared in &*self.all {
                shared.has_failed.store(true, Ordering::Release);
                shared.wake();
            }
        }
    }
}

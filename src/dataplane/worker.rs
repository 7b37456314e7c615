mod carried;
mod inbound;
mod outbound;

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        eventfd::{EfdFlags, EventFd},
    },
};
use tokio::sync::mpsc;

use crate::dataplane::aead::Library;
use crate::dataplane::batch::Batches;
use crate::dataplane::counters::Snapshot;
use crate::dataplane::offload::{Merger, VIRTIO};
use crate::dataplane::queue::{Command, Commands, DataplaneHandle, FromWorker, Queue, channel};
use crate::dataplane::shard::{MAX_WORKERS, Shards};
use crate::dataplane::steer::{self, SOCKETS};
use crate::dataplane::tables::{Realm, Tables};
use crate::dataplane::tap::Taps;
use crate::engine::ChannelEvent;
use crate::id::OverlayIp;
use crate::os::clock;
use crate::os::cpu;
use crate::os::realtime;
use crate::os::udp::UdpPort;
use crate::os::wss;
use crate::policy::Pair;
use crate::wire::drop::DropReason;
use crate::wire::ip::Ipv6View;

/// Batches under way to the engine; with [`BATCH`] 4096 packets.
const ENGINE_QUEUE: usize = 64;

/// Packets read from one device or socket before the others have their turn.
const BATCH: usize = 64;

/// The largest IP packet or UDP datagram, or as many datagrams as the kernel hands over at once.
const MAX_PACKET: usize = 65_536;

/// Datagrams, or runs of them, that one call receives before they are handed on.
const RECEIVES: usize = 8;

/// As many while several sockets have something, from one that gave so many bytes at a time before:
/// the sooner is it another's turn.
const SHARED_RECEIVES: usize = 2;
const SHARE: usize = SHARED_RECEIVES * MAX_PACKET;

/// A device or socket that gave something so long ago is idle: one read is tried and then the rest
/// waits for what that brought, so that a lone packet is on its way soonest.
const IDLE: Duration = Duration::from_micros(200);

/// How often the engine hears of what channels carried: often enough for it to notice within half
/// a second that nothing comes back.
const REPORT: Duration = Duration::from_millis(200);

const WAKE: u64 = 0;
const FIRST_UDP: u64 = 1;
const FIRST_TUN: u64 = FIRST_UDP + SOCKETS as u64;

/// What the workers are started with.
#[derive(Debug)]
pub struct DataplaneConfig {
    /// The underlay's sockets, which share one port: [`SOCKETS`], or one where they cannot.
    pub udp: Vec<UdpPort>,
    /// How many threads there are, 1 to 8; one where there is one socket.
    pub workers: usize,
    /// Whether workers go before all ordinary programs of the host.
    pub is_realtime: bool,
}

/// Starts the worker threads; they end on shutdown or when the handle is dropped.
pub fn start(config: DataplaneConfig) -> io::Result<(DataplaneHandle, mpsc::Receiver<FromWorker>)> {
    let sockets = config.udp.len();
    if ![1, SOCKETS].contains(&sockets) || !(1..=MAX_WORKERS).contains(&config.workers) {
        let error = "the data plane has one to eight workers, and a socket or one for each lane";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, error));
    }
    let count = config.workers.min(sockets);
    if let [first, _, ..] = config.udp.as_slice()
        && let Err(error) = first.choose_by(&steer::program())
    {
        tracing::info!(%error, "The kernel shares packets out among workers by their senders");
    }
    let mut udp = (0..count).map(|_| Vec::new()).collect::<Vec<_>>();
    for (socket, port) in config.udp.into_iter().enumerate() {
        if let Some(of_worker) = udp.get_mut(steer::worker_of(socket, count)) {
            of_worker.push(port);
        }
    }
    let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
    let wakes = (0..count).map(|_| EventFd::from_flags(flags));
    let (handle, ends) = channel(wakes.collect::<nix::Result<_>>()?);
    let (to_engine, from_worker) = mpsc::channel(ENGINE_QUEUE);
    let shards = Arc::new(Shards::new(count, library(), clock::now()));
    for (index, (commands, udp)) in ends.into_iter().zip(udp).enumerate() {
        let worker = Worker::new(index, commands, udp, Arc::clone(&shards), to_engine.clone())?;
        thread::Builder::new()
            .name(format!("dataplane-{index}"))
            .spawn(move || {
                if config.is_realtime {
                    go_first(index);
                }
                worker.run();
            })?;
    }
    Ok((handle, from_worker))
}

/// Has this thread go before ordinary ones; says once if it may not.
fn go_first(index: usize) {
    if let Err(error) = realtime::go_first()
        && index == 0
    {
        tracing::warn!(
            %error,
            "The data plane does not run in real time: that takes CAP_SYS_NICE \
             (in systemd: AmbientCapabilities=CAP_SYS_NICE and RestrictRealtime=no)"
        );
    }
}

pub(super) fn library() -> Library {
    if cpu::prefers_ring() {
        Library::Ring
    } else {
        Library::AwsLc
    }
}

/// What of a TUN wakes the worker.
const fn tun_interest(is_blocked: bool) -> EpollFlags {
    if is_blocked {
        EpollFlags::empty()
    } else {
        EpollFlags::EPOLLIN
    }
}

/// A thread's state; what belongs to pairs is shared with the others.
#[derive(Debug)]
struct Worker {
    /// Its number among the workers, and that of the part of pairs it owns.
    index: usize,
    shards: Arc<Shards>,
    epoll: Epoll,
    commands: Commands,
    /// Its sockets, by the first of which it sends.
    ports: Vec<Port>,
    /// What waits for connections, by the endpoints that stand for them.
    carriers: BTreeMap<SocketAddr, wss::Queue>,
    tuns: BTreeMap<OverlayIp, Tun>,
    next_token: u64,
    /// Agents whose device is gone, until the engine could be told.
    lost: Vec<OverlayIp>,
    /// Sealed packets on their way out.
    batches: Batches,
    /// Whether the first socket takes nothing now; until it does, no TUN is read.
    is_blocked: bool,
    /// When the engine is told what channels carried; None while they carry nothing.
    report_at: Option<Instant>,
    /// Parts of the pairs whose channels carried something by this worker since then.
    used: [bool; MAX_WORKERS],
    merger: Merger,
    /// Who captures.
    taps: Taps,
    /// Read once per wake-up and batch.
    now: Instant,
    seen: Snapshot,
    /// Datagrams of the underlay.
    received: Vec<u8>,
    /// One packet of a TUN, with its header.
    read: Vec<u8>,
    /// Last, so that whoever waits for its end finds everything else closed.
    to_engine: mpsc::Sender<FromWorker>,
}

/// A socket.
#[derive(Debug)]
struct Port {
    udp: UdpPort,
    /// When it last gave anything.
    read_at: Instant,
    /// Bytes that the last burst brought, and whether the kernel had merged datagrams of it.
    gave: usize,
    is_merged: bool,
}

#[derive(Debug)]
struct Tun {
    realm: Realm,
    token: u64,
    queue: Queue,
    /// When it last gave anything.
    read_at: Instant,
}

impl Worker {
    fn new(
        index: usize,
        commands: Commands,
        udp: Vec<UdpPort>,
        shards: Arc<Shards>,
        to_engine: mpsc::Sender<FromWorker>,
    ) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(commands.wake(), EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        for (udp, token) in udp.iter().zip(FIRST_UDP..) {
            epoll.add(udp, EpollEvent::new(EpollFlags::EPOLLIN, token))?;
            udp.merge_received();
        }
        let now = clock::now();
        let port = |udp| Port {
            udp,
            read_at: now,
            gave: 0,
            is_merged: false,
        };
        Ok(Self {
            index,
            shards,
            epoll,
            commands,
            ports: udp.into_iter().map(port).collect(),
            carriers: BTreeMap::new(),
            tuns: BTreeMap::new(),
            next_token: FIRST_TUN,
            lost: Vec::new(),
            batches: Batches::default(),
            is_blocked: false,
            report_at: None,
            used: [false; MAX_WORKERS],
            merger: Merger::default(),
            taps: Taps::default(),
            now,
            seen: Snapshot::default(),
            received: vec![0; MAX_PACKET * RECEIVES],
            read: vec![0; VIRTIO + MAX_PACKET],
            to_engine,
        })
    }

    fn run(mut self) {
        let mut events = [EpollEvent::empty(); 64];
        loop {
            let count = match self.epoll.wait(&mut events, self.timeout()) {
                Ok(count) => count,
                Err(Errno::EINTR) => continue,
                Err(errno) => {
                    tracing::error!(%errno, "The data plane ends: epoll failed");
                    return;
                }
            };
            self.now = clock::now();
            // Commands first: a revocation does not wait behind packets.
            let has_commands = events.iter().take(count).any(|event| event.data() == WAKE);
            if has_commands && !self.obey() {
                return;
            }
            let is_port = |event: &EpollEvent| (FIRST_UDP..FIRST_TUN).contains(&event.data());
            let ready = events.iter().take(count).filter(|event| is_port(event));
            let is_shared = ready.count() > 1;
            for event in events.iter().take(count) {
                match event.data() {
                    WAKE => {}
                    token if token < FIRST_TUN => {
                        if event.events().contains(EpollFlags::EPOLLOUT) {
                            self.flush();
                        }
                        self.read_udp((token - FIRST_UDP) as usize, is_shared);
                    }
                    token if !self.is_blocked => self.read_tun(token),
                    _ => {}
                }
            }
            self.report();
            self.report_lost();
        }
    }

    /// Carries out all commands; false means to end.
    fn obey(&mut self) -> bool {
        self.commands.settle();
        for _ in 0..BATCH {
            let Some(command) = self.commands.next() else {
                return true;
            };
            match command {
                Command::AddTun {
                    local,
                    realm,
                    queue,
                    done,
                } => {
                    let _told = done.send(self.add_tun(local, realm, queue));
                }
                Command::Carrier(at, queue) => {
                    self.carriers.insert(at, queue);
                }
                Command::Carried(all) => self.take_carried(&all),
                Command::Channel(event) => self.change_channel(event),
                Command::Counters(done) => {
                    let _told = done.send(self.seen.clone());
                }
                Command::Deliver(packets) => self.deliver_all(packets),
                Command::Hop(event) => {
                    // Each part is changed by its owner, and judges frames by a window of its own.
                    let shards = Arc::clone(&self.shards);
                    shards.hold().at(self.index).channels.change_hop(event);
                }
                Command::Inject { local, bytes } => self.inject(local, &bytes),
                Command::Publish {
                    number,
                    tables,
                    done,
                } => {
                    self.publish(number, &tables);
                    let _told = done.send(());
                }
                Command::RemoveTun(local, done) => {
                    self.remove_tun(local);
                    let _told = done.send(());
                }
                Command::Resume(packets) => self.resume(packets),
                Command::Send(datagrams) => self.send(&datagrams),
                Command::SendAlone(transmit) => self.send_alone(&transmit),
                Command::Shutdown => return false,
                Command::Tap(tap) => self.taps.add(tap),
            }
        }
        self.commands.again();
        true
    }

    fn change_channel(&self, event: ChannelEvent) {
        let pair = Pair {
            local: event.local,
            peer: event.peer,
        };
        let mut held = self.shards.hold();
        let shard = held.at(self.shards.of(&pair));
        if shard.switch.peers().contains_key(&pair) {
            shard.channels.change(pair, event.change);
        }
    }

    fn add_tun(&mut self, local: OverlayIp, realm: Realm, queue: Queue) -> io::Result<()> {
        self.remove_tun(local);
        let token = self.next_token;
        if queue.is_read {
            let interest = EpollEvent::new(tun_interest(self.is_blocked), token);
            self.epoll.add(&queue.fd, interest)?;
        }
        self.next_token += 1;
        let tun = Tun {
            realm,
            token,
            queue,
            read_at: self.now,
        };
        self.tuns.insert(local, tun);
        Ok(())
    }

    fn remove_tun(&mut self, local: OverlayIp) {
        if let Some(tun) = self.tuns.remove(&local) {
            // Closing alone does not take it out of the set while a duplicate is open elsewhere.
            let _absent = self.epoll.delete(&tun.queue.fd);
        }
    }

    /// Puts tables in force for all pairs, unless another worker was first. Whatever this worker
    /// seals from now on is sealed by these or newer ones, and so is what it keeps.
    fn publish(&mut self, number: u64, tables: &Arc<Tables>) {
        let shards = Arc::clone(&self.shards);
        let mut held = shards.hold();
        for index in 0..shards.count() {
            for (local, bytes) in held.at(index).publish(number, tables, self.now) {
                self.write_tun(local, &bytes);
            }
        }
        drop(held);
        let peers = &tables.peers;
        // What the socket has not taken yet is not sent any more either.
        let dropped = self.batches.retain(|pair| peers.contains_key(pair));
        self.seen.drops.add(DropReason::NoPeer, dropped);
        self.seen
            .delivered
            .retain(|pair, _| peers.contains_key(pair));
        self.seen.epoch = tables.epoch;
    }

    /// Our own packets pass no filter, but only their own agent gets them.
    fn inject(&mut self, local: OverlayIp, bytes: &[u8]) {
        match Ipv6View::parse(bytes) {
            Ok(view) if view.destination() == local.ip() => {
                self.write_tun(local, bytes);
            }
            Ok(_) => self.seen.drops.count(DropReason::TunDestination),
            Err(reason) => self.seen.drops.count(reason),
        }
    }

    /// Hands `count` packets to the engine, or drops and counts them: the worker never waits.
    fn offer(&mut self, count: usize, message: FromWorker) {
        let Err(unsent) = self.to_engine.try_send(message) else {
            return;
        };
        let reason = DropReason::EngineQueueFull;
        self.seen.drops.add(reason, count as u64);
        match unsent.into_inner() {
            FromWorker::Packets(all) => {
                for packet in all {
                    self.show_out(Some(reason), &packet);
                }
            }
            FromWorker::Unknown(packet) => self.show_out(Some(reason), &packet),
            FromWorker::ChannelUsed { .. }
            | FromWorker::Datagrams(_)
            | FromWorker::Passed(_)
            | FromWorker::TunGone(_) => {}
        }
    }

    /// Returns how long to wait for events: for ever, unless something is to be told.
    fn timeout(&self) -> EpollTimeout {
        let left = self.report_at.map(|at| {
            let left = at.saturating_duration_since(clock::now());
            // Rounded up, or the last millisecond would be spent spinning.
            u16::try_from(left.as_millis() + 1).unwrap_or(u16::MAX)
        });
        left.map_or(EpollTimeout::NONE, EpollTimeout::from)
    }

    /// Tells the engine what channels carried, if it is time.
    fn report(&mut self) {
        if self.report_at.is_none() && self.used.contains(&true) {
            self.report_at = Some(self.now + REPORT);
        }
        if self.report_at.is_none_or(|at| clock::now() < at) {
            return;
        }
        let Ok(room) = self.to_engine.try_reserve() else {
            // Told with the next report, when the queue has room.
            self.report_at = Some(self.now + REPORT);
            return;
        };
        self.report_at = None;
        let used = std::mem::take(&mut self.used);
        let mut held = self.shards.hold();
        let used = (0..MAX_WORKERS).zip(used).filter(|(_, is_used)| *is_used);
        // Another worker may have told of a part already.
        let passed = used.flat_map(|(index, _)| held.at(index).channels.take_passed());
        let passed = passed.collect::<Vec<_>>();
        if !passed.is_empty() {
            room.send(FromWorker::Passed(passed));
        }
    }

    /// Notes that channels of part `index` carried something.
    fn note_used(&mut self, index: usize) {
        if let Some(is_used) = self.used.get_mut(index) {
            *is_used = true;
        }
    }

    /// Tells the engine of lost devices; what does not fit its queue is told at the next wake-up.
    fn report_lost(&mut self) {
        let to_engine = &self.to_engine;
        self.lost
            .retain(|local| to_engine.try_send(FromWorker::TunGone(*local)).is_err());
    }
}

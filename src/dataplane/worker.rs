mod inbound;
mod outbound;

use std::{
    collections::BTreeMap,
    io, thread,
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
use crate::dataplane::channels::Channels;
use crate::dataplane::counters::Snapshot;
use crate::dataplane::halves::Halves;
use crate::dataplane::offload::{Merger, VIRTIO};
use crate::dataplane::queue::{Command, Commands, DataplaneHandle, Device, FromWorker, channel};
use crate::dataplane::switch::Switch;
use crate::dataplane::tables::{Realm, Tables};
use crate::id::OverlayIp;
use crate::os::clock;
use crate::os::cpu;
use crate::os::udp::UdpPort;
use crate::policy::Pair;
use crate::wire::drop::DropReason;
use crate::wire::ip::Ipv6View;

/// Batches under way to the engine; with [`BATCH`] 4096 packets.
const ENGINE_QUEUE: usize = 64;

/// Packets read from one device or socket before the others have their turn.
const BATCH: usize = 64;

/// The largest IP packet or UDP datagram, or as many datagrams as the kernel hands over at once.
const MAX_PACKET: usize = 65_536;

/// Calls that receive before what came is handed on: as many runs of datagrams are merged at most.
const RECEIVES: usize = 8;

/// A device or socket that gave something so long ago is idle: one read is tried and then the rest
/// waits for what that brought, so that a lone packet is on its way soonest.
const IDLE: Duration = Duration::from_micros(200);

/// How often the engine hears of what channels carried: often enough for it to notice within half
/// a second that nothing comes back.
const REPORT: Duration = Duration::from_millis(200);

const WAKE: u64 = 0;
const UDP: u64 = 1;
const FIRST_TUN: u64 = 2;

/// What the worker is started with.
#[derive(Debug)]
pub struct DataplaneConfig {
    /// The underlay's socket.
    pub udp: UdpPort,
}

/// Starts the worker thread; it ends on shutdown or when the handle is dropped.
pub fn start(config: DataplaneConfig) -> io::Result<(DataplaneHandle, mpsc::Receiver<FromWorker>)> {
    let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
    let (handle, commands) = channel(wake);
    let (to_engine, from_worker) = mpsc::channel(ENGINE_QUEUE);
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(commands.wake(), EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
    epoll.add(&config.udp, EpollEvent::new(EpollFlags::EPOLLIN, UDP))?;
    let now = clock::now();
    let worker = Worker {
        epoll,
        commands,
        to_engine,
        udp: config.udp,
        tuns: BTreeMap::new(),
        next_token: FIRST_TUN,
        lost: Vec::new(),
        switch: Switch::new(now),
        channels: Channels::new(library()),
        batches: Batches::default(),
        is_blocked: false,
        report_at: None,
        merger: Merger::default(),
        halves: Halves::default(),
        now,
        read_at: now,
        seen: Snapshot::default(),
        received: vec![0; MAX_PACKET * RECEIVES],
        read: vec![0; VIRTIO + MAX_PACKET],
    };
    worker.udp.merge_received();
    thread::Builder::new()
        .name("dataplane".to_owned())
        .spawn(move || worker.run())?;
    Ok((handle, from_worker))
}

fn library() -> Library {
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

/// The thread's state; nobody else sees it.
#[derive(Debug)]
struct Worker {
    epoll: Epoll,
    commands: Commands,
    to_engine: mpsc::Sender<FromWorker>,
    udp: UdpPort,
    tuns: BTreeMap<OverlayIp, Tun>,
    next_token: u64,
    /// Agents whose device is gone, until the engine could be told.
    lost: Vec<OverlayIp>,
    switch: Switch,
    channels: Channels,
    /// Sealed packets on their way out.
    batches: Batches,
    /// Whether the socket takes nothing now; until it does, no TUN is read.
    is_blocked: bool,
    /// When the engine is told what channels carried; None while they carry nothing.
    report_at: Option<Instant>,
    merger: Merger,
    halves: Halves,
    /// Read once per wake-up and batch.
    now: Instant,
    /// When the socket last gave anything.
    read_at: Instant,
    seen: Snapshot,
    /// Datagrams of the underlay.
    received: Vec<u8>,
    /// One packet of a TUN, with its header.
    read: Vec<u8>,
}

#[derive(Debug)]
struct Tun {
    realm: Realm,
    token: u64,
    device: Device,
    /// When it last gave anything.
    read_at: Instant,
}

impl Worker {
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
            for event in events.iter().take(count) {
                match event.data() {
                    WAKE => {}
                    UDP => {
                        if event.events().contains(EpollFlags::EPOLLOUT) {
                            self.flush();
                        }
                        self.read_udp();
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
                    device,
                    done,
                } => {
                    let _told = done.send(self.add_tun(local, realm, device));
                }
                Command::Channel(event) => {
                    let (local, peer) = (event.local, event.peer);
                    let pair = Pair { local, peer };
                    if self.switch.peers().contains_key(&pair) {
                        self.channels.change(pair, event.change);
                    }
                }
                Command::Counters(done) => {
                    self.seen.epoch = self.switch.epoch();
                    let _told = done.send(self.seen.clone());
                }
                Command::Deliver(packets) => self.deliver(packets),
                Command::Hop(event) => self.channels.change_hop(event),
                Command::Inject { local, bytes } => self.inject(local, &bytes),
                Command::Publish(tables, done) => {
                    self.publish(tables);
                    let _told = done.send(());
                }
                Command::RemoveTun(local, done) => {
                    self.remove_tun(local);
                    let _told = done.send(());
                }
                Command::Resume(packets) => self.resume(packets),
                Command::Send(datagrams) => self.send(&datagrams),
                Command::SendWhole(to, bytes) => {
                    let sent = self.udp.send_whole(&bytes, to);
                    self.note_sent(&sent, to);
                }
                Command::Shutdown => return false,
            }
        }
        self.commands.again();
        true
    }

    fn add_tun(&mut self, local: OverlayIp, realm: Realm, device: Device) -> io::Result<()> {
        self.remove_tun(local);
        let token = self.next_token;
        let interest = EpollEvent::new(tun_interest(self.is_blocked), token);
        self.epoll.add(&device.fd, interest)?;
        self.next_token += 1;
        let tun = Tun {
            realm,
            token,
            device,
            read_at: self.now,
        };
        self.tuns.insert(local, tun);
        Ok(())
    }

    fn remove_tun(&mut self, local: OverlayIp) {
        if let Some(tun) = self.tuns.remove(&local) {
            // Closing alone does not take it out of the set while a duplicate is open elsewhere.
            let _absent = self.epoll.delete(&tun.device.fd);
        }
    }

    fn publish(&mut self, tables: Tables) {
        for (local, bytes) in self.switch.publish(tables, self.now) {
            self.write_tun(local, &bytes);
        }
        let peers = self.switch.peers();
        self.channels.retain(|pair| peers.contains_key(pair));
        // What the socket has not taken yet is not sent any more either.
        let dropped = self.batches.retain(|pair| peers.contains_key(pair));
        self.seen.drops.add(DropReason::NoPeer, dropped);
        self.seen
            .delivered
            .retain(|pair, _| peers.contains_key(pair));
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
        if self.to_engine.try_send(message).is_err() {
            self.seen
                .drops
                .add(DropReason::EngineQueueFull, count as u64);
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
        if self.report_at.is_none() && self.channels.has_passed() {
            self.report_at = Some(self.now + REPORT);
        }
        if self.report_at.is_none_or(|at| clock::now() < at) {
            return;
        }
        self.report_at = None;
        let passed = self.channels.take_passed();
        if passed.is_empty() {
            return;
        }
        if let Err(error) = self.to_engine.try_send(FromWorker::Passed(passed)) {
            // Told with the next report, when the queue has room.
            if let FromWorker::Passed(passed) = error.into_inner() {
                self.channels.untake(passed);
                self.report_at = Some(self.now + REPORT);
            }
        }
    }

    /// Tells the engine of lost devices; what does not fit its queue is told at the next wake-up.
    fn report_lost(&mut self) {
        let to_engine = &self.to_engine;
        self.lost
            .retain(|local| to_engine.try_send(FromWorker::TunGone(*local)).is_err());
    }
}

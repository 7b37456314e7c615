use std::{collections::BTreeMap, io, net::SocketAddr, os::fd::OwnedFd, thread, time::Instant};

use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        eventfd::{EfdFlags, EventFd},
    },
    unistd,
};
use tokio::sync::mpsc;

use crate::dataplane::channel::{
    Command, Commands, DataplaneHandle, FromWorker, InPacket, OutPacket, channel,
};
use crate::dataplane::counters::Snapshot;
use crate::dataplane::switch::{Outbound, Switch};
use crate::dataplane::tables::{Realm, Tables};
use crate::id::OverlayIp;
use crate::os::clock;
use crate::os::udp::UdpPort;
use crate::policy::{Pair, Verdict};
use crate::wire::drop::DropReason;
use crate::wire::ip::Ipv6View;

/// Batches under way to the engine; with [`BATCH`] 4096 packets.
const ENGINE_QUEUE: usize = 64;

/// Packets read from one device or socket before the others have their turn.
const BATCH: usize = 64;

/// The largest IP packet or UDP datagram.
const MAX_PACKET: usize = 65_535;

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
        now,
        seen: Snapshot::default(),
        buffer: vec![0; MAX_PACKET],
    };
    thread::Builder::new()
        .name("dataplane".to_owned())
        .spawn(move || worker.run())?;
    Ok((handle, from_worker))
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
    /// Read once per wake-up and batch.
    now: Instant,
    seen: Snapshot,
    buffer: Vec<u8>,
}

#[derive(Debug)]
struct Tun {
    realm: Realm,
    token: u64,
    fd: OwnedFd,
}

impl Worker {
    fn run(mut self) {
        let mut events = [EpollEvent::empty(); 64];
        loop {
            let count = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(count) => count,
                Err(Errno::EINTR) => continue,
                Err(errno) => {
                    tracing::error!(%errno, "The data plane ends: epoll failed");
                    return;
                }
            };
            self.now = clock::now();
            // Commands first: a revocation does not wait behind packets.
            if !self.obey() {
                return;
            }
            for event in events.iter().take(count) {
                match event.data() {
                    WAKE => {}
                    UDP => self.read_udp(),
                    token => self.read_tun(token),
                }
            }
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
                    fd,
                    done,
                } => {
                    let _told = done.send(self.add_tun(local, realm, fd));
                }
                Command::Counters(done) => {
                    self.seen.epoch = self.switch.epoch();
                    let _told = done.send(self.seen.clone());
                }
                Command::Deliver(packets) => self.deliver(packets),
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
                Command::Shutdown => return false,
            }
        }
        self.commands.again();
        true
    }

    fn add_tun(&mut self, local: OverlayIp, realm: Realm, fd: OwnedFd) -> io::Result<()> {
        self.remove_tun(local);
        let token = self.next_token;
        self.epoll
            .add(&fd, EpollEvent::new(EpollFlags::EPOLLIN, token))?;
        self.next_token += 1;
        self.tuns.insert(local, Tun { realm, token, fd });
        Ok(())
    }

    fn remove_tun(&mut self, local: OverlayIp) {
        if let Some(tun) = self.tuns.remove(&local) {
            // Closing alone does not take it out of the set while a duplicate is open elsewhere.
            let _absent = self.epoll.delete(&tun.fd);
        }
    }

    fn publish(&mut self, tables: Tables) {
        for (local, bytes) in self.switch.publish(tables, self.now) {
            self.write_tun(local, &bytes);
        }
        let peers = self.switch.peers();
        self.seen
            .delivered
            .retain(|pair, _| peers.contains_key(pair));
    }

    fn deliver(&mut self, packets: Vec<InPacket>) {
        for packet in packets {
            match self.switch.inbound(&packet, self.now) {
                Verdict::Pass => {
                    if self.write_tun(packet.local, &packet.bytes) {
                        self.seen.tun_out.count(packet.bytes.len());
                        let InPacket { local, peer, .. } = packet;
                        self.seen.delivered.insert(Pair { local, peer }, self.now);
                    }
                }
                Verdict::Drop(reason) => self.seen.drops.count(reason),
            }
        }
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

    fn send(&mut self, datagrams: &[(SocketAddr, Vec<u8>)]) {
        for (to, bytes) in datagrams {
            match self.udp.send_to(bytes, *to) {
                Ok(_) => self.seen.udp_out.count(bytes.len()),
                Err(error) => {
                    tracing::trace!(%error, %to, "Datagram not sent");
                    self.seen.drops.count(DropReason::UdpSend);
                }
            }
        }
    }

    fn resume(&mut self, packets: Vec<OutPacket>) {
        let mut batch = Vec::with_capacity(packets.len());
        for packet in packets {
            let Some(tun) = self.tuns.get(&packet.local) else {
                self.seen.drops.count(DropReason::TunMissing);
                continue;
            };
            self.route_out(tun.realm, packet.bytes, &mut batch);
        }
        self.hand_over(batch);
    }

    fn read_udp(&mut self) {
        let mut batch = Vec::new();
        while batch.len() < BATCH {
            match self.udp.recv_from(&mut self.buffer) {
                Ok((length, from)) => {
                    let bytes = self.buffer.get(..length).unwrap_or_default().to_vec();
                    self.seen.udp_in.count(length);
                    batch.push((from, bytes));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    // Reading it has taken the socket's pending error away.
                    tracing::debug!(%error, "Datagram not received");
                    break;
                }
            }
        }
        if !batch.is_empty() {
            self.offer(batch.len(), FromWorker::Datagrams(batch));
        }
    }

    fn read_tun(&mut self, token: u64) {
        let mut batch = Vec::new();
        for _ in 0..BATCH {
            // Looked up each time: a command cannot have removed it, but an error below may.
            let Some((local, tun)) = self.tuns.iter().find(|(_, tun)| tun.token == token) else {
                break;
            };
            let (local, realm) = (*local, tun.realm);
            match unistd::read(&tun.fd, &mut self.buffer) {
                Ok(length) => {
                    let bytes = self.buffer.get(..length).unwrap_or_default().to_vec();
                    self.route_out(realm, bytes, &mut batch);
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(errno) => {
                    tracing::warn!(%errno, "A TUN device went away");
                    self.remove_tun(local);
                    self.lost.push(local);
                }
            }
        }
        self.hand_over(batch);
    }

    /// Decides over a packet of a local program; those to installed peers go to `batch`.
    fn route_out(&mut self, realm: Realm, bytes: Vec<u8>, batch: &mut Vec<OutPacket>) {
        let packet = |pair: Pair, bytes| OutPacket {
            local: pair.local,
            peer: pair.peer,
            bytes,
        };
        match self.switch.outbound(realm, &bytes, self.now) {
            Outbound::ToPeer(pair) => {
                self.seen.tun_in.count(bytes.len());
                batch.push(packet(pair, bytes));
            }
            Outbound::ToUnknown(pair) => self.offer(1, FromWorker::Unknown(packet(pair, bytes))),
            Outbound::Reset(reason, reset) => {
                self.seen.drops.count(reason);
                if let Ok(view) = Ipv6View::parse(&reset)
                    && let Ok(local) = OverlayIp::new(view.destination())
                {
                    self.write_tun(local, &reset);
                }
            }
            Outbound::Drop(reason) => self.seen.drops.count(reason),
        }
    }

    fn hand_over(&mut self, batch: Vec<OutPacket>) {
        if !batch.is_empty() {
            self.offer(batch.len(), FromWorker::Packets(batch));
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

    /// Tells the engine of lost devices; what does not fit its queue is told at the next wake-up.
    fn report_lost(&mut self) {
        let to_engine = &self.to_engine;
        self.lost
            .retain(|local| to_engine.try_send(FromWorker::TunGone(*local)).is_err());
    }

    /// Writes a packet to the TUN of `local`, or counts why not.
    fn write_tun(&mut self, local: OverlayIp, bytes: &[u8]) -> bool {
        let Some(tun) = self.tuns.get(&local) else {
            self.seen.drops.count(DropReason::TunMissing);
            return false;
        };
        match unistd::write(&tun.fd, bytes) {
            Ok(_) => true,
            Err(errno) => {
                tracing::trace!(%errno, "Packet not written");
                self.seen.drops.count(DropReason::TunWrite);
                false
            }
        }
    }
}

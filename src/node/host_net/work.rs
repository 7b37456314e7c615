//! The thread that waits for the device and for the host's sockets, and owns all flows.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
};
use smoltcp::iface::SocketSet;
use tracing::{debug, warn};

use crate::id::OverlayIp;
use crate::node::host_net::{
    datagram::{self, Kind},
    guard::Guard,
    packet::{self, Carried, Ends, Unreachable},
    stack::Stack,
    tcp::{self, Fate, NoFlow},
};
use crate::os::clock;

/// TCP flows at once. With those of datagrams they stay below the 1024 descriptors that a process
/// commonly has, and below 64 MiB of buffers.
const MOST_TCP: usize = 512;

/// Flows of datagrams at once; the one that was silent longest makes room.
const MOST_DATAGRAM: usize = 256;

/// Packets of the program in one go, before the host's sockets get their turn.
const BURST: usize = 64;

/// Events in one go.
const EVENTS: usize = 128;

/// How often silent flows are looked for.
const SWEEP: Duration = Duration::from_secs(10);

const DEVICE: u64 = 0;
const STOP: u64 = 1;
const FIRST: u64 = 2;

type DatagramKey = (Kind, Ends);

/// What a token of epoll stands for.
#[derive(Clone, Copy)]
enum Flow {
    Tcp(Ends),
    Datagram(DatagramKey),
}

pub(super) struct Work {
    epoll: Epoll,
    stack: Stack,
    guard: Guard,
    tcp: BTreeMap<Ends, (u64, tcp::Flow)>,
    datagrams: BTreeMap<DatagramKey, (u64, datagram::Flow)>,
    tokens: BTreeMap<u64, Flow>,
    next_token: u64,
    /// When flows want a turn, though nothing comes.
    due: BTreeMap<Ends, Instant>,
    swept: Instant,
    has_warned: bool,
}

impl Work {
    pub(super) fn new(
        tun: OwnedFd,
        local: OverlayIp,
        seed: [u8; 32],
        now: Instant,
    ) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let stack = Stack::new(tun, seed, now);
        epoll.add(stack.device(), EpollEvent::new(EpollFlags::EPOLLIN, DEVICE))?;
        Ok(Self {
            epoll,
            stack,
            guard: Guard::new(local),
            tcp: BTreeMap::new(),
            datagrams: BTreeMap::new(),
            tokens: BTreeMap::new(),
            next_token: FIRST,
            due: BTreeMap::new(),
            swept: now,
            has_warned: false,
        })
    }

    /// Ends when `stop` can be read.
    pub(super) fn stop_at(&self, stop: &impl AsFd) -> io::Result<()> {
        Ok(self
            .epoll
            .add(stop, EpollEvent::new(EpollFlags::EPOLLIN, STOP))?)
    }

    /// Carries packets until it is to stop, or the device is gone.
    pub(super) fn run(&mut self) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); EVENTS];
        loop {
            let wait = self.wait(clock::now());
            let count = match self.epoll.wait(&mut events, wait) {
                Err(Errno::EINTR) => 0,
                count => count?,
            };
            let now = clock::now();
            for event in events.iter().take(count) {
                match event.data() {
                    STOP => return Ok(()),
                    DEVICE => self.read(now)?,
                    token => self.ready(token, event.events(), now),
                }
            }
            self.serve_due(now);
            self.sweep(now);
        }
    }

    fn wait(&self, now: Instant) -> EpollTimeout {
        let due = self.due.values().min().copied();
        let sweep = (!self.tokens.is_empty()).then_some(self.swept + SWEEP);
        let Some(next) = due.into_iter().chain(sweep).min() else {
            return EpollTimeout::NONE;
        };
        // Rounded up, so that it is due when we wake up.
        let wait = next.saturating_duration_since(now) + Duration::from_millis(1);
        EpollTimeout::try_from(wait).unwrap_or(EpollTimeout::MAX)
    }

    fn read(&mut self, now: Instant) -> io::Result<()> {
        for _ in 0..BURST {
            if self.stack.read()?.is_none() {
                return Ok(());
            }
            self.packet(now);
        }
        Ok(())
    }

    /// Takes the packet that was read last.
    fn packet(&mut self, now: Instant) {
        let Some((ends, carried)) = packet::parse(self.stack.packet()) else {
            return;
        };
        if !Guard::is_inside(ends.from.ip()) {
            return;
        }
        if !self.guard.admits(ends.to.ip()) {
            if !ends.to.ip().is_multicast() {
                self.refuse(ends, Unreachable::Prohibited);
            }
            return;
        }
        match carried {
            Carried::Tcp { begins } => self.segment(ends, begins, now),
            Carried::Udp(_) => self.datagram(Kind::Datagram, ends, now),
            Carried::Echo { .. } => self.datagram(Kind::Echo, ends, now),
        }
    }

    fn refuse(&self, ends: Ends, why: Unreachable) {
        if let Some(error) = packet::unreachable(ends, self.stack.packet(), why) {
            self.stack.write(&error);
        }
    }

    fn segment(&mut self, ends: Ends, begins: bool, now: Instant) {
        if let Some((_, flow)) = self.tcp.get_mut(&ends) {
            let fate = flow.take(&mut self.stack, now);
            self.after(ends, fate, now);
            return;
        }
        if !begins || self.tcp.len() >= MOST_TCP {
            if begins {
                self.warn("too many connections at once");
            }
            self.reset(now);
            return;
        }
        match tcp::Flow::begin(ends, self.stack.packet(), now) {
            Ok(flow) => {
                let token = self.token(Flow::Tcp(ends));
                if self.watch(flow.host(), token, true).is_err() {
                    self.tokens.remove(&token);
                    self.reset(now);
                    return;
                }
                self.tcp.insert(ends, (token, flow));
            }
            Err(why) => self.no_flow(ends, why, now),
        }
    }

    /// Tells the program why the flow that the packet read last would begin does not.
    fn no_flow(&mut self, ends: Ends, why: NoFlow, now: Instant) {
        match why {
            NoFlow::Refused => self.reset(now),
            NoFlow::Silence => {}
            NoFlow::Unreachable(why) => self.refuse(ends, why),
        }
    }

    /// Answers the packet that was read last by a reset.
    fn reset(&mut self, now: Instant) {
        let mut nobody = SocketSet::new(Vec::new());
        self.stack.take(&mut nobody, now);
    }

    fn datagram(&mut self, kind: Kind, ends: Ends, now: Instant) {
        let key = (kind, ends);
        if !self.datagrams.contains_key(&key) {
            self.make_room();
            let begun = datagram::Flow::begin(kind, ends, now).and_then(|flow| {
                let token = self.token(Flow::Datagram(key));
                self.watch(flow.host(), token, false)?;
                Ok((token, flow))
            });
            match begun {
                Ok(flow) => drop(self.datagrams.insert(key, flow)),
                Err(error) => {
                    debug!(%error, "A datagram is not carried");
                    self.refuse(ends, datagram::why(&error));
                    return;
                }
            }
        }
        let packet = self.stack.packet();
        let Some((_, carried)) = packet::parse(packet) else {
            return;
        };
        let Some((_, flow)) = self.datagrams.get_mut(&key) else {
            return;
        };
        match flow.send(carried, packet, now) {
            // As a network does that is busy.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => self.refuse(ends, datagram::why(&error)),
            Ok(()) => {}
        }
    }

    fn make_room(&mut self) {
        if self.datagrams.len() < MOST_DATAGRAM {
            return;
        }
        let oldest = self.datagrams.iter().min_by_key(|(_, (_, flow))| flow.last);
        if let Some(key) = oldest.map(|(key, _)| *key) {
            self.forget(key);
        }
    }

    fn forget(&mut self, key: DatagramKey) {
        if let Some((token, _)) = self.datagrams.remove(&key) {
            self.tokens.remove(&token);
        }
    }

    fn token(&mut self, of: Flow) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        self.tokens.insert(token, of);
        token
    }

    fn watch(&self, host: BorrowedFd<'_>, token: u64, both: bool) -> io::Result<()> {
        let mut flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        if both {
            flags |= EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP;
        }
        Ok(self.epoll.add(host, EpollEvent::new(flags, token))?)
    }

    /// Takes that a socket of the host's is ready for something.
    fn ready(&mut self, token: u64, events: EpollFlags, now: Instant) {
        let broken = EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP;
        match self.tokens.get(&token).copied() {
            Some(Flow::Tcp(ends)) => {
                let Some((_, flow)) = self.tcp.get_mut(&ends) else {
                    return;
                };
                let ended = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | broken;
                let can = (
                    events.intersects(ended),
                    events.intersects(EpollFlags::EPOLLOUT | broken),
                );
                match flow.ready(can, &mut self.stack, now) {
                    Ok(fate) => self.after(ends, fate, now),
                    Err(why) => self.failed(ends, why, now),
                }
            }
            Some(Flow::Datagram(key)) => {
                if let Some((_, flow)) = self.datagrams.get_mut(&key) {
                    flow.receive(&self.stack, now);
                }
            }
            // One that ended a moment ago.
            None => {}
        }
    }

    /// Tells the program that its flow will not begin.
    fn failed(&mut self, ends: Ends, why: NoFlow, now: Instant) {
        let Some((token, flow)) = self.tcp.remove(&ends) else {
            return;
        };
        self.tokens.remove(&token);
        match why {
            NoFlow::Silence => {}
            NoFlow::Refused => {
                let mut nobody = SocketSet::new(Vec::new());
                self.stack.take_again(flow.syn(), &mut nobody, now);
            }
            NoFlow::Unreachable(why) => {
                if let Some(error) = packet::unreachable(ends, flow.syn(), why) {
                    self.stack.write(&error);
                }
            }
        }
    }

    /// Notes when a flow wants its next turn, or that it is over.
    fn after(&mut self, ends: Ends, fate: Fate, now: Instant) {
        self.due.remove(&ends);
        match fate {
            Fate::Over => {
                if let Some((token, _)) = self.tcp.remove(&ends) {
                    self.tokens.remove(&token);
                }
            }
            Fate::Goes => {
                let flow = self.tcp.get(&ends);
                if let Some(due) = flow.and_then(|(_, flow)| flow.due(&mut self.stack, now)) {
                    self.due.insert(ends, due);
                }
            }
        }
    }

    fn serve_due(&mut self, now: Instant) {
        let due = self.due.iter().filter(|(_, at)| **at <= now);
        for ends in due.map(|(ends, _)| *ends).collect::<Vec<_>>() {
            if let Some((_, flow)) = self.tcp.get_mut(&ends) {
                let fate = flow.pump(&mut self.stack, now);
                self.after(ends, fate, now);
            }
        }
    }

    /// Ends flows that were silent for too long.
    fn sweep(&mut self, now: Instant) {
        if now < self.swept + SWEEP {
            return;
        }
        self.swept = now;
        let silent = |last: Instant, most| now.saturating_duration_since(last) > most;
        let old = self.datagrams.iter();
        let old = old.filter(|(_, (_, flow))| silent(flow.last, datagram::IDLE));
        for key in old.map(|(key, _)| *key).collect::<Vec<_>>() {
            self.forget(key);
        }
        let old = self.tcp.iter();
        let old = old.filter(|(_, (_, flow))| silent(flow.last, tcp::IDLE));
        for ends in old.map(|(ends, _)| *ends).collect::<Vec<_>>() {
            if let Some((_, flow)) = self.tcp.get_mut(&ends) {
                flow.abort(&mut self.stack, now);
            }
            self.after(ends, Fate::Over, now);
        }
    }

    fn warn(&mut self, why: &str) {
        if !self.has_warned {
            warn!(
                why,
                "The host's network refuses a connection of the program"
            );
            self.has_warned = true;
        }
    }
}

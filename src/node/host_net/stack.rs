//! The program's device, and the TCP that is spoken on it.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use smoltcp::{
    iface::{Config, Interface, SocketSet},
    phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken},
    time::Instant as Moment,
    wire::HardwareAddress,
};

/// The largest packet there is, so that programs have no reason to cut datagrams into fragments.
pub(in crate::node) const MTU: u16 = u16::MAX; // bytes

const LONGEST: usize = MTU as usize;

/// TCP for any address, over one device; the state of each flow is its own.
pub(super) struct Stack {
    wire: Wire,
    interface: Interface,
    start: Instant,
}

impl Stack {
    pub(super) fn new(tun: OwnedFd, seed: [u8; 32], now: Instant) -> Self {
        let mut wire = Wire {
            tun,
            inbox: vec![0; LONGEST],
            length: 0,
            is_taken: true,
            outbox: Vec::new(),
        };
        let mut config = Config::new(HardwareAddress::Ip);
        let [a, b, c, d, e, f, g, h, ..] = seed;
        config.random_seed = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        let mut interface = Interface::new(config, &mut wire, Moment::ZERO);
        // Whoever the program wants to reach, we answer in its place.
        interface.set_any_ip(true);
        Self {
            wire,
            interface,
            start: now,
        }
    }

    pub(super) fn device(&self) -> BorrowedFd<'_> {
        self.wire.tun.as_fd()
    }

    /// Reads the next packet of the program; None when there is none now.
    pub(super) fn read(&mut self) -> io::Result<Option<()>> {
        self.wire.is_taken = true;
        match nix::unistd::read(&self.wire.tun, &mut self.wire.inbox) {
            Ok(length) => {
                self.wire.length = length;
                Ok(Some(()))
            }
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns the packet that was read last.
    pub(super) fn packet(&self) -> &[u8] {
        self.wire.inbox.get(..self.wire.length).unwrap_or_default()
    }

    /// Sends a packet to the program; like any network it may lose it.
    pub(super) fn write(&self, packet: &[u8]) {
        let _lost = nix::unistd::write(&self.wire.tun, packet);
    }

    /// Has a flow take the packet that was read last; without a socket for it, it is reset.
    pub(super) fn take(&mut self, sockets: &mut SocketSet<'static>, now: Instant) {
        self.wire.is_taken = false;
        self.turn(sockets, now);
        self.wire.is_taken = true;
    }

    /// Has a flow take a packet of earlier.
    pub(super) fn take_again(
        &mut self,
        packet: &[u8],
        sockets: &mut SocketSet<'static>,
        now: Instant,
    ) {
        let length = packet.len().min(LONGEST);
        let place = self.wire.inbox.iter_mut();
        for (place, byte) in place.zip(packet) {
            *place = *byte;
        }
        self.wire.length = length;
        self.take(sockets, now);
    }

    /// Has a flow send what is due.
    pub(super) fn turn(&mut self, sockets: &mut SocketSet<'static>, now: Instant) {
        let now = self.moment(now);
        self.interface.poll(now, &mut self.wire, sockets);
    }

    /// Returns when a flow wants its next turn; None while nothing is under way.
    pub(super) fn due(&mut self, sockets: &SocketSet<'static>, now: Instant) -> Option<Instant> {
        let moment = self.moment(now);
        let delay = self.interface.poll_delay(moment, sockets)?;
        Some(now + Duration::from_micros(delay.total_micros()))
    }

    fn moment(&self, now: Instant) -> Moment {
        let since = now.saturating_duration_since(self.start);
        Moment::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }
}

/// The device as smoltcp sees it: one packet in at a time.
struct Wire {
    tun: OwnedFd,
    inbox: Vec<u8>,
    /// Of the packet in the inbox.
    length: usize,
    is_taken: bool,
    outbox: Vec<u8>,
}

struct In<'a>(&'a [u8]);

struct Out<'a> {
    tun: &'a OwnedFd,
    buffer: &'a mut Vec<u8>,
}

impl RxToken for In<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl TxToken for Out<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        self.buffer.clear();
        self.buffer.resize(length, 0);
        let made = f(self.buffer);
        // What the kernel does not take is repeated, as TCP does.
        let _lost = nix::unistd::write(self.tun, self.buffer);
        made
    }
}

impl Device for Wire {
    type RxToken<'a> = In<'a>;
    type TxToken<'a> = Out<'a>;

    fn receive(&mut self, _: Moment) -> Option<(In<'_>, Out<'_>)> {
        if std::mem::replace(&mut self.is_taken, true) {
            return None;
        }
        let Self {
            tun,
            inbox,
            length,
            outbox,
            ..
        } = self;
        let received = In(inbox.get(..*length)?);
        Some((
            received,
            Out {
                tun,
                buffer: outbox,
            },
        ))
    }

    fn transmit(&mut self, _: Moment) -> Option<Out<'_>> {
        Some(Out {
            tun: &self.tun,
            buffer: &mut self.outbox,
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = LONGEST;
        capabilities
    }
}

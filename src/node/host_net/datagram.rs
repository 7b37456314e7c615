//! Datagrams and echoes: each flow is a connected socket of the host's, so that nobody but the one
//! the program speaks to can answer.

use std::{
    io::{self, ErrorKind},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, ipproto, recv, send,
    socket_with,
};

use crate::node::host_net::{
    packet::{self, Carried, Ends, Unreachable},
    stack::Stack,
};

/// How long nothing may pass before a flow is forgotten (RFC 4787 REQ-5).
pub(super) const IDLE: Duration = Duration::from_secs(300);

/// Largest datagram.
const LONGEST: usize = 65_535; // bytes

/// What an echo has before its data: type, code, checksum, identifier, sequence number.
const ECHO_HEADER: usize = 8; // bytes

/// Types of echo requests (RFC 792, RFC 4443 section 4.1).
const REQUEST_V4: u8 = 8;
const REQUEST_V6: u8 = 128;

/// What flows are made of.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Kind {
    Datagram,
    Echo,
}

/// One flow.
pub(super) struct Flow {
    kind: Kind,
    ends: Ends,
    host: OwnedFd,
    /// The packet that was sent last, to be quoted in errors.
    sent: Vec<u8>,
    pub(super) last: Instant,
}

impl Flow {
    pub(super) fn begin(kind: Kind, ends: Ends, now: Instant) -> io::Result<Self> {
        let host = match kind {
            Kind::Datagram => {
                let any = match ends.to {
                    SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
                    SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
                };
                let socket = UdpSocket::bind(any)?;
                socket.set_nonblocking(true)?;
                OwnedFd::from(socket)
            }
            Kind::Echo => {
                let (family, protocol) = match ends.to {
                    SocketAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP),
                    SocketAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6),
                };
                let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
                socket_with(family, SocketType::DGRAM, flags, Some(protocol))?
            }
        };
        connect(&host, &ends.to)?;
        Ok(Self {
            kind,
            ends,
            host,
            sent: Vec::new(),
            last: now,
        })
    }

    pub(super) fn host(&self) -> BorrowedFd<'_> {
        self.host.as_fd()
    }

    /// Sends what `packet` carries.
    pub(super) fn send(
        &mut self,
        carried: Carried<'_>,
        packet: &[u8],
        now: Instant,
    ) -> io::Result<()> {
        self.last = now;
        let quoted = packet.get(..packet.len().min(128)).unwrap_or_default();
        quoted.clone_into(&mut self.sent);
        match carried {
            Carried::Udp(data) => send(&self.host, data, SendFlags::empty())?,
            Carried::Echo { sequence, data } => {
                let kind = if self.ends.to.is_ipv4() {
                    REQUEST_V4
                } else {
                    REQUEST_V6
                };
                // The kernel fills in checksum and identifier.
                let mut message = vec![kind, 0, 0, 0, 0, 0];
                message.extend(sequence.to_be_bytes());
                message.extend(data);
                send(&self.host, &message, SendFlags::empty())?
            }
            Carried::Tcp { .. } => 0,
        };
        Ok(())
    }

    /// Hands the program what came.
    pub(super) fn receive(&mut self, stack: &Stack, now: Instant) {
        let mut buffer = vec![0; LONGEST];
        loop {
            match recv(&self.host, &mut buffer[..], RecvFlags::empty()) {
                Ok((length, _)) => {
                    self.last = now;
                    let data = buffer.get(..length).unwrap_or_default();
                    if let Some(packet) = self.answer(data) {
                        stack.write(&packet);
                    }
                }
                Err(rustix::io::Errno::AGAIN) => return,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    let why = why(&error.into());
                    if let Some(packet) = packet::unreachable(self.ends, &self.sent, why) {
                        stack.write(&packet);
                    }
                }
            }
        }
    }

    fn answer(&self, data: &[u8]) -> Option<Vec<u8>> {
        match self.kind {
            Kind::Datagram => packet::datagram(self.ends, data),
            Kind::Echo => {
                let [_, _, _, _, _, _, high, low] = *data.first_chunk::<ECHO_HEADER>()?;
                let sequence = u16::from_be_bytes([high, low]);
                packet::echo(self.ends, sequence, data.get(ECHO_HEADER..)?)
            }
        }
    }
}

/// Tells the program why a datagram does not get where it is to.
pub(super) fn why(error: &io::Error) -> Unreachable {
    let is = |kinds: &[ErrorKind]| kinds.contains(&error.kind());
    if is(&[ErrorKind::ConnectionRefused]) {
        Unreachable::Port
    } else if is(&[ErrorKind::PermissionDenied]) {
        Unreachable::Prohibited
    } else if is(&[ErrorKind::NetworkUnreachable, ErrorKind::AddrNotAvailable]) {
        Unreachable::Network
    } else {
        Unreachable::Host
    }
}

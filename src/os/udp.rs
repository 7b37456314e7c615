//! The UDP socket of the underlay: both IP versions on one port.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind as bind_fd, setsockopt, socket,
        sockopt::{Ipv6V6Only, RcvBuf, RcvBufForce, SndBuf, SndBufForce},
    },
};
use thiserror::Error;

/// Holds a burst of 3,000 full datagrams while the worker is busy elsewhere.
const BUFFER: usize = 4 << 20;

/// What stops a socket from being bound.
#[derive(Debug, Error)]
pub enum UdpError {
    #[error("UDP port {0} is in use by another program")]
    PortInUse(u16),
    #[error("not permitted to bind UDP port {0}")]
    Denied(u16),
    #[error("cannot bind UDP port {port}")]
    Os {
        port: u16,
        #[source]
        source: io::Error,
    },
}

/// A bound nonblocking socket that takes and gives addresses of both versions as they are.
#[derive(Debug)]
pub struct UdpPort {
    socket: UdpSocket,
    /// False where the host has no IPv6.
    is_dual: bool,
}

/// Binds `port` (0 = any free one) for IPv6 and IPv4, or for IPv4 alone where there is no IPv6.
pub fn bind(port: u16) -> Result<UdpPort, UdpError> {
    let mut bound = open(port, true);
    if let Err(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL | Errno::EPROTONOSUPPORT) = bound {
        bound = open(port, false);
    }
    bound.map_err(|errno| classify(port, io::Error::from(errno)))
}

/// Binds one address of one IP version, as servers are told to.
pub fn bind_at(address: SocketAddr) -> Result<UdpSocket, UdpError> {
    open_at(address).map_err(|errno| classify(address.port(), io::Error::from(errno)))
}

fn open_at(address: SocketAddr) -> nix::Result<UdpSocket> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(family, SockType::Datagram, flags, None)?;
    if address.is_ipv6() {
        setsockopt(&fd, Ipv6V6Only, &true)?;
    }
    enlarge(&fd)?;
    bind_fd(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(UdpSocket::from(fd))
}

/// Sets both buffers; beyond `net.core.rmem_max` takes a privilege, and what can be had is good enough.
fn enlarge(fd: &OwnedFd) -> nix::Result<()> {
    if setsockopt(fd, RcvBufForce, &BUFFER).is_err() {
        setsockopt(fd, RcvBuf, &BUFFER)?;
    }
    if setsockopt(fd, SndBufForce, &BUFFER).is_err() {
        setsockopt(fd, SndBuf, &BUFFER)?;
    }
    Ok(())
}

fn classify(port: u16, source: io::Error) -> UdpError {
    match source.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EADDRINUSE) => UdpError::PortInUse(port),
        Some(Errno::EACCES | Errno::EPERM) => UdpError::Denied(port),
        _ => UdpError::Os { port, source },
    }
}

fn open(port: u16, is_dual: bool) -> nix::Result<UdpPort> {
    let (family, any) = match is_dual {
        true => (AddressFamily::Inet6, IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        false => (AddressFamily::Inet, IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(family, SockType::Datagram, flags, None)?;
    if is_dual {
        setsockopt(&fd, Ipv6V6Only, &false)?;
    }
    enlarge(&fd)?;
    bind_fd(
        fd.as_raw_fd(),
        &SockaddrStorage::from(SocketAddr::new(any, port)),
    )?;
    Ok(UdpPort {
        socket: UdpSocket::from(fd),
        is_dual,
    })
}

impl UdpPort {
    /// Returns the port number it is bound to.
    pub fn port(&self) -> io::Result<u16> {
        Ok(self.socket.local_addr()?.port())
    }

    /// Sends one datagram.
    pub fn send_to(&self, bytes: &[u8], to: SocketAddr) -> io::Result<usize> {
        let to = match to {
            SocketAddr::V4(v4) if self.is_dual => {
                SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port())
            }
            SocketAddr::V4(_) | SocketAddr::V6(_) => to,
        };
        self.socket.send_to(bytes, to)
    }

    /// Receives one datagram; one longer than `buffer` is cut.
    pub fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let (length, from) = self.socket.recv_from(buffer)?;
        Ok((length, plain(from)))
    }
}

impl AsFd for UdpPort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Returns an IPv4-mapped address as the IPv4 address it is, so that equal peers compare equal.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::clock;
    use std::time::Duration;

    fn receive(port: &UdpPort) -> (Vec<u8>, SocketAddr) {
        let end = clock::now() + Duration::from_secs(5);
        let mut buffer = [0; 100];
        loop {
            match port.recv_from(&mut buffer) {
                Ok((length, from)) => return (buffer[..length].to_vec(), from),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
            assert!(clock::now() < end, "nothing arrived");
            std::thread::yield_now();
        }
    }

    #[test]
    fn both_versions_reach_one_port_as_themselves() {
        let port = bind(0).unwrap();
        let number = port.port().unwrap();
        for local in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(peer) = UdpSocket::bind(local) else {
                continue; // a host without IPv6
            };
            let to = SocketAddr::new(peer.local_addr().unwrap().ip(), number);

            peer.send_to(b"ping", to).unwrap();
            let (bytes, from) = receive(&port);
            assert_eq!(
                (bytes.as_slice(), from),
                (&b"ping"[..], peer.local_addr().unwrap())
            );
            port.send_to(b"pong", from).unwrap();
            let mut buffer = [0; 9];
            peer.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            assert_eq!(peer.recv_from(&mut buffer).unwrap(), (4, to));
        }
    }

    #[test]
    fn a_taken_port_is_named() {
        let port = bind(0).unwrap();
        let number = port.port().unwrap();

        let error = bind(number).unwrap_err();

        assert!(matches!(error, UdpError::PortInUse(n) if n == number));
    }
}

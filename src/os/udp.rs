//! The UDP socket of the underlay: both IP versions on one port.

mod receive;
mod send;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicBool, Ordering},
};

use nix::{
    errno::Errno,
    libc::{sock_filter, sock_fprog},
    sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind as bind_fd, getsockopt,
        setsockopt, socket,
        sockopt::{
            AttachReusePortCbpf, IpRecvTos, Ipv6RecvTClass, Ipv6V6Only, RcvBuf, RcvBufForce,
            ReusePort, SndBuf, SndBufForce, UdpGroSegment,
        },
    },
};
use thiserror::Error;

pub use receive::Received;
pub use send::FEW_HOPS;

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

/// A bound nonblocking socket that takes and gives addresses of either version as they are.
#[derive(Debug)]
pub struct UdpPort {
    socket: UdpSocket,
    /// Whether it is one of IPv6 that carries IPv4 too.
    is_dual: bool,
    /// Whether the kernel cuts what is sent (UDP_SEGMENT); false once it refused to.
    cuts: AtomicBool,
    /// Whether the kernel may merge what arrives (UDP_GRO).
    may_merge: AtomicBool,
}

/// Binds `port` (0 = any free one) for IPv6 and IPv4, or for IPv4 alone where there is no IPv6.
pub fn bind(port: u16) -> Result<UdpPort, UdpError> {
    let mut bound = open(port, true, false);
    if let Err(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL | Errno::EPROTONOSUPPORT) = bound {
        bound = open(port, false, false);
    }
    let bound = bound.map_err(|errno| classify(port, io::Error::from(errno)))?;
    bound.tell_buffers();
    Ok(bound)
}

/// Binds `port` as [`bind`] does, by `count` sockets among which the kernel shares out what arrives:
/// all of one sender to one of them. Where it cannot there is one socket.
pub fn bind_shared(port: u16, count: usize) -> Result<Vec<UdpPort>, UdpError> {
    let mut sockets = vec![bind(port)?];
    if count > 1
        && let Err(errno) = share(&mut sockets, count)
    {
        tracing::info!(%errno, "The kernel does not share a UDP port out among sockets");
        sockets.truncate(1);
    }
    Ok(sockets)
}

fn share(sockets: &mut Vec<UdpPort>, count: usize) -> nix::Result<()> {
    let Some(first) = sockets.first() else {
        return Ok(());
    };
    let (is_dual, local) = (first.is_dual, first.socket.local_addr());
    let port = local.map_err(|_| Errno::EINVAL)?.port();
    // Only now that it is bound: a port that another program has is refused, and not shared.
    setsockopt(&first.socket, ReusePort, &true)?;
    while sockets.len() < count {
        sockets.push(open(port, is_dual, true)?);
    }
    Ok(())
}

/// One instruction of a classic BPF program (`struct sock_filter` of linux/filter.h).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Instruction {
    pub code: u16,
    /// Instructions to skip when a comparison holds, and when it does not.
    pub jump: (u8, u8),
    pub operand: u32,
}

/// Binds one address of one IP version, as servers are told to.
pub fn bind_at(address: SocketAddr) -> Result<UdpPort, UdpError> {
    let bound = open_at(address);
    let bound = bound.map_err(|errno| classify(address.port(), io::Error::from(errno)))?;
    bound.tell_buffers();
    Ok(bound)
}

fn open_at(address: SocketAddr) -> nix::Result<UdpPort> {
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
    receive_marks(&fd);
    bind_fd(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(UdpPort {
        socket: UdpSocket::from(fd),
        is_dual: false,
        cuts: AtomicBool::new(true),
        may_merge: AtomicBool::new(true),
    })
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

/// Has the kernel tell what routers said of congestion, where it can.
fn receive_marks(fd: &OwnedFd) {
    // A socket of one version has one of both; one of both versions has both.
    let v4 = setsockopt(fd, IpRecvTos, &true);
    let v6 = setsockopt(fd, Ipv6RecvTClass, &true);
    if let (Err(errno), Err(_)) = (v4, v6) {
        tracing::debug!(%errno, "Marks of congestion are not seen");
    }
}

fn classify(port: u16, source: io::Error) -> UdpError {
    match source.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EADDRINUSE) => UdpError::PortInUse(port),
        Some(Errno::EACCES | Errno::EPERM) => UdpError::Denied(port),
        _ => UdpError::Os { port, source },
    }
}

fn open(port: u16, is_dual: bool, is_shared: bool) -> nix::Result<UdpPort> {
    let (family, any) = match is_dual {
        true => (AddressFamily::Inet6, IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        false => (AddressFamily::Inet, IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(family, SockType::Datagram, flags, None)?;
    if is_dual {
        setsockopt(&fd, Ipv6V6Only, &false)?;
    }
    if is_shared {
        setsockopt(&fd, ReusePort, &true)?;
    }
    enlarge(&fd)?;
    receive_marks(&fd);
    bind_fd(
        fd.as_raw_fd(),
        &SockaddrStorage::from(SocketAddr::new(any, port)),
    )?;
    Ok(UdpPort {
        socket: UdpSocket::from(fd),
        is_dual,
        cuts: AtomicBool::new(true),
        may_merge: AtomicBool::new(true),
    })
}

impl UdpPort {
    /// Returns the port number it is bound to.
    pub fn port(&self) -> io::Result<u16> {
        Ok(self.local()?.port())
    }

    /// Returns the address it is bound to.
    pub fn local(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Has `program` choose which of the sockets that share the port gets a datagram: it sees the
    /// payload and returns the socket's number, in the order they were bound; one that is not there
    /// leaves the choice to the kernel.
    pub fn choose_by(&self, program: &[Instruction]) -> io::Result<()> {
        let code = |one: &Instruction| sock_filter {
            code: one.code,
            jt: one.jump.0,
            jf: one.jump.1,
            k: one.operand,
        };
        let mut filter = program.iter().map(code).collect::<Vec<_>>();
        let len = u16::try_from(filter.len()).map_err(|_| Errno::E2BIG)?;
        // The kernel copies it before the call returns.
        let program = sock_fprog {
            len,
            filter: filter.as_mut_ptr(),
        };
        setsockopt(&self.socket, AttachReusePortCbpf, &program)?;
        Ok(())
    }

    /// Says how large the buffers are that the kernel gave.
    fn tell_buffers(&self) {
        let receive = getsockopt(&self.socket, RcvBuf).unwrap_or_default();
        let send = getsockopt(&self.socket, SndBuf).unwrap_or_default();
        // The kernel counts its own overhead as well, and so twice what was asked for.
        tracing::info!(receive, send, "Bytes of buffers of the UDP socket");
    }

    /// Lets the kernel hand over datagrams of one sender together, for [`UdpPort::recv_many`];
    /// without it, as on old kernels, they come one by one.
    pub fn merge_received(&self) {
        let is_wanted = self.may_merge.load(Ordering::Relaxed);
        if let Err(errno) = setsockopt(&self.socket, UdpGroSegment, &is_wanted) {
            tracing::debug!(%errno, "The kernel does not merge received datagrams");
        }
    }

    /// Never lets the kernel merge what arrives nor cut what [`UdpPort::send_many`] sends.
    pub fn forbid_offload(&self) {
        self.may_merge.store(false, Ordering::Relaxed);
        self.forbid_cutting();
    }

    /// Never lets the kernel cut what [`UdpPort::send_many`] sends.
    pub fn forbid_cutting(&self) {
        self.cuts.store(false, Ordering::Relaxed);
    }
}

impl AsFd for UdpPort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, sockopt::Ipv4RecvTtl};

    use crate::os::clock;
    use crate::wire::ecn::Ecn;
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

    /// Cut by the kernel or by us, merged or not: the same datagrams arrive.
    #[test]
    fn many_datagrams_go_and_come_in_one_call() {
        for cuts in [true, false] {
            let (sender, receiver) = (bind(0).unwrap(), bind(0).unwrap());
            receiver.merge_received();
            if !cuts {
                sender.forbid_cutting();
            }
            let to = SocketAddr::from(([127, 0, 0, 1], receiver.port().unwrap()));
            let sent: Vec<u8> = (0..60_000_u32).map(|n| (n % 251) as u8).collect();

            sender.send_many(&sent, 1300, to, Ecn::Ect0).unwrap();

            let end = clock::now() + Duration::from_secs(5);
            let (mut got, mut buffer) = (Vec::<u8>::new(), vec![0; 65_536]);
            while got.len() < sent.len() {
                match receiver.recv_many(&mut buffer) {
                    Ok(received) => {
                        assert_eq!(received.from.port(), sender.port().unwrap());
                        assert!(received.stride == 1300 || received.length == 60_000 % 1300);
                        got.extend(&buffer[..received.length]);
                    }
                    Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                }
                assert!(clock::now() < end, "not all arrived");
            }
            assert_eq!(got, sent);
        }
    }

    /// One call brings what several senders sent, each in its own slot, marks and merging included; the
    /// next one again.
    #[test]
    fn one_call_receives_from_many() {
        let receiver = bind(0).unwrap();
        receiver.merge_received();
        let to = SocketAddr::from(([127, 0, 0, 1], receiver.port().unwrap()));
        let senders = [bind(0).unwrap(), bind(0).unwrap(), bind(0).unwrap()];
        let mut buffer = vec![0; 4 * 1000];
        for round in 0..3 {
            // The first is never merged, which leaves no trace in what comes after it.
            let sizes = [5, 30, 20].map(|size| size + round);
            for (sender, size) in senders.iter().zip(sizes) {
                sender.send_many(&vec![7; size], 10, to, Ecn::Ect0).unwrap();
            }

            let end = clock::now() + Duration::from_secs(5);
            let mut got = Vec::new();
            while got.len() < sizes.iter().map(|size| size.div_ceil(10)).sum() {
                assert!(clock::now() < end, "not all arrived");
                let Ok(burst) = receiver.recv_burst(&mut buffer, 1000) else {
                    continue;
                };
                for (slot, one) in burst.iter().enumerate() {
                    assert_eq!(one.ecn, Ecn::Ect0);
                    let bytes = &buffer[slot * 1000..slot * 1000 + one.length];
                    assert!(bytes.iter().all(|byte| *byte == 7));
                    let pieces = bytes.chunks(one.stride).map(<[u8]>::len);
                    got.extend(pieces.map(|length| (one.from.port(), length)));
                }
            }
            got.sort_unstable();
            let mut sent = senders
                .iter()
                .zip(sizes)
                .flat_map(|(sender, size)| {
                    let port = sender.port().unwrap();
                    vec![0; size]
                        .chunks(10)
                        .map(|piece| (port, piece.len()))
                        .collect::<Vec<_>>()
                })
                .collect::<Vec<_>>();
            sent.sort_unstable();
            assert_eq!(got, sent);
        }
        let nothing = receiver.recv_burst(&mut buffer, 1000).unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
    }

    /// What a datagram's IP header says arrives, by either version, cut and merged or not.
    #[test]
    fn marks_go_and_come() {
        let (sender, receiver) = (bind(0).unwrap(), bind(0).unwrap());
        receiver.merge_received();
        let port = receiver.port().unwrap();
        for to in ["127.0.0.1", "::1"] {
            let to = SocketAddr::new(to.parse().unwrap(), port);
            for (ecn, length) in [
                (Ecn::Ect0, 5),
                (Ecn::NotEct, 5),
                (Ecn::Ce, 25),
                (Ecn::NotEct, 25),
                (Ecn::Ect1, 10),
            ] {
                sender.send_many(&vec![7; length], 10, to, ecn).unwrap();

                let end = clock::now() + Duration::from_secs(5);
                let (mut left, mut buffer) = (length, [0; 100]);
                while left > 0 {
                    if let Ok(received) = receiver.recv_many(&mut buffer) {
                        assert_eq!(received.ecn, ecn, "{to}");
                        left -= received.length;
                    }
                    assert!(clock::now() < end, "nothing arrived");
                }
            }
        }
    }

    /// A port that is shared among one node's sockets is taken for the next node.
    #[test]
    fn sockets_share_a_port_and_another_node_is_refused() {
        let sockets = bind_shared(0, 3).unwrap();
        let number = sockets[0].port().unwrap();
        assert_eq!(sockets.len(), 3);
        for socket in &sockets {
            assert_eq!(socket.port().unwrap(), number);
        }

        for error in [
            bind_shared(number, 3).unwrap_err(),
            bind(number).unwrap_err(),
        ] {
            assert!(matches!(error, UdpError::PortInUse(n) if n == number));
        }
    }

    /// The first byte says which socket gets it.
    #[test]
    fn a_program_chooses_the_socket() {
        const LOAD_BYTE: u16 = 0x30;
        const RETURN_LOADED: u16 = 0x16;
        let sockets = bind_shared(0, 3).unwrap();
        let to = SocketAddr::from(([127, 0, 0, 1], sockets[0].port().unwrap()));
        let program = [LOAD_BYTE, RETURN_LOADED].map(|code| Instruction {
            code,
            jump: (0, 0),
            operand: 0,
        });
        sockets[0].choose_by(&program).unwrap();
        let sender = bind(0).unwrap();

        for byte in [1, 0, 2, 2, 1] {
            sender.send_to(&[byte, 9], to).unwrap();
            let (bytes, _) = receive(&sockets[usize::from(byte)]);
            assert_eq!(bytes, [byte, 9]);
        }
    }

    #[test]
    fn what_goes_briefly_reaches_a_neighbour_and_is_of_ipv4() {
        for port in [
            bind(0).unwrap(),
            bind_at("127.0.0.1:0".parse().unwrap()).unwrap(),
        ] {
            let near = UdpSocket::bind("127.0.0.1:0").unwrap();
            setsockopt(&near, Ipv4RecvTtl, &true).unwrap();
            let to = near.local_addr().unwrap();

            assert_eq!(port.send_briefly(b"open", to).unwrap(), 4);
            let mut buffer = [0; 16];
            let mut space = nix::cmsg_space!(i32);
            let mut parts = [io::IoSliceMut::new(&mut buffer)];
            let fd = near.as_raw_fd();
            let got =
                recvmsg::<SockaddrStorage>(fd, &mut parts, Some(&mut space), MsgFlags::empty());
            let got = got.unwrap();
            let is_ttl =
                |message: &ControlMessageOwned| matches!(message, ControlMessageOwned::Ipv4Ttl(3));
            assert!(got.cmsgs().unwrap().any(|message| is_ttl(&message)));
            assert!(
                port.send_briefly(b"open", "[2001:db8::1]:9".parse().unwrap())
                    .is_err()
            );
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

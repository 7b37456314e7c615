//! What a socket receives: one datagram, several of one sender, or several of those.

use std::{
    io::{self, IoSliceMut},
    net::{SocketAddr, SocketAddrV6},
    os::fd::AsRawFd,
};

use nix::{
    errno::Errno,
    sys::socket::{
        ControlMessageOwned, MsgFlags, MultiHeaders, RecvMsg, SockaddrStorage, recvmmsg, recvmsg,
    },
};

use crate::os::udp::UdpPort;
use crate::wire::ecn::Ecn;

/// What one call received.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Received {
    pub from: SocketAddr,
    /// Bytes of all datagrams, end to end.
    pub length: usize,
    /// Length of each datagram but the last.
    pub stride: usize,
    /// What their IP headers say of congestion, if the kernel tells.
    pub ecn: Ecn,
}

impl UdpPort {
    /// Receives one datagram, or several of one sender that lie end to end in `buffer`.
    pub fn recv_many(&self, buffer: &mut [u8]) -> io::Result<Received> {
        let mut space = nix::cmsg_space!(i32, i32, i32);
        let mut parts = [IoSliceMut::new(buffer)];
        let fd = self.socket.as_raw_fd();
        let got = recvmsg::<SockaddrStorage>(fd, &mut parts, Some(&mut space), MsgFlags::empty())?;
        Ok(received(&got)?)
    }

    /// Does what [`UdpPort::recv_many`] does into each `slot` bytes of `buffer` in one call, while there is
    /// something: fewer than there are slots means that nothing is left.
    pub fn recv_burst(&self, buffer: &mut [u8], slot: usize) -> io::Result<Vec<Received>> {
        let slots = buffer.chunks_mut(slot.max(1));
        let mut slots = slots
            .map(|slot| [IoSliceMut::new(slot)])
            .collect::<Vec<_>>();
        // Made anew each time: the kernel leaves in them how much it used.
        let space = nix::cmsg_space!(i32, i32, i32);
        let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(slots.len(), Some(space));
        let (fd, flags) = (self.socket.as_raw_fd(), MsgFlags::MSG_DONTWAIT);
        let all = recvmmsg(fd, &mut headers, slots.iter_mut(), flags, None)?;
        Ok(all.map(|got| received(&got)).collect::<nix::Result<_>>()?)
    }

    /// Receives one datagram; one longer than `buffer` is cut.
    pub fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let (length, from) = self.socket.recv_from(buffer)?;
        Ok((length, plain(from)))
    }
}

fn received(got: &RecvMsg<'_, '_, SockaddrStorage>) -> nix::Result<Received> {
    let (mut stride, mut ecn) = (None, Ecn::NotEct);
    for message in got.cmsgs()? {
        if let ControlMessageOwned::UdpGroSegments(size) = message {
            stride = usize::try_from(size).ok();
        } else if let ControlMessageOwned::Ipv4Tos(tos) = message {
            ecn = Ecn::of_class(tos);
        } else if let ControlMessageOwned::Ipv6TClass(class) = message {
            ecn = Ecn::of_class((class & 0xff) as u8);
        }
    }
    let length = got.bytes;
    Ok(Received {
        from: got.address.and_then(endpoint).ok_or(Errno::EINVAL)?,
        length,
        stride: stride
            .filter(|size| *size > 0)
            .unwrap_or_else(|| length.max(1)),
        ecn,
    })
}

fn endpoint(address: SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address
        .as_sockaddr_in()
        .map(|v4| SocketAddr::new(v4.ip().into(), v4.port()));
    let v6 = address.as_sockaddr_in6();
    v4.or_else(|| v6.map(|v6| plain(SocketAddrV6::from(*v6).into())))
}

/// Returns an IPv4-mapped address as the IPv4 address it is, so that equal peers compare equal.
fn plain(address: SocketAddr) -> SocketAddr {
    let ip = address.ip().to_canonical();
    match address {
        // Answers to a link-local address need its scope.
        SocketAddr::V6(v6) if ip.is_ipv6() => v6.into(),
        SocketAddr::V4(_) | SocketAddr::V6(_) => SocketAddr::new(ip, address.port()),
    }
}

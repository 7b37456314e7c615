//! How a socket sends: one datagram, many in one call, whole or not at all, or not far.

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    os::fd::AsRawFd,
    sync::atomic::Ordering,
};

use nix::{
    errno::Errno,
    sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg},
};
use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover,
};

use crate::os::udp::UdpPort;
use crate::wire::ecn::Ecn;

/// Datagrams that one call sends: what every kernel with UDP_SEGMENT takes (UDP_MAX_SEGMENTS).
const MAX_CUT: usize = 64;

/// Bytes that one call sends: the longest UDP payload over IPv4.
const MAX_SENT: usize = 65_507;

/// Time to live that leaves two NATs of ours and comes to none of a peer's, but one in our neighbourhood.
pub const FEW_HOPS: u8 = 3;

impl UdpPort {
    /// Sends one datagram.
    pub fn send_to(&self, bytes: &[u8], to: SocketAddr) -> io::Result<usize> {
        self.socket.send_to(bytes, self.as_sent(to))
    }

    /// Never lets the kernel cut datagrams in fragments: what is too long for the way is not sent.
    pub fn forbid_fragments(&self) {
        self.set_discovery(Ipv4PathMtuDiscovery::PROBE, Ipv6PathMtuDiscovery::PROBE);
    }

    /// Sends one datagram that is never cut in fragments: it arrives whole or not at all, whatever the
    /// kernel believes of the path.
    pub fn send_whole(&self, bytes: &[u8], to: SocketAddr) -> io::Result<usize> {
        self.set_discovery(Ipv4PathMtuDiscovery::PROBE, Ipv6PathMtuDiscovery::PROBE);
        let sent = self.send_to(bytes, to);
        self.set_discovery(Ipv4PathMtuDiscovery::WANT, Ipv6PathMtuDiscovery::WANT);
        sent
    }

    /// Sends one datagram by few hops if it is of IPv4, and nothing else.
    pub fn send_briefly(&self, bytes: &[u8], to: SocketAddr) -> io::Result<usize> {
        if !to.ip().to_canonical().is_ipv4() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let (parts, to) = (
            [IoSlice::new(bytes)],
            SockaddrStorage::from(self.as_sent(to)),
        );
        let few = i32::from(FEW_HOPS);
        let few = [ControlMessage::Ipv4Ttl(&few)];
        let fd = self.socket.as_raw_fd();
        Ok(sendmsg(fd, &parts, &few, MsgFlags::empty(), Some(&to))?)
    }

    fn set_discovery(&self, v4: Ipv4PathMtuDiscovery, v6: Ipv6PathMtuDiscovery) {
        // A socket of one version has one of both.
        let set = [
            set_ip_mtu_discover(&self.socket, v4),
            set_ipv6_mtu_discover(&self.socket, v6),
        ];
        if let [Err(error), Err(_)] = set {
            tracing::debug!(%error, "Cannot choose whether datagrams are cut");
        }
    }

    /// Sends datagrams that lie end to end, each but the last `stride` bytes long, in as few calls
    /// as the kernel allows; when only some could be sent, the error is of the others.
    pub fn send_many(
        &self,
        mut bytes: &[u8],
        stride: usize,
        to: SocketAddr,
        ecn: Ecn,
    ) -> io::Result<()> {
        while !bytes.is_empty() {
            let sent = self.send_some(bytes, stride, to, ecn)?;
            bytes = bytes.get(sent * stride..).unwrap_or_default();
        }
        Ok(())
    }

    /// Sends the first of datagrams that lie end to end, each but the last `stride` bytes long, and
    /// returns how many; an error means that none was sent.
    pub fn send_some(
        &self,
        bytes: &[u8],
        stride: usize,
        to: SocketAddr,
        ecn: Ecn,
    ) -> io::Result<usize> {
        let most = MAX_CUT.min(MAX_SENT / stride.max(1)).max(1);
        let bytes = bytes.get(..most * stride).unwrap_or(bytes);
        if bytes.len() > stride && self.cuts.load(Ordering::Relaxed) {
            let size = u16::try_from(stride).map_err(|_| Errno::EMSGSIZE)?;
            match self.send_marked(bytes, Some(size), to, ecn) {
                Ok(_) => return Ok(bytes.len().div_ceil(stride)),
                // The path takes less: sent alone, each is cut in fragments.
                Err(Errno::EMSGSIZE) => {}
                // Devices without checksum offload, and old kernels.
                Err(errno @ (Errno::EIO | Errno::EINVAL | Errno::EOPNOTSUPP)) => {
                    tracing::info!(%errno, "The kernel does not cut datagrams here");
                    self.forbid_cutting();
                }
                Err(errno) => return Err(errno.into()),
            }
        }
        for (sent, datagram) in bytes.chunks(stride.max(1)).enumerate() {
            match self.send_marked(datagram, None, to, ecn) {
                Ok(_) => {}
                Err(errno) if sent == 0 => return Err(errno.into()),
                // It comes again with the next call.
                Err(_) => return Ok(sent),
            }
        }
        Ok(bytes.len().div_ceil(stride.max(1)))
    }

    /// Sends one datagram, or several that the kernel cuts at `size`.
    fn send_marked(
        &self,
        bytes: &[u8],
        size: Option<u16>,
        to: SocketAddr,
        ecn: Ecn,
    ) -> nix::Result<usize> {
        let parts = [IoSlice::new(bytes)];
        let (tos, class, size) = (ecn.bits(), i32::from(ecn.bits()), size.unwrap_or(0));
        // What goes to an IPv4-mapped address leaves with an IPv4 header.
        let mark = if to.ip().to_canonical().is_ipv4() {
            ControlMessage::Ipv4Tos(&tos)
        } else {
            ControlMessage::Ipv6TClass(&class)
        };
        let both = [mark, ControlMessage::UdpGsoSegments(&size)];
        let messages = match (ecn, size) {
            (Ecn::NotEct, 0) => &[],
            (Ecn::NotEct, _) => &both[1..],
            (Ecn::Ce | Ecn::Ect0 | Ecn::Ect1, 0) => &both[..1],
            (Ecn::Ce | Ecn::Ect0 | Ecn::Ect1, _) => &both[..],
        };
        let fd = self.socket.as_raw_fd();
        let to = SockaddrStorage::from(self.as_sent(to));
        sendmsg(fd, &parts, messages, MsgFlags::empty(), Some(&to))
    }

    fn as_sent(&self, to: SocketAddr) -> SocketAddr {
        match to {
            SocketAddr::V4(v4) if self.is_dual => {
                SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port())
            }
            SocketAddr::V4(_) | SocketAddr::V6(_) => to,
        }
    }
}

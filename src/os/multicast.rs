//! Groups of the host's links (IPv6 multicast).

use std::{
    collections::BTreeSet,
    io,
    net::{Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::AsRawFd,
};

use nix::{
    ifaddrs::getifaddrs,
    net::if_::{InterfaceFlags, if_nametoindex},
    sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket,
        sockopt::{Ipv6V6Only, ReuseAddr},
    },
};

/// Links that are joined or asked; more would make much of a small question.
const MAX_LINKS: usize = 32;

/// Returns the indices of the links that carry multicast; no tunnels, so none of our own devices.
pub fn links() -> io::Result<BTreeSet<u32>> {
    let is_wanted = |flags: InterfaceFlags| {
        flags.contains(InterfaceFlags::IFF_UP | InterfaceFlags::IFF_MULTICAST)
            && !flags.intersects(InterfaceFlags::IFF_LOOPBACK | InterfaceFlags::IFF_POINTOPOINT)
    };
    let all = getifaddrs()?.filter(|address| is_wanted(address.flags));
    let indices = all.filter_map(|address| if_nametoindex(address.interface_name.as_str()).ok());
    let indices = indices.collect::<BTreeSet<_>>();
    Ok(indices.into_iter().take(MAX_LINKS).collect())
}

/// Binds a nonblocking socket to `port`, for what is sent to groups; several programs may.
pub fn bind_port(port: u16) -> io::Result<UdpSocket> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Inet6, SockType::Datagram, flags, None)?;
    setsockopt(&fd, Ipv6V6Only, &true)?;
    setsockopt(&fd, ReuseAddr, &true)?;
    let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
    bind(fd.as_raw_fd(), &SockaddrStorage::from(any))?;
    Ok(UdpSocket::from(fd))
}

/// Joins `group` on all links; those joined already stay so.
pub fn join(socket: &UdpSocket, group: Ipv6Addr) -> io::Result<()> {
    for link in links()? {
        // A link may be joined already, or have no IPv6.
        if let Err(error) = socket.join_multicast_v6(&group, link) {
            tracing::debug!(link, %error, "Group not joined");
        }
    }
    Ok(())
}

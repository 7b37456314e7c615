//! UDP sockets beside the node's own, each for a NAT to give it another port.

use std::{
    io,
    net::{Ipv4Addr, UdpSocket},
};

use rustix::net::sockopt::{Ipv4PathMtuDiscovery, set_ip_mtu_discover};

/// Opens a nonblocking socket of IPv4 on any free port, whose datagrams are never cut in fragments.
pub fn open() -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_nonblocking(true)?;
    set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::PROBE)?;
    Ok(socket)
}

//! What this host is in the underlay.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};

use nix::ifaddrs::getifaddrs;

/// An address of no host (RFC 5737), to ask the kernel which way packets would leave.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// Returns the address this host's packets to the internet leave from; sends none to find out.
///
/// None on a host without a way there.
pub fn outward_ip() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((ELSEWHERE, 9)).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_unspecified()).then_some(ip)
}

/// Tells whether this host has an IPv4 address, and an IPv6 address, by which others reach it.
pub fn families() -> (bool, bool) {
    let Ok(all) = getifaddrs() else {
        return (false, false);
    };
    let all = all.filter_map(|interface| interface.address);
    all.fold((false, false), |(v4, v6), address| {
        let is_v4 = address
            .as_sockaddr_in()
            .is_some_and(|address| !address.ip().is_loopback());
        let is_v6 = address.as_sockaddr_in6().is_some_and(|address| {
            !address.ip().is_loopback() && !address.ip().is_unicast_link_local()
        });
        (v4 || is_v4, v6 || is_v6)
    })
}

//! What this host is in the underlay.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};

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

//! Endpoints that stand for connections: what comes by WebSocket has none of UDP (protocol.md section 4).
//!
//! They lie in the discard-only prefix (RFC 6666), where nobody is: no datagram may come from there
//! or go there, and none is ever told to anybody.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use serde::{Deserialize, Serialize};

/// What carries frames.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Carrier {
    #[default]
    Udp,
    /// WebSocket over TLS.
    Wss,
}

impl Carrier {
    /// Returns what carries datagrams of `endpoint`.
    pub fn of(endpoint: SocketAddr) -> Self {
        if is_carrier(endpoint) {
            Self::Wss
        } else {
            Self::Udp
        }
    }

    /// Returns its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Wss => "wss",
        }
    }
}

/// 100::/64, as its upper half (RFC 6666 section 2).
const PREFIX: u64 = 0x0100_0000_0000_0000;

/// Returns the endpoint of connection `number`, which nobody else of this process has or had; `peer`
/// is the other end of it.
pub fn endpoint(number: u64, peer: SocketAddr) -> SocketAddr {
    let lower = match peer.ip().to_canonical() {
        // Its upper half is zero, which no routed IPv6 address begins with.
        IpAddr::V4(ip) => u64::from(ip.to_bits()),
        IpAddr::V6(ip) => halves(ip).0,
    };
    let ip = Ipv6Addr::from_bits(u128::from(PREFIX) << 64 | u128::from(lower));
    let [a, b, c, d, e, f, g, h] = number.to_be_bytes();
    let (high, low) = (
        u32::from_be_bytes([a, b, c, d]),
        u32::from_be_bytes([e, f, g, h]),
    );
    SocketAddrV6::new(ip, peer.port(), high, low).into()
}

/// In the number of a socket of its own to a peer, which no connection to a gateway has.
const PUNCHED: u64 = 1 << 51;

/// Returns the endpoint of socket `number`, of which the same holds; `peer` is over IPv4, and an agent.
pub fn punched(number: u64, peer: SocketAddr) -> SocketAddr {
    endpoint(number | PUNCHED, peer)
}

/// Tells whether an endpoint stands for a socket of its own to a peer.
pub fn is_punched(endpoint: SocketAddr) -> bool {
    let SocketAddr::V6(v6) = endpoint else {
        return false;
    };
    is_carrier(endpoint) && u64::from(v6.flowinfo()) << 32 & PUNCHED != 0
}

/// Tells whether an endpoint stands for a connection.
pub fn is_carrier(endpoint: SocketAddr) -> bool {
    match endpoint {
        SocketAddr::V4(_) => false,
        SocketAddr::V6(v6) => halves(*v6.ip()).0 == PREFIX,
    }
}

/// Returns the other end of the connection that an endpoint stands for: its IPv4 address, or the /64
/// it is in; None when it stands for none.
pub fn peer(endpoint: SocketAddr) -> Option<SocketAddr> {
    let SocketAddr::V6(v6) = endpoint else {
        return None;
    };
    let (PREFIX, lower) = halves(*v6.ip()) else {
        return None;
    };
    let ip = match u32::try_from(lower) {
        Ok(v4) => IpAddr::V4(Ipv4Addr::from_bits(v4)),
        Err(_) => IpAddr::V6(Ipv6Addr::from_bits(u128::from(lower) << 64)),
    };
    Some(SocketAddr::new(ip, endpoint.port()))
}

/// What is told where nothing is: port 0.
pub const NOWHERE: SocketAddr = SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, 0, 0, 0));

/// Returns what may be told of where somebody was seen: nothing, which is port 0, of a connection.
pub fn told(seen: SocketAddr) -> SocketAddr {
    if is_carrier(seen) { NOWHERE } else { seen }
}

fn halves(ip: Ipv6Addr) -> (u64, u64) {
    let [a, b, c, d, e, f, g, h, lower @ ..] = ip.octets();
    let upper = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
    (upper, u64::from_be_bytes(lower))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_endpoint_tells_the_other_end_and_differs_by_number() {
        let v4 = endpoint(1, at("198.51.100.7:40000"));
        let v6 = endpoint(1, at("[2001:db8:1:2:3:4:5:6]:40000"));

        assert_eq!(peer(v4), Some(at("198.51.100.7:40000")));
        assert_eq!(peer(v6), Some(at("[2001:db8:1:2::]:40000")));
        assert_eq!(endpoint(1, at("[::ffff:198.51.100.7]:40000")), v4);
        assert_ne!(endpoint(2, at("198.51.100.7:40000")), v4);
        assert_ne!(endpoint(1 << 32 | 1, at("198.51.100.7:40000")), v4);
    }

    #[test]
    fn nothing_real_is_a_connection_and_nothing_is_told_of_one() {
        for real in [
            "198.51.100.7:1",
            "[2001:db8::1]:1",
            "[::1]:1",
            "[100:0:0:1::]:1",
        ] {
            assert!(!is_carrier(at(real)) && peer(at(real)).is_none(), "{real}");
            assert_eq!(told(at(real)), at(real));
        }
        let carrier = endpoint(9, at("198.51.100.7:1"));
        assert!(is_carrier(carrier) && is_carrier(at("[100::1]:7")));
        assert_eq!(told(carrier), at("[::]:0"));
    }

    proptest! {
        #[test]
        fn every_number_has_its_own(one: u64, other: u64, ip: [u8; 4], port: u16) {
            let peer = SocketAddr::from((ip, port));
            prop_assert_eq!(endpoint(one, peer) == endpoint(other, peer), one == other);
            prop_assert!(is_carrier(endpoint(one, peer)));
        }
    }
}

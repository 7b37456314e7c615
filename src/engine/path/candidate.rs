use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::id::OverlayIp;
use crate::wire::candidate::{Candidate, MAX_CANDIDATES};
use crate::wire::carrier;

/// How far a path goes; the lowest is preferred.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Class {
    /// To an address that is not routed on the Internet.
    Lan,
    Wan,
    Relay,
}

impl Class {
    /// Returns how far `endpoint` is.
    pub fn of(endpoint: SocketAddr) -> Self {
        let is_lan = match endpoint.ip() {
            IpAddr::V4(ip) => ip.is_private() || ip.is_link_local(),
            IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.is_unique_local(),
        };
        if is_lan { Self::Lan } else { Self::Wan }
    }
}

/// Tells whether an endpoint may be told to a peer or taken from one.
///
/// Overlay addresses lead into the tunnel itself; link-local ones mean nothing without the
/// interface, which only its owner knows.
pub fn is_usable(endpoint: SocketAddr) -> bool {
    let is_local = match endpoint {
        SocketAddr::V4(v4) => v4.ip().is_link_local(),
        SocketAddr::V6(v6) => v6.ip().is_unicast_link_local(),
    };
    !is_local && is_reachable(endpoint) && !carrier::is_carrier(endpoint)
}

/// Tells whether an endpoint that was seen as a source may be sent to.
pub(super) fn is_reachable(endpoint: SocketAddr) -> bool {
    let is_good = match endpoint {
        SocketAddr::V4(v4) => is_unicast_v4(*v4.ip()),
        SocketAddr::V6(v6) => {
            let has_scope = v6.scope_id() != 0;
            is_unicast_v6(*v6.ip()) && (has_scope || !v6.ip().is_unicast_link_local())
        }
    };
    let is_nobody = carrier::is_carrier(endpoint) && !carrier::is_punched(endpoint);
    is_good && endpoint.port() != 0 && !is_nobody
}

fn is_unicast_v4(ip: Ipv4Addr) -> bool {
    // 0/8 is "this network", 240/4 is reserved and holds broadcast (RFC 6890).
    let [first, ..] = ip.octets();
    (1..224).contains(&first) && !ip.is_loopback()
}

fn is_unicast_v6(ip: Ipv6Addr) -> bool {
    let is_special = ip.is_loopback() || ip.is_unspecified() || ip.is_multicast();
    // A mapped address is IPv4 and was to be written so.
    let is_v4 = ip.to_ipv4_mapped().is_some();
    !is_special && !is_v4 && OverlayIp::new(ip).is_err()
}

/// Returns the usable candidates, each endpoint once, the most wanted first.
pub(super) fn clean(list: &[Candidate]) -> Vec<Candidate> {
    let mut clean = Vec::<Candidate>::new();
    for candidate in list {
        let endpoint = canonical(candidate.endpoint);
        let is_new = clean.iter().all(|c| c.endpoint != endpoint);
        if is_new && is_usable(endpoint) && clean.len() < MAX_CANDIDATES {
            clean.push(Candidate {
                endpoint,
                ..*candidate
            });
        }
    }
    clean.sort_by_key(|c| (Class::of(c.endpoint), std::cmp::Reverse(c.priority)));
    clean
}

/// Tells whether two clean lists name the same.
pub(super) fn same_list(a: &[Candidate], b: &[Candidate]) -> bool {
    a.len() == b.len() && a.iter().all(|c| b.contains(c))
}

fn canonical(endpoint: SocketAddr) -> SocketAddr {
    match endpoint.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::new(ip.into(), endpoint.port()),
        IpAddr::V6(_) => endpoint,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// protocol.md section 6: what candidates exclude.
    #[test]
    fn only_unicast_endpoints_outside_the_overlay_are_usable() {
        let good = [
            "192.168.1.2:1",
            "100.64.0.1:1",
            "8.8.8.8:65535",
            "[2001:db8::1]:1",
        ];
        let bad = [
            "127.0.0.1:1",
            "127.9.9.9:1",
            "0.0.0.0:1",
            "0.1.2.3:1",
            "224.0.0.1:1",
            "239.255.255.255:1",
            "255.255.255.255:1",
            "240.0.0.1:1",
            "169.254.1.1:1",
            "8.8.8.8:0",
            "[::]:1",
            "[::1]:1",
            "[ff02::1]:1",
            "[fe80::1]:1",
            "[fe80::1%3]:1",
            "[fd00::1]:1",
            "[fdab:1:2:3::4]:1",
            "[::ffff:127.0.0.1]:1",
            "[2001:db8::1]:0",
            "[100::1]:1",
        ];

        for endpoint in good {
            assert!(is_usable(at(endpoint)), "{endpoint}");
        }
        for endpoint in bad {
            assert!(!is_usable(at(endpoint)), "{endpoint}");
        }
        assert!(is_reachable(at("[fe80::1%3]:1")) && !is_reachable(at("[fe80::1]:1")));
    }

    #[test]
    fn private_addresses_are_near() {
        assert_eq!(Class::of(at("10.0.0.1:1")), Class::Lan);
        assert_eq!(Class::of(at("100.64.0.1:1")), Class::Wan);
        assert_eq!(Class::of(at("[2001:db8::1]:1")), Class::Wan);
        assert!(Class::Lan < Class::Wan && Class::Wan < Class::Relay);
    }
}

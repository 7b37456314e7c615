//! Which addresses of the world a program may reach through its host; pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::id::OverlayIp;

/// What the program's end of the device is called.
///
/// IPv4: of the block for hosts that have IPv4 by translation alone (RFC 7335), so no network of the
/// host's has it. IPv6: of a prefix drawn once for this purpose (RFC 4193 section 3.2.2); programs
/// prefer IPv4 from such an address where a name has both (RFC 6724 section 2.1), which is what
/// works on most hosts.
pub(in crate::node) const INSIDE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 2);
pub(in crate::node) const INSIDE_V6: Ipv6Addr =
    Ipv6Addr::new(0xfd5c, 0x71e2, 0x0f1d, 0, 0, 0, 0, 2);

/// Decides about addresses, for one agent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Guard {
    /// The /48 where agents are, who are reached by the overlay or not at all.
    overlay: u128,
}

impl Guard {
    /// Guards the program of the agent at `local`.
    pub(super) fn new(local: OverlayIp) -> Self {
        Self {
            overlay: local.ip().to_bits() >> 80,
        }
    }

    /// Tells whether a packet's source is the program's own.
    pub(super) const fn is_inside(from: IpAddr) -> bool {
        match from {
            IpAddr::V4(from) => from.to_bits() == INSIDE_V4.to_bits(),
            IpAddr::V6(from) => from.to_bits() == INSIDE_V6.to_bits(),
        }
    }

    /// Tells whether the program may reach `to`: what is the host's alone, or many hosts', it may not.
    pub(super) fn admits(&self, to: IpAddr) -> bool {
        match to {
            // 0.0.0.0/8 too: the kernel takes 0.0.0.0 for this host.
            IpAddr::V4(to) => !matches!(to.octets(), [0 | 127 | 224..=255, ..]),
            IpAddr::V6(to) => {
                // ::/96 and ::ffff:0:0/96 hold the unspecified and loopback addresses, and those of IPv4.
                let is_low = to.to_bits() >> 48 == 0;
                let is_many = to.is_multicast() || to.is_unicast_link_local();
                !is_low && !is_many && to.to_bits() >> 80 != self.overlay
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::NetworkPrefix;

    /// Issue 6: the host's loopback is out of reach by every name it has, and so is the overlay.
    #[test]
    fn what_is_the_hosts_alone_is_not_reached() {
        let prefix = "fd00:1:2:3::/64".parse::<NetworkPrefix>().unwrap();
        let guard = Guard::new(prefix.address(9));

        for to in [
            "127.0.0.1",
            "127.255.0.53",
            "0.0.0.0",
            "0.1.2.3",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:192.0.2.1",
            "fe80::1",
            "ff02::1",
            "fd00:1:2:3::7",
            "fd00:1:2:4::7",
        ] {
            assert!(!guard.admits(to.parse().unwrap()), "{to}");
        }
        for to in [
            "192.0.2.1",
            "10.0.0.1",
            "169.254.1.1",
            "2001:db8::1",
            "fd00::1",
        ] {
            assert!(guard.admits(to.parse().unwrap()), "{to}");
        }
        assert!(Guard::is_inside(INSIDE_V4.into()) && Guard::is_inside(INSIDE_V6.into()));
        assert!(!Guard::is_inside("192.0.0.3".parse().unwrap()));
    }
}

//! The routes by which datagrams leave the host, as far as a change of one is a change of network.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use rtnetlink::packet_route::{
    AddressFamily,
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteNextHop,
        RouteType,
    },
};

use crate::os::route::OURS;

/// The kernel's main table (RT_TABLE_MAIN of linux/rtnetlink.h).
const MAIN: u32 = 254;

/// Where a route leads: the next router, if any, and the interface.
type Hop = (Option<IpAddr>, Option<u32>);

/// One route of the kernel's tables, without what is renewed while it stays the same.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Route {
    to: IpAddr,
    /// Of the destination, in bits; 0 is a default route.
    length: u8,
    table: u32,
    metric: u32,
    /// None where the kernel chooses.
    source: Option<IpAddr>,
    /// More than one in a multipath route.
    hops: Vec<Hop>,
    /// Whether it leads nowhere on purpose.
    is_barrier: bool,
}

impl Route {
    /// Tells whether it leads everywhere over IPv4, by the table that every program uses.
    pub fn is_default_v4(&self) -> bool {
        self.to.is_ipv4() && self.length == 0 && self.table == MAIN && !self.is_barrier
    }

    /// Returns the devices that it leads out by, by their numbers.
    pub fn devices(&self) -> impl Iterator<Item = u32> {
        self.hops.iter().filter_map(|(_, device)| *device)
    }

    /// Reads a message about a route; None for our own routes and those to this host's addresses.
    pub(super) fn of(message: &RouteMessage) -> Option<Self> {
        let header = &message.header;
        let is_barrier = matches!(
            header.kind,
            RouteType::BlackHole | RouteType::Prohibit | RouteType::Unreachable
        );
        if !is_barrier && header.kind != RouteType::Unicast {
            return None;
        }
        if header.protocol == OURS || header.flags.contains(RouteFlags::Cloned) {
            return None;
        }
        let mut route = Self {
            to: anywhere(header)?,
            length: header.destination_prefix_length,
            table: header.table.into(),
            metric: 0,
            source: None,
            hops: Vec::new(),
            is_barrier,
        };
        let (mut via, mut device) = (None, None);
        for attribute in &message.attributes {
            #[expect(
                clippy::wildcard_enum_match_arm,
                reason = "the kernel has many attributes and these decide"
            )]
            match attribute {
                RouteAttribute::Destination(to) => route.to = ip(to)?,
                RouteAttribute::Gateway(gateway) => via = ip(gateway),
                RouteAttribute::MultiPath(hops) => route.hops.extend(hops.iter().map(hop)),
                RouteAttribute::Oif(index) => device = Some(*index),
                RouteAttribute::PrefSource(source) => route.source = ip(source),
                RouteAttribute::Priority(metric) => route.metric = *metric,
                RouteAttribute::Table(table) => route.table = *table,
                _ => {}
            }
        }
        if via.is_some() || device.is_some() {
            route.hops.push((via, device));
        }
        Some(route)
    }

    /// Tells whether it is a default route.
    pub(super) const fn is_default(&self) -> bool {
        self.length == 0
    }

    /// Tells whether datagrams to `address` may take it.
    pub fn covers(&self, address: IpAddr) -> bool {
        match (self.to, address) {
            (IpAddr::V4(to), IpAddr::V4(address)) => {
                let host = 32_u32.saturating_sub(self.length.into());
                to.to_bits().checked_shr(host) == address.to_bits().checked_shr(host)
            }
            (IpAddr::V6(to), IpAddr::V6(address)) => {
                let host = 128_u32.saturating_sub(self.length.into());
                to.to_bits().checked_shr(host) == address.to_bits().checked_shr(host)
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

/// Returns the router that datagrams to any IPv4 address go to, the one most preferred; None without.
pub fn default_router(routes: &BTreeSet<Route>) -> Option<Ipv4Addr> {
    let defaults = routes.iter().filter(|route| {
        route.is_default() && !route.is_barrier && route.to.is_ipv4() && route.table == MAIN
    });
    let by_metric = defaults.flat_map(|route| {
        let routers = route.hops.iter().filter_map(|(via, _)| match via {
            Some(IpAddr::V4(ip)) => Some(*ip),
            Some(IpAddr::V6(_)) | None => None,
        });
        routers.map(|router| (route.metric, router))
    });
    by_metric.min().map(|(_, router)| router)
}

/// Tells whether the way to any of `remotes` may be another one now.
pub fn leads_elsewhere(
    before: &BTreeSet<Route>,
    after: &BTreeSet<Route>,
    remotes: &[SocketAddr],
) -> bool {
    let mut changed = before.symmetric_difference(after);
    changed.any(|route| remotes.iter().any(|remote| route.covers(remote.ip())))
}

fn anywhere(header: &RouteHeader) -> Option<IpAddr> {
    if header.address_family == AddressFamily::Inet {
        Some(Ipv4Addr::UNSPECIFIED.into())
    } else if header.address_family == AddressFamily::Inet6 {
        Some(Ipv6Addr::UNSPECIFIED.into())
    } else {
        None
    }
}

const fn ip(address: &RouteAddress) -> Option<IpAddr> {
    if let RouteAddress::Inet(ip) = address {
        Some(IpAddr::V4(*ip))
    } else if let RouteAddress::Inet6(ip) = address {
        Some(IpAddr::V6(*ip))
    } else {
        None
    }
}

fn hop(hop: &RouteNextHop) -> Hop {
    let via = hop.attributes.iter().find_map(|attribute| {
        if let RouteAttribute::Gateway(gateway) = attribute {
            ip(gateway)
        } else {
            None
        }
    });
    (via, Some(hop.interface_index))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtnetlink::{
        RouteMessageBuilder,
        packet_route::route::{RouteProtocol, RouteScope},
    };

    fn default_by(gateway: [u8; 4]) -> RouteMessage {
        let route = RouteMessageBuilder::<Ipv4Addr>::new();
        route.gateway(gateway.into()).output_interface(2).build()
    }

    fn to(text: &str, length: u8) -> Route {
        let mut message = match text.parse().unwrap() {
            IpAddr::V4(ip) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(ip, length)
                .build(),
            IpAddr::V6(ip) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(ip, length)
                .build(),
        };
        message.header.scope = RouteScope::Universe;
        Route::of(&message).unwrap()
    }

    fn set(routes: &[&Route]) -> BTreeSet<Route> {
        routes.iter().copied().cloned().collect()
    }

    #[test]
    fn a_route_covers_its_prefix_and_no_other_version() {
        let cases = [
            ("0.0.0.0", 0, "203.0.113.9", true),
            ("0.0.0.0", 0, "2001:db8::1", false),
            ("::", 0, "2001:db8::1", true),
            ("10.1.0.0", 16, "10.1.255.255", true),
            ("10.1.0.0", 16, "10.2.0.0", false),
            ("203.0.113.9", 32, "203.0.113.9", true),
            ("203.0.113.9", 32, "203.0.113.8", false),
            ("2001:db8::", 64, "2001:db8::7", true),
            ("2001:db8::", 64, "2001:db8:0:1::7", false),
        ];

        for (prefix, length, address, covered) in cases {
            let route = to(prefix, length);
            assert_eq!(
                route.covers(address.parse().unwrap()),
                covered,
                "{prefix}/{length} {address}"
            );
        }
    }

    #[test]
    fn another_default_router_leads_elsewhere() {
        let before = Route::of(&default_by([10, 0, 1, 1])).unwrap();
        let after = Route::of(&default_by([10, 0, 3, 1])).unwrap();
        let remotes = ["203.0.113.9:16201".parse().unwrap()];

        assert!(leads_elsewhere(&set(&[&before]), &set(&[&after]), &remotes));
        assert!(leads_elsewhere(&set(&[&before]), &set(&[]), &remotes));
        assert!(!leads_elsewhere(
            &set(&[&before]),
            &set(&[&before]),
            &remotes
        ));
        assert!(!leads_elsewhere(&set(&[&before]), &set(&[&after]), &[]));
    }

    /// EasyTier#1150: what containers and VPNs do to routes nobody uses is no change of network.
    #[test]
    fn routes_to_elsewhere_do_not_matter() {
        let default = Route::of(&default_by([10, 0, 1, 1])).unwrap();
        let containers = to("172.18.0.0", 16);
        let remotes = ["203.0.113.9:16201", "[2001:db8::7]:16200"];
        let remotes = remotes.map(|at| at.parse().unwrap());

        assert!(!leads_elsewhere(
            &set(&[&default]),
            &set(&[&default, &containers]),
            &remotes
        ));
        let narrow = to("203.0.113.0", 24);
        assert!(leads_elsewhere(
            &set(&[&default]),
            &set(&[&default, &narrow]),
            &remotes
        ));
    }

    #[test]
    fn our_own_routes_and_local_ones_are_none() {
        let mut ours = default_by([10, 0, 1, 1]);
        ours.header.protocol = OURS;
        assert_eq!(Route::of(&ours), None);

        for kind in [RouteType::Local, RouteType::Broadcast, RouteType::Multicast] {
            let mut local = default_by([10, 0, 1, 1]);
            local.header.kind = kind;
            assert_eq!(Route::of(&local), None);
        }
        let mut barrier = default_by([10, 0, 1, 1]);
        barrier.header.kind = RouteType::BlackHole;
        barrier.header.protocol = RouteProtocol::Static;
        assert_ne!(Route::of(&barrier), Route::of(&default_by([10, 0, 1, 1])));
    }
}

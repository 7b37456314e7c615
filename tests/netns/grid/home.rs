//! The kinds of networks that hosts are in, each made of real routers (RFC 4787's words for NATs).

use crate::{
    site::ROUTER,
    world::{Host, World},
};

/// Where the internet's only link, its registry, gateway and proxy are.
pub(crate) const GATEWAY: &str = "198.51.100.1";
pub(crate) const GATEWAY6: &str = "2001:db8::1";
pub(crate) const REGISTRY: &str = "198.51.100.2";
pub(crate) const REGISTRY6: &str = "2001:db8::2";
pub(crate) const PROXY: &str = "198.51.100.3";

/// How a host is joined to the internet.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Kind {
    /// A public address and no filter.
    Open,
    /// Endpoint-independent mapping and filtering.
    FullCone,
    /// Endpoint-independent mapping, address-dependent filtering.
    AddressRestricted,
    /// Endpoint-independent mapping, address- and port-dependent filtering.
    PortRestricted,
    /// The same without a filter on what is for the router itself, as container hosts have it.
    Unfiltered,
    /// Address- and port-dependent mapping and filtering, ports at random.
    Symmetric,
    /// Two port-restricted NATs, one behind the other.
    DoubleNat,
    /// A port-restricted NAT behind a carrier's, which does not keep ports (RFC 6888).
    Cgnat,
    /// A port-restricted NAT for IPv4, and IPv6 by a stateful firewall.
    DualStack,
    /// IPv6 alone, by a stateful firewall.
    Ipv6Only,
    /// No UDP at all.
    UdpBlocked,
    /// TCP to port 443 alone.
    Only443,
    /// An HTTP proxy alone.
    ProxyOnly,
}

impl Kind {
    pub(crate) const ALL: [Self; 13] = [
        Self::Open,
        Self::FullCone,
        Self::AddressRestricted,
        Self::PortRestricted,
        Self::Unfiltered,
        Self::Symmetric,
        Self::DoubleNat,
        Self::Cgnat,
        Self::DualStack,
        Self::Ipv6Only,
        Self::UdpBlocked,
        Self::Only443,
        Self::ProxyOnly,
    ];

    /// Returns its name in the published table; part of agents' names too.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::FullCone => "full-cone",
            Self::AddressRestricted => "address-restricted",
            Self::PortRestricted => "port-restricted",
            Self::Unfiltered => "unfiltered",
            Self::Symmetric => "symmetric",
            Self::DoubleNat => "double-nat",
            Self::Cgnat => "cgnat",
            Self::DualStack => "dual-stack",
            Self::Ipv6Only => "ipv6-only",
            Self::UdpBlocked => "udp-blocked",
            Self::Only443 => "only-443",
            Self::ProxyOnly => "proxy-only",
        }
    }

    /// Returns what its programs find in their environment.
    pub(crate) const fn environment(self) -> &'static str {
        match self {
            Self::ProxyOnly => "HTTPS_PROXY=http://198.51.100.3:8888",
            Self::Open
            | Self::FullCone
            | Self::AddressRestricted
            | Self::PortRestricted
            | Self::Unfiltered
            | Self::Symmetric
            | Self::DoubleNat
            | Self::Cgnat
            | Self::DualStack
            | Self::Ipv6Only
            | Self::UdpBlocked
            | Self::Only443 => "",
        }
    }

    const fn has_udp(self) -> bool {
        !matches!(self, Self::UdpBlocked | Self::Only443 | Self::ProxyOnly)
    }

    const fn has_ipv6(self) -> bool {
        matches!(self, Self::DualStack | Self::Ipv6Only)
    }

    /// Tells whether a host whose port nobody knows reaches this one: it lets in whoever's address it sent to.
    const fn lets_in_any_port(self) -> bool {
        matches!(self, Self::Open | Self::FullCone | Self::AddressRestricted)
    }

    /// Tells how two such hosts find a direct path: they share an IP version that lets UDP through, and each
    /// is seen at one endpoint by everybody, or the other lets in any port; else one's port is guessed.
    pub(crate) fn way_to(self, other: Self) -> Way {
        let share = if self == Self::Ipv6Only || other == Self::Ipv6Only {
            self.has_ipv6() && other.has_ipv6()
        } else {
            true
        };
        let meets = |one: Self, other: Self| one != Self::Symmetric || other.lets_in_any_port();
        let is_hard = |kind: Self| kind == Self::Symmetric;
        match () {
            () if !(self.has_udp() && other.has_udp() && share) => Way::Relay,
            () if meets(self, other) && meets(other, self) => Way::Direct,
            () if is_hard(self) && is_hard(other) => Way::Relay,
            () => Way::Guessed,
        }
    }
}

/// How two hosts must reach each other.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Way {
    Direct,
    /// Directly, if a guess of the ports of a NAT is lucky: 98 times in 100 (docs/nat.md).
    Guessed,
    Relay,
}

/// A host, and the routers between it and the internet.
pub(crate) struct Home {
    pub(crate) kind: Kind,
    pub(crate) host: Host,
    pub(crate) routers: Vec<Host>,
}

impl Home {
    /// Makes home number `n` (1 to 99) at the internet's link.
    pub(crate) fn new(world: &World, internet: &Host, kind: Kind, n: usize) -> Self {
        let host = world.host(&format!("h{n}"));
        let wan = format!("198.51.100.{}", 100 + n);
        let mut home = Self {
            kind,
            host,
            routers: Vec::new(),
        };
        match kind {
            Kind::Open => {
                attach(internet, &home.host, &format!("h{n}"), "eth0");
                let host = &home.host;
                host.ok(&format!("ip addr add {wan}/24 dev eth0"));
            }
            Kind::DoubleNat => {
                home.two_routers(world, internet, n, &format!("192.168.{n}"), ROUTER);
            }
            Kind::Cgnat => {
                let pool = ROUTER.replace(
                    "oifname wan masquerade",
                    "oifname wan meta l4proto { tcp, udp } masquerade to :20000-29999",
                );
                home.two_routers(world, internet, n, &format!("100.64.{n}"), &pool);
            }
            Kind::FullCone
            | Kind::AddressRestricted
            | Kind::PortRestricted
            | Kind::Unfiltered
            | Kind::Symmetric
            | Kind::DualStack
            | Kind::Ipv6Only
            | Kind::UdpBlocked
            | Kind::Only443
            | Kind::ProxyOnly => home.one_router(world, internet, n),
        }
        home
    }

    fn one_router(&mut self, world: &World, internet: &Host, n: usize) {
        let router = world.host(&format!("r{n}"));
        attach(internet, &router, &format!("r{n}"), "wan");
        router.link("lan", &self.host, "eth0");
        if self.kind != Kind::Ipv6Only {
            ipv4(
                &router,
                &format!("198.51.100.{}/24", 100 + n),
                "",
                &self.rules(n),
            );
            lan(&router, &self.host, &format!("10.0.{n}"));
        }
        if self.kind.has_ipv6() {
            ipv6(internet, &router, &self.host, n);
            self.host.wait_for_ipv6(REGISTRY6);
        }
        self.routers.push(router);
    }

    fn two_routers(&mut self, world: &World, internet: &Host, n: usize, between: &str, far: &str) {
        let (near, outer) = (world.host(&format!("r{n}")), world.host(&format!("s{n}")));
        attach(internet, &outer, &format!("s{n}"), "wan");
        outer.link("lan", &near, "wan");
        near.link("lan", &self.host, "eth0");
        ipv4(&outer, &format!("198.51.100.{}/24", 100 + n), "", far);
        outer.ok(&format!("ip addr add {between}.1/24 dev lan"));
        let gateway = format!("{between}.1");
        ipv4(&near, &format!("{between}.2/24"), &gateway, ROUTER);
        lan(&near, &self.host, &format!("10.0.{n}"));
        self.routers.extend([near, outer]);
    }

    /// Returns what its router does with IPv4.
    fn rules(&self, n: usize) -> String {
        let forbid = |rule: &str| {
            let at = "chain forbid { type filter hook forward priority -2; policy accept;";
            format!("{ROUTER}\ntable ip router {{ {at} iifname lan {rule}\n}}\n}}")
        };
        match self.kind {
            Kind::FullCone => format!(
                "table ip router {{
                    chain pre {{ type nat hook prerouting priority dstnat;
                        iifname wan udp dport 1024-65535 dnat to 10.0.{n}.2
                    }}
                    chain post {{ type nat hook postrouting priority srcnat;
                        oifname wan masquerade
                    }}
                }}"
            ),
            Kind::AddressRestricted => format!(
                "table ip router {{
                    set met {{ type ipv4_addr; size 65535; flags dynamic,timeout; timeout 5m; }}
                    chain pre {{ type nat hook prerouting priority dstnat;
                        iifname wan ip saddr @met udp dport 1024-65535 dnat to 10.0.{n}.2
                    }}
                    chain post {{ type nat hook postrouting priority srcnat;
                        oifname wan masquerade
                    }}
                    chain in {{ type filter hook input priority filter;
                        iifname wan ct state established,related accept
                        iifname wan drop
                    }}
                    chain through {{ type filter hook forward priority filter;
                        oifname wan meta l4proto udp update @met {{ ip daddr }}
                        iifname wan ct state established,related accept
                        iifname wan ct status dnat accept
                        iifname wan drop
                    }}
                }}"
            ),
            Kind::Unfiltered => ROUTER.replace("iifname wan drop", ""),
            Kind::Symmetric => ROUTER.replace("masquerade", "masquerade random,fully-random"),
            Kind::UdpBlocked => forbid("meta l4proto udp drop"),
            Kind::Only443 => forbid("tcp dport != 443 drop; iifname lan meta l4proto != tcp drop"),
            Kind::ProxyOnly => forbid(&format!(
                "ip daddr != {PROXY} drop; iifname lan tcp dport != 8888 drop; \
                 iifname lan meta l4proto != tcp drop"
            )),
            Kind::Open
            | Kind::PortRestricted
            | Kind::DoubleNat
            | Kind::Cgnat
            | Kind::DualStack
            | Kind::Ipv6Only => ROUTER.to_owned(),
        }
    }
}

/// Plugs a host into the internet's link.
pub(crate) fn attach(internet: &Host, host: &Host, name: &str, interface: &str) {
    let port = format!("p{name}");
    internet.link(&port, host, interface);
    internet.ok(&format!("ip link set {port} master br0"));
}

/// Sets up a router's IPv4 but for its hosts.
fn ipv4(router: &Host, wan: &str, gateway: &str, rules: &str) {
    router.ok(&format!(
        "ip addr add {wan} dev wan && echo 1 > /proc/sys/net/ipv4/ip_forward && echo '{rules}' | nft -f -"
    ));
    if !gateway.is_empty() {
        router.ok(&format!("ip route add default via {gateway}"));
    }
}

/// Gives a router its LAN, and the host an address and a way out.
fn lan(router: &Host, host: &Host, net: &str) {
    router.ok(&format!("ip addr add {net}.1/24 dev lan"));
    host.ok(&format!(
        "ip addr add {net}.2/24 dev eth0 && ip route add default via {net}.1"
    ));
}

/// Gives home `n` IPv6 by a stateful firewall.
fn ipv6(internet: &Host, router: &Host, host: &Host, n: usize) {
    router.ok(&format!(
        "echo 1 > /proc/sys/net/ipv6/conf/all/forwarding && \
         ip addr add 2001:db8::{:x}/64 dev wan nodad && ip addr add 2001:db8:{n:x}::1/64 dev lan nodad && \
         echo 'table ip6 router {{ chain through {{ type filter hook forward priority filter;
             iifname wan ct state established,related accept
             iifname wan drop
         }}
         }}' | nft -f -",
        0x100 + n
    ));
    host.ok(&format!(
        "ip addr add 2001:db8:{n:x}::2/64 dev eth0 nodad && ip route add default via 2001:db8:{n:x}::1"
    ));
    let route = format!("2001:db8:{n:x}::/64 via 2001:db8::{:x}", 0x100 + n);
    internet.ok(&format!("ip route add {route}"));
    router.ok("ip route add default via 2001:db8::1");
}

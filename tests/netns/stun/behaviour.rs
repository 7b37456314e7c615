//! Routers that map and filter otherwise than those of the site (RFC 4787 sections 4 and 5).

use crate::world::Host;

/// How a router behaves towards UDP, by the names of RFC 3489, which are shorter.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Behaviour {
    /// Maps alike for all destinations, and lets everybody in.
    FullCone,
    /// Maps alike for all destinations, and lets in whom its host sent something.
    AddressRestricted,
    /// Maps alike for all destinations, and lets in endpoints that its host sent something.
    PortRestricted,
    /// Takes a random port for each destination.
    Symmetric,
}

impl Behaviour {
    /// Has a router, made by `site::uplink`, behave so towards its only host.
    pub(crate) fn of(self, router: &Host, host: &str) {
        let masquerade = match self {
            Self::FullCone | Self::AddressRestricted | Self::PortRestricted => "masquerade",
            Self::Symmetric => "masquerade random,fully-random",
        };
        let whom = match self {
            Self::FullCone => "",
            Self::AddressRestricted => "ip saddr . udp dport @spoken",
            // Nobody has this address.
            Self::PortRestricted | Self::Symmetric => "ip saddr 0.0.0.0",
        };
        router.ok(&format!(
            "echo 'add table ip cone; delete table ip cone; flush chain ip router post; \
             flush chain ip router through;
             table ip cone {{
                 set spoken {{ type ipv4_addr . inet_service; flags dynamic,timeout; timeout 2m; }}
                 chain out {{ type filter hook forward priority -10; policy accept;
                     oifname wan meta l4proto udp update @spoken {{ ip daddr . udp sport }}
                 }}
                 chain pre {{ type nat hook prerouting priority dstnat; policy accept;
                     iifname wan udp dport 1024-65535 {whom} dnat to {host}
                 }}
             }}
             add rule ip router post oifname wan {masquerade};
             add rule ip router through iifname wan ct state established,related accept;
             add rule ip router through iifname wan ct status dnat accept;
             add rule ip router through iifname wan drop;' | nft -f -"
        ));
    }

    /// Has a full cone turn back what its hosts send to its outer address, to one of them.
    pub(crate) fn hairpins(router: &Host, outer: &str, host: &str) {
        router.ok(&format!(
            "echo 'add rule ip cone pre iifname lan ip daddr {outer} udp dport 1024-65535 dnat to {host};
             add rule ip router post iifname lan oifname lan masquerade;' | nft -f -"
        ));
    }
}

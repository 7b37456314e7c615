//! The places of most scenarios: a public host, and two hosts each behind a masquerade router.

use crate::world::{Host, World};

/// Where the public host is reached.
pub(crate) const PUB: &str = "198.51.100.1";
/// What the world sees of host a and host b.
pub(crate) const RA: &str = "198.51.100.11";
pub(crate) const RB: &str = "198.51.100.12";

/// What a router does: hides its hosts, lets answers in, drops everything else from outside.
pub(crate) const ROUTER: &str = "
table ip router {
    chain post { type nat hook postrouting priority srcnat; policy accept;
        oifname wan masquerade
    }
    chain in { type filter hook input priority filter; policy accept;
        iifname wan ct state established,related accept
        iifname wan drop
    }
    chain through { type filter hook forward priority filter; policy accept;
        iifname wan ct state established,related accept
        iifname wan drop
    }
}";

/// `conntrack -F` without the package: the netfilter message that deletes whatever there is
/// (IPCTNL_MSG_CT_DELETE without attributes, linux/netfilter/nfnetlink_conntrack.h).
const FLUSH: &str = "
import socket, struct
link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
link.send(struct.pack(\"=IHHIIBBH\", 20, 0x102, 5, 1, 0, 0, 0, 0))
error, = struct.unpack(\"=i\", link.recv(4096)[16:20])
assert error == 0, error
";

/// Five hosts: `b` and `a` can talk to `public` at once, to each other only through it.
pub(crate) struct Site {
    pub(crate) public: Host,
    pub(crate) ra: Host,
    pub(crate) rb: Host,
    pub(crate) a: Host,
    pub(crate) b: Host,
}

impl Site {
    pub(crate) fn new(world: &World) -> Self {
        let [public, ra, rb, a, b] = ["pub", "ra", "rb", "a", "b"].map(|name| world.host(name));
        public.bridge("br0");
        public.ok(&format!("ip addr add {PUB}/24 dev br0"));
        for (router, address, host, lan) in [(&ra, RA, &a, "10.0.1"), (&rb, RB, &b, "10.0.2")] {
            uplink(&public, (router, address), (host, "eth0"), lan);
            host.ok(&format!("ip route add default via {lan}.1"));
        }
        Self {
            public,
            ra,
            rb,
            a,
            b,
        }
    }

    /// Lets no UDP pass from router to router, so that only the relay is left.
    pub(crate) fn block_direct_udp(&self) {
        Self::cut(&self.ra, RB);
        Self::cut(&self.rb, RA);
    }

    /// Lets no UDP pass from host b's router to host a's.
    pub(crate) fn block_direct_udp_of_b(&self) {
        Self::cut(&self.rb, RA);
    }

    /// Lets UDP pass again.
    pub(crate) fn open_direct_udp(&self) {
        for router in [&self.ra, &self.rb] {
            router.ok("nft 'add chain ip router cut; delete chain ip router cut'");
        }
    }

    fn cut(router: &Host, other: &str) {
        router.ok(&format!(
            "nft add chain ip router cut '{{ type filter hook forward priority -1; }}' && \
             nft add rule ip router cut ip daddr {other} meta l4proto udp drop"
        ));
    }

    /// Has a router forget all its mappings, as a reboot does, and take other ports for new ones.
    pub(crate) fn reboot(router: &Host) {
        router.ok("nft flush chain ip router post && \
             nft add rule ip router post oifname wan meta l4proto '{ tcp, udp }' \
             masquerade to :41000-41999");
        Self::forget(router);
    }

    /// Has a router forget all its mappings.
    pub(crate) fn forget(router: &Host) {
        router.ok(&format!("python3 -c '{FLUSH}'"));
    }

    /// Gives a router another address, as a provider does to one that dials in anew.
    pub(crate) fn renumber(router: &Host, address: &str) {
        router.ok(&format!(
            "ip addr flush dev wan && ip addr add {address}/24 dev wan && python3 -c '{FLUSH}'"
        ));
    }
}

/// Joins a host to the public one by a router of its own: the host is .2 of the LAN, without a route.
pub(crate) fn uplink(
    public: &Host,
    (router, address): (&Host, &str),
    (host, interface): (&Host, &str),
    lan: &str,
) {
    let port = format!("p{}", router.name());
    public.link(&port, router, "wan");
    public.ok(&format!("ip link set {port} master br0"));
    router.link("lan", host, interface);
    router.ok(&format!(
        "ip addr add {address}/24 dev wan && ip addr add {lan}.1/24 dev lan && \
         echo 1 > /proc/sys/net/ipv4/ip_forward && echo '{ROUTER}' | nft -f -"
    ));
    host.ok(&format!("ip addr add {lan}.2/24 dev {interface}"));
}

//! Routers that map ports when asked: what no punching reaches is reached by what they opened.

use std::time::Duration;

use serde_json::Value;

use crate::{
    lab::{Lab, address, in_lab, start_node_by, status, wait_attached},
    process::Proc,
    site::Site,
    world::{Host, wait_for, wait_within},
};

/// The WAN address of host a's router. miniupnpd refuses the documentation's addresses as private.
pub(crate) const WAN: &str = "9.9.9.11";

/// Where miniupnpd puts its rules.
const CHAINS: &str = "
table inet filter {
    chain forward { type filter hook forward priority 0; policy accept; jump miniupnpd; }
    chain prerouting { type nat hook prerouting priority -100; policy accept; jump prerouting_miniupnpd; }
    chain postrouting { type nat hook postrouting priority 101; policy accept; jump postrouting_miniupnpd; }
    chain miniupnpd { }
    chain prerouting_miniupnpd { }
    chain postrouting_miniupnpd { }
}";

/// Both NATs take another random port for each destination, so that nobody can guess one.
fn scatter(site: &Site) {
    for router in [&site.ra, &site.rb] {
        router.ok("nft flush chain ip router post && \
             nft add rule ip router post oifname wan masquerade random,fully-random");
    }
}

/// Gives host a's router an address that it believes to be public, known to its neighbours.
pub(crate) fn make_public(site: &Site) {
    site.ra.ok(&format!(
        "ip addr flush dev wan && ip addr add {WAN}/24 dev wan && ip route add 198.51.100.0/24 dev wan && \
         nft insert rule ip router through ct status dnat accept"
    ));
    site.public.ok("ip route add 9.9.9.0/24 dev br0");
    site.rb.ok("ip route add 9.9.9.0/24 dev wan");
}

/// Starts a router's server, which speaks NAT-PMP and PCP or not.
pub(crate) fn start_server(router: &Host, has_nat_pmp: bool) -> Proc {
    let nat_pmp = if has_nat_pmp { "yes" } else { "no" };
    router.ok(&format!(
        "echo '{CHAINS}' | nft -f - && \
         printf 'ext_ifname=wan\\nlistening_ip=lan\\nenable_natpmp={nat_pmp}\\nenable_upnp=yes\\n\
         allow 1024-65535 0.0.0.0/0 1024-65535\\nsecure_mode=yes\\nsystem_uptime=yes\\n\
         uuid=acebe0c5-f1dd-4347-a5df-645a65146435\\n' > /run/up.conf"
    ));
    let server = router.start("exec miniupnpd -d -f /run/up.conf -P /run/up.pid");
    wait_for("the router takes requests", || {
        router.ok("ss -lun").contains(":1900 ")
    });
    server
}

fn path(from: &Host, to: &str) -> String {
    from.run(&format!("ping -c 3 -i 0.2 -W 1 {to}"));
    let peers: Value = serde_json::from_str(&from.ok("agentnet peers --json")).unwrap();
    peers["peers"][0]["path"].as_str().unwrap().to_owned()
}

/// Restarts node A by this environment.
fn restart(lab: &mut Lab, environment: &str) {
    if let Some(node) = lab.node_a.take() {
        node.stop();
    }
    lab.node_a = Some(start_node_by(&lab.site.a, environment));
    wait_attached(&lab.site.a);
}

/// Asserts that A has its router map a port by `protocol`, that B reaches it there, and that it is
/// gone when A stops.
fn reached_by(lab: &mut Lab, protocol: &str) {
    restart(lab, "");
    let mapped = wait_within(Duration::from_secs(30), "the router maps a port", || {
        let status = status(&lab.site.a);
        let mapping = status["port_mapping"].clone();
        mapping["external"].is_string().then_some(mapping)
    });
    assert_eq!(mapped["protocol"], protocol, "{mapped}");
    assert_eq!(mapped["external"], format!("{WAN}:16200"), "{mapped}");
    let a = address(&lab.site.a);

    wait_within(
        Duration::from_secs(60),
        "b reaches a by the mapping",
        || (path(&lab.site.b, &a) == "direct").then_some(()),
    );

    let rules = || {
        lab.site
            .ra
            .ok("nft list chain inet filter prerouting_miniupnpd")
    };
    assert!(rules().contains("16200"), "{}", rules());
    lab.node_a.take().unwrap().stop();
    assert!(!rules().contains("16200"), "{}", rules());
}

/// Issue 5: two NATs that map at random have no direct path, unless one of them maps a port on request.
#[test]
fn a_mapped_port_makes_a_direct_path_between_hard_nats() {
    in_lab(|lab| {
        scatter(&lab.site);
        make_public(&lab.site);
        restart(lab, "AGENTNET_PATH_PORT_MAPPING=false");
        lab.trust("tcp/8000");
        let _server = start_server(&lab.site.ra, true);
        let a = address(&lab.site.a);
        // As many probes as there are meet nothing.
        for _ in 0..10 {
            assert_eq!(path(&lab.site.b, &a), "relay");
        }
        assert!(status(&lab.site.a)["port_mapping"].is_null());

        reached_by(lab, "pcp");
    });
}

/// Issue 5: a router with UPnP alone is asked by it.
#[test]
fn a_router_with_upnp_alone_maps_a_port_too() {
    in_lab(|lab| {
        scatter(&lab.site);
        make_public(&lab.site);
        lab.trust("tcp/8000");
        let _server = start_server(&lab.site.ra, false);

        reached_by(lab, "upnp-igd");
    });
}

/// A router that has NAT-PMP alone, and says so to who speaks PCP (RFC 6886 section 3.5).
const NAT_PMP: &str = "
import socket, struct
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind((\"10.0.1.1\", 5351))
print(\"listens\", flush=True)
while True:
    asked, who = server.recvfrom(100)
    if asked[0] != 0:
        answer = struct.pack(\"!BBHI\", 0, asked[1] | 128, 1, 7)
    elif asked[1] == 0:
        answer = struct.pack(\"!BBHI4B\", 0, 128, 0, 7, 9, 9, 9, 11)
    else:
        inner, outer, lifetime = struct.unpack(\"!HHI\", asked[4:12])
        print(\"maps\", inner, outer, lifetime, flush=True)
        answer = struct.pack(\"!BBHIHHI\", 0, asked[1] | 128, 0, 7, inner, outer, lifetime)
    server.sendto(answer, who)
";

/// Issue 5: a router with NAT-PMP alone is asked by it, told when the node stops, and left in peace while
/// only other interfaces change.
#[test]
fn a_router_with_nat_pmp_alone_maps_a_port_too() {
    in_lab(|lab| {
        lab.node_a.take().unwrap().stop();
        let server = lab.site.ra.start(&format!("exec python3 -c '{NAT_PMP}'"));
        wait_for("the router listens", || server.stdout().contains("listens"));
        restart(lab, "");

        let mapping = wait_within(Duration::from_secs(30), "the router maps a port", || {
            let mapping = status(&lab.site.a)["port_mapping"].clone();
            mapping["external"].is_string().then_some(mapping)
        });

        assert_eq!(mapping["protocol"], "nat-pmp", "{mapping}");
        assert_eq!(mapping["external"], format!("{WAN}:16200"), "{mapping}");
        for n in 0..5 {
            lab.site.a.ok(&format!(
                "ip link add c{n} type bridge && ip addr add 172.20.{n}.1/24 dev c{n}"
            ));
            lab.site
                .a
                .ok(&format!("agentnet status && ip link del c{n}"));
        }
        lab.node_a.take().unwrap().stop();
        let said = server.stdout();
        assert_eq!(said.matches("maps 16200 16200 3600").count(), 1, "{said}");
        assert!(said.contains("maps 16200 0 0"), "{said}");
    });
}

/// Issue 5: a node that shows nobody where it is has no port opened either, and one whose router maps
/// nothing says why.
#[test]
fn who_hides_asks_no_router_and_a_refusal_is_told() {
    in_lab(|lab| {
        make_public(&lab.site);
        restart(lab, "");
        wait_within(Duration::from_secs(60), "the refusal is told", || {
            let status = status(&lab.site.a);
            status["port_mapping"]["error"].is_string().then_some(())
        });

        lab.node_a.take().unwrap().stop();
        let server = start_server(&lab.site.ra, true);
        restart(lab, "AGENTNET_PATH_MODE=relay");
        lab.site
            .a
            .ok(&format!("ping -c 1 -W 5 {}", address(&lab.site.a)));
        assert!(status(&lab.site.a)["port_mapping"].is_null());
        let said = server.stop();
        assert!(!said.stderr.contains("request"), "{said}");
    });
}

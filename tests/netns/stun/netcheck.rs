//! `agentnet netcheck` behind each kind of NAT, where UDP is blocked, behind a portal and by a router
//! that maps ports, with a running node and without.

use serde_json::Value;

use super::{SECOND, behaviour::Behaviour, second_endpoints};
use crate::{
    lab::{GATEWAY, Lab, in_lab},
    portmap::{WAN, make_public, start_server},
    process::Proc,
    site::{PUB, RA, Site},
    world::{Host, wait_for},
    wss::in_lab_with_wss,
};

/// Names the gateway to a host that is no member.
const DISCOVER: &str = "env AGENTNET_GATEWAY_DISCOVER=198.51.100.1:16201";

/// Checks from a host, by a command that must end with `code`; the report is within the time it has.
#[track_caller]
fn check_by(host: &Host, code: i32, prefix: &str) -> Value {
    let output = host.run(&format!("{prefix} agentnet netcheck --json"));
    assert_eq!(output.code, code, "{output}");
    let report: Value = serde_json::from_str(&output.stdout).unwrap();
    let took = report["took_ms"].as_f64().unwrap();
    // 8.5 s for a silent router, and what a busy machine adds.
    assert!(took < 15_000.0, "{report}");
    report
}

#[track_caller]
fn check(host: &Host) -> Value {
    check_by(host, 0, "")
}

fn codes(report: &Value) -> Vec<&str> {
    let findings = report["findings"].as_array().unwrap();
    let codes = findings.iter().map(|one| one["code"].as_str().unwrap());
    codes.collect()
}

/// Has a router drop what `rule` matches, of all it forwards.
fn forbid(router: &Host, rule: &str) {
    router.ok(&format!(
        "nft add chain ip router forbid '{{ type filter hook forward priority -2; }}' && \
         nft add rule ip router forbid {rule} drop"
    ));
}

/// RFC 5780: a gateway with a second port and address tells how each kind of NAT maps and filters, to a
/// host whose node runs, to one whose node does not, and to one that is no member.
#[test]
fn each_kind_of_nat_is_told() {
    in_lab(|lab| {
        second_endpoints(lab);
        let independent = "endpoint_independent";
        let by_port = "address_and_port_dependent";
        for (behaviour, mapping, filtering) in [
            (Behaviour::FullCone, independent, independent),
            (
                Behaviour::AddressRestricted,
                independent,
                "address_dependent",
            ),
            (Behaviour::PortRestricted, independent, by_port),
            (Behaviour::Symmetric, by_port, by_port),
        ] {
            behaviour.of(&lab.site.ra, "10.0.1.2");

            let report = check(&lab.site.a);

            let v4 = &report["ipv4"];
            assert_eq!(v4["mapping"], mapping, "{behaviour:?}: {report}");
            assert_eq!(v4["filtering"], filtering, "{behaviour:?}: {report}");
            assert_eq!((&v4["nat"], &v4["udp"]), (&true.into(), &true.into()));
            assert_eq!(
                (&v4["address"], &v4["mtu"]),
                (&"10.0.1.2".into(), &1500.into())
            );
            assert_eq!(v4["hairpin"], false, "{report}");
            assert_eq!(
                v4["port_kept"],
                behaviour != Behaviour::Symmetric,
                "{report}"
            );
            assert!(
                v4["observed"]
                    .as_str()
                    .unwrap()
                    .starts_with(&format!("{RA}:"))
            );
            assert!(
                report["daemon"] == true && report["ipv6"]["udp"].is_null(),
                "{report}"
            );
            let server = &report["servers"][0];
            assert_eq!(
                (&server["at"], &server["other"]),
                (&GATEWAY.into(), &format!("{SECOND}:16204").into())
            );
            assert!(
                server["gateway"].is_string() && server["rtt_ms"].is_f64(),
                "{report}"
            );
            assert!(report["registries"][0]["took_ms"].is_f64(), "{report}");
            let is_hard = codes(&report).contains(&"nat_hard");
            assert_eq!(is_hard, behaviour == Behaviour::Symmetric, "{report}");
        }
        without_a_node(lab);
    });
}

/// With the NAT that maps by destination: what is on disk and in the settings names whom to ask.
fn without_a_node(lab: &mut Lab) {
    let (independent, by_port) = ("endpoint_independent", "address_and_port_dependent");
    lab.node_a.take().unwrap().stop();
    let report = check(&lab.site.a);
    assert_eq!(
        (&report["daemon"], &report["ipv4"]["mapping"]),
        (&false.into(), &by_port.into())
    );
    assert!(report["servers"][0]["gateway"].is_string(), "{report}");

    // No NAT, with a filter and without.
    let report = check_by(&lab.site.rb, 0, DISCOVER);
    assert_eq!(
        (&report["ipv4"]["nat"], &report["ipv4"]["filtering"]),
        (&false.into(), &by_port.into())
    );
    assert!(report["servers"][0]["gateway"].is_null(), "{report}");
    lab.site.rb.ok("nft flush chain ip router in");
    let report = check_by(&lab.site.rb, 0, DISCOVER);
    let v4 = &report["ipv4"];
    assert_eq!(
        (&v4["nat"], &v4["filtering"]),
        (&false.into(), &independent.into()),
        "{report}"
    );
    assert!(
        v4["mapping"].is_null() && v4["hairpin"].is_null(),
        "{report}"
    );
}

/// RFC 4787 section 6: a router that turns back what goes to its own outer endpoint; a smaller link to
/// the gateway; and a gateway with a second port alone. All is told to people too.
#[test]
fn hairpinning_and_what_a_link_carries_are_told() {
    in_lab(|lab| {
        lab.gateway.take().unwrap().stop();
        lab.site
            .public
            .ok("sed -i '/^\\[stun\\]/a alternate_port = 16204' /var/lib/gateway/gateway.toml");
        lab.start_gateway();
        Behaviour::FullCone.of(&lab.site.ra, "10.0.1.2");
        Behaviour::hairpins(&lab.site.ra, RA, "10.0.1.2");
        lab.site.ra.ok("ip link set wan mtu 1400");

        let report = check(&lab.site.a);

        let v4 = &report["ipv4"];
        assert_eq!(
            (&v4["hairpin"], &v4["mtu"]),
            (&true.into(), &1400.into()),
            "{report}"
        );
        assert_eq!(v4["filtering"], "not_port_dependent", "{report}");
        // Nobody tells how it maps: there is one address to ask.
        assert!(
            v4["mapping"].is_null() && report["servers"][0]["other"].is_null(),
            "{report}"
        );
        let text = lab.site.a.ok("agentnet netcheck");
        for part in [
            "IPv4        UDP works from 10.0.1.2, seen as 198.51.100.11:",
            "hairpin   hosts behind it reach each other by the outer endpoint",
            "filtering not by port",
            "MTU       1400 bytes reach the gateway",
            "registry    https://198.51.100.1:8443 reached in ",
            "router      maps no port (",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    });
}

/// RFC 4787 does not know of IPv6, which needs no NAT: its filter, its path and its loss are told beside IPv4's.
#[test]
fn ipv6_behind_a_firewall_is_told() {
    in_lab(|lab| {
        let v6 = "2001:db8::1";
        lab.gateway.take().unwrap().stop();
        let Site { public, ra, a, .. } = &lab.site;
        public.ok(&format!(
            "ip addr add {v6}/64 dev br0 nodad && ip route add 2001:db8:1::/64 via 2001:db8::11 && \
             sed -i 's|^listen = .*16201.*|listen = [\"{GATEWAY}\", \"[{v6}]:16201\"]|' \
             /var/lib/gateway/gateway.toml"
        ));
        ra.ok(
            "echo 1 > /proc/sys/net/ipv6/conf/all/forwarding && \
             ip addr add 2001:db8::11/64 dev wan nodad && ip addr add 2001:db8:1::1/64 dev lan nodad && \
             echo 'table ip6 router { chain through { type filter hook forward priority filter;
                 iifname wan ct state established,related accept
                 iifname wan drop
             }
             }' | nft -f -",
        );
        a.ok(
            "ip addr add 2001:db8:1::2/64 dev eth0 nodad && ip route add default via 2001:db8:1::1",
        );
        a.wait_for_ipv6(v6);
        lab.start_gateway();
        lab.node_a.take().unwrap().stop();
        let ask = format!("env AGENTNET_GATEWAY_DISCOVER=[{v6}]:16201");

        let report = check_by(&lab.site.a, 0, &ask);

        let v6 = &report["ipv6"];
        assert_eq!(v6["address"], "2001:db8:1::2", "{report}");
        assert_eq!(
            (&v6["udp"], &v6["nat"], &v6["mtu"]),
            (&true.into(), &false.into(), &1500.into()),
            "{report}"
        );
        assert_eq!(v6["filtering"], "address_and_port_dependent", "{report}");
        assert_eq!(report["ipv4"]["udp"], true, "{report}");
        assert!(
            v6["observed"]
                .as_str()
                .unwrap()
                .starts_with("[2001:db8:1::2]:"),
            "{report}"
        );

        lab.site.ra.ok(
            "nft add chain ip6 router forbid '{ type filter hook forward priority -2; }' && \
             nft add rule ip6 router forbid meta l4proto udp drop",
        );
        let report = check_by(&lab.site.a, 0, &ask);
        assert_eq!(
            (&report["ipv6"]["udp"], &report["ipv4"]["udp"]),
            (&false.into(), &true.into()),
            "{report}"
        );
    });
}

/// F-058: with UDP blocked the WebSocket is told of; with that blocked too, the command fails and says
/// what to do; and whoever answers in place of our hosts is named.
#[test]
fn blocked_networks_and_portals_are_told() {
    in_lab_with_wss(|lab| {
        let (a, ra) = (&lab.site.a, &lab.site.ra);
        a.ok("agentnet join --token-file /mnt/all.token --name a");
        assert!(codes(&check(a)).is_empty());

        forbid(ra, "meta l4proto udp");
        let report = check(a);
        assert_eq!(
            (&report["ipv4"]["udp"], codes(&report)),
            (&false.into(), vec!["udp_blocked"])
        );
        let wss = &report["wss"][0];
        assert!(
            wss["took_ms"].is_f64() && wss["error"].is_null(),
            "{report}"
        );

        // Another server of TLS has another key.
        ra.ok(
            "nft add chain ip router other '{ type nat hook prerouting priority dstnat; }' && \
             nft add rule ip router other tcp dport 8443 dnat to 198.51.100.1:443",
        );
        assert_eq!(codes(&check(a)), ["registry_intercepted", "udp_blocked"]);
        ra.ok("nft flush chain ip router other");

        let _portal = portal(ra);
        let report = check_by(a, 5, "");
        let found = &report["captive_portal"];
        assert_eq!(
            (&found["status"], &found["location"]),
            (&302.into(), &"http://login.test/".into())
        );
        assert_eq!(codes(&report)[0], "captive_portal", "{report}");
        assert!(codes(&report).contains(&"registry_unreachable"), "{report}");
        let said = a.fails(5, "agentnet netcheck");
        for part in [
            "open http://login.test/ in a browser and log in to this network",
            "agentnet: no gateway is reached\n  hint: ",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
    });
}

/// A portal as networks have them: every connection ends at the router, which sends to its login page.
fn portal(router: &Host) -> Proc {
    const ANSWERS: &str = "
import socket, threading
server = socket.create_server((\"0.0.0.0\", 8081))
print(\"listens\", flush=True)
while True:
    client, _ = server.accept()
    client.recv(4096)
    client.sendall(b\"HTTP/1.1 302 Found\\r\\nLocation: http://login.test/\\r\\n\\r\\n\")
    client.close()
";
    let server = router.start(&format!("exec python3 -c '{ANSWERS}'"));
    wait_for("the portal listens", || server.stdout().contains("listens"));
    router.ok(
        "nft add chain ip router portal '{ type nat hook prerouting priority dstnat; }' && \
         nft add rule ip router portal iifname lan meta l4proto tcp redirect to :8081",
    );
    server
}

/// A router that maps ports is tried, and nothing stays behind there; one that is not to be asked is not.
#[test]
fn a_router_that_maps_ports_is_told_and_left_as_it_was() {
    in_lab(|lab| {
        lab.node_a.take().unwrap().stop();
        make_public(&lab.site);
        let server = start_server(&lab.site.ra, true);

        let report = check(&lab.site.a);

        let mapping = &report["port_mapping"];
        assert_eq!(mapping["protocol"], "pcp", "{report}");
        let external = mapping["external"].as_str().unwrap();
        assert!(external.starts_with(&format!("{WAN}:")), "{report}");
        let rules = "nft list chain inet filter prerouting_miniupnpd";
        assert!(
            !lab.site.ra.ok(rules).contains("dnat"),
            "{}",
            lab.site.ra.ok(rules)
        );
        let report = check_by(&lab.site.a, 0, "env AGENTNET_PATH_MODE=hidden");
        assert!(report["port_mapping"].is_null(), "{report}");
        drop(server);
        assert!(
            report["servers"][0]["name"]
                .as_str()
                .unwrap()
                .starts_with(PUB)
        );
    });
}

//! Two agents behind one NAT: they take the LAN between them, else what the router turns back, else the
//! relay.

use std::time::Duration;

use serde_json::Value;

use crate::{
    lab::{Lab, start_node_by, wait_attached},
    path_command::report,
    process::Proc,
    site::RA,
    world::{Host, in_world_of, wait_for, wait_within},
};

/// Where host c listens, so that both have ports of their own at the router.
const PORT_C: u16 = 16300;

/// Longest until a direct path is in use: probes begin with the first data, and this machine is busy.
const FOUND: Duration = Duration::from_secs(20);

/// Runs `body` with agent `c` on a host beside host a, behind one router; b plays no part.
fn with_neighbour<F: FnOnce(&mut Lab, &Host)>(prepare: impl FnOnce(&Lab), body: F) {
    in_world_of::<F>(|world| {
        let mut lab = Lab::up(world);
        let (c, ra) = (world.host("c"), &lab.site.ra);
        ra.link("lan2", &c, "eth0");
        ra.ok("ip addr add 10.0.3.1/24 dev lan2");
        c.ok("ip addr add 10.0.3.2/24 dev eth0 && ip route add default via 10.0.3.1");
        prepare(&lab);
        let _node = start(&c);
        befriend(&lab, &c);
        body(&mut lab, &c);
    });
}

fn start(c: &Host) -> Proc {
    c.ok("agentnet join --token-file /mnt/all.token --name c");
    let node = start_node_by(c, &format!("AGENTNET_UDP_PORT={PORT_C}"));
    wait_attached(c);
    node
}

/// Has A ask and C agree.
fn befriend(lab: &Lab, c: &Host) {
    let a = &lab.site.a;
    a.ok("agentnet trust request c.acme.agent");
    wait_for("the request arrives", || {
        c.ok("agentnet trust pending --json").contains("a.acme")
    });
    c.ok("agentnet trust approve a.acme.agent --allow tcp/8000");
    wait_for("the name resolves", || {
        a.run("getent ahosts c.acme.agent").code == 0
    });
}

/// Has the router let hosts reach it alone, as guest networks do.
fn isolate(lab: &Lab) {
    lab.site.ra.ok("echo 'table ip guests {
             chain apart { type filter hook forward priority -3; policy accept;
                 iifname { lan, lan2 } oifname { lan, lan2 } ct status dnat accept
                 iifname { lan, lan2 } oifname { lan, lan2 } drop
             }
         }' | nft -f -");
}

/// Has the router turn back what goes to its outer endpoints of both hosts, from the outer endpoint of
/// the sender (RFC 4787 section 6, REQ-9).
fn hairpin(lab: &Lab) {
    lab.site.ra.ok(&format!(
        "echo 'table ip hairpin {{
             chain pre {{ type nat hook prerouting priority dstnat; policy accept;
                 iifname {{ lan, lan2 }} ip daddr {RA} udp dport 16200 dnat to 10.0.1.2
                 iifname {{ lan, lan2 }} ip daddr {RA} udp dport {PORT_C} dnat to 10.0.3.2
             }}
             chain post {{ type nat hook postrouting priority srcnat - 1; policy accept;
                 iifname {{ lan, lan2 }} oifname {{ lan, lan2 }} ct status dnat snat to {RA}
             }}
         }}' | nft -f -"
    ));
}

/// Returns the path in use from A to C: `relay`, or where it leads.
fn used(lab: &Lab) -> String {
    let a = &lab.site.a;
    a.run("ping -c 2 -i 0.2 -W 1 c.acme.agent");
    let report = report(a, "c");
    let pairs = report["pairs"].as_array().unwrap();
    let used = pairs.iter().find(|pair| pair["in_use"] == true);
    used.map_or_else(String::new, |pair| {
        let is_relay = pair["path"] == "relay";
        let at = if is_relay {
            &pair["path"]
        } else {
            &pair["remote"]["at"]
        };
        at.as_str().unwrap_or_default().to_owned()
    })
}

#[track_caller]
fn wait_used(lab: &Lab, at: &str) {
    wait_within(FOUND, at, || (used(lab) == at).then_some(()));
}

/// Issue 5: behind one NAT the LAN is taken, though the router turns packets back as well, and data
/// stays there.
#[test]
fn the_lan_is_taken_and_neither_the_hairpin_nor_the_relay() {
    with_neighbour(hairpin, |lab, c| {
        wait_used(lab, &format!("10.0.3.2:{PORT_C}"));
        // Both answer, so it was a choice.
        wait_within(FOUND, "the hairpin answers too", || {
            used(lab);
            let report = report(&lab.site.a, "c");
            let pairs = report["pairs"].as_array().unwrap().clone();
            let turned = format!("{RA}:{PORT_C}");
            let answers = |pair: &Value| {
                pair["remote"]["at"] == turned.as_str() && pair["state"] == "answering"
            };
            pairs.iter().any(answers).then_some(())
        });

        for _ in 0..10 {
            assert_eq!(used(lab), format!("10.0.3.2:{PORT_C}"));
        }
        let peers: Value = serde_json::from_str(&c.ok("agentnet peers --json")).unwrap();
        assert_eq!(peers["peers"][0]["path"], "direct", "{peers}");
    });
}

/// RFC 4787 section 6: where hosts behind a router are kept apart, what the router turns back is a direct path.
#[test]
fn a_router_that_hairpins_gives_a_direct_path() {
    with_neighbour(
        |lab| {
            isolate(lab);
            hairpin(lab);
        },
        |lab, _| {
            wait_used(lab, &format!("{RA}:{PORT_C}"));
        },
    );
}

/// And where it turns nothing back, the relay carries data.
#[test]
fn a_router_that_does_not_hairpin_leaves_the_relay() {
    with_neighbour(isolate, |lab, _| {
        wait_used(lab, "relay");
        wait_within(FOUND, "all was tried", || {
            used(lab);
            let report = report(&lab.site.a, "c");
            (report["not_direct"]["code"] == "no_answer").then_some(())
        });
        assert_eq!(used(lab), "relay");
    });
}

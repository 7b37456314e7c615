//! Nodes that reach one gateway each, and no other: what they say passes both (protocol.md section 5).

use std::time::Duration;

use serde_json::Value;

use crate::{
    homes::{SECOND_DIR, SECOND_PORT, second_gateway, serve_second},
    lab::{B, GATEWAY_PORT, Lab, start_node, status, wait_attached},
    world::{Host, World, in_world, now, recovered, wait_for},
};

/// A gateway that was started again is of use within this time.
const BACK: Duration = Duration::from_secs(10);

const FILE: usize = 8 << 20; // bytes
const LONGEST: Duration = Duration::from_secs(60);

/// Lets no datagram pass between a host and this port.
fn shut(host: &Host, port: u16) {
    host.ok(&format!(
        "nft add table inet shut && nft add chain inet shut out '{{ type filter hook output priority 0; }}' && \
         nft add rule inet shut out udp dport {port} drop"
    ));
}

fn gateway(public: &Host, dir: &str) -> Value {
    let told = public.ok(&format!(
        "agentnet gateway status --json --config {dir}/gateway.toml"
    ));
    serde_json::from_str(&told).unwrap()
}

/// Tells whether a gateway has one agent, and one other gateway that announces another.
fn has_both(public: &Host, dir: &str) -> bool {
    let told = gateway(public, dir);
    let peers = told["peers"].as_array().unwrap();
    let is_up = peers.iter().any(|p| p["state"] == "up" && p["routes"] == 1);
    told["attached"] == 1 && is_up
}

/// F-047, F-065: TCP and ping by name, by two gateways; one is killed and started again.
#[test]
fn agents_at_different_gateways_talk_by_both() {
    in_world(|world: &World| {
        let mut lab = Lab::services(world);
        let mut second = Some(second_gateway(&lab.site.public));
        lab.site.block_direct_udp();
        shut(&lab.site.a, SECOND_PORT);
        shut(&lab.site.b, GATEWAY_PORT);
        lab.token("all", "--name '*' --uses 10");
        for (host, name) in [(&lab.site.a, "a"), (&lab.site.b, "b")] {
            host.ok(&format!(
                "agentnet join --token-file /mnt/all.token --name {name}"
            ));
        }
        lab.node_a = Some(start_node(&lab.site.a));
        lab.node_b = Some(start_node(&lab.site.b));
        wait_attached(&lab.site.a);
        wait_attached(&lab.site.b);
        let dirs = ["/var/lib/gateway", SECOND_DIR];
        wait_for("each gateway knows both agents", || {
            dirs.iter().all(|dir| has_both(&lab.site.public, dir))
        });

        lab.trust("any");
        let server = lab.serve_page();
        lab.page_within(LONGEST, "the page comes by both gateways");
        let ping = lab.site.a.ok(&format!("ping -6 -c 3 -i 0.2 -W 5 {B}"));
        assert!(ping.contains("0% packet loss"), "{ping}");
        lab.site
            .b
            .ok(&format!("head -c {FILE} /dev/urandom > /mnt/www/big"));
        let curl = format!("exec curl -sS -o /mnt/got http://{B}:8000/big");
        let done = lab.site.a.start(&curl).finish(LONGEST);
        assert_eq!(done.code, 0, "{}", done.stderr);
        lab.site.a.ok("cmp /mnt/got /mnt/www/big");
        for dir in dirs {
            let told = gateway(&lab.site.public, dir);
            let bytes = told["forwarded_bytes"].as_u64().unwrap();
            assert!(bytes > FILE as u64, "{told}");
        }
        let shown = "agentnet gateway status --config /var/lib/gateway/gateway.toml";
        let shown = lab.site.public.ok(shown);
        assert!(
            shown.contains("RTT") && !shown.contains("a.acme"),
            "{shown}"
        );

        second.take().unwrap().kill();
        wait_for("what died is missed", || {
            let told = gateway(&lab.site.public, dirs[0]);
            told["peers"][0]["state"] != "up"
        });
        let started = now();
        let _second = serve_second(&lab.site.public);
        lab.page_within(LONGEST, "the page comes again");
        let outage = started.elapsed();

        recovered("one of two gateways on the way starts again", outage);
        assert!(outage < BACK, "{outage:?}: {}", status(&lab.site.b));
        drop(server);
    });
}

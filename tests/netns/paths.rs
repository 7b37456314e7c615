//! Direct paths through two NATs of the kernel.

mod birthday;
mod near;

use std::time::Duration;

use crate::{
    lab::{in_lab, start_node_with, wait_attached},
    site::{RA, RB},
    world::{Host, wait_for},
};

/// P-003: a host that gets another address is found again at once, and by its peers too.
#[test]
fn a_host_that_moves_keeps_its_overlay_address_and_is_reached_again() {
    in_lab(|lab| {
        lab.trust("tcp/8000");
        let _server = lab.serve_page();
        lab.page_within(Duration::from_secs(5), "the page");
        let before = lab.site.a.ok("agentnet status --json");

        lab.site.a.ok(
            "ip addr del 10.0.1.2/24 dev eth0 && ip addr add 10.0.1.77/24 dev eth0 && \
                       ip route replace default via 10.0.1.1",
        );
        lab.page_within(Duration::from_secs(3), "the page from the new address");

        let address = |status: &str| {
            let status = serde_json::from_str::<serde_json::Value>(status).unwrap();
            status["agents"][0]["address"].as_str().unwrap().to_owned()
        };
        assert_eq!(
            address(&before),
            address(&lab.site.a.ok("agentnet status --json"))
        );
    });
}

/// Issue 3: with both behind their own masquerade router data goes from router to router, and goes
/// on when the gateway has stopped.
#[test]
fn data_goes_directly_through_two_nats_and_outlives_the_gateway() {
    in_lab(|lab| {
        lab.trust("tcp/8000");
        let _server = lab.serve_page();
        lab.page_within(Duration::from_secs(5), "the page");
        let ends = [RA, RB].map(|ip| ip.parse::<std::net::Ipv4Addr>().unwrap().octets());
        let both_ways = [ends.concat(), [ends[1], ends[0]].concat()];

        wait_for("a direct datagram each way", || {
            let capture = lab.site.ra.capture();
            assert!(lab.page_arrives());
            let frames = capture.finish();
            let direct = |way: &Vec<u8>| frames.iter().any(|f| f.udp().is_some() && f.has(way));
            both_ways.iter().all(direct)
        });

        wait_for("both say that data goes directly", || {
            assert!(lab.page_arrives());
            let is_direct = |host: &Host| {
                let peers = host.ok("agentnet peers --json");
                let peers = serde_json::from_str::<serde_json::Value>(&peers).unwrap();
                peers["peers"][0]["path"] == "direct"
            };
            is_direct(&lab.site.a) && is_direct(&lab.site.b)
        });
        assert!(lab.site.a.ok("agentnet ping b").contains(", direct"));

        lab.gateway = None;
        for _ in 0..3 {
            lab.page_within(Duration::from_secs(5), "the page without the gateway");
        }
    });
}

/// Field lesson "IP leaked despite privacy flags": told to use the relay, a node sends nothing to its
/// peer's host, nor does the peer learn where to send to.
#[test]
fn a_node_told_to_use_the_relay_shows_its_peer_no_address() {
    in_lab(|lab| {
        lab.node_a.take().unwrap().stop();
        lab.node_a = Some(start_node_with(&lab.site.a, "--path relay"));
        wait_attached(&lab.site.a);
        let capture = lab.site.ra.capture();
        lab.trust("tcp/8000");
        let _server = lab.serve_page();
        lab.page_within(Duration::from_secs(5), "the page");
        let b_asks = lab.site.b.ok("agentnet ping a --count 4");

        assert!(
            b_asks.contains(", relay") && !b_asks.contains(", direct"),
            "{b_asks}"
        );
        let rb = RB.parse::<std::net::Ipv4Addr>().unwrap().octets();
        let frames = capture.finish();
        assert!(!frames.is_empty() && frames.iter().all(|f| !f.has(&rb)));
    });
}

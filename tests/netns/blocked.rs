//! UDP between the hosts is blocked and opened, and the gateway stops: data finds the other way.

use std::{
    collections::BTreeSet,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    lab::{B, Lab, address, in_lab},
    motion::{streaming_directly, wait_for_path},
    path_command::report,
    stream::{ALLOW, Download, QUICK, SLOW, Stream, Transfer},
    world::{Host, now, recovered, wait_for, wait_within},
};

/// Longest outage when a direct path stops to carry data: it is left after 2 s (protocol.md section
/// 6; field lesson tailscale#19457 asks for 3), and this machine may be busy.
const BLOCKED: Duration = Duration::from_secs(4);

/// The same when one way is blocked: the end that still hears the other notices only when that one
/// has left.
const BLOCKED_ONE_WAY: Duration = Duration::from_secs(7);

/// Longest outage when it is opened again: the relay carries on until a direct path is proven.
const OPENED: Duration = Duration::from_secs(1);

/// How long direct paths must do without a gateway; WireGuard makes new keys every 120 s.
const ALONE: Duration = Duration::from_secs(300);

/// Issue 3: where no UDP passes between two hosts, everything works by the gateway.
#[test]
fn where_udp_is_blocked_everything_works_by_the_gateway() {
    in_lab(|lab| {
        lab.site.block_direct_udp();
        lab.trust(ALLOW);
        let _server = lab.serve_page();
        let (a, b) = (&lab.site.a, &lab.site.b);

        lab.page_within(Duration::from_secs(5), "the page");
        assert!(a.ok("agentnet ping b").contains(", relay"));
        a.ok("agentnet ping b tcp/8000");
        a.ok(&format!("ping -6 -c 2 {B}"));
        assert!(a.ok(&format!("getent hosts {}", address(b))).contains(B));
        let stream = Stream::start(a, b, &address(b));
        stream.flows();
        Download::start(a, b, 3_000_000).arrives_whole(a);
        wait_for_path(lab, "relay");

        b.ok("agentnet trust revoke a");
        wait_for("the name is gone", || {
            a.run(&format!("getent ahosts {B}")).code != 0
        });
    });
}

/// A firewall that is opened while data flows by the gateway is found without anybody's doing. This
/// takes two real minutes.
#[test]
fn a_network_that_is_opened_later_is_found() {
    in_lab(|lab| {
        lab.site.block_direct_udp();
        lab.trust(ALLOW);
        let (a, b) = (&lab.site.a, &lab.site.b);
        let stream = Stream::start(a, b, &address(b));
        stream.flows();
        wait_for("direct paths are given up", || {
            let gave_up = |host, name| report(host, name)["not_direct"]["code"] == "no_answer";
            gave_up(a, "b") && gave_up(b, "a")
        });

        let since = now();
        lab.site.open_direct_udp();
        wait_within(Duration::from_secs(200), "data goes directly", || {
            thread::sleep(Duration::from_secs(1));
            let goes = |host| peer(host)["path"] == "direct";
            (goes(a) && goes(b)).then_some(())
        });

        recovered("a network opened later is found", since.elapsed());
        let outage = stream.outage_since(since);
        assert!(outage < OPENED, "{outage:?}");
    });
}

/// Issue 3: blocked and opened mid-transfer.
#[test]
fn a_transfer_survives_that_udp_is_blocked_and_opened() {
    in_lab(|lab| {
        let block = |lab: &Lab| lab.site.block_direct_udp();
        survives_both_switches(lab, "UDP between the hosts", block, BLOCKED);
    });
}

/// The same where one way is blocked only: requests arrive and answers do not.
#[test]
fn a_transfer_survives_that_udp_is_blocked_one_way() {
    in_lab(|lab| {
        let block = |lab: &Lab| lab.site.block_direct_udp_of_b();
        survives_both_switches(lab, "UDP one way", block, BLOCKED_ONE_WAY);
    });
}

/// Lets a transfer go directly, then by the gateway, then directly again.
fn survives_both_switches(lab: &Lab, what: &str, block: fn(&Lab), limit: Duration) {
    let (_server, stream) = streaming_directly(lab);
    let (a, b) = (&lab.site.a, &lab.site.b);
    let transfer = Transfer::start(a, b, &address(b), QUICK);

    let since = now();
    block(lab);
    wait_for_path(lab, "relay");
    outage(&format!("{what} blocked"), &stream, since, limit);
    transfer.goes_on(500_000);

    let since = now();
    lab.site.open_direct_udp();
    wait_for_path(lab, "direct");
    outage(&format!("{what} opened"), &stream, since, OPENED);
    transfer.goes_on(500_000);

    transfer.arrives_whole();
}

#[track_caller]
fn outage(what: &str, stream: &Stream, since: Instant, limit: Duration) {
    let outage = stream.outage_since(since);
    recovered(what, outage);
    assert!(outage < limit, "{what}: {outage:?}");
}

/// Issue 3: without a gateway direct paths go on through rekeys. This takes five real minutes;
/// tests/sim/paths.rs has ten simulated ones.
#[test]
fn direct_paths_outlive_the_gateway_for_five_minutes() {
    in_lab(|lab| {
        let (_server, stream) = streaming_directly(lab);
        lab.gateway = None;
        let alone = now();
        let (a, b) = (&lab.site.a, &lab.site.b);
        let transfer = Transfer::start(a, b, &address(b), SLOW);

        let mut sessions = [BTreeSet::new(), BTreeSet::new()];
        while alone.elapsed() < ALONE {
            transfer.goes_on(500_000);
            for (host, sessions) in [a, b].into_iter().zip(&mut sessions) {
                let peer = peer(host);
                assert_eq!(peer["path"], "direct", "{peer:#}");
                sessions.insert(peer["last_handshake"].to_string());
            }
        }
        transfer.arrives_whole();

        let rekeys = sessions.map(|seen| seen.len() - 1);
        assert!(rekeys.iter().all(|n| *n >= 2), "{rekeys:?} new keys");
        outage(
            "five minutes of rekeys without a gateway",
            &stream,
            alone,
            OPENED,
        );
    });
}

/// Returns what a host says of its only peer.
fn peer(host: &Host) -> Value {
    let peers = host.ok("agentnet peers --json");
    let mut peers = serde_json::from_str::<Value>(&peers).unwrap();
    peers["peers"][0].take()
}

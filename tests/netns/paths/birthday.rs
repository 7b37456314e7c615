//! A NAT that maps at random, and one that maps alike for all and filters by port: a direct path by
//! guessing.

use std::time::Duration;

use serde_json::Value;

use crate::{
    lab::{Lab, address, in_lab, status},
    site::Site,
    world::{Host, measured, now, wait_for, wait_within},
};

/// Longest until it is given up: 4 s of ordinary probes, 10 s of guesses, and a busy machine.
const FOUND: Duration = Duration::from_secs(30);

fn path(from: &Host, to: &str) -> String {
    from.run(&format!("ping -c 3 -i 0.2 -W 1 {to}"));
    let peers: Value = serde_json::from_str(&from.ok("agentnet peers --json")).unwrap();
    peers["peers"][0]["path"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

fn sockets(host: &Host) -> usize {
    host.ok("ss -Hlun").lines().count()
}

/// Has a router take another random port for each destination.
fn scatter(router: &Host) {
    router.ok("nft flush chain ip router post && \
         nft add rule ip router post oifname wan masquerade random,fully-random");
    Site::forget(router);
}

/// Waits until A knows how its NAT maps, by the two ports of its only gateway.
fn wait_for_observers(lab: &Lab) {
    wait_for("the NAT is known", || {
        status(&lab.site.a)["nat_mapping"] == "endpoint_dependent"
    });
}

fn restart(lab: &mut Lab) {
    for node in [lab.node_a.take(), lab.node_b.take()].into_iter().flatten() {
        node.stop();
    }
    lab.start_nodes();
    wait_for_observers(lab);
}

/// Tells whether data comes to go directly; no more is sent than is allowed.
fn attempt_once(lab: &Lab) -> bool {
    let (begun, capture, to) = (now(), lab.site.rb.capture(), address(&lab.site.b));
    let mut is_direct = false;
    while !is_direct && begun.elapsed() < FOUND {
        is_direct = path(&lab.site.a, &to) == "direct";
    }
    let frames = capture.finish();
    let guesses = frames.iter().filter(|frame| {
        let ports = frame.udp().map(|(from, to, _)| (from, to));
        ports.is_some_and(|(from, to)| from == 16200 && to != 16201 && to != 16203)
    });
    let guesses = guesses.count();
    // Each is seen at both interfaces of the router; beside guesses there are probes and data.
    assert!((1..=2 * 1300).contains(&guesses), "{guesses} datagrams");
    measured(&format!(
        "a NAT that maps at random and one that filters by port: direct {is_direct} after {} ms, {} \
         datagrams",
        begun.elapsed().as_millis(),
        guesses / 2
    ));
    is_direct
}

/// Issue 5: one end's NAT maps at random, the other's filters by port. Data comes to go directly, and
/// back after a pause; no more was sent than is allowed, and no more sockets stay than are used.
#[test]
fn a_random_nat_and_one_that_filters_by_port_are_joined_by_guessing() {
    in_lab(|lab| {
        scatter(&lab.site.ra);
        restart(lab);
        lab.trust("tcp/8000");
        let _server = lab.serve_page();
        let before = sockets(&lab.site.a);
        // Two of a hundred attempts meet nowhere: then both nodes begin anew.
        let is_found = (0..3).any(|attempt| {
            if attempt > 0 {
                restart(lab);
            }
            attempt_once(lab)
        });
        assert!(is_found, "no direct path");
        let Site { a, b, .. } = &lab.site;
        assert!(lab.page_arrives());
        wait_within(FOUND, "both say so", || {
            let both = path(b, &address(a)) == "direct" && path(a, &address(b)) == "direct";
            both.then_some(())
        });
        assert!(sockets(a) <= before + 1, "{}", a.ok("ss -lun"));
        lab.gateway.take().unwrap().stop();
        for _ in 0..3 {
            lab.page_within(Duration::from_secs(5), "the page without that gateway");
        }
    });
}

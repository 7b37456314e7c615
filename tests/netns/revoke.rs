//! Revoked is revoked: at once, for good, and without the registry.

use std::{fs, thread, time::Duration};

use crate::{
    capture::Frame,
    lab::{A, B, Lab, address, in_lab, sent, start_node, wait_attached},
    process::Proc,
    world::{World, now, wait_for},
};

const LATER: Duration = Duration::from_secs(3);

/// Starts a long download of A from B and returns once it runs.
fn download(lab: &Lab) -> Proc {
    lab.site.b.ok("truncate -s 4G /mnt/www/endless");
    let line = format!("exec curl -sS --limit-rate 2M -o /mnt/endless http://{B}:8000/endless");
    let download = lab.site.a.start(&line);
    wait_for("the download runs", || downloaded() > 200_000);
    download
}

fn downloaded() -> u64 {
    fs::metadata(World::path("endless")).map_or(0, |file| file.len())
}

/// Returns what came out of B's device from A among `frames`.
fn delivered(frames: &[Frame], lab: &Lab) -> usize {
    let address = |host| {
        address(host)
            .parse::<std::net::Ipv6Addr>()
            .unwrap()
            .octets()
    };
    let (a, b) = (address(&lab.site.a), address(&lab.site.b));
    let inner = frames
        .iter()
        .filter(|frame| frame.bytes.len() >= 40 && frame.bytes[0] >> 4 == 6);
    inner
        .filter(|frame| frame.bytes[8..24] == a && frame.bytes[24..40] == b)
        .count()
}

#[test]
fn a_revoked_download_stops_before_the_command_returns() {
    in_lab(|lab| {
        lab.trust("tcp/8000");
        let _server = lab.serve_page();
        let _download = download(lab);
        let (at_b, seen) = (lab.site.b.capture(), downloaded());
        wait_for("the download goes on", || downloaded() > seen);

        lab.site.b.ok(&format!("agentnet trust revoke {A}"));
        let returned = now();
        thread::sleep(LATER);
        let stopped_at = downloaded();
        thread::sleep(LATER);

        let after = at_b
            .finish()
            .into_iter()
            .filter(|frame| frame.at > returned);
        let after = after.collect::<Vec<_>>();
        assert_eq!(delivered(&after, lab), 0, "delivered after revoke returned");
        assert_eq!(sent(&after).len(), 0, "sent after revoke returned");
        assert_eq!(downloaded(), stopped_at);
        lab.site.a.fails(2, &format!("getent ahosts {B}"));
    });
}

#[test]
fn revoked_stays_revoked_over_restarts_and_with_the_registry_stopped() {
    in_lab(|lab| {
        lab.trust("tcp/8000");
        let _server = lab.serve_page();
        lab.page_within(Duration::from_secs(5), "the page");

        drop(lab.registry.take());
        lab.site.b.ok(&format!("agentnet trust revoke {A}"));
        drop((lab.node_a.take(), lab.node_b.take()));
        lab.start_nodes();
        let at_b = lab.site.b.capture();
        let b = address(&lab.site.b);
        let page = lab
            .site
            .a
            .run(&format!("curl -sS --max-time 3 http://[{b}]:8000/"));
        assert_ne!(page.code, 0);
        assert_eq!(delivered(&at_b.finish(), lab), 0);

        lab.start_registry();
        drop(lab.node_b.take());
        lab.node_b = Some(start_node(&lab.site.b));
        wait_attached(&lab.site.b);
        wait_for("a hears of it", || {
            lab.site.a.run(&format!("getent ahosts {B}")).code == 2
        });
        assert!(!lab.page_arrives());
        assert!(!lab.site.b.ok("agentnet trust list").contains("tcp/8000"));
    });
}

#[test]
fn the_one_who_asked_can_end_it_too() {
    in_lab(|lab| {
        lab.trust("tcp/8000");
        let _server = lab.serve_page();
        lab.page_within(Duration::from_secs(5), "the page");

        lab.site.a.ok(&format!("agentnet trust revoke {B}"));

        assert!(!lab.page_arrives());
        wait_for("b hears of it", || {
            !lab.site.b.ok("agentnet peers").contains(A)
        });
    });
}

#[test]
fn trust_can_be_made_again() {
    in_lab(|lab| {
        lab.trust("tcp/8000");
        let _server = lab.serve_page();
        lab.page_within(Duration::from_secs(5), "the page");
        lab.site.b.ok(&format!("agentnet trust revoke {A}"));
        wait_for("it ends", || {
            lab.site.a.run(&format!("getent ahosts {B}")).code == 2
        });

        lab.trust("tcp/8000");

        lab.page_within(Duration::from_secs(5), "the page again");
    });
}

/// P-014, P-015: one command of the owner ends a membership at every peer, and nothing brings the
/// key back.
#[test]
fn an_agent_that_its_owner_revokes_is_out_everywhere_and_for_good() {
    in_lab(|lab| {
        lab.trust("tcp/8000");
        let _server = lab.serve_page();
        lab.page_within(Duration::from_secs(5), "the page");
        let _download = download(lab);

        let said = lab.site.public.ok("agentnet agent revoke acme a --json");
        let said = serde_json::from_str::<serde_json::Value>(&said).unwrap();
        assert_eq!(said["names"][0], "a");
        wait_for("b loses it", || {
            !lab.site.b.ok("agentnet peers").contains(A)
        });
        let at_b = lab.site.b.capture();
        wait_for("a learns it", || {
            lab.site.a.run(&format!("getent ahosts {B}")).code == 2
        });
        let b = address(&lab.site.b);
        let page = format!("curl -sS --max-time 3 http://[{b}]:8000/");
        assert_ne!(lab.site.a.run(&page).code, 0);
        assert_eq!(delivered(&at_b.finish(), lab), 0);

        drop((lab.node_a.take(), lab.node_b.take()));
        (lab.node_a, lab.node_b) = (Some(start_node(&lab.site.a)), Some(start_node(&lab.site.b)));
        wait_attached(&lab.site.b);
        assert!(!lab.site.b.ok("agentnet peers").contains(A));
        assert_ne!(lab.site.a.run(&page).code, 0);
        lab.site.a.ok("agentnet leave");
        let back = "agentnet join --token-file /mnt/all.token --name a";
        assert!(lab.site.a.fails(3, back).contains("revoked"));
    });
}

/// P-015: a node that is killed as soon as another sees what it did, or as it says so itself, knows
/// of it when it comes back, without the registry.
#[test]
fn what_was_seen_of_a_node_that_is_killed_it_remembers() {
    in_lab(|lab| {
        let _server = lab.serve_page();
        for round in 0..2 {
            lab.trust("tcp/8000");
            drop((lab.node_b.take(), lab.registry.take()));
            lab.node_b = Some(start_node(&lab.site.b));
            // a's own consent may have been on its way, what b gave was seen.
            let given = lab.site.b.ok("agentnet trust list");
            assert!(given.contains("tcp/8000"), "round {round}: {given}");
            lab.start_registry();
            lab.page_within(Duration::from_secs(20), "the page");
            drop(lab.registry.take());

            lab.site.b.ok(&format!("agentnet trust revoke {A}"));
            drop(lab.node_b.take());
            lab.node_b = Some(start_node(&lab.site.b));
            wait_attached(&lab.site.b);
            assert!(
                !lab.page_arrives(),
                "round {round}: it forgot that it revoked"
            );
            assert!(!lab.site.b.ok("agentnet trust list").contains("tcp/8000"));

            lab.start_registry();
            wait_for("a hears of it", || {
                lab.site.a.run(&format!("getent ahosts {B}")).code == 2
            });
        }
    });
}

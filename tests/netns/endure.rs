//! Crashes and restarts: same address, same name, traffic again within five seconds.

use std::{fs, time::Duration};

use crate::{
    lab::{A, B, Lab, address, in_lab, start_node},
    world::{World, now, wait_for, wait_within},
};

/// Within what time traffic must flow again after a process is back.
const RESUMED: Duration = Duration::from_secs(5);

/// Makes trust and has a page fetched, so that everything is warm.
fn talking(lab: &Lab) -> crate::process::Proc {
    lab.trust("tcp/8000");
    let server = lab.serve_page();
    lab.page_within(RESUMED, "the page");
    server
}

#[test]
fn with_the_registry_stopped_trust_works_also_after_restarts() {
    in_lab(|lab| {
        let _server = talking(lab);

        drop(lab.registry.take());
        lab.page_within(RESUMED, "the page without a registry");

        drop((lab.node_a.take(), lab.node_b.take()));
        lab.start_nodes();
        lab.page_within(RESUMED, "the page after restarts without a registry");
    });
}

#[test]
fn a_killed_node_that_asks_is_back_within_five_seconds() {
    in_lab(|lab| {
        let _server = talking(lab);
        let before = (address(&lab.site.a), lab.site.a.ok("cat /etc/resolv.conf"));

        lab.node_a.take().unwrap().kill();
        let back = now();
        lab.node_a = Some(start_node(&lab.site.a));
        lab.page_within(RESUMED, "the page after a's crash");

        assert!(back.elapsed() < RESUMED, "{:?}", back.elapsed());
        assert_eq!(
            (address(&lab.site.a), lab.site.a.ok("cat /etc/resolv.conf")),
            before
        );
    });
}

#[test]
fn a_killed_node_that_answers_is_back_within_five_seconds() {
    in_lab(|lab| {
        let _server = talking(lab);
        let before = address(&lab.site.b);

        lab.node_b.take().unwrap().kill();
        let back = now();
        lab.node_b = Some(start_node(&lab.site.b));
        lab.page_within(RESUMED, "the page after b's crash");

        assert!(back.elapsed() < RESUMED, "{:?}", back.elapsed());
        assert_eq!(address(&lab.site.b), before);
    });
}

#[test]
fn a_killed_gateway_is_back_within_five_seconds() {
    in_lab(|lab| {
        lab.site.block_direct_udp();
        let _server = talking(lab);

        lab.gateway.take().unwrap().kill();
        assert!(!lab.page_arrives());
        let back = now();
        lab.start_gateway();
        lab.page_within(RESUMED, "the page after the gateway's crash");

        assert!(back.elapsed() < RESUMED, "{:?}", back.elapsed());
    });
}

#[test]
fn a_killed_registry_is_back_within_five_seconds() {
    in_lab(|lab| {
        let _server = talking(lab);

        lab.registry.take().unwrap().kill();
        lab.page_within(RESUMED, "the page while the registry is away");
        lab.start_registry();

        lab.token("late", "--name c");
        wait_within(RESUMED, "news are pushed again", || {
            lab.site
                .a
                .run("agentnet trust request nobody")
                .code
                .eq(&0)
                .then_some(())
        });
        lab.site.b.ok(&format!("agentnet trust revoke {A}"));
        wait_within(RESUMED, "a hears of the revocation", || {
            (lab.site.a.run(&format!("getent ahosts {B}")).code == 2).then_some(())
        });
    });
}

#[test]
fn a_stopped_node_leaves_the_host_as_it_was() {
    in_lab(|lab| {
        let a = &lab.site.a;
        assert!(a.ok("ls /sys/class/net").contains("agn0"));
        assert!(a.ok("cat /etc/resolv.conf").contains(&address(a)));

        let ended = lab.node_a.take().unwrap().stop();
        assert_eq!(ended.code, 0, "{ended}");

        assert!(!a.ok("ls /sys/class/net").contains("agn0"));
        assert_eq!(
            a.ok("cat /etc/resolv.conf; ip -6 route show proto 0x61"),
            ""
        );
        a.fails(5, "agentnet status");
    });
}

#[test]
fn the_hosts_dns_is_restored_after_a_crash_too() {
    in_lab(|lab| {
        lab.node_a.take().unwrap().kill();
        let a = &lab.site.a;
        assert!(a.ok("cat /etc/resolv.conf").contains("nameserver"));

        let ended = start_node(a).stop();

        assert_eq!(ended.code, 0, "{ended}");
        assert_eq!(a.ok("cat /etc/resolv.conf"), "");
    });
}

#[test]
fn down_stops_the_node() {
    in_lab(|lab| {
        lab.site.a.ok("agentnet down");

        wait_for("the node ends", || {
            !lab.node_a.as_mut().unwrap().is_running()
        });
        lab.site.a.fails(5, "agentnet status");
    });
}

#[test]
fn a_transfer_survives_a_restart_of_registry_and_gateway() {
    in_lab(|lab| {
        let _server = talking(lab);
        lab.site.b.ok("head -c 6000000 /dev/urandom > /mnt/www/big");
        let line = format!("exec curl -sS --limit-rate 1M -o /mnt/got http://{B}:8000/big");
        let download = lab.site.a.start(&line);
        let so_far = || fs::metadata(World::path("got")).map_or(0, |file| file.len());
        wait_for("the download runs", || so_far() > 500_000);

        lab.registry.take().unwrap().kill();
        lab.gateway.take().unwrap().kill();
        lab.start_registry();
        lab.start_gateway();

        let ended = download.finish(Duration::from_secs(30));
        assert_eq!(ended.code, 0, "{ended}");
        lab.site.a.ok("cmp /mnt/got /mnt/www/big");
    });
}

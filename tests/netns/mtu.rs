//! Underlays of many sizes (protocol.md section 8): all arrives whole, and as large as the way carries.

use std::{ops::RangeInclusive, time::Duration};

use serde_json::Value;

use crate::{
    lab::{B, Lab, address, in_lab},
    path_command::report,
    site::Site,
    stream::ALLOW,
    world::{wait_for, wait_within},
};

/// What is fetched.
const SIZE: u64 = 64 << 20; // bytes

/// Gives every link of the site this MTU.
fn set_underlay(site: &Site, mtu: u32) {
    let every = format!(
        "for link in $(ls /sys/class/net); do case $link in lo|agn*) ;; *) ip link set $link mtu {mtu};; esac; done"
    );
    // The bridge last: it is as large as the smallest of its ports.
    for host in [
        &site.a,
        &site.b,
        &site.ra,
        &site.rb,
        &site.public,
        &site.public,
    ] {
        host.ok(&every);
    }
}

/// Makes the routers drop what is longer than 1380 bytes, as if by a narrower link behind them.
fn narrow(site: &Site) {
    for host in [&site.a, &site.b] {
        // A router never sees what a kernel cuts, as those here would.
        host.ok("ip link set eth0 gso_max_segs 1");
    }
    for router in [&site.ra, &site.rb] {
        router.ok(
            "nft add chain ip router long '{ type filter hook forward priority -2; }' && \
             nft add rule ip router long meta l4proto udp meta length gt 1380 drop",
        );
    }
}

/// Returns the path of A to B that data takes, once both ways settled on a size of packets.
#[track_caller]
fn in_use(lab: &Lab, wanted: &str) -> Value {
    wait_within(Duration::from_secs(60), "a size is found", || {
        lab.page_arrives();
        let pairs = report(&lab.site.a, "b")["pairs"]
            .as_array()
            .unwrap()
            .clone();
        let pair = pairs.into_iter().find(|pair| pair["in_use"] == true)?;
        (pair["path"] == wanted && pair["mtu"].is_u64()).then_some(pair)
    })
}

/// Waits until data of A takes packets of `sizes`.
#[track_caller]
fn wait_for_size(lab: &Lab, wanted: &str, sizes: RangeInclusive<u64>) {
    wait_within(
        Duration::from_secs(90),
        "the size of the way is found",
        || {
            let pair = in_use(lab, wanted);
            let size = pair["mtu"].as_u64().unwrap();
            sizes.contains(&size).then_some(())
        },
    );
}

/// Fetches 64 MiB from B, and pings with packets that the least way must carry and some that it need not.
fn all_arrives(lab: &Lab) {
    let (a, b) = (&lab.site.a, &lab.site.b);
    b.ok(&format!("head -c {SIZE} /dev/urandom > /mnt/www/big"));
    let fetch = format!("exec curl -sS -o /mnt/got http://{B}:8000/big");
    let ended = a.start(&fetch).finish(Duration::from_secs(100));
    assert_eq!(ended.code, 0, "{ended}");
    a.ok("cmp /mnt/got /mnt/www/big");
    let to = address(b);
    // 1232 bytes of payload make a packet of 1280, which IPv6 promises to carry.
    for payload in [8, 1072, 1232, 4000, 8800] {
        wait_for("an answer", || {
            a.run(&format!("ping -6 -c 1 -W 2 -s {payload} {to}")).code == 0
        });
    }
}

fn over(lab: &Lab, mtu: u32, path: &str, sizes: RangeInclusive<u64>) {
    set_underlay(&lab.site, mtu);
    if path == "relay" {
        lab.site.block_direct_udp();
    }
    lab.trust(ALLOW);
    let _server = lab.serve_page();
    wait_for_size(lab, path, sizes);
    all_arrives(lab);
}

/// P-020: jumbo frames carry the TUN's largest packets whole.
#[test]
fn over_an_underlay_of_9000_bytes_packets_are_as_large_as_the_tun() {
    in_lab(|lab| over(lab, 9000, "direct", 8920..=8920));
}

#[test]
fn over_an_underlay_of_9000_bytes_so_they_are_by_the_gateway() {
    in_lab(|lab| over(lab, 9000, "relay", 8860..=8920));
}

#[test]
fn over_an_underlay_of_1500_bytes_packets_fill_it() {
    in_lab(|lab| over(lab, 1500, "direct", 1440..=1440));
}

#[test]
fn over_an_underlay_of_1500_bytes_they_fill_it_by_the_gateway() {
    in_lab(|lab| over(lab, 1500, "relay", 1384..=1384));
}

#[test]
fn over_an_underlay_of_1400_bytes_packets_nearly_fill_it() {
    in_lab(|lab| over(lab, 1400, "direct", 1324..=1340));
}

#[test]
fn over_an_underlay_of_1400_bytes_they_nearly_fill_it_by_the_gateway() {
    in_lab(|lab| over(lab, 1400, "relay", 1280..=1284));
}

/// Less than IPv6 promises is left for packets: what programs may not make smaller goes in halves.
#[test]
fn over_an_underlay_of_1280_bytes_full_packets_go_in_halves() {
    in_lab(|lab| over(lab, 1280, "direct", 1204..=1220));
}

#[test]
fn over_an_underlay_of_1280_bytes_they_go_in_halves_by_the_gateway() {
    in_lab(|lab| over(lab, 1280, "relay", 1148..=1164));
}

/// RFC 8899: nothing tells that a router drops what is long.
#[test]
fn a_router_that_silently_drops_long_packets_is_found_out() {
    in_lab(|lab| {
        narrow(&lab.site);
        lab.trust(ALLOW);
        let _server = lab.serve_page();
        wait_for_size(lab, "direct", 1304..=1320);
        all_arrives(lab);
    });
}

/// The same when the way was wider before, in the middle of a transfer.
#[test]
fn a_way_that_shrinks_without_a_word_is_found_out() {
    in_lab(|lab| {
        lab.trust(ALLOW);
        let _server = lab.serve_page();
        wait_for_size(lab, "direct", 1440..=1440);
        narrow(&lab.site);
        all_arrives(lab);
        wait_for_size(lab, "direct", 1304..=1320);
    });
}

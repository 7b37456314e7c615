//! A host on the same link, which needs no overlay to send to an agent's address.

use std::{fs, path::Path, time::Duration};

use crate::{
    lab::{Lab, address},
    world::{in_world, wait_for},
};

/// Returns the commands that docs/security.md gives against neighbours, for `prefix`.
fn documented(prefix: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/security.md");
    let text = fs::read_to_string(path).unwrap();
    let commands = text
        .lines()
        .map(str::trim)
        .filter(|l| l.starts_with("nft "));
    let commands = commands.collect::<Vec<_>>();
    assert_eq!(commands.len(), 3, "{commands:?}");
    commands.join(" && ").replace("PREFIX", prefix)
}

/// The weak host model of Linux lets a neighbour in; the documented rule keeps it out, and nobody
/// else.
#[test]
fn is_kept_out_by_the_documented_rule() {
    in_world(|world| {
        let lab = Lab::up(world);
        lab.trust("tcp/8000");
        let _server = lab.serve_page();
        lab.page_within(Duration::from_secs(5), "the page");
        let (b, neighbour) = (&lab.site.b, world.host("n"));
        neighbour.link("eth0", b, "eth1");
        neighbour.ok("ip -6 addr add fe80::1/64 dev eth0 nodad");
        b.ok("ip -6 addr add fe80::2/64 dev eth1 nodad");
        let at_b = address(b);
        let octets = at_b.parse::<std::net::Ipv6Addr>().unwrap().segments();
        let prefix = format!(
            "{:x}:{:x}:{:x}:{:x}::/64",
            octets[0], octets[1], octets[2], octets[3]
        );
        neighbour.ok(&format!("ip -6 route add {prefix} via fe80::2 dev eth0"));
        let page = format!("curl -sS --max-time 2 http://[{at_b}]:8000/");
        wait_for("the neighbour gets in", || neighbour.run(&page).code == 0);

        b.ok(&documented(&prefix));

        assert_ne!(neighbour.run(&page).code, 0);
        lab.page_within(Duration::from_secs(5), "the page by the overlay");
        b.ok(&page);
    });
}

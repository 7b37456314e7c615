//! A host with two uplinks: the kernel sends another way, no address changes, and data goes on.

use std::time::Duration;

use crate::{
    lab::{Lab, address},
    path_command::seen_at,
    site::{RA, uplink},
    stream::{ALLOW, Download, Stream},
    world::{World, in_world, now, recovered, wait_for},
};

/// What the world sees of host a on its second uplink.
const RC: &str = "198.51.100.13";

/// Issue 3: longest outage while the gateway is up.
const OUTAGE: Duration = Duration::from_secs(1);

/// Lets `switch` make host a use its second uplink while a file and datagrams go; checks that
/// everything arrives, and soon.
fn goes_on_by_the_other_uplink(world: &World, what: &str, prepare: &str, switch: &str) {
    let mut lab = Lab::up(world);
    let (rc, a, b) = (world.host("rc"), &lab.site.a, &lab.site.b);
    uplink(&lab.site.public, (&rc, RC), (a, "eth1"), "10.0.3");
    a.ok(prepare);
    lab.trust(ALLOW);
    let _server = lab.serve_page();
    let stream = Stream::start(a, b, &address(b));
    a.ok("agentnet ping b --until-direct");
    assert_eq!(local_end(&lab), format!("{RA}:16200"));
    let download = Download::start(a, b, 6_000_000);
    stream.flows();

    let since = now();
    a.ok(switch);
    wait_for("the path is direct from the other uplink", || {
        local_end(&lab) == format!("{RC}:16200")
    });

    let outage = stream.outage_since(since);
    recovered(what, outage);
    assert!(outage < OUTAGE, "{outage:?}");
    download.arrives_whole(a);
    let said = lab.node_a.take().unwrap().stop().to_string();
    assert!(said.contains("The network changed"), "{said}");
}

/// Returns where b sees a on the direct path in use; empty while there is none.
fn local_end(lab: &Lab) -> String {
    seen_at(&lab.site.a, "local")
}

/// Issue 3: a change of the default route alone is noticed, and a transfer survives it.
#[test]
fn a_transfer_survives_another_default_route() {
    in_world(|world| {
        let switch = "ip route replace default via 10.0.3.1";
        goes_on_by_the_other_uplink(world, "another default route", "true", switch);
    });
}

/// The same when the interface of the default route goes down and its address stays.
#[test]
fn a_transfer_survives_that_an_uplink_goes_down() {
    in_world(|world| {
        goes_on_by_the_other_uplink(
            world,
            "an uplink goes down",
            "ip route add default via 10.0.3.1 metric 100",
            "ip link set eth0 down",
        );
    });
}

/// A route that nothing of ours takes is no reason to leave a direct path, and one that is written
/// again as it was is none either.
#[test]
fn a_route_to_elsewhere_moves_nothing() {
    in_world(|world| {
        let lab = Lab::up(world);
        lab.trust("tcp/8000");
        let a = &lab.site.a;
        a.ok("agentnet ping b --until-direct");
        let changes = || {
            let said = lab.node_a.as_ref().unwrap().stderr();
            said.matches("The network changed").count()
        };

        a.ok("ip route add 172.18.0.0/16 via 10.0.1.1");
        a.ok("ip route add blackhole 172.20.0.0/16");
        a.ok("ip route replace default via 10.0.1.1");
        // Longer than the daemon gathers what changed; a change that matters ends the wait.
        a.ok("agentnet ping b --count 2");
        assert_eq!(changes(), 0);

        a.ok("ip route add 198.51.100.0/24 via 10.0.1.1");
        wait_for("a route that matters is noticed", || changes() == 1);
    });
}

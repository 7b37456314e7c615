//! A host with two uplinks: the kernel sends another way, no address changes, and data goes on.

use std::{
    net::UdpSocket,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    lab::{B, Lab, address},
    path_command::report,
    site::{RA, uplink},
    world::{World, in_world, now, wait_for},
};

/// What the world sees of host a on its second uplink.
const RC: &str = "198.51.100.13";

/// Pause between datagrams; what an outage can be told to.
const TICK: Duration = Duration::from_millis(5);

/// Issue 3: longest outage while the gateway is up.
const OUTAGE: Duration = Duration::from_secs(1);

/// Sends a datagram every [`TICK`] while `during` runs; returns when each arrived.
fn ticking(from: &UdpSocket, to: &str, at: &UdpSocket, during: impl FnOnce(&Arrivals)) -> Arrivals {
    let (arrivals, ended) = (Arrivals::default(), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                // Refused by the own host while it has no route; that is an outage too.
                drop(from.send_to(b"tick", to));
                thread::sleep(TICK);
            }
        });
        scope.spawn(|| {
            let mut buffer = [0; 16];
            while !ended.load(Ordering::Relaxed) {
                if at.recv(&mut buffer).is_ok() {
                    arrivals.0.lock().unwrap().push(now());
                }
            }
        });
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| during(&arrivals)));
        ended.store(true, Ordering::Relaxed);
        if let Err(panic) = done {
            std::panic::resume_unwind(panic);
        }
    });
    arrivals
}

/// When datagrams arrived.
#[derive(Default)]
struct Arrivals(Mutex<Vec<Instant>>);

impl Arrivals {
    fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// Returns the longest time without any.
    fn longest_gap(&self) -> Duration {
        let all = self.0.lock().unwrap();
        let gaps = all.windows(2).map(|pair| pair[1] - pair[0]);
        gaps.max().expect("datagrams arrived")
    }
}

/// Lets `switch` make host a use its second uplink while a file and datagrams go; checks that
/// everything arrives, and soon.
fn goes_on_by_the_other_uplink(world: &World, prepare: &str, switch: &str) {
    let mut lab = Lab::up(world);
    let (rc, a, b) = (world.host("rc"), &lab.site.a, &lab.site.b);
    uplink(&lab.site.public, (&rc, RC), (a, "eth1"), "10.0.3");
    a.ok(prepare);
    lab.trust("tcp/8000 --allow udp/5000");
    let _server = lab.serve_page();
    lab.page_within(Duration::from_secs(5), "the page");
    a.ok("agentnet ping b --until-direct");
    assert_eq!(seen_at(&lab), format!("{RA}:16200"));
    b.ok("head -c 12000000 /dev/urandom > /mnt/www/big");
    let download = format!("exec curl -sS --limit-rate 2M -o /mnt/got http://{B}:8000/big");
    let download = a.start(&download);
    let (ours, theirs) = (a.udp("[::]:0"), b.udp("[::]:5000"));
    let to = format!("[{}]:5000", address(b));

    let arrivals = ticking(&ours, &to, &theirs, |arrivals| {
        wait_for("datagrams arrive", || arrivals.count() > 100);
        a.ok(switch);
        wait_for("the path is direct from the other uplink", || {
            seen_at(&lab) == format!("{RC}:16200")
        });
        let before = arrivals.count();
        wait_for("datagrams go on", || arrivals.count() > before + 100);
    });

    let gap = arrivals.longest_gap();
    eprintln!("outage: {gap:?}");
    assert!(gap < OUTAGE, "{gap:?}");
    let ended = download.finish(Duration::from_secs(30));
    assert_eq!(ended.code, 0, "{ended}");
    a.ok("cmp /mnt/got /mnt/www/big");
    let said = lab.node_a.take().unwrap().stop().to_string();
    assert!(said.contains("The network changed"), "{said}");
}

/// Returns where b sees a on the direct path in use; empty while there is none.
fn seen_at(lab: &Lab) -> String {
    let report = report(&lab.site.a, "b");
    let pairs = report["pairs"].as_array().unwrap();
    let used = pairs
        .iter()
        .find(|pair| pair["in_use"] == true && pair["path"] == "direct");
    used.and_then(|pair| pair["local"]["at"].as_str())
        .unwrap_or_default()
        .to_owned()
}

/// Issue 3: a change of the default route alone is noticed, and a transfer survives it.
#[test]
fn a_transfer_survives_another_default_route() {
    in_world(|world| {
        goes_on_by_the_other_uplink(world, "true", "ip route replace default via 10.0.3.1");
    });
}

/// The same when the interface of the default route goes down and its address stays.
#[test]
fn a_transfer_survives_that_an_uplink_goes_down() {
    in_world(|world| {
        goes_on_by_the_other_uplink(
            world,
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

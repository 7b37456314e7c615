//! The state of an agent on a third host: after the first one stopped, and while it runs on.

use std::time::{Duration, Instant};

use crate::{
    lab::{Lab, address, start_node, status},
    motion::wait_for_path,
    path_command::seen_at,
    process::Proc,
    site::{RB, uplink},
    stream::{ALLOW, Stream},
    world::{Host, World, in_world, now, recovered, wait_for},
};

/// What the world sees of the third host.
const RC: &str = "198.51.100.13";

/// Longest outage of a move: that of a restart (issue 3).
const MOVED: Duration = Duration::from_secs(5);

/// A third host behind a router of its own.
struct Third {
    host: Host,
    _router: Host,
}

impl Third {
    fn new(world: &World, lab: &Lab) -> Self {
        let (router, host) = (world.host("rc"), world.host("c"));
        uplink(&lab.site.public, (&router, RC), (&host, "eth0"), "10.0.3");
        host.ok("ip route add default via 10.0.3.1");
        Self {
            host,
            _router: router,
        }
    }

    /// Starts a node with a copy of what `from` keeps on disk.
    fn start_as(&self, from: &Host) -> Proc {
        from.ok("rm -rf /mnt/copy && cp -a /var/lib/agentnet /mnt/copy");
        self.host.ok("cp -a /mnt/copy /var/lib/agentnet");
        start_node(&self.host)
    }
}

/// Everything up, and a stream from A to agent b that goes directly.
fn streaming(world: &World) -> (Lab, Third, Stream) {
    let lab = Lab::up(world);
    let third = Third::new(world, &lab);
    lab.trust(ALLOW);
    let stream = Stream::start(&lab.site.a, &lab.site.b, &address(&lab.site.b));
    wait_for_path(&lab, "direct");
    stream.flows();
    (lab, third, stream)
}

/// Issue 3: the state of a node moves to a third host; its agent is reached there, at the same
/// address.
#[test]
fn an_agent_whose_state_moved_is_reached_on_the_third_host() {
    in_world(|world| {
        let (mut lab, third, stream) = streaming(world);
        let before = address(&lab.site.b);
        let stream = stream.answered_by(&third.host);

        let since = now();
        lab.node_b.take().unwrap().stop();
        let _node = third.start_as(&lab.site.b);

        check("move to a third host", &stream, since);
        assert_eq!(address(&third.host), before);
        wait_for("data goes to the third host", || {
            seen_of(&lab, RC) && !seen_of(&lab, RB)
        });
    });
}

/// Issue 3: the same state live on two hosts. The newest attachment wins; the other says so.
#[test]
fn of_two_hosts_that_run_one_agent_the_newest_has_it() {
    in_world(|world| {
        let (mut lab, third, stream) = streaming(world);
        let before = address(&lab.site.b);
        let stream = stream.answered_by(&third.host);

        let since = now();
        let _node = third.start_as(&lab.site.b);
        is_at_rest(&lab.site.b);
        check("a copy takes over on a third host", &stream, since);
        assert_eq!(address(&third.host), before);
        wait_for("data goes to the third host", || seen_of(&lab, RC));

        let since = now();
        lab.node_b.take().unwrap().kill();
        lab.node_b = Some(start_node(&lab.site.b));
        is_at_rest(&third.host);
        check("the first host takes it back", &stream, since);
        wait_for("data goes to the first host", || seen_of(&lab, RB));
    });
}

/// Prints and checks how long the stream was silent since `since`.
#[track_caller]
fn check(what: &str, stream: &Stream, since: Instant) {
    // What came before now may have been of the host that is at rest now.
    stream.flows();
    let outage = stream.outage_since(since);
    recovered(what, outage);
    assert!(outage < MOVED, "{what}: {outage:?}");
}

/// Asserts that an agent's status tells, in text and JSON, that another host has it, and that it
/// has no peers then.
#[track_caller]
fn is_at_rest(host: &Host) {
    wait_for("the agent is displaced", || {
        status(host)["agents"][0]["gateway"]["state"] == "displaced"
    });
    assert!(warnings(host).contains(&"displaced".to_owned()));
    let text = host.ok("agentnet status");
    assert!(
        text.contains("displaced for") && text.contains("runs on another host"),
        "{text}"
    );
    assert!(text.contains("cure: if it moved"), "{text}");
    wait_for("it has no peers", || {
        !host.ok("agentnet peers").contains("a.acme.agent")
    });
}

fn warnings(host: &Host) -> Vec<String> {
    let status = status(host);
    let all = status["warnings"].as_array().unwrap();
    let code = |warning: &serde_json::Value| warning["code"].as_str().unwrap().to_owned();
    all.iter().map(code).collect()
}

/// Tells whether A's data to agent b goes to this router.
fn seen_of(lab: &Lab, router: &str) -> bool {
    seen_at(&lab.site.a, "remote").starts_with(router)
}

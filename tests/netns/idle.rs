//! What a node costs while nobody speaks.

use std::{collections::BTreeMap, fs, thread, time::Duration};

use crate::{
    lab::{Lab, in_lab},
    process::Proc,
    world::wait_for,
};

/// After this long without data neither paths are compared nor heartbeats are frequent.
const PAUSE: Duration = Duration::from_secs(35);
/// After this long what a start brings is over.
const STARTED: Duration = Duration::from_secs(10);
const WATCHED: Duration = Duration::from_secs(20);

/// Most context switches a second and process (dataplane.md section 2).
const MOST: f64 = 2.0;

/// Returns how often each thread of a process went to sleep by itself, and came back.
fn switches(process: &Proc) -> BTreeMap<String, u64> {
    let tasks = fs::read_dir(format!("/proc/{}/task", process.id())).unwrap();
    let paths = tasks.map(|task| task.unwrap().path());
    let count = |status: &str| {
        let mut lines = status.lines();
        let line = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.unwrap().trim().parse::<u64>().unwrap()
    };
    // A thread may end meanwhile.
    let all = paths.filter_map(|task| {
        let status = fs::read_to_string(task.join("status")).ok()?;
        Some((task.display().to_string(), count(&status)))
    });
    all.collect()
}

/// Returns the switches a second of each process.
fn rates(lab: &Lab) -> Vec<(&'static str, f64)> {
    let all = [
        ("node a", &lab.node_a),
        ("node b", &lab.node_b),
        ("gateway", &lab.gateway),
    ];
    let running = all.map(|(name, process)| (name, process.as_ref().unwrap()));
    let before = running.map(|(_, process)| switches(process));
    thread::sleep(WATCHED);
    let rates = running.iter().zip(before).map(|((name, process), before)| {
        let after = switches(process).into_iter();
        let new = after.map(|(thread, n)| n - before.get(&thread).copied().unwrap_or(0));
        let new = u32::try_from(new.sum::<u64>()).unwrap();
        (*name, f64::from(new) / WATCHED.as_secs_f64())
    });
    rates.collect()
}

#[track_caller]
fn rests(lab: &Lab, when: &str) {
    let rates = rates(lab);

    let restless = rates.iter().filter(|(_, rate)| *rate >= MOST);
    assert_eq!(restless.count(), 0, "{when}: {rates:?}");
}

/// dataplane.md section 2: nodes and gateway make under 2 context switches a second, without peers and
/// with a session that was just used.
#[test]
fn idle_nodes_and_gateways_rest() {
    in_lab(|lab| {
        thread::sleep(STARTED);
        rests(lab, "without peers");

        lab.trust("tcp/8000");
        let _server = lab.serve_page();
        wait_for("data goes directly", || {
            assert!(lab.page_arrives());
            let peers = lab.site.a.ok("agentnet peers --json");
            peers.contains("\"direct\"")
        });
        thread::sleep(PAUSE);
        let peers = lab.site.a.ok("agentnet peers --json");
        assert!(peers.contains("\"up\""), "{peers}");
        rests(lab, "with a session");
    });
}

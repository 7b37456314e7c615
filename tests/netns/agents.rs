//! Several agents of one host, each with a program that has its network and no other.

use std::{fs, thread, time::Duration};

use serde_json::Value;

use crate::{
    lab::{B, Lab, in_lab, start_node, status, wait_attached},
    process::Proc,
    world::{Host, World, in_world_of, measured, now, wait_for, wait_within},
};

/// Runs `body` with services, tokens and no agent.
fn in_services<F: FnOnce(&mut Lab)>(body: F) {
    in_world_of::<F>(|world| {
        let mut lab = Lab::services(world);
        lab.token("all", "--name '*' --uses 20");
        body(&mut lab);
    });
}

fn add(host: &Host, name: &str, flags: &str) {
    host.ok(&format!(
        "agentnet agent add --token-file /mnt/all.token --name {name} {flags}"
    ));
}

/// Has `to` let `from` reach it, both agents of one host.
fn trust(host: &Host, from: &str, to: &str, allow: &str) {
    host.ok(&format!("agentnet trust request {to} --agent {from}"));
    wait_for("the request arrives", || {
        let pending = host.ok(&format!("agentnet trust pending --agent {to} --json"));
        pending.contains(&format!("{from}.acme.agent"))
    });
    host.ok(&format!(
        "agentnet trust approve {from} --agent {to} --allow {allow}"
    ));
}

/// Runs a web server as an agent, and waits until it answers there.
fn serve(host: &Host, agent: &str) -> Proc {
    fs::create_dir_all(World::path("www")).unwrap();
    fs::write(World::path("www/index.html"), "the page").unwrap();
    let server = host.start(&format!(
        "exec agentnet run --agent {agent} -- python3 -u -m http.server 8000 --bind :: --directory /mnt/www"
    ));
    wait_for("the server listens", || server.stdout().contains("Serving"));
    server
}

fn address(host: &Host, name: &str) -> String {
    let status = status(host);
    let mut agents = status["agents"].as_array().unwrap().iter();
    let agent = agents.find(|agent| agent["name"] == name);
    agent.unwrap()["address"].as_str().unwrap().to_owned()
}

fn get(host: &Host, agent: &str, from: &str) -> bool {
    let line = format!("agentnet run --agent {agent} -- curl -sS --max-time 2 http://{from}:8000/");
    host.run(&line).stdout.contains("the page")
}

/// P-041, P-062: several agents of one host each have an address and a network of their own, and reach each
/// other by consent, as those of different hosts do.
#[test]
fn agents_of_one_host_reach_each_other_by_consent_alone() {
    in_services(|lab| {
        let host = &lab.site.a;
        let _node = start_node(host);
        for name in ["x", "y", "z"] {
            add(host, name, "--apart");
        }
        wait_attached(host);
        let listed = host.ok("agentnet agent list");
        assert_eq!(listed.matches("programs").count(), 3, "{listed}");
        // The host itself has none of them.
        assert!(!host.ok("ip -o link").contains("agn"));
        assert!(!host.ok("ip -6 route").contains("agn"));

        let server = serve(host, "x");
        let address = address(host, "x.acme.agent");
        assert!(!get(host, "y", "x.acme.agent"));
        trust(host, "y", "x", "tcp/8000");
        wait_for("the page comes", || get(host, "y", "x.acme.agent"));
        assert!(!get(host, "z", "x.acme.agent"), "z has no consent");

        // Each has its own address and no other, and none of the host's.
        let own = host.ok("agentnet run --agent y -- ip -o -6 addr show scope global");
        assert_eq!(own.lines().count(), 1, "{own}");
        assert!(!own.contains(&address), "{own}");
        let bound = format!(
            "agentnet run --agent z -- python3 -c \
             'import socket; socket.socket(socket.AF_INET6).bind((\"{address}\", 0))'"
        );
        assert!(host.run(&bound).stderr.contains("Cannot assign"));

        // Who is at the other end, asked inside; and nothing of who else is there.
        let whois = format!("agentnet run --agent y -- agentnet whois [{address}]:8000");
        assert!(host.ok(&whois).contains("x.acme.agent"));
        let inside = host.ok("agentnet run --agent y -- agentnet status");
        assert!(inside.contains("y.acme.agent") && !inside.contains("z.acme.agent"));
        let other = "agentnet run --agent z -- agentnet trust list --agent y";
        assert_eq!(host.run(other).code, 4);
        let down = host.run("agentnet run --agent z -- agentnet down");
        assert!(
            down.code == 3 && down.stderr.contains("host's matter"),
            "{down}"
        );

        // One program at a time.
        let second = host.run("agentnet run --agent x -- true");
        assert!(
            second.code == 125 && second.stderr.contains("a program has this agent's network"),
            "{second}"
        );
        let listed = host.ok("agentnet agent list");
        assert!(listed.contains("process "), "{listed}");
        assert_eq!(server.stop().code, 143);
        wait_for("the agent is free", || {
            !host.ok("agentnet agent list").contains("process ")
        });
        host.ok("agentnet agent remove z");
        assert!(!host.ok("agentnet agent list").contains("z.acme.agent"));
    });
}

/// A program outlives its node, and has its network again when that is back.
#[test]
fn programs_outlive_the_daemon() {
    in_lab(|lab| {
        let host = &lab.site.b;
        let device = || host.ok("ip -o link").contains("agn");
        assert!(device());
        lab.trust("tcp/8000");
        let server = serve(host, "b");
        // What was the host's is the program's for as long as it runs.
        wait_for("the host has no device", || !device());
        wait_for("the page comes", || page(lab));

        lab.node_b.take().unwrap().kill();
        assert!(!page(lab));
        lab.node_b = Some(start_node(host));
        wait_for("the page comes again", || page(lab));
        assert!(server.stderr().contains("The node stopped"));

        // Stopped in order it takes its time, and nothing else.
        lab.node_b.take().unwrap().stop();
        lab.node_b = Some(start_node(host));
        wait_for("the page comes again", || page(lab));

        server.stop();
        wait_for("the host has a device again", device);
        wait_attached(host);
        wait_for("the name is the host's", || {
            host.run("getent ahosts b.acme.agent").code == 0
        });
    });
}

fn page(lab: &Lab) -> bool {
    let line = format!("curl -sS --max-time 1 http://{B}:8000/");
    lab.site.a.run(&line).stdout.contains("the page")
}

/// How many agents the test of many has, and how long each of its steps may take.
fn many() -> (usize, Duration) {
    let asked = std::env::var("AGENTNET_AGENTS").ok();
    let count = asked.and_then(|n| n.parse().ok()).unwrap_or(40);
    (count, Duration::from_secs(60 + count as u64))
}

/// Memory of a process, in KiB.
fn memory(process: &Proc) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.unwrap().trim().trim_end_matches(" kB");
    number.parse().unwrap()
}

/// Returns how many agents have registry and gateway.
fn connected(host: &Host) -> usize {
    let status = status(host);
    let is = |value: &Value| value["state"] == "connected";
    let agents = status["agents"].as_array().unwrap().iter();
    agents
        .filter(|a| is(&a["gateway"]) && is(&a["registry"]))
        .count()
}

/// Issue 6: with `--share-net` a program of an agent that the daemon has reaches its peers and what the host reaches.
#[test]
fn a_program_of_a_daemons_agent_shares_the_hosts_network_if_asked() {
    in_services(|lab| {
        let host = &lab.site.a;
        let _node = start_node(host);
        for name in ["x", "y"] {
            add(host, name, "--apart");
        }
        wait_attached(host);
        let _server = serve(host, "x");
        trust(host, "y", "x", "tcp/8000");
        wait_for("the page comes", || get(host, "y", "x.acme.agent"));

        let outside = "curl -sfk --max-time 5 https://198.51.100.1:8443/readyz";
        let alone = host.run(&format!("agentnet run --agent y -- {outside}"));
        assert_ne!(alone.code, 0, "{alone}");
        let both = format!(
            "agentnet run --agent y --share-net -- sh -c \
             '{outside} && exec curl -sf --max-time 20 http://x.acme.agent:8000/'"
        );
        assert!(host.ok(&both).contains("the page"));
    });
}

/// One node has many agents, is back with all of them, and needs little for each (`AGENTNET_AGENTS` says how many).
#[test]
fn one_node_runs_many_agents() {
    in_services(|lab| {
        let (host, (count, patience)) = (&lab.site.a, many());
        let node = start_node(host);
        let before = memory(&node);
        lab.token("many", &format!("--name 'w-*' --uses {count}"));
        let begun = now();
        let add = host.start(&format!(
            "for i in $(seq {count}); do \
             agentnet agent add --token-file /mnt/many.token --name w-$i --apart -q || exit 1; done"
        ));
        assert_eq!(add.finish(patience).code, 0);
        let all = || (connected(host) == count).then_some(());
        wait_within(patience, "all are connected", all);
        let added = begun.elapsed();
        let each = memory(&node).saturating_sub(before) / count as u64;
        assert!(each < 500, "{each} KiB an agent");
        node.kill();

        let begun = now();
        let node = start_node(host);
        let answers = begun.elapsed();
        wait_within(patience, "all are back", all);
        let back = begun.elapsed();
        let rest = at_rest(&node);

        measured(&format!(
            "{count} agents: added in {:.1} s; after a restart it answers in {:.1} s and all are connected in \
             {:.1} s; {each} KiB each; at rest {rest}",
            added.as_secs_f64(),
            answers.as_secs_f64(),
            back.as_secs_f64()
        ));
    });
}

/// Returns what part of a processor a process takes while nobody speaks, where figures are asked for.
fn at_rest(process: &Proc) -> String {
    if std::env::var_os("AGENTNET_AGENTS").is_none() {
        return "not measured".to_owned();
    }
    // What a start brings is over; then as long as anything regular takes to come round.
    thread::sleep(Duration::from_secs(40));
    let (before, begun) = (used(process), now());
    thread::sleep(Duration::from_secs(30));
    let used = used(process).saturating_sub(before).as_secs_f64();
    format!(
        "{:.1} % of a processor",
        used / begun.elapsed().as_secs_f64() * 100.0
    )
}

/// Returns the time of processors that a process used so far.
fn used(process: &Proc) -> Duration {
    let threads = format!("/proc/{}/task", process.id());
    let tasks = fs::read_dir(threads).unwrap();
    let of = |task: std::io::Result<fs::DirEntry>| {
        let text = fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    };
    Duration::from_nanos(tasks.filter_map(of).sum())
}

//! What people look at and hand over when something is wrong: captures and bug reports.

use std::fs;

use serde_json::Value;

use crate::{
    lab::{address, in_lab},
    process::Proc,
    world::{Host, PATIENCE, World, wait_for, wait_within},
};

/// Returns the texts of a node's state on disk that are long enough to be keys or statements.
fn secrets(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::String(text) if text.len() >= 32 => found.push(text.clone()),
        Value::Array(all) => all.iter().for_each(|one| secrets(one, found)),
        Value::Object(all) => all.values().for_each(|one| secrets(one, found)),
        Value::Bool(_) | Value::Null | Value::Number(_) | Value::String(_) => {}
    }
}

/// Issue 6: a bug report has no key, token, name or address in it, and what a fault is looked for by.
#[test]
fn a_bug_report_names_nobody() {
    in_lab(|lab| {
        lab.trust("tcp/8000");
        let a = &lab.site.a;
        a.ok("agentnet ping b --count 2");
        let (mine, theirs) = (address(a), address(&lab.site.b));

        let said = a.ok("agentnet bugreport --out /mnt/report.txt");
        assert!(said.contains("/mnt/report.txt"), "{said}");
        let report = fs::read_to_string(World::path("report.txt")).unwrap();
        a.fails(1, "agentnet bugreport --out /mnt/report.txt");

        for title in [
            "settings", "status", "peers", "trust", "dns", "doctor", "metrics", "log",
        ] {
            let part = report.split(&format!("\n== {title}\n\n")).nth(1);
            let part = part.unwrap_or_else(|| panic!("no {title}: {report}"));
            assert!(!part.starts_with("(not there"), "{title}: {report}");
        }
        for fact in [
            "agent-1.network-1.agent",
            "agentnet_node_peers",
            "Network device ready",
        ] {
            assert!(report.contains(fact), "{fact}: {report}");
        }
        let token = fs::read_to_string(World::path("all.token")).unwrap();
        let mut hidden = Vec::new();
        let kept = a.ok("ls /var/lib/agentnet/state.json /var/lib/agentnet/agents/*.json");
        for file in kept.lines() {
            let state = serde_json::from_str(&a.ok(&format!("cat {file}"))).unwrap();
            secrets(&state, &mut hidden);
        }
        assert!(hidden.len() > 5, "{}", hidden.len());
        hidden.extend([token.trim().to_owned(), mine, theirs]);
        let addresses = [
            "198.51.100.",
            "10.0.1.",
            "10.0.2.",
            "acme",
            "did:key:z",
            "agn1_",
        ];
        hidden.extend(addresses.map(str::to_owned));
        for secret in hidden {
            assert!(!report.contains(&secret), "{secret}: {report}");
        }
        // Short names stand nowhere by themselves.
        let mut words = report.split(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_');
        assert!(!words.any(|word| word == "b"), "{report}");

        lab.node_a.take().unwrap().stop();
        let alone = lab.site.a.ok("agentnet bugreport --out - --no-network");
        assert!(
            alone.contains("== doctor") && alone.contains("no_node"),
            "{alone}"
        );
        assert!(!alone.contains("acme"), "{alone}");
    });
}

/// Has tcpdump believe that it is no root, which it would give up: a world has one user.
const NOBODY: &str = "
#include <sys/types.h>
uid_t getuid(void) { return 1000; }
uid_t geteuid(void) { return 1000; }
";

/// Runs a command beside others, and waits until it says that it began.
fn capturing(host: &Host, line: &str) -> Proc {
    let capture = host.start(line);
    wait_for("it captures", || capture.stderr().contains("capturing"));
    capture
}

/// Issue 6: tcpdump reads an agent's own packets in the clear, and what was dropped has its reason.
#[test]
fn a_capture_is_read_by_tcpdump_and_tells_of_drops() {
    in_lab(|lab| {
        lab.trust("tcp/8000");
        let (a, b) = (&lab.site.a, &lab.site.b);
        a.ok("ping -6 -c 1 -W 20 b.acme.agent");

        let capture = capturing(a, "exec agentnet capture --peer b -c 4 -w /mnt/a.pcapng");
        a.ok("ping -6 -c 2 -i 0.2 b.acme.agent");
        let said = capture.finish(PATIENCE);
        assert_eq!(said.code, 0, "{said}");
        assert!(said.stderr.contains("4 packets"), "{said}");
        fs::write(World::path("nobody.c"), NOBODY).unwrap();
        a.ok("cc -shared -fPIC -o /mnt/nobody.so /mnt/nobody.c");
        let read = a.ok("LD_PRELOAD=/mnt/nobody.so tcpdump -n -r /mnt/a.pcapng");
        for what in ["echo request", "echo reply"] {
            assert_eq!(read.matches(what).count(), 2, "{read}");
        }
        assert!(
            read.contains(&address(a)) && read.contains(&address(b)),
            "{read}"
        );
        let mode = a.ok("stat -c %a /mnt/a.pcapng");
        assert_eq!(mode, "600");

        // Beyond the scope that B gave; B's own capture says so.
        let capture = capturing(b, "exec agentnet capture --json");
        a.run("curl -s --max-time 2 http://b.acme.agent:9000/");
        wait_for("the drop is shown", || {
            let shown = capture.stdout();
            let mut lines = shown
                .lines()
                .filter_map(|line| serde_json::from_str::<Value>(line).ok());
            lines.any(|line| {
                line["comment"] == "dropped: filter_scope"
                    && line["way"] == "in"
                    && line["what"] == "TCP"
            })
        });
        let said = capture.stop();
        assert_eq!(said.code, 0, "{said}");

        b.fails(4, "agentnet capture --peer nobody -c 1");

        // Four at once, and no more.
        let others = [0; 4].map(|_| capturing(b, "exec agentnet capture"));
        let said = b.fails(1, "agentnet capture -c 1");
        assert!(said.contains("too many captures"), "{said}");
        drop(others);
        wait_for("there is room again", || {
            let again = b.start("exec agentnet capture -w /dev/null");
            wait_within(PATIENCE, "it says something", || {
                let said = again.stderr();
                (!said.is_empty()).then_some(said)
            })
            .contains("capturing")
        });
    });
}

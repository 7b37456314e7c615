//! What people look at and hand over when something is wrong: captures and bug reports.

use std::fs;

use serde_json::Value;

use crate::{
    lab::{address, in_lab, start_node, status, wait_attached},
    process::Proc,
    services::OPERATOR,
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

/// Returns what is in the files below a folder that nobody else is to know: texts as long as keys and statements.
fn kept(host: &Host, folder: &str) -> Vec<String> {
    let all = host.ok(&format!("find {folder} -type f -exec cat {{}} +"));
    let is_part = |c: char| c.is_ascii_alphanumeric() || "_-+/=.".contains(c);
    let parts = all.split(|c| !is_part(c)).filter(|part| part.len() >= 32);
    let is_secret = |part: &&str| {
        let of = |is: fn(&char) -> bool| part.chars().any(|c| is(&c));
        of(char::is_ascii_digit) && of(char::is_ascii_uppercase) && of(char::is_ascii_lowercase)
    };
    // Of a statement, each part tells something by itself.
    let parts = parts.filter(is_secret).flat_map(|part| part.split('.'));
    parts
        .filter(|part| part.len() >= 32)
        .map(str::to_owned)
        .collect()
}

/// What a command is told of the settings and credentials that [`plant`] makes.
const WITH: &str = "AGENTNET_CONFIG=/mnt/marked.toml CREDENTIALS_DIRECTORY=/run/credentials \
                    AGENTNET_TOKEN_FILE=/run/credentials/agentnet.join-token";

/// What no report has, in whatever case.
const MARKS: [&str; 20] = [
    "aardvark",
    "acme",
    "capybara",
    "dugong",
    "ibex",
    "lemur",
    "marmoset",
    "narwhal",
    "pangolin",
    "quokka",
    "tamarin",
    "tapir",
    "wombat",
    "zebrafish",
    "198.51.100.",
    "203.0.113.",
    "10.0.1.",
    "did:key:z",
    "agn1_",
    "agno1_",
];

/// Moves the state of a node that stopped into somebody's home, and gives it settings that name others.
fn plant(host: &Host) {
    host.ok("mount -t tmpfs none /home && hostname aardvark");
    host.ok("mkdir -p /home/ibex/kept /run/credentials");
    host.ok("cp /mnt/all.token /run/credentials/agentnet.join-token");
    host.ok("echo http://lemur:tamarin@narwhal.example:3128 > /home/ibex/proxy");
    host.ok("mv /var/lib/agentnet /home/ibex/kept/agentnet");
    let settings = "state = \"/home/ibex/kept/agentnet\"\n\
        [gateway]\ndiscover = [\"Tapir.example:16201\"]\ndns = \"dugong.example\"\n\
        hints = \"/home/ibex/hints\"\n[path]\nstun = [\"203.0.113.77:3478\"]\n\
        [wss]\nproxy_file = \"/home/ibex/proxy\"\n[log]\nlevel = \"debug\"\n";
    fs::write(World::path("marked.toml"), settings).unwrap();
}

/// Has agents ask and be asked for trust, by names and with reasons.
fn ask(a: &Host, b: &Host) {
    let line = |what: &str| a.ok(&format!("{WITH} agentnet {what}"));
    line("join --token-file /mnt/all.token --name zebrafish --apart");
    line("trust request b --agent zebrafish --reason 'the marmoset asks'");
    line("trust request pangolin --agent a");
    wait_for("it is asked", || {
        b.ok("agentnet trust pending --json").contains("zebrafish")
    });
    b.ok("agentnet join --token-file /mnt/all.token --name wombat");
    b.ok("agentnet trust request a --agent wombat --reason 'the quokka asks'");
    wait_for("it is asked", || {
        line("trust pending --json").contains("wombat")
    });
}

/// Issue 6: whatever a host knows of others by any name, in its settings, its state, its credentials and its log, is in no
/// report; nor is what a registry, a gateway and an owner of networks keep.
#[test]
fn a_bug_report_has_none_of_the_marks_that_are_planted() {
    in_lab(|lab| {
        let (a, b, public) = (&lab.site.a, &lab.site.b, &lab.site.public);
        lab.trust("tcp/8000");
        let addresses = [address(a), address(b)];
        lab.node_a.take().unwrap().stop();
        plant(a);
        let node = a.start(&format!("{WITH} exec agentnet up --name a"));
        wait_for("it answers", || {
            a.run(&format!("{WITH} agentnet status")).code == 0
        });
        ask(a, b);
        public.ok(&format!("agentnet network create capybara {OPERATOR}"));

        let folders = [
            (a, "/home/ibex /run/credentials"),
            (b, "/var/lib"),
            (public, "/var/lib"),
        ];
        let mut hidden = folders.map(|(host, folder)| kept(host, folder)).concat();
        assert!(hidden.len() > 50, "{}", hidden.len());
        hidden.extend(addresses);
        hidden.extend(MARKS.map(str::to_owned));
        let report = format!("{WITH} agentnet bugreport --out -");
        let mut reports = vec![a.ok(&report), b.ok("agentnet bugreport --out -")];
        assert!(
            reports
                .iter()
                .all(|one| one.contains("agentnet_node_peers"))
        );
        reports.push(public.ok("agentnet bugreport --out - --no-network"));
        node.stop();
        reports.push(a.ok(&format!("{report} --no-network")));

        for report in reports {
            assert!(report.contains("== settings"), "{report}");
            let lower = report.to_ascii_lowercase();
            let mut told = hidden.iter().filter(|of| {
                report.contains(of.as_str()) || lower.contains(&of.to_ascii_lowercase())
            });
            assert_eq!(told.next(), None, "{report}");
        }
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

/// Returns the comments of the packets of a pcapng file, by the format's draft; its end may be on its way.
fn comments(file: &[u8]) -> Vec<String> {
    let word = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap()) as usize;
    let half = |at: usize| usize::from(u16::from_le_bytes([file[at], file[at + 1]]));
    let (mut found, mut block) = (Vec::new(), 0);
    while block < file.len() {
        if file.len() < block + 8 || file.len() < block + word(block + 4) {
            break;
        }
        let end = block + word(block + 4);
        assert_eq!(word(end - 4), word(block + 4), "both lengths of a block");
        if word(block) == 6 {
            // An Enhanced Packet Block; options stand behind the packet, each filled up to 32 bits.
            let mut at = block + 28 + word(block + 20).next_multiple_of(4);
            while at < end - 4 && half(at) != 0 {
                let value = &file[at + 4..at + 4 + half(at + 2)];
                if half(at) == 1 {
                    found.push(String::from_utf8(value.to_vec()).unwrap());
                }
                at += 4 + half(at + 2).next_multiple_of(4);
            }
        }
        block = end;
    }
    found
}

/// Issue 6: what goes no further than the engine is in a capture too, with its reason.
#[test]
fn a_capture_has_what_the_engine_drops() {
    in_lab(|lab| {
        let away = address(&lab.site.b);
        lab.trust("any");
        lab.node_b.take().unwrap().kill();
        // Without the sessions it had.
        lab.node_a.take().unwrap().stop();
        lab.node_a = Some(start_node(&lab.site.a));
        wait_attached(&lab.site.a);
        let a = &lab.site.a;
        let file = World::path("drops.pcapng");
        let dropped = |reason: &str| {
            let comments = comments(&fs::read(&file).unwrap_or_default());
            let reason = format!("dropped: {reason}");
            comments.iter().filter(|one| **one == reason).count() as u64
        };

        let capture = capturing(a, "exec agentnet capture -w /mnt/drops.pcapng");
        // Nobody has this address, and it may be hidden as well.
        let (network, _) = away.rsplit_once(':').unwrap();
        a.run(&format!("ping -6 -c 1 -W 1 {network}:1"));
        wait_for("a packet to nobody", || dropped("no_peer") > 0);
        a.run(&format!("ping -6 -c 100 -i 0.002 -W 1 {away}"));
        wait_for("as many as are counted", || {
            let shown = dropped("peer_queue_full");
            let counted = status(a)["drops"]["peer_queue_full"].as_u64();
            shown >= 20 && counted == Some(shown)
        });
        let said = capture.stop();
        assert_eq!(said.code, 0, "{said}");
    });
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

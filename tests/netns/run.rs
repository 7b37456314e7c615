//! `agentnet run`: programs with an agent's network and no other, for callers without root.

mod job;
mod lost;
mod missing;
mod programs;
mod shared;
mod terminal;

use std::time::Duration;

use crate::{
    lab::{B, Lab, MARKER, start_node, wait_attached},
    process::Proc,
    surroundings::changes,
    world::{Host, PATIENCE, World, in_world, measured, now, wait_for},
};

/// Has a command run by a user without any rights: not root, and no capabilities.
pub(crate) const USER: &str = "unshare --user --map-user=1000 --map-group=1000 --";

/// Finds what belongs to programs that run, on whichever host.
pub(crate) const PARTS: &str = "pgrep -f '[a]gentnet (run|inside) '";

/// Waits until no part of `agentnet run` is left on `host`; says what is when it stays.
#[track_caller]
pub(crate) fn wait_for_the_end(host: &Host) {
    let start = now();
    while host.run(PARTS).code != 1 {
        let all = "ps -e -o pid,ppid,pgid,sid,tpgid,stat,wchan:20,args";
        assert!(
            start.elapsed() < PATIENCE,
            "still there:\n{}",
            host.run(all)
        );
    }
}

/// How long a program takes at most that begins, fetches a page and ends.
const SLOW: Duration = Duration::from_secs(60);

/// Brings up services and agent `b`, which answers everybody who asks; nothing on host a.
fn open_house(world: &World) -> (Lab, Proc) {
    let mut lab = Lab::services(world);
    lab.token("all", "--name '*' --uses 1000");
    let b = &lab.site.b;
    b.ok("agentnet join --token-file /mnt/all.token --name b");
    lab.node_b = Some(start_node(b));
    wait_attached(b);
    b.ok("agentnet trust auto add --from '*' --allow tcp/8000");
    let page = lab.serve_page();
    (lab, page)
}

/// The shell's words for waiting until b has answered.
pub(crate) fn befriend() -> String {
    format!("agentnet trust request {B} --wait 60s && getent hosts {B}")
}

/// A resolver of the host and a cache, which a program of an agent must not reach.
fn host_resolvers(host: &Host) -> Proc {
    host.ok("mkdir -p /run/systemd/resolve /run/nscd && \
         echo 'nameserver 127.0.0.53' > /run/systemd/resolve/stub-resolv.conf && \
         rm /etc/resolv.conf && ln -s ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf && \
         echo 'hosts: resolve [!UNAVAIL=return] files dns' > /etc/nsswitch.conf");
    let listener = host.start(
        "exec python3 -c 'import socket, time; all = [socket.socket(socket.AF_UNIX) for _ in \"12\"]; \
         all[0].bind(\"/run/nscd/socket\"); all[1].bind(\"/run/systemd/resolve/io.systemd.Resolve\"); \
         print(\"there\"); time.sleep(1000)'",
    );
    wait_for("the host's resolvers are there", || {
        listener.stdout().contains("there")
    });
    listener
}

/// Issue 6: a program has its agent's address, names and peers, and nothing else of any network; it
/// is its caller; the host is as before.
#[test]
fn a_program_has_its_agents_network_and_no_other() {
    in_world(|world| {
        let (lab, _page) = open_house(world);
        let a = &lab.site.a;
        let _resolvers = host_resolvers(a);
        let before = changes(a);
        let inside = format!(
            "{}; curl -sS --max-time 20 http://{B}:8000/; \
             python3 -c 'import urllib.request as u; print(u.urlopen(\"http://b:8000/\").status)'; \
             id -u; grep CapEff /proc/self/status; ip -o addr; ip -o link | wc -l; ip -6 route; \
             cat /etc/resolv.conf; ls -A /run/nscd /run/systemd/resolve; \
             curl -sS --max-time 5 http://198.51.100.1:8443/; echo curl says $?; \
             getent hosts other.example; echo getent says $?; ip link set lo down; \
             echo AGENTNET_TOKEN=$AGENTNET_TOKEN; agentnet status; nc -l ::1 80 & \
             until ss -ltn | grep -q ':80 '; do sleep 0.05; done; ping -c 1 -q ::1; exit 5",
            befriend()
        );

        let ran = a
            .start(&format!(
                "AGENTNET_TOKEN=$(cat /mnt/all.token) exec {USER} \
                 agentnet run --name worker -- sh -c '{}'",
                inside.replace('\'', "'\\''")
            ))
            .finish(SLOW);

        let said = ran.to_string();
        assert_eq!(ran.code, 5, "{said}");
        for wanted in [
            MARKER,
            "\n200\n1000\nCapEff:\t0000000000000000\n",
            "inet6 fd",
            // The loopback and the agent's own.
            "\n2\n",
            "dev agn0 proto 97 src fd",
            "nameserver fd",
            "search acme.agent",
            "curl says 7",
            "getent says 2",
            "Operation not permitted",
            "AGENTNET_TOKEN=\n",
            "worker.acme.agent",
            "1 received",
        ] {
            assert!(said.contains(wanted), "no `{wanted}` in: {said}");
        }
        for unwanted in ["eth0", "10.0.1", "socket\n", "io.systemd", "127.0.0.53"] {
            assert!(!said.contains(unwanted), "`{unwanted}` in: {said}");
        }
        assert_eq!(changes(a), before);
        // It left, so nothing of it is waited for.
        let b = lab.site.b.ok("agentnet status");
        assert!(!a.ok("ls -A /root /var/lib").contains("agentnet"), "{b}");
    });
}

/// Issue 6: an agent that joined before runs programs one after the other, each within a moment; its
/// keys are out of their sight.
#[test]
fn an_agent_that_joined_before_runs_programs() {
    in_world(|world| {
        let (lab, _page) = open_house(world);
        let a = &lab.site.a;
        let run = format!("{USER} agentnet run --state /mnt/a");
        let joined = a
            .start(&format!(
                "{run} --token-file /mnt/all.token --name a -- sh -c '{}'",
                befriend()
            ))
            .finish(SLOW);
        assert_eq!(joined.code, 0, "{joined}");

        let connect = format!(
            "import socket, sys, time; \
             socket.create_connection((\"{B}\", 8000), 20).close(); \
             print(\"ms:\", int(1000 * (time.time() - float(sys.argv[1]))))"
        );
        let mut took = Vec::new();
        for _ in 0..5 {
            let said = a.ok(&format!(
                "{run} --agent a -- python3 -c '{connect}' $(date +%s.%N)"
            ));
            let said = said.strip_prefix("ms: ").unwrap().to_owned();
            took.push(said.parse::<u64>().unwrap());
        }

        took.sort_unstable();
        measured(&format!(
            "a program connects {} ms after its start (median of 5; {took:?})",
            took[2]
        ));
        // Some 70 ms on an idle machine. A lost segment would be repeated after a second.
        assert!(took[2] < 950, "{took:?}");
        let kept = a.ok(&format!("{run} -- ls -A /mnt/a"));
        assert_eq!(kept, "");
        assert!(a.ok("ls -A /mnt/a").contains("state.json"));
        // One at a time in one directory.
        let holder = a.start(&format!("exec {run} -- sleep 1000"));
        wait_for("it runs", || a.run("pgrep -x sleep").code == 0);
        let said = a.fails(125, &format!("{run} -- true"));
        assert!(
            said.contains("in use") && said.contains("another directory"),
            "{said}"
        );
        assert_eq!(holder.stop().code, 128 + 15);
    });
}

/// K9: jobs of one name follow each other, each a new agent that its peers take for what it is.
#[test]
fn an_ephemeral_name_serves_the_next_job() {
    in_world(|world| {
        let (lab, _page) = open_house(world);
        let a = &lab.site.a;
        lab.token("jobs", "--name nightly --uses 10 --ephemeral");
        let run = format!("exec {USER} agentnet run --token-file /mnt/jobs.token -- sh -c");
        let fetch = "curl -sS --max-time 30 --retry 5 --retry-all-errors";
        let mut addresses = Vec::new();
        for _ in 0..3 {
            let job = format!(
                "{} && {fetch} http://{B}:8000/ && ip -o -6 addr show agn0",
                befriend()
            );
            let ran = a.start(&format!("{run} '{job}'")).finish(SLOW);
            assert!(ran.code == 0 && ran.stdout.contains(MARKER), "{ran}");
            let address = ran
                .stdout
                .split_whitespace()
                .find(|word| word.ends_with("/128"));
            addresses.push(address.unwrap().to_owned());
            wait_for("b has forgotten it", || {
                !lab.site.b.ok("agentnet peers").contains("nightly")
            });
        }
        addresses.dedup();
        assert_eq!(addresses.len(), 3, "each is an agent of its own");
        let b = lab.site.b.run("getent hosts nightly.acme.agent");
        assert_ne!(b.code, 0, "{b}");
    });
}

/// Programs at once in the test, unless AGENTNET_RUNS says otherwise.
const MANY: &str = "40";

/// Issue 6: many programs at once, each an agent of its own, and all are gone afterwards.
#[test]
fn many_run_at_once() {
    in_world(|world| {
        let (lab, _page) = open_house(world);
        let a = &lab.site.a;
        let before = changes(a);
        let count = std::env::var("AGENTNET_RUNS").unwrap_or_else(|_| MANY.to_owned());
        let start = now();

        let line = format!(
            "for i in $(seq {count}); do {USER} agentnet run --token-file /mnt/all.token \
             --name w$i -- sh -c '{} >/dev/null && \
             curl -sS --max-time 30 --retry 5 --retry-all-errors http://{B}:8000/' & done; wait",
            befriend()
        );
        let ran = a.start(&line).finish(Duration::from_secs(100));

        let pages = ran.stdout.matches(MARKER).count();
        assert_eq!(pages.to_string(), count, "{ran}");
        measured(&format!(
            "{count} programs joined, got consent and a page at once: {} ms",
            start.elapsed().as_millis()
        ));
        assert_eq!(changes(a), before);
        wait_for_the_end(a);
    });
}

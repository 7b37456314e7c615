//! How the host's programs find agents by name while others change the host's DNS settings.

use std::fs;

use serde_json::Value;

use crate::{
    lab::{address, in_lab, start_node_with},
    process::Proc,
    world::{Host, World, wait_for},
};

/// A nameserver that says one address for every name, and keeps what it was asked.
const NAMESERVER: &str = r#"
import socket, sys
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind((sys.argv[1], 53))
while True:
    query, client = server.recvfrom(4096)
    at = query.index(0, 12)
    print(query[12:at], flush=True)
    has = query[at + 1:at + 3] == b"\0\1"
    head = query[:2] + b"\x81\x80\0\1" + (b"\0\1" if has else b"\0\0") + b"\0\0\0\0"
    record = b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4" + socket.inet_aton(sys.argv[2]) if has else b""
    server.sendto(head + query[12:at + 5] + record, client)
"#;

/// Runs a nameserver on the host itself.
pub(crate) fn nameserver(host: &Host, at: &str, says: &str) -> Proc {
    fs::write(World::path("nameserver.py"), NAMESERVER).unwrap();
    host.ok(&format!("ip addr replace {at}/32 dev lo"));
    let server = host.start(&format!("exec python3 /mnt/nameserver.py {at} {says}"));
    wait_for("the nameserver listens", || {
        host.ok("ss -lun").contains(&format!("{at}:53 "))
    });
    server
}

/// Does what a DHCP client does with a new lease.
pub(crate) fn lease(host: &Host, at: &str) {
    host.ok(&format!(
        "echo 'nameserver {at}' > /etc/resolv.lease && mv /etc/resolv.lease /etc/resolv.conf"
    ));
}

fn finds(host: &Host, name: &str, at: &str) -> bool {
    host.run(&format!("getent ahosts {name}"))
        .stdout
        .contains(at)
}

fn dns(host: &Host) -> Value {
    let said = host.run("agentnet dns status --json").stdout;
    serde_json::from_str(&said).unwrap_or(Value::Null)
}

/// Another program writes the file while the node runs: its nameservers are asked from then on, and ours stands
/// first again.
#[test]
fn a_new_lease_is_taken_up_and_ours_put_back() {
    in_lab(|lab| {
        let a = &lab.site.a;
        let ours = address(a);
        let _first = nameserver(a, "192.0.2.53", "203.0.113.1");
        let _second = nameserver(a, "192.0.2.54", "203.0.113.2");
        assert_eq!(dns(a)["node"]["state"], "applied");
        assert_eq!(dns(a)["node"]["owner"], "resolv-conf");

        for (server, says) in [("192.0.2.53", "203.0.113.1"), ("192.0.2.54", "203.0.113.2")] {
            lease(a, server);

            wait_for("ours stands", || {
                a.ok("cat /etc/resolv.conf").contains(&ours)
            });
            wait_for("foreign names are asked of the new nameserver", || {
                finds(a, "www.example.com", says)
            });
            assert!(finds(a, "a.acme.agent", &ours));
        }
        // In place, as some scripts do.
        a.ok("echo 'nameserver 192.0.2.53' > /etc/resolv.conf");
        wait_for("ours stands", || {
            a.ok("cat /etc/resolv.conf").contains(&ours)
        });
        wait_for("the nameserver is asked", || {
            finds(a, "www.example.org", "203.0.113.1")
        });

        lab.node_a.take().unwrap().stop();
        assert_eq!(
            lab.site.a.ok("cat /etc/resolv.conf"),
            "nameserver 192.0.2.53"
        );
    });
}

/// A symlink is followed to where its keeper writes, which is not what the node replaced.
#[test]
fn what_a_symlink_leads_to_is_asked_when_it_changes() {
    in_lab(|lab| {
        lab.node_a.take().unwrap().stop();
        let a = &lab.site.a;
        let _first = nameserver(a, "192.0.2.53", "203.0.113.1");
        let _second = nameserver(a, "192.0.2.54", "203.0.113.2");
        let keeper = |server: &str| {
            a.ok(&format!(
                "echo 'nameserver {server}' > /run/keeper/new && mv /run/keeper/new /run/keeper/conf"
            ));
        };
        a.ok("mkdir /run/keeper && ln -sf ../run/keeper/conf /etc/resolv.conf");
        keeper("192.0.2.53");
        let node = start_node_with(a, "");
        assert!(finds(a, "www.example.com", "203.0.113.1"));

        keeper("192.0.2.54");

        wait_for("the new nameserver is asked", || {
            finds(a, "www.example.org", "203.0.113.2")
        });
        assert!(finds(a, "a.acme.agent", &address(a)));
        node.stop();
        assert_eq!(a.ok("readlink /etc/resolv.conf"), "../run/keeper/conf");
        assert_eq!(a.ok("cat /etc/resolv.conf"), "nameserver 192.0.2.54");
    });
}

/// Two programs that fight over the file do not spin: the node gives up, and says so.
#[test]
fn a_fight_over_the_file_ends() {
    in_lab(|lab| {
        let a = &lab.site.a;
        let ours = address(a);
        let _server = nameserver(a, "192.0.2.53", "203.0.113.1");
        let mut rival = a.start(
            "while true; do \
             if ! grep -q '^nameserver 192.0.2.53' /etc/resolv.conf; then \
             echo turn; echo 'nameserver 192.0.2.53' > /etc/resolv.lease; \
             mv /etc/resolv.lease /etc/resolv.conf; fi; sleep 0.05; done",
        );

        wait_for("the node gives up", || {
            dns(a)["node"]["state"] == "contended"
        });

        assert!(rival.stdout().lines().count() <= 8, "{}", rival.stdout());
        let status = a.ok("agentnet status");
        assert!(status.contains("takes our DNS settings away"), "{status}");
        assert!(
            a.fails(1, "agentnet dns status")
                .contains("agentnet dns apply")
        );
        assert_eq!(a.ok("cat /etc/resolv.conf"), "nameserver 192.0.2.53");
        rival.signal(nix::sys::signal::Signal::SIGKILL);
        wait_for("the rival is gone", || !rival.is_running());
        a.ok("agentnet dns apply");
        assert!(finds(a, "a.acme.agent", &ours));
        assert!(finds(a, "www.example.com", "203.0.113.1"));
    });
}

/// `agentnet dns revert` works on a living node, on a killed one, and where none ever was.
#[test]
fn settings_are_taken_back_whatever_became_of_the_node() {
    in_lab(|lab| {
        let a = &lab.site.a;
        let ours = address(a);
        assert!(
            lab.site
                .public
                .ok("agentnet dns revert")
                .contains("nothing of ours")
        );

        a.ok("agentnet dns revert");
        assert_eq!(a.ok("cat /etc/resolv.conf"), "");
        assert_eq!(dns(a)["node"]["state"], "reverted");
        lease(a, "192.0.2.99");
        a.ok("agentnet dns revert");
        assert_eq!(a.ok("cat /etc/resolv.conf"), "nameserver 192.0.2.99");
        a.ok("agentnet dns apply");
        assert!(
            a.ok("agentnet dns status")
                .contains("programs ask the node")
        );
        assert!(a.ok("cat /etc/resolv.conf").contains(&ours));

        lab.node_a.take().unwrap().kill();
        let a = &lab.site.a;
        assert!(a.ok("agentnet dns revert").contains("as they were"));
        assert_eq!(a.ok("cat /etc/resolv.conf"), "nameserver 192.0.2.99");
        a.fails(5, "agentnet dns apply");
        assert!(a.fails(5, "agentnet dns status").contains("agentnet up"));
    });
}

/// The node may not write `/etc`: root sets the host's DNS by a command, and the node learns from the host's files
/// whom else to ask, also when they change.
#[test]
fn root_sets_what_the_node_may_not() {
    in_lab(|lab| {
        lab.node_a.take().unwrap().stop();
        let a = &lab.site.a;
        let _first = nameserver(a, "192.0.2.53", "203.0.113.1");
        let _second = nameserver(a, "192.0.2.54", "203.0.113.2");
        lease(a, "192.0.2.53");
        let node = a.start(
            "exec unshare --mount sh -c 'mount --bind /etc /etc && mount -o remount,bind,ro /etc && \
             exec agentnet up'",
        );
        wait_for("the node waits for root", || {
            dns(a)["node"]["state"] == "waiting"
        });
        assert!(a.ok("agentnet status").contains("agentnet dns apply"));
        assert_eq!(a.ok("cat /etc/resolv.conf"), "nameserver 192.0.2.53");

        a.ok("agentnet dns apply");
        let ours = address(a);
        assert!(finds(a, "a.acme.agent", &ours));
        wait_for("the node sees it", || dns(a)["node"]["state"] == "applied");
        assert!(finds(a, "www.example.com", "203.0.113.1"));
        lease(a, "192.0.2.54");
        wait_for("the node sees a new lease", || {
            dns(a)["node"]["upstream"][0] == "192.0.2.54:53"
        });
        a.ok("agentnet dns apply");
        wait_for("the new nameserver is asked", || {
            finds(a, "www.example.org", "203.0.113.2")
        });
        assert!(finds(a, "a.acme.agent", &ours));

        node.kill();
        a.ok("agentnet dns revert");
        assert_eq!(a.ok("cat /etc/resolv.conf"), "nameserver 192.0.2.54");
    });
}

/// With `--dns none` nothing is touched, and the node says what to do. (Nobody answers at 127.0.0.1, and that at once.)
#[test]
fn nothing_is_touched_where_nothing_shall_be() {
    in_lab(|lab| {
        lab.node_a.take().unwrap().stop();
        let a = &lab.site.a;
        lease(a, "127.0.0.1");

        let _node = start_node_with(a, "--dns none");

        assert_eq!(a.ok("cat /etc/resolv.conf"), "nameserver 127.0.0.1");
        let said = a.ok("agentnet dns status");
        assert!(
            said.contains("--dns none") && said.contains("warning"),
            "{said}"
        );
        a.ok("agentnet dns apply");
        assert_eq!(a.ok("cat /etc/resolv.conf"), "nameserver 127.0.0.1");
    });
}

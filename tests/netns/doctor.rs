//! `agentnet doctor` where something is really wrong: it says what, and what it says to do helps.

use serde_json::Value;

use std::{fs, net::UdpSocket};

use crate::{
    lab::{Lab, address, in_lab, start_node, start_node_with, wait_attached},
    site::PUB,
    wall_clock::{SKEWED, make_skewed, set_clock},
    world::{Host, World, in_world, wait_for},
};

const DOCTOR: &str = "agentnet doctor --json";

/// Returns what was found, and how the command ended.
fn examined(host: &Host, line: &str) -> (Vec<Value>, i32) {
    let output = host.run(line);
    let json = serde_json::from_str::<Value>(&output.stdout);
    let json = json.unwrap_or_else(|error| panic!("{error}: {output}"));
    (json["checks"].as_array().unwrap().clone(), output.code)
}

/// Returns the check with the code; fails where there is none.
#[track_caller]
fn found(host: &Host, line: &str, code: &str) -> Value {
    let (checks, _) = examined(host, line);
    let found = checks.iter().find(|check| check["code"] == code);
    let found = found
        .unwrap_or_else(|| panic!("no {code}: {checks:#?}"))
        .clone();
    let cure = found["cure"].as_str().unwrap_or_default();
    assert!(!cure.is_empty(), "{found}");
    found
}

/// Tells whether nothing is broken.
fn is_well(host: &Host, line: &str) -> bool {
    let (checks, code) = examined(host, line);
    let broken = checks.iter().filter(|check| check["state"] == "broken");
    assert_eq!(code == 0, broken.count() == 0, "{checks:#?}");
    code == 0
}

/// Tells how a check came out; fails where there is none.
#[track_caller]
fn state(checks: &[Value], name: &str) -> String {
    let mut found = checks.iter().filter(|check| check["check"] == name);
    let first = found.next();
    let first = first.unwrap_or_else(|| panic!("no check {name}: {checks:#?}"));
    assert!(found.next().is_none(), "{name} is not one: {checks:#?}");
    first["state"].as_str().unwrap().to_owned()
}

/// Returns the command that a cure is, as it stands there.
fn command(check: &Value) -> String {
    let cure = check["cure"].as_str().unwrap();
    let command = cure.strip_prefix("as root: ").unwrap_or(cure);
    command.split(';').next().unwrap().to_owned()
}

#[track_caller]
fn wait_well(host: &Host) {
    wait_for("the doctor is content", || is_well(host, DOCTOR));
}

/// Issue 6: a host where all is well is told so, also for people; a registry that is down is found, and a node that
/// does not run.
#[test]
fn a_lost_registry_and_a_missing_node_are_found() {
    in_lab(|lab| {
        wait_well(&lab.site.a);
        let said = lab.site.a.ok("agentnet doctor");
        for line in [
            "ok      tun",
            "ok      registry",
            "ok      clock",
            "ok      names",
            "ok      disk",
        ] {
            assert!(said.contains(line), "{line}: {said}");
        }

        lab.registry.take().unwrap().kill();
        wait_for("the node knows", || {
            lab.site
                .a
                .ok("agentnet status --json")
                .contains("registry_lost")
        });
        let check = found(&lab.site.a, DOCTOR, "registry_unreachable");
        assert_eq!(check["state"], "broken");
        assert!(
            check["cure"]
                .as_str()
                .unwrap()
                .contains("check that the registry runs"),
            "{check}"
        );
        let said = lab.site.a.fails(1, "agentnet doctor");
        assert!(
            said.contains("BROKEN") && said.contains("cure: ") && said.contains("code: "),
            "{said}"
        );
        lab.start_registry();
        wait_well(&lab.site.a);

        lab.node_a.take().unwrap().stop();
        let check = found(&lab.site.a, DOCTOR, "no_node");
        assert!(
            check["cure"].as_str().unwrap().contains("agentnet up"),
            "{check}"
        );
        let (checks, code) = examined(&lab.site.a, "agentnet doctor --json --no-network");
        assert_eq!(code, 1);
        let network = checks.iter().find(|check| check["check"] == "network");
        assert_eq!(network.unwrap()["state"], "unknown");
        lab.node_a = Some(start_node(&lab.site.a));
        wait_attached(&lab.site.a);
        wait_well(&lab.site.a);
    });
}

/// Issue 6: every check can come out well, on one host at the same time; `state` tells of faults alone.
#[test]
fn where_nothing_is_wrong_every_check_is_well() {
    in_lab(|lab| {
        lab.trust("any");
        let a = &lab.site.a;
        let mut checks = Vec::new();
        wait_for("all is well", || {
            checks = examined(a, DOCTOR).0;
            let names = ["node", "gateway", "network", "registry", "names"];
            let well = |name: &&str| {
                let mut of = checks.iter().filter(|check| check["check"] == *name);
                of.next().is_some_and(|check| check["state"] == "well")
            };
            names.iter().all(well)
        });
        for name in [
            "tun",
            "namespaces",
            "disk",
            "addresses",
            "routes",
            "firewall",
            "clock",
            "mtu",
        ] {
            assert_eq!(state(&checks, name), "well", "{checks:#?}");
        }
        // An older kernel may have no landlock, which is odd.
        assert_ne!(state(&checks, "kernel"), "broken");
        assert!(checks.iter().all(|check| check["check"] != "state"));

        lab.node_a.take().unwrap().stop();
        let (checks, _) = examined(&lab.site.a, "agentnet doctor --json --no-network");
        assert_eq!(state(&checks, "port"), "well");
        assert_eq!(state(&checks, "addresses"), "well");

        // As it was asked for, so nothing is broken.
        lab.node_a = Some(start_node_with(&lab.site.a, "--dns none"));
        let line = "agentnet doctor --json --no-network";
        let check = found(&lab.site.a, line, "dns_off");
        assert_eq!(check["state"], "odd");
    });
}

/// Issue 6: the host's firewall lets nobody in; the rule that is named lets agents' peers in, and nobody else.
#[test]
fn a_closed_firewall_is_found_and_opened() {
    in_lab(|lab| {
        lab.trust("tcp/8000");
        let _page = lab.serve_page();
        wait_for("the page comes", || lab.page_arrives());
        let b = &lab.site.b;
        let line = "agentnet doctor --json --no-network";
        fs::write(
            World::path("closed.nft"),
            "table inet filter {
                chain input { type filter hook input priority filter; policy drop;
                    meta nfproto ipv4 accept
                    ct state established,related accept
                    iifname lo accept
                    icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
                }
                chain forward { type filter hook forward priority filter; policy drop; }
            }
            table ip nobody {
                chain input { type filter hook input priority filter; policy drop; accept; }
            }",
        )
        .unwrap();
        b.ok(&format!("nft -f {}", World::path("closed.nft").display()));
        assert!(!lab.page_arrives());

        let check = found(b, line, "firewall_closed");
        assert_eq!(check["state"], "odd");
        assert!(
            check["text"]
                .as_str()
                .unwrap()
                .contains("inet filter input"),
            "{check}"
        );
        b.ok(&command(&check));

        wait_for("the page comes", || lab.page_arrives());
        assert_eq!(state(&examined(b, line).0, "firewall"), "well");
        b.ok("nft flush ruleset");
        assert_eq!(state(&examined(b, line).0, "firewall"), "well");
    });
}

/// Issue 6: no UDP leaves the host; with and without a WebSocket to the gateway.
#[test]
fn a_firewall_that_drops_udp_is_found() {
    in_world(|world| {
        let mut lab = Lab::services_with(world, "--wss 198.51.100.1:443", "");
        lab.join();
        lab.start_nodes();
        let a = &lab.site.a;
        let passes = || {
            let (checks, _) = examined(a, DOCTOR);
            let mut network = checks.iter().filter(|check| check["check"] == "network");
            network.all(|check| check["state"] == "well")
        };
        wait_for("UDP passes", passes);
        fs::write(
            World::path("blocked.nft"),
            "table inet blocked {
                chain out { type filter hook output priority filter; policy accept;
                    oifname eth0 meta l4proto udp drop
                }
                chain in { type filter hook input priority filter; policy accept;
                    iifname eth0 meta l4proto udp drop
                }
            }",
        )
        .unwrap();
        a.ok(&format!("nft -f {}", World::path("blocked.nft").display()));

        let check = found(a, DOCTOR, "udp_blocked");
        assert_eq!(check["state"], "odd");
        assert!(
            check["cure"].as_str().unwrap().contains("let UDP out"),
            "{check}"
        );

        // Nothing at all reaches the gateway.
        a.ok("nft add rule inet blocked out oifname eth0 tcp dport 443 reject with tcp reset");
        let (checks, code) = examined(a, DOCTOR);
        let network = checks.iter().filter(|check| check["check"] == "network");
        let mut codes = network.filter_map(|check| check["code"].as_str());
        assert!(codes.any(|code| code.starts_with("wss_")), "{checks:#?}");
        assert_eq!(code, 1);

        a.ok("nft delete table inet blocked");
        wait_for("UDP passes again", passes);
    });
}

/// Returns how many packets the kernel dropped that came by another way than answers take.
fn strictly_dropped(host: &Host) -> u64 {
    let said = host.ok("nstat -asz TcpExtIPReversePathFilter");
    let line = said.lines().find(|line| line.starts_with("TcpExtIPRev"));
    let count = line.and_then(|line| line.split_whitespace().nth(1));
    count.unwrap().parse().unwrap()
}

/// Issue 6: two ways out, of which the kernel lets one in; whether that is set for one device or for all.
#[test]
fn a_kernel_that_filters_by_the_way_back_is_found() {
    in_lab(|lab| {
        let (a, public) = (&lab.site.a, &lab.site.public);
        let line = "agentnet doctor --json --no-network";
        a.link("eth1", public, "second");
        public.ok("ip addr add 10.0.3.1/24 dev second");
        a.ok("ip addr add 10.0.3.2/24 dev eth1 && ip route add default via 10.0.3.1 metric 200");
        // The kernel would not answer for an address that it does not take packets from, either.
        let link = a.ok("cat /sys/class/net/eth1/address");
        public.ok(&format!(
            "ip neigh replace 10.0.3.2 lladdr {link} dev second nud permanent"
        ));
        a.ok("sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth0.rp_filter=0");
        a.ok("sysctl -qw net.ipv4.conf.eth1.rp_filter=0");
        assert_eq!(state(&examined(a, line).0, "routes"), "well");

        for strict in ["eth1", "all"] {
            a.ok(&format!("sysctl -qw net.ipv4.conf.{strict}.rp_filter=1"));
            let (here, there) = (a.udp("0.0.0.0:5000"), public.udp(&format!("{PUB}:5000")));
            let send = || there.send_to(b"round the corner", "10.0.3.2:5000").unwrap();
            let before = strictly_dropped(a);
            send();
            wait_for("it is dropped", || strictly_dropped(a) > before);
            let check = found(a, line, "rp_filter");
            assert_eq!(check["state"], "odd");

            a.ok(&command(&check));

            let arrives = |here: &UdpSocket| {
                send();
                here.recv_from(&mut [0; 64]).is_ok()
            };
            wait_for("it arrives", || arrives(&here));
            assert_eq!(state(&examined(a, line).0, "routes"), "well");
        }
    });
}

/// Issue 6: namespaces that the kernel gives nobody are found, and programs have them again by the cure.
#[test]
fn namespaces_that_are_switched_off_are_found() {
    in_world(|world| {
        let lab = Lab::services(world);
        lab.token("all", "--name '*' --uses 10");
        let a = &lab.site.a;
        let line = "agentnet doctor --json --no-network";
        let run = |name: &str| {
            format!("agentnet run --token-file /mnt/all.token --name {name} -- echo inside")
        };
        // Of the namespace that this world is.
        a.ok("sysctl -qw user.max_user_namespaces=0");
        let said = a.fails(125, &run("one"));
        assert!(said.contains("user_namespaces_off"), "{said}");

        let check = found(a, line, "user_namespaces_off");
        assert_eq!(check["state"], "odd");
        let cure = command(&check);
        let (this, of_the_machine) = cure.rsplit_once(' ').unwrap();
        assert!(of_the_machine.starts_with("kernel."), "{cure}");
        a.ok(this);

        assert_eq!(state(&examined(a, line).0, "namespaces"), "well");
        assert_eq!(a.ok(&run("two")), "inside");
    });
}

/// Issue 6: no device node, no right to it, and no right to make devices.
#[test]
fn what_keeps_devices_away_is_found() {
    in_lab(|lab| {
        lab.node_a.take().unwrap().stop();
        let a = &lab.site.a;
        let line = "agentnet doctor --json --no-network";

        let bare =
            format!("setpriv --bounding-set=-net_admin --inh-caps=-all --no-new-privs {line}");
        let check = found(a, &bare, "tun_denied");
        assert!(
            check["cure"].as_str().unwrap().contains("CAP_NET_ADMIN"),
            "{check}"
        );

        a.ok("mount -t tmpfs none /dev/net");
        let check = found(a, line, "tun_missing");
        assert!(
            check["cure"].as_str().unwrap().contains("modprobe tun"),
            "{check}"
        );
        a.ok("umount /dev/net");

        let (checks, _) = examined(a, line);
        let tun = checks.iter().find(|check| check["check"] == "tun").unwrap();
        assert_eq!(tun["state"], "well", "{tun}");
        // It was made for a moment and is gone.
        assert!(!a.ok("ip link").contains("agnprobe"));
    });
}

/// Issue 6: somebody else routes the network's prefix, or has the agent's address or the port.
#[test]
fn conflicts_of_addresses_and_ports_are_found() {
    in_lab(|lab| {
        let own = address(&lab.site.a);
        lab.node_a.take().unwrap().stop();
        let a = &lab.site.a;
        let line = "agentnet doctor --json --no-network";
        let prefix = own.split(':').take(4).collect::<Vec<_>>().join(":") + "::/64";
        a.ok("ip link add other0 type veth peer name other1 && ip link set other1 up && ip link set other0 up");

        a.ok(&format!("ip -6 route add {prefix} dev other0"));
        let check = found(a, line, "prefix_routed");
        assert!(
            check["cure"].as_str().unwrap().contains("ip -6 route del"),
            "{check}"
        );
        a.ok(&format!("ip -6 route del {prefix} dev other0"));

        a.ok(&format!("ip -6 address add {own}/128 dev other0 nodad"));
        let check = found(a, line, "address_taken");
        assert!(
            check["cure"]
                .as_str()
                .unwrap()
                .contains("ip -6 address del"),
            "{check}"
        );
        a.ok(&format!("ip -6 address del {own}/128 dev other0"));

        let taken = a.udp("0.0.0.0:16200");
        let check = found(a, line, "port_taken");
        assert!(
            check["cure"].as_str().unwrap().contains("ss -lnup"),
            "{check}"
        );
        drop(taken);

        lab.node_a = Some(start_node(a));
        wait_attached(&lab.site.a);
        wait_well(&lab.site.a);
    });
}

/// Issue 6: a full disk, one that cannot be written, and another node.
#[test]
fn a_full_disk_and_a_second_node_are_found() {
    in_lab(|lab| {
        let a = &lab.site.a;
        let line = "agentnet --state /mnt/small/state doctor --json --no-network";
        a.ok("mkdir -p /mnt/small && mount -t tmpfs -o size=256k none /mnt/small && mkdir /mnt/small/state");
        a.run("dd if=/dev/zero of=/mnt/small/big bs=1k");
        let check = found(a, line, "disk_full");
        assert!(
            check["cure"].as_str().unwrap().contains("free some space"),
            "{check}"
        );
        a.ok("rm /mnt/small/big && touch /mnt/file");
        let of_a_file = "agentnet --state /mnt/file doctor --json --no-network";
        let check = found(a, of_a_file, "disk_failed");
        assert!(
            check["cure"].as_str().unwrap().contains("move that file"),
            "{check}"
        );
        a.ok("mount -o remount,ro /mnt/small");
        let check = found(a, line, "disk_read_only");
        assert!(
            check["cure"].as_str().unwrap().contains("remount,rw"),
            "{check}"
        );
        a.ok("mount -o remount,rw /mnt/small");
        let (checks, _) = examined(a, line);
        let disk = checks
            .iter()
            .find(|check| check["check"] == "disk")
            .unwrap();
        assert_eq!(disk["code"], "disk_low", "{disk}");

        // Another one, by another state.
        let second = a.start("exec agentnet --state /mnt/second up --port 0 --dns none");
        wait_for("it answers", || {
            a.run("agentnet --state /mnt/second status").code == 0
        });
        let check = found(a, DOCTOR, "two_nodes");
        assert_eq!(check["state"], "odd");
        for code in ["no_agent", "nothing_to_ask"] {
            let check = found(a, "agentnet --state /mnt/second doctor --json", code);
            assert_eq!(check["state"], "odd");
        }
        // The same state by another socket.
        let check = found(
            a,
            "agentnet --socket /run/none.sock doctor --json --no-network",
            "node_elsewhere",
        );
        assert!(
            check["cure"].as_str().unwrap().contains("--socket"),
            "{check}"
        );
        second.stop();
        wait_well(a);
    });
}

/// Issue 6: who else writes /etc/resolv.conf again and again.
#[test]
fn a_foreign_owner_of_names_is_found() {
    in_lab(|lab| {
        let a = &lab.site.a;
        wait_well(a);
        let foreign = a.start(
            "while true; do printf 'nameserver 192.0.2.53\\n' >/etc/resolv.conf.new && \
             mv /etc/resolv.conf.new /etc/resolv.conf; sleep 0.05; done",
        );
        wait_for("the node gives up", || {
            a.ok("agentnet status --json").contains("dns_contended")
        });
        let check = found(a, "agentnet doctor --json --no-network", "dns_contended");
        assert!(
            check["cure"]
                .as_str()
                .unwrap()
                .contains("agentnet dns apply"),
            "{check}"
        );

        foreign.kill();
        a.ok("agentnet dns apply");
        wait_well(a);
    });
}

/// Issue 6: a clock that is a day off makes much else look wrong, and is named.
#[test]
fn a_clock_that_is_off_is_found() {
    in_lab(|lab| {
        make_skewed(lab);
        let a = &lab.site.a;
        let line = format!("{SKEWED} agentnet doctor --json");

        set_clock(86_400);
        let check = found(a, &line, "clock_off");
        assert_eq!(check["state"], "broken");
        assert!(
            check["cure"].as_str().unwrap().contains("set the clock"),
            "{check}"
        );
        set_clock(-20);
        let check = found(a, &line, "clock_drifts");
        assert_eq!(check["state"], "odd");

        set_clock(0);
        wait_for("the doctor is content", || is_well(a, &line));
    });
}

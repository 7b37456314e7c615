//! `agentnet doctor` where something is really wrong: it says what, and what it says to do helps.

use serde_json::Value;

use crate::{
    lab::{address, in_lab, start_node, wait_attached},
    wall_clock::{SKEWED, make_skewed, set_clock},
    world::{Host, wait_for},
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
        a.ok("rm /mnt/small/big && mount -o remount,ro /mnt/small");
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

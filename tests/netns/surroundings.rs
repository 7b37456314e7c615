//! Hosts on which a node cannot run: it says what is missing and the cure, and changes nothing.

use crate::{
    lab::{Lab, address, start_node, status, wait_attached},
    process::Output,
    world::{Host, in_world, now},
};

/// Brings up a deployment and joins agent `a` on host a, whose node is not started.
fn joined(world: &crate::world::World) -> Lab {
    let lab = Lab::services(world);
    lab.token("a", "--name a");
    lab.site
        .a
        .ok("agentnet join --token-file /mnt/a.token --name a");
    lab
}

/// Everything that a node changes on its host.
pub(crate) fn changes(host: &Host) -> String {
    host.ok(
        "ls /sys/class/net; ip -6 route; ip -6 addr show scope global; cat /etc/resolv.conf; \
         find /run -type s; ss -lun | tail -n +2; find /var/lib | sort",
    )
}

/// Asserts that `command` fails with exit code 1, says `words`, and changes nothing.
#[track_caller]
fn cannot_run(host: &Host, command: &str, words: &[&str]) -> Output {
    let before = changes(host);
    let output = host.run(command);
    let said = output.to_string();
    assert_eq!(output.code, 1, "{said}");
    for word in words {
        assert!(said.contains(word), "no `{word}` in: {said}");
    }
    assert_eq!(changes(host), before);
    output
}

#[test]
fn without_cap_net_admin() {
    in_world(|world| {
        let lab = joined(world);
        let up = "setpriv --bounding-set=-net_admin --inh-caps=-net_admin agentnet up";
        cannot_run(
            &lab.site.a,
            up,
            &["hint: ", "CAP_NET_ADMIN", "code: tun_denied"],
        );
        let up = "setpriv --bounding-set=-all --inh-caps=-all agentnet up";
        cannot_run(&lab.site.a, up, &["hint: ", "code: "]);
        drop(start_node(&lab.site.a));
    });
}

/// Issue 6, bad input: names are answered at port 53.
#[test]
fn without_cap_net_bind_service() {
    in_world(|world| {
        let lab = joined(world);
        let up =
            "setpriv --bounding-set=-net_bind_service --inh-caps=-net_bind_service agentnet up";
        let words = ["hint: ", "CAP_NET_BIND_SERVICE", "code: port_denied"];
        cannot_run(&lab.site.a, up, &words);
        drop(start_node(&lab.site.a));
    });
}

/// Issue 6, bad input: what must be written is named, and agents are not passed over for another place.
#[test]
fn on_a_host_that_is_read_only() {
    in_world(|world| {
        let lab = joined(world);
        let a = &lab.site.a;

        a.ok("mount -o remount,ro /var/lib");
        let words = ["/var/lib/agentnet", "hint: ", "code: disk_read_only"];
        cannot_run(a, "agentnet up", &words);
        cannot_run(
            a,
            "agentnet join --token-file /mnt/a.token --name a",
            &words,
        );
        a.ok("mount -o remount,rw /var/lib && mount -o remount,ro /run");
        let words = [
            "agentnet.sock",
            "hint: ",
            "--socket",
            "code: disk_read_only",
        ];
        cannot_run(a, "agentnet up", &words);
        a.ok("mount -o remount,rw /run && (mount -o remount,ro,bind /etc || mount -o remount,ro /etc)");

        // Agents work, and the way to their names is told.
        let node = start_node(a);
        let said = a.ok("agentnet status");
        assert!(said.contains("agentnet dns apply"), "{said}");
        let said = a.fails(3, "agentnet dns apply");
        assert!(
            said.contains("Read-only") && said.contains("--dns none"),
            "{said}"
        );
        let name = format!("dig +short +time=2 @{} AAAA a.acme.agent", address(a));
        assert_eq!(a.ok(&name), address(a));
        assert_eq!(node.stop().code, 0);
    });
}

/// Issue 6, bad input: an address that another device has, and a name of a device that is taken.
#[test]
fn with_its_address_or_the_name_of_its_device_taken() {
    in_world(|world| {
        let lab = joined(world);
        let a = &lab.site.a;
        let node = start_node(a);
        let own = address(a);
        assert_eq!(node.stop().code, 0);

        a.ok(&format!("ip -6 addr add {own}/128 dev eth0 nodad"));
        let words = [own.as_str(), "eth0", "hint: ", "code: address_taken"];
        cannot_run(a, "agentnet up", &words);
        a.ok(&format!("ip -6 addr del {own}/128 dev eth0"));

        // A wider route is no obstacle, nor somebody else's device.
        a.ok("ip link add agn0 type veth peer name other && ip -6 route add fd00::/8 dev eth0");
        let before = changes(a);
        let node = start_node(a);
        assert_eq!(status(a)["agents"][0]["device"], "agn1");
        let way = a.ok(&format!("ip -6 route get {own}"));
        assert!(way.contains("dev lo"), "{way}");
        assert_eq!(node.stop().code, 0);
        assert_eq!(changes(a), before);
    });
}

#[test]
fn without_dev_net_tun() {
    in_world(|world| {
        let lab = joined(world);
        lab.site.a.ok("mount -t tmpfs none /dev/net");
        cannot_run(
            &lab.site.a,
            "agentnet up",
            &["/dev/net/tun", "code: tun_missing"],
        );
        lab.site.a.ok(
            "umount /dev/net && mount --bind /dev/net/tun /dev/net/tun && \
             mount -o remount,bind,nodev /dev/net/tun",
        );
        // Also where udev, which makes it everybody's, does not run.
        cannot_run(
            &lab.site.a,
            "agentnet up",
            &["open /dev/net/tun", "chmod 0666", "code: tun_denied"],
        );
        lab.site.a.ok("umount /dev/net/tun");
        drop(start_node(&lab.site.a));
    });
}

#[test]
fn with_its_port_in_use() {
    in_world(|world| {
        let lab = joined(world);
        let other = lab.site.a.udp("[::]:16200");
        cannot_run(
            &lab.site.a,
            "agentnet up",
            &["16200", "in use", "code: port_taken"],
        );
        drop(other);
        drop(start_node(&lab.site.a));
    });
}

#[test]
fn with_its_prefix_routed_elsewhere() {
    in_world(|world| {
        let lab = joined(world);
        let a = &lab.site.a;
        let node = start_node(a);
        let address = address(a).parse::<std::net::Ipv6Addr>().unwrap();
        assert_eq!(node.stop().code, 0);
        let [p, q, r, s, ..] = address.segments();
        let prefix = format!("{p:x}:{q:x}:{r:x}:{s:x}::/64");

        a.ok(&format!("ip -6 route add {prefix} dev eth0"));
        cannot_run(a, "agentnet up", &["route", "eth0", "code: prefix_routed"]);

        assert!(a.ok("ip -6 route").contains("eth0"));
        a.ok(&format!("ip -6 route del {prefix} dev eth0"));
        drop(start_node(a));
    });
}

#[test]
fn twice_on_one_state_directory() {
    in_world(|world| {
        let lab = joined(world);
        let _first = start_node(&lab.site.a);
        cannot_run(
            &lab.site.a,
            "agentnet up",
            &["running", "code: node_elsewhere"],
        );
        assert!(lab.site.a.ok("agentnet status").contains("a.acme.agent"));
    });
}

#[test]
fn with_an_unknown_setting() {
    in_world(|world| {
        let lab = joined(world);
        lab.site
            .a
            .ok("printf '[dns]\\nmoed = \"none\"\\n' > /mnt/agentnet.toml");
        let said = lab
            .site
            .a
            .fails(2, "agentnet up --config /mnt/agentnet.toml");
        assert!(said.contains("moed") && said.contains("mode"), "{said}");
    });
}

#[test]
fn a_node_starts_without_its_registry_and_says_so() {
    in_world(|world| {
        let mut lab = joined(world);
        drop(lab.registry.take());

        let start = now();
        let _node = start_node(&lab.site.a);

        assert!(start.elapsed().as_secs() < 5);
        crate::world::wait_for("status tells", || {
            status(&lab.site.a)["agents"][0]["registry"]["state"] == "unreachable"
        });
        lab.start_registry();
        wait_attached(&lab.site.a);
    });
}

#[test]
fn ipv6_switched_off_by_sysctl_is_cured_for_our_device() {
    in_world(|world| {
        let lab = joined(world);
        let a = &lab.site.a;
        for which in ["all", "default"] {
            a.ok(&format!(
                "echo 1 > /proc/sys/net/ipv6/conf/{which}/disable_ipv6"
            ));
        }

        let _node = start_node(a);

        assert!(a.ok("ip -6 addr show dev agn0").contains(&address(a)));
        assert_eq!(
            a.ok("cat /proc/sys/net/ipv6/conf/default/disable_ipv6"),
            "1"
        );
        assert!(!a.ok("ip -6 addr show dev agn0").contains("fe80"));
    });
}

#[test]
fn a_damaged_state_file_is_reported_and_kept() {
    in_world(|world| {
        let lab = joined(world);
        let a = &lab.site.a;
        let file = a.ok("find /var/lib/agentnet -type f -size +0 -name '*.json' | sort | head -1");
        assert!(!file.is_empty(), "{}", a.ok("find /var/lib/agentnet"));
        a.ok(&format!("printf '{{\"half' > {file}"));

        cannot_run(a, "agentnet up", &[&file, "code: state_damaged"]);

        assert_eq!(a.ok(&format!("cat {file}")), "{\"half");
    });
}

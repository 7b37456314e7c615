//! Faults that other overlays shipped, as far as a real kernel shows them: docs/field-lessons.md has
//! the whole list.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    thread,
    time::Duration,
};

use serde_json::Value;

use crate::{
    lab::{B, GATEWAY, Lab, address, in_lab, start_node, start_node_with, status, wait_attached},
    path_command::report,
    process::Proc,
    services::OPERATOR,
    site::{PUB, RB, Site},
    world::{Host, World, in_world, wait_for, wait_within},
};

/// How long anything that carries packets may take on a busy machine.
const SOON: Duration = Duration::from_secs(20);

/// A nameserver on the public host that knows every name as the public host's.
const NAMESERVER: &str = "
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind((\"198.51.100.1\", 53))
while True:
    query, asker = server.recvfrom(512)
    end = query.index(0, 12) + 5
    address = query[end - 3] == 1
    answer = b\"\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\x3c\\0\\4\" + bytes([198, 51, 100, 1])
    head = query[:2] + b\"\\x81\\x80\\0\\1\\0\" + bytes([address]) + b\"\\0\\0\\0\\0\"
    server.sendto(head + query[12:end] + (answer if address else b\"\"), asker)
";

/// Runs the nameserver, and has `hosts` use it.
fn nameserver(public: &Host, hosts: &[&Host]) -> Proc {
    let server = public.start(&format!("exec python3 -c '{NAMESERVER}'"));
    wait_for("the nameserver listens", || {
        public.ok("ss -lun").contains(&format!("{PUB}:53 "))
    });
    for host in hosts {
        host.ok(&format!(
            "echo nameserver {PUB} > /etc/resolv.new && mv /etc/resolv.new /etc/resolv.conf"
        ));
        assert!(host.ok("getent hosts www.example.org").contains(PUB));
    }
    server
}

#[track_caller]
fn reaches(host: &Host, address: &str) {
    wait_within(SOON, &format!("{address} is reached"), || {
        let ping = host.run(&format!("ping -c 1 -W 2 -q {address}"));
        (ping.code == 0).then_some(())
    });
}

/// tailscale#12829, #12828: other ULA prefixes, of our own domain too, and the LAN stay where they are.
#[test]
fn foreign_ulas_and_the_lan_stay_reachable() {
    in_lab(|lab| {
        let (a, ra) = (&lab.site.a, &lab.site.ra);
        let [p, q, r, s, ..] = address(a).parse::<Ipv6Addr>().unwrap().segments();
        let sibling = format!("{p:x}:{q:x}:{r:x}:{:x}:", s ^ 0x4000);
        for prefix in ["fd00:aaaa:bbbb:1:", &sibling] {
            a.ok(&format!("ip addr add {prefix}:2/64 dev eth0 nodad"));
            ra.ok(&format!("ip addr add {prefix}:1/64 dev lan nodad"));
            reaches(a, &format!("{prefix}:1"));
        }
        reaches(a, "10.0.1.1");

        // A node that starts on a host that has them leaves them alone as well.
        lab.node_a.take().unwrap().stop();
        lab.node_a = Some(start_node(a));
        wait_attached(a);

        for neighbour in ["fd00:aaaa:bbbb:1::1", &format!("{sibling}:1"), "10.0.1.1"] {
            reaches(a, neighbour);
        }
        let routes = a.ok("ip -6 route show dev agn0");
        assert_eq!(routes.lines().count(), 1, "{routes}");
    });
}

/// tailscale#13075: a node that boots while its registry is away leaves DNS and traffic of its host
/// alone, and reaches whom it knows.
#[test]
fn a_boot_without_registry_leaves_the_host_alone() {
    in_lab(|lab| {
        lab.trust("tcp/8000");
        let _page = lab.serve_page();
        lab.node_a.take().unwrap().stop();
        let a = &lab.site.a;
        let _names = nameserver(&lab.site.public, &[a]);
        drop(lab.registry.take());

        lab.node_a = Some(start_node(a));

        wait_for("status tells", || {
            status(a)["agents"][0]["registry"]["state"] == "unreachable"
        });
        assert!(a.ok("getent hosts www.example.org").contains(PUB));
        reaches(a, PUB);
        lab.page_within(SOON, "the page without a registry");
    });
}

/// firezone PR#5563: registry and gateway are known by name, and their names are found while our own
/// resolver stands first and nothing is up, as after a crash.
#[test]
fn the_services_names_resolve_without_the_tunnel() {
    in_world(|world| {
        let site = Site::new(world);
        let (public, a) = (&site.public, &site.a);
        let _names = nameserver(public, &[public, a]);
        let _services = named_services(public);
        a.ok("agentnet join --token-file /mnt/all.token --name a");
        let node = start_node(a);
        wait_attached(a);
        assert!(a.ok("cat /etc/resolv.conf").contains(&address(a)));

        node.kill();
        let _node = start_node(a);

        wait_attached(a);
        wait_for("the registry is connected", || {
            status(a)["agents"][0]["registry"]["state"] == "connected"
        });
        assert!(a.ok("getent hosts www.example.org").contains(PUB));
    });
}

/// Starts registry and gateway that are known by name only.
fn named_services(public: &Host) -> [Proc; 2] {
    public.ok(&format!(
        "agentnet registry init --dir /var/lib/registry --listen {PUB}:8443 \
         --url https://registry.test:8443"
    ));
    let registry =
        public.start("exec agentnet registry serve --config /var/lib/registry/registry.toml");
    wait_for("the registry is ready", || {
        let ready = "curl -sfk --max-time 2 https://registry.test:8443/readyz";
        public.run(ready).code == 0
    });
    public.ok(&format!(
        "agentnet gateway init --dir /var/lib/gateway --listen {GATEWAY} \
         --advertise gateway.test:16201 {OPERATOR}"
    ));
    let gateway =
        public.start("exec agentnet gateway serve --config /var/lib/gateway/gateway.toml");
    public.ok(&format!("agentnet network create acme {OPERATOR}"));
    public.ok("agentnet token create acme --name '*' --uses 10 --out /mnt/all.token");
    [registry, gateway]
}

/// tailscale#20681, #7706, firezone#9772: on an underlay that takes less than our datagrams have, what
/// is sent arrives all the same, directly and by the gateway.
fn arrives_whole_over(lab: &Lab, mtu: u16) {
    let Site { public, ra, rb, .. } = &lab.site;
    for (host, interface) in [(ra, "wan"), (rb, "wan"), (public, "pra"), (public, "prb")] {
        host.ok(&format!("ip link set {interface} mtu {mtu}"));
    }
    public.ok(&format!("ip link set br0 mtu {mtu}"));
    lab.trust("tcp/8000");
    let _page = lab.serve_page();
    lab.site.b.ok("head -c 1048576 /dev/urandom > /mnt/www/big");

    lab.site.a.ok("agentnet ping b --until-direct");
    fetch_big(lab);
    assert_eq!(report(&lab.site.a, "b")["path"], "direct");

    lab.site.block_direct_udp();
    fetch_big(lab);
    assert_eq!(report(&lab.site.a, "b")["path"], "relay");
}

/// Has A fetch 1 MiB of B's.
fn fetch_big(lab: &Lab) {
    let line = format!("curl -sS --max-time 60 -o /mnt/got http://{B}:8000/big");
    let ended = lab.site.a.start(&line).finish(Duration::from_secs(70));
    assert_eq!(ended.code, 0, "{ended}");
    lab.site.a.ok("cmp /mnt/got /mnt/www/big && rm /mnt/got");
}

#[test]
fn a_mebibyte_arrives_whole_over_an_underlay_of_1280_bytes() {
    in_lab(|lab| arrives_whole_over(lab, 1280));
}

#[test]
fn a_mebibyte_arrives_whole_over_an_underlay_of_1300_bytes() {
    in_lab(|lab| arrives_whole_over(lab, 1300));
}

#[test]
fn a_mebibyte_arrives_whole_over_an_underlay_of_1124_bytes() {
    in_lab(|lab| arrives_whole_over(lab, 1124));
}

/// EasyTier#1150, mycelium#162: what goes on the underlay never comes to a TUN, and no peer is told of
/// an address there. No telemetry, no self-update: besides, a host speaks to registry, gateway, peer and its
/// own router only.
#[test]
fn the_underlay_is_not_the_overlay_and_nobody_else_is_spoken_to() {
    in_lab(|lab| {
        let (a, agent) = (&lab.site.a, address(&lab.site.a));
        lab.node_a.take().unwrap().stop();
        let capture = a.capture();
        lab.node_a = Some(start_node(a));
        wait_attached(a);
        lab.trust("tcp/8000");
        let _page = lab.serve_page();
        a.ok("agentnet ping b --until-direct");
        lab.page_within(SOON, "the page");
        let seen = report(a, "b");

        let frames = capture.finish();
        let packets = frames.iter().map(|frame| frame.bytes.as_slice());
        // On a TUN there is no Ethernet header before the IPv6 header.
        let overlay = packets.clone().filter(|packet| packet[0] >> 4 == 6);
        let udp = overlay.filter(|packet| packet.get(6) == Some(&17));
        let port = |packet: &&[u8]| packet.get(40..44).map(|ports| [ports[1], ports[3]]);
        assert!(udp.clone().all(|packet| port(&packet).is_some()));
        let own = 16200_u16.to_be_bytes();
        let is_own = |packet: &&[u8]| packet[40..42] == own || packet[42..44] == own;
        assert_eq!(
            udp.filter(is_own).count(),
            0,
            "datagrams of ours on the TUN"
        );

        let known = [PUB, RB, "10.0.2.2"].map(|ip| ip.parse::<Ipv4Addr>().unwrap().octets());
        let from_us = |packet: &&[u8]| {
            packet.get(12..14) == Some(&[8, 0]) && packet.get(26..30) == Some(&[10, 0, 1, 2])
        };
        let sent = packets.filter(from_us).collect::<Vec<_>>();
        assert!(sent.len() > 20);
        // The router and nobody else is asked for a port, by PCP and NAT-PMP, and by UPnP.
        let asks = [([10, 0, 1, 1], 5351_u16), ([239, 255, 255, 250], 1900)];
        let is_ask = |packet: &[u8]| {
            let to = |(ip, port): &([u8; 4], u16)| {
                packet[30..34] == *ip && packet.get(36..38) == Some(&port.to_be_bytes())
            };
            packet[23] == 17 && asks.iter().any(to)
        };
        for packet in sent {
            assert!(
                known.iter().any(|ip| packet[30..34] == *ip) || is_ask(packet),
                "{packet:02x?}"
            );
        }
        let local = seen["local"].as_array().unwrap();
        assert!(!local.is_empty() && local.iter().all(|at| !at.to_string().contains(&agent)));
    });
}

/// tailscale#8619, zerotier#2283, #696: a host without network neither spins nor leaks, though programs
/// go on wanting something, and is back when the network is.
#[test]
fn an_offline_host_neither_spins_nor_leaks() {
    in_lab(|lab| {
        lab.trust("tcp/8000");
        let _page = lab.serve_page();
        lab.page_within(SOON, "the page");
        let a = &lab.site.a;
        a.ok("ip link set eth0 down");
        // One that was online finds its event stream dead a minute later; this one does at once.
        lab.node_a.take().unwrap().kill();
        lab.node_a = Some(start_node(a));
        let pid = lab.node_a.as_ref().unwrap().id();
        let wants = a.start(&format!(
            "while :; do curl -s --max-time 1 http://{B}:8000/; curl -s --max-time 1 http://x/; done"
        ));
        wait_for("both are given up", || {
            let agent = &status(a)["agents"][0];
            agent["registry"]["state"] == "unreachable" && agent["gateway"]["state"] != "connected"
        });

        let before = Usage::of(pid);
        thread::sleep(MEASURED);
        let after = Usage::of(pid);

        // Some 30 switches a second for the programs' questions, and no time to speak of.
        let seconds = MEASURED.as_secs();
        let switches = after.switches.saturating_sub(before.switches) / seconds;
        let percent = (after.ticks - before.ticks) / seconds;
        assert!(switches < 300 && percent < 10, "{switches}/s, {percent} %");
        // An attempt to reach the registry may be under way at either moment.
        let files = (before.files, after.files);
        assert!(files.1 <= files.0 + 2, "{files:?} descriptors");
        let memory = (before.memory, after.memory);
        assert!(memory.1 < memory.0 + 4096, "{memory:?} KiB");
        drop(wants);
        a.ok("ip link set eth0 up && ip route replace default via 10.0.1.1");
        lab.page_within(SOON, "the page after that");
    });
}

/// For how long a host is watched.
const MEASURED: Duration = Duration::from_secs(10);

/// What a process used so far, and holds now.
struct Usage {
    /// Context switches of all threads.
    switches: u64,
    /// Hundredths of a second on a CPU.
    ticks: u64,
    /// Open descriptors.
    files: usize,
    /// Resident memory, in KiB.
    memory: u64,
}

impl Usage {
    fn of(pid: u32) -> Self {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let switches = threads.map(|thread| {
            // One that ended meanwhile did nothing more.
            let status = fs::read_to_string(thread.unwrap().path().join("status"));
            field(&status.unwrap_or_default(), "ctxt_switches:")
        });
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        // proc(5): utime and stime are fields 14 and 15; the second ends with the only parenthesis.
        let (_, fields) = stat.rsplit_once(')').unwrap();
        let times = fields.split_whitespace().skip(11).take(2);
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        Self {
            switches: switches.sum(),
            ticks: times.map(|time| time.parse::<u64>().unwrap()).sum(),
            files: fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(),
            memory: field(&status, "VmRSS:"),
        }
    }
}

/// Adds up the numbers of the lines whose names end in `name`.
fn field(text: &str, name: &str) -> u64 {
    let values = text.lines().filter_map(|line| line.split_once(name));
    let values = values.filter_map(|(_, value)| value.split_whitespace().next());
    values.map(|value| value.parse::<u64>().unwrap()).sum()
}

/// Hosted sandboxes: a node runs as process 1 of a container that has no certificate authorities, and
/// ends when it is told to.
#[test]
fn a_node_is_process_one_without_certificates() {
    in_lab(|lab| {
        lab.trust("tcp/8000");
        let _page = lab.serve_page();
        let a = &lab.site.a;
        lab.node_a.take().unwrap().stop();
        for place in ["/etc/ssl", "/usr/share/ca-certificates", "/etc/pki"] {
            a.ok(&format!("[ ! -d {place} ] || mount -t tmpfs none {place}"));
        }

        let contained = a.start("exec unshare --pid --fork --kill-child --mount-proc agentnet up");
        wait_for("the node answers", || a.run("agentnet status").code == 0);
        wait_attached(a);
        wait_for("the registry is connected", || {
            status(a)["agents"][0]["registry"]["state"] == "connected"
        });
        lab.page_within(SOON, "the page");

        a.ok(&format!("pkill -TERM -P {}", contained.id()));
        let ended = contained.finish(SOON);
        assert_eq!(ended.code, 0, "{ended}");
        assert!(!a.ok("ls /sys/class/net").contains("agn0"));
    });
}

/// Pilot Protocol and Agora, whose control plane was well while no data passed for days: what came of a
/// a peer is told apart from registry and gateway, and that nothing comes is an alarm.
#[test]
fn a_dead_data_path_shows_though_control_is_well() {
    in_lab(|lab| {
        lab.trust("tcp/8000");
        let page = lab.serve_page();
        lab.page_within(SOON, "the page");
        let a = &lab.site.a;
        let age = || {
            let peers = a.ok("agentnet peers --json");
            let peers = serde_json::from_str::<Value>(&peers).unwrap();
            let last = peers["peers"][0]["last_inbound"].as_u64();
            peers["now"].as_u64().unwrap() - last.expect("it was heard")
        };
        assert!(age() < 10_000 && !a.ok("agentnet status").contains("nothing comes"));

        lab.node_b.take().unwrap().kill();
        drop(page);

        // 5 s until the session is doubted, and 5 more.
        let silence = wait_within(3 * SOON, "that nothing comes is told", || {
            lab.page_arrives();
            let warnings = status(a)["warnings"].as_array().unwrap().clone();
            warnings
                .into_iter()
                .find(|told| told["code"] == "peer_silent")
        });
        assert!(silence["text"].as_str().unwrap().contains(B), "{silence:#}");
        assert!(age() >= 10_000);
        let agent = &status(a)["agents"][0];
        for service in ["registry", "gateway"] {
            assert_eq!(agent[service]["state"], "connected", "{agent:#}");
        }
    });
}

/// tailscale#16142: what a flag of one `up` said is gone with it, and what the settings file and
/// commands said stays.
#[test]
fn up_resets_nothing_that_it_was_not_told_to() {
    in_lab(|lab| {
        let a = &lab.site.a;
        lab.trust("tcp/8000");
        a.ok("agentnet trust auto add --from 'w*' --allow tcp/80");
        let trust =
            a.ok("agentnet trust auto list --json && agentnet peers --json | grep -c b.acme");
        let settings = "[path]\nmode = \"hidden\"\n";
        fs::write(World::path("a.toml"), settings).unwrap();
        let mode = |host: &Host| report(host, "b")["mode"].clone();

        for (flags, expected) in [
            ("--path relay", "relay"),
            ("--dns none", "hidden"),
            ("", "hidden"),
        ] {
            lab.node_a.take().unwrap().stop();
            lab.node_a = Some(start_node_with(a, &format!("--config /mnt/a.toml {flags}")));
            assert_eq!(mode(a), expected, "with {flags}");
        }

        assert_eq!(fs::read_to_string(World::path("a.toml")).unwrap(), settings);
        let kept =
            a.ok("agentnet trust auto list --json && agentnet peers --json | grep -c b.acme");
        assert_eq!(kept, trust);
    });
}

//! Nodes whose registry names no gateway, and is away when they start, find one elsewhere.

use std::{fs, time::Duration};

use serde_json::Value;

use crate::{
    lab::{start_node_by, status, wait_attached},
    process::Proc,
    services::{OPERATOR, new_registry},
    site::{PUB, Site},
    world::{Host, World, in_world, now, recovered, wait_for},
};

/// Address of gateways that nobody but the settings names.
const ANYCAST: &str = "198.51.100.77";

const GATEWAY_DIR: &str = "/var/lib/gateway";

/// A node that has joined at `host`, while there was no gateway and a registry that is gone now.
struct Lonely {
    site: Site,
    _gateway: Proc,
}

impl Lonely {
    /// Joins where `host` says; the gateway listens on `address` and is started with `environment`.
    fn new(world: &World, host: fn(&Site) -> &Host, address: &str, environment: &str) -> Self {
        let site = Site::new(world);
        let public = &site.public;
        let registry = new_registry(public);
        public.ok(&format!("agentnet network create acme {OPERATOR}"));
        public.ok("agentnet token create acme --name a --out /mnt/t");
        host(&site).ok("agentnet join --token-file /mnt/t --name a");
        public.ok(&format!("ip addr add {ANYCAST}/24 dev br0"));
        public.ok(&format!(
            "agentnet gateway init --dir {GATEWAY_DIR} --listen {address}:16201 {OPERATOR}"
        ));
        let gateway = public.start(&format!(
            "exec env {environment} agentnet gateway serve --config {GATEWAY_DIR}/gateway.toml"
        ));
        wait_for(
            "the gateway serves the network and may tell who it is",
            || is_ready(public),
        );
        registry.kill();
        Self {
            site,
            _gateway: gateway,
        }
    }
}

/// Tells whether the gateway at `host` serves a network; it has its statement before.
fn is_ready(host: &Host) -> bool {
    let line = format!("agentnet gateway status --json --config {GATEWAY_DIR}/gateway.toml");
    let told = host.run(&line);
    let status = serde_json::from_str::<Value>(&told.stdout).unwrap_or_default();
    told.code == 0 && status["networks"] == 1
}

fn gateways(host: &Host) -> usize {
    let status = status(host);
    status["agents"][0]["gateways"].as_array().unwrap().len()
}

/// A-034, A-041, A-043, A-046: an address in the settings is enough.
#[test]
fn a_node_finds_a_gateway_by_an_anycast_address() {
    in_world(|world| {
        let lonely = Lonely::new(world, |site| &site.a, ANYCAST, "A=1");
        let a = &lonely.site.a;

        let since = now();
        let discover = format!("AGENTNET_GATEWAY_DISCOVER={ANYCAST}:16201");
        let _node = start_node_by(a, &discover);
        wait_attached(a);

        recovered("a gateway is found by an address", since.elapsed());
        assert_eq!(gateways(a), 1);
    });
}

/// A-041: nothing but the link is needed; here that of the routers.
#[test]
fn a_node_finds_a_gateway_on_its_link() {
    in_world(|world| {
        let environment = "AGENTNET_GATEWAY_DISCOVER_MULTICAST=true";
        let lonely = Lonely::new(world, |site| &site.ra, PUB, environment);
        let router = &lonely.site.ra;

        let since = now();
        let _node = start_node_by(router, "AGENTNET_GATEWAY_MULTICAST=true");
        wait_attached(router);

        recovered("a gateway is found on the link", since.elapsed());
    });
}

/// A-052, A-053: SRV and SVCB records name hosts, which are asked like any other.
#[test]
fn a_node_finds_a_gateway_by_dns() {
    in_world(|world| finds_by_dns(world, "acme.example"));
}

#[test]
fn a_node_finds_a_gateway_by_a_service_of_dns() {
    in_world(|world| finds_by_dns(world, "svcb.example"));
}

fn finds_by_dns(world: &World, domain: &str) {
    let lonely = Lonely::new(world, |site| &site.a, ANYCAST, "A=1");
    let (a, public) = (&lonely.site.a, &lonely.site.public);
    fs::write(World::path("dns.py"), NAMESERVER).unwrap();
    let _dns = public.start(&format!("exec python3 /mnt/dns.py {PUB} {ANYCAST}"));
    wait_for("the nameserver listens", || {
        public.ok("ss -lun").contains(&format!("{PUB}:53 "))
    });
    a.ok(&format!("echo nameserver {PUB} > /etc/resolv.conf"));

    let since = now();
    let _node = start_node_by(a, &format!("AGENTNET_GATEWAY_DNS={domain}"));
    wait_attached(a);

    recovered("a gateway is found by DNS", since.elapsed());
}

/// A-047 to A-050: a hint that a DHCP client's hook wrote is followed at once; one that lies costs some
/// packets and leads nowhere.
#[test]
fn a_node_follows_hints_of_dhcp_and_believes_none() {
    in_world(|world| {
        let lonely = Lonely::new(world, |site| &site.a, ANYCAST, "A=1");
        let (a, public) = (&lonely.site.a, &lonely.site.public);
        fs::write(World::path("liar.py"), LIAR).unwrap();
        let liar = public.start(&format!("exec python3 /mnt/liar.py {PUB} 7777"));
        wait_for("the liar listens", || {
            public.ok("ss -lun").contains(":7777 ")
        });
        let hook = World::path("dhcp-hint");
        fs::copy(
            concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/dhcp-hint"),
            hook,
        )
        .unwrap();
        let hint = |named: &str| {
            a.ok(&format!(
                "env reason=BOUND interface=eth0 new_agentnet_gateways='{named}' sh /mnt/dhcp-hint"
            ));
        };

        hint(&format!("{PUB}:7777"));
        let _node = start_node_by(a, "AGENTNET_GATEWAY_HINTS=/run/agentnet/gateways");
        wait_for("the liar is asked", || liar.stdout().lines().count() >= 2);
        assert_eq!(gateways(a), 0);
        let since = now();
        hint(&format!("{ANYCAST}:16201"));
        wait_attached(a);

        recovered("a hint is followed", since.elapsed());
        assert!(since.elapsed() < Duration::from_secs(20));
        assert_eq!(gateways(a), 1);
    });
}

/// Answers SRV of `_a2g._udp.acme.example`, and SVCB of `_a2g.svcb.example`, by gw.acme.example, and that by the second argument.
const NAMESERVER: &str = r#"
import socket, struct, sys
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind((sys.argv[1], 53))
name = lambda text: b"".join(bytes([len(l)]) + l.encode() for l in text.split(".")) + b"\0"
known = {
    (name("_a2g._udp.acme.example"), 33): struct.pack(">HHH", 10, 1, 16201) + name("gw.acme.example"),
    (name("_a2g.svcb.example"), 64): struct.pack(">H", 1) + name("gw.acme.example") + struct.pack(">HHH", 3, 2, 16201),
    (name("gw.acme.example"), 1): socket.inet_aton(sys.argv[2]),
}
while True:
    asked, client = server.recvfrom(4096)
    end = asked.index(0, 12) + 1
    kind, = struct.unpack(">H", asked[end:end + 2])
    data = known.get((asked[12:end].lower(), kind))
    answers = 1 if data else 0
    head = asked[:2] + struct.pack(">HHHHH", 0x8580, 1, answers, 0, 0)
    answer = struct.pack(">HHHIH", 0xc00c, kind, 1, 60, len(data)) + data if data else b""
    server.sendto(head + asked[12:end + 4] + answer, client)
"#;

/// Answers whoever asks for a gateway by a statement that nobody signed, and says so.
const LIAR: &str = r#"
import base64, json, socket, sys
part = lambda value: base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")
lie = part({"alg": "EdDSA", "typ": "agn-gateway+jwt"}) + b"." + part({"v": 1}) + b"." + b"A" * 86
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind((sys.argv[1], int(sys.argv[2])))
while True:
    asked, client = server.recvfrom(4096)
    assert asked[:4] == b"\xa3\x10\0\0" and len(asked) == 1200
    server.sendto(b"\xa3\x11\0\0" + asked[4:20] + lie, client)
    print("asked", flush=True)
"#;

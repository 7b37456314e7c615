//! Underlays of IPv6, and of both versions.

use serde_json::Value;

use crate::{
    lab::{start_node, wait_attached},
    path_command::report,
    process::Proc,
    world::{Host, World, in_world, wait_for},
};

const OPERATOR: &str = "--operator-token-file /var/lib/registry/operator.token";

/// What both versions know the public host as; each host has its own /etc/hosts.
const NAME: &str = "registry.test";
const V4: &str = "192.0.2.1";
const V6: &str = "2001:db8::1";

/// One LAN with a public host of both versions, and hosts a and b with the addresses they are given.
struct Lan {
    _public: Host,
    a: Host,
    b: Host,
    _running: Vec<Proc>,
}

impl Lan {
    /// Brings up the services, and both hosts with agents of their name attached.
    fn new(world: &World, a: &[&str], b: &[&str]) -> Self {
        let [public, host_a, host_b] = ["pub", "a", "b"].map(|name| world.host(name));
        public.bridge("br0");
        // No host has a version of the services that it has no address of.
        let versions = [a, b].concat();
        if versions.iter().any(|address| address.contains('.')) {
            give(&public, "br0", &[&format!("{V4}/24")]);
        }
        if versions.iter().any(|address| address.contains(':')) {
            give(&public, "br0", &[&format!("{V6}/64")]);
        }
        let mut running = Vec::from(services(&public));
        for (host, addresses) in [(&host_a, a), (&host_b, b)] {
            let port = format!("p{}", host.name());
            public.link(&port, host, "eth0");
            public.ok(&format!("ip link set {port} master br0"));
            give(host, "eth0", addresses);
            let is_v6 = addresses.iter().any(|address| address.contains(':'));
            let registry = if is_v6 { V6 } else { V4 };
            host.ok(&format!("echo {registry} {NAME} >> /etc/hosts"));
            let name = host.name();
            host.ok(&format!(
                "agentnet join --token-file /mnt/all.token --name {name}"
            ));
            running.push(start_node(host));
            wait_attached(host);
        }
        Self {
            _public: public,
            a: host_a,
            b: host_b,
            _running: running,
        }
    }

    /// Has A ask and B agree.
    fn trust(&self) {
        self.a.ok("agentnet trust request b");
        wait_for("the request arrives", || {
            let pending = self.b.ok("agentnet trust pending --json");
            pending.contains("a.acme.agent")
        });
        self.b.ok("agentnet trust approve a --allow tcp/8000");
        wait_for("the name resolves", || {
            self.a.run("getent ahosts b.acme.agent").code == 0
        });
    }

    /// Has A and B trust each other and find the direct path; returns what A says of its paths.
    fn direct(&self) -> Value {
        self.trust();
        self.a.ok("agentnet ping b --until-direct");
        report(&self.a, "b")
    }
}

fn give(host: &Host, interface: &str, addresses: &[&str]) {
    for address in addresses {
        // Duplicate address detection would take a second before an IPv6 address may be used.
        let nodad = if address.contains(':') { "nodad" } else { "" };
        host.ok(&format!("ip addr add {address} dev {interface} {nodad}"));
    }
}

/// Starts registry and gateway on both versions, and makes network acme and a token for it.
fn services(public: &Host) -> [Proc; 2] {
    public.ok(&format!("echo 127.0.0.1 {NAME} >> /etc/hosts"));
    public.ok(&format!(
        "agentnet registry init --dir /var/lib/registry --listen [::]:8443 --url https://{NAME}:8443"
    ));
    let registry =
        public.start("exec agentnet registry serve --config /var/lib/registry/registry.toml");
    wait_for("the registry is ready", || {
        let ready = format!("curl -sfk --max-time 2 https://{NAME}:8443/readyz");
        public.run(&ready).code == 0
    });
    public.ok(&format!(
        "agentnet gateway init --dir /var/lib/gateway --listen 0.0.0.0:16201 \
         --advertise {V4}:16201 --advertise [{V6}]:16201 {OPERATOR}"
    ));
    let gateway = public.start(
        "AGENTNET_GATEWAY_UDP_LISTEN='0.0.0.0:16201,[::]:16201' \
         exec agentnet gateway serve --config /var/lib/gateway/gateway.toml",
    );
    public.ok(&format!("agentnet network create acme {OPERATOR}"));
    public.ok("agentnet token create acme --name '*' --uses 10 --out /mnt/all.token");
    [registry, gateway]
}

/// Asserts that the path in use goes from `local` to `remote`, both addresses of interfaces.
#[track_caller]
fn assert_used(report: &Value, local: &str, remote: &str, family: &str) {
    let pairs = report["pairs"].as_array().unwrap();
    let used = pairs.iter().find(|pair| pair["in_use"] == true);
    let used = used.unwrap_or_else(|| panic!("no path in use: {report:#}"));
    assert_eq!(
        (&used["local"]["at"], &used["remote"]["at"], &used["family"]),
        (&local.into(), &remote.into(), &family.into()),
        "{report:#}"
    );
    assert_eq!(used["remote"]["kind"], "host");
}

/// Issue 3: host candidates of IPv6; there is no IPv4 anywhere.
#[test]
fn two_agents_on_an_ipv6_lan_talk_directly() {
    in_world(|world| {
        let lan = Lan::new(world, &["2001:db8::a/64"], &["2001:db8::b/64"]);

        let seen = lan.direct();

        assert_used(&seen, "[2001:db8::a]:16200", "[2001:db8::b]:16200", "ipv6");
        let capture = lan.a.capture();
        let _server = lan.b.start("exec python3 -m http.server 8000 --bind ::");
        wait_for("the page comes", || {
            let page = "curl -sS --max-time 1 -o /dev/null http://b.acme.agent:8000/";
            lan.a.run(page).code == 0
        });
        let ends = ["2001:db8::a", "2001:db8::b"];
        let straight = ends.map(|ip| ip.parse::<std::net::Ipv6Addr>().unwrap().octets());
        let frames = capture.finish();
        assert!(frames.iter().any(|frame| frame.has(&straight.concat())));
    });
}

/// Issue 3: hosts of both versions, and of one, meet in the one that they share.
#[test]
fn a_host_of_both_versions_meets_one_of_ipv6() {
    in_world(|world| {
        let lan = Lan::new(
            world,
            &["192.0.2.11/24", "2001:db8::a/64"],
            &["2001:db8::b/64"],
        );

        let seen = lan.direct();

        assert_used(&seen, "[2001:db8::a]:16200", "[2001:db8::b]:16200", "ipv6");
    });
}

#[test]
fn a_host_of_both_versions_meets_one_of_ipv4() {
    in_world(|world| {
        let lan = Lan::new(
            world,
            &["192.0.2.11/24", "2001:db8::a/64"],
            &["192.0.2.12/24"],
        );

        let seen = lan.direct();

        assert_used(&seen, "192.0.2.11:16200", "192.0.2.12:16200", "ipv4");
    });
}

/// Hosts that share no version talk by the gateway, which has both.
#[test]
fn hosts_that_share_no_version_talk_by_the_gateway() {
    in_world(|world| {
        let lan = Lan::new(world, &["192.0.2.11/24"], &["2001:db8::b/64"]);
        lan.trust();

        let said = lan
            .a
            .fails(5, "agentnet ping b --until-direct --timeout 1s");

        assert!(said.contains(", relay"), "{said}");
        let seen = report(&lan.a, "b");
        assert_eq!(
            (&seen["path"], &seen["pairs"][0]["family"]),
            (&"relay".into(), &"ipv4".into())
        );
        let theirs = report(&lan.b, "a");
        assert_eq!(theirs["pairs"][0]["family"], "ipv6");
    });
}

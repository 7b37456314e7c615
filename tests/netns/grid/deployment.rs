//! A registry, two gateways and a proxy that every kind of network reaches somehow, and two agents of each.

use std::{
    io::Write as _,
    net::{Ipv6Addr, TcpListener},
    thread,
    time::Duration,
};

use crate::{
    grid::home::{GATEWAY, GATEWAY6, Home, Kind, PROXY, REGISTRY, REGISTRY6, attach},
    lab::{address, status},
    process::Proc,
    world::{Host, World, wait_for, wait_within},
};

/// The port that every agent answers with one byte.
pub(crate) const PORT: u16 = 8000;

/// What stands in every host's /etc/hosts.
const NAME: &str = "registry.example";

/// How long all nodes together may take to be up.
const TOGETHER: Duration = Duration::from_secs(120);

/// An agent in a network of some kind.
pub(crate) struct Member {
    pub(crate) home: Home,
    pub(crate) name: String,
    pub(crate) address: Ipv6Addr,
}

/// Everything that runs; ends with its handle.
pub(crate) struct Deployment {
    members: Vec<Member>,
    _procs: Vec<Proc>,
    _hosts: Vec<Host>,
}

impl Deployment {
    /// Brings up two agents of each kind, where the first of each may reach the second of all, and none
    /// has a session with another.
    pub(crate) fn new(world: &World, kinds: &[Kind]) -> Self {
        let [internet, registry, proxy] = ["net", "reg", "proxy"].map(|name| world.host(name));
        let mut procs = services(&internet, &registry, &proxy);
        let twice = kinds.iter().chain(kinds).enumerate();
        let homes = twice.map(|(n, kind)| Home::new(world, &internet, *kind, n + 1));
        let homes = homes.collect::<Vec<_>>();
        let names = (0..homes.len()).map(|n| {
            let second = if n < kinds.len() { 1 } else { 2 };
            format!("{}-{second}", homes[n].kind.name())
        });
        let names = names.collect::<Vec<_>>();
        for (home, name) in homes.iter().zip(&names) {
            name_registry(&home.host);
            home.host.ok(&format!(
                "env {} agentnet join --token-file /mnt/all.token --name {name}",
                home.kind.environment()
            ));
        }
        let nodes = start_all(&homes);
        let (first, second) = homes.split_at(kinds.len());
        trust_all(first, second, &names[kinds.len()..]);
        // Whoever is started anew has no session with anybody.
        drop(nodes);
        procs.extend(start_all(&homes));
        for home in first {
            wait_for_peers(&home.host, kinds.len());
        }
        for home in second {
            wait_for_peers(&home.host, kinds.len());
            answer(&home.host);
        }
        let members = homes.into_iter().zip(names).map(|(home, name)| Member {
            address: address(&home.host).parse().unwrap(),
            home,
            name,
        });
        Self {
            members: members.collect(),
            _procs: procs,
            _hosts: vec![internet, registry, proxy],
        }
    }

    /// Returns the first agents of all kinds, then the second ones.
    pub(crate) fn members(&self) -> &[Member] {
        &self.members
    }
}

/// Runs what must be on the internet.
fn services(internet: &Host, registry: &Host, proxy: &Host) -> Vec<Proc> {
    internet.bridge("br0");
    internet.ok(&format!(
        "ip addr add {GATEWAY}/24 dev br0 && ip addr add {GATEWAY6}/64 dev br0 nodad && \
         echo 1 > /proc/sys/net/ipv6/conf/all/forwarding"
    ));
    // A link stands for a way of many hops: nothing that is to go a few passes it.
    internet.ok(
        "echo 'table bridge far { chain through { type filter hook forward priority 0;
             ip ttl < 20 drop
         }
         }' | nft -f -",
    );
    for (host, address) in [(registry, REGISTRY), (proxy, PROXY)] {
        attach(internet, host, host.name(), "eth0");
        host.ok(&format!("ip addr add {address}/24 dev eth0"));
    }
    registry.ok(&format!(
        "ip addr add {REGISTRY6}/64 dev eth0 nodad && ip route add default via {GATEWAY6}"
    ));
    for host in [internet, registry, proxy] {
        name_registry(host);
    }
    registry.ok(&format!(
        "agentnet registry init --dir /var/lib/registry --listen [::]:443 --url https://{NAME}:443 && \
         cp /var/lib/registry/operator.token /mnt/"
    ));
    let serve = "exec agentnet registry serve --config /var/lib/registry/registry.toml";
    let mut procs = vec![registry.start(serve)];
    wait_for("the registry is ready", || {
        let ask = format!("curl -sfk --max-time 2 https://{NAME}/readyz");
        registry.run(&ask).code == 0
    });
    let operator = "--operator-token-file /mnt/operator.token";
    let listen = format!("AGENTNET_GATEWAY_UDP_LISTEN='{GATEWAY}:16201,[{GATEWAY6}]:16201'");
    internet.ok(&format!(
        "env {listen} agentnet gateway init --dir /var/lib/gateway --listen {GATEWAY}:16201 \
         --advertise {GATEWAY}:16201 --advertise [{GATEWAY6}]:16201 --wss [::]:443 {operator}"
    ));
    procs.push(internet.start(&format!(
        "exec env {listen} agentnet gateway serve --config /var/lib/gateway/gateway.toml"
    )));
    wait_for("the gateway listens", || {
        internet.ok("ss -lun").contains(":16201 ")
    });
    // Who is seen by two at different endpoints is behind a NAT that maps by destination.
    let second = format!("AGENTNET_GATEWAY_UDP_LISTEN='{REGISTRY}:16201,[{REGISTRY6}]:16201'");
    registry.ok(&format!(
        "env {second} agentnet gateway init --dir /var/lib/gateway --listen {REGISTRY}:16201 \
         --advertise {REGISTRY}:16201 --advertise [{REGISTRY6}]:16201 {operator}"
    ));
    procs.push(registry.start(&format!(
        "exec env {second} agentnet gateway serve --config /var/lib/gateway/gateway.toml"
    )));
    wait_for("the second gateway listens", || {
        registry.ok("ss -lun").contains(":16201 ")
    });
    let config = "Port 8888\\nListen 198.51.100.3\\nTimeout 600\\nMaxClients 50\\nLogLevel Error\\n\
                  ConnectPort 443\\n";
    proxy.ok(&format!("printf '{config}' > /run/tinyproxy.conf"));
    procs.push(proxy.start("exec tinyproxy -d -c /run/tinyproxy.conf"));
    wait_for("the proxy listens", || {
        proxy.ok("ss -ltn").contains(":8888 ")
    });
    registry.ok(&format!("agentnet network create acme {operator}"));
    registry.ok("agentnet token create acme --name '*' --uses 99 --out /mnt/all.token");
    procs
}

fn name_registry(host: &Host) {
    let hosts = format!("{REGISTRY} {NAME}\\n{REGISTRY6} {NAME}\\n127.0.0.1 localhost\\n");
    host.ok(&format!(
        "printf '{hosts}' > /etc/hosts.new && mv /etc/hosts.new /etc/hosts"
    ));
}

/// Starts all nodes and waits until every agent has its gateway.
fn start_all(homes: &[Home]) -> Vec<Proc> {
    let start = |home: &Home| {
        let environment = home.kind.environment();
        home.host
            .start(&format!("exec env {environment} agentnet up"))
    };
    let nodes = homes.iter().map(start).collect::<Vec<_>>();
    for home in homes {
        let what = format!("{} is attached", home.kind.name());
        wait_within(TOGETHER, &what, || {
            let is_up = home.host.run("agentnet status").code == 0;
            let is_attached = || status(&home.host)["agents"][0]["gateway"]["state"] == "connected";
            (is_up && is_attached()).then_some(())
        });
    }
    nodes
}

/// Has the first reach the second.
fn trust_all(first: &[Home], second: &[Home], names: &[String]) {
    for home in second {
        home.host.ok(&format!(
            "agentnet trust auto add --from '*' --allow tcp/{PORT}"
        ));
    }
    thread::scope(|scope| {
        for home in first {
            scope.spawn(move || {
                for name in names {
                    home.host.ok(&format!("agentnet trust request {name}"));
                }
            });
        }
    });
    for home in first.iter().chain(second) {
        wait_for_peers(&home.host, names.len());
    }
}

fn wait_for_peers(host: &Host, count: usize) {
    let what = format!("{} has {count} peers", host.name());
    wait_within(TOGETHER, &what, || {
        let peers = host.ok("agentnet peers --json");
        let peers: serde_json::Value = serde_json::from_str(&peers).unwrap();
        (peers["peers"].as_array().map(Vec::len) == Some(count)).then_some(())
    });
}

/// Answers whoever connects with one byte until the test ends.
fn answer(host: &Host) {
    let listener = host.enter(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)));
    let listener = listener.expect("the port is free");
    thread::spawn(move || {
        for stream in listener.incoming() {
            drop(stream.and_then(|mut stream| stream.write_all(b"x")));
        }
    });
}

//! Gateways of two domains that peer by the files their operators exchanged, on the kernel.
//!
//! Nodes of two domains cannot consent to each other yet, so what passes here is frames of agents that
//! the test plays itself: they attach and send as nodes do.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use agentnet::{
    engine::attach::{AttachConfig, Attachment, Inbound, State},
    id::{IdentityKey, OverlayIp},
    os::clock,
    statement::{Gateway, Grant, Statement},
};
use serde_json::Value;

use crate::{
    network::{Network, tunnel},
    process::Proc,
    services::OPERATOR,
    world::{Host, World, in_world, wait_for},
};

const HOUR: Duration = Duration::from_secs(3600);
const CONFIG: &str = "--config /var/lib/gateway/gateway.toml";

/// A domain on a host of its own: registry, gateway, and a network.
struct Domain<'a> {
    host: &'a Host,
    ip: &'static str,
    network: Network,
    gateway: Option<Proc>,
    _registry: Proc,
}

impl<'a> Domain<'a> {
    fn new(host: &'a Host, ip: &'static str) -> Self {
        host.ok(&format!(
            "agentnet registry init --dir /var/lib/registry --listen {ip}:8443"
        ));
        let serve = "exec agentnet registry serve --config /var/lib/registry/registry.toml";
        let registry = host.start(serve);
        let ready = format!("curl -sfk --max-time 2 https://{ip}:8443/readyz");
        wait_for("the registry is ready", || host.run(&ready).code == 0);
        host.ok(&format!(
            "agentnet gateway init --dir /var/lib/gateway --listen {ip}:16201 {OPERATOR}"
        ));
        host.ok(
            "sed -i 's|^#listen = \"127.0.0.1:9464\"|listen = \"127.0.0.1:9464\"|' \
             /var/lib/gateway/gateway.toml",
        );
        host.ok(&format!("agentnet network create acme {OPERATOR}"));
        let kept = host.ok("cat /var/lib/agentnet/networks/acme.json");
        let kept: Value = serde_json::from_str(&kept).unwrap();
        let grant: Statement<Grant> = serde_json::from_value(kept["grant"].clone()).unwrap();
        let network = Network {
            root: serde_json::from_value::<IdentityKey>(kept["root"].clone()).unwrap(),
            prefix: grant.claims().root.as_ref().unwrap().prefix,
            grant,
        };
        Self {
            host,
            ip,
            network,
            gateway: None,
            _registry: registry,
        }
    }

    /// Returns what is to be handed to the other operator.
    fn file(&self) -> String {
        self.host.ok(&format!("agentnet gateway peering {CONFIG}"))
    }

    /// Takes what the other operator handed over.
    fn take(&self, file: &str) {
        let name = format!("/mnt/to-{}.json", self.host.name());
        std::fs::write(&name, file).unwrap();
        self.host.ok(&format!(
            "sed -i 's|^#files = .*|files = [\"{name}\"]|' /var/lib/gateway/gateway.toml"
        ));
    }

    fn start(&mut self) {
        let serve = format!("exec agentnet gateway serve {CONFIG}");
        self.gateway = Some(self.host.start(&serve));
        wait_for("the gateway serves the network", || {
            let told = self
                .host
                .run(&format!("agentnet gateway status --json {CONFIG}"));
            told.code == 0 && self.status()["networks"] == 1
        });
    }

    fn status(&self) -> Value {
        let told = self
            .host
            .ok(&format!("agentnet gateway status --json {CONFIG}"));
        serde_json::from_str(&told).unwrap()
    }

    /// Adds an agent on the gateway's host.
    fn agent(&self, n: u16) -> Agent {
        let file: Value = serde_json::from_str(&self.file()).unwrap();
        let gateway = file["gateways"][0].as_str().unwrap();
        let gateway = Statement::<Gateway>::open(gateway).unwrap();
        let at: SocketAddr = format!("{}:16201", self.ip).parse().unwrap();
        let config = AttachConfig {
            agent: self.network.address(n),
            secret: tunnel(n),
            gateway: gateway.subject(),
            key: gateway.claims().tunnel,
            endpoints: vec![at],
            index: u32::from(n),
        };
        let mut attachment = Attachment::new(config, [7; 32]).unwrap();
        let record = self.network.record_at(n, HOUR, vec![gateway.subject()]);
        attachment.set_record(record, clock::now());
        let socket = self.host.udp(&format!("{}:0", self.ip));
        socket.set_nonblocking(true).unwrap();
        Agent {
            address: self.network.address(n),
            attachment,
            socket,
            received: vec![],
        }
    }
}

/// An agent as far as a gateway sees it.
struct Agent {
    address: OverlayIp,
    attachment: Attachment,
    socket: UdpSocket,
    /// From whom, and what.
    received: Vec<(OverlayIp, Vec<u8>)>,
}

impl Agent {
    fn turn(&mut self) {
        let mut buffer = [0; 2000];
        loop {
            match self.socket.recv_from(&mut buffer) {
                Ok((length, from)) => {
                    let bytes = &buffer[..length];
                    let taken = self.attachment.handle_datagram(from, bytes, clock::now());
                    if let Inbound::Received(got) = taken {
                        self.received
                            .push((got.source, bytes[got.payload].to_vec()));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        self.attachment.handle_timeout(clock::now());
        while let Some((to, bytes)) = self.attachment.poll_transmit() {
            self.socket.send_to(&bytes, to).unwrap();
        }
    }

    fn send(&mut self, to: OverlayIp, payload: &[u8]) {
        let framed = self.attachment.wrap(to, payload, clock::now());
        let (at, frame) = framed.expect("it is attached");
        self.socket.send_to(&frame, at).unwrap();
    }
}

/// Waits until what one agent says, again and again, reaches the other as it was said.
fn wait_heard(from: &mut Agent, to: &mut Agent, payload: &[u8]) {
    let from_address = from.address;
    wait_for("the other domain hears", || {
        // A gateway that was started anew says so to whoever sends.
        for (agent, other) in [(&mut *from, to.address), (&mut *to, from_address)] {
            if agent.attachment.state() == State::Attached {
                agent.send(other, payload);
            }
        }
        from.turn();
        to.turn();
        let heard = (from.address, payload.to_vec());
        to.received.contains(&heard)
    });
}

/// F-047, F-057, F-058, F-059, F-065.
#[test]
fn agents_of_two_domains_reach_each_other_by_two_gateways() {
    in_world(|world: &World| {
        let hosts = ["one", "two"].map(|name| world.host(name));
        hosts[0].link("eth0", &hosts[1], "eth0");
        for (host, ip) in hosts.iter().zip(["198.51.100.1", "198.51.100.2"]) {
            host.ok(&format!("ip addr add {ip}/24 dev eth0"));
        }
        let mut one = Domain::new(&hosts[0], "198.51.100.1");
        let mut two = Domain::new(&hosts[1], "198.51.100.2");
        let files = [one.file(), two.file()];

        // What is no file of a domain, and what is of one's own, is named before anything is served.
        for (bad, why) in [("{}", "no file of"), (files[0].as_str(), "own domain")] {
            one.take(bad);
            let said = one
                .host
                .fails(1, &format!("agentnet gateway serve {CONFIG}"));
            assert!(said.contains(why), "{said}");
            one.host
                .ok("sed -i 's|^files = .*|#files = []|' /var/lib/gateway/gateway.toml");
        }
        one.take(&files[1]);
        one.start();
        two.start();
        let (mut a, mut b) = (one.agent(10), two.agent(11));
        wait_for("both are attached", || {
            [&mut a, &mut b].into_iter().all(|agent| {
                agent.turn();
                agent.attachment.state() == State::Attached
            })
        });
        // The first tries, and the second does not know whom it hears.
        wait_for("who is not named is refused", || {
            two.status()["drops"]["control_refused"].as_u64() > Some(0)
        });
        assert_ne!(one.status()["peers"][0]["state"], "up");

        two.gateway.take().unwrap().kill();
        two.take(&files[0]);
        two.start();
        wait_heard(&mut a, &mut b, b"from one domain");
        wait_heard(&mut b, &mut a, b"from the other");

        for (domain, other) in [(&one, &two), (&two, &one)] {
            let prefix = format!("{}/48", other.network.prefix.domain().first());
            let told = domain.status();
            let peers = told["peers"].as_array().unwrap();
            assert_eq!(peers.len(), 1, "{told}");
            let stands = (&peers[0]["state"], &peers[0]["prefixes"][0]);
            assert_eq!(stands, (&"up".into(), &prefix.into()), "{told}");
        }
        let metrics = one.host.ok("curl -sf http://127.0.0.1:9464/metrics");
        for line in [
            "agentnet_gateway_attached 1",
            "agentnet_gateway_peers{state=\"up\"} 1",
            "agentnet_dropped_total{reason=\"frame_tag\"} 0",
        ] {
            assert!(metrics.lines().any(|of| of == line), "{line}: {metrics}");
        }
        let passed = metrics.lines().find_map(|line| {
            let passed = line.strip_prefix("agentnet_gateway_forwarded_frames_total ")?;
            passed.parse::<u64>().ok()
        });
        assert!(passed > Some(0), "{metrics}");
        // Payloads alone passed, and to nobody that was not meant.
        assert!(a.received.iter().all(|(from, _)| *from == b.address));

        two.gateway.take().unwrap().kill();
        two.start();
        wait_heard(&mut a, &mut b, b"and again");
        wait_heard(&mut b, &mut a, b"and back");
    });
}

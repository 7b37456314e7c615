//! The deployment of most scenarios: registry and gateway on the public host, agent `a` on host a
//! and agent `b` on host b, members of network `acme`, each behind its own router.

use std::{fs, time::Duration};

use serde_json::Value;

use crate::{
    capture::Frame,
    process::Proc,
    services::{OPERATOR, new_registry, start_registry},
    site::{PUB, Site},
    world::{Host, World, in_world_of, wait_for, wait_within},
};

/// Where the gateway listens; its datagrams all pass this port.
pub(crate) const GATEWAY: &str = "198.51.100.1:16201";
pub(crate) const GATEWAY_PORT: u16 = 16201;
/// Stands in every page and message that must not be seen on the underlay.
pub(crate) const MARKER: &str = "MARKER-7f3a-in-the-clear";
/// Full names of the two agents.
pub(crate) const A: &str = "a.acme.agent";
pub(crate) const B: &str = "b.acme.agent";
/// A2G header without payload: what attachments exchange when nothing is sent (protocol.md 5).
const HEARTBEAT: usize = 56; // bytes

/// The services and the two nodes; a node that is `None` has been stopped by the test.
pub(crate) struct Lab {
    pub(crate) registry: Option<Proc>,
    pub(crate) gateway: Option<Proc>,
    pub(crate) node_a: Option<Proc>,
    pub(crate) node_b: Option<Proc>,
    pub(crate) site: Site,
}

/// Runs `body` in a world of its own with everything up and both agents joined and attached.
pub(crate) fn in_lab<F: FnOnce(&mut Lab)>(body: F) {
    in_world_of::<F>(|world| body(&mut Lab::up(world)));
}

impl Lab {
    /// Brings up everything, both agents joined and attached.
    pub(crate) fn up(world: &World) -> Self {
        let mut lab = Self::services(world);
        lab.join();
        lab.start_nodes();
        lab
    }

    /// Has both agents join.
    pub(crate) fn join(&self) {
        self.token("all", "--name '*' --uses 10");
        for (host, name) in [(&self.site.a, "a"), (&self.site.b, "b")] {
            host.ok(&format!(
                "agentnet join --token-file /mnt/all.token --name {name}"
            ));
        }
    }

    /// Brings up registry and gateway with network `acme`, and nothing on hosts a and b.
    pub(crate) fn services(world: &World) -> Self {
        Self::services_with(world, "", "")
    }

    /// The same, gateway and network made with more flags.
    pub(crate) fn services_with(world: &World, flags: &str, network: &str) -> Self {
        let site = Site::new(world);
        let public = &site.public;
        let registry = new_registry(public);
        public.ok(&format!(
            "agentnet gateway init --dir /var/lib/gateway --listen {GATEWAY} {flags} {OPERATOR}"
        ));
        let gateway = start_gateway(public);
        public.ok(&format!(
            "agentnet network create acme {network} {OPERATOR}"
        ));
        let (registry, gateway) = (Some(registry), Some(gateway));
        Self {
            registry,
            gateway,
            node_a: None,
            node_b: None,
            site,
        }
    }

    /// Makes a join token, in a file that every host can read.
    pub(crate) fn token(&self, file: &str, options: &str) {
        let out = World::path(&format!("{file}.token"));
        let out = out.display();
        self.site
            .public
            .ok(&format!("agentnet token create acme {options} --out {out}"));
    }

    pub(crate) fn start_nodes(&mut self) {
        (self.node_a, self.node_b) = (
            Some(start_node(&self.site.a)),
            Some(start_node(&self.site.b)),
        );
        wait_attached(&self.site.a);
        wait_attached(&self.site.b);
    }

    pub(crate) fn start_registry(&mut self) {
        self.registry = Some(start_registry(&self.site.public));
    }

    pub(crate) fn start_gateway(&mut self) {
        self.gateway = Some(start_gateway(&self.site.public));
    }

    /// Has A ask and B agree: A may reach the `allow`ed ports of B, B none of A.
    pub(crate) fn trust(&self, allow: &str) {
        self.site.a.ok(&format!("agentnet trust request {B}"));
        wait_for("the request arrives", || {
            self.site.b.ok("agentnet trust pending --json").contains(A)
        });
        self.site
            .b
            .ok(&format!("agentnet trust approve {A} --allow {allow}"));
        wait_for("the name resolves", || {
            self.site.a.run(&format!("getent ahosts {B}")).code == 0
        });
    }

    /// Serves a page with the marker on port 8000 of host b.
    pub(crate) fn serve_page(&self) -> Proc {
        fs::create_dir_all(World::path("www")).unwrap();
        fs::write(World::path("www/index.html"), format!("<p>{MARKER}</p>\n")).unwrap();
        serve(&self.site.b, 8000)
    }

    /// Tells whether A gets B's page now.
    pub(crate) fn page_arrives(&self) -> bool {
        let page = self
            .site
            .a
            .run(&format!("curl -sS --max-time 1 http://{B}:8000/"));
        page.code == 0 && page.stdout.contains(MARKER)
    }

    /// Asserts that A gets B's page within `patience`.
    #[track_caller]
    pub(crate) fn page_within(&self, patience: Duration, what: &str) {
        wait_within(patience, what, || self.page_arrives().then_some(()));
    }
}

/// Runs the standard library's web server on all addresses of `host`.
pub(crate) fn serve(host: &Host, port: u16) -> Proc {
    let server = host.start(&format!(
        "exec python3 -m http.server {port} --bind :: --directory /mnt/www"
    ));
    wait_for("the server listens", || {
        host.ok("ss -ltn").contains(&format!(":{port} "))
    });
    server
}

fn start_gateway(public: &Host) -> Proc {
    let gateway =
        public.start("exec agentnet gateway serve --config /var/lib/gateway/gateway.toml");
    let (address, port) = GATEWAY.split_once(':').unwrap();
    assert_eq!(address, PUB);
    wait_for("the gateway listens", || {
        public.ok("ss -lun").contains(&format!(":{port} "))
    });
    gateway
}

/// Starts a node and waits until it takes commands.
pub(crate) fn start_node(host: &Host) -> Proc {
    start_node_with(host, "")
}

/// Starts a node with more flags.
pub(crate) fn start_node_with(host: &Host, flags: &str) -> Proc {
    answering(host, &format!("exec agentnet up {flags}"))
}

/// Starts a node with more environment.
pub(crate) fn start_node_by(host: &Host, environment: &str) -> Proc {
    answering(host, &format!("exec env {environment} agentnet up"))
}

fn answering(host: &Host, line: &str) -> Proc {
    let node = host.start(line);
    wait_for("the node answers", || host.run("agentnet status").code == 0);
    node
}

/// Waits until every agent of the host has its gateway.
pub(crate) fn wait_attached(host: &Host) {
    wait_for("the gateway is attached", || {
        let status = status(host);
        let agents = status["agents"].as_array().unwrap();
        !agents.is_empty()
            && agents
                .iter()
                .all(|agent| agent["gateway"]["state"] == "connected")
    });
}

pub(crate) fn status(host: &Host) -> Value {
    serde_json::from_str(&host.ok("agentnet status --json")).unwrap()
}

/// Returns the address of the host's only agent.
pub(crate) fn address(host: &Host) -> String {
    let status = status(host);
    status["agents"][0]["address"]
        .as_str()
        .expect("an agent has an address")
        .to_owned()
}

/// Returns the host's datagrams to the gateway that carry something.
pub(crate) fn sent(frames: &[Frame]) -> Vec<&Frame> {
    let carries = |frame: &&Frame| {
        let udp = frame.udp();
        udp.is_some_and(|(_, to, data)| to == GATEWAY_PORT && data.len() != HEARTBEAT)
    };
    frames.iter().filter(carries).collect()
}

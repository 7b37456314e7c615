//! Peers that speak WireGuard and nothing else: Debian's wireguard-go, configured by `wg` with what
//! `agentnet wireguard add` prints.

use std::{fs, time::Duration};

use serde_json::Value;

use crate::{
    lab::{Lab, address, serve, start_node, status, wait_attached},
    process::Proc,
    site::PUB,
    world::{Host, World, in_world_of, wait_for, wait_within},
};

/// Where the WireGuard hosts are.
const W: &str = "198.51.100.20";
const X: &str = "198.51.100.21";

/// What a peer is served and sends; long enough to fill windows and queues.
const FILE: usize = 8_000_000;

/// How long a node that sees no answer goes on with a session that the other end lost, and some:
/// WireGuard's Keepalive-Timeout and Rekey-Timeout make 15 s.
const NOTICED: Duration = Duration::from_secs(40);

/// Longer than WireGuard's Rekey-After-Time of 120 s, so that every session is renewed in use.
const RENEWED: u32 = 135; // seconds

/// A node with one agent on the public host, whose firewall lets everything in.
struct Plain {
    lab: Lab,
    node: Option<Proc>,
    /// Address of the agent.
    address: String,
}

/// Runs `body` in a world of its own with the node up.
fn in_plain<F: FnOnce(&World, &mut Plain)>(body: F) {
    in_world_of::<F>(|world| {
        let lab = Lab::services(world);
        lab.token("all", "--name '*' --uses 10");
        let public = &lab.site.public;
        public.ok("agentnet join --token-file /mnt/all.token --name p");
        let node = Some(start_node(public));
        wait_attached(public);
        let address = address(public);
        let mut plain = Plain { lab, node, address };
        body(world, &mut plain);
    });
}

/// A host with wireguard-go.
struct Peer {
    host: Host,
    /// None while it is stopped.
    wireguard: Option<Proc>,
    key: String,
    /// Its address in the overlay.
    address: String,
    /// Where its file with the `[Peer]` section of the node is.
    section: String,
}

impl Plain {
    fn public(&self) -> &Host {
        &self.lab.site.public
    }

    /// Makes a host at `at` with WireGuard keys.
    fn host(&self, world: &World, name: &str, at: &str) -> (Host, String) {
        let host = world.host(name);
        let port = format!("p{name}");
        self.public().link(&port, &host, "eth0");
        self.public().ok(&format!("ip link set {port} master br0"));
        host.ok(&format!("ip addr add {at}/24 dev eth0"));
        let file = format!("/mnt/{name}.key");
        let key = host.ok(&format!("wg genkey > {file} && wg pubkey < {file}"));
        (host, key)
    }

    /// Makes a host with WireGuard that the node lets in with `options`; it may begin when
    /// `knows_us`.
    fn peer(&self, world: &World, (name, at): (&str, &str), options: &str, knows_us: bool) -> Peer {
        let (host, key) = self.host(world, name, at);
        let section = format!("/mnt/{name}.conf");
        self.public().ok(&format!(
            "agentnet wireguard add {key} {options} > {section}"
        ));
        if !knows_us {
            host.ok(&format!("sed -i '/^Endpoint/d' {section}"));
        }
        let address = self.listed(&key)["address"].as_str().unwrap().to_owned();
        let mut peer = Peer {
            host,
            wireguard: None,
            key,
            address,
            section,
        };
        peer.start(name);
        peer
    }

    /// Returns what the node tells of the peer.
    #[track_caller]
    fn listed(&self, key: &str) -> Value {
        let all = self.public().ok("agentnet wireguard list --json");
        let all: Value = serde_json::from_str(&all).unwrap();
        let mut peers = all["peers"].as_array().unwrap().iter();
        peers.find(|peer| peer["key"] == key).unwrap().clone()
    }

    fn reaches(&self, peer: &Peer) -> bool {
        let ping = format!("ping -6 -c 1 -W 1 {}", peer.address);
        self.public().run(&ping).code == 0
    }

    fn is_reached_by(&self, peer: &Peer) -> bool {
        let ping = format!("ping -6 -c 1 -W 1 {}", self.address);
        peer.host.run(&ping).code == 0
    }

    /// Returns how many packets the node dropped for `reason`.
    fn drops(&self, reason: &str) -> u64 {
        status(self.public())["drops"][reason].as_u64().unwrap_or(0)
    }

    /// Sends a file each way and compares.
    fn transfer(&self, peer: &Peer) {
        fs::create_dir_all(World::path("www")).unwrap();
        let fetch = |from: &Host, at: &str, to: &Host| {
            let _server = serve(from, 8000);
            from.ok(&format!("head -c {FILE} /dev/urandom > /mnt/www/big"));
            to.ok(&format!(
                "curl -sS --max-time 19 -o /mnt/got 'http://[{at}]:8000/big' && \
                 cmp /mnt/got /mnt/www/big"
            ));
        };
        fetch(self.public(), &self.address, &peer.host);
        fetch(&peer.host, &peer.address, self.public());
    }
}

impl Peer {
    fn start(&mut self, name: &str) {
        let (host, section) = (&self.host, &self.section);
        let wireguard = host.start("exec env LOG_LEVEL=verbose wireguard-go -f wg0");
        wait_for("wireguard-go takes commands", || {
            host.run("wg show wg0").code == 0
        });
        host.ok(&format!(
            "wg set wg0 private-key /mnt/{name}.key listen-port 51820 && \
             wg addconf wg0 {section} && ip address add {}/64 dev wg0 nodad && \
             ip link set wg0 up",
            self.address
        ));
        self.wireguard = Some(wireguard);
    }

    /// Returns how often its log says `what`.
    fn said(&self, what: &str) -> usize {
        self.wireguard
            .as_ref()
            .unwrap()
            .stdout()
            .matches(what)
            .count()
    }

    /// Asserts that nothing came that it takes for garbage.
    #[track_caller]
    fn got_plain_packets_only(&self) {
        for garbage in ["disallowed", "Packet with invalid"] {
            let log = self.wireguard.as_ref().unwrap().stdout();
            assert!(!log.contains(garbage), "{garbage}:\n{log}");
        }
    }
}

/// What its log says of messages it took.
const INITIATION: &str = "Received handshake initiation";
const RESPONSE: &str = "Received handshake response";

/// Issue 4, section 1: agentnet begins; the other end is lost and comes back, roams and is forgotten.
#[test]
fn a_peer_that_speaks_only_wireguard_is_reached() {
    in_plain(|world, plain| {
        let options = format!("--endpoint {W}:51820 --allow tcp/8000");
        let mut peer = plain.peer(world, ("w", W), &options, false);

        wait_for("an echo comes back", || plain.reaches(&peer));
        assert!(peer.said(INITIATION) > 0 && peer.said(RESPONSE) == 0);
        wait_for("it gets through", || plain.is_reached_by(&peer));
        plain.transfer(&peer);
        peer.got_plain_packets_only();
        let listed = plain.listed(&peer.key);
        assert_eq!(
            (&listed["state"], &listed["inbound"][0]),
            (&"up".into(), &"tcp/8000".into())
        );
        assert!(listed["rx_bytes"].as_u64().unwrap() > FILE as u64);
        let peers = plain.public().ok("agentnet peers");
        assert!(
            peers.contains(&peer.key) && peers.contains(&peer.address),
            "{peers}"
        );

        // From another port it is known again at its first packet.
        peer.host.ok("wg set wg0 listen-port 51999");
        wait_for("it is heard from there", || plain.is_reached_by(&peer));
        wait_for("it is answered there", || plain.reaches(&peer));
        assert_eq!(plain.listed(&peer.key)["endpoint"], format!("{W}:51999"));
        peer.host.ok("wg set wg0 listen-port 51820");
        wait_for("it is heard again", || plain.is_reached_by(&peer));

        // The session it had is gone; the node notices that nothing comes back.
        peer.wireguard.take().unwrap().kill();
        peer.start("w");
        wait_within(NOTICED, "an echo comes back after its restart", || {
            plain.reaches(&peer).then_some(())
        });

        plain
            .public()
            .ok(&format!("agentnet wireguard remove {}", peer.key));

        assert!(!plain.reaches(&peer) && !plain.is_reached_by(&peer));
        let left = plain.public().ok(
            "cat /var/lib/agentnet/state.json /var/lib/agentnet/agents/*.json && agentnet peers",
        );
        assert!(
            !left.contains(&peer.key) && !left.contains(&peer.address),
            "{left}"
        );
    });
}

/// Issue 4, section 1: WireGuard begins, with a pre-shared key; the node restarts.
#[test]
fn a_peer_that_speaks_only_wireguard_is_let_in() {
    in_plain(|world, plain| {
        plain.public().ok("wg genpsk > /mnt/psk");
        let options = "--allow tcp/8000 --preshared-key-file /mnt/psk";
        let mut peer = plain.peer(world, ("w", W), options, true);
        let set = |peer: &Peer| {
            let ours = peer.host.ok("wg show wg0 peers");
            peer.host
                .ok(&format!("wg set wg0 peer {ours} preshared-key /mnt/psk"));
        };
        // Without an endpoint nothing goes there; without the pre-shared key nothing comes.
        assert!(!plain.reaches(&peer) && !plain.is_reached_by(&peer));
        set(&peer);

        wait_for("it gets through", || plain.is_reached_by(&peer));
        assert!(peer.said(RESPONSE) > 0 && peer.said(INITIATION) == 0);
        assert_eq!(plain.listed(&peer.key)["endpoint"], format!("{W}:51820"));
        wait_for("an echo comes back", || plain.reaches(&peer));
        plain.transfer(&peer);
        peer.got_plain_packets_only();

        // What was not allowed is dropped, and so is what another address sends.
        let _closed = serve(plain.public(), 8001);
        let closed = format!("curl -sS --max-time 1 'http://[{}]:8001/'", plain.address);
        let before = plain.drops("filter_scope");
        assert_ne!(peer.host.run(&closed).code, 0);
        assert!(plain.drops("filter_scope") > before);
        let other = format!("{}:1", peer.address.rsplit_once(':').unwrap().0);
        peer.host
            .ok(&format!("ip address add {other}/64 dev wg0 nodad"));
        let spoofed = format!("ping -6 -c 1 -W 1 -I {other} {}", plain.address);
        assert_ne!(peer.host.run(&spoofed).code, 0);
        assert!(plain.drops("session_source") > 0);
        peer.host.ok(&format!("ip address del {other}/64 dev wg0"));
        wait_for("it gets through still", || plain.is_reached_by(&peer));

        // The operator's word is kept.
        plain.node.take().unwrap().stop();
        plain.node = Some(start_node(plain.public()));
        wait_within(NOTICED, "it gets through to the restarted node", || {
            plain.is_reached_by(&peer).then_some(())
        });
        peer.wireguard.take();
    });
}

/// Issue 4, section 1: sessions are renewed by whoever began them, and no packet is lost.
#[test]
fn sessions_with_wireguard_are_renewed_in_use() {
    in_plain(|world, plain| {
        let options = format!("--endpoint {W}:51820 --allow any");
        let ours = plain.peer(world, ("w", W), &options, false);
        let theirs = plain.peer(world, ("x", X), "--allow any", true);
        wait_for("the session of ours is up", || plain.reaches(&ours));
        wait_for("the session of theirs is up", || {
            plain.is_reached_by(&theirs)
        });
        let (first, second) = (ours.said(INITIATION), theirs.said(RESPONSE));

        let ping = |host: &Host, to: &str| {
            host.start(&format!(
                "exec ping -6 -q -i 0.5 -c {} -W 5 {to}",
                RENEWED * 2
            ))
        };
        let streams = [
            ping(plain.public(), &ours.address),
            ping(plain.public(), &theirs.address),
            ping(&ours.host, &plain.address),
            ping(&theirs.host, &plain.address),
        ];
        let patience = Duration::from_secs(u64::from(RENEWED) + 60);
        for stream in streams {
            let output = stream.finish(patience);
            assert!(output.stdout.contains(" 0% packet loss"), "{output}");
        }

        assert!(ours.said(INITIATION) > first && ours.said(RESPONSE) == 0);
        assert!(theirs.said(RESPONSE) > second && theirs.said(INITIATION) == 0);
        for peer in [&ours, &theirs] {
            plain.transfer(peer);
            peer.got_plain_packets_only();
        }
    });
}

/// What is wrong is told with what to do, and nothing of it is kept.
#[test]
fn a_wireguard_peer_that_cannot_be_is_refused() {
    in_plain(|world, plain| {
        let (_, key) = plain.host(world, "w", W);
        let public = plain.public();
        let own = public.ok("agentnet wireguard list --json");
        let own: Value = serde_json::from_str(&own).unwrap();
        let own_key = own["own"][0]["key"].as_str().unwrap();
        let inside = format!("{}:77", plain.address.rsplit_once(':').unwrap().0);
        let add = |options: &str| format!("agentnet wireguard add {options}");
        for (code, line, says) in [
            (2, add("nonsense"), "not a key of WireGuard"),
            (
                2,
                add(&format!("{key} --address fd00::1")),
                "is not an address of the agent's network",
            ),
            (
                2,
                add(&format!("{key} --endpoint [{inside}]:1")),
                "nothing can be sent to",
            ),
            (
                3,
                add(&format!("{key} --address {}", plain.address)),
                "is an agent of this node",
            ),
            (3, add(own_key), "the key is of this node itself"),
            (
                4,
                format!("agentnet wireguard remove {key}"),
                "no such WireGuard peer",
            ),
        ] {
            let said = public.fails(code, &line);
            assert!(
                said.contains(says) && (code == 2 || said.contains("hint: ")),
                "{said}"
            );
        }
        public.ok(&add(&format!("{key} --address {inside}")));
        let other = public.ok("wg genkey | wg pubkey");
        let taken = public.fails(3, &add(&format!("{other} --address {inside}")));
        let again = public.fails(3, &add(&key));

        assert!(taken.contains("another WireGuard peer"), "{taken}");
        assert!(
            again.contains(&format!("WireGuard peer {inside}")),
            "{again}"
        );
        let list = public.ok("agentnet wireguard list");
        assert!(list.contains(&key) && !list.contains(&other), "{list}");
        assert_eq!(own["own"][0]["endpoints"][0], format!("{PUB}:16200"));
    });
}

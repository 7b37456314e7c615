//! The data plane on a real TUN: devices, routes, the filter, and the barrier of a revocation.

mod hidden;

use std::{
    env, fs, io,
    io::{ErrorKind, Read},
    net::{Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    process::Command,
    time::Duration,
};

use agentnet::{
    dataplane::{
        DataplaneConfig, DataplaneHandle, Device, FromWorker, InPacket, OutPacket, PeerEntry,
        Realm, SOCKETS, Snapshot, Tables, start,
    },
    id::OverlayIp,
    os::{
        route::{RouteError, Routing},
        tun::{self, Tun, TunError},
        udp,
    },
    policy::Pair,
    wire::{
        drop::DropReason,
        icmp6::{Unreachable, unreachable},
        ip::{Ipv6View, Tcp, Transport},
    },
};
use etherparse::{IpHeaders, PacketBuilder, PacketBuilderStep};
use tokio::{runtime, sync::mpsc, time::timeout};

use crate::world::{Host, PATIENCE, in_world};

const MTU: u16 = 1280;

/// Of the data plane and queues of the device, so that packets come by several.
const WORKERS: usize = 2;

fn ip(last: u16) -> OverlayIp {
    format!("fd11:2233:4455:1::{last:x}").parse().unwrap()
}

/// Runs `work` on the host, in a runtime of its own.
fn on<T: Send>(host: &Host, work: impl AsyncFnOnce() -> T + Send) -> T {
    host.enter(|| {
        let mut runtime = runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().build().unwrap();
        runtime.block_on(work())
    })
}

/// Creates a device and wires it in.
async fn device(address: OverlayIp) -> Result<Tun, RouteError> {
    let tun = tun::create(tun::ANY_NAME, MTU, true, WORKERS).unwrap();
    let routing = Routing::open().unwrap();
    routing.attach(&tun.name, tun.index, address).await?;
    Ok(tun)
}

#[test]
fn a_device_has_its_address_and_route_and_nothing_else() {
    in_world(|world| {
        let host = world.host("a");
        // Hosts without IPv6 and container runtimes set this for every new device.
        host.ok("sysctl -qw net.ipv6.conf.default.disable_ipv6=1");

        let tun = on(&host, async || device(ip(1)).await.unwrap());

        assert_eq!(tun.name, "agn0");
        let addresses = host.ok("ip -o -6 address show dev agn0");
        assert!(addresses.contains("fd11:2233:4455:1::1/128"), "{addresses}");
        assert!(
            !addresses.contains("fe80") && !addresses.contains("tentative"),
            "{addresses}"
        );
        let routes = host.ok("ip -6 route show dev agn0");
        assert_eq!(routes.lines().count(), 1, "{routes}");
        for word in [
            "fd11:2233:4455:1::/64",
            "proto 97",
            "src fd11:2233:4455:1::1",
        ] {
            assert!(routes.contains(word), "{routes}");
        }
        assert!(host.ok("ip link show agn0").contains("mtu 1280"));
        drop(tun);
        assert_eq!(host.ok("ip -6 route show table main"), "");
        host.fails(1, "ip link show agn0");
    });
}

#[test]
fn two_agents_of_a_network_share_its_prefix() {
    in_world(|world| {
        let host = world.host("a");
        // A crashed daemon's device that somebody made persistent.
        host.ok("ip tuntap add dev agn0 mode tun && ip link set agn0 up && \
                 ip -6 route add fd11:2233:4455:1::/64 dev agn0 proto 97 metric 1024");

        let (one, two) = on(&host, async || {
            let one = device(ip(1)).await.unwrap();
            let two = device(ip(2)).await.unwrap();
            let routing = Routing::open().unwrap();
            routing.detach(two.index, ip(2)).await.unwrap();
            routing.attach(&two.name, two.index, ip(2)).await.unwrap();
            (one, two)
        });

        assert_eq!((one.name.as_str(), two.name.as_str()), ("agn1", "agn2"));
        let routes = host.ok("ip -6 route show fd11:2233:4455:1::/64");
        assert_eq!(routes.lines().count(), 2, "{routes}");
        assert!(
            routes.contains("metric 1024") && routes.contains("metric 1025"),
            "{routes}"
        );
        assert!(!routes.contains("agn0 "), "{routes}");
    });
}

/// Learnt from tailscale#12829: what is somebody else's stays theirs.
#[test]
fn a_prefix_or_address_of_another_device_is_left_alone() {
    in_world(|world| {
        let host = world.host("a");
        host.ok(
            "ip link add lan type veth peer name far && ip link set lan up && ip link set far up",
        );
        host.ok("ip -6 address add fd11:2233:4455:2::1/64 dev lan nodad");
        host.ok("ip -6 route add fd11:2233:4455:1::/112 dev lan");

        let error = on(&host, async || device(ip(1)).await.unwrap_err());
        let text = error.to_string();
        assert!(matches!(error, RouteError::PrefixRouted { .. }), "{text}");
        assert!(
            text.contains("fd11:2233:4455:1::/64") && text.contains("lan"),
            "{text}"
        );
        host.ok("ip -6 route del fd11:2233:4455:1::/112 dev lan");
        host.ok("ip -6 address add fd11:2233:4455:1::1/128 dev lan nodad noprefixroute");
        let error = on(&host, async || device(ip(1)).await.unwrap_err());
        assert!(
            error.to_string().contains("already on device lan"),
            "{error}"
        );

        let tun = on(&host, async || device(ip(2)).await.unwrap());
        let via = host.ok("ip -6 route get fd11:2233:4455:2::9");
        assert!(via.contains("dev lan"), "{via}");
        let via = host.ok("ip -6 route get fd11:2233:4455:1::9");
        assert!(via.contains(&tun.name), "{via}");
    });
}

#[test]
fn a_setting_that_stands_against_us_is_named() {
    in_world(|world| {
        let host = world.host("a");
        host.ok("sysctl -qw net.ipv6.conf.default.disable_ipv6=1");
        host.enter(|| {
            let made = Command::new("sh")
                .args([
                    "-c",
                    "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys",
                ])
                .status();
            assert!(made.unwrap().success());
        });

        let error = on(&host, async || device(ip(1)).await.unwrap_err());

        let text = error.to_string();
        assert!(
            text.contains("net.ipv6.conf.agn0.disable_ipv6 is 1"),
            "{text}"
        );
    });
}

#[test]
fn a_device_needs_the_capability_and_says_so() {
    const DENIED: &str = "AGENTNET_TEST_DENIED";
    in_world(|world| {
        if env::var_os(DENIED).is_some() {
            let error = tun::create(tun::ANY_NAME, MTU, true, WORKERS).unwrap_err();
            assert!(matches!(error, TunError::Denied), "{error}");
            return;
        }
        let host = world.host("a");
        // Root of a user namespace that does not own this network.
        let inner = host.enter(|| {
            Command::new("unshare")
                .args(["--user", "--map-root-user", "--mount"])
                .arg(env::current_exe().unwrap())
                .args([
                    "--exact",
                    "dataplane::a_device_needs_the_capability_and_says_so",
                ])
                .env(DENIED, "1")
                .output()
                .unwrap()
        });
        let said = String::from_utf8_lossy(&inner.stdout).into_owned();
        assert!(
            inner.status.success() && said.contains("1 passed"),
            "{said}"
        );
    });
}

#[test]
fn a_host_without_tun_devices_is_named_as_such() {
    in_world(|world| {
        let host = world.host("a");
        host.ok("mount -t tmpfs none /dev/net");

        let error = host.enter(|| tun::create(tun::ANY_NAME, MTU, true, WORKERS).unwrap_err());

        assert!(matches!(error, TunError::NoDevice), "{error}");
        host.fails(2, "ls /dev/net/tun");
    });
}

/// A host with one agent (1) whose peer is 2; the test plays the engine.
struct Node {
    handle: DataplaneHandle,
    from: mpsc::Receiver<FromWorker>,
    epoch: u64,
    is_hidden: bool,
}

fn taken(tun: Tun) -> Device {
    Device {
        fds: tun.fds,
        has_header: tun.has_header,
        has_udp_offload: tun.has_udp_offload,
    }
}

impl Node {
    async fn start(scope: Option<&str>) -> Self {
        let tun = device(ip(1)).await.unwrap();
        let config = DataplaneConfig {
            udp: udp::bind_shared(0, SOCKETS).unwrap(),
            workers: WORKERS,
            is_realtime: false,
        };
        let (handle, from) = start(config).unwrap();
        handle
            .add_tun(ip(1), Realm::default(), taken(tun))
            .await
            .unwrap();
        let mut node = Self {
            handle,
            from,
            epoch: 0,
            is_hidden: false,
        };
        node.publish(scope).await;
        node
    }

    /// Puts the peer in force with `scope`, or removes it.
    async fn publish(&mut self, scope: Option<&str>) {
        self.epoch += 1;
        let entry = |scope: &str| PeerEntry {
            inbound: vec![scope.parse().unwrap()],
        };
        let pair = Pair {
            local: ip(1),
            peer: ip(2),
        };
        let tables = Tables {
            epoch: self.epoch,
            bound: Default::default(),
            hidden: self.is_hidden.then(|| ip(1)).into_iter().collect(),
            locals: [(ip(1), Realm::default())].into(),
            peers: scope
                .map(|scope| (pair, entry(scope)))
                .into_iter()
                .collect(),
        };
        self.handle.publish(tables).await.unwrap();
    }

    /// Returns the next packet of a local program and whether its peer is installed.
    async fn next(&mut self) -> (OutPacket, bool) {
        let message = timeout(PATIENCE, self.from.recv()).await.unwrap();
        match message.unwrap() {
            FromWorker::Packets(mut packets) => {
                assert_eq!(packets.len(), 1);
                (packets.remove(0), true)
            }
            FromWorker::Unknown(packet) => (packet, false),
            FromWorker::ChannelUsed { .. }
            | FromWorker::Datagrams(_)
            | FromWorker::Passed(_)
            | FromWorker::TunGone(_) => panic!("not a packet"),
        }
    }

    async fn next_tcp(&mut self) -> Tcp {
        let (packet, _) = self.next().await;
        let view = Ipv6View::parse(&packet.bytes).unwrap();
        let Transport::Tcp(tcp) = view.transport() else {
            panic!("{view:?}");
        };
        tcp
    }

    fn deliver(&self, bytes: Vec<u8>) {
        self.handle.deliver(vec![InPacket {
            local: ip(1),
            peer: ip(2),
            bytes,
        }]);
    }

    async fn dropped(&self, reason: DropReason) -> u64 {
        self.handle.counters().await.drops.of(reason)
    }
}

fn from_peer() -> PacketBuilderStep<IpHeaders> {
    PacketBuilder::ipv6(ip(2).ip().octets(), ip(1).ip().octets(), 64)
}

fn udp_from_peer(ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let step = from_peer().udp(ports.0, ports.1);
    step.write(&mut bytes, payload).unwrap();
    bytes
}

fn socket(port: u16) -> UdpSocket {
    let socket = UdpSocket::bind(SocketAddr::new(ip(1).ip().into(), port)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn received(socket: &UdpSocket) -> io::Result<Vec<u8>> {
    let mut buffer = [0; 100];
    let length = socket.recv(&mut buffer)?;
    Ok(buffer[..length].to_vec())
}

#[test]
fn plain_sockets_talk_through_the_device() {
    in_world(|world| {
        on(&world.host("a"), async || {
            let mut node = Node::start(Some("udp/8000")).await;
            let (client, server) = (socket(0), socket(8000));
            let port = client.local_addr().unwrap().port();

            client.send_to(b"ask", (ip(2).ip(), 53)).unwrap();
            let (packet, is_installed) = node.next().await;
            assert!(is_installed && (packet.local, packet.peer) == (ip(1), ip(2)));
            assert!(packet.bytes.ends_with(b"ask"));
            node.deliver(udp_from_peer((53, port), b"answer"));
            assert_eq!(received(&client).unwrap(), b"answer");
            node.deliver(udp_from_peer((53, 8000), b"invited"));
            assert_eq!(received(&server).unwrap(), b"invited");

            let closed = socket(8001);
            node.deliver(udp_from_peer((53, 8001), b"uninvited"));
            assert_eq!(node.dropped(DropReason::FilterScope).await, 1);
            closed.set_nonblocking(true).unwrap();
            assert_eq!(received(&closed).unwrap_err().kind(), ErrorKind::WouldBlock);
            let Snapshot {
                tun_in,
                tun_out,
                delivered,
                ..
            } = node.handle.counters().await;
            assert_eq!(
                (tun_in.packets, tun_out.packets, delivered.len()),
                (1, 2, 1)
            );
        });
    });
}

#[test]
fn pings_leave_and_errors_come_back_to_their_socket() {
    in_world(|world| {
        let host = world.host("a");
        on(&host, async || {
            let mut node = Node::start(Some("")).await;
            let mut ping = Command::new("ping")
                .args(["-6", "-c1", "-W20", &ip(2).to_string()])
                .stdout(std::process::Stdio::null())
                .spawn()
                .unwrap();
            let (packet, _) = node.next().await;
            let mut answer = packet.bytes;
            let (source, destination) = (ip(1).ip().octets(), ip(2).ip().octets());
            answer[8..24].copy_from_slice(&destination);
            answer[24..40].copy_from_slice(&source);
            answer[40] = 129;
            // One's complement: the type grew by one in the upper half of a word.
            let sum = u16::from_be_bytes([answer[42], answer[43]]);
            let (sum, carry) = sum.overflowing_sub(0x100);
            let sum = sum - u16::from(carry);
            answer[42..44].copy_from_slice(&sum.to_be_bytes());
            node.deliver(answer);
            assert!(ping.wait().unwrap().success());

            let client = socket(0);
            client.connect((ip(9).ip(), 53)).unwrap();
            client.send(b"anyone?").unwrap();
            let (packet, is_installed) = node.next().await;
            assert!(!is_installed && packet.peer == ip(9));
            let error = unreachable(&packet.bytes, Unreachable::Prohibited).unwrap();
            node.handle.inject(ip(1), error);
            let refused = received(&client).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
        });
    });
}

#[test]
fn the_first_packet_to_a_sleeping_peer_is_resumed() {
    in_world(|world| {
        on(&world.host("a"), async || {
            let mut node = Node::start(None).await;
            let client = socket(0);
            let port = client.local_addr().unwrap().port();
            client.send_to(b"ask", (ip(2).ip(), 53)).unwrap();
            let (packet, is_installed) = node.next().await;
            assert!(!is_installed);

            node.publish(Some("")).await;
            node.handle.resume(vec![packet.clone()]);

            assert_eq!(node.next().await, (packet, true));
            node.deliver(udp_from_peer((53, port), b"answer"));
            assert_eq!(received(&client).unwrap(), b"answer");
        });
    });
}

/// P-015: once a revocation returns nothing is delivered, and open connections have ended.
#[test]
fn revoking_cuts_open_connections_at_once() {
    in_world(|world| {
        on(&world.host("a"), async || {
            let mut node = Node::start(Some("tcp/8000,udp/8000")).await;
            let listener = TcpListener::bind((ip(1).ip(), 8000)).unwrap();
            let udp = socket(8000);
            let segment = |sequence, ack: Option<u32>, payload: &[u8]| {
                let step = from_peer().tcp(5000, 8000, sequence, 60_000);
                let mut bytes = Vec::new();
                match ack {
                    Some(ack) => step.ack(ack).write(&mut bytes, payload),
                    None => step.syn().write(&mut bytes, payload),
                }
                .unwrap();
                bytes
            };
            node.deliver(segment(1, None, b""));
            let answer = node.next_tcp().await;
            assert!(answer.syn && answer.ack);
            let acknowledge = Some(answer.next_sequence);
            node.deliver(segment(2, acknowledge, b"hello"));
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut hello = [0; 5];
            stream.read_exact(&mut hello).unwrap();
            assert_eq!(node.next_tcp().await.acknowledgment, 7);

            // Data that arrived last and is not acknowledged yet makes the reset miss at first.
            node.deliver(segment(7, acknowledge, b"x"));
            node.publish(None).await;

            node.deliver(segment(8, acknowledge, b"too late"));
            node.deliver(udp_from_peer((5000, 8000), b"too late"));
            // Two and what the kernel asked back.
            assert!(node.dropped(DropReason::NoPeer).await >= 2);
            udp.set_nonblocking(true).unwrap();
            assert_eq!(received(&udp).unwrap_err().kind(), ErrorKind::WouldBlock);
            let mut rest = Vec::new();
            let ended = stream.read_to_end(&mut rest).unwrap_err();
            assert_eq!(ended.kind(), ErrorKind::ConnectionReset);
            assert!(rest.len() <= 1, "{rest:?}");
        });
    });
}

/// Learnt from tailscale#8619: a device that goes away does not leave a spinning worker.
#[test]
fn a_deleted_device_is_reported_and_the_worker_goes_on() {
    in_world(|world| {
        let host = world.host("a");
        on(&host, async || {
            let mut node = Node::start(Some("any")).await;
            let deleted = Command::new("ip").args(["link", "delete", "agn0"]).status();
            assert!(deleted.unwrap().success());

            let message = timeout(PATIENCE, node.from.recv()).await.unwrap();
            assert!(matches!(message, Some(FromWorker::TunGone(local)) if local == ip(1)));
            let before = cpu();
            tokio::time::sleep(Duration::from_millis(300)).await;
            assert!(cpu() - before < 10, "the worker spins");
            node.deliver(udp_from_peer((53, 8000), b"x"));
            assert_eq!(node.dropped(DropReason::TunMissing).await, 1);

            let tun = device(ip(1)).await.unwrap();
            node.handle
                .add_tun(ip(1), Realm::default(), taken(tun))
                .await
                .unwrap();
            let server = socket(8000);
            node.deliver(udp_from_peer((53, 8000), b"back"));
            assert_eq!(received(&server).unwrap(), b"back");
            node.handle.shutdown();
            while node.from.recv().await.is_some() {}
        });
        host.fails(1, "ip link show agn0");
    });
}

/// Returns the CPU time this process has used, in ticks of 10 ms.
fn cpu() -> u64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields = stat.rsplit_once(") ").unwrap().1;
    let ticks = fields.split(' ').skip(11).take(2);
    ticks.map(|t| t.parse::<u64>().unwrap()).sum()
}

#[test]
fn datagrams_cross_the_underlay_in_both_versions() {
    in_world(|world| {
        on(&world.host("a"), async || {
            let mut node = Node::start(None).await;
            for local in [
                SocketAddr::from(([127, 0, 0, 1], 0)),
                (Ipv6Addr::LOCALHOST, 0).into(),
            ] {
                let plain = UdpSocket::bind(local).unwrap();
                plain.set_read_timeout(Some(PATIENCE)).unwrap();
                let address = plain.local_addr().unwrap();

                node.handle.send(vec![(address, b"out".to_vec())]);
                let mut buffer = [0; 9];
                let (length, from) = plain.recv_from(&mut buffer).unwrap();
                assert_eq!(&buffer[..length], b"out");
                plain.send_to(b"in", from).unwrap();

                let message = timeout(PATIENCE, node.from.recv()).await.unwrap().unwrap();
                let FromWorker::Datagrams(datagrams) = message else {
                    panic!("{message:?}");
                };
                assert_eq!(datagrams, [(address, b"in".to_vec())]);
            }
        });
    });
}

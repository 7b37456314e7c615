//! Several workers of one data plane: order within a flow, who carries what, and who starves whom.

use std::{
    collections::BTreeMap,
    env, fs,
    net::{Ipv6Addr, SocketAddr},
    os::fd::AsRawFd,
    time::Duration,
};

use agentnet::policy::Pair;
use nix::{
    libc::{sock_filter, sock_fprog},
    sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
    },
};
use serde_json::Value;

use crate::{
    lab::{A, B, Lab, address, in_lab, start_node, start_node_by, wait_attached},
    process::Proc,
    world::{Host, measured, now, wait_for, wait_within},
};

const WORKERS: &str = "AGENTNET_DATAPLANE_WORKERS=2";

/// Bytes of the transfer; 10 GB take too long here, and were sent by hand (docs/benchmarks.md).
const SENT: u64 = 1 << 29;

/// Says how many bytes instead.
const SENT_BY: &str = "AGENTNET_TEST_BYTES";

/// Far above what any transfer here takes.
const LONGEST: Duration = Duration::from_secs(560);

/// Takes a connection on port 8000 and says how many bytes it brought.
const SINK: &str = "
import socket
server = socket.create_server(('::', 8000), family=socket.AF_INET6)
print('listens')
connection, _ = server.accept()
buffer, total = bytearray(1 << 20), 0
while got := connection.recv_into(buffer):
    total += got
print('got', total)
";

/// Sends so many bytes there.
const SOURCE: &str = "
import socket, sys
connection = socket.create_connection((sys.argv[1], 8000))
chunk, left = bytes(1 << 20), int(sys.argv[2])
while left > 0:
    connection.sendall(chunk[:left])
    left -= len(chunk)
";

/// Sends datagrams as fast as it can.
const FLOOD: &str = "
import socket, sys
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.connect((sys.argv[1], 5000))
data = bytes(1200)
while True:
    try:
        s.send(data)
    except OSError:
        pass
";

/// What the kernel of a host counted of TCP in its network.
fn tcp(host: &Host) -> BTreeMap<String, u64> {
    let text = host.ok("cat /proc/net/netstat /proc/net/snmp");
    let lines = text.lines().collect::<Vec<_>>();
    let all = lines.chunks_exact(2).filter_map(|pair| {
        let (kind, names) = pair[0].split_once(": ")?;
        let (_, values) = pair[1].split_once(": ")?;
        let is_tcp = ["Tcp", "TcpExt"].contains(&kind);
        let both = names
            .split(' ')
            .zip(values.split(' '))
            .filter(move |_| is_tcp);
        Some(both.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?))))
    });
    all.flatten().collect()
}

/// Returns the ticks of CPU time that each worker of a node has used.
fn worked(node: &Proc) -> [u64; 2] {
    let mut ticks = [0; 2];
    for task in fs::read_dir(format!("/proc/{}/task", node.id())).unwrap() {
        let stat = fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
        let (name, fields) = stat.rsplit_once(") ").unwrap();
        let worker = name.split_once("(dataplane-");
        if let Some(worker) = worker.map(|(_, number)| number.parse::<usize>().unwrap()) {
            let used = fields.split(' ').skip(11).take(2);
            ticks[worker] = used.map(|t| t.parse::<u64>().unwrap()).sum();
        }
    }
    ticks
}

/// Starts both nodes anew, each with two workers.
fn restart(lab: &mut Lab) {
    (lab.node_a, lab.node_b) = (None, None);
    lab.node_a = Some(start_node_by(&lab.site.a, WORKERS));
    lab.node_b = Some(start_node_by(&lab.site.b, WORKERS));
    wait_attached(&lab.site.a);
    wait_attached(&lab.site.b);
}

/// Waits until `from` has a data channel of its own to its only peer at `to`.
fn wait_for_channel(from: &Host, to: &str) {
    wait_for("there is a channel", || {
        from.run(&format!("ping -c 1 -W 1 {to}"));
        let peers = from.ok("agentnet peers --json");
        let peers: Value = serde_json::from_str(&peers).unwrap();
        let peer = &peers["peers"][0];
        peer["suite"].is_string() && peer["path"] != "relay"
    });
}

fn listening(host: &Host) -> Proc {
    let sink = host.start(&format!("exec python3 -c \"{SINK}\""));
    wait_within(LONGEST, "the sink listens", || {
        sink.stdout().contains("listens").then_some(())
    });
    sink
}

/// Sends bytes to the sink at `to`, and returns how long that took.
fn transfer(from: &Host, to: &str, sink: Proc, bytes: u64) -> Duration {
    let start = now();
    let line = format!("exec python3 -c \"{SOURCE}\" {to} {bytes}");
    let sent = from.start(&line).finish(LONGEST);
    assert_eq!(sent.code, 0, "{sent}");
    let got = sink.finish(LONGEST);
    assert!(got.stdout.contains(&format!("got {bytes}\n")), "{got}");
    start.elapsed()
}

/// Issue 4: with two workers a flow is one worker's, at either end, and so keeps its order.
#[test]
fn a_transfer_stays_in_order_and_with_one_worker() {
    in_lab(|lab| {
        restart(lab);
        lab.trust("tcp/8000");
        let b = address(&lab.site.b);
        wait_for_channel(&lab.site.a, &b);
        let (node_a, node_b) = (lab.node_a.as_ref().unwrap(), lab.node_b.as_ref().unwrap());
        let sink = listening(&lab.site.b);
        let before = [tcp(&lab.site.a), tcp(&lab.site.b)];
        let worked_before = [worked(node_a), worked(node_b)];

        let bytes = env::var(SENT_BY).map_or(SENT, |bytes| bytes.parse().unwrap());
        let took = transfer(&lab.site.a, &b, sink, bytes);

        let after = [tcp(&lab.site.a), tcp(&lab.site.b)];
        let counted = |host: usize, name: &str| after[host][name] - before[host][name];
        let names = [
            "TCPOFOQueue",
            "RetransSegs",
            "TCPSACKReorder",
            "TCPTSReorder",
        ];
        let shown = names.map(|name| format!("{name} {}/{}", counted(0, name), counted(1, name)));
        measured(&format!("{bytes} bytes in {took:?}, {}", shown.join(", ")));
        for (node, before) in [node_a, node_b].into_iter().zip(worked_before) {
            let after = worked(node);
            let used = [after[0] - before[0], after[1] - before[1]];
            let (more, less) = (used[0].max(used[1]), used[0].min(used[1]));
            assert!(more > 10 && less * 10 <= more, "{used:?}");
        }
        // Lost segments leave gaps as well; what came late the sender's kernel tells apart.
        for late in ["TCPSACKReorder", "TCPTSReorder", "TCPRenoReorder"] {
            assert_eq!(counted(0, late), 0, "{late}: {shown:?}");
        }
        if counted(0, "RetransSegs") == 0 {
            assert_eq!(counted(1, "TCPOFOQueue"), 0, "{shown:?}");
        }
    });
}

/// Sockets of a node whose packets are its first worker's, and its second one's, and one too many.
const SOCKETS_OF: [u32; 3] = [1, 2, 99];

/// Has the kernel give everything that comes to the node's port of `host` to one of its sockets, or to
/// that of the sender's hash when there is no such one, as kernels without such programs do.
fn give_all_to(host: &Host, socket_number: u32) {
    host.enter(|| {
        let (kind, flags) = (SockType::Datagram, SockFlag::SOCK_CLOEXEC);
        let fd = socket(AddressFamily::Inet6, kind, flags, None).unwrap();
        setsockopt(&fd, sockopt::Ipv6V6Only, &false).unwrap();
        setsockopt(&fd, sockopt::ReusePort, &true).unwrap();
        let port = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 16200));
        bind(fd.as_raw_fd(), &SockaddrStorage::from(port)).unwrap();
        // BPF_RET of a constant; it stays when this socket is closed.
        let mut filter = [sock_filter {
            code: 0x06,
            jt: 0,
            jf: 0,
            k: socket_number,
        }];
        let program = sock_fprog {
            len: 1,
            filter: filter.as_mut_ptr(),
        };
        setsockopt(&fd, sockopt::AttachReusePortCbpf, &program).unwrap();
    });
}

/// Issue 4: whichever worker a packet comes to, it is carried.
#[test]
fn packets_that_come_to_the_wrong_worker_arrive_all_the_same() {
    in_lab(|lab| {
        restart(lab);
        lab.trust("tcp/8000");
        let b = address(&lab.site.b);
        wait_for_channel(&lab.site.a, &b);
        let node_b = lab.node_b.as_ref().unwrap();
        for (number, socket) in SOCKETS_OF.into_iter().enumerate() {
            give_all_to(&lab.site.a, socket);
            give_all_to(&lab.site.b, socket);
            let before = worked(node_b);

            transfer(&lab.site.a, &b, listening(&lab.site.b), 64 << 20);

            let after = worked(node_b);
            let used = [after[0] - before[0], after[1] - before[1]];
            if let Some(mine) = used.get(number) {
                assert!(*mine * 2 > used[0] + used[1], "{number}: {used:?}");
            }
        }
    });
}

/// Returns the lane of the agent on host `one` and that on host `other`.
fn lane(one: &Host, other: &Host) -> u8 {
    let pair = Pair {
        local: address(one).parse().unwrap(),
        peer: address(other).parse().unwrap(),
    };
    pair.lane()
}

/// Issue 4: what one peer sends arrives though another floods beside it, by the same worker even: what
/// is too much for the worker is lost to the one who sends too much.
#[test]
fn a_flooding_peer_does_not_silence_another() {
    in_lab(|lab| {
        restart(lab);
        let (a, b, public) = (&lab.site.a, &lab.site.b, &lab.site.public);
        let _node = start_node(public);
        // Names until one's key makes another lane of the same worker.
        let names = (0..).map(|n| format!("p{n}"));
        let name = names.into_iter().find(|name| {
            public.ok(&format!(
                "agentnet join --token-file /mnt/all.token --name {name}"
            ));
            wait_attached(public);
            let (flooded, flooding) = (lane(a, b), lane(public, b));
            let is_found = flooded != flooding && flooded % 2 == flooding % 2;
            if !is_found {
                public.ok(&format!("agentnet leave --agent {name}.acme.agent"));
            }
            is_found
        });
        let name = format!("{}.acme.agent", name.unwrap());
        lab.trust("tcp/8000");
        public.ok(&format!("agentnet trust request {B}"));
        wait_for("p's request arrives", || {
            b.ok("agentnet trust pending --json").contains(&name)
        });
        b.ok(&format!("agentnet trust approve {name} --allow udp/5000"));
        let address = address(b);
        wait_for_channel(a, &address);
        wait_for("p reaches b", || {
            public.run(&format!("ping -c 1 -W 1 {address}")).code == 0
        });
        let _drain = b.udp("[::]:5000");
        let bytes = 32 << 20;

        let alone = transfer(a, &address, listening(b), bytes);
        let flood = public.start(&format!("exec python3 -c \"{FLOOD}\" {address}"));
        let before = counted(b, public);
        wait_for("the flood arrives", || {
            counted(b, public) > before + 1_000_000
        });
        let before = counted(b, public);
        let sent_before = tcp(a);
        let flooded = transfer(a, &address, listening(b), bytes);
        let again = tcp(a)["RetransSegs"] - sent_before["RetransSegs"];
        let beside = counted(b, public) - before;
        drop(flood);

        let kept = alone.as_secs_f64() / flooded.as_secs_f64();
        assert!(again < 100, "{again} segments of the other peer were lost");
        measured(&format!(
            "{A}: {bytes} bytes in {alone:?} alone, {flooded:?} beside a flood, {kept:.2} of that \
             rate; the flood brought {beside} bytes meanwhile; {again} segments were sent again"
        ));
    });
}

/// Returns how many bytes `host` has had from its peer on host `peer`.
fn counted(host: &Host, peer: &Host) -> u64 {
    let peers = host.ok("agentnet peers --json");
    let peers: Value = serde_json::from_str(&peers).unwrap();
    let address = address(peer);
    let found = peers["peers"].as_array().unwrap().iter();
    let mut found = found.filter(|found| found["address"] == address.as_str());
    found.next().unwrap()["rx_bytes"].as_u64().unwrap()
}

/// What is not permitted is said once, with what would permit it, and the node works.
#[test]
fn a_node_that_may_not_run_in_real_time_says_so_and_works() {
    in_lab(|lab| {
        lab.node_a = None;
        let node = start_node_by(&lab.site.a, "AGENTNET_DATAPLANE_REALTIME=true");
        wait_attached(&lab.site.a);

        // Root of a user namespace has no say in the machine's scheduling.
        let said = node.stderr();
        assert_eq!(said.matches("CAP_SYS_NICE").count(), 2, "{said}");
        assert_eq!(
            said.matches("does not run in real time").count(),
            1,
            "{said}"
        );
        lab.node_a = Some(node);
        lab.trust("tcp/8000");
        let _server = lab.serve_page();
        lab.page_within(Duration::from_secs(20), "the page");
    });
}

//! What the kernel cuts and merges for a node: with and without, the same arrives, well-formed and
//! with what routers said of congestion.

use std::time::Duration;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use serde_json::Value;

use crate::{
    capture::{Capture, Frame},
    lab::{B, Lab, address, in_lab, start_node_by, start_node_with, wait_attached},
    world::{Host, wait_for, wait_within},
};

/// Far above what any transfer here takes.
const LONGEST: Duration = Duration::from_secs(100);

/// Length of the file that is fetched, and of one whose packets are all looked at.
const FILE: usize = 32 << 20;
const CHECKED: usize = 4 << 20;

/// What a node is told that leaves the kernel out of it.
const WITHOUT: &str = "AGENTNET_UDP_OFFLOAD=false";

/// Most bytes of an Ethernet frame here.
const ETHERNET: usize = 1514;

/// Starts both nodes anew, each with more environment.
fn restart(lab: &mut Lab, environments: [&str; 2]) {
    (lab.node_a, lab.node_b) = (None, None);
    lab.node_a = Some(start_node_by(&lab.site.a, environments[0]));
    lab.node_b = Some(start_node_by(&lab.site.b, environments[1]));
    wait_attached(&lab.site.a);
    wait_attached(&lab.site.b);
}

/// Waits until data goes by a channel, by the gateway or not.
#[track_caller]
fn wait_for_channel(lab: &Lab, by_relay: bool) {
    wait_for("there is a channel", || {
        let is_there = lab.page_arrives();
        let peers = lab.site.a.ok("agentnet peers --json");
        let peers: Value = serde_json::from_str(&peers).unwrap();
        let peer = &peers["peers"][0];
        is_there && peer["suite"].is_string() && (peer["path"] == "relay") == by_relay
    });
}

fn write_file(lab: &Lab, length: usize) {
    let line = format!("head -c {length} /dev/urandom > /mnt/www/big");
    lab.site.b.ok(&line);
}

/// A fetches the file from B, and it is whole.
#[track_caller]
fn fetch(lab: &Lab) {
    let curl = format!("exec curl -sS -o /mnt/got http://{B}:8000/big");
    let done = lab.site.a.start(&curl).finish(LONGEST);
    assert_eq!(done.code, 0, "{}", done.stderr);
    lab.site.a.ok("cmp /mnt/got /mnt/www/big");
}

/// Whether a virtio header stands before packets of the host's TUN (IFF_VNET_HDR of linux/if_tun.h).
fn has_header(host: &Host) -> bool {
    let flags = host.ok("cat /sys/class/net/agn0/tun_flags");
    let digits = flags.trim_start_matches("0x");
    u32::from_str_radix(digits, 16).unwrap() & 0x4000 != 0
}

/// Returns the long datagrams from or to a node's port that a capture saw.
fn datagrams(frames: &[Frame]) -> impl Iterator<Item = &Frame> {
    frames.iter().filter(|frame| {
        let udp = frame.udp();
        udp.is_some_and(|(from, to, data)| [from, to].contains(&16200) && data.len() > 600)
    })
}

/// Issue 4: a switch takes the kernel's help away; the same arrives.
#[test]
fn without_offloads_the_same_arrives() {
    in_lab(|lab| {
        lab.trust("tcp/8000");
        let _server = lab.serve_page();
        write_file(lab, FILE);
        for (environments, headers, is_cut) in [
            ([WITHOUT, WITHOUT], [false, false], false),
            (["A=b", WITHOUT], [true, false], false),
            ([WITHOUT, "A=b"], [false, true], true),
        ] {
            restart(lab, environments);
            wait_for_channel(lab, false);
            let (a, b) = (&lab.site.a, &lab.site.b);
            assert_eq!([has_header(a), has_header(b)], headers);
            let capture = lab.site.rb.capture();

            fetch(lab);

            // What B sends its router sees as it left B: cut there, or not.
            let frames = capture.finish();
            let longest = datagrams(&frames).map(|frame| frame.bytes.len()).max();
            assert_eq!(longest.unwrap() > ETHERNET, is_cut, "{environments:?}");
            let said = lab.node_b.as_ref().unwrap().stderr();
            assert!(
                said.contains("Bytes of buffers of the UDP socket"),
                "{said}"
            );
        }
    });
}

/// The one's complement sum over `parts`, each of an even length but the last.
fn sum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let word = |two: &[u8]| u32::from(two[0]) << 8 | u32::from(*two.get(1).unwrap_or(&0));
    let mut sum = words.map(word).sum::<u32>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}

/// What a packet's checksum is like.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Sum {
    Bad,
    Good,
    /// The kernel is to finish it: it is of the addresses and length only.
    Unfinished,
}

/// Checks the TCP or UDP checksum of a packet; None for any other.
fn check(packet: &[u8]) -> Option<(bool, Sum)> {
    let sliced = SlicedPacket::from_ip(packet).ok()?;
    let Some(NetSlice::Ipv6(ip)) = &sliced.net else {
        return None;
    };
    let (is_tcp, said) = match sliced.transport? {
        TransportSlice::Tcp(tcp) => (true, tcp.checksum()),
        TransportSlice::Udp(udp) => (false, udp.checksum()),
        TransportSlice::Icmpv4(_) | TransportSlice::Icmpv6(_) | TransportSlice::Igmp(_) => {
            return None;
        }
    };
    let transport = &packet[40..];
    let length = u32::try_from(transport.len()).unwrap().to_be_bytes();
    let number = [0, 0, 0, if is_tcp { 6 } else { 17 }];
    let header = ip.header();
    let (from, to) = (header.source(), header.destination());
    let pseudo = sum(&[&from, &to, &length, &number]);
    let whole = sum(&[&pseudo.to_be_bytes(), transport]);
    let found = match (whole, said == pseudo) {
        (0xffff, _) => Sum::Good,
        (_, true) => Sum::Unfinished,
        (_, false) => Sum::Bad,
    };
    Some((is_tcp, found))
}

/// Has A send datagrams of several sizes to B until all of them came.
fn send_datagrams(lab: &Lab) {
    let (ours, theirs) = (lab.site.a.udp("[::]:0"), lab.site.b.udp("[::]:5000"));
    let to = format!("[{}]:5000", address(&lab.site.b));
    for length in [1, 2, 99, 700, 1300, 8000, 8001] {
        wait_within(LONGEST, "a datagram arrives", || {
            for _ in 0..4 {
                ours.send_to(&vec![7; length], &to).unwrap();
            }
            // What came late of the one before is passed over.
            let mut buffer = [0; 9000];
            let mut got = std::iter::from_fn(|| theirs.recv(&mut buffer).ok());
            got.any(|got| got == length).then_some(())
        });
    }
}

/// Returns what was written into TUNs of a host, as TCP and UDP.
fn written(capture: Capture) -> [Vec<Sum>; 2] {
    let frames = capture.finish();
    let into = frames.iter().filter(|frame| frame.into_tun);
    let checked = into.filter_map(|frame| check(&frame.bytes));
    let (tcp, udp) = checked.partition::<Vec<_>, _>(|(is_tcp, _)| *is_tcp);
    [tcp, udp].map(|all| all.into_iter().map(|(_, sum)| sum).collect())
}

/// Issue 4: no packet that is handed to a TUN has a bad checksum, merged or not.
#[test]
fn what_is_written_to_devices_has_good_checksums() {
    in_lab(|lab| {
        lab.trust("tcp/8000,udp/5000");
        let _server = lab.serve_page();
        write_file(lab, CHECKED);
        // With and without super-packets; what the kernel sends comes apart and complete, or not.
        for environments in [["A=b", "A=b"], ["A=b", WITHOUT], [WITHOUT, "A=b"]] {
            restart(lab, environments);
            wait_for_channel(lab, false);
            let captures = [&lab.site.a, &lab.site.b].map(Host::capture);

            send_datagrams(lab);
            fetch(lab);

            for (capture, environment) in captures.into_iter().zip(environments) {
                let [tcp, udp] = written(capture);
                let all = [tcp.clone(), udp].concat();
                assert!(
                    tcp.len() > 20 && !all.contains(&Sum::Bad),
                    "{environments:?}"
                );
                if environment == WITHOUT {
                    assert!(all.iter().all(|sum| *sum == Sum::Good), "{environments:?}");
                }
            }
        }
        for host in [&lab.site.a, &lab.site.b] {
            for name in ["TcpInCsumErrors", "UdpInCsumErrors", "Udp6InCsumErrors"] {
                let counted = host.run(&format!("nstat -asz {name} | grep -w {name}"));
                let value = counted.stdout.split_whitespace().nth(1);
                assert_eq!(value, Some("0"), "{name}: {counted}");
            }
        }
    });
}

/// Has a router mark some of what it forwards and may mark.
fn mark(router: &Host) {
    router.ok(
        "nft add chain ip router congested '{ type filter hook forward priority -2; }' && \
         nft add rule ip router congested meta l4proto udp ip ecn ect0 limit rate 20/second ip ecn set ce",
    );
}

/// Returns a counter of the kernel of `host`.
fn counted(host: &Host, file: &str, name: &str) -> u64 {
    let text = host.ok(&format!("cat /proc/net/{file}"));
    if file == "snmp6" {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap();
        return line.trim().parse().unwrap();
    }
    let lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let [names, values] = lines.collect::<Vec<_>>()[..] else {
        panic!("{text}");
    };
    let at = names.split(' ').position(|found| found == name).unwrap();
    values.split(' ').nth(at).unwrap().parse().unwrap()
}

/// Fetches a file while B's router marks, and asserts that both ends' kernels know.
#[track_caller]
fn marks_arrive(lab: &Lab) {
    let (a, b) = (&lab.site.a, &lab.site.b);
    for host in [a, b] {
        host.ok("sysctl -qw net.ipv4.tcp_ecn=1");
    }
    mark(&lab.site.rb);

    fetch(lab);

    // Inside; the packets outside are of IPv4.
    assert!(counted(a, "snmp6", "Ip6InCEPkts") > 0);
    assert!(counted(b, "netstat", "TCPDeliveredCE") > 0);
}

/// RFC 6040: what a router says of congestion reaches the receiver, and by it the sender.
#[test]
fn marks_of_a_router_reach_both_ends() {
    in_lab(|lab| {
        lab.trust("tcp/8000");
        let _server = lab.serve_page();
        write_file(lab, FILE);
        wait_for_channel(lab, false);

        marks_arrive(lab);
    });
}

/// A gateway tells the next leg what routers said on the one before.
#[test]
fn marks_of_a_router_pass_a_gateway() {
    in_lab(|lab| {
        (lab.node_a, lab.node_b) = (None, None);
        lab.node_a = Some(start_node_with(&lab.site.a, "--path relay"));
        lab.node_b = Some(start_node_with(&lab.site.b, "--path relay"));
        wait_attached(&lab.site.a);
        wait_attached(&lab.site.b);
        lab.trust("tcp/8000");
        let _server = lab.serve_page();
        write_file(lab, FILE);
        wait_for_channel(lab, true);

        marks_arrive(lab);
    });
}

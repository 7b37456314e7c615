use std::collections::BTreeSet;

use etherparse::{Ipv6HeaderSlice, PacketBuilder, TcpHeaderSlice, UdpHeaderSlice};
use proptest::prelude::*;

use super::*;
use crate::dataplane::offload::header::Gso;
use crate::id::OverlayIp;
use crate::wire::ip::IPV6_HEADER;

const BOTH: Takes = Takes {
    tcp: true,
    udp: true,
};

fn ip(last: u16) -> OverlayIp {
    format!("fd11:0:0:1::{last:x}").parse().unwrap()
}

/// What a flow of packets is made of.
#[derive(Clone, Debug)]
struct Stream {
    gso: Gso,
    ports: (u16, u16),
    sequence: u32,
    /// Of each whole packet.
    size: usize,
    payload: Vec<u8>,
    push: bool,
    fin: bool,
    options: bool,
}

fn stream() -> impl Strategy<Value = Stream> {
    let payload = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 1..9000),
        1 => prop::collection::vec(any::<u8>(), 0..4),
        1 => prop::collection::vec(any::<u8>(), 60_000..65_000),
    ];
    let size = prop_oneof![Just(1228_usize), 1_usize..40, 500_usize..1500];
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    (any::<(u16, u16, u32)>(), size, payload, flags).prop_map(
        |((from, to, sequence), size, payload, (udp, push, fin, options))| {
            let gso = if udp { Gso::Udp } else { Gso::Tcp };
            // No more packets than the kernel makes of one datagram, and a bounded test.
            let most = payload.len().div_ceil(if udp { 64 } else { 200 }).max(1);
            Stream {
                gso,
                ports: (from, to),
                sequence,
                size: size.max(most),
                payload,
                push,
                fin,
                options,
            }
        },
    )
}

/// Makes the super-packet as a kernel gives it, its checksum left to us.
fn super_packet(stream: &Stream) -> (VirtioHeader, Vec<u8>) {
    let step = PacketBuilder::ipv6(ip(1).ip().octets(), ip(2).ip().octets(), 64);
    let mut bytes = Vec::new();
    let (from, to) = stream.ports;
    if stream.gso == Gso::Udp {
        step.udp(from, to)
            .write(&mut bytes, &stream.payload)
            .unwrap();
    } else {
        let mut step = step.tcp(from, to, stream.sequence, 1000).ack(77);
        if stream.push {
            step = step.psh();
        }
        if stream.fin {
            step = step.fin();
        }
        if stream.options {
            step = step
                .options_raw(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2])
                .unwrap();
        }
        step.write(&mut bytes, &stream.payload).unwrap();
    }
    let header = bytes.len() - stream.payload.len();
    let (next_header, field) = match stream.gso {
        Gso::Udp => (17, 46),
        Gso::Tcp | Gso::None => (6, 56),
    };
    let sum = checksum::unfinished(&bytes, next_header, bytes.len() - IPV6_HEADER);
    bytes[field..field + 2].copy_from_slice(&sum);
    let size = u16::try_from(stream.size).unwrap();
    let whole = stream.payload.len() <= stream.size;
    let gso = if whole { Gso::None } else { stream.gso };
    let mut virtio =
        VirtioHeader::super_packet(stream.gso, 40, u16::try_from(header).unwrap(), size);
    if gso == Gso::None {
        let mut raw = virtio.encode();
        raw[1] = 0;
        virtio = VirtioHeader::parse(&raw);
    }
    (virtio, bytes)
}

fn pieces(virtio: &VirtioHeader, packet: Vec<u8>) -> Vec<Vec<u8>> {
    pieces_of(virtio, packet, Some(usize::MAX)).unwrap()
}

fn pieces_of(
    virtio: &VirtioHeader,
    mut packet: Vec<u8>,
    mtu: Option<usize>,
) -> Result<Vec<Vec<u8>>, Unfit> {
    let mut pieces = Vec::new();
    split(virtio, &mut packet, mtu, |piece| {
        pieces.push(piece.to_vec());
    })?;
    Ok(pieces)
}

/// Reads a packet by another implementation, checksum included, and returns its payload.
fn read(packet: &[u8]) -> (Vec<u8>, Option<TcpHeaderSlice<'_>>) {
    let ip = Ipv6HeaderSlice::from_slice(packet).unwrap();
    let rest = &packet[IPV6_HEADER..];
    assert_eq!(usize::from(ip.payload_length()), rest.len());
    if ip.next_header().0 == 17 {
        let udp = UdpHeaderSlice::from_slice(rest).unwrap();
        assert_eq!(usize::from(udp.length()), rest.len());
        let right = udp
            .to_header()
            .calc_checksum_ipv6(&ip.to_header(), &rest[8..])
            .unwrap();
        assert_eq!(udp.checksum(), right);
        return (rest[8..].to_vec(), None);
    }
    let tcp = TcpHeaderSlice::from_slice(rest).unwrap();
    let payload = &rest[usize::from(tcp.data_offset()) * 4..];
    let right = tcp
        .to_header()
        .calc_checksum_ipv6(&ip.to_header(), payload)
        .unwrap();
    assert_eq!(tcp.checksum(), right);
    (payload.to_vec(), Some(tcp))
}

/// Merges packets as they arrive in one burst, and returns what the kernel would get.
fn merge(packets: &[Vec<u8>]) -> Vec<(VirtioHeader, Vec<u8>)> {
    let mut buffer = Vec::new();
    let mut merger = Merger::default();
    for packet in packets {
        let start = buffer.len();
        buffer.extend(packet);
        merger.add(ip(2), &buffer, start..buffer.len(), BOTH);
    }
    let mut made = Vec::new();
    merger.drain(|run| {
        let virtio = VirtioHeader::parse(&run.head(&mut buffer));
        let parts: Vec<&[u8]> = run.parts(&buffer).collect();
        assert_eq!(parts.len(), run.packets());
        made.push((virtio, parts.concat()));
    });
    made
}

proptest! {
    /// What local programs sent is what is cut, in packets that are right by themselves.
    #[test]
    fn packets_that_are_cut_carry_the_bytes_of_the_whole(stream in stream()) {
        let (virtio, packet) = super_packet(&stream);

        let pieces = pieces(&virtio, packet);

        let mut payload = Vec::new();
        let mut sequence = stream.sequence;
        for (n, piece) in pieces.iter().enumerate() {
            let (part, tcp) = read(piece);
            let is_last = n + 1 == pieces.len();
            prop_assert!(part.len() == stream.size || is_last);
            if let Some(tcp) = tcp {
                prop_assert_eq!(tcp.sequence_number(), sequence);
                prop_assert_eq!(tcp.psh(), stream.push && is_last);
                prop_assert_eq!(tcp.fin(), stream.fin && is_last);
                sequence = sequence.wrapping_add(u32::try_from(part.len()).unwrap());
            }
            payload.extend(part);
        }
        prop_assert_eq!(payload, stream.payload);
    }

    /// What arrives is what a local program gets: cut again, merged packets are those that arrived.
    #[test]
    fn merged_packets_stand_for_those_that_arrived(
        streams in prop::collection::vec(stream(), 1..4),
        order in prop::collection::vec(0_usize..4, 0..200),
        lost in prop::collection::vec(any::<prop::sample::Index>(), 0..3),
    ) {
        let mut queues: Vec<Vec<Vec<u8>>> = streams
            .iter()
            .map(|stream| {
                let (virtio, packet) = super_packet(stream);
                pieces(&virtio, packet)
            })
            .collect();
        // Flows interleaved, some packets missing or out of order.
        let mut arriving = Vec::new();
        for choice in order {
            if let Some(queue) = queues.get_mut(choice) && !queue.is_empty() {
                arriving.push(queue.remove(0));
            }
        }
        arriving.extend(queues.into_iter().flatten());
        for index in lost {
            if !arriving.is_empty() {
                let packet = arriving.remove(index.index(arriving.len()));
                if packet.len() % 2 == 0 {
                    arriving.push(packet);
                }
            }
        }

        let made = merge(&arriving);

        let again: Vec<Vec<u8>> = made
            .into_iter()
            .flat_map(|(virtio, packet)| pieces(&virtio, packet))
            .collect();
        let by_flow = |packets: &[Vec<u8>]| {
            let mut packets: Vec<Vec<u8>> = packets.to_vec();
            packets.sort_by_key(|packet| packet[40..44].to_vec());
            packets
        };
        // PSH of packets in the middle of a run does not come back; nothing else changes.
        let plain = |mut packets: Vec<Vec<u8>>| {
            for packet in packets.iter_mut().filter(|packet| packet[6] == 6) {
                packet[53] &= !0x08;
                packet[56..58].fill(0);
            }
            packets
        };
        for packet in &again {
            read(packet);
        }
        prop_assert_eq!(plain(by_flow(&again)), plain(by_flow(&arriving)));
    }

    /// RFC 8899: segments are no longer than the path carries, whatever size the kernel made them for; of
    /// datagrams it is told to make them shorter, once they are longer than IPv6 promises too.
    #[test]
    fn what_is_cut_to_a_path_fits_it(stream in stream(), mtu in 200_usize..2000) {
        let (virtio, packet) = super_packet(&stream);
        let longest = (packet.len() - stream.payload.len()) + stream.size.min(stream.payload.len());

        let Ok(pieces) = pieces_of(&virtio, packet, Some(mtu)) else {
            prop_assert!(stream.gso == Gso::Udp && longest > mtu.max(DEFAULT_MTU));
            return Ok(());
        };

        let most = if stream.gso == Gso::Udp { mtu.max(DEFAULT_MTU) } else { mtu };
        prop_assert!(pieces.iter().all(|piece| piece.len() <= most));
        let payload: Vec<u8> = pieces.iter().flat_map(|piece| read(piece).0).collect();
        prop_assert_eq!(payload, stream.payload);
        let starts = pieces.iter().filter_map(|piece| Some(read(piece).1?.sequence_number()));
        prop_assert!(starts.collect::<BTreeSet<_>>().len() == pieces.len() || stream.gso == Gso::Udp);
    }

    /// The kernel's word is checked like anybody's.
    #[test]
    fn nonsense_is_refused_without_harm(
        raw: [u8; 10], mut packet in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let virtio = VirtioHeader::parse(&raw);
        prop_assert_eq!(virtio.encode(), raw);
        let mut longest = 0;
        let _refused = split(&virtio, &mut packet, Some(usize::MAX), |piece| longest = longest.max(piece.len()));
        prop_assert!(longest <= packet.len());
        merge(&[packet.clone(), packet]);
    }
}

/// RFC 9293 section 3.7.1: both ends make segments that fit the path, where one is known.
#[test]
fn a_syn_asks_for_no_more_than_the_path_carries() {
    for (mss, mtu, expected) in [(8860, 1440, 1380), (1220, 1440, 1220), (1381, 1440, 1380)] {
        let step = PacketBuilder::ipv6(ip(1).ip().octets(), ip(2).ip().octets(), 64);
        let [high, low] = u16::to_be_bytes(mss);
        let step = step.tcp(1000, 2000, 5, 1000).syn();
        let step = step.options_raw(&[1, 3, 3, 7, 2, 4, high, low]).unwrap();
        let mut packet = Vec::new();
        step.write(&mut packet, &[]).unwrap();
        let mut data = packet.clone();
        data[IPV6_HEADER + 13] = 0x10;
        let before = data.clone();

        clamp(&VirtioHeader::default(), &mut packet, mtu);
        clamp(&VirtioHeader::default(), &mut data, mtu);

        let (_, tcp) = read(&packet);
        let asked = tcp.unwrap().options()[6..8].to_vec();
        assert_eq!(asked, u16::to_be_bytes(expected));
        assert_eq!(data, before);
    }
}

fn segment(sequence: u32, payload: usize) -> Stream {
    Stream {
        gso: Gso::Tcp,
        ports: (1000, 2000),
        sequence,
        size: 1200,
        payload: vec![5; payload],
        push: false,
        fin: false,
        options: true,
    }
}

fn packets(streams: &[Stream]) -> Vec<Vec<u8>> {
    let cut = |stream: &Stream| {
        let (virtio, packet) = super_packet(stream);
        pieces(&virtio, packet)
    };
    streams.iter().flat_map(cut).collect()
}

#[test]
fn a_burst_of_one_flow_is_one_write() {
    let made = merge(&packets(&[segment(u32::MAX - 5000, 40_000)]));

    assert_eq!(made.len(), 1);
    assert_eq!(made[0].0.gso(), Some(Gso::Tcp));
    assert_eq!(made[0].0.size, 1200);
}

#[test]
fn what_differs_is_not_merged() {
    let whole = packets(&[segment(0, 3600)]);
    // By byte of the packet: traffic class (ECN), flow label, hop limit, acknowledgment, window,
    // urgent pointer, options.
    for at in [1, 3, 7, 51, 55, 59, 71] {
        let mut other = whole.clone();
        other[1][at] ^= 0x10;
        fix(&mut other[1]);
        assert_eq!(merge(&other).len(), 3, "byte {at}");
    }
    // SYN, RST, URG, ECE, CWR and the lack of ACK.
    for flag in [0x02, 0x04, 0x20, 0x40, 0x80, 0x10, 0x01] {
        let mut other = whole.clone();
        other[1][53] ^= flag;
        fix(&mut other[1]);
        assert_eq!(merge(&other).len(), 3, "flag {flag:x}");
    }
    let mut broken = whole.clone();
    broken[1][100] ^= 1;
    assert_eq!(merge(&broken).len(), 3);
    let mut pushed = whole;
    pushed[1][53] |= 0x08;
    fix(&mut pushed[1]);
    assert_eq!(merge(&pushed).len(), 2);
}

/// Puts the right checksum into a changed packet.
fn fix(packet: &mut [u8]) {
    packet[56..58].fill(0);
    let sum = checksum::transport(&packet[..40], 6, &packet[40..]);
    packet[56..58].copy_from_slice(&sum);
}

#[test]
fn packets_with_extension_headers_stand_alone() {
    let mut packet = packets(&[segment(0, 1200)]).remove(0);
    let options = [6, 0, 1, 4, 0, 0, 0, 0];
    packet.splice(40..40, options);
    packet[6] = 60;
    let length = u16::try_from(packet.len() - 40).unwrap();
    packet[4..6].copy_from_slice(&length.to_be_bytes());

    assert_eq!(merge(&[packet.clone(), packet]).len(), 2);
}

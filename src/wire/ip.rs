#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

use std::net::Ipv6Addr;

use etherparse::{IpNumber, Ipv6HeaderSlice, TcpHeaderSlice, UdpHeaderSlice, ip_number};

use crate::wire::drop::DropReason;
use crate::wire::extensions::Chain;

pub use crate::wire::extensions::Fragment;

/// Bytes of the fixed header, RFC 8200 section 3.
pub const IPV6_HEADER: usize = 40;

/// Next headers of the overlay's own control messages (RFC 3692); never between session and TUN.
pub const CONTROL_NEXT_HEADERS: [u8; 2] = [253, 254];

/// A whole IPv6 packet of which everything the filter decides by has been read.
///
/// A packet whose transport cannot be found for certain does not parse: nothing slips past a
/// filter inside a header that one side understands and the other does not.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ipv6View<'a> {
    bytes: &'a [u8],
    source: Ipv6Addr,
    destination: Ipv6Addr,
    fragment: Option<Fragment>,
    transport: Transport,
}

/// What the packet carries.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Transport {
    Tcp(Tcp),
    Udp(Ports),
    Icmp6Echo {
        kind: Echo,
        id: u16,
    },
    /// An error about a packet, RFC 4443 section 2.1.
    Icmp6Error(Quoted),
    /// Any other ICMPv6 message, by type: neighbour discovery, multicast listeners, unknown ones.
    Icmp6Other(u8),
    /// A fragment that is not the first: its transport header went before.
    LaterFragment,
    /// Next header 59: nothing follows.
    NoNext,
    /// Any other next header, encrypted and tunnelled packets included.
    Other(u8),
}

/// Source and destination port.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Ports {
    pub source: u16,
    pub destination: u16,
}

/// What connection tracking needs of a TCP header.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Tcp {
    pub ports: Ports,
    pub syn: bool,
    pub ack: bool,
    pub fin: bool,
    pub rst: bool,
    pub sequence: u32,
    /// Meaningful with `ack` only.
    pub acknowledgment: u32,
    /// The sequence number after this segment: its payload, SYN and FIN counted.
    pub next_sequence: u32,
}

/// Direction of an echo message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Echo {
    Reply,
    Request,
}

/// The packet an ICMPv6 error is about, as far as it was quoted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Quoted {
    pub source: Ipv6Addr,
    pub destination: Ipv6Addr,
    pub flow: QuotedFlow,
}

/// The flow of a quoted packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum QuotedFlow {
    Echo { kind: Echo, id: u16 },
    Tcp(Ports),
    Udp(Ports),
    Unknown,
}

impl<'a> Ipv6View<'a> {
    /// Reads a packet that fills `bytes` exactly; what the overlay never carries does not parse.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DropReason> {
        if bytes.first().is_none_or(|b| b >> 4 != 6) {
            return Err(DropReason::IpVersion);
        }
        let header = Ipv6HeaderSlice::from_slice(bytes).map_err(|_| DropReason::IpLength)?;
        let payload = bytes.get(IPV6_HEADER..).ok_or(DropReason::IpLength)?;
        if payload.len() != usize::from(header.payload_length()) {
            return Err(DropReason::IpLength);
        }
        let (source, destination) = (header.source_addr(), header.destination_addr());
        carried(source)?;
        carried(destination)?;
        let chain = Chain::walk(header.next_header(), payload)?;
        let transport = match chain.fragment {
            Some(Fragment { start: 1.., .. }) => Transport::LaterFragment,
            Some(Fragment { start: 0, .. }) | None => transport(&chain)?,
        };
        Ok(Self {
            bytes,
            source,
            destination,
            fragment: chain.fragment,
            transport,
        })
    }

    /// Returns the whole packet.
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Returns the source address.
    pub const fn source(&self) -> Ipv6Addr {
        self.source
    }

    /// Returns the destination address.
    pub const fn destination(&self) -> Ipv6Addr {
        self.destination
    }

    /// Returns the place of this fragment; `None` means the packet is whole.
    pub const fn fragment(&self) -> Option<Fragment> {
        self.fragment
    }

    /// Returns what the packet carries.
    pub const fn transport(&self) -> Transport {
        self.transport
    }
}

/// Refuses addresses that no agent has, so that they need no care further on.
fn carried(address: Ipv6Addr) -> Result<(), DropReason> {
    if address.is_multicast() {
        return Err(DropReason::IpMulticast);
    }
    if address.is_unicast_link_local() {
        return Err(DropReason::IpLinkLocal);
    }
    let embeds_ipv4 = address.to_ipv4().is_some(); // ::1 and :: among them
    if embeds_ipv4 {
        return Err(DropReason::IpAddress);
    }
    Ok(())
}

fn transport(chain: &Chain<'_>) -> Result<Transport, DropReason> {
    let bytes = chain.payload;
    let is_first = chain.fragment.is_some();
    // RFC 7112 again: a first fragment too small for its transport header hides the ports.
    let cut = match is_first {
        true => DropReason::IpFragment,
        false => DropReason::IpTransport,
    };
    match chain.next {
        ip_number::TCP => Ok(Transport::Tcp(tcp(bytes).ok_or(cut)?)),
        ip_number::UDP => {
            let header = UdpHeaderSlice::from_slice(bytes).map_err(|_| cut)?;
            let length = usize::from(header.length());
            if length < header.slice().len() || (!is_first && length > bytes.len()) {
                return Err(DropReason::IpTransport);
            }
            Ok(Transport::Udp(Ports {
                source: header.source_port(),
                destination: header.destination_port(),
            }))
        }
        ip_number::IPV6_ICMP => icmp6(bytes, is_first).ok_or(cut),
        ip_number::IPV6_NO_NEXT_HEADER => Ok(Transport::NoNext),
        other => Ok(Transport::Other(other.0)),
    }
}

fn tcp(bytes: &[u8]) -> Option<Tcp> {
    let header = TcpHeaderSlice::from_slice(bytes).ok()?;
    let payload = bytes.len().checked_sub(header.slice().len())?;
    let length = u32::try_from(payload).ok()? + u32::from(header.syn()) + u32::from(header.fin());
    Some(Tcp {
        ports: Ports {
            source: header.source_port(),
            destination: header.destination_port(),
        },
        syn: header.syn(),
        ack: header.ack(),
        fin: header.fin(),
        rst: header.rst(),
        sequence: header.sequence_number(),
        acknowledgment: header.acknowledgment_number(),
        next_sequence: header.sequence_number().wrapping_add(length),
    })
}

fn icmp6(bytes: &[u8], is_fragment: bool) -> Option<Transport> {
    let [kind, _code, _, _, a, b, _, _, body @ ..] = bytes else {
        return None;
    };
    let id = u16::from_be_bytes([*a, *b]);
    Some(match *kind {
        // An error never exceeds 1280 bytes (RFC 4443 section 2.4), so a fragmented one is forged.
        1..=4 if !is_fragment => Transport::Icmp6Error(quoted(body)?),
        128 => Transport::Icmp6Echo {
            kind: Echo::Request,
            id,
        },
        129 => Transport::Icmp6Echo {
            kind: Echo::Reply,
            id,
        },
        other => Transport::Icmp6Other(other),
    })
}

/// Reads as much as is there of a packet that may be cut anywhere behind its fixed header.
fn quoted(bytes: &[u8]) -> Option<Quoted> {
    let header = Ipv6HeaderSlice::from_slice(bytes).ok()?;
    let chain = Chain::walk(header.next_header(), bytes.get(IPV6_HEADER..)?);
    let flow = match chain {
        Ok(Chain {
            fragment: Some(Fragment { start: 1.., .. }),
            ..
        })
        | Err(_) => QuotedFlow::Unknown,
        Ok(chain) => quoted_flow(chain.next, chain.payload),
    };
    Some(Quoted {
        source: header.source_addr(),
        destination: header.destination_addr(),
        flow,
    })
}

fn quoted_flow(next: IpNumber, bytes: &[u8]) -> QuotedFlow {
    let &[a, b, c, d, ref rest @ ..] = bytes else {
        return QuotedFlow::Unknown;
    };
    let ports = Ports {
        source: u16::from_be_bytes([a, b]),
        destination: u16::from_be_bytes([c, d]),
    };
    match (next, a, rest) {
        (ip_number::TCP, ..) => QuotedFlow::Tcp(ports),
        (ip_number::UDP, ..) => QuotedFlow::Udp(ports),
        (ip_number::IPV6_ICMP, kind @ (128 | 129), [e, f, ..]) => QuotedFlow::Echo {
            kind: if kind == 128 {
                Echo::Request
            } else {
                Echo::Reply
            },
            id: u16::from_be_bytes([*e, *f]),
        },
        _ => QuotedFlow::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    const A: &str = "fd11:2233:4455:1::a";
    const B: &str = "fd11:2233:4455:1::b";

    fn ip(text: &str) -> Ipv6Addr {
        text.parse().unwrap()
    }

    /// Builds a packet whose fixed header says `next` and which carries `payload`.
    fn raw(next: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x60, 0, 0, 0];
        bytes.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
        bytes.extend([next, 64]);
        bytes.extend(ip(A).octets());
        bytes.extend(ip(B).octets());
        bytes.extend(payload);
        bytes
    }

    fn udp(payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        PacketBuilder::ipv6(ip(A).octets(), ip(B).octets(), 64)
            .udp(1000, 2000)
            .write(&mut bytes, payload)
            .unwrap();
        bytes
    }

    fn udp_segment(payload: &[u8]) -> Vec<u8> {
        udp(payload)[IPV6_HEADER..].to_vec()
    }

    /// Puts an 8-byte extension header whose body is `body` before `rest`.
    fn extension(next: u8, body: [u8; 6], rest: &[u8]) -> Vec<u8> {
        [&[next, 0][..], &body, rest].concat()
    }

    fn fragment(next: u8, start: u16, more: bool, rest: &[u8]) -> Vec<u8> {
        let [c, d] = (start | u16::from(more)).to_be_bytes();
        [&[next, 0, c, d, 0, 0, 0, 7][..], rest].concat()
    }

    fn parsed(bytes: &[u8]) -> Result<Transport, DropReason> {
        Ipv6View::parse(bytes).map(|view| view.transport())
    }

    const PORTS: Ports = Ports {
        source: 1000,
        destination: 2000,
    };

    #[test]
    fn ports_and_flags_are_read() {
        let mut syn = Vec::new();
        PacketBuilder::ipv6(ip(A).octets(), ip(B).octets(), 64)
            .tcp(1000, 2000, 7, 9)
            .syn()
            .write(&mut syn, b"abc")
            .unwrap();

        let Ok(Transport::Tcp(tcp)) = parsed(&syn) else {
            panic!("not TCP");
        };
        assert_eq!((tcp.ports, tcp.syn, tcp.ack), (PORTS, true, false));
        assert_eq!((tcp.sequence, tcp.next_sequence), (7, 11));
        let bytes = udp(b"x");
        let view = Ipv6View::parse(&bytes).unwrap();
        assert_eq!(view.transport(), Transport::Udp(PORTS));
        assert_eq!((view.source(), view.destination()), (ip(A), ip(B)));
    }

    #[test]
    fn extension_headers_do_not_hide_the_transport() {
        let pad = [1, 4, 0, 0, 0, 0];
        let inner = udp_segment(b"x");
        let both = extension(60, pad, &extension(17, pad, &inner));
        let visited = extension(17, [4, 0, 0, 0, 0, 0], &inner);

        assert_eq!(parsed(&raw(0, &both)), Ok(Transport::Udp(PORTS)));
        assert_eq!(parsed(&raw(43, &visited)), Ok(Transport::Udp(PORTS)));
        assert_eq!(
            parsed(&raw(44, &fragment(17, 0, false, &inner))),
            Ok(Transport::Udp(PORTS))
        );
    }

    #[test]
    fn fragments_are_told_apart() {
        let whole = udp_segment(&[0; 40]);
        let first = raw(44, &fragment(17, 0, true, &whole[..24]));
        let last = raw(44, &fragment(17, 24, false, &whole[24..]));

        let view = Ipv6View::parse(&first).unwrap();
        assert_eq!(view.transport(), Transport::Udp(PORTS));
        assert_eq!(
            view.fragment(),
            Some(Fragment {
                id: 7,
                start: 0,
                end: 24
            })
        );
        let view = Ipv6View::parse(&last).unwrap();
        assert_eq!(view.transport(), Transport::LaterFragment);
        assert_eq!(
            view.fragment(),
            Some(Fragment {
                id: 7,
                start: 24,
                end: 48
            })
        );
    }

    /// RFC 7112: the ports must be in the first fragment.
    #[test]
    fn a_first_fragment_without_its_ports_is_refused() {
        let tiny = fragment(6, 0, true, &udp_segment(b"x")[..8]);

        assert_eq!(parsed(&raw(44, &tiny)), Err(DropReason::IpFragment));
    }

    #[test]
    fn lengths_versions_and_transports_must_be_exact() {
        let good = udp(b"x");
        let mut long = good.clone();
        long.push(0);
        let mut old = good.clone();
        old[0] = 0x45;
        let mut lying = udp_segment(b"x");
        lying[5] = 10;

        assert_eq!(parsed(&long), Err(DropReason::IpLength));
        assert_eq!(parsed(&good[..good.len() - 1]), Err(DropReason::IpLength));
        assert_eq!(parsed(&good[..39]), Err(DropReason::IpLength));
        assert_eq!(parsed(&old), Err(DropReason::IpVersion));
        assert_eq!(parsed(&[]), Err(DropReason::IpVersion));
        assert_eq!(parsed(&raw(17, &lying)), Err(DropReason::IpTransport));
        assert_eq!(parsed(&raw(6, &[0; 19])), Err(DropReason::IpTransport));
        assert_eq!(parsed(&raw(6, &[0; 20])), Err(DropReason::IpTransport));
        assert_eq!(parsed(&raw(58, &[128, 0, 0])), Err(DropReason::IpTransport));
        assert_eq!(parsed(&raw(59, &[])), Ok(Transport::NoNext));
        assert_eq!(parsed(&raw(50, &[0; 8])), Ok(Transport::Other(50)));
    }

    #[test]
    fn addresses_no_agent_has_are_refused() {
        for (address, reason) in [
            ("ff02::1", DropReason::IpMulticast),
            ("fe80::1", DropReason::IpLinkLocal),
            ("::1", DropReason::IpAddress),
            ("::", DropReason::IpAddress),
            ("::ffff:10.0.0.1", DropReason::IpAddress),
        ] {
            for at in [8, 24] {
                let mut bytes = udp(b"x");
                bytes[at..at + 16].copy_from_slice(&ip(address).octets());

                assert_eq!(parsed(&bytes), Err(reason), "{address}");
            }
        }
    }

    #[test]
    fn errors_quote_their_packet_even_if_it_is_cut() {
        let quote = |packet: &[u8]| {
            let bytes = raw(58, &[&[1, 0, 0, 0, 0, 0, 0, 0][..], packet].concat());
            parsed(&bytes)
        };
        let expected = |flow| {
            Ok(Transport::Icmp6Error(Quoted {
                source: ip(A),
                destination: ip(B),
                flow,
            }))
        };
        let later = raw(44, &fragment(17, 8, false, &[0; 8]));

        assert_eq!(quote(&udp(b"abc")[..48]), expected(QuotedFlow::Udp(PORTS)));
        assert_eq!(quote(&udp(b"abc")[..43]), expected(QuotedFlow::Unknown));
        assert_eq!(
            quote(&raw(58, &[128, 0, 0, 0, 1, 2, 0, 0])),
            expected(QuotedFlow::Echo {
                kind: Echo::Request,
                id: 0x102
            })
        );
        assert_eq!(quote(&later), expected(QuotedFlow::Unknown));
        assert_eq!(quote(&udp(b"abc")[..39]), Err(DropReason::IpTransport));
        assert_eq!(parsed(&raw(58, &[135; 24])), Ok(Transport::Icmp6Other(135)));
    }

    proptest! {
        #[test]
        fn parsing_never_panics(bytes: Vec<u8>) {
            let _ = Ipv6View::parse(&bytes);
        }

        /// Reaches the parts behind the lengths, which random bytes rarely do.
        #[test]
        fn parsing_packets_never_panics(
            next in prop::sample::select(vec![0_u8, 6, 17, 43, 44, 58, 59, 60, 135, 253]),
            payload in prop::collection::vec(
                prop::sample::select(vec![0_u8, 1, 4, 6, 17, 43, 44, 58, 60, 0x50, 0x60, 255]),
                0..120,
            ),
        ) {
            let _ = Ipv6View::parse(&raw(next, &payload));
            let _ = Ipv6View::parse(&raw(58, &[&[1, 0, 0, 0, 0, 0, 0, 0][..], &payload].concat()));
        }
    }
}

//! Packets of the program as what they carry, and back; pure.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    Icmpv4Type, Icmpv6Type, NetSlice, PacketBuilder, PacketBuilderStep, SlicedPacket,
    TransportSlice, icmpv4::DestUnreachableHeader, icmpv6::DestUnreachableCode,
};

/// Hops that a packet to the program has left; it is there already.
const HOPS: u8 = 64;

/// What an error quotes of a packet: its headers, by which the kernel finds the socket. Less than
/// what either RFC 1812 section 4.3.2.3 (576 bytes) or RFC 4443 section 2.4 (1280) allow.
const QUOTE: usize = 512;

/// The two ends of a flow; an echo has its identifier for ports.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Ends {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
}

/// What a packet carries.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Carried<'a> {
    /// A segment, which begins a flow or not.
    Tcp {
        begins: bool,
    },
    Udp(&'a [u8]),
    /// An echo request from its type on.
    Echo {
        sequence: u16,
        data: &'a [u8],
    },
}

/// Reads a packet; None for what is not carried on: fragments, other protocols, and nonsense.
pub(super) fn parse(packet: &[u8]) -> Option<(Ends, Carried<'_>)> {
    let sliced = SlicedPacket::from_ip(packet).ok()?;
    let (from, to) = match sliced.net.as_ref()? {
        NetSlice::Ipv4(net) => {
            let header = net.header();
            let (from, to) = (header.source_addr(), header.destination_addr());
            (IpAddr::V4(from), IpAddr::V4(to))
        }
        NetSlice::Ipv6(net) => {
            let header = net.header();
            let (from, to) = (header.source_addr(), header.destination_addr());
            (IpAddr::V6(from), IpAddr::V6(to))
        }
        NetSlice::Arp(_) => return None,
    };
    let ends = |from_port, to_port| Ends {
        from: SocketAddr::new(from, from_port),
        to: SocketAddr::new(to, to_port),
    };
    match sliced.transport.as_ref()? {
        TransportSlice::Tcp(tcp) => {
            let begins = tcp.syn() && !tcp.ack();
            let ends = ends(tcp.source_port(), tcp.destination_port());
            Some((ends, Carried::Tcp { begins }))
        }
        TransportSlice::Udp(udp) => {
            let ends = ends(udp.source_port(), udp.destination_port());
            Some((ends, Carried::Udp(udp.payload())))
        }
        TransportSlice::Icmpv4(icmp) => match icmp.icmp_type() {
            Icmpv4Type::EchoRequest(echo) => {
                let (sequence, data) = (echo.seq, icmp.payload());
                Some((ends(echo.id, 0), Carried::Echo { sequence, data }))
            }
            Icmpv4Type::Unknown { .. }
            | Icmpv4Type::EchoReply(_)
            | Icmpv4Type::DestinationUnreachable(_)
            | Icmpv4Type::Redirect(_)
            | Icmpv4Type::TimeExceeded(_)
            | Icmpv4Type::ParameterProblem(_)
            | Icmpv4Type::TimestampRequest(_)
            | Icmpv4Type::TimestampReply(_) => None,
        },
        TransportSlice::Icmpv6(icmp) => {
            let Icmpv6Type::EchoRequest(echo) = icmp.icmp_type() else {
                return None;
            };
            let (sequence, data) = (echo.seq, icmp.payload());
            Some((ends(echo.id, 0), Carried::Echo { sequence, data }))
        }
        TransportSlice::Igmp(_) => None,
    }
}

/// Builds the datagram that answers what went over `ends`.
pub(super) fn datagram(ends: Ends, data: &[u8]) -> Option<Vec<u8>> {
    let step = back(ends)?.udp(ends.to.port(), ends.from.port());
    let mut bytes = Vec::with_capacity(step.size(data.len()));
    step.write_to_vec(&mut bytes, data).ok()?;
    Some(bytes)
}

/// Builds the echo that answers what went over `ends`.
pub(super) fn echo(ends: Ends, sequence: u16, data: &[u8]) -> Option<Vec<u8>> {
    let (step, id) = (back(ends)?, ends.from.port());
    let mut bytes = Vec::new();
    match ends.to {
        SocketAddr::V4(_) => {
            let step = step.icmpv4_echo_reply(id, sequence);
            step.write_to_vec(&mut bytes, data).ok()?;
        }
        SocketAddr::V6(_) => {
            let step = step.icmpv6_echo_reply(id, sequence);
            step.write_to_vec(&mut bytes, data).ok()?;
        }
    }
    Some(bytes)
}

/// Why a packet does not get where it is to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Unreachable {
    Host,
    Network,
    Port,
    Prohibited,
}

/// Builds the error that tells the program so.
pub(super) fn unreachable(ends: Ends, packet: &[u8], why: Unreachable) -> Option<Vec<u8>> {
    let quote = packet.get(..QUOTE).unwrap_or(packet);
    let step = back(ends)?;
    let mut bytes = Vec::new();
    match ends.to {
        SocketAddr::V4(_) => {
            let why = match why {
                Unreachable::Host => DestUnreachableHeader::Host,
                Unreachable::Network => DestUnreachableHeader::Network,
                Unreachable::Port => DestUnreachableHeader::Port,
                Unreachable::Prohibited => DestUnreachableHeader::HostProhibited,
            };
            let step = step.icmpv4(Icmpv4Type::DestinationUnreachable(why));
            step.write_to_vec(&mut bytes, quote).ok()?;
        }
        SocketAddr::V6(_) => {
            let why = match why {
                Unreachable::Host => DestUnreachableCode::Address,
                Unreachable::Network => DestUnreachableCode::NoRoute,
                Unreachable::Port => DestUnreachableCode::Port,
                Unreachable::Prohibited => DestUnreachableCode::Prohibited,
            };
            let step = step.icmpv6(Icmpv6Type::DestinationUnreachable(why));
            step.write_to_vec(&mut bytes, quote).ok()?;
        }
    }
    Some(bytes)
}

/// Begins a packet the other way.
fn back(ends: Ends) -> Option<PacketBuilderStep<etherparse::IpHeaders>> {
    match (ends.to, ends.from) {
        (SocketAddr::V4(from), SocketAddr::V4(to)) => {
            let step = PacketBuilder::ipv4(from.ip().octets(), to.ip().octets(), HOPS);
            Some(step)
        }
        (SocketAddr::V6(from), SocketAddr::V6(to)) => {
            let step = PacketBuilder::ipv6(from.ip().octets(), to.ip().octets(), HOPS);
            Some(step)
        }
        (SocketAddr::V4(_), SocketAddr::V6(_)) | (SocketAddr::V6(_), SocketAddr::V4(_)) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ends(from: &str, to: &str) -> Ends {
        Ends {
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
        }
    }

    #[test]
    fn a_datagram_back_is_read_as_what_it_carries() {
        for (from, to) in [
            ("192.0.0.2:4000", "198.51.100.1:53"),
            ("[fd00::2]:4000", "[2001:db8::1]:53"),
        ] {
            let ends = ends(from, to);
            let packet = datagram(ends, b"answer").unwrap();

            let (found, carried) = parse(&packet).unwrap();

            assert_eq!(carried, Carried::Udp(b"answer"));
            assert_eq!((found.from, found.to), (ends.to, ends.from));
        }
    }

    #[test]
    fn an_error_quotes_the_packet() {
        let ends = ends("192.0.0.2:4000", "198.51.100.1:53");
        let packet = datagram(ends, &[7; 2000]).unwrap();

        let error = unreachable(ends, &packet, Unreachable::Port).unwrap();

        assert_eq!(error.len(), 20 + 8 + QUOTE);
        assert!(error.ends_with(&packet[..QUOTE]));
        assert_eq!((error[20], error[21]), (3, 3));
        assert_eq!(parse(&error), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_packet_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }
    }
}

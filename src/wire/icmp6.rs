#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

use std::net::Ipv6Addr;

use etherparse::{Icmpv6Type, PacketBuilder, icmpv6::DestUnreachableCode};

use crate::wire::ip::{IPV6_HEADER, Ipv6View, Transport};

/// An error quotes as much as fits the least MTU, RFC 4443 section 2.4 (c).
const MAX_ERROR: usize = 1280;

const ICMP6_HEADER: usize = 8;

/// RFC 1700's default; the kernel that gets the packet is the next and last hop.
const HOP_LIMIT: u8 = 64;

/// Why a destination cannot be reached, RFC 4443 section 3.1.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unreachable {
    /// The peer is known and does not answer.
    Address,
    /// The address is of no agent that may be reached.
    NoRoute,
    /// Consent or policy forbids it.
    Prohibited,
}

impl Unreachable {
    const fn code(self) -> DestUnreachableCode {
        match self {
            Self::Address => DestUnreachableCode::Address,
            Self::NoRoute => DestUnreachableCode::NoRoute,
            Self::Prohibited => DestUnreachableCode::Prohibited,
        }
    }
}

/// One end of a TCP flow.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct End {
    pub address: Ipv6Addr,
    pub port: u16,
}

/// Builds the error that tells the sender of `packet` why it went nowhere.
///
/// `None` where RFC 4443 section 2.4 (e) wants silence: the packet is itself an ICMPv6 error, or
/// not one that can be understood.
pub fn unreachable(packet: &[u8], why: Unreachable) -> Option<Vec<u8>> {
    error(packet, Icmpv6Type::DestinationUnreachable(why.code()))
}

/// Builds the error that tells the sender of `packet` which size gets through.
pub fn packet_too_big(packet: &[u8], mtu: u32) -> Option<Vec<u8>> {
    error(packet, Icmpv6Type::PacketTooBig { mtu })
}

/// Builds a TCP reset as if from the peer, which the receiver's kernel takes for the peer's.
///
/// `sequence` is what the receiver expects next; `acknowledgment` is what it sent last, `None`
/// if that is unknown.
pub fn tcp_reset(from: End, to: End, sequence: u32, acknowledgment: Option<u32>) -> Vec<u8> {
    let step = PacketBuilder::ipv6(from.address.octets(), to.address.octets(), HOP_LIMIT)
        .tcp(from.port, to.port, sequence, 0)
        .rst();
    let step = match acknowledgment {
        Some(number) => step.ack(number),
        None => step,
    };
    let mut bytes = Vec::with_capacity(step.size(0));
    step.write_to_vec(&mut bytes, &[])
        .expect("an empty segment fits an IPv6 packet");
    bytes
}

/// The source is the packet's destination: the overlay has no routers, and the kernel accepts
/// errors about its sockets from any address.
fn error(packet: &[u8], kind: Icmpv6Type) -> Option<Vec<u8>> {
    let view = Ipv6View::parse(packet).ok()?;
    match view.transport() {
        Transport::Icmp6Error(_) | Transport::Icmp6Other(_) | Transport::LaterFragment => {
            return None;
        }
        Transport::Tcp(_)
        | Transport::Udp(_)
        | Transport::Icmp6Echo { .. }
        | Transport::NoNext
        | Transport::Other(_) => {}
    }
    let quote = packet
        .get(..MAX_ERROR - IPV6_HEADER - ICMP6_HEADER)
        .unwrap_or(packet);
    let (from, to) = (view.destination().octets(), view.source().octets());
    let step = PacketBuilder::ipv6(from, to, HOP_LIMIT).icmpv6(kind);
    let mut bytes = Vec::with_capacity(step.size(quote.len()));
    step.write_to_vec(&mut bytes, quote)
        .expect("an error of at most 1280 bytes fits an IPv6 packet");
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ip::{Ports, Quoted, QuotedFlow};
    use etherparse::{Icmpv6Slice, TcpHeaderSlice};

    fn ip(last: u16) -> Ipv6Addr {
        Ipv6Addr::new(0xfd11, 0, 0, 1, 0, 0, 0, last)
    }

    fn udp(payload: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        PacketBuilder::ipv6(ip(1).octets(), ip(2).octets(), 64)
            .udp(1000, 2000)
            .write(&mut bytes, &vec![7; payload])
            .unwrap();
        bytes
    }

    #[test]
    fn an_error_quotes_the_packet_and_checks_out() {
        for payload in [0, 1, 1100, 1232, 9000] {
            let error = unreachable(&udp(payload), Unreachable::Prohibited).unwrap();

            assert!(error.len() <= 1280);
            let view = Ipv6View::parse(&error).unwrap();
            assert_eq!((view.source(), view.destination()), (ip(2), ip(1)));
            let ports = Ports {
                source: 1000,
                destination: 2000,
            };
            let quoted = Quoted {
                source: ip(1),
                destination: ip(2),
                flow: QuotedFlow::Udp(ports),
            };
            assert_eq!(view.transport(), Transport::Icmp6Error(quoted));
            let icmp = Icmpv6Slice::from_slice(&error[IPV6_HEADER..]).unwrap();
            assert!(icmp.is_checksum_valid(ip(2).octets(), ip(1).octets()));
            assert_eq!((icmp.type_u8(), icmp.code_u8()), (1, 1));
        }
    }

    #[test]
    fn too_big_names_the_size_that_fits() {
        let error = packet_too_big(&udp(1400), 1280).unwrap();

        assert_eq!(error[40..42], [2, 0]);
        assert_eq!(error[44..48], 1280_u32.to_be_bytes());
        assert_eq!(error.len(), 1280);
    }

    /// RFC 4443 section 2.4 (e): no error about an error.
    #[test]
    fn an_error_breeds_no_error() {
        let error = unreachable(&udp(9), Unreachable::NoRoute).unwrap();

        assert_eq!(unreachable(&error, Unreachable::NoRoute), None);
        assert_eq!(unreachable(b"junk", Unreachable::NoRoute), None);
        assert_eq!(unreachable(&[0x60; 40], Unreachable::Address), None);
    }

    #[test]
    fn a_reset_is_from_the_peer_and_checks_out() {
        let (from, to) = (
            End {
                address: ip(2),
                port: 8000,
            },
            End {
                address: ip(1),
                port: 4000,
            },
        );

        let bytes = tcp_reset(from, to, 77, Some(88));

        let view = Ipv6View::parse(&bytes).unwrap();
        assert_eq!((view.source(), view.destination()), (ip(2), ip(1)));
        let header = TcpHeaderSlice::from_slice(&bytes[IPV6_HEADER..]).unwrap();
        assert!(header.rst() && header.ack() && !header.syn());
        assert_eq!(
            (header.source_port(), header.destination_port()),
            (8000, 4000)
        );
        assert_eq!(
            (header.sequence_number(), header.acknowledgment_number()),
            (77, 88)
        );
        let sum = header.calc_checksum_ipv6_raw(ip(2).octets(), ip(1).octets(), &[]);
        assert_eq!(header.checksum(), sum.unwrap());
        let bare = tcp_reset(from, to, 77, None);
        assert!(
            !TcpHeaderSlice::from_slice(&bare[IPV6_HEADER..])
                .unwrap()
                .ack()
        );
    }
}

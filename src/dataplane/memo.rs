//! Pure: what the filter said of the packet before, so that the next of its flow is not judged anew.

use std::time::Instant;

use crate::policy::Pair;
use crate::wire::ip::IPV6_HEADER;

const TCP: u8 = 6;
const UDP: u8 = 17;

const PSH: u8 = 0x08;
const ACK: u8 = 0x10;

/// Next header, addresses and ports.
const FLOW: usize = 37;

/// The flow of a packet whose passing changes nothing that the passing of the one before has not
/// changed already, at the same moment: a TCP segment without SYN, FIN and RST, or a UDP datagram,
/// right after the header.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct PlainFlow([u8; FLOW]);

impl PlainFlow {
    /// Reads a packet; None for one that is judged by itself.
    pub(super) fn of(packet: &[u8]) -> Option<Self> {
        let (head, transport) = packet.split_first_chunk::<IPV6_HEADER>()?;
        let [first, _, _, _, high, low, next, _, addresses @ ..] = head;
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        if first >> 4 != 6 || length != transport.len() {
            return None;
        }
        let ports = transport.first_chunk::<4>()?;
        let is_plain = match *next {
            TCP => {
                let header = usize::from(*transport.get(12)? >> 4) * 4;
                let flags = *transport.get(13)?;
                (20..=length).contains(&header) && flags & !PSH == ACK
            }
            UDP => transport.get(4..6)? == [*high, *low] && length >= 8,
            _ => false,
        };
        let mut flow = [*next; FLOW];
        let (to_addresses, to_ports) = flow.get_mut(1..)?.split_at_mut_checked(32)?;
        to_addresses.copy_from_slice(addresses);
        to_ports.copy_from_slice(ports);
        is_plain.then_some(Self(flow))
    }

    const fn is_tcp(&self) -> bool {
        self.0[0] == TCP
    }
}

/// The last packet that passed, if it was plain.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Memo(Option<(Pair, PlainFlow, Instant)>);

impl Memo {
    /// Tells whether a packet of this flow passed at this moment, as the last one.
    pub(super) fn knows(&self, pair: Pair, flow: &PlainFlow, now: Instant) -> bool {
        self.0 == Some((pair, *flow, now))
    }

    /// Returns whom the last packet went to, if it was a datagram of this flow and moment. Of what is
    /// sent by TCP the filter notes more than that it was.
    pub(super) fn pair(&self, flow: &PlainFlow, now: Instant) -> Option<Pair> {
        let (pair, known, at) = self.0?;
        (known == *flow && at == now && !flow.is_tcp()).then_some(pair)
    }

    /// Notes the packet that passed last; None forgets.
    pub(super) fn note(&mut self, passed: Option<(Pair, PlainFlow, Instant)>) {
        self.0 = passed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    use crate::wire::ip::{Ipv6View, Transport};

    fn packet(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let step = PacketBuilder::ipv6([0xfd; 16], [0xfe; 16], 64);
        let (mut bytes, payload) = (Vec::new(), vec![0; payload]);
        match kind {
            TCP => step.tcp(1, 2, 3, 4).write(&mut bytes, &payload),
            _ => step.udp(1, 2).write(&mut bytes, &payload),
        }
        .unwrap();
        if kind == TCP {
            bytes[IPV6_HEADER + 13] = flags;
        }
        bytes
    }

    #[test]
    fn segments_that_open_or_end_are_not_plain() {
        for flags in 0..=255 {
            let is_plain = PlainFlow::of(&packet(TCP, flags, 5)).is_some();
            assert_eq!(is_plain, flags & !PSH == ACK, "{flags:#x}");
        }
        assert!(PlainFlow::of(&packet(UDP, 0, 0)).is_some());
    }

    proptest! {
        /// Whatever is plain parses, as the transport that it seems to be.
        #[test]
        fn what_is_plain_parses(
            is_tcp: bool, payload in 0_usize..40, at in 0_usize..80, with: u8, cut in 0_usize..3,
        ) {
            let mut bytes = packet(if is_tcp { TCP } else { UDP }, ACK, payload);
            let at = at % bytes.len();
            // The addresses are judged by the first packet of the flow.
            if !(8..40).contains(&at) {
                bytes[at] = with;
            }
            bytes.truncate(bytes.len() - cut);
            if PlainFlow::of(&bytes).is_some() {
                let mut carried = bytes.clone();
                carried[8..40].copy_from_slice(&[0xfd; 32]);
                let view = Ipv6View::parse(&carried).unwrap();
                let is_same = matches!(
                    (bytes[6], view.transport()),
                    (TCP, Transport::Tcp(_)) | (UDP, Transport::Udp(_))
                );
                prop_assert!(is_same && view.fragment().is_none());
            }
        }
    }
}

//! Explicit congestion notification between an IPv6 packet and the one around it (RFC 3168, RFC 6040).

/// What the two low bits of a traffic class say.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Ecn {
    /// Congestion experienced: a router on the way would have liked to drop it.
    Ce,
    Ect0,
    Ect1,
    /// The transport does not know of ECN: a router drops.
    #[default]
    NotEct,
}

impl Ecn {
    /// Reads a traffic class, or an IPv4 type of service.
    pub const fn of_class(class: u8) -> Self {
        match class & 3 {
            1 => Self::Ect1,
            2 => Self::Ect0,
            3 => Self::Ce,
            _ => Self::NotEct,
        }
    }

    /// Returns the bits.
    pub const fn bits(self) -> u8 {
        match self {
            Self::NotEct => 0,
            Self::Ect1 => 1,
            Self::Ect0 => 2,
            Self::Ce => 3,
        }
    }

    /// Reads an IPv6 packet, the outer packet of which is to say the same (RFC 6040 section 4.1).
    pub fn of_packet(packet: &[u8]) -> Self {
        let second = packet.get(1).copied().unwrap_or(0);
        Self::of_class(second >> 4)
    }

    /// Returns what a packet put together of two says (RFC 3168 section 5.3).
    #[must_use]
    pub const fn joined(self, other: Self) -> Self {
        match (self, other) {
            (Self::Ce, _) | (_, Self::Ce) => Self::Ce,
            (Self::NotEct | Self::Ect0 | Self::Ect1, _) => self,
        }
    }

    /// Returns what the inner packet says once the outer one is gone; None when it is to be dropped
    /// (RFC 6040 section 4.2, figure 4).
    const fn decapsulated(inner: Self, outer: Self) -> Option<Self> {
        match (inner, outer) {
            (Self::NotEct, Self::Ce) => None,
            (Self::NotEct, Self::NotEct | Self::Ect0 | Self::Ect1) => Some(Self::NotEct),
            (Self::Ect0, Self::NotEct | Self::Ect0) => Some(Self::Ect0),
            (Self::Ect0 | Self::Ect1, Self::Ect1) | (Self::Ect1, Self::NotEct | Self::Ect0) => {
                Some(Self::Ect1)
            }
            (Self::Ce, _) | (Self::Ect0 | Self::Ect1, Self::Ce) => Some(Self::Ce),
        }
    }

    /// Has an IPv6 packet say what it does once the outer one, which says `self`, is gone; false when
    /// it is to be dropped. No checksum covers these bits.
    #[must_use]
    pub fn decapsulate(self, packet: &mut [u8]) -> bool {
        let inner = Self::of_packet(packet);
        let Some(kept) = Self::decapsulated(inner, self) else {
            return false;
        };
        if kept != inner
            && let Some(second) = packet.get_mut(1)
        {
            *second = (*second & 0xcf) | (kept.bits() << 4);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{Ipv6Header, PacketBuilder, SlicedPacket};

    const ALL: [Ecn; 4] = [Ecn::NotEct, Ecn::Ect0, Ecn::Ect1, Ecn::Ce];

    /// Returns a TCP segment whose traffic class is `class`.
    fn segment(class: u8) -> Vec<u8> {
        let mut ip = Ipv6Header {
            flow_label: 0xabcde.try_into().unwrap(),
            hop_limit: 64,
            ..Ipv6Header::default()
        };
        ip.traffic_class = class;
        let step = PacketBuilder::ip(etherparse::IpHeaders::Ipv6(ip, Default::default()));
        let mut bytes = Vec::new();
        step.tcp(1, 2, 3, 4).write(&mut bytes, b"payload").unwrap();
        bytes
    }

    /// RFC 6040 figure 4, row by row: inner Not-ECT, ECT(0), ECT(1), CE.
    #[test]
    fn marks_come_through_as_the_table_says() {
        let (not, zero, one, ce) = (Some(0), Some(2), Some(1), Some(3));
        let table = [
            [not, not, not, None],
            [zero, zero, one, ce],
            [one, one, one, ce],
            [ce, ce, ce, ce],
        ];
        for (inner, row) in ALL.into_iter().zip(table) {
            for (outer, expected) in ALL.into_iter().zip(row) {
                // The other six bits are of no concern to it.
                for other in [0, 0xb8, 0xfc] {
                    let mut packet = segment(other | inner.bits());
                    let before = packet.clone();

                    let is_kept = outer.decapsulate(&mut packet);

                    let Some(bits) = expected else {
                        assert!(!is_kept, "{inner:?} in {outer:?}");
                        continue;
                    };
                    assert!(is_kept, "{inner:?} in {outer:?}");
                    let expected = segment(other | bits);
                    assert_eq!(packet, expected, "{inner:?} in {outer:?}");
                    assert_eq!(packet[2..], before[2..]);
                    let parsed = SlicedPacket::from_ip(&packet).unwrap();
                    assert!(parsed.transport.is_some());
                }
            }
        }
    }

    #[test]
    fn bits_are_read_as_they_were_written() {
        for ecn in ALL {
            assert_eq!(Ecn::of_class(0xb8 | ecn.bits()), ecn);
            assert_eq!(Ecn::of_packet(&segment(0xb8 | ecn.bits())), ecn);
        }
        assert_eq!(Ecn::of_packet(&[]), Ecn::NotEct);
        assert!(Ecn::Ect0.decapsulate(&mut []));
    }

    #[test]
    fn one_marked_half_marks_the_whole() {
        assert_eq!(Ecn::Ect0.joined(Ecn::Ce), Ecn::Ce);
        assert_eq!(Ecn::Ce.joined(Ecn::NotEct), Ecn::Ce);
        assert_eq!(Ecn::Ect0.joined(Ecn::Ect0), Ecn::Ect0);
    }
}

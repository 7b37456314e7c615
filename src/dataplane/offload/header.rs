/// Bytes of the header before each packet of a TUN with offloads (`struct virtio_net_hdr`, VIRTIO
/// 1.2 section 5.1.6), whose fields are in the order of this host.
pub(in crate::dataplane) const VIRTIO: usize = 10;

const NEEDS_CHECKSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCP6: u8 = 4;
const GSO_UDP: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// Which packets a super-packet stands for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Gso {
    None,
    Tcp,
    Udp,
}

/// What a TUN says of a packet beside its bytes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(in crate::dataplane) struct VirtioHeader {
    flags: u8,
    kind: u8,
    header_len: u16,
    /// Payload bytes of each packet but the last.
    pub(super) size: u16,
    checksum_start: u16,
    checksum_offset: u16,
}

impl VirtioHeader {
    /// Reads the header.
    pub(in crate::dataplane) const fn parse(bytes: &[u8; VIRTIO]) -> Self {
        let [flags, kind, h0, h1, s0, s1, c0, c1, o0, o1] = *bytes;
        Self {
            flags,
            kind,
            header_len: u16::from_ne_bytes([h0, h1]),
            size: u16::from_ne_bytes([s0, s1]),
            checksum_start: u16::from_ne_bytes([c0, c1]),
            checksum_offset: u16::from_ne_bytes([o0, o1]),
        }
    }

    /// Writes the header.
    pub(in crate::dataplane) const fn encode(&self) -> [u8; VIRTIO] {
        let [h0, h1] = self.header_len.to_ne_bytes();
        let [s0, s1] = self.size.to_ne_bytes();
        let [c0, c1] = self.checksum_start.to_ne_bytes();
        let [o0, o1] = self.checksum_offset.to_ne_bytes();
        [self.flags, self.kind, h0, h1, s0, s1, c0, c1, o0, o1]
    }

    /// Makes the header of a super-packet whose transport begins at `start` and whose payload, cut
    /// in pieces of `size`, begins at `header_len`.
    pub(super) const fn super_packet(gso: Gso, start: u16, header_len: u16, size: u16) -> Self {
        let (kind, checksum_offset) = match gso {
            Gso::None => (GSO_NONE, 0),
            Gso::Tcp => (GSO_TCP6, 16),
            Gso::Udp => (GSO_UDP, 6),
        };
        Self {
            flags: NEEDS_CHECKSUM,
            kind,
            header_len,
            size,
            checksum_start: start,
            checksum_offset,
        }
    }

    /// Returns what the packet is to be cut into; None for what the overlay does not carry.
    pub(super) const fn gso(&self) -> Option<Gso> {
        match self.kind & !GSO_ECN {
            GSO_NONE => Some(Gso::None),
            GSO_TCP6 if self.size > 0 => Some(Gso::Tcp),
            GSO_UDP if self.size > 0 => Some(Gso::Udp),
            _ => None,
        }
    }

    /// Returns where the transport header begins, and where in it the checksum is that is still to
    /// be computed; None when there is none to compute.
    pub(super) fn checksum(&self) -> Option<(usize, usize)> {
        let needed = self.flags & NEEDS_CHECKSUM != 0;
        needed.then(|| {
            (
                usize::from(self.checksum_start),
                usize::from(self.checksum_offset),
            )
        })
    }
}

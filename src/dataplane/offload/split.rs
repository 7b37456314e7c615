use crate::dataplane::offload::checksum;
use crate::dataplane::offload::header::{Gso, VirtioHeader};
use crate::wire::drop::DropReason;
use crate::wire::ip::IPV6_HEADER;

/// Longest headers of a packet that is cut: fixed, 128 bytes of extensions, and TCP with options.
const MAX_HEADERS: usize = IPV6_HEADER + 128 + 60;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// Where in a UDP header the checksum is.
const UDP_CHECKSUM: usize = 6;

/// The longest packet that passes while nothing is known of the path (RFC 8200 section 5).
pub(in crate::dataplane) const DEFAULT_MTU: usize = 1280;

const SYN: u8 = 0x02;

/// Flags of TCP for which a segment is not cut: SYN, RST and URG, whose pointer counts from the header.
const UNCUT_FLAGS: u8 = SYN | 0x04 | 0x20;

/// Flags of TCP that only the last packet keeps (FIN, PSH), and that only the first does (CWR).
const LAST_FLAGS: u8 = 0x01 | 0x08;
const FIRST_FLAGS: u8 = 0x80;

/// Why a packet was not given on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::dataplane) enum Unfit {
    Bad(DropReason),
    /// It is longer than path and IPv6 promise to carry, and only its sender can make it shorter.
    TooBig,
}

/// Cuts a super-packet into the packets it stands for, and segments of TCP into such as are no longer
/// than `mtu`, and gives each to `each`, in order, with its checksum right. Other packets may be longer
/// than that, up to what IPv6 promises. Without an `mtu` segments are cut to what IPv6 promises, and
/// nothing is too big.
///
/// Each packet is made where its payload lies: its header is written over the end of the one before,
/// which `each` has seen by then.
pub(in crate::dataplane) fn split(
    header: &VirtioHeader,
    packet: &mut [u8],
    mtu: Option<usize>,
    mut each: impl FnMut(&[u8]),
) -> Result<(), Unfit> {
    const BAD: Unfit = Unfit::Bad(DropReason::IpTransport);
    let segment = mtu.unwrap_or(DEFAULT_MTU);
    let most = mtu.map_or(usize::MAX, |mtu| mtu.max(DEFAULT_MTU));
    match header.gso().ok_or(BAD)? {
        Gso::None => {
            if let Some((start, offset)) = header.checksum() {
                finish(packet, start, offset).ok_or(BAD)?;
            }
            if packet.len() <= segment {
                each(packet);
            } else if let Some(cut) = Cut::of_segment(packet, segment) {
                cut.all(packet, each).ok_or(BAD)?;
            } else if packet.len() <= most {
                each(packet);
            } else {
                return Err(Unfit::TooBig);
            }
        }
        gso @ (Gso::Tcp | Gso::Udp) => {
            let mut cut = Cut::new(gso, header, packet).ok_or(BAD)?;
            if !cut.fit(if gso == Gso::Tcp { segment } else { most }) {
                return Err(Unfit::TooBig);
            }
            cut.all(packet, each).ok_or(BAD)?;
        }
    }
    Ok(())
}

/// Lowers the largest segment that the sender of a SYN asks for (RFC 9293 section 3.7.1) to what fits
/// `mtu`; other packets stay as they are, and so do SYNs that ask for less or do not say.
pub(in crate::dataplane) fn clamp(header: &VirtioHeader, packet: &mut [u8], mtu: usize) {
    let _unchanged = lower(header, packet, mtu);
}

fn lower(header: &VirtioHeader, packet: &mut [u8], mtu: usize) -> Option<()> {
    let (ip, transport) = packet.split_at_mut_checked(IPV6_HEADER)?;
    if *ip.get(6)? != TCP || *transport.get(13)? & SYN == 0 {
        return None;
    }
    let most = u16::try_from(mtu.checked_sub(IPV6_HEADER + 20)?).ok()?;
    let length = usize::from(*transport.get(12)? >> 4) * 4;
    let mut at = 20;
    loop {
        let option = transport.get(at..length)?;
        match option {
            [1, ..] => at += 1,
            [2, 4, a, b, ..] => {
                if u16::from_be_bytes([*a, *b]) <= most {
                    return None;
                }
                *transport.get_mut(at + 2..)?.first_chunk_mut()? = most.to_be_bytes();
                break;
            }
            [0, ..] | [_] | [] => return None,
            [_, size, ..] => at += usize::from(*size).max(2),
        }
    }
    // What the kernel left to us is computed later, over what stands there then.
    if header.checksum().is_none() {
        *transport.get_mut(16..)?.first_chunk_mut()? = [0; 2];
        let sum = checksum::transport(ip, TCP, transport);
        *transport.get_mut(16..)?.first_chunk_mut()? = sum;
    }
    Some(())
}

/// Computes the checksum that the kernel left to us.
fn finish(packet: &mut [u8], start: usize, offset: usize) -> Option<()> {
    let is_udp = offset == UDP_CHECKSUM;
    let sum = checksum::finished(packet.get(start..)?, is_udp);
    *packet.get_mut(start + offset..)?.first_chunk_mut()? = sum;
    Some(())
}

/// How one super-packet is cut.
struct Cut {
    gso: Gso,
    /// Where the transport header begins.
    start: usize,
    /// Where the payload begins.
    payload: usize,
    size: usize,
    headers: [u8; MAX_HEADERS],
}

impl Cut {
    fn new(gso: Gso, header: &VirtioHeader, packet: &[u8]) -> Option<Self> {
        let (start, _) = header.checksum()?;
        let length = match gso {
            Gso::None => return None,
            Gso::Tcp => usize::from(*packet.get(start + 12)? >> 4) * 4,
            Gso::Udp => 8,
        };
        let payload = start + length;
        let is_sane = start >= IPV6_HEADER && (gso == Gso::Udp || length >= 20);
        if !is_sane || payload > packet.len() {
            return None;
        }
        let mut headers = [0; MAX_HEADERS];
        headers
            .get_mut(..payload)?
            .copy_from_slice(packet.get(..payload)?);
        Some(Self {
            gso,
            start,
            payload,
            size: usize::from(header.size),
            headers,
        })
    }

    /// Cuts a segment that the kernel made longer than the path carries; None for what is none.
    fn of_segment(packet: &[u8], mtu: usize) -> Option<Self> {
        let transport = packet.get(IPV6_HEADER..)?;
        if *packet.get(6)? != TCP || *transport.get(13)? & UNCUT_FLAGS != 0 {
            return None;
        }
        let start = u16::try_from(IPV6_HEADER).ok()?;
        let header = VirtioHeader::super_packet(Gso::Tcp, start, start, u16::MAX);
        let mut cut = Self::new(Gso::Tcp, &header, packet)?;
        cut.fit(mtu).then_some(cut)
    }

    /// Makes the pieces no longer than `mtu`; false where that cannot be.
    fn fit(&mut self, mtu: usize) -> bool {
        match self.gso {
            Gso::Tcp => {
                let most = mtu.saturating_sub(self.payload);
                self.size = self.size.min(most);
                most > 0
            }
            Gso::Udp => self.payload + self.size <= mtu,
            Gso::None => true,
        }
    }

    fn all(&self, packet: &mut [u8], mut each: impl FnMut(&[u8])) -> Option<()> {
        let total = packet.len() - self.payload;
        let mut done = 0;
        while done < total || total == 0 {
            let size = self.size.min(total - done);
            let piece = packet.get_mut(done..done + self.payload + size)?;
            self.make(piece, done, done + size == total)?;
            each(piece);
            done += size;
            if total == 0 {
                break;
            }
        }
        Some(())
    }

    /// Makes the packet whose payload begins `done` bytes into the whole.
    fn make(&self, piece: &mut [u8], done: usize, is_last: bool) -> Option<()> {
        let headers = self.headers.get(..self.payload)?;
        piece.get_mut(..self.payload)?.copy_from_slice(headers);
        let length = u16::try_from(piece.len() - IPV6_HEADER).ok()?;
        *piece.get_mut(4..)?.first_chunk_mut()? = length.to_be_bytes();
        let (ip, transport) = piece.split_at_mut_checked(self.start)?;
        let (next_header, field) = match self.gso {
            Gso::None => return None,
            Gso::Tcp => {
                let sequence = transport.get_mut(4..)?.first_chunk_mut()?;
                let done = u32::try_from(done).ok()?;
                *sequence = u32::from_be_bytes(*sequence)
                    .wrapping_add(done)
                    .to_be_bytes();
                let flags = transport.get_mut(13)?;
                if !is_last {
                    *flags &= !LAST_FLAGS;
                }
                if done > 0 {
                    *flags &= !FIRST_FLAGS;
                }
                (TCP, 16)
            }
            Gso::Udp => {
                let length = u16::try_from(transport.len()).ok()?;
                *transport.get_mut(4..)?.first_chunk_mut()? = length.to_be_bytes();
                (UDP, UDP_CHECKSUM)
            }
        };
        *transport.get_mut(field..)?.first_chunk_mut()? = [0; 2];
        let sum = checksum::transport(ip, next_header, transport);
        *transport.get_mut(field..)?.first_chunk_mut()? = sum;
        Some(())
    }
}

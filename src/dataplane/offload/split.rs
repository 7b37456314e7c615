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

/// Flags of TCP that only the last packet keeps (FIN, PSH), and that only the first does (CWR).
const LAST_FLAGS: u8 = 0x01 | 0x08;
const FIRST_FLAGS: u8 = 0x80;

/// Cuts a super-packet into the packets it stands for and gives each to `each`, in order, with
/// its checksum right.
///
/// Each packet is made where its payload lies: its header is written over the end of the one before,
/// which `each` has seen by then.
pub(in crate::dataplane) fn split(
    header: &VirtioHeader,
    packet: &mut [u8],
    mut each: impl FnMut(&[u8]),
) -> Result<(), DropReason> {
    match header.gso().ok_or(DropReason::IpTransport)? {
        Gso::None => {
            if let Some((start, offset)) = header.checksum() {
                finish(packet, start, offset).ok_or(DropReason::IpTransport)?;
            }
            each(packet);
        }
        gso @ (Gso::Tcp | Gso::Udp) => {
            let cut = Cut::new(gso, header, packet).ok_or(DropReason::IpTransport)?;
            cut.all(packet, each).ok_or(DropReason::IpTransport)?;
        }
    }
    Ok(())
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

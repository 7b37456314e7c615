//! The internet checksum (RFC 1071).

use crate::wire::ip::IPV6_HEADER;

const UDP: u8 = 17;

/// Bytes summed at a time, in lanes that the compiler turns into vectors.
const LANES: usize = 8;
const BLOCK: usize = LANES * 4;

/// Returns the sum of 16-bit words in the order of this host, not folded; an odd byte at the end
/// counts as if a zero followed.
fn sum(bytes: &[u8]) -> u64 {
    let mut lanes = [0_u64; LANES];
    let (blocks, rest) = bytes.as_chunks::<BLOCK>();
    for block in blocks {
        let (words, _) = block.as_chunks::<4>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane += u64::from(u32::from_ne_bytes(*word));
        }
    }
    let (pairs, odd) = rest.as_chunks::<2>();
    let pairs = pairs.iter().map(|two| u64::from(u16::from_ne_bytes(*two)));
    let odd = odd.first().map_or(0, |last| u16::from_ne_bytes([*last, 0]));
    // Below 2^48 for the longest packet, so nothing overflows.
    lanes.iter().sum::<u64>() + pairs.sum::<u64>() + u64::from(odd)
}

/// Returns the sum folded to 16 bits, as bytes of a packet.
const fn fold(sum: u64) -> [u8; 2] {
    let mut sum = sum;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (sum as u16).to_ne_bytes()
}

/// Returns the sum over the pseudo-header of a packet (RFC 8200 section 8.1) whose transport header
/// and payload have `length` bytes.
fn pseudo(ip: &[u8], next_header: u8, length: usize) -> u64 {
    let addresses = ip.get(8..IPV6_HEADER).unwrap_or_default();
    let length = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    sum(addresses) + sum(&length) + sum(&[0, 0, 0, next_header])
}

/// Returns the pseudo-header's sum, which stands in the checksum field of what is to be finished by
/// the kernel.
pub(super) fn unfinished(ip: &[u8], next_header: u8, length: usize) -> [u8; 2] {
    fold(pseudo(ip, next_header, length))
}

/// Returns the checksum of `transport`, whose own field is zero, in the packet that begins with `ip`.
pub(super) fn transport(ip: &[u8], next_header: u8, transport: &[u8]) -> [u8; 2] {
    let sum = pseudo(ip, next_header, transport.len()) + sum(transport);
    finish(sum, next_header == UDP)
}

/// Returns the checksum of bytes whose own field holds the pseudo-header's sum.
pub(super) fn finished(bytes: &[u8], is_udp: bool) -> [u8; 2] {
    finish(sum(bytes), is_udp)
}

/// Tells whether the checksum in `transport` is right.
pub(super) fn holds(ip: &[u8], next_header: u8, transport: &[u8]) -> bool {
    let sum = pseudo(ip, next_header, transport.len()) + sum(transport);
    fold(sum) == [0xff, 0xff]
}

fn finish(sum: u64, is_udp: bool) -> [u8; 2] {
    let [a, b] = fold(sum);
    match [!a, !b] {
        // For UDP zero says that there is no checksum (RFC 8200 section 8.1); this is the same number.
        [0, 0] if is_udp => [0xff, 0xff],
        checksum => checksum,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Word by word, as RFC 1071 section 4.1 writes it.
    fn plainly(bytes: &[u8]) -> [u8; 2] {
        let mut sum = 0_u32;
        for two in bytes.chunks(2) {
            let word = u16::from_be_bytes([two[0], two.get(1).copied().unwrap_or(0)]);
            sum += u32::from(word);
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::try_from(sum).unwrap().to_be_bytes()
    }

    proptest! {
        #[test]
        fn sums_agree_with_the_plain_way(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
            prop_assert_eq!(fold(sum(&bytes)), plainly(&bytes));
        }
    }
}

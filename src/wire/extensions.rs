#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

use etherparse::{IpNumber, Ipv6FragmentHeaderSlice, Ipv6RawExtHeaderSlice, ip_number};

use crate::wire::drop::DropReason;

/// RFC 8200 section 4.1 knows five places for extension headers; more are an attack.
const MAX_EXTENSIONS: usize = 5;

/// Place of a fragment in its packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Fragment {
    pub id: u32,
    /// Offset of this fragment's part in bytes; 0 is the first fragment.
    pub start: u16,
    /// Offset of the byte after it.
    pub end: u16,
}

/// What stands behind the extension headers.
pub(super) struct Chain<'a> {
    pub(super) next: IpNumber,
    pub(super) payload: &'a [u8],
    pub(super) fragment: Option<Fragment>,
}

impl<'a> Chain<'a> {
    /// Skips what stands before the transport header, or refuses the packet.
    pub(super) fn walk(next: IpNumber, payload: &'a [u8]) -> Result<Self, DropReason> {
        let mut chain = Self {
            next,
            payload,
            fragment: None,
        };
        for place in 0..=MAX_EXTENSIONS {
            let more = match chain.next {
                // RFC 8200 section 4.1: only right after the fixed header.
                ip_number::IPV6_HOP_BY_HOP if place > 0 => return Err(DropReason::IpExtension),
                ip_number::IPV6_HOP_BY_HOP | ip_number::IPV6_DEST_OPTIONS => {
                    chain.skip_extension(options)?
                }
                ip_number::IPV6_ROUTE => chain.skip_extension(routing)?,
                ip_number::IPV6_FRAG => chain.enter_fragment()?,
                _ => false,
            };
            if !more {
                return Ok(chain);
            }
        }
        Err(DropReason::IpExtension)
    }

    fn skip_extension(
        &mut self,
        check: fn(&[u8]) -> Result<(), DropReason>,
    ) -> Result<bool, DropReason> {
        // RFC 7112: the first fragment holds the whole header chain.
        let cut = match self.fragment {
            Some(_) => DropReason::IpFragment,
            None => DropReason::IpExtension,
        };
        let header = Ipv6RawExtHeaderSlice::from_slice(self.payload).map_err(|_| cut)?;
        check(header.payload())?;
        self.next = header.next_header();
        self.payload = self.payload.get(header.slice().len()..).ok_or(cut)?;
        Ok(true)
    }

    /// Returns whether the chain goes on: a later fragment holds no headers.
    fn enter_fragment(&mut self) -> Result<bool, DropReason> {
        let bad = DropReason::IpFragment;
        let header = Ipv6FragmentHeaderSlice::from_slice(self.payload).map_err(|_| bad)?;
        let rest = self.payload.get(header.slice().len()..).ok_or(bad)?;
        if self.fragment.is_some() {
            return Err(bad);
        }
        self.next = header.next_header();
        self.payload = rest;
        // RFC 6946: a fragment header on a whole packet changes nothing.
        if !header.is_fragmenting_payload() {
            return Ok(true);
        }
        // RFC 8200 section 4.5: all but the last are multiples of 8, none reaches beyond 65,535.
        let start = usize::from(header.fragment_offset().value()) * 8;
        if rest.is_empty() || (header.more_fragments() && rest.len() % 8 != 0) {
            return Err(bad);
        }
        let fragment = Fragment {
            id: header.identification(),
            start: u16::try_from(start).map_err(|_| bad)?,
            end: u16::try_from(start + rest.len()).map_err(|_| bad)?,
        };
        self.fragment = Some(fragment);
        Ok(fragment.start == 0)
    }
}

/// Refuses options that replace the packet's length or source, and lists that do not end.
fn options(mut list: &[u8]) -> Result<(), DropReason> {
    const PAD1: u8 = 0;
    const JUMBO_PAYLOAD: u8 = 0xc2; // RFC 2675
    const HOME_ADDRESS: u8 = 0xc9; // RFC 6275 section 6.3
    let bad = DropReason::IpExtension;
    while let [kind, rest @ ..] = list {
        list = match (*kind, rest) {
            (PAD1, rest) => rest,
            (JUMBO_PAYLOAD | HOME_ADDRESS, _) | (_, []) => return Err(bad),
            (_, [len, rest @ ..]) => rest.get(usize::from(*len)..).ok_or(bad)?,
        };
    }
    Ok(())
}

/// Refuses source routes: type 0 (RFC 5095), and any with a hop still to visit.
fn routing(header: &[u8]) -> Result<(), DropReason> {
    match header {
        [kind, 0, ..] if *kind != 0 => Ok(()),
        _ => Err(DropReason::IpExtension),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(next: u8, payload: &[u8]) -> Option<DropReason> {
        Chain::walk(IpNumber(next), payload).err()
    }

    fn extension(next: u8, body: [u8; 6], rest: &[u8]) -> Vec<u8> {
        [&[next, 0][..], &body, rest].concat()
    }

    fn fragment(next: u8, start: u16, more: bool, rest: &[u8]) -> Vec<u8> {
        let [c, d] = (start | u16::from(more)).to_be_bytes();
        [&[next, 0, c, d, 0, 0, 0, 7][..], rest].concat()
    }

    /// Learnt from nebula#1840: what one side skips and the other reads is a hole.
    #[test]
    fn misused_extension_headers_are_refused() {
        let pad = [1, 4, 0, 0, 0, 0];
        let inner = [9; 8];
        let mut long = inner.to_vec();
        let mut next = 17;
        for _ in 0..=MAX_EXTENSIONS {
            long = extension(next, pad, &long);
            next = 60;
        }
        let cases = [
            (
                "hop-by-hop not first",
                60,
                extension(0, pad, &extension(17, pad, &inner)),
            ),
            (
                "routing type 0",
                43,
                extension(17, [0, 0, 0, 0, 0, 0], &inner),
            ),
            ("a hop left", 43, extension(17, [4, 1, 0, 0, 0, 0], &inner)),
            (
                "jumbo payload",
                0,
                extension(17, [0xc2, 4, 0, 0, 0, 9], &inner),
            ),
            (
                "home address",
                60,
                extension(17, [0xc9, 4, 0, 0, 0, 0], &inner),
            ),
            (
                "option past its header",
                60,
                extension(17, [1, 5, 0, 0, 0, 0], &inner),
            ),
            ("cut header", 60, vec![17, 1, 1, 4, 0, 0, 0, 0]),
            ("no header", 60, vec![]),
            ("too many", 60, long),
        ];

        for (what, next, payload) in cases {
            assert_eq!(
                refused(next, &payload),
                Some(DropReason::IpExtension),
                "{what}"
            );
        }
    }

    #[test]
    fn fragments_that_hide_their_ports_are_refused() {
        let whole = [9; 48];
        let cases = [
            (
                "header chain not whole",
                fragment(60, 0, true, &[17, 3, 1, 4, 0, 0, 0, 0]),
            ),
            ("not a multiple of 8", fragment(17, 0, true, &whole[..25])),
            ("beyond 65,535", fragment(17, 0xfff8, false, &whole[..24])),
            ("empty", fragment(17, 8, true, &[])),
            (
                "fragment in fragment",
                fragment(44, 0, true, &fragment(17, 0, true, &whole[..8])),
            ),
            ("cut", vec![17, 0, 0]),
        ];

        for (what, payload) in cases {
            assert_eq!(
                refused(44, &payload),
                Some(DropReason::IpFragment),
                "{what}"
            );
        }
    }
}

//! What arrives on a node's or gateway's UDP port, told by its first bytes (protocol.md section 4).

/// The magic cookie of STUN (RFC 8489 section 5).
const STUN_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];

/// A STUN message is at least its header (RFC 8489 section 5).
const STUN_HEADER: usize = 20;

/// The kinds of WireGuard messages.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum WireGuard {
    Initiation,
    Response,
    CookieReply,
    Transport,
}

/// The kinds of datagrams.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Datagram {
    /// A data channel packet.
    Channel,
    /// GW-DISCOVER or GW-OFFER.
    Discover,
    /// An A2G frame or Reset.
    Frame,
    Stun,
    WireGuard(WireGuard),
}

impl Datagram {
    /// Tells the kind of a datagram; None when it is of no protocol spoken here.
    pub fn classify(bytes: &[u8]) -> Option<Self> {
        match bytes {
            // Before STUN: a WireGuard index may happen to equal the magic cookie, a STUN type
            // followed by a zero length and two more zero bytes of cookie may not.
            [1, 0, 0, 0, ..] => Some(Self::WireGuard(WireGuard::Initiation)),
            [2, 0, 0, 0, ..] => Some(Self::WireGuard(WireGuard::Response)),
            [3, 0, 0, 0, ..] => Some(Self::WireGuard(WireGuard::CookieReply)),
            [4, 0, 0, 0, ..] => Some(Self::WireGuard(WireGuard::Transport)),
            [0 | 1, _, _, _, rest @ ..]
                if rest.starts_with(&STUN_COOKIE) && bytes.len() >= STUN_HEADER =>
            {
                Some(Self::Stun)
            }
            // A request of RFC 3489, which has no cookie, but tells its length.
            [0, 1, high, low, ..]
                if usize::from(u16::from_be_bytes([*high, *low])) + STUN_HEADER == bytes.len() =>
            {
                Some(Self::Stun)
            }
            [0x20, 0, 0, 0, ..] => Some(Self::Channel),
            [0xa2, ..] => Some(Self::Frame),
            [0xa3, ..] => Some(Self::Discover),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_first_bytes_tell_the_kind() {
        let mut stun = vec![0, 1, 0, 0];
        stun.extend(STUN_COOKIE);
        stun.extend([7; 12]);
        let classic = [&[0, 1, 0, 8][..], &[7; 24]].concat();
        let cases: [(&[u8], Option<Datagram>); 12] = [
            (
                &[1, 0, 0, 0, 9],
                Some(Datagram::WireGuard(WireGuard::Initiation)),
            ),
            (
                &[4, 0, 0, 0],
                Some(Datagram::WireGuard(WireGuard::Transport)),
            ),
            (&stun, Some(Datagram::Stun)),
            (&stun[..19], None),
            (&classic, Some(Datagram::Stun)),
            (&classic[..27], None),
            (&[0x20, 0, 0, 0, 1], Some(Datagram::Channel)),
            (&[0x20, 1, 0, 0], None),
            (&[0xa2], Some(Datagram::Frame)),
            (&[0xa3, 1], Some(Datagram::Discover)),
            (&[5, 0, 0, 0], None),
            (&[1, 0, 0], None),
        ];

        for (bytes, kind) in cases {
            assert_eq!(Datagram::classify(bytes), kind, "{bytes:?}");
        }
    }

    #[test]
    fn a_wireguard_message_may_carry_the_stun_cookie_as_index() {
        let bytes = [1, 0, 0, 0, 0x21, 0x12, 0xa4, 0x42];

        let kind = Datagram::classify(&bytes);

        assert_eq!(kind, Some(Datagram::WireGuard(WireGuard::Initiation)));
    }

    proptest! {
        #[test]
        fn any_bytes_have_a_kind_or_none(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = Datagram::classify(&bytes);
        }
    }
}

//! The data channel on the wire (protocol.md section 7): the messages that set it up, and the header
//! of its packets.
//!
//! | type | message | body |
//! |---|---|---|
//! | 12 | Offer | channel id of L u32, suites u8, ephemeral key of L 32 |
//! | 13 | Accept | channel id of L u32, channel id of H u32, suite u8, ephemeral key of H 32, mac 16 |
//! | 14 | Confirm | channel id of H u32, mac 16 |
//!
//! Suites are the bits of a byte in an Offer (1 AES-256-GCM, 2 CHACHA20-POLY1305), and one of them in
//! an Accept. A packet is
//!
//! ```text
//!  0  0x20   1..3  0   4  receiver's channel id u32   8  counter u64 little-endian
//! 16  ciphertext || 16-byte tag       associated data = bytes 0..16
//! ```

//! The plaintext is an IP packet, or half of one where the path carries less than IPv6 promises
//! (protocol.md section 8): `0x00 or 0x01 (which half) | 0 | id u16 | bytes`; no IP packet begins so.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Bytes before the ciphertext.
pub const HEADER: usize = 16;

/// Bytes after the ciphertext.
pub const TAG: usize = 16;

/// Bytes before the half of a packet.
pub const HALF_HEADER: usize = 4;

/// Bytes of a mac of the handshake.
pub const MAC: usize = 16;

/// First byte of a packet.
const KIND: u8 = 0x20;

/// Returns what stands before the first or second half of the packet numbered `id`.
pub const fn half_header(id: u16, is_second: bool) -> [u8; HALF_HEADER] {
    let [high, low] = id.to_be_bytes();
    [is_second as u8, 0, high, low]
}

/// Reads half of a packet: its number, whether it is the second one, and its bytes; None for a whole one.
pub fn parse_half(plain: &[u8]) -> Option<(u16, bool, &[u8])> {
    let ([which @ (0 | 1), 0, high, low], bytes) = plain.split_first_chunk()? else {
        return None;
    };
    Some((u16::from_be_bytes([*high, *low]), *which == 1, bytes))
}

/// The cipher of a channel; both have 32-byte keys, 12-byte nonces and 16-byte tags.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub enum Suite {
    #[serde(rename = "aes-256-gcm")]
    Aes256Gcm,
    #[serde(rename = "chacha20-poly1305")]
    ChaCha20Poly1305,
}

impl Suite {
    /// Returns the name that status and `--json` carry; it never changes.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Aes256Gcm => "aes-256-gcm",
            Self::ChaCha20Poly1305 => "chacha20-poly1305",
        }
    }

    const fn bit(self) -> u8 {
        match self {
            Self::Aes256Gcm => 1,
            Self::ChaCha20Poly1305 => 2,
        }
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// Which suites an end has; bits of later versions are kept, since the handshake covers them.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Suites(u8);

impl Suites {
    /// No suite: no channel is made, data goes as WireGuard transport.
    pub const NONE: Self = Self(0);

    /// Makes the set of `suites`.
    pub fn of(suites: &[Suite]) -> Self {
        Self(suites.iter().fold(0, |bits, suite| bits | suite.bit()))
    }

    /// Tells whether there is no suite that is known here.
    pub fn is_empty(self) -> bool {
        self.best(self).is_none()
    }

    /// Tells whether `suite` is among them.
    pub const fn has(self, suite: Suite) -> bool {
        self.0 & suite.bit() != 0
    }

    /// Returns the best suite that both have: the fastest where both CPUs have it in hardware.
    pub fn best(self, other: Self) -> Option<Suite> {
        let known = [Suite::Aes256Gcm, Suite::ChaCha20Poly1305];
        known
            .into_iter()
            .find(|suite| self.has(*suite) && other.has(*suite))
    }
}

/// L offers a channel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Offer {
    /// In packets to L.
    pub low: u32,
    pub suites: Suites,
    pub ephemeral: [u8; 32],
}

/// What H accepts: an [`Accept`] without its proof.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Terms {
    pub low: u32,
    /// In packets to H.
    pub high: u32,
    pub suite: Suite,
    pub ephemeral: [u8; 32],
}

/// H accepts, and proves that it has the keys.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Accept {
    pub terms: Terms,
    pub mac: [u8; MAC],
}

/// L proves that it has the keys.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Confirm {
    pub high: u32,
    pub mac: [u8; MAC],
}

/// A message of a channel's handshake.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Message {
    Offer(Offer),
    Accept(Accept),
    Confirm(Confirm),
}

impl Offer {
    /// Returns the body, as the handshake's hash covers it.
    pub fn encode(&self) -> [u8; 37] {
        let mut body = [0; 37];
        put(
            &mut body,
            &[&self.low.to_be_bytes(), &[self.suites.0], &self.ephemeral],
        );
        body
    }

    fn decode(body: &[u8]) -> Option<Self> {
        let (low, rest) = body.split_first_chunk()?;
        let ([suites], rest) = rest.split_first_chunk()?;
        Some(Self {
            low: u32::from_be_bytes(*low),
            suites: Suites(*suites),
            ephemeral: *rest.first_chunk()?,
        })
    }
}

impl Terms {
    /// Returns the body without mac, as the handshake's hash covers it.
    pub fn encode(&self) -> [u8; 41] {
        let (low, high) = (self.low.to_be_bytes(), self.high.to_be_bytes());
        let mut body = [0; 41];
        put(
            &mut body,
            &[&low, &high, &[self.suite.bit()], &self.ephemeral],
        );
        body
    }

    fn decode(body: &[u8]) -> Option<(Self, &[u8])> {
        let (low, rest) = body.split_first_chunk()?;
        let (high, rest) = rest.split_first_chunk()?;
        let ([suite], rest) = rest.split_first_chunk()?;
        let (ephemeral, rest) = rest.split_first_chunk()?;
        let suite = match *suite {
            1 => Suite::Aes256Gcm,
            2 => Suite::ChaCha20Poly1305,
            _ => return None,
        };
        let terms = Self {
            low: u32::from_be_bytes(*low),
            high: u32::from_be_bytes(*high),
            suite,
            ephemeral: *ephemeral,
        };
        Some((terms, rest))
    }
}

impl Message {
    /// Returns the control type.
    pub(super) const fn kind(&self) -> u16 {
        match self {
            Self::Offer(_) => 12,
            Self::Accept(_) => 13,
            Self::Confirm(_) => 14,
        }
    }

    pub(super) fn encode(&self, body: &mut Vec<u8>) {
        match self {
            Self::Offer(offer) => body.extend(offer.encode()),
            Self::Accept(accept) => {
                body.extend(accept.terms.encode());
                body.extend(accept.mac);
            }
            Self::Confirm(confirm) => {
                body.extend(confirm.high.to_be_bytes());
                body.extend(confirm.mac);
            }
        }
    }

    pub(super) fn decode(kind: u16, body: &[u8]) -> Option<Self> {
        match kind {
            12 => Offer::decode(body).map(Self::Offer),
            13 => {
                let (terms, rest) = Terms::decode(body)?;
                let mac = *rest.first_chunk()?;
                Some(Self::Accept(Accept { terms, mac }))
            }
            14 => {
                let (high, rest) = body.split_first_chunk()?;
                let (high, mac) = (u32::from_be_bytes(*high), *rest.first_chunk()?);
                Some(Self::Confirm(Confirm { high, mac }))
            }
            _ => None,
        }
    }
}

/// Writes a packet's header.
pub fn header(channel: u32, counter: u64) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    put(
        &mut header,
        &[
            &[KIND, 0, 0, 0],
            &channel.to_be_bytes(),
            &counter.to_le_bytes(),
        ],
    );
    header
}

/// Returns the channel id and counter of a packet long enough to be one; None of other datagrams.
pub fn parse(packet: &[u8]) -> Option<(u32, u64)> {
    let (start, rest) = packet.split_first_chunk::<4>()?;
    let (channel, rest) = rest.split_first_chunk()?;
    let (counter, rest) = rest.split_first_chunk()?;
    let is_one = *start == [KIND, 0, 0, 0] && rest.len() >= TAG;
    is_one.then(|| (u32::from_be_bytes(*channel), u64::from_le_bytes(*counter)))
}

fn put(body: &mut [u8], fields: &[&[u8]]) {
    for (to, from) in body.iter_mut().zip(fields.iter().copied().flatten()) {
        *to = *from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::control::Control;
    use proptest::prelude::*;

    #[test]
    fn messages_come_back_as_they_were_sent() {
        let offer = Offer {
            low: 0x0102_0304,
            suites: Suites(0x83),
            ephemeral: [7; 32],
        };
        let terms = Terms {
            low: 1,
            high: 2,
            suite: Suite::ChaCha20Poly1305,
            ephemeral: [8; 32],
        };
        let mac = [9; MAC];
        for message in [
            Message::Offer(offer),
            Message::Accept(Accept { terms, mac }),
            Message::Confirm(Confirm { high: 3, mac }),
        ] {
            let sent = Control::Channel(message);

            let packet = sent.packet().unwrap();

            assert_eq!(Control::parse(&packet), Some(sent));
            for cut in 44..packet.len() {
                let mut short = packet[..cut].to_vec();
                short[4..6].copy_from_slice(&u16::try_from(cut - 40).unwrap().to_be_bytes());
                let length = u16::try_from(cut - 44).unwrap().to_be_bytes();
                short[42..44].copy_from_slice(&length);
                assert_eq!(Control::parse(&short), None, "{cut}");
            }
        }
    }

    #[test]
    fn of_the_suites_that_both_have_the_better_is_taken() {
        let (aes, chacha) = (Suite::Aes256Gcm, Suite::ChaCha20Poly1305);
        let (both, old) = (Suites::of(&[chacha, aes]), Suites::of(&[chacha]));

        assert_eq!(both.best(both), Some(aes));
        assert_eq!(both.best(old), Some(chacha));
        assert_eq!(Suites::of(&[aes]).best(old), None);
        assert!(Suites::NONE.is_empty() && Suites(0x80).is_empty() && !old.is_empty());
    }

    proptest! {
        #[test]
        fn headers_come_back(channel: u32, counter: u64, length in 0_usize..40) {
            let mut packet = header(channel, counter).to_vec();
            packet.resize(HEADER + length, 0);
            let whole = (length >= TAG).then_some((channel, counter));
            prop_assert_eq!(parse(&packet), whole);
            packet[1] = 1;
            prop_assert_eq!(parse(&packet), None);
        }
    }
}

//! The A2G frame between an agent and its gateway (protocol.md section 5).
//!
//! ```text
//!  0  0xA2     1  version 1 (high 4 bits) | kind (low 4 bits)     2  TTL     3  target prefix length
//!  4  hop id of the receiver      8  message id      16  target      32  source      48  tag
//! ```
//!
//! Kinds: 0 carries a message, 1 Heartbeat, 2 SessionEnd, 3 Displaced; 1 to 3 have no payload and go
//! between the agent's address and the gateway's. 4 marks a Reset, which is no frame: byte 0, byte 1,
//! two zero bytes, hop id, 16-byte token; 24 bytes, so shorter than any frame.
//!
//! Keys: HKDF-SHA-256 with empty salt over the hop secret; info = "a2g", direction ("up" to the
//! gateway, "down" from it) and "tag" or "mask", each preceded by its length as u64 big-endian.
//! Tag = SipHash-2-4(k_tag, bytes 0..48 in plain || first 16 payload bytes, or as many as there are).
//! Mask word i of bytes 8..48 = SipHash-2-4(k_mask, tag || i), i one byte. SipHash values travel big-endian.

use std::{fmt, hash::Hasher, net::Ipv6Addr};

use aws_lc_rs::hkdf;
use siphasher::sip::SipHasher24;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::id::{AddressError, AgentId, Did, DomainPrefix, OverlayIp};

/// Bytes before the payload.
pub const HEADER: usize = 56;

/// Where a frame's TTL starts: agent, two gateways of a domain and two of another, with room.
pub const FIRST_TTL: u8 = 8;

/// Length of a Reset.
pub const RESET: usize = 24;

/// A hop's keys are not used for more frames than this (protocol.md section 5).
pub const MAX_FRAMES: u64 = 1 << 48;

const MAGIC: u8 = 0xa2;
const VERSION: u8 = 1;
const RESET_KIND: u8 = 4;
const TAG_AT: usize = 48;
const MASKED_AT: usize = 8;

/// How much of the payload the tag covers: its type, receiver index and counter.
const COVERED: usize = 16;

/// Which way frames of a hop key go.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Direction {
    /// From the gateway to the agent.
    Down,
    /// From the agent to the gateway.
    Up,
}

/// What a frame is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Carries one message to the target.
    Data,
    /// Keeps the attachment alive; the gateway answers it with one.
    Heartbeat,
    /// Gives the attachment up.
    SessionEnd,
    /// Tells the agent that the same agent attached from elsewhere since.
    Displaced,
}

/// Why bytes are no frame of a hop.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NotAFrame;

/// What stands before the payload.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Header {
    pub kind: Kind,
    pub ttl: u8,
    /// How many bits of `target` count; 128 names one agent.
    pub prefix_len: u8,
    /// The receiver's id of this hop and direction.
    pub hop: u32,
    pub message: u64,
    pub target: Ipv6Addr,
    pub source: Ipv6Addr,
}

/// The keys of one hop and direction, wiped when dropped.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct HopKeys {
    tag: [u8; 16],
    mask: [u8; 16],
}

impl HopKeys {
    /// Derives the keys of one direction from the hop's secret.
    pub fn derive(secret: &[u8; 32], direction: Direction) -> Self {
        let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(secret);
        Self {
            tag: expand(&prk, direction, b"tag"),
            mask: expand(&prk, direction, b"mask"),
        }
    }

    fn tag(&self, plain: &[u8; TAG_AT], payload: &[u8]) -> u64 {
        let mut hasher = SipHasher24::new_with_key(&self.tag);
        // Whole words so far, so that the rest needs no copy.
        hasher.write(plain);
        hasher.hash(payload.get(..COVERED).unwrap_or(payload))
    }

    /// Masks or unmasks bytes 8..48.
    fn mask(&self, header: &mut [u8; TAG_AT], tag: u64) {
        let mut hasher = SipHasher24::new_with_key(&self.mask);
        // The words differ in what follows the tag only.
        hasher.write(&tag.to_be_bytes());
        let (words, _) = header.as_chunks_mut::<8>();
        for (i, word) in (0_u8..).zip(words.iter_mut().skip(MASKED_AT / 8)) {
            let mask = hasher.hash(&[i]).to_be();
            *word = (u64::from_ne_bytes(*word) ^ mask).to_ne_bytes();
        }
    }
}

impl fmt::Debug for HopKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HopKeys")
    }
}

impl Header {
    /// Makes the header of a payload to one agent.
    pub const fn data(hop: u32, message: u64, target: OverlayIp, source: OverlayIp) -> Self {
        Self {
            kind: Kind::Data,
            ttl: FIRST_TTL,
            prefix_len: 128,
            hop,
            message,
            target: target.ip(),
            source: source.ip(),
        }
    }

    /// Makes the header of a frame between an agent and its gateway.
    #[must_use]
    pub const fn of_kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// Writes the header over the first 56 bytes of `frame`, whose payload is in place; false when
    /// there is no room for it.
    pub fn seal(&self, keys: &HopKeys, frame: &mut [u8]) -> bool {
        let Some((header, payload)) = frame.split_first_chunk_mut::<HEADER>() else {
            return false;
        };
        let mut plain = self.encode();
        let tag = keys.tag(&plain, payload);
        keys.mask(&mut plain, tag);
        let (front, back) = header.split_at_mut(TAG_AT);
        front.copy_from_slice(&plain);
        back.copy_from_slice(&tag.to_be_bytes());
        true
    }

    /// Makes a whole frame of this header and a payload.
    pub fn frame(&self, keys: &HopKeys, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::with_capacity(HEADER + payload.len());
        frame.extend([0; HEADER]);
        frame.extend_from_slice(payload);
        self.seal(keys, &mut frame);
        frame
    }

    /// Unmasks and checks a frame; its payload starts at byte 56.
    pub fn open(keys: &HopKeys, frame: &[u8]) -> Result<Self, NotAFrame> {
        let (header, payload) = frame.split_first_chunk::<HEADER>().ok_or(NotAFrame)?;
        let mut plain: [u8; TAG_AT] = *header.first_chunk().ok_or(NotAFrame)?;
        let tag = u64::from_be_bytes(*header.last_chunk().ok_or(NotAFrame)?);
        keys.mask(&mut plain, tag);
        if !equal(keys.tag(&plain, payload), tag) {
            return Err(NotAFrame);
        }
        let header = Self::decode(&plain)?;
        match header.kind {
            Kind::Data if payload.is_empty() => Err(NotAFrame),
            Kind::Heartbeat | Kind::SessionEnd | Kind::Displaced if !payload.is_empty() => {
                Err(NotAFrame)
            }
            Kind::Data | Kind::Heartbeat | Kind::SessionEnd | Kind::Displaced => Ok(header),
        }
    }

    fn encode(&self) -> [u8; TAG_AT] {
        let kind = match self.kind {
            Kind::Data => 0,
            Kind::Heartbeat => 1,
            Kind::SessionEnd => 2,
            Kind::Displaced => 3,
        };
        let [a, b, c, d] = self.hop.to_be_bytes();
        let [target, source] = [self.target, self.source].map(halves);
        let words = [
            [
                MAGIC,
                VERSION << 4 | kind,
                self.ttl,
                self.prefix_len,
                a,
                b,
                c,
                d,
            ],
            self.message.to_be_bytes(),
            target[0],
            target[1],
            source[0],
            source[1],
        ];
        let mut plain = [0; TAG_AT];
        plain.copy_from_slice(words.as_flattened());
        plain
    }

    fn decode(plain: &[u8; TAG_AT]) -> Result<Self, NotAFrame> {
        let (front, rest) = plain.split_first_chunk::<4>().ok_or(NotAFrame)?;
        let (hop, rest) = rest.split_first_chunk().ok_or(NotAFrame)?;
        let (message, rest) = rest.split_first_chunk().ok_or(NotAFrame)?;
        let (target, rest) = rest.split_first_chunk::<16>().ok_or(NotAFrame)?;
        let source = rest.first_chunk::<16>().ok_or(NotAFrame)?;
        let [MAGIC, version_kind, ttl, prefix_len @ 0..=128] = *front else {
            return Err(NotAFrame);
        };
        let kind = match (version_kind >> 4, version_kind & 0xf) {
            (VERSION, 0) => Kind::Data,
            (VERSION, 1) => Kind::Heartbeat,
            (VERSION, 2) => Kind::SessionEnd,
            (VERSION, 3) => Kind::Displaced,
            _ => return Err(NotAFrame),
        };
        Ok(Self {
            kind,
            ttl,
            prefix_len,
            hop: u32::from_be_bytes(*hop),
            message: u64::from_be_bytes(*message),
            target: Ipv6Addr::from(*target),
            source: Ipv6Addr::from(*source),
        })
    }
}

/// Returns the hop id of a frame, which stands in clear; None for what is no frame.
pub fn hop_id(frame: &[u8]) -> Option<u32> {
    let (header, _) = frame.split_first_chunk::<HEADER>()?;
    match *header {
        [MAGIC, version_kind, _, _, a, b, c, d, ..]
            if version_kind >> 4 == VERSION && version_kind & 0xf != RESET_KIND =>
        {
            Some(u32::from_be_bytes([a, b, c, d]))
        }
        _ => None,
    }
}

/// Tells an agent that its gateway knows nothing of a hop id.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Reset {
    pub hop: u32,
    pub token: [u8; 16],
}

impl Reset {
    /// Writes the message.
    pub fn encode(&self) -> [u8; RESET] {
        let front = [MAGIC, VERSION << 4 | RESET_KIND, 0, 0];
        let bytes = front.into_iter().chain(self.hop.to_be_bytes());
        let mut out = [0; RESET];
        for (to, from) in out.iter_mut().zip(bytes.chain(self.token)) {
            *to = from;
        }
        out
    }

    /// Parses the message; whether the token is right is the receiver's to check.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; RESET] = bytes.try_into().ok()?;
        let (front, rest) = bytes.split_first_chunk::<4>()?;
        let (hop, token) = rest.split_first_chunk()?;
        (*front == [MAGIC, VERSION << 4 | RESET_KIND, 0, 0]).then_some(())?;
        Some(Self {
            hop: u32::from_be_bytes(*hop),
            token: token.try_into().ok()?,
        })
    }

    /// Tells whether this is the Reset that `token` was given out for, in constant time.
    pub fn proves(&self, token: &[u8; 16]) -> bool {
        aws_lc_rs::constant_time::verify_slices_are_equal(&self.token, token).is_ok()
    }
}

/// Returns the overlay address of a gateway: its key's, in the domain's infrastructure network.
pub fn gateway_address(domain: DomainPrefix, gateway: Did) -> Result<OverlayIp, AddressError> {
    domain.network(0).address_of(&AgentId::from(gateway))
}

fn halves(address: Ipv6Addr) -> [[u8; 8]; 2] {
    let bits = address.to_bits();
    [(bits >> 64) as u64, bits as u64].map(u64::to_be_bytes)
}

fn equal(a: u64, b: u64) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(&a.to_be_bytes(), &b.to_be_bytes()).is_ok()
}

fn expand(prk: &hkdf::Prk, direction: Direction, use_of: &[u8]) -> [u8; 16] {
    struct Sixteen;
    impl hkdf::KeyType for Sixteen {
        fn len(&self) -> usize {
            16
        }
    }
    let direction: &[u8] = match direction {
        Direction::Down => b"down",
        Direction::Up => b"up",
    };
    let mut info = Vec::new();
    for part in [b"a2g", direction, use_of] {
        info.extend((part.len() as u64).to_be_bytes());
        info.extend(part);
    }
    let mut out = [0; 16];
    prk.expand(&[&info], Sixteen)
        .and_then(|okm| okm.fill(&mut out))
        .expect("16 bytes are within what HKDF-SHA-256 gives (RFC 5869: 255 x 32)");
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    const VECTORS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/a2g.json");

    fn keys() -> HopKeys {
        HopKeys::derive(&[7; 32], Direction::Up)
    }

    fn header() -> Header {
        let overlay = |text: &str| text.parse::<OverlayIp>().unwrap();
        Header::data(
            0x0102_0304,
            5,
            overlay("fd00:1:2:3::b"),
            overlay("fd00:1:2:3::a"),
        )
    }

    #[test]
    fn the_header_is_56_bytes_with_hop_id_in_clear_and_addresses_masked() {
        let frame = header().frame(&keys(), b"payload");

        assert_eq!(frame.len(), HEADER + 7);
        assert_eq!(&frame[..8], [0xa2, 0x10, 8, 128, 1, 2, 3, 4]);
        assert_eq!(&frame[HEADER..], b"payload");
        assert!(!frame.windows(2).any(|w| w == [0xfd, 0x00]));
        assert_eq!(hop_id(&frame), Some(0x0102_0304));
    }

    #[test]
    fn keys_differ_by_direction() {
        let frame = header().frame(&keys(), b"x");

        let opened = Header::open(&HopKeys::derive(&[7; 32], Direction::Down), &frame);

        assert_eq!(opened, Err(NotAFrame));
    }

    #[test]
    fn frames_without_payload_are_for_the_gateway_only() {
        for kind in [Kind::Heartbeat, Kind::SessionEnd, Kind::Displaced] {
            let signal = header().of_kind(kind);

            assert_eq!(
                Header::open(&keys(), &signal.frame(&keys(), b"")),
                Ok(signal)
            );
            assert!(Header::open(&keys(), &signal.frame(&keys(), b"x")).is_err());
        }
        assert!(Header::open(&keys(), &header().frame(&keys(), b"")).is_err());
    }

    #[test]
    fn a_reset_is_shorter_than_any_frame_and_is_none() {
        let reset = Reset {
            hop: 9,
            token: [3; 16],
        };

        let bytes = reset.encode();

        assert!(bytes.len() < HEADER);
        assert_eq!(Reset::parse(&bytes), Some(reset));
        assert!(reset.proves(&[3; 16]) && !reset.proves(&[4; 16]));
        assert_eq!(hop_id(&bytes), None);
    }

    /// `AGENTNET_WRITE_VECTORS=1 cargo test vectors` writes them anew after a deliberate change.
    #[test]
    fn frames_are_those_of_the_vectors() {
        if std::env::var_os("AGENTNET_WRITE_VECTORS").is_some() {
            let text = serde_json::to_string_pretty(&vectors()).unwrap();
            std::fs::write(VECTORS, text + "\n").unwrap();
        }
        let text = std::fs::read_to_string(VECTORS).unwrap();
        let expected: Value = serde_json::from_str(&text).unwrap();

        assert_eq!(vectors(), expected);
    }

    fn vectors() -> Value {
        let cases = [
            (Direction::Up, Kind::Data, "0011223344556677".to_owned()),
            (
                Direction::Down,
                Kind::Data,
                "04000000aabbccdd0100000000000000c0ffee".to_owned(),
            ),
            (Direction::Up, Kind::Heartbeat, String::new()),
        ];
        let frames = cases
            .into_iter()
            .enumerate()
            .map(|(i, (direction, kind, payload))| {
                let secret: [u8; 32] = std::array::from_fn(|b| b as u8 ^ (i as u8) << 5);
                let keys = HopKeys::derive(&secret, direction);
                let header = Header {
                    message: u64::MAX / 3 + i as u64,
                    ..header()
                }
                .of_kind(kind);
                json!({
                    "secret": hex(&secret), "direction": format!("{direction:?}").to_lowercase(),
                    "tag_key": hex(&keys.tag), "mask_key": hex(&keys.mask),
                    "kind": format!("{kind:?}"), "ttl": header.ttl, "prefix_len": header.prefix_len,
                    "hop": header.hop, "message": header.message.to_string(),
                    "target": header.target.to_string(), "source": header.source.to_string(),
                    "payload": payload, "frame": hex(&header.frame(&keys, &unhex(&payload))),
                })
            });
        let reset = Reset {
            hop: 0xdead_beef,
            token: *b"sixteen byte tok",
        };
        json!({
            "frames": frames.collect::<Vec<_>>(),
            "reset": { "hop": reset.hop, "token": hex(&reset.token), "bytes": hex(&reset.encode()) },
        })
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    fn unhex(text: &str) -> Vec<u8> {
        let digits = (0..text.len()).step_by(2);
        digits
            .map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap())
            .collect()
    }

    proptest! {
        #[test]
        fn frames_survive_the_wire(
            secret: [u8; 32], ttl: u8, prefix_len in 0_u8..=128, hop: u32, message: u64,
            target: u128, source: u128, payload in prop::collection::vec(any::<u8>(), 1..100),
        ) {
            let keys = HopKeys::derive(&secret, Direction::Down);
            let header = Header {
                kind: Kind::Data, ttl, prefix_len, hop, message,
                target: target.into(), source: source.into(),
            };

            let frame = header.frame(&keys, &payload);

            prop_assert_eq!(Header::open(&keys, &frame), Ok(header));
            prop_assert_eq!(hop_id(&frame), Some(hop));
            prop_assert_eq!(&frame[HEADER..], &payload[..]);
        }

        #[test]
        fn a_frame_changed_in_its_covered_part_is_none(at in 0_usize..HEADER + 16, bit in 0_u8..8) {
            let mut frame = header().frame(&keys(), &[9; 40]);
            frame[at] ^= 1 << bit;

            prop_assert!(Header::open(&keys(), &frame).is_err());
        }

        #[test]
        fn any_bytes_give_a_frame_or_none(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
            prop_assert!(Header::open(&keys(), &bytes).is_err());
            let _ = (hop_id(&bytes), Reset::parse(&bytes));
        }
    }
}

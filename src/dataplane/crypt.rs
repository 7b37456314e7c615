//! Pure: packets of a data channel, sealed and opened (protocol.md section 7).

use std::{fmt, ops::Range};

use crate::dataplane::aead::{Key, Library, NONCE};
use crate::engine::channel::DataKey;
use crate::engine::window::ReplayWindow;
use crate::wire::channel::{HEADER, Suite, TAG, header, parse};
use crate::wire::drop::DropReason;

/// Bytes that sealing adds to a packet.
pub(super) const OVERHEAD: usize = HEADER + TAG;

/// Packets that one key seals; the engine replaces a channel long before.
const MAX_PACKETS: u64 = 1 << 40;

/// A nonce is used once: counters only rise, and no two objects have one key.
fn nonce(counter: u64) -> [u8; NONCE] {
    let mut nonce = [0; NONCE];
    if let Some(to) = nonce.last_chunk_mut() {
        *to = counter.to_le_bytes();
    }
    nonce
}

/// Seals for one channel. It is made once from its key and not cloned, so no counter comes twice.
pub(super) struct Sealer {
    key: Key,
    channel: u32,
    next: u64,
}

impl Sealer {
    /// Makes the sealer of the peer's channel `channel`.
    pub(super) fn new(suite: Suite, secret: &DataKey, channel: u32, library: Library) -> Self {
        Self {
            key: Key::new(suite, secret, library),
            channel,
            next: 0,
        }
    }

    /// Seals `plain` into `out`, which is longer by [`OVERHEAD`]; false when the key is used up.
    pub(super) fn seal(&mut self, plain: &[u8], out: &mut [u8]) -> bool {
        if self.next >= MAX_PACKETS || out.len() != plain.len() + OVERHEAD {
            return false;
        }
        let counter = self.next;
        self.next += 1;
        let head = header(self.channel, counter);
        let (to, body) = out.split_at_mut(HEADER);
        to.copy_from_slice(&head);
        self.key.seal(nonce(counter), &head, plain, body)
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealer({:08x}, {})", self.channel, self.next)
    }
}

/// Opens for one channel.
pub(super) struct Opener {
    key: Key,
    window: ReplayWindow,
}

impl Opener {
    pub(super) fn new(suite: Suite, secret: &DataKey, library: Library) -> Self {
        Self {
            key: Key::new(suite, secret, library),
            window: ReplayWindow::new(),
        }
    }

    /// Opens a packet of this channel in place and returns where in it the plain bytes are.
    pub(super) fn open(&mut self, packet: &mut [u8]) -> Result<Range<usize>, DropReason> {
        let (_, counter) = parse(packet).ok_or(DropReason::DatagramMalformed)?;
        let (head, body) = packet
            .split_first_chunk_mut::<HEADER>()
            .ok_or(DropReason::DatagramMalformed)?;
        let opened = self.key.open(nonce(counter), head, body);
        let length = opened.ok_or(DropReason::ChannelInvalid)?;
        self.window
            .take(counter)
            .ok_or(DropReason::ChannelInvalid)?;
        Ok(HEADER..HEADER + length)
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Opener")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::channel::data_key;

    const SUITES: [Suite; 2] = [Suite::Aes256Gcm, Suite::ChaCha20Poly1305];

    fn pair(suite: Suite) -> (Sealer, Opener) {
        let key = data_key([7; 32]);
        (
            Sealer::new(suite, &key, 0x0a0b_0c0d, Library::AwsLc),
            Opener::new(suite, &key, Library::Ring),
        )
    }

    fn seal(sealer: &mut Sealer, plain: &[u8]) -> Vec<u8> {
        let mut out = vec![0; plain.len() + OVERHEAD];
        assert!(sealer.seal(plain, &mut out));
        out
    }

    #[test]
    fn what_was_sealed_opens_once_and_unchanged_only() {
        for suite in SUITES {
            let (mut sealer, mut opener) = pair(suite);
            for length in [0, 1, 40, 1280, 9000] {
                let plain = vec![9; length];
                let packet = seal(&mut sealer, &plain);
                for at in 0..packet.len().min(100) {
                    let mut changed = packet.clone();
                    changed[at] ^= 1;
                    assert!(opener.open(&mut changed).is_err(), "{suite} {length} {at}");
                }
                for cut in 0..packet.len().min(50) {
                    let mut short = packet[..packet.len() - 1 - cut].to_vec();
                    assert!(opener.open(&mut short).is_err());
                }

                let mut whole = packet.clone();
                let place = opener.open(&mut whole).unwrap();
                assert_eq!(whole[place], plain);
                let replayed = opener.open(&mut packet.clone());
                assert_eq!(replayed, Err(DropReason::ChannelInvalid));
            }
        }
    }

    /// A packet opens with the key of its direction, its channel and its suite only.
    #[test]
    fn packets_of_another_key_suite_or_channel_do_not_open() {
        let (mut sealer, _) = pair(Suite::Aes256Gcm);
        let packet = seal(&mut sealer, b"packet");
        let mut others = [
            Opener::new(Suite::Aes256Gcm, &data_key([8; 32]), Library::AwsLc),
            Opener::new(Suite::ChaCha20Poly1305, &data_key([7; 32]), Library::AwsLc),
        ];
        for other in &mut others {
            let opened = other.open(&mut packet.clone());
            assert_eq!(opened, Err(DropReason::ChannelInvalid));
        }
    }

    #[test]
    fn late_packets_open_within_the_window() {
        let (mut sealer, mut opener) = pair(Suite::Aes256Gcm);
        let mut first = seal(&mut sealer, b"first");
        let mut second = seal(&mut sealer, b"second");
        for _ in 0..8190 {
            seal(&mut sealer, b"");
        }
        assert!(opener.open(&mut seal(&mut sealer, b"newest")).is_ok());

        assert!(opener.open(&mut second).is_ok());
        assert!(opener.open(&mut first).is_err());
    }

    #[test]
    fn a_used_up_key_seals_nothing() {
        let (mut sealer, _) = pair(Suite::Aes256Gcm);
        sealer.next = MAX_PACKETS;

        assert!(!sealer.seal(b"", &mut [0; OVERHEAD]));
    }

    /// The vectors were made by another implementation of protocol.md section 7 (Python).
    #[test]
    fn packets_agree_with_their_vectors() {
        let text = include_str!("../../tests/vectors/channel.json");
        let vector: serde_json::Value = serde_json::from_str(text).unwrap();
        let bytes = |name: &str| -> Vec<u8> {
            let text = vector[name].as_str().unwrap();
            let digits = (0..text.len()).step_by(2).map(|i| &text[i..i + 2]);
            digits.map(|d| u8::from_str_radix(d, 16).unwrap()).collect()
        };
        let key = data_key(bytes("key_low_to_high").try_into().unwrap());
        for (suite, name) in [
            (Suite::Aes256Gcm, "packet_aes_256_gcm"),
            (Suite::ChaCha20Poly1305, "packet_chacha20_poly1305"),
        ] {
            let mut sealer = Sealer::new(suite, &key, 0x0506_0708, Library::Ring);
            sealer.next = 7;

            assert_eq!(seal(&mut sealer, &bytes("plain")), bytes(name), "{suite}");
        }
    }
}

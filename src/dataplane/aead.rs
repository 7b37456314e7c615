//! Pure: the ciphers of data channels (RFC 5116), by the library that is faster on this processor.

use crate::engine::channel::DataKey;
use crate::wire::channel::{Suite, TAG};

/// Bytes of a nonce; both ciphers take as many.
pub(super) const NONCE: usize = 12;

/// Whose code seals and opens; the bytes are the same.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Library {
    AwsLc,
    Ring,
}

/// A key for one suite.
pub(super) enum Key {
    AwsLc(aws_lc_rs::aead::LessSafeKey),
    Ring(ring::aead::LessSafeKey),
}

impl Key {
    /// Makes the key of `suite`, for AES-256-GCM by `library`: for the other suite both are alike.
    pub(super) fn new(suite: Suite, secret: &DataKey, library: Library) -> Self {
        match (suite, library) {
            (Suite::Aes256Gcm, Library::Ring) => {
                use ring::aead::{AES_256_GCM, LessSafeKey, UnboundKey};
                let key = UnboundKey::new(&AES_256_GCM, secret.as_bytes());
                Self::Ring(LessSafeKey::new(key.expect("it takes 32 bytes")))
            }
            (Suite::Aes256Gcm, Library::AwsLc) => {
                Self::by_aws_lc(&aws_lc_rs::aead::AES_256_GCM, secret)
            }
            (Suite::ChaCha20Poly1305, Library::AwsLc | Library::Ring) => {
                Self::by_aws_lc(&aws_lc_rs::aead::CHACHA20_POLY1305, secret)
            }
        }
    }

    fn by_aws_lc(algorithm: &'static aws_lc_rs::aead::Algorithm, secret: &DataKey) -> Self {
        let key = aws_lc_rs::aead::UnboundKey::new(algorithm, secret.as_bytes());
        Self::AwsLc(aws_lc_rs::aead::LessSafeKey::new(
            key.expect("both take 32 bytes"),
        ))
    }

    /// Seals `plain` into `out`, which is longer by [`TAG`]; false when it is not. A nonce must not come
    /// twice.
    pub(super) fn seal(
        &self,
        nonce: [u8; NONCE],
        associated: &[u8],
        plain: &[u8],
        out: &mut [u8],
    ) -> bool {
        let Some((sealed, tag)) = out.split_at_mut_checked(plain.len()) else {
            return false;
        };
        match self {
            Self::AwsLc(key) => {
                use aws_lc_rs::aead::{Aad, Nonce};
                let (nonce, associated) =
                    (Nonce::assume_unique_for_key(nonce), Aad::from(associated));
                key.seal_out_of_place_scatter(nonce, associated, plain, sealed, &[], tag)
                    .is_ok()
            }
            Self::Ring(key) => {
                use ring::aead::{Aad, Nonce};
                let (nonce, associated) =
                    (Nonce::assume_unique_for_key(nonce), Aad::from(associated));
                // It seals in place only; a copy costs a tenth of what it saves.
                sealed.copy_from_slice(plain);
                let made = key.seal_in_place_separate_tag(nonce, associated, sealed);
                let (Ok(made), Ok(tag)) = (made, <&mut [u8; TAG]>::try_from(tag)) else {
                    return false;
                };
                tag.copy_from_slice(made.as_ref());
                true
            }
        }
    }

    /// Opens in place and returns the length of what was sealed; None when it does not open.
    pub(super) fn open(
        &self,
        nonce: [u8; NONCE],
        associated: &[u8],
        sealed: &mut [u8],
    ) -> Option<usize> {
        match self {
            Self::AwsLc(key) => {
                use aws_lc_rs::aead::{Aad, Nonce};
                let nonce = Nonce::assume_unique_for_key(nonce);
                let opened = key.open_in_place(nonce, Aad::from(associated), sealed);
                opened.ok().map(|plain| plain.len())
            }
            Self::Ring(key) => {
                use ring::aead::{Aad, Nonce};
                let nonce = Nonce::assume_unique_for_key(nonce);
                let opened = key.open_in_place(nonce, Aad::from(associated), sealed);
                opened.ok().map(|plain| plain.len())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::channel::data_key;

    /// What one library seals the other opens, and neither opens it changed.
    #[test]
    fn libraries_agree() {
        let key = |library| Key::new(Suite::Aes256Gcm, &data_key([7; 32]), library);
        let (aws_lc, ring) = (key(Library::AwsLc), key(Library::Ring));
        for (length, one, other) in [0, 1, 15, 16, 17, 255, 1280, 9000]
            .into_iter()
            .flat_map(|n| [(n, &aws_lc, &ring), (n, &ring, &aws_lc)])
        {
            let plain: Vec<u8> = (0..length).map(|n: u32| (n % 251) as u8).collect();
            let mut sealed = vec![0; plain.len() + TAG];
            assert!(one.seal([9; NONCE], b"head", &plain, &mut sealed));
            let mut same = vec![0; plain.len() + TAG];
            assert!(other.seal([9; NONCE], b"head", &plain, &mut same));
            assert_eq!(sealed, same);

            let mut bad = sealed.clone();
            bad[plain.len() / 2] ^= 1;
            assert_eq!(other.open([9; NONCE], b"head", &mut bad), None);
            assert_eq!(other.open([9; NONCE], b"tail", &mut sealed.clone()), None);
            assert_eq!(
                other.open([9; NONCE], b"head", &mut sealed),
                Some(plain.len())
            );
            assert_eq!(sealed[..plain.len()], plain);
        }
        assert!(!ring.seal([9; NONCE], b"", b"plain", &mut [0; 5 + TAG - 1]));
    }
}

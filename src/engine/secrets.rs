//! Random bytes whose past is gone.

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha20Rng;
use zeroize::Zeroizing;

/// Draws secrets none of which can be drawn again: with each the generator takes another key, and
/// the one before is gone.
///
/// A generator that only counts would tell who captures a host later every ephemeral key it drew.
#[derive(Debug)]
pub(crate) struct Secrets(ChaCha20Rng);

impl Secrets {
    /// Begins with 32 random bytes that nobody keeps.
    pub(crate) fn new(seed: &Zeroizing<[u8; 32]>) -> Self {
        Self(ChaCha20Rng::from_seed(**seed))
    }

    /// Draws 32 bytes.
    pub(crate) fn draw(&mut self) -> Zeroizing<[u8; 32]> {
        let (mut secret, mut next) = (Zeroizing::new([0; 32]), Zeroizing::new([0; 32]));
        self.0.fill_bytes(&mut *secret);
        self.0.fill_bytes(&mut *next);
        self.0 = ChaCha20Rng::from_seed(*next);
        secret
    }

    /// Returns a generator of what is no secret.
    pub(crate) const fn plain(&mut self) -> &mut ChaCha20Rng {
        &mut self.0
    }

    /// Returns what who captures the generator can draw from its key on.
    #[cfg(test)]
    pub(crate) fn captured(&self, bytes: usize) -> Vec<u8> {
        let mut rng = self.0.clone();
        rng.set_word_pos(0);
        let mut all = vec![0; bytes];
        rng.fill_bytes(&mut all);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// P-018
    #[test]
    fn what_was_drawn_cannot_be_drawn_again() {
        let mut secrets = Secrets::new(&Zeroizing::new([7; 32]));
        let first = secrets.captured(64);
        let drawn = [secrets.draw(), secrets.draw(), secrets.draw()];
        secrets.plain().next_u64();

        let captured = secrets.captured(4096);

        assert_eq!(first[..32], *drawn[0], "of what is to come it shows all");
        for secret in &drawn {
            assert!(!captured.windows(32).any(|window| window == **secret));
        }
        assert!(captured.windows(32).all(|window| window != &first[32..]));
    }
}

//! The only place that draws entropy; everything else takes a seed.

/// Returns 32 fresh random bytes of the kernel.
///
/// # Panics
///
/// If the kernel gives none: without randomness no key is safe, so nothing may go on.
pub fn seed() -> [u8; 32] {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).expect("the kernel has randomness");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_differ() {
        assert_ne!(seed(), seed());
    }
}

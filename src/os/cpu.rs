//! What the processor can do.

use std::{num::NonZero, thread};

/// Returns how many processors this process may use, as far as that is known.
pub fn count() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// Tells whether AES-GCM runs in hardware: without, it is slow, and its time tells of keys.
pub fn has_aes() -> bool {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    let has = std::arch::is_x86_feature_detected!("aes")
        && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    let has = std::arch::is_aarch64_feature_detected!("aes")
        && std::arch::is_aarch64_feature_detected!("pmull");
    #[cfg(not(any(target_arch = "x86", target_arch = "x86_64", target_arch = "aarch64")))]
    let has = false;
    has
}

/// Tells whether AES-GCM is faster with ring than with aws-lc: where vectors carry several AES blocks
/// but are not as wide as AVX-512, for which aws-lc alone has code.
pub fn prefers_ring() -> bool {
    #[cfg(target_arch = "x86_64")]
    let prefers = std::arch::is_x86_feature_detected!("vaes")
        && !(std::arch::is_x86_feature_detected!("avx512f")
            && std::arch::is_x86_feature_detected!("avx512bw")
            && std::arch::is_x86_feature_detected!("avx512dq")
            && std::arch::is_x86_feature_detected!("avx512vl"));
    #[cfg(not(target_arch = "x86_64"))]
    let prefers = false;
    prefers
}

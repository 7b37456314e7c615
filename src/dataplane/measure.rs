//! The inner steps of the fast path one by one, for micro-benchmarks; nothing else calls this.

use crate::dataplane::crypt::{OVERHEAD, Opener, Sealer};
use crate::dataplane::offload::{self, Merger, Takes, VIRTIO, VirtioHeader};
use crate::dataplane::worker::library;
use crate::engine::channel::data_key;
use crate::id::OverlayIp;
use crate::wire::channel::Suite;

/// A channel that seals for itself.
#[derive(Debug)]
pub struct Loop {
    sealer: Sealer,
    opener: Opener,
}

impl Loop {
    /// Bytes that sealing adds.
    pub const OVERHEAD: usize = OVERHEAD;

    /// Makes a channel of a fixed key, by the library that this processor is given.
    pub fn new(suite: Suite) -> Self {
        let key = data_key([7; 32]);
        Self {
            sealer: Sealer::new(suite, &key, 1, library()),
            opener: Opener::new(suite, &key, library()),
        }
    }

    /// Seals `plain` into `out`, which is longer by [`Loop::OVERHEAD`].
    pub fn seal(&mut self, plain: &[u8], out: &mut [u8]) -> bool {
        self.sealer.seal(plain, out)
    }

    /// Opens a packet in place.
    pub fn open(&mut self, packet: &mut [u8]) -> bool {
        self.opener.open(packet).is_ok()
    }
}

/// Cuts what a TUN gave, its virtio header first, into packets of at most `mtu` bytes.
pub fn split(read: &mut [u8], mtu: usize, each: impl FnMut(&[u8])) -> bool {
    let Some((header, packet)) = read.split_first_chunk_mut::<VIRTIO>() else {
        return false;
    };
    offload::split(&VirtioHeader::parse(header), packet, Some(mtu), each).is_ok()
}

/// Collects packets of `size` bytes that lie one after the other into runs, and returns how many runs a TUN
/// would be given.
pub fn coalesce(merger: &mut Coalescer, local: OverlayIp, packets: &[u8], size: usize) -> usize {
    let takes = Takes {
        tcp: true,
        udp: true,
    };
    for start in (0..packets.len()).step_by(size) {
        let end = (start + size).min(packets.len());
        merger.0.add(local, packets, start..end, takes);
    }
    let mut runs = 0;
    merger.0.drain(|_| runs += 1);
    runs
}

/// What keeps packets of a burst together.
#[derive(Debug, Default)]
pub struct Coalescer(Merger);

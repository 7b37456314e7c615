use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha20Rng;

use crate::engine::path::Path;

/// Pause between probes to one peer, which makes at most 20 per second (protocol.md section 6).
const GAP: Duration = Duration::from_millis(50);

/// Time after which a probe counts as lost: more than any RTT but congestion's.
const PATIENCE: Duration = Duration::from_secs(3);

/// A probe that is on its way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) path: Path,
    pub(super) at: Instant,
}

/// The probes of one peer: made at a bounded rate, matched with their replies by unguessable ids.
///
/// Rate and patience also bound how many are on their way: 60.
#[derive(Debug)]
pub(super) struct Probes {
    rng: ChaCha20Rng,
    under_way: BTreeMap<u64, Sent>,
    made: VecDeque<(u64, u16, Path)>,
    free_at: Instant,
}

impl Probes {
    pub(super) fn new(seed: [u8; 32], now: Instant) -> Self {
        Self {
            rng: ChaCha20Rng::from_seed(seed),
            under_way: BTreeMap::new(),
            made: VecDeque::new(),
            free_at: now,
        }
    }

    /// Returns when the next probe may go.
    pub(super) const fn free_at(&self) -> Instant {
        self.free_at
    }

    pub(super) fn make(&mut self, path: Path, number: u16, now: Instant) {
        let id = self.rng.next_u64();
        self.under_way.insert(id, Sent { path, at: now });
        self.made.push_back((id, number, path));
        self.free_at = now + GAP;
    }

    pub(super) fn poll(&mut self) -> Option<(u64, u16, Path)> {
        self.made.pop_front()
    }

    pub(super) fn answered(&mut self, id: u64) -> Option<Sent> {
        self.under_way.remove(&id)
    }

    /// Takes out the paths whose probes were lost, each as often as one was.
    pub(super) fn lost(&mut self, now: Instant) -> Vec<Path> {
        let mut lost = Vec::new();
        self.under_way.retain(|_, sent| {
            let is_lost = now >= sent.at + PATIENCE;
            if is_lost {
                lost.push(sent.path);
            }
            !is_lost
        });
        lost
    }

    /// Returns when the next probe counts as lost.
    pub(super) fn next_loss(&self) -> Option<Instant> {
        let first = self.under_way.values().map(|sent| sent.at).min();
        first.map(|at| at + PATIENCE)
    }

    pub(super) fn forget(&mut self) {
        self.under_way.clear();
        self.made.clear();
    }
}

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha20Rng;

use crate::engine::path::{Path, Probe};

/// Pause between probes to one peer, which makes at most 20 per second (protocol.md section 6).
const GAP: Duration = Duration::from_millis(50);

/// Pause after one that comes to nobody.
const BRIEF_GAP: Duration = Duration::from_millis(10);

/// Time after which a probe counts as lost: more than any RTT but congestion's.
const PATIENCE: Duration = Duration::from_secs(3);

/// A probe that is on its way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) path: Path,
    pub(super) at: Instant,
    /// Size that it asks for; None when it asks whether the path answers.
    pub(super) size: Option<u16>,
    patience: Duration,
}

impl Sent {
    fn lost_at(&self) -> Instant {
        self.at + self.patience
    }
}

/// The probes of one peer: made at a bounded rate, matched with their replies by unguessable ids.
///
/// Rate and patience also bound how many are on their way: 60.
#[derive(Debug)]
pub(super) struct Probes {
    rng: ChaCha20Rng,
    under_way: BTreeMap<u64, Sent>,
    made: VecDeque<Probe>,
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

    /// Makes a probe; `sized` is how long its packet is, and when it counts as lost.
    pub(super) fn make(
        &mut self,
        path: Path,
        number: u16,
        sized: Option<(u16, Duration)>,
        now: Instant,
    ) {
        let id = self.rng.next_u64();
        let size = sized.map(|(size, _)| size);
        let sent = Sent {
            path,
            at: now,
            size,
            patience: sized.map_or(PATIENCE, |(_, patience)| patience),
        };
        self.under_way.insert(id, sent);
        let is_brief = false;
        self.made.push_back(Probe {
            id,
            number,
            path,
            size,
            is_brief,
        });
        self.free_at = now + GAP;
    }

    /// Makes a probe that only opens the NATs on our side.
    pub(super) fn open(&mut self, path: Path, number: u16, now: Instant) {
        self.made.push_back(Probe {
            id: self.rng.next_u64(),
            number,
            path,
            size: None,
            is_brief: true,
        });
        self.free_at = now + BRIEF_GAP;
    }

    /// Makes a probe whose reply nobody waits for: the peer's own comes once it is heard.
    pub(super) fn guess(&mut self, path: Path) {
        self.made.push_back(Probe {
            id: self.rng.next_u64(),
            number: 1,
            path,
            size: None,
            is_brief: false,
        });
    }

    /// Returns an id for a probe that goes its own way.
    pub(super) fn number(&mut self) -> u64 {
        self.rng.next_u64()
    }

    /// Returns any port that is not below `first`.
    pub(super) fn port(&mut self, first: u16) -> u16 {
        let count = u32::from(u16::MAX - first) + 1;
        let random = self.rng.next_u32() % count;
        first.saturating_add(u16::try_from(random).unwrap_or(u16::MAX))
    }

    pub(super) fn poll(&mut self) -> Option<Probe> {
        self.made.pop_front()
    }

    pub(super) fn answered(&mut self, id: u64) -> Option<Sent> {
        self.under_way.remove(&id)
    }

    /// Takes out the probes that were lost.
    pub(super) fn lost(&mut self, now: Instant) -> Vec<Sent> {
        let mut lost = Vec::new();
        self.under_way.retain(|_, sent| {
            let is_lost = now >= sent.lost_at();
            if is_lost {
                lost.push(*sent);
            }
            !is_lost
        });
        lost
    }

    /// Returns when the next probe counts as lost.
    pub(super) fn next_loss(&self) -> Option<Instant> {
        self.under_way.values().map(Sent::lost_at).min()
    }

    pub(super) fn forget(&mut self) {
        self.under_way.clear();
        self.made.clear();
    }
}

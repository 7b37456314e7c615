use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::wire::ip::Fragment;

/// Half of the 60 s in which RFC 8200 section 4.5 lets a packet become whole.
const LIFETIME: Duration = Duration::from_secs(30);

/// Packets of one peer whose first fragment has passed, oldest first.
#[derive(Debug, Default)]
pub(super) struct Fragments {
    passed: VecDeque<Passed>,
}

#[derive(Debug)]
struct Passed {
    id: u32,
    /// Where the first fragment ends: what overlaps it could rewrite its ports.
    end: u16,
    at: Instant,
}

impl Fragments {
    /// Remembers that the first fragment `first` has passed; beyond `limit` the oldest is dropped.
    pub(super) fn pass(&mut self, first: Fragment, limit: usize, now: Instant) {
        self.expire(now);
        let known = self.passed.iter().position(|p| p.id == first.id);
        let known = known.and_then(|at| self.passed.remove(at));
        let end = known.map_or(first.end, |k| k.end.max(first.end));
        if self.passed.len() >= limit {
            self.passed.pop_front();
        }
        self.passed.push_back(Passed {
            id: first.id,
            end,
            at: now,
        });
    }

    /// Tells whether the later fragment `later` follows a first one that has passed.
    pub(super) fn follows(&self, later: Fragment, now: Instant) -> bool {
        let known = self.passed.iter().find(|p| p.id == later.id);
        known.is_some_and(|p| now < p.at + LIFETIME && later.start >= p.end)
    }

    /// Forgets what is too old to become whole.
    pub(super) fn expire(&mut self, now: Instant) {
        while self.passed.front().is_some_and(|p| now >= p.at + LIFETIME) {
            self.passed.pop_front();
        }
    }

    /// Forgets everything, so that the rest of no packet passes.
    pub(super) fn clear(&mut self) {
        self.passed.clear();
    }

    /// Tells whether nothing is remembered.
    pub(super) fn is_empty(&self) -> bool {
        self.passed.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "an epoch for the test")]
    fn epoch() -> Instant {
        Instant::now()
    }

    fn part(id: u32, start: u16, end: u16) -> Fragment {
        Fragment { id, start, end }
    }

    #[test]
    fn a_later_fragment_follows_its_own_first_only() {
        let now = epoch();
        let mut fragments = Fragments::default();

        fragments.pass(part(1, 0, 64), 4, now);

        assert!(fragments.follows(part(1, 64, 80), now));
        assert!(fragments.follows(part(1, 640, 800), now));
        assert!(!fragments.follows(part(2, 64, 80), now));
        assert!(!fragments.follows(part(1, 64, 80), now + LIFETIME));
    }

    /// RFC 5722: overlapping fragments are an attack on the first one's ports.
    #[test]
    fn what_overlaps_the_first_fragment_does_not_follow() {
        let now = epoch();
        let mut fragments = Fragments::default();

        fragments.pass(part(1, 0, 64), 4, now);
        fragments.pass(part(1, 0, 8), 4, now);

        assert!(!fragments.follows(part(1, 8, 80), now));
        assert!(!fragments.follows(part(1, 56, 80), now));
    }

    #[test]
    fn the_oldest_gives_way() {
        let now = epoch();
        let mut fragments = Fragments::default();

        for id in 0..9 {
            fragments.pass(part(id, 0, 8), 4, now);
        }

        assert_eq!(fragments.passed.len(), 4);
        assert!(!fragments.follows(part(4, 8, 16), now));
        assert!(fragments.follows(part(5, 8, 16), now));
        fragments.expire(now + LIFETIME);
        assert!(fragments.is_empty());
    }
}

//! How long the way to a gateway takes, and when another one is better.

use std::time::Duration;

/// What makes one way better than another: both, so that jitter does not make data hop about
/// (protocol.md section 6: 20 % and 5 ms).
const FASTER_PERCENT: u32 = 20;
const FASTER: Duration = Duration::from_millis(5);

/// Weight of what was known when a new sample comes: 7 of 8 (RFC 6298 section 2.3).
const WEIGHT: u32 = 8;

/// Tells whether `new` is so much shorter than `old` that a change pays.
pub(crate) fn is_faster(new: Duration, old: Duration) -> bool {
    new * 100 <= old * (100 - FASTER_PERCENT) && new + FASTER <= old
}

/// A smoothed round-trip time.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Rtt(Option<Duration>);

impl Rtt {
    /// Takes a sample.
    pub(crate) fn add(&mut self, sample: Duration) {
        let smooth = |old: Duration| (old * (WEIGHT - 1) + sample) / WEIGHT;
        self.0 = Some(self.0.map_or(sample, smooth));
    }

    /// Returns what is known; None before the first sample.
    pub(crate) const fn get(self) -> Option<Duration> {
        self.0
    }

    /// Tells whether a change from `old` to this pays; never while either is not known.
    pub(crate) fn is_faster_than(self, old: Self) -> bool {
        let both = self.0.zip(old.0);
        both.is_some_and(|(new, old)| is_faster(new, old))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn a_way_is_faster_by_a_fifth_and_by_5_ms() {
        assert!(is_faster(ms(80), ms(100)) && !is_faster(ms(81), ms(100)));
        assert!(is_faster(ms(15), ms(20)) && !is_faster(ms(16), ms(20)));
        assert!(!is_faster(ms(1), ms(5)) && is_faster(ms(0), ms(5)));
    }

    /// One sample that is off moves little.
    #[test]
    fn samples_are_smoothed() {
        let mut rtt = Rtt::default();
        assert_eq!(rtt.get(), None);
        rtt.add(ms(80));
        rtt.add(ms(160));

        assert_eq!(rtt.get(), Some(ms(90)));
    }

    #[test]
    fn what_is_not_known_is_not_faster() {
        let mut known = Rtt::default();
        known.add(ms(1));

        assert!(!known.is_faster_than(Rtt::default()) && !Rtt::default().is_faster_than(known));
    }
}

//! Pure: how much passes in a second, from counts that cost a frame two additions.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// What is counted together: so long that bursts even out, so short that operators see what is now.
const WINDOW: Duration = Duration::from_secs(2);

/// Frames, and bytes of frames, a second.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Rate {
    pub packets: u64,
    pub bytes: u64,
}

/// Counts what passes, window by window.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Meter {
    since: Instant,
    packets: u64,
    bytes: u64,
    /// Of the window before.
    last: Rate,
}

impl Meter {
    pub(crate) const fn new(now: Instant) -> Self {
        let last = Rate {
            packets: 0,
            bytes: 0,
        };
        Self {
            since: now,
            packets: 0,
            bytes: 0,
            last,
        }
    }

    /// Counts a frame of `size` bytes.
    pub(crate) fn note(&mut self, size: usize, now: Instant) {
        if now >= self.since + WINDOW {
            let last = self.rate(now);
            *self = Self {
                last,
                ..Self::new(now)
            };
        }
        self.packets += 1;
        self.bytes += size as u64;
    }

    /// Returns the rate of the last whole window, or of the time since the last frame's began if that is
    /// longer.
    pub(crate) fn rate(&self, now: Instant) -> Rate {
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed < WINDOW {
            return self.last;
        }
        let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        let per_second = |count: u64| count.saturating_mul(1000) / millis.max(1);
        Rate {
            packets: per_second(self.packets),
            bytes: per_second(self.bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "tests need an epoch")]
    fn start() -> Instant {
        Instant::now()
    }

    #[test]
    fn a_rate_is_of_the_last_two_seconds_and_falls_to_nothing() {
        let start = start();
        let at = |millis| start + Duration::from_millis(millis);
        let mut meter = Meter::new(start);
        assert_eq!(meter.rate(at(0)), Rate::default());

        for n in 0..500 {
            meter.note(100, at(n * 10));
        }

        let rate = Rate {
            packets: 100,
            bytes: 10_000,
        };
        assert_eq!(meter.rate(at(5000)), rate);
        assert_eq!(meter.rate(at(8000)).packets, 25);
        meter.note(100, at(1_000_000));
        assert_eq!(meter.rate(at(1_000_001)).packets, 0);
    }
}

//! Pure: how much each agent may send through this gateway.

use std::time::{Duration, Instant};

/// What an agent that was silent may send at once: as much as in this time.
const BURST: Duration = Duration::from_secs(1);

const SECOND: u64 = 1_000_000_000; // nanoseconds

/// What one agent may send; 0 is without a limit.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct QuotaConfig {
    /// Frames a second.
    pub packets: u64,
    /// Bytes of frames a second.
    pub bytes: u64,
}

/// Two token buckets of one agent, each the moment at which it is full again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quota {
    packets: Instant,
    bytes: Instant,
}

impl Quota {
    /// Makes full buckets.
    pub(crate) const fn new(now: Instant) -> Self {
        Self {
            packets: now,
            bytes: now,
        }
    }

    /// Takes a frame of `size` bytes; false when it is beyond what the agent may send.
    pub(crate) fn take(&mut self, config: QuotaConfig, size: usize, now: Instant) -> bool {
        let packets = after(self.packets, 1, config.packets, now);
        let bytes = after(self.bytes, size as u64, config.bytes, now);
        let (Some(packets), Some(bytes)) = (packets, bytes) else {
            return false;
        };
        self.packets = packets;
        self.bytes = bytes;
        true
    }
}

/// Returns when a bucket is full again once `count` were taken; None when it has not so many.
fn after(full: Instant, count: u64, per_second: u64, now: Instant) -> Option<Instant> {
    if per_second == 0 {
        return Some(full);
    }
    let cost = Duration::from_nanos(count.saturating_mul(SECOND) / per_second);
    let after = full.max(now) + cost;
    // A frame longer than what comes in a second passes once the bucket is full.
    (after <= now + BURST || full <= now).then_some(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "tests need an epoch")]
    fn start() -> Instant {
        Instant::now()
    }

    fn passed(quota: &mut Quota, config: QuotaConfig, size: usize, now: Instant) -> usize {
        let frames = (0..10_000).filter(|_| quota.take(config, size, now));
        frames.count()
    }

    #[test]
    fn an_agent_has_a_second_at_once_and_then_its_rate() {
        let now = start();
        let later = now + Duration::from_millis(500);
        let packets = QuotaConfig {
            packets: 100,
            bytes: 0,
        };
        let bytes = QuotaConfig {
            packets: 0,
            bytes: 10_000,
        };

        for (config, size, burst, rate) in [(packets, 1400, 100, 50), (bytes, 100, 100, 50)] {
            let mut quota = Quota::new(now);
            assert_eq!(passed(&mut quota, config, size, now), burst);
            assert_eq!(passed(&mut quota, config, size, later), rate);
        }
    }

    #[test]
    fn the_stricter_limit_decides_and_none_limits_nothing() {
        let now = start();
        let both = QuotaConfig {
            packets: 100,
            bytes: 1000,
        };

        assert_eq!(passed(&mut Quota::new(now), both, 100, now), 10);
        assert_eq!(passed(&mut Quota::new(now), both, 1, now), 100);
        // Longer than a second's worth, and no reason to stop for ever.
        assert_eq!(passed(&mut Quota::new(now), both, 5000, now), 1);
        let none = QuotaConfig::default();
        assert_eq!(passed(&mut Quota::new(now), none, 9000, now), 10_000);
    }
}

//! Pure: how many requests each caller may make.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

/// A steady rate, and how much may come at once.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rate {
    pub per_second: u32,
    pub burst: u32,
}

/// One bucket of tokens a caller; the number of buckets is bounded.
#[derive(Debug)]
pub struct Buckets<K> {
    rate: Rate,
    most: usize,
    buckets: BTreeMap<K, Bucket>,
    /// What callers share for whom there is no room.
    shared: Option<Bucket>,
    /// When full buckets were last cleared away; None before the first time.
    swept: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl<K: Ord> Buckets<K> {
    /// Makes at most `most` buckets of `rate`.
    pub const fn new(rate: Rate, most: usize) -> Self {
        Self {
            rate,
            most,
            buckets: BTreeMap::new(),
            shared: None,
            swept: None,
        }
    }

    /// Takes one token; tells how long to wait when there is none.
    pub fn take(&mut self, key: K, now: Instant) -> Result<(), Duration> {
        let rate = self.rate;
        if let Some(bucket) = self.buckets.get_mut(&key) {
            return bucket.take(rate, now);
        }
        if self.buckets.len() >= self.most {
            self.sweep(now);
        }
        if self.buckets.len() >= self.most {
            let shared = self.shared.get_or_insert_with(|| Bucket::full(rate, now));
            return shared.take(rate, now);
        }
        self.buckets
            .entry(key)
            .or_insert_with(|| Bucket::full(rate, now))
            .take(rate, now)
    }

    /// Forgets callers whose bucket is full again, at most once a second since it looks at all.
    fn sweep(&mut self, now: Instant) {
        let recently = |at: Instant| now.saturating_duration_since(at) < Duration::from_secs(1);
        if self.swept.is_some_and(recently) {
            return;
        }
        self.swept = Some(now);
        let rate = self.rate;
        self.buckets.retain(|_, bucket| !bucket.is_full(rate, now));
    }
}

impl Bucket {
    fn full(rate: Rate, now: Instant) -> Self {
        Self {
            tokens: f64::from(rate.burst),
            at: now,
        }
    }

    fn filled(&self, rate: Rate, now: Instant) -> f64 {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        (self.tokens + since * f64::from(rate.per_second)).min(f64::from(rate.burst))
    }

    fn is_full(&self, rate: Rate, now: Instant) -> bool {
        self.filled(rate, now) >= f64::from(rate.burst)
    }

    fn take(&mut self, rate: Rate, now: Instant) -> Result<(), Duration> {
        self.tokens = self.filled(rate, now);
        self.at = now;
        if self.tokens < 1.0 {
            let missing = (1.0 - self.tokens) / f64::from(rate.per_second.max(1));
            return Err(Duration::from_secs_f64(missing));
        }
        self.tokens -= 1.0;
        Ok(())
    }
}

/// The network a source address is taken to be of: what one subscriber commonly holds.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct SourcePrefix(IpAddr);

impl SourcePrefix {
    /// Returns the /24 or /56 that `address` is in.
    pub fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits() & !0xff).into(),
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 72 << 72).into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate {
        per_second: 2,
        burst: 3,
    };

    #[expect(clippy::disallowed_methods, reason = "the one epoch of these tests")]
    fn start() -> Instant {
        Instant::now()
    }

    #[test]
    fn a_burst_passes_and_then_the_rate_holds() {
        let (mut buckets, now) = (Buckets::new(RATE, 9), start());

        let burst = [(); 4].map(|()| buckets.take(1, now).is_ok());

        assert_eq!(burst, [true, true, true, false]);
        assert_eq!(buckets.take(1, now), Err(Duration::from_millis(500)));
        assert_eq!(buckets.take(2, now), Ok(()));
        assert_eq!(buckets.take(1, now + Duration::from_millis(500)), Ok(()));
        assert!(buckets.take(1, now + Duration::from_millis(500)).is_err());
    }

    #[test]
    fn callers_beyond_the_bound_share_one_bucket_until_there_is_room() {
        let (mut buckets, now) = (Buckets::new(RATE, 2), start());
        for key in 0..100 {
            let _ = buckets.take(key, now);
        }

        assert_eq!(buckets.buckets.len(), 2);
        assert!(buckets.take(100, now).is_err());
        assert_eq!(buckets.take(101, now + Duration::from_secs(2)), Ok(()));
        assert_eq!(buckets.buckets.len(), 1);
    }

    #[test]
    fn a_source_is_a_slash_24_or_slash_56() {
        let of = |text: &str| SourcePrefix::of(text.parse().unwrap());

        assert_eq!(of("192.0.2.1"), of("192.0.2.200"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.2"));
        assert_ne!(of("192.0.2.1"), of("192.0.3.1"));
        assert_eq!(of("2001:db8:0:ff::1"), of("2001:db8:0:1::2"));
        assert_ne!(of("2001:db8:0:ff::1"), of("2001:db8:0:1ff::1"));
    }
}

//! How often a source may do what costs us something.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::wire::carrier;

/// What counts as one source: an IPv4 address, or the /64 that one IPv6 host commonly has.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Source(u128);

impl Source {
    /// Returns the source that an endpoint is of; that of a connection is its other end.
    pub(crate) fn of(endpoint: SocketAddr) -> Self {
        let endpoint = carrier::peer(endpoint).unwrap_or(endpoint);
        match endpoint.ip().to_canonical() {
            std::net::IpAddr::V4(address) => Self(u128::from(address.to_bits())),
            std::net::IpAddr::V6(address) => Self(address.to_bits() >> 64 << 64),
        }
    }
}

/// A token bucket: the moment at which it is full again (the generic cell rate algorithm).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    full: Instant,
    /// Time that one token takes to come back.
    cost: Duration,
    /// Time that all tokens take to come back.
    depth: Duration,
}

impl Bucket {
    /// Makes a full bucket of `burst` tokens, of which `per_second` come back.
    pub(crate) fn new(per_second: u32, burst: u32, now: Instant) -> Self {
        let cost = Duration::from_secs(1) / per_second.max(1);
        let depth = cost * burst.max(1);
        Self {
            full: now,
            cost,
            depth,
        }
    }

    /// Takes a token; false when there is none.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        let is_allowed = now >= self.free_at();
        if is_allowed {
            self.full = self.full.max(now) + self.cost;
        }
        is_allowed
    }

    /// Returns when there is a token.
    pub(crate) fn free_at(&self) -> Instant {
        let spare = self.depth.saturating_sub(self.cost);
        // Before the clock's own epoch there is nothing to wait for either.
        self.full.checked_sub(spare).unwrap_or(self.full)
    }
}

/// One token bucket a source, in a table of bounded size.
///
/// A bucket is the moment at which it is full again (the generic cell rate algorithm), so a full
/// bucket and a forgotten one are the same.
#[derive(Debug)]
pub(crate) struct Limits {
    buckets: BTreeMap<Source, Instant>,
    /// What sources beyond the table's size share; None while it was not needed.
    shared: Option<Instant>,
    /// Time that one token takes to come back.
    cost: Duration,
    /// Time that all tokens take to come back.
    depth: Duration,
    most: usize,
    /// When full buckets were last forgotten; None when they never were.
    swept: Option<Instant>,
}

impl Limits {
    /// Makes limits of `per_second` with bursts of `burst`, for at most `most` sources apart.
    pub(crate) fn new(per_second: u32, burst: u32, most: usize) -> Self {
        let cost = Duration::from_secs(1) / per_second.max(1);
        Self {
            buckets: BTreeMap::new(),
            shared: None,
            cost,
            depth: cost * burst.max(1),
            most,
            swept: None,
        }
    }

    /// Takes a token of the source; false when it has none.
    pub(crate) fn take(&mut self, source: Source, now: Instant) -> bool {
        let (cost, depth) = (self.cost, self.depth);
        if !self.buckets.contains_key(&source) {
            self.make_room(now);
        }
        let bucket = if self.buckets.len() < self.most || self.buckets.contains_key(&source) {
            self.buckets.entry(source).or_insert(now)
        } else {
            self.shared.get_or_insert(now)
        };
        let full = (*bucket).max(now) + cost;
        let allowed = full <= now + depth;
        if allowed {
            *bucket = full;
        }
        allowed
    }

    /// Returns how many sources are remembered.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.buckets.len()
    }

    /// Forgets full buckets, at most once a second since it looks at all.
    fn make_room(&mut self, now: Instant) {
        let recent = self
            .swept
            .is_some_and(|at| now < at + Duration::from_secs(1));
        if self.buckets.len() >= self.most && !recent {
            self.buckets.retain(|_, full| *full > now);
            self.swept = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[expect(clippy::disallowed_methods, reason = "tests need an epoch")]
    fn start() -> Instant {
        Instant::now()
    }

    fn source(text: &str) -> Source {
        Source::of(text.parse().unwrap())
    }

    #[test]
    fn a_source_has_its_burst_and_then_its_rate() {
        let (mut limits, now) = (Limits::new(10, 5, 100), start());
        let one = source("192.0.2.1:1");

        let burst = (0..20).filter(|_| limits.take(one, now)).count();
        let later = now + Duration::from_millis(250);
        let rate = (0..20).filter(|_| limits.take(one, later)).count();

        assert_eq!((burst, rate), (5, 2));
        assert!(limits.take(source("192.0.2.2:1"), now));
    }

    #[test]
    fn a_bucket_says_when_it_has_a_token() {
        let now = start();
        let mut bucket = Bucket::new(2, 3, now);

        let burst = (0..9).filter(|_| bucket.take(now)).count();
        let next = bucket.free_at();

        assert_eq!((burst, next), (3, now + Duration::from_millis(500)));
        assert!(!bucket.take(now + Duration::from_millis(499)) && bucket.take(next));
        let rested = now + Duration::from_secs(60);
        assert_eq!((0..9).filter(|_| bucket.take(rested)).count(), 3);
    }

    #[test]
    fn ports_and_hosts_of_one_source_share_its_bucket() {
        assert_eq!(source("192.0.2.1:1"), source("[::ffff:192.0.2.1]:2"));
        assert_eq!(source("[2001:db8::1]:1"), source("[2001:db8::2]:1"));
        assert_ne!(source("[2001:db8::1]:1"), source("[2001:db8:0:1::1]:1"));
        for peer in ["192.0.2.1:1", "[2001:db8::1]:1"] {
            let by_connection = carrier::endpoint(7, peer.parse().unwrap());
            assert_eq!(Source::of(by_connection), source(peer));
        }
    }

    proptest! {
        #[test]
        fn the_table_is_bounded_and_recovers(sources in prop::collection::vec(any::<u32>(), 0..300)) {
            let (mut limits, now) = (Limits::new(1, 1, 16), start());
            for host in sources {
                limits.take(Source(u128::from(host)), now);
                prop_assert!(limits.len() <= 16);
            }
            prop_assert!(limits.take(Source(1 << 40), now + Duration::from_secs(2)));
        }
    }
}

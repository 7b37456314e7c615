//! Pure: how much each agent, and each network, may do at this gateway.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::engine::limits::Source;
use crate::id::NetworkId;

/// What an agent that was silent may send at once: as much as in this time.
const BURST: Duration = Duration::from_secs(1);

const SECOND: u64 = 1_000_000_000; // nanoseconds

/// How much may be sent in a second, and at once; 0 is without a limit.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Allowance {
    /// Frames.
    pub packets: u64,
    /// Bytes of frames.
    pub bytes: u64,
}

/// What agents and networks may; 0 is without a limit.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct QuotaConfig {
    /// What one agent may send.
    pub agent: Allowance,
    /// What all agents of one network may send through this gateway.
    pub network: Allowance,
    /// Frames a second of one agent to targets that nobody is known by; those beyond are told apart from
    /// those who look for one that just left.
    pub unknown: u64,
    /// Agents of one network that may be attached.
    pub network_agents: usize,
    /// Agents behind one IPv4 address or IPv6 /64 that may be.
    pub source_agents: usize,
}

/// Two token buckets, each the moment at which it is full again.
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

    /// Takes a frame of `size` bytes; false when it is beyond what is allowed.
    pub(crate) fn take(&mut self, allowed: Allowance, size: usize, now: Instant) -> bool {
        let packets = after(self.packets, 1, allowed.packets, now);
        let bytes = after(self.bytes, size as u64, allowed.bytes, now);
        let (Some(packets), Some(bytes)) = (packets, bytes) else {
            return false;
        };
        self.packets = packets;
        self.bytes = bytes;
        true
    }
}

/// One network's agents at this gateway.
#[derive(Debug)]
struct Tenant {
    agents: usize,
    quota: Quota,
}

/// Who is attached, by network and by source; nobody is kept here who is not.
#[derive(Debug, Default)]
pub(crate) struct Tenants {
    networks: BTreeMap<NetworkId, Tenant>,
    sources: BTreeMap<Source, usize>,
}

impl Tenants {
    /// Takes that an agent attached.
    pub(crate) fn add(&mut self, network: NetworkId, source: Source, now: Instant) {
        let tenant = self.networks.entry(network).or_insert_with(|| Tenant {
            agents: 0,
            quota: Quota::new(now),
        });
        tenant.agents += 1;
        *self.sources.entry(source).or_default() += 1;
    }

    /// Takes that an agent is not attached any more.
    pub(crate) fn remove(&mut self, network: NetworkId, source: Source) {
        if let Some(tenant) = self.networks.get_mut(&network) {
            tenant.agents -= 1;
            if tenant.agents == 0 {
                self.networks.remove(&network);
            }
        }
        self.leave(source);
    }

    /// Takes that an agent is behind another source.
    pub(crate) fn move_to(&mut self, from: Source, to: Source) {
        self.leave(from);
        *self.sources.entry(to).or_default() += 1;
    }

    /// Returns how many agents of a network are attached.
    pub(crate) fn of_network(&self, network: &NetworkId) -> usize {
        self.networks.get(network).map_or(0, |tenant| tenant.agents)
    }

    /// Returns how many agents behind a source are.
    pub(crate) fn of_source(&self, source: Source) -> usize {
        self.sources.get(&source).copied().unwrap_or_default()
    }

    /// Takes a frame of an agent of a network; false when it is beyond what the network may send.
    pub(crate) fn take(
        &mut self,
        network: &NetworkId,
        allowed: Allowance,
        size: usize,
        now: Instant,
    ) -> bool {
        if allowed == Allowance::default() {
            return true;
        }
        let tenant = self.networks.get_mut(network);
        tenant.is_some_and(|tenant| tenant.quota.take(allowed, size, now))
    }

    fn leave(&mut self, source: Source) {
        if let Some(agents) = self.sources.get_mut(&source) {
            *agents -= 1;
            if *agents == 0 {
                self.sources.remove(&source);
            }
        }
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

    fn passed(quota: &mut Quota, config: Allowance, size: usize, now: Instant) -> usize {
        let frames = (0..10_000).filter(|_| quota.take(config, size, now));
        frames.count()
    }

    #[test]
    fn an_agent_has_a_second_at_once_and_then_its_rate() {
        let now = start();
        let later = now + Duration::from_millis(500);
        let packets = Allowance {
            packets: 100,
            bytes: 0,
        };
        let bytes = Allowance {
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
        let both = Allowance {
            packets: 100,
            bytes: 1000,
        };

        assert_eq!(passed(&mut Quota::new(now), both, 100, now), 10);
        assert_eq!(passed(&mut Quota::new(now), both, 1, now), 100);
        // Longer than a second's worth, and no reason to stop for ever.
        assert_eq!(passed(&mut Quota::new(now), both, 5000, now), 1);
        let none = Allowance::default();
        assert_eq!(passed(&mut Quota::new(now), none, 9000, now), 10_000);
    }

    #[test]
    fn tenants_are_who_is_attached_and_nobody_else() {
        let (mut tenants, now) = (Tenants::default(), start());
        let network = |n: u8| NetworkId::from(crate::id::IdentityKey::from_seed([n; 32]).did());
        let source = |n: u8| Source::of(([192, 0, 2, n], 1).into());

        tenants.add(network(1), source(1), now);
        tenants.add(network(1), source(2), now);
        tenants.add(network(2), source(1), now);
        assert_eq!(
            (
                tenants.of_network(&network(1)),
                tenants.of_source(source(1))
            ),
            (2, 2)
        );
        tenants.move_to(source(1), source(2));
        assert_eq!(
            (tenants.of_source(source(1)), tenants.of_source(source(2))),
            (1, 2)
        );
        tenants.remove(network(1), source(2));
        tenants.remove(network(1), source(2));
        tenants.remove(network(2), source(1));

        assert!(tenants.networks.is_empty() && tenants.sources.is_empty());
    }
}

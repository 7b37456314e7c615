//! Two hosts that run one agent, as after its state was copied: which of them is at rest.
//!
//! A gateway says that an agent attached elsewhere, and could say so of spite. A record that our key
//! signed and we did not proves it. Only both together put an agent to rest: so no gateway alone
//! can end what goes past it.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::engine::{
    Engine, Event, Time, attach::State, event::Out, local::Local, membership::LEASE,
};
use crate::id::OverlayIp;

/// Own records that are told apart from another's: an hour of refreshes, and what gateways are shown.
const MAX_SIGNED: usize = 32;

/// The other host is gone when it let a lease go by.
const GONE: Duration = LEASE;

/// The last records of our key that are known, by sequence number, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Signed(VecDeque<u64>);

impl Signed {
    /// Takes a record that we signed, or that we know another host did.
    pub(crate) fn note(&mut self, seq: u64) {
        if self.0.len() >= MAX_SIGNED {
            self.0.pop_front();
        }
        self.0.push_back(seq);
    }

    /// Tells whether a record that our key signed is another's.
    pub(crate) fn lacks(&self, seq: u64) -> bool {
        // Those before the first we know of may be ours, as of before a restart.
        let is_late = self.0.front().is_some_and(|first| seq > *first);
        is_late && !self.0.contains(&seq)
    }
}

impl Local {
    /// Takes that our key signed what we did not.
    pub(crate) fn handle_twin(&mut self, now: Instant) {
        self.twin_until = Some(now + GONE);
        for attachment in self.homes.iter_mut() {
            attachment.rest_until(now + GONE);
        }
    }

    fn has_twin(&self, now: Instant) -> bool {
        self.twin_until.is_some_and(|until| now < until)
    }

    pub(crate) fn is_displaced(&self) -> bool {
        self.homes.is_displaced()
    }

    /// Leaves the gateways to which the other host did not attach yet.
    fn rest(&mut self, now: Instant, out: &mut Out) {
        let until = self.twin_until.unwrap_or(now);
        for attachment in self.homes.iter_mut() {
            if attachment.state() != State::Displaced {
                attachment.rest(until, now);
            }
        }
        self.drain_gateways(out);
    }

    /// Tells whether the agent is another host's now: then it has no peers here.
    pub(crate) fn is_at_rest(&self, now: Instant) -> bool {
        self.is_displaced() && self.has_twin(now)
    }
}

impl Engine {
    /// Takes peers away from agents that are another host's now, and gives them back to those that
    /// are ours again.
    pub(super) fn follow_twins(&mut self, time: Time) {
        for (address, local) in &mut self.locals {
            let is_displaced = local.is_displaced();
            if is_displaced && !local.was_displaced {
                let local = *address;
                self.out.event(Event::Displaced { local });
            }
            local.was_displaced = is_displaced;
        }
        let changed = self.locals.iter().filter_map(|(address, local)| {
            (local.is_at_rest(time.now) != local.was_at_rest).then_some(*address)
        });
        for local in changed.collect::<Vec<_>>() {
            if let Some(found) = self.locals.get_mut(&local)
                && found.is_at_rest(time.now)
            {
                found.rest(time.now, &mut self.out);
            }
            self.install(local, time);
        }
    }

    /// Returns whether a gateway says that an agent attached elsewhere.
    pub fn is_displaced(&self, local: OverlayIp) -> bool {
        self.locals.get(&local).is_some_and(Local::is_displaced)
    }

    /// Returns whether an agent is another host's now, and has no peers here.
    pub fn is_at_rest(&self, local: OverlayIp, time: Time) -> bool {
        let found = self.locals.get(&local);
        found.is_some_and(|found| found.is_at_rest(time.now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_we_signed_is_of_no_other() {
        let mut signed = Signed::default();
        assert!(!signed.lacks(7), "of before the start");

        for seq in 10..100 {
            signed.note(seq);
        }

        for seq in [1, 10, 67, 68, 69, 99] {
            assert!(!signed.lacks(seq), "{seq}");
        }
    }

    #[test]
    fn what_we_did_not_sign_is_of_another_host() {
        let mut signed = Signed::default();
        signed.note(10);
        signed.note(20);

        assert!(signed.lacks(15) && signed.lacks(21));
        assert!(!signed.lacks(10) && !signed.lacks(20) && !signed.lacks(9));
    }
}

//! Which of our gateways relays to a peer.
//!
//! Either end sends by one of its own, and accepts what comes by any. Of the two the one with the lower
//! address leads: it takes the gateway it likes best, of those that the peer lists too. The other one
//! answers by the gateway that the leader's messages come by, for as long as that works. So both agree
//! without a word. Where they still do not, the follower is not reached by what the leader chose, or
//! does not reach it, and the leader leaves it.

use std::time::{Duration, Instant};

use crate::engine::hop::Slot;

/// Time in which a follower has followed: a round trip, and what its data plane takes to tell.
const FOLLOWED: Duration = Duration::from_millis(1500);

/// How long the leader does without a gateway by which the follower does not answer.
const BARRED: Duration = Duration::from_secs(600);

/// A gateway that may relay to a peer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct RelayWay {
    pub(crate) slot: Slot,
    /// Whether nothing speaks against it.
    pub(crate) is_sound: bool,
    /// Whether the peer's record lists it.
    pub(crate) is_listed: bool,
}

/// The choice of a gateway for one peer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Relay {
    is_leader: bool,
    /// None while there is none.
    chosen: Option<Slot>,
    /// When the first message went by it; None before.
    used: Option<Instant>,
    /// By which the peer is to be answered; None while we choose ourselves.
    heard: Option<Slot>,
    /// Which one the peer does not answer by, and until when we believe so; None when there is none.
    barred: Option<(Slot, Instant)>,
}

impl Relay {
    pub(crate) const fn new(is_leader: bool) -> Self {
        Self {
            is_leader,
            chosen: None,
            used: None,
            heard: None,
            barred: None,
        }
    }

    /// Returns the gateway that relays now.
    pub(crate) const fn chosen(&self) -> Option<Slot> {
        self.chosen
    }

    /// Takes that something was sent by the chosen gateway.
    pub(crate) const fn sent(&mut self, now: Instant) {
        if self.used.is_none() {
            self.used = Some(now);
        }
    }

    /// Takes by which gateway an authentic message of the peer came; tells whether to choose anew.
    pub(crate) fn heard(&mut self, slot: Slot, now: Instant) -> bool {
        if self.chosen == Some(slot) {
            return false;
        }
        if !self.is_leader {
            return self.heard.replace(slot) != Some(slot);
        }
        let had_time = self.used.is_some_and(|at| now >= at + FOLLOWED);
        if had_time && let Some(chosen) = self.chosen {
            self.barred = Some((chosen, now + BARRED));
            self.heard = Some(slot);
        }
        had_time
    }

    /// Takes that what was in a place is no more.
    pub(crate) fn forget(&mut self, slot: Slot) {
        self.heard = self.heard.filter(|heard| *heard != slot);
        self.barred = self.barred.filter(|(barred, _)| *barred != slot);
    }

    /// Chooses among `ways`, best first; tells whether the choice is another one now.
    pub(crate) fn choose(&mut self, ways: &[RelayWay], now: Instant) -> bool {
        if self.barred.is_some_and(|(_, until)| now >= until) {
            self.barred = None;
            self.heard = self.heard.filter(|_| !self.is_leader);
        }
        let is_barred = |slot| self.barred.is_some_and(|(barred, _)| barred == slot);
        // The first of equals.
        let best = ways.iter().min_by_key(|way| {
            let is_answer = self.heard == Some(way.slot);
            (
                !way.is_sound,
                is_barred(way.slot),
                !is_answer,
                !way.is_listed,
            )
        });
        let best = best.map(|way| way.slot);
        if self.chosen == best {
            return false;
        }
        self.chosen = best;
        self.used = None;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Slot = Slot::ALL[0];
    const B: Slot = Slot::ALL[1];
    const C: Slot = Slot::ALL[2];

    #[expect(clippy::disallowed_methods, reason = "tests need an epoch")]
    fn start() -> Instant {
        Instant::now()
    }

    /// Ways that work, best first; the peer lists `listed`.
    fn ways(all: &[Slot], listed: &[Slot]) -> Vec<RelayWay> {
        let way = |slot: &Slot| RelayWay {
            slot: *slot,
            is_sound: true,
            is_listed: listed.contains(slot),
        };
        all.iter().map(way).collect()
    }

    fn without(ways: &[RelayWay], slot: Slot) -> Vec<RelayWay> {
        let way = |way: &RelayWay| RelayWay {
            is_sound: way.is_sound && way.slot != slot,
            ..*way
        };
        ways.iter().map(way).collect()
    }

    /// what both are attached to comes before what is better for one.
    #[test]
    fn a_gateway_that_the_peer_lists_is_preferred() {
        let (mut relay, now) = (Relay::new(true), start());

        assert!(relay.choose(&ways(&[A, B, C], &[C, B]), now));
        assert_eq!(relay.chosen(), Some(B));
        assert!(!relay.choose(&ways(&[A, B, C], &[C, B]), now));
        assert!(relay.choose(&ways(&[A, B, C], &[]), now));
        assert_eq!(relay.chosen(), Some(A));
        assert!(relay.choose(&[], now));
        assert_eq!(relay.chosen(), None);
    }

    #[test]
    fn one_that_does_not_work_is_left_and_taken_again() {
        let (mut relay, now) = (Relay::new(true), start());
        let all = ways(&[A, B], &[A, B]);
        relay.choose(&all, now);

        assert!(relay.choose(&without(&all, A), now));
        assert_eq!(relay.chosen(), Some(B));
        assert!(relay.choose(&all, now));
        assert_eq!(relay.chosen(), Some(A));
    }

    #[test]
    fn the_follower_answers_by_what_it_hears() {
        let (mut relay, now) = (Relay::new(false), start());
        let all = ways(&[A, B], &[A, B]);
        relay.choose(&all, now);

        assert!(relay.heard(B, now) && relay.choose(&all, now));
        assert_eq!(relay.chosen(), Some(B));
        assert!(!relay.heard(B, now));
        // Not where that does not work.
        assert!(relay.choose(&without(&all, B), now));
        assert_eq!(relay.chosen(), Some(A));
        assert!(!relay.heard(B, now) && !relay.choose(&without(&all, B), now));
    }

    /// netbird#4498: what the follower does not reach is left, though it works for us.
    #[test]
    fn the_leader_leaves_what_the_follower_does_not_answer_by() {
        let (mut relay, now) = (Relay::new(true), start());
        let all = ways(&[A, B, C], &[A, B, C]);
        relay.choose(&all, now);

        assert!(!relay.heard(C, now), "nothing was sent yet");
        relay.sent(now);
        let soon = now + FOLLOWED / 2;
        assert!(!relay.heard(C, soon), "it may be under way");
        let late = now + FOLLOWED;
        assert!(relay.heard(C, late) && relay.choose(&all, late));
        assert_eq!(relay.chosen(), Some(C));
        relay.sent(late);
        // And does not come back at once, nor when a third is heard late.
        assert!(!relay.heard(B, late) && !relay.choose(&all, late));

        assert!(relay.choose(&all, late + BARRED));
        assert_eq!(relay.chosen(), Some(A));
    }

    #[test]
    fn what_was_known_of_a_place_ends_with_who_was_there() {
        let (mut relay, now) = (Relay::new(true), start());
        let all = ways(&[A, B], &[A, B]);
        relay.choose(&all, now);
        relay.sent(now);
        assert!(relay.heard(B, now + FOLLOWED));
        relay.choose(&all, now + FOLLOWED);

        relay.forget(A);
        relay.forget(B);

        assert!(relay.choose(&all, now + FOLLOWED));
        assert_eq!(relay.chosen(), Some(A));
    }
}

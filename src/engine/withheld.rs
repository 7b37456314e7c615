//! Which revocations the registry keeps back, as those show that peers know of.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use crate::id::Did;
use crate::statement::StatementHash;

/// A registry that is connected for this long after a peer told has had time to tell too.
const GRACE: Duration = Duration::from_secs(60);

/// What one agent's registry and peers told of revocations, since the daemon started.
///
/// Only of those that are kept, so it is bounded as they are.
#[derive(Debug, Default)]
pub(crate) struct Withheld {
    /// What the registry told.
    told: BTreeSet<StatementHash>,
    /// What peers told and the registry did not: who, and when.
    heard: BTreeMap<StatementHash, (Did, Instant)>,
    /// Since when the registry's news are complete; None while it is away.
    live: Option<Instant>,
    /// What was reported already.
    reported: BTreeSet<StatementHash>,
}

impl Withheld {
    /// Takes that the registry told of a revocation that is kept.
    pub(crate) fn handle_told(&mut self, revocation: StatementHash) {
        self.heard.remove(&revocation);
        self.reported.remove(&revocation);
        self.told.insert(revocation);
    }

    /// Takes that a peer told of a revocation that is kept now.
    pub(crate) fn handle_heard(&mut self, revocation: StatementHash, peer: Did, now: Instant) {
        if !self.told.contains(&revocation) {
            self.heard.entry(revocation).or_insert((peer, now));
        }
    }

    /// Takes whether the registry has told all it has, and tells what is new from now on.
    pub(crate) fn set_live(&mut self, is_live: bool, now: Instant) {
        self.live = is_live.then(|| self.live.unwrap_or(now));
    }

    /// Returns the peers that knew of what the registry keeps back, a revocation each.
    pub(crate) fn peers(&self, now: Instant) -> impl Iterator<Item = Did> {
        self.due(now).map(|(_, peer)| peer)
    }

    /// Returns the peers that knew of what the registry keeps back, each revocation once.
    pub(crate) fn report(&mut self, now: Instant) -> Vec<Did> {
        let due = self.due(now).collect::<Vec<_>>();
        let new = due
            .into_iter()
            .filter(|(what, _)| self.reported.insert(*what));
        new.map(|(_, peer)| peer).collect()
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let live = self.live?;
        let waiting = self
            .heard
            .iter()
            .filter(|(what, _)| !self.reported.contains(what));
        waiting.map(|(_, (_, at))| live.max(*at) + GRACE).min()
    }

    fn due(&self, now: Instant) -> impl Iterator<Item = (StatementHash, Did)> {
        let since = self.live.filter(|live| *live + GRACE <= now);
        let heard = since.map(|_| self.heard.iter()).into_iter().flatten();
        heard
            .filter(move |(_, (_, at))| *at + GRACE <= now)
            .map(|(what, (peer, _))| (*what, *peer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::testing::key;

    const SECOND: Duration = Duration::from_secs(1);

    #[expect(clippy::disallowed_methods, reason = "tests need an epoch")]
    fn start() -> Instant {
        Instant::now()
    }

    fn revocation(text: &str) -> StatementHash {
        StatementHash::of(text)
    }

    /// withholding shows, once the registry had its time.
    #[test]
    fn what_a_connected_registry_does_not_tell_is_reported_once() {
        let (mut withheld, now, peer) = (Withheld::default(), start(), key(2).did());
        withheld.set_live(true, now);
        withheld.handle_heard(revocation("a.b"), peer, now + SECOND);

        let due = withheld.poll_timeout().unwrap();
        assert_eq!(due, now + SECOND + GRACE);
        assert_eq!(withheld.report(due - SECOND), []);
        assert_eq!(withheld.report(due), [peer]);
        assert_eq!(withheld.report(due), []);
        assert_eq!(withheld.peers(due).collect::<Vec<_>>(), [peer]);
        assert_eq!(withheld.poll_timeout(), None);
    }

    #[test]
    fn a_registry_that_is_away_or_slow_keeps_nothing_back() {
        let (mut withheld, now, peer) = (Withheld::default(), start(), key(2).did());
        withheld.handle_heard(revocation("a.b"), peer, now);
        let later = now + 1000 * SECOND;
        assert_eq!(
            (withheld.report(later), withheld.poll_timeout()),
            (vec![], None)
        );

        withheld.set_live(true, later);
        assert_eq!(withheld.report(later + SECOND), []);
        withheld.handle_told(revocation("a.b"));
        assert_eq!(withheld.report(later + 2 * GRACE), []);
    }

    #[test]
    fn what_the_registry_told_first_is_not_held_against_it() {
        let (mut withheld, now, peer) = (Withheld::default(), start(), key(2).did());
        withheld.set_live(true, now);
        withheld.handle_told(revocation("a.b"));
        withheld.handle_heard(revocation("a.b"), peer, now);

        assert_eq!(withheld.peers(now + 2 * GRACE).count(), 0);
    }
}

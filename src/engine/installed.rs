//! What an agent has installed: each has a session and deadlines of its own, and only what is touched
//! or due is looked at, so that hundreds that are at rest cost nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use crate::id::OverlayIp;

/// Those touched since their deadline was last written down; more are written down at once.
const MAX_TOUCHED: usize = 16;

/// A peer of any kind.
pub(crate) trait Install {
    /// Returns the 24-bit index of its session; it never changes.
    fn index(&self) -> u32;

    /// Returns when it is due and why; None when it waits for nothing.
    fn poll_timeout(&self) -> Option<(Instant, &'static str)>;
}

/// Peers by address, the earliest deadline first.
#[derive(Debug)]
pub(crate) struct Installed<T> {
    all: BTreeMap<OverlayIp, T>,
    by_index: BTreeMap<u32, OverlayIp>,
    /// Deadlines of all that were not touched since.
    due: BTreeMap<(Instant, OverlayIp), &'static str>,
    /// The same, by address.
    at: BTreeMap<OverlayIp, Instant>,
    touched: BTreeSet<OverlayIp>,
}

impl<T> Default for Installed<T> {
    fn default() -> Self {
        Self {
            all: BTreeMap::new(),
            by_index: BTreeMap::new(),
            due: BTreeMap::new(),
            at: BTreeMap::new(),
            touched: BTreeSet::new(),
        }
    }
}

impl<T: Install> Installed<T> {
    pub(crate) fn contains_key(&self, address: &OverlayIp) -> bool {
        self.all.contains_key(address)
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &OverlayIp> {
        self.all.keys()
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &T> {
        self.all.values()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&OverlayIp, &T)> {
        self.all.iter()
    }

    pub(crate) fn get(&self, address: &OverlayIp) -> Option<&T> {
        self.all.get(address)
    }

    /// Returns the peer whose session has this index.
    pub(crate) fn by_index(&self, index: u32) -> Option<OverlayIp> {
        self.by_index.get(&index).copied()
    }

    /// Returns a peer to be changed, and its deadline with it.
    pub(crate) fn get_mut(&mut self, address: &OverlayIp) -> Option<&mut T> {
        if self.touched.len() >= MAX_TOUCHED {
            self.settle();
        }
        self.touch(*address);
        self.all.get_mut(address)
    }

    pub(crate) fn insert(&mut self, address: OverlayIp, peer: T) {
        self.remove(&address);
        self.by_index.insert(peer.index(), address);
        self.all.insert(address, peer);
        self.touched.insert(address);
    }

    pub(crate) fn remove(&mut self, address: &OverlayIp) -> Option<T> {
        self.touch(*address);
        self.touched.remove(address);
        let peer = self.all.remove(address)?;
        self.by_index.remove(&peer.index());
        Some(peer)
    }

    /// Returns the earliest deadline and its reason.
    pub(crate) fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let first = self.due.first_key_value();
        let first = first.map(|((at, _), why)| (*at, *why));
        let touched = self.touched.iter().filter_map(|a| self.all.get(a));
        touched.filter_map(T::poll_timeout).chain(first).min()
    }

    /// Returns those that are due.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<OverlayIp> {
        self.settle();
        let due = self.due.keys().take_while(|(at, _)| *at <= now);
        due.map(|(_, address)| *address).collect()
    }

    /// Takes out a deadline that may not be right any more.
    fn touch(&mut self, address: OverlayIp) {
        if self.touched.insert(address)
            && let Some(at) = self.at.remove(&address)
        {
            self.due.remove(&(at, address));
        }
    }

    /// Writes down the deadlines of those that were touched.
    fn settle(&mut self) {
        for address in std::mem::take(&mut self.touched) {
            let peer = self.all.get(&address);
            if let Some((at, why)) = peer.and_then(T::poll_timeout) {
                self.due.insert((at, address), why);
                self.at.insert(address, at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    struct One(u32, Option<Instant>);

    impl Install for One {
        fn index(&self) -> u32 {
            self.0
        }

        fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
            self.1.map(|at| (at, "due"))
        }
    }

    fn address(n: u8) -> OverlayIp {
        format!("fd11::{n:x}").parse().unwrap()
    }

    #[expect(clippy::disallowed_methods, reason = "any moment does to begin with")]
    fn start() -> Instant {
        Instant::now()
    }

    proptest! {
        /// The same as if all were looked at each time.
        #[test]
        fn the_earliest_is_always_known(
            steps in prop::collection::vec((0..40_u8, 0..5_u8, prop::option::of(0..50_u64)), 0..200),
        ) {
            let start = start();
            let mut installed = Installed::default();
            let mut model = BTreeMap::<u8, Option<Instant>>::new();
            for (n, what, at) in steps {
                let at = at.map(|at| start + Duration::from_millis(at));
                match what {
                    0 => {
                        installed.insert(address(n), One(n.into(), at));
                        model.insert(n, at);
                    }
                    1 => {
                        let gone = installed.remove(&address(n));
                        prop_assert_eq!(gone.is_some(), model.remove(&n).is_some());
                    }
                    2 => {
                        let due = installed.due(at.unwrap_or(start));
                        let wanted = model.iter().filter(|(_, d)| {
                            d.is_some_and(|d| d <= at.unwrap_or(start))
                        });
                        let wanted = wanted.map(|(n, _)| address(*n)).collect::<BTreeSet<_>>();
                        prop_assert_eq!(due.into_iter().collect::<BTreeSet<_>>(), wanted);
                    }
                    _ => {
                        if let Some(one) = installed.get_mut(&address(n)) {
                            one.1 = at;
                            model.insert(n, at);
                        }
                    }
                }
                let earliest = model.values().flatten().min().copied();
                prop_assert_eq!(installed.poll_timeout().map(|(at, _)| at), earliest);
                prop_assert_eq!(installed.by_index(n.into()).is_some(), model.contains_key(&n));
                prop_assert_eq!(installed.values().count(), model.len());
            }
        }
    }
}

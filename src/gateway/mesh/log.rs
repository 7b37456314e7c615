//! Pure: what this gateway announces, in the order in which it changed.

use std::collections::{BTreeMap, BTreeSet};

use crate::id::OverlayIp;
use crate::wire::mesh::Entry;

/// Agents that are gone are remembered up to this many; who missed more is told everything anew.
const MAX_GONE: usize = 16_384;

/// Bytes of entries in one message: a dozen packets, so that a lost one costs little.
const MAX_ENTRIES: usize = 12 * 1024; // bytes

/// The agents announced, each with the number of its last change.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// Number of the newest change; 0 before the first.
    version: u64,
    agents: BTreeMap<OverlayIp, u64>,
    changes: BTreeMap<u64, OverlayIp>,
    /// Changes by which an agent went.
    gone: BTreeSet<u64>,
    /// Changes up to here that took an agent away may be forgotten.
    floor: u64,
}

/// What changed after some place.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Changes {
    pub(super) entries: Vec<Entry>,
    pub(super) upto: u64,
    pub(super) is_all: bool,
}

impl Log {
    /// Returns the number of the newest change.
    pub(super) const fn version(&self) -> u64 {
        self.version
    }

    /// Takes that an agent is announced from now on, or anew, or not any more.
    pub(super) fn note(&mut self, agent: OverlayIp, is_announced: bool) {
        let known = self.agents.get(&agent).copied();
        let was_announced = known.is_some_and(|at| !self.gone.contains(&at));
        if !is_announced && !was_announced {
            return;
        }
        if let Some(at) = known {
            self.changes.remove(&at);
            self.gone.remove(&at);
        }
        self.version += 1;
        self.agents.insert(agent, self.version);
        self.changes.insert(self.version, agent);
        if !is_announced {
            self.gone.insert(self.version);
            if self.gone.len() > MAX_GONE {
                self.forget_oldest();
            }
        }
    }

    /// Tells whether one who is at `from` can be told what changed since.
    pub(super) const fn reaches_back(&self, from: u64) -> bool {
        from == 0 || from >= self.floor
    }

    /// Returns the next changes after `from`; one who is at 0 is not told of those who are gone.
    pub(super) fn after(&self, from: u64, record: impl Fn(OverlayIp) -> Option<String>) -> Changes {
        let (mut entries, mut size, mut upto) = (Vec::new(), 0, from);
        for (at, agent) in self.changes.range(from + 1..) {
            let entry = record(*agent).map_or(Entry::Gone(*agent), Entry::Agent);
            let is_told = from > 0 || matches!(entry, Entry::Agent(_));
            if is_told {
                size += entry.size();
                if size > MAX_ENTRIES && !entries.is_empty() {
                    return Changes {
                        entries,
                        upto,
                        is_all: false,
                    };
                }
                entries.push(entry);
            }
            upto = *at;
        }
        Changes {
            entries,
            upto: self.version,
            is_all: true,
        }
    }

    fn forget_oldest(&mut self) {
        let Some(at) = self.gone.pop_first() else {
            return;
        };
        if let Some(agent) = self.changes.remove(&at) {
            self.agents.remove(&agent);
        }
        self.floor = at;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn agent(n: u16) -> OverlayIp {
        format!("fd00::{n:x}").parse().unwrap()
    }

    /// Takes changes as another gateway does.
    fn take(table: &mut BTreeSet<OverlayIp>, changes: &Changes, records: &BTreeSet<OverlayIp>) {
        for entry in &changes.entries {
            match entry {
                Entry::Agent(record) => {
                    let agent = record.parse().unwrap();
                    assert!(records.contains(&agent));
                    table.insert(agent);
                }
                Entry::Gone(agent) => {
                    table.remove(agent);
                }
            }
        }
    }

    fn after(log: &Log, from: u64, records: &BTreeSet<OverlayIp>) -> Changes {
        log.after(from, |agent| {
            records.contains(&agent).then(|| agent.to_string())
        })
    }

    #[test]
    fn who_missed_too_much_is_told_everything_anew() {
        let mut log = Log::default();
        let many = u16::try_from(MAX_GONE + 10).unwrap();
        for n in 0..many {
            log.note(agent(n), true);
        }
        let seen = log.version();
        for n in 0..many - 1 {
            log.note(agent(n), false);
        }

        assert!(!log.reaches_back(seen) && log.reaches_back(0));
        assert!(log.reaches_back(log.version()) && log.changes.len() == MAX_GONE + 1);
        let left = BTreeSet::from([agent(many - 1)]);
        let entries = [Entry::Agent(agent(many - 1).to_string())];
        assert_eq!(after(&log, 0, &left).entries, entries);
    }

    #[test]
    fn long_announcements_are_cut_and_a_single_one_is_not() {
        let mut log = Log::default();
        for n in 0..3 {
            log.note(agent(n), true);
        }
        let sizes = |from, size: usize| {
            let changes = log.after(from, |_| Some("r".repeat(size)));
            (changes.entries.len(), changes.upto, changes.is_all)
        };

        assert_eq!(sizes(0, 5000), (2, 2, false));
        assert_eq!(sizes(2, 5000), (1, 3, true));
        assert_eq!(sizes(0, 16_000), (1, 1, false));
    }

    proptest! {
        /// F-061: whoever takes the changes after where it is has what is announced, however far it was
        /// behind.
        #[test]
        fn changes_lead_to_what_is_announced(
            steps in prop::collection::vec((0_u16..8, any::<bool>(), 0_u8..4), 1..100),
        ) {
            let (mut log, mut records) = (Log::default(), BTreeSet::new());
            let (mut table, mut at) = (BTreeSet::new(), 0);
            for (n, is_announced, pulls) in steps {
                if is_announced {
                    records.insert(agent(n));
                } else {
                    records.remove(&agent(n));
                }
                log.note(agent(n), is_announced);
                if pulls == 0 {
                    let changes = after(&log, at, &records);
                    take(&mut table, &changes, &records);
                    at = changes.upto;
                    prop_assert!(changes.is_all && at == log.version());
                    prop_assert_eq!(&table, &records);
                }
            }
            let mut fresh = BTreeSet::new();
            take(&mut fresh, &after(&log, 0, &records), &records);
            prop_assert_eq!(fresh, records);
        }
    }
}

/// How far a message may come behind the newest one (protocol.md sections 5 and 7).
const WINDOW: u64 = 8192;

const WORDS: usize = (WINDOW / 64) as usize;

/// Remembers which rising ids were seen, as RFC 6479 does.
///
/// Memory is one bit an id in a ring of words; one word more than the window, so that the word being
/// filled never holds ids of the window's far end.
#[derive(Clone, Debug)]
pub struct ReplayWindow {
    /// One more than the highest id seen; 0 before the first.
    next: u64,
    seen: Box<[u64; WORDS + 1]>,
}

/// What a window says of an id it took.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fresh {
    /// Lower than one seen before.
    Late,
    /// The highest so far.
    Newest,
}

impl ReplayWindow {
    /// Makes a window that has seen nothing.
    pub fn new() -> Self {
        Self {
            next: 0,
            seen: Box::new([0; WORDS + 1]),
        }
    }

    /// Takes an id; None when it was seen before or is too old to tell. The highest u64 is never taken.
    pub fn take(&mut self, id: u64) -> Option<Fresh> {
        if id == u64::MAX || self.next > id.saturating_add(WINDOW) {
            return None;
        }
        let fresh = if id >= self.next {
            self.advance(id);
            Fresh::Newest
        } else {
            Fresh::Late
        };
        let word = self.seen.get_mut(slot(id))?;
        let bit = 1 << (id % 64);
        if *word & bit != 0 {
            return None;
        }
        *word |= bit;
        Some(fresh)
    }

    fn advance(&mut self, id: u64) {
        // The word of `next - 1` is in use; those after it, up to that of `id`, hold ids of a turn ago.
        let first = self.next.div_ceil(64);
        let last = id / 64;
        let stale = (last + 1).saturating_sub(first).min(WORDS as u64 + 1);
        for word in (last + 1 - stale)..=last {
            if let Some(word) = self.seen.get_mut(slot(word * 64)) {
                *word = 0;
            }
        }
        self.next = id + 1;
    }
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self::new()
    }
}

fn slot(id: u64) -> usize {
    usize::try_from(id / 64 % (WORDS as u64 + 1)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// The same as a set of all ids ever seen.
    #[derive(Default)]
    struct Model {
        highest: Option<u64>,
        seen: BTreeSet<u64>,
    }

    impl Model {
        fn take(&mut self, id: u64) -> Option<Fresh> {
            let old = self.highest.is_some_and(|h| id <= h && h - id >= WINDOW);
            if old || id == u64::MAX || !self.seen.insert(id) {
                return None;
            }
            let newest = self.highest.is_none_or(|h| id > h);
            self.highest = self.highest.max(Some(id));
            Some(if newest { Fresh::Newest } else { Fresh::Late })
        }
    }

    #[test]
    fn an_id_is_taken_once() {
        let mut window = ReplayWindow::new();

        assert_eq!(window.take(5), Some(Fresh::Newest));
        assert_eq!(window.take(5), None);
        assert_eq!(window.take(0), Some(Fresh::Late));
        assert_eq!(window.take(u64::MAX), None);
        assert_eq!(window.take(u64::MAX - 1), Some(Fresh::Newest));
        assert_eq!(window.take(6), None);
    }

    proptest! {
        /// nothing is taken twice, whatever the order.
        #[test]
        fn the_window_agrees_with_a_set_of_all_ids(
            steps in prop::collection::vec((0_u8..4, 0_u64..20_000, any::<u64>()), 1..400),
        ) {
            let (mut window, mut model, mut at) = (ReplayWindow::new(), Model::default(), 0_u64);
            for (kind, step, far) in steps {
                let id = match kind {
                    0 => at.saturating_add(step % 70),
                    1 => at.saturating_sub(step),
                    2 => at.saturating_add(step),
                    _ => if step == 0 { far } else { at.saturating_sub(step % 300) },
                };
                at = at.max(id.min(u64::MAX / 2));
                prop_assert_eq!(window.take(id), model.take(id), "{}", id);
            }
        }
    }
}

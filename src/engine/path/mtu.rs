//! How large a packet a path carries, found by padded probes (RFC 8899).
//!
//! Sizes are of the packets programs send; what goes around them adds as much to a probe.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// What IPv6 promises (RFC 8200 section 5).
pub(super) const BASE: u16 = 1280;

/// Taken to pass where [`BASE`] does not: over IPv6, an underlay of 1280 bytes carries it through gateways
/// (1280 - 40 - 8 - 56 - 32), and over IPv4 the least that was met, of 1124 (firezone#9772).
pub(super) const FLOOR: u16 = 1000;

/// The largest that is tried: what the TUN takes.
pub(super) const MAX: u16 = 8920;

/// Sizes asked at first: underlays of 1500 bytes over IPv4 and IPv6, directly and by gateways, and one
/// of 9000. All at once, since one answer settles most.
const FIRST: [u16; 6] = [1440, MAX, 1420, 1384, 1364, BASE];

/// Probes of one size without an answer after which it is taken not to pass.
const TRIES: u8 = 3;

/// Sizes nearer than this are not told apart.
const STEP: u16 = 16;

/// Pause before a size known to pass is asked again, and before a larger one is tried again
/// (RFC 8899 section 5.1.1: PMTU_RAISE_TIMER 600 s).
const CONFIRM: Duration = Duration::from_secs(15);
const RAISE: Duration = Duration::from_secs(600);

/// What is known of one path.
#[derive(Debug)]
pub(super) struct Mtu {
    /// The largest size that was answered; None before the first answer.
    known: Option<u16>,
    /// The smallest size that is taken not to pass.
    limit: u16,
    /// Largest size that the path's hops let us try.
    most: u16,
    /// Of [`FIRST`], those still to be asked.
    plan: VecDeque<u16>,
    /// Probes on their way.
    under_way: u8,
    /// What is asked now, and how often it was without an answer.
    asking: Option<(u16, u8)>,
    /// When something is due that does not follow an answer; None while the search goes on.
    next: Option<Instant>,
    /// When the search was last done.
    done: Option<Instant>,
}

impl Mtu {
    /// Knows nothing.
    pub(super) const fn new() -> Self {
        Self {
            known: None,
            limit: MAX + 1,
            most: MAX,
            plan: VecDeque::new(),
            under_way: 0,
            asking: None,
            next: None,
            done: None,
        }
    }

    /// Returns the largest packet that passes; None while that is not known.
    pub(super) const fn size(&self) -> Option<u16> {
        self.known
    }

    /// Tells whether the size is settled for now.
    #[cfg(test)]
    const fn is_settled(&self) -> bool {
        self.done.is_some()
    }

    /// Takes the largest size that is worth trying.
    pub(super) fn bound(&mut self, most: u16) {
        let most = most.clamp(BASE, MAX);
        if self.most != most {
            self.most = most;
            self.restart();
        }
    }

    /// Forgets all, as when the path may be another one now.
    pub(super) fn restart(&mut self) {
        *self = Self {
            most: self.most,
            limit: self.most + 1,
            ..Self::new()
        };
    }

    /// Tells whether nothing was asked yet.
    pub(super) fn is_new(&self) -> bool {
        let asks = self.asking.is_some() || self.under_way > 0 || !self.plan.is_empty();
        self.known.is_none() && !asks
    }

    /// Begins the search if nothing was asked yet.
    pub(super) fn begin(&mut self, now: Instant) {
        if self.is_new() {
            let most = self.most;
            let sizes = FIRST.into_iter().filter(|size| *size < most);
            self.plan = std::iter::once(most).chain(sizes).collect();
            // What is met most often comes first.
            self.plan.make_contiguous().sort_by_key(|size| *size > 1500);
            self.next = Some(now);
        }
    }

    /// Asks whether the size still passes, since data seems to be lost.
    pub(super) fn doubt(&mut self, now: Instant) {
        if let Some(known) = self.known
            && self.asking.is_none_or(|(size, _)| size != known)
        {
            // A search that goes on can wait.
            self.asking = Some((known, 0));
            self.next = Some(now);
        }
    }

    /// Returns when a probe is due; None while answers are awaited.
    pub(super) const fn due(&self) -> Option<Instant> {
        self.next
    }

    /// Returns the size to ask for now.
    pub(super) fn ask(&mut self, now: Instant) -> Option<u16> {
        let size = match self.plan.pop_front() {
            Some(size) => size,
            None => self
                .asking
                .map(|(size, _)| size)
                .or_else(|| self.again(now))?,
        };
        self.under_way += 1;
        self.next = (!self.plan.is_empty()).then_some(now);
        Some(size)
    }

    /// Returns what is asked when the search is over: the size in use, or more if it is time for that.
    fn again(&mut self, now: Instant) -> Option<u16> {
        let known = self.known?;
        if self.done.is_some_and(|at| now >= at + RAISE) && known < self.most {
            self.done = None;
            self.limit = self.most + 1;
            self.search(now);
            return self.asking.map(|(size, _)| size);
        }
        self.asking = Some((known, 0));
        Some(known)
    }

    /// Takes that a probe of `size` was answered.
    pub(super) fn answered(&mut self, size: u16, now: Instant) {
        self.under_way = self.under_way.saturating_sub(1);
        if self.known.is_none_or(|known| known < size) {
            self.known = Some(size);
        }
        if self.limit <= size {
            self.limit = self.most + 1;
        }
        if self.asking.is_some_and(|(asked, _)| asked <= size) {
            self.asking = None;
        }
        self.go_on(now);
    }

    /// Takes that a probe of `size` got no answer; `is_alive` tells whether small ones do.
    pub(super) fn lost(&mut self, size: u16, is_alive: bool, now: Instant) {
        self.under_way = self.under_way.saturating_sub(1);
        if let Some((asked, tries)) = &mut self.asking
            && *asked == size
        {
            *tries += 1;
            // One that is only hoped for costs no more than it must.
            let is_hoped = self.known.is_some_and(|known| known < size);
            if *tries >= TRIES - u8::from(is_hoped) {
                self.asking = None;
                if self.known == Some(size) {
                    // It did pass before: everything is found out anew.
                    self.restart();
                    return self.begin(now);
                }
                self.refuse(size, is_alive);
            }
        }
        self.go_on(now);
    }

    /// Takes that a size does not pass.
    fn refuse(&mut self, size: u16, is_alive: bool) {
        if size > BASE || is_alive {
            self.limit = size;
        }
        if size == BASE && is_alive {
            self.known.get_or_insert(FLOOR);
        }
    }

    /// Decides what comes next once nothing is on its way.
    fn go_on(&mut self, now: Instant) {
        if self.under_way > 0 || !self.plan.is_empty() {
            return;
        }
        if self.asking.is_some() {
            self.next = Some(now);
            return;
        }
        if self.done.is_none() {
            self.search(now);
        } else {
            self.next = Some(now + CONFIRM);
        }
    }

    /// Chooses the next size between what passes and what does not, or ends the search.
    fn search(&mut self, now: Instant) {
        let Some(known) = self.known else {
            // Not even the least was answered: it is asked until the path itself is known to answer.
            if self.limit > BASE {
                self.asking = Some((BASE, 0));
                self.next = Some(now + Duration::from_secs(1));
            }
            return;
        };
        let above = FIRST.into_iter().chain([self.most]);
        let above = above
            .filter(|size| *size > known && *size < self.limit)
            .min();
        let size = match above {
            Some(size) => Some(size),
            None if self.limit - known <= STEP => None,
            // Most likely it is one of those that are met often.
            None if FIRST.contains(&known) => Some(known + STEP),
            None => Some(known + (self.limit - known) / 2),
        };
        match size {
            Some(size) => {
                self.asking = Some((size, 0));
                self.next = Some(now);
            }
            None => {
                self.done = Some(now);
                self.next = Some(now + CONFIRM);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::path::tests::epoch;

    /// Probes until the search is over, on a path that carries `carries`; returns the probes it took.
    fn settle(mtu: &mut Mtu, carries: impl Fn(u16) -> bool, now: &mut Instant) -> u32 {
        let (mut asked, mut sizes) = (0, Vec::new());
        mtu.begin(*now);
        loop {
            while mtu.due().is_some_and(|at| at <= *now) && !(sizes.is_empty() && mtu.is_settled())
            {
                sizes.extend(mtu.ask(*now));
                asked += 1;
            }
            if sizes.is_empty() && mtu.is_settled() {
                return asked;
            }
            *now += Duration::from_secs(1);
            for size in std::mem::take(&mut sizes) {
                match carries(size) {
                    true => mtu.answered(size, *now),
                    false => {
                        mtu.lost(size, true, *now);
                    }
                }
            }
            assert!(asked < 100, "{mtu:?}");
        }
    }

    #[test]
    fn the_size_of_a_path_is_found() {
        for (carried, least, most) in [
            (9000, 8920, 8920),
            (1440, 1440, 1440),
            (1420, 1420, 1420),
            (1300, 1285, 1300),
            (1280, 1280, 1280),
            (1200, 1185, 1200),
            (4000, 3985, 4000),
            (1120, 1105, 1120),
            (1000, 1000, 1000),
        ] {
            let (mut mtu, mut now) = (Mtu::new(), epoch());
            assert_eq!(mtu.size(), None);

            let asked = settle(&mut mtu, |size| size <= carried, &mut now);

            assert!(
                (least..=most).contains(&mtu.size().unwrap()),
                "{carried}: {mtu:?}"
            );
            assert!(asked <= 60, "{carried}: {asked} probes");
        }
    }

    #[test]
    fn one_answer_is_enough_to_send_as_much() {
        let (mut mtu, now) = (Mtu::new(), epoch());
        mtu.begin(now);
        assert_eq!(mtu.ask(now), Some(1440));

        mtu.answered(1440, now);

        assert_eq!(mtu.size(), Some(1440));
        assert!(!mtu.is_settled());
    }

    /// RFC 8899 section 4.4: a path that shrinks without a word is found out.
    #[test]
    fn a_path_that_shrinks_is_found_out_and_one_that_grows_later() {
        let (mut mtu, mut now) = (Mtu::new(), epoch());
        settle(&mut mtu, |size| size <= 1440, &mut now);
        let confirm = mtu.due().unwrap();
        assert_eq!(confirm, now + CONFIRM);
        mtu.doubt(now);
        for _ in 0..TRIES {
            assert_eq!(mtu.ask(now), Some(1440));
            mtu.lost(1440, true, now);
        }
        assert_eq!(mtu.size(), None);
        settle(&mut mtu, |size| size <= 1300, &mut now);
        assert!((1285..=1300).contains(&mtu.size().unwrap()));

        now += RAISE;
        let first = mtu.ask(now).unwrap();
        assert!(first > 1300);
        mtu.answered(first, now);
        settle(&mut mtu, |size| size <= 8920, &mut now);
        assert_eq!(mtu.size(), Some(MAX));
    }

    #[test]
    fn a_dead_path_is_not_taken_for_a_narrow_one() {
        let (mut mtu, mut now) = (Mtu::new(), epoch());
        mtu.begin(now);
        for _ in 0..30 {
            while mtu.due().is_some_and(|at| at <= now) {
                let size = mtu.ask(now).unwrap();
                mtu.lost(size, false, now);
            }
            now += Duration::from_secs(1);
        }
        assert_eq!(mtu.size(), None);
        settle(&mut mtu, |size| size <= 1440, &mut now);
        assert_eq!(mtu.size(), Some(1440));
    }

    #[test]
    fn no_more_is_tried_than_the_hops_let() {
        let (mut mtu, mut now) = (Mtu::new(), epoch());
        mtu.bound(1384);
        settle(&mut mtu, |_| true, &mut now);
        assert_eq!(mtu.size(), Some(1384));
    }
}

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::engine::{
    attach::Attachment,
    homes::Offer,
    hop::{FrameIds, Hop, SharedHop, Slot},
};
use crate::id::TunnelKey;

/// How long a gateway that did not answer is used only where there is no other, doubled each time it
/// happens: one that loses half of all would be left and taken again all the time.
const BAR: Duration = Duration::from_secs(10);
const LONGEST_BAR: Duration = Duration::from_secs(120);

/// An attachment, and what was made of it.
#[derive(Debug)]
pub(super) struct Home {
    pub(super) slot: Slot,
    pub(super) key: TunnelKey,
    pub(super) attachment: Attachment,
    /// When it was last made or lost.
    pub(super) since: Instant,
    was_attached: bool,
    was_sound: bool,
    /// Until when it is barred, and for how long; None when it never was.
    bar: Option<(Instant, Duration)>,
    was_barred: bool,
    /// What hands out the frame ids of the hop that whoever seals was last told of; None when that was
    /// told of none.
    shared: Option<Arc<dyn FrameIds>>,
}

impl Home {
    pub(super) const fn new(
        slot: Slot,
        key: TunnelKey,
        attachment: Attachment,
        now: Instant,
    ) -> Self {
        Self {
            slot,
            key,
            attachment,
            since: now,
            was_attached: false,
            was_sound: false,
            bar: None,
            was_barred: false,
            shared: None,
        }
    }

    pub(super) fn offer(&self, now: Instant) -> Offer {
        Offer {
            slot: self.slot,
            gateway: self.attachment.gateway(),
            is_sound: self.attachment.is_sound() && !self.is_barred(now),
        }
    }

    fn is_barred(&self, now: Instant) -> bool {
        self.bar.is_some_and(|(until, _)| now < until)
    }

    /// Takes what became of the attachment; tells whether frames may go otherwise than before.
    pub(super) fn follow(&mut self, now: Instant) -> bool {
        let is_attached = self.attachment.is_attached();
        let is_sound = self.attachment.is_sound();
        if is_attached && self.was_sound && !is_sound {
            self.set_bar(now);
        }
        if is_attached != self.was_attached {
            self.since = now;
        }
        let is_barred = self.is_barred(now);
        let before = (self.was_attached, self.was_sound, self.was_barred);
        let after = (is_attached, is_sound, is_barred);
        (self.was_attached, self.was_sound, self.was_barred) = after;
        before != after
    }

    fn set_bar(&mut self, now: Instant) {
        let again = |until: Instant| now < until + LONGEST_BAR;
        let last = self.bar.filter(|(until, _)| again(*until));
        let span = last.map_or(BAR, |(_, span)| (span * 2).min(LONGEST_BAR));
        self.bar = Some((now + span, span));
    }

    /// Lets frames go by it again, as in another network.
    pub(super) const fn lift_bar(&mut self) {
        self.bar = None;
    }

    pub(super) fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let bar = self.bar.filter(|_| self.was_barred);
        let bar = bar.map(|(until, _)| (until, "gateway bar ends"));
        self.attachment.poll_timeout().into_iter().chain(bar).min()
    }

    /// Returns the hop whoever seals is to know of, if it is told of another one.
    pub(super) fn poll_shared(&mut self) -> Option<(Slot, Option<SharedHop>)> {
        let hop = self.attachment.hop();
        let (old, new) = (self.shared.as_ref(), hop.and_then(Hop::ids));
        let is_same = match (old, new) {
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        if is_same {
            return None;
        }
        let told = (self.slot, hop.and_then(Hop::share));
        self.shared = new.cloned();
        Some(told)
    }
}

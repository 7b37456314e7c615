//! Pure: announcements on their way to another gateway, and those of it on their way here.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::wire::mesh::{Delta, Hello, Mark};

/// Messages under way at once: 16 KiB each, so that a far gateway is told of 1,000 agents in a second.
const WINDOW: usize = 4;

/// How long an answer is waited for before what is under way goes again.
const RESEND: Duration = Duration::from_secs(1);

/// A gap that the other end reports makes us go back at most this often.
const REWIND: Duration = Duration::from_millis(200);

/// What the other gateway was told.
#[derive(Debug)]
pub(super) struct Outbound {
    epoch: u32,
    /// Up to where it has everything, and up to where everything is under way.
    acked: u64,
    sent: u64,
    /// Where each message under way ends.
    flying: VecDeque<u64>,
    /// When what is under way goes again; None when nothing is.
    resend_at: Option<Instant>,
    rewound: Option<Instant>,
}

impl Outbound {
    /// Begins with an epoch that the other end does not take for an earlier one.
    pub(super) const fn new(epoch: u32) -> Self {
        Self {
            epoch,
            acked: 0,
            sent: 0,
            flying: VecDeque::new(),
            resend_at: None,
            rewound: None,
        }
    }

    /// Begins anew: everything is announced again.
    pub(super) fn restart(&mut self) {
        *self = Self::new(self.epoch.wrapping_add(1));
    }

    /// Returns where the next message begins; None when there is nothing to tell, or too much under way.
    pub(super) fn next(&self, version: u64) -> Option<u64> {
        let is_due = self.sent < version && self.flying.len() < WINDOW;
        is_due.then_some(self.sent)
    }

    /// Takes that a message went out, and returns where the other end will be.
    pub(super) fn sent(&mut self, instance: u64, upto: u64, now: Instant) -> Mark {
        self.sent = upto;
        self.flying.push_back(upto);
        self.resend_at.get_or_insert(now + RESEND);
        Mark {
            instance,
            epoch: self.epoch,
            upto,
        }
    }

    /// Takes where the other end says it is; true when it has more than before.
    pub(super) fn acked(&mut self, mark: Mark, now: Instant) {
        if mark.epoch != self.epoch || mark.upto > self.sent {
            return;
        }
        if mark.upto > self.acked {
            self.acked = mark.upto;
            while self.flying.front().is_some_and(|end| *end <= mark.upto) {
                self.flying.pop_front();
            }
            self.resend_at = (!self.flying.is_empty()).then_some(now + RESEND);
        } else if mark.upto == self.acked && self.rewound.is_none_or(|at| now >= at + REWIND) {
            self.rewind(now);
        }
    }

    /// Takes where the other end says it is when it greets; it may have forgotten everything.
    pub(super) fn greeted(&mut self, hello: &Hello, now: Instant) {
        if hello.epoch == self.epoch {
            self.acked(
                Mark {
                    instance: hello.instance,
                    epoch: hello.epoch,
                    upto: hello.upto,
                },
                now,
            );
        } else if self.acked > 0 {
            self.restart();
        }
    }

    /// Tells whether one who has what was acknowledged can be told what changed since.
    pub(super) const fn place(&self) -> u64 {
        self.acked
    }

    /// Sends again what was not acknowledged in time.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.resend_at.is_some_and(|at| at <= now) {
            self.rewind(now);
        }
    }

    /// Returns when something goes again; None when nothing is under way.
    pub(super) const fn poll_timeout(&self) -> Option<Instant> {
        self.resend_at
    }

    fn rewind(&mut self, now: Instant) {
        self.sent = self.acked;
        self.flying.clear();
        self.resend_at = None;
        self.rewound = Some(now);
    }
}

/// Up to where the other gateway's announcements were taken.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Inbound {
    epoch: u32,
    upto: u64,
    /// Whether anything was taken yet.
    began: bool,
}

/// What is to be done with a Delta.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Place {
    /// It was taken before, or one before it is missing: say where we are.
    Elsewhere,
    /// It is the next one.
    Next,
}

impl Inbound {
    /// Returns epoch and place, as greetings and answers say them.
    pub(super) const fn place(&self) -> (u32, u64) {
        (self.epoch, self.upto)
    }

    /// Tells whether a Delta follows on what was taken.
    pub(super) fn place_of(&self, delta: &Delta) -> Place {
        let is_new_epoch = !self.began || delta.mark.epoch != self.epoch;
        let follows = if is_new_epoch {
            delta.from == 0
        } else {
            delta.from == self.upto && delta.mark.upto > self.upto
        };
        if follows {
            Place::Next
        } else {
            Place::Elsewhere
        }
    }

    /// Takes that a Delta was taken.
    pub(super) const fn took(&mut self, mark: Mark) {
        self.epoch = mark.epoch;
        self.upto = mark.upto;
        self.began = true;
    }
}

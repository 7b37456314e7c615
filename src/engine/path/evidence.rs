use std::time::{Duration, Instant};

/// Unproven data that is not yet strange: longer than any RTT but a satellite's.
const DOUBT: Duration = Duration::from_millis(500);

/// Unproven data after which the path is left: time for two reports of the peer that differ, which
/// prove data that nothing answers, and for programs to notice less than 3 s (tailscale#19457).
const LOST: Duration = Duration::from_secs(2);

/// Pause between looks for a way out, while none is found.
const LOOK: Duration = Duration::from_millis(500);

/// Looks before the pause becomes longer.
const QUICK_LOOKS: u32 = 5;
const SLOW_LOOK: Duration = Duration::from_secs(5);

/// After the last user data paths are still kept compared.
const ACTIVE: Duration = Duration::from_secs(30);

/// No control message goes to a peer without user data for this long (protocol.md section 7).
pub(super) const IDLE: Duration = Duration::from_secs(180);

/// What is known of whether the data of the current path arrives.
///
/// Data of the peer on this path proves it, and so does a report that more of ours was received.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    /// When the first data was sent that nothing proves yet; None when all is proven.
    unproven: Option<Instant>,
    /// When to look next; None when there is nothing to doubt, or no choice.
    look: Option<Instant>,
    looks: u32,
    /// What the peer reported as received since there is doubt; None before its first report.
    received: Option<u32>,
    /// Whether that was asked after the last data, so that it says nothing of any that was lost.
    is_quiet: bool,
    /// Last data sent; None before the first.
    last_sent: Option<Instant>,
    /// Last user data either way; None before the first.
    last_data: Option<Instant>,
}

impl Evidence {
    pub(super) fn sent(&mut self, now: Instant, has_choice: bool) {
        self.last_data = Some(now);
        self.last_sent = Some(now);
        // What came before was not followed by anything that could tell of it.
        if self.unproven.is_none() || std::mem::take(&mut self.is_quiet) {
            self.unproven = Some(now);
        }
        if self.look.is_none() && has_choice {
            let doubt = self.unproven.unwrap_or(now) + DOUBT;
            self.look = Some(doubt.max(now));
        }
    }

    pub(super) fn heard(&mut self, on_current: bool, now: Instant) {
        self.last_data = Some(now);
        if on_current {
            self.prove();
        }
    }

    /// Takes what the peer says it received, in answer to a probe of `asked`.
    ///
    /// Only more than in an earlier report of the same doubt proves something: the earlier one may
    /// count what was sent before. And only data in between that is missing in the later one is lost:
    /// a lone answer, after which nobody has anything to say, is no reason to leave a path.
    pub(super) fn reported(&mut self, received: u32, asked: Instant, on_current: bool) {
        if !on_current || self.unproven.is_none_or(|at| asked < at) {
            return;
        }
        match self.received {
            Some(before) if before != received => self.prove(),
            Some(_) => {}
            None => {
                self.received = Some(received);
                self.is_quiet = self.last_sent.is_none_or(|at| at <= asked);
                if self.is_quiet {
                    self.look = None;
                    self.looks = 0;
                }
            }
        }
    }

    /// Takes everything for proven, as on a path just taken.
    pub(super) const fn prove(&mut self) {
        self.unproven = None;
        self.look = None;
        self.looks = 0;
        self.received = None;
        self.is_quiet = false;
    }

    /// Returns since when nothing proves what was sent; None when all is proven.
    pub(super) const fn unproven(&self) -> Option<Instant> {
        self.unproven
    }

    /// Tells whether the path is to be left for any that answers.
    pub(super) fn is_lost(&self, now: Instant) -> bool {
        !self.is_quiet && self.unproven.is_some_and(|at| now >= at + LOST)
    }

    /// Tells whether other paths are to be asked now, and puts the next time off.
    pub(super) fn takes_look(&mut self, now: Instant) -> bool {
        if self.look.is_none_or(|at| now < at) {
            return false;
        }
        self.looks += 1;
        let pause = if self.looks < QUICK_LOOKS {
            LOOK
        } else {
            SLOW_LOOK
        };
        let next = now + pause;
        self.look = self.active_until().filter(|end| next < *end).map(|_| next);
        true
    }

    pub(super) const fn next_look(&self) -> Option<Instant> {
        self.look
    }

    /// Returns until when paths are kept compared; None before any data.
    pub(super) fn active_until(&self) -> Option<Instant> {
        self.last_data.map(|at| at + ACTIVE)
    }

    /// Returns when data last went either way; None before any.
    pub(super) const fn last_data(&self) -> Option<Instant> {
        self.last_data
    }

    /// Tells whether there was no data of late, so that what is known of paths is old.
    pub(super) fn is_idle(&self, now: Instant) -> bool {
        self.active_until().is_none_or(|end| now >= end)
    }

    /// Tells whether there was no data for so long that nothing is to be said to the peer.
    pub(super) fn is_unused(&self, now: Instant) -> bool {
        self.last_data.is_none_or(|at| now >= at + IDLE)
    }

    /// Forgets that there ever was data.
    pub(super) const fn lapse(&mut self) {
        self.prove();
        self.last_data = None;
    }
}

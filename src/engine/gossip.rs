//! What two peers tell each other in their session: the network's revocations, and each its own
//! record and consent (protocol.md section 6).
//!
//! Each says what it has (`Have`), and sends what the other seems to lack: its own statements, then
//! revocations, newest first, one at a time, until the other says that it has the same. Sets may
//! differ for good, as when one end came after a statement expired: after a few rounds in which
//! nothing changed both are silent.

use std::time::{Duration, Instant};

use crate::wire::have::{Have, Summary};

/// When `Have` is repeated, counted from the time before: datagrams get lost.
const REPEATS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(2)];

/// Shortest time between two `Have` that have news: below [`PACE`], so that the peer stops in time.
const SPACING: Duration = Duration::from_millis(200);

/// Shortest time after which `Have` is said again because of what the peer said.
const ANSWER: Duration = Duration::from_secs(1);

/// Time between two statements to one peer: one is in reassembly at a time, and no peer makes us
/// send more than 64 KiB/s.
const PACE: Duration = Duration::from_millis(250);

/// After a round the peer has this long to say that something changed.
const BETWEEN: Duration = Duration::from_secs(2);

/// The end with fewer revocations lets the other go first.
const BEHIND: Duration = Duration::from_secs(5);

/// Rounds in which everything is offered before a difference is taken for lasting.
const MAX_ROUNDS: u8 = 3;

/// Statements of one peer that are verified at once, and how long each takes to be earned back.
const BURST: u32 = 16;
const COST: Duration = Duration::from_millis(125);

/// A peer that sent a statement that does not hold is not listened to for this long.
const PENALTY: Duration = Duration::from_secs(60);

/// What this end has: what it says of it, and its own statements that the peer should have.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Holdings {
    pub(crate) have: Have,
    /// Sequence number of our record, since when it says what it says now; 0 before the first.
    pub(crate) record: u64,
    /// Sequence number of our consent to the peer.
    pub(crate) consent: u64,
}

/// What is to be said to the peer now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Say {
    Have(Have),
    /// Our consent to the peer.
    Consent,
    /// Our record.
    Record,
    /// The revocation of this place in the order in which they came.
    Revocation(usize),
}

/// Where a round of statements stands.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum Step {
    #[default]
    Consent,
    Record,
    /// Revocations below this place are still to be sent.
    Revocations(u32),
}

/// In what we may have more than the peer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Difference {
    ours: Summary,
    theirs: Summary,
    /// Our record's sequence number; None when the peer has it.
    record: Option<u64>,
    /// Our consent's sequence number; None when the peer has it.
    consent: Option<u64>,
}

/// One peer's share of telling and being told.
#[derive(Debug, Default)]
pub(crate) struct Gossip {
    ours: Holdings,
    /// What the peer said last; None before.
    theirs: Option<Have>,
    /// When `Have` is said next; None when it was said often enough.
    have_at: Option<Instant>,
    /// How often `Have` was said since something changed.
    said: usize,
    /// When `Have` was said last; None before.
    said_at: Option<Instant>,
    /// When the next statement goes; None while none does.
    next_at: Option<Instant>,
    step: Step,
    /// Rounds since something of ours changed, or since the session was made.
    rounds: u8,
    /// Whether the peer said what it has since the last statement went.
    is_answered: bool,
    /// The difference that rounds did not change; None while there is none.
    standing: Option<Difference>,
    /// When the peer has earned all of its statements back; None before the first.
    spent: Option<Instant>,
    /// The peer is not listened to before this; None when it is.
    muted: Option<Instant>,
}

impl Gossip {
    /// Takes what we have now.
    pub(crate) fn set(&mut self, ours: Holdings, now: Instant) {
        let before = std::mem::replace(&mut self.ours, ours);
        // The registry brings a newer record of the peer every few minutes, which is no news.
        let is_news = before.have.revocations != ours.have.revocations
            || before.have.consent != ours.have.consent;
        if is_news {
            self.say_have(now);
        }
        let told = |h: &Holdings| (h.have.revocations, h.record, h.consent);
        if told(&before) != told(&ours) {
            (self.rounds, self.step, self.next_at) = (0, Step::Consent, None);
            self.consider(now);
        }
    }

    /// Takes that the session was made anew.
    pub(crate) fn handle_session(&mut self, now: Instant) {
        self.rounds = 0;
        self.say_have(now);
        self.consider(now);
    }

    /// Takes what the peer says it has.
    pub(crate) fn handle_have(&mut self, have: &Have, now: Instant) {
        let is_news = self.theirs.replace(*have) != Some(*have);
        // The peer sends nothing before it knows what we have.
        if is_news && have.revocations != self.ours.have.revocations && self.have_at.is_none() {
            self.say_after(ANSWER, now);
        }
        self.is_answered = true;
        self.note_standing();
        self.consider(now);
    }

    /// Takes that a statement of the peer came, so that it need not send it again.
    pub(crate) fn handle_statement(&mut self, now: Instant) {
        if self.have_at.is_none() {
            self.say_after(ANSWER, now);
        }
    }

    /// Tells whether a statement of the peer may be looked at, and counts it.
    pub(crate) fn admit(&mut self, now: Instant) -> bool {
        if self.muted.is_some_and(|until| now < until) {
            return false;
        }
        let spent = self.spent.unwrap_or(now).max(now) + COST;
        let has_budget = spent <= now + COST * BURST;
        if has_budget {
            self.spent = Some(spent);
        }
        has_budget
    }

    /// Takes that a statement of the peer was none.
    pub(crate) fn punish(&mut self, now: Instant) {
        self.muted = Some(now + PENALTY);
    }

    /// Returns what is to be said now.
    pub(crate) fn poll(&mut self, now: Instant) -> Option<Say> {
        if self.have_at.is_some_and(|at| at <= now) {
            self.have_at = REPEATS.get(self.said).map(|pause| now + *pause);
            self.said += 1;
            self.said_at = Some(now);
            return Some(Say::Have(self.ours.have));
        }
        if self.next_at.is_none_or(|at| now < at) {
            return None;
        }
        let Some(say) = self.next_statement() else {
            self.end_round(now);
            return None;
        };
        self.next_at = Some(now + PACE);
        self.is_answered = false;
        Some(say)
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        [self.have_at, self.next_at].into_iter().flatten().min()
    }

    fn say_have(&mut self, now: Instant) {
        self.said = 0;
        self.say_after(SPACING, now);
    }

    fn say_after(&mut self, spacing: Duration, now: Instant) {
        let earliest = self.said_at.map_or(now, |at| (at + spacing).max(now));
        self.have_at = Some(self.have_at.map_or(earliest, |at| at.min(earliest)));
    }

    /// Begins a round where the peer lacks something, and ends what is under way where it does not.
    fn consider(&mut self, now: Instant) {
        let Some(difference) = self.difference() else {
            (self.next_at, self.step) = (None, Step::Consent);
            return;
        };
        let is_standing = self.standing == Some(difference);
        if self.next_at.is_some() || self.rounds >= MAX_ROUNDS || is_standing {
            return;
        }
        let has_own = difference.consent.is_some() || difference.record.is_some();
        let is_behind = difference.ours.count < difference.theirs.count;
        let pause = if is_behind && !has_own {
            BEHIND
        } else {
            Duration::ZERO
        };
        self.next_at = Some(now + pause);
    }

    /// Returns what the peer may lack; None when it lacks nothing, or did not say what it has.
    fn difference(&self) -> Option<Difference> {
        let (theirs, ours) = (self.theirs?, self.ours);
        let revocations = ours.have.revocations;
        let found = Difference {
            ours: revocations,
            theirs: theirs.revocations,
            record: Some(ours.record).filter(|seq| *seq > theirs.record),
            consent: Some(ours.consent).filter(|seq| *seq > theirs.consent),
        };
        let differs = revocations.count > 0 && revocations != theirs.revocations;
        (differs || found.record.is_some() || found.consent.is_some()).then_some(found)
    }

    fn next_statement(&mut self) -> Option<Say> {
        let theirs = self.theirs?;
        loop {
            match self.step {
                Step::Consent => {
                    self.step = Step::Record;
                    if self.ours.consent > theirs.consent {
                        return Some(Say::Consent);
                    }
                }
                Step::Record => {
                    self.step = Step::Revocations(self.ours.have.revocations.count);
                    if self.ours.record > theirs.record {
                        return Some(Say::Record);
                    }
                }
                Step::Revocations(left) => {
                    let differs = self.ours.have.revocations != theirs.revocations;
                    let place = left.checked_sub(1).filter(|_| differs)?;
                    self.step = Step::Revocations(place);
                    return usize::try_from(place).ok().map(Say::Revocation);
                }
            }
        }
    }

    fn end_round(&mut self, now: Instant) {
        self.rounds = self.rounds.saturating_add(1);
        self.step = Step::Consent;
        self.next_at = (self.rounds < MAX_ROUNDS).then(|| now + BETWEEN);
        self.note_standing();
    }

    /// A difference lasts when all rounds are over and the peer answered: it was not just away.
    fn note_standing(&mut self) {
        if self.rounds >= MAX_ROUNDS && self.is_answered {
            self.standing = self.difference();
        }
    }
}

#[cfg(test)]
mod tests;

//! When boringtun's timers are due: it has to be asked, and does not tell when it wants to be.
//!
//! This follows what they depend on (its `noise/timers.rs`; WireGuard paper section 6), so that a
//! session which waits for nothing wakes nobody up. boringtun still decides: it is asked a little too
//! early rather than never, and when it said no a few times it is not asked again for the same reason.

use std::time::{Duration, Instant};

/// WireGuard paper section 6.1.
const KEEPALIVE: Duration = Duration::from_secs(10);
const REKEY_AFTER: Duration = Duration::from_secs(120);
const REKEY_ATTEMPT: Duration = Duration::from_secs(90);
const REKEY_TIMEOUT: Duration = Duration::from_secs(5);

/// Age of a session at which data of the peer makes its initiator renew it (section 6.2: Reject-After-Time
/// without the time a keepalive and a handshake may take).
const REKEY_ON_RECEIVE: Duration = Duration::from_secs(165);

/// boringtun reads its clock later than whoever tells us the time, so that it may find a moment not
/// come yet; after this long it has another reason.
const PATIENCE: Duration = Duration::from_millis(500);

/// What was sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Sent {
    Data,
    /// An answer to a handshake.
    Handshake,
    /// A handshake, whether it is the first or one more.
    Initiation,
    Keepalive,
}

/// A handshake of this end without an answer.
#[derive(Clone, Copy, Debug)]
struct Attempt {
    since: Instant,
    sent: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Timers {
    /// The newest session, and whether this end began it; None before the first.
    session: Option<(Instant, bool)>,
    attempt: Option<Attempt>,
    /// Last authentic message of the peer.
    received: Option<Instant>,
    data_received: Option<Instant>,
    sent: Option<Instant>,
    data_sent: Option<Instant>,
    /// Whether the last message was ours, or the peer's.
    wants_handshake: bool,
    wants_keepalive: bool,
    /// What was due up to here was no reason for boringtun to do anything.
    passed: Option<Instant>,
}

impl Timers {
    pub(super) fn sent(&mut self, what: Sent, at: Instant) {
        self.wants_handshake = true;
        self.wants_keepalive = false;
        self.sent = Some(at);
        match what {
            Sent::Data => self.data_sent = Some(at),
            Sent::Handshake => self.attempt = None,
            Sent::Initiation => {
                let since = self.attempt.map_or(at, |attempt| attempt.since);
                self.attempt = Some(Attempt { since, sent: at });
            }
            Sent::Keepalive => {}
        }
    }

    /// Takes that something authentic came; `is_data` tells packets from all else.
    pub(super) const fn received(&mut self, is_data: bool, at: Instant) {
        self.wants_handshake = false;
        self.wants_keepalive = true;
        self.received = Some(at);
        if is_data {
            self.data_received = Some(at);
        }
    }

    /// Takes that there is a new session.
    pub(super) const fn established(&mut self, is_initiator: bool, at: Instant) {
        self.session = Some((at, is_initiator));
        if is_initiator {
            self.attempt = None;
        }
    }

    /// Takes that boringtun has forgotten everything.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Takes that boringtun had nothing to do.
    pub(super) fn had_nothing(&mut self, now: Instant) {
        if self.due().is_some_and(|at| now >= at + PATIENCE) {
            self.passed = Some(now);
        }
    }

    /// Tells whether boringtun, asked now, would call for a handshake since the peer is silent.
    pub(super) fn is_silent(&self, now: Instant) -> bool {
        let silence = self.silence().filter(|_| self.wants_handshake);
        self.attempt.is_none() && silence.is_some_and(|at| at <= now)
    }

    /// Returns when boringtun is to be asked; None while it waits for nothing.
    pub(super) fn due(&self) -> Option<Instant> {
        if let Some(attempt) = self.attempt {
            let again = attempt.sent + REKEY_TIMEOUT;
            return Some(again.min(attempt.since + REKEY_ATTEMPT));
        }
        let [on_send, on_receive] = self.renewals();
        let handshake = self.wants_handshake.then(|| self.silence()).flatten();
        let keepalive = self.wants_keepalive.then(|| self.owed()).flatten();
        let all = [on_send, on_receive, handshake, keepalive].into_iter();
        all.flatten().filter(|at| Some(*at) > self.passed).min()
    }

    /// Returns when the initiator renews the session because of what it sent, or got.
    fn renewals(&self) -> [Option<Instant>; 2] {
        let Some((since, true)) = self.session else {
            return [None, None];
        };
        let later = |data: Option<Instant>, age| {
            let data = data.filter(|at| *at >= since)?;
            Some(data.max(since + age))
        };
        [
            later(self.data_sent, REKEY_AFTER),
            later(self.data_received, REKEY_ON_RECEIVE),
        ]
    }

    /// Returns when the peer has been silent for too long, though data was sent.
    fn silence(&self) -> Option<Instant> {
        let (sent, received) = (self.data_sent?, self.received?);
        let deadline = received + KEEPALIVE + REKEY_TIMEOUT;
        (sent >= received).then(|| sent.max(deadline))
    }

    /// Returns when the peer is owed an answer, if an empty one.
    fn owed(&self) -> Option<Instant> {
        let (received, sent) = (self.data_received?, self.sent);
        let deadline = sent.map_or(received, |sent| sent + KEEPALIVE);
        sent.is_none_or(|sent| received >= sent)
            .then(|| received.max(deadline))
    }
}

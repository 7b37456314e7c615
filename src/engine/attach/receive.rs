//! What a gateway says to an agent: answers to Attach, Resets and frames.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use rand::Rng;

use crate::engine::attach::{Attachment, Inbound, MAX_RETRY, Phase};
use crate::engine::hop::Hop;
use crate::wire::a2g::{Kind, Reset};
use crate::wire::control::{Attached, Control, Refusal};
use crate::wire::drop::DropReason;

/// Longest wait after a refusal that only another record can cure.
const MAX_REFUSED: Duration = Duration::from_secs(60);

/// After a Reset agents come back one by one, those with traffic first (protocol.md section 5).
const RESET_JITTER_MS: u64 = 3000;
const ACTIVE_JITTER_MS: u64 = 1000;

/// How long an agent that attached elsewhere since keeps quiet here; long enough that two copies of
/// one agent do not fight, short enough that the one that remains is reachable again.
const DISPLACED_FOR: Duration = Duration::from_secs(600);

impl Attachment {
    pub(super) fn handle_control(
        &mut self,
        from: SocketAddr,
        message: Control,
        now: Instant,
    ) -> Inbound {
        match message {
            Control::Attached(attached) => self.attached(from, &attached, now),
            Control::AttachRefused { code, text } => {
                self.session = None;
                self.refused = Some((code, text));
                self.attempts += 1;
                let longest = match code {
                    // It may just have restarted, or make room.
                    Refusal::Full | Refusal::NotServed => MAX_RETRY,
                    Refusal::BadRecord
                    | Refusal::Other(_)
                    | Refusal::Outdated
                    | Refusal::WrongKey => MAX_REFUSED,
                };
                let until = now + self.backoff(longest);
                self.phase = Phase::Waiting { until };
            }
            Control::Goodbye { .. } => {
                self.session = None;
                let until = now + self.backoff(MAX_RETRY);
                self.phase = Phase::Waiting { until };
            }
            Control::Attach { .. }
            | Control::Candidates(_)
            | Control::Channel(_)
            | Control::Have(_)
            | Control::Mesh(_)
            | Control::Part(_)
            | Control::Probe { .. }
            | Control::ProbeReply(_)
            | Control::Statement { .. } => {}
        }
        Inbound::Consumed
    }

    fn attached(&mut self, from: SocketAddr, attached: &Attached, now: Instant) {
        let early = Duration::from_secs(self.rng.random_range(0..3600));
        let mut hop = Hop::new(attached, from, early, now);
        hop.set_rtt(self.rtt);
        self.hop = Some(hop);
        self.share_ids();
        self.session = None;
        self.refused = None;
        self.attempts = 0;
        self.phase = Phase::Rest;
    }

    pub(super) fn handle_reset(&mut self, reset: Reset, now: Instant) -> Inbound {
        let Some(hop) = self.hop.take_if(|hop| hop.is_reset_by(&reset)) else {
            return Inbound::Dropped(DropReason::FrameTag);
        };
        if matches!(self.phase, Phase::Rest) {
            let longest = if hop.is_active(now) {
                ACTIVE_JITTER_MS
            } else {
                RESET_JITTER_MS
            };
            let jitter = Duration::from_millis(self.rng.random_range(0..longest));
            self.attempts = 0;
            self.phase = Phase::Waiting {
                until: now + jitter,
            };
        }
        Inbound::Consumed
    }

    pub(super) fn handle_frame(&mut self, bytes: &[u8], now: Instant) -> Inbound {
        let Some(hop) = self.hop.as_mut() else {
            return Inbound::Dropped(DropReason::FrameHopUnknown);
        };
        let header = match hop.open(bytes, self.config.agent, now) {
            Ok(header) => header,
            Err(reason) => return Inbound::Dropped(reason),
        };
        match header.kind {
            Kind::Data => match hop.received(&header, bytes, now) {
                Ok(received) => return Inbound::Received(received),
                Err(reason) => return Inbound::Dropped(reason),
            },
            // While this end attaches anew it is itself the newer one.
            Kind::Displaced if matches!(self.phase, Phase::Rest) => {
                self.hop = None;
                self.phase = Phase::Displaced {
                    until: now + DISPLACED_FOR,
                };
            }
            Kind::Heartbeat => {
                if let Some(took) = hop.take_sample(now) {
                    self.note_rtt(took);
                }
            }
            Kind::Displaced | Kind::SessionEnd => {}
        }
        Inbound::Consumed
    }
}

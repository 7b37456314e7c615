//! What an attachment shares with whoever makes and opens frames past the engine.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rand::Rng;

use crate::engine::{attach::Attachment, hop::FrameIds};

impl Attachment {
    /// Takes what hands out the ids of a hop's frames from a first one on, which others then share.
    pub fn set_frame_ids(&mut self, make: Option<fn(u64) -> Arc<dyn FrameIds>>) {
        self.make_ids = make;
        self.share_ids();
    }

    pub(super) fn share_ids(&mut self) {
        if let (Some(hop), Some(make)) = (&mut self.hop, self.make_ids) {
            hop.share_ids(make);
        }
    }

    /// Draws random bytes that are no secret.
    pub(crate) fn draw(&mut self) -> [u8; 32] {
        self.rng.random()
    }

    /// Takes how long the way to the gateway and back took.
    pub(super) fn note_rtt(&mut self, took: Duration) {
        self.rtt.add(took);
        if let Some(hop) = &mut self.hop {
            hop.set_rtt(self.rtt);
        }
    }

    /// Takes that the agent's traffic flows, past the gateway too.
    pub const fn note_traffic(&mut self, now: Instant) {
        if let Some(hop) = &mut self.hop {
            hop.note_traffic(now);
        }
    }

    /// Takes how many frames with payload others sent to and took from the gateway.
    pub const fn note_passed(&mut self, sent: u64, received: u64, now: Instant) {
        if let Some(hop) = &mut self.hop {
            hop.note_passed(sent, received, now);
        }
    }
}

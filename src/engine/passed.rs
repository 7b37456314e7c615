//! What goes past the sessions, sealed by data channels: the engine only hears of it.

use std::sync::Arc;

use crate::engine::{Engine, HopEvent, Time, channel::Passed, hop::FrameIds};
use crate::id::OverlayIp;
use crate::wire::channel::Suites;

impl Engine {
    /// Takes what packets may be sealed with past the sessions; none before the first call.
    ///
    /// Whoever calls this takes out [`Engine::poll_channel`], and opens and seals as that says.
    pub fn set_suites(&mut self, suites: Suites) {
        self.suites = suites;
        for local in self.locals.values_mut() {
            local.set_suites(suites, &mut self.out);
        }
    }

    /// Takes what makes, from a first id on, what hands out the ids of a hop's frames, so that others
    /// make such frames too; before the first call only the engine does.
    ///
    /// Whoever calls this takes out [`Engine::poll_hop`].
    pub fn set_frame_ids(&mut self, make: fn(u64) -> Arc<dyn FrameIds>) {
        self.frame_ids = Some(make);
        for local in self.locals.values_mut() {
            for attachment in local.homes.iter_mut() {
                attachment.set_frame_ids(self.frame_ids);
            }
            local.drain_gateways(&mut self.out);
        }
    }

    /// Returns the next change of a hop; none come before [`Engine::set_frame_ids`].
    pub fn poll_hop(&mut self) -> Option<HopEvent> {
        self.out.hops.pop_front()
    }

    /// Takes what went past the sessions since the last call.
    pub fn handle_passed(&mut self, passed: &[Passed], time: Time) {
        for passed in passed {
            if let Some(local) = self.locals.get_mut(&passed.local) {
                local.handle_passed(passed, time, &mut self.out);
            }
        }
    }

    /// Takes that the first packet of our channel `id` between two agents opened: the peer has the
    /// keys.
    pub fn handle_channel_used(&mut self, local: OverlayIp, peer: OverlayIp, id: u32, time: Time) {
        if let Some(local) = self.locals.get_mut(&local) {
            local.handle_channel_used(peer, id, time, &mut self.out);
        }
    }
}

//! What goes past the sessions, sealed by data channels: the engine only hears of it.

use crate::engine::{Engine, Time, channel::Passed};
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

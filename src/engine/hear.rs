//! What peers told in their sessions, and what the registry did not.

use crate::engine::{Engine, Event, Time, local::Local};
use crate::id::{Did, FullName, OverlayIp};
use crate::statement::StatementHash;
use crate::wire::drop::DropReason;

impl Engine {
    /// Takes up what peers told, as if the registry had told it.
    pub(super) fn hear(&mut self, time: Time) {
        while let Some(heard) = self.out.heard.pop_front() {
            let Some(found) = self.locals.get_mut(&heard.local) else {
                continue;
            };
            match found.hear(&heard, time) {
                Ok(true) => {
                    self.out.event(Event::Changed { local: heard.local });
                    self.settle(heard.local, time);
                }
                Ok(false) => {}
                Err(_) => self.out.drop(DropReason::ControlRefused),
            }
        }
    }

    /// Takes that the registry told of a revocation.
    pub(super) fn note_told(&mut self, local: OverlayIp, text: &str) {
        let hash = StatementHash::of(text);
        if let Some(found) = self.locals.get_mut(&local)
            && found.membership.revocations.held().has(&hash)
        {
            found.withheld.handle_told(hash);
        }
    }

    /// Takes whether an agent's registry has told all it has and is heard of; false at first.
    pub fn set_registry_live(&mut self, local: OverlayIp, is_live: bool, time: Time) {
        if let Some(found) = self.locals.get_mut(&local) {
            found.withheld.set_live(is_live, time.now);
        }
    }

    /// Returns the peers of an agent that knew of a revocation which its registry, though connected,
    /// did not tell; one entry a revocation, without a name where the peer is no more.
    pub fn withheld(&self, local: OverlayIp, time: Time) -> Vec<Option<FullName>> {
        let Some(found) = self.locals.get(&local) else {
            return Vec::new();
        };
        let peers = found.withheld.peers(time.now);
        peers.map(|did| name_of(found, &did)).collect()
    }

    /// Reports what the registry keeps back, each revocation once.
    pub(super) fn report_withheld(&mut self, time: Time) {
        for (local, found) in &mut self.locals {
            for did in found.withheld.report(time.now) {
                let (local, from) = (*local, name_of(found, &did));
                self.out.event(Event::Withheld { local, from });
            }
        }
    }
}

fn name_of(local: &Local, did: &Did) -> Option<FullName> {
    let name = local.membership.name_of(did)?;
    Some(local.full_name(&name))
}

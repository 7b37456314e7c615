//! What the engine's task keeps on disk, and what it could not write yet.

use std::collections::BTreeSet;

use tracing::{error, info};

use super::Core;
use crate::id::{IdentityKey, OverlayIp};
use crate::node::causes::with_causes;
use crate::os::files::FileError;

impl Core {
    /// Returns why the state could not be written; None when all is on disk.
    pub fn unsaved(&self) -> Option<&str> {
        let mut all = self.unkept.iter().chain(self.unsaved.values());
        all.next().map(String::as_str)
    }

    /// Writes what must not be forgotten of an agent that was added, at once.
    pub fn keep(&mut self, local: OverlayIp) {
        drop(self.keep_common());
        self.save([local]);
    }

    /// Writes the identity of an agent that is about to join, at once.
    pub fn keep_identity(&mut self, agent: String, identity: IdentityKey) -> Result<(), FileError> {
        self.engine.keep_identity(agent, identity);
        self.keep_common()
    }

    fn keep_common(&mut self) -> Result<(), FileError> {
        let kept = tokio::task::block_in_place(|| self.store.save(&self.engine.kept()));
        let why = kept.as_ref().err().map(|failed| with_causes(failed));
        if why != self.unkept {
            tell_unsaved(why.as_deref());
            self.unkept = why;
        }
        kept
    }

    /// Tries again to write what could not be written.
    pub(super) fn catch_up(&mut self) {
        if self.unkept.is_some() {
            drop(self.keep_common());
        }
        self.save([]);
        if self.unsaved().is_none() {
            info!("The state is on disk again");
        }
    }

    /// Writes what changed of agents, and what could not be written before.
    pub(super) fn save(&mut self, changed: impl IntoIterator<Item = OverlayIp>) {
        let before = std::mem::take(&mut self.unsaved);
        let due = before.keys().copied().chain(changed);
        for local in due.collect::<BTreeSet<_>>() {
            if let Err(failed) = tokio::task::block_in_place(|| self.write(local)) {
                let why = with_causes(&failed);
                if before.get(&local) != Some(&why) {
                    tell_unsaved(Some(&why));
                }
                self.unsaved.insert(local, why);
            }
        }
    }

    fn write(&self, local: OverlayIp) -> Result<(), FileError> {
        match self.engine.membership(local) {
            Some(membership) => self.store.save_agent(membership),
            None => {
                // What is remembered of it first.
                self.store.save(&self.engine.kept())?;
                self.store.remove_agent(local)
            }
        }
    }
}

fn tell_unsaved(why: Option<&str>) {
    if let Some(reason) = why {
        error!(code = "state_unsaved", reason, "Cannot write the state");
    }
}

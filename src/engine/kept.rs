//! What a node keeps on disk, as it lies in the engine.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::engine::membership::{Left, Membership};
use crate::id::IdentityKey;

/// What a [`State`](crate::engine::membership::State) consists of, borrowed: with many peers a copy takes megabytes.
#[derive(Debug, Serialize)]
pub struct Kept<'a> {
    identities: &'a BTreeMap<String, IdentityKey>,
    memberships: Vec<&'a Membership>,
    left: &'a [Left],
}

impl<'a> Kept<'a> {
    pub(crate) const fn new(
        identities: &'a BTreeMap<String, IdentityKey>,
        memberships: Vec<&'a Membership>,
        left: &'a [Left],
    ) -> Self {
        Self {
            identities,
            memberships,
            left,
        }
    }

    /// Adds agents that are kept elsewhere.
    #[must_use]
    pub fn with(mut self, more: &'a [Membership]) -> Self {
        self.memberships.extend(more);
        self
    }
}

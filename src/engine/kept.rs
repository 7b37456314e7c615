//! What a node keeps on disk beside its agents, as it lies in the engine.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::engine::membership::{Left, State};
use crate::id::IdentityKey;

/// What a [`State`] consists of but its memberships, borrowed.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Kept<'a> {
    pub identities: &'a BTreeMap<String, IdentityKey>,
    pub left: &'a [Left],
}

impl<'a> From<&'a State> for Kept<'a> {
    fn from(state: &'a State) -> Self {
        Self {
            identities: &state.identities,
            left: &state.left,
        }
    }
}

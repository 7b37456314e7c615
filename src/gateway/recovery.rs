//! Pure: what a gateway remembers of its attachments over a restart: whom to tell that they are gone.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// Most attachments remembered; the others learn of a restart from the answer to their next frame.
pub const MAX_RECOVERED: usize = 65_536;

/// Version of the file this is kept in.
pub const RECOVERY_VERSION: u32 = 1;

/// The contents of the recovery file: no key, no name, no address of an agent.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Recovery {
    pub hops: Vec<RecoveredHop>,
}

/// One attachment: its hop id and where the agent was.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct RecoveredHop {
    pub hop: u32,
    pub endpoint: SocketAddr,
}

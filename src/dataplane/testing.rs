//! What the unit tests of the data plane share.

use crate::policy::Pair;

/// Agent 1 here, and one of its peers.
pub(super) fn pair(peer: u16) -> Pair {
    let ip = |n: u16| format!("fd11:0:0:1::{n:x}").parse().unwrap();
    Pair {
        local: ip(1),
        peer: ip(peer),
    }
}

//! Where on a host an agent is.

use serde::{Deserialize, Serialize};

use crate::wire::binding::Binding;

/// Where programs find an agent's network on this host, and who may run them.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Placement {
    /// Whether it is in namespaces of programs alone, and not on the host's own network.
    #[serde(default)]
    pub apart: bool,
    /// Number of the user who may run programs in such namespaces, beside those who may change the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<u32>,
    /// Whose programs alone may use it on the host's own network; None is everybody's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound: Option<Binding>,
}

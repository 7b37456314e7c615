use std::collections::{BTreeMap, BTreeSet};

use crate::id::OverlayIp;
use crate::policy::Pair;
use crate::statement::Scope;
use crate::wire::binding::Binding;

/// A network namespace in which agents of this node live; its TUNs are interchangeable for the
/// kernel's routing, those of another realm never are.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub struct Realm(pub u32);

/// All the worker decides by, published whole by the engine.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    /// Rises with every publication.
    pub epoch: u64,
    /// The agents of this node, and where each lives.
    pub locals: BTreeMap<OverlayIp, Realm>,
    /// Those of them to whom what peers send directly is ignored, as if nobody were here.
    pub hidden: BTreeSet<OverlayIp>,
    /// Those whose sockets must be somebody's, on the host's own network.
    pub bound: BTreeMap<OverlayIp, Bound>,
    /// Who may be spoken with.
    pub peers: BTreeMap<Pair, PeerEntry>,
}

/// Whose programs alone may use an agent.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Bound {
    pub binding: Binding,
    /// Index of the agent's device.
    pub device: u32,
}

/// One installed peer of one local agent.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PeerEntry {
    /// What the peer may reach; all must allow it, and an empty list allows nothing but replies.
    pub inbound: Vec<Scope>,
}

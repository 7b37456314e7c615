//! The look-up of the forwarding table by itself, for micro-benchmarks; nothing else calls this.

use ipnet::Ipv6Net;

use crate::gateway::mft::{Mft, PeerId, Route, agent};
use crate::id::OverlayIp;

/// A forwarding table.
#[derive(Debug)]
pub struct Table(Mft);

impl Table {
    /// Makes a table of these agents, attached here, and of these prefixes, by another gateway.
    pub fn new(agents: &[OverlayIp], prefixes: &[Ipv6Net]) -> Self {
        let mut mft = Mft::new(usize::MAX, [7; 16]);
        for (hop, of) in (0..).zip(agents) {
            mft.insert(agent(of.ip()), 0, Route::Local(hop));
        }
        for prefix in prefixes {
            mft.insert(*prefix, 0, Route::Gateway(PeerId(1)));
        }
        Self(mft)
    }

    /// Tells whether there is a route to an agent.
    pub fn finds(&self, target: OverlayIp) -> bool {
        self.0.lookup(target.ip(), 128).is_some()
    }
}

//! Pure: gateways of other domains, and what goes by them: whole prefixes, and no agent by name.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use ipnet::Ipv6Net;

use crate::gateway::forward::{Hops, Sender};
use crate::gateway::mft::{PeerId, Route};
use crate::statement::peering::covers;

/// The rank of a way to a prefix: all of its gateways are as good.
const EQUAL: u8 = 0;

/// Gateways of other domains.
#[derive(Debug, Default)]
pub(super) struct Foreign {
    /// What each carries, from when it is first known.
    gateways: BTreeMap<PeerId, Vec<Ipv6Net>>,
    /// What is carried of all domains that are peered with.
    carried: Vec<Ipv6Net>,
}

impl Foreign {
    /// Returns as whom a gateway sends for `source`; the outer None when it is of our domain and
    /// `source` too, the inner when it may not.
    pub(super) fn sender(&self, gateway: PeerId, source: Ipv6Addr) -> Option<Option<Sender>> {
        match self.gateways.get(&gateway) {
            Some(prefixes) => Some(covers(prefixes, source).then_some(Sender::Foreign)),
            None => covers(&self.carried, source).then_some(Some(Sender::Passed)),
        }
    }

    /// Tells whether a route leads to another domain.
    pub(super) fn leads(&self, route: Route) -> bool {
        match route {
            Route::Gateway(gateway) => self.gateways.contains_key(&gateway),
            Route::Local(_) => false,
        }
    }
}

impl Hops {
    /// Takes what is carried of other domains, also where another gateway of ours passes it on.
    pub(crate) fn set_carried(&mut self, prefixes: Vec<Ipv6Net>) {
        self.foreign.carried = prefixes;
    }

    /// Takes that a gateway is of another domain, for which it sends, and is sent to once it is there.
    pub(crate) fn add_foreign(&mut self, gateway: PeerId, prefixes: Vec<Ipv6Net>) {
        self.foreign.gateways.insert(gateway, prefixes);
    }

    /// Takes that a gateway is there: if it is of another domain, frames to that go by it.
    pub(crate) fn open_foreign(&mut self, gateway: PeerId) {
        for prefix in self.carried(gateway) {
            if !self.mft.insert(prefix, EQUAL, Route::Gateway(gateway)) {
                tracing::warn!(%prefix, "No room for another way to this prefix");
            }
        }
    }

    /// Takes that a gateway is not there: nothing goes by it.
    pub(super) fn close_foreign(&mut self, gateway: PeerId) {
        for prefix in self.carried(gateway) {
            self.mft.remove(prefix, Route::Gateway(gateway));
        }
    }

    /// Forgets a gateway.
    pub(crate) fn forget_foreign(&mut self, gateway: PeerId) {
        self.foreign.gateways.remove(&gateway);
    }

    /// Returns what a gateway carries of its domain; nothing for those of ours.
    pub(crate) fn carried(&self, gateway: PeerId) -> Vec<Ipv6Net> {
        let prefixes = self.foreign.gateways.get(&gateway);
        prefixes.cloned().unwrap_or_default()
    }
}

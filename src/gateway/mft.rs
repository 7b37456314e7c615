//! Pure: the Message Forwarding Table, from target address to where it is attached.
//!
//! Exact addresses only, since all agents of this gateway are its own; prefixes of other gateways join
//! behind the same three calls.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

/// Where frames to a target go.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Route {
    /// To the agent attached by this hop id.
    Local(u32),
}

/// The forwarding table.
#[derive(Debug, Default)]
pub(crate) struct Mft {
    exact: BTreeMap<Ipv6Addr, Route>,
}

impl Mft {
    /// Sets the route of an address and returns the one it had.
    pub(crate) fn insert(&mut self, address: Ipv6Addr, route: Route) -> Option<Route> {
        self.exact.insert(address, route)
    }

    /// Removes the route of an address if it is still this one.
    pub(crate) fn remove(&mut self, address: Ipv6Addr, route: Route) {
        if self.exact.get(&address) == Some(&route) {
            self.exact.remove(&address);
        }
    }

    /// Returns the route to the target of which `prefix_len` bits count; the longest match wins.
    pub(crate) fn lookup(&self, target: Ipv6Addr, prefix_len: u8) -> Option<Route> {
        // A prefix as target names no single agent (it is for other gateways).
        (prefix_len == 128).then(|| self.exact.get(&target).copied())?
    }

    /// Returns how many routes there are.
    pub(crate) fn len(&self) -> usize {
        self.exact.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// the table follows attachments.
    #[test]
    fn a_route_is_found_until_it_is_replaced_or_removed() {
        let mut mft = Mft::default();
        let at = "fd00::1".parse().unwrap();

        assert_eq!(mft.insert(at, Route::Local(1)), None);
        assert_eq!(mft.lookup(at, 128), Some(Route::Local(1)));
        assert_eq!(mft.insert(at, Route::Local(2)), Some(Route::Local(1)));
        mft.remove(at, Route::Local(1));
        assert_eq!(mft.lookup(at, 128), Some(Route::Local(2)));
        assert_eq!(mft.lookup(at, 64), None);
        mft.remove(at, Route::Local(2));
        assert_eq!((mft.lookup(at, 128), mft.len()), (None, 0));
    }
}

//! Pure: the Message Forwarding Table, from target address or prefix to where frames to it go.
//!
//! Single agents are nearly all there is, so they are found by hash first; what is left is decided by
//! the longest prefix. An agent of several gateways has a route by each, and the best one is taken.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::net::Ipv6Addr;

use ipnet::Ipv6Net;
use prefix_trie::PrefixMap;
use siphasher::sip::SipHasher13;

/// Length of the prefix that is one agent.
const AGENT: u8 = 128; // bits

/// Most routes of one prefix: three gateways of a record (protocol.md section 2), and this one.
pub(crate) const MAX_WAYS: usize = 4;

/// Another gateway, for as long as it is known here.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct PeerId(pub(crate) u32);

/// Where frames to a target go.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Route {
    /// To another gateway.
    Gateway(PeerId),
    /// To the agent attached by this hop id.
    Local(u32),
}

/// The forwarding table.
#[derive(Debug)]
pub(crate) struct Mft {
    agents: HashMap<Ipv6Addr, Ways, Keyed>,
    prefixes: PrefixMap<Ipv6Net, Ways>,
    /// Routes of all prefixes.
    routes: usize,
    most: usize,
}

/// The routes of one prefix, best first; the others of an agent that has one cost no allocation.
#[derive(Debug)]
struct Ways {
    best: (u8, Route),
    others: Vec<(u8, Route)>,
}

/// Hashes addresses under a secret, since who makes keys chooses the addresses that follow from them.
#[derive(Clone, Debug)]
struct Keyed([u8; 16]);

impl BuildHasher for Keyed {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_key(&self.0)
    }
}

impl Mft {
    /// Makes a table of at most `most` routes, hashed under `key`.
    pub(crate) fn new(most: usize, key: [u8; 16]) -> Self {
        Self {
            agents: HashMap::with_hasher(Keyed(key)),
            prefixes: PrefixMap::new(),
            routes: 0,
            most,
        }
    }

    /// Adds a route of a prefix, or gives it another rank; of several the one of least rank is taken.
    ///
    /// False when there is no room, and nothing changed.
    pub(crate) fn insert(&mut self, prefix: Ipv6Net, rank: u8, route: Route) -> bool {
        let way = (rank, route);
        let ways = if prefix.prefix_len() == AGENT {
            self.agents.get_mut(&prefix.addr())
        } else {
            self.prefixes.get_mut(&prefix)
        };
        let had = ways.as_ref().is_some_and(|ways| ways.contains(route));
        if !had && self.routes >= self.most {
            return false;
        }
        match ways {
            Some(ways) => {
                if !ways.insert(way) {
                    return false;
                }
            }
            None if prefix.prefix_len() == AGENT => {
                self.agents.insert(prefix.addr(), Ways::of(way));
            }
            None => {
                self.prefixes.insert(prefix, Ways::of(way));
            }
        }
        self.routes += usize::from(!had);
        true
    }

    /// Removes a route of a prefix; true when there was one.
    pub(crate) fn remove(&mut self, prefix: Ipv6Net, route: Route) -> bool {
        let ways = if prefix.prefix_len() == AGENT {
            self.agents.get_mut(&prefix.addr())
        } else {
            self.prefixes.get_mut(&prefix)
        };
        let Some(ways) = ways.filter(|ways| ways.contains(route)) else {
            return false;
        };
        if !ways.remove(route) {
            if prefix.prefix_len() == AGENT {
                self.agents.remove(&prefix.addr());
            } else {
                self.prefixes.remove(&prefix);
            }
        }
        self.routes -= 1;
        true
    }

    /// Returns the best route to the target of which `prefix_len` bits count; the longest match wins.
    pub(crate) fn lookup(&self, target: Ipv6Addr, prefix_len: u8) -> Option<Route> {
        // A prefix as target names no single agent.
        if prefix_len != AGENT {
            return None;
        }
        let ways = self.agents.get(&target);
        let ways = ways.or_else(|| self.longest(target))?;
        Some(ways.best.1)
    }

    /// Returns the hop id by which the agent of an address is attached here, whatever else leads to it.
    pub(crate) fn local(&self, agent: Ipv6Addr) -> Option<u32> {
        let ways = self.agents.get(&agent)?;
        ways.iter().find_map(|(_, route)| match route {
            Route::Gateway(_) => None,
            Route::Local(hop) => Some(hop),
        })
    }

    /// Returns how many routes there are.
    pub(crate) const fn len(&self) -> usize {
        self.routes
    }

    fn longest(&self, address: Ipv6Addr) -> Option<&Ways> {
        // Most gateways know no prefixes.
        if self.prefixes.is_empty() {
            return None;
        }
        let longest = self.prefixes.get_lpm(&agent(address));
        longest.map(|(_, ways)| ways)
    }
}

impl Ways {
    const fn of(way: (u8, Route)) -> Self {
        Self {
            best: way,
            others: Vec::new(),
        }
    }

    fn iter(&self) -> impl Iterator<Item = (u8, Route)> {
        std::iter::once(self.best).chain(self.others.iter().copied())
    }

    fn contains(&self, route: Route) -> bool {
        self.iter().any(|(_, of)| of == route)
    }

    /// Adds a way in its place; false when there are as many as may be.
    fn insert(&mut self, way: (u8, Route)) -> bool {
        let mut all: Vec<_> = self.iter().filter(|(_, route)| *route != way.1).collect();
        if all.len() >= MAX_WAYS {
            return false;
        }
        all.push(way);
        self.set(all)
    }

    /// Takes a way out; false when none is left.
    fn remove(&mut self, route: Route) -> bool {
        let all = self.iter().filter(|(_, of)| *of != route).collect();
        self.set(all)
    }

    fn set(&mut self, mut all: Vec<(u8, Route)>) -> bool {
        all.sort_unstable();
        let Some((best, others)) = all.split_first() else {
            return false;
        };
        self.best = *best;
        self.others = others.to_vec();
        true
    }
}

/// Returns the prefix that is one agent.
pub(crate) const fn agent(address: Ipv6Addr) -> Ipv6Net {
    Ipv6Net::new_assert(address, AGENT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HERE: Route = Route::Local(1);

    fn by(gateway: u32) -> Route {
        Route::Gateway(PeerId(gateway))
    }

    fn mft() -> Mft {
        Mft::new(1000, [7; 16])
    }

    fn net(text: &str) -> Ipv6Net {
        text.parse().unwrap()
    }

    /// the table follows attachments.
    #[test]
    fn a_route_is_found_until_it_is_removed() {
        let mut mft = mft();
        let at = "fd00::1".parse().unwrap();

        assert!(mft.insert(agent(at), 0, HERE));
        assert_eq!(mft.lookup(at, 128), Some(HERE));
        assert_eq!(mft.lookup(at, 64), None);
        assert!(!mft.remove(agent(at), Route::Local(2)));
        assert_eq!((mft.local(at), mft.len()), (Some(1), 1));
        assert!(mft.remove(agent(at), HERE));
        assert_eq!((mft.lookup(at, 128), mft.len()), (None, 0));
    }

    ///
    #[test]
    fn the_longest_match_wins() {
        let mut mft = mft();
        let at = |text: &str| mft.lookup(text.parse().unwrap(), 128);
        assert_eq!(at("fd00:1:2:3::4"), None);
        for (prefix, route) in [
            ("fd00:1:2::/48", by(1)),
            ("fd00:1:2:3::/64", by(2)),
            ("fd00:1:2:3::4/128", HERE),
        ] {
            assert!(mft.insert(net(prefix), 0, route));
        }
        let at = |text: &str| mft.lookup(text.parse().unwrap(), 128);

        assert_eq!(at("fd00:1:2:3::4"), Some(HERE));
        assert_eq!(at("fd00:1:2:3::5"), Some(by(2)));
        assert_eq!(at("fd00:1:2:4::4"), Some(by(1)));
        assert_eq!(at("fd00:1:3:3::4"), None);
    }

    /// The order in which an agent's record lists its gateways decides; who is gone leaves the others.
    #[test]
    fn an_agent_of_several_gateways_is_reached_by_the_first_that_is_left() {
        let mut mft = mft();
        let at = "fd00::1".parse().unwrap();
        for (rank, gateway) in [(3, 8), (1, 9), (2, 7)] {
            assert!(mft.insert(agent(at), rank, by(gateway)));
        }

        assert_eq!(mft.lookup(at, 128), Some(by(9)));
        // The newer record lists them otherwise.
        assert!(mft.insert(agent(at), 0, by(7)));
        assert_eq!((mft.lookup(at, 128), mft.len()), (Some(by(7)), 3));
        mft.remove(agent(at), by(7));
        mft.remove(agent(at), by(9));
        assert_eq!(mft.lookup(at, 128), Some(by(8)));
    }

    #[test]
    fn the_table_is_bounded() {
        let mut mft = Mft::new(2, [0; 16]);
        let at = |n: u16| agent(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n));

        assert!(mft.insert(at(1), 0, HERE) && mft.insert(net("fd01::/48"), 0, by(1)));
        assert!(!mft.insert(at(2), 0, HERE) && !mft.insert(at(1), 1, by(1)));
        assert!(mft.insert(at(1), 5, HERE));
        assert_eq!(mft.len(), 2);
        mft.remove(net("fd01::/48"), by(1));
        assert!(mft.insert(at(2), 0, HERE));

        let mut mft = self::mft();
        let added = (0..9).filter(|n| mft.insert(at(1), 0, by(*n))).count();
        assert_eq!((added, mft.len()), (MAX_WAYS, MAX_WAYS));
    }

    /// Few addresses and lengths, so that prefixes lie in each other.
    fn prefix() -> impl Strategy<Value = Ipv6Net> {
        let length = prop::sample::select(vec![48_u8, 64, 128]);
        (0_u16..3, 0_u16..3, 0_u16..3, length).prop_map(|(a, b, c, length)| {
            let address = Ipv6Addr::new(0xfd00, 0, a, b, 0, 0, 0, c);
            Ipv6Net::new(address, length).unwrap().trunc()
        })
    }

    proptest! {
        /// the table is what a list of routes says, searched from end to end.
        #[test]
        fn the_table_agrees_with_a_list(
            steps in prop::collection::vec((any::<bool>(), prefix(), 0_u8..4, 0_u32..4), 1..50),
        ) {
            let mut mft = mft();
            let mut list: Vec<(Ipv6Net, u8, Route)> = vec![];
            for (adds, prefix, rank, gateway) in steps {
                let route = if gateway == 0 { HERE } else { by(gateway) };
                let known = list.iter().position(|(p, _, r)| (*p, *r) == (prefix, route));
                if let Some(known) = known {
                    list.remove(known);
                }
                if adds {
                    prop_assert!(mft.insert(prefix, rank, route));
                    list.push((prefix, rank, route));
                } else {
                    prop_assert_eq!(mft.remove(prefix, route), known.is_some());
                }
                prop_assert_eq!(mft.len(), list.len());
                for (a, b, c) in (0..27).map(|n| (n / 9, n / 3 % 3, n % 3)) {
                    let address = Ipv6Addr::new(0xfd00, 0, a, b, 0, 0, 0, c);
                    let longest = list.iter().filter(|(p, ..)| p.contains(&address));
                    let longest = longest.map(|(p, ..)| p.prefix_len()).max();
                    let ways = list.iter().filter(|(p, ..)| {
                        p.contains(&address) && Some(p.prefix_len()) == longest
                    });
                    let mut ways = ways.map(|(_, rank, route)| (*rank, *route)).collect::<Vec<_>>();
                    ways.sort_unstable();
                    prop_assert_eq!(mft.lookup(address, 128), ways.first().map(|(_, r)| *r));
                }
            }
        }
    }
}

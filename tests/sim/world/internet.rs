//! The simulated internet: sites behind NATs or none, links with delay, loss, reordering and
//! duplication, and cuts.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use agentnet::engine::{Transmit, Travel};

use crate::world::dice::Dice;
use crate::world::nat::{Nat, NatKind};

/// The UDP port of every node and of the gateway.
pub(crate) const PORT: u16 = 16200;

/// Hosts and the gateway, which has no site.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Node {
    Gateway,
    Host(usize),
}

/// A place where hosts can be.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    /// None where hosts have public addresses and nothing filters.
    pub(crate) nat: Option<Nat>,
    /// The first three bytes of its hosts' addresses; private ones may be those of another site.
    pub(crate) prefix: [u8; 3],
}

/// What the network does to datagrams, in percent.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Weather {
    pub(crate) loss: u8,
    pub(crate) duplication: u8,
    /// Of datagrams that are much slower than the others.
    pub(crate) reordering: u8,
}

/// A datagram on its way.
#[derive(Clone, Debug)]
pub(crate) struct Flight {
    pub(crate) sender: Node,
    /// Whence it comes for whoever gets it.
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    /// The site it does not leave; None on the internet.
    lan: Option<usize>,
    pub(crate) bytes: Vec<u8>,
}

/// Where a host is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) site: usize,
    pub(crate) at: SocketAddr,
}

/// All sites, and what is between them.
#[derive(Debug)]
pub(crate) struct Internet {
    pub(crate) sites: Vec<Site>,
    pub(crate) places: BTreeMap<usize, Place>,
    pub(crate) gateway: SocketAddr,
    pub(crate) weather: Weather,
    /// Pairs of nodes, lower one first, between whom nothing passes.
    cuts: BTreeSet<(Node, Node)>,
    /// Time a datagram takes from a site to the core of the internet.
    delays: Vec<Duration>,
    dice: Dice,
}

impl Internet {
    pub(crate) fn new(kinds: &[Option<NatKind>], seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let sites = kinds.iter().zip(1_u8..).map(|(kind, n)| Site {
            nat: kind.map(|kind| Nat::new(kind, Ipv4Addr::new(198, 51, 100, n))),
            prefix: match kind {
                // Every other private network has the addresses that everybody's has.
                Some(_) if n % 2 == 0 => [192, 168, 1],
                Some(_) => [10, 0, n],
                None => [203, 0, n],
            },
        });
        let sites = sites.collect::<Vec<_>>();
        let delay =
            |dice: &mut Dice| Duration::from_millis(2) + dice.within(Duration::from_millis(40));
        Self {
            delays: sites.iter().map(|_| delay(&mut dice)).collect(),
            sites,
            places: BTreeMap::new(),
            gateway: SocketAddr::from(([203, 0, 113, 1], PORT)),
            weather: Weather::default(),
            cuts: BTreeSet::new(),
            dice,
        }
    }

    /// Moves a host to a site, where it gets an address that nobody had; returns its endpoint.
    pub(crate) fn place(&mut self, host: usize, site: usize) -> SocketAddr {
        let [a, b, c] = self.sites[site].prefix;
        let old = self.places.get(&host).map(|place| place.at.ip());
        // Numbers begin anew at each site, so that two sites have the same.
        let is_taken = |ip: IpAddr| {
            let mut there = self
                .places
                .iter()
                .filter(|(h, p)| **h != host && p.site == site);
            old == Some(ip) || there.any(|(_, place)| place.at.ip() == ip)
        };
        let free = (10..=250).map(|d| IpAddr::from([a, b, c, d]));
        let ip = free.into_iter().find(|ip| !is_taken(*ip));
        let at = SocketAddr::new(ip.expect("a site has room for eight hosts"), PORT);
        self.places.insert(host, Place { site, at });
        at
    }

    /// Makes every site as far from the core as any other.
    pub(crate) fn set_delays(&mut self, delay: Duration) {
        self.delays.fill(delay);
    }

    pub(crate) fn set_cut(&mut self, one: Node, other: Node, is_cut: bool) {
        let pair = (one.min(other), one.max(other));
        if is_cut {
            self.cuts.insert(pair);
        } else {
            self.cuts.remove(&pair);
        }
    }

    pub(crate) fn is_cut(&self, one: Node, other: Node) -> bool {
        self.cuts.contains(&(one.min(other), one.max(other)))
    }

    /// Sends a datagram; returns what of it is on its way, and when each copy arrives.
    pub(crate) fn send(
        &mut self,
        sender: Node,
        transmit: Transmit,
        now: Instant,
    ) -> Vec<(Instant, Flight)> {
        let Transmit { to, bytes, travel } = transmit;
        let Some((from, lan, delay)) = self.route(sender, to, now) else {
            return vec![];
        };
        if travel == Travel::Briefly && lan.is_none() {
            // It was in our NAT, and ended before it came to another.
            return vec![];
        }
        let flight = Flight {
            sender,
            from,
            to,
            lan,
            bytes,
        };
        let weather = self.weather;
        let copies = 1 + usize::from(self.dice.percent(weather.duplication));
        let mut sent = Vec::with_capacity(copies);
        for _ in 0..copies {
            let jitter = self.dice.within(delay / 4 + Duration::from_micros(100));
            let is_late = self.dice.percent(weather.reordering);
            let late = if is_late {
                self.dice.within(Duration::from_millis(200))
            } else {
                Duration::ZERO
            };
            if !self.dice.percent(weather.loss) {
                sent.push((now + delay + jitter + late, flight.clone()));
            }
        }
        sent
    }

    /// Makes a datagram that reaches a node whatever is in the way; None for a host that is nowhere.
    pub(crate) fn forge(&self, from: SocketAddr, to: Node, bytes: Vec<u8>) -> Option<Flight> {
        let (to, lan) = match to {
            Node::Gateway => (self.gateway, None),
            Node::Host(host) => {
                let place = self.places.get(&host)?;
                (place.at, Some(place.site))
            }
        };
        let sender = Node::Gateway;
        Some(Flight {
            sender,
            from,
            to,
            lan,
            bytes,
        })
    }

    /// Returns who gets a datagram that arrives now; None when nobody does.
    pub(crate) fn arrive(&mut self, flight: &Flight, now: Instant) -> Option<Node> {
        let receiver = self.receiver(flight, now)?;
        (!self.is_cut(flight.sender, receiver)).then_some(receiver)
    }

    /// Returns the source a datagram has on its way, the site it stays in, and how long it takes.
    fn route(
        &mut self,
        sender: Node,
        to: SocketAddr,
        now: Instant,
    ) -> Option<(SocketAddr, Option<usize>, Duration)> {
        let IpAddr::V4(ip) = to.ip() else {
            return None;
        };
        let there = self.delay_to(ip);
        let Node::Host(host) = sender else {
            return (!ip.is_private()).then_some((self.gateway, None, there));
        };
        let place = *self.places.get(&host)?;
        let site = &mut self.sites[place.site];
        let [a, b, c, _] = ip.octets();
        if [a, b, c] == site.prefix {
            return Some((place.at, Some(place.site), Duration::from_micros(500)));
        }
        if ip.is_private() {
            return None;
        }
        let delay = self.delays[place.site] + there;
        match &mut site.nat {
            None => Some((place.at, None, delay)),
            Some(nat) if nat.public() == ip && !nat.kind().hairpins => None,
            // REQ-9: a hairpinned datagram has the outside source.
            Some(nat) => Some((nat.outbound(place.at, to, now), None, delay)),
        }
    }

    fn delay_to(&self, ip: Ipv4Addr) -> Duration {
        let site = self.sites.iter().position(|site| match &site.nat {
            Some(nat) => nat.public() == ip,
            None => site.prefix[..] == ip.octets()[..3],
        });
        site.map_or(Duration::from_millis(3), |site| self.delays[site])
    }

    fn receiver(&mut self, flight: &Flight, now: Instant) -> Option<Node> {
        if flight.to == self.gateway {
            return Some(Node::Gateway);
        }
        if let Some(site) = flight.lan {
            return self.host_at(site, flight.to);
        }
        let IpAddr::V4(ip) = flight.to.ip() else {
            return None;
        };
        let site = self.sites.iter_mut().position(|site| match &site.nat {
            Some(nat) => nat.public() == ip,
            None => site.prefix[..] == ip.octets()[..3],
        })?;
        let inside = match &mut self.sites[site].nat {
            Some(nat) => nat.inbound(flight.from, flight.to.port(), now)?,
            None => flight.to,
        };
        self.host_at(site, inside)
    }

    fn host_at(&self, site: usize, at: SocketAddr) -> Option<Node> {
        let mut places = self.places.iter();
        let found = places.find(|(_, place)| place.site == site && place.at == at);
        found.map(|(host, _)| Node::Host(*host))
    }
}

/// Makes a datagram that goes as far as it must.
pub(crate) const fn freely(to: SocketAddr, bytes: Vec<u8>) -> Transmit {
    let travel = Travel::Freely;
    Transmit { to, bytes, travel }
}

/// How often two ends that try all they know speak and learn before nothing new can come of it.
const ROUNDS: usize = 8;

impl Internet {
    /// Tells whether two hosts can speak without the gateway, cuts aside: whether each, sending to
    /// the endpoints the other names and to all it was heard from, is answered on one of them.
    ///
    /// Fresh NATs of the same kinds play it through, without time or loss.
    pub(crate) fn permits(&self, one: usize, other: usize, now: Instant) -> bool {
        let mut fresh = Self {
            sites: self.sites.clone(),
            places: self.places.clone(),
            gateway: self.gateway,
            weather: Weather::default(),
            cuts: BTreeSet::new(),
            delays: self.delays.clone(),
            dice: Dice::new(0),
        };
        for nat in fresh.sites.iter_mut().filter_map(|site| site.nat.as_mut()) {
            nat.reboot();
            // Who opens its own NAT first avoids clashes.
            nat.calm();
        }
        let mut known = BTreeMap::from([(one, BTreeSet::new()), (other, BTreeSet::new())]);
        for (host, peer) in [(one, other), (other, one)] {
            let named = fresh.route(Node::Host(host), fresh.gateway, now);
            let named = named.map(|(from, ..)| from);
            let own = fresh.places.get(&host).map(|place| place.at);
            let taken = fresh.places.get(&peer).map(|place| place.at);
            let named = named.into_iter().chain(own).filter(|at| Some(*at) != taken);
            known.entry(peer).or_default().extend(named);
        }
        (0..ROUNDS).any(|_| {
            let found = fresh.try_all(&mut known, (one, other), now);
            found | fresh.try_all(&mut known, (other, one), now)
        })
    }

    /// Sends from one to all it knows of the other; tells whether one of them was answered.
    fn try_all(
        &mut self,
        known: &mut BTreeMap<usize, BTreeSet<SocketAddr>>,
        (from, to): (usize, usize),
        now: Instant,
    ) -> bool {
        let mut is_answered = false;
        for endpoint in known[&from].clone() {
            let Some(source) = self.carry(from, endpoint, to, now) else {
                continue;
            };
            known.entry(to).or_default().insert(source);
            is_answered |= self.carry(to, source, from, now) == Some(endpoint);
        }
        is_answered
    }

    /// Carries a datagram at once; returns the source it has if it reaches `to`.
    fn carry(
        &mut self,
        from: usize,
        endpoint: SocketAddr,
        to: usize,
        now: Instant,
    ) -> Option<SocketAddr> {
        let sent = self.send(Node::Host(from), freely(endpoint, Vec::new()), now);
        let (_, flight) = sent.into_iter().next()?;
        (self.receiver(&flight, now) == Some(Node::Host(to))).then_some(flight.from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::nat::Behaviour::{
        self, AddressAndPortDependent, AddressDependent, EndpointIndependent,
    };

    #[expect(clippy::disallowed_methods, reason = "tests need an epoch")]
    fn start() -> Instant {
        Instant::now()
    }

    fn kind(mapping: Behaviour, filtering: Behaviour, hairpins: bool) -> NatKind {
        NatKind {
            mapping,
            filtering,
            preserves_ports: true,
            hairpins,
            lifetime: Duration::from_secs(120),
            clashes: false,
            is_refreshed_inbound: false,
        }
    }

    fn internet(sites: &[Option<NatKind>], places: &[usize]) -> Internet {
        let mut internet = Internet::new(sites, 1);
        for (host, site) in places.iter().enumerate() {
            internet.place(host, *site);
        }
        internet
    }

    fn arrives(internet: &mut Internet, from: Node, to: SocketAddr, now: Instant) -> Option<Node> {
        let sent = internet.send(from, freely(to, vec![1]), now);
        let (at, flight) = sent.into_iter().next()?;
        internet.arrive(&flight, at)
    }

    /// RFC 5128 section 3.3 and what follows: which pairs of NATs can be punched.
    #[test]
    fn pairs_of_nats_permit_what_is_known_of_them() {
        let now = start();
        let open = None;
        let cone = Some(kind(EndpointIndependent, EndpointIndependent, false));
        let restricted = Some(kind(EndpointIndependent, AddressDependent, false));
        let port_restricted = Some(kind(EndpointIndependent, AddressAndPortDependent, false));
        let symmetric = Some(kind(
            AddressAndPortDependent,
            AddressAndPortDependent,
            false,
        ));

        for (one, other, expected) in [
            (open, open, true),
            (open, symmetric, true),
            (cone, symmetric, true),
            (restricted, symmetric, true),
            (port_restricted, port_restricted, true),
            (port_restricted, symmetric, false),
            (symmetric, symmetric, false),
        ] {
            let internet = internet(&[one, other], &[0, 1]);
            assert_eq!(internet.permits(0, 1, now), expected, "{one:?} {other:?}");
            assert_eq!(internet.permits(1, 0, now), expected, "{other:?} {one:?}");
        }
    }

    /// Hosts of one site need no NAT to agree.
    #[test]
    fn neighbours_reach_each_other_by_their_own_addresses() {
        let now = start();
        let symmetric = Some(kind(
            AddressAndPortDependent,
            AddressAndPortDependent,
            false,
        ));
        let mut internet = internet(&[symmetric], &[0, 0]);
        let at = internet.places[&1].at;

        assert!(internet.permits(0, 1, now));
        assert_eq!(
            arrives(&mut internet, Node::Host(0), at, now),
            Some(Node::Host(1))
        );
    }

    /// RFC 4787 section 6: hairpinning with the outside source, or not at all.
    #[test]
    fn a_site_is_reached_from_within_where_its_nat_hairpins() {
        let now = start();
        for hairpins in [false, true] {
            let cone = Some(kind(EndpointIndependent, EndpointIndependent, hairpins));
            let mut internet = internet(&[cone], &[0, 0]);
            let gateway = internet.gateway;
            let (seen, ..) = internet.route(Node::Host(1), gateway, now).unwrap();

            let sent = internet.send(Node::Host(0), freely(seen, vec![]), now);

            assert_eq!(sent.len(), usize::from(hairpins));
            if let Some((at, flight)) = sent.first() {
                assert_eq!(flight.from.ip(), seen.ip(), "REQ-9a");
                assert_eq!(internet.arrive(flight, *at), Some(Node::Host(1)));
            }
        }
    }

    /// Two sites with the same private addresses do not reach into each other.
    #[test]
    fn a_private_address_is_of_the_senders_own_site() {
        let now = start();
        let cone = Some(kind(EndpointIndependent, EndpointIndependent, false));
        let mut internet = internet(&[None, cone, None, cone], &[1, 3, 1]);
        let (own, other) = (internet.places[&2].at, internet.places[&1].at);
        assert_eq!(internet.sites[1].prefix, internet.sites[3].prefix);
        assert_eq!(internet.places[&0].at, other, "two hosts have one address");

        assert_eq!(
            arrives(&mut internet, Node::Host(0), own, now),
            Some(Node::Host(2))
        );
        assert_eq!(arrives(&mut internet, Node::Host(1), own, now), None);
        assert_eq!(arrives(&mut internet, Node::Gateway, own, now), None);
    }

    #[test]
    fn weather_loses_doubles_and_reorders_and_cuts_stop_everything() {
        let now = start();
        let mut internet = internet(&[None, None], &[0, 1]);
        let at = internet.places[&1].at;
        internet.weather = Weather {
            loss: 20,
            duplication: 20,
            reordering: 20,
        };

        let sent = (0..1000).map(|_| internet.send(Node::Host(0), freely(at, vec![]), now));
        let sent = sent.collect::<Vec<_>>();

        let lost = sent.iter().filter(|copies| copies.is_empty()).count();
        let doubled = sent.iter().filter(|copies| copies.len() == 2).count();
        assert!((100..300).contains(&lost), "{lost}");
        assert!((80..250).contains(&doubled), "{doubled}");
        let times = sent.iter().flatten().map(|(at, _)| *at).collect::<Vec<_>>();
        assert!(!times.is_sorted());
        internet.weather = Weather::default();
        internet.set_cut(Node::Host(1), Node::Host(0), true);
        assert_eq!(arrives(&mut internet, Node::Host(0), at, now), None);
        internet.set_cut(Node::Host(0), Node::Host(1), false);
        assert!(arrives(&mut internet, Node::Host(0), at, now).is_some());
    }
}

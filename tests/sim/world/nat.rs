//! A network address translator for UDP in the words of RFC 4787: mapping, filtering, expiry, port
//! preservation and hairpinning.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

/// On what of the remote endpoint a mapping or a filter depends (RFC 4787 sections 4.1 and 5).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Behaviour {
    AddressAndPortDependent,
    AddressDependent,
    EndpointIndependent,
}

use Behaviour::{AddressAndPortDependent, AddressDependent, EndpointIndependent};

impl Behaviour {
    pub(crate) const ALL: [Self; 3] = [
        EndpointIndependent,
        AddressDependent,
        AddressAndPortDependent,
    ];

    /// Returns what counts of `remote`: remotes with the same are treated alike.
    const fn part_of(self, remote: SocketAddr) -> (Option<IpAddr>, Option<u16>) {
        match self {
            EndpointIndependent => (None, None),
            AddressDependent => (Some(remote.ip()), None),
            AddressAndPortDependent => (Some(remote.ip()), Some(remote.port())),
        }
    }

    const fn letter(self) -> &'static str {
        match self {
            EndpointIndependent => "EI",
            AddressDependent => "AD",
            AddressAndPortDependent => "APD",
        }
    }
}

/// What a NAT does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct NatKind {
    pub(crate) mapping: Behaviour,
    pub(crate) filtering: Behaviour,
    /// Whether the outside port is the inside one while that is free (section 4.2.1).
    pub(crate) preserves_ports: bool,
    /// Whether hosts inside reach each other by their outside endpoints (section 6).
    pub(crate) hairpins: bool,
    /// Time without use after which a mapping is forgotten (section 4.3).
    pub(crate) lifetime: Duration,
    /// Whether a datagram from outside that nobody waits for takes the port for its sender, so that a host
    /// that then sends there gets another: Linux does, without a filter on what is for itself.
    pub(crate) clashes: bool,
    /// Whether datagrams from outside count as use; those from inside always do (REQ-6).
    pub(crate) is_refreshed_inbound: bool,
}

impl NatKind {
    /// Names the kind in a story.
    pub(crate) fn text(&self) -> String {
        let flag = |is: bool, text: &'static str| if is { text } else { "" };
        format!(
            "{} mapping, {} filtering, {} s{}{}",
            self.mapping.letter(),
            self.filtering.letter(),
            self.lifetime.as_secs(),
            flag(self.preserves_ports, ", keeps ports"),
            flag(self.hairpins, ", hairpins"),
        )
    }
}

type Part = (Option<IpAddr>, Option<u16>);

#[derive(Clone, Debug)]
struct Mapping {
    inside: SocketAddr,
    /// The part of the remote endpoint it is for.
    toward: Part,
    outside: u16,
    used: Instant,
    /// Whom something was sent to, and when last.
    sent: BTreeMap<SocketAddr, Instant>,
}

/// A NAT with one public address.
#[derive(Clone, Debug)]
pub(crate) struct Nat {
    kind: NatKind,
    public: Ipv4Addr,
    mappings: Vec<Mapping>,
    next_port: u16,
    /// Who sent to which port without being let in, and when.
    strays: Vec<(SocketAddr, u16, Instant)>,
}

/// How long a stray datagram is remembered (`nf_conntrack_udp_timeout`).
const STRAY: Duration = Duration::from_secs(30);

/// The first port of those a NAT draws from.
const FIRST_PORT: u16 = 20_000;

impl Nat {
    pub(crate) const fn new(kind: NatKind, public: Ipv4Addr) -> Self {
        Self {
            kind,
            public,
            mappings: Vec::new(),
            next_port: FIRST_PORT,
            strays: Vec::new(),
        }
    }

    pub(crate) const fn kind(&self) -> &NatKind {
        &self.kind
    }

    pub(crate) const fn public(&self) -> Ipv4Addr {
        self.public
    }

    /// Takes a datagram to the outside; returns the source it has there.
    pub(crate) fn outbound(
        &mut self,
        inside: SocketAddr,
        to: SocketAddr,
        now: Instant,
    ) -> SocketAddr {
        self.expire(now);
        let toward = self.kind.mapping.part_of(to);
        let exact = AddressAndPortDependent.part_of(to);
        let of = |part: Part| {
            let mut mappings = self.mappings.iter();
            mappings.position(|m| m.inside == inside && m.toward == part)
        };
        let known = of(exact).or_else(|| of(toward));
        let wanted = known.map_or_else(|| inside.port(), |at| self.mappings[at].outside);
        let is_taken = self
            .strays
            .iter()
            .any(|(from, port, _)| (*from, *port) == (to, wanted));
        let (known, toward) = if is_taken && of(exact).is_none() {
            (None, exact)
        } else {
            (known, toward)
        };
        let at = known.unwrap_or_else(|| {
            let outside = if is_taken {
                self.other_port()
            } else {
                self.free_port(inside.port())
            };
            self.mappings.push(Mapping {
                inside,
                toward,
                outside,
                used: now,
                sent: BTreeMap::new(),
            });
            self.mappings.len() - 1
        });
        let mapping = &mut self.mappings[at];
        mapping.used = now;
        mapping.sent.insert(to, now);
        SocketAddr::new(self.public.into(), mapping.outside)
    }

    /// Takes a datagram from the outside to `port`; returns whom it is for, if it may pass.
    pub(crate) fn inbound(
        &mut self,
        from: SocketAddr,
        port: u16,
        now: Instant,
    ) -> Option<SocketAddr> {
        self.expire(now);
        let (filtering, refreshes) = (self.kind.filtering, self.kind.is_refreshed_inbound);
        let part = filtering.part_of(from);
        let lets = |mapping: &Mapping| {
            let is_met = || mapping.sent.keys().any(|to| filtering.part_of(*to) == part);
            filtering == EndpointIndependent || is_met()
        };
        let found = self.mappings.iter_mut().find(|m| m.outside == port);
        let may_pass = found.as_deref().is_some_and(lets);
        if !may_pass && self.kind.clashes {
            self.strays.push((from, port, now));
        }
        let mapping = found?;
        if may_pass && refreshes {
            mapping.used = now;
            if let Some(at) = mapping.sent.get_mut(&from) {
                *at = now;
            }
        }
        may_pass.then_some(mapping.inside)
    }

    /// Forgets everything, as one that lost power; new mappings get other ports.
    pub(crate) fn reboot(&mut self) {
        self.mappings.clear();
        self.next_port = self.next_port.wrapping_add(1000).max(FIRST_PORT);
    }

    /// Takes no port for strays any more.
    pub(crate) const fn calm(&mut self) {
        self.kind.clashes = false;
    }

    fn expire(&mut self, now: Instant) {
        let lifetime = self.kind.lifetime;
        self.mappings.retain(|m| now < m.used + lifetime);
        self.strays.retain(|(_, _, at)| now < *at + STRAY);
        for mapping in &mut self.mappings {
            mapping.sent.retain(|_, at| now < *at + lifetime);
        }
    }

    /// No port is given to two mappings (section 4.2.1, REQ-3).
    fn free_port(&mut self, wanted: u16) -> u16 {
        let is_free = |port: u16, all: &[Mapping]| all.iter().all(|m| m.outside != port);
        if self.kind.preserves_ports && is_free(wanted, &self.mappings) {
            return wanted;
        }
        self.other_port()
    }

    fn other_port(&mut self) -> u16 {
        let is_free = |port: u16, all: &[Mapping]| all.iter().all(|m| m.outside != port);
        loop {
            // Not one by one, so that nobody's guess of the next is right by accident.
            self.next_port = self.next_port.wrapping_add(7).max(FIRST_PORT);
            if is_free(self.next_port, &self.mappings) {
                return self.next_port;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const INSIDE: &str = "10.0.0.10:16200";

    #[expect(clippy::disallowed_methods, reason = "tests need an epoch")]
    fn start() -> Instant {
        Instant::now()
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn kind(mapping: Behaviour, filtering: Behaviour) -> NatKind {
        NatKind {
            mapping,
            filtering,
            preserves_ports: false,
            hairpins: false,
            lifetime: 120 * SECOND,
            clashes: false,
            is_refreshed_inbound: false,
        }
    }

    fn nat(kind: NatKind) -> Nat {
        Nat::new(kind, Ipv4Addr::new(198, 51, 100, 1))
    }

    /// RFC 4787 section 4.1: X1':x1' equals X2':x2' by what of Y1:y1 and Y2:y2 differs.
    #[test]
    fn mappings_are_reused_as_their_behaviour_says() {
        let now = start();
        for (mapping, same_address, other_address) in [
            (EndpointIndependent, true, true),
            (AddressDependent, true, false),
            (AddressAndPortDependent, false, false),
        ] {
            let mut nat = nat(kind(mapping, EndpointIndependent));
            let mut seen = |to: &str| nat.outbound(at(INSIDE), at(to), now);

            let first = seen("203.0.113.1:1");

            assert_eq!(seen("203.0.113.1:1"), first);
            assert_eq!(seen("203.0.113.1:2") == first, same_address, "{mapping:?}");
            assert_eq!(seen("203.0.113.2:1") == first, other_address, "{mapping:?}");
        }
    }

    /// RFC 4787 section 5: who may answer to a mapping.
    #[test]
    fn datagrams_are_filtered_as_the_behaviour_says() {
        let now = start();
        for (filtering, same_address, other_address) in [
            (EndpointIndependent, true, true),
            (AddressDependent, true, false),
            (AddressAndPortDependent, false, false),
        ] {
            let mut nat = nat(kind(EndpointIndependent, filtering));
            let outside = nat.outbound(at(INSIDE), at("203.0.113.1:1"), now);
            let mut passes = |from: &str| nat.inbound(at(from), outside.port(), now).is_some();

            assert!(passes("203.0.113.1:1"));
            assert_eq!(passes("203.0.113.1:2"), same_address, "{filtering:?}");
            assert_eq!(passes("203.0.113.2:1"), other_address, "{filtering:?}");
            assert_eq!(nat.inbound(at("203.0.113.1:1"), 9, now), None);
        }
    }

    /// RFC 4787 section 4.3, REQ-5 and REQ-6: use from inside keeps a mapping, from outside may.
    #[test]
    fn mappings_expire_unless_used() {
        let (now, to) = (start(), at("203.0.113.1:1"));
        for inbound in [false, true] {
            let mut nat = nat(NatKind {
                is_refreshed_inbound: inbound,
                ..kind(EndpointIndependent, AddressAndPortDependent)
            });
            let outside = nat.outbound(at(INSIDE), to, now);
            let kept = nat.outbound(at(INSIDE), to, now + 100 * SECOND);
            assert_eq!(kept, outside);
            let heard = nat.inbound(to, outside.port(), now + 200 * SECOND);
            assert_eq!(heard, Some(at(INSIDE)));

            let later = nat.inbound(to, outside.port(), now + 300 * SECOND);

            assert_eq!(later.is_some(), inbound);
            let anew = nat.outbound(at(INSIDE), to, now + 600 * SECOND);
            assert_ne!(anew, outside, "a mapping that ended is not made again");
        }
    }

    /// A filter forgets a remote that was not sent to for as long as a mapping lives.
    #[test]
    fn permission_of_one_remote_expires_beside_the_mapping() {
        let (now, one, other) = (start(), at("203.0.113.1:1"), at("203.0.113.2:1"));
        let mut nat = nat(kind(EndpointIndependent, AddressAndPortDependent));
        let outside = nat.outbound(at(INSIDE), one, now);
        nat.outbound(at(INSIDE), other, now + 90 * SECOND);

        let later = now + 130 * SECOND;

        assert_eq!(nat.inbound(one, outside.port(), later), None);
        assert!(nat.inbound(other, outside.port(), later).is_some());
    }

    /// What Linux does where nothing filters what is for the router itself.
    #[test]
    fn a_stray_datagram_takes_the_port_for_its_sender_alone() {
        let (now, one, other) = (start(), at("203.0.113.1:1"), at("203.0.113.2:1"));
        let mut nat = nat(NatKind {
            clashes: true,
            ..kind(EndpointIndependent, AddressAndPortDependent)
        });
        let outside = nat.outbound(at(INSIDE), other, now);
        assert_eq!(nat.inbound(one, outside.port(), now), None);

        let clashed = nat.outbound(at(INSIDE), one, now);

        assert_ne!(clashed, outside);
        assert_eq!(nat.outbound(at(INSIDE), one, now), clashed);
        assert_eq!(nat.inbound(one, clashed.port(), now), Some(at(INSIDE)));
        assert_eq!(nat.outbound(at(INSIDE), other, now), outside);
        let mut calm = nat.clone();
        calm.reboot();
        assert_eq!(calm.inbound(one, 16200, now), None);
        let later = now + 31 * SECOND;
        let first = calm.outbound(at(INSIDE), other, later);
        assert_eq!(calm.outbound(at(INSIDE), one, later), first);
    }

    /// RFC 4787 section 4.2.1: the port is kept while it is free, and never given twice (REQ-3).
    #[test]
    fn ports_are_preserved_while_they_are_free() {
        let (now, to) = (start(), at("203.0.113.1:1"));
        let mut nat = nat(NatKind {
            preserves_ports: true,
            ..kind(EndpointIndependent, EndpointIndependent)
        });

        let first = nat.outbound(at("10.0.0.10:16200"), to, now);
        let second = nat.outbound(at("10.0.0.11:16200"), to, now);

        assert_eq!(first, at("198.51.100.1:16200"));
        assert_ne!(second.port(), 16200);
        assert_eq!(nat.inbound(to, 16200, now), Some(at("10.0.0.10:16200")));
    }

    #[test]
    fn a_reboot_forgets_all_and_gives_other_ports() {
        let (now, to) = (start(), at("203.0.113.1:1"));
        let mut nat = nat(kind(EndpointIndependent, EndpointIndependent));
        let before = nat.outbound(at(INSIDE), to, now);

        nat.reboot();

        assert_eq!(nat.inbound(to, before.port(), now), None);
        assert_ne!(nat.outbound(at(INSIDE), to, now), before);
    }
}

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::id::OverlayIp;
use crate::policy::flow::TcpFlow;
use crate::policy::pair::{Context, PairState};
use crate::statement::Scope;
use crate::wire::drop::DropReason;
use crate::wire::ip::Ipv6View;

/// A local agent and one of its peers; flows and scopes are per pair.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Pair {
    pub local: OverlayIp,
    pub peer: OverlayIp,
}

impl Pair {
    /// Lanes there are: a power of two.
    pub const LANES: u8 = 16;

    /// Returns the lane of this pair: a number below [`Pair::LANES`] that never changes, by which
    /// pairs are shared out, and in which the low bits of its channel ids are alike.
    pub fn lane(&self) -> u8 {
        Self::lane_of(self.local.ip().octets(), self.peer.ip().octets())
    }

    /// Returns the lane of the pair of two addresses, whichever of them is the local one.
    pub fn lane_of(one: [u8; 16], other: [u8; 16]) -> u8 {
        let mixed = u128::from_be_bytes(one) ^ u128::from_be_bytes(other);
        // Fibonacci hashing: the top bits depend on all below.
        let spread = ((mixed >> 64) as u64 ^ mixed as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (spread >> (u64::BITS - Self::LANES.ilog2())) as u8
    }
}

/// What to do with a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    Drop(DropReason),
    Pass,
}

impl Verdict {
    /// Returns why the packet goes nowhere; None when it goes.
    pub const fn dropped(self) -> Option<DropReason> {
        match self {
            Self::Drop(reason) => Some(reason),
            Self::Pass => None,
        }
    }
}

/// How much one pair may make the filter remember.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Flows of one pair; about 100 bytes each.
    pub flows: usize,
    /// Packets of one pair of which later fragments are awaited.
    pub fragments: usize,
    /// How long after the start a connection is taken up in the middle, so that those of before a
    /// restart live on.
    pub pick_up: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // As many as a busy host has to one server; 400 KiB if a peer tries.
            flows: 4096,
            // One burst of large datagrams.
            fragments: 64,
            // The longest gap between two retransmissions, RFC 6298 section 2.5 asks for 60 s.
            pick_up: Duration::from_secs(120),
        }
    }
}

/// The stateful filter of one node: deny what no scope allows and no local program began.
///
/// A flow that the peer began is judged by the scopes at every packet, so narrowing them cuts it.
#[derive(Debug)]
pub struct Filter {
    limits: Limits,
    pick_up_until: Instant,
    pairs: BTreeMap<Pair, PairState>,
}

impl Filter {
    /// Makes a filter that knows no flow yet.
    pub fn new(limits: Limits, now: Instant) -> Self {
        Self {
            limits,
            pick_up_until: now + limits.pick_up,
            pairs: BTreeMap::new(),
        }
    }

    /// Judges a packet of a local program and records its flow, so that replies may return.
    ///
    /// Everything passes but control packets, neighbour discovery, and segments of connections
    /// that are over: for these, dropped as [`DropReason::FilterNoFlow`], a reset is due.
    pub fn outbound(
        &mut self,
        pair: Pair,
        view: &Ipv6View<'_>,
        scopes: &[Scope],
        now: Instant,
    ) -> Verdict {
        if view.source() != pair.local.ip() {
            return Verdict::Drop(DropReason::TunSource);
        }
        if view.destination() != pair.peer.ip() {
            return Verdict::Drop(DropReason::TunDestination);
        }
        let context = Context {
            pair,
            scopes,
            limit: self.limits.flows,
            now,
        };
        let may_pick_up = now < self.pick_up_until;
        let state = self.pairs.entry(pair).or_default();
        state.outbound(&context, view.transport(), may_pick_up)
    }

    /// Judges a packet of the peer; each of `scopes` must allow what no local program began, and
    /// none at all allows nothing.
    pub fn inbound(
        &mut self,
        pair: Pair,
        view: &Ipv6View<'_>,
        scopes: &[Scope],
        now: Instant,
    ) -> Verdict {
        if view.source() != pair.peer.ip() {
            return Verdict::Drop(DropReason::SessionSource);
        }
        if view.destination() != pair.local.ip() {
            return Verdict::Drop(DropReason::SessionDestination);
        }
        let context = Context {
            pair,
            scopes,
            limit: self.limits.flows,
            now,
        };
        let state = self.pairs.entry(pair).or_default();
        let Some(fragment) = view.fragment() else {
            return state.inbound(&context, view.transport());
        };
        if fragment.start > 0 {
            return state.later_fragment(fragment, now);
        }
        let verdict = state.inbound(&context, view.transport());
        if verdict == Verdict::Pass {
            state.first_fragment(fragment, self.limits.fragments, now);
        }
        verdict
    }

    /// Ends the connections the peer began that `scopes` no longer allow, and returns them.
    pub fn narrow(&mut self, pair: Pair, scopes: &[Scope], now: Instant) -> Vec<TcpFlow> {
        // What was just cut must not be picked up again.
        self.pick_up_until = now;
        let Some(state) = self.pairs.get_mut(&pair) else {
            return Vec::new();
        };
        state.narrow(scopes)
    }

    /// Forgets a pair and returns the connections that this ends.
    pub fn forget(&mut self, pair: Pair, now: Instant) -> Vec<TcpFlow> {
        self.pick_up_until = now;
        let state = self.pairs.remove(&pair);
        state.map_or_else(Vec::new, PairState::end)
    }

    /// Frees what has been silent for too long; correctness does not depend on it.
    pub fn expire(&mut self, now: Instant) {
        self.pairs.retain(|_, state| {
            state.expire(now);
            !state.is_empty()
        });
    }

    /// Returns the number of flows remembered for `pair`.
    pub fn flows(&self, pair: Pair) -> usize {
        self.pairs.get(&pair).map_or(0, PairState::flows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::tests::{epoch, ip, packet, pair, scope};
    use crate::statement::Protocol;
    use crate::wire::icmp6::{Unreachable, unreachable};
    use etherparse::PacketBuilder;

    /// A filter and a clock; agent 1 is the local end.
    struct World {
        filter: Filter,
        now: Instant,
    }

    impl World {
        fn new() -> Self {
            let now = epoch();
            let limits = Limits {
                flows: 64,
                fragments: 4,
                pick_up: Duration::ZERO,
            };
            Self {
                filter: Filter::new(limits, now),
                now,
            }
        }

        fn send(&mut self, peer: u16, kind: &str, ports: (u16, u16), scopes: &[Scope]) -> Verdict {
            let bytes = packet(ip(1), ip(peer), kind, ports);
            let view = Ipv6View::parse(&bytes).unwrap();
            self.filter.outbound(pair(peer), &view, scopes, self.now)
        }

        fn receive(&mut self, peer: u16, bytes: &[u8], scopes: &[Scope]) -> Verdict {
            let view = Ipv6View::parse(bytes).unwrap();
            self.filter.inbound(pair(peer), &view, scopes, self.now)
        }

        fn hear(&mut self, peer: u16, kind: &str, ports: (u16, u16), scopes: &[Scope]) -> Verdict {
            self.receive(peer, &packet(ip(peer), ip(1), kind, ports), scopes)
        }
    }

    /// Packets of both directions have one lane, and peers of one agent spread over all of them.
    #[test]
    fn lanes_are_of_both_directions_and_all_are_used() {
        let lane = |peer| pair(peer).lane();
        let mut peers = [0_u32; Pair::LANES as usize];
        for peer in 2..1602 {
            let (local, peer) = (ip(1).ip().octets(), ip(peer).ip().octets());
            let found = Pair::lane_of(peer, local);
            assert_eq!(found, Pair::lane_of(local, peer));
            peers[usize::from(found)] += 1;
        }
        assert!(peers.iter().all(|n| (50..150).contains(n)), "{peers:?}");
        assert_eq!(lane(2), lane(2));
    }

    #[test]
    fn nothing_enters_uninvited() {
        let mut world = World::new();

        for kind in ["S", "A", "SA", "RA", "FA", "udp", "ping", "pong"] {
            for scopes in [&[][..], &scope("")] {
                let verdict = world.hear(2, kind, (50, 8000), scopes);
                assert!(matches!(verdict, Verdict::Drop(_)), "{kind}");
            }
        }
        assert_eq!(world.filter.flows(pair(2)), 0);
    }

    #[test]
    fn scopes_let_in_their_ports_and_all_of_them_must() {
        let mut world = World::new();
        let wide = scope("tcp/8000,udp/53");
        let both = [
            wide[0].clone(),
            Scope::Ports(vec![(Protocol::Tcp, 8000, 8000)]),
        ];

        assert_eq!(world.hear(2, "S", (50, 8000), &wide), Verdict::Pass);
        assert_eq!(world.send(2, "SA", (8000, 50), &wide), Verdict::Pass);
        assert_eq!(world.hear(2, "A", (50, 8000), &wide), Verdict::Pass);
        assert_eq!(world.hear(2, "udp", (50, 53), &wide), Verdict::Pass);
        assert_eq!(world.hear(2, "ping", (50, 0), &wide), Verdict::Pass);
        let scope = Verdict::Drop(DropReason::FilterScope);
        assert_eq!(world.hear(2, "S", (50, 8001), &wide), scope);
        assert_eq!(world.hear(2, "udp", (50, 8000), &wide), scope);
        assert_eq!(world.hear(2, "udp", (51, 53), &both), scope);
        let no_flow = Verdict::Drop(DropReason::FilterNoFlow);
        assert_eq!(world.hear(2, "SA", (51, 8000), &wide), no_flow);
    }

    #[test]
    fn replies_return_to_who_asked() {
        let mut world = World::new();
        let none = scope("");

        for (ask, answer) in [("S", "SA"), ("udp", "udp"), ("ping", "pong")] {
            assert_eq!(world.send(2, ask, (50, 80), &none), Verdict::Pass);
            let ports = if ask == "ping" { (50, 0) } else { (80, 50) };
            assert_eq!(world.hear(2, answer, ports, &none), Verdict::Pass, "{ask}");
            assert_ne!(world.hear(3, answer, ports, &none), Verdict::Pass, "{ask}");
            assert_ne!(
                world.hear(2, answer, (81, 51), &none),
                Verdict::Pass,
                "{ask}"
            );
        }
        // The flow is for this connection, not for another on its ports.
        let scope = Verdict::Drop(DropReason::FilterNoFlow);
        assert_eq!(world.hear(2, "A", (80, 50), &none), Verdict::Pass);
        assert_eq!(
            world.hear(2, "S", (80, 50), &none),
            Verdict::Drop(DropReason::FilterScope)
        );
        world.now += Duration::from_secs(3 * 3600);
        assert_eq!(world.hear(2, "A", (80, 50), &none), scope);
    }

    /// P-015: trust that shrinks takes open flows with it.
    #[test]
    fn narrowing_cuts_what_the_peer_began() {
        let mut world = World::new();
        let (wide, none) = (scope("tcp/8000,udp/53"), scope(""));
        world.hear(2, "S", (50, 8000), &wide);
        world.send(2, "SA", (8000, 50), &wide);
        world.hear(2, "A", (50, 8000), &wide);
        world.hear(2, "udp", (50, 53), &wide);
        world.send(2, "udp", (53, 50), &wide);
        world.send(2, "S", (60, 80), &wide);

        assert_ne!(world.hear(2, "A", (50, 8000), &none), Verdict::Pass);
        assert_ne!(world.hear(2, "udp", (50, 53), &none), Verdict::Pass);
        let ended = world.filter.narrow(pair(2), &none, world.now);
        let ends: Vec<_> = ended.iter().map(|f| (f.local_port, f.peer_port)).collect();
        assert_eq!(ends, [(8000, 50)]);
        let over = Verdict::Drop(DropReason::FilterNoFlow);
        assert_eq!(world.send(2, "A", (8000, 50), &none), over);
        assert_eq!(world.hear(2, "SA", (80, 60), &none), Verdict::Pass);

        assert_eq!(world.filter.forget(pair(2), world.now).len(), 1);
        assert_eq!(world.hear(2, "SA", (80, 60), &none), over);
    }

    #[test]
    fn connections_of_before_a_restart_are_picked_up() {
        let mut world = World::new();
        let none = scope("");
        world.filter.pick_up_until = world.now + Duration::from_secs(1);

        assert_eq!(world.send(2, "A", (60, 80), &none), Verdict::Pass);
        assert_eq!(world.hear(2, "A", (80, 60), &none), Verdict::Pass);
        world.filter.narrow(pair(3), &none, world.now);
        let over = Verdict::Drop(DropReason::FilterNoFlow);
        assert_eq!(world.send(2, "A", (61, 80), &none), over);
        assert_eq!(
            world.send(2, "A", (8000, 80), &scope("tcp/8000")),
            Verdict::Pass
        );
    }

    #[test]
    fn errors_are_about_packets_sent() {
        let mut world = World::new();
        let none = scope("");
        let sent = packet(ip(1), ip(2), "udp", (50, 80));
        let error = |bytes: &[u8]| unreachable(bytes, Unreachable::NoRoute).unwrap();
        let bad = Verdict::Drop(DropReason::FilterIcmpError);

        assert_eq!(world.receive(2, &error(&sent), &none), bad);
        world.send(2, "udp", (50, 80), &none);
        assert_eq!(world.receive(2, &error(&sent), &none), Verdict::Pass);
        let other = packet(ip(1), ip(2), "udp", (50, 81));
        assert_eq!(world.receive(2, &error(&other), &none), bad);
        let mut foreign = error(&sent);
        foreign[48 + 23] ^= 1; // the quoted source
        assert_eq!(world.receive(2, &foreign, &none), bad);
    }

    /// Wraps the payload of `whole` from `start` to `end` into a fragment.
    fn cut(whole: &[u8], start: u16, end: u16) -> Vec<u8> {
        let part = &whole[40..][usize::from(start)..usize::from(end)];
        let more = usize::from(end) + 40 < whole.len();
        let [c, d] = (start | u16::from(more)).to_be_bytes();
        let mut bytes = whole[..40].to_vec();
        bytes[4..6].copy_from_slice(&u16::try_from(part.len() + 8).unwrap().to_be_bytes());
        bytes[6] = 44;
        bytes.extend([17, 0, c, d, 0, 0, 0, 9]);
        bytes.extend(part);
        bytes
    }

    /// Learnt from nebula#1840.
    #[test]
    fn fragments_follow_their_first() {
        let mut world = World::new();
        let wide = scope("udp/53");
        let step = PacketBuilder::ipv6(ip(2).ip().octets(), ip(1).ip().octets(), 64);
        let mut whole = Vec::new();
        step.udp(50, 53).write(&mut whole, &[0; 92]).unwrap();
        let bad = Verdict::Drop(DropReason::FilterFragment);

        assert_eq!(world.receive(2, &cut(&whole, 48, 100), &wide), bad);
        assert_ne!(
            world.receive(2, &cut(&whole, 0, 48), &scope("udp/54")),
            Verdict::Pass
        );
        assert_eq!(world.receive(2, &cut(&whole, 48, 100), &wide), bad);
        assert_eq!(world.receive(2, &cut(&whole, 0, 48), &wide), Verdict::Pass);
        assert_eq!(world.receive(2, &cut(&whole, 8, 48), &wide), bad);
        assert_eq!(
            world.receive(2, &cut(&whole, 48, 100), &wide),
            Verdict::Pass
        );
        world.filter.narrow(pair(2), &scope(""), world.now);
        assert_eq!(world.receive(2, &cut(&whole, 48, 100), &wide), bad);
    }

    #[test]
    fn one_peer_cannot_evict_the_flows_of_another() {
        let mut world = World::new();
        let none = scope("");
        world.send(3, "udp", (50, 80), &none);

        for port in 1..1000 {
            world.hear(2, "udp", (port, 53), &scope("any"));
        }

        assert_eq!(world.filter.flows(pair(2)), 64);
        assert_eq!(world.hear(3, "udp", (80, 50), &none), Verdict::Pass);
    }
}

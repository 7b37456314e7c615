//! Pure: where each packet goes, by the tables and the filter; the worker does the I/O.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::dataplane::memo::{Memo, PlainFlow};
use crate::dataplane::tables::{Bound, PeerEntry, Realm, Tables};
use crate::id::OverlayIp;
use crate::policy::{Filter, Limits, Pair, TcpFlow, Verdict};
use crate::wire::drop::DropReason;
use crate::wire::icmp6::{End, tcp_reset};
use crate::wire::ip::{CONTROL_NEXT_HEADERS, Ipv6View, Transport};

/// How often idle flows are freed, when a packet wakes the worker anyway.
const SWEEP: Duration = Duration::from_secs(60);

/// Removed pairs whose connections are still answered by resets; the oldest address goes first.
const MAX_REMOVED: usize = 4096;

/// Where a packet of a local program goes.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Outbound {
    Drop(DropReason),
    /// Dropped, and the local end told by this packet: a reset of the connection it is of, or an error.
    Reset(DropReason, Vec<u8>),
    ToPeer(Pair),
    ToUnknown(Pair),
}

impl Outbound {
    /// Returns why it goes nowhere; None when it goes.
    pub(super) const fn dropped(&self) -> Option<DropReason> {
        match self {
            Self::Drop(reason) | Self::Reset(reason, _) => Some(*reason),
            Self::ToPeer(_) | Self::ToUnknown(_) => None,
        }
    }
}

/// The worker's decisions and what they are made by.
#[derive(Debug)]
pub(super) struct Switch {
    tables: Arc<Tables>,
    filter: Filter,
    /// Pairs that were installed once: their connections are over, not waiting.
    removed: BTreeSet<Pair>,
    unknown: UnknownLimit,
    next_sweep: Instant,
    /// Of the packets that came last, and that were sent last; each packet that is judged anew may
    /// change what the other direction was told.
    came: Memo,
    sent: Memo,
}

impl Switch {
    /// Makes one of `count` switches of a node, with empty tables: everything is dropped.
    pub(super) fn new(now: Instant, count: usize) -> Self {
        Self {
            tables: Arc::default(),
            filter: Filter::new(Limits::default(), now),
            removed: BTreeSet::new(),
            unknown: UnknownLimit::new(now, count),
            next_sweep: now + SWEEP,
            came: Memo::default(),
            sent: Memo::default(),
        }
    }

    /// Returns the installed peers.
    pub(super) fn peers(&self) -> &BTreeMap<Pair, PeerEntry> {
        &self.tables.peers
    }

    /// Judges a packet read from a TUN of `realm`.
    pub(super) fn outbound(&mut self, realm: Realm, bytes: &[u8], now: Instant) -> Outbound {
        let flow = PlainFlow::of(bytes);
        if let Some(pair) = flow.and_then(|flow| self.sent.pair(&flow, now))
            && self.tables.locals.get(&pair.local) == Some(&realm)
        {
            return Outbound::ToPeer(pair);
        }
        let judged = self.judge_outbound(realm, bytes, now);
        self.came.note(None);
        self.sent.note(match judged {
            Outbound::ToPeer(pair) => flow.map(|flow| (pair, flow, now)),
            Outbound::Drop(_) | Outbound::Reset(..) | Outbound::ToUnknown(_) => None,
        });
        judged
    }

    fn judge_outbound(&mut self, realm: Realm, bytes: &[u8], now: Instant) -> Outbound {
        self.sweep(now);
        let view = match Ipv6View::parse(bytes) {
            Ok(view) => view,
            Err(reason) => return Outbound::Drop(reason),
        };
        let pair = match self.pair(realm, &view) {
            Ok(pair) => pair,
            Err(reason) => return Outbound::Drop(reason),
        };
        let Some(entry) = self.tables.peers.get(&pair) else {
            return self.unknown(pair, &view, now);
        };
        match self.filter.outbound(pair, &view, &entry.inbound, now) {
            Verdict::Pass => Outbound::ToPeer(pair),
            Verdict::Drop(reason @ DropReason::FilterNoFlow) => refuse(&view, reason),
            Verdict::Drop(reason) => Outbound::Drop(reason),
        }
    }

    /// Judges a packet of a peer's session.
    pub(super) fn inbound(&mut self, pair: Pair, packet: &[u8], now: Instant) -> Verdict {
        let flow = PlainFlow::of(packet);
        if flow.is_some_and(|flow| self.came.knows(pair, &flow, now)) {
            return Verdict::Pass;
        }
        let judged = self.judge_inbound(pair, packet, now);
        self.sent.note(None);
        let passed = flow.filter(|_| judged == Verdict::Pass);
        self.came.note(passed.map(|flow| (pair, flow, now)));
        judged
    }

    fn judge_inbound(&mut self, pair: Pair, packet: &[u8], now: Instant) -> Verdict {
        self.sweep(now);
        let Some(entry) = self.tables.peers.get(&pair) else {
            return Verdict::Drop(DropReason::NoPeer);
        };
        match Ipv6View::parse(packet) {
            Ok(view) => self.filter.inbound(pair, &view, &entry.inbound, now),
            Err(reason) => Verdict::Drop(reason),
        }
    }

    /// Returns the agents to whom what peers send directly is ignored.
    pub(super) fn hidden(&self) -> &BTreeSet<OverlayIp> {
        &self.tables.hidden
    }

    /// Returns whose an agent is; None when it is everybody's.
    pub(super) fn bound(&self, local: OverlayIp) -> Option<&Bound> {
        self.tables.bound.get(&local)
    }

    /// Puts `tables` in force and returns the resets of connections that end by it, with the
    /// agent whose TUN they go to.
    pub(super) fn publish(
        &mut self,
        tables: Arc<Tables>,
        now: Instant,
    ) -> Vec<(OverlayIp, Vec<u8>)> {
        self.came.note(None);
        self.sent.note(None);
        let old = std::mem::replace(&mut self.tables, tables);
        let mut resets = Vec::new();
        for (pair, entry) in &old.peers {
            let ended = match self.tables.peers.get(pair) {
                Some(PeerEntry { inbound }) if *inbound == entry.inbound => continue,
                Some(PeerEntry { inbound }) => self.filter.narrow(*pair, inbound, now),
                None => {
                    self.removed.insert(*pair);
                    self.filter.forget(*pair, now)
                }
            };
            resets.extend(ended.iter().map(|flow| (pair.local, reset(*pair, flow))));
        }
        let peers = &self.tables.peers;
        self.removed.retain(|pair| !peers.contains_key(pair));
        while self.removed.len() > MAX_REMOVED {
            self.removed.pop_first();
        }
        resets
    }

    /// Returns who speaks with whom, if both may be in the overlay.
    fn pair(&self, realm: Realm, view: &Ipv6View<'_>) -> Result<Pair, DropReason> {
        let transport = view.transport();
        if let Transport::Other(next) = transport
            && CONTROL_NEXT_HEADERS.contains(&next)
        {
            return Err(DropReason::ControlInTun);
        }
        if matches!(transport, Transport::Icmp6Other(_)) {
            return Err(DropReason::FilterIcmp);
        }
        let local = OverlayIp::new(view.source()).map_err(|_| DropReason::TunSource)?;
        if self.tables.locals.get(&local) != Some(&realm) {
            return Err(DropReason::TunSource);
        }
        let peer = OverlayIp::new(view.destination()).map_err(|_| DropReason::TunDestination)?;
        if peer.network() != local.network() || self.tables.locals.get(&peer) == Some(&realm) {
            return Err(DropReason::TunDestination);
        }
        Ok(Pair { local, peer })
    }

    fn unknown(&mut self, pair: Pair, view: &Ipv6View<'_>, now: Instant) -> Outbound {
        if self.removed.contains(&pair) && is_connected(view) {
            return refuse(view, DropReason::NoPeer);
        }
        if self.unknown.take(pair, now) {
            Outbound::ToUnknown(pair)
        } else {
            Outbound::Drop(DropReason::UnknownLimited)
        }
    }

    fn sweep(&mut self, now: Instant) {
        if now >= self.next_sweep {
            self.filter.expire(now);
            self.next_sweep = now + SWEEP;
        }
    }
}

/// Tells whether the packet is of a connection rather than a new one.
fn is_connected(view: &Ipv6View<'_>) -> bool {
    matches!(view.transport(), Transport::Tcp(tcp) if !tcp.syn || tcp.ack)
}

/// Drops a segment and resets its connection at the local end, which names what it expects.
fn refuse(view: &Ipv6View<'_>, reason: DropReason) -> Outbound {
    match view.transport() {
        Transport::Tcp(tcp) if !tcp.rst => {
            let from = End {
                address: view.destination(),
                port: tcp.ports.destination,
            };
            let to = End {
                address: view.source(),
                port: tcp.ports.source,
            };
            let expected = if tcp.ack { tcp.acknowledgment } else { 0 };
            Outbound::Reset(
                reason,
                tcp_reset(from, to, expected, Some(tcp.next_sequence)),
            )
        }
        Transport::Tcp(_)
        | Transport::Udp(_)
        | Transport::Icmp6Echo { .. }
        | Transport::Icmp6Error(_)
        | Transport::Icmp6Other(_)
        | Transport::LaterFragment
        | Transport::NoNext
        | Transport::Other(_) => Outbound::Drop(reason),
    }
}

fn reset(pair: Pair, flow: &TcpFlow) -> Vec<u8> {
    let from = End {
        address: pair.peer.ip(),
        port: flow.peer_port,
    };
    let to = End {
        address: pair.local.ip(),
        port: flow.local_port,
    };
    tcp_reset(from, to, flow.expected.unwrap_or(0), flow.sent)
}

/// Bounds what unknown destinations cost the engine: a scan, or a flood to one that is asleep.
#[derive(Debug)]
struct UnknownLimit {
    window_ends: Instant,
    taken: BTreeMap<Pair, u32>,
    total: u32,
    /// Most of one window.
    most: u32,
}

impl UnknownLimit {
    const WINDOW: Duration = Duration::from_secs(1);

    /// A page with its parallel connections, several programs at once.
    const PER_WINDOW: u32 = 256;

    /// What a program sends before it waits for an answer.
    const PER_PAIR: u32 = 16;

    /// Makes the limit of one of `count` switches, which share what a node may cost.
    fn new(now: Instant, count: usize) -> Self {
        let count = u32::try_from(count.max(1)).unwrap_or(u32::MAX);
        Self {
            window_ends: now,
            taken: BTreeMap::new(),
            total: 0,
            most: (Self::PER_WINDOW / count).max(Self::PER_PAIR),
        }
    }

    fn take(&mut self, pair: Pair, now: Instant) -> bool {
        if now >= self.window_ends {
            self.taken.clear();
            self.total = 0;
            self.window_ends = now + Self::WINDOW;
        }
        if self.total >= self.most {
            return false;
        }
        let taken = self.taken.entry(pair).or_default();
        if *taken >= Self::PER_PAIR {
            return false;
        }
        *taken += 1;
        self.total += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::clock;
    use crate::wire::ip::IPV6_HEADER;
    use etherparse::{PacketBuilder, TcpHeaderSlice};

    fn ip(last: u16) -> OverlayIp {
        format!("fd11:0:0:1::{last:x}").parse().unwrap()
    }

    const REALM: Realm = Realm(0);

    const PAIR: fn() -> Pair = || Pair {
        local: ip(1),
        peer: ip(2),
    };

    fn tcp(from: OverlayIp, to: OverlayIp, ports: (u16, u16), syn: bool) -> Vec<u8> {
        let step = PacketBuilder::ipv6(from.ip().octets(), to.ip().octets(), 64);
        let step = step.tcp(ports.0, ports.1, 100, 9);
        let step = if syn { step.syn() } else { step.ack(777) };
        let mut bytes = Vec::new();
        step.write(&mut bytes, b"").unwrap();
        bytes
    }

    fn between(local: OverlayIp, peer: OverlayIp) -> Pair {
        Pair { local, peer }
    }

    /// Agents 1 and 3 live here, 4 in another realm; 2 may reach tcp/8000 of 1.
    fn tables(scope: Option<&str>) -> Arc<Tables> {
        let entry = |scope: &str| PeerEntry {
            inbound: vec![scope.parse().unwrap()],
        };
        Arc::new(Tables {
            hidden: BTreeSet::new(),
            epoch: 1,
            bound: BTreeMap::new(),
            locals: [(ip(1), REALM), (ip(3), REALM), (ip(4), Realm(1))].into(),
            peers: scope
                .map(|scope| (PAIR(), entry(scope)))
                .into_iter()
                .collect(),
        })
    }

    fn switch() -> (Switch, Instant) {
        let now = clock::now();
        let mut switch = Switch::new(now, 1);
        assert!(switch.publish(tables(Some("tcp/8000")), now).is_empty());
        (switch, now)
    }

    #[test]
    fn only_local_agents_of_the_realm_speak_and_only_into_their_network() {
        let (mut switch, now) = switch();
        let mut judge = |from: &str, to: &str| {
            let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
            switch.outbound(REALM, &tcp(from, to, (50, 80), true), now)
        };
        let source = Outbound::Drop(DropReason::TunSource);
        let destination = Outbound::Drop(DropReason::TunDestination);

        assert_eq!(
            judge("fd11:0:0:1::1", "fd11:0:0:1::2"),
            Outbound::ToPeer(PAIR())
        );
        assert_eq!(judge("fd11:0:0:1::9", "fd11:0:0:1::2"), source);
        assert_eq!(judge("fd11:0:0:1::4", "fd11:0:0:1::2"), source);
        assert_eq!(judge("fd11:0:0:1::1", "fd11:0:0:2::2"), destination);
        assert_eq!(judge("fd11:0:0:1::1", "fd11:0:0:1::1"), destination);
        assert_eq!(judge("fd11:0:0:1::1", "fd11:0:0:1::3"), destination);
        let unknown = judge("fd11:0:0:1::3", "fd11:0:0:1::2");
        assert!(matches!(unknown, Outbound::ToUnknown(pair) if pair.local == ip(3)));
    }

    /// Two agents on one host are not reachable through each other's sessions.
    #[test]
    fn a_session_carries_its_own_two_addresses_only() {
        let (mut switch, now) = switch();
        let mut judge = |from, to, session: (u16, u16)| {
            let bytes = tcp(from, to, (50, 8000), true);
            switch.inbound(between(ip(session.0), ip(session.1)), &bytes, now)
        };

        assert_eq!(judge(ip(2), ip(1), (1, 2)), Verdict::Pass);
        let drop = Verdict::Drop;
        assert_eq!(
            judge(ip(2), ip(3), (1, 2)),
            drop(DropReason::SessionDestination)
        );
        assert_eq!(judge(ip(5), ip(1), (1, 2)), drop(DropReason::SessionSource));
        assert_eq!(judge(ip(2), ip(3), (3, 2)), drop(DropReason::NoPeer));
    }

    /// P-015: revoking ends open connections at once, at the local end too.
    #[test]
    fn a_removed_peer_is_neither_heard_nor_waited_for() {
        let (mut switch, now) = switch();
        let (there, back) = (tcp(ip(2), ip(1), (50, 8000), true), (8000, 50));
        assert_eq!(switch.inbound(PAIR(), &there, now), Verdict::Pass);
        let answer = tcp(ip(1), ip(2), back, false);
        assert_eq!(
            switch.outbound(REALM, &answer, now),
            Outbound::ToPeer(PAIR())
        );

        let resets = switch.publish(tables(None), now);

        let [(local, reset)] = resets.as_slice() else {
            panic!("one connection ends");
        };
        let header = TcpHeaderSlice::from_slice(&reset[IPV6_HEADER..]).unwrap();
        assert!(*local == ip(1) && header.rst() && header.sequence_number() == 777);
        let verdict = switch.inbound(PAIR(), &there, now);
        assert_eq!(verdict, Verdict::Drop(DropReason::NoPeer));
        // The kernel asks back (RFC 5961) if the reset missed; then it gets the exact one.
        let asked = switch.outbound(REALM, &answer, now);
        assert!(matches!(asked, Outbound::Reset(DropReason::NoPeer, bytes) if bytes == *reset));
        let new = switch.outbound(REALM, &tcp(ip(1), ip(2), (60, 80), true), now);
        assert_eq!(new, Outbound::ToUnknown(PAIR()));
    }

    #[test]
    fn a_narrowed_scope_resets_what_it_no_longer_allows() {
        let (mut switch, now) = switch();
        for port in [8000, 8001] {
            let bytes = tcp(ip(2), ip(1), (50, port), true);
            switch.inbound(PAIR(), &bytes, now);
        }

        assert!(
            switch
                .publish(tables(Some("tcp/8000-8001")), now)
                .is_empty()
        );
        assert_eq!(switch.publish(tables(Some("tcp/8001")), now).len(), 1);
        assert!(switch.publish(tables(Some("tcp/8001")), now).is_empty());
    }

    #[test]
    fn unknown_destinations_are_asked_for_at_a_bounded_rate() {
        let (mut switch, now) = switch();
        let mut ask = |to, now| {
            let bytes = tcp(ip(1), ip(to), (50, 80), true);
            matches!(switch.outbound(REALM, &bytes, now), Outbound::ToUnknown(_))
        };

        let flood = (0..1000).filter(|_| ask(7, now)).count();
        assert_eq!(flood, UnknownLimit::PER_PAIR as usize);
        let scan = (100..1100).filter(|to| ask(*to, now)).count();
        assert_eq!(
            scan,
            (UnknownLimit::PER_WINDOW - UnknownLimit::PER_PAIR) as usize
        );
        assert!(ask(7, now + UnknownLimit::WINDOW));
    }

    #[test]
    fn control_packets_and_discovery_stay_out_of_the_overlay() {
        let (mut switch, now) = switch();
        let mut bytes = tcp(ip(1), ip(2), (50, 80), true);
        for (next, reason) in [
            (253, DropReason::ControlInTun),
            (254, DropReason::ControlInTun),
            (58, DropReason::FilterIcmp),
        ] {
            bytes[6] = next;
            assert_eq!(switch.outbound(REALM, &bytes, now), Outbound::Drop(reason));
            let mut back = tcp(ip(2), ip(1), (50, 8000), true);
            back[6] = next;
            let verdict = switch.inbound(PAIR(), &back, now);
            assert_eq!(verdict, Verdict::Drop(reason));
        }
    }
}

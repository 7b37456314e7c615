//! Pure: attached agents and the frames between them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::engine::window::{Fresh, ReplayWindow};
use crate::gateway::mft::{Mft, Route};
use crate::id::{NetworkId, OverlayIp, TunnelKey, UnixTime};
use crate::wire::a2g::{Direction, Header, HopKeys, Kind, MAX_FRAMES, hop_id};
use crate::wire::drop::DropReason;

/// Hop secrets last at most this long (protocol.md section 5); agents renew up to an hour before.
const LIFE: Duration = Duration::from_secs(24 * 3600);

/// What a new attachment is made of.
#[derive(Debug)]
pub(crate) struct NewHop {
    pub(crate) agent: OverlayIp,
    pub(crate) network: NetworkId,
    /// The agent's tunnel key.
    pub(crate) key: TunnelKey,
    /// The record's sequence number.
    pub(crate) seq: u64,
    /// The record, to be checked again when something is revoked.
    pub(crate) record: String,
    /// When the membership lapses.
    pub(crate) expires: UnixTime,
    pub(crate) gateway: OverlayIp,
    pub(crate) up: u32,
    pub(crate) down: u32,
    pub(crate) secret: [u8; 32],
    pub(crate) endpoint: SocketAddr,
}

/// An attached agent.
#[derive(Debug)]
pub(crate) struct Hop {
    pub(crate) new: NewHop,
    pub(crate) stale: bool,
    keys_up: HopKeys,
    keys_down: HopKeys,
    window: ReplayWindow,
    next: u64,
    made: Instant,
    last_heard: Instant,
}

/// What became of a frame.
#[derive(Debug)]
pub(crate) enum Outcome {
    Dropped(DropReason),
    /// The agent gave its attachment up.
    Ended,
    /// To be sent.
    Send(SocketAddr, Vec<u8>),
    /// The hop id names no attachment.
    Unknown(u32),
}

/// All attached agents.
#[derive(Debug)]
pub(crate) struct Hops {
    lease: Duration,
    /// By the hop id in frames to the gateway.
    hops: BTreeMap<u32, Hop>,
    mft: Mft,
    /// When to look whether a hop is stale or gone; never later than that is due.
    due: BTreeSet<(Instant, u32)>,
    /// Raised when hop ids or endpoints change.
    changes: u64,
}

impl Hops {
    /// Makes an empty table.
    pub(crate) fn new(lease: Duration) -> Self {
        Self {
            lease,
            hops: BTreeMap::new(),
            mft: Mft::default(),
            due: BTreeSet::new(),
            changes: 0,
        }
    }

    /// Returns how many agents are attached.
    pub(crate) fn len(&self) -> usize {
        self.hops.len()
    }

    /// Returns the number of routes.
    pub(crate) fn routes(&self) -> usize {
        self.mft.len()
    }

    /// Returns a number that differs after hop ids or endpoints changed.
    pub(crate) const fn changes(&self) -> u64 {
        self.changes
    }

    /// Tells whether a hop id is in use.
    pub(crate) fn contains(&self, up: u32) -> bool {
        self.hops.contains_key(&up)
    }

    /// Returns the attachments, by hop id.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Hop> {
        self.hops.values()
    }

    /// Returns the attachment of an agent.
    pub(crate) fn of(&self, agent: OverlayIp) -> Option<&Hop> {
        let Route::Local(up) = self.mft.lookup(agent.ip(), 128)?;
        self.hops.get(&up)
    }

    /// Attaches an agent; the newest wins, and the one before is told if it is elsewhere.
    pub(crate) fn insert(&mut self, new: NewHop, now: Instant) -> Option<(SocketAddr, Vec<u8>)> {
        let old = self.of(new.agent).map(|hop| hop.new.up);
        let old = old.and_then(|up| self.remove(up));
        let farewell = old
            .filter(|hop| hop.new.endpoint != new.endpoint)
            .and_then(|mut hop| hop.signal(Kind::Displaced));
        self.mft.insert(new.agent.ip(), Route::Local(new.up));
        self.due.insert((now + self.lease, new.up));
        let hop = Hop {
            keys_up: HopKeys::derive(&new.secret, Direction::Up),
            keys_down: HopKeys::derive(&new.secret, Direction::Down),
            stale: false,
            window: ReplayWindow::new(),
            next: 0,
            made: now,
            last_heard: now,
            new,
        };
        self.hops.insert(hop.new.up, hop);
        self.changes += 1;
        farewell
    }

    /// Takes an attachment away.
    pub(crate) fn remove(&mut self, up: u32) -> Option<Hop> {
        let hop = self.hops.remove(&up)?;
        self.mft.remove(hop.new.agent.ip(), Route::Local(up));
        self.changes += 1;
        Some(hop)
    }

    /// Keeps the attachments that `keep` wants.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&Hop) -> bool) -> Vec<Hop> {
        let gone = self.hops.values().filter(|hop| !keep(hop));
        let gone: Vec<u32> = gone.map(|hop| hop.new.up).collect();
        gone.into_iter().filter_map(|up| self.remove(up)).collect()
    }

    /// Takes a frame from an agent.
    pub(crate) fn handle_frame(
        &mut self,
        from: SocketAddr,
        frame: &mut Vec<u8>,
        now: Instant,
        unix: UnixTime,
    ) -> Outcome {
        let Some(up) = hop_id(frame) else {
            return Outcome::Dropped(DropReason::FrameMalformed);
        };
        let Some(hop) = self.hops.get_mut(&up) else {
            return Outcome::Unknown(up);
        };
        if unix >= hop.new.expires || now >= hop.made + LIFE {
            self.remove(up);
            return Outcome::Unknown(up);
        }
        let (header, moved) = match hop.open(from, frame, now) {
            Ok(opened) => opened,
            Err(reason) => return Outcome::Dropped(reason),
        };
        self.changes += u64::from(moved);
        let (source, network) = (hop.new.agent, hop.new.network);
        match header.kind {
            Kind::Data => self.forward(&header, network, frame),
            Kind::Heartbeat => hop
                .signal(Kind::Heartbeat)
                .map_or(Outcome::Dropped(DropReason::FrameQuota), |(to, frame)| {
                    Outcome::Send(to, frame)
                }),
            Kind::SessionEnd => {
                tracing::debug!(agent = %source, "Agent gave its attachment up");
                self.remove(up);
                Outcome::Ended
            }
            Kind::Displaced => Outcome::Dropped(DropReason::FrameMalformed),
        }
    }

    /// Looks for agents that are silent or whose time is over.
    pub(crate) fn handle_timeout(&mut self, now: Instant, unix: UnixTime) {
        while let Some((at, up)) = self.due.first().copied().filter(|(at, _)| *at <= now) {
            self.due.remove(&(at, up));
            let Some(hop) = self.hops.get_mut(&up) else {
                continue;
            };
            let gone = now >= hop.last_heard + self.lease * 2;
            if gone || unix >= hop.new.expires || now >= hop.made + LIFE {
                tracing::debug!(agent = %hop.new.agent, "Attachment ended");
                self.remove(up);
                continue;
            }
            hop.stale = now >= hop.last_heard + self.lease;
            let leases = if hop.stale { 2 } else { 1 };
            let next = hop.last_heard + self.lease * leases;
            self.due.insert((next.max(now), up));
        }
    }

    /// Returns when the next agent is to be looked at.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    fn forward(&mut self, header: &Header, network: NetworkId, frame: &mut Vec<u8>) -> Outcome {
        let Some(ttl) = header.ttl.checked_sub(1) else {
            return Outcome::Dropped(DropReason::FrameTtl);
        };
        let Some(Route::Local(up)) = self.mft.lookup(header.target, header.prefix_len) else {
            return Outcome::Dropped(DropReason::FrameTarget);
        };
        let Some(hop) = self.hops.get_mut(&up) else {
            return Outcome::Dropped(DropReason::FrameTarget);
        };
        // Networks are tenants: what is of one never reaches another through its gateway.
        if hop.new.network != network {
            return Outcome::Dropped(DropReason::FrameNetwork);
        }
        let Some(message) = hop.next_message() else {
            return Outcome::Dropped(DropReason::FrameQuota);
        };
        let onward = Header {
            ttl,
            hop: hop.new.down,
            message,
            ..*header
        };
        onward.seal(&hop.keys_down, frame);
        Outcome::Send(hop.new.endpoint, std::mem::take(frame))
    }
}

impl Hop {
    /// Checks a frame of this agent; true when it moved the agent to a new endpoint.
    fn open(
        &mut self,
        from: SocketAddr,
        frame: &[u8],
        now: Instant,
    ) -> Result<(Header, bool), DropReason> {
        let header = Header::open(&self.keys_up, frame).map_err(|_| DropReason::FrameTag)?;
        let fresh = self
            .window
            .take(header.message)
            .filter(|_| header.message < MAX_FRAMES)
            .ok_or(DropReason::FrameReplayed)?;
        if header.source != self.new.agent.ip() {
            return Err(DropReason::FrameSource);
        }
        if header.kind != Kind::Data && header.target != self.new.gateway.ip() {
            return Err(DropReason::FrameTarget);
        }
        self.last_heard = now;
        self.stale = false;
        // Frames overtaken on the old path do not move the agent back.
        let moved = fresh == Fresh::Newest && self.new.endpoint != from;
        if moved {
            tracing::debug!(agent = %self.new.agent, "Agent moved");
            self.new.endpoint = from;
        }
        Ok((header, moved))
    }

    /// Makes a frame without payload to the agent.
    fn signal(&mut self, kind: Kind) -> Option<(SocketAddr, Vec<u8>)> {
        let message = self.next_message()?;
        let header = Header::data(self.new.down, message, self.new.agent, self.new.gateway);
        let frame = header.of_kind(kind).frame(&self.keys_down, &[]);
        Some((self.new.endpoint, frame))
    }

    fn next_message(&mut self) -> Option<u64> {
        let message = self.next;
        if message >= MAX_FRAMES {
            return None;
        }
        self.next += 1;
        Some(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{DomainPrefix, IdentityKey};
    use crate::wire::a2g::HEADER;

    const LEASE: Duration = Duration::from_secs(75);
    const UNIX: UnixTime = UnixTime::from_secs(1_800_000_000);

    #[expect(clippy::disallowed_methods, reason = "tests need an epoch")]
    fn start() -> Instant {
        Instant::now()
    }

    fn address(network: u16, n: u64) -> OverlayIp {
        let domain = IdentityKey::from_seed([9; 32]).did().into();
        DomainPrefix::of(&domain).network(network).address(n)
    }

    fn endpoint(n: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, n], 1))
    }

    /// Agent n of network 1 (2 for n over 9) by hop id n, with secret [n; 32].
    fn new(n: u8) -> NewHop {
        let network = if n > 9 { 2 } else { 1 };
        NewHop {
            agent: address(network, u64::from(n)),
            network: IdentityKey::from_seed([network as u8; 32]).did().into(),
            key: TunnelKey::from_bytes([n; 32]),
            seq: 1,
            record: String::new(),
            expires: UNIX + Duration::from_secs(1000),
            gateway: address(0, 1),
            up: u32::from(n),
            down: 100 + u32::from(n),
            secret: [n; 32],
            endpoint: endpoint(n),
        }
    }

    fn hops(now: Instant) -> Hops {
        let mut hops = Hops::new(LEASE);
        for n in [1, 2, 10] {
            assert!(hops.insert(new(n), now).is_none());
        }
        hops
    }

    fn frame(n: u8, header: &Header) -> Vec<u8> {
        let keys = HopKeys::derive(&[n; 32], Direction::Up);
        let payload: &[u8] = if header.kind == Kind::Data {
            b"hi"
        } else {
            b""
        };
        header.frame(&keys, payload)
    }

    fn data(n: u8, message: u64) -> Header {
        Header::data(u32::from(n), message, new(2).agent, new(n).agent)
    }

    /// Returns why a frame of agent 1 was dropped.
    fn reason(hops: &mut Hops, header: &Header, now: Instant) -> DropReason {
        let outcome = hops.handle_frame(endpoint(1), &mut frame(1, header), now, UNIX);
        let Outcome::Dropped(reason) = outcome else {
            panic!("{outcome:?}");
        };
        reason
    }

    /// the header is made anew, the payload is what it was.
    #[test]
    fn a_frame_goes_on_under_the_receivers_hop() {
        let now = start();
        let mut hops = hops(now);

        let outcome = hops.handle_frame(endpoint(1), &mut frame(1, &data(1, 7)), now, UNIX);

        let Outcome::Send(to, sent) = outcome else {
            panic!("{outcome:?}");
        };
        let keys = HopKeys::derive(&[2; 32], Direction::Down);
        let header = Header::open(&keys, &sent).unwrap();
        assert_eq!((to, &sent[HEADER..]), (endpoint(2), &b"hi"[..]));
        assert_eq!((header.hop, header.ttl, header.message), (102, 7, 0));
        assert_eq!(header.source, new(1).agent.ip());
    }

    #[test]
    fn frames_that_may_not_pass_are_dropped_with_their_reason() {
        let now = start();
        let mut hops = hops(now);
        let ok = data(1, 1);
        let other = new(2).agent.ip();
        let cases = [
            (Header { ttl: 0, ..ok }, DropReason::FrameTtl),
            (
                Header {
                    source: other,
                    ..ok
                },
                DropReason::FrameSource,
            ),
            (
                Header {
                    target: address(1, 99).ip(),
                    ..ok
                },
                DropReason::FrameTarget,
            ),
            (
                Header {
                    prefix_len: 64,
                    ..ok
                },
                DropReason::FrameTarget,
            ),
            (
                Header {
                    target: new(10).agent.ip(),
                    ..ok
                },
                DropReason::FrameNetwork,
            ),
            (ok.of_kind(Kind::Heartbeat), DropReason::FrameTarget),
            (
                Header {
                    target: address(0, 1).ip(),
                    ..ok
                }
                .of_kind(Kind::Displaced),
                DropReason::FrameMalformed,
            ),
            (
                Header {
                    message: MAX_FRAMES,
                    ..ok
                },
                DropReason::FrameReplayed,
            ),
        ];

        for (message, (header, expected)) in (10..).zip(cases) {
            let message = header.message.max(message);
            let header = Header { message, ..header };
            assert_eq!(reason(&mut hops, &header, now), expected, "{header:?}");
        }
    }

    #[test]
    fn a_frame_under_another_hops_keys_is_dropped() {
        let now = start();
        let mut hops = hops(now);

        let outcome = hops.handle_frame(endpoint(2), &mut frame(2, &data(1, 1)), now, UNIX);

        assert!(matches!(outcome, Outcome::Dropped(DropReason::FrameTag)));
        let mut short = frame(1, &data(1, 1));
        short.truncate(HEADER - 1);
        let outcome = hops.handle_frame(endpoint(1), &mut short, now, UNIX);
        assert!(matches!(
            outcome,
            Outcome::Dropped(DropReason::FrameMalformed)
        ));
    }

    #[test]
    fn only_the_newest_frame_moves_an_agent() {
        let now = start();
        let mut hops = hops(now);
        let at = |hops: &Hops| hops.of(new(1).agent).map(|hop| hop.new.endpoint);

        hops.handle_frame(endpoint(7), &mut frame(1, &data(1, 5)), now, UNIX);
        assert_eq!(at(&hops), Some(endpoint(7)));
        hops.handle_frame(endpoint(8), &mut frame(1, &data(1, 4)), now, UNIX);
        assert_eq!(at(&hops), Some(endpoint(7)));
        let forged = data(1, 6);
        let mut forged = frame(2, &forged);
        hops.handle_frame(endpoint(9), &mut forged, now, UNIX);
        assert_eq!(at(&hops), Some(endpoint(7)));
    }

    /// silence makes stale, and then gone; frames are tried meanwhile.
    #[test]
    fn a_silent_agent_is_stale_and_then_gone() {
        let now = start();
        let mut hops = hops(now);
        let heard = now + Duration::from_secs(10);
        hops.handle_frame(endpoint(1), &mut frame(1, &data(1, 1)), heard, UNIX);

        hops.handle_timeout(now + LEASE, UNIX);
        let stale = |hops: &Hops, n| hops.of(new(n).agent).map(|hop| hop.stale);
        assert_eq!(
            (stale(&hops, 1), stale(&hops, 2)),
            (Some(false), Some(true))
        );
        let later = now + LEASE + Duration::from_secs(1);
        let outcome = hops.handle_frame(endpoint(1), &mut frame(1, &data(1, 2)), later, UNIX);
        assert!(matches!(outcome, Outcome::Send(..)));
        hops.handle_timeout(now + LEASE * 2, UNIX);
        assert_eq!((stale(&hops, 1), stale(&hops, 2)), (Some(false), None));
        assert_eq!((hops.len(), hops.routes()), (1, 1));
    }

    #[test]
    fn an_attachment_ends_with_its_membership_or_its_secret() {
        let now = start();
        let mut first = hops(now);
        let mut second = hops(now);

        let lapsed = UNIX + Duration::from_secs(1000);
        let outcome = first.handle_frame(endpoint(1), &mut frame(1, &data(1, 1)), now, lapsed);
        assert!(matches!(outcome, Outcome::Unknown(1)));
        let worn = now + LIFE;
        let outcome = second.handle_frame(endpoint(1), &mut frame(1, &data(1, 1)), worn, UNIX);
        assert!(matches!(outcome, Outcome::Unknown(1)));
    }
}

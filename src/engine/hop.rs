//! The agent's end of the hop to a gateway: keys, counters and liveness of an attachment that holds.

use std::{
    fmt,
    net::SocketAddr,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::engine::rtt::Rtt;
use crate::engine::window::ReplayWindow;
use crate::id::OverlayIp;
use crate::wire::a2g::{Direction, HEADER, Header, HopKeys, Kind, MAX_FRAMES, Reset};
use crate::wire::carrier::is_carrier;
use crate::wire::control::Attached;
use crate::wire::drop::DropReason;

/// Silence after which the gateway is asked whether it is there (protocol.md section 5), which also
/// keeps NAT mappings (RFC 4787 section 4.3 REQ-5: two minutes; 30 s is seen in the wild).
const HEARTBEAT: Duration = Duration::from_secs(25);

/// The same when something was sent and nothing came back, as from a gateway that died: what it loses is
/// to flow by another one within 2 s, of which TCP's own pauses take a part.
const DOUBT: Duration = Duration::from_millis(250);

/// The same when traffic stopped: a router on the way may have lost the mapping, and only a frame of
/// ours makes another. So often, with pauses that begin with the first and double.
const AFTER_TRAFFIC: u32 = 4;
const QUIET: Duration = Duration::from_secs(1);

/// The same when frames flow so that nothing has to be asked: how long the way takes is to be known.
const MEASURE: Duration = Duration::from_secs(60);

/// Traffic of so long ago still counts as going on.
const ACTIVE: Duration = Duration::from_secs(10);

/// Wait for the answer to a heartbeat, and how many go unanswered before the gateway is given up.
const ANSWER: Duration = Duration::from_secs(1);
const UNANSWERED: u32 = 4;

/// After so many unanswered in a row, asked at a quicker pace, frames go by another gateway: loss takes
/// three in a row seldom.
const SUSPECT: u32 = 2;
const LEAST_PATIENCE: Duration = Duration::from_millis(200);

/// How long a hop's secret is used (protocol.md section 5).
const LIFE: Duration = Duration::from_secs(24 * 3600);

/// Frames left when a new attachment is made.
const SPARE_FRAMES: u64 = 1 << 32;

/// Most gateways an agent attaches to (protocol.md section 5).
pub const MAX_HOPS: usize = 3;

/// Which of an agent's hops it is; the one that replaces it at the same gateway has the same.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub struct Slot(u8);

impl Slot {
    /// All there are.
    pub const ALL: [Self; MAX_HOPS] = [Self(0), Self(1), Self(2)];

    /// Returns its place in lists of all.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Largest frame that goes by a connection: as large as most networks carry by UDP over IPv6, so that
/// what passed before passes after a change between the two as well.
const MAX_CARRIED: u16 = 1452; // bytes

/// A payload for the agent, and whom the gateway says it is from; the session inside proves it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Received {
    pub source: OverlayIp,
    pub target: OverlayIp,
    /// Where in the datagram the payload is.
    pub payload: Range<usize>,
}

/// Hands out the ids of one hop's frames: each once and rising, whoever asks.
pub trait FrameIds: fmt::Debug + Send + Sync {
    /// Takes the next id.
    fn take(&self) -> u64;

    /// Returns the id that would be taken next.
    fn peek(&self) -> u64;
}

/// A hop, for whoever seals packets past the engine, puts them into frames and takes them out.
#[derive(Clone, Debug)]
pub struct SharedHop {
    /// In frames to the gateway, and from it.
    pub up: u32,
    pub down: u32,
    pub keys_up: HopKeys,
    pub keys_down: HopKeys,
    pub endpoint: SocketAddr,
    pub ids: Arc<dyn FrameIds>,
}

/// Where the ids of our frames come from.
#[derive(Debug)]
enum Ids {
    /// The next one; nobody else makes frames of the hop.
    Own(u64),
    Shared(Arc<dyn FrameIds>),
}

/// Returns the largest frame to a gateway at `endpoint` that asks for at most `asked` bytes.
fn most(asked: u16, endpoint: SocketAddr) -> u16 {
    if is_carrier(endpoint) {
        asked.min(MAX_CARRIED)
    } else {
        asked
    }
}

/// Returns where else a gateway at `endpoint` answers STUN.
fn observer(attached: &Attached, endpoint: SocketAddr) -> Option<SocketAddr> {
    let is_there = attached.stun_port != 0 && attached.observed.port() != 0;
    let observer = SocketAddr::new(endpoint.ip(), attached.stun_port);
    (is_there && !is_carrier(endpoint) && observer != endpoint).then_some(observer)
}

/// The agent's end of an attachment that holds.
#[derive(Debug)]
pub struct Hop {
    up: u32,
    down: u32,
    keys_up: HopKeys,
    keys_down: HopKeys,
    reset_token: [u8; 16],
    window: ReplayWindow,
    ids: Ids,
    endpoint: SocketAddr,
    observed: SocketAddr,
    /// The gateway's second observer; None when it has none, or sees us nowhere.
    observer: Option<SocketAddr>,
    /// At least a heartbeat, or the hop would be given up as soon as it is there.
    lease: Duration,
    mtu: u16,
    renew: Instant,
    last_sent: Instant,
    last_received: Instant,
    /// When the first frame since the last one received was sent; None when none was.
    waiting_since: Option<Instant>,
    /// When the last heartbeat was sent.
    asked: Instant,
    /// Heartbeats since the last frame received.
    unanswered: u32,
    /// When the heartbeat was sent whose answer tells how long the way takes; None while more than one
    /// could have been answered, or none was sent.
    timed: Option<Instant>,
    /// When that was last asked, or the hop made.
    measured: Instant,
    /// What the attachment knows of it.
    rtt: Rtt,
    /// Last traffic of the agent, by this hop or past it; None before the first.
    traffic: Option<Instant>,
    /// Heartbeats since then.
    since_traffic: u32,
    frames_sent: u64,
    frames_received: u64,
}

impl Hop {
    /// Makes the hop of an answer to Attach; it is renewed `early` before its secret ends.
    pub fn new(attached: &Attached, endpoint: SocketAddr, early: Duration, now: Instant) -> Self {
        Self {
            up: attached.up,
            down: attached.down,
            keys_up: HopKeys::derive(&attached.secret, Direction::Up),
            keys_down: HopKeys::derive(&attached.secret, Direction::Down),
            reset_token: attached.reset_token,
            window: ReplayWindow::new(),
            ids: Ids::Own(0),
            endpoint,
            observed: attached.observed,
            observer: observer(attached, endpoint),
            lease: Duration::from_secs(u64::from(attached.lease)).max(HEARTBEAT),
            mtu: most(attached.mtu, endpoint),
            renew: now + LIFE.saturating_sub(early),
            last_sent: now,
            last_received: now,
            waiting_since: None,
            asked: now,
            unanswered: 0,
            timed: None,
            measured: now,
            rtt: Rtt::default(),
            traffic: None,
            since_traffic: 0,
            frames_sent: 0,
            frames_received: 0,
        }
    }

    /// Takes its ids from what `make` makes from now on: others make frames of the hop as well.
    pub fn share_ids(&mut self, make: fn(u64) -> Arc<dyn FrameIds>) {
        if let Ids::Own(next) = self.ids {
            self.ids = Ids::Shared(make(next));
        }
    }

    /// Returns what hands out the ids; None when nobody else makes frames of the hop.
    pub const fn ids(&self) -> Option<&Arc<dyn FrameIds>> {
        match &self.ids {
            Ids::Own(_) => None,
            Ids::Shared(ids) => Some(ids),
        }
    }

    /// Returns the hop for whoever shares its ids; None when nobody does.
    pub fn share(&self) -> Option<SharedHop> {
        Some(SharedHop {
            up: self.up,
            down: self.down,
            keys_up: self.keys_up.clone(),
            keys_down: self.keys_down.clone(),
            endpoint: self.endpoint,
            ids: Arc::clone(self.ids()?),
        })
    }

    /// Returns the id in frames to the gateway.
    pub const fn up(&self) -> u32 {
        self.up
    }

    /// Returns the id in frames from the gateway.
    pub const fn down(&self) -> u32 {
        self.down
    }

    /// Returns where the gateway is.
    pub const fn endpoint(&self) -> SocketAddr {
        self.endpoint
    }

    /// Returns where the gateway saw the agent when it attached.
    pub const fn observed(&self) -> SocketAddr {
        self.observed
    }

    /// Returns where else the gateway answers STUN.
    pub(crate) const fn observer(&self) -> Option<SocketAddr> {
        self.observer
    }

    /// Returns the largest frame the gateway asks for.
    pub const fn mtu(&self) -> u16 {
        self.mtu
    }

    /// Returns when the last authentic frame of the gateway came.
    pub const fn last_received(&self) -> Instant {
        self.last_received
    }

    /// Returns how many frames with payload went to and came from the gateway.
    pub const fn frames(&self) -> (u64, u64) {
        (self.frames_sent, self.frames_received)
    }

    /// Wraps a payload; None when the hop's frames are used up.
    pub fn wrap(
        &mut self,
        source: OverlayIp,
        target: OverlayIp,
        payload: &[u8],
        now: Instant,
    ) -> Option<(SocketAddr, Vec<u8>)> {
        let header = Header::data(self.up, self.next_message()?, target, source);
        self.last_sent = now;
        self.waiting_since.get_or_insert(now);
        self.frames_sent += 1;
        self.note_traffic(now);
        Some((self.endpoint, header.frame(&self.keys_up, payload)))
    }

    /// Makes a frame without payload.
    pub fn signal(
        &mut self,
        kind: Kind,
        source: OverlayIp,
        gateway: OverlayIp,
        now: Instant,
    ) -> Option<(SocketAddr, Vec<u8>)> {
        let header = Header::data(self.up, self.next_message()?, gateway, source).of_kind(kind);
        self.last_sent = now;
        if kind == Kind::Heartbeat {
            self.timed = (self.unanswered == 0).then_some(now);
            self.measured = now;
            self.asked = now;
            self.unanswered += 1;
            self.since_traffic += 1;
        }
        Some((self.endpoint, header.frame(&self.keys_up, &[])))
    }

    /// Opens a frame of the gateway to `agent`.
    pub fn open(
        &mut self,
        frame: &[u8],
        agent: OverlayIp,
        now: Instant,
    ) -> Result<Header, DropReason> {
        let header = Header::open(&self.keys_down, frame).map_err(|_| DropReason::FrameTag)?;
        if header.hop != self.down {
            return Err(DropReason::FrameHopUnknown);
        }
        self.window
            .take(header.message)
            .ok_or(DropReason::FrameReplayed)?;
        self.heard(now);
        if header.target != agent.ip() || header.prefix_len != 128 {
            return Err(DropReason::FrameTarget);
        }
        Ok(header)
    }

    /// Takes that a heartbeat was answered; returns how long that took, if one answer came to one.
    pub(crate) fn take_sample(&mut self, now: Instant) -> Option<Duration> {
        let sent = self.timed.take()?;
        Some(now.saturating_duration_since(sent))
    }

    /// Takes how long the way takes.
    pub(crate) const fn set_rtt(&mut self, rtt: Rtt) {
        self.rtt = rtt;
    }

    /// Returns what an opened frame brought.
    pub fn received(
        &mut self,
        header: &Header,
        frame: &[u8],
        now: Instant,
    ) -> Result<Received, DropReason> {
        self.frames_received += 1;
        self.note_traffic(now);
        Ok(Received {
            source: OverlayIp::new(header.source).map_err(|_| DropReason::FrameSource)?,
            target: OverlayIp::new(header.target).map_err(|_| DropReason::FrameTarget)?,
            payload: HEADER..frame.len(),
        })
    }

    /// Takes how many frames with payload others sent to and took from the gateway by this hop.
    pub const fn note_passed(&mut self, sent: u64, received: u64, now: Instant) {
        self.frames_sent = self.frames_sent.saturating_add(sent);
        self.frames_received = self.frames_received.saturating_add(received);
        if received > 0 {
            self.heard(now);
        }
        if sent > 0 {
            self.last_sent = now;
            // What came may have come first.
            if self.waiting_since.is_none() {
                self.waiting_since = Some(now);
            }
        }
        if sent > 0 || received > 0 {
            self.note_traffic(now);
        }
    }

    const fn heard(&mut self, now: Instant) {
        self.last_received = now;
        self.waiting_since = None;
        self.unanswered = 0;
    }

    /// Takes that the agent's traffic flows, by this hop or past it.
    pub const fn note_traffic(&mut self, now: Instant) {
        self.traffic = Some(now);
        self.since_traffic = 0;
    }

    /// Tells whether the agent's traffic flowed just now.
    pub fn is_active(&self, now: Instant) -> bool {
        self.traffic.is_some_and(|at| now < at + ACTIVE)
    }

    /// Tells whether a Reset is the gateway's own about this hop.
    pub fn is_reset_by(&self, reset: &Reset) -> bool {
        reset.hop == self.up && reset.proves(&self.reset_token)
    }

    /// Tells whether the gateway is to be asked whether it is there.
    pub fn is_heartbeat_due(&self, now: Instant) -> bool {
        now >= self.heartbeat_at()
    }

    /// Tells whether the gateway was asked and did not answer, so that another one is to be used.
    pub const fn is_doubted(&self) -> bool {
        self.unanswered > SUSPECT
    }

    /// Tells whether the gateway is gone, or has taken the agent for gone.
    pub fn is_lost(&self, now: Instant) -> bool {
        let silent = self.unanswered >= UNANSWERED && now >= self.asked + ANSWER;
        silent || now >= self.last_sent + self.lease * 2
    }

    /// Tells whether the secret comes to its end and a new attachment is due.
    pub fn is_worn(&self, now: Instant) -> bool {
        let next = match &self.ids {
            Ids::Own(next) => *next,
            Ids::Shared(ids) => ids.peek(),
        };
        now >= self.renew || next >= MAX_FRAMES - SPARE_FRAMES
    }

    /// Returns when something is due and why; `renewing` when a new attachment is being made.
    pub fn poll_timeout(&self, renewing: bool) -> (Instant, &'static str) {
        let heartbeat = (self.heartbeat_at(), "gateway heartbeat");
        let renewal = (!renewing).then_some((self.renew, "gateway renewal"));
        renewal.map_or(heartbeat, |renewal| heartbeat.min(renewal))
    }

    fn heartbeat_at(&self) -> Instant {
        if self.unanswered > 0 {
            return self.asked + self.patience();
        }
        let idle = self.last_sent.min(self.last_received) + HEARTBEAT;
        let doubt = self.waiting_since.map(|at| at + DOUBT);
        let quiet = self.traffic.filter(|_| self.since_traffic < AFTER_TRAFFIC);
        let quiet = quiet.map(|at| at + QUIET * ((2 << self.since_traffic) - 1));
        let measure = Some(self.measured + MEASURE);
        [doubt, quiet, measure]
            .into_iter()
            .flatten()
            .fold(idle, Instant::min)
    }

    /// Returns how long the answer to the last heartbeat may take.
    fn patience(&self) -> Duration {
        if self.unanswered > SUSPECT {
            return ANSWER;
        }
        let usual = self.rtt.get().map_or(LEAST_PATIENCE * 2, |rtt| rtt * 2);
        usual.clamp(LEAST_PATIENCE, ANSWER)
    }

    fn next_message(&mut self) -> Option<u64> {
        let message = match &mut self.ids {
            Ids::Own(next) => {
                *next += 1;
                *next - 1
            }
            Ids::Shared(ids) => ids.take(),
        };
        (message < MAX_FRAMES).then_some(message)
    }
}

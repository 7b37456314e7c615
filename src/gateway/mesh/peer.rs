//! Pure: one other gateway: the session with it, whether it lives, and what each told the other.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

use rand::Rng;
use rand_chacha::ChaCha20Rng;

use crate::engine::limits::Bucket;
use crate::engine::session::{Opened, Session};
use crate::gateway::links::Outgoing;
use crate::gateway::mesh::log::Log;
use crate::gateway::mesh::stream::{Inbound, Outbound, Place};
use crate::gateway::mesh::{Effect, PeerState};
use crate::gateway::mft::PeerId;
use crate::id::{Did, DomainPrefix, OverlayIp, TunnelKey, UnixTime};
use crate::wire::a2g::Reset;
use crate::wire::control::{Control, Farewell, ProbeReply};
use crate::wire::datagram::WireGuard;
use crate::wire::drop::DropReason;
use crate::wire::mesh::{Delta, Hello, Mark, Message};
use crate::wire::part::Reassembler;

/// How often a gateway is asked whether it lives, and how long its answer is waited for.
const HEARTBEAT: Duration = Duration::from_secs(2);
const ANSWER: Duration = Duration::from_secs(1);

/// Questions without an answer after which it is dead: two may be lost on a bad line.
const UNANSWERED: u32 = 3;

/// A greeting that may not have been heard is said again after this.
const GREET: Duration = Duration::from_secs(1);

/// First pause between attempts to reach a gateway; doubled up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(15);

/// The secret by which frames come from it is changed this often (protocol.md section 5: 24 h at most).
const RENEW: Duration = Duration::from_secs(23 * 3600);

/// Messages in parts that are put together at once.
const MAX_PARTED: usize = 8;

/// Records of it that are checked a second, and at once; one takes half a millisecond.
const CHECKS: u32 = 1000;
const CHECKS_AT_ONCE: u32 = 2000;

/// By what the other gateway sends frames here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Incoming {
    pub(crate) hop: u32,
    pub(crate) secret: [u8; 32],
    /// Of a Reset for `hop`.
    pub(crate) token: [u8; 16],
}

/// Who another gateway is, by its statement.
#[derive(Clone, Debug)]
pub(crate) struct Named {
    pub(crate) gateway: Did,
    pub(crate) key: TunnelKey,
    pub(crate) seq: u64,
    pub(crate) expires: UnixTime,
    pub(crate) endpoints: Vec<SocketAddr>,
    /// None for those of our own domain.
    pub(crate) domain: Option<DomainPrefix>,
}

/// Another gateway.
#[derive(Debug)]
pub(super) struct Peer {
    id: PeerId,
    pub(super) named: Named,
    session: Session,
    /// Where its last authentic message came from; None before the first.
    at: Option<SocketAddr>,
    ours: Incoming,
    /// None while another one is to come: the gateway may have forgotten how many frames it sent by it.
    ours_since: Option<Instant>,
    /// The newest greeting of it, without its statement; None while it is not there.
    theirs: Option<Hello>,
    /// Whether it has the newest greeting of ours.
    is_heard: bool,
    /// When it is greeted again; None when it need not be.
    greet_at: Option<Instant>,
    /// Whether a session was made since it was lost.
    is_open: bool,
    attempt_at: Instant,
    attempts: u32,
    /// The question without an answer; None when all are answered.
    asked: Option<(u64, Instant)>,
    unanswered: u32,
    ask_at: Instant,
    rtt: Option<Duration>,
    inbound: Inbound,
    outbound: Outbound,
    parted: BTreeMap<u32, Reassembler>,
    next_message: u32,
    checks: Bucket,
}

/// What a peer needs of the mesh to speak.
pub(super) struct Voice<'a> {
    pub(super) instance: u64,
    pub(super) statement: &'a str,
    pub(super) rng: &'a mut ChaCha20Rng,
    pub(super) effects: &'a mut VecDeque<Effect>,
}

impl Peer {
    pub(super) fn new(
        id: PeerId,
        named: Named,
        session: Session,
        ours: Incoming,
        now: Instant,
        rng: &mut ChaCha20Rng,
    ) -> Self {
        Self {
            id,
            named,
            session,
            at: None,
            ours,
            ours_since: Some(now),
            theirs: None,
            is_heard: false,
            greet_at: None,
            is_open: false,
            attempt_at: now,
            attempts: 0,
            asked: None,
            unanswered: 0,
            ask_at: now,
            rtt: None,
            inbound: Inbound::default(),
            outbound: Outbound::new(rng.random()),
            parted: BTreeMap::new(),
            next_message: 0,
            checks: Bucket::new(CHECKS, CHECKS_AT_ONCE, now),
        }
    }

    pub(super) const fn session(&self) -> &Session {
        &self.session
    }

    pub(super) const fn ours(&self) -> Incoming {
        self.ours
    }

    pub(super) const fn state(&self) -> PeerState {
        match (&self.theirs, self.is_open) {
            (Some(_), _) => PeerState::Up,
            (None, true) => PeerState::Greeting,
            (None, false) => PeerState::Down,
        }
    }

    pub(super) const fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    pub(super) const fn at(&self) -> Option<SocketAddr> {
        self.at
    }

    /// Tells whether a Reset is this gateway's own about frames to it.
    pub(super) fn is_reset_by(&self, reset: &Reset) -> bool {
        let theirs = self.theirs.as_ref();
        theirs.is_some_and(|t| t.hop == reset.hop && reset.proves(&t.reset_token))
    }

    /// Takes another secret for frames to here; it is told at once.
    pub(super) const fn renew(&mut self, ours: Incoming, now: Instant) {
        self.ours = ours;
        self.ours_since = Some(now);
        self.is_heard = false;
        self.greet_at = Some(now);
    }

    pub(super) fn is_worn(&self, now: Instant) -> bool {
        self.ours_since.is_some_and(|since| now >= since + RENEW)
    }

    /// Takes a token for the check of one of its records; false when it has none left.
    pub(super) fn may_check(&mut self, now: Instant) -> bool {
        self.checks.take(now)
    }

    /// Takes a WireGuard message.
    pub(super) fn handle(
        &mut self,
        kind: WireGuard,
        from: SocketAddr,
        bytes: &[u8],
        now: Instant,
        voice: &mut Voice<'_>,
    ) -> Result<(), DropReason> {
        let opened = match kind {
            WireGuard::CookieReply if self.is_tried(from) => self.session.open_cookie(bytes, now),
            WireGuard::CookieReply => return Err(DropReason::CookieReply),
            WireGuard::Initiation | WireGuard::Response | WireGuard::Transport => {
                self.session.open(bytes, now)
            }
        };
        let packet = match opened {
            Opened::Dropped(reason) => return Err(reason),
            Opened::Reply(reply) => {
                voice.effects.push_back(Effect::Send(from, reply));
                return Ok(());
            }
            Opened::Nothing => None,
            Opened::Packet(packet) => Some(packet),
            Opened::Confirmed { reply, packet } => {
                voice
                    .effects
                    .extend(reply.map(|reply| Effect::Send(from, reply)));
                self.is_open = true;
                self.attempts = 0;
                self.greet_at = Some(now);
                packet
            }
        };
        if kind == WireGuard::Transport || kind == WireGuard::Response {
            self.seen_at(from, voice);
        }
        let message = match packet.as_deref().map(Control::parse) {
            None => None,
            Some(None) => return Err(DropReason::ControlMalformed),
            Some(Some(Control::Part(part))) => {
                if self.parted.len() >= MAX_PARTED && !self.parted.contains_key(&part.message) {
                    self.parted.pop_first();
                }
                let number = part.message;
                let whole = self.parted.entry(number).or_default().take(part, now);
                if whole.is_some() {
                    self.parted.remove(&number);
                }
                whole
            }
            Some(message) => message,
        };
        match message {
            Some(message) => self.handle_message(message, now, voice),
            None => Ok(()),
        }
    }

    fn handle_message(
        &mut self,
        message: Control,
        now: Instant,
        voice: &mut Voice<'_>,
    ) -> Result<(), DropReason> {
        match message {
            Control::Mesh(Message::Hello(hello)) => {
                let (statement, hello) = hello.split();
                if !statement.is_empty() {
                    let shown = Effect::Statement(self.id, statement);
                    voice.effects.push_back(shown);
                }
                self.greeted(&hello, now, voice);
                self.theirs = Some(hello);
            }
            Control::Mesh(Message::Delta(delta)) => self.announced(delta, now, voice),
            Control::Mesh(Message::Ack(mark)) => {
                if mark.instance == voice.instance {
                    self.outbound.acked(mark, now);
                }
            }
            Control::Probe { id, .. } => {
                let reply = ProbeReply {
                    id,
                    observed: None,
                    received: 0,
                };
                self.tell(&Control::ProbeReply(reply), now, voice);
            }
            Control::ProbeReply(reply) => {
                if let Some((_, since)) = self.asked.filter(|(id, _)| *id == reply.id) {
                    self.asked = None;
                    self.unanswered = 0;
                    self.rtt = Some(now.saturating_duration_since(since));
                    self.ask_at = now + HEARTBEAT;
                }
            }
            Control::Goodbye { .. } => {
                tracing::info!(gateway = %self.named.gateway, "Gateway said farewell");
                self.lose(now + FIRST_PAUSE, voice);
            }
            Control::Attach { .. }
            | Control::Attached(_)
            | Control::AttachRefused { .. }
            | Control::Candidates(_)
            | Control::Channel(_)
            | Control::Have(_)
            | Control::Part(_)
            | Control::Statement { .. } => return Err(DropReason::ControlMalformed),
        }
        Ok(())
    }

    /// Takes a greeting.
    fn greeted(&mut self, hello: &Hello, now: Instant, voice: &mut Voice<'_>) {
        let known = self.theirs.as_ref();
        if known.is_some_and(|known| known.instance != hello.instance) {
            // It was restarted, and forgot everything.
            self.lose(now, voice);
            self.is_open = true;
        }
        let known = self.theirs.as_ref();
        let is_news = known.is_none_or(|known| known.hop != hello.hop);
        if self.theirs.is_none() {
            tracing::info!(gateway = %self.named.gateway, "Gateway is there");
            self.ask_at = now;
        }
        self.is_heard = hello.heard == self.ours.hop;
        self.outbound.greeted(hello, now);
        if is_news || hello.asks {
            self.greet_at = Some(now);
        }
        if let Some(endpoint) = self.at.filter(|_| is_news) {
            let link = Outgoing {
                hop: hello.hop,
                secret: hello.secret,
                endpoint,
            };
            voice.effects.push_back(Effect::Up(self.id, link));
        }
    }

    fn announced(&mut self, delta: Delta, now: Instant, voice: &mut Voice<'_>) {
        let instance = self.theirs.as_ref().map(|theirs| theirs.instance);
        if instance != Some(delta.mark.instance) {
            return;
        }
        match self.inbound.place_of(&delta) {
            Place::Next => voice.effects.push_back(Effect::Delta(self.id, delta)),
            Place::Elsewhere => self.answer(now, voice),
        }
    }

    /// Takes that a Delta was taken, and says so.
    pub(super) fn took(&mut self, delta: &Delta, now: Instant, voice: &mut Voice<'_>) {
        self.inbound.took(delta.mark);
        self.answer(now, voice);
    }

    fn answer(&mut self, now: Instant, voice: &mut Voice<'_>) {
        let Some(theirs) = &self.theirs else {
            return;
        };
        let (epoch, upto) = self.inbound.place();
        let mark = Mark {
            instance: theirs.instance,
            epoch,
            upto,
        };
        self.tell(&Control::Mesh(Message::Ack(mark)), now, voice);
    }

    /// Does what is due.
    pub(super) fn handle_timeout(&mut self, now: Instant, voice: &mut Voice<'_>) {
        for message in self.session.handle_timeout(now) {
            self.send(message, voice);
        }
        if self.is_attempt_due(now) {
            self.attempt(now, voice);
        }
        let may_greet = self.ours_since.is_some() && self.is_sealing(now);
        if may_greet && self.greet_at.is_some_and(|at| at <= now) {
            self.greet(now, voice);
        }
        if self.theirs.is_some() && self.ask_at <= now {
            self.ask(now, voice);
        }
        self.outbound.handle_timeout(now);
    }

    /// Returns when something is due and why.
    pub(super) fn poll_timeout(&self, now: Instant) -> Option<(Instant, &'static str)> {
        let is_sealing = self.is_sealing(now);
        let attempt = (!is_sealing).then_some((self.attempt_at, "handshake with a gateway"));
        let may_greet = is_sealing && self.ours_since.is_some();
        let greet = self.greet_at.filter(|_| may_greet);
        let ask = self.theirs.as_ref().map(|_| (self.ask_at, "gateway probe"));
        let resend = self.outbound.poll_timeout();
        let worn = self.ours_since.map(|since| since + RENEW);
        [
            attempt,
            greet.map(|at| (at, "greeting of a gateway")),
            ask,
            resend.map(|at| (at, "announcements")),
            worn.map(|at| (at, "renewal of a gateway's hop")),
            self.session.poll_timeout(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Tells whether announcements wait to be told; other domains are told of no agent.
    pub(super) fn is_behind(&self, log: &Log) -> bool {
        self.named.domain.is_none()
            && self.theirs.is_some()
            && self.outbound.next(log.version()).is_some()
    }

    /// Tells what changed, as far as it may be under way.
    pub(super) fn pump(
        &mut self,
        log: &Log,
        record: &impl Fn(OverlayIp) -> Option<String>,
        now: Instant,
        voice: &mut Voice<'_>,
    ) {
        if self.theirs.is_none() || !self.is_sealing(now) {
            return;
        }
        if !log.reaches_back(self.outbound.place()) {
            self.outbound.restart();
        }
        while let Some(from) = self.outbound.next(log.version()) {
            let changes = log.after(from, record);
            let delta = Delta {
                mark: self.outbound.sent(voice.instance, changes.upto, now),
                from,
                is_all: changes.is_all,
                entries: changes.entries,
            };
            self.tell(&Control::Mesh(Message::Delta(delta)), now, voice);
        }
    }

    /// Says farewell.
    pub(super) fn leave(&mut self, now: Instant, voice: &mut Voice<'_>) {
        let reason = Farewell::Leaving;
        self.tell(&Control::Goodbye { reason }, now, voice);
    }

    /// Takes that the gateway is not there any more; it is tried again at `again`.
    pub(super) fn lose(&mut self, again: Instant, voice: &mut Voice<'_>) {
        if self.theirs.take().is_some() {
            voice.effects.push_back(Effect::Down(self.id));
        }
        if self.ours_since.take().is_some() {
            voice.effects.push_back(Effect::Forgotten(self.id));
        }
        self.is_open = false;
        self.is_heard = false;
        self.asked = None;
        self.unanswered = 0;
        self.rtt = None;
        self.inbound = Inbound::default();
        self.outbound.restart();
        self.parted.clear();
        self.attempts = 0;
        self.attempt_at = again;
    }

    fn greet(&mut self, now: Instant, voice: &mut Voice<'_>) {
        let theirs = self.theirs.as_ref();
        let (epoch, upto) = self.inbound.place();
        let hello = Hello {
            instance: voice.instance,
            hop: self.ours.hop,
            secret: self.ours.secret,
            reset_token: self.ours.token,
            heard: theirs.map_or(0, |theirs| theirs.hop),
            epoch,
            upto,
            asks: !self.is_heard,
            statement: voice.statement.to_owned(),
        };
        self.greet_at = (!self.is_heard).then_some(now + GREET);
        self.tell(&Control::Mesh(Message::Hello(hello)), now, voice);
    }

    fn ask(&mut self, now: Instant, voice: &mut Voice<'_>) {
        if self.asked.is_some() {
            self.unanswered += 1;
            if self.unanswered >= UNANSWERED {
                tracing::warn!(gateway = %self.named.gateway, "Gateway does not answer");
                self.lose(now, voice);
                return;
            }
        }
        let id = voice.rng.random();
        self.asked = Some((id, now));
        self.ask_at = now + ANSWER;
        self.tell(&Control::Probe { id, path: 0 }, now, voice);
    }

    fn attempt(&mut self, now: Instant, voice: &mut Voice<'_>) {
        let pause = FIRST_PAUSE * 2_u32.saturating_pow(self.attempts.min(8));
        let pause = pause.min(MAX_PAUSE);
        self.attempts = self.attempts.saturating_add(1);
        // Two gateways that lost each other do not begin at one moment for ever.
        let jitter = pause.mul_f64(f64::from(voice.rng.random::<u8>()) / 1024.0);
        self.attempt_at = now + pause + jitter;
        if let Some(initiation) = self.session.initiate(now) {
            self.send(initiation, voice);
        }
    }

    fn is_attempt_due(&self, now: Instant) -> bool {
        !self.is_sealing(now) && self.attempt_at <= now
    }

    /// Tells whether messages can be sealed in a session made since it was lost.
    fn is_sealing(&self, now: Instant) -> bool {
        self.is_open && self.session.is_confirmed(now)
    }

    fn is_tried(&self, from: SocketAddr) -> bool {
        self.at == Some(from) || self.named.endpoints.contains(&from)
    }

    fn seen_at(&mut self, from: SocketAddr, voice: &mut Voice<'_>) {
        if self.at != Some(from) {
            self.at = Some(from);
            voice.effects.push_back(Effect::Moved(self.id, from));
        }
    }

    /// Seals a message, in parts if it is long; one that cannot be sealed is lost.
    fn tell(&mut self, message: &Control, now: Instant, voice: &mut Voice<'_>) {
        self.next_message = self.next_message.wrapping_add(1);
        for packet in message.packets(self.next_message) {
            if let Some(sealed) = self.session.seal(&packet, now) {
                self.send(sealed, voice);
            }
        }
    }

    /// Sends where it was last, and a handshake to wherever it may be as well.
    fn send(&self, bytes: Vec<u8>, voice: &mut Voice<'_>) {
        let is_handshake = bytes.first() == Some(&1);
        if is_handshake {
            let others = self.named.endpoints.iter();
            for to in others.filter(|to| self.at != Some(**to)) {
                voice.effects.push_back(Effect::Send(*to, bytes.clone()));
            }
        }
        if let Some(at) = self.at {
            voice.effects.push_back(Effect::Send(at, bytes));
        }
    }
}

//! Pure: the sessions over which agents attach, each kept only until its agent is attached.
//!
//! A stranger costs a MAC check, then (within its source's share) one key agreement, then a temporary
//! session, dropped when it made no response and 5 s later when the response was not used.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

use rand::Rng;
use rand_chacha::ChaCha20Rng;

use crate::engine::limits::{Limits, Source};
use crate::engine::session::{Listener, Opened, Screened, Session, SessionKeys, receiver_index};
use crate::id::{TunnelKey, TunnelSecret};
use crate::wire::control::{Control, ProbeReply};
use crate::wire::drop::DropReason;
use crate::wire::mesh::Message;
use crate::wire::part::Reassembler;

/// How long a response waits to be used: an agent repeats its handshake within 5 s.
const UNCONFIRMED: Duration = Duration::from_secs(5);

/// How long a session lives once its agent proved its key, for Attach and repetitions of its answer.
const CONFIRMED: Duration = Duration::from_secs(10);

/// Sources remembered apart by the handshake limit.
const MAX_SOURCES: usize = 16_384;

/// How much of attaching is allowed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GuestLimits {
    /// Sessions at once.
    pub(crate) most: usize,
    /// Handshakes a second beyond which cookies are asked for.
    pub(crate) per_second: u32,
    /// Handshakes a second from one source.
    pub(crate) per_source: u32,
    /// Handshakes at once from one source.
    pub(crate) burst: u32,
}

/// What a WireGuard message led to.
#[derive(Debug)]
pub(crate) enum Guested {
    /// An agent that proved this key asks to attach by this record.
    Attach {
        key: TunnelKey,
        record: String,
    },
    Dropped(DropReason),
    /// One that proved this key says by this statement that it is a gateway.
    Gateway {
        key: TunnelKey,
        statement: String,
    },
    Nothing,
    Send(Vec<u8>),
}

/// The sessions of those who are not attached yet.
pub(crate) struct Guests {
    secret: TunnelSecret,
    listener: Listener,
    limits: Limits,
    most: usize,
    guests: BTreeMap<TunnelKey, Guest>,
    by_index: BTreeMap<u32, TunnelKey>,
    /// When each guest goes.
    due: BTreeSet<(Instant, TunnelKey)>,
    rng: ChaCha20Rng,
}

struct Guest {
    session: Session,
    reassembler: Reassembler,
    expires: Instant,
    /// The answer to its Attach; None before that.
    answer: Option<Control>,
}

impl std::fmt::Debug for Guests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guests")
            .field("guests", &self.guests.len())
            .finish_non_exhaustive()
    }
}

impl Guests {
    /// Makes an empty table that answers for the gateway's tunnel key.
    pub(crate) fn new(secret: TunnelSecret, limits: GuestLimits, rng: ChaCha20Rng) -> Self {
        Self {
            listener: Listener::new(&secret, u64::from(limits.per_second)),
            limits: Limits::new(limits.per_source, limits.burst, MAX_SOURCES),
            most: limits.most.max(1),
            secret,
            guests: BTreeMap::new(),
            by_index: BTreeMap::new(),
            due: BTreeSet::new(),
            rng,
        }
    }

    /// Returns how many sessions there are.
    pub(crate) fn len(&self) -> usize {
        self.guests.len()
    }

    /// Answers the Attach of a guest; the session then only repeats this answer.
    pub(crate) fn answer(
        &mut self,
        key: &TunnelKey,
        answer: Control,
        now: Instant,
    ) -> Option<Vec<u8>> {
        let guest = self.guests.get_mut(key)?;
        let sealed = answer
            .packet()
            .and_then(|packet| guest.session.seal(&packet, now));
        guest.answer = Some(answer);
        sealed
    }

    /// Drops the sessions whose time is over.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        while let Some((_, key)) = self.due.first().copied().filter(|(at, _)| *at <= now) {
            self.remove(&key);
        }
    }

    /// Returns when the next session is dropped.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Tells, at little cost, whether a handshake is to be gone on with.
    pub(crate) fn screen(
        &mut self,
        from: SocketAddr,
        bytes: &[u8],
        now: Instant,
    ) -> Result<(), Guested> {
        match self.listener.screen(from, bytes) {
            Screened::Pass => {}
            Screened::Cookie(cookie) => return Err(Guested::Send(cookie)),
            Screened::Dropped(reason) => return Err(Guested::Dropped(reason)),
        }
        if !self.limits.take(Source::of(from), now) {
            return Err(Guested::Dropped(DropReason::HandshakeLimited));
        }
        Ok(())
    }

    /// Tells which key a handshake claims, which was screened.
    pub(crate) fn initiator(&self, bytes: &[u8]) -> Option<TunnelKey> {
        self.listener.initiator(bytes)
    }

    /// Takes a handshake of this key, which was screened.
    pub(crate) fn begin(&mut self, key: TunnelKey, bytes: &[u8], now: Instant) -> Guested {
        if let Some(guest) = self.guests.get_mut(&key) {
            return match guest.session.open(bytes, now) {
                Opened::Reply(response) => {
                    self.keep_until(&key, now + UNCONFIRMED);
                    Guested::Send(response)
                }
                Opened::Dropped(reason) => Guested::Dropped(reason),
                Opened::Confirmed { .. } | Opened::Nothing | Opened::Packet(_) => Guested::Nothing,
            };
        }
        let mut session = self.new_session(key, now);
        match session.open(bytes, now) {
            Opened::Reply(response) => {
                self.insert(key, session, now + UNCONFIRMED);
                Guested::Send(response)
            }
            Opened::Dropped(reason) => Guested::Dropped(reason),
            Opened::Confirmed { .. } | Opened::Nothing | Opened::Packet(_) => Guested::Nothing,
        }
    }

    /// Takes a message of a session.
    pub(crate) fn handle_transport(&mut self, bytes: &[u8], now: Instant) -> Guested {
        let index = receiver_index(bytes).map(|index| index >> 8);
        let key = index.and_then(|index| self.by_index.get(&index)).copied();
        let guest = key.and_then(|key| Some((key, self.guests.get_mut(&key)?)));
        let Some((key, guest)) = guest else {
            return Guested::Dropped(DropReason::ChannelUnknown);
        };
        let packet = match guest.session.open(bytes, now) {
            Opened::Confirmed { packet, .. } => {
                guest.answer = None;
                self.keep_until(&key, now + CONFIRMED);
                packet
            }
            Opened::Packet(packet) => Some(packet),
            Opened::Dropped(reason) => return Guested::Dropped(reason),
            Opened::Nothing | Opened::Reply(_) => None,
        };
        packet.map_or(Guested::Nothing, |packet| {
            self.handle_packet(key, &packet, now)
        })
    }

    fn handle_packet(&mut self, key: TunnelKey, packet: &[u8], now: Instant) -> Guested {
        let Some(guest) = self.guests.get_mut(&key) else {
            return Guested::Nothing;
        };
        let message = match Control::parse(packet) {
            Some(Control::Part(part)) => guest.reassembler.take(part, now),
            Some(message) => Some(message),
            None => return Guested::Dropped(DropReason::ControlMalformed),
        };
        let answer = match message {
            Some(Control::Attach { record }) => match guest.answer.clone() {
                Some(answer) => answer,
                None => return Guested::Attach { key, record },
            },
            Some(Control::Probe { id, .. }) => Control::ProbeReply(ProbeReply {
                id,
                observed: None,
                received: 0,
            }),
            Some(Control::Mesh(Message::Hello(hello))) => {
                let statement = hello.statement;
                return Guested::Gateway { key, statement };
            }
            Some(
                Control::Attached(_)
                | Control::AttachRefused { .. }
                | Control::Candidates(_)
                | Control::Goodbye { .. }
                | Control::Channel(_)
                | Control::Have(_)
                | Control::Mesh(Message::Ack(_) | Message::Delta(_))
                | Control::Part(_)
                | Control::ProbeReply(_)
                | Control::Statement { .. },
            )
            | None => return Guested::Nothing,
        };
        let packet = answer.packet();
        let sealed = packet.and_then(|packet| guest.session.seal(&packet, now));
        sealed.map_or(Guested::Nothing, Guested::Send)
    }

    fn new_session(&mut self, peer: TunnelKey, now: Instant) -> Session {
        let index = loop {
            // Those with the highest bit are of sessions with gateways.
            let index = self.rng.random::<u32>() >> 9;
            if !self.by_index.contains_key(&index) {
                break index;
            }
        };
        let keys = SessionKeys {
            local: self.secret.clone(),
            peer,
            psk: None,
            index,
        };
        Session::new(&keys, now)
    }

    fn insert(&mut self, key: TunnelKey, session: Session, expires: Instant) {
        // Whoever is next to go makes room: the unconfirmed go first, having the least time.
        if self.guests.len() >= self.most
            && let Some((_, oldest)) = self.due.first().copied()
        {
            self.remove(&oldest);
        }
        self.by_index.insert(session.index(), key);
        self.due.insert((expires, key));
        let guest = Guest {
            session,
            reassembler: Reassembler::default(),
            expires,
            answer: None,
        };
        self.guests.insert(key, guest);
    }

    fn keep_until(&mut self, key: &TunnelKey, until: Instant) {
        if let Some(guest) = self.guests.get_mut(key) {
            self.due.remove(&(guest.expires, *key));
            guest.expires = guest.expires.max(until);
            self.due.insert((guest.expires, *key));
        }
    }

    fn remove(&mut self, key: &TunnelKey) {
        if let Some(guest) = self.guests.remove(key) {
            self.due.remove(&(guest.expires, *key));
            self.by_index.remove(&guest.session.index());
        }
    }
}

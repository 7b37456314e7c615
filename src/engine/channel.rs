//! The data channel to one peer: its handshake and its life (protocol.md section 7).
//!
//! [`ChannelAgent`] seals nothing. It is told of sessions, messages and use, says which messages
//! are to be sent inside the session, and which channels whoever seals should know. After each
//! `handle_*` take out everything of [`ChannelAgent::poll_message`] and
//! [`ChannelAgent::poll_change`], then wait no longer than [`ChannelAgent::poll_timeout`] says.

mod schedule;
#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use rand::RngCore;
use zeroize::{Zeroize, Zeroizing};

use crate::engine::{
    hop::{MAX_HOPS, Slot},
    limits::Bucket,
    secrets::Secrets,
};
use crate::id::{OverlayIp, TunnelSecret};
use crate::policy::Pair;
use crate::wire::channel::{Accept, Confirm, Message, Offer, Suite, Suites, Terms};
use crate::wire::drop::DropReason;

pub(crate) use schedule::data_key;
pub use schedule::{DataKey, End, Ends, Schedule};

/// An unanswered offer is made so often, with this pause.
const OFFERS: u8 = 5;
const OFFER_PAUSE: Duration = Duration::from_secs(1);

/// How long a replaced channel is still received on.
const DRAIN: Duration = Duration::from_secs(10);

/// How long a channel lasts: as long as a session's keys (WireGuard's Reject-After-Time).
const LIFE: Duration = Duration::from_secs(180);

/// Bytes after which a channel is replaced: 2^32 blocks of AES, a fifth of what RFC 8446 section 5.5
/// lets one AES-GCM key seal (2^24.5 records of 2^14 bytes).
const MAX_BYTES: u64 = 1 << 36;

/// Channels received on at once: the current one, its successor, and some that drain.
const MAX_LIVE: usize = 4;

/// Bits of a channel's id that say the lane of its pair.
const LANE: u32 = Pair::LANES as u32 - 1;

/// Offers of the peer that cost an agreement: one per session is needed.
const OFFERS_PER_SECOND: u32 = 1;
const OFFERS_BURST: u32 = 5;

/// A channel for whoever seals and opens.
#[derive(Debug)]
pub struct NewChannel {
    /// Our id of it, in packets to us.
    pub id: u32,
    /// The peer's id of it, in packets to the peer.
    pub remote: u32,
    pub suite: Suite,
    pub seal: DataKey,
    pub open: DataKey,
}

/// Where sealed packets go.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Route {
    /// To an endpoint of the peer.
    Direct(SocketAddr),
    /// Packets are handed to the engine unsealed.
    Engine,
    /// In frames of this hop of the local agent, addressed to the peer; to the engine while there is none.
    Relayed(Slot),
}

/// How a packet came.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Arrival {
    Direct(SocketAddr),
    /// In a frame of this hop of the local agent.
    Relayed(Slot),
}

/// Packets and bytes of one direction.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Volume {
    pub packets: u64,
    pub bytes: u64,
}

/// What went past the session, sealed by a channel, since it was last told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Passed {
    pub local: OverlayIp,
    pub peer: OverlayIp,
    pub sent: Volume,
    pub received: Volume,
    /// How the last packet came; None when none did.
    pub from: Option<Arrival>,
    /// How many of the packets sent, and of those received, went by each of the local agent's hops.
    pub relayed: [(u64, u64); MAX_HOPS],
    /// Relayed packets of the peer to a channel that is not known here.
    pub unknown: u64,
}

/// What changed for whoever seals and opens; ids are ours.
#[derive(Debug)]
pub enum ChannelChange {
    /// Packets of this channel may arrive from now on.
    New(NewChannel),
    /// Packets of this size, as programs send them, and no larger ones pass to the peer from now on; None
    /// when that is not known.
    Mtu(Option<u16>),
    /// Sealed packets go this way from now on.
    Route(Route),
    /// Packets are sealed by this channel from now on.
    Send(u32),
    /// The channel is no more, and its keys are to be wiped.
    End(u32),
}

/// What an agent is made of.
#[derive(Clone, Debug)]
pub(crate) struct ChannelConfig {
    pub(crate) ends: Ends,
    /// Whether we are L of them.
    pub(crate) is_low: bool,
    pub(crate) suites: Suites,
    /// 24 bits that no other peer of this socket has; our channel ids begin with them.
    pub(crate) index: u32,
    /// What the low 3 bits of our channel ids are: by these packets are shared out among workers.
    pub(crate) lane: u8,
    /// 32 random bytes.
    pub(crate) seed: Zeroizing<[u8; 32]>,
}

/// Our offer that is not accepted yet.
#[derive(Debug)]
struct Offered {
    offer: Offer,
    ephemeral: TunnelSecret,
    left: u8,
    again: Instant,
}

/// The last offer of the peer that we accepted, and what we said.
#[derive(Debug)]
struct Accepted {
    offer: Offer,
    accept: Accept,
    /// What L proves itself by.
    mac_low: [u8; 16],
}

/// A channel that may be received on.
#[derive(Debug)]
struct Live {
    id: u32,
    suite: Suite,
    made: Instant,
    /// None while it is current, or not used yet.
    drained: Option<Instant>,
}

impl Live {
    fn ends(&self) -> Instant {
        let end = self.made + LIFE;
        self.drained.map_or(end, |drained| drained.min(end))
    }
}

/// The channels to one peer.
#[derive(Debug)]
pub(crate) struct ChannelAgent {
    config: ChannelConfig,
    rng: Secrets,
    offered: Option<Offered>,
    accepted: Option<Accepted>,
    live: Vec<Live>,
    /// The channel we seal by; None while there is none.
    sending: Option<u32>,
    /// Bytes either way on it.
    bytes: u64,
    budget: Bucket,
    messages: VecDeque<Message>,
    changes: VecDeque<ChannelChange>,
}

impl ChannelAgent {
    pub(crate) fn new(mut config: ChannelConfig, now: Instant) -> Self {
        let rng = Secrets::new(&config.seed);
        config.seed.zeroize();
        Self {
            config,
            rng,
            offered: None,
            accepted: None,
            live: Vec::new(),
            sending: None,
            bytes: 0,
            budget: Bucket::new(OFFERS_PER_SECOND, OFFERS_BURST, now),
            messages: VecDeque::new(),
            changes: VecDeque::new(),
        }
    }

    /// Tells whether we are the end that offers.
    pub(crate) const fn is_low(&self) -> bool {
        self.config.is_low
    }

    /// Returns the suite that packets are sealed with; None while there is no channel.
    pub(crate) fn suite(&self) -> Option<Suite> {
        let mut live = self.live.iter();
        live.find(|live| Some(live.id) == self.sending)
            .map(|live| live.suite)
    }

    /// Tells whether there is any channel.
    pub(crate) fn is_live(&self) -> bool {
        !self.live.is_empty()
    }

    /// Takes which suites may be used; with none, there are no channels.
    pub(crate) fn set_suites(&mut self, suites: Suites) {
        self.config.suites = suites;
        if suites.is_empty() {
            self.close();
        }
    }

    /// Takes that a session was made: a new channel comes with it.
    pub(crate) fn handle_session(&mut self, now: Instant) {
        if !self.config.is_low || self.config.suites.is_empty() {
            return;
        }
        let ephemeral = self.ephemeral();
        let offer = Offer {
            low: self.unused_id(),
            suites: self.config.suites,
            ephemeral: *ephemeral.public().as_bytes(),
        };
        self.messages.push_back(Message::Offer(offer));
        self.offered = Some(Offered {
            offer,
            ephemeral,
            left: OFFERS - 1,
            again: now + OFFER_PAUSE,
        });
    }

    /// Takes a message of the peer.
    pub(crate) fn handle_message(
        &mut self,
        message: &Message,
        now: Instant,
    ) -> Result<(), DropReason> {
        if self.config.suites.is_empty() {
            return Ok(());
        }
        match (message, self.config.is_low) {
            (Message::Offer(offer), false) => self.handle_offer(offer, now),
            (Message::Accept(accept), true) => self.handle_accept(accept, now),
            (Message::Confirm(confirm), false) => self.handle_confirm(confirm, now),
            (Message::Offer(_) | Message::Confirm(_), true) | (Message::Accept(_), false) => {
                Err(DropReason::ChannelRefused)
            }
        }
    }

    /// Takes that a packet of our channel `id` opened: the peer has the keys.
    pub(crate) fn handle_used(&mut self, id: u32, now: Instant) {
        let is_newest = self.accepted.as_ref().map(|a| a.accept.terms.high) == Some(id);
        if !self.config.is_low && is_newest {
            self.send_by(id, now);
        }
    }

    /// Takes that the peer has none of the channels made before `since`.
    pub(crate) fn forget(&mut self, since: Instant) {
        let lost = self.live.extract_if(.., |live| live.made < since);
        for id in lost.map(|live| live.id).collect::<Vec<_>>() {
            self.end(id);
        }
    }

    /// Takes how many bytes went either way.
    pub(crate) fn handle_bytes(&mut self, bytes: u64, now: Instant) {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes >= MAX_BYTES && self.offered.is_none() {
            self.bytes = 0;
            self.handle_session(now);
        }
    }

    /// Ends all channels, as when trust ends.
    pub(crate) fn close(&mut self) {
        self.offered = None;
        self.accepted = None;
        self.sending = None;
        let ended = self.live.drain(..).map(|live| ChannelChange::End(live.id));
        self.changes.extend(ended);
    }

    pub(crate) fn poll_message(&mut self) -> Option<Message> {
        self.messages.pop_front()
    }

    pub(crate) fn poll_change(&mut self) -> Option<ChannelChange> {
        self.changes.pop_front()
    }

    pub(crate) fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let again = self.offered.as_ref().map(|o| (o.again, "channel offer"));
        let ends = self.live.iter().map(|live| (live.ends(), "channel ends"));
        again.into_iter().chain(ends).min()
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if let Some(offered) = self.offered.as_mut().filter(|o| now >= o.again) {
            if offered.left == 0 {
                self.offered = None;
            } else {
                offered.left -= 1;
                offered.again = now + OFFER_PAUSE;
                self.messages.push_back(Message::Offer(offered.offer));
            }
        }
        let ended = self.live.extract_if(.., |live| now >= live.ends());
        let ended = ended.map(|live| live.id).collect::<Vec<_>>();
        for id in ended {
            self.end(id);
        }
    }

    fn handle_offer(&mut self, offer: &Offer, now: Instant) -> Result<(), DropReason> {
        if let Some(known) = self.accepted.as_ref().filter(|a| a.offer.low == offer.low) {
            if known.offer != *offer {
                return Err(DropReason::ChannelRefused);
            }
            self.messages.push_back(Message::Accept(known.accept));
            return Ok(());
        }
        let suite = self.config.suites.best(offer.suites);
        let suite = suite.ok_or(DropReason::ChannelRefused)?;
        if !self.budget.take(now) {
            return Err(DropReason::ControlLimited);
        }
        let ephemeral = self.ephemeral();
        let terms = Terms {
            low: offer.low,
            high: self.unused_id(),
            suite,
            ephemeral: *ephemeral.public().as_bytes(),
        };
        let ends = &self.config.ends;
        let keys = Schedule::derive(&ephemeral, &offer.ephemeral, ends, offer, &terms);
        let keys = keys.ok_or(DropReason::ChannelRefused)?;
        let accept = Accept {
            terms,
            mac: keys.mac_high,
        };
        self.end_unused();
        self.accepted = Some(Accepted {
            offer: *offer,
            accept,
            mac_low: keys.mac_low,
        });
        let new = NewChannel {
            id: terms.high,
            remote: terms.low,
            suite,
            seal: keys.high_to_low,
            open: keys.low_to_high,
        };
        self.add(new, now);
        self.messages.push_back(Message::Accept(accept));
        Ok(())
    }

    /// Ends the channel accepted last if L never proved itself: it offers anew instead.
    fn end_unused(&mut self) {
        let Some(id) = self.accepted.take().map(|a| a.accept.terms.high) else {
            return;
        };
        let before = self.live.len();
        let sending = self.sending;
        self.live
            .retain(|live| live.id != id || sending == Some(id));
        if self.live.len() < before {
            self.end(id);
        }
    }

    fn handle_accept(&mut self, accept: &Accept, now: Instant) -> Result<(), DropReason> {
        let terms = &accept.terms;
        let offered = self.offered.as_ref();
        let offered = offered.filter(|offered| offered.offer.low == terms.low);
        let offered = offered.ok_or(DropReason::ChannelRefused)?;
        // That what we offered arrived as it was is proven by the mac.
        if !offered.offer.suites.has(terms.suite) {
            return Err(DropReason::ChannelRefused);
        }
        let (ephemeral, offer, ends) = (&offered.ephemeral, &offered.offer, &self.config.ends);
        let keys = Schedule::derive(ephemeral, &terms.ephemeral, ends, offer, terms);
        let keys = keys.ok_or(DropReason::ChannelRefused)?;
        if verify_slices_are_equal(&keys.mac_high, &accept.mac).is_err() {
            return Err(DropReason::ChannelRefused);
        }
        self.offered = None;
        let new = NewChannel {
            id: terms.low,
            remote: terms.high,
            suite: terms.suite,
            seal: keys.low_to_high,
            open: keys.high_to_low,
        };
        self.add(new, now);
        self.send_by(terms.low, now);
        self.messages.push_back(Message::Confirm(Confirm {
            high: terms.high,
            mac: keys.mac_low,
        }));
        Ok(())
    }

    fn handle_confirm(&mut self, confirm: &Confirm, now: Instant) -> Result<(), DropReason> {
        let accepted = self.accepted.as_ref();
        let accepted = accepted.filter(|a| a.accept.terms.high == confirm.high);
        let accepted = accepted.ok_or(DropReason::ChannelRefused)?;
        if verify_slices_are_equal(&accepted.mac_low, &confirm.mac).is_err() {
            return Err(DropReason::ChannelRefused);
        }
        self.send_by(confirm.high, now);
        Ok(())
    }

    fn add(&mut self, new: NewChannel, now: Instant) {
        while self.live.len() >= MAX_LIVE {
            let oldest = self.live.remove(0);
            self.end(oldest.id);
        }
        self.live.push(Live {
            id: new.id,
            suite: new.suite,
            made: now,
            drained: None,
        });
        self.changes.push_back(ChannelChange::New(new));
    }

    /// Seals by `id` from now on; the one before is received on for a while.
    fn send_by(&mut self, id: u32, now: Instant) {
        if self.sending == Some(id) || !self.live.iter().any(|live| live.id == id) {
            return;
        }
        for live in &mut self.live {
            if live.id != id {
                live.drained.get_or_insert(now + DRAIN);
            }
        }
        self.sending = Some(id);
        self.bytes = 0;
        self.changes.push_back(ChannelChange::Send(id));
    }

    fn end(&mut self, id: u32) {
        if self.sending == Some(id) {
            self.sending = None;
        }
        self.changes.push_back(ChannelChange::End(id));
    }

    /// Draws the key of one derivation; nobody keeps it.
    fn ephemeral(&mut self) -> TunnelSecret {
        TunnelSecret::from_seed(*self.rng.draw())
    }

    /// Draws a channel id that no other channel of this node has.
    fn unused_id(&mut self) -> u32 {
        let offered = self.offered.as_ref().map(|offered| offered.offer.low);
        loop {
            let drawn = self.rng.plain().next_u32() & 0xff & !LANE;
            let id = (self.config.index << 8) | drawn | (u32::from(self.config.lane) & LANE);
            let is_used = offered == Some(id) || self.live.iter().any(|live| live.id == id);
            if !is_used {
                return id;
            }
        }
    }
}

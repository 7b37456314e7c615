//! How a peer's data channel lives with its session: the peer's end of `ChannelAgent`.

use std::time::{Duration, Instant};

use crate::engine::{
    channel::{Arrival, ChannelChange, Passed, Route},
    path::Path,
    peer::{Peer, PeerOutput},
};
use crate::wire::channel::{Message, Suite, Suites};
use crate::wire::control::Control;
use crate::wire::drop::DropReason;

/// Age of a session at which L, and H if L does not, makes the next one while a channel is in use;
/// the session itself does not see that traffic. Before WireGuard's Rekey-After-Time of 120 s, at
/// which one of the sessions would begin by itself and so both at once.
const REKEY_LOW: Duration = Duration::from_secs(115);
const REKEY_HIGH: Duration = Duration::from_secs(130);

/// A channel is in use while data went either way so recently.
const IN_USE: Duration = Duration::from_secs(60);

/// After this long of data from the peer and none to it, it is told that we are there: before it
/// takes our silence for a lost session.
const KEEPALIVE: Duration = Duration::from_secs(2);

impl Peer {
    /// Returns the suite that packets are sealed with past the session; None while there is no
    /// channel.
    pub(crate) fn suite(&self) -> Option<Suite> {
        self.channel.suite()
    }

    /// Takes which suites may be used; with none, there are no channels.
    pub(crate) fn set_suites(&mut self, suites: Suites) {
        self.channel.set_suites(suites);
    }

    /// Takes a message that sets up a channel.
    pub(crate) fn receive_channel(
        &mut self,
        message: &Message,
        now: Instant,
        out: &mut Vec<PeerOutput>,
    ) -> Result<(), DropReason> {
        let taken = self.channel.handle_message(message, now);
        self.drain(now, out);
        taken
    }

    /// Takes that the first packet of our channel `id` opened.
    pub(crate) fn handle_channel_used(&mut self, id: u32, now: Instant) {
        self.channel.handle_used(id, now);
    }

    /// Takes what went past the session since the last report.
    pub(crate) fn handle_passed(
        &mut self,
        passed: &Passed,
        now: Instant,
        out: &mut Vec<PeerOutput>,
    ) {
        if passed.sent.packets > 0 {
            self.stats.sent = self.stats.sent.saturating_add(passed.sent.bytes);
            self.unanswered.get_or_insert(now);
            self.keepalive = None;
            self.session.note_sent(now);
            self.path.handle_sent(now);
        }
        if passed.received.packets > 0 {
            self.stats.received = self.stats.received.saturating_add(passed.received.bytes);
            // Wraps, as the count that probes are answered with does.
            self.counted = self.counted.wrapping_add(passed.received.packets as u32);
            self.heard(now);
            self.session.note_received(now);
            if passed.sent.packets == 0 {
                self.keepalive.get_or_insert(now + KEEPALIVE);
            }
            let from = match passed.from {
                Some(Arrival::Direct(endpoint)) => Path::Direct(endpoint),
                Some(Arrival::Relayed(_)) | None => Path::Relay,
            };
            self.path.handle_authenticated(from, true, now);
        }
        if passed.unknown > 0 {
            // The gateway is believed that they are this peer's: it has a channel that we lost.
            self.unknown_session(now, out);
        }
        let bytes = passed.sent.bytes.saturating_add(passed.received.bytes);
        self.channel.handle_bytes(bytes, now);
        self.drain(now, out);
    }

    /// Returns the next change for whoever seals and opens.
    pub(crate) fn poll_channel(&mut self) -> Option<ChannelChange> {
        if let Some(change) = self.channel.poll_change() {
            return Some(change);
        }
        let mtu = self.path.mtu();
        if self.told_mtu != mtu {
            self.told_mtu = mtu;
            return Some(ChannelChange::Mtu(mtu));
        }
        let route = match self.path.current() {
            Some(Path::Direct(endpoint)) => Route::Direct(endpoint),
            Some(Path::Relay) => self.relay.chosen().map_or(Route::Engine, Route::Relayed),
            None => Route::Engine,
        };
        let route = self.channel.is_live().then_some(route);
        if self.routed == route {
            return None;
        }
        self.routed = route;
        route.map(ChannelChange::Route)
    }

    /// Ends all channels, as when trust ends.
    pub(crate) fn close_channel(&mut self) {
        self.channel.close();
    }

    pub(super) fn channel_timeout(&self) -> Option<(Instant, &'static str)> {
        let rekey = self.rekey_at().map(|at| (at, "rekey for the channel"));
        let keepalive = self.keepalive.map(|at| (at, "keepalive of the channel"));
        let channel = self.channel.poll_timeout();
        [rekey, keepalive, channel].into_iter().flatten().min()
    }

    pub(super) fn handle_channel_timeout(&mut self, now: Instant, out: &mut Vec<PeerOutput>) {
        self.channel.handle_timeout(now);
        if self.rekey_at().is_some_and(|at| now >= at) {
            let initiation = self.session.initiate(now);
            if let Some(initiation) = initiation {
                self.send_session(initiation, now, out);
            }
        }
        if self.keepalive.is_some_and(|at| now >= at) {
            self.keepalive = None;
            let way = self.path.current().unwrap_or(Path::Relay);
            let sealed = self.session.seal(&[], now);
            out.extend(sealed.map(|sealed| PeerOutput::Datagram(way, sealed)));
        }
    }

    /// Tells what is to be said of the channel inside the session.
    pub(super) fn drain_channel(&mut self, now: Instant, out: &mut Vec<PeerOutput>) {
        // One that was renewed for nobody needs no channel until somebody uses it.
        if self.channel_waits && !self.path.is_quiet() {
            self.channel_waits = false;
            self.channel.handle_session(now);
        }
        while let Some(message) = self.channel.poll_message() {
            let way = self.path.current().unwrap_or(Path::Relay);
            self.send_control(&Control::Channel(message), way, now, out);
        }
    }

    /// Returns when a new session is to be made for the channel's sake; None while it is not in use.
    fn rekey_at(&self) -> Option<Instant> {
        let made = self.stats.last_handshake?;
        let age = if self.channel.is_low() {
            REKEY_LOW
        } else {
            REKEY_HIGH
        };
        let is_used = self.last_data().is_some_and(|at| at + IN_USE >= made + age);
        let is_making = self.session.is_initiating() || self.handshake.is_some();
        let is_wanted = self.suite().is_some() && is_used && !is_making;
        is_wanted.then_some(made + age)
    }
}

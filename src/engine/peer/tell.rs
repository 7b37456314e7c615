//! What a peer is told and tells beside data: the peer's end of [`Gossip`].

use std::time::{Duration, Instant};

use crate::engine::{
    gossip::{Gossip, Say},
    path::Path,
    peer::{Peer, PeerOutput},
};
use crate::wire::{
    control::{Control, Part},
    drop::DropReason,
};

/// After this long without user data nothing more is told (protocol.md section 6).
const QUIET: Duration = Duration::from_secs(180);

impl Peer {
    /// Lets gossip know what happened by `tell`.
    pub(crate) fn with_gossip(&mut self, tell: impl FnOnce(&mut Gossip)) {
        tell(&mut self.gossip);
        self.gossip_waits = false;
    }

    /// Returns what is to be told now; None while the session is not in use.
    pub(crate) fn poll_gossip(&mut self, now: Instant) -> Option<Say> {
        self.gossip_waits = !self.is_in_use(now);
        if self.gossip_waits {
            return None;
        }
        self.gossip.poll(now)
    }

    /// Returns when there is more to tell; None while that waits for user data.
    pub(super) fn gossip_timeout(&self) -> Option<Instant> {
        self.gossip.poll_timeout().filter(|_| !self.gossip_waits)
    }

    fn is_in_use(&self, now: Instant) -> bool {
        let last = self.session.last_sent().max(self.session.last_received());
        self.session.is_confirmed(now) && last.is_some_and(|at| now < at + QUIET)
    }

    /// Sends a message of gossip as data goes, in parts when it is long.
    pub(crate) fn tell(&mut self, message: &Control, now: Instant, out: &mut Vec<PeerOutput>) {
        let way = self.path.current().unwrap_or(Path::Relay);
        self.tell_on(message, way, now, out);
    }

    /// Sends a message that cannot be repeated: on the path of data, and by the gateways besides.
    pub(crate) fn tell_last(&mut self, message: &Control, now: Instant, out: &mut Vec<PeerOutput>) {
        let way = self.path.current().unwrap_or(Path::Relay);
        self.tell_on(message, way, now, out);
        if way != Path::Relay {
            self.tell_on(message, Path::Relay, now, out);
        }
    }

    fn tell_on(&mut self, message: &Control, way: Path, now: Instant, out: &mut Vec<PeerOutput>) {
        self.message = self.message.wrapping_add(1);
        for packet in message.packets(self.message) {
            let sealed = self.session.seal(&packet, now);
            out.extend(sealed.map(|sealed| PeerOutput::Datagram(way, sealed)));
        }
    }

    /// Takes a part of a statement and returns the text it completes.
    pub(crate) fn receive_part(
        &mut self,
        part: Part,
        now: Instant,
    ) -> Result<Option<String>, DropReason> {
        match self.parts.take(part, now) {
            Some(Control::Statement { text }) => Ok(Some(text)),
            None => Ok(None),
            // Nothing else is long.
            Some(
                Control::Attach { .. }
                | Control::Attached(_)
                | Control::AttachRefused { .. }
                | Control::Candidates(_)
                | Control::Goodbye { .. }
                | Control::Channel(_)
                | Control::Have(_)
                | Control::Mesh(_)
                | Control::Part(_)
                | Control::Probe { .. }
                | Control::ProbeReply(_),
            ) => Err(DropReason::ControlReassembly),
        }
    }
}

//! How a peer's messages find their way: the peer's end of [`PathAgent`].

use std::time::{Duration, Instant};

use crate::engine::{
    Travel,
    path::{Path, PathAgent, Probe},
    peer::{Peer, PeerOutput, REKEY_ELSEWHERE, Relay},
};
use crate::wire::{
    carrier,
    control::{Control, ProbeReply},
    datagram::{Datagram, WireGuard},
    drop::DropReason,
};

/// Data so recent makes a talk.
const TALKING: Duration = Duration::from_secs(30);

impl Peer {
    pub(crate) const fn path(&self) -> &PathAgent {
        &self.path
    }

    /// Returns the choice of the gateway that relays.
    pub(crate) const fn relay(&self) -> &Relay {
        &self.relay
    }

    pub(crate) const fn relay_mut(&mut self) -> &mut Relay {
        &mut self.relay
    }

    /// Tells a peer that we talk to by the gateways that we are there.
    pub(crate) fn greet(&mut self, now: Instant, out: &mut Vec<PeerOutput>) {
        let is_talking = self.last_data().is_some_and(|at| now < at + TALKING);
        if is_talking && self.path.current() == Some(Path::Relay) {
            let sealed = self.session.seal(&[], now);
            out.extend(sealed.map(|sealed| PeerOutput::Datagram(Path::Relay, sealed)));
        }
    }

    /// Tells the path agent what happened by `tell`, and does what it wants then.
    pub(crate) fn with_path(
        &mut self,
        now: Instant,
        out: &mut Vec<PeerOutput>,
        tell: impl FnOnce(&mut PathAgent),
    ) {
        tell(&mut self.path);
        self.drain(now, out);
    }

    /// Answers a probe that came on `from`, one of path 0 as data goes; or says why not.
    pub(crate) fn answer(
        &mut self,
        (id, path): (u64, u16),
        from: Path,
        now: Instant,
        out: &mut Vec<PeerOutput>,
    ) -> Result<(), DropReason> {
        if !self.answers.take(now) {
            return Err(DropReason::ProbeLimited);
        }
        let observed = match from {
            // Where a socket of its own leads to.
            Path::Direct(endpoint) => Some(carrier::peer(endpoint).unwrap_or(endpoint)),
            Path::Relay => None,
        };
        let reply = Control::ProbeReply(ProbeReply {
            id,
            observed,
            received: self.counted,
        });
        let way = match path {
            0 => self.path.current().unwrap_or(Path::Relay),
            _ => from,
        };
        self.send_control(&reply, way, now, out);
        Ok(())
    }

    /// Sends what the path agent wants sent.
    pub(super) fn drain(&mut self, now: Instant, out: &mut Vec<PeerOutput>) {
        while let Some(probe) = self.path.poll_probe() {
            self.send_probe(probe, now, out);
        }
        if let Some(candidates) = self.path.poll_candidates() {
            // They matter most when the path in use may lead to where the peer was.
            let way = self.path.current().filter(|way| *way != Path::Relay);
            for way in way.into_iter().chain([Path::Relay]) {
                self.send_control(&Control::Candidates(candidates.clone()), way, now, out);
            }
        }
        out.extend(self.path.poll_doubt().map(PeerOutput::Doubt));
        if let Some(opening) = self.path.poll_opening() {
            let probe = |id| Control::Probe { id, path: 1 }.packet();
            let packets = opening.ids.into_iter().filter_map(probe);
            let session = &mut self.session;
            let sealed = packets.filter_map(|packet| session.seal(&packet, now));
            out.push(PeerOutput::Open(opening.to, sealed.collect()));
        }
        self.drain_channel(now, out);
    }

    fn send_probe(&mut self, probe: Probe, now: Instant, out: &mut Vec<PeerOutput>) {
        let Probe {
            id, number, path, ..
        } = probe;
        let message = Control::Probe { id, path: number };
        let (packet, travel) = match (probe.size, probe.is_brief) {
            (Some(size), _) => (message.padded(usize::from(size)), Travel::Whole),
            (None, true) => (message.packet(), Travel::Briefly),
            (None, false) => return self.send_control(&message, path, now, out),
        };
        let packet: Option<Vec<u8>> = packet;
        match packet.and_then(|packet| self.session.seal(&packet, now)) {
            Some(sealed) => out.push(PeerOutput::Alone(path, sealed, travel)),
            None => self.path.handle_no_session(),
        }
    }

    pub(super) fn send_control(
        &mut self,
        message: &Control,
        way: Path,
        now: Instant,
        out: &mut Vec<PeerOutput>,
    ) {
        let packet = message.packet();
        match packet.and_then(|packet| self.session.seal(&packet, now)) {
            Some(sealed) => out.push(PeerOutput::Datagram(way, sealed)),
            None => self.path.handle_no_session(),
        }
    }

    /// Sends a message that the session made of itself: a rekey, or a keepalive.
    pub(super) fn send_session(
        &mut self,
        message: Vec<u8>,
        now: Instant,
        out: &mut Vec<PeerOutput>,
    ) {
        let kind = Datagram::classify(&message);
        let is_initiation = kind == Some(Datagram::WireGuard(WireGuard::Initiation));
        match self.path.current() {
            Some(path @ Path::Direct(_)) if is_initiation && self.session.is_confirmed(now) => {
                self.elsewhere = Some(now + REKEY_ELSEWHERE);
                out.push(PeerOutput::Datagram(path, message));
            }
            Some(path) if !is_initiation => out.push(PeerOutput::Datagram(path, message)),
            Some(_) | None => self.send_everywhere(Some(message), out),
        }
    }

    /// Sends a handshake message on the relay and to every endpoint that ever answered.
    pub(super) fn send_everywhere(&self, message: Option<Vec<u8>>, out: &mut Vec<PeerOutput>) {
        let Some(message) = message else {
            return;
        };
        for way in self.everywhere() {
            out.push(PeerOutput::Datagram(way, message.clone()));
        }
    }

    pub(super) fn everywhere(&self) -> Vec<Path> {
        let direct = self.path.endpoints().map(Path::Direct);
        std::iter::once(Path::Relay).chain(direct).collect()
    }
}

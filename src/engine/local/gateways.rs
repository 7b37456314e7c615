//! How an agent speaks with its gateways, and by which of them with its peers.

use std::{net::SocketAddr, time::Instant};

use crate::engine::{
    attach::{Attachment, Inbound},
    event::{Event, HopEvent, Out, Time, Transmit, Travel},
    homes::Offer,
    hop::Slot,
    local::Local,
    membership::Refused,
    path::Path,
    peer::{Peer, PeerOutput, RelayWay},
};
use crate::id::OverlayIp;
use crate::wire::datagram::{Datagram, WireGuard};
use crate::wire::drop::DropReason;

impl Local {
    /// Presents our record to the gateways, as it is now.
    pub(crate) fn present(&mut self, time: Time) -> Result<(), Refused> {
        let listed = self.homes.listed();
        let record = self.membership.sign_record(listed, time.unix)?;
        self.note_record(&record, time.now);
        for attachment in self.homes.iter_mut() {
            attachment.set_record(record.text().to_owned(), time.now);
        }
        Ok(())
    }

    /// Tells whether a record that a gateway refused is to be shown again now.
    pub(crate) fn is_refused_record_due(&self, now: Instant) -> bool {
        let is_due = |a: &Attachment| a.poll_timeout().is_some_and(|(at, _)| at <= now);
        let is_refused = |a: &Attachment| a.refused().is_some() && !a.is_attached();
        self.homes.iter().any(|a| is_refused(a) && is_due(a))
    }

    /// Presents our record to a gateway that has none of us, as when a clock that was off is right
    /// again; a membership that does not hold has no record still.
    pub(crate) fn present_late(&mut self, time: Time, out: &mut Out) {
        let is_waiting = self.homes.iter().any(|a| !a.has_record());
        if is_waiting && self.present(time).is_ok() {
            self.drain_gateways(out);
        }
    }

    /// Takes a datagram of the gateway in `slot`.
    pub(crate) fn handle_gateway(
        &mut self,
        slot: Slot,
        from: SocketAddr,
        bytes: &[u8],
        time: Time,
        out: &mut Out,
    ) {
        match self.homes.handle_datagram(slot, from, bytes, time.now) {
            Inbound::Consumed => {}
            Inbound::Dropped(reason) => out.drop(reason),
            Inbound::Received(received) if received.target == self.address => {
                let message = bytes.get(received.payload).unwrap_or_default();
                self.arrived_by = Some(slot);
                self.receive(received.source, Path::Relay, message, time, out);
                self.arrived_by = None;
            }
            Inbound::Received(_) => out.drop(DropReason::FrameTarget),
        }
        self.drain_gateways(out);
        self.follow_gateways(time, out);
    }

    /// Takes that an authentic message of a peer came by the gateway in `slot`.
    pub(super) fn note_relayed(&mut self, peer: OverlayIp, slot: Slot, time: Time, out: &mut Out) {
        let Some(found) = self.peers.get_mut(&peer) else {
            return;
        };
        if found.relay_mut().heard(slot, time.now) {
            self.choose_gateway(peer, time, out);
        }
    }

    /// Lets paths and peers follow what became of the attachments.
    pub(crate) fn follow_gateways(&mut self, time: Time, out: &mut Out) {
        let had_relay = self.had_relay;
        let noticed = self.homes.follow(time.now);
        self.follow_attachment(time, out);
        if noticed.order && self.present(time).is_ok() {
            out.event(Event::Changed {
                local: self.address,
            });
            out.event(Event::Outbox {
                local: self.address,
            });
        }
        if noticed.ways {
            for peer in self.peers.keys().copied().collect::<Vec<_>>() {
                self.choose_gateway(peer, time, out);
            }
        }
        if self.had_relay && !had_relay {
            self.attached(time, out);
        } else if had_relay && !self.had_relay {
            // Their names may mean other addresses now.
            let local = self.address;
            out.event(Event::Gateway { local });
        }
    }

    /// Chooses the gateway that relays to a peer.
    ///
    /// One that is left is told of by a message by the new one, since the peer cannot know.
    pub(super) fn choose_gateway(&mut self, peer: OverlayIp, time: Time, out: &mut Out) {
        let ways = self.relay_ways(peer, time.now);
        let Some(found) = self.peers.get_mut(&peer) else {
            return;
        };
        let before = found.relay().chosen();
        if !found.relay_mut().choose(&ways, time.now) {
            return;
        }
        let is_sound = |slot| ways.iter().any(|way| way.slot == slot && way.is_sound);
        let is_left = before.is_some_and(|slot| !is_sound(slot));
        let mut made = Vec::new();
        if is_left && found.relay().chosen().is_some() {
            found.greet(time.now, &mut made);
        }
        self.carry_out(peer, made, time, out);
    }

    fn relay_ways(&self, peer: OverlayIp, now: Instant) -> Vec<RelayWay> {
        let known = self
            .peers
            .get(&peer)
            .map(|p| p.trusted().member.agent.did());
        let record = known.and_then(|did| self.membership.records.get(&did));
        let listed = record.map(|record| &record.claims().gateways);
        let is_listed = |gateway| listed.is_some_and(|all| all.contains(&gateway));
        let offers = self.homes.offers(now).into_iter();
        let way = |offer: Offer| RelayWay {
            slot: offer.slot,
            is_sound: offer.is_sound,
            is_listed: is_listed(offer.gateway),
        };
        offers.map(way).collect()
    }

    /// What waited for a way to the peers goes at once.
    fn attached(&mut self, time: Time, out: &mut Out) {
        let waiting = self.peers.values().filter(|p| p.is_handshaking());
        let waiting = waiting.map(Peer::address).collect::<Vec<_>>();
        for address in waiting {
            let mut made = Vec::new();
            if let Some(peer) = self.peers.get_mut(&address) {
                peer.try_again(time.now, &mut made);
            }
            self.carry_out(address, made, time, out);
        }
    }

    /// Sends a message by the gateway chosen for the peer; a handshake by all, since nobody knows yet by
    /// which the peer is reached.
    pub(super) fn relay(
        &mut self,
        peer: OverlayIp,
        output: &PeerOutput,
        now: Instant,
        out: &mut Out,
    ) {
        let (message, travel) = match output {
            PeerOutput::Datagram(_, message) => (message, Travel::Freely),
            PeerOutput::Alone(_, message, travel) => (message, *travel),
            PeerOutput::Doubt(_)
            | PeerOutput::Dropped(..)
            | PeerOutput::Open(..)
            | PeerOutput::Packet(..) => return,
        };
        let is_handshake = matches!(
            Datagram::classify(message),
            Some(Datagram::WireGuard(
                WireGuard::Initiation | WireGuard::Response
            ))
        );
        let chosen = self.peers.get_mut(&peer).and_then(|peer| {
            let relay = peer.relay_mut();
            if !is_handshake {
                relay.sent(now);
            }
            relay.chosen()
        });
        let mut is_sent = false;
        for slot in Slot::ALL {
            let is_way = if is_handshake {
                true
            } else {
                chosen == Some(slot)
            };
            let framed = self
                .homes
                .get_mut(slot)
                .filter(|_| is_way)
                .and_then(|attachment| attachment.wrap(peer, message, now));
            if let Some((to, bytes)) = framed {
                is_sent = true;
                out.transmits.push_back(Transmit { to, bytes, travel });
            }
        }
        if !is_sent {
            out.drop(DropReason::NoPath);
        }
    }

    /// Takes out what the attachments want sent.
    pub(crate) fn drain_gateways(&mut self, out: &mut Out) {
        while let Some((to, bytes)) = self.homes.poll_transmit() {
            out.transmits.push_back(Transmit::new(to, bytes));
        }
        self.share_hops(out);
    }

    /// Tells whoever seals by which hops frames go, if those are others than it was told of.
    fn share_hops(&mut self, out: &mut Out) {
        let local = self.address;
        let mut closed = Vec::new();
        while let Some(slot) = self.homes.poll_closed() {
            closed.push(slot);
            let hop = None;
            out.hops.push_back(HopEvent { local, slot, hop });
        }
        for slot in closed {
            for peer in self.peers.keys().copied().collect::<Vec<_>>() {
                if let Some(peer) = self.peers.get_mut(&peer) {
                    peer.relay_mut().forget(slot);
                }
            }
        }
        while let Some((slot, hop)) = self.homes.poll_shared() {
            out.hops.push_back(HopEvent { local, slot, hop });
        }
    }
}

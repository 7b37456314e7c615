//! An agent's data channels to its peers.

use zeroize::Zeroizing;

use crate::engine::{
    channel::{Arrival, ChannelConfig, End, Ends, Passed},
    event::{ChannelEvent, Out, Time},
    hop::Slot,
    local::Local,
    membership::Trusted,
};
use crate::id::{OverlayIp, hash};
use crate::policy::Pair;
use crate::wire::channel::Suites;

impl Local {
    /// Takes what packets may be sealed with past the sessions.
    pub(crate) fn set_suites(&mut self, suites: Suites, out: &mut Out) {
        self.suites = suites;
        for address in self.peers.keys().copied().collect::<Vec<_>>() {
            if let Some(peer) = self.peers.get_mut(&address) {
                peer.set_suites(suites);
            }
            self.drain_channel(address, out);
        }
    }

    /// Takes what went past the sessions.
    pub(crate) fn handle_passed(&mut self, passed: &Passed, time: Time, out: &mut Out) {
        for (slot, (sent, received)) in Slot::ALL.into_iter().zip(passed.relayed) {
            if let Some(attachment) = self.homes.get_mut(slot) {
                attachment.note_passed(sent, received, time.now);
            }
        }
        if passed.received.packets > 0 {
            self.homes.note_traffic(time.now);
        }
        if let Some(peer) = self.peers.get_mut(&passed.peer)
            && passed.relayed.iter().any(|(sent, _)| *sent > 0)
        {
            peer.relay_mut().sent(time.now);
        }
        if let Some(Arrival::Relayed(slot)) = passed.from {
            self.note_relayed(passed.peer, slot, time, out);
        }
        self.with_peer(passed.peer, time, out, |peer, made| {
            peer.handle_passed(passed, time.now, made);
        });
    }

    /// Takes that the first packet of our channel `id` to `peer` opened.
    pub(crate) fn handle_channel_used(
        &mut self,
        peer: OverlayIp,
        id: u32,
        time: Time,
        out: &mut Out,
    ) {
        self.with_peer(peer, time, out, |peer, _| {
            peer.handle_channel_used(id, time.now);
        });
    }

    pub(super) fn channel_config(
        &self,
        trusted: &Trusted,
        index: u32,
        seed: &[u8; 32],
    ) -> ChannelConfig {
        let own = End {
            identity: self.membership.identity.did().into(),
            tunnel: self.membership.tunnel.public(),
        };
        let peer = End {
            identity: trusted.member.agent,
            tunnel: trusted.tunnel,
        };
        let ends = Ends::new(self.membership.network, own, peer);
        let pair = Pair {
            local: self.address,
            peer: trusted.member.address,
        };
        ChannelConfig {
            is_low: ends.low == own,
            ends,
            suites: self.suites,
            index,
            lane: pair.lane(),
            seed: Zeroizing::new(hash(&[b"agentnet channel seed", seed])),
        }
    }

    pub(super) fn close_channel(&mut self, peer: OverlayIp, out: &mut Out) {
        if let Some(found) = self.peers.get_mut(&peer) {
            found.close_channel();
        }
        self.drain_channel(peer, out);
    }

    /// Takes out what changed for whoever seals and opens.
    pub(super) fn drain_channel(&mut self, address: OverlayIp, out: &mut Out) {
        let Some(peer) = self.peers.get_mut(&address) else {
            return;
        };
        while let Some(change) = peer.poll_channel() {
            out.channels.push_back(ChannelEvent {
                local: self.address,
                peer: address,
                change,
            });
        }
    }
}

//! An agent's data channels to its peers.

use std::sync::Arc;

use zeroize::Zeroizing;

use crate::engine::{
    attach::Attachment,
    channel::{ChannelConfig, End, Ends, Passed},
    event::{ChannelEvent, HopEvent, Out, Time},
    hop::Hop,
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
        if let Some(attachment) = &mut self.attachment {
            let (sent, received) = passed.relayed;
            attachment.note_passed(sent, received, time.now);
            if passed.received.packets > 0 {
                attachment.note_traffic(time.now);
            }
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

    /// Tells whoever seals by which hop frames go, if that is another one than it was told of.
    pub(super) fn share_hop(&mut self, out: &mut Out) {
        let hop = self.attachment.as_ref().and_then(Attachment::hop);
        let (old, new) = (self.shared.as_ref(), hop.and_then(Hop::ids));
        let is_same = match (old, new) {
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        if is_same {
            return;
        }
        out.hops.push_back(HopEvent {
            local: self.address,
            hop: hop.and_then(Hop::share),
        });
        self.shared = new.cloned();
    }
}

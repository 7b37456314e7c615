//! Pure: frames of our agents' hops, made and opened past the engine (protocol.md section 5).
//!
//! Only frames that carry a packet of a data channel are opened here; all others are the engine's.
//! What tells them apart is covered by the tag, so each frame is judged by one replay window only:
//! the one here, or the engine's.

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, net::SocketAddr};

use crate::dataplane::crypt::{OVERHEAD, Sealer};
use crate::engine::HopEvent;
use crate::engine::hop::{SharedHop, Slot};
use crate::engine::window::ReplayWindow;
use crate::id::OverlayIp;
use crate::policy::Pair;
use crate::wire::a2g::{HEADER, Header, HopKeys, Kind, MAX_FRAMES, hop_id};
use crate::wire::datagram::Datagram;
use crate::wire::drop::DropReason;

/// The hops of this node's agents.
#[derive(Debug, Default)]
pub(super) struct Hops {
    outgoing: BTreeMap<(OverlayIp, Slot), SharedHop>,
    /// By the id in frames from the gateway. Gateways choose these, so that two may be equal.
    incoming: BTreeMap<u32, Vec<Incoming>>,
}

#[derive(Debug)]
struct Incoming {
    local: OverlayIp,
    slot: Slot,
    keys: HopKeys,
    window: ReplayWindow,
}

/// How sealed packets of one pair travel.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way<'a> {
    /// As they are.
    Direct(SocketAddr),
    /// In frames of a hop of the local agent.
    Relayed(Pair, Slot, &'a SharedHop),
}

/// Tells whether a datagram is a frame that carries a packet of a data channel.
pub(super) fn carries_channel(datagram: &[u8]) -> bool {
    let payload = datagram.get(HEADER..).unwrap_or_default();
    Datagram::classify(datagram) == Some(Datagram::Frame)
        && Datagram::classify(payload) == Some(Datagram::Channel)
}

impl Hops {
    /// Takes what a hop of an agent is from now on.
    pub(super) fn change(&mut self, event: HopEvent) {
        let HopEvent { local, slot, hop } = event;
        self.outgoing.remove(&(local, slot));
        self.incoming.retain(|_, hops| {
            hops.retain(|hop| hop.local != local || hop.slot != slot);
            !hops.is_empty()
        });
        if let Some(hop) = hop {
            let incoming = Incoming {
                local,
                slot,
                keys: hop.keys_down.clone(),
                window: ReplayWindow::new(),
            };
            self.incoming.entry(hop.down).or_default().push(incoming);
            self.outgoing.insert((local, slot), hop);
        }
    }

    /// Returns how packets of `pair` are relayed by a hop; None when the engine is to have them.
    pub(super) fn way(&self, pair: Pair, slot: Slot) -> Option<Way<'_>> {
        let hop = self.outgoing.get(&(pair.local, slot))?;
        Some(Way::Relayed(pair, slot, hop))
    }

    /// Checks a frame that carries a packet, and returns whom it is for and, as the gateway says,
    /// from, and the hop it came by; the packet is at [`HEADER`].
    pub(super) fn open(&mut self, frame: &[u8]) -> Result<(Pair, Slot), DropReason> {
        let id = hop_id(frame).ok_or(DropReason::FrameMalformed)?;
        let hops = self.incoming.get_mut(&id);
        let hops = hops.ok_or(DropReason::FrameHopUnknown)?;
        let opened = hops.iter_mut().find_map(|hop| {
            let header = Header::open(&hop.keys, frame).ok()?;
            Some((hop, header))
        });
        let (hop, header) = opened.ok_or(DropReason::FrameTag)?;
        hop.window
            .take(header.message)
            .ok_or(DropReason::FrameReplayed)?;
        if header.target != hop.local.ip() || header.prefix_len != 128 {
            return Err(DropReason::FrameTarget);
        }
        if header.kind != Kind::Data {
            return Err(DropReason::FrameMalformed);
        }
        let pair = Pair {
            local: hop.local,
            peer: OverlayIp::new(header.source).map_err(|_| DropReason::FrameSource)?,
        };
        Ok((pair, hop.slot))
    }
}

impl Way<'_> {
    /// Returns where the datagrams go.
    pub(super) const fn to(&self) -> SocketAddr {
        match self {
            Self::Direct(to) => *to,
            Self::Relayed(_, _, hop) => hop.endpoint,
        }
    }

    /// Returns by which hop a gateway gets them; None when none does.
    pub(super) const fn slot(&self) -> Option<Slot> {
        match self {
            Self::Direct(_) => None,
            Self::Relayed(_, slot, _) => Some(*slot),
        }
    }

    /// Returns how much longer a datagram is than the plain packet in it.
    pub(super) const fn overhead(&self) -> usize {
        match self {
            Self::Direct(_) => OVERHEAD,
            Self::Relayed(..) => HEADER + OVERHEAD,
        }
    }

    /// Seals `plain` into `out`, which is longer by [`Way::overhead`]; false when keys are used up.
    pub(super) fn seal(&self, sealer: &mut Sealer, plain: &[u8], out: &mut [u8]) -> bool {
        let (pair, hop) = match self {
            Self::Direct(_) => return sealer.seal(plain, out),
            Self::Relayed(pair, _, hop) => (pair, hop),
        };
        let sealed = out
            .get_mut(HEADER..)
            .is_some_and(|packet| sealer.seal(plain, packet));
        let message = hop.ids.take();
        let header = Header::data(hop.up, message, pair.peer, pair.local);
        // Last, since the tag covers the beginning of the packet.
        sealed && message < MAX_FRAMES && header.seal(&hop.keys_up, out)
    }
}

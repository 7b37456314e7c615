//! An agent's peers that speak only WireGuard.

use std::net::SocketAddr;

use zeroize::Zeroizing;

use crate::engine::{
    event::{Out, Packet, Time, Transmit},
    local::Local,
    path::Path,
    wireguard::{PlainOutput, PlainPeer, WireGuard},
};
use crate::id::{OverlayIp, UnixTime};
use crate::statement::Scope;
use crate::wire::drop::DropReason;

impl Local {
    /// Brings the installed peers in line with what is kept; tells whether who may talk, or about
    /// what, changed.
    pub(super) fn install_wireguard(
        &mut self,
        time: Time,
        fresh: &mut impl FnMut() -> (u32, Zeroizing<[u8; 32]>),
        out: &mut Out,
    ) -> bool {
        let (wanted, own) = self.wanted_wireguard(time.unix);
        let stays = |peer: &PlainPeer| wanted.iter().any(|kept| kept == peer.kept());
        let gone = self.wireguard.values().filter(|peer| !stays(peer));
        let gone = gone.map(PlainPeer::address).collect::<Vec<_>>();
        for address in &gone {
            let waiting = self.wireguard.remove(address).map(PlainPeer::into_waiting);
            for packet in waiting.into_iter().flatten() {
                out.drop_packet(self.address, DropReason::NoPeer, &packet);
            }
        }
        let mut changed = !gone.is_empty();
        let Some((ports, until)) = own else {
            return changed;
        };
        for kept in wanted {
            let (address, allow) = (kept.address, kept.allow.clone());
            if !self.wireguard.contains_key(&address) {
                let secret = &self.membership.tunnel;
                let peer = PlainPeer::new(kept, secret, fresh().0, time.now);
                self.wireguard.insert(address, peer);
            }
            let inbound = std::iter::once(allow).chain(ports.iter().cloned());
            if let Some(peer) = self.wireguard.get_mut(&address) {
                changed |= peer.update(inbound.collect(), until);
            }
        }
        changed
    }

    /// Returns the peers to install, and what bounds them all: what our own grants let others
    /// reach, and until when; None while we are no member.
    fn wanted_wireguard(&self, unix: UnixTime) -> (Vec<WireGuard>, Option<(Vec<Scope>, UnixTime)>) {
        if self.membership.wireguard.is_empty() || self.was_at_rest {
            return (Vec::new(), None);
        }
        let Ok(own) = self.membership.member(unix) else {
            return (Vec::new(), None);
        };
        let agents = self.peers.values().map(|p| p.trusted().member.agent.did());
        let wanted = self
            .membership
            .wireguard_beside(&agents.collect::<Vec<_>>());
        (wanted, Some((own.authority.ports, own.expires)))
    }

    /// Sends a packet to a peer that speaks only WireGuard; None when `to` is none.
    pub(super) fn send_wireguard(
        &mut self,
        to: OverlayIp,
        packet: &[u8],
        time: Time,
        out: &mut Out,
    ) -> Option<Result<(), DropReason>> {
        let peer = self.wireguard.get_mut(&to)?;
        let mut made = Vec::new();
        let sent = peer.send(packet, time.now, &mut made);
        self.carry_wireguard(to, made, out);
        Some(sent)
    }

    /// Takes a message of a peer that speaks only WireGuard; None when `from` is none.
    ///
    /// It has no gateway, so what claims to be from it and came by ours is not.
    pub(super) fn receive_wireguard(
        &mut self,
        from: OverlayIp,
        way: Path,
        message: &[u8],
        time: Time,
        out: &mut Out,
    ) -> Option<Result<(), DropReason>> {
        let Path::Direct(endpoint) = way else {
            return None;
        };
        let peer = self.wireguard.get_mut(&from)?;
        let mut made = Vec::new();
        let taken = peer.receive(endpoint, message, time.now, &mut made);
        self.carry_wireguard(from, made, out);
        Some(taken)
    }

    fn carry_wireguard(&self, peer: OverlayIp, made: Vec<PlainOutput>, out: &mut Out) {
        let local = self.address;
        for output in made {
            match output {
                PlainOutput::Datagram(to, bytes) => {
                    out.transmits.push_back(Transmit::new(to, bytes));
                }
                PlainOutput::Dropped(reason, packet) => out.drop_packet(local, reason, &packet),
                PlainOutput::Packet(bytes) => out.packets.push_back(Packet { local, peer, bytes }),
            }
        }
    }

    pub(super) fn handle_wireguard_timeout(&mut self, time: Time, out: &mut Out) {
        for address in self.wireguard.due(time.now) {
            let mut made = Vec::new();
            if let Some(peer) = self.wireguard.get_mut(&address) {
                peer.handle_timeout(time.now, &mut made);
            }
            self.carry_wireguard(address, made, out);
        }
    }

    /// Finds the peer that a cookie reply from `from` to session `index` is of: whom we asked there.
    pub(crate) fn wireguard_by_cookie(&self, index: u32, from: SocketAddr) -> Option<OverlayIp> {
        let address = self.wireguard.by_index(index >> 8)?;
        let peer = self.wireguard.get(&address)?;
        (peer.endpoint() == Some(from)).then_some(address)
    }
}

//! What comes without a gateway, and the wishes about it.

use std::{net::SocketAddr, time::Duration};

use crate::engine::{
    Engine, Event, Time,
    limits::{Limits, Source},
    local::Local,
    path::{Mode, Path, PathView},
    session::receiver_index,
};
use crate::id::OverlayIp;
use crate::wire::{
    carrier::{is_carrier, is_punched},
    datagram::{Datagram, WireGuard},
    drop::DropReason,
};

/// Handshakes of one source: enough for the agents of one host or office that restarts.
const PER_SECOND: u32 = 10;
const BURST: u32 = 20;

/// Sources told apart; the others share one limit.
const MAX_SOURCES: usize = 1024;

/// Keys of ours that a direct handshake is tried with (protocol.md section 6).
const MAX_KEYS: usize = 16;

/// Data this long before the host fell asleep was part of a talk; a path is kept as long without.
const TALKING: Duration = Duration::from_secs(180);

/// Makes the limits of direct handshakes.
pub(super) fn limits() -> Limits {
    Limits::new(PER_SECOND, BURST, MAX_SOURCES)
}

impl Engine {
    /// Takes a datagram that is of no gateway: installed peers may speak to us, nobody else.
    pub(super) fn handle_direct(&mut self, from: SocketAddr, bytes: &[u8], time: Time) {
        // A connection is a gateway's, and no peer is at its end.
        if is_carrier(from) && !is_punched(from) {
            self.out.drop(DropReason::DatagramUnknown);
            return;
        }
        if Datagram::classify(bytes) == Some(Datagram::Stun) {
            self.handle_stun(from, bytes, time);
            return;
        }
        let found = match Datagram::classify(bytes) {
            Some(Datagram::WireGuard(WireGuard::Initiation)) => {
                if !self.handshakes.take(Source::of(from), time.now) {
                    self.out.drop(DropReason::HandshakeLimited);
                    return;
                }
                self.find_initiator(from, bytes)
            }
            // No node sends one: at most a peer that speaks only WireGuard.
            Some(Datagram::WireGuard(WireGuard::CookieReply)) => {
                receiver_index(bytes).and_then(|index| self.find_cookie(index, from))
            }
            Some(Datagram::WireGuard(WireGuard::Response | WireGuard::Transport)) => {
                receiver_index(bytes).and_then(|index| self.find_index(index))
            }
            Some(Datagram::Channel | Datagram::Discover | Datagram::Frame | Datagram::Stun)
            | None => None,
        };
        let Some((local, peer)) = found else {
            self.out.drop(stranger(bytes));
            return;
        };
        if let Some(local) = self.locals.get_mut(&local) {
            local.receive(peer, Path::Direct(from), bytes, time, &mut self.out);
        }
    }

    fn find_index(&self, index: u32) -> Option<(OverlayIp, OverlayIp)> {
        self.locals.iter().find_map(|(address, local)| {
            let peer = local.peer_by_index(index)?;
            Some((*address, peer))
        })
    }

    fn find_cookie(&self, index: u32, from: SocketAddr) -> Option<(OverlayIp, OverlayIp)> {
        self.locals.iter().find_map(|(address, local)| {
            let peer = local.wireguard_by_cookie(index, from)?;
            Some((*address, peer))
        })
    }

    /// Tries the agents that were spoken to from there first.
    fn find_initiator(&self, from: SocketAddr, bytes: &[u8]) -> Option<(OverlayIp, OverlayIp)> {
        let (known, other): (Vec<_>, Vec<_>) =
            self.locals.iter().partition(|(_, local)| local.knows(from));
        let candidates = known.into_iter().chain(other).take(MAX_KEYS);
        let mut found = candidates.filter_map(|(address, local)| {
            let peer = local.peer_by_initiation(bytes)?;
            Some((*address, peer))
        });
        found.next()
    }

    /// Takes at which endpoints of our interfaces peers may reach us.
    pub fn set_host_candidates(&mut self, hosts: &[SocketAddr], time: Time) {
        if self.hosts == hosts {
            return;
        }
        self.hosts = hosts.to_vec();
        for local in self.locals.values_mut() {
            local.set_hosts(hosts, time, &mut self.out);
        }
    }

    /// Takes which endpoint of the router leads to our socket; None when none does.
    pub fn set_mapped_candidate(&mut self, mapped: Option<SocketAddr>, time: Time) {
        if self.mapped == mapped {
            return;
        }
        self.mapped = mapped;
        for local in self.locals.values_mut() {
            local.set_mapped(mapped, time, &mut self.out);
        }
    }

    /// Returns which paths data may go.
    pub const fn path_mode(&self) -> Mode {
        self.mode
    }

    /// Returns the agents that ignore what comes directly.
    pub fn hidden(&self) -> impl Iterator<Item = OverlayIp> {
        let hidden = self.locals.iter().filter(|(_, local)| local.mode().hides());
        hidden.map(|(address, _)| *address)
    }

    /// Takes which paths data may go.
    pub fn set_path_mode(&mut self, mode: Mode, time: Time) {
        if self.mode != mode {
            self.out.event(Event::Tables);
        }
        self.mode = mode;
        for local in self.locals.values_mut() {
            local.set_mode(mode, time, &mut self.out);
        }
    }

    /// Takes that our network changed, or that we slept: every way is looked for anew.
    pub fn handle_network_change(&mut self, time: Time) {
        self.restart_observers(time);
        for local in self.locals.values_mut() {
            local.change_network(time, &mut self.out);
        }
    }

    /// Takes that the host slept and woke up: every way is looked for anew, and whom we talked to
    /// when it fell asleep is spoken to at once, for what we shared with it may be out of date.
    pub fn handle_resume(&mut self, slept: Duration, time: Time) {
        let since = time.now.checked_sub(slept + TALKING);
        self.restart_observers(time);
        for local in self.locals.values_mut() {
            local.change_network(time, &mut self.out);
            local.wake_all(since, time, &mut self.out);
        }
    }

    /// Returns where datagrams of ours go: gateways, and endpoints of peers that answered.
    pub fn remotes(&self) -> Vec<SocketAddr> {
        self.locals.values().flat_map(Local::remotes).collect()
    }

    /// Returns the paths to an installed peer.
    pub fn paths(&self, local: OverlayIp, peer: OverlayIp, time: Time) -> Option<PathView> {
        let peer = self.locals.get(&local)?.peers.get(&peer)?;
        Some(peer.path().view(time.now))
    }
}

/// Returns why a datagram that is no gateway's of ours is dropped.
fn stranger(bytes: &[u8]) -> DropReason {
    match Datagram::classify(bytes) {
        Some(Datagram::Frame) => DropReason::FrameHopUnknown,
        Some(Datagram::WireGuard(_)) => DropReason::HandshakeUnknown,
        Some(Datagram::Channel) => DropReason::ChannelUnknown,
        Some(Datagram::Discover | Datagram::Stun) | None => DropReason::DatagramUnknown,
    }
}

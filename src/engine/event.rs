use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::engine::channel::ChannelChange;
use crate::engine::hop::{SharedHop, Slot};
use crate::engine::path::Path;
use crate::id::{FullName, OverlayIp, UnixTime};
#[cfg(doc)]
use crate::wire::carrier;
use crate::wire::control::is_control;
use crate::wire::drop::{Counters, DropReason};

/// Peers that wait for sockets; more are not met.
const MAX_PUNCHES: usize = 8;

/// Dropped packets that wait for one who looks at them; a peer gives up as many at once, and more are only counted.
const MAX_DROPPED: usize = 256;

/// Both clocks at one moment; every input of the engine carries them.
#[derive(Clone, Copy, Debug)]
pub struct Time {
    pub now: Instant,
    pub unix: UnixTime,
}

/// A datagram to send.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Transmit {
    pub to: SocketAddr,
    pub bytes: Vec<u8>,
    pub travel: Travel,
}

/// How a datagram is to travel.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Travel {
    /// It may be cut in fragments on its way.
    #[default]
    Freely,
    /// It arrives in one piece or not at all: it asks how large a datagram may be.
    Whole,
    /// By few hops, over IPv4 only: it opens the NATs on our side, and reaches none on the other's.
    Briefly,
}

impl Transmit {
    /// Makes a datagram that may be cut on its way.
    pub(crate) const fn new(to: SocketAddr, bytes: Vec<u8>) -> Self {
        Self {
            to,
            bytes,
            travel: Travel::Freely,
        }
    }
}

/// A decrypted packet for an agent's TUN; the inbound filter has not seen it yet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Packet {
    pub local: OverlayIp,
    pub peer: OverlayIp,
    pub bytes: Vec<u8>,
}

/// A packet of a local program that goes no further.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Dropped {
    pub local: OverlayIp,
    pub reason: DropReason,
    pub bytes: Vec<u8>,
}

/// What whoever seals and opens packets of a peer is told, in order.
#[derive(Debug)]
pub struct ChannelEvent {
    pub local: OverlayIp,
    pub peer: OverlayIp,
    pub change: ChannelChange,
}

/// What one of the hops of `local` is from now on, for whoever seals and opens.
#[derive(Clone, Debug)]
pub struct HopEvent {
    pub local: OverlayIp,
    /// Which of the agent's hops it is.
    pub slot: Slot,
    /// None when there is none: the engine gets everything that is relayed by it.
    pub hop: Option<SharedHop>,
}

/// What the engine tells its driver.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Event {
    /// What must not be forgotten of an agent changed, or that it is one: write it before anything else of this
    /// batch goes out.
    Changed { local: OverlayIp },
    /// A gateway says that the agent attached elsewhere: see what the registry has of it.
    Displaced { local: OverlayIp },
    /// A gateway's endpoints are needed, as names or addresses.
    Gateway { local: OverlayIp },
    /// Statements wait for the registry.
    Outbox { local: OverlayIp },
    /// A request waits for a person.
    Pending { local: OverlayIp, from: FullName },
    /// A probe of ours was answered.
    Pong {
        local: OverlayIp,
        id: u64,
        rtt: Duration,
        /// The way probe and answer took: direct when both came directly.
        path: Path,
    },
    /// An agent became another host's, which runs it too, or ours again.
    Twin { local: OverlayIp },
    /// Who may talk changed: publish the tables.
    Tables,
    /// A peer, named while it is known, knew of a revocation that the registry did not tell.
    Withheld {
        local: OverlayIp,
        from: Option<FullName>,
    },
}

/// Sockets to be opened, each with a port of its own at our NAT, towards one endpoint of a peer.
///
/// What one hears from there is to be handed to the engine as coming from [`carrier::punched`], and
/// what goes there leaves by it. Nothing is lost but a direct path where nobody does so.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Punch {
    pub to: SocketAddr,
    /// What each socket sends, one in each round.
    pub datagrams: Vec<Vec<u8>>,
}

/// A statement that an installed peer told in its session; nothing of it is checked yet.
#[derive(Debug)]
pub(crate) struct Heard {
    pub(crate) local: OverlayIp,
    pub(crate) from: OverlayIp,
    pub(crate) text: String,
}

/// What came out of one input, in order.
#[derive(Debug, Default)]
pub(crate) struct Out {
    pub(crate) transmits: VecDeque<Transmit>,
    pub(crate) packets: VecDeque<Packet>,
    pub(crate) channels: VecDeque<ChannelEvent>,
    pub(crate) hops: VecDeque<HopEvent>,
    pub(crate) injections: VecDeque<(OverlayIp, Vec<u8>)>,
    pub(crate) events: VecDeque<Event>,
    pub(crate) heard: VecDeque<Heard>,
    pub(crate) punches: VecDeque<Punch>,
    /// Gateways see us elsewhere, or others do: their second ports are to be asked.
    pub(crate) is_seen_anew: bool,
    pub(crate) counters: Counters,
    pub(crate) dropped: VecDeque<Dropped>,
    /// Whether somebody looks at what is dropped.
    pub(crate) keeps_dropped: bool,
}

impl Out {
    /// Adds an event unless it waits already: most are reminders to look.
    pub(crate) fn event(&mut self, event: Event) {
        if !self.events.contains(&event) {
            self.events.push_back(event);
        }
    }

    /// Adds sockets to be opened, of few peers at once.
    pub(crate) fn punch(&mut self, punch: Punch) {
        if self.punches.len() < MAX_PUNCHES {
            self.punches.push_back(punch);
        }
    }

    pub(crate) fn drop(&mut self, reason: DropReason) {
        self.counters.count(reason);
    }

    /// Drops a packet of a program of `local`; our own messages to a peer are dropped without being seen.
    pub(crate) fn drop_packet(&mut self, local: OverlayIp, reason: DropReason, packet: &[u8]) {
        self.drop(reason);
        if self.keeps_dropped && self.dropped.len() < MAX_DROPPED && !is_control(packet) {
            let bytes = packet.to_vec();
            self.dropped.push_back(Dropped {
                local,
                reason,
                bytes,
            });
        }
    }
}

//! Packets shown to those who capture. Most often nobody does; a packet then costs one look at an empty list.
//!
//! Each worker shows what it reads, writes and drops; whoever owns the engine shows what that dropped.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::id::OverlayIp;
use crate::wire::drop::DropReason;
use crate::wire::ip::IPV6_HEADER;

/// Captures of a node at once.
pub(super) const MAX_TAPS: usize = 4;

/// Packets, and bytes of them, that may wait for one who captures: some 10 ms at full rate.
const MAX_PACKETS: usize = 4096;
const MAX_BYTES: usize = 8 << 20;

/// Which way a packet goes, as the agent sees it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Way {
    In,
    Out,
}

/// Whose packets are wanted; None means everybody's.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Wanted {
    /// An agent of this node.
    pub local: Option<OverlayIp>,
    /// The agent at the other end.
    pub peer: Option<OverlayIp>,
}

/// A packet that passed a TUN, or was kept from it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Tapped {
    pub at: Instant,
    /// Whose TUN it is.
    pub local: OverlayIp,
    pub way: Way,
    /// Why it was dropped; None when it passed.
    pub dropped: Option<DropReason>,
    /// In the clear: one IP packet, or what the kernel has for several of one flow.
    pub bytes: Vec<u8>,
}

/// A packet as whoever shows it has it before it.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    pub at: Instant,
    /// Whose TUN it is.
    pub local: OverlayIp,
    pub way: Way,
    /// None when it passes.
    pub dropped: Option<DropReason>,
    pub bytes: &'a [u8],
}

impl Seen<'_> {
    /// Returns the agent's own end and the other one, by the packet's own word.
    fn ends(&self) -> Option<([u8; 16], [u8; 16])> {
        let header = self.bytes.get(..IPV6_HEADER)?;
        let source = header.get(8..24)?.try_into().ok()?;
        let destination = header.get(24..40)?.try_into().ok()?;
        Some(match self.way {
            Way::In => (destination, source),
            Way::Out => (source, destination),
        })
    }
}

/// What both ends of a capture see.
#[derive(Debug, Default)]
struct Room {
    /// Of packets that wait.
    bytes: AtomicUsize,
    /// Packets for which there was no room.
    lost: AtomicU64,
}

/// The end of a capture where packets are shown.
#[derive(Clone, Debug)]
pub struct Tap {
    wanted: Wanted,
    packets: mpsc::Sender<Tapped>,
    room: Arc<Room>,
}

/// The other end; the capture ends when it is dropped.
#[derive(Debug)]
pub struct Capture {
    packets: mpsc::Receiver<Tapped>,
    room: Arc<Room>,
    /// Given back when the capture ends.
    _place: OwnedSemaphorePermit,
}

/// Makes both ends.
pub(super) fn open(wanted: Wanted, place: OwnedSemaphorePermit) -> (Tap, Capture) {
    let (sender, receiver) = mpsc::channel(MAX_PACKETS);
    let room = Arc::new(Room::default());
    let tap = Tap {
        wanted,
        packets: sender,
        room: Arc::clone(&room),
    };
    let capture = Capture {
        packets: receiver,
        room,
        _place: place,
    };
    (tap, capture)
}

impl Capture {
    /// Returns the next packet, and how many were lost before it for want of room; None when the workers ended.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when nobody waits any more.
    pub async fn next(&mut self) -> Option<(Tapped, u64)> {
        let packet = self.packets.recv().await?;
        Some(self.taken(packet))
    }

    /// Returns the next packet if there is one now.
    pub fn try_next(&mut self) -> Option<(Tapped, u64)> {
        let packet = self.packets.try_recv().ok()?;
        Some(self.taken(packet))
    }

    fn taken(&self, packet: Tapped) -> (Tapped, u64) {
        let room = &self.room;
        room.bytes.fetch_sub(packet.bytes.len(), Ordering::Relaxed);
        let lost = room.lost.swap(0, Ordering::Relaxed);
        (packet, lost)
    }
}

impl Tap {
    fn wants(&self, seen: &Seen<'_>) -> bool {
        let ends = seen.ends();
        let is = |wanted: Option<OverlayIp>, end: Option<[u8; 16]>| {
            wanted.is_none_or(|wanted| end == Some(wanted.ip().octets()))
        };
        let is_local = self.wanted.local == Some(seen.local);
        let (own, other) = ends.unzip();
        (is_local || is(self.wanted.local, own)) && is(self.wanted.peer, other)
    }

    fn show(&self, seen: &Seen<'_>) {
        if !self.wants(seen) {
            return;
        }
        let length = seen.bytes.len();
        let before = self.room.bytes.fetch_add(length, Ordering::Relaxed);
        let has_room = before + length <= MAX_BYTES;
        let packet = || Tapped {
            at: seen.at,
            local: seen.local,
            way: seen.way,
            dropped: seen.dropped,
            bytes: seen.bytes.to_vec(),
        };
        if !has_room || self.packets.try_send(packet()).is_err() {
            self.room.bytes.fetch_sub(length, Ordering::Relaxed);
            self.room.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The captures to which one worker, or the owner of the engine, shows packets.
#[derive(Debug, Default)]
pub struct Taps(Vec<Tap>);

impl Taps {
    /// Adds a capture; it goes when its other end is dropped.
    pub fn add(&mut self, tap: Tap) {
        self.0.push(tap);
    }

    /// Tells whether nobody looked when something was last shown.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Shows a packet to those who want it.
    #[inline]
    pub fn show(&mut self, seen: Seen<'_>) {
        if !self.0.is_empty() {
            self.show_all(&seen);
        }
    }

    #[cold]
    fn show_all(&mut self, seen: &Seen<'_>) {
        self.0.retain(|tap| !tap.packets.is_closed());
        for tap in &self.0 {
            tap.show(seen);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;

    use super::*;
    use crate::dataplane::testing::pair;
    use crate::os::clock;

    fn tap(wanted: Wanted) -> (Taps, Capture) {
        let places = Arc::new(Semaphore::new(1));
        let place = places.try_acquire_owned().unwrap();
        let (tap, capture) = open(wanted, place);
        let mut taps = Taps::default();
        taps.add(tap);
        (taps, capture)
    }

    /// A packet of the pair with agent `peer`, on its way out.
    fn packet(peer: u16, size: usize) -> Vec<u8> {
        let pair = pair(peer);
        let mut bytes = vec![0x60; size];
        bytes[8..24].copy_from_slice(&pair.local.ip().octets());
        bytes[24..40].copy_from_slice(&pair.peer.ip().octets());
        bytes
    }

    fn seen(bytes: &[u8]) -> Seen<'_> {
        Seen {
            at: clock::now(),
            local: pair(2).local,
            way: Way::Out,
            dropped: None,
            bytes,
        }
    }

    #[test]
    fn what_is_wanted_is_shown_and_nothing_else() {
        let (mut taps, mut capture) = tap(Wanted {
            local: Some(pair(2).local),
            peer: Some(pair(2).peer),
        });
        let (wanted, other) = (packet(2, 48), packet(3, 48));

        taps.show(seen(&other));
        taps.show(seen(&wanted));
        taps.show(seen(&[1, 2]));

        let (shown, lost) = capture.try_next().unwrap();
        assert_eq!((shown.bytes, lost), (wanted, 0));
        assert!(capture.try_next().is_none());
    }

    #[test]
    fn what_does_not_fit_is_counted_and_told() {
        let (mut taps, mut capture) = tap(Wanted::default());
        let large = packet(2, 65_000);
        let fits = MAX_BYTES / large.len();

        for _ in 0..fits + 7 {
            taps.show(seen(&large));
        }

        let (_, lost) = capture.try_next().unwrap();
        assert_eq!(lost, 7);
        let rest = std::iter::from_fn(|| capture.try_next());
        assert_eq!(rest.count(), fits - 1);
        taps.show(seen(&large));
        assert_eq!(capture.try_next().map(|(_, lost)| lost), Some(0));
    }

    #[test]
    fn who_is_gone_costs_nothing_any_more() {
        let (mut taps, capture) = tap(Wanted::default());
        drop(capture);

        taps.show(seen(&packet(2, 48)));

        assert!(taps.0.is_empty());
    }
}

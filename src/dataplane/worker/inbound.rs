//! From the underlay to the TUNs.

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    ops::Range,
    sync::Arc,
};

use nix::{sys::uio::writev, unistd};

use crate::dataplane::channels::{Opened, Unopened};
use crate::dataplane::offload::{Run, Takes, VIRTIO};
use crate::dataplane::queue::{FromWorker, InPacket};
use crate::dataplane::relay::carries_channel;
use crate::dataplane::shard::Held;
use crate::dataplane::tap::{Seen, Way};
use crate::dataplane::worker::{IDLE, MAX_PACKET, RECEIVES, SHARE, SHARED_RECEIVES, Worker};
use crate::engine::channel::Arrival;
use crate::id::OverlayIp;
use crate::os::udp::Received;
use crate::policy::{Pair, Verdict};
use crate::wire::a2g;
use crate::wire::carrier::{is_carrier, is_punched};
use crate::wire::datagram::Datagram;
use crate::wire::drop::DropReason;
use crate::wire::ecn::Ecn;

/// How a datagram came.
#[derive(Clone, Copy, Debug)]
struct Came {
    from: Arrival,
    /// What routers said of congestion.
    ecn: Ecn,
}

impl Worker {
    /// Receives a burst from one socket and hands it on: packets of channels to their TUNs, the rest to
    /// the engine. A socket that shares the worker's time and gave much gives less of it at a time,
    /// so that the others' turn comes sooner.
    pub(super) fn read_udp(&mut self, socket: usize, is_shared: bool) {
        let Some(port) = self.ports.get_mut(socket) else {
            return;
        };
        let is_idle = self.now.saturating_duration_since(port.read_at) > IDLE;
        port.read_at = self.now;
        let most = if is_shared && port.gave > SHARE {
            SHARED_RECEIVES
        } else {
            RECEIVES
        };
        // What was merged is opened while it is in the cache; what was not costs a call each.
        let at_once = if is_idle || port.is_merged { 1 } else { most };
        let (mut slot, mut gave, mut is_merged) = (0, 0, false);
        let mut other = Vec::new();
        let shards = Arc::clone(&self.shards);
        let mut held = shards.hold();
        while slot < most {
            let burst = self.receive(socket, slot, at_once);
            for (place, received) in (slot..).zip(&burst) {
                held.pause();
                self.take_received(&mut held, received, place * MAX_PACKET, &mut other);
                gave += received.length;
                is_merged |= received.length > received.stride;
            }
            slot += at_once;
            if burst.len() < at_once || is_idle && !is_merged {
                break;
            }
        }
        drop(held);
        if let Some(port) = self.ports.get_mut(socket) {
            (port.gave, port.is_merged) = (gave, is_merged);
        }
        self.write_runs();
        if !other.is_empty() {
            self.offer(other.len(), FromWorker::Datagrams(other));
        }
    }

    /// Receives into so many slots at most, from this one on.
    fn receive(&mut self, socket: usize, slot: usize, slots: usize) -> Vec<Received> {
        let place = slot * MAX_PACKET..(slot + slots) * MAX_PACKET;
        let buffer = self.received.get_mut(place);
        let (Some(port), Some(buffer)) = (self.ports.get(socket), buffer) else {
            return Vec::new();
        };
        let burst = match slots {
            1 => port.udp.recv_many(buffer).map(|one| vec![one]),
            _ => port.udp.recv_burst(buffer, MAX_PACKET),
        };
        burst.unwrap_or_else(|error| {
            let kind = error.kind();
            if ![io::ErrorKind::Interrupted, io::ErrorKind::WouldBlock].contains(&kind) {
                // Reading it has taken the socket's pending error away.
                tracing::debug!(%error, "Datagram not received");
            }
            Vec::new()
        })
    }

    /// Takes the datagrams that were received at `start`.
    fn take_received(
        &mut self,
        held: &mut Held<'_>,
        received: &Received,
        start: usize,
        other: &mut Vec<(SocketAddr, Vec<u8>)>,
    ) {
        if is_carrier(received.from) {
            // Nobody is there: whoever says so would pass for a connection.
            self.seen.drops.count(DropReason::DatagramUnknown);
            return;
        }
        let (mut at, end) = (start, start + received.length);
        // An empty datagram is one as well.
        for _ in 0..received.length.div_ceil(received.stride).max(1) {
            let next = (at + received.stride).min(end);
            self.take_datagram(held, received, at..next, other);
            at = next;
        }
    }

    pub(super) fn take_datagram(
        &mut self,
        held: &mut Held<'_>,
        received: &Received,
        place: Range<usize>,
        other: &mut Vec<(SocketAddr, Vec<u8>)>,
    ) {
        let Some(datagram) = self.received.get_mut(place.clone()) else {
            return;
        };
        self.seen.udp_in.count(datagram.len());
        let came = |from| Came {
            from,
            ecn: received.ecn,
        };
        if carries_channel(datagram) {
            let packet = datagram.get(a2g::HEADER..).unwrap_or_default();
            let index = self.shards.of_channel(packet);
            match held.at(index).channels.open_frame(datagram) {
                Ok((opened, slot)) => {
                    let came = came(Arrival::Relayed(slot));
                    self.take_opened(held, &opened, place.start, came);
                }
                Err(Unopened::Dropped(reason)) => self.seen.drops.count(reason),
                Err(Unopened::Stray(pair)) => self.take_stray(held, pair),
            }
        } else if Datagram::classify(datagram) == Some(Datagram::Channel) {
            let shard = held.at(self.shards.of_channel(datagram));
            // No peer is at the end of a connection to a gateway.
            let is_gateway = is_carrier(received.from) && !is_punched(received.from);
            if is_gateway || shard.hides_from(datagram) {
                self.seen.drops.count(DropReason::ChannelUnknown);
                return;
            }
            match shard.channels.open(datagram) {
                Ok(opened) => {
                    let came = came(Arrival::Direct(received.from));
                    self.take_opened(held, &opened, place.start, came);
                }
                Err(reason) => self.seen.drops.count(reason),
            }
        } else {
            other.push((received.from, datagram.to_vec()));
        }
    }

    /// Takes that a packet to an unknown channel came by a gateway; the engine hears of it.
    fn take_stray(&mut self, held: &mut Held<'_>, pair: Pair) {
        self.seen.drops.count(DropReason::ChannelUnknown);
        let index = self.shards.of(&pair);
        let shard = held.at(index);
        // Whom else a gateway names is remembered nowhere.
        if shard.switch.peers().contains_key(&pair) {
            shard.channels.note_unknown(pair);
            self.note_used(index);
        }
    }

    /// Takes a packet that opened in the datagram at `start`.
    fn take_opened(&mut self, held: &mut Held<'_>, opened: &Opened, start: usize, came: Came) {
        if let Some(id) = opened.first {
            let Pair { local, peer } = opened.pair;
            self.offer(1, FromWorker::ChannelUsed { local, peer, id });
        }
        let plain = start + opened.place.start..start + opened.place.end;
        self.take_plain(held, opened.pair, plain, came);
    }

    /// Takes a packet that a channel brought.
    fn take_plain(&mut self, held: &mut Held<'_>, pair: Pair, place: Range<usize>, came: Came) {
        let index = self.shards.of(&pair);
        self.note_used(index);
        let packet = self.received.get_mut(place.clone()).unwrap_or_default();
        let shard = held.at(index);
        let channels = &mut shard.channels;
        channels.note_received(pair, packet.len() as u64, came.from);
        if packet.first().is_some_and(|first| first >> 4 == 0) {
            let joined = shard.halves.take(pair, packet, came.ecn, self.now);
            if let Some((mut bytes, ecn)) = joined {
                if !ecn.decapsulate(&mut bytes) {
                    self.show_in(pair.local, Some(DropReason::EcnNotCapable), &bytes);
                    self.seen.drops.count(DropReason::EcnNotCapable);
                    return;
                }
                // Not before what came before it.
                held.pause();
                self.write_runs();
                let Pair { local, peer } = pair;
                self.deliver(held, InPacket { local, peer, bytes });
            }
            return;
        }
        let judged = if came.ecn.decapsulate(packet) {
            shard.inbound(pair, packet, self.now)
        } else {
            Verdict::Drop(DropReason::EcnNotCapable)
        };
        self.taps.show(Seen {
            at: self.now,
            local: pair.local,
            way: Way::In,
            dropped: judged.dropped(),
            bytes: packet,
        });
        match judged {
            Verdict::Pass => {
                if self.merger.is_full() {
                    held.pause();
                    self.write_runs();
                }
                let tun = self.tuns.get(&pair.local);
                let takes = tun.map_or_else(Takes::default, |tun| Takes {
                    tcp: tun.queue.has_header,
                    udp: tun.queue.has_udp_offload,
                });
                self.merger.add(pair.local, &self.received, place, takes);
                self.delivered(pair);
            }
            Verdict::Drop(reason) => self.seen.drops.count(reason),
        }
    }

    fn delivered(&mut self, pair: Pair) {
        if self.seen.delivered.get(&pair) != Some(&self.now) {
            self.seen.delivered.insert(pair, self.now);
        }
    }

    pub(super) fn write_runs(&mut self) {
        let Self {
            merger,
            received,
            tuns,
            taps,
            seen,
            now,
            ..
        } = self;
        merger.drain(|run| {
            let mut dropped = |reason, buffer: &[u8]| {
                seen.drops.add(reason, run.packets() as u64);
                if taps.is_empty() {
                    return;
                }
                taps.show(Seen {
                    at: *now,
                    local: run.local,
                    way: Way::In,
                    dropped: Some(reason),
                    bytes: &run.parts(buffer).collect::<Vec<_>>().concat(),
                });
            };
            let Some(tun) = tuns.get(&run.local) else {
                dropped(DropReason::TunMissing, received);
                return;
            };
            let head = run.head(received);
            let parts = std::iter::once(&head[..])
                .filter(|_| tun.queue.has_header)
                .chain(run.parts(received));
            let parts = parts.map(IoSlice::new).collect::<Vec<_>>();
            match writev(&tun.queue.fd, &parts) {
                Ok(_) => count_run(seen, run),
                Err(errno) => {
                    tracing::trace!(%errno, "Packets not written");
                    dropped(DropReason::TunWrite, received);
                }
            }
        });
    }

    /// Delivers packets that the engine opened.
    pub(super) fn deliver_all(&mut self, packets: Vec<InPacket>) {
        let shards = Arc::clone(&self.shards);
        let mut held = shards.hold();
        for packet in packets {
            self.deliver(&mut held, packet);
            held.pause();
        }
    }

    fn deliver(&mut self, held: &mut Held<'_>, packet: InPacket) {
        let InPacket { local, peer, bytes } = packet;
        let pair = Pair { local, peer };
        let shard = held.at(self.shards.of(&pair));
        match shard.inbound(pair, &bytes, self.now) {
            Verdict::Pass => {
                if self.write_tun(local, &bytes) {
                    self.seen.tun_out.count(bytes.len());
                    self.delivered(pair);
                }
            }
            Verdict::Drop(reason) => {
                self.show_in(local, Some(reason), &bytes);
                self.seen.drops.count(reason);
            }
        }
    }

    /// Shows a packet on its way to the TUN of `local`.
    fn show_in(&mut self, local: OverlayIp, dropped: Option<DropReason>, bytes: &[u8]) {
        self.taps.show(Seen {
            at: self.now,
            local,
            way: Way::In,
            dropped,
            bytes,
        });
    }

    /// Writes a packet to the TUN of `local`, or counts why not.
    pub(super) fn write_tun(&mut self, local: OverlayIp, bytes: &[u8]) -> bool {
        let Some(tun) = self.tuns.get(&local) else {
            self.show_in(local, Some(DropReason::TunMissing), bytes);
            self.seen.drops.count(DropReason::TunMissing);
            return false;
        };
        let written = if tun.queue.has_header {
            let parts = [IoSlice::new(&[0; VIRTIO]), IoSlice::new(bytes)];
            writev(&tun.queue.fd, &parts)
        } else {
            unistd::write(&tun.queue.fd, bytes)
        };
        match written {
            Ok(_) => {
                self.show_in(local, None, bytes);
                true
            }
            Err(errno) => {
                tracing::trace!(%errno, "Packet not written");
                self.show_in(local, Some(DropReason::TunWrite), bytes);
                self.seen.drops.count(DropReason::TunWrite);
                false
            }
        }
    }
}

fn count_run(seen: &mut crate::dataplane::Snapshot, run: &Run) {
    seen.tun_out.packets += run.packets() as u64;
    seen.tun_out.bytes += run.bytes() as u64;
}

//! From the TUNs to the underlay.

use std::{io, net::SocketAddr, sync::Arc};

use nix::{
    errno::Errno,
    sys::epoll::{EpollEvent, EpollFlags},
    unistd,
};

use crate::dataplane::offload::{DEFAULT_MTU, Unfit, VIRTIO, VirtioHeader, clamp, split};
use crate::dataplane::queue::{FromWorker, OutPacket};
use crate::dataplane::shard::{Held, Shard};
use crate::dataplane::switch::Outbound;
use crate::dataplane::tables::Realm;
use crate::dataplane::tap::{Seen, Way};
use crate::dataplane::worker::{BATCH, FIRST_UDP, IDLE, Worker, tun_interest};
use crate::engine::channel::Volume;
use crate::engine::{Transmit, Travel};
use crate::id::OverlayIp;
use crate::policy::Pair;
use crate::wire::carrier::is_carrier;
use crate::wire::drop::DropReason;
use crate::wire::ecn::Ecn;
use crate::wire::icmp6::packet_too_big;
use crate::wire::ip::Ipv6View;

/// Bytes read from one TUN before the others, and what arrives, have their turn.
const BURST: usize = 256 << 10;

impl Worker {
    /// Reads a TUN until it is empty, or others have their turn.
    pub(super) fn read_tun(&mut self, token: u64) {
        let mut slow = Vec::new();
        let mut bytes = 0;
        let Some((local, is_idle)) = self.touch_tun(token) else {
            return;
        };
        let shards = Arc::clone(&self.shards);
        let mut held = shards.hold();
        for _ in 0..BATCH {
            held.pause();
            // Looked up each time: a command cannot have removed it, but an error below may.
            let Some(tun) = self.tuns.get(&local) else {
                break;
            };
            let (realm, has_header) = (tun.realm, tun.queue.has_header);
            let start = if has_header { 0 } else { VIRTIO };
            let buffer = self.read.get_mut(start..).unwrap_or_default();
            match unistd::read(&tun.queue.fd, buffer) {
                Ok(length) => {
                    let end = start + length;
                    if !has_header {
                        self.read.get_mut(..VIRTIO).unwrap_or_default().fill(0);
                    }
                    self.take_read(&mut held, (local, realm), end, &mut slow);
                    bytes += length;
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(errno) => {
                    tracing::debug!(%errno, "A TUN device went away");
                    self.remove_tun(local);
                    // The first worker reads a queue of every device: it tells for all.
                    if self.index == 0 {
                        self.lost.push(local);
                    }
                }
            }
            if bytes >= BURST || self.is_blocked || is_idle {
                break;
            }
        }
        drop(held);
        self.flush();
        self.hand_over(slow);
    }

    /// Notes that a TUN gives something; returns whose it is, and whether it gave nothing for a while.
    fn touch_tun(&mut self, token: u64) -> Option<(OverlayIp, bool)> {
        let now = self.now;
        let mut tuns = self.tuns.iter_mut();
        let (local, tun) = tuns.find(|(_, tun)| tun.token == token)?;
        let before = std::mem::replace(&mut tun.read_at, now);
        Some((*local, now.saturating_duration_since(before) > IDLE))
    }

    /// Takes what was read up to `end`: a header, and a packet or a super-packet.
    fn take_read(
        &mut self,
        held: &mut Held<'_>,
        (local, realm): (OverlayIp, Realm),
        end: usize,
        slow: &mut Vec<OutPacket>,
    ) {
        let header = self.read.first_chunk().map(VirtioHeader::parse);
        let packet = self.read.get(VIRTIO..end);
        let (Some(header), Some(packet)) = (header, packet) else {
            self.seen.drops.count(DropReason::IpLength);
            return;
        };
        let shard = held.at(self.shards.of_addresses(packet));
        let judged = shard.outbound(realm, packet, self.now);
        // What goes to somebody unknown is shown when that is decided: it is dropped, or comes back.
        if !matches!(judged, Outbound::ToUnknown(_)) {
            self.taps.show(Seen {
                at: self.now,
                local,
                way: Way::Out,
                dropped: judged.dropped(),
                bytes: packet,
            });
        }
        match judged {
            Outbound::ToPeer(pair) => self.send_out(held, pair, &header, end, slow),
            Outbound::ToUnknown(pair) => {
                for packet in self.pieces(pair, &header, end, None) {
                    self.offer(1, FromWorker::Unknown(packet));
                }
            }
            Outbound::Reset(reason, reset) => self.reset(reason, &reset),
            Outbound::Drop(reason) => self.seen.drops.count(reason),
        }
    }

    /// Seals a packet that may go, or leaves it to the engine.
    fn send_out(
        &mut self,
        held: &mut Held<'_>,
        pair: Pair,
        header: &VirtioHeader,
        end: usize,
        slow: &mut Vec<OutPacket>,
    ) {
        let index = self.shards.of(&pair);
        let Shard {
            channels, halves, ..
        } = held.at(index);
        let mtu = channels.mtu(&pair);
        let packet = self.read.get_mut(VIRTIO..end).unwrap_or_default();
        if let Some(mtu) = mtu {
            clamp(header, packet, mtu);
        }
        let Some((sealer, way)) = channels.sealer(&pair) else {
            let packets = self.pieces(pair, header, end, mtu);
            for packet in &packets {
                self.seen.tun_in.count(packet.bytes.len());
            }
            slow.extend(packets);
            return;
        };
        let (seen, batches, taps) = (&mut self.seen, &mut self.batches, &mut self.taps);
        let now = self.now;
        let (to, by) = (way.to(), way.slot());
        let ecn = Ecn::of_packet(packet);
        let mut sealed = Volume::default();
        let mut seal = |plain: &[u8]| {
            let size = plain.len() + way.overhead();
            let is_sealed = way.seal(sealer, plain, batches.place(pair, to, ecn, size));
            if is_sealed {
                sealed.packets += 1;
                sealed.bytes += plain.len() as u64;
            } else {
                batches.unplace(size);
            }
            is_sealed
        };
        let split = split(header, packet, mtu, |piece| {
            let fits = mtu.is_none_or(|mtu| piece.len() <= mtu);
            let is_sealed = if fits {
                seal(piece)
            } else {
                halves.cut(piece).iter().all(|half| seal(half))
            };
            if is_sealed {
                seen.tun_in.count(piece.len());
            } else {
                seen.drops.count(DropReason::NoSession);
                taps.show(Seen {
                    at: now,
                    local: pair.local,
                    way: Way::Out,
                    dropped: Some(DropReason::NoSession),
                    bytes: piece,
                });
            }
        });
        channels.note_sent(pair, sealed, by);
        self.note_used(index);
        self.note_unfit(split, pair, end, mtu);
        if self.batches.is_due() {
            held.pause();
            self.flush_due();
        }
    }

    /// Counts what could not be split, and tells its sender which size passes (RFC 4443 section 3.2).
    fn note_unfit(&mut self, split: Result<(), Unfit>, pair: Pair, end: usize, mtu: Option<usize>) {
        let reason = match split {
            Ok(()) => return,
            Err(Unfit::Bad(reason)) => reason,
            Err(Unfit::TooBig) => {
                let packet = self.read.get(VIRTIO..end).unwrap_or_default();
                let mtu = mtu.unwrap_or(0).max(DEFAULT_MTU);
                let mtu = u32::try_from(mtu).unwrap_or(u32::MAX);
                if let Some(error) = packet_too_big(packet, mtu) {
                    self.write_tun(pair.local, &error);
                }
                DropReason::PacketTooBig
            }
        };
        self.seen.drops.count(reason);
        self.taps.show(Seen {
            at: self.now,
            local: pair.local,
            way: Way::Out,
            dropped: Some(reason),
            bytes: self.read.get(VIRTIO..end).unwrap_or_default(),
        });
    }

    /// Cuts what was read into packets for the engine; those longer than `mtu` come in fragments of the
    /// underlay.
    fn pieces(
        &mut self,
        pair: Pair,
        header: &VirtioHeader,
        end: usize,
        mtu: Option<usize>,
    ) -> Vec<OutPacket> {
        let mut packets = Vec::new();
        let packet = self.read.get_mut(VIRTIO..end).unwrap_or_default();
        let split = split(header, packet, mtu, |piece| {
            packets.push(OutPacket {
                local: pair.local,
                peer: pair.peer,
                bytes: piece.to_vec(),
            });
        });
        self.note_unfit(split, pair, end, mtu);
        packets
    }

    /// Sends what is complete; what is not may still grow.
    fn flush_due(&mut self) {
        while self.batches.is_due() && self.send_first() {}
    }

    /// Sends what waits; what the socket does not take stays, and no TUN is read until it does.
    pub(super) fn flush(&mut self) {
        while self.batches.first().is_some() {
            if !self.send_first() {
                return;
            }
        }
        self.set_blocked(false);
    }

    /// Sends the first batch; false when the socket takes nothing now.
    fn send_first(&mut self) -> bool {
        if self.send_carried() {
            return true;
        }
        let Some(batch) = self.batches.first() else {
            return true;
        };
        let Some(port) = self.ports.first() else {
            return false;
        };
        let bytes = batch.bytes();
        let sent = port.udp.send_many(bytes, batch.stride, batch.to, batch.ecn);
        match sent {
            Ok(()) => {
                self.seen.udp_out.packets += batch.packets as u64;
                self.seen.udp_out.bytes += batch.bytes().len() as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.set_blocked(true);
                return false;
            }
            Err(error) => {
                tracing::trace!(%error, to = %batch.to, "Packets not sent");
                let packets = batch.packets as u64;
                self.seen.drops.add(DropReason::UdpSend, packets);
            }
        }
        self.batches.sent();
        true
    }

    /// Stops or goes on reading TUNs, and asks to be told when the socket takes packets again.
    fn set_blocked(&mut self, is_blocked: bool) {
        if self.is_blocked == is_blocked {
            return;
        }
        self.is_blocked = is_blocked;
        let mut interest = EpollFlags::EPOLLIN;
        interest.set(EpollFlags::EPOLLOUT, is_blocked);
        let changed = || {
            let mut event = EpollEvent::new(interest, FIRST_UDP);
            if let Some(port) = self.ports.first() {
                self.epoll.modify(&port.udp, &mut event)?;
            }
            let mut read = self.tuns.values().filter(|tun| tun.queue.is_read);
            read.try_for_each(|tun| {
                let mut event = EpollEvent::new(tun_interest(is_blocked), tun.token);
                self.epoll.modify(&tun.queue.fd, &mut event)
            })
        };
        if let Err(errno) = changed() {
            tracing::error!(%errno, "Cannot change what wakes the data plane");
        }
    }

    /// Sends datagrams of the engine.
    pub(super) fn send(&mut self, datagrams: &[(SocketAddr, Vec<u8>)]) {
        for (to, bytes) in datagrams {
            if is_carrier(*to) {
                self.carry(*to, bytes, bytes.len());
                continue;
            }
            let Some(port) = self.ports.first() else {
                return;
            };
            let sent = port.udp.send_to(bytes, *to);
            self.note_sent(&sent, *to);
        }
    }

    /// Sends a datagram of the engine that travels in a way of its own.
    pub(super) fn send_alone(&mut self, transmit: &Transmit) {
        let Transmit { to, bytes, travel } = transmit;
        if is_carrier(*to) {
            self.carry(*to, bytes, bytes.len());
        } else if let Some(port) = self.ports.first() {
            let sent = match travel {
                Travel::Freely => port.udp.send_to(bytes, *to),
                Travel::Whole => port.udp.send_whole(bytes, *to),
                Travel::Briefly => port.udp.send_briefly(bytes, *to),
            };
            self.note_sent(&sent, *to);
        }
    }

    pub(super) fn note_sent(&mut self, sent: &io::Result<usize>, to: SocketAddr) {
        match sent {
            Ok(length) => self.seen.udp_out.count(*length),
            Err(error) => {
                tracing::trace!(%error, %to, "Datagram not sent");
                self.seen.drops.count(DropReason::UdpSend);
            }
        }
    }

    /// Offers packets again that came when nobody knew their peer.
    pub(super) fn resume(&mut self, packets: Vec<OutPacket>) {
        let mut slow = Vec::with_capacity(packets.len());
        let shards = Arc::clone(&self.shards);
        let mut held = shards.hold();
        for packet in packets {
            let Some(realm) = self.tuns.get(&packet.local).map(|tun| tun.realm) else {
                self.drop_out(DropReason::TunMissing, &packet);
                continue;
            };
            let pair = Pair {
                local: packet.local,
                peer: packet.peer,
            };
            let shard = held.at(shards.of_addresses(&packet.bytes));
            match shard.outbound(realm, &packet.bytes, self.now) {
                Outbound::ToPeer(to) if to == pair => {
                    self.show_out(None, &packet);
                    let end = VIRTIO + packet.bytes.len();
                    let Some(place) = self.read.get_mut(VIRTIO..end) else {
                        continue;
                    };
                    place.copy_from_slice(&packet.bytes);
                    self.send_out(&mut held, pair, &VirtioHeader::default(), end, &mut slow);
                }
                Outbound::ToPeer(_) => self.drop_out(DropReason::TunDestination, &packet),
                Outbound::ToUnknown(_) => self.offer(1, FromWorker::Unknown(packet)),
                Outbound::Reset(reason, reset) => {
                    self.show_out(Some(reason), &packet);
                    self.reset(reason, &reset);
                }
                Outbound::Drop(reason) => self.drop_out(reason, &packet),
            }
        }
        drop(held);
        self.flush();
        self.hand_over(slow);
    }

    /// Shows a packet of a local program that was not shown when it was read.
    pub(super) fn show_out(&mut self, dropped: Option<DropReason>, packet: &OutPacket) {
        self.taps.show(Seen {
            at: self.now,
            local: packet.local,
            way: Way::Out,
            dropped,
            bytes: &packet.bytes,
        });
    }

    fn drop_out(&mut self, reason: DropReason, packet: &OutPacket) {
        self.seen.drops.count(reason);
        self.show_out(Some(reason), packet);
    }

    fn reset(&mut self, reason: DropReason, reset: &[u8]) {
        self.seen.drops.count(reason);
        if let Ok(view) = Ipv6View::parse(reset)
            && let Ok(local) = OverlayIp::new(view.destination())
        {
            self.write_tun(local, reset);
        }
    }

    fn hand_over(&mut self, batch: Vec<OutPacket>) {
        if !batch.is_empty() {
            self.offer(batch.len(), FromWorker::Packets(batch));
        }
    }
}

//! To and from gateways that are reached by a connection.

use std::{net::SocketAddr, sync::Arc};

use crate::dataplane::queue::{Carried, FromWorker};
use crate::dataplane::worker::Worker;
use crate::os::udp::Received;
use crate::wire::carrier::is_carrier;
use crate::wire::drop::DropReason;
use crate::wire::ecn::Ecn;

impl Worker {
    /// Takes what a connection brought, as what a socket does.
    pub(super) fn take_carried(&mut self, all: &Carried) {
        let mut other = Vec::new();
        let length = all.bytes.len();
        let Some(place) = self.received.get_mut(..length) else {
            self.seen.drops.count(DropReason::DatagramMalformed);
            return;
        };
        place.copy_from_slice(&all.bytes);
        let received = Received {
            from: all.from,
            length,
            stride: all.stride,
            // TCP has its own, and says nothing of it.
            ecn: Ecn::NotEct,
        };
        let shards = Arc::clone(&self.shards);
        let mut held = shards.hold();
        for start in (0..length).step_by(all.stride) {
            let place = start..length.min(start + all.stride);
            self.take_datagram(&mut held, &received, place, &mut other);
        }
        drop(held);
        self.write_runs();
        if !other.is_empty() {
            self.offer(other.len(), FromWorker::Datagrams(other));
        }
    }

    /// Sends the first batch if a connection takes it.
    pub(super) fn send_carried(&mut self) -> bool {
        let batch = self.batches.first();
        let Some(batch) = batch.filter(|batch| is_carrier(batch.to)) else {
            return false;
        };
        let queue = self.carriers.get(&batch.to);
        let is_taken = queue.is_some_and(|queue| queue.offer(batch.bytes(), batch.stride));
        let (packets, bytes) = (batch.packets as u64, batch.bytes().len() as u64);
        self.batches.sent();
        self.note_carried(is_taken, packets, bytes);
        true
    }

    /// Has datagrams wait for a connection, or counts them as dropped.
    pub(super) fn carry(&mut self, to: SocketAddr, bytes: &[u8], stride: usize) {
        let queue = self.carriers.get(&to);
        let is_taken = queue.is_some_and(|queue| queue.offer(bytes, stride));
        let packets = bytes.len().div_ceil(stride.max(1));
        self.note_carried(is_taken, packets as u64, bytes.len() as u64);
    }

    fn note_carried(&mut self, is_taken: bool, packets: u64, bytes: u64) {
        if is_taken {
            self.seen.udp_out.packets += packets;
            self.seen.udp_out.bytes += bytes;
        } else {
            self.seen.drops.add(DropReason::CarrierQueueFull, packets);
        }
    }
}

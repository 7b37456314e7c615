//! What belongs to pairs, in parts that are locked one by one.
//!
//! Each pair has an owner among the workers, to whom the kernel gives its packets where it can, so
//! that the others seldom touch its part. They may: whatever arrives anywhere is handled right there.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use crate::dataplane::aead::Library;
use crate::dataplane::channels::Channels;
use crate::dataplane::halves::Halves;
use crate::dataplane::owners::Owners;
use crate::dataplane::relay::carries_channel;
use crate::dataplane::switch::{Outbound, Switch};
use crate::dataplane::tables::{Realm, Tables};
use crate::dataplane::tap::Way;
use crate::id::OverlayIp;
use crate::policy::{Pair, Verdict};
use crate::wire::a2g::HEADER;
use crate::wire::drop::DropReason;
use crate::wire::icmp6::{Unreachable, unreachable};

/// Most workers of one node: each has two lanes then.
pub(super) const MAX_WORKERS: usize = Pair::LANES as usize / 2;

/// Where the low byte of a channel's id is in a packet (protocol.md section 7).
const LANE_AT: usize = 7;

/// Returns which of `workers` workers owns `pair`.
pub(super) fn owner(pair: &Pair, workers: usize) -> usize {
    owner_of_lane(pair.lane(), workers)
}

/// Returns which of `workers` workers owns the pairs of a lane, given its number in the low bits.
pub(super) fn owner_of_lane(lane: u8, workers: usize) -> usize {
    usize::from(lane % Pair::LANES) % workers.max(1)
}

/// Returns which of `workers` workers owns the channel that a frame carries a packet of; the first
/// gets what carries none.
pub(super) fn owner_of_frame(frame: &[u8], workers: usize) -> usize {
    let lane = Some(frame).filter(|frame| carries_channel(frame));
    let lane = lane.and_then(|frame| frame.get(HEADER + LANE_AT));
    lane.map_or(0, |lane| owner_of_lane(*lane, workers))
}

/// One owner's pairs.
#[derive(Debug)]
pub(super) struct Shard {
    pub(super) switch: Switch,
    pub(super) channels: Channels,
    pub(super) halves: Halves,
    owners: Owners,
    /// Number of the publication in force.
    published: u64,
}

impl Shard {
    /// Puts a publication in force unless it or a later one is, and returns the resets of connections
    /// that end by it, with the agent whose TUN they go to.
    pub(super) fn publish(
        &mut self,
        number: u64,
        tables: &Arc<Tables>,
        now: Instant,
    ) -> Vec<(OverlayIp, Vec<u8>)> {
        if number <= self.published {
            return Vec::new();
        }
        self.published = number;
        self.owners.forget();
        let resets = self.switch.publish(Arc::clone(tables), now);
        self.channels.retain(|pair| tables.peers.contains_key(pair));
        resets
    }

    /// Judges a packet read from a TUN of `realm`.
    pub(super) fn outbound(&mut self, realm: Realm, bytes: &[u8], now: Instant) -> Outbound {
        let judged = self.switch.outbound(realm, bytes, now);
        let (Outbound::ToPeer(pair) | Outbound::ToUnknown(pair)) = &judged else {
            return judged;
        };
        let bound = self.switch.bound(pair.local);
        if bound.is_none_or(|bound| self.owners.may(bound, bytes, Way::Out, now)) {
            return judged;
        }
        let reason = DropReason::SocketOwner;
        // Who has no right to it is told at once.
        match unreachable(bytes, Unreachable::Prohibited) {
            Some(answer) => Outbound::Reset(reason, answer),
            None => Outbound::Drop(reason),
        }
    }

    /// Judges a packet of a peer's session.
    pub(super) fn inbound(&mut self, pair: Pair, packet: &[u8], now: Instant) -> Verdict {
        let judged = self.switch.inbound(pair, packet, now);
        let bound = self.switch.bound(pair.local);
        let is_passed = judged == Verdict::Pass;
        let may =
            bound.is_none_or(|bound| !is_passed || self.owners.may(bound, packet, Way::In, now));
        if may {
            judged
        } else {
            Verdict::Drop(DropReason::SocketOwner)
        }
    }

    /// Tells whether a packet that came directly is for an agent to whom nobody speaks so.
    pub(super) fn hides_from(&self, packet: &[u8]) -> bool {
        let hidden = self.switch.hidden();
        // Most nodes hide nobody, and look no channel up twice.
        !hidden.is_empty()
            && self
                .channels
                .pair_of(packet)
                .is_some_and(|pair| hidden.contains(&pair.local))
    }
}

/// All parts, one for each worker.
#[derive(Debug)]
pub(super) struct Shards(Vec<Mutex<Shard>>);

impl Shards {
    pub(super) fn new(count: usize, library: Library, now: Instant) -> Self {
        let shard = |_| {
            Mutex::new(Shard {
                switch: Switch::new(now, count),
                channels: Channels::new(library),
                halves: Halves::default(),
                owners: Owners::default(),
                published: 0,
            })
        };
        Self((0..count.max(1)).map(shard).collect())
    }

    pub(super) const fn count(&self) -> usize {
        self.0.len()
    }

    /// Returns where `pair` is.
    pub(super) fn of(&self, pair: &Pair) -> usize {
        owner(pair, self.count())
    }

    /// Returns where the pair is whose channel a packet names.
    pub(super) fn of_channel(&self, packet: &[u8]) -> usize {
        owner_of_lane(packet.get(LANE_AT).copied().unwrap_or(0), self.count())
    }

    /// Returns where the pair of an IP packet's addresses is.
    pub(super) fn of_addresses(&self, packet: &[u8]) -> usize {
        let both = packet.get(8..40).unwrap_or_default();
        let (Some(source), Some(destination)) = (both.first_chunk(), both.last_chunk()) else {
            return 0;
        };
        owner_of_lane(Pair::lane_of(*source, *destination), self.count())
    }

    /// Begins to work on them, one at a time.
    pub(super) const fn hold(&self) -> Held<'_> {
        Held {
            shards: self,
            held: None,
        }
    }
}

/// Holds the part that was used last, so that packets of one pair in a row lock it once.
#[derive(Debug)]
pub(super) struct Held<'a> {
    shards: &'a Shards,
    held: Option<(usize, MutexGuard<'a, Shard>)>,
}

impl Held<'_> {
    /// Returns part `index`; another one is let go first, so that nobody waits holding one.
    pub(super) fn at(&mut self, index: usize) -> &mut Shard {
        let index = index % self.shards.count();
        if self.held.as_ref().is_none_or(|(held, _)| *held != index) {
            self.held = None;
            let shard = self.shards.0.get(index).expect("below their count");
            // Who panicked holding it has ended the data plane; the others only finish.
            let guard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            self.held = Some((index, guard));
        }
        let (_, guard) = self.held.as_mut().expect("just put there");
        guard
    }

    /// Lets go before a call of the kernel, if anybody else could want it meanwhile.
    pub(super) fn pause(&mut self) {
        if self.shards.count() > 1 {
            self.held = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::tables::PeerEntry;
    use crate::dataplane::testing::pair;
    use crate::os::clock;
    use crate::wire::channel::header;

    fn shards(count: usize) -> Shards {
        Shards::new(count, Library::AwsLc, clock::now())
    }

    /// Packets of a pair are of one part, whichever way they go.
    #[test]
    fn a_pair_has_one_owner() {
        for count in 1..=MAX_WORKERS {
            let shards = shards(count);
            for peer in 2..50 {
                let pair = pair(peer);
                let mut packet = [0; 48];
                packet[8..24].copy_from_slice(&pair.local.ip().octets());
                packet[24..40].copy_from_slice(&pair.peer.ip().octets());
                let id = 0xabcd_ef00 | u32::from(pair.lane());

                let owner = shards.of(&pair);

                assert!(owner < count);
                assert_eq!(shards.of_addresses(&packet), owner);
                assert_eq!(shards.of_channel(&header(id, 1)), owner);
            }
        }
        assert_eq!(shards(2).of_addresses(&[1; 39]), 0);
        assert_eq!(shards(2).of_channel(&[1; 7]), 0);
    }

    /// P-015: an older publication that another worker comes to later brings nobody back.
    #[test]
    fn older_tables_do_not_replace_newer_ones() {
        let shards = shards(2);
        let with = |peers: &[u16]| {
            let peers = peers.iter().map(|n| (pair(*n), PeerEntry::default()));
            Arc::new(Tables {
                peers: peers.collect(),
                ..Tables::default()
            })
        };
        let mut held = shards.hold();
        let mut publish = |number, tables| {
            held.at(1).publish(number, &tables, clock::now());
            held.at(1).switch.peers().len()
        };

        assert_eq!(publish(1, with(&[2, 3])), 2);
        assert_eq!(publish(3, with(&[])), 0);
        assert_eq!(publish(2, with(&[2])), 0);
        assert_eq!(publish(3, with(&[2])), 0);
        assert_eq!(publish(4, with(&[2])), 1);
    }

    #[test]
    fn one_part_is_held_at_a_time() {
        let shards = shards(2);
        let mut held = shards.hold();
        held.at(0);
        assert!(shards.0[0].try_lock().is_err() && shards.0[1].try_lock().is_ok());
        held.at(1);
        assert!(shards.0[0].try_lock().is_ok() && shards.0[1].try_lock().is_err());
        held.pause();
        assert!(shards.0[1].try_lock().is_ok());
        held.at(1);
        drop(held);
        assert!(shards.0[1].try_lock().is_ok());
    }
}

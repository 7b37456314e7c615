//! Pure: sealed packets on their way out, gathered so that one call of the kernel sends many.

use std::{collections::VecDeque, net::SocketAddr};

use crate::policy::Pair;
use crate::wire::ecn::Ecn;

/// Packets of one call: what every kernel with UDP_SEGMENT takes (UDP_MAX_SEGMENTS).
const MAX_PACKETS: usize = 64;

/// Bytes of one call: the longest UDP payload over IPv4.
const MAX_BYTES: usize = 65_507;

/// Packets of one pair to one endpoint, all of one size but the last, which may be shorter.
#[derive(Debug)]
pub(super) struct Batch {
    pair: Pair,
    pub(super) to: SocketAddr,
    /// What their IP headers are to say of congestion.
    pub(super) ecn: Ecn,
    /// Size of each packet but the last.
    pub(super) stride: usize,
    pub(super) packets: usize,
    is_over: bool,
    bytes: Vec<u8>,
    length: usize,
}

impl Batch {
    /// Returns the packets, end to end.
    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    fn takes(&self, pair: Pair, to: SocketAddr, ecn: Ecn, size: usize) -> bool {
        !self.is_over
            && self.pair == pair
            && self.to == to
            && self.ecn == ecn
            && size <= self.stride
            && self.packets < MAX_PACKETS
            && self.length + size <= MAX_BYTES
    }
}

/// Batches in the order they are to be sent.
#[derive(Debug, Default)]
pub(super) struct Batches {
    waiting: VecDeque<Batch>,
    /// Emptied ones, so that nothing is allocated again.
    spare: Vec<Batch>,
}

impl Batches {
    /// Returns room for a packet of `size` bytes of `pair` to `to`, marked by `ecn`, which the caller fills whole.
    pub(super) fn place(&mut self, pair: Pair, to: SocketAddr, ecn: Ecn, size: usize) -> &mut [u8] {
        if !self
            .waiting
            .back()
            .is_some_and(|batch| batch.takes(pair, to, ecn, size))
        {
            let mut batch = self.spare.pop().unwrap_or_else(|| Batch {
                pair,
                to,
                ecn,
                stride: size,
                packets: 0,
                is_over: false,
                bytes: vec![0; MAX_BYTES],
                length: 0,
            });
            (batch.pair, batch.to, batch.ecn) = (pair, to, ecn);
            (batch.stride, batch.is_over) = (size, false);
            (batch.packets, batch.length) = (0, 0);
            self.waiting.push_back(batch);
        }
        let batch = self.waiting.back_mut().expect("one was just pushed");
        batch.packets += 1;
        batch.is_over = size < batch.stride;
        let start = batch.length;
        batch.length += size;
        batch
            .bytes
            .get_mut(start..start + size)
            .expect("a packet is not longer than UDP carries")
    }

    /// Takes back the packet placed last.
    pub(super) fn unplace(&mut self, size: usize) {
        if let Some(batch) = self.waiting.back_mut() {
            batch.packets -= 1;
            batch.length -= size;
            if batch.packets == 0 {
                self.spare.extend(self.waiting.pop_back());
            }
        }
    }

    /// Drops what waits of pairs that are no more, and returns how many packets that were.
    pub(super) fn retain(&mut self, is_kept: impl Fn(&Pair) -> bool) -> u64 {
        let before = std::mem::take(&mut self.waiting);
        let (kept, gone) = before.into_iter().partition(|batch| is_kept(&batch.pair));
        self.waiting = kept;
        let gone: VecDeque<Batch> = gone;
        let dropped = gone.iter().map(|batch| batch.packets as u64).sum();
        self.spare.extend(gone);
        dropped
    }

    /// Tells whether a batch is complete, or more than one waits.
    pub(super) fn is_due(&self) -> bool {
        self.waiting.len() > 1
    }

    /// Returns the batch that is to be sent next.
    pub(super) fn first(&self) -> Option<&Batch> {
        self.waiting.front()
    }

    /// Forgets the batch that was sent.
    pub(super) fn sent(&mut self) {
        self.spare.extend(self.waiting.pop_front());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::testing::pair;

    fn to(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    fn shapes(batches: &Batches) -> Vec<(u16, usize, usize, usize)> {
        let shape = |batch: &Batch| {
            (
                batch.to.port(),
                batch.stride,
                batch.packets,
                batch.bytes().len(),
            )
        };
        batches.waiting.iter().map(shape).collect()
    }

    #[test]
    fn packets_of_one_size_and_endpoint_go_together() {
        let mut batches = Batches::default();

        for (port, size) in [(1, 100), (1, 100), (1, 40), (1, 100), (2, 100), (2, 200)] {
            batches.place(pair(2), to(port), Ecn::NotEct, size).fill(7);
        }

        let shapes = shapes(&batches);
        let expected = [
            (1, 100, 3, 240),
            (1, 100, 1, 100),
            (2, 100, 1, 100),
            (2, 200, 1, 200),
        ];
        assert_eq!(shapes, expected);
        assert!(batches.is_due() && batches.first().unwrap().bytes() == [7; 240]);
    }

    /// One call of the kernel gives all its packets one mark.
    #[test]
    fn packets_of_one_mark_go_together() {
        let mut batches = Batches::default();
        for ecn in [Ecn::Ect0, Ecn::Ect0, Ecn::Ce, Ecn::Ect0] {
            batches.place(pair(2), to(1), ecn, 100);
        }

        let marks = batches.waiting.iter().map(|one| (one.ecn, one.packets));
        let expected = [(Ecn::Ect0, 2), (Ecn::Ce, 1), (Ecn::Ect0, 1)];
        assert_eq!(marks.collect::<Vec<_>>(), expected);
    }

    /// P-014: what the socket did not take before a consent was taken back is not sent after it,
    /// though another peer be at the same endpoint.
    #[test]
    fn what_waits_of_a_pair_that_is_no_more_is_dropped() {
        let mut batches = Batches::default();
        for peer in [2, 3, 3, 2] {
            let number = u8::try_from(peer).unwrap();
            batches
                .place(pair(peer), to(1), Ecn::NotEct, 100)
                .fill(number);
        }

        let dropped = batches.retain(|kept| *kept == pair(3));

        assert_eq!(dropped, 2);
        assert_eq!(batches.first().unwrap().bytes(), [3; 200]);
        batches.sent();
        assert!(batches.first().is_none());
    }

    #[test]
    fn a_batch_is_no_longer_than_the_kernel_takes() {
        let mut batches = Batches::default();
        for _ in 0..130 {
            batches.place(pair(2), to(1), Ecn::NotEct, 1312);
        }
        let long = shapes(&batches);
        assert_eq!(long[0], (1, 1312, 49, 49 * 1312));

        let mut batches = Batches::default();
        for _ in 0..130 {
            batches.place(pair(2), to(1), Ecn::NotEct, 100);
        }
        assert_eq!(shapes(&batches)[0].2, MAX_PACKETS);
        batches.sent();
        batches.sent();
        batches.sent();
        assert!(batches.first().is_none());
        batches.place(pair(2), to(2), Ecn::NotEct, 10);
        batches.unplace(10);
        assert!(batches.first().is_none());
    }
}

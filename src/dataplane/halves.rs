//! Pure: packets that came in halves (protocol.md section 8), each half authentic by itself.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::policy::Pair;
use crate::wire::channel::{half_header, parse_half};
use crate::wire::ecn::Ecn;

/// Halves that wait for their other half: as many as one burst brings.
const MAX_WAITING: usize = 128;

/// How long one waits. Numbers come again after 65,536 packets, which takes longer.
const PATIENCE: Duration = Duration::from_millis(500);

#[derive(Debug)]
struct Half {
    pair: Pair,
    id: u16,
    is_second: bool,
    at: Instant,
    ecn: Ecn,
    bytes: Vec<u8>,
}

/// Makes halves, and joins those that came.
#[derive(Debug, Default)]
pub(super) struct Halves {
    waiting: VecDeque<Half>,
    next: u16,
}

impl Halves {
    /// Cuts a packet in its halves, each with what stands before it.
    pub(super) fn cut(&mut self, packet: &[u8]) -> [Vec<u8>; 2] {
        self.next = self.next.wrapping_add(1);
        let (first, second) = packet.split_at(packet.len().div_ceil(2));
        let id = self.next;
        [(first, false), (second, true)]
            .map(|(half, is_second)| [&half_header(id, is_second), half].concat())
    }

    /// Takes half of a packet of `pair`'s peer, around which was said `ecn` of congestion, and returns
    /// the packet that it completes with what was said of both.
    pub(super) fn take(
        &mut self,
        pair: Pair,
        plain: &[u8],
        ecn: Ecn,
        now: Instant,
    ) -> Option<(Vec<u8>, Ecn)> {
        let (id, is_second, bytes) = parse_half(plain)?;
        let is_old = |half: &Half| now.saturating_duration_since(half.at) >= PATIENCE;
        while self.waiting.front().is_some_and(is_old) || self.waiting.len() >= MAX_WAITING {
            self.waiting.pop_front();
        }
        let other = self
            .waiting
            .iter()
            .position(|half| half.pair == pair && half.id == id && half.is_second != is_second);
        let Some(other) = other.and_then(|at| self.waiting.remove(at)) else {
            let bytes = bytes.to_vec();
            self.waiting.push_back(Half {
                pair,
                id,
                is_second,
                at: now,
                ecn,
                bytes,
            });
            return None;
        };
        let (first, second) = if is_second {
            (other.bytes.as_slice(), bytes)
        } else {
            (bytes, other.bytes.as_slice())
        };
        Some(([first, second].concat(), other.ecn.joined(ecn)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::testing::pair;
    use crate::os::clock;
    use crate::wire::channel::HALF_HEADER;

    fn half(id: u16, is_second: bool, bytes: &[u8]) -> Vec<u8> {
        [&half_header(id, is_second), bytes].concat()
    }

    #[test]
    fn halves_join_in_either_order_and_of_one_peer_only() {
        let (mut halves, now) = (Halves::default(), clock::now());
        assert_eq!(
            halves.take(pair(2), &half(7, false, b"six"), Ecn::Ect0, now),
            None
        );
        assert_eq!(
            halves.take(pair(3), &half(7, true, b"teen"), Ecn::Ect0, now),
            None
        );
        assert_eq!(
            halves.take(pair(2), &half(8, true, b"teen"), Ecn::Ect0, now),
            None
        );

        let joined = halves.take(pair(2), &half(7, true, b"ty"), Ecn::Ect0, now);
        assert_eq!(joined.unwrap(), (b"sixty".to_vec(), Ecn::Ect0));
        let joined = halves.take(pair(2), &half(8, false, b"four"), Ecn::Ect0, now);
        assert_eq!(joined.unwrap().0, b"fourteen");
        // Joined once.
        assert_eq!(
            halves.take(pair(2), &half(7, true, b"ty"), Ecn::Ect0, now),
            None
        );
    }

    /// What one end cuts the other joins, whatever its length.
    #[test]
    fn cut_packets_join() {
        let (mut sender, mut receiver, now) = (Halves::default(), Halves::default(), clock::now());
        for length in [0_usize, 1, 1001, 1280] {
            let packet = vec![7; length];
            let [first, second] = sender.cut(&packet);
            assert!(first.len().max(second.len()) <= length.div_ceil(2) + HALF_HEADER);

            assert_eq!(receiver.take(pair(2), &first, Ecn::Ect0, now), None);
            let joined = receiver.take(pair(2), &second, Ecn::Ce, now);
            assert_eq!(joined, Some((packet, Ecn::Ce)));
        }
    }

    #[test]
    fn lone_halves_are_forgotten() {
        let (mut halves, now) = (Halves::default(), clock::now());
        for id in 0..1000 {
            halves.take(pair(2), &half(id, false, b"six"), Ecn::Ect0, now);
        }
        assert!(halves.waiting.len() <= MAX_WAITING);

        let late = now + PATIENCE;
        assert_eq!(
            halves.take(pair(2), &half(999, true, b"ty"), Ecn::Ect0, late),
            None
        );
        assert_eq!(halves.waiting.len(), 1);
    }

    #[test]
    fn whole_packets_are_no_halves() {
        let (mut halves, now) = (Halves::default(), clock::now());
        for plain in [
            &[0x60, 0, 0, 1][..],
            &[0x45],
            &[2, 0, 0, 0],
            &[0, 1, 0, 0],
            &[0],
        ] {
            assert_eq!(halves.take(pair(2), plain, Ecn::Ect0, now), None);
        }
        assert!(halves.waiting.is_empty());
    }
}

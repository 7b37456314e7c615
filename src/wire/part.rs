use std::time::{Duration, Instant};

use crate::statement::MAX_STATEMENT;
use crate::wire::control::{Control, MAX_PART, Part};

/// Longest reassembled message: a statement and what stands before it in its message.
const MAX_MESSAGE: usize = MAX_STATEMENT + 128; // bytes

/// How long the pieces of one message may take to come in (protocol.md section 6).
const PATIENCE: Duration = Duration::from_secs(2);

/// Puts one message of a session together from its Parts, in any order.
///
/// A Part of another message starts anew, so an abandoned message costs nothing.
#[derive(Debug, Default)]
pub struct Reassembler {
    /// None while no message is under way.
    under_way: Option<UnderWay>,
}

#[derive(Debug)]
struct UnderWay {
    message: u32,
    since: Instant,
    /// None for a piece that has not come.
    pieces: Vec<Option<Vec<u8>>>,
}

impl Reassembler {
    /// Takes a Part and returns the message it completes, which is never a Part.
    pub fn take(&mut self, part: Part, now: Instant) -> Option<Control> {
        let of = usize::from(part.of);
        if of > MAX_MESSAGE.div_ceil(MAX_PART) {
            return None;
        }
        let continues = self.under_way.as_ref().is_some_and(|u| {
            u.message == part.message && u.pieces.len() == of && now < u.since + PATIENCE
        });
        if !continues {
            self.under_way = Some(UnderWay {
                message: part.message,
                since: now,
                pieces: vec![None; of],
            });
        }
        let pieces = &mut self.under_way.as_mut()?.pieces;
        *pieces.get_mut(usize::from(part.n))? = Some(part.bytes);
        if pieces.iter().any(Option::is_none) {
            return None;
        }
        let bytes = self.under_way.take()?.pieces.into_iter().flatten();
        let bytes = bytes.collect::<Vec<_>>().concat();
        let whole = Some(bytes)
            .filter(|b| b.len() <= MAX_MESSAGE)
            .and_then(|b| Control::decode(&b));
        whole.filter(|message| !matches!(message, Control::Part(_)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn attach(length: usize) -> Control {
        let record = "r".repeat(length);
        Control::Attach { record }
    }

    fn parts(message: &Control, id: u32) -> Vec<Part> {
        let packets = message.packets(id).into_iter();
        let part = |p: Vec<u8>| match Control::parse(&p) {
            Some(Control::Part(part)) => part,
            other => panic!("{other:?}"),
        };
        packets.map(part).collect()
    }

    #[expect(clippy::disallowed_methods, reason = "tests need an epoch")]
    fn start() -> Instant {
        Instant::now()
    }

    /// Found by fuzzing.
    #[test]
    fn a_part_is_not_made_of_parts() {
        let inner = Control::Part(Part {
            message: 1,
            n: 0,
            of: 1,
            bytes: vec![7],
        });
        let bytes = inner.encode().unwrap();
        let outer = Part {
            message: 2,
            n: 0,
            of: 1,
            bytes,
        };

        assert_eq!(Reassembler::default().take(outer, start()), None);
    }

    #[test]
    fn a_message_that_takes_longer_than_2_s_is_given_up() {
        let (mut reassembler, now) = (Reassembler::default(), start());
        let mut parts = parts(&attach(2000), 1);
        let last = parts.pop().unwrap();

        let early = parts.into_iter().find_map(|p| reassembler.take(p, now));
        let late = reassembler.take(last, now + PATIENCE);

        assert_eq!((early, late), (None, None));
    }

    #[test]
    fn a_new_message_takes_the_place_of_an_unfinished_one() {
        let (mut reassembler, now) = (Reassembler::default(), start());
        let first = parts(&attach(2000), 1).remove(0);

        let nothing = reassembler.take(first, now);
        let whole = parts(&attach(3000), 2)
            .into_iter()
            .find_map(|p| reassembler.take(p, now));

        assert_eq!((nothing, whole), (None, Some(attach(3000))));
    }

    #[test]
    fn more_parts_than_the_longest_message_has_are_refused() {
        let mut reassembler = Reassembler::default();
        let part = Part {
            message: 1,
            n: 0,
            of: 255,
            bytes: vec![0; 9],
        };

        assert_eq!(reassembler.take(part, start()), None);
        assert!(reassembler.under_way.is_none());
    }

    proptest! {
        #[test]
        fn parts_in_any_order_make_the_message(
            length in 1200_usize..MAX_STATEMENT, order in any::<prop::sample::Index>(),
        ) {
            let (mut reassembler, now) = (Reassembler::default(), start());
            let mut parts = parts(&attach(length), 1);
            let turn = order.index(parts.len());
            parts.rotate_left(turn);
            parts.push(parts[0].clone());

            let made = parts.into_iter().find_map(|p| reassembler.take(p, now));

            prop_assert_eq!(made, Some(attach(length)));
        }
    }
}

//! Pure: which of the frames received together go on together.

use std::{collections::VecDeque, net::SocketAddr, ops::Range};

/// Frames to one endpoint that lie end to end in the buffer they came in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Run {
    pub to: SocketAddr,
    /// Where in the buffer they are.
    pub place: Range<usize>,
    /// Bytes of each frame but the last, which may be shorter.
    pub stride: usize,
}

/// The runs of one batch, in the order their frames came.
#[derive(Debug, Default)]
pub(crate) struct Runs {
    waiting: VecDeque<Run>,
}

impl Runs {
    /// Begins with another buffer.
    pub(crate) fn clear(&mut self) {
        self.waiting.clear();
    }

    /// Adds the frame at `place`, which goes on to `to`.
    pub(crate) fn add(&mut self, to: SocketAddr, place: Range<usize>) {
        match self.waiting.back_mut() {
            Some(run) if run.takes(to, &place) => run.place.end = place.end,
            Some(_) | None => {
                let stride = place.len();
                self.waiting.push_back(Run { to, place, stride });
            }
        }
    }

    /// Takes out the next run.
    pub(crate) fn poll(&mut self) -> Option<Run> {
        self.waiting.pop_front()
    }
}

impl Run {
    /// Tells whether the frame at `place` can go in the same call.
    fn takes(&self, to: SocketAddr, place: &Range<usize>) -> bool {
        // Only the last frame of a call may be shorter than the others.
        let is_whole = self.place.len().is_multiple_of(self.stride.max(1));
        let is_next = self.place.end == place.start;
        self.to == to && is_next && is_whole && place.len() <= self.stride
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn to(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    fn shapes(runs: &mut Runs) -> Vec<(u16, Range<usize>, usize)> {
        let all = std::iter::from_fn(|| runs.poll());
        all.map(|run| (run.to.port(), run.place, run.stride))
            .collect()
    }

    #[test]
    fn neighbours_of_one_size_and_endpoint_go_together() {
        let mut runs = Runs::default();
        runs.add(to(9), 0..10);
        runs.clear();

        // 200..300 went nowhere; 600..640 is shorter, so that nothing follows it.
        for (port, place) in [
            (1, 0..100),
            (1, 100..200),
            (1, 300..400),
            (2, 400..500),
            (2, 500..600),
            (2, 600..640),
            (2, 640..680),
            (2, 680..780),
        ] {
            runs.add(to(port), place);
        }

        let expected = [
            (1, 0..200, 100),
            (1, 300..400, 100),
            (2, 400..640, 100),
            (2, 640..680, 40),
            (2, 680..780, 100),
        ];
        assert_eq!(shapes(&mut runs), expected);
    }

    proptest! {
        /// Cut at its stride, each run gives back exactly the frames that were added, in their order.
        #[test]
        fn runs_are_cut_into_the_frames_they_are_of(
            frames in prop::collection::vec((0_u16..4, 1_usize..4), 0..100),
        ) {
            let (mut runs, mut at, mut added) = (Runs::default(), 0, vec![]);
            for (port, size) in frames {
                let place = at..at + size;
                at = place.end;
                // To port 0 means dropped.
                if port > 0 {
                    runs.add(to(port), place.clone());
                    added.push((port, place));
                }
            }

            let mut cut = vec![];
            for (port, place, stride) in shapes(&mut runs) {
                for start in place.clone().step_by(stride) {
                    cut.push((port, start..place.end.min(start + stride)));
                }
            }
            prop_assert_eq!(cut, added);
        }
    }
}

//! Ids of the frames that the engine and the workers make of one hop.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use crate::engine::hop::FrameIds;

#[derive(Debug)]
struct Ids(AtomicU64);

/// Makes what hands out the ids of a hop's frames from `first` on, for
/// [`crate::engine::Engine::set_frame_ids`].
pub fn frame_ids(first: u64) -> Arc<dyn FrameIds> {
    Arc::new(Ids(AtomicU64::new(first)))
}

impl FrameIds for Ids {
    fn take(&self) -> u64 {
        // Each is given out once, whatever else the threads see in which order.
        self.0.fetch_add(1, Ordering::Relaxed)
    }

    fn peek(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::BTreeSet, thread};

    /// No id comes twice, whoever asks.
    #[test]
    fn threads_share_ids_without_sharing_one() {
        let ids = frame_ids(7);
        let take = || (0..10_000).map(|_| ids.take()).collect::<Vec<_>>();

        let taken = thread::scope(|scope| {
            let threads = [(); 4].map(|()| scope.spawn(take));
            threads.map(|thread| thread.join().unwrap())
        });

        let rise = |one: &Vec<u64>| one.is_sorted_by(|a, b| a < b);
        assert!(taken.iter().all(rise));
        let all = taken.iter().flatten().copied().collect::<BTreeSet<_>>();
        assert_eq!(all, (7..40_007).collect());
        assert_eq!(ids.peek(), 40_007);
    }
}

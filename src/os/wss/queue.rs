//! Datagrams that wait for a connection: bounded in bytes, so that nobody waits for who does not read.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use tokio::sync::mpsc;

/// Bytes that wait for one connection: 50 ms at 40 Mb/s.
const MAX_QUEUED: usize = 256 << 10;

/// Bytes that wait for all connections together.
const MAX_QUEUED_ALL: usize = 256 << 20;

/// Batches that wait for one connection.
const MAX_BATCHES: usize = 512;

/// What waits for all connections together.
#[derive(Clone, Debug, Default)]
pub struct Total(Arc<AtomicUsize>);

/// The end of a queue that never waits.
#[derive(Clone, Debug)]
pub struct Queue {
    batches: mpsc::Sender<Batch>,
    bytes: Arc<AtomicUsize>,
    total: Total,
    is_refused: Arc<AtomicBool>,
}

/// The end of a queue at the connection.
#[derive(Debug)]
pub struct Waiting {
    batches: mpsc::Receiver<Batch>,
    is_refused: Arc<AtomicBool>,
}

/// Datagrams that lie end to end, each but the last `stride` bytes long.
#[derive(Debug)]
pub struct Batch {
    pub(super) bytes: Vec<u8>,
    pub(super) stride: usize,
    /// They wait until they are dropped or sent.
    _counted: Counted,
}

impl Batch {
    /// Returns the datagrams one by one.
    pub fn datagrams(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes.chunks(self.stride.max(1))
    }
}

#[derive(Debug)]
struct Counted {
    size: usize,
    bytes: Arc<AtomicUsize>,
    total: Total,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.bytes.fetch_sub(self.size, Ordering::Relaxed);
        self.total.0.fetch_sub(self.size, Ordering::Relaxed);
    }
}

/// Makes the queue of one connection; what waits counts for `total` as well.
pub fn queue(total: &Total) -> (Queue, Waiting) {
    let (batches, waiting) = mpsc::channel(MAX_BATCHES);
    let queue = Queue {
        batches,
        bytes: Arc::default(),
        total: total.clone(),
        is_refused: Arc::default(),
    };
    let waiting = Waiting {
        batches: waiting,
        is_refused: Arc::clone(&queue.is_refused),
    };
    (queue, waiting)
}

impl Queue {
    /// Has datagrams wait that lie end to end, each but the last `stride` bytes long; false when too
    /// much does already, or the connection is gone.
    pub fn offer(&self, bytes: &[u8], stride: usize) -> bool {
        if self.is_refused.load(Ordering::Relaxed) {
            return false;
        }
        let size = bytes.len();
        let counted = Counted {
            size,
            bytes: Arc::clone(&self.bytes),
            total: self.total.clone(),
        };
        let before = self.bytes.fetch_add(size, Ordering::Relaxed);
        let before_all = self.total.0.fetch_add(size, Ordering::Relaxed);
        if before + size > MAX_QUEUED || before_all + size > MAX_QUEUED_ALL {
            return false;
        }
        let batch = Batch {
            bytes: bytes.to_vec(),
            stride,
            _counted: counted,
        };
        self.batches.try_send(batch).is_ok()
    }
}

impl Waiting {
    /// Waits for datagrams; None once nobody can offer any.
    ///
    /// # Cancel safety
    ///
    /// Loses nothing.
    pub async fn next(&mut self) -> Option<Batch> {
        self.batches.recv().await
    }

    /// Refuses what is offered from now on, and drops what waits; or takes it again.
    pub fn refuse(&mut self, is_refused: bool) {
        self.is_refused.store(is_refused, Ordering::Relaxed);
        while is_refused && self.next_now().is_some() {}
    }

    /// Returns datagrams that wait already.
    pub fn next_now(&mut self) -> Option<Batch> {
        self.batches.try_recv().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_bounded_in_bytes_and_comes_free() {
        let total = Total::default();
        let (queue, mut waiting) = queue(&total);
        let batch = vec![0; 64 << 10];

        let taken = (0..10).filter(|_| queue.offer(&batch, 1000)).count();
        let first = waiting.next_now();
        drop(first);

        assert_eq!(taken, 4);
        assert!(queue.offer(&batch, 1000) && !queue.offer(&batch, 1000));
        while waiting.next_now().is_some() {}
        assert_eq!(total.0.load(Ordering::Relaxed), 0);
        drop(waiting);
        assert!(!queue.offer(&batch, 1000));
    }

    #[test]
    fn what_is_refused_does_not_wait() {
        let (queue, mut waiting) = queue(&Total::default());
        assert!(queue.offer(&[7], 1));

        waiting.refuse(true);
        let meanwhile = queue.offer(&[7], 1);
        waiting.refuse(false);

        assert!(!meanwhile && waiting.next_now().is_none());
        assert!(queue.offer(&[7], 1) && waiting.next_now().is_some());
    }

    #[test]
    fn many_small_batches_are_bounded_too() {
        let (queue, _waiting) = queue(&Total::default());

        let taken = (0..1000).filter(|_| queue.offer(&[7], 1)).count();

        assert_eq!(taken, MAX_BATCHES);
    }
}

//! Datagrams of connections, which go to workers as those of sockets do.

use std::{net::SocketAddr, sync::Arc};

use tokio::sync::OwnedSemaphorePermit;

use crate::dataplane::queue::{Command, DataplaneHandle};
use crate::dataplane::shard::owner_of_frame;
use crate::os::wss::Queue;

/// Datagrams of a connection that lie end to end, each but the last `stride` bytes long.
#[derive(Debug)]
pub(in crate::dataplane) struct Carried {
    pub(in crate::dataplane) from: SocketAddr,
    pub(in crate::dataplane) bytes: Vec<u8>,
    pub(in crate::dataplane) stride: usize,
    /// Given back once they were looked at: no connection brings more than its share before that.
    _share: Arc<OwnedSemaphorePermit>,
}

impl Carried {
    pub(super) fn count(&self) -> usize {
        self.bytes.len().div_ceil(self.stride)
    }
}

impl DataplaneHandle {
    /// Has datagrams to `at`, which stands for a connection, wait in `queue`.
    pub fn set_carrier(&self, at: SocketAddr, queue: &Queue) {
        for lane in &self.0.lanes {
            lane.submit(Command::Carrier(at, queue.clone()));
        }
    }

    /// Takes datagrams that a connection brought, as if a socket had; they lie end to end, each but
    /// the last `stride` bytes long, and `share` is given back when they were looked at.
    pub fn receive(
        &self,
        from: SocketAddr,
        bytes: Vec<u8>,
        stride: usize,
        share: OwnedSemaphorePermit,
    ) {
        let (stride, share) = (stride.max(1), Arc::new(share));
        let parts = parts(bytes, stride, self.0.lanes.len());
        for (lane, bytes) in self.0.lanes.iter().zip(parts) {
            if !bytes.is_empty() {
                lane.submit(Command::Carried(Carried {
                    from,
                    bytes,
                    stride,
                    _share: Arc::clone(&share),
                }));
            }
        }
    }
}

/// Gives each worker the datagrams of its own pairs, in order; most often one gets them all.
fn parts(bytes: Vec<u8>, stride: usize, workers: usize) -> Vec<Vec<u8>> {
    let owners = bytes.chunks(stride).map(|one| owner_of_frame(one, workers));
    let owners = owners.collect::<Vec<_>>();
    let mut parts = vec![Vec::new(); workers];
    match owners.first().and_then(|first| parts.get_mut(*first)) {
        Some(part) if owners.windows(2).all(|two| two.first() == two.last()) => *part = bytes,
        Some(_) | None => {
            for (one, owner) in bytes.chunks(stride).zip(owners) {
                if let Some(part) = parts.get_mut(owner) {
                    part.extend_from_slice(one);
                }
            }
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::a2g::HEADER;

    /// A frame with a packet of the data channel `id`.
    fn frame(id: u8, fill: u8) -> Vec<u8> {
        let mut frame = vec![fill; HEADER + 40];
        frame[0] = 0xa2;
        frame[1] = 0x10;
        frame[HEADER..HEADER + 4].copy_from_slice(&[0x20, 0, 0, 0]);
        frame[HEADER + 4..HEADER + 8].copy_from_slice(&[9, 9, 9, id]);
        frame
    }

    #[test]
    fn each_worker_gets_the_frames_of_its_channels_in_order() {
        let stride = frame(0, 0).len();
        let of = |all: &[Vec<u8>]| parts(all.concat(), stride, 2);

        let mixed = of(&[frame(0, 1), frame(1, 2), frame(2, 3), vec![0xa2; 56]]);
        let same = of(&[frame(3, 1), frame(1, 2), frame(5, 3)]);

        assert_eq!(
            mixed[0],
            [frame(0, 1), frame(2, 3), vec![0xa2; 56]].concat()
        );
        assert_eq!(mixed[1], frame(1, 2));
        assert_eq!(same[1], [frame(3, 1), frame(1, 2), frame(5, 3)].concat());
        assert!(same[0].is_empty() && of(&[]).iter().all(Vec::is_empty));
    }
}

//! Worker threads that move packets between TUN and UDP.
//!
//! Each has a queue of every TUN device and a UDP socket of its own, and carries what comes from
//! there to the end. They decide what may pass by the [`Tables`] the engine publishes, and exchange
//! batches with the engine over bounded queues.

mod aead;
mod batch;
mod channels;
mod counters;
mod crypt;
mod halves;
mod ids;
#[doc(hidden)]
pub mod measure;
mod memo;
mod offload;
mod owners;
mod queue;
mod relay;
mod shard;
mod steer;
mod switch;
mod tables;
mod tap;
#[cfg(test)]
mod testing;
mod worker;

pub use counters::{Snapshot, Traffic};
pub use ids::frame_ids;
pub use queue::{DataplaneHandle, Device, FromWorker, InPacket, OutPacket, Published};
pub use steer::SOCKETS;
pub use tables::{Bound, PeerEntry, Realm, Tables};
pub use tap::{Capture, Seen, Tap, Tapped, Taps, Wanted, Way};
pub use worker::{DataplaneConfig, start};

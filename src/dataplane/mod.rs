//! Worker threads that move packets between TUN and UDP.
//!
//! One thread owns the TUN devices and the UDP socket. It decides what may pass by the [`Tables`]
//! the engine publishes, and exchanges batches with the engine over bounded queues.

mod aead;
mod batch;
mod channels;
mod counters;
mod crypt;
mod halves;
mod ids;
mod memo;
mod offload;
mod queue;
mod relay;
mod switch;
mod tables;
#[cfg(test)]
mod testing;
mod worker;

pub use counters::{Snapshot, Traffic};
pub use ids::frame_ids;
pub use queue::{DataplaneHandle, Device, FromWorker, InPacket, OutPacket, Published};
pub use tables::{PeerEntry, Realm, Tables};
pub use worker::{DataplaneConfig, start};

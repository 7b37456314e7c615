//! Worker threads that move packets between TUN and UDP.
//!
//! One thread owns the TUN devices and the UDP socket. It decides what may pass by the [`Tables`]
//! the engine publishes, and exchanges batches with the engine over bounded channels.

mod channel;
mod counters;
mod switch;
mod tables;
mod worker;

pub use channel::{DataplaneHandle, FromWorker, InPacket, OutPacket, Published};
pub use counters::{Snapshot, Traffic};
pub use tables::{PeerEntry, Realm, Tables};
pub use worker::{DataplaneConfig, start};

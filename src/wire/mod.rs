//! Bytes to types: views, frames and messages of every protocol spoken here; total parsers, no state.

pub mod a2g;
pub mod api;
pub mod binding;
pub mod candidate;
pub mod carrier;
pub mod channel;
pub mod control;
pub mod datagram;
pub mod discover;
pub mod dns;
pub mod drop;
pub mod ecn;
mod extensions;
pub mod have;
pub mod icmp6;
pub mod ip;
pub mod mesh;
pub mod metrics;
pub mod part;
pub mod pcapng;
pub mod srv;
pub mod stun;

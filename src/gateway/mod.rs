//! The gateway: attachments, forwarding table and frames.

pub mod alternates;
mod attach;
pub mod batch;
pub mod core;
mod discover;
mod forward;
mod links;
pub mod measure;
mod mesh;
pub mod metrics;
mod mft;
mod port;
pub mod quota;
pub mod rate;
pub mod recovery;
mod routes;
pub mod server;
mod share;
pub mod status;
mod stun;
pub mod wss;

//! The gateway: attachments, forwarding table and frames.

mod attach;
pub mod batch;
pub mod core;
mod discover;
mod forward;
mod links;
pub mod measure;
mod mesh;
mod mft;
pub mod quota;
pub mod recovery;
mod routes;
pub mod server;
pub mod status;
pub mod wss;

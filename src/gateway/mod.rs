//! The gateway: attachments, forwarding table and frames.

mod attach;
pub mod batch;
pub mod core;
mod forward;
pub mod measure;
mod mft;
pub mod recovery;
pub mod server;
pub mod status;
pub mod wss;

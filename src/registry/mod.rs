//! The registry: mailbox and directory of a domain.

pub mod api;
pub mod auth;
pub mod authorize;
pub mod client;
pub mod enroll;
pub mod init;
pub mod limits;
pub mod metrics;
pub mod server;
pub mod sse;
pub mod store;
pub mod watch;

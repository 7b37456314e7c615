//! The bodies of the HTTP interfaces: the registry's (protocol.md section 3) and their errors.

pub mod local;
pub mod problem;
pub mod registry;

//! agentnet: a virtual network card for AI agents.
//!
//! Modules stand in layers; each uses only those before it (`tests/layers.rs` holds this):
//! `id -> statement -> wire -> policy -> config -> engine -> os -> dataplane -> gateway ->
//! registry -> node -> cli`. The first four and `engine` are pure: time and randomness are inputs.

pub mod cli;
pub mod config;
pub mod dataplane;
pub mod engine;
pub mod gateway;
pub mod id;
pub mod node;
pub mod os;
pub mod policy;
pub mod registry;
pub mod statement;
pub mod wire;

//! The node daemon around the engine.

pub mod agent;
pub mod alone;
pub mod carriers;
pub mod causes;
mod control;
pub mod daemon;
pub mod dev;
pub mod driver;
pub mod gateway;
mod gateways;
mod host_dns;
pub mod join;
pub mod local_api;
mod metrics;
mod names;
pub mod netcheck;
mod network;
pub mod owner;
mod portmap;
mod punch;
pub mod resolver;
mod running;
pub mod sandbox;
pub mod serve;
pub mod store;
mod suspend;
mod sync;

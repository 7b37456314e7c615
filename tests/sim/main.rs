//! Scenarios in simulated time: nothing here waits, and the same seed gives the same bytes.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod attach;
mod border;
mod channel;
mod clock;
mod first_light;
mod gateway;
mod gossip;
mod homes;
mod hostile;
mod lessons;
mod many;
mod mesh;
mod motion;
mod network;
mod pair;
mod paths;
mod session;
mod skew;
mod twin;
mod wireguard;
mod world;

//! A real registry on a loopback socket, and real clients, honest and hostile.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod authority;
mod evil;
mod gateways;
mod hostile;
mod joining;
mod leaving;
mod lifecycle;
mod pinned;
mod support;
mod trust;
mod watching;
mod work;

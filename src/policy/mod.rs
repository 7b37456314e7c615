//! What may pass: consent scopes and the stateful filter, without I/O.

mod filter;
mod flow;
mod fragment;
mod pair;
#[cfg(test)]
mod tests;

pub use filter::{Filter, Limits, Pair, Verdict};
pub use flow::TcpFlow;

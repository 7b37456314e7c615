//! Pure: packets longer than the path, as the kernel hands them over and takes them.
//!
//! A TUN with a virtio header gives a TCP or UDP "super-packet" with up to 64 KiB of payload and
//! lets us cut it ([`split()`]), and takes one in place of many packets of a flow ([`Merger`]). Only
//! IPv6 is handled, since the overlay carries nothing else.

mod checksum;
mod header;
mod merge;
mod split;
#[cfg(test)]
mod tests;

pub(super) use header::{VIRTIO, VirtioHeader};
pub(super) use merge::{Merger, Run, Takes};
pub(super) use split::{DEFAULT_MTU, Unfit, clamp, split};

//! Who is who: keys, addresses and names, without I/O.

mod address;
mod key;
mod name;
mod time;

pub use address::{AddressError, DomainPrefix, NetworkPrefix, OverlayIp};
pub use key::{
    AgentId, Did, DomainId, IdentityKey, KeyError, NetworkId, PresharedKey, TunnelKey,
    TunnelSecret, WireGuardKey,
};
pub use name::{FullName, Label, MemberName, NameError, NamePattern, Suffix};
pub use time::UnixTime;

use aws_lc_rs::digest::{Context, SHA256};

/// Returns SHA-256 over the parts, each preceded by its length as u64 big-endian (protocol.md: `H`).
pub fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

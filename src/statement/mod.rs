//! Signed claims: every authority, name, consent and revocation of the overlay (protocol.md section 2).
//!
//! A [`Statement`] is a compact JWT (RFC 7519, EdDSA by RFC 8037) whose signature, kind, version
//! and size were checked when it was opened. What it means in a network is decided by [`chain`].

pub mod chain;
mod envelope;
pub mod issue;
mod kinds;
pub mod peering;
mod revoked;
mod scope;
mod seen;
pub mod token;

pub use chain::{
    Authority, Chain, ChainError, Gate, Member, verify_pending_record_of, verify_record,
    verify_record_of,
};
pub use envelope::{
    Claims, Head, MAX_STATEMENT, Statement, StatementError, StatementHash, kind_of,
};
pub use kinds::{
    Admission, Auth, Consent, ConsentState, EPHEMERAL_NAME, Gateway, Grant, NamePatterns, Record,
    Registry, Request, Revocation, RevokedKey, Role, RootClaims, TokenClaims,
};
pub use revoked::Revocations;
pub use scope::{Protocol, Scope, ScopeError};
pub use seen::{Replayed, Seen};

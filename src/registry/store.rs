//! What a registry remembers, behind a trait so that another database can take SQLite's place.
//!
//! Every change of a network raises that network's version, and every row carries the version it
//! was last changed at. A watcher that knows a version therefore needs no log of events: what
//! changed since is what has a higher one. Changes that gateways see have a version of the domain.

mod rows;
pub mod sqlite;

use std::fmt;
use std::path::PathBuf;

use async_trait::async_trait;
use thiserror::Error;

use crate::id::{AgentId, Did, MemberName, NetworkId, UnixTime};

pub use rows::{
    Change, Counts, Creation, Departure, Farewell, JoinOutcome, Joining, Kept, NetworkRow,
    NewConsent, NewGateway, NewNetwork, NewRecord, NewRequest, NewRevocation, NewToken, Page,
    RecordRow, Sequence, TokenRow, Whom,
};

/// Why the store could not answer.
#[derive(Debug, Error)]
pub enum StoreError {
    #[error("{} is missing; restore it from a backup or run `agentnet registry init` elsewhere", .0.display())]
    Missing(PathBuf),
    #[error("{} is damaged ({why}); it was left as it is", path.display())]
    Damaged { path: PathBuf, why: String },
    #[error("{} has version {found}, this agentnet knows up to {known}; it was left as it is", path.display())]
    Newer {
        path: PathBuf,
        found: i64,
        known: i64,
    },
    #[error("the database answers nonsense: {0}")]
    Nonsense(String),
    #[error("the database failed: {0}")]
    Database(#[from] sqlx::Error),
}

/// SQLite's number for a disk without room (sqlite.org/rescode.html).
const SQLITE_FULL: &str = "13";

impl StoreError {
    /// Tells whether there is no room on the disk.
    pub fn is_full(&self) -> bool {
        let Self::Database(sqlx::Error::Database(error)) = self else {
            return false;
        };
        error.code().is_some_and(|code| code == SQLITE_FULL)
    }
}

/// The registry's memory. Each method is one transaction.
#[async_trait]
pub trait Store: fmt::Debug + Send + Sync {
    /// Returns what tells this database from every other; versions mean nothing without it.
    fn epoch(&self) -> &str;

    /// Tells whether the database answers.
    async fn check(&self) -> Result<(), StoreError>;

    /// Counts what there is.
    async fn counts(&self, now: UnixTime) -> Result<Counts, StoreError>;

    /// Creates a network with the next free number; the same root key gets the same again.
    async fn create_network(&self, new: &NewNetwork) -> Result<Creation, StoreError>;

    /// Sets a network's root grant; tells whether it is another than before.
    async fn activate_network(
        &self,
        network: &NetworkId,
        grant: &str,
        sequence: &Sequence,
    ) -> Result<Kept, StoreError>;

    /// Returns a network.
    async fn network(&self, network: &NetworkId) -> Result<Option<NetworkRow>, StoreError>;

    /// Returns an operator's networks with numbers above `after`, lowest first.
    async fn networks(
        &self,
        operator: &Did,
        after: u64,
        limit: u32,
    ) -> Result<Vec<NetworkRow>, StoreError>;

    /// Takes name, interface id and a use of the token, all or none.
    async fn join(&self, joining: &Joining, now: UnixTime) -> Result<JoinOutcome, StoreError>;

    /// Keeps an agent's newest record for a lease.
    async fn put_record(&self, new: &NewRecord, now: UnixTime) -> Result<Kept, StoreError>;

    /// Forgets an agent's record. Its name stays its own, unless the agent is ephemeral: then nothing of it stays,
    /// and its peers are told.
    async fn leave(&self, farewell: &Farewell, now: UnixTime) -> Result<Departure, StoreError>;

    /// Forgets records whose chain no longer holds.
    async fn drop_records(&self, network: &NetworkId, agents: &[AgentId])
    -> Result<(), StoreError>;

    /// Returns the live record of an agent.
    async fn record(
        &self,
        network: &NetworkId,
        agent: &AgentId,
        now: UnixTime,
    ) -> Result<Option<RecordRow>, StoreError>;

    /// Returns the live record of `whom` if it is `asker` itself or consents to it.
    ///
    /// One look-up for all, so that one that is hidden takes no other work than one that is not.
    async fn visible_record(
        &self,
        network: &NetworkId,
        whom: &Whom,
        asker: &AgentId,
        now: UnixTime,
    ) -> Result<Option<String>, StoreError>;

    /// Returns the records whose chain has one of `links`: a key or the hash of a grant.
    async fn records_through(
        &self,
        network: &NetworkId,
        links: &[String],
    ) -> Result<Vec<RecordRow>, StoreError>;

    /// Keeps a trust request for whoever holds the name, whether or not anybody does.
    async fn put_request(&self, new: &NewRequest, now: UnixTime) -> Result<Kept, StoreError>;

    /// Keeps the newest consent of issuer toward subject.
    async fn put_consent(&self, new: &NewConsent, now: UnixTime) -> Result<Kept, StoreError>;

    /// Returns whom `issuer` has an active consent toward.
    async fn consented(
        &self,
        network: &NetworkId,
        issuer: &AgentId,
        now: UnixTime,
    ) -> Result<Vec<AgentId>, StoreError>;

    /// Returns the names bound to an agent.
    async fn names_of(
        &self,
        network: &NetworkId,
        agent: &AgentId,
    ) -> Result<Vec<MemberName>, StoreError>;

    /// Returns the agent that a name is bound to.
    async fn holder(
        &self,
        network: &NetworkId,
        name: &MemberName,
    ) -> Result<Option<AgentId>, StoreError>;

    /// Makes a join token known.
    async fn put_token(&self, new: &NewToken) -> Result<Kept, StoreError>;

    /// Returns a network's tokens with ids above `after`, lowest first.
    async fn tokens(
        &self,
        network: &NetworkId,
        after: u64,
        limit: u32,
    ) -> Result<Vec<TokenRow>, StoreError>;

    /// Keeps a revocation for good.
    async fn add_revocation(&self, new: &NewRevocation, now: UnixTime) -> Result<Kept, StoreError>;

    /// Returns a network's revocations and when each was accepted, oldest first.
    async fn revocations(&self, network: &NetworkId)
    -> Result<Vec<(UnixTime, String)>, StoreError>;

    /// Keeps a gateway's newest statement.
    async fn put_gateway(&self, new: &NewGateway) -> Result<(), StoreError>;

    /// Tells whether a gateway is enrolled.
    async fn is_gateway(&self, gateway: &Did) -> Result<bool, StoreError>;

    /// Returns the statements of gateways whose lease lasts.
    async fn gateways(&self, now: UnixTime) -> Result<Vec<String>, StoreError>;

    /// Returns what `agent` may see of its network that changed after version `after`.
    async fn member_changes(
        &self,
        network: &NetworkId,
        agent: &AgentId,
        after: u64,
        now: UnixTime,
    ) -> Result<Page, StoreError>;

    /// Returns gateway statements that changed after version `after` of the domain.
    async fn gateway_changes(&self, after: u64, now: UnixTime) -> Result<Page, StoreError>;

    /// Returns networks, revocations and gateways that changed after version `after` of the domain.
    async fn domain_changes(&self, after: u64, now: UnixTime) -> Result<Page, StoreError>;

    /// Forgets what is over; returns when the next thing will be.
    async fn expire(&self, now: UnixTime) -> Result<Option<UnixTime>, StoreError>;
}

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::id::{NetworkId, UnixTime, hash};
use crate::statement::{ChainError, Revocation, Revocations, Statement};
use crate::wire::have::Summary;

/// Most statements kept, so that no registry can fill the disk.
const MAX_STATEMENTS: usize = 4096;

/// Most of them by those who manage nothing, so that no member keeps an owner from revoking.
const MAX_BY_MEMBERS: usize = MAX_STATEMENTS / 2;

/// Most that those by members take, so that a state file holds all there can be of them.
const MAX_BYTES_BY_MEMBERS: usize = 4 * 1024 * 1024;

/// Most of one member, who can only revoke itself and those below it; a registry takes as many.
const MAX_BY_MEMBER: usize = 16;

/// The revocations of one network as they came, and what they amount to.
///
/// What they amount to is worked out once a statement, since every chain is checked against it.
#[derive(Clone, Debug, Default)]
pub struct RevocationLog {
    statements: Vec<Statement<Revocation>>,
    held: Revocations,
    summary: Summary,
    by_members: usize,
    /// How long they are in all.
    bytes_by_members: usize,
}

impl RevocationLog {
    /// Returns what is revoked.
    pub const fn held(&self) -> &Revocations {
        &self.held
    }

    /// Returns the statements, in the order in which they came.
    pub fn statements(&self) -> &[Statement<Revocation>] {
        &self.statements
    }

    /// Returns what peers are told of it.
    pub const fn summary(&self) -> Summary {
        self.summary
    }

    /// Adds a statement whose author's chain holds at `now`; tells whether it was new.
    pub(crate) fn add(
        &mut self,
        statement: Statement<Revocation>,
        root: &NetworkId,
        now: UnixTime,
    ) -> Result<bool, ChainError> {
        let is_new = self.keep(statement, root, now)?;
        if is_new {
            self.summarise();
        }
        Ok(is_new)
    }

    fn keep(
        &mut self,
        statement: Statement<Revocation>,
        root: &NetworkId,
        now: UnixTime,
    ) -> Result<bool, ChainError> {
        let author = self.held.author(&statement, root, now)?;
        if self.held.has(&statement.hash()) {
            return Ok(false);
        }
        let manages = author.role.manages();
        let of_author = |known: &&Statement<_>| known.issuer() == statement.issuer();
        let is_full = self.statements.len() >= MAX_STATEMENTS
            || (!manages
                && (self.by_members >= MAX_BY_MEMBERS
                    || self.bytes_by_members + statement.text().len() > MAX_BYTES_BY_MEMBERS
                    || self.statements.iter().filter(of_author).count() >= MAX_BY_MEMBER));
        if is_full || !self.held.insert(&statement, &author)? {
            return Err(ChainError::Length);
        }
        if !manages {
            self.by_members += 1;
            self.bytes_by_members += statement.text().len();
        }
        self.statements.push(statement);
        Ok(true)
    }

    fn summarise(&mut self) {
        let hashes = self.held.statements().map(|h| h.as_bytes().as_slice());
        self.summary = Summary {
            count: u32::try_from(self.statements.len()).unwrap_or(u32::MAX),
            hash: hash(&hashes.collect::<Vec<_>>()),
        };
    }
}

impl Serialize for RevocationLog {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.statements.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for RevocationLog {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let statements = Vec::<Statement<Revocation>>::deserialize(deserializer)?;
        let mut log = Self::default();
        for statement in statements {
            // Each was checked when it came; the author's chain may have ended since.
            let (root, issued) = (statement.network(), statement.issued());
            if let Some(root) = root {
                drop(log.keep(statement, &root, issued));
            }
        }
        if !log.statements.is_empty() {
            log.summarise();
        }
        Ok(log)
    }
}

use std::collections::{BTreeMap, BTreeSet};

use crate::id::{Did, NetworkId, UnixTime};
use crate::statement::{
    Authority, Chain, ChainError, Revocation, Role, Statement, envelope::StatementHash,
};

/// Most revoked keys and grants held per network; an owner who needs more makes a new network.
const MAX_REVOKED: usize = 65_536;

/// Most of them by those who manage nothing, so that no member keeps an owner from revoking.
const MAX_BY_MEMBERS: usize = MAX_REVOKED / 2;

/// Everything revoked in one network, with who revoked it; it only grows.
#[derive(Clone, Debug, Default)]
pub struct Revocations {
    keys: BTreeMap<Did, Vec<Revoker>>,
    grants: BTreeMap<StatementHash, Vec<Revoker>>,
    statements: BTreeSet<StatementHash>,
    /// Keys and grants that members listed.
    by_members: usize,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Revoker {
    author: Did,
    role: Role,
    at: UnixTime,
}

impl Revoker {
    /// Tells whether this author may revoke a key of `role` that comes after `ancestors`.
    fn is_over(&self, role: Role, ancestors: &[Did]) -> bool {
        let by_role = match self.role {
            Role::Owner => true,
            Role::Admin => matches!(role, Role::Auditor | Role::Member | Role::Token),
            Role::Auditor | Role::Member | Role::Token => false,
        };
        by_role || ancestors.contains(&self.author)
    }
}

impl Revocations {
    /// Adds a statement whose author's chain holds at `now`; tells whether it was new.
    pub fn add(
        &mut self,
        statement: &Statement<Revocation>,
        root: &NetworkId,
        now: UnixTime,
    ) -> Result<bool, ChainError> {
        let authority = self.author(statement, root, now)?;
        self.insert(statement, &authority)
    }

    /// Checks who revokes, at `now`; nothing is added.
    pub fn author(
        &self,
        statement: &Statement<Revocation>,
        root: &NetworkId,
        now: UnixTime,
    ) -> Result<Authority, ChainError> {
        if statement.network() != Some(*root) {
            return Err(ChainError::WrongNetwork);
        }
        let claims = statement.claims();
        let authority = Chain::parse(&claims.chain)?.authority(root, self, now)?;
        if authority.key != statement.issuer() {
            return Err(ChainError::Broken(claims.chain.len()));
        }
        Ok(authority)
    }

    /// Adds a statement of `authority`, which was checked; tells whether it was new.
    pub fn insert(
        &mut self,
        statement: &Statement<Revocation>,
        authority: &Authority,
    ) -> Result<bool, ChainError> {
        if self.statements.contains(&statement.hash()) {
            return Ok(false);
        }
        let claims = statement.claims();
        let more = claims.keys.len() + claims.grants.len();
        let by_members = if authority.role.manages() { 0 } else { more };
        if self.keys.len() + self.grants.len() + more > MAX_REVOKED
            || self.by_members + by_members > MAX_BY_MEMBERS
        {
            return Err(ChainError::Length);
        }
        self.by_members += by_members;
        let by = |at| Revoker {
            author: authority.key,
            role: authority.role,
            at,
        };
        for revoked in &claims.keys {
            push(self.keys.entry(revoked.key).or_default(), by(revoked.at));
        }
        for grant in &claims.grants {
            push(
                self.grants.entry(*grant).or_default(),
                by(statement.issued()),
            );
        }
        self.statements.insert(statement.hash());
        Ok(true)
    }

    /// Returns from when `key` is revoked by one with authority over it; None when it is not.
    pub fn of(&self, key: &Did, role: Role, ancestors: &[Did]) -> Option<UnixTime> {
        let revokers = self.keys.get(key)?.iter();
        revokers
            .filter(|r| r.author == *key || r.is_over(role, ancestors))
            .map(|r| r.at)
            .min()
    }

    /// Tells whether a grant of `role` was revoked by one with authority over it.
    pub fn has_grant(&self, grant: &StatementHash, role: Role, ancestors: &[Did]) -> bool {
        let revokers = self.grants.get(grant);
        revokers.is_some_and(|all| all.iter().any(|r| r.is_over(role, ancestors)))
    }

    /// Tells whether a statement was added.
    pub fn has(&self, statement: &StatementHash) -> bool {
        self.statements.contains(statement)
    }

    /// Returns the hashes of the statements, in rising order.
    pub fn statements(&self) -> impl Iterator<Item = &StatementHash> {
        self.statements.iter()
    }

    /// Returns how many keys and grants are revoked.
    pub fn len(&self) -> usize {
        self.keys.len() + self.grants.len()
    }

    /// Tells whether nothing is revoked.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Keeps one entry an author: the earliest moment counts, and the list stays as short as authors.
fn push(revokers: &mut Vec<Revoker>, revoker: Revoker) {
    match revokers.iter_mut().find(|r| r.author == revoker.author) {
        Some(known) => known.at = known.at.min(revoker.at),
        None => revokers.push(revoker),
    }
}

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::id::Did;
use crate::statement::{Claims, Statement, envelope::StatementHash};

/// Most sequence numbers remembered; beyond it new issuers are refused, none is forgotten.
const MAX_SEEN: usize = 65_536;

/// A statement older than one already seen.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum Replayed {
    #[error("sequence number {given} is not above {seen}, which was seen before")]
    Older { given: u64, seen: u64 },
    #[error("too many issuers are remembered")]
    Full,
}

/// Highest sequence number seen per kind, issuer and subject: nobody can roll a receiver back.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Seen {
    highest: BTreeMap<String, (u64, StatementHash)>,
}

impl Seen {
    /// Remembers a statement; tells whether it is new, or an error when it is older than known.
    pub fn admit<C: Claims>(&mut self, statement: &Statement<C>) -> Result<bool, Replayed> {
        let key = Self::key::<C>(&statement.issuer(), &statement.subject());
        let (given, hash) = (statement.seq(), statement.hash());
        match self.highest.get(&key) {
            Some((seen, known)) if given == *seen && hash == *known => return Ok(false),
            Some((seen, _)) if given <= *seen => {
                return Err(Replayed::Older { given, seen: *seen });
            }
            None if self.highest.len() >= MAX_SEEN => return Err(Replayed::Full),
            Some(_) | None => {}
        }
        self.highest.insert(key, (given, hash));
        Ok(true)
    }

    /// Returns the highest number seen of this kind; None before the first.
    pub fn highest<C: Claims>(&self, issuer: &Did, subject: &Did) -> Option<u64> {
        self.highest
            .get(&Self::key::<C>(issuer, subject))
            .map(|(seq, _)| *seq)
    }

    fn key<C: Claims>(issuer: &Did, subject: &Did) -> String {
        format!("{} {issuer} {subject}", C::TYP)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::id::{IdentityKey, UnixTime};
    use crate::statement::{Consent, ConsentState, Head, Scope};

    fn consent(seq: u64, inbound: &str) -> Statement<Consent> {
        let key = IdentityKey::from_seed([1; 32]);
        let now = UnixTime::from_millis(seq);
        let head = Head {
            subject: IdentityKey::from_seed([2; 32]).did(),
            network: Some(key.did().into()),
            issued: now,
            expires: now + Duration::from_secs(60),
            seq,
        };
        let inbound = inbound.parse::<Scope>().unwrap();
        let claims = Consent {
            inbound,
            children: false,
            state: ConsentState::Active,
            re: None,
        };
        Statement::sign(&key, head, claims).unwrap()
    }

    /// Architecture decision 3: a registry cannot roll back what a node has seen.
    #[test]
    fn an_older_statement_is_refused() {
        let mut seen = Seen::default();

        assert_eq!(seen.admit(&consent(5000, "any")), Ok(true));
        assert_eq!(seen.admit(&consent(5000, "any")), Ok(false));
        assert!(seen.admit(&consent(5000, "")).is_err());
        assert!(seen.admit(&consent(4000, "any")).is_err());
        assert_eq!(seen.admit(&consent(6000, "")), Ok(true));
        let kept = serde_json::to_string(&seen).unwrap();
        let mut seen = serde_json::from_str::<Seen>(&kept).unwrap();
        assert!(seen.admit(&consent(5000, "any")).is_err());
    }
}

//! What peers tell in their sessions, checked as if the registry had forwarded it.

use crate::engine::{
    membership::{Membership, Refused},
    trust::Taken,
};
use crate::id::{Did, UnixTime};
use crate::statement::{
    Claims, Consent, ConsentState, Record, Revocation, Statement, StatementHash, kind_of,
};

/// What a statement told by a peer changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Told {
    /// Nothing: it was known, or is of a kind that peers do not tell.
    Known,
    /// The peer's own consent or record.
    Kept,
    /// Something is revoked that was not before.
    Revocation(StatementHash),
}

impl Membership {
    /// Takes a statement that `peer` told: any revocation, its own record, its own consent to us.
    pub(crate) fn take_told(
        &mut self,
        peer: &Did,
        text: &str,
        unix: UnixTime,
    ) -> Result<Told, Refused> {
        let kind = kind_of(text)?;
        let taken = if kind == Revocation::TYP {
            let is_new = self.take_revocation(text, unix)?;
            let hash = is_new.then(|| StatementHash::of(text));
            return Ok(hash.map_or(Told::Known, Told::Revocation));
        } else if kind == Consent::TYP {
            let consent = Statement::<Consent>::open_at(text, self.clock(unix))?;
            if consent.issuer() != *peer {
                return Err(Refused::NotForUs);
            }
            self.take_opened_consent(consent)?
        } else if kind == Record::TYP {
            let record = Statement::<Record>::open_at(text, self.clock(unix))?;
            if record.issuer() != *peer {
                return Err(Refused::NotForUs);
            }
            self.take_opened_record(record, unix)?
        } else {
            Taken::Known
        };
        Ok(match taken {
            Taken::Known | Taken::Twin => Told::Known,
            Taken::Kept | Taken::Pending => Told::Kept,
        })
    }

    /// Tells whether a statement of `peer`, whatever it is, is kept already.
    pub(crate) fn keeps(&self, peer: &Did, text: &str) -> bool {
        let consent = self.received.get(peer).map(Statement::text);
        let record = self.records.get(peer).map(Statement::text);
        consent == Some(text)
            || record == Some(text)
            || self.revocations.held().has(&StatementHash::of(text))
    }

    /// Returns the statement by which our consent to `peer` was taken back; None while it stands.
    pub(crate) fn taken_back(&self, peer: &Did) -> Option<&str> {
        let given = self.given.get(peer)?;
        let is_revoked = given.claims().state == ConsentState::Revoked;
        is_revoked.then(|| given.text())
    }
}

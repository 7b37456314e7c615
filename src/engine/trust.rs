//! The trust handshake: requests, consents and what they let stand (protocol.md section 2).
//!
//! Works on what a membership keeps and nothing else, so that trust is the same after a restart
//! and with the registry away.

mod gone;
mod settle;
mod told;

use std::time::Duration;

use thiserror::Error;

use crate::engine::membership::{AutoRule, MAX_KEPT, Membership, Outgoing, Refused, Trusted};
use crate::id::{AgentId, Did, MemberName, UnixTime};
use crate::statement::{
    Consent, ConsentState, Member, Record, Replayed, Request, Scope, Statement, StatementError,
    StatementHash,
};

pub(crate) use told::Told;

/// How long a request may wait for its answer.
const REQUEST_LIFE: Duration = Duration::from_secs(7 * 86_400);

/// How long a consent lasts; it is renewed at half while the peer is trusted.
const CONSENT_LIFE: Duration = Duration::from_secs(365 * 86_400);

/// Longest reason, enough for a sentence a person reads.
pub const MAX_REASON: usize = 280; // characters

/// Most requests that may wait here; one requester has at most one.
const MAX_PENDING: usize = 256;

/// Most consents kept of agents that are not known here.
const MAX_STRANGE: usize = 64;

/// Most automatic rules.
const MAX_AUTO: usize = 256;

/// Why a trust command cannot be done.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum TrustError {
    #[error("no request from {0} waits here, and no consent to it stands")]
    NoRequest(MemberName),
    #[error("no consent to {0} stands")]
    NoConsent(MemberName),
    #[error("{0} is this agent itself")]
    Itself(MemberName),
    #[error("the reason is longer than {MAX_REASON} characters")]
    LongReason,
    #[error("too many rules or requests; remove some first")]
    Full,
    #[error("no such rule")]
    NoRule,
    #[error("this agent's membership does not hold: {0}")]
    NoMember(Refused),
    #[error(transparent)]
    Statement(#[from] StatementError),
}

impl From<Refused> for TrustError {
    fn from(refused: Refused) -> Self {
        Self::NoMember(refused)
    }
}

/// What a statement from the registry changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Taken {
    /// Nothing: it was known.
    Known,
    /// Something to keep.
    Kept,
    /// A request that waits for a person.
    Pending,
    /// A record that our key signed on another host.
    Twin,
}

impl Membership {
    /// Asks the agent `to` for its consent and offers it `inbound` here.
    pub fn request(
        &mut self,
        to: MemberName,
        inbound: Scope,
        reason: Option<String>,
        unix: UnixTime,
    ) -> Result<(), TrustError> {
        if reason
            .as_ref()
            .is_some_and(|r| r.chars().count() > MAX_REASON)
        {
            return Err(TrustError::LongReason);
        }
        if self.outgoing.len() >= MAX_PENDING && !self.outgoing.contains_key(&to.to_string()) {
            return Err(TrustError::Full);
        }
        let record = self.sign_record(Vec::new(), unix)?;
        if record.claims().name == to {
            return Err(TrustError::Itself(to));
        }
        let claims = Request {
            to: to.clone(),
            inbound,
            reason,
            record: record.text().to_owned(),
        };
        let expires = record.expires().min(self.clock(unix) + REQUEST_LIFE);
        let request = self.sign(self.identity.did(), unix, expires, claims)?;
        self.outgoing.insert(to.to_string(), request.clone());
        self.send(Outgoing::Request(request));
        Ok(())
    }

    /// Takes a request to this agent.
    pub fn take_request(&mut self, text: &str, unix: UnixTime) -> Result<Taken, Refused> {
        let now = self.clock(unix);
        let request = Statement::<Request>::open_at(text, now)?;
        let record = Statement::<Record>::open_at(&request.claims().record, now)?;
        let member = self.check_record(&record, unix)?;
        let ours = self.member(unix)?.name;
        let from = member.agent.did();
        if from != request.issuer() || request.claims().to != ours || from == self.identity.did() {
            return Err(Refused::NotForUs);
        }
        if self.incoming.len() >= MAX_PENDING && !self.incoming.contains_key(&from) {
            return Err(Refused::Full);
        }
        if !self.seen.admit(&request)? {
            return Ok(Taken::Known);
        }
        self.learn_time(&request);
        // A request that was held back may bring a record that a newer one took the place of. It is
        // not noted as seen: the registry's own copy, which comes later, is commonly older than it.
        let (given, seen) = (record.seq(), self.seen.highest::<Record>(&from, &from));
        if let Some(seen) = seen.filter(|seen| given < *seen && !self.records.contains_key(&from)) {
            return Err(Replayed::Older { given, seen }.into());
        }
        self.keep_record(record, &member)?;
        self.incoming.insert(from, request);
        Ok(Taken::Pending)
    }

    /// Takes a consent toward this agent, or its own newest from the registry.
    pub fn take_consent(&mut self, text: &str, unix: UnixTime) -> Result<Taken, Refused> {
        let consent = Statement::<Consent>::open_at(text, self.clock(unix))?;
        self.take_opened_consent(consent)
    }

    fn take_opened_consent(&mut self, consent: Statement<Consent>) -> Result<Taken, Refused> {
        if consent.network() != Some(self.network) {
            return Err(Refused::NotForUs);
        }
        let (from, to, own) = (consent.issuer(), consent.subject(), self.identity.did());
        if (from == own) == (to == own) {
            return Err(Refused::NotForUs);
        }
        if from == own {
            return Ok(self.take_own_consent(consent));
        }
        if self.received.len() >= MAX_KEPT && !self.received.contains_key(&from) {
            return Err(Refused::Full);
        }
        // One that was strange when it came is not among what was seen.
        if let Some(known) = self.received.get(&from)
            && known.seq() > consent.seq()
        {
            let (given, seen) = (consent.seq(), known.seq());
            return Err(Replayed::Older { given, seen }.into());
        }
        let is_new = if self.awaits(&consent) {
            self.seen.admit(&consent)?
        } else {
            self.admit_strange(&consent)?
        };
        // One seen before the network was left, and joined again, is not kept yet.
        if !is_new && self.received.contains_key(&from) {
            return Ok(Taken::Known);
        }
        self.learn_time(&consent);
        self.received.insert(from, consent);
        Ok(Taken::Kept)
    }

    /// Tells whether a consent is of an agent known here, or answers a request of ours.
    fn awaits(&self, consent: &Statement<Consent>) -> bool {
        let re = consent.claims().re;
        let mut asked = self.outgoing.values();
        self.is_known(&consent.issuer()) || asked.any(|asked| re == Some(asked.hash()))
    }

    fn is_known(&self, did: &Did) -> bool {
        self.given.contains_key(did) || self.records.contains_key(did)
    }

    /// Judges a consent that belongs to nothing, as when our own comes after it.
    ///
    /// Anybody can sign one. So a few are kept, and nothing is remembered of others.
    fn admit_strange(&self, consent: &Statement<Consent>) -> Result<bool, Refused> {
        if let Some(known) = self.received.get(&consent.issuer()) {
            return Ok(known.hash() != consent.hash());
        }
        let strange = self.received.keys().filter(|did| !self.is_known(did));
        if strange.count() >= MAX_STRANGE {
            return Err(Refused::Unasked);
        }
        Ok(true)
    }

    /// A restored backup must not fork itself: what we signed later than we remember, we adopt.
    fn take_own_consent(&mut self, consent: Statement<Consent>) -> Taken {
        let peer = consent.subject();
        if self
            .given
            .get(&peer)
            .is_some_and(|known| known.seq() >= consent.seq())
        {
            return Taken::Known;
        }
        self.adopt_seq(consent.seq());
        self.given.insert(peer, consent);
        Taken::Kept
    }

    /// Takes the record of an agent that we consented to, that consented to us, or that we asked.
    pub fn take_record(&mut self, text: &str, unix: UnixTime) -> Result<Taken, Refused> {
        let record = Statement::<Record>::open_at(text, self.clock(unix))?;
        self.take_opened_record(record, unix)
    }

    fn take_opened_record(
        &mut self,
        record: Statement<Record>,
        unix: UnixTime,
    ) -> Result<Taken, Refused> {
        let from = record.issuer();
        if from == self.identity.did() {
            if record.network() != Some(self.network) {
                return Err(Refused::NotForUs);
            }
            self.adopt_seq(record.seq());
            if self.signed.lacks(record.seq()) {
                // Each tells once that the other host is there.
                self.signed.note(record.seq());
                return Ok(Taken::Twin);
            }
            return Ok(Taken::Known);
        }
        let member = self.check_record(&record, unix)?;
        let asked = self.outgoing.contains_key(&member.name.to_string());
        let waits = record.claims().ttl == 0 && self.incoming.contains_key(&from);
        let consents = self.given.contains_key(&from) || self.received.contains_key(&from);
        if !asked && !consents && !waits {
            return Err(Refused::Unasked);
        }
        // One that was refused for now, as while another key held its name, may be taken later.
        if !self.seen.admit(&record)? && self.records.contains_key(&from) {
            return Ok(Taken::Known);
        }
        self.learn_time(&record);
        if record.claims().ttl == 0 {
            return Ok(self.take_farewell(&member));
        }
        self.keep_record(record, &member)?;
        Ok(Taken::Kept)
    }

    /// Keeps a record; a second key for a name is refused while the first one holds it.
    fn keep_record(&mut self, record: Statement<Record>, member: &Member) -> Result<(), Refused> {
        if self.is_held(&member.name, &record) {
            return Err(Refused::NameHeld(member.name.clone()));
        }
        self.forget_former(&member.name, &record);
        match self.records.get(&record.issuer()) {
            Some(known) if known.seq() >= record.seq() => return Ok(()),
            None if self.records.len() >= MAX_KEPT => return Err(Refused::Full),
            Some(_) | None => {}
        }
        self.records.insert(record.issuer(), record);
        Ok(())
    }

    /// Consents to an agent whose request waits, or changes the scope of one consented to.
    pub fn approve(
        &mut self,
        name: &MemberName,
        allow: Scope,
        unix: UnixTime,
    ) -> Result<AgentId, TrustError> {
        let waiting = self.incoming.iter().find_map(|(did, request)| {
            (self.name_of(did).as_ref() == Some(name)).then(|| (*did, request.hash()))
        });
        let (peer, re) = match waiting {
            Some((did, hash)) => (did, Some(hash)),
            None => {
                let did = self.consented(name).first().copied();
                let did = did.ok_or_else(|| TrustError::NoRequest(name.clone()))?;
                // The registry keeps the newest consent alone, which must still answer the request.
                (did, self.given.get(&did).and_then(|c| c.claims().re))
            }
        };
        self.consent(peer, allow, ConsentState::Active, re, unix)?;
        self.incoming.remove(&peer);
        Ok(peer.into())
    }

    /// Drops a request without an answer: to the requester, denial and silence look the same.
    pub fn deny(&mut self, name: &MemberName) -> Result<(), TrustError> {
        let from = self
            .incoming
            .keys()
            .find(|did| self.name_of(did).as_ref() == Some(name));
        let from = *from.ok_or_else(|| TrustError::NoRequest(name.clone()))?;
        self.incoming.remove(&from);
        Ok(())
    }

    /// Takes back the consent to `name`, and a request that still waits for its answer.
    pub fn revoke(&mut self, name: &MemberName, unix: UnixTime) -> Result<AgentId, TrustError> {
        let withdrawn = self.outgoing.remove(&name.to_string()).is_some();
        // A name that moved may have been consented to under each of its keys.
        let consented = self.consented(name);
        let Some(peer) = consented.first().copied() else {
            let asked = self
                .records
                .iter()
                .find(|(_, r)| withdrawn && r.claims().name == *name);
            let known = asked.map(|(did, _)| AgentId::from(*did));
            return match (withdrawn, known) {
                (true, Some(agent)) => Ok(agent),
                (true, None) => Ok(self.id()),
                (false, _) => Err(TrustError::NoConsent(name.clone())),
            };
        };
        for did in consented {
            let nothing = Scope::replies_only();
            self.consent(did, nothing, ConsentState::Revoked, None, unix)?;
        }
        Ok(peer.into())
    }

    /// Adds a rule that answers requests by itself; one with the same selector is exchanged.
    pub fn auto_add(&mut self, rule: AutoRule) -> Result<(), TrustError> {
        self.auto.retain(|known| known.from != rule.from);
        if self.auto.len() >= MAX_AUTO {
            return Err(TrustError::Full);
        }
        self.auto.push(rule);
        Ok(())
    }

    /// Removes the rule at `index` of the list.
    pub fn auto_remove(&mut self, index: usize) -> Result<AutoRule, TrustError> {
        if index >= self.auto.len() {
            return Err(TrustError::NoRule);
        }
        Ok(self.auto.remove(index))
    }

    /// Tells whether one more consent, to `peer`, can be kept.
    fn has_room_for(&self, peer: &Did) -> bool {
        self.given.len() < MAX_KEPT || self.given.contains_key(peer)
    }

    fn consent(
        &mut self,
        peer: Did,
        inbound: Scope,
        state: ConsentState,
        re: Option<StatementHash>,
        unix: UnixTime,
    ) -> Result<(), TrustError> {
        if !self.has_room_for(&peer) {
            return Err(TrustError::Full);
        }
        let claims = Consent {
            inbound,
            children: false,
            state,
            re,
        };
        let expires = self.clock(unix) + CONSENT_LIFE;
        let consent = self.sign(peer, unix, expires, claims)?;
        self.given.insert(peer, consent.clone());
        self.send(Outgoing::Consent(consent));
        Ok(())
    }

    /// Returns the agents of that name to whom an active consent stands.
    fn consented(&self, name: &MemberName) -> Vec<Did> {
        let active = |c: &Statement<Consent>| c.claims().state == ConsentState::Active;
        let given = self.given.iter().filter(|(_, c)| active(c));
        given
            .map(|(did, _)| *did)
            .filter(|did| self.name_of(did).as_ref() == Some(name))
            .collect()
    }

    /// Returns the name in the record we hold of `did`.
    pub fn name_of(&self, did: &Did) -> Option<MemberName> {
        self.records
            .get(did)
            .map(|record| record.claims().name.clone())
    }

    /// Returns the peers with whom consent stands both ways at `unix`.
    pub fn trusted(&self, unix: UnixTime) -> Vec<Trusted> {
        let Ok(own) = self.member(unix) else {
            return Vec::new();
        };
        let both = self
            .given
            .keys()
            .filter(|did| self.received.contains_key(did));
        both.filter_map(|did| self.trusted_one(&own, did, unix))
            .collect()
    }

    fn trusted_one(&self, own: &Member, did: &Did, unix: UnixTime) -> Option<Trusted> {
        let now = self.clock(unix);
        let (given, received) = (self.given.get(did)?, self.received.get(did)?);
        if !is_active(given, now) || !is_active(received, now) {
            return None;
        }
        let record = self.records.get(did)?;
        let member = self.check_record(record, unix).ok()?;
        let may_talk = |a: &Member, b: &Member| {
            a.authority
                .peers
                .iter()
                .all(|held| held.iter().any(|p| p.matches(&b.name)))
        };
        if !may_talk(own, &member) || !may_talk(&member, own) {
            return None;
        }
        let mut inbound = vec![given.claims().inbound.clone()];
        inbound.extend(own.authority.ports.iter().cloned());
        inbound.extend(member.authority.ports.iter().cloned());
        let until = [
            given.expires(),
            received.expires(),
            record.expires(),
            own.expires,
        ];
        Some(Trusted {
            psk: self.psk(&member.agent),
            tunnel: record.claims().tunnel,
            inbound,
            outbound: received.claims().inbound.clone(),
            until: until.into_iter().min().unwrap_or_default(),
            member,
        })
    }
}

fn is_active(consent: &Statement<Consent>, now: UnixTime) -> bool {
    consent.claims().state == ConsentState::Active && now < consent.expires()
}

#[cfg(test)]
mod tests;

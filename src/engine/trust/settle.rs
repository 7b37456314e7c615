//! What needs no person: answers by rules, requests that are answered or cross, and what ends.

use std::collections::BTreeMap;

use crate::engine::{
    membership::{Membership, Outgoing},
    trust::{CONSENT_LIFE, TrustError, is_active},
};
use crate::id::{Did, UnixTime};
use crate::statement::{Claims, Consent, ConsentState, Statement};

impl Membership {
    /// Does what needs no person: answers by rules, completes our requests, drops what expired.
    ///
    /// Tells whether anything changed.
    pub fn settle(&mut self, unix: UnixTime) -> Result<bool, TrustError> {
        let now = self.clock(unix);
        self.proven.follow_own(&self.chain);
        self.proven.follow(&self.records);
        let mut changed = drop_expired(&mut self.incoming, now);
        changed |= drop_expired(&mut self.outgoing, now);
        changed |= drop_expired(&mut self.given, now);
        changed |= drop_expired(&mut self.received, now);
        changed |= self.forget_answered(now);
        changed |= self.forget_outbox();
        changed |= self.forget_records();
        changed |= self.answer_by_rules(unix)?;
        changed |= self.answer_crossing(unix)?;
        changed |= self.complete_requests(unix)?;
        changed |= self.renew_consents(unix)?;
        Ok(changed)
    }

    /// Drops what waits for the registry and is of no use any more: what ended, requests that were
    /// withdrawn or answered, consents that another took the place of.
    ///
    /// So no more wait than consents are kept and requests are open.
    fn forget_outbox(&mut self) -> bool {
        let before = self.outbox.len();
        let (given, outgoing) = (&self.given, &self.outgoing);
        self.outbox.retain(|waiting| match waiting {
            Outgoing::Consent(consent) => {
                let held = given.get(&consent.subject());
                held.is_some_and(|held| held.hash() == consent.hash())
            }
            Outgoing::Request(request) => {
                let held = outgoing.get(&request.claims().to.to_string());
                held.is_some_and(|held| held.hash() == request.hash())
            }
        });
        before != self.outbox.len()
    }

    /// Drops records that belong to no consent and no request.
    fn forget_records(&mut self) -> bool {
        let before = self.records.len();
        let (given, received) = (&self.given, &self.received);
        let (incoming, outgoing) = (&self.incoming, &self.outgoing);
        self.records.retain(|did, record| {
            given.contains_key(did)
                || received.contains_key(did)
                || incoming.contains_key(did)
                || outgoing.contains_key(&record.claims().name.to_string())
        });
        before != self.records.len()
    }

    fn answer_by_rules(&mut self, unix: UnixTime) -> Result<bool, TrustError> {
        let mut answers = Vec::new();
        for (did, request) in &self.incoming {
            let Some(record) = self.records.get(did).filter(|_| self.has_room_for(did)) else {
                continue;
            };
            // Chains are costly to check, and this comes with every statement.
            let mut rules = self.auto.iter();
            if !rules.any(|rule| rule.from.may_select(&record.claims().name)) {
                continue;
            }
            let Ok(member) = self.check_record(record, unix) else {
                continue;
            };
            if let Some(rule) = self.auto.iter().find(|rule| rule.from.selects(&member)) {
                answers.push((*did, rule.allow.clone(), request.hash()));
            }
        }
        let any = !answers.is_empty();
        for (peer, allow, re) in answers {
            self.consent(peer, allow, ConsentState::Active, Some(re), unix)?;
            self.incoming.remove(&peer);
        }
        Ok(any)
    }

    /// Answers requests of agents that we asked ourselves, with what we offered them.
    ///
    /// Both asked, so both consent; were nothing offered either way, a person is to say what for.
    fn answer_crossing(&mut self, unix: UnixTime) -> Result<bool, TrustError> {
        let mut answers = Vec::new();
        for (did, theirs) in &self.incoming {
            let Some(record) = self.records.get(did).filter(|_| self.has_room_for(did)) else {
                continue;
            };
            let Some(ours) = self.outgoing.get(&record.claims().name.to_string()) else {
                continue;
            };
            if self.check_record(record, unix).is_err() {
                continue;
            }
            let offers = [&ours.claims().inbound, &theirs.claims().inbound];
            if offers.iter().any(|offer| !offer.is_replies_only()) {
                answers.push((*did, ours.claims().inbound.clone(), theirs.hash()));
            }
        }
        let any = !answers.is_empty();
        for (peer, allow, re) in answers {
            self.consent(peer, allow, ConsentState::Active, Some(re), unix)?;
            // Our own request waits for their answer, which completes it like any other.
            self.incoming.remove(&peer);
        }
        Ok(any)
    }

    /// Gives our own consent where a request of ours was answered by the very agent we named.
    fn complete_requests(&mut self, unix: UnixTime) -> Result<bool, TrustError> {
        let mut complete = Vec::new();
        for (to, request) in &self.outgoing {
            let answer = self.received.iter().find(|(_, consent)| {
                let claims = consent.claims();
                claims.re == Some(request.hash()) && claims.state == ConsentState::Active
            });
            let Some((peer, _)) = answer.filter(|(did, _)| self.has_room_for(did)) else {
                continue;
            };
            let Some(record) = self.records.get(peer) else {
                continue;
            };
            let Ok(member) = self.check_record(record, unix) else {
                continue;
            };
            if member.name == request.claims().to {
                complete.push((to.clone(), *peer, request.claims().inbound.clone()));
            }
        }
        let any = !complete.is_empty();
        for (to, peer, inbound) in complete {
            self.consent(peer, inbound, ConsentState::Active, None, unix)?;
            self.outgoing.remove(&to);
        }
        Ok(any)
    }

    /// Drops requests that trust stands for already, as where both ends asked at once.
    ///
    /// Who consented after asking has its answer; one that asks again offers something else.
    fn forget_answered(&mut self, now: UnixTime) -> bool {
        let (given, received, records) = (&self.given, &self.received, &self.records);
        let active = |held: &BTreeMap<Did, Statement<Consent>>, did: &Did| {
            let consent = held.get(did).filter(|consent| is_active(consent, now));
            consent.map(Statement::seq)
        };
        let before = self.incoming.len() + self.outgoing.len();
        self.incoming.retain(|did, request| {
            active(given, did).is_none() || active(received, did) <= Some(request.seq())
        });
        self.outgoing.retain(|_, request| {
            let to = &request.claims().to;
            let asked = records.iter().filter(|(_, r)| r.claims().name == *to);
            asked.into_iter().all(|(did, _)| {
                active(received, did).is_none() || active(given, did) <= Some(request.seq())
            })
        });
        before != self.incoming.len() + self.outgoing.len()
    }

    fn renew_consents(&mut self, unix: UnixTime) -> Result<bool, TrustError> {
        let now = self.clock(unix);
        let old = |consent: &Statement<Consent>| {
            consent.claims().state == ConsentState::Active
                && now < consent.expires()
                && consent.expires().since(now) < CONSENT_LIFE / 2
        };
        let due = self.given.iter().filter(|(did, given)| {
            old(given) && self.received.get(did).is_some_and(|r| is_active(r, now))
        });
        let due = due
            .map(|(did, c)| (*did, c.claims().clone()))
            .collect::<Vec<_>>();
        let any = !due.is_empty();
        for (peer, claims) in due {
            self.consent(peer, claims.inbound, ConsentState::Active, claims.re, unix)?;
        }
        Ok(any)
    }
}

fn drop_expired<K: Ord, C: Claims>(kept: &mut BTreeMap<K, Statement<C>>, now: UnixTime) -> bool {
    let before = kept.len();
    kept.retain(|_, statement| now < statement.expires());
    before != kept.len()
}

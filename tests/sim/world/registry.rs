//! A registry: the pure logic of the real one (enrolment, standing, whom a change concerns) on
//! tables in memory that stand for its database.

use std::collections::BTreeMap;
use std::time::Duration;

use agentnet::engine::Forwarded;
use agentnet::id::{AgentId, Did, IdentityKey, MemberName, UnixTime};
use agentnet::registry::authorize::{Call, Standing, may};
use agentnet::registry::enroll::{self, Ground};
use agentnet::registry::watch::{Hint, Watcher};
use agentnet::statement::{
    Admission, Consent, ConsentState, Member, Record, Request, Revocation, Revocations, Role, Seen,
    Statement, verify_record,
};

use crate::pair::{REGISTRY, key, network, prefix};

/// Bounds of a record's lease, as the real registry has them by default.
const SHORTEST: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(3600);

/// Why a call brought nothing.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Denied(pub(crate) String);

#[derive(Debug)]
struct RecordRow {
    text: String,
    content: String,
    role: Role,
    lease: UnixTime,
    version: u64,
}

#[derive(Debug)]
struct Row {
    text: String,
    is_active: bool,
    expires: UnixTime,
    version: u64,
}

/// Everything a registry remembers; it outlives restarts.
#[derive(Debug)]
pub(crate) struct Registry {
    key: IdentityKey,
    revoked: Revocations,
    revocations: Vec<(u64, Statement<Revocation>)>,
    records: BTreeMap<AgentId, RecordRow>,
    names: BTreeMap<MemberName, AgentId>,
    admissions: BTreeMap<(AgentId, MemberName, Did), UnixTime>,
    consents: BTreeMap<(Did, Did), Row>,
    requests: BTreeMap<(MemberName, Did), Row>,
    seen: Seen,
    version: u64,
    /// Tells this database from others; a cursor of another one begins anew.
    pub(crate) epoch: u64,
    /// What changed since they were taken out.
    pub(crate) hints: Vec<Hint>,
}

impl Registry {
    pub(crate) fn new() -> Self {
        Self {
            key: key(REGISTRY),
            revoked: Revocations::default(),
            revocations: Vec::new(),
            records: BTreeMap::new(),
            names: BTreeMap::new(),
            admissions: BTreeMap::new(),
            consents: BTreeMap::new(),
            requests: BTreeMap::new(),
            seen: Seen::default(),
            version: 0,
            epoch: 0,
            hints: Vec::new(),
        }
    }

    /// Admits one who joins by a token.
    pub(crate) fn join(
        &mut self,
        record: &Statement<Record>,
        now: UnixTime,
    ) -> Result<Statement<Admission>, Denied> {
        let (joined, joining) = self
            .on_ground(now, |g| enroll::join(record, g))
            .map_err(denied)?;
        let member = joined.member;
        self.bind(&member)?;
        let token = joining.token.ok_or_else(|| Denied("no token".to_owned()))?;
        let known = (member.agent, member.name.clone(), token.token);
        let first = *self.admissions.entry(known).or_insert(now);
        let gate = member.authority.token.clone();
        let gate = gate.ok_or_else(|| Denied("no token".to_owned()))?;
        enroll::admission(&self.key, &member, &gate, first, now).map_err(denied)
    }

    /// Keeps a record for a lease; returns a renewed admission when it is time for one.
    pub(crate) fn put_record(
        &mut self,
        record: &Statement<Record>,
        now: UnixTime,
    ) -> Result<Option<Statement<Admission>>, Denied> {
        let refreshed = self
            .on_ground(now, |g| enroll::refresh(record, g))
            .map_err(denied)?;
        let member = &refreshed.member;
        let lease = enroll::lease(record.claims().ttl, SHORTEST, LONGEST);
        let new = enroll::kept(record, &refreshed, (now + lease).min(record.expires()));
        if !self.seen.admit(record).map_err(denied)? {
            return Ok(None);
        }
        self.bind(member)?;
        self.forget_lapsed(now);
        let held = self.records.get(&member.agent);
        let same = held.filter(|held| held.content == new.content);
        let same = same.map(|held| held.version);
        let version = same.unwrap_or_else(|| self.next_version());
        let row = RecordRow {
            text: new.row.text,
            content: new.content,
            role: new.row.role,
            lease: new.lease,
            version,
        };
        self.records.insert(member.agent, row);
        if same.is_none() {
            let toward = self.consented(member.agent.did(), now);
            let agent = member.agent;
            self.hints.push(Hint::Record { agent, toward });
        }
        enroll::renewal(&self.key, &refreshed, now).map_err(denied)
    }

    /// Forgets the record of an agent that leaves; its name stays its own.
    pub(crate) fn leave(&mut self, agent: AgentId) {
        self.records.remove(&agent);
    }

    pub(crate) fn request(
        &mut self,
        caller: AgentId,
        request: &Statement<Request>,
        now: UnixTime,
    ) -> Result<(), Denied> {
        request.check_time(now).map_err(denied)?;
        if !may(Call::Request, &self.standing(caller, now)) {
            return Err(Denied("not a member".to_owned()));
        }
        if self.seen.admit(request).map_err(denied)? {
            let target = request.claims().to.clone();
            let row = self.row(request, true);
            self.requests
                .insert((target.clone(), request.issuer()), row);
            self.hints.push(Hint::Request { target });
        }
        Ok(())
    }

    pub(crate) fn consent(
        &mut self,
        caller: AgentId,
        consent: &Statement<Consent>,
        now: UnixTime,
    ) -> Result<(), Denied> {
        consent.check_time(now).map_err(denied)?;
        let is_active = consent.claims().state == ConsentState::Active;
        let is_bound = self.names.values().any(|agent| *agent == caller);
        let is_member = self.standing(caller, now).role.is_some();
        if !is_member && (is_active || !is_bound) {
            return Err(Denied("not a member".to_owned()));
        }
        if self.seen.admit(consent).map_err(denied)? {
            let row = self.row(consent, is_active);
            let (issuer, subject) = (consent.issuer(), consent.subject());
            self.consents.insert((issuer, subject), row);
            let (issuer, subject) = (issuer.into(), subject.into());
            self.hints.push(Hint::Consent { issuer, subject });
        }
        Ok(())
    }

    /// Takes a revocation of the owner's and drops the records it voids.
    pub(crate) fn revoke(
        &mut self,
        revocation: &Statement<Revocation>,
        now: UnixTime,
    ) -> Result<(), Denied> {
        if !self
            .revoked
            .add(revocation, &network(), now)
            .map_err(denied)?
        {
            return Ok(());
        }
        let version = self.next_version();
        self.revocations.push((version, revocation.clone()));
        let revoked = &self.revoked;
        self.records.retain(|_, row| {
            Statement::<Record>::open(&row.text)
                .is_ok_and(|record| verify_record(&record, &network(), revoked, now).is_ok())
        });
        self.hints.push(Hint::Revocation);
        Ok(())
    }

    /// Returns all revocations, as gateways are told of them.
    pub(crate) fn revocations(&self) -> impl Iterator<Item = &Statement<Revocation>> {
        self.revocations.iter().map(|(_, statement)| statement)
    }

    /// Returns who watches when this agent does.
    pub(crate) fn watcher(&self, agent: AgentId) -> Watcher {
        let bound = self.names.iter().filter(|(_, of)| **of == agent);
        let names = bound.map(|(name, _)| name.clone()).collect();
        Watcher::Member { agent, names }
    }

    /// Returns what an agent may see that changed after version `after`, and the version now.
    pub(crate) fn changes(
        &self,
        agent: AgentId,
        after: u64,
        now: UnixTime,
    ) -> (Vec<(Forwarded, String)>, u64) {
        let did = agent.did();
        let revocations = self.revocations.iter();
        let revocations = revocations.map(|(v, r)| (*v, Forwarded::Revocation, r.text()));
        let toward = |issuer: &AgentId| self.consents.get(&(issuer.did(), did));
        let records = self.records.iter().filter(|(_, row)| row.lease > now);
        let records = records.filter_map(|(of, row)| {
            let shown = toward(of).filter(|row| row.is_active && row.expires > now);
            let since = if *of == agent {
                Some(0)
            } else {
                shown.map(|row| row.version)
            };
            Some((
                since?.max(row.version),
                Forwarded::Record,
                row.text.as_str(),
            ))
        });
        let consents = self.consents.iter();
        let consents = consents.filter(|((from, to), _)| *from == did || *to == did);
        let consents = consents.map(|(_, row)| (row.version, Forwarded::Consent, row));
        let requests = self.requests.iter();
        let requests = requests.filter(|((name, _), _)| self.names.get(name) == Some(&agent));
        let requests = requests.map(|(_, row)| (row.version, Forwarded::Request, row));
        let live = consents
            .chain(requests)
            .filter(|(.., row)| row.expires > now);
        let live = live.map(|(version, kind, row)| (version, kind, row.text.as_str()));
        let mut all = revocations.chain(records).chain(live).collect::<Vec<_>>();
        all.retain(|(version, ..)| *version > after);
        all.sort_by_key(|(version, ..)| *version);
        let texts = all
            .into_iter()
            .map(|(_, kind, text)| (kind, text.to_owned()));
        (texts.collect(), self.version)
    }

    fn standing(&self, caller: AgentId, now: UnixTime) -> Standing {
        let live = self.records.get(&caller).filter(|row| row.lease > now);
        Standing {
            role: live.map(|row| row.role),
            ..Standing::default()
        }
    }

    fn consented(&self, issuer: Did, now: UnixTime) -> Vec<AgentId> {
        let own = self
            .consents
            .iter()
            .filter(|((from, _), row)| *from == issuer && row.is_active && row.expires > now);
        own.map(|((_, to), _)| AgentId::from(*to)).collect()
    }

    /// A name is bound to the first key that has it.
    fn bind(&mut self, member: &Member) -> Result<(), Denied> {
        let holder = self
            .names
            .entry(member.name.clone())
            .or_insert(member.agent);
        if *holder == member.agent {
            Ok(())
        } else {
            Err(Denied("the name is taken".to_owned()))
        }
    }

    fn forget_lapsed(&mut self, now: UnixTime) {
        self.records.retain(|_, row| row.lease > now);
    }

    fn row<C: agentnet::statement::Claims>(&mut self, of: &Statement<C>, is_active: bool) -> Row {
        Row {
            text: of.text().to_owned(),
            is_active,
            expires: of.expires(),
            version: self.next_version(),
        }
    }

    const fn next_version(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    fn on_ground<T>(&self, now: UnixTime, run: impl FnOnce(&Ground<'_>) -> T) -> T {
        run(&Ground {
            network: &network(),
            prefix: prefix(),
            label: &"acme".parse().unwrap(),
            registry: self.key.did(),
            revoked: &self.revoked,
            now,
        })
    }
}

fn denied(error: impl std::fmt::Display) -> Denied {
    Denied(error.to_string())
}

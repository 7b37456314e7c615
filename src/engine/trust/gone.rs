//! Agents that are gone for good: ephemeral ones that left, or that nobody heard of for a day.

use crate::engine::{
    membership::{Membership, Refused},
    trust::Taken,
};
use crate::id::{Did, MemberName, UnixTime};
use crate::statement::{ConsentState, EPHEMERAL_NAME, Member, Record, Statement};

impl Membership {
    /// Signs our word that we leave: a record that says nobody is there.
    pub fn sign_farewell(&mut self, unix: UnixTime) -> Result<Statement<Record>, Refused> {
        let member = self.member(unix)?;
        let claims = Record {
            name: member.name,
            tunnel: self.tunnel.public(),
            gateways: Vec::new(),
            chain: self.chain.clone(),
            ttl: 0,
        };
        Ok(self.sign(self.identity.did(), unix, member.expires, claims)?)
    }

    /// Takes an agent's word that it left. One that is not ephemeral may come back, and is trusted then.
    pub(super) fn take_farewell(&mut self, member: &Member) -> Taken {
        if !member.authority.ephemeral {
            return Taken::Known;
        }
        self.forget_agent(&member.agent.did());
        Taken::Kept
    }

    /// Tells whether another key than that of `record` holds its name: by a valid chain, and an ephemeral one by
    /// a record that is not a day older.
    pub(super) fn is_held(&self, name: &MemberName, record: &Statement<Record>) -> bool {
        self.namesakes(name, record).any(|known| {
            let holder = self.check_record(known, record.issued());
            let is_lost = record.issued().since(known.issued()) > EPHEMERAL_NAME;
            holder.is_ok_and(|holder| !(holder.authority.ephemeral && is_lost))
        })
    }

    /// Forgets the ephemeral agents that had the name before the key of `record` has it.
    pub(super) fn forget_former(&mut self, name: &MemberName, record: &Statement<Record>) {
        let former = self.namesakes(name, record);
        let lost = former.filter(|known| {
            let holder = self.check_record(known, record.issued());
            holder.is_ok_and(|holder| holder.authority.ephemeral)
        });
        let lost = lost.map(Statement::issuer).collect::<Vec<_>>();
        for did in lost {
            self.forget_agent(&did);
        }
    }

    fn namesakes(
        &self,
        name: &MemberName,
        record: &Statement<Record>,
    ) -> impl Iterator<Item = &Statement<Record>> {
        let others = self.records.values();
        others
            .filter(move |known| known.issuer() != record.issuer() && known.claims().name == *name)
    }

    fn forget_agent(&mut self, did: &Did) {
        // What was taken back stays so: else whoever has the consent of before could bring it again.
        self.given
            .retain(|peer, consent| peer != did || consent.claims().state == ConsentState::Revoked);
        self.received.remove(did);
        self.incoming.remove(did);
        self.records.remove(did);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::membership::Outgoing;
    use crate::engine::testing::{NOW, ephemeral, membership};
    use crate::statement::Scope;
    use std::time::Duration;

    const SECOND: Duration = Duration::from_secs(1);

    /// Has `peer`, by a rule, trust the agent that asks it.
    fn befriend(agent: &mut Membership, peer: &mut Membership, unix: UnixTime) {
        let name = peer.member(unix).unwrap().name;
        agent
            .request(name, Scope::replies_only(), None, unix)
            .unwrap();
        pass(agent, peer, unix);
        let name = agent.member(unix).unwrap().name;
        peer.approve(&name, Scope::Any, unix).unwrap();
        pass(peer, agent, unix);
        agent.settle(unix).unwrap();
        pass(agent, peer, unix);
    }

    /// Takes what waits at `from` and its record to `to`, as a registry does.
    fn pass(from: &mut Membership, to: &mut Membership, unix: UnixTime) {
        let record = from.sign_record(vec![], unix).unwrap();
        for outgoing in std::mem::take(&mut from.outbox) {
            match outgoing {
                Outgoing::Request(request) => drop(to.take_request(request.text(), unix)),
                Outgoing::Consent(consent) => drop(to.take_consent(consent.text(), unix)),
            }
        }
        drop(to.take_record(record.text(), unix));
    }

    fn names(of: &Membership, unix: UnixTime) -> Vec<String> {
        let trusted = of.trusted(unix).into_iter();
        trusted.map(|peer| peer.member.name.to_string()).collect()
    }

    /// K9: a job that left is gone at once, and the next one of its name is taken; what the first said holds no more.
    #[test]
    fn the_name_of_an_ephemeral_agent_that_left_is_free() {
        let (mut build, mut first) = (membership(10, "build"), ephemeral(11, "job"));
        befriend(&mut first, &mut build, NOW);
        assert_eq!(names(&build, NOW), ["job"]);
        let (record, consent) = (first.sign_record(vec![], NOW + SECOND).unwrap(), {
            build.received[&first.identity.did()].clone()
        });
        let left = first.sign_farewell(NOW + 2 * SECOND).unwrap();

        let taken = build.take_record(left.text(), NOW + 2 * SECOND);

        assert_eq!(taken, Ok(Taken::Kept));
        assert!(build.trusted(NOW + 2 * SECOND).is_empty());
        assert!(build.records.is_empty() && build.given.is_empty() && build.received.is_empty());
        // A registry that means ill tells it again.
        assert!(build.take_record(record.text(), NOW + 3 * SECOND).is_err());
        drop(build.take_consent(consent.text(), NOW + 3 * SECOND));
        assert!(build.trusted(NOW + 3 * SECOND).is_empty());
        let mut second = ephemeral(12, "job");
        befriend(&mut second, &mut build, NOW + 4 * SECOND);
        assert_eq!(names(&build, NOW + 4 * SECOND), ["job"]);
    }

    /// One that waits for its answer and leaves waits no more.
    #[test]
    fn a_request_of_who_left_waits_no_more() {
        let (mut build, mut job) = (membership(10, "build"), ephemeral(11, "job"));
        job.request("build".parse().unwrap(), Scope::Any, None, NOW)
            .unwrap();
        pass(&mut job, &mut build, NOW);
        assert_eq!(build.incoming.len(), 1);

        let left = job.sign_farewell(NOW + SECOND).unwrap();
        build.take_record(left.text(), NOW + SECOND).unwrap();

        assert!(build.incoming.is_empty() && build.records.is_empty());
    }

    /// P-014: leaving does not undo that a consent was taken back.
    #[test]
    fn a_consent_that_was_taken_back_stays_so() {
        let (mut build, mut job) = (membership(10, "build"), ephemeral(11, "job"));
        befriend(&mut job, &mut build, NOW);
        let before = build.given[&job.identity.did()].clone();
        build.revoke(&"job".parse().unwrap(), NOW + SECOND).unwrap();
        let left = job.sign_farewell(NOW + 2 * SECOND).unwrap();
        build.take_record(left.text(), NOW + 2 * SECOND).unwrap();

        drop(build.take_consent(before.text(), NOW + 3 * SECOND));
        pass(&mut job, &mut build, NOW + 4 * SECOND);

        assert!(build.trusted(NOW + 4 * SECOND).is_empty());
    }

    /// A lasting agent keeps its name and the trust it has, whatever a registry passes on.
    #[test]
    fn a_lasting_agent_that_left_is_not_forgotten() {
        let (mut build, mut agent) = (membership(10, "build"), membership(11, "agent"));
        befriend(&mut agent, &mut build, NOW);
        let left = agent.sign_farewell(NOW + SECOND).unwrap();

        let taken = build.take_record(left.text(), NOW + SECOND);

        assert_eq!(taken, Ok(Taken::Known));
        assert_eq!(names(&build, NOW + SECOND), ["agent"]);
    }

    /// A job that was killed says nothing: its name is another's a day after it was last seen, and no sooner.
    #[test]
    fn the_name_of_an_ephemeral_agent_that_was_lost_is_free_a_day_later() {
        let (mut build, mut first) = (membership(10, "build"), ephemeral(11, "job"));
        befriend(&mut first, &mut build, NOW);
        let mut second = ephemeral(12, "job");
        let mut ask = |build: &mut Membership, unix| {
            second
                .request("build".parse().unwrap(), Scope::Any, None, unix)
                .unwrap();
            let Some(Outgoing::Request(request)) = second.outbox.pop_back() else {
                panic!("it asks");
            };
            build.take_request(request.text(), unix)
        };

        let held = Err(Refused::NameHeld("job".parse().unwrap()));
        assert_eq!(ask(&mut build, NOW + EPHEMERAL_NAME), held);
        let later = NOW + EPHEMERAL_NAME + 2 * SECOND;
        assert_eq!(ask(&mut build, later), Ok(Taken::Pending));
        assert!(build.trusted(later).is_empty(), "the first is forgotten");
    }
}

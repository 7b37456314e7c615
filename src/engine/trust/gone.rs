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

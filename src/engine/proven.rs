use std::{collections::BTreeMap, sync::Arc};

use crate::id::Did;
use crate::statement::{Chain, ChainError, Record, Statement, StatementHash};

/// Our own chain and those of kept records with their signatures checked, once a record.
///
/// Whether a chain holds now is asked with every change of trust, and the signatures are most of
/// what that costs: a peer that says something new often would else cost us by the number of all.
#[derive(Clone, Debug, Default)]
pub struct ProvenChains {
    /// Our own, with its links as they are kept; None before it was learnt.
    own: Option<(Vec<String>, Arc<Chain>)>,
    by_agent: BTreeMap<Did, (StatementHash, Arc<Chain>)>,
}

impl ProvenChains {
    /// Returns the chain in `record`; None while this very record was not learnt.
    pub(crate) fn of(&self, record: &Statement<Record>) -> Option<&Chain> {
        let (hash, chain) = self.by_agent.get(&record.issuer())?;
        (*hash == record.hash()).then_some(chain)
    }

    /// Returns our own chain; None while these very links were not learnt.
    pub(crate) fn own(&self, links: &[String]) -> Option<&Chain> {
        let (known, chain) = self.own.as_ref()?;
        (known == links).then_some(chain)
    }

    /// Opens the chain in `record`: grants that our own chain or the agent's last has were before.
    pub(crate) fn parse(&self, record: &Statement<Record>) -> Result<Chain, ChainError> {
        let own = self.own.as_ref().map(|(_, chain)| &**chain);
        let last = self
            .by_agent
            .get(&record.issuer())
            .map(|(_, chain)| &**chain);
        let known = own.into_iter().chain(last).collect::<Vec<_>>();
        Chain::parse_beside(&record.claims().chain, &known)
    }

    /// Remembers our own chain.
    pub(crate) fn follow_own(&mut self, links: &[String]) {
        if self.own(links).is_none() {
            let chain = Chain::parse(links).ok();
            self.own = chain.map(|chain| (links.to_vec(), Arc::new(chain)));
        }
    }

    /// Remembers the chains of `records`, and no others.
    pub(crate) fn follow(&mut self, records: &BTreeMap<Did, Statement<Record>>) {
        self.by_agent.retain(|did, _| records.contains_key(did));
        for record in records.values() {
            if self.of(record).is_some() {
                continue;
            }
            if let Ok(chain) = self.parse(record) {
                let proven = (record.hash(), Arc::new(chain));
                self.by_agent.insert(record.issuer(), proven);
            }
        }
    }
}

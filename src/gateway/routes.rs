//! Pure: agents of other gateways, each by its newest record, and which gateways announce them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;

use crate::gateway::mft::{Mft, PeerId, Route, agent};
use crate::id::{Did, NetworkId, OverlayIp, UnixTime};
use crate::statement::StatementHash;

/// The rank of the way to an agent that is attached here: before every other.
pub(crate) const HERE: u8 = 0;

/// The same once a newer record says that it is elsewhere: after every other.
pub(crate) const LEFT: u8 = u8::MAX;

/// Why an announcement is not believed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Unbelieved {
    /// There are as many routes as there may be.
    Full,
    /// The agent's newest record does not list the gateway.
    NotListed,
}

/// What a verified record says.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    pub(crate) agent: OverlayIp,
    pub(crate) network: NetworkId,
    pub(crate) seq: u64,
    pub(crate) expires: UnixTime,
    /// The gateways it lists, best first.
    pub(crate) gateways: Vec<Did>,
    pub(crate) record: String,
}

/// A gateway that announces, and its key.
pub(crate) type By = (PeerId, Did);

/// Who is announced by other gateways.
#[derive(Debug)]
pub(crate) struct Routes {
    agents: BTreeMap<OverlayIp, Known>,
    /// By their records, so that one that was checked is not checked again.
    records: BTreeMap<StatementHash, OverlayIp>,
    by_gateway: BTreeMap<PeerId, Announced>,
    /// When memberships end.
    due: BTreeSet<(UnixTime, OverlayIp)>,
    routes: usize,
    most: usize,
}

#[derive(Debug)]
struct Known {
    claim: Claim,
    by: Vec<By>,
}

/// What one gateway announces, with the epoch in which it last did.
#[derive(Debug, Default)]
struct Announced {
    agents: BTreeMap<OverlayIp, u32>,
    /// The epoch of which everything was heard.
    whole: Option<u32>,
}

impl Routes {
    /// Makes an empty table of at most `most` routes.
    pub(crate) const fn new(most: usize) -> Self {
        Self {
            agents: BTreeMap::new(),
            records: BTreeMap::new(),
            by_gateway: BTreeMap::new(),
            due: BTreeSet::new(),
            routes: 0,
            most,
        }
    }

    /// Returns how many routes a gateway has here.
    pub(crate) fn of(&self, gateway: PeerId) -> usize {
        self.by_gateway.get(&gateway).map_or(0, |a| a.agents.len())
    }

    /// Returns the network of an agent that some gateway announces.
    pub(crate) fn network(&self, agent: Ipv6Addr) -> Option<NetworkId> {
        let agent = OverlayIp::new(agent).ok()?;
        self.agents.get(&agent).map(|known| known.claim.network)
    }

    /// Returns the network of an agent that this gateway announces.
    pub(crate) fn network_by(&self, agent: Ipv6Addr, gateway: PeerId) -> Option<NetworkId> {
        let agent = OverlayIp::new(agent).ok()?;
        let known = self.agents.get(&agent)?;
        let is_by = known.by.iter().any(|(by, _)| *by == gateway);
        is_by.then_some(known.claim.network)
    }

    /// Takes a record that was believed before, if this is one; None when it is not.
    pub(crate) fn again(
        &mut self,
        by: By,
        record: &str,
        epoch: u32,
        mft: &mut Mft,
    ) -> Option<Result<OverlayIp, Unbelieved>> {
        let agent = *self.records.get(&StatementHash::of(record))?;
        let known = self.agents.get(&agent)?;
        // The hash is not of the signature.
        (known.claim.record == record).then(|| self.add(agent, by, epoch, mft))
    }

    /// Takes an announcement whose record holds; `here` is the record by which the agent is attached
    /// to this gateway, if it is.
    pub(crate) fn announce(
        &mut self,
        by: By,
        claim: Claim,
        here: Option<(u64, &[Did])>,
        epoch: u32,
        mft: &mut Mft,
    ) -> Result<OverlayIp, Unbelieved> {
        let agent = claim.agent;
        let known = self.agents.get(&agent).map(|known| &known.claim);
        let newest = known.filter(|known| known.seq >= claim.seq);
        let (seq, listed) = newest.map_or((claim.seq, &claim.gateways[..]), |known| {
            (known.seq, &known.gateways)
        });
        let listed = match here {
            Some((here, gateways)) if here > seq => gateways,
            Some(_) | None => listed,
        };
        if !listed.contains(&by.1) {
            return Err(Unbelieved::NotListed);
        }
        if known.is_none() && self.routes >= self.most {
            return Err(Unbelieved::Full);
        }
        if newest.is_none() {
            self.supersede(claim, mft);
        }
        let added = self.add(agent, by, epoch, mft);
        self.forget_if_lost(agent);
        added
    }

    /// Takes the record by which an agent attached here: older ones lead nowhere that it does not list.
    pub(crate) fn note_here(&mut self, claim: Claim, mft: &mut Mft) {
        let known = self.agents.get(&claim.agent);
        if known.is_some_and(|known| known.claim.seq < claim.seq) {
            let agent = claim.agent;
            self.supersede(claim, mft);
            self.forget_if_lost(agent);
        }
    }

    /// Returns how good the way is to an agent that is attached here by a record of this number.
    pub(crate) fn rank_here(&self, agent: OverlayIp, seq: u64, own: Did) -> u8 {
        let known = self.agents.get(&agent);
        let left = known.is_some_and(|k| k.claim.seq > seq && !k.claim.gateways.contains(&own));
        if left { LEFT } else { HERE }
    }

    /// Takes that a gateway announced everything of an epoch: what it did not announce is not by it,
    /// and is returned.
    pub(crate) fn end_epoch(
        &mut self,
        gateway: PeerId,
        epoch: u32,
        mft: &mut Mft,
    ) -> Vec<OverlayIp> {
        let announced = self.by_gateway.entry(gateway).or_default();
        if announced.whole.replace(epoch) == Some(epoch) {
            return Vec::new();
        }
        let old = announced.agents.iter().filter(|(_, of)| **of != epoch);
        let old: Vec<OverlayIp> = old.map(|(agent, _)| *agent).collect();
        for agent in &old {
            self.withdraw(gateway, *agent, mft);
        }
        old
    }

    /// Takes that an agent is not attached to a gateway any more.
    pub(crate) fn withdraw(&mut self, gateway: PeerId, of: OverlayIp, mft: &mut Mft) {
        let Some(announced) = self.by_gateway.get_mut(&gateway) else {
            return;
        };
        if announced.agents.remove(&of).is_none() {
            return;
        }
        self.routes -= 1;
        mft.remove(agent(of.ip()), Route::Gateway(gateway));
        if let Some(known) = self.agents.get_mut(&of) {
            known.by.retain(|(by, _)| *by != gateway);
        }
        self.forget_if_lost(of);
    }

    /// Takes that a gateway is not there any more, and returns whom it announced.
    pub(crate) fn withdraw_all(&mut self, gateway: PeerId, mft: &mut Mft) -> Vec<OverlayIp> {
        let announced = self.by_gateway.get(&gateway);
        let all = announced.map(|announced| announced.agents.keys().copied().collect());
        let all: Vec<OverlayIp> = all.unwrap_or_default();
        for agent in &all {
            self.withdraw(gateway, *agent, mft);
        }
        self.by_gateway.remove(&gateway);
        all
    }

    /// Keeps the agents whose newest claims `keep` wants, and returns the others.
    pub(crate) fn retain(
        &mut self,
        mut keep: impl FnMut(&Claim) -> bool,
        mft: &mut Mft,
    ) -> Vec<OverlayIp> {
        let gone = self.agents.values().filter(|known| !keep(&known.claim));
        let gone: Vec<OverlayIp> = gone.map(|known| known.claim.agent).collect();
        for agent in &gone {
            self.remove(*agent, mft);
        }
        gone
    }

    /// Removes agents whose membership ended, and returns them.
    pub(crate) fn expire(&mut self, unix: UnixTime, mft: &mut Mft) -> Vec<OverlayIp> {
        let mut gone = Vec::new();
        while let Some((_, agent)) = self.due.first().copied().filter(|(at, _)| *at <= unix) {
            self.remove(agent, mft);
            gone.push(agent);
        }
        gone
    }

    fn remove(&mut self, agent: OverlayIp, mft: &mut Mft) {
        let by = self.agents.get(&agent).map(|known| known.by.clone());
        for (gateway, _) in by.into_iter().flatten() {
            self.withdraw(gateway, agent, mft);
        }
    }

    /// Puts a newer record in the place of the one that is known, if any: gateways that it does not list
    /// lose their route.
    fn supersede(&mut self, claim: Claim, mft: &mut Mft) {
        let of = claim.agent;
        let mut by = Vec::new();
        let mut unlisted = Vec::new();
        if let Some(known) = self.agents.get(&of) {
            let (stay, go) = known
                .by
                .iter()
                .partition(|(_, gateway)| claim.gateways.contains(gateway));
            (by, unlisted) = (stay, go);
        }
        for (gateway, _) in unlisted {
            self.withdraw(gateway, of, mft);
        }
        self.forget(of);
        self.due.insert((claim.expires, of));
        self.records.insert(StatementHash::of(&claim.record), of);
        let ranked = by.iter().map(|(id, gateway)| (*id, rank(&claim, gateway)));
        for (id, rank) in ranked {
            mft.insert(agent(of.ip()), rank, Route::Gateway(id));
        }
        self.agents.insert(of, Known { claim, by });
    }

    fn add(
        &mut self,
        of: OverlayIp,
        by: By,
        epoch: u32,
        mft: &mut Mft,
    ) -> Result<OverlayIp, Unbelieved> {
        let known = self.agents.get_mut(&of).ok_or(Unbelieved::NotListed)?;
        if !known.claim.gateways.contains(&by.1) {
            return Err(Unbelieved::NotListed);
        }
        let is_new = !known.by.iter().any(|(id, _)| *id == by.0);
        if is_new && self.routes >= self.most {
            return Err(Unbelieved::Full);
        }
        let rank = rank(&known.claim, &by.1);
        if !mft.insert(agent(of.ip()), rank, Route::Gateway(by.0)) {
            return Err(Unbelieved::Full);
        }
        if is_new {
            known.by.push(by);
            self.routes += 1;
        }
        let announced = self.by_gateway.entry(by.0).or_default();
        announced.agents.insert(of, epoch);
        Ok(of)
    }

    /// Forgets an agent to whom nothing leads.
    fn forget_if_lost(&mut self, agent: OverlayIp) {
        if self.agents.get(&agent).is_some_and(|k| k.by.is_empty()) {
            self.forget(agent);
        }
    }

    fn forget(&mut self, agent: OverlayIp) {
        if let Some(known) = self.agents.remove(&agent) {
            self.due.remove(&(known.claim.expires, agent));
            let hash = StatementHash::of(&known.claim.record);
            self.records.remove(&hash);
        }
    }
}

/// Returns the place of a gateway in a record, after a way to an agent attached here.
fn rank(claim: &Claim, gateway: &Did) -> u8 {
    let place = claim.gateways.iter().position(|listed| listed == gateway);
    place
        .and_then(|at| u8::try_from(at + 1).ok())
        .unwrap_or(LEFT - 1)
}

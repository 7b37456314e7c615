//! Pure: ways to agents of other gateways, as these announce them.

use std::collections::BTreeSet;

use crate::gateway::forward::Hops;
use crate::gateway::mft::{PeerId, Route, agent};
use crate::gateway::routes::{By, Claim, LEFT, Routes, Unbelieved};
use crate::id::{OverlayIp, UnixTime};

impl Hops {
    /// Returns the agents that attached or went since this was asked.
    pub(crate) fn take_changed(&mut self) -> BTreeSet<OverlayIp> {
        std::mem::take(&mut self.changed)
    }

    /// Tells whether agents attached or went since they were asked for.
    pub(crate) fn is_changed(&self) -> bool {
        !self.changed.is_empty()
    }

    /// Returns the record by which other gateways are told of an agent; None unless it is attached here
    /// and its record lists this gateway.
    pub(crate) fn announced(&self, agent: OverlayIp) -> Option<&str> {
        let hop = self.of(agent)?;
        let is_listed = hop.new.gateways.contains(&self.own);
        is_listed.then_some(hop.new.record.as_str())
    }

    /// Returns the agents of other gateways.
    pub(crate) const fn remote(&self) -> &Routes {
        &self.routes
    }

    /// Takes a record that was believed before; None when it was not.
    pub(crate) fn announce_again(
        &mut self,
        by: By,
        record: &str,
        epoch: u32,
    ) -> Option<Result<(), Unbelieved>> {
        let again = self.routes.again(by, record, epoch, &mut self.mft)?;
        Some(again.map(|_| ()))
    }

    /// Takes that another gateway announced an agent by a record that holds.
    pub(crate) fn announce(&mut self, by: By, claim: Claim, epoch: u32) -> Result<(), Unbelieved> {
        let of = claim.agent;
        let here = self.mft.local(of.ip()).and_then(|up| self.hops.get(&up));
        let here = here.map(|hop| (hop.new.seq, &hop.new.gateways[..]));
        let announced = self.routes.announce(by, claim, here, epoch, &mut self.mft);
        self.rank(of);
        announced.map(|_| ())
    }

    /// Takes that an agent is not attached to another gateway any more.
    pub(crate) fn withdraw(&mut self, gateway: PeerId, agent: OverlayIp) {
        self.routes.withdraw(gateway, agent, &mut self.mft);
        self.rank(agent);
    }

    /// Takes that a gateway announced everything of an epoch.
    pub(crate) fn end_epoch(&mut self, gateway: PeerId, epoch: u32) {
        for agent in self.routes.end_epoch(gateway, epoch, &mut self.mft) {
            self.rank(agent);
        }
    }

    /// Takes that another gateway is not there any more: whom it announced is not by it.
    pub(crate) fn lose(&mut self, gateway: PeerId) {
        self.links.close(gateway);
        self.close_foreign(gateway);
        for agent in self.routes.withdraw_all(gateway, &mut self.mft) {
            self.rank(agent);
        }
    }

    /// Keeps the agents of other gateways whose claims `keep` wants.
    pub(crate) fn retain_remote(&mut self, keep: impl FnMut(&Claim) -> bool) {
        for agent in self.routes.retain(keep, &mut self.mft) {
            self.rank(agent);
        }
    }

    /// Removes agents of other gateways whose membership ended.
    pub(crate) fn expire_remote(&mut self, unix: UnixTime) {
        for agent in self.routes.expire(unix, &mut self.mft) {
            self.rank(agent);
        }
    }

    /// Puts the way to an agent that is attached here in its place among the others.
    pub(super) fn rank(&mut self, of: OverlayIp) {
        let here = self.mft.local(of.ip()).and_then(|up| self.hops.get(&up));
        if let Some(hop) = here {
            // One that fell silent may still be heard elsewhere.
            let rank = if hop.stale {
                LEFT
            } else {
                self.routes.rank_here(of, hop.new.seq, self.own)
            };
            self.mft
                .insert(agent(of.ip()), rank, Route::Local(hop.new.up));
        }
    }
}

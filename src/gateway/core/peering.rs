//! Pure: other domains with which this gateway peers.

use crate::gateway::core::{Core, NoGateway};
use crate::id::{DomainPrefix, UnixTime};
use crate::statement::peering::Peering;
use crate::statement::{Gateway, Statement};

impl Core {
    /// Carries frames of exactly these domains, besides our own; their gateways are met once they are
    /// told of ([`Core::add_gateway`]).
    pub fn set_peerings(&mut self, peerings: Vec<Peering>) {
        let own = self.signers.map(|of| DomainPrefix::of(&of.domain));
        let others = peerings.into_iter().map(|of| (of.prefix(), of));
        self.peerings = others.filter(|(at, _)| Some(*at) != own).collect();
        let prefixes = self.peerings.values().flat_map(Peering::prefixes);
        self.hops.set_carried(prefixes.copied().collect());
    }

    /// Returns of which other domain a gateway is, by the chain from that domain's root key.
    pub(super) fn check_foreign(
        &self,
        statement: &Statement<Gateway>,
        unix: UnixTime,
    ) -> Result<DomainPrefix, NoGateway> {
        let of = |(at, of): (&DomainPrefix, &Peering)| Some((*at, of.check(statement, unix)?));
        let (domain, checked) = self
            .peerings
            .iter()
            .find_map(of)
            .ok_or(NoGateway::Foreign)?;
        checked?;
        Ok(domain)
    }
}

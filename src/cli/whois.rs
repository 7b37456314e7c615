use std::net::Ipv6Addr;

use clap::Args;

use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::cli::output::Show;
use crate::cli::text::{consent, list};
use crate::wire::api::local::{Whois, WhoisQuery};

/// Tell which agent has an address, as proven by its key
#[derive(Args, Debug)]
pub(super) struct WhoisArgs {
    /// Overlay address of an agent (IPv6)
    address: Ipv6Addr,
}

impl WhoisArgs {
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        let query = WhoisQuery {
            address: self.address,
        };
        let whois = context.client()?.get::<Whois>("/v1/whois", &query).await?;
        context.out.print(&whois)
    }
}

impl Show for Whois {
    fn show(&self) -> String {
        let local = if self.local {
            "an agent of this node"
        } else {
            "another agent"
        };
        let mut lines = vec![
            self.name.clone(),
            format!("  {:<12}{}", "address", self.address),
            format!("  {:<12}{}", "id", self.id),
            format!("  {:<12}{}  {}", "network", self.network, self.network_id),
            format!("  {:<12}until {}", "membership", self.membership_expires),
            format!("  {:<12}{local}", "is"),
        ];
        if !self.tags.is_empty() {
            lines.push(format!("  {:<12}{}", "tags", list(&self.tags)));
        }
        if !self.local {
            let (here, there) = (
                consent(self.inbound.as_ref()),
                consent(self.outbound.as_ref()),
            );
            lines.push(format!(
                "  {:<12}it may reach here: {here}; we may reach there: {there}",
                "consent"
            ));
        }
        lines.join("\n")
    }
}

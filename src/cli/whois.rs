use std::net::{Ipv6Addr, SocketAddrV6};

use clap::Args;

use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::cli::output::Show;
use crate::cli::text::{consent, list};
use crate::wire::api::local::{Whois, WhoisQuery};

/// Tell which agent has an address, as proven by its key
#[derive(Args, Debug)]
pub(super) struct WhoisArgs {
    /// Overlay address of an agent, or the other end of a connection: fd..., or [fd...]:PORT as
    /// getpeername(2) has it
    #[arg(value_parser = end)]
    address: Ipv6Addr,

    /// This end of the connection, as getsockname(2) has it, where the host has several agents
    #[arg(long, value_name = "ADDR", value_parser = end)]
    end: Option<Ipv6Addr>,
}

/// Reads an address with or without a port.
fn end(text: &str) -> Result<Ipv6Addr, String> {
    let with_port = text.parse::<SocketAddrV6>().map(|end| *end.ip());
    with_port
        .or_else(|_| text.parse())
        .map_err(|_| "no IPv6 address, as fd00::1 or [fd00::1]:8000".to_owned())
}

impl WhoisArgs {
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        let query = WhoisQuery {
            address: self.address,
            end: self.end,
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

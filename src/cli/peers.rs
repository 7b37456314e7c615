use clap::Args;

use crate::cli::AgentArg;
use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::cli::output::Show;
use crate::cli::text::{Table, ago_or_never, bytes, consent};
use crate::cli::wireguard;
use crate::wire::api::local::{OfAgent, Peers};

/// List the agents this node shares a consent with, and how their sessions are
#[derive(Args, Debug)]
pub(super) struct PeersArgs {
    #[command(flatten)]
    of: AgentArg,
}

impl PeersArgs {
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        let of = OfAgent {
            agent: self.of.agent,
        };
        let peers = context.client()?.get::<Peers>("/v1/peers", &of).await?;
        context.out.print(&peers)
    }
}

impl Show for Peers {
    fn show(&self) -> String {
        let mut table = Table::new([
            "NAME",
            "ADDRESS",
            "SESSION",
            "PATH",
            "LAST IN",
            "IN",
            "OUT",
            "MAY REACH HERE",
            "REACHABLE THERE",
            "AGENT",
        ]);
        for peer in &self.peers {
            table.row([
                peer.name.clone(),
                peer.address.to_string(),
                peer.state.to_string(),
                peer.path.map_or_else(|| "-".to_owned(), |p| p.to_string()),
                ago_or_never(self.now, peer.last_inbound),
                bytes(peer.rx_bytes),
                bytes(peer.tx_bytes),
                consent(peer.inbound.as_ref()),
                consent(peer.outbound.as_ref()),
                peer.agent.clone(),
            ]);
        }
        let agents = table.text("no peers yet; ask for trust: agentnet trust request NAME");
        match wireguard::table(self.now, &self.wireguard).text("") {
            none if none.is_empty() => agents,
            wireguard => format!("{agents}\n\n{wireguard}"),
        }
    }
}

use clap::{Args, Subcommand};

use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::cli::output::Show;
use crate::cli::secret::OperatorTokenArg;
use crate::cli::text::Table;
use crate::id::Label;
use crate::node::owner::Owner;
use crate::os::clock;
use crate::wire::api::local::{Network, Networks};

/// Create networks and list those whose root keys are here
#[derive(Args, Debug)]
pub(super) struct NetworkArgs {
    #[command(subcommand)]
    command: NetworkCommand,
}

#[derive(Debug, Subcommand)]
enum NetworkCommand {
    /// Create a network; its root key stays in the state directory
    Create {
        /// Name of the network, one label: acme
        name: Label,
        /// Have its agents reached by gateways alone: none of them tells anybody where it is, whatever
        /// its host's settings say; this cannot be changed later
        #[arg(long)]
        border: bool,
        #[command(flatten)]
        operator: OperatorTokenArg,
    },
    /// List the networks whose root keys are here
    List,
}

impl NetworkArgs {
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        let owner = Owner::new(&context.state()?);
        match self.command {
            NetworkCommand::Create {
                name,
                border,
                operator,
            } => {
                let operator = operator.read()?;
                context.out.done(
                    &owner
                        .create((name, border), &operator, clock::unix())
                        .await?,
                )
            }
            NetworkCommand::List => context.out.print(&Networks {
                networks: owner.list()?,
            }),
        }
    }
}

impl Show for Network {
    fn show(&self) -> String {
        let border = if self.border {
            format!("\n  {:<12}agents are reached by gateways alone", "border")
        } else {
            String::new()
        };
        format!(
            "created network {0}\n  {1:<12}{2}\n  {3:<12}{4}\n  {5:<12}{6}{border}\n  {7:<12}agentnet token create {0} --name NAME",
            self.label, "prefix", self.prefix, "id", self.id, "registry", self.registry, "next",
        )
    }
}

impl Show for Networks {
    fn show(&self) -> String {
        let mut table = Table::new(["NAME", "PREFIX", "REGISTRY", "ID"]);
        for network in &self.networks {
            table.row([
                network.label.to_string(),
                network.prefix.to_string(),
                network.registry.clone(),
                network.id.to_string(),
            ]);
        }
        table.text(
            "no networks here; create one: agentnet network create NAME --operator-token-file FILE",
        )
    }
}

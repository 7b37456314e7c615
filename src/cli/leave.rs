use clap::Args;

use crate::cli::AgentArg;
use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::cli::output::Show;
use crate::config::Flags;
use crate::node::alone;
use crate::os::clock;
use crate::wire::api::local::{Left, OfAgent};

/// Leave a network; the name stays bound to this agent's key
#[derive(Args, Debug)]
pub(super) struct LeaveArgs {
    #[command(flatten)]
    of: AgentArg,
}

impl LeaveArgs {
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        leave(context, self.of.agent).await
    }
}

/// Has an agent leave its network: the one named, or the only one.
pub(super) async fn leave(context: &Context, agent: Option<String>) -> Result<(), Failure> {
    let client = context.client()?;
    let left = if client.is_up() {
        client.post::<Left>("/v1/leave", &OfAgent { agent }).await?
    } else {
        let config = context.node_config(Flags::default())?;
        alone::leave(&config, agent.as_deref(), clock::unix()).await?
    };
    context.out.done(&left)
}

impl Show for Left {
    fn show(&self) -> String {
        let mut text = format!("{} has left", self.name);
        if !self.told {
            text.push_str(
                "\nthe registry is not reachable; it forgets the agent when its lease ends",
            );
        }
        text
    }
}

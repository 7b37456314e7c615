use clap::{Args, Subcommand};

use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::cli::output::Show;
use crate::cli::text::list;
use crate::id::{FullName, Label, MemberName, Suffix};
use crate::node::owner::{Owner, Whom};
use crate::os::clock;
use crate::wire::api::local::AgentRevoked;

/// Take agents out of a network whose root key is here
#[derive(Args, Debug)]
pub(super) struct AgentArgs {
    #[command(subcommand)]
    command: AgentCommand,
}

#[derive(Debug, Subcommand)]
enum AgentCommand {
    /// Revoke an agent for good: everybody loses it at once, and its key never comes back; its name
    /// is free for another key
    Revoke {
        /// Name of the network
        network: Label,
        /// The agent's key, did:key:..., or its name, as planner or planner.acme.agent
        agent: String,
    },
}

impl AgentArgs {
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        let AgentCommand::Revoke { network, agent } = self.command;
        let whom = parse(&agent, &network, &context.suffix()?)?;
        let owner = Owner::new(&context.state()?);
        let revoked = owner.revoke_agent(&network, whom, clock::unix()).await?;
        context.out.done(&revoked)
    }
}

/// Reads whom the owner means; a full name must be one of this network.
fn parse(text: &str, network: &Label, suffix: &Suffix) -> Result<Whom, Failure> {
    let bad = |why: String| Failure::usage(format!("`{text}` names no agent: {why}"));
    if text.starts_with("did:") {
        let key = text.parse().map(Whom::Key);
        return key.map_err(|error| bad(error.to_string()));
    }
    if let Ok(full) = FullName::parse(text, suffix) {
        if full.network() != network {
            return Err(bad(format!("it is not of network {network}"))
                .hint("name the network first, then its agent"));
        }
        return Ok(Whom::Name(full.member().clone()));
    }
    let name = text.parse::<MemberName>().map(Whom::Name);
    name.map_err(|error| bad(error.to_string()))
}

impl Show for AgentRevoked {
    fn show(&self) -> String {
        format!(
            "revoked {} of network {}: {} is out for good, and the name is free",
            list(&self.names),
            self.network,
            self.agent,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::failure::Exit;

    #[test]
    fn an_agent_is_meant_by_name_full_name_or_key() {
        let (network, suffix) = ("acme".parse().unwrap(), Suffix::default());
        let named = Whom::Name("planner".parse().unwrap());
        let key = "did:key:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK";

        assert_eq!(parse("planner", &network, &suffix).unwrap(), named);
        assert_eq!(
            parse("planner.acme.agent", &network, &suffix).unwrap(),
            named
        );
        assert_eq!(
            parse(key, &network, &suffix).unwrap(),
            Whom::Key(key.parse().unwrap())
        );
        for wrong in ["planner.other.agent", "did:key:zzz", "A_B", ""] {
            let failure = parse(wrong, &network, &suffix).unwrap_err();
            assert_eq!(failure.exit, Exit::Usage, "{wrong}");
        }
    }
}

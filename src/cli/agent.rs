use clap::{Args, Subcommand};
use serde::Serialize;

use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::cli::join::JoinArgs;
use crate::cli::leave::leave;
use crate::cli::output::Show;
use crate::cli::text::{Table, list};
use crate::config::Flags;
use crate::engine::membership::Membership;
use crate::id::{FullName, Label, MemberName, OverlayIp, Suffix};
use crate::node::alone;
use crate::node::owner::{Owner, Whom};
use crate::os::clock;
use crate::wire::api::local::{AgentRevoked, AgentStatus, LinkState, Status};
use crate::wire::binding::Binding;

/// The agents of this node; and those of a network whose root key is here
#[derive(Args, Debug)]
pub(super) struct AgentArgs {
    #[command(subcommand)]
    command: AgentCommand,
}

#[derive(Debug, Subcommand)]
enum AgentCommand {
    /// Add an agent: join a network by a token, as `agentnet join` does
    Add(JoinArgs),
    /// List this node's agents, also while no daemon runs
    List,
    /// Remove an agent: leave its network, as `agentnet leave` does; the name stays bound to its key
    Remove {
        /// Its name, as planner or planner.acme.agent
        agent: String,
    },
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
        let (network, agent) = match self.command {
            AgentCommand::Add(args) => return args.run(context).await,
            AgentCommand::List => return list_agents(context).await,
            AgentCommand::Remove { agent } => return leave(context, Some(agent)).await,
            AgentCommand::Revoke { network, agent } => (network, agent),
        };
        let whom = parse(&agent, &network, &context.suffix()?)?;
        let owner = Owner::new(&context.state()?);
        let revoked = owner.revoke_agent(&network, whom, clock::unix()).await?;
        context.out.done(&revoked)
    }
}

async fn list_agents(context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let agents = if client.is_up() {
        let status = client.get::<Status>("/v1/status", &()).await?;
        status.agents.into_iter().map(Listed::from).collect()
    } else {
        let config = context.node_config(Flags::default())?;
        let all = alone::list(&config)?;
        all.iter().filter_map(Listed::of).collect()
    };
    context.out.print(&Agents { agents })
}

/// The agents of a node.
#[derive(Debug, Serialize)]
struct Agents {
    agents: Vec<Listed>,
}

/// One agent of a node.
#[derive(Debug, Serialize)]
struct Listed {
    /// Full name.
    name: String,
    address: OverlayIp,
    network: Label,
    /// `host`, with whom it is bound to, `programs` when it has no device there, or `process N` that has it
    /// now.
    place: String,
    /// Of its gateway; None while no daemon runs.
    state: Option<LinkState>,
}

impl Listed {
    fn of(membership: &Membership) -> Option<Self> {
        let name = membership.name()?;
        Some(Self {
            name: name.to_string(),
            address: membership.address()?,
            network: name.network().clone(),
            place: place(
                membership.placement.apart,
                membership.placement.bound.as_ref(),
            ),
            state: None,
        })
    }
}

fn place(is_apart: bool, bound: Option<&Binding>) -> String {
    match bound {
        _ if is_apart => "programs".to_owned(),
        Some(bound) => format!("host, {bound}"),
        None => "host".to_owned(),
    }
}

impl From<AgentStatus> for Listed {
    fn from(agent: AgentStatus) -> Self {
        let place = match agent.program {
            Some(process) => format!("process {process}"),
            None => place(agent.apart, agent.bound.as_ref()),
        };
        let state = agent.gateway.map(|gateway| gateway.state);
        Self {
            name: agent.name,
            address: agent.address,
            network: agent.network,
            place,
            state: Some(state.unwrap_or(LinkState::Connecting)),
        }
    }
}

impl Show for Agents {
    fn show(&self) -> String {
        let mut table = Table::new(["AGENT", "ADDRESS", "PLACE", "STATE"]);
        for agent in &self.agents {
            let state = agent.state.map(|state| state.to_string());
            table.row([
                agent.name.clone(),
                agent.address.to_string(),
                agent.place.clone(),
                state.unwrap_or_else(|| "no daemon".to_owned()),
            ]);
        }
        table.text("no agent joined here yet (agentnet agent add)")
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

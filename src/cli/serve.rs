use std::io::{self, ErrorKind};

use clap::Args;
use serde::Serialize;

use crate::cli::AgentArg;
use crate::cli::context::Context;
use crate::cli::daemon;
use crate::cli::failure::{Exit, Failure};
use crate::cli::output::Show;
use crate::cli::text::list;
use crate::cli::values::TcpPort;
use crate::id::OverlayIp;
use crate::node::serve::{Served, Upstream};
use crate::statement::{Protocol, Scope};
use crate::wire::api::local::{AgentStatus, OfAgent, Peers, Status};

/// Make a server that listens elsewhere reachable at the agent's address, until this is stopped
#[derive(Args, Debug)]
pub(super) struct ServeArgs {
    /// The agent's port, as tcp/8000
    #[arg(value_name = "tcp/PORT")]
    port: TcpPort,

    /// Pass connections on to IP:PORT, HOST:PORT, PORT of 127.0.0.1, or unix:PATH
    /// [default: the same port of 127.0.0.1]
    #[arg(long, value_name = "ADDR")]
    to: Option<Upstream>,

    /// Tell the server who connected by a line in front of what is said (PROXY protocol, version 1)
    #[arg(long)]
    proxy_protocol: bool,

    #[command(flatten)]
    of: AgentArg,
}

/// What leads where.
#[derive(Debug, Serialize)]
struct Serving {
    /// Full name of the agent.
    agent: String,
    address: OverlayIp,
    /// `tcp/8000`
    port: String,
    to: String,
    /// Full names of those whom a consent lets in.
    open_to: Vec<String>,
}

impl ServeArgs {
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        let port = self.port.0;
        let client = context.client()?;
        let status = client.get::<Status>("/v1/status", &()).await?;
        let own = choose(status.agents, self.of.agent.as_deref())?;
        let of = OfAgent {
            agent: Some(own.name.clone()),
        };
        let peers = client.get::<Peers>("/v1/peers", &of).await?.peers;
        let lets_in = |scope: &Scope| scope.allows(Protocol::Tcp, port);
        let open_to = peers
            .into_iter()
            .filter(|peer| peer.inbound.as_ref().is_some_and(lets_in));
        let to = self
            .to
            .unwrap_or_else(|| Upstream::Tcp(format!("127.0.0.1:{port}")));
        let serving = Serving {
            agent: own.name,
            address: own.address,
            port: format!("tcp/{port}"),
            to: to.to_string(),
            open_to: open_to.map(|peer| peer.name).collect(),
        };
        let stop = daemon::stop_asked()?;
        let served = Served::bind(own.address, port, to, self.proxy_protocol);
        let served = served.await.map_err(|error| serving.failure(&error))?;
        context.out.done(&serving)?;
        if serving.open_to.is_empty() {
            context.out.note(&format!(
                "nobody may reach it yet: agentnet trust approve NAME --allow tcp/{port}"
            ));
        }
        daemon::tell_ready();
        let complain = |trouble: &str| {
            context.out.note(&format!("{}: {trouble}", serving.to));
        };
        served.run(stop, complain).await;
        Ok(())
    }
}

/// Finds the agent that is meant: the one named, or the only one.
fn choose(agents: Vec<AgentStatus>, named: Option<&str>) -> Result<AgentStatus, Failure> {
    let is = |agent: &AgentStatus, wanted: &str| {
        let short = format!("{wanted}.{}.", agent.network);
        agent.name == wanted || agent.name.starts_with(&short)
    };
    let fits = agents
        .into_iter()
        .filter(|agent| named.is_none_or(|wanted| is(agent, wanted)));
    let mut fits = fits.collect::<Vec<_>>();
    match (fits.pop(), fits.is_empty(), named) {
        (Some(one), true, _) => Ok(one),
        (None, _, Some(name)) => Err(Failure::new(
            Exit::NotFound,
            format!("no agent {name} here"),
        )),
        (None, _, None) => Err(Failure::new(Exit::NotFound, "no agent joined here yet")
            .hint("agentnet join --token-file FILE")),
        (Some(_), false, _) => Err(Failure::usage("several agents are here")
            .hint("say which with --agent NAME, by its full name")),
    }
}

impl Serving {
    fn failure(&self, error: &io::Error) -> Failure {
        let (exit, hint) = match Some(error.kind()) {
            Some(ErrorKind::AddrInUse) => (
                Exit::Failed,
                "another program has the port: if it is the server itself, agents reach it already",
            ),
            Some(ErrorKind::AddrNotAvailable) => (
                Exit::Failed,
                "run it where the daemon runs, in the same network namespace",
            ),
            Some(ErrorKind::PermissionDenied) => (
                Exit::Denied,
                "ports below 1024 take root or CAP_NET_BIND_SERVICE",
            ),
            _ => (Exit::Failed, "agentnet status tells how the agent is"),
        };
        let what = format!("cannot listen on {} of {}: {error}", self.port, self.agent);
        Failure::new(exit, what).hint(hint)
    }
}

impl Show for Serving {
    fn show(&self) -> String {
        let mut text = format!(
            "{} of {} ({}) leads to {}",
            self.port, self.agent, self.address, self.to
        );
        if !self.open_to.is_empty() {
            text.push_str(&format!("\n  {:<12}{}", "open to", list(&self.open_to)));
        }
        text
    }
}

use std::net::{IpAddr, Ipv4Addr};

use clap::Args;
use serde::Serialize;

use crate::cli::context::Context;
use crate::cli::daemon;
use crate::cli::failure::Failure;
use crate::cli::log;
use crate::cli::output::Show;
use crate::cli::up::NodeFlags;
use crate::id::{Label, MemberName};
use crate::node::dev::{Plan, Running, run};
use crate::os::{files, host};

/// Run registry, gateway and one node in this process, to try it out
#[derive(Args, Debug)]
pub(super) struct DevArgs {
    /// Let other hosts reach registry and gateway at this address [default: the one this host's
    /// packets leave from]
    #[arg(long, value_name = "IP")]
    ip: Option<IpAddr>,

    /// Name the network
    #[arg(long, value_name = "NAME", default_value = "dev")]
    network: Label,

    /// Name the agent here
    #[arg(long, value_name = "NAME", default_value = "me")]
    name: MemberName,

    #[command(flatten)]
    node: NodeFlags,
}

/// A domain in one process, and how others join it.
#[derive(Debug, Serialize)]
struct DevRunning {
    network: Label,
    name: String,
    token_file: String,
}

impl DevArgs {
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        files::create_private_by_default();
        let node = context.node_config(self.node.flags())?;
        log::start(node.log, context)?;
        let stop = daemon::stop_asked()?;
        let ip = self.ip.or_else(host::outward_ip);
        let plan = Plan {
            dir: node.state.join("dev"),
            ip: ip.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            network: self.network,
            name: self.name,
            node,
        };
        let tell = |running| {
            daemon::tell_ready();
            // Whoever does not read this is served all the same.
            drop(context.out.done(&DevRunning::from(running)));
        };
        run(plan, stop, tell).await?;
        Ok(())
    }
}

impl From<Running> for DevRunning {
    fn from(running: Running) -> Self {
        Self {
            network: running.network,
            name: running.name,
            token_file: running.token_file.display().to_string(),
        }
    }
}

impl Show for DevRunning {
    fn show(&self) -> String {
        format!(
            "network {} runs here, and in it {}\n  {:<12}copy {} to another host and there:\n  {:<12}agentnet join --token-file join.token --name NAME && agentnet up\n  {:<12}Ctrl-C, or agentnet down",
            self.network, self.name, "join", self.token_file, "", "stop",
        )
    }
}

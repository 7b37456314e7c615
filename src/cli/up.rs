use clap::{Args, ValueEnum};

use crate::cli::context::Context;
use crate::cli::daemon;
use crate::cli::failure::Failure;
use crate::config::{DnsMode, Flags, PathMode};
use crate::node::daemon::run;
use crate::node::sandbox::of_node;
use crate::os::sandbox::Sandbox;

/// Run the node: its agents' network devices, names and encrypted paths
#[derive(Args, Debug)]
pub(super) struct UpArgs {
    #[command(flatten)]
    node: NodeFlags,
}

/// Settings of a node that flags may give.
#[derive(Args, Debug)]
pub(super) struct NodeFlags {
    /// Tell the host's programs of the node's resolver in this way [default: auto]
    #[arg(long, value_name = "MODE", value_enum)]
    dns: Option<Dns>,

    /// Take these ways to peers; relay and hidden tell no peer where this host is [default: auto]
    #[arg(long, value_name = "MODE", value_enum)]
    path: Option<Way>,

    /// Listen on this UDP port for encrypted packets; 0 takes any free one [default: 16200]
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
}

/// What --dns may say.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Dns {
    /// Find out who owns the host's DNS; `agentnet dns status` tells
    Auto,
    /// Have NetworkManager name the resolver in the file it writes
    #[value(name = "networkmanager")]
    NetworkManager,
    /// Leave the host alone; the resolver answers at the agent's address, port 53
    None,
    /// Put the resolver into /etc/resolv.conf until the node stops
    ResolvConf,
    /// Give resolvconf a record
    #[value(name = "resolvconf")]
    Resolvconf,
    /// Have systemd-resolved ask the resolver for agents' names and addresses, and for nothing else
    Resolved,
}

/// What --path may say.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Way {
    /// The best: directly where the networks between allow it, else by the gateway
    Auto,
    /// Data directly or not at all
    Direct,
    /// Like relay, and what a peer sends directly is ignored
    Hidden,
    /// By the gateway only
    Relay,
}

impl Way {
    /// Returns how settings write it.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => PathMode::Auto.as_str(),
            Self::Direct => PathMode::Direct.as_str(),
            Self::Hidden => PathMode::Hidden.as_str(),
            Self::Relay => PathMode::Relay.as_str(),
        }
    }
}

impl UpArgs {
    pub(super) fn sandbox(&self, context: &Context) -> Result<Sandbox, Failure> {
        Ok(of_node(&context.node_config(self.node.flags())?))
    }

    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        let config = context.node_config(self.node.flags())?;
        daemon::start_log(config.log, context)?;
        let stop = daemon::stop_asked()?;
        run(config, stop, daemon::tell_ready).await?;
        Ok(())
    }
}

impl NodeFlags {
    pub(super) fn flags(&self) -> Flags {
        let mut flags = Flags::default();
        let mode = self.dns.map(|dns| match dns {
            Dns::Auto => DnsMode::Auto.as_str(),
            Dns::NetworkManager => DnsMode::NetworkManager.as_str(),
            Dns::None => DnsMode::None.as_str(),
            Dns::ResolvConf => DnsMode::ResolvConf.as_str(),
            Dns::Resolvconf => DnsMode::Resolvconf.as_str(),
            Dns::Resolved => DnsMode::Resolved.as_str(),
        });
        flags.set("dns.mode", mode);
        flags.set("path.mode", self.path.map(Way::as_str));
        flags.set("udp.port", self.port.map(i64::from));
        flags
    }
}

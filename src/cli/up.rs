use clap::{Args, ValueEnum};
use tracing::info;

use crate::cli::context::{Context, env};
use crate::cli::daemon;
use crate::cli::failure::Failure;
use crate::cli::log;
use crate::cli::reload;
use crate::cli::secret::JoinTokenArg;
use crate::config::{DnsMode, Flags, NodeConfig, PathMode};
use crate::id::MemberName;
use crate::node::alone::{self, AloneError};
use crate::node::daemon::run;
use crate::node::join::JoinError;
use crate::node::sandbox::of_node;
use crate::os::clock;
use crate::os::paths;
use crate::os::sandbox::Sandbox;
use crate::statement::token::JoinToken;

/// Under which name a service manager hands over a join token.
const CREDENTIAL: &str = "agentnet.join-token";

/// Run the node: its agents' network devices, names and encrypted paths
#[derive(Args, Debug)]
#[command(mut_arg("token_file", |token| token.help(
    "Join by the token in FILE first, unless the agent did before [env: AGENTNET_TOKEN carries the \
     token itself] [default: the credential agentnet.join-token of systemd, if there]"
)))]
pub(super) struct UpArgs {
    #[command(flatten)]
    token: JoinTokenArg,

    /// Join under this name [default: the token's, when it allows but one]
    #[arg(long, value_name = "NAME", env = "AGENTNET_NAME")]
    name: Option<MemberName>,

    /// Leave the token's network again when the node is stopped, as for containers that keep nothing
    #[arg(long)]
    leave: bool,

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
        let mut sandbox = of_node(&context.node_config(self.node.flags())?);
        sandbox.reads.extend(self.token().file());
        Ok(sandbox)
    }

    fn token(&self) -> JoinTokenArg {
        let given = || paths::credential(CREDENTIAL, &env);
        self.token.or_else(given)
    }

    /// Makes the agent a member that is to be one; returns whom the token is for.
    async fn enter(&self, config: &NodeConfig) -> Result<Option<String>, Failure> {
        let token = self.token();
        if !token.is_given() {
            self.check_without_token(config)?;
            return Ok(None);
        }
        let token = token.secret()?.read()?.parse::<JoinToken>()?;
        match alone::enter_patiently(config, &token, self.name.clone()).await {
            Ok(joined) => {
                info!(name = joined.agent, "Joined");
                Ok(Some(joined.agent))
            }
            Err(AloneError::Join(JoinError::AlreadyMember(name))) => Ok(Some(name.to_string())),
            Err(error) => Err(error.into()),
        }
    }

    fn check_without_token(&self, config: &NodeConfig) -> Result<(), Failure> {
        let hint = "name a file by --token-file, or set AGENTNET_TOKEN";
        if self.leave {
            let what =
                "--leave is for an agent that joins anew at the next start, and no token is given";
            return Err(Failure::usage(what).hint(hint));
        }
        let Some(name) = self.name.as_ref().map(ToString::to_string) else {
            return Ok(());
        };
        if alone::has(config, &name)? {
            return Ok(());
        }
        let what = format!("no agent {name} joined here, and no token is given");
        Err(Failure::usage(what).hint(hint))
    }

    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        let config = context.node_config(self.node.flags())?;
        let logging = log::start(config.log, context)?;
        let stop = daemon::stop_asked()?;
        let read = context.node_settings(self.node.flags());
        let settings = reload::follow(logging, read()?, read)?;
        tokio::pin!(stop);
        let entered = tokio::select! {
            entered = self.enter(&config) => entered?,
            () = &mut stop => return Ok(()),
        };
        let ended = run(config.clone(), Some(settings), stop, daemon::tell_ready).await;
        if let Some(agent) = entered.filter(|_| self.leave) {
            let left = alone::leave(&config, Some(&agent), clock::unix()).await?;
            info!(name = left.name, told = left.told, "Left");
        }
        Ok(ended?)
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

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;

use crate::cli::context::{Context, env};
use crate::cli::daemon;
use crate::cli::failure::Failure;
use crate::cli::log;
use crate::cli::output::Show;
use crate::cli::reload;
use crate::config::{self, Flags, RegistryConfig, RegistrySettings};
use crate::id::{Did, DomainId, DomainPrefix};
use crate::os::files;
use crate::os::sandbox::Sandbox;
use crate::registry::init::{Initialised, Plan, init};
use crate::registry::server::{sandbox, serve};

/// Set up and run a domain's registry
#[derive(Args, Debug)]
pub(super) struct RegistryArgs {
    #[command(subcommand)]
    command: RegistryCommand,
}

#[derive(Debug, Subcommand)]
enum RegistryCommand {
    /// Make a domain: its root key, a registry key signed by it, and an operator token
    Init {
        /// Put keys, settings and database into DIR, which holds no registry yet
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// Listen on this address and port for HTTPS, as 198.51.100.1:8443
        #[arg(long, value_name = "ADDR")]
        listen: SocketAddr,
        /// Tell agents and operators this URL [default: https and the listening address]
        #[arg(long, value_name = "URL")]
        url: Option<String>,
    },
    /// Run the registry of --config FILE, made by init
    Serve {
        /// Listen on this address and port instead of the settings' one
        #[arg(long, value_name = "ADDR")]
        listen: Option<SocketAddr>,
    },
}

impl RegistryArgs {
    pub(super) const fn is_daemon(&self) -> bool {
        matches!(self.command, RegistryCommand::Serve { .. })
    }

    /// Returns what a registry that serves keeps of its rights.
    pub(super) fn sandbox(&self, context: &Context) -> Result<Sandbox, Failure> {
        Ok(sandbox(&registry_config(context, Flags::default())?))
    }

    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        files::create_private_by_default();
        match self.command {
            RegistryCommand::Init { dir, listen, url } => {
                let made = init(&Plan { dir, listen, url }).await?;
                context.out.done(&RegistryMade::from(made))
            }
            RegistryCommand::Serve { listen } => {
                let mut flags = Flags::default();
                flags.set("listen", listen.map(|at| at.to_string()));
                let file = settings_file(context)?;
                let config = registry_config(context, flags.clone())?;
                let read = move || Ok(config::load(Some(&file), &env, flags.clone())?);
                let logging = log::start(config.settings.log, context)?;
                let stop = daemon::stop_asked()?;
                let settings = reload::follow(logging, config.settings.clone(), read)?;
                serve(config, settings, stop, |_| daemon::tell_ready()).await?;
                Ok(())
            }
        }
    }
}

fn settings_file(context: &Context) -> Result<PathBuf, Failure> {
    context.config_file("registry.toml").ok_or_else(|| {
        Failure::usage("no settings: --config FILE is needed")
            .hint("`agentnet registry init` makes a registry and its settings file")
    })
}

fn registry_config(context: &Context, flags: Flags) -> Result<RegistryConfig, Failure> {
    let file = settings_file(context)?;
    let settings = config::load::<RegistrySettings>(Some(&file), &env, flags)?;
    Ok(RegistryConfig::new(settings, &file))
}

/// A domain and where its keys are.
#[derive(Debug, Serialize)]
struct RegistryMade {
    domain: DomainId,
    prefix: String,
    url: String,
    pin: String,
    registry: Did,
    operator: Did,
    /// To be kept offline.
    root_key_file: PathBuf,
    operator_token_file: PathBuf,
    config_file: PathBuf,
}

impl From<Initialised> for RegistryMade {
    fn from(made: Initialised) -> Self {
        Self {
            domain: made.domain,
            prefix: prefix_text(made.prefix),
            url: made.url,
            pin: made.pin.to_string(),
            registry: made.registry,
            operator: made.operator,
            root_key_file: made.files.domain_root(),
            operator_token_file: made.files.operator(),
            config_file: made.files.settings(),
        }
    }
}

fn prefix_text(prefix: DomainPrefix) -> String {
    format!("{}/48", prefix.network(0).first())
}

impl Show for RegistryMade {
    fn show(&self) -> String {
        format!(
            "made the domain {}\n  {:<12}{}\n  {:<12}{}\n  {:<12}{}  move it offline; the whole domain rests on it\n  {:<12}{}  who holds it creates networks and enrols gateways\n  {:<12}agentnet registry serve --config {}",
            self.domain,
            "registry",
            self.url,
            "prefix",
            self.prefix,
            "root key",
            self.root_key_file.display(),
            "operator",
            self.operator_token_file.display(),
            "next",
            self.config_file.display(),
        )
    }
}

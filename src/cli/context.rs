use std::path::PathBuf;

use clap::{ArgAction, Args};
use toml::Value;

use crate::cli::client::Client;
use crate::cli::failure::{Exit, Failure};
use crate::cli::log::Format;
use crate::cli::output::Output;
use crate::config::{self, Flags, LogFormat, NodeConfig, NodeSettings};
use crate::id::Suffix;
use crate::os::paths;
use crate::os::sandbox::{Enforced, SandboxError};

/// What every command takes, as typed.
#[derive(Args, Debug)]
#[command(next_help_heading = "Options of every command")]
pub(super) struct Global {
    /// Keep keys and memory in DIR [default: /var/lib/agentnet, or the user's state directory]
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "AGENTNET_STATE",
        hide_env_values = true
    )]
    state: Option<PathBuf>,

    /// Reach the daemon at PATH [default: the socket that belongs to the state directory]
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        env = "AGENTNET_SOCKET",
        hide_env_values = true
    )]
    socket: Option<PathBuf>,

    /// Read settings from FILE [default: the daemon's own in /etc/agentnet, if there]
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "AGENTNET_CONFIG",
        hide_env_values = true
    )]
    config: Option<PathBuf>,

    /// Print facts as one line of JSON, versioned by "v"
    #[arg(long, global = true)]
    json: bool,

    /// Log in this shape [default: auto]
    #[arg(long, global = true, value_name = "FORMAT", value_enum)]
    log_format: Option<Format>,

    /// Log more; twice for every detail
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,

    /// Print nothing but facts and errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
}

/// What every command takes, as meant.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) out: Output,
    state: Option<PathBuf>,
    socket: Option<PathBuf>,
    config: Option<PathBuf>,
    pub(super) verbose: u8,
    /// None where the settings say.
    pub(super) log_format: Option<LogFormat>,
    /// What became of the rights that a daemon gives up; None for what gives up none.
    pub(super) sandboxed: Option<Result<Enforced, SandboxError>>,
}

impl Context {
    pub(super) fn new(global: Global) -> Self {
        Self {
            out: Output {
                json: global.json,
                quiet: global.quiet,
            },
            state: global.state,
            socket: global.socket,
            config: global.config,
            verbose: global.verbose,
            log_format: global.log_format.map(LogFormat::from),
            sandboxed: None,
        }
    }

    /// Returns the settings file that was named.
    pub(super) fn named_config(&self) -> Option<PathBuf> {
        self.config.clone()
    }

    /// Returns the settings file that was named, or the package's one of this name.
    pub(super) fn config_file(&self, name: &str) -> Option<PathBuf> {
        self.config.clone().or_else(|| paths::default_config(name))
    }

    /// Returns the state directory; it may not exist yet.
    pub(super) fn state(&self) -> Result<PathBuf, Failure> {
        let settings = self.settings(Flags::default())?;
        Ok(settings
            .state
            .map_or_else(|| paths::default_state(&env), Ok)?)
    }

    /// Tells whether a state directory was named on the command line or in the environment.
    pub(super) const fn has_state(&self) -> bool {
        self.state.is_some()
    }

    /// Returns the suffix that agents' names end in on this host.
    pub(super) fn suffix(&self) -> Result<Suffix, Failure> {
        Ok(self.settings(Flags::default())?.suffix)
    }

    /// Returns a client of the daemon this command is meant for.
    pub(super) fn client(&self) -> Result<Client, Failure> {
        Client::new(&self.socket()?)
    }

    /// Returns what a daemon of this command line would run with.
    pub(super) fn node_config(&self, flags: Flags) -> Result<NodeConfig, Failure> {
        let settings = self.settings(flags)?;
        let state = settings.state.clone();
        let state = state.map_or_else(|| paths::default_state(&env), Ok)?;
        let socket = settings.socket.clone();
        let socket = match socket {
            Some(socket) => paths::checked_socket(socket)?,
            None => paths::socket_of(&state, &env)?,
        };
        Ok(NodeConfig::new(settings, state, socket))
    }

    /// Returns the settings that a daemon of this command line would have, as its file would write them.
    pub(super) fn settings_text(&self) -> Result<String, Failure> {
        let settings = self.settings(Flags::default())?;
        toml::to_string(&settings).map_err(|error| Failure::of(Exit::Failed, &error))
    }

    /// Returns where the daemon's local API is that commands reach.
    pub(super) fn socket(&self) -> Result<PathBuf, Failure> {
        let settings = self.settings(Flags::default())?;
        let socket = match (settings.socket, settings.state) {
            (Some(socket), _) => paths::checked_socket(socket)?,
            (None, Some(state)) => paths::socket_of(&state, &env)?,
            (None, None) => paths::find_socket(&env)?,
        };
        Ok(socket)
    }

    fn settings(&self, flags: Flags) -> Result<NodeSettings, Failure> {
        self.node_settings(flags)()
    }

    /// Returns what reads a node's settings, as they are when it is called.
    pub(super) fn node_settings(
        &self,
        mut flags: Flags,
    ) -> impl Fn() -> Result<NodeSettings, Failure> + Send + 'static {
        let text = |path: &Option<PathBuf>| {
            let path = path.as_ref()?;
            Some(Value::from(path.to_string_lossy().into_owned()))
        };
        flags.set("state", text(&self.state));
        flags.set("socket", text(&self.socket));
        let named = self.config.clone();
        move || {
            let file = named
                .clone()
                .or_else(|| paths::default_config("agentnet.toml"));
            Ok(config::load(file.as_deref(), &env, flags.clone())?)
        }
    }
}

pub(super) use crate::os::paths::environment as env;

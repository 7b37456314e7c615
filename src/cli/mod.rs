//! The command line.

mod agent;
mod bugreport;
mod capture;
mod client;
mod connect;
mod context;
mod daemon;
mod dev;
mod dns;
mod doctor;
mod down;
mod failure;
mod gateway;
mod inside;
mod join;
mod leave;
mod log;
mod netcheck;
mod network;
mod output;
mod path;
mod peers;
mod ping;
mod registry;
mod reload;
mod run;
mod secret;
mod serve;
mod status;
mod text;
mod token;
mod trust;
mod up;
mod values;
mod version;
mod whois;
mod wireguard;

use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use tokio::runtime::Builder;

use crate::cli::context::{Context, Global};
use crate::cli::failure::{Exit, Failure};
use crate::os::namespace::{Ending, end_by};
use crate::os::sandbox::Sandbox;

/// A virtual network card for AI agents: stable IPv6 address, name and encrypted, consented
/// connectivity
#[derive(Debug, Parser)]
#[command(
    name = "agentnet",
    version,
    propagate_version = true,
    max_term_width = 100
)]
#[command(disable_help_subcommand = true, subcommand_required = true)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed, 2 usage, 3 denied, 4 not found, 5 unreachable"
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Agent(agent::AgentArgs),
    Bugreport(bugreport::BugreportArgs),
    Capture(capture::CaptureArgs),
    Connect(connect::ConnectArgs),
    Dev(dev::DevArgs),
    Dns(dns::DnsArgs),
    Doctor(doctor::DoctorArgs),
    Down(down::DownArgs),
    Gateway(gateway::GatewayArgs),
    #[command(hide = true)]
    Inside(inside::InsideArgs),
    Join(join::JoinArgs),
    Leave(leave::LeaveArgs),
    Netcheck(netcheck::NetcheckArgs),
    Network(network::NetworkArgs),
    Path(path::PathArgs),
    Peers(peers::PeersArgs),
    Ping(ping::PingArgs),
    Registry(registry::RegistryArgs),
    Run(run::RunArgs),
    Serve(serve::ServeArgs),
    Status(status::StatusArgs),
    Token(token::TokenArgs),
    Trust(trust::TrustArgs),
    Up(up::UpArgs),
    Version(version::VersionArgs),
    Whois(whois::WhoisArgs),
    #[command(name = "wireguard")]
    WireGuard(wireguard::WireGuardArgs),
}

/// The local agent a command is about.
#[derive(Args, Debug)]
struct AgentArg {
    /// Choose the local agent by name, when this node carries several
    #[arg(long, global = true, value_name = "NAME")]
    agent: Option<String>,
}

/// Returns the command line's description, which man pages and completions are made of.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the command that was typed.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help that nobody reads to its end is no failure.
            drop(error.print());
            return u8::try_from(error.exit_code())
                .map_or_else(|_| Exit::Usage.into(), ExitCode::from);
        }
    };
    match run(cli) {
        Ok(ending) => ended(ending),
        Err(failure) => {
            output::complain(&failure);
            failure.exit.into()
        }
    }
}

/// Ends as a program ended that was run for the caller.
fn ended(ending: Ending) -> ExitCode {
    match ending {
        Ending::Exit(code) => code.into(),
        Ending::Killed(signal) => {
            end_by(signal);
            // What shells say of it.
            ExitCode::from(128_u8.saturating_add(u8::try_from(signal).unwrap_or_default()))
        }
        Ending::NotStarted(_) => Exit::NotStartable.into(),
    }
}

fn run(cli: Cli) -> Result<Ending, Failure> {
    let mut context = Context::new(cli.global);
    // These two begin without threads.
    if let Command::Inside(args) = cli.command {
        return args.execute().map(|()| Ending::Exit(0));
    }
    if let Command::Run(args) = cli.command {
        return args.execute(&context);
    }
    // Of threads, so before the runtime makes any.
    if let Some(mut sandbox) = cli.command.role().sandbox(&context)? {
        sandbox.reads.extend(context.named_config());
        context.sandboxed = Some(sandbox.enter());
    }
    run_in_tasks(cli.command, &context).map(|()| Ending::Exit(0))
}

fn run_in_tasks(command: Command, context: &Context) -> Result<(), Failure> {
    let role = command.role();
    let mut runtime = if role.is_daemon() {
        Builder::new_multi_thread()
    } else {
        Builder::new_current_thread()
    };
    if role.is_node() {
        // All data but that of the relay passes another thread; more of these would only wake each
        // other up.
        runtime.worker_threads(1);
    }
    let runtime = runtime
        .enable_all()
        .build()
        .map_err(|e| Failure::new(Exit::Failed, format!("cannot start: {e}")))?;
    runtime.block_on(dispatch(command, context))
}

/// What kind of process a command is.
enum Role<'a> {
    Gateway(&'a gateway::GatewayArgs),
    Node(&'a up::UpArgs),
    /// Does one thing, and ends.
    Once,
    Registry(&'a registry::RegistryArgs),
    /// Runs until it is stopped, with all rights of its user.
    Unconfined,
}

impl Role<'_> {
    /// Returns what a daemon keeps of its rights; None for what gives up none.
    fn sandbox(&self, context: &Context) -> Result<Option<Sandbox>, Failure> {
        match self {
            Role::Gateway(args) => args.sandbox(context).map(Some),
            Role::Node(args) => args.sandbox(context).map(Some),
            Role::Registry(args) => args.sandbox(context).map(Some),
            Role::Once | Role::Unconfined => Ok(None),
        }
    }

    /// Tells whether it is a node and nothing else.
    const fn is_node(&self) -> bool {
        matches!(self, Role::Node(_))
    }

    /// Tells whether it runs until it is stopped.
    const fn is_daemon(&self) -> bool {
        !matches!(self, Role::Once)
    }
}

impl Command {
    const fn role(&self) -> Role<'_> {
        match self {
            Self::Gateway(args) if args.is_daemon() => Role::Gateway(args),
            Self::Registry(args) if args.is_daemon() => Role::Registry(args),
            Self::Dev(_) | Self::Serve(_) => Role::Unconfined,
            Self::Up(args) => Role::Node(args),
            Self::Agent(_)
            | Self::Bugreport(_)
            | Self::Capture(_)
            | Self::Connect(_)
            | Self::Dns(_)
            | Self::Doctor(_)
            | Self::Down(_)
            | Self::Gateway(_)
            | Self::Inside(_)
            | Self::Join(_)
            | Self::Leave(_)
            | Self::Netcheck(_)
            | Self::Network(_)
            | Self::Path(_)
            | Self::Peers(_)
            | Self::Ping(_)
            | Self::Registry(_)
            | Self::Run(_)
            | Self::Status(_)
            | Self::Token(_)
            | Self::Trust(_)
            | Self::Version(_)
            | Self::Whois(_)
            | Self::WireGuard(_) => Role::Once,
        }
    }
}

async fn dispatch(command: Command, context: &Context) -> Result<(), Failure> {
    match command {
        Command::Agent(args) => args.run(context).await,
        Command::Bugreport(args) => args.run(context).await,
        Command::Capture(args) => args.run(context).await,
        Command::Connect(args) => args.run(context).await,
        Command::Dev(args) => args.run(context).await,
        Command::Dns(args) => args.run(context).await,
        Command::Doctor(args) => args.run(context).await,
        Command::Down(args) => args.run(context).await,
        Command::Gateway(args) => args.run(context).await,
        Command::Inside(args) => args.execute(),
        Command::Join(args) => args.run(context).await,
        Command::Leave(args) => args.run(context).await,
        Command::Netcheck(args) => args.run(context).await,
        Command::Network(args) => args.run(context).await,
        Command::Path(args) => args.run(context).await,
        Command::Peers(args) => args.run(context).await,
        Command::Ping(args) => args.run(context).await,
        Command::Registry(args) => args.run(context).await,
        Command::Run(args) => args.execute(context).map(drop),
        Command::Serve(args) => args.run(context).await,
        Command::Status(args) => args.run(context).await,
        Command::Token(args) => args.run(context).await,
        Command::Trust(args) => args.run(context).await,
        Command::Up(args) => args.run(context).await,
        Command::Version(args) => args.run(context).await,
        Command::Whois(args) => args.run(context).await,
        Command::WireGuard(args) => args.run(context).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_command(command: &clap::Command, found: &mut Vec<clap::Command>) {
        found.push(command.clone());
        for inner in command.get_subcommands() {
            every_command(inner, found);
        }
    }

    #[test]
    fn every_command_and_option_is_documented() {
        Cli::command().debug_assert();
        let mut commands = Vec::new();
        every_command(&Cli::command(), &mut commands);

        for command in commands {
            let name = command.get_name();
            let about = command.get_about().map(ToString::to_string);
            let about = about.unwrap_or_default();
            assert!(
                !about.is_empty() && !about.ends_with('.'),
                "{name}: {about:?}"
            );
            for argument in command.get_arguments() {
                let help = argument.get_help().map(ToString::to_string);
                let help = help.unwrap_or_default();
                let id = argument.get_id();
                assert!(
                    !help.is_empty() && !help.ends_with('.'),
                    "{name} {id}: {help:?}"
                );
            }
        }
    }
}

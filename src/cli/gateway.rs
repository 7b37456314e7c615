use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Subcommand};
use serde::ser::Error;
use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::cli::client::Client;
use crate::cli::context::{Context, env};
use crate::cli::daemon;
use crate::cli::failure::Failure;
use crate::cli::log;
use crate::cli::output::Show;
use crate::cli::reload;
use crate::cli::secret::OperatorTokenArg;
use crate::cli::text::{Table, bytes, list};
use crate::config::{self, Flags, GatewaySettings};
use crate::gateway::rate::Rate;
use crate::gateway::status::GatewayStatus;
use crate::id::Did;
use crate::node::gateway::{GatewayConfig, Plan, export, init, serve};
use crate::node::sandbox::of_gateway;
use crate::os::files;
use crate::os::sandbox::Sandbox;

/// Set up and run a gateway
#[derive(Args, Debug)]
pub(super) struct GatewayArgs {
    #[command(subcommand)]
    command: GatewayCommand,
}

#[derive(Debug, Subcommand)]
enum GatewayCommand {
    Init(InitArgs),
    /// Print what gateways of another domain need to peer with those of the gateway of --config FILE:
    /// hand it to their operator, for peering.files in gateway.toml
    Peering,
    /// Run the gateway of --config FILE, made by init
    Serve,
    /// Show the running gateway of --config FILE: attachments (ids only), routes and drops
    Status,
}

/// Make a gateway's keys and enrol it with the registry
#[derive(Args, Debug)]
struct InitArgs {
    /// Put keys and settings into DIR, which holds no gateway yet
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,

    /// Listen on this UDP address and port, as 198.51.100.1:16201
    #[arg(long, value_name = "ADDR")]
    listen: SocketAddr,

    /// Tell agents to reach it here; repeatable, best first [default: the listening address]
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Vec<String>,

    /// Tell agents where it is, in any words, so that they may prefer near ones
    #[arg(long, value_name = "TEXT")]
    region: Option<String>,

    /// Take frames by WebSocket over TLS too, for agents in networks that block UDP, as 0.0.0.0:443
    #[arg(long, value_name = "ADDR")]
    wss: Option<SocketAddr>,

    #[command(flatten)]
    operator: OperatorTokenArg,
}

impl GatewayArgs {
    pub(super) const fn is_daemon(&self) -> bool {
        matches!(self.command, GatewayCommand::Serve)
    }

    /// Returns what a gateway that serves keeps of its rights.
    pub(super) fn sandbox(&self, context: &Context) -> Result<Sandbox, Failure> {
        Ok(of_gateway(&gateway_config(context)?))
    }

    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        match self.command {
            GatewayCommand::Init(args) => args.run(context).await,
            GatewayCommand::Peering => {
                let made = export(&gateway_config(context)?).await?;
                context.out.print(&Exported(made))
            }
            GatewayCommand::Serve => {
                files::create_private_by_default();
                let config = gateway_config(context)?;
                let logging = log::start(config.settings.log, context)?;
                let stop = daemon::stop_asked()?;
                let file = settings_file(context)?;
                let read = move || Ok(config::load(Some(&file), &env, Flags::default())?);
                let settings = reload::follow(logging, config.settings.clone(), read)?;
                serve(config, settings, stop, |_| daemon::tell_ready()).await?;
                Ok(())
            }
            GatewayCommand::Status => {
                let client = Client::new(&gateway_config(context)?.socket())?;
                context
                    .out
                    .print(&client.get::<GatewayStatus>("/v1/status", &()).await?)
            }
        }
    }
}

fn settings_file(context: &Context) -> Result<PathBuf, Failure> {
    context.config_file("gateway.toml").ok_or_else(|| {
        Failure::usage("no settings: --config FILE is needed")
            .hint("`agentnet gateway init` makes a gateway and its settings file")
    })
}

fn gateway_config(context: &Context) -> Result<GatewayConfig, Failure> {
    let file = settings_file(context)?;
    let settings = config::load::<GatewaySettings>(Some(&file), &env, Flags::default())?;
    Ok(GatewayConfig::new(settings, &file))
}

impl InitArgs {
    async fn run(self, context: &Context) -> Result<(), Failure> {
        let operator = self.operator.read()?;
        let plan = Plan {
            dir: self.dir,
            listen: self.listen,
            advertise: self.advertise,
            region: self.region,
            wss: self.wss,
        };
        let made = init(&plan, &operator).await?;
        context.out.done(&GatewayMade {
            gateway: made.gateway,
            udp: made.udp,
            config_file: made.settings,
        })
    }
}

/// A gateway that was set up and enrolled.
#[derive(Debug, Serialize)]
struct GatewayMade {
    gateway: Did,
    /// Where agents reach it, `host:port`.
    udp: Vec<String>,
    config_file: PathBuf,
}

impl Show for GatewayMade {
    fn show(&self) -> String {
        format!(
            "made the gateway {}\n  {:<12}{}\n  {:<12}agentnet gateway serve --config {}",
            self.gateway,
            "reached at",
            list(&self.udp),
            "next",
            self.config_file.display(),
        )
    }
}

/// A file for another domain, the same for people and programs.
#[derive(Debug)]
struct Exported(String);

impl Serialize for Exported {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let value: Value = serde_json::from_str(&self.0).map_err(S::Error::custom)?;
        value.serialize(serializer)
    }
}

impl Show for Exported {
    fn show(&self) -> String {
        self.0.clone()
    }
}

impl Show for GatewayStatus {
    fn show(&self) -> String {
        let mut parts = vec![format!(
            "gateway {}\n  {} networks, {} agents attached, {} attaching, {} routes\n  forwarded {} frames, {}; now {}",
            self.gateway,
            self.networks,
            self.attached,
            self.attaching,
            self.routes,
            self.forwarded_frames,
            bytes(self.forwarded_bytes),
            rate(self.forwarding),
        )];
        let mut table = Table::new([
            "AGENT", "ENDPOINT", "BY", "STATE", "SENDS", "GETS", "NETWORK",
        ]);
        for attachment in &self.attachments {
            let state = if attachment.stale {
                "silent"
            } else {
                "attached"
            };
            table.row([
                attachment.agent.to_string(),
                attachment.endpoint.to_string(),
                attachment.carrier.as_str().to_owned(),
                state.to_owned(),
                rate(attachment.sent),
                rate(attachment.received),
                attachment.network.to_string(),
            ]);
        }
        parts.push(table.text("no agent is attached"));
        if !self.peers.is_empty() {
            let mut table = Table::new(["GATEWAY", "ENDPOINT", "STATE", "RTT", "ROUTES", "DOMAIN"]);
            for peer in &self.peers {
                let endpoint = peer.endpoint.map(|at| at.to_string());
                let rtt = peer
                    .rtt_us
                    .map(|us| format!("{:.1} ms", us as f64 / 1000.0));
                table.row([
                    peer.gateway.to_string(),
                    endpoint.unwrap_or_else(|| "-".to_owned()),
                    peer.state.to_string(),
                    rtt.unwrap_or_else(|| "-".to_owned()),
                    peer.routes.to_string(),
                    if peer.prefixes.is_empty() {
                        "own".to_owned()
                    } else {
                        list(&peer.prefixes)
                    },
                ]);
            }
            parts.push(table.text("no other gateway is known"));
        }
        if !self.drops.is_empty() {
            let drops = self.drops.iter().map(|(reason, n)| format!("{reason} {n}"));
            parts.push(format!("dropped: {}", drops.collect::<Vec<_>>().join(", ")));
        }
        parts.join("\n\n")
    }
}

fn rate(rate: Rate) -> String {
    format!("{}/s {}/s", rate.packets, bytes(rate.bytes))
}

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};

use crate::cli::AgentArg;
use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::cli::output::Show;
use crate::cli::text::{Table, ago_or_never, bytes, scope};
use crate::id::{OverlayIp, PresharedKey, UnixTime, WireGuardKey};
use crate::os::files;
use crate::statement::Scope;
use crate::wire::api::local::{
    OfAgent, WireGuardAdd, WireGuardAdded, WireGuardOwn, WireGuardPeer, WireGuardPeers,
    WireGuardRef, WireGuardRemove, WireGuardRemoved,
};

/// Let peers in that speak WireGuard and nothing else
#[derive(Args, Debug)]
pub(super) struct WireGuardArgs {
    #[command(subcommand)]
    command: WireGuardCommand,
    #[command(flatten)]
    of: AgentArg,
}

#[derive(Debug, Subcommand)]
enum WireGuardCommand {
    /// Let a peer in by its key, and print what its configuration needs
    Add {
        /// Public key of the peer, as wg pubkey prints it
        key: WireGuardKey,
        /// The one address it sends from, of the agent's network [default: follows from its key]
        #[arg(long)]
        address: Option<OverlayIp>,
        /// Reach it there, and where it is heard from later [default: wait until it begins]
        #[arg(long, value_name = "IP:PORT")]
        endpoint: Option<SocketAddr>,
        /// Let it reach this here: tcp/8000, udp/5000-5010 or any; repeatable
        /// [default: replies only]
        #[arg(long, value_name = "PORTS")]
        allow: Vec<Scope>,
        /// Read a key that both share from FILE, as wg genpsk prints one
        #[arg(long, value_name = "FILE")]
        preshared_key_file: Option<PathBuf>,
    },
    /// List these peers
    List,
    /// Forget a peer; when this returns, nothing of it passes any more
    Remove {
        /// Its key or address
        #[arg(value_name = "KEY|ADDRESS")]
        peer: WireGuardRef,
    },
}

impl WireGuardArgs {
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        let (client, out) = (context.client()?, context.out);
        let agent = self.of.agent;
        match self.command {
            WireGuardCommand::Add {
                key,
                address,
                endpoint,
                allow,
                preshared_key_file,
            } => {
                let allow = Scope::union(allow).map_err(|e| Failure::usage(e.to_string()))?;
                let preshared_key = preshared_key_file
                    .as_deref()
                    .map(preshared_key)
                    .transpose()?;
                let body = WireGuardAdd {
                    agent,
                    key,
                    address,
                    endpoint,
                    allow,
                    preshared_key,
                };
                let added = client.post::<WireGuardAdded>("/v1/wireguard/add", &body);
                out.print(&added.await?)
            }
            WireGuardCommand::List => {
                let of = OfAgent { agent };
                out.print(&client.get::<WireGuardPeers>("/v1/wireguard", &of).await?)
            }
            WireGuardCommand::Remove { peer } => {
                let body = WireGuardRemove { agent, peer };
                let removed = client.post::<WireGuardRemoved>("/v1/wireguard/remove", &body);
                out.done(&removed.await?)
            }
        }
    }
}

fn preshared_key(file: &Path) -> Result<PresharedKey, Failure> {
    let text = files::read_text(file)?;
    text.parse().map_err(|error| {
        Failure::usage(format!("{}: {error}", file.display()))
            .hint("make one with wg genpsk, and give the same to both ends")
    })
}

/// Prints what `wg addconf` of the other end takes, comments included.
impl Show for WireGuardAdded {
    fn show(&self) -> String {
        let (peer, own) = (&self.peer, &self.own);
        let allowed = if peer.inbound.is_replies_only() {
            "may answer it, and open nothing (see --allow)".to_owned()
        } else {
            format!("may reach {} of it", scope(&peer.inbound))
        };
        let mut lines = vec![
            format!(
                "# {} is a WireGuard peer of {} and {allowed}.",
                peer.key, own.agent
            ),
            "# For its end, with this in FILE: wg addconf INTERFACE FILE".to_owned(),
            format!("# and: ip address add {}/64 dev INTERFACE", peer.address),
            "[Peer]".to_owned(),
            format!("PublicKey = {}", own.key),
            format!("AllowedIPs = {}/128", own.address),
        ];
        if peer.preshared_key {
            lines.push("# PresharedKey = the one in the file given here".to_owned());
        }
        let mut endpoints = own.endpoints.iter();
        match endpoints.next() {
            Some(at) => lines.push(format!("Endpoint = {at}")),
            None => lines.push(format!("# Endpoint = address of this host:{}", own.port)),
        }
        lines.extend(endpoints.map(|at| format!("# or Endpoint = {at}")));
        lines.join("\n")
    }
}

impl Show for WireGuardRemoved {
    fn show(&self) -> String {
        format!(
            "removed {} at {}: nothing of it passes any more",
            self.key, self.address
        )
    }
}

impl Show for WireGuardPeers {
    fn show(&self) -> String {
        let one = |own: &WireGuardOwn| {
            format!(
                "{} has key {}, address {} and UDP port {}",
                own.agent, own.key, own.address, own.port
            )
        };
        let own = self.own.iter().map(one).collect::<Vec<_>>().join("\n");
        let peers = table(self.now, &self.peers);
        let peers = peers.text("no WireGuard peers: agentnet wireguard add KEY adds one");
        format!("{own}\n\n{peers}").trim_start().to_owned()
    }
}

/// Returns the peers as a table.
pub(super) fn table(now: UnixTime, peers: &[WireGuardPeer]) -> Table<9> {
    let mut table = Table::new([
        "WIREGUARD KEY",
        "ADDRESS",
        "SESSION",
        "ENDPOINT",
        "LAST IN",
        "IN",
        "OUT",
        "MAY REACH HERE",
        "AGENT",
    ]);
    for peer in peers {
        table.row([
            peer.key.to_string(),
            peer.address.to_string(),
            peer.state.to_string(),
            peer.endpoint
                .map_or_else(|| "-".to_owned(), |at| at.to_string()),
            ago_or_never(now, peer.last_inbound),
            bytes(peer.rx_bytes),
            bytes(peer.tx_bytes),
            scope(&peer.inbound),
            peer.agent.clone(),
        ]);
    }
    table
}

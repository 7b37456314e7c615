use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::cli::client::Client;
use crate::cli::context::Context;
use crate::cli::doctor::diagnose;
use crate::cli::failure::{Exit, Failure};
use crate::cli::output::{Show, line};
use crate::config::{Flags, NodeConfig};
use crate::node::bugreport::{Part, Report, names_on_disk};
use crate::os::files::create_private;
use crate::wire::api::local::{Dns, LogLines, Metrics, OfAgent, Peers, Pending, Status, TrustList};

/// Where a report goes when nobody says.
const FILE: &str = "agentnet-bugreport.txt";

/// Put what those need to know who look for a fault into one file, without keys, names and addresses
#[derive(Args, Debug)]
#[command(after_help = "\
It has version, settings, status, peers, findings of `agentnet doctor`, metrics and the daemon's last log lines. Keys, \
tokens, names of agents, networks and hosts, and IP addresses are replaced: the same one by the same word throughout. Look \
through it before you send it. Needs no running node, and has more with one, as root or in group agentnet.")]
pub(super) struct BugreportArgs {
    /// Write it to FILE, which is not there yet, or to standard output when it is - [default: agentnet-bugreport.txt]
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// Ask no registry, gateway or router
    #[arg(long)]
    no_network: bool,
}

impl BugreportArgs {
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        let config = context.node_config(Flags::default())?;
        let text = report(context, &config, !self.no_network).await?;
        let file = self.out.unwrap_or_else(|| FILE.into());
        if file.as_os_str() == "-" {
            return line(text.trim_end());
        }
        create_private(&file, &text)?;
        context.out.done(&Written { file })
    }
}

async fn report(context: &Context, config: &NodeConfig, asks: bool) -> Result<String, Failure> {
    let client = context.client()?;
    let status = client.get::<Status>("/v1/status", &()).await;
    let all = OfAgent::default();
    let peers = client.get::<Peers>("/v1/peers", &all).await;
    let trust = client.get::<TrustList>("/v1/trust", &all).await;
    let pending = client.get::<Pending>("/v1/trust/pending", &all).await;
    let mut names = names_on_disk(config);
    if let Ok(pending) = &pending {
        let both = pending.incoming.iter().chain(&pending.outgoing);
        names.extend(both.map(|request| request.name.clone()));
    }
    if let Ok(status) = &status {
        names.extend(status.agents.iter().map(|agent| agent.name.clone()));
    }
    if let Ok(peers) = &peers {
        names.extend(peers.peers.iter().map(|peer| peer.name.clone()));
    }
    if let Ok(trust) = &trust {
        names.extend(trust.trust.iter().map(|one| one.name.clone()));
    }
    let mut report = Report::new(config, &names);
    if let Ok(status) = &status {
        report.hide_hosts(status);
    }
    let settings = context.settings_text()?;
    report.add("settings", Part::Text(settings));
    report.add("status", json(status));
    report.add("peers", json(peers));
    report.add("trust", json(trust));
    report.add("dns", json(client.get::<Dns>("/v1/dns", &()).await));
    let diagnosis = diagnose(context, asks).await;
    report.add("doctor", shown(diagnosis.map(|diagnosis| diagnosis.show())));
    report.add("metrics", shown(metrics(&client).await));
    report.add("log", shown(log(&client).await));
    Ok(report.finish())
}

async fn metrics(client: &Client) -> Result<String, Failure> {
    let metrics = client.get::<Metrics>("/v1/metrics", &()).await;
    Ok(metrics?.text)
}

async fn log(client: &Client) -> Result<String, Failure> {
    let log = client.get::<LogLines>("/v1/log", &()).await;
    Ok(log?.lines.join("\n"))
}

fn json(answer: Result<impl Serialize, Failure>) -> Part {
    let text = answer.and_then(|answer| {
        let text = serde_json::to_string_pretty(&answer);
        text.map_err(|error| Failure::new(Exit::Failed, error.to_string()))
    });
    shown(text)
}

fn shown(text: Result<String, Failure>) -> Part {
    match text {
        Ok(text) => Part::Text(text),
        Err(failure) => Part::Missing(failure.what),
    }
}

/// Where the report is.
#[derive(Debug, Serialize)]
struct Written {
    file: PathBuf,
}

impl Show for Written {
    fn show(&self) -> String {
        format!(
            "wrote {}\n  look through it before you send it: what it cannot know for a name is still there",
            self.file.display()
        )
    }
}

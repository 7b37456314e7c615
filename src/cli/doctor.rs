use clap::Args;

use crate::cli::context::Context;
use crate::cli::dns;
use crate::cli::failure::{Exit, Failure};
use crate::cli::netcheck::plan;
use crate::cli::output::Show;
use crate::cli::text::indented;
use crate::config::Flags;
use crate::node::doctor::{Findings, examine};
use crate::node::netcheck;
use crate::wire::api::local::{Check, CheckState, Diagnosis, Status};

/// Find out what is wrong on this host, and what to do about it
#[derive(Args, Debug)]
#[command(after_help = "\
Looks at the node, the kernel, devices, disk, addresses, firewall, the network (as `agentnet netcheck`) and names (as \
`agentnet dns status`); takes some 10 s. Needs no running node, and sees more as root. Each finding has a code, \
which docs/troubleshooting.md explains, and a cure. Exits with 1 when something is broken.")]
pub(super) struct DoctorArgs {
    /// Ask no registry, gateway or router
    #[arg(long)]
    no_network: bool,
}

impl DoctorArgs {
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        let diagnosis = diagnose(context, !self.no_network).await?;
        context.out.print(&diagnosis)?;
        let broken = diagnosis.broken().collect::<Vec<_>>();
        let Some(first) = broken.first() else {
            return Ok(());
        };
        let what = match broken.len() {
            1 => first.text.clone(),
            more => format!("{more} things are broken, first of all: {}", first.text),
        };
        let failure = Failure::new(Exit::Failed, what);
        Err(match &first.cure {
            Some(cure) => failure.hint(cure),
            None => failure,
        })
    }
}

/// Examines this host.
pub(super) async fn diagnose(context: &Context, asks: bool) -> Result<Diagnosis, Failure> {
    let config = context.node_config(Flags::default())?;
    let client = context.client()?;
    let status = client.get::<Status>("/v1/status", &()).await;
    let (status, no_node) = match status {
        Ok(status) => (Some(status), None),
        Err(failure) => (None, Some(failure.what)),
    };
    let network = async {
        if !asks {
            return Ok::<_, Failure>(None);
        }
        let plan = plan(context, &config, &client).await?;
        Ok(Some(netcheck::run(&plan).await))
    };
    let (network, dns) = tokio::join!(network, dns::status::check(context));
    let found = Findings {
        status,
        no_node,
        network: network?,
        // Without a node that answers there is nothing to look up.
        dns: dns.ok(),
    };
    Ok(examine(&config, &found).await)
}

impl Show for Diagnosis {
    fn show(&self) -> String {
        let lines = self.checks.iter().map(line);
        lines.collect::<Vec<_>>().join("\n")
    }
}

fn line(check: &Check) -> String {
    let state = match check.state {
        CheckState::Broken => "BROKEN",
        CheckState::Odd => "odd",
        CheckState::Unknown => "?",
        CheckState::Well => "ok",
    };
    let mut text = format!("{state:<8}{:<12}{}", check.check, check.text);
    for (name, value) in [("cure", &check.cure), ("code", &check.code)] {
        if let Some(value) = value {
            text.push_str(&format!(
                "\n{}",
                indented(&format!("      {name}: {value}"))
            ));
        }
    }
    text
}

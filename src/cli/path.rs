use clap::Args;

use crate::cli::AgentArg;
use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::cli::output::Show;
use crate::cli::text::{Table, ago, ago_or_never, millis, until};
use crate::wire::api::local::{Endpoint, PathPair, PathQuery, PathReport};

/// Show every path to an agent, and why the one in use is
#[derive(Args, Debug)]
pub(super) struct PathArgs {
    /// Name of the agent, short (b) or full (b.acme.agent)
    name: String,

    #[command(flatten)]
    of: AgentArg,
}

impl PathArgs {
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        let query = PathQuery {
            agent: self.of.agent,
            name: self.name,
        };
        let report = context
            .client()?
            .get::<PathReport>("/v1/path", &query)
            .await?;
        context.out.print(&report)
    }
}

impl Show for PathReport {
    fn show(&self) -> String {
        let used = self.pairs.iter().find(|pair| pair.in_use);
        let used = used.and_then(|pair| match (pair.remote, pair.carrier) {
            (Some(remote), _) => Some(remote.at.to_string()),
            (None, Some(carrier)) => Some(carrier.as_str().to_owned()),
            (None, None) => None,
        });
        let mut text = format!("{} ({}): ", self.name, self.address);
        match (self.path, used) {
            (Some(path), Some(at)) => text.push_str(&format!(
                "{path}, through {at}, since {}",
                ago(self.now, self.since)
            )),
            (Some(path), None) => text.push_str(&format!("{path}, which leads nowhere now")),
            (None, _) => text.push_str(&format!("no path, session {}", self.state)),
        }
        if self.path.is_some() {
            text.push_str(&format!("\nwhy: {} ({})", self.why.text, self.why.code));
        }
        if let Some(obstacle) = &self.not_direct {
            let (why, code, cure) = (&obstacle.text, &obstacle.code, &obstacle.cure);
            text.push_str(&format!("\nnot direct: {why} ({code}); {cure}"));
        }
        let own = self.local.iter().map(|own| named(Some(own)));
        let own = own.collect::<Vec<_>>().join(", ");
        if !own.is_empty() {
            text.push_str(&format!("\nnamed to the peer: {own}"));
        }
        let mut table = Table::new([
            "PATH", "STATE", "FAMILY", "LOCAL", "REMOTE", "RTT", "LOSS", "MTU", "LAST IN",
        ]);
        for pair in &self.pairs {
            table.row(self.row(pair));
        }
        text.push('\n');
        text.push_str(&table.text("no paths"));
        text
    }
}

impl PathReport {
    fn row(&self, pair: &PathPair) -> [String; 9] {
        let dash = || "-".to_owned();
        let mut state = pair.state.as_str().to_owned();
        if let Some(end) = pair.penalized_until {
            state.push_str(&format!(" ({})", until(self.now, end)));
        }
        if pair.in_use {
            state = format!("in use, {state}");
        }
        [
            match pair.carrier {
                Some(carrier) => format!("{} ({})", pair.path, carrier.as_str()),
                None => pair.path.to_string(),
            },
            state,
            pair.family.map_or_else(dash, |f| f.as_str().to_owned()),
            named(pair.local.as_ref()),
            named(pair.remote.as_ref()),
            pair.rtt_ms.map_or_else(dash, millis),
            pair.loss_percent.map_or_else(dash, |n| format!("{n} %")),
            pair.mtu.map_or_else(dash, |n| n.to_string()),
            ago_or_never(self.now, pair.last_inbound),
        ]
    }
}

fn named(endpoint: Option<&Endpoint>) -> String {
    let text = |e: &Endpoint| format!("{} ({})", e.at, e.kind.as_str());
    endpoint.map_or_else(|| "-".to_owned(), text)
}

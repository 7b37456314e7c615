use std::time::Duration;

use clap::Args;
use serde::Serialize;

use crate::cli::AgentArg;
use crate::cli::client::Client;
use crate::cli::context::Context;
use crate::cli::failure::{Exit, Failure};
use crate::cli::output::{self, Show};
use crate::cli::text::millis;
use crate::cli::values::{TcpPort, duration};
use crate::wire::api::local::{PingOutcome, PingReply, PingRequest};

/// Probe an agent by echo, or one of its TCP ports
#[derive(Args, Debug)]
pub(super) struct PingArgs {
    /// Name of the agent, short (b) or full (b.acme.agent)
    name: String,

    /// Connect to this port instead of sending echoes, as tcp/8000
    port: Option<TcpPort>,

    /// Send this many probes [default: 3 echoes, 1 connection]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    count: Option<u32>,

    /// Wait this long between probes, as 1s or 1m
    #[arg(short, long, value_name = "TIME", default_value = "1s", value_parser = duration)]
    interval: Duration,

    /// Wait this long for each answer, as 5s
    #[arg(short, long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    timeout: Duration,

    #[command(flatten)]
    of: AgentArg,
}

/// What all probes met.
#[derive(Debug, Serialize)]
struct Pinged {
    sent: usize,
    received: usize,
    replies: Vec<PingReply>,
}

/// Longest wait for one answer that the daemon is asked for; its own limit on a call is above.
const MAX_TIMEOUT: Duration = Duration::from_secs(20);

impl PingArgs {
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        let usual = if self.port.is_some() { 1 } else { 3 };
        let count = self.count.unwrap_or(usual);
        let timeout = self.timeout.min(MAX_TIMEOUT);
        let request = PingRequest {
            agent: self.of.agent,
            name: self.name,
            tcp: self.port.map(|port| port.0),
            timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
        };
        let replies = probe(&client, &request, count, self.interval, context).await?;
        let came =
            |reply: &&PingReply| matches!(reply.outcome, PingOutcome::Answered | PingOutcome::Open);
        let pinged = Pinged {
            sent: replies.len(),
            received: replies.iter().filter(came).count(),
            replies,
        };
        if context.out.json || pinged.sent > 1 {
            context.out.print(&pinged)?;
        }
        pinged.verdict(&request.name)
    }
}

async fn probe(
    client: &Client,
    request: &PingRequest,
    count: u32,
    interval: Duration,
    context: &Context,
) -> Result<Vec<PingReply>, Failure> {
    let mut pace = tokio::time::interval(interval);
    let mut replies = Vec::new();
    for _ in 0..count {
        pace.tick().await;
        let reply = client.post::<PingReply>("/v1/ping", request).await?;
        if !context.out.json {
            output::line(&reply.show())?;
        }
        replies.push(reply);
    }
    Ok(replies)
}

impl Pinged {
    fn verdict(&self, name: &str) -> Result<(), Failure> {
        let (0, Some(last)) = (self.received, self.replies.last()) else {
            return Ok(());
        };
        let hint = last.hint.as_deref().or_else(|| last.outcome.hint());
        let failure = match last.outcome {
            PingOutcome::Refused => Failure::new(
                Exit::Unreachable,
                format!("nobody listens on that port of {name}"),
            ),
            PingOutcome::Answered | PingOutcome::NoAnswer | PingOutcome::Open => {
                Failure::new(Exit::Unreachable, format!("no answer from {name}"))
            }
        };
        Err(failure.hint(
            hint.unwrap_or(
                "its consent may not cover this (agentnet peers), or its node may be down",
            ),
        ))
    }
}

impl Show for PingReply {
    fn show(&self) -> String {
        let outcome = match self.outcome {
            PingOutcome::Answered => "answered",
            PingOutcome::NoAnswer => "no answer",
            PingOutcome::Open => "open",
            PingOutcome::Refused => "refused",
        };
        let mut text = format!("{} ({}): {outcome}", self.name, self.address);
        if let Some(rtt) = self.rtt_ms {
            text.push_str(&format!(", {}", millis(rtt)));
        }
        if let Some(path) = self.path {
            text.push_str(&format!(", {path}"));
        }
        text
    }
}

impl Show for Pinged {
    fn show(&self) -> String {
        let mut times = self
            .replies
            .iter()
            .filter_map(|r| r.rtt_ms)
            .collect::<Vec<_>>();
        times.sort_by(f64::total_cmp);
        let mut text = format!("{} sent, {} answered", self.sent, self.received);
        if let (Some(min), Some(max)) = (times.first(), times.last()) {
            let median = times[times.len() / 2];
            text.push_str(&format!(
                "; min {}, median {}, max {}",
                millis(*min),
                millis(median),
                millis(*max)
            ));
        }
        text
    }
}

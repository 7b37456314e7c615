use std::time::Duration;

use clap::Args;
use serde::Serialize;

use crate::cli::AgentArg;
use crate::cli::client::Client;
use crate::cli::context::Context;
use crate::cli::failure::{Exit, Failure};
use crate::cli::output::{self, Show};
use crate::cli::text::{millis, span};
use crate::cli::values::{TcpPort, duration, pause};
use crate::os::clock;
use crate::wire::api::local::{
    PathKind, PathQuery, PathReport, PingOutcome, PingReply, PingRequest, Warning,
};

/// Probe an agent by echo, or one of its TCP ports
#[derive(Args, Debug)]
pub(super) struct PingArgs {
    /// Name of the agent, short (b) or full (b.acme.agent)
    name: String,

    /// Connect to this port instead of sending echoes, as tcp/8000
    port: Option<TcpPort>,

    /// Send echoes until one and its answer took a direct path
    #[arg(long, conflicts_with_all = ["count", "port"])]
    until_direct: bool,

    /// Send this many probes [default: 3 echoes, 1 connection]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    count: Option<u32>,

    /// Wait this long between probes, as 1s or 200ms
    #[arg(short, long, value_name = "TIME", default_value = "1s", value_parser = pause)]
    interval: Duration,

    /// Wait this long for each answer, as 5s; or for the direct path [default: 5s, 30s]
    #[arg(short, long, value_name = "TIME", value_parser = duration)]
    timeout: Option<Duration>,

    #[command(flatten)]
    of: AgentArg,
}

/// What all probes met.
#[derive(Debug, Serialize)]
struct Pinged {
    sent: usize,
    received: usize,
    /// Whether a direct path was met; None when nobody asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    direct: Option<bool>,
    /// What kept the last from a direct path; None when it took one, or nobody asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_direct: Option<Warning>,
    replies: Vec<PingReply>,
}

/// How long one answer is waited for unless told otherwise.
const USUAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest wait for one answer that the daemon is asked for; its own limit on a call is above.
const MAX_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a direct path is waited for unless told otherwise: paths are found within seconds where
/// they can be, and what was given up is tried again within the longest of their first pauses.
const USUAL_SEARCH: Duration = Duration::from_secs(30);

/// Replies are kept until the end, so there is an end.
const MAX_SEARCH: Duration = Duration::from_secs(3600);

impl PingArgs {
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        if self.until_direct {
            return self.search(&client, context).await;
        }
        let usual = if self.port.is_some() { 1 } else { 3 };
        let count = self.count.unwrap_or(usual);
        let timeout = self.timeout.unwrap_or(USUAL_TIMEOUT).min(MAX_TIMEOUT);
        let request = self.request(timeout);
        let mut pace = tokio::time::interval(self.interval);
        let mut replies = Vec::new();
        for _ in 0..count {
            pace.tick().await;
            replies.push(probe(&client, &request, context).await?);
        }
        let pinged = Pinged::new(replies);
        if context.out.json || pinged.sent > 1 {
            context.out.print(&pinged)?;
        }
        pinged.verdict(&request.name)
    }

    fn request(&self, timeout: Duration) -> PingRequest {
        PingRequest {
            agent: self.of.agent.clone(),
            name: self.name.clone(),
            tcp: self.port.map(|port| port.0),
            timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// Sends echoes until one took a direct path both ways, or there is no more time.
    async fn search(self, client: &Client, context: &Context) -> Result<(), Failure> {
        let limit = self.timeout.unwrap_or(USUAL_SEARCH);
        if limit > MAX_SEARCH {
            return Err(Failure::usage(
                "--timeout is at most 1h with --until-direct",
            ));
        }
        let query = PathQuery {
            agent: self.of.agent.clone(),
            name: self.name.clone(),
        };
        // Who is no peer, or needs no path, is told so at once.
        client.get::<PathReport>("/v1/path", &query).await?;
        let end = clock::now() + limit;
        let mut pace = tokio::time::interval(self.interval);
        let mut replies = Vec::<PingReply>::new();
        let is_direct = |reply: &PingReply| reply.path == Some(PathKind::Direct);
        while !replies.last().is_some_and(is_direct) {
            if tokio::time::timeout_at(end.into(), pace.tick())
                .await
                .is_err()
            {
                break;
            }
            let left = end.saturating_duration_since(clock::now());
            let request = self.request(left.min(USUAL_TIMEOUT));
            replies.push(probe(client, &request, context).await?);
        }
        let is_found = replies.last().is_some_and(is_direct);
        let mut pinged = Pinged::new(replies);
        pinged.direct = Some(is_found);
        if !is_found {
            let report = client.get::<PathReport>("/v1/path", &query).await?;
            pinged.not_direct = report.not_direct;
        }
        context.out.print(&pinged)?;
        pinged.verdict(&self.name)?;
        pinged.search_verdict(&self.name, limit)
    }
}

async fn probe(
    client: &Client,
    request: &PingRequest,
    context: &Context,
) -> Result<PingReply, Failure> {
    let reply = client.post::<PingReply>("/v1/ping", request).await?;
    if !context.out.json {
        output::line(&reply.show())?;
    }
    Ok(reply)
}

impl Pinged {
    fn new(replies: Vec<PingReply>) -> Self {
        let came =
            |reply: &&PingReply| matches!(reply.outcome, PingOutcome::Answered | PingOutcome::Open);
        Self {
            sent: replies.len(),
            received: replies.iter().filter(came).count(),
            direct: None,
            not_direct: None,
            replies,
        }
    }

    /// Fails when a direct path was asked for and not met.
    fn search_verdict(&self, name: &str, limit: Duration) -> Result<(), Failure> {
        if self.direct == Some(true) {
            return Ok(());
        }
        let why = self.not_direct.as_ref();
        let (text, code, cure) = why.map_or(
            (
                "the way back is not direct yet",
                "one_way",
                "wait a moment, and look at agentnet path on the other side",
            ),
            |why| (why.text.as_str(), why.code.as_str(), why.cure.as_str()),
        );
        let limit = span(limit.as_secs());
        let what = format!("no direct path to {name} within {limit}: {text} ({code})");
        Err(Failure::new(Exit::Unreachable, what).hint(cure))
    }

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

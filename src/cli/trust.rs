use std::time::Duration;

use clap::{Args, Subcommand};

use crate::cli::AgentArg;
use crate::cli::client::Client;
use crate::cli::context::Context;
use crate::cli::failure::{Exit, Failure};
use crate::cli::output::Show;
use crate::cli::text::{Table, ago, scope, until};
use crate::cli::values;
use crate::os::clock;
use crate::statement::Scope;
use crate::wire::api::local::{
    AutoFrom, AutoRemove, AutoRule, AutoRules, ConsentView, OfAgent, Pending, TrustApprove,
    TrustAwait, TrustChange, TrustChanged, TrustList, TrustName, TrustRequest, TrustStands,
};

/// Ask for, give and take back consent
#[derive(Args, Debug)]
pub(super) struct TrustArgs {
    #[command(subcommand)]
    command: TrustCommand,
    #[command(flatten)]
    of: AgentArg,
}

#[derive(Debug, Subcommand)]
enum TrustCommand {
    /// Ask an agent for its consent
    Request {
        /// Name of the agent, short (b) or full (b.acme.agent)
        name: String,
        /// Let it reach this here once it approves: tcp/8000, udp/5000-5010 or any; repeatable
        /// [default: replies only]
        #[arg(long, value_name = "PORTS")]
        allow: Vec<Scope>,
        /// Tell it why, in at most 280 characters
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        /// Return once it approved and its name is found; fail when it has not after so long
        #[arg(long, value_name = "TIME", value_parser = values::duration)]
        wait: Option<Duration>,
    },
    /// List the requests nobody answered yet
    Pending,
    /// List the consents that stand
    List,
    /// Consent to an agent, whether it asked or has a consent already
    Approve {
        /// Name of the agent, short (a) or full (a.acme.agent)
        name: String,
        /// Let it reach this here: tcp/8000, udp/5000-5010 or any; repeatable
        /// [default: replies only]
        #[arg(long, value_name = "PORTS")]
        allow: Vec<Scope>,
    },
    /// Drop a request; the requester is not told
    Deny {
        /// Name of the requester, short (a) or full (a.acme.agent)
        name: String,
    },
    /// Take a consent back; when this returns, nothing passes any more
    Revoke {
        /// Name of the agent, short (a) or full (a.acme.agent)
        name: String,
    },
    /// Approve requests without a person, by rules
    Auto {
        #[command(subcommand)]
        command: AutoCommand,
    },
}

#[derive(Debug, Subcommand)]
enum AutoCommand {
    /// Approve from now on, and what waits already
    Add {
        /// Approve agents whose name or tag matches: worker-* or tag:build
        #[arg(long, value_name = "PATTERN|tag:TAG")]
        from: AutoFrom,
        /// Let them reach this here: tcp/8000, udp/5000-5010 or any; repeatable
        /// [default: replies only]
        #[arg(long, value_name = "PORTS")]
        allow: Vec<Scope>,
    },
    /// List the rules
    List,
    /// Remove the rules about a pattern or tag; consents given by them stay
    Remove {
        /// The pattern or tag of the rules, as it was added
        #[arg(long, value_name = "PATTERN|tag:TAG")]
        from: AutoFrom,
    },
}

impl TrustArgs {
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        let (client, out) = (context.client()?, context.out);
        let agent = self.of.agent;
        let of = OfAgent {
            agent: agent.clone(),
        };
        let changed = match self.command {
            TrustCommand::Pending => {
                return out.print(&client.get::<Pending>("/v1/trust/pending", &of).await?);
            }
            TrustCommand::List => {
                return out.print(&client.get::<TrustList>("/v1/trust", &of).await?);
            }
            TrustCommand::Auto { command } => return command.run(agent, context).await,
            TrustCommand::Request {
                name,
                allow,
                reason,
                wait,
            } => {
                let body = TrustRequest {
                    agent: agent.clone(),
                    name: name.clone(),
                    allow: joined(allow)?,
                    reason,
                };
                let asked = client
                    .post::<TrustChanged>("/v1/trust/request", &body)
                    .await?;
                match wait {
                    Some(wait) => return out.done(&stands(&client, (agent, name), wait).await?),
                    None => asked,
                }
            }
            TrustCommand::Approve { name, allow } => {
                let body = TrustApprove {
                    agent,
                    name,
                    allow: joined(allow)?,
                };
                client.post("/v1/trust/approve", &body).await?
            }
            TrustCommand::Deny { name } => {
                client
                    .post("/v1/trust/deny", &TrustName { agent, name })
                    .await?
            }
            TrustCommand::Revoke { name } => {
                client
                    .post("/v1/trust/revoke", &TrustName { agent, name })
                    .await?
            }
        };
        out.done(&changed)
    }
}

/// Waits until consent stands both ways with the agent of a name.
async fn stands(
    client: &Client,
    (agent, name): (Option<String>, String),
    wait: Duration,
) -> Result<TrustStands, Failure> {
    let since = clock::now();
    loop {
        let left = wait.saturating_sub(clock::now().duration_since(since));
        let body = TrustAwait {
            agent: agent.clone(),
            name: name.clone(),
            timeout_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
        };
        let answer = client.post::<TrustStands>("/v1/trust/await", &body).await?;
        if answer.stands {
            return Ok(answer);
        }
        if left.is_zero() {
            let what = format!("{} has not agreed within {} s", answer.name, wait.as_secs());
            let hint = "it is asked still: see `agentnet trust pending`, or ask who runs it";
            return Err(Failure::new(Exit::Failed, what).hint(hint));
        }
    }
}

impl AutoCommand {
    async fn run(self, agent: Option<String>, context: &Context) -> Result<(), Failure> {
        let (client, out) = (context.client()?, context.out);
        match self {
            Self::List => {
                let of = OfAgent { agent };
                out.print(&client.get::<AutoRules>("/v1/trust/auto", &of).await?)
            }
            Self::Add { from, allow } => {
                let allow = joined(allow)?;
                let rule = AutoRule { agent, from, allow };
                out.done(
                    &client
                        .post::<AutoRules>("/v1/trust/auto/add", &rule)
                        .await?,
                )
            }
            Self::Remove { from } => {
                let rule = AutoRemove { agent, from };
                out.done(
                    &client
                        .post::<AutoRules>("/v1/trust/auto/remove", &rule)
                        .await?,
                )
            }
        }
    }
}

fn joined(scopes: Vec<Scope>) -> Result<Scope, Failure> {
    Scope::union(scopes).map_err(|error| Failure::usage(error.to_string()))
}

impl Show for TrustChanged {
    fn show(&self) -> String {
        let name = &self.name;
        let reach = match self.inbound.as_ref() {
            Some(inbound) if inbound.is_replies_only() => {
                "answer, and open nothing (see --allow)".to_owned()
            }
            Some(inbound) => format!("reach {inbound} here"),
            None => "reach nothing here".to_owned(),
        };
        let mut text = match self.change {
            TrustChange::Approved => format!("approved {name}: it may {reach}"),
            TrustChange::Denied => format!("denied {name}; it is not told"),
            TrustChange::Requested => format!("asked {name}; once it approves it may {reach}"),
            TrustChange::Revoked => format!("revoked {name}: nothing passes any more"),
        };
        if !self.told {
            text.push_str("\nthe registry is not reachable now; it will be told once it is");
        }
        text
    }
}

impl Show for TrustStands {
    fn show(&self) -> String {
        let state = if self.stands {
            "stands"
        } else {
            "does not stand"
        };
        format!("trust with {} {state}", self.name)
    }
}

impl Show for Pending {
    fn show(&self) -> String {
        let mut incoming = Table::new(["FROM", "OFFERS", "ASKED", "ENDS", "AGENT", "REASON"]);
        for request in &self.incoming {
            incoming.row([
                request.name.clone(),
                scope(&request.offers),
                ago(self.now, request.since),
                until(self.now, request.expires),
                request.agent.clone(),
                printable(request.reason.as_deref().unwrap_or_default()),
            ]);
        }
        let mut outgoing = Table::new(["TO", "OFFERED", "ASKED", "ENDS", "AGENT"]);
        for request in &self.outgoing {
            outgoing.row([
                request.name.clone(),
                scope(&request.offers),
                ago(self.now, request.since),
                until(self.now, request.expires),
                request.agent.clone(),
            ]);
        }
        match (self.incoming.is_empty(), self.outgoing.is_empty()) {
            (true, true) => "no requests wait".to_owned(),
            (false, true) => incoming.text(""),
            (true, false) => outgoing.text(""),
            (false, false) => format!("{}\n\n{}", incoming.text(""), outgoing.text("")),
        }
    }
}

/// A stranger wrote this; it shall not steer the terminal.
fn printable(text: &str) -> String {
    let clean = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    clean.collect()
}

impl Show for TrustList {
    fn show(&self) -> String {
        let mut table = Table::new([
            "NAME",
            "MAY REACH HERE",
            "ENDS",
            "REACHABLE THERE",
            "ENDS",
            "AGENT",
        ]);
        let what =
            |view: Option<&ConsentView>| view.map_or_else(|| "-".to_owned(), |v| scope(&v.scope));
        let ends = |view: Option<&ConsentView>| {
            view.map_or_else(|| "-".to_owned(), |v| until(self.now, v.expires))
        };
        for trust in &self.trust {
            let (given, received) = (trust.given.as_ref(), trust.received.as_ref());
            table.row([
                trust.name.clone(),
                what(given),
                ends(given),
                what(received),
                ends(received),
                trust.agent.clone(),
            ]);
        }
        table.text("no consents yet; ask for one: agentnet trust request NAME")
    }
}

impl Show for AutoRules {
    fn show(&self) -> String {
        let mut table = Table::new(["FROM", "MAY REACH HERE", "AGENT"]);
        for rule in &self.rules {
            table.row([
                rule.from.to_string(),
                scope(&rule.allow),
                rule.agent.clone().unwrap_or_default(),
            ]);
        }
        table.text("no rules; every request waits for a person")
    }
}

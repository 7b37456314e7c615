use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};

use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::cli::output::{self, Show};
use crate::cli::text::{Table, list, span, until};
use crate::cli::values::duration;
use crate::id::{Did, Label, NamePattern, UnixTime};
use crate::node::owner::{Owner, TokenOrder};
use crate::os::{clock, files};
use crate::statement::token::{JoinToken, Reveal};
use crate::wire::api::local::{TokenCreated, TokenRevoked, Tokens};

/// Make, list and revoke the tokens by which agents join a network
#[derive(Args, Debug)]
pub(super) struct TokenArgs {
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    Create(CreateArgs),
    /// List the tokens of a network, with the uses they have left
    List {
        /// Name of the network
        network: Label,
    },
    /// Revoke a token: nobody joins by it any more, members by it stay
    Revoke {
        /// Name of the network
        network: Label,
        /// The token's public key, did:key:..., as `token list` shows it
        token: Did,
    },
}

/// Make a join token and print it, or write it to a file of mode 0600
#[derive(Args, Debug)]
struct CreateArgs {
    /// Name of the network
    network: Label,

    /// Allow this name, or names of this pattern: planner, worker-*; repeatable
    #[arg(long = "name", value_name = "PATTERN", required = true)]
    names: Vec<NamePattern>,

    /// Give those who join this tag; repeatable
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<Label>,

    /// Allow joining for this long, as 30m, 1h or 7d
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration)]
    expires: Duration,

    /// Keep a member for this long after it was last seen, as 12h or 90d
    #[arg(long, value_name = "TIME", default_value = "90d", value_parser = duration)]
    member_for: Duration,

    /// Allow this many agents to join
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    uses: u32,

    /// Free the names of those who join when they leave, or a day after they were last seen
    #[arg(long)]
    ephemeral: bool,

    /// Write the token to FILE, which must not exist yet, instead of standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl TokenArgs {
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        let owner = Owner::new(&context.state()?);
        let now = clock::unix();
        match self.command {
            TokenCommand::Create(args) => args.run(&owner, now, context).await,
            TokenCommand::List { network } => {
                let tokens = owner.tokens(&network, now).await?;
                context.out.print(&Tokens {
                    now,
                    network,
                    tokens,
                })
            }
            TokenCommand::Revoke { network, token } => {
                owner.revoke_token(&network, token, now).await?;
                context.out.done(&TokenRevoked {
                    network,
                    token,
                    at: now,
                })
            }
        }
    }
}

impl CreateArgs {
    async fn run(self, owner: &Owner, now: UnixTime, context: &Context) -> Result<(), Failure> {
        if let Some(path) = self.out.as_deref().filter(|path| path.exists()) {
            return Err(files::FileError::Exists(path.to_owned()).into());
        }
        let order = TokenOrder {
            names: self.names.clone(),
            tags: self.tags.into_iter().collect(),
            ephemeral: self.ephemeral,
            uses: self.uses,
            expires: self.expires,
            member_for: self.member_for,
        };
        let token = owner.create_token(&self.network, order, now).await?;
        let created = TokenCreated {
            now,
            network: self.network,
            token: token.key.did(),
            names: self.names,
            uses: self.uses,
            closes: now + self.expires,
            member_for: self.member_for.as_secs(),
            file: None,
            secret: None,
        };
        deliver(created, &token, self.out, context)
    }
}

/// Hands the secret over: to a file, into the JSON, or alone on standard output for a pipe.
fn deliver(
    mut created: TokenCreated,
    token: &JoinToken,
    file: Option<PathBuf>,
    context: &Context,
) -> Result<(), Failure> {
    let secret = token.reveal();
    if let Some(path) = file {
        files::create_private(&path, &format!("{secret}\n"))?;
        created.file = Some(path.display().to_string());
        return context.out.done(&created);
    }
    if context.out.json {
        created.secret = Some(secret);
        return context.out.print(&created);
    }
    context.out.note(&created.show());
    output::line(&secret)
}

impl Show for TokenCreated {
    fn show(&self) -> String {
        let place = match &self.file {
            Some(file) => format!("; it is in {file}"),
            None => String::new(),
        };
        let open = span(self.closes.since(self.now).as_secs());
        format!(
            "created token {}\n  for {} to join {}, {} within {open}{place}",
            self.token,
            list(&self.names),
            self.network,
            times(self.uses),
        )
    }
}

fn times(n: u32) -> String {
    if n == 1 {
        return "once".to_owned();
    }
    format!("{n} times")
}

impl Show for Tokens {
    fn show(&self) -> String {
        let mut table = Table::new(["NAMES", "USED", "LEFT", "CLOSES", "TAGS", "KIND", "TOKEN"]);
        for token in &self.tokens {
            let closes = if token.revoked {
                "revoked".to_owned()
            } else {
                until(self.now, token.closes)
            };
            let kind = if token.ephemeral {
                "ephemeral"
            } else {
                "lasting"
            };
            table.row([
                list(&token.names),
                token.used.to_string(),
                token.uses_left.to_string(),
                closes,
                list(&token.tags),
                kind.to_owned(),
                token.token.to_string(),
            ]);
        }
        table.text("no tokens yet; make one: agentnet token create NETWORK --name NAME")
    }
}

impl Show for TokenRevoked {
    fn show(&self) -> String {
        format!(
            "revoked {}: nobody joins {} by it any more",
            self.token, self.network
        )
    }
}

use std::{ffi::OsString, io};

use clap::Args;
use nix::errno::Errno;
use tokio::runtime::Builder;

use crate::cli::context::Context;
use crate::cli::failure::{Exit, Failure};
use crate::cli::log;
use crate::cli::secret::{JoinTokenArg, Secret};
use crate::cli::up::Way;
use crate::config::{DnsMode, Flags, LogLevel, LogSettings, NodeConfig};
use crate::id::MemberName;
use crate::node::by_daemon::{Carrier, CarryError};
use crate::node::run::{Entry, RunError, run, wanted};
use crate::os::namespace::{Blocked, Cause, Ending, Namespace, check_threads};
use crate::statement::token::JoinToken;
use crate::wire::api::problem::Code;

/// Threads of the smallest node: two of its runtime, one that carries packets, and one that waits.
const THREADS: usize = 4;

/// Run a program with an agent's network and no other, without root
#[derive(Args, Debug)]
#[command(after_help = "\
Exit codes: the program's own; 128+N when signal N ended it; 125 when agentnet failed,
126 when the program cannot be started, 127 when there is none; 2 usage")]
#[command(mut_arg("token_file", |token| token.help(
    "Join by the token in FILE first; without --state the agent leaves when the program ends, \
     and nothing is kept [env: AGENTNET_TOKEN carries the token itself]"
)))]
pub(super) struct RunArgs {
    /// Use the agent of this name, which joined before [default: the only one]
    #[arg(long, value_name = "NAME", conflicts_with = "token_file")]
    agent: Option<String>,

    #[command(flatten)]
    token: JoinTokenArg,

    /// Join under this name [default: the token's, when it allows but one]
    #[arg(long, value_name = "NAME")]
    name: Option<MemberName>,

    /// Take these ways to peers; relay and hidden tell no peer where this host is [default: auto]
    #[arg(long, value_name = "MODE", value_enum)]
    path: Option<Way>,

    /// Listen on this UDP port for encrypted packets [default: any free one]
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,

    /// Let the program reach the host's network too, but not the host's own loopback
    #[arg(long)]
    share_net: bool,

    /// Program to run, with its arguments
    #[arg(trailing_var_arg = true, required = true, value_name = "PROGRAM")]
    program: Vec<OsString>,
}

impl RunArgs {
    /// Runs the program to its end; it needs a process without threads to begin with.
    pub(super) fn execute(self, context: &Context) -> Result<Ending, Failure> {
        let program = self.program.first().cloned().unwrap_or_default();
        let ran = self.prepare(context).map_err(|failure| Failure {
            exit: match failure.exit {
                Exit::Usage => Exit::Usage,
                Exit::Done
                | Exit::Failed
                | Exit::Denied
                | Exit::NotFound
                | Exit::Unreachable
                | Exit::NotRun
                | Exit::NotStartable
                | Exit::NoProgram => Exit::NotRun,
            },
            ..failure
        })?;
        match ran {
            Ending::NotStarted(errno) => Err(not_started(&program.to_string_lossy(), errno)),
            ending @ (Ending::Exit(_) | Ending::Killed(_)) => Ok(ending),
        }
    }

    fn prepare(self, context: &Context) -> Result<Ending, Failure> {
        let config = self.config(context)?;
        let entry = self.entry(context)?;
        let log = LogSettings {
            level: config.log.level.min(LogLevel::Warn),
            ..config.log
        };
        log::start(log, context)?;
        let carrier = match &entry {
            Entry::Member(agent) => carrier(context, agent.as_deref())?,
            Entry::Token { .. } => None,
        };
        let wanted = carrier.as_ref().map_or_else(
            || wanted(&config, self.share_net),
            |carrier| carrier.wanted(self.share_net),
        );
        let namespace = Namespace::make(&self.program, wanted)?;
        let failed =
            |error: io::Error| Failure::new(Exit::Failed, format!("cannot start: {error}"));
        // From here on, since what was started before would have inherited it.
        let blocked = Blocked::new().map_err(failed)?;
        check_threads(THREADS + usize::from(self.share_net))?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(failed)?;
        let ran = runtime.block_on(async {
            let signals = blocked.hear().map_err(failed)?;
            let ran = match carrier {
                Some(carrier) => carrier.run(namespace, signals).await,
                None => run(config, entry, namespace, signals).await,
            };
            match ran {
                Err(RunError::Asked(signal)) => Ok(Ending::Killed(signal)),
                ran => Ok::<_, Failure>(ran?),
            }
        })?;
        // Not waiting for look-ups of names that nobody wants any more.
        runtime.shutdown_background();
        Ok(ran)
    }

    fn config(&self, context: &Context) -> Result<NodeConfig, Failure> {
        let mut flags = Flags::default();
        flags.set("path.mode", self.path.map(Way::as_str));
        flags.set("udp.port", Some(i64::from(self.port.unwrap_or(0))));
        flags.set("dns.mode", Some(DnsMode::None.as_str()));
        let mut config = context.node_config(flags)?;
        // One program is carried by one thread, unless the settings say otherwise.
        config.dataplane.workers.get_or_insert(1);
        Ok(config)
    }

    fn entry(&self, context: &Context) -> Result<Entry, Failure> {
        if self.agent.is_some() || !self.token.is_given() {
            if let Some(name) = &self.name {
                let what = format!("--name {name} is for joining, and no token is given");
                return Err(
                    Failure::usage(what).hint("name an agent that joined before by --agent")
                );
            }
            return Ok(Entry::Member(self.agent.clone()));
        }
        let secret = self.token.secret()?;
        if let Secret::Stdin = secret {
            let failure = Failure::usage("standard input is the program's");
            return Err(failure.hint("name a file by --token-file, or set AGENTNET_TOKEN"));
        }
        Ok(Entry::Token {
            token: Box::new(secret.read()?.parse::<JoinToken>()?),
            name: self.name.clone(),
            is_brief: !context.has_state(),
        })
    }
}

/// Finds the daemon that runs the agent; None where there is none, or it has no such agent.
fn carrier(context: &Context, agent: Option<&str>) -> Result<Option<Carrier>, Failure> {
    match Carrier::ask(&context.socket()?, agent) {
        // It may be one that joined without a daemon, in a state directory of its own.
        Err(CarryError::Refused(problem)) if problem.code == Code::NotFound => Ok(None),
        asked => Ok(asked.map_err(RunError::from)?),
    }
}

/// Tells why there was nothing to wait for, with the exit codes of env(1).
fn not_started(program: &str, errno: Option<i32>) -> Failure {
    let errno = errno.map(Errno::from_raw);
    let (exit, why) = match errno {
        Some(Errno::ENOENT) => (Exit::NoProgram, "no such program".to_owned()),
        Some(errno) => (Exit::NotStartable, errno.desc().to_owned()),
        None => (Exit::NotStartable, "not the name of a program".to_owned()),
    };
    let failure = Failure::new(exit, format!("cannot start {program}: {why}"));
    let error = errno.map(io::Error::from);
    let Some(cause) = error.as_ref().and_then(Cause::of_limits) else {
        return failure;
    };
    Failure {
        hint: cause.hint().map(str::to_owned),
        ..failure.code(cause.as_str())
    }
}

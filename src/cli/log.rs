//! Where daemons log to, and in which shape.

use std::io::{self, IsTerminal};

use clap::ValueEnum;
use tracing::level_filters::LevelFilter;
use tracing::{debug, info, warn};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, registry, reload};

use crate::cli::context::{Context, env};
use crate::cli::failure::{Exit, Failure};
use crate::config::{LogFormat, LogLevel, LogSettings};
use crate::os::recent::Recent;
use crate::os::sandbox::Enforced;
use crate::os::stdio;

/// What systemd's journal has before the names of our fields.
const PREFIX: &str = "AGENTNET";

/// What --log-format may say.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Format {
    /// Journald where standard error leads to systemd's journal, else text
    Auto,
    /// Systemd's journal, with a field for each fact
    Journald,
    /// One JSON object a line
    Json,
    /// For people
    Text,
}

impl From<Format> for LogFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Auto => Self::Auto,
            Format::Journald => Self::Journald,
            Format::Json => Self::Json,
            Format::Text => Self::Text,
        }
    }
}

/// The log of this process, whose level may change.
#[derive(Debug)]
pub(super) struct Logging {
    filter: reload::Handle<EnvFilter, Registry>,
    /// What `-v` and `-q` say, which win over the settings.
    asked: Option<LogLevel>,
    /// What the settings say.
    level: LogLevel,
}

impl Logging {
    /// Takes up another level of the settings; what `tell` logs is heard at the louder of both.
    pub(super) fn change(&mut self, level: LogLevel, tell: impl FnOnce()) {
        self.set(self.level.max(level));
        tell();
        self.set(level);
        self.level = level;
    }

    fn set(&self, level: LogLevel) {
        if self.asked.is_none() {
            // It fails only when nobody logs any more.
            drop(self.filter.reload(filter(level)));
        }
    }
}

/// Begins to log to standard error or the journal; `-v`, `-q` and `--log-format` win over the settings.
pub(super) fn start(settings: LogSettings, context: &Context) -> Result<Logging, Failure> {
    let level = settings.level;
    let asked = match (context.out.quiet, context.verbose) {
        (true, _) => Some(LogLevel::Warn),
        (false, 0) => None,
        (false, 1) => Some(level.max(LogLevel::Debug)),
        (false, _) => Some(LogLevel::Trace),
    };
    let format = resolved(context.log_format.unwrap_or(settings.format));
    let (filter, lost) = begin(asked.unwrap_or(level), format)?;
    if let Some(error) = lost {
        warn!(%error, "No journal is to be had; logging text");
    }
    match &context.sandboxed {
        Some(Ok(Enforced::Whole)) | None => {}
        Some(Ok(Enforced::Mostly)) => {
            debug!("This kernel keeps fewer files from us than newer ones");
        }
        Some(Ok(Enforced::CapabilitiesOnly)) => {
            info!(
                "No landlock (Linux 5.13) here: nothing but its user keeps files from the daemon"
            );
        }
        Some(Err(error)) => warn!(%error, "The daemon runs with more rights than it needs"),
    }
    Ok(Logging {
        filter,
        asked,
        level,
    })
}

/// Returns what lets messages of this level pass, and more important ones.
fn filter(level: LogLevel) -> EnvFilter {
    // Libraries are heard when something is wrong; their details are not ours.
    EnvFilter::new(format!("warn,agentnet={}", level.as_str()))
}

fn resolved(format: LogFormat) -> LogFormat {
    let is_journal = || env("JOURNAL_STREAM").is_some_and(|at| stdio::error_leads_to(&at));
    match format {
        LogFormat::Auto if is_journal() => LogFormat::Journald,
        LogFormat::Auto => LogFormat::Text,
        LogFormat::Journald | LogFormat::Json | LogFormat::Text => format,
    }
}

/// What changes the level, and why the journal is not used that was asked for.
type Begun = (reload::Handle<EnvFilter, Registry>, Option<io::Error>);

/// Begins to log.
fn begin(level: LogLevel, format: LogFormat) -> Result<Begun, Failure> {
    let (filter, handle) = reload::Layer::new(filter(level));
    let recent = fmt::layer()
        .with_ansi(false)
        .with_target(false)
        .with_writer(|| Recent)
        .with_filter(LevelFilter::INFO);
    let log = registry().with(filter).with(recent);
    let lines = fmt::layer()
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    let (started, lost) = match format {
        LogFormat::Json => {
            let json = lines.json().flatten_event(true);
            (log.with(json).try_init(), None)
        }
        LogFormat::Journald => match tracing_journald::layer() {
            Ok(journal) => {
                let journal = journal.with_field_prefix(Some(PREFIX.to_owned()));
                (log.with(journal).try_init(), None)
            }
            Err(error) => (log.with(lines.with_target(false)).try_init(), Some(error)),
        },
        LogFormat::Auto | LogFormat::Text => (log.with(lines.with_target(false)).try_init(), None),
    };
    started.map_err(|error| Failure::new(Exit::Failed, format!("cannot log: {error}")))?;
    Ok((handle, lost))
}

//! What every daemon needs beside its work: a log, signals, word to the service manager.

use std::io::{self, IsTerminal};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{debug, info, warn};
use tracing_subscriber::EnvFilter;

use crate::cli::context::Context;
use crate::cli::failure::{Exit, Failure};
use crate::config::{LogFormat, LogLevel, LogSettings};
use crate::os::sandbox::Enforced;

/// Begins to log to standard error; `-v` and `-q` win over the settings.
pub(super) fn start_log(settings: LogSettings, context: &Context) -> Result<(), Failure> {
    let level = match (context.out.quiet, context.verbose) {
        (true, _) => LogLevel::Warn,
        (false, 0) => settings.level,
        (false, 1) => settings.level.max(LogLevel::Debug),
        (false, _) => LogLevel::Trace,
    };
    // Libraries are heard when something is wrong; their details are not ours.
    let filter = EnvFilter::new(format!("warn,agentnet={}", level.as_str()));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    let started = match settings.format {
        LogFormat::Json => log.json().try_init(),
        LogFormat::Text => log.with_target(false).try_init(),
    };
    started.map_err(|error| Failure::new(Exit::Failed, format!("cannot log: {error}")))?;
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
    Ok(())
}

/// Returns a future that ends when the daemon is asked to stop; takes the signals at once.
pub(super) fn stop_asked() -> Result<impl Future<Output = ()> + Send + 'static, Failure> {
    let failed = |error| Failure::new(Exit::Failed, format!("cannot listen for signals: {error}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => info!("Interrupted, stopping"),
            _ = terminate.recv() => info!("Asked to stop"),
        }
        drop(sd_notify::notify(&[NotifyState::Stopping]));
    })
}

/// Tells the service manager, if there is one, that the daemon does its work, and from now on, if it wants
/// to know, that it still lives.
pub(super) fn tell_ready() {
    // Without a service manager there is nobody to tell.
    drop(sd_notify::notify(&[NotifyState::Ready]));
    if let Some(limit) = sd_notify::watchdog_enabled() {
        tokio::spawn(tell_alive(limit));
    }
}

/// Tells that the runtime still does what is due, twice as often as it must.
async fn tell_alive(limit: Duration) {
    let mut pace = tokio::time::interval(limit / 2);
    loop {
        pace.tick().await;
        drop(sd_notify::notify(&[NotifyState::Watchdog]));
    }
}

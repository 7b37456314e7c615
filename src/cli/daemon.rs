//! What every daemon needs beside its work: signals, word to the service manager.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

use crate::cli::failure::{Exit, Failure};

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

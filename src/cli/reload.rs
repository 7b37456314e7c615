//! Settings that are read anew while a daemon runs, when it gets SIGHUP.

use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::cli::failure::{Exit, Failure};
use crate::cli::log::Logging;
use crate::config::{Settings, differing};

/// Reads settings by `read` at each SIGHUP, and hands them on when they are sound; those the daemon runs
/// with are `before`. Takes the signal at once. The level of the log changes here, for every daemon.
pub(super) fn follow<S>(
    mut logging: Logging,
    before: S,
    read: impl Fn() -> Result<S, Failure> + Send + 'static,
) -> Result<watch::Receiver<S>, Failure>
where
    S: Settings + Clone + Send + Sync + 'static,
{
    let failed = |error| Failure::new(Exit::Failed, format!("cannot listen for signals: {error}"));
    let mut asked = signal(SignalKind::hangup()).map_err(failed)?;
    let (told, heard) = watch::channel(before);
    tokio::spawn(async move {
        while asked.recv().await.is_some() {
            tell(&[NotifyState::Reloading]);
            match read() {
                Ok(settings) => {
                    logging.change(settings.log().level, || take_up(&told, settings));
                }
                // What is wrong is told, and what was right goes on.
                Err(failure) => error!(
                    error = failure.what,
                    hint = failure.hint,
                    "The settings are not taken up"
                ),
            }
            tell(&[NotifyState::Ready]);
        }
    });
    Ok(heard)
}

fn take_up<S: Settings>(told: &watch::Sender<S>, settings: S) {
    let changed = differing(&*told.borrow(), &settings);
    let (now, later) = changed
        .into_iter()
        .partition::<Vec<_>, _>(|key| S::is_live(key));
    if !later.is_empty() {
        warn!(settings = ?later, "These take effect when the daemon is started anew");
    }
    info!(settings = ?now, "Settings read anew");
    // Files that they name may be others by now, though the settings are the same.
    told.send_replace(settings);
}

fn tell(state: &[NotifyState<'_>]) {
    // Without a service manager there is nobody to tell.
    drop(sd_notify::notify(state));
}

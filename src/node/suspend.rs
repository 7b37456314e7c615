use tracing::{info, warn};

use crate::node::driver::{Handle, now};
use crate::os::suspend::Wakings;

/// Lets the engine know when the host woke up, until the daemon stops.
pub(super) async fn follow(handle: Handle) {
    let mut wakings = match Wakings::open() {
        Ok(wakings) => wakings,
        Err(error) => {
            warn!(%error, "That the host slept is not noticed");
            return;
        }
    };
    loop {
        let slept = match wakings.slept().await {
            Ok(slept) => slept,
            Err(error) => {
                warn!(%error, "That the host slept is not noticed any more");
                return;
            }
        };
        info!(seconds = slept.as_secs(), "The host slept");
        let told = handle.call(move |core| core.engine.handle_resume(slept, now()));
        if told.await.is_err() {
            return;
        }
    }
}

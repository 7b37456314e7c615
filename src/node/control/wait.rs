use std::time::Duration;

use crate::id::{FullName, OverlayIp};
use crate::node::{
    control::paths,
    driver::{Stopped, now},
    running::Node,
};
use crate::wire::api::{
    local::{TrustAwait, TrustStands},
    problem::Problem,
};

/// Longest wait of one call; a caller takes the daemon for dead after 30 s.
const MAX_WAIT: Duration = Duration::from_secs(20);

/// Waits until consent stands both ways with an agent, without asking again and again.
pub(super) async fn wait(node: &Node, wait: TrustAwait) -> Result<TrustStands, Problem> {
    let patience = Duration::from_millis(wait.timeout_ms).min(MAX_WAIT);
    let (agent, wanted) = (wait.agent, wait.name);
    let found = node
        .handle
        .call(move |core| paths::target(core, agent.as_deref(), &wanted));
    let (local, full) = found.await??;
    let name = full.to_string();
    let stands = match tokio::time::timeout(patience, stands(node, local, full)).await {
        Ok(stands) => stands.map(|()| true)?,
        Err(_elapsed) => false,
    };
    Ok(TrustStands { name, stands })
}

async fn stands(node: &Node, local: OverlayIp, full: FullName) -> Result<(), Stopped> {
    loop {
        // Listening from before the look, so that nothing is missed in between.
        let mut news = std::pin::pin!(node.installed.notified());
        news.as_mut().enable();
        let name = full.clone();
        // Whoever waits is about to talk, so this wakes the session as a look-up does.
        let found = node
            .handle
            .call(move |core| core.engine.by_name(local, &name, now()));
        if found.await?.is_some() {
            return Ok(());
        }
        news.await;
    }
}

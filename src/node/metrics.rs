//! A node's metrics: what its parts tell at one moment, as docs/metrics.md has it.

mod reading;
mod text;

use std::{io, net::SocketAddr, sync::Weak};

use tokio::net::TcpListener;
use tracing::{error, info};

use crate::config::NodeMetricsSettings;
use crate::node::metrics::text::text;
use crate::node::running::Node;
use crate::os::page;

/// Takes the address at which metrics are wanted; None where they are not.
pub(super) async fn bind(
    settings: NodeMetricsSettings,
) -> Result<Option<Listener>, (SocketAddr, io::Error)> {
    let Some(at) = settings.listen else {
        return Ok(None);
    };
    let listener = page::bind(at).await.map_err(|error| (at, error))?;
    info!(%at, "Metrics ready");
    let has_peers = settings.peers;
    Ok(Some(Listener {
        listener,
        has_peers,
    }))
}

/// Where metrics are asked for.
#[derive(Debug)]
pub(super) struct Listener {
    listener: TcpListener,
    /// Whether each peer is told of.
    has_peers: bool,
}

impl Listener {
    /// Serves a node's metrics until the node ends.
    pub(super) async fn serve(self, node: Weak<Node>) {
        // The node ends when the daemon lets go of it, whoever reads metrics.
        let read = move || read(Weak::clone(&node), self.has_peers);
        if let Err(error) = page::serve(self.listener, read).await {
            error!(%error, "Metrics are not served any more");
        }
    }
}

async fn read(node: Weak<Node>, has_peers: bool) -> Option<String> {
    of(&*node.upgrade()?, has_peers).await
}

/// Returns a node's metrics; None when it is stopping.
pub(super) async fn of(node: &Node, has_peers: bool) -> Option<String> {
    Some(text(&reading::of(node).await?, has_peers))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    /// What operators read of a metric is what it is: the tables name every one that a daemon exposes, with its
    /// type, and no other.
    #[test]
    fn the_documented_tables_are_what_is_exposed() {
        let document = include_str!("../../docs/metrics.md");
        let exposed = [
            super::text::tests::sample(),
            crate::gateway::metrics::tests::sample(),
            crate::registry::metrics::tests::sample(),
        ];
        let exposed = exposed.iter().flat_map(|text| text.lines());
        let exposed = exposed
            .filter_map(|line| line.strip_prefix("# TYPE "))
            .filter_map(|line| line.split_once(' '))
            .collect::<BTreeSet<_>>();

        let documented = document.lines().filter_map(|line| {
            let (name, rest) = line.strip_prefix("| `")?.split_once('`')?;
            let name = name.split('{').next()?;
            let kind = rest.split('|').nth(1)?.trim();
            name.starts_with("agentnet_").then_some((name, kind))
        });

        assert_eq!(documented.collect::<BTreeSet<_>>(), exposed);
        for (name, kind) in exposed {
            let is_total = name.ends_with("_total");
            assert_eq!(kind == "counter", is_total, "{name}");
        }
    }
}

//! Pure: a gateway's status as metrics; docs/metrics.md has the same table.

use crate::gateway::status::{GatewayStatus, Standing};
use crate::wire::drop::{Counters, DropReason};
use crate::wire::metrics::{Exposition, Metric, counter, gauge};

const NETWORKS: Metric = gauge("agentnet_gateway_networks", "Networks served.");
const ATTACHED: Metric = gauge("agentnet_gateway_attached", "Agents attached.");
const ATTACHING: Metric = gauge(
    "agentnet_gateway_attaching",
    "Agents whose handshake is under way.",
);
const ROUTES: Metric = gauge(
    "agentnet_gateway_routes",
    "Ways to agents and prefixes, by here or by other gateways.",
);
const CONNECTIONS: Metric = gauge("agentnet_gateway_connections", "Connections by WebSocket.");
const PEERS: Metric = gauge("agentnet_gateway_peers", "Other gateways, by state.");
const FRAMES: Metric = counter(
    "agentnet_gateway_forwarded_frames_total",
    "Frames sent on to agents and other gateways.",
);
const BYTES: Metric = counter(
    "agentnet_gateway_forwarded_bytes_total",
    "Bytes of frames sent on to agents and other gateways.",
);

/// Writes what a gateway tells as metrics: numbers, and nothing by which an agent or network is known.
pub fn text(status: &GatewayStatus, drops: &Counters) -> String {
    let mut text = Exposition::default();
    for (metric, value) in [
        (NETWORKS, status.networks),
        (ATTACHED, status.attached),
        (ATTACHING, status.attaching),
        (ROUTES, status.routes),
        (CONNECTIONS, status.connections),
    ] {
        text.put(metric, value as u64);
    }
    let of = |state: Standing| {
        status
            .peers
            .iter()
            .filter(|peer| peer.state == state)
            .count()
    };
    let states = [
        ("down", Standing::Down),
        ("greeting", Standing::Greeting),
        ("up", Standing::Up),
    ];
    text.put_each(
        PEERS,
        "state",
        states.map(|(name, state)| (name, of(state) as u64)),
    );
    text.put(FRAMES, status.forwarded_frames);
    text.put(BYTES, status.forwarded_bytes);
    text.put_drops(drops);
    text.finish()
}

/// Returns what a status says was dropped.
pub fn drops(status: &GatewayStatus) -> Counters {
    let mut drops = Counters::default();
    for reason in DropReason::ALL {
        let count = status.drops.get(reason.label());
        drops.add(*reason, count.copied().unwrap_or_default());
    }
    drops
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Returns what a gateway exposes.
    pub(crate) fn sample() -> String {
        let status = GatewayStatus {
            gateway: crate::id::IdentityKey::from_seed([1; 32]).did(),
            networks: 1,
            attached: 2,
            attaching: 0,
            routes: 2,
            connections: 0,
            forwarded_frames: 5,
            forwarded_bytes: 600,
            forwarding: Default::default(),
            drops: [("frame_tag".to_owned(), 3)].into(),
            attachments: vec![],
            peers: vec![],
        };
        text(&status, &drops(&status))
    }

    #[test]
    fn a_status_is_told_in_numbers() {
        let text = sample();

        assert!(text.contains("agentnet_gateway_attached 2\n"));
        assert!(text.contains("agentnet_dropped_total{reason=\"frame_tag\"} 3\n"));
        assert!(!text.contains("did:key"), "{text}");
    }
}

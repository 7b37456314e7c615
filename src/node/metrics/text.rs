//! Pure: a node at one moment as metrics.

use std::collections::BTreeMap;

use crate::dataplane::Traffic;
use crate::id::UnixTime;
use crate::node::metrics::reading::{PeerReading, Reading};
use crate::wire::api::local::{LinkState, PathKind, SessionState};
use crate::wire::metrics::{Exposition, Metric, counter, gauge};

/// Most peers that are told of one by one: each has eight lines.
const MAX_PEERS: usize = 256;

const BUILD: Metric = gauge("agentnet_build_info", "1, with the version as label.");
const STARTED: Metric = gauge("agentnet_node_start_time_seconds", "When the node began.");

// The data plane.
const TUN_UP: Metric = gauge(
    "agentnet_node_tun_up",
    "Agents whose network device is there.",
);
const TUN_PACKETS: Metric = counter(
    "agentnet_node_tun_packets_total",
    "Packets of local programs (out) and for them (in) that passed.",
);
const TUN_BYTES: Metric = counter("agentnet_node_tun_bytes_total", "The same in bytes.");
const UDP_PACKETS: Metric = counter(
    "agentnet_node_underlay_packets_total",
    "Datagrams of the underlay, received (in) and sent (out).",
);
const UDP_BYTES: Metric = counter("agentnet_node_underlay_bytes_total", "The same in bytes.");
const PEERS: Metric = gauge("agentnet_node_peers", "Peers, by state of the session.");
const PEER_PATHS: Metric = gauge(
    "agentnet_node_peer_paths",
    "Peers with a session, by the kind of path in use.",
);
const SILENT: Metric = gauge(
    "agentnet_node_peers_silent",
    "Peers to which packets go and from which nothing comes.",
);
const UNTOLD: Metric = gauge(
    "agentnet_node_peers_untold",
    "Peers that are too many to be told of one by one.",
);
const LAST_INBOUND: Metric = gauge(
    "agentnet_node_peer_last_inbound_timestamp_seconds",
    "When the last authenticated packet of the peer came.",
);
const LAST_HANDSHAKE: Metric = gauge(
    "agentnet_node_peer_last_handshake_timestamp_seconds",
    "When the last handshake with the peer was confirmed.",
);
const HANDSHAKES: Metric = counter(
    "agentnet_node_peer_handshakes_total",
    "Confirmed handshakes with the peer.",
);
const UP: Metric = gauge("agentnet_node_peer_up", "Whether there is a session.");
const DIRECT: Metric = gauge(
    "agentnet_node_peer_direct",
    "1 on a direct path, 0 by a gateway.",
);
const RTT: Metric = gauge(
    "agentnet_node_peer_rtt_seconds",
    "Round-trip time of the path in use.",
);
const RECEIVED: Metric = counter(
    "agentnet_node_peer_received_bytes_total",
    "Plain bytes of the peer.",
);
const SENT: Metric = counter(
    "agentnet_node_peer_sent_bytes_total",
    "Plain bytes to the peer.",
);

// Control.
const AGENTS: Metric = gauge("agentnet_node_agents", "Agents of this node.");
const REGISTRY: Metric = gauge(
    "agentnet_node_registry_links",
    "Agents by state of their connection to the registry.",
);
const GATEWAYS: Metric = gauge(
    "agentnet_node_gateway_links",
    "Attachments to gateways, by state.",
);
const ATTACHED: Metric = gauge(
    "agentnet_node_agents_attached",
    "Agents attached to a gateway at least.",
);
const UNSAVED: Metric = gauge(
    "agentnet_node_state_unsaved",
    "Whether the state could not be written.",
);

/// Writes a reading as metrics; with `has_peers` of each peer by its name, up to a bound.
pub(in crate::node) fn text(reading: &Reading, has_peers: bool) -> String {
    let mut text = Exposition::default();
    let version = env!("CARGO_PKG_VERSION").to_owned();
    text.put_rows(BUILD, [([("version", version)], 1.0)]);
    text.put_fraction(STARTED, seconds(reading.started));
    data(&mut text, reading);
    let told = if has_peers {
        reading.peers.get(..MAX_PEERS).unwrap_or(&reading.peers)
    } else {
        &[]
    };
    peers(&mut text, told);
    text.put(UNTOLD, (reading.peers.len() - told.len()) as u64);
    text.put(AGENTS, reading.agents as u64);
    text.put_each(REGISTRY, "state", by_state(&reading.registry));
    text.put_each(GATEWAYS, "state", by_state(&reading.gateways));
    text.put(ATTACHED, reading.attached as u64);
    text.put(UNSAVED, u64::from(reading.is_unsaved));
    text.finish()
}

fn data(text: &mut Exposition, reading: &Reading) {
    let plane = &reading.plane;
    text.put(TUN_UP, reading.devices as u64);
    // Of a device, in is what programs get.
    let (into, out) = (plane.tun_out, plane.tun_in);
    traffic(text, (TUN_PACKETS, TUN_BYTES), (into, out));
    let (into, out) = (plane.udp_in, plane.udp_out);
    traffic(text, (UDP_PACKETS, UDP_BYTES), (into, out));
    text.put_drops(&reading.drops);
    let count = |is: &dyn Fn(&PeerReading) -> bool| {
        reading.peers.iter().filter(|peer| is(peer)).count() as u64
    };
    let states = [
        ("idle", SessionState::None),
        ("handshaking", SessionState::Handshaking),
        ("up", SessionState::Up),
    ];
    let states = states.map(|(name, state)| (name, count(&|peer| peer.state == state)));
    text.put_each(PEERS, "state", states);
    let kinds = [("direct", PathKind::Direct), ("relay", PathKind::Relay)];
    let kinds = kinds.map(|(name, kind)| (name, count(&|peer| peer.path == Some(kind))));
    text.put_each(PEER_PATHS, "path", kinds);
    text.put(SILENT, count(&|peer| peer.is_silent));
}

fn traffic(
    text: &mut Exposition,
    (packets, bytes): (Metric, Metric),
    (into, out): (Traffic, Traffic),
) {
    let both = [("in", into), ("out", out)];
    text.put_each(packets, "way", both.map(|(way, of)| (way, of.packets)));
    text.put_each(bytes, "way", both.map(|(way, of)| (way, of.bytes)));
}

fn peers(text: &mut Exposition, peers: &[PeerReading]) {
    let mut put = |metric, value: &dyn Fn(&PeerReading) -> Option<f64>| {
        let rows = peers.iter().filter_map(|peer| {
            let labels = [("agent", peer.agent.clone()), ("peer", peer.peer.clone())];
            Some((labels, value(peer)?))
        });
        text.put_rows(metric, rows);
    };
    put(LAST_INBOUND, &|peer| peer.last_inbound.map(seconds));
    put(LAST_HANDSHAKE, &|peer| peer.last_handshake.map(seconds));
    put(HANDSHAKES, &|peer| Some(peer.handshakes as f64));
    put(UP, &|peer| {
        Some(f64::from(u8::from(peer.state == SessionState::Up)))
    });
    put(DIRECT, &|peer| {
        Some(f64::from(u8::from(peer.path? == PathKind::Direct)))
    });
    put(RTT, &|peer| Some(peer.rtt?.as_secs_f64()));
    put(RECEIVED, &|peer| Some(peer.received as f64));
    put(SENT, &|peer| Some(peer.sent as f64));
}

/// Returns every state, since one that nobody is in is 0 and not unknown.
fn by_state(found: &BTreeMap<LinkState, u64>) -> impl Iterator<Item = (&'static str, u64)> {
    let states = [
        ("connected", LinkState::Connected),
        ("connecting", LinkState::Connecting),
        ("displaced", LinkState::Displaced),
        ("refused", LinkState::Refused),
        ("unreachable", LinkState::Unreachable),
    ];
    let of = |state| found.get(&state).copied().unwrap_or_default();
    states.map(|(name, state)| (name, of(state))).into_iter()
}

fn seconds(time: UnixTime) -> f64 {
    time.as_millis() as f64 / 1e3
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::dataplane::Snapshot;
    use crate::wire::drop::{Counters, DropReason};

    fn peer(n: usize) -> PeerReading {
        PeerReading {
            agent: "a.acme.agent".to_owned(),
            peer: format!("b{n}.acme.agent"),
            state: SessionState::Up,
            path: Some(PathKind::Direct),
            rtt: Some(Duration::from_millis(250)),
            is_silent: n == 1,
            handshakes: 3,
            last_handshake: Some(UnixTime::from_secs(7)),
            last_inbound: Some(UnixTime::from_secs(9)),
            received: 1000,
            sent: 2000,
        }
    }

    fn reading(peers: usize) -> Reading {
        let mut drops = Counters::default();
        drops.add(DropReason::FilterScope, 4);
        Reading {
            started: UnixTime::from_secs(5),
            agents: 2,
            devices: 1,
            is_unsaved: false,
            attached: 1,
            registry: [(LinkState::Connected, 2)].into(),
            gateways: [(LinkState::Connecting, 1)].into(),
            plane: Snapshot::default(),
            drops,
            peers: (0..peers).map(peer).collect(),
        }
    }

    /// Returns what a node exposes.
    pub(crate) fn sample() -> String {
        text(&reading(2), true)
    }

    /// Pilot Protocol: what came from each peer, and when, stands apart from how control stands.
    #[test]
    fn data_and_control_are_told_apart() {
        let text = sample();

        for line in [
            "agentnet_node_peer_last_inbound_timestamp_seconds{agent=\"a.acme.agent\",peer=\"b0.acme.agent\"} 9",
            "agentnet_node_peer_rtt_seconds{agent=\"a.acme.agent\",peer=\"b1.acme.agent\"} 0.25",
            "agentnet_node_peers_silent 1",
            "agentnet_node_peers{state=\"up\"} 2",
            "agentnet_node_tun_up 1",
            "agentnet_dropped_total{reason=\"filter_scope\"} 4",
            "agentnet_node_registry_links{state=\"connected\"} 2",
            "agentnet_node_registry_links{state=\"unreachable\"} 0",
            "agentnet_node_agents_attached 1",
        ] {
            assert!(text.lines().any(|of| of == line), "{line}: {text}");
        }
    }

    #[test]
    fn peers_have_a_bound_and_can_be_left_out() {
        let many = text(&reading(1000), true);
        let none = text(&reading(1000), false);

        let of = |text: &str| text.matches("agentnet_node_peer_up{").count();
        assert_eq!((of(&many), of(&none)), (MAX_PEERS, 0));
        assert!(many.contains("agentnet_node_peers_untold 744\n"), "{many}");
        assert!(!none.contains("acme"), "{none}");
        assert!(none.contains("agentnet_node_peers{state=\"up\"} 1000\n"));
    }
}

//! Data channels by the gateway between real nodes (protocol.md sections 5 and 7).

use std::{collections::BTreeSet, time::Duration};

use serde_json::Value;

use crate::{
    capture::Frame,
    lab::{A, B, GATEWAY_PORT, Lab, MARKER, in_lab, start_node_with, wait_attached},
    site::PUB,
    world::{Host, wait_for},
};

/// Bytes before a frame's payload.
const HEADER: usize = 56;

/// First bytes of a data channel packet, and of a WireGuard transport message.
const CHANNEL: [u8; 4] = [0x20, 0, 0, 0];
const TRANSPORT: [u8; 4] = [4, 0, 0, 0];

/// Far above what any transfer here takes.
const LONGEST: Duration = Duration::from_secs(300);

/// Length of the file that is fetched.
const FILE: usize = 64 << 20;

/// Starts both nodes anew, told to use the relay alone.
pub(crate) fn relay_only(lab: &mut Lab) {
    (lab.node_a, lab.node_b) = (None, None);
    lab.node_a = Some(start_node_with(&lab.site.a, "--path relay"));
    lab.node_b = Some(start_node_with(&lab.site.b, "--path relay"));
    wait_attached(&lab.site.a);
    wait_attached(&lab.site.b);
}

fn peer(host: &Host) -> Value {
    let peers = host.ok("agentnet peers --json");
    let peers: Value = serde_json::from_str(&peers).unwrap();
    peers["peers"][0].clone()
}

#[track_caller]
fn wait_for_channels(lab: &Lab) {
    wait_for("both ends have a channel by the relay", || {
        let peers = [&lab.site.a, &lab.site.b].map(peer);
        let has = |peer: &Value| peer["suite"].is_string() && peer["path"] == "relay";
        lab.page_arrives() && peers.iter().all(has)
    });
}

/// Returns the payloads of long frames from or to the gateway; the kernel may not have cut them yet.
fn payloads(frames: &[Frame]) -> Vec<&[u8]> {
    let all = frames.iter().filter_map(payload);
    all.filter(|payload| payload.len() > 600).collect()
}

fn payload(frame: &Frame) -> Option<&[u8]> {
    let (from, to, datagram) = frame.udp()?;
    let is_framed = [from, to].contains(&GATEWAY_PORT) && datagram.starts_with(&[0xa2]);
    datagram.get(HEADER..).filter(|_| is_framed)
}

fn bytes(payloads: &[&[u8]], start: [u8; 4]) -> usize {
    let of = payloads.iter().filter(|p| p.starts_with(&start));
    of.map(|payload| payload.len()).sum()
}

/// Returns the ids of the channels that a capture of a moment saw.
fn channels(lab: &Lab) -> BTreeSet<Vec<u8>> {
    let capture = lab.site.ra.capture();
    wait_for("packets pass", || lab.page_arrives());
    let frames = capture.finish();
    let of_channel = frames.iter().filter_map(payload);
    let of_channel = of_channel.filter(|payload| payload.starts_with(&CHANNEL));
    of_channel.map(|payload| payload[4..8].to_vec()).collect()
}

fn write_file(lab: &Lab) {
    lab.site
        .b
        .ok(&format!("head -c {FILE} /dev/urandom > /mnt/www/big"));
}

fn fetch(lab: &Lab, flags: &str) {
    let curl = format!("exec curl -sS {flags} -o /mnt/got http://{B}:8000/big");
    let done = lab.site.a.start(&curl).finish(LONGEST);
    assert_eq!(done.code, 0, "{}", done.stderr);
    lab.site.a.ok("cmp /mnt/got /mnt/www/big");
}

/// Issue 4, P-018: what is relayed is sealed past the session as well, and arrives whole.
#[test]
fn relayed_data_goes_by_a_channel_and_arrives_whole() {
    in_lab(|lab| {
        relay_only(lab);
        lab.trust("tcp/8000");
        let _server = lab.serve_page();
        wait_for_channels(lab);
        write_file(lab);
        let forwarded = || {
            let status = lab
                .site
                .public
                .ok("agentnet gateway status --json --config /var/lib/gateway/gateway.toml");
            let status: Value = serde_json::from_str(&status).unwrap();
            status["forwarded_bytes"].as_u64().unwrap()
        };
        let before = forwarded();
        let capture = lab.site.ra.capture();

        fetch(lab, "");

        let frames = capture.finish();
        let payloads = payloads(&frames);
        // A capture may miss some under load.
        assert!(bytes(&payloads, CHANNEL) > FILE / 50);
        // Probes of the path's MTU are the engine's: a few padded packets.
        assert!(bytes(&payloads, TRANSPORT) < FILE / 500);
        assert!(!frames.iter().any(|frame| frame.has(MARKER.as_bytes())));
        assert!(forwarded() - before > FILE as u64);
        assert!(peer(&lab.site.a)["rx_bytes"].as_u64().unwrap() > FILE as u64);
    });
}

/// Issue 4: without the kernel's help at the gateway the same arrives, at a lower rate.
#[test]
fn a_gateway_without_offloads_relays_the_same() {
    in_lab(|lab| {
        lab.gateway = None;
        lab.gateway = Some(lab.site.public.start(
            "exec env AGENTNET_GATEWAY_UDP_OFFLOAD=false \
             agentnet gateway serve --config /var/lib/gateway/gateway.toml",
        ));
        wait_for("the gateway listens", || {
            let listening = lab.site.public.ok("ss -lun");
            listening.contains(&format!("{PUB}:{GATEWAY_PORT} "))
        });
        relay_only(lab);
        lab.trust("tcp/8000");
        let _server = lab.serve_page();
        wait_for_channels(lab);
        write_file(lab);

        fetch(lab, "");
    });
}

/// Issue 4: new keys come while data flows, and nothing of it is lost.
#[test]
fn a_relayed_transfer_outlives_its_channel() {
    in_lab(|lab| {
        relay_only(lab);
        lab.trust("tcp/8000");
        let _server = lab.serve_page();
        wait_for_channels(lab);
        write_file(lab);
        let first = channels(lab);
        assert!(!first.is_empty());

        // Longer than a channel is renewed after: 115 s.
        fetch(lab, "--limit-rate 480k");

        assert!(channels(lab).is_disjoint(&first));
    });
}

/// P-014: a gateway that comes back finds its agents' channels in use again.
#[test]
fn relayed_data_flows_again_after_the_gateway_restarted() {
    in_lab(|lab| {
        relay_only(lab);
        lab.trust("tcp/8000");
        let _server = lab.serve_page();
        wait_for_channels(lab);

        lab.gateway = None;
        assert!(!lab.page_arrives());
        lab.start_gateway();

        lab.page_within(Duration::from_secs(30), "the page by the new hop");
        wait_for_channels(lab);
        assert!(!channels(lab).is_empty());
        lab.site.b.ok(&format!("agentnet trust revoke {A}"));
        assert!(!lab.page_arrives());
    });
}

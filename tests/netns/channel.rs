//! The data channel between real nodes (protocol.md section 7).

use std::time::Duration;

use serde_json::Value;

use crate::{
    capture::Frame,
    lab::{A, B, Lab, MARKER, in_lab, start_node, start_node_with, wait_attached},
    world::{Host, wait_for},
};

/// First bytes of a data channel packet, and of a WireGuard transport message.
const CHANNEL: [u8; 4] = [0x20, 0, 0, 0];
const TRANSPORT: [u8; 4] = [4, 0, 0, 0];

/// Length of the file that is fetched.
const FILE: usize = 8_000_000;

/// Returns what the host's packets to its only peer are sealed with; empty without a channel.
fn suite(host: &Host) -> String {
    let peers = host.ok("agentnet peers --json");
    let peers: Value = serde_json::from_str(&peers).unwrap();
    let suite = peers["peers"][0]["suite"].as_str();
    suite.unwrap_or_default().to_owned()
}

/// Waits until data goes directly and both ends seal it with `wanted`.
#[track_caller]
fn wait_for_suite(lab: &Lab, wanted: &str) {
    wait_for("both ends have a channel", || {
        assert!(lab.page_arrives());
        suite(&lab.site.a) == wanted && suite(&lab.site.b) == wanted
    });
}

/// Returns the bytes of a capture, which may miss some under load, in long datagrams that begin with `start`; the kernel may not have
/// cut them yet.
fn bytes(frames: &[Frame], start: [u8; 4]) -> usize {
    let long = |frame: &Frame| {
        let (_, _, payload) = frame.udp()?;
        let is_one = payload.starts_with(&start) && payload.len() > 600;
        is_one.then_some(payload.len())
    };
    frames.iter().filter_map(long).sum()
}

/// Restarts both nodes, each with what packets may be sealed with there.
fn restart_with(lab: &mut Lab, suites: [&str; 2]) {
    (lab.node_a, lab.node_b) = (None, None);
    let start = |host: &Host, suite: &str| {
        host.ok(&format!(
            "printf '[channel]\\nsuite = \"{suite}\"\\n' > /mnt/{suite}.toml"
        ));
        start_node_with(host, &format!("--config /mnt/{suite}.toml"))
    };
    lab.node_a = Some(start(&lab.site.a, suites[0]));
    lab.node_b = Some(start(&lab.site.b, suites[1]));
    wait_attached(&lab.site.a);
    wait_attached(&lab.site.b);
}

/// Fetches a file from B and returns what the LAN of A saw.
fn fetch(lab: &Lab) -> Vec<Frame> {
    let (a, b) = (&lab.site.a, &lab.site.b);
    b.ok(&format!("head -c {FILE} /dev/urandom > /mnt/www/big"));
    let capture = lab.site.ra.capture();
    a.ok(&format!(
        "curl -sS --max-time 30 -o /mnt/got http://{B}:8000/big"
    ));
    a.ok("cmp /mnt/got /mnt/www/big");
    assert!(lab.page_arrives());
    capture.finish()
}

/// P-018: what goes past the session is sealed as well, and arrives whole.
#[test]
fn data_goes_by_a_channel_of_the_best_suite_both_have() {
    in_lab(|lab| {
        lab.trust("tcp/8000");
        let _server = lab.serve_page();
        let has_aes = lab.site.a.ok("cat /proc/cpuinfo").contains(" aes ");
        wait_for_suite(
            lab,
            if has_aes {
                "aes-256-gcm"
            } else {
                "chacha20-poly1305"
            },
        );

        let frames = fetch(lab);

        assert!(bytes(&frames, CHANNEL) > FILE / 20);
        // The session asks how long a packet may be, and carries nothing else that is long.
        assert!(bytes(&frames, TRANSPORT) < FILE / 80);
        assert!(!frames.iter().any(|frame| frame.has(MARKER.as_bytes())));
        let peers = lab.site.a.ok("agentnet peers --json");
        let peers: Value = serde_json::from_str(&peers).unwrap();
        assert!(peers["peers"][0]["rx_bytes"].as_u64().unwrap() > FILE as u64);
    });
}

/// One end without AES, and one without any channel at all.
#[test]
fn ends_that_differ_take_what_both_have() {
    in_lab(|lab| {
        lab.trust("tcp/8000");
        let _server = lab.serve_page();
        restart_with(lab, ["auto", "chacha20-poly1305"]);
        wait_for_suite(lab, "chacha20-poly1305");
        assert!(bytes(&fetch(lab), CHANNEL) > FILE / 20);

        restart_with(lab, ["off", "auto"]);
        wait_for("data goes directly again", || {
            lab.page_arrives()
                && lab
                    .site
                    .a
                    .ok("agentnet peers --json")
                    .contains("\"direct\"")
        });
        let frames = fetch(lab);

        assert_eq!(bytes(&frames, CHANNEL), 0);
        assert!(bytes(&frames, TRANSPORT) > FILE / 20);
        assert_eq!((suite(&lab.site.a), suite(&lab.site.b)), Default::default());
    });
}

/// P-014, P-015: the keys of a channel are gone when the consent is.
#[test]
fn what_is_taken_back_goes_by_no_channel() {
    in_lab(|lab| {
        lab.trust("tcp/8000");
        let _server = lab.serve_page();
        lab.page_within(Duration::from_secs(10), "the page");
        wait_for("there is a channel", || {
            lab.page_arrives() && !suite(&lab.site.b).is_empty()
        });
        let capture = lab.site.ra.capture();

        lab.site.b.ok(&format!("agentnet trust revoke {A}"));

        assert!(!lab.page_arrives());
        let frames = capture.finish();
        let after = frames.iter().filter(|frame| {
            let udp = frame.udp();
            udp.is_some_and(|(_, _, payload)| payload.starts_with(&CHANNEL))
        });
        // What crossed the command on its way, and no new connection.
        assert!(after.count() < 20);
    });
}

/// A node that lost its channel with its memory gets another without anybody waiting long.
#[test]
fn a_restarted_end_gets_a_new_channel() {
    in_lab(|lab| {
        lab.trust("tcp/8000");
        let _server = lab.serve_page();
        wait_for("there is a channel", || {
            lab.page_arrives() && !suite(&lab.site.a).is_empty()
        });
        for is_a in [true, false] {
            let (host, node) = if is_a {
                (&lab.site.a, &mut lab.node_a)
            } else {
                (&lab.site.b, &mut lab.node_b)
            };
            *node = None;
            *node = Some(start_node(host));

            lab.page_within(Duration::from_secs(10), "the page after a restart");
            wait_for("there is a channel again", || {
                lab.page_arrives()
                    && !suite(&lab.site.a).is_empty()
                    && !suite(&lab.site.b).is_empty()
            });
        }
    });
}

//! What nodes and servers tell those who watch them: metrics, and logs that programs read.

use serde_json::Value;

use crate::{
    lab::{A, B, Lab, in_lab, start_node, start_node_by, start_node_with, wait_attached},
    process::Proc,
    services::REGISTRY,
    world::{Host, in_world, wait_for},
};

const AT: &str = "127.0.0.1:9465";

/// Returns what a daemon's metrics are now, and how they are labelled.
fn metrics(host: &Host) -> String {
    let answer = host.ok(&format!("curl -sif --max-time 5 http://{AT}/metrics"));
    assert!(
        answer.contains("text/plain; version=0.0.4; charset=utf-8"),
        "{answer}"
    );
    answer
}

/// Returns the value of one metric with its labels.
fn value(text: &str, metric: &str) -> Option<f64> {
    text.lines().find_map(|line| {
        let value = line.strip_prefix(metric)?.strip_prefix(' ')?;
        value.trim().parse().ok()
    })
}

fn watched(host: &Host) -> Proc {
    start_node_by(host, &format!("AGENTNET_METRICS_LISTEN={AT}"))
}

/// Issue 6, Pilot Protocol: registry and gateway are well and nothing arrives; the metrics tell both.
#[test]
fn data_that_does_not_arrive_shows_though_control_is_well() {
    in_world(|world| {
        let mut lab = Lab::services(world);
        lab.join();
        lab.node_a = Some(watched(&lab.site.a));
        lab.node_b = Some(start_node(&lab.site.b));
        wait_attached(&lab.site.a);
        wait_attached(&lab.site.b);
        lab.trust("tcp/8000");
        let a = &lab.site.a;
        a.ok(&format!("ping -6 -c 3 -i 0.2 {B}"));

        let labels = format!("{{agent=\"{A}\",peer=\"{B}\"}}");
        let of_peer =
            |text: &str, metric: &str| value(text, &format!("agentnet_node_peer_{metric}{labels}"));
        let well = metrics(a);
        let now = a.ok("date +%s").parse::<f64>().unwrap();
        let came = of_peer(&well, "last_inbound_timestamp_seconds").unwrap();
        assert!((now - came).abs() < 30.0, "{came} at {now}");
        assert_eq!(of_peer(&well, "up"), Some(1.0), "{well}");
        assert!(of_peer(&well, "handshakes_total") >= Some(1.0), "{well}");
        assert!(of_peer(&well, "rtt_seconds").is_none_or(|rtt| rtt < 5.0));
        for (metric, least) in [
            ("agentnet_node_tun_up", 1.0),
            ("agentnet_node_tun_packets_total{way=\"in\"}", 3.0),
            ("agentnet_node_tun_packets_total{way=\"out\"}", 3.0),
            ("agentnet_node_underlay_bytes_total{way=\"out\"}", 300.0),
            ("agentnet_node_agents_attached", 1.0),
            ("agentnet_node_registry_links{state=\"connected\"}", 1.0),
        ] {
            assert!(value(&well, metric) >= Some(least), "{metric}: {well}");
        }
        assert_eq!(value(&well, "agentnet_node_peers_silent"), Some(0.0));
        for secret in ["198.51.100.", "10.0.", "did:key:", "agn1_", "fd"] {
            assert!(!well.contains(secret), "{secret}: {well}");
        }

        lab.node_b.take().unwrap().kill();
        let _asks = a.start(&format!("exec ping -6 -i 0.5 {B}"));
        wait_for("silence is told", || {
            value(&metrics(a), "agentnet_node_peers_silent") == Some(1.0)
        });
        let deaf = metrics(a);
        let control = ["agents_attached", "registry_links{state=\"connected\"}"];
        for metric in control.map(|of| format!("agentnet_node_{of}")) {
            assert_eq!(value(&deaf, &metric), Some(1.0), "{deaf}");
        }
    });
}

/// A registry counts what it answers; an address that is taken is told with its cure.
#[test]
fn a_registry_tells_numbers_and_a_taken_address_is_named() {
    in_lab(|lab| {
        let public = &lab.site.public;
        lab.registry.take().unwrap().kill();
        let line = "exec agentnet registry serve --config /var/lib/registry/registry.toml";
        let _registry = public.start(&format!("AGENTNET_REGISTRY_METRICS_LISTEN={AT} {line}"));
        wait_for("both nodes are back", || {
            let told = public.run(&format!("curl -sf http://{AT}/metrics")).stdout;
            value(&told, "agentnet_registry_watches") >= Some(2.0)
        });
        public.run(&format!("curl -sk https://{REGISTRY}/nothing"));

        let told = metrics(public);
        for (metric, least) in [
            ("agentnet_registry_ready", 1.0),
            ("agentnet_registry_networks", 1.0),
            ("agentnet_registry_records", 2.0),
            ("agentnet_registry_gateways", 1.0),
            ("agentnet_registry_requests_total{answer=\"refused\"}", 1.0),
            ("agentnet_registry_requests_total{answer=\"done\"}", 2.0),
        ] {
            assert!(value(&told, metric) >= Some(least), "{metric}: {told}");
        }
        assert!(
            !told.contains("acme") && !told.contains("did:key"),
            "{told}"
        );

        lab.node_a.take().unwrap().stop();
        let a = &lab.site.a;
        let _taken = a.start("exec python3 -m http.server 9465 --bind 127.0.0.1");
        wait_for("somebody has it", || a.ok("ss -ltn").contains(AT));
        let said = a.fails(1, &format!("AGENTNET_METRICS_LISTEN={AT} agentnet up"));
        assert!(
            said.contains("cannot serve metrics") && said.contains("hint: "),
            "{said}"
        );
    });
}

/// Returns the lines of a daemon's log that have what `is` looks for.
fn logged(node: &Proc, is: impl Fn(&Value) -> bool) -> Vec<Value> {
    let said = node.stderr();
    // The last may be on its way.
    let whole = said.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let lines = whole.lines().map(|line| {
        serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"))
    });
    lines.filter(is).collect()
}

/// Issue 6: each line is one object, with the facts in fields of their own.
#[test]
fn a_log_of_json_has_a_field_for_each_fact() {
    in_lab(|lab| {
        lab.node_a.take().unwrap().stop();
        let node = start_node_with(&lab.site.a, "--log-format json -v");
        wait_attached(&lab.site.a);
        lab.trust("tcp/8000");
        lab.registry.take().unwrap().kill();
        wait_for("the loss is told", || {
            !logged(&node, |line| line["code"] == "registry_lost").is_empty()
        });

        for line in logged(&node, |_| true) {
            for field in ["timestamp", "level", "message", "target"] {
                assert!(line[field].is_string(), "{field}: {line}");
            }
        }
        let lost = logged(&node, |line| line["code"] == "registry_lost");
        assert_eq!(lost[0]["level"], "WARN");
        assert!(
            lost[0]["reason"]
                .as_str()
                .is_some_and(|why| !why.is_empty())
        );
        let trusted = logged(&node, |line| line["message"] == "Trust changed");
        assert!(
            trusted[0]["agent"]
                .as_str()
                .is_some_and(|at| at.starts_with("fd"))
        );
        assert_eq!(trusted[0]["peer"], "b");
    });
}

/// What asks for a journal where there is none is not left without a log; text is for people.
#[test]
fn a_log_without_a_journal_is_text() {
    in_lab(|lab| {
        lab.node_a.take().unwrap().stop();
        let wrong = "--log-format journald";
        let node = start_node_with(&lab.site.a, wrong);
        let said = node.stderr();
        assert!(said.contains("No journal is to be had"), "{said}");
        assert!(said.contains("Network device ready"), "{said}");
        node.stop();

        // Of another stream: that of whoever started us.
        let node = start_node_by(&lab.site.a, "JOURNAL_STREAM=8:12345");
        let said = node.stderr();
        assert!(said.contains("INFO Network device ready device="), "{said}");
    });
}

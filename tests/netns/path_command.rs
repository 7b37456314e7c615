//! What `agentnet path` and `agentnet ping --until-direct` say, and do, on the kernel.

use serde_json::Value;

use crate::{
    lab::{B, Lab, in_lab, start_node_with, wait_attached},
    site::{RA, RB},
    world::{Host, wait_for},
};

/// Returns what `agentnet path` says of `name` on `host`.
pub(crate) fn report(host: &Host, name: &str) -> Value {
    serde_json::from_str(&host.ok(&format!("agentnet path {name} --json"))).unwrap()
}

/// Returns one end ("local" or "remote") of the direct path from `host` to b in use; empty while
/// there is none.
pub(crate) fn seen_at(host: &Host, end: &str) -> String {
    let report = report(host, "b");
    let pairs = report["pairs"].as_array().unwrap();
    let used = pairs
        .iter()
        .find(|pair| pair["in_use"] == true && pair["path"] == "direct");
    used.and_then(|pair| pair[end]["at"].as_str())
        .unwrap_or_default()
        .to_owned()
}

/// Returns the pair whose remote end is at `at`.
fn pair<'a>(report: &'a Value, at: &str) -> &'a Value {
    let pairs = report["pairs"].as_array().unwrap();
    let found = pairs.iter().find(|pair| pair["remote"]["at"] == at);
    found.unwrap_or_else(|| panic!("no pair at {at}: {report:#}"))
}

/// Issue 3: every pair with state, round-trip time and loss, and why the one in use is.
#[test]
fn every_path_is_shown_with_the_reason_of_the_one_in_use() {
    in_lab(|lab| {
        lab.trust("tcp/8000");

        let said = lab.site.a.ok("agentnet ping b --until-direct");
        assert!(
            said.lines().count() >= 2 && said.contains(", direct"),
            "{said}"
        );

        let seen = report(&lab.site.a, "b");
        assert_eq!(
            (&seen["v"], &seen["name"], &seen["path"], &seen["state"]),
            (&1.into(), &B.into(), &"direct".into(), &"up".into())
        );
        assert_eq!(
            (&seen["why"]["code"], &seen["not_direct"]),
            (&"nearer".into(), &Value::Null)
        );
        let used = pair(&seen, &format!("{RB}:16200"));
        assert_eq!(
            (&used["in_use"], &used["path"], &used["family"]),
            (&true.into(), &"direct".into(), &"ipv4".into())
        );
        assert_eq!(
            (
                &used["state"],
                &used["remote"]["kind"],
                &used["loss_percent"]
            ),
            (&"answering".into(), &"reflexive".into(), &0.into())
        );
        assert_eq!(used["local"]["at"], format!("{RA}:16200"));
        assert_eq!(used["local"]["kind"], "reflexive");
        assert!(
            used["rtt_ms"]
                .as_f64()
                .is_some_and(|ms| ms > 0.0 && ms < 1000.0)
        );
        let age = seen["now"].as_u64().unwrap() - used["last_inbound"].as_u64().unwrap();
        assert!(age < 20_000, "{age} ms");
        // B's own address means nothing beyond its router.
        let host = |field: &str| {
            let seen = report(&lab.site.a, "b");
            pair(&seen, "10.0.2.2:16200")[field].clone()
        };
        assert_eq!(host("remote")["kind"], "host");
        wait_for("it is given up", || host("state") == "failed");
        let relay = pair(&seen, "198.51.100.1:16201");
        assert_eq!(
            (&relay["path"], &relay["in_use"]),
            (&"relay".into(), &false.into())
        );
        assert!(relay["gateway"].as_str().unwrap().starts_with("did:key:"));

        let text = lab.site.a.ok("agentnet path b");
        assert!(
            text.contains("why: ") && text.contains("in use, answering"),
            "{text}"
        );
    });
}

/// Waits until all of B's endpoints were tried in vain.
fn tried_in_vain(lab: &Lab) -> Value {
    let mut seen = Value::Null;
    wait_for("the probes are given up", || {
        lab.site.a.ok("agentnet ping b --count 1");
        seen = report(&lab.site.a, "b");
        seen["not_direct"]["code"] == "no_answer"
    });
    seen
}

/// Issue 3: where UDP between the hosts is blocked, both commands say so and what to do.
#[test]
fn where_udp_is_blocked_a_person_is_told() {
    in_lab(|lab| {
        lab.site.block_direct_udp();
        lab.trust("tcp/8000");

        let seen = tried_in_vain(lab);
        assert_eq!(
            (&seen["path"], &seen["why"]["code"]),
            (&"relay".into(), &"first".into())
        );
        assert_eq!(pair(&seen, &format!("{RB}:16200"))["state"], "failed");

        let said = lab
            .site
            .a
            .fails(5, "agentnet ping b --until-direct --timeout 2s");
        assert!(
            said.contains(", relay") && said.contains("(no_answer)") && said.contains("hint: "),
            "{said}"
        );
    });
}

/// The same where the other side does not want to be seen.
#[test]
fn where_a_peer_hides_a_person_is_told() {
    in_lab(|lab| {
        lab.node_b.take().unwrap().stop();
        lab.node_b = Some(start_node_with(&lab.site.b, "--path hidden"));
        wait_attached(&lab.site.b);
        lab.trust("tcp/8000");

        let line = "agentnet ping b --until-direct --timeout 2s --json";
        let said = lab.site.a.run(line);

        assert_eq!(said.code, 5, "{said}");
        let json = serde_json::from_str::<Value>(&said.stdout).unwrap();
        assert_eq!(
            (&json["direct"], &json["not_direct"]["code"]),
            (&false.into(), &"no_endpoint".into())
        );
        let own = report(&lab.site.b, "a");
        assert_eq!(
            (
                &own["mode"],
                &own["not_direct"]["code"],
                &own["why"]["code"]
            ),
            (&"hidden".into(), &"mode".into(), &"mode".into())
        );
    });
}

#[test]
fn who_is_no_peer_has_no_paths() {
    in_lab(|lab| {
        for line in ["path b", "ping b --until-direct", "path nobody"] {
            let said = lab.site.a.fails(4, &format!("agentnet {line}"));
            assert!(
                said.contains("no trust") && said.contains("hint: "),
                "{said}"
            );
        }
        let said = lab.site.a.fails(2, "agentnet path a");
        assert!(said.contains("no path is needed"), "{said}");

        lab.trust("tcp/8000");
        wait_for("b knows of the trust as well", || {
            lab.site.b.run("agentnet path a --json").code == 0
        });
    });
}

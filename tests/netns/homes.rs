//! Nodes at two gateways, one of which dies while it carries data.

use std::time::Duration;

use serde_json::Value;

use crate::{
    lab::{address, in_lab, status},
    motion::wait_for_path,
    path_command::report,
    process::Proc,
    services::OPERATOR,
    site::PUB,
    stream::{ALLOW, QUICK, Stream, Transfer},
    world::{Host, now, recovered, wait_for},
};

/// Issue 5: data flows on within this time.
const FAILOVER: Duration = Duration::from_secs(2);

/// Port of the second gateway, and its directory.
pub(crate) const SECOND_PORT: u16 = 16202;
pub(crate) const SECOND_DIR: &str = "/var/lib/gateway2";

/// Makes a second gateway on the public host and starts it.
pub(crate) fn second_gateway(public: &Host) -> Proc {
    public.ok(&format!(
        "agentnet gateway init --dir {SECOND_DIR} --listen {PUB}:{SECOND_PORT} {OPERATOR}"
    ));
    serve_second(public)
}

/// Starts the second gateway, which was made before.
pub(crate) fn serve_second(public: &Host) -> Proc {
    let gateway = public.start(&format!(
        "exec agentnet gateway serve --config {SECOND_DIR}/gateway.toml"
    ));
    wait_for("the second gateway listens", || {
        public.ok("ss -lun").contains(&format!(":{SECOND_PORT} "))
    });
    gateway
}

/// Returns the gateways of the host's only agent, best first, and how each is.
fn gateways(host: &Host) -> Vec<(String, String)> {
    let status = status(host);
    let all = status["agents"][0]["gateways"].as_array().unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let one = |gateway: &Value| (text(&gateway["endpoint"]), text(&gateway["state"]));
    all.iter().map(one).collect()
}

fn connected(host: &Host) -> usize {
    let all = gateways(host);
    all.iter().filter(|(_, state)| state == "connected").count()
}

/// Returns where the gateway is by which `host` sends to its peer.
fn used(host: &Host, peer: &str) -> String {
    let report = report(host, peer);
    let pairs = report["pairs"].as_array().unwrap();
    let relay = pairs.iter().find(|pair| pair["path"] == "relay").unwrap();
    relay["remote"]["at"].as_str().unwrap().to_owned()
}

/// one TCP connection and a stream outlive the gateway that carried them; status tells.
#[test]
fn a_transfer_goes_on_when_the_gateway_in_use_dies() {
    in_lab(|lab| {
        lab.site.block_direct_udp();
        let mut second = Some(second_gateway(&lab.site.public));
        for host in [&lab.site.a, &lab.site.b] {
            wait_for("both gateways are attached", || connected(host) == 2);
        }
        lab.trust(ALLOW);
        let (a, b) = (&lab.site.a, &lab.site.b);
        let stream = Stream::start(a, b, &address(b));
        stream.flows();
        let transfer = Transfer::start(a, b, &address(b), QUICK);
        wait_for_path(lab, "relay");
        let before = used(a, "b");
        let is_second = before.ends_with(&format!(":{SECOND_PORT}"));
        let gateway = if is_second {
            second.take()
        } else {
            lab.gateway.take()
        };

        let died = now();
        gateway.unwrap().kill();
        let outage = stream.outage_since(died);
        transfer.goes_on(500_000);

        recovered("a gateway dies and another goes on", outage);
        assert!(outage < FAILOVER, "{outage:?}");
        transfer.arrives_whole();
        assert_ne!(used(a, "b"), before);
        for host in [a, b] {
            wait_for("status tells which is gone", || {
                let all = gateways(host);
                all.len() == 2 && all.contains(&(before.clone(), "connecting".to_owned()))
            });
            assert_eq!(connected(host), 1);
            assert_eq!(status(host)["agents"][0]["gateway"]["state"], "connected");
        }
    });
}

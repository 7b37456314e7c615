//! Networks that let no UDP through: gateways are reached by WebSocket over TLS, through a proxy too.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{
    lab::{B, Lab, address, start_node_by, status, wait_attached},
    process::Proc,
    stream::{ALLOW, Download, QUICK, Stream, Transfer},
    world::{Host, in_world_of, measured, now, recovered, wait_for, wait_within},
};

/// Nothing but the gateway, so that its carrier is all there is.
const RELAY: &str = "AGENTNET_PATH_MODE=relay";

/// Longest outage when UDP stops: three heartbeats go unanswered, and a new attachment takes some
/// round trips; this machine may be busy.
const TAKEN_OVER: Duration = Duration::from_secs(15);

/// Longest until UDP is used again: it is tried every half minute.
const OPENED: Duration = Duration::from_secs(60);

/// Longest outage when UDP is used again: what was under way to the hop before is lost.
const MOVED: Duration = Duration::from_secs(3);

/// Longest outage after a restart of the gateway.
const RESTART: Duration = Duration::from_secs(15);

/// What the throughput of both carriers is measured with.
const MEGABYTES: u64 = 32;

/// Runs `body` in a world whose gateway takes WebSockets at port 443, with tokens and no agent.
pub(crate) fn in_lab_with_wss<F: FnOnce(&mut Lab)>(body: F) {
    in_world_of::<F>(|world| {
        let mut lab = Lab::services_with(world, "--wss 198.51.100.1:443", "");
        lab.token("all", "--name '*' --uses 10");
        body(&mut lab);
    });
}

/// Joins both agents and starts their nodes with `environment`.
fn start(lab: &mut Lab, environment: &str) {
    for (host, name) in [(&lab.site.a, "a"), (&lab.site.b, "b")] {
        host.ok(&format!(
            "agentnet join --token-file /mnt/all.token --name {name}"
        ));
    }
    restart(lab, environment);
}

fn restart(lab: &mut Lab, environment: &str) {
    (lab.node_a, lab.node_b) = (None, None);
    lab.node_a = Some(start_node_by(&lab.site.a, environment));
    lab.node_b = Some(start_node_by(&lab.site.b, environment));
    wait_attached(&lab.site.a);
    wait_attached(&lab.site.b);
}

/// Has both routers drop what `rule` matches, of all they forward.
fn forbid(lab: &Lab, rule: &str) {
    for router in [&lab.site.ra, &lab.site.rb] {
        router.ok(&format!(
            "nft add chain ip router forbid '{{ type filter hook forward priority -2; }}' && \
             nft add rule ip router forbid {rule} drop"
        ));
    }
}

fn allow_all(lab: &Lab) {
    for router in [&lab.site.ra, &lab.site.rb] {
        router.ok("nft 'flush chain ip router forbid'");
    }
}

fn carrier(host: &Host) -> String {
    let status = status(host);
    let gateway = &status["agents"][0]["gateway"];
    gateway["carrier"].as_str().unwrap_or_default().to_owned()
}

#[track_caller]
fn wait_carried(lab: &Lab, by: &str, patience: Duration) {
    let is_by = |host: &Host| {
        let gateway = &status(host)["agents"][0]["gateway"];
        gateway["state"] == "connected" && gateway["carrier"] == by
    };
    wait_within(patience, by, || {
        (is_by(&lab.site.a) && is_by(&lab.site.b)).then_some(())
    });
}

fn gateway_status(lab: &Lab) -> Value {
    let line = "agentnet gateway status --json --config /var/lib/gateway/gateway.toml";
    serde_json::from_str(&lab.site.public.ok(line)).unwrap()
}

/// Fetches a file of so many bytes whole.
fn fetch(lab: &Lab, size: u64) -> Duration {
    let (a, b) = (&lab.site.a, &lab.site.b);
    b.ok(&format!("head -c {size} /dev/urandom > /mnt/www/big"));
    let since = now();
    a.ok(&format!(
        "curl -sS --max-time 55 -o /mnt/got http://{B}:8000/big"
    ));
    let took = since.elapsed();
    let sums = a.ok("sha256sum < /mnt/got; sha256sum < /mnt/www/big");
    let (got, sent) = sums.split_once('\n').unwrap();
    assert_eq!(got, sent);
    took
}

/// F-058, field lesson "works with UDP blocked, without a CA bundle": with every UDP packet dropped,
/// and everything but TCP port 443 later, two agents find each other and talk.
#[test]
fn with_every_udp_packet_dropped_agents_talk_by_443_only() {
    in_lab_with_wss(|lab| {
        forbid(lab, "meta l4proto udp");
        for host in [&lab.site.a, &lab.site.b] {
            host.ok("mount -t tmpfs none /etc/ssl");
        }
        start(lab, RELAY);
        assert_eq!(
            (carrier(&lab.site.a), carrier(&lab.site.b)),
            ("wss".to_owned(), "wss".to_owned())
        );
        lab.trust(ALLOW);
        let _server = lab.serve_page();
        lab.page_within(Duration::from_secs(20), "the page");

        // All agents of a node come by one connection.
        lab.site
            .a
            .ok("agentnet join --token-file /mnt/all.token --name c");
        wait_for("the third agent is attached", || {
            let status = gateway_status(lab);
            status["attached"] == 3 && status["connections"] == 2
        });
        lab.site.a.ok("agentnet leave --agent c.acme.agent");

        // The registry, at port 8443, is out of reach as well from here on.
        forbid(lab, "meta l4proto tcp ct original proto-dst != 443");
        restart(lab, RELAY);
        lab.page_within(Duration::from_secs(30), "the page, after a restart");

        let a = &lab.site.a;
        a.ok(&format!("ping -6 -c 3 {B}"));
        assert!(a.ok("agentnet ping b").contains(", relay"));
        fetch(lab, 16 << 20);
        let path = a.ok("agentnet path b");
        assert!(path.contains("relay (wss)"), "{path}");
        let shown = a.ok("agentnet status");
        assert!(shown.contains("wss://198.51.100.1:443/a2g"), "{shown}");
        assert!(!shown.contains("sees us at"), "{shown}");
        let listed = gateway_status(lab)["attachments"].to_string();
        assert_eq!(listed.matches("\"carrier\":\"wss\"").count(), 2, "{listed}");
    });
}

/// F-059, field lesson "through an HTTP CONNECT proxy": where a proxy is the only way out, one agent's
/// without and the other's with a password, both join, find each other and talk.
#[test]
fn through_proxies_that_are_the_only_way_out() {
    in_lab_with_wss(|lab| {
        forbid(lab, "meta l4proto { tcp, udp, icmp }");
        let _open = tinyproxy(&lab.site.ra, "10.0.1.1", "");
        let _locked = tinyproxy(&lab.site.rb, "10.0.2.1", "BasicAuth agent p.ss-1");
        let (of_a, of_b) = (
            "HTTPS_PROXY=http://10.0.1.1:3128",
            "https_proxy=http://agent:p%2Ess-1@10.0.2.1:3128",
        );
        for (host, name, by) in [(&lab.site.a, "a", of_a), (&lab.site.b, "b", of_b)] {
            host.ok(&format!(
                "{by} agentnet join --token-file /mnt/all.token --name {name}"
            ));
        }
        lab.node_a = Some(start_node_by(&lab.site.a, of_a));
        lab.node_b = Some(start_node_by(&lab.site.b, of_b));
        wait_attached(&lab.site.a);
        wait_attached(&lab.site.b);

        lab.trust(ALLOW);
        let _server = lab.serve_page();
        lab.page_within(Duration::from_secs(20), "the page");

        fetch(lab, 16 << 20);
        lab.node_a = None;
        let _squid = squid(&lab.site.ra, "10.0.1.1");
        let by_squid = "ALL_PROXY=http://10.0.1.1:3129";
        lab.node_a = Some(start_node_by(&lab.site.a, by_squid));
        wait_attached(&lab.site.a);
        lab.page_within(Duration::from_secs(30), "the page, by squid");

        let shown = lab.site.b.ok("agentnet status");
        assert!(shown.contains("through the proxy 10.0.2.1:3128"), "{shown}");
        assert!(
            !shown.contains("p.ss") && !shown.contains("p%2Ess"),
            "{shown}"
        );
    });
}

/// Runs the proxy on a router, which has another way out than its hosts.
fn tinyproxy(router: &Host, address: &str, more: &str) -> Proc {
    let config = format!(
        "Port 3128\\nListen {address}\\nTimeout 600\\nMaxClients 20\\nLogLevel Error\\n\
         ConnectPort 443\\nConnectPort 8443\\n{more}\\n"
    );
    router.ok(&format!("printf '{config}' > /run/tinyproxy.conf"));
    let proxy = router.start("exec tinyproxy -d -c /run/tinyproxy.conf");
    wait_for("the proxy listens", || {
        router.ok("ss -ltn").contains(&format!("{address}:3128 "))
    });
    proxy
}

/// Runs another one, which is to be nobody's root.
fn squid(router: &Host, address: &str) -> Proc {
    let config = format!(
        "http_port {address}:3129\nacl tunnels port 443 8443\nhttp_access allow CONNECT tunnels\n\
         http_access deny all\ncache deny all\naccess_log none\ncache_log /run/squid.log\n\
         pid_filename none\ncoredump_dir /run\nshutdown_lifetime 0 seconds\n"
    );
    router.ok(&format!("printf '{config}' > /run/squid.conf"));
    let proxy = router
        .start("exec unshare --user --map-user=13 --map-group=13 squid -N -f /run/squid.conf");
    wait_for("the proxy listens", || {
        router.ok("ss -ltn").contains(&format!("{address}:3129 "))
    });
    proxy
}

/// F-060: UDP is gone back to once it works, and left again when it does not; one TCP connection and
/// a stream outlive both.
#[test]
fn udp_that_comes_and_goes_is_used_while_it_works() {
    in_lab_with_wss(|lab| {
        forbid(lab, "meta l4proto udp");
        start(lab, RELAY);
        lab.trust(ALLOW);
        let (a, b) = (&lab.site.a, &lab.site.b);
        let stream = Stream::start(a, b, &address(b));
        let transfer = Transfer::start(a, b, &address(b), QUICK);
        stream.flows();

        let since = now();
        allow_all(lab);
        wait_carried(lab, "udp", OPENED);
        let outage = check("UDP to the gateway works again", &stream, since);
        assert!(outage < MOVED, "{outage:?}");

        let since = now();
        forbid_again(lab);
        wait_carried(lab, "wss", OPENED);
        let outage = check("UDP to the gateway is blocked", &stream, since);
        assert!(outage < TAKEN_OVER, "{outage:?}");
        transfer.goes_on(100_000);
        transfer.arrives_whole();
    });
}

fn forbid_again(lab: &Lab) {
    for router in [&lab.site.ra, &lab.site.rb] {
        router.ok("nft add rule ip router forbid meta l4proto udp drop");
    }
}

fn check(what: &str, stream: &Stream, since: Instant) -> Duration {
    let outage = stream.outage_since(since);
    recovered(what, outage);
    outage
}

/// a gateway that restarts has back those who come by WebSocket within seconds, idle ones too.
#[test]
fn a_gateway_that_restarts_has_its_connections_back() {
    in_lab_with_wss(|lab| {
        forbid(lab, "meta l4proto udp");
        start(lab, RELAY);
        lab.trust(ALLOW);
        let stream = Stream::start(&lab.site.a, &lab.site.b, &address(&lab.site.b));
        stream.flows();

        let since = now();
        lab.gateway.take().unwrap().kill();
        lab.start_gateway();
        let outage = check("restart of the gateway by WebSocket", &stream, since);

        assert!(outage < RESTART, "{outage:?}");

        // Nobody says anything now: the nodes notice by the end of their connections.
        drop(stream);
        lab.gateway.take().unwrap().kill();
        let since = now();
        lab.start_gateway();
        wait_for("both are attached again", || {
            let line = "agentnet gateway status --json --config /var/lib/gateway/gateway.toml";
            let status = lab.site.public.run(line);
            status.stdout.contains("\"attached\":2")
        });
        recovered("restart of the gateway by WebSocket, idle", since.elapsed());
        assert!(since.elapsed() < RESTART);
    });
}

/// A datagram that says to be from where connections have their endpoints comes from nobody.
#[test]
fn no_datagram_passes_for_a_connection() {
    in_lab_with_wss(|lab| {
        let public = &lab.site.public;
        lab.gateway.take().unwrap().stop();
        lab.gateway = Some(public.start(
            "exec env AGENTNET_GATEWAY_UDP_LISTEN='0.0.0.0:16201,[::]:16201' \
             agentnet gateway serve --config /var/lib/gateway/gateway.toml",
        ));
        let other = &lab.site.ra;
        for prefix in ["2001:db8::", "100::"] {
            public.ok(&format!("ip addr add {prefix}1/64 dev br0 nodad"));
            other.ok(&format!("ip addr add {prefix}5/64 dev wan nodad"));
        }
        let asked = |prefix: &str| {
            other
                .run(&format!("python3 -c '{ASK}' {prefix}5 {prefix}1"))
                .code
        };

        wait_for("STUN is answered", || asked("2001:db8::") == 0);
        let before = gateway_status(lab)["drops"]["datagram_unknown"].as_u64();
        assert_ne!(asked("100::"), 0);

        let after = gateway_status(lab)["drops"]["datagram_unknown"].as_u64();
        assert_eq!(after.unwrap(), before.unwrap_or(0) + 1);
    });
}

/// A Binding request (RFC 8489), from one address to another, that fails without an answer.
const ASK: &str = "
import socket, sys
asker = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
asker.settimeout(1)
asker.bind((sys.argv[1], 0))
asker.sendto(bytes.fromhex(\"000100002112a442\" + \"07\" * 12), (sys.argv[2], 16201))
asker.recvfrom(100)
";

/// What the carrier costs: the same transfer by the gateway over UDP and over WebSocket.
#[test]
fn throughput_of_both_carriers() {
    in_lab_with_wss(|lab| {
        start(lab, RELAY);
        lab.trust(ALLOW);
        let _server = lab.serve_page();
        lab.page_within(Duration::from_secs(20), "the page");
        let size = MEGABYTES << 20;
        let udp = fetch(lab, size);
        assert_eq!(carrier(&lab.site.a), "udp");

        restart(lab, &format!("{RELAY} AGENTNET_WSS_MODE=only"));
        lab.page_within(Duration::from_secs(30), "the page");
        let wss = fetch(lab, size);

        assert_eq!(carrier(&lab.site.a), "wss");
        let rate = |took: Duration| size as f64 * 8.0 / took.as_secs_f64() / 1e6;
        measured(&format!(
            "relayed TCP, {MEGABYTES} MiB: udp {:.0} Mb/s, wss {:.0} Mb/s, ratio {:.2}",
            rate(udp),
            rate(wss),
            rate(wss) / rate(udp),
        ));
        let download = Download::start(&lab.site.a, &lab.site.b, 2_000_000);
        download.arrives_whole(&lab.site.a);
    });
}

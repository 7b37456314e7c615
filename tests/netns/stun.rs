//! STUN between our programs and those of coturn, which everybody else's speak to as well, and the client
//! of before RFC 5389.

pub(crate) mod behaviour;
mod netcheck;

use std::time::Duration;

use serde_json::Value;

use crate::{
    lab::{GATEWAY, Lab, in_lab, start_node_by, status, wait_attached},
    process::Proc,
    site::{PUB, RA},
    world::{Host, wait_for, wait_within},
};

use behaviour::Behaviour;

/// The second address of the public host.
const SECOND: &str = "198.51.100.2";

/// How often a foreign client is asked.
const TRIES: usize = 3;

/// Where coturn listens on the public host.
const COTURN: &str = "198.51.100.1:3478";

/// RFC 8489: coturn's client is told its endpoint by our gateway, through a NAT, and gets no more than
/// its share of answers.
#[test]
fn a_gateway_tells_a_foreign_client_where_it_is() {
    in_lab(|lab| {
        let ask = format!("timeout 10 turnutils_stunclient -p 16201 {PUB}");

        let said = lab.site.a.ok(&ask);

        assert!(
            said.contains(&format!("UDP reflexive addr: {RA}:")),
            "{said}"
        );
        let socket = lab.site.b.udp("0.0.0.0:5555");
        // A Binding request of 20 bytes (RFC 8489 section 5).
        let mut request = vec![0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42];
        request.extend([7; 12]);
        for _ in 0..100 {
            socket.send_to(&request, (PUB, 16201)).unwrap();
        }
        let mut buffer = [0; 2048];
        let lengths = std::iter::from_fn(|| socket.recv(&mut buffer).ok()).collect::<Vec<_>>();
        assert!(
            (1..=30).contains(&lengths.len()),
            "{} answers",
            lengths.len()
        );
        assert!(lengths.iter().all(|length| *length <= 44), "{lengths:?}");
    });
}

/// What the router of host a becomes, and what coturn's client and the classic one call that.
const BEHAVIOURS: [(Behaviour, [&str; 2], &str); 4] = [
    (
        Behaviour::FullCone,
        [
            "Endpoint Independent Mapping",
            "Endpoint Independent Filtering",
        ],
        "Primary: Independent Mapping, Independent Filter, preserves ports",
    ),
    (
        Behaviour::AddressRestricted,
        [
            "Endpoint Independent Mapping",
            "NAT with Address Dependent Filtering",
        ],
        "Primary: Independent Mapping, Address Dependent Filter, preserves ports",
    ),
    (
        Behaviour::PortRestricted,
        [
            "Endpoint Independent Mapping",
            "Address and Port Dependent Filtering",
        ],
        "Primary: Independent Mapping, Port Dependent Filter, preserves ports",
    ),
    (
        Behaviour::Symmetric,
        [
            "Address and Port Dependent Mapping",
            "Address and Port Dependent Filtering",
        ],
        "Primary: Dependent Mapping, random port",
    ),
];

/// RFC 5780, RFC 3489: with a second port and address the gateway lets foreign clients find out how each
/// kind of NAT maps and filters.
#[test]
fn foreign_clients_learn_how_a_nat_behaves() {
    in_lab(|lab| {
        second_endpoints(lab);
        let classic = format!("timeout 15 stun {GATEWAY} 2>&1");
        for (behaviour, expected, primary) in BEHAVIOURS {
            behaviour.of(&lab.site.ra, "10.0.1.2");

            let discover = format!("timeout 15 turnutils_natdiscovery -m -f -p 16201 {PUB} 2>&1");
            finds(&lab.site.a, &discover, &expected);
            finds(&lab.site.a, &classic, &[primary]);
        }
        // No NAT, first with a filter and then without.
        finds(&lab.site.rb, &classic, &["Primary: Firewall"]);
        lab.site.rb.ok("nft flush chain ip router in");
        finds(&lab.site.rb, &classic, &["Primary: Open"]);
    });
}

/// Asks a client that waits for answers shorter than a busy machine may take: it is asked again then. Its
/// exit code is its finding.
#[track_caller]
fn finds(host: &Host, client: &str, expected: &[&str]) {
    let mut said = String::new();
    for _ in 0..TRIES {
        said = host.run(client).to_string();
        if expected.iter().all(|part| said.contains(part)) {
            return;
        }
    }
    panic!("{client}: not {expected:?}: {said}");
}

/// Restarts the gateway with a second port and a second address, from which it answers STUN too.
fn second_endpoints(lab: &mut Lab) {
    let public = &lab.site.public;
    public.ok(&format!("ip addr add {SECOND}/24 dev br0"));
    lab.gateway.take().unwrap().stop();
    public.ok(&format!(
        "sed -i '/^\\[stun\\]/a alternate_port = 16204\\nalternate_addresses = [\"{SECOND}\"]' \
         /var/lib/gateway/gateway.toml"
    ));
    lab.start_gateway();
    wait_for("the gateway listens on all four", || {
        lab.site.public.ok("ss -lun").matches(":16204 ").count() == 2
    });
}

/// Starts coturn, for STUN alone.
fn coturn(lab: &Lab) -> Proc {
    let public = &lab.site.public;
    let server = public.start(&format!(
        "exec turnserver -n --stun-only --no-tls --no-dtls --no-cli -L {PUB} -p 3478 \
         --log-file stdout --pidfile /run/turnserver.pid"
    ));
    wait_for("coturn listens", || {
        public.ok("ss -lun").contains(&format!("{COTURN} "))
    });
    server
}

/// Restarts node A so that it asks coturn; returns its status once that answered.
fn observed(lab: &mut Lab) -> Value {
    lab.node_a.take().unwrap().stop();
    let environment = format!("AGENTNET_PATH_STUN={COTURN}");
    lab.node_a = Some(start_node_by(&lab.site.a, &environment));
    wait_attached(&lab.site.a);
    wait_within(Duration::from_secs(20), "coturn answers", || {
        let status = status(&lab.site.a);
        status["stun"][0]["observed"].is_string().then_some(status)
    })
}

/// A node learns from coturn where it is seen; it is where the gateway sees it, and so it is said.
#[test]
fn a_node_learns_from_a_foreign_server_where_it_is() {
    in_lab(|lab| {
        let _coturn = coturn(lab);

        let status = observed(lab);

        assert_eq!(status["stun"][0]["server"], COTURN);
        assert_eq!(status["stun"][0]["observed"], format!("{RA}:16200"));
        assert_eq!(status["nat_mapping"], "endpoint_independent");
        let text = lab.site.a.ok("agentnet status");
        assert!(
            text.contains(&format!("{COTURN} sees us at {RA}:16200"))
                && text.contains("one endpoint for all destinations"),
            "{text}"
        );
    });
}

/// Behind a NAT that maps by destination the two observers differ; peers are told of both endpoints.
#[test]
fn a_nat_that_maps_by_destination_is_told() {
    in_lab(|lab| {
        let _coturn = coturn(lab);
        maps_by_destination(&lab.site.ra);

        let status = observed(lab);

        assert_eq!(status["nat_mapping"], "endpoint_dependent");
        let (gateway, stun) = (
            &status["agents"][0]["gateway"]["observed"],
            &status["stun"][0]["observed"],
        );
        assert!(gateway != stun, "{gateway} {stun}");
        let text = lab.site.a.ok("agentnet status");
        assert!(text.contains("maps by destination"), "{text}");
    });
}

/// Has a router take another port for what goes to coturn.
fn maps_by_destination(router: &Host) {
    router
        .ok("nft insert rule ip router post oifname wan udp dport 3478 masquerade to :42000-42999");
}

//! STUN between our programs and those of coturn, which everybody else's speak to as well.

use std::time::Duration;

use serde_json::Value;

use crate::{
    lab::{Lab, in_lab, start_node_by, status, wait_attached},
    process::Proc,
    site::{PUB, RA},
    world::{Host, wait_for, wait_within},
};

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

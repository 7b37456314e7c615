//! Pure: what a check means for agents, and what to do about it.

use crate::wire::api::local::{
    NatFiltering, NatMappingKind, Netcheck, NetcheckFamily, NetcheckReach, Warning,
};

/// A full 1280-byte packet on a direct path over IPv4 (protocol.md section 8).
const ENOUGH: u16 = 1280 + 32 + 28; // bytes

/// Returns what keeps agents from good paths, most urgent first.
pub(super) fn findings(check: &Netcheck) -> Vec<Warning> {
    let mut found = Vec::new();
    if let Some(portal) = &check.captive_portal {
        let to = portal.location.as_deref().unwrap_or(&portal.url);
        found.push(warning(
            "captive_portal",
            "somebody answers HTTP in place of our hosts, as the login page of a network does"
                .to_owned(),
            &format!("open {to} in a browser and log in to this network"),
        ));
    }
    found.extend(registries(&check.registries));
    found.extend(gateways(check));
    for (name, family) in [("IPv4", &check.ipv4), ("IPv6", &check.ipv6)] {
        found.extend(nat(name, family, is_mapped(check)));
        if let Some(mtu) = family.mtu.filter(|mtu| *mtu < ENOUGH) {
            let text = format!("{name} carries packets of {mtu} bytes only to the gateway");
            let cure = "raise the MTU of the tunnel or link on the way; until then large packets go in halves";
            found.push(warning("mtu_small", text, cure));
        }
    }
    found
}

/// Tells whether no gateway can be reached at all, though some are known.
pub(super) fn is_cut_off(check: &Netcheck) -> bool {
    let asked = !check.servers.is_empty() || !check.wss.is_empty();
    asked && !answers_udp(check) && !check.wss.iter().any(|wss| wss.error.is_none())
}

fn answers_udp(check: &Netcheck) -> bool {
    check.servers.iter().any(|server| server.rtt_ms.is_some())
}

fn is_mapped(check: &Netcheck) -> bool {
    let mapped = check.port_mapping.as_ref();
    mapped.is_some_and(|mapping| mapping.external.is_some())
}

fn registries(all: &[NetcheckReach]) -> impl Iterator<Item = Warning> {
    all.iter().filter_map(|one| {
        let error = one.error.as_ref()?;
        Some(Warning {
            text: format!("the registry {}: {}", one.url, error.text),
            ..error.clone()
        })
    })
}

fn gateways(check: &Netcheck) -> Option<Warning> {
    if check.servers.is_empty() && check.wss.is_empty() {
        return Some(warning(
            "nothing_to_ask",
            "no gateway and no STUN server is known here".to_owned(),
            "join a network (agentnet join), or name servers in path.stun or gateway.discover",
        ));
    }
    if answers_udp(check) {
        return None;
    }
    let mut failed = check.wss.iter().filter_map(|wss| wss.error.as_ref());
    if check.wss.iter().any(|wss| wss.error.is_none()) {
        return Some(warning(
            "udp_blocked",
            "UDP to all servers is blocked; agents talk by WebSocket, never directly".to_owned(),
            "let UDP out to the gateway's port, and back",
        ));
    }
    Some(match failed.next() {
        Some(error) => Warning {
            text: format!("no gateway answers, by UDP or WebSocket: {}", error.text),
            ..error.clone()
        },
        None => warning(
            "gateway_unreachable",
            "no server answers by UDP, and no gateway has a WebSocket".to_owned(),
            "let UDP out to the gateway's port, and back; or have its operator set wss.listen",
        ),
    })
}

fn nat(name: &str, family: &NetcheckFamily, is_mapped: bool) -> Option<Warning> {
    let is_hard = match family.mapping? {
        NatMappingKind::EndpointIndependent => false,
        NatMappingKind::AddressDependent
        | NatMappingKind::AddressAndPortDependent
        | NatMappingKind::EndpointDependent => true,
    };
    // Whoever maps a port is reached there, whatever the NAT does otherwise.
    if !is_hard || is_mapped {
        return None;
    }
    let open = family.filtering == Some(NatFiltering::EndpointIndependent);
    let text = format!(
        "the {name} NAT maps by destination: peers behind a NAT like it, or one that filters by port, are \
         reached by relay{}",
        if open { " or find us themselves" } else { "" }
    );
    let cure = "switch on PCP or UPnP at the router, or lead a UDP port to this host (udp.port)";
    Some(warning("nat_hard", text, cure))
}

fn warning(code: &str, text: String, cure: &str) -> Warning {
    Warning {
        code: code.to_owned(),
        text,
        cure: cure.to_owned(),
    }
}

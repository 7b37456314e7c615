//! Pure: what was found out by others, as checks.

use crate::node::doctor::{broken, found, odd, unknown, well};
use crate::wire::api::local::{
    Check, CheckState, DnsCheck, LinkState, Netcheck, NetcheckFamily, Status, Warning,
};

/// Findings with which agents work all the same.
const ODD: [&str; 9] = [
    "dns_off",
    "membership_lapses",
    "mtu_small",
    "nat_hard",
    "no_agent",
    "nothing_to_ask",
    "peer_silent",
    "revocation_withheld",
    "udp_blocked",
];

/// A full 1280-byte packet on a direct path over IPv4 (protocol.md section 8).
const ENOUGH: u16 = 1280 + 32 + 28; // bytes

fn of_warning(check: &str, warning: &Warning) -> Check {
    let state = if ODD.contains(&warning.code.as_str()) {
        CheckState::Odd
    } else {
        CheckState::Broken
    };
    let Warning { code, text, cure } = warning;
    found(check, state, code, text, cure)
}

/// Judges what the node says of itself.
pub(super) fn node(status: Option<&Status>, no_node: Option<&str>) -> Vec<Check> {
    let Some(status) = status else {
        let why = no_node.unwrap_or("no node answers");
        let cure = "start it: agentnet up, or systemctl start agentnet; or name its socket with --socket PATH";
        return vec![broken("node", "no_node", why, cure)];
    };
    let mut checks = Vec::new();
    let own = env!("CARGO_PKG_VERSION");
    if status.version != own {
        let text = format!("the node is agentnet {}, this is {own}", status.version);
        let cure = "restart the node: systemctl restart agentnet, or agentnet down and agentnet up";
        checks.push(odd("node", "version_differs", text, cure));
    }
    // Names have a check of their own, which looks closer.
    let is_of_names = |warning: &&Warning| warning.code.starts_with("dns_");
    let warnings = status.warnings.iter().filter(|one| !is_of_names(one));
    checks.extend(warnings.map(|warning| of_warning("node", warning)));
    if checks.is_empty() {
        let agents = status.agents.len();
        checks.push(well(
            "node",
            format!("runs, process {}, agents: {agents}", status.pid),
        ));
    }
    let attached = status.agents.iter().filter(|agent| {
        let gateway = agent.gateway.as_ref();
        gateway.is_some_and(|gateway| gateway.state == LinkState::Connected)
    });
    let attached = attached.count();
    if attached > 0 && attached == status.agents.len() {
        checks.push(well("gateway", "every agent is attached to one"));
    }
    checks
}

/// Judges what `agentnet netcheck` found.
pub(super) fn network(check: Option<&Netcheck>) -> Vec<Check> {
    let Some(check) = check else {
        return vec![unknown("network", "not looked at: --no-network")];
    };
    let mut checks = Vec::new();
    checks.extend(check.findings.iter().map(|one| of_warning("network", one)));
    if checks.is_empty() {
        checks.push(well("network", "servers answer by UDP"));
    }
    for registry in &check.registries {
        if registry.error.is_some() {
            // Among the findings already.
            continue;
        }
        checks.push(well(
            "registry",
            format!("{} is reached, and proves to be it", registry.url),
        ));
        checks.extend(clock(registry.clock_ahead_s));
    }
    for (name, family) in [("IPv4", &check.ipv4), ("IPv6", &check.ipv6)] {
        checks.extend(mtu(name, family));
    }
    checks
}

fn clock(ahead: Option<i64>) -> Option<Check> {
    Some(match ahead? {
        seconds @ (-5..=5) => well("clock", format!("{seconds} s ahead of the registry's")),
        seconds => odd(
            "clock",
            "clock_drifts",
            format!("this host's clock is {seconds} s ahead of the registry's"),
            "set the clock of this machine: timedatectl set-ntp true",
        ),
    })
}

fn mtu(name: &str, family: &NetcheckFamily) -> Option<Check> {
    let mtu = family.mtu.filter(|mtu| *mtu >= ENOUGH)?;
    Some(well(
        "mtu",
        format!("{mtu} bytes reach a gateway over {name}"),
    ))
}

/// Judges what `agentnet dns status` found.
pub(super) fn dns(check: Option<&DnsCheck>) -> Vec<Check> {
    let Some(check) = check else {
        return vec![unknown("names", "not looked at")];
    };
    if check.node.is_none() {
        return vec![unknown("names", "not looked at: no node runs")];
    }
    if check.findings.is_empty() {
        let text = match check.lookups.as_slice() {
            [] => format!("{} owns the host's DNS; no agent to look up", check.owner),
            all => format!(
                "{} of {} names are found, by {}",
                all.len(),
                all.len(),
                check.owner
            ),
        };
        return vec![well("names", text)];
    }
    let findings = check.findings.iter();
    findings
        .map(|finding| of_warning("names", finding))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::api::local::{Dns, NetcheckReach};

    fn warning(code: &str) -> Warning {
        Warning {
            code: code.to_owned(),
            text: "it is so".to_owned(),
            cure: "do this".to_owned(),
        }
    }

    fn netcheck() -> Netcheck {
        Netcheck {
            now: Default::default(),
            daemon: false,
            took_ms: 1.0,
            ipv4: NetcheckFamily::default(),
            ipv6: NetcheckFamily::default(),
            servers: vec![],
            wss: vec![],
            registries: vec![],
            port_mapping: None,
            captive_portal: None,
            proxy: None,
            findings: vec![],
        }
    }

    #[test]
    fn what_hinders_agents_is_broken_and_the_rest_is_odd() {
        for (code, state) in [
            ("udp_blocked", CheckState::Odd),
            ("registry_unreachable", CheckState::Broken),
            ("nat_hard", CheckState::Odd),
            ("of_a_newer_node", CheckState::Broken),
        ] {
            let check = of_warning("network", &warning(code));

            assert_eq!((check.state, check.code.as_deref()), (state, Some(code)));
            assert_eq!(check.cure.as_deref(), Some("do this"));
        }
    }

    #[test]
    fn a_clock_that_is_off_and_a_small_mtu_are_told() {
        let mut check = netcheck();
        check.ipv4.mtu = Some(1300);
        check.findings.push(warning("mtu_small"));
        check.registries.push(NetcheckReach {
            url: "https://r".to_owned(),
            took_ms: Some(1.0),
            proxy: None,
            error: None,
            clock_ahead_s: Some(-30),
        });

        let codes = network(Some(&check));
        let codes = codes.iter().filter_map(|check| check.code.as_deref());

        assert_eq!(codes.collect::<Vec<_>>(), ["mtu_small", "clock_drifts"]);
    }

    #[test]
    fn without_a_node_that_is_what_is_told() {
        let checks = node(None, Some("no daemon answers at /run/x"));

        assert_eq!(checks.len(), 1);
        assert_eq!(checks[0].code.as_deref(), Some("no_node"));
        let nobody = DnsCheck {
            node: None,
            owner: String::new(),
            why: String::new(),
            nameservers: vec![],
            lookups: vec![],
            findings: vec![warning("no_node")],
        };
        assert_eq!(dns(Some(&nobody))[0].state, CheckState::Unknown);
        let somebody = DnsCheck {
            node: Some(Dns::default()),
            ..nobody
        };
        assert_eq!(dns(Some(&somebody))[0].state, CheckState::Broken);
    }
}

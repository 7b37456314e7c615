//! Pure: what was found out by others, as checks.

use std::io::ErrorKind;

use crate::node::doctor::{broken, found, odd, unknown, well};
use crate::os::sandbox::Enforced;
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

/// Judges what the kernel has.
pub(super) fn kernel(release: &str, has_ipv6: bool, landlock: Enforced) -> Check {
    if !has_ipv6 {
        let text = format!("Linux {release} without IPv6");
        let cure = "load the module ipv6, and take ipv6.disable=1 from the kernel's command line";
        return broken("kernel", "no_ipv6", text, cure);
    }
    let landlock = match landlock {
        Enforced::Whole => "landlock",
        Enforced::Mostly => "landlock of an older version",
        Enforced::CapabilitiesOnly => {
            let text = format!(
                "Linux {release} without landlock: nothing but its user keeps files from the daemon"
            );
            let cure = "Linux 5.13 or newer with landlock among its security modules (lsm= of its command line)";
            return odd("kernel", "no_landlock", text, cure);
        }
    };
    well("kernel", format!("Linux {release}, IPv6, {landlock}"))
}

/// Judges why the state directory `shown` cannot be written.
pub(super) fn disk(shown: &str, kind: ErrorKind, text: String) -> Check {
    if [ErrorKind::StorageFull, ErrorKind::QuotaExceeded].contains(&kind) {
        let cure =
            "free some space on that disk; what changes meanwhile is lost when the node stops";
        broken("disk", "disk_full", text, cure)
    } else if kind == ErrorKind::ReadOnlyFilesystem {
        let cure = "mount it for writing (mount -o remount,rw), or name another place with --state";
        broken("disk", "disk_read_only", text, cure)
    } else if kind == ErrorKind::PermissionDenied {
        let text = format!("{shown} is for another user to look at: run as root");
        unknown("disk", text)
    } else if kind == ErrorKind::NotADirectory {
        let cure = "move that file away, or name another place with --state";
        broken("disk", "disk_failed", text, cure)
    } else {
        let cure = "see dmesg, and mend or replace the disk";
        broken("disk", "disk_failed", text, cure)
    }
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
            ("membership_lapses", CheckState::Odd),
            ("membership_lapsed", CheckState::Broken),
            ("revocation_withheld", CheckState::Odd),
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

    fn status(version: &str) -> Status {
        Status {
            version: version.to_owned(),
            now: Default::default(),
            started: Default::default(),
            pid: 7,
            udp: vec![],
            dns: String::new(),
            agents: vec![],
            stun: vec![],
            port_mapping: None,
            nat_mapping: None,
            drops: Default::default(),
            warnings: vec![],
        }
    }

    #[test]
    fn a_node_of_another_version_is_told() {
        let code = |version: &str| node(Some(&status(version)), None)[0].code.clone();

        assert_eq!(code(env!("CARGO_PKG_VERSION")), None);
        assert_eq!(code("0.0.1").as_deref(), Some("version_differs"));
    }

    /// Issue 6, bad input: old kernels.
    #[test]
    fn what_a_kernel_lacks_is_told() {
        for (has_ipv6, landlock, code, state) in [
            (true, Enforced::Whole, None, CheckState::Well),
            (true, Enforced::Mostly, None, CheckState::Well),
            (
                true,
                Enforced::CapabilitiesOnly,
                Some("no_landlock"),
                CheckState::Odd,
            ),
            (false, Enforced::Whole, Some("no_ipv6"), CheckState::Broken),
        ] {
            let check = kernel("4.9", has_ipv6, landlock);

            assert_eq!((check.code.as_deref(), check.state), (code, state));
        }
    }

    #[test]
    fn a_disk_is_judged_by_what_it_says() {
        for (kind, code) in [
            (ErrorKind::StorageFull, Some("disk_full")),
            (ErrorKind::QuotaExceeded, Some("disk_full")),
            (ErrorKind::ReadOnlyFilesystem, Some("disk_read_only")),
            (ErrorKind::NotADirectory, Some("disk_failed")),
            (ErrorKind::Other, Some("disk_failed")),
            (ErrorKind::PermissionDenied, None),
        ] {
            let check = disk("/state", kind, "it is so".to_owned());

            assert_eq!(check.code.as_deref(), code);
            assert_eq!(check.cure.is_some(), code.is_some());
        }
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

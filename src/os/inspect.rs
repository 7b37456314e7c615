//! What of this host stands in the way of agents, found out without changing anything.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use nix::net::if_::if_indextoname;
use rustix::fs::statvfs;
use rustix::thread::{CapabilitySet, capabilities};
use tokio::{process::Command, time::timeout};

use crate::os::files::{FileError, replace};
use crate::os::tun::{self, TunError};

/// Longest wait for another program.
const PATIENCE: Duration = Duration::from_secs(5);

/// A device of this name is there for a moment.
const PROBE: &str = "agnprobe%d";

/// As much as a state of many peers needs while it is written anew.
const TRIAL: usize = 64 * 1024; // bytes

/// Most processes that are looked at.
const MAX_PROCESSES: usize = 65_536;

/// What the kernel's TUN devices can do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TunFeatures {
    pub has_queues: bool,
    /// Segments of TCP as one packet.
    pub has_offload: bool,
    /// Datagrams of UDP too.
    pub has_udp_offload: bool,
}

/// Makes a device and lets it go; tells what it can do.
pub fn tun_features() -> Result<TunFeatures, TunError> {
    let device = tun::create(PROBE, 1500, true, 2)?;
    Ok(TunFeatures {
        has_queues: device.fds.len() > 1,
        has_offload: device.has_header,
        has_udp_offload: device.has_udp_offload,
    })
}

/// Tells whether this process may open the device node of TUN devices.
pub fn may_open_tun() -> bool {
    let mut both = fs::File::options();
    both.read(true).write(true).open("/dev/net/tun").is_ok()
}

/// Tells whether this process may change the network.
pub fn is_network_admin() -> bool {
    let had = capabilities(None);
    had.is_ok_and(|had| had.effective.contains(CapabilitySet::NET_ADMIN))
}

/// Returns the kernel's release, as `6.1.0-18-amd64`.
pub fn kernel() -> String {
    let release = rustix::system::uname();
    release.release().to_string_lossy().into_owned()
}

/// Returns what this machine calls itself.
pub fn host_name() -> String {
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().into_owned()
}

/// Returns the name of the system, as `Debian GNU/Linux 12 (bookworm)` (os-release(5)).
pub fn distribution() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let mut lines = text.lines();
    let name = lines.find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(
        || "unknown".to_owned(),
        |name| name.trim_matches('"').to_owned(),
    )
}

/// Tells whether the kernel drops what comes in by the device when answers would leave by another one.
pub fn filters_strictly(device: u32) -> bool {
    let name = if_indextoname(device).ok();
    let name = name.and_then(|name| name.into_string().ok());
    let conf = Path::new("/proc/sys/net/ipv4/conf");
    let set = |of: &str| {
        let text = fs::read_to_string(conf.join(of).join("rp_filter")).ok()?;
        text.trim().parse::<u8>().ok()
    };
    // The higher one counts, and 2 is loose (Documentation/networking/ip-sysctl.rst).
    name.and_then(|name| set("all").max(set(&name))) == Some(1)
}

/// Tells whether the kernel has IPv6.
pub fn has_ipv6() -> bool {
    Path::new("/proc/net/if_inet6").exists()
}

/// Writes and removes a file in `dir`; returns how many bytes are left for us there.
pub fn disk(dir: &Path) -> Result<u64, FileError> {
    let trial = dir.join(format!(".trial-{}", std::process::id()));
    let written = replace(&trial, &[0; TRIAL]);
    let removed = fs::remove_file(&trial);
    written?;
    let failed = |source: io::Error| FileError::Write {
        path: trial.clone(),
        source,
    };
    removed.map_err(failed)?;
    let space = statvfs(dir).map_err(|error| failed(error.into()))?;
    Ok(space.f_bavail.saturating_mul(space.f_frsize))
}

/// Returns the chains of the host's firewall that drop by default what comes in over IPv6 and have no rule that
/// lets `devices` in, a name or the beginning of one with `*`; None where they cannot be read.
pub async fn closed_chains(devices: &str) -> Option<Vec<String>> {
    let mut found = Vec::new();
    for chain in closed(&nft(&["list", "chains"]).await?) {
        let mut list = vec!["--stateless", "list", "chain"];
        list.extend(chain.split(' '));
        if !nft(&list).await?.lines().any(|rule| lets_in(rule, devices)) {
            found.push(chain);
        }
    }
    Some(found)
}

/// Returns what nft(8) says; None where it cannot be asked.
async fn nft(arguments: &[&str]) -> Option<String> {
    let listed = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output();
    let listed = timeout(PATIENCE, listed).await.ok()?.ok()?;
    let text = String::from_utf8(listed.stdout).ok()?;
    listed.status.success().then_some(text)
}

/// Reads what `nft list chains` prints.
fn closed(text: &str) -> Vec<String> {
    let (mut table, mut chain, mut found) = ("", "", Vec::new());
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("table ") {
            table = name.trim_end_matches(" {");
        } else if let Some(name) = line.strip_prefix("chain ") {
            chain = name.trim_end_matches(" {");
        } else if line.contains(" hook input ") && line.contains("policy drop") {
            // Agents' packets are IPv6; those of IPv4 pass other chains.
            let is_passed = table.starts_with("inet ") || table.starts_with("ip6 ");
            found.extend(is_passed.then(|| format!("{table} {chain}")));
        }
    }
    found
}

/// Tells whether a rule, as nft prints it, accepts all that comes in by `devices`.
fn lets_in(rule: &str, devices: &str) -> bool {
    let rule = rule.split(" comment ").next().unwrap_or(rule);
    let words = rule.split([' ', ',']).map(str::trim);
    let mut words = words.filter(|word| !word.is_empty());
    let named = format!("\"{devices}\"");
    let mut is_named = false;
    words.next() == Some("iifname")
        && words.next_back() == Some("accept")
        && words.all(|word| {
            is_named |= word == named;
            word.starts_with('"') || ["{", "}", "counter"].contains(&word)
        })
        && is_named
}

/// Returns the nodes that run in this process's network namespace, by their numbers.
pub fn nodes() -> Vec<u32> {
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let own = namespace("self");
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let names = entries.flatten().take(MAX_PROCESSES);
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let mut found = names
        .filter_map(|name| {
            let pid = name.parse::<u32>().ok()?;
            let line = fs::read(format!("/proc/{name}/cmdline")).ok()?;
            (is_node(&line) && namespace(&name) == own).then_some(pid)
        })
        .collect::<Vec<_>>();
    found.sort_unstable();
    found
}

/// Tells whether a command line is that of `agentnet up`, whatever its options.
fn is_node(line: &[u8]) -> bool {
    let mut words = line.split(|byte| *byte == 0);
    let program = words.next().map(String::from_utf8_lossy);
    let name = program.map(|program| PathBuf::from(program.into_owned()));
    let is_ours = name.is_some_and(|name| name.file_name().is_some_and(|name| name == "agentnet"));
    is_ours && words.any(|word| word == b"up")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::files::tests::Scratch;

    #[test]
    fn chains_that_drop_what_comes_in_are_found() {
        let text = "table inet filter {\n\tchain input {\n\t\ttype filter hook input priority filter; \
                    policy drop;\n\t}\n\tchain output {\n\t\ttype filter hook output priority filter; \
                    policy drop;\n\t}\n}\ntable ip6 open {\n\tchain in {\n\t\ttype filter hook input \
                    priority filter; policy accept;\n\t}\n}\ntable ip filter {\n\tchain INPUT {\n\t\ttype filter \
                    hook input priority filter; policy drop;\n\t}\n}\n";

        assert_eq!(closed(text), ["inet filter input"]);
        assert!(closed("").is_empty());
    }

    #[test]
    fn a_rule_that_lets_agents_devices_in_is_known() {
        for (rule, is) in [
            ("\t\tiifname \"agn*\" accept", true),
            ("iifname \"agn*\" counter accept comment \"agents\"", true),
            ("iifname { \"lo\", \"agn*\" } accept", true),
            ("iifname \"agn*\" tcp dport 22 accept", false),
            ("iifname \"agn*\" drop", false),
            ("iifname != \"agn*\" accept", false),
            ("oifname \"agn*\" accept", false),
            ("iifname \"lo\" accept", false),
            ("iifname \"lo\" accept comment \"agn*\"", false),
            ("accept", false),
            ("", false),
        ] {
            assert_eq!(lets_in(rule, "agn*"), is, "{rule}");
        }
    }

    #[test]
    fn a_node_is_known_by_its_command_line() {
        for (line, is) in [
            ("/usr/bin/agentnet\0up\0", true),
            ("agentnet\0--json\0up\0--dns\0none\0", true),
            ("agentnet\0status\0", false),
            ("/bin/sh\0-c\0agentnet up\0", false),
            ("agentnet-other\0up\0", false),
            ("", false),
        ] {
            assert_eq!(is_node(line.as_bytes()), is, "{line:?}");
        }
    }

    #[test]
    fn a_trial_leaves_nothing_behind() {
        let dir = Scratch::new("disk");

        assert!(disk(&dir).unwrap() > 0);

        assert_eq!(fs::read_dir(&*dir).unwrap().count(), 0);
        assert!(disk(&dir.join("none")).is_err());
    }
}

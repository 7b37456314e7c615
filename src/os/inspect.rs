//! What of this host stands in the way of agents, found out without changing anything.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

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

/// Returns a setting of the kernel, as `net/ipv4/conf/all/rp_filter`; None where it has none, or it is not
/// for us to read.
pub fn setting(name: &str) -> Option<String> {
    let text = fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?;
    Some(text.trim().to_owned())
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

/// Returns the chains of the host's firewall that drop by default what comes in; None where they cannot be read.
pub async fn closed_chains() -> Option<Vec<String>> {
    let listed = Command::new("nft")
        .args(["list", "chains"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output();
    let listed = timeout(PATIENCE, listed).await.ok()?.ok()?;
    let text = String::from_utf8(listed.stdout).ok()?;
    listed.status.success().then(|| closed(&text))
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
            found.push(format!("{table} {chain}"));
        }
    }
    found
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
                    priority filter; policy accept;\n\t}\n}\n";

        assert_eq!(closed(text), ["inet filter input"]);
        assert!(closed("").is_empty());
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

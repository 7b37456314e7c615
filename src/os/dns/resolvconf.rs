//! The programs called `resolvconf`: they keep a record of each interface and make
//! `/etc/resolv.conf` of them. Ours shall stand alone in it.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use std::{fs, io};

use nix::unistd::Uid;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

use crate::os::dns::Applied;
use crate::os::dns::detect::Flavour;
use crate::os::dns::error::DnsError;
use crate::os::dns::original::read_bounded;
use crate::os::dns::resolv_conf::socket;
use crate::os::dns::settings::Settings;

/// Where the program may be.
const PROGRAMS: [&str; 4] = [
    "/usr/sbin/resolvconf",
    "/sbin/resolvconf",
    "/usr/bin/resolvconf",
    "/usr/local/sbin/resolvconf",
];

/// Where the program and what it calls look for others.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Longest run: it waits 10 s for another of its kind, and restarts local caches.
const PATIENCE: Duration = Duration::from_secs(20);

/// Settings of Debian's that hold beside all records.
const FIXED: [&str; 3] = [
    "/etc/resolvconf/resolv.conf.d/head",
    "/etc/resolvconf/resolv.conf.d/base",
    "/etc/resolvconf/resolv.conf.d/tail",
];

/// Records of interfaces that are read; a host has a few.
const RECORDS: usize = 64;

/// Longest part of its complaint that is passed on.
const COMPLAINT: usize = 300; // bytes

impl Flavour {
    /// Where it keeps its records.
    pub(super) const fn records(self) -> &'static str {
        match self {
            Self::Debian => "/run/resolvconf/interface",
            Self::Openresolv => "/run/resolvconf/interfaces",
        }
    }

    /// Our record. Debian's order puts records of the loopback interface first (interface-order(5)).
    const fn record(self) -> &'static str {
        match self {
            Self::Debian => "lo.agentnet",
            Self::Openresolv => "agentnet",
        }
    }
}

/// Finds out which one is installed; None without one, or where systemd-resolved's stands in its place.
pub(super) fn flavour() -> Option<Flavour> {
    let program = program()?;
    let target = fs::canonicalize(program).ok()?;
    let name = target.file_name()?.to_string_lossy().into_owned();
    if name != "resolvconf" {
        // `resolvectl` does what it is called (resolvectl(1), "Compatibility with resolvconf").
        return None;
    }
    // Both are shell scripts, and only one of them says what it is.
    let text = read_bounded(&target).ok()?;
    let is_openresolv = text.windows(10).any(|part| part == b"openresolv");
    Some(if is_openresolv {
        Flavour::Openresolv
    } else {
        Flavour::Debian
    })
}

fn program() -> Option<&'static Path> {
    let mut places = PROGRAMS.iter().map(Path::new);
    places.find(|place| place.exists())
}

/// Returns what others told it, ours never among them.
pub(super) fn look(flavour: Flavour, own: &[IpAddr]) -> Applied {
    let mut found = Applied::default();
    for path in records(flavour) {
        let settings = Settings::parse(&read_bounded(&path).unwrap_or_default());
        for at in settings.nameservers.iter().filter_map(socket) {
            if !own.contains(&at.ip()) && !found.upstream.contains(&at) {
                found.upstream.push(at);
            }
        }
        for domain in settings.search {
            if !found.search.contains(&domain) {
                found.search.push(domain);
            }
        }
    }
    // A local cache takes its nameservers from here too, us among them: better the ones behind it.
    let is_remote = |at: &SocketAddr| !at.ip().is_loopback();
    if found.upstream.iter().any(is_remote) {
        found.upstream.retain(is_remote);
    }
    found
}

fn records(flavour: Flavour) -> Vec<PathBuf> {
    let folder = fs::read_dir(flavour.records()).into_iter().flatten();
    let names = folder
        .take(RECORDS)
        .filter_map(|entry| Some(entry.ok()?.path()));
    let is_theirs = |path: &PathBuf| path.file_name().is_none_or(|name| name != flavour.record());
    let mut records = names.filter(is_theirs).collect::<Vec<_>>();
    records.sort();
    if flavour == Flavour::Debian {
        records.extend(FIXED.map(PathBuf::from));
    }
    records
}

/// Gives it our record: `nameservers` and `search`.
pub(super) async fn apply(
    flavour: Flavour,
    nameservers: &[IpAddr],
    search: &[String],
) -> Result<(), DnsError> {
    let text = render(nameservers, search);
    let record = flavour.record();
    match flavour {
        Flavour::Debian => run(&["-a", record], &text).await,
        // Exclusive, before all other exclusive ones.
        Flavour::Openresolv => run(&["-x", "-m", "0", "-a", record], &text).await,
    }
}

/// Takes our record back; tells whether there was one.
pub(super) async fn revert() -> Result<bool, DnsError> {
    let mut had = false;
    for flavour in [Flavour::Debian, Flavour::Openresolv] {
        let record = Path::new(flavour.records()).join(flavour.record());
        if !record.exists() {
            continue;
        }
        had = true;
        match flavour {
            Flavour::Debian => run(&["-d", flavour.record()], "").await?,
            Flavour::Openresolv => run(&["-f", "-d", flavour.record()], "").await?,
        }
    }
    Ok(had)
}

/// Tells whether our record is there and says that.
pub(super) fn stands(flavour: Flavour, nameservers: &[IpAddr], search: &[String]) -> bool {
    let record = Path::new(flavour.records()).join(flavour.record());
    let there = Settings::parse(&read_bounded(&record).unwrap_or_default());
    let wanted = Settings::parse(render(nameservers, search).as_bytes());
    there == wanted
}

fn render(nameservers: &[IpAddr], search: &[String]) -> String {
    let mut text = nameservers
        .iter()
        .map(|ip| format!("nameserver {ip}\n"))
        .collect::<String>();
    if !search.is_empty() {
        text.push_str(&format!("search {}\n", search.join(" ")));
    }
    text
}

async fn run(arguments: &[&str], input: &str) -> Result<(), DnsError> {
    if !Uid::effective().is_root() {
        return Err(DnsError::NotRoot);
    }
    let program = program().ok_or(DnsError::NoResolvconf)?;
    let failed = |error: io::Error| DnsError::Resolvconf(error.to_string());
    // What it writes is for everybody, whatever this process keeps to itself.
    let mut child = Command::new("/bin/sh")
        .args(["-c", "umask 022; exec \"$0\" \"$@\""])
        .arg(program)
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    if let Some(mut to) = child.stdin.take() {
        to.write_all(input.as_bytes()).await.map_err(failed)?;
    }
    let ended = timeout(PATIENCE, child.wait_with_output()).await;
    let ended = ended.map_err(|_| DnsError::Resolvconf("it does not end".to_owned()))?;
    let ended = ended.map_err(failed)?;
    if ended.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&ended.stderr);
    let said = said.trim().chars().take(COMPLAINT).collect::<String>();
    Err(DnsError::Resolvconf(format!("{}: {said}", ended.status)))
}

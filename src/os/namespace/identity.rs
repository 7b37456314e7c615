//! Who the caller is inside: itself.

use std::{fs, io, path::PathBuf};

use nix::unistd::{Gid, Pid, Uid};
use rustix::thread::{CapabilitySet, capabilities};

use crate::os::namespace::causes::{Cause, Obstacle};

/// Gives the user namespace of `inside` its identities, by what this process may.
///
/// Root maps everybody to themselves, so that programs that change their user still can. All others
/// map themselves alone, and the rest is nobody there.
pub(super) fn identify(inside: Pid) -> Result<(), Obstacle> {
    if may_map_all() && map_all(inside).is_ok() {
        return Ok(());
    }
    map_self(inside).map_err(|error| {
        let refused = Obstacle::unshare("map this user into its namespace", &error, "/".as_ref());
        if refused.cause != Cause::UserNamespacesDenied || !Uid::effective().is_root() {
            return refused;
        }
        // Linux 5.12 wants it of who maps root, and containers take it away.
        let what = format!("{refused} (root needs CAP_SETFCAP, CAP_SETUID and CAP_SETGID)");
        Obstacle::new(refused.cause, what)
    })
}

fn may_map_all() -> bool {
    let wanted = CapabilitySet::SETUID | CapabilitySet::SETGID | CapabilitySet::SETFCAP;
    capabilities(None).is_ok_and(|sets| sets.effective.contains(wanted))
}

fn map_all(inside: Pid) -> io::Result<()> {
    for map in ["uid_map", "gid_map"] {
        let own = fs::read_to_string(PathBuf::from("/proc/self").join(map))?;
        fs::write(of(inside, map), everybody(&own))?;
    }
    Ok(())
}

/// Returns the map of everybody to themselves, given the map of this namespace.
fn everybody(own: &str) -> String {
    let lines = own.lines().filter_map(|line| {
        let mut fields = line.split_whitespace();
        let (first, _, count) = (fields.next()?, fields.next()?, fields.next()?);
        Some(format!("{first} {first} {count}\n"))
    });
    lines.collect()
}

fn map_self(inside: Pid) -> io::Result<()> {
    let (user, group) = (Uid::effective(), Gid::effective());
    // Written when the maps of everybody were refused halfway.
    let is_mapped = |map| fs::read_to_string(of(inside, map)).is_ok_and(|t| !t.is_empty());
    if !is_mapped("uid_map") {
        fs::write(of(inside, "uid_map"), format!("{user} {user} 1\n"))?;
    }
    // Without it the kernel lets nobody without rights map a group (user_namespaces(7)).
    fs::write(of(inside, "setgroups"), "deny")?;
    fs::write(of(inside, "gid_map"), format!("{group} {group} 1\n"))
}

fn of(inside: Pid, file: &str) -> PathBuf {
    PathBuf::from("/proc").join(inside.to_string()).join(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_is_mapped_to_themselves() {
        let host = "         0          0 4294967295\n";
        let container = "         0       1000          1\n         1     100000      65536\n";

        assert_eq!(everybody(host), "0 0 4294967295\n");
        assert_eq!(everybody(container), "0 0 1\n1 1 65536\n");
    }
}

//! What the program finds in its file system otherwise than its caller does: how names are looked up,
//! and nobody of the host who would look them up elsewhere.

use std::{
    fs, io,
    os::fd::{AsRawFd, OwnedFd},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{OFlag, open},
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::stat::Mode,
};

use crate::os::namespace::causes::Obstacle;
use crate::os::namespace::talk::Furnishing;

/// There on every host that has TUN devices, so something can be mounted on it.
pub const DEVICE_DIR: &str = "/dev/net";

/// The node's socket, as the program finds it.
const API: &str = "agentnet.sock";

/// Where host resolvers and name caches listen: systemd-resolved, nscd and avahi.
const RESOLVERS: [&str; 4] = [
    "/run/systemd/resolve",
    "/run/nscd",
    "/var/run/nscd",
    "/run/avahi-daemon",
];

const RESOLV_CONF: &str = "/etc/resolv.conf";
const NSSWITCH: &str = "/etc/nsswitch.conf";

/// Links followed to the file behind one; as many as the kernel does (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// A place of our own, seen by nobody else, that is gone with its last user.
#[derive(Debug)]
pub(super) struct Workshop {
    /// For what the node must not forget, when it is to be forgotten with it.
    pub(super) state: OwnedFd,
}

fn failed(what: &str, error: impl Into<io::Error>) -> Obstacle {
    Obstacle::unshare(what, &error.into(), Path::new("/"))
}

/// Makes the workshop, in a mount namespace that was just made.
pub(super) fn workshop() -> Result<Workshop, Obstacle> {
    let none = None::<&str>;
    // What the host mounts later still comes here; nothing goes there.
    let slave = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    mount(none, "/", none, slave, none)
        .map_err(|e| failed("take leave of the host's mounts", e))?;
    tmpfs(Path::new(DEVICE_DIR), "mode=0700,size=1g")?;
    let state = Path::new(DEVICE_DIR).join("state");
    let made = || -> io::Result<OwnedFd> {
        for folder in [&state, &Path::new(DEVICE_DIR).join("etc")] {
            fs::DirBuilder::new().mode(0o700).create(folder)?;
        }
        let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        Ok(open(&state, flags, Mode::empty())?)
    };
    let state = made().map_err(|e| failed("make a place in memory", e))?;
    Ok(Workshop { state })
}

/// Puts everything in its place; returns the listening socket for the node's API if one is wanted.
pub(super) fn furnish(with: &Furnishing) -> Result<Option<UnixListener>, Obstacle> {
    for folder in RESOLVERS.map(Path::new) {
        // A link's target is in the list too.
        if folder.is_dir() && !folder.is_symlink() {
            tmpfs(folder, "mode=0755,size=64k")?;
        }
    }
    let resolv_conf = resolv_conf(with);
    match behind(Path::new(RESOLV_CONF)) {
        Some(file) if file.exists() => replace(&file, "resolv.conf", &resolv_conf)?,
        // One of a resolver that is hidden now.
        Some(file) if file.parent().is_some_and(Path::is_dir) && is_hidden(&file) => {
            fs::write(&file, resolv_conf).map_err(|e| failed("write resolv.conf", e))?;
        }
        // The C library then asks this host, and so do others; we answer there.
        Some(_) | None => {}
    }
    if let Ok(text) = fs::read_to_string(NSSWITCH) {
        replace(Path::new(NSSWITCH), "nsswitch.conf", &nsswitch(&text))?;
    }
    if let Some(folder) = &with.hidden {
        tmpfs(Path::new(folder), "mode=0700,size=64k")?;
    }
    let tun = tidy().map_err(|e| failed("put the workshop away", e))?;
    device_dir(&tun, with.has_api).map_err(|e| failed("furnish /dev/net", e))
}

/// Takes the workshop away; returns what names the device node that it covered.
fn tidy() -> io::Result<OwnedFd> {
    umount2(DEVICE_DIR, MntFlags::MNT_DETACH)?;
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    Ok(open(
        &Path::new(DEVICE_DIR).join("tun"),
        flags,
        Mode::empty(),
    )?)
}

/// Makes the program's /dev/net: the device node, and the node's socket.
fn device_dir(tun: &OwnedFd, has_api: bool) -> io::Result<Option<UnixListener>> {
    if !has_api {
        return Ok(None);
    }
    tmpfs(Path::new(DEVICE_DIR), "mode=0755,size=64k").map_err(io::Error::other)?;
    let node = Path::new(DEVICE_DIR).join("tun");
    fs::write(&node, "")?;
    bind(
        &PathBuf::from(format!("/proc/self/fd/{}", tun.as_raw_fd())),
        &node,
    )?;
    let path = Path::new(DEVICE_DIR).join(API);
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
    Ok(Some(listener))
}

/// Returns where the program finds the node's socket.
pub(super) fn api() -> PathBuf {
    Path::new(DEVICE_DIR).join(API)
}

fn tmpfs(folder: &Path, options: &str) -> Result<(), Obstacle> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let flags = if folder == Path::new(DEVICE_DIR) {
        flags.difference(MsFlags::MS_NODEV)
    } else {
        flags
    };
    mount(
        Some("agentnet"),
        folder,
        Some("tmpfs"),
        flags,
        Some(options),
    )
    .map_err(|error| {
        let what = format!("mount on {}", folder.display());
        failed(&what, error)
    })
}

/// Lays a file of ours over one of the host's.
fn replace(file: &Path, name: &str, text: &str) -> Result<(), Obstacle> {
    let ours = Path::new(DEVICE_DIR).join("etc").join(name);
    let laid = || -> io::Result<()> {
        fs::write(&ours, text)?;
        // Read by whatever user the program becomes.
        fs::set_permissions(&ours, fs::Permissions::from_mode(0o644))?;
        bind(&ours, file)
    };
    laid().map_err(|error| failed(&format!("mount on {}", file.display()), error))
}

fn bind(from: &Path, to: &Path) -> io::Result<()> {
    let none = None::<&str>;
    Ok(mount(Some(from), to, none, MsFlags::MS_BIND, none)?)
}

/// Returns the file that links lead to, whether it exists or not; None for a link to itself.
fn behind(file: &Path) -> Option<PathBuf> {
    let mut file = file.to_owned();
    for _ in 0..MAX_LINKS {
        let Ok(link) = fs::read_link(&file) else {
            return Some(file);
        };
        let folder = file.parent().unwrap_or_else(|| Path::new("/"));
        file = folder.join(link);
    }
    None
}

fn is_hidden(file: &Path) -> bool {
    let folder = file.parent().and_then(|folder| folder.canonicalize().ok());
    folder.is_some_and(|folder| RESOLVERS.iter().any(|hidden| folder.starts_with(hidden)))
}

fn resolv_conf(with: &Furnishing) -> String {
    let mut lines = vec![
        "# Written by agentnet run: names of agents are answered here, no others.".to_owned(),
        format!("nameserver {}", with.nameserver),
    ];
    if !with.search.is_empty() {
        lines.push(format!("search {}", with.search.join(" ")));
    }
    lines.push(String::new());
    lines.join("\n")
}

/// Has the C library look names up in files and by DNS, and by nobody of the host.
fn nsswitch(text: &str) -> String {
    let mut lines = Vec::new();
    for line in text.lines() {
        let Some(services) = line.trim_start().strip_prefix("hosts:") else {
            lines.push(line.to_owned());
            continue;
        };
        let own = services.split_whitespace();
        let own = own.filter(|service| *service == "myhostname").take(1);
        let kept = ["files"].into_iter().chain(own).chain(["dns"]);
        lines.push(format!("hosts: {}", kept.collect::<Vec<_>>().join(" ")));
    }
    lines.push(String::new());
    lines.join("\n")
}

impl From<Obstacle> for io::Error {
    fn from(obstacle: Obstacle) -> Self {
        Self::other(obstacle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::files::tests::Scratch;
    use std::os::unix::fs::symlink;

    #[test]
    fn names_are_asked_of_files_and_dns_alone() {
        let host = "passwd: files systemd\n\
            hosts:  mymachines resolve [!UNAVAIL=return] files myhostname dns\nservices: db files\n";

        assert_eq!(
            nsswitch(host),
            "passwd: files systemd\nhosts: files myhostname dns\nservices: db files\n"
        );
        assert_eq!(nsswitch("hosts: files"), "hosts: files dns\n");
        assert_eq!(nsswitch("#hosts: x\n"), "#hosts: x\n");
    }

    #[test]
    fn a_link_is_followed_to_what_need_not_exist() {
        let folder = Scratch::new("behind");
        let link = folder.join("resolv.conf");
        symlink("../nowhere/stub.conf", &link).unwrap();
        let itself = folder.join("loop");
        symlink("loop", &itself).unwrap();

        assert_eq!(behind(&link), Some(folder.join("../nowhere/stub.conf")));
        assert_eq!(behind(&itself), None);
        assert_eq!(behind(&folder.join("none")), Some(folder.join("none")));
    }
}

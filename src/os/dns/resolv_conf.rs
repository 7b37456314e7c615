//! The host's `/etc/resolv.conf`: ours while the daemon runs, exactly what it was before and after.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tracing::{debug, warn};

use crate::os::dns::original::{LONGEST, Original, put, read_bounded, sync_folder};
use crate::os::dns::settings::{Nameserver, Settings, is_ours};
use crate::os::dns::{Applied, Reverted};
use crate::os::files::{FileError, StateFile};

/// Name of the file in the state directory that keeps the original.
const BACKUP: &str = "resolv-conf.json";

/// Version of that file.
const VERSION: u32 = 1;

/// The stub of systemd-resolved. It takes its nameservers from `/etc/resolv.conf`, that is from us.
const STUB: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53));

/// Where systemd-resolved names the nameservers it asks itself (systemd-resolved.service(8)).
const BEHIND_STUB: &str = "/run/systemd/resolve/resolv.conf";

/// Whom the C library asks where no nameserver is named (resolv.conf(5)).
const DEFAULT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

const PORT: u16 = 53;

/// Why the host's DNS settings cannot be changed.
#[derive(Debug, Error)]
pub enum DnsError {
    #[error("cannot change {}", path.display())]
    Unwritable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot read {}", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is no file of at most {LONGEST} bytes", .0.display())]
    NoSettings(PathBuf),
    #[error("{} was written by an agentnet that kept the original in another place", .0.display())]
    Orphan(PathBuf),
    #[error("the original of {} is not to be had", path.display())]
    Backup {
        path: PathBuf,
        #[source]
        source: FileError,
    },
}

impl DnsError {
    /// Says what a person can do about it.
    pub fn cure(&self) -> String {
        match self {
            Self::Unwritable { .. } | Self::Unreadable { .. } | Self::NoSettings(_) => {
                "run as root where the file can be written, or leave it alone: --dns none"
                    .to_owned()
            }
            Self::Orphan(path) => format!(
                "stop the other agentnet first; if there is none, write your nameservers into {}",
                path.display()
            ),
            Self::Backup { source, .. } => source
                .cure()
                .unwrap_or_else(|| "leave the file alone: --dns none".to_owned()),
        }
    }
}

/// The owner of a `resolv.conf`.
#[derive(Clone, Debug)]
pub struct ResolvConf {
    path: PathBuf,
    backup: PathBuf,
    behind_stub: PathBuf,
}

impl ResolvConf {
    /// Takes the file at `path`; its original is kept in `state`, which must exist.
    pub fn new(path: PathBuf, state: &Path) -> Self {
        Self {
            path,
            backup: state.join(BACKUP),
            behind_stub: PathBuf::from(BEHIND_STUB),
        }
    }

    /// Names the file that stands for systemd-resolved's own list of nameservers.
    pub fn behind_stub(self, path: PathBuf) -> Self {
        Self {
            behind_stub: path,
            ..self
        }
    }

    /// Returns what [`Self::apply`] will find, and changes nothing.
    pub fn look(&self, nameservers: &[Ipv6Addr]) -> Result<Applied, DnsError> {
        let (_, kept) = self.kept()?;
        let (_, settings) = self.original(kept.filter(|kept| kept.path == self.path))?;
        Ok(self.applied(settings, nameservers))
    }

    /// Makes programs ask `nameservers` and search `search` first; again after every change.
    pub fn apply(&self, nameservers: &[Ipv6Addr], search: &[String]) -> Result<Applied, DnsError> {
        let (state, mut kept) = self.kept()?;
        if kept.as_ref().is_some_and(|kept| kept.path != self.path) {
            self.revert()?;
            kept = None;
        }
        let (original, settings) = self.original(kept)?;
        let ours = settings.render(nameservers, search, &self.backup.display().to_string());
        let backup = Backup {
            path: self.path.clone(),
            original,
            ours,
        };
        state.save(&backup).map_err(|e| self.backup_error(e))?;
        if let Err(error) = put(&self.path, backup.ours.as_bytes(), backup.original.access()) {
            self.undo(&backup);
            return Err(error);
        }
        Ok(self.applied(settings, nameservers))
    }

    /// Restores the original, unless somebody else changed the file since.
    pub fn revert(&self) -> Result<Reverted, DnsError> {
        let (_, Some(kept)) = self.kept()? else {
            return Ok(Reverted::Nothing);
        };
        let found = Original::read(&kept.path)?;
        let reverted = if found == kept.original {
            Reverted::Restored
        } else if kept.wrote(&found) {
            kept.original.restore(&kept.path)?;
            Reverted::Restored
        } else {
            Reverted::LeftTheirs
        };
        self.forget()?;
        Ok(reverted)
    }

    /// Returns what stands at the path, or stood there before us, and its settings.
    fn original(&self, kept: Option<Backup>) -> Result<(Original, Settings), DnsError> {
        let found = Original::read(&self.path)?;
        let original = match kept {
            // Ours from before, or from a daemon that crashed.
            Some(kept) if kept.wrote(&found) => kept.original,
            Some(_) | None if found.is_ours() => return Err(DnsError::Orphan(self.path.clone())),
            Some(_) | None => found,
        };
        let settings = Settings::parse(&original.text(&self.path)?);
        Ok((original, settings))
    }

    fn applied(&self, settings: Settings, nameservers: &[Ipv6Addr]) -> Applied {
        Applied {
            upstream: self.upstream(&settings, nameservers),
            search: settings.search,
        }
    }

    fn kept(&self) -> Result<(StateFile, Option<Backup>), DnsError> {
        StateFile::open(&self.backup, VERSION).map_err(|e| self.backup_error(e))
    }

    fn forget(&self) -> Result<(), DnsError> {
        let failed = |source| DnsError::Unwritable {
            path: self.backup.clone(),
            source,
        };
        fs::remove_file(&self.backup).map_err(failed)?;
        sync_folder(&self.backup);
        Ok(())
    }

    /// Leaves nothing half done after a failed write.
    fn undo(&self, backup: &Backup) {
        let untouched = |found: &Original| *found == backup.original;
        let is_back = Original::read(&self.path).is_ok_and(|found| untouched(&found))
            || backup.original.restore(&self.path).is_ok();
        // Otherwise the backup stays, for the next start to restore from.
        if is_back && let Err(error) = self.forget() {
            warn!(%error, "A backup of the DNS settings stays behind");
        }
    }

    /// Returns whom to forward to: the saved nameservers, or who stands behind a stub that asks us.
    fn upstream(&self, settings: &Settings, own: &[Ipv6Addr]) -> Vec<SocketAddr> {
        let foreign = |servers: &[Nameserver]| {
            let sockets = servers.iter().filter_map(socket);
            let is_own = |s: &SocketAddr| own.iter().any(|own| s.ip() == *own);
            sockets.filter(|s| !is_own(s)).collect::<Vec<_>>()
        };
        if settings.nameservers.is_empty() {
            return vec![SocketAddr::new(DEFAULT, PORT)];
        }
        let mut servers = foreign(&settings.nameservers);
        if servers.iter().any(|server| server.ip() == STUB) {
            let behind = read_bounded(&self.behind_stub).unwrap_or_default();
            let mut behind = foreign(&Settings::parse(&behind).nameservers);
            behind.retain(|server| server.ip() != STUB);
            if behind.is_empty() {
                debug!("Forwarding to the stub, as it names no nameserver of its own");
            } else {
                servers.retain(|server| server.ip() != STUB);
                servers.extend(behind);
            }
        }
        servers
    }

    fn backup_error(&self, source: FileError) -> DnsError {
        DnsError::Backup {
            path: self.path.clone(),
            source,
        }
    }
}

/// What is kept while the file is ours.
#[derive(Debug, Deserialize, Serialize)]
struct Backup {
    path: PathBuf,
    original: Original,
    /// What we wrote, whole.
    ours: String,
}

impl Backup {
    /// Tells whether `found` is our work: our file, or one half written by us as the daemon died.
    fn wrote(&self, found: &Original) -> bool {
        let Original::File { text, .. } = found else {
            return false;
        };
        let half_restored = match &self.original {
            Original::File { text: whole, .. } => whole.starts_with(text),
            Original::Missing | Original::Symlink { .. } => false,
        };
        is_ours(text) || self.ours.as_bytes().starts_with(text) || half_restored
    }
}

/// Returns where a nameserver listens; None when its interface is not there.
pub(super) fn socket(server: &Nameserver) -> Option<SocketAddr> {
    let (IpAddr::V6(ip), Some(scope)) = (server.address, &server.scope) else {
        return Some(SocketAddr::new(server.address, PORT));
    };
    let index = scope.parse().ok();
    let index = index.or_else(|| nix::net::if_::if_nametoindex(scope.as_str()).ok());
    if index.is_none() {
        warn!(%ip, scope, "Leaving out a nameserver, as its interface is not there");
    }
    Some(SocketAddrV6::new(ip, PORT, 0, index?).into())
}

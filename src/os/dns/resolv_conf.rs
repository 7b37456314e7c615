//! The host's `/etc/resolv.conf`: ours while the daemon runs, exactly what it was before and after.

use std::fs::{self, DirBuilder, Permissions};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::Uid;
use serde::{Deserialize, Serialize};
use tracing::{debug, warn};

use crate::os::dns::error::DnsError;
use crate::os::dns::original::{Original, put, read_bounded, sync_folder};
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

/// The owner of a `resolv.conf`.
#[derive(Clone, Debug)]
pub struct ResolvConf {
    path: PathBuf,
    /// The node's state directory.
    state: PathBuf,
    behind_stub: PathBuf,
}

impl ResolvConf {
    /// Takes the file at `path`; its original is kept in `state`, which must exist.
    pub fn new(path: PathBuf, state: &Path) -> Self {
        Self {
            path,
            state: state.to_owned(),
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
        let backup_at = self.backup();
        if kept.as_ref().is_some_and(|kept| kept.path != self.path) {
            self.revert()?;
            kept = None;
        }
        let (original, settings) = self.original(kept)?;
        let ours = settings.render(nameservers, search, &backup_at.display().to_string());
        let backup = Backup {
            path: self.path.clone(),
            original,
            ours,
        };
        self.make_room()?;
        state.save(&backup).map_err(|e| self.backup_error(e))?;
        self.show()?;
        if let Err(error) = put(&self.path, backup.ours.as_bytes(), backup.original.access()) {
            self.undo(&backup);
            return Err(error);
        }
        Ok(self.applied(settings, nameservers))
    }

    /// Tells whether [`Self::apply`] would change nothing.
    pub fn stands(&self, nameservers: &[Ipv6Addr], search: &[String]) -> Result<bool, DnsError> {
        let (_, kept) = self.kept()?;
        let Some(kept) = kept.filter(|kept| kept.path == self.path) else {
            return Ok(false);
        };
        let found = Original::read(&self.path)?;
        let is_whole =
            matches!(&found, Original::File { text, .. } if *text == kept.ours.as_bytes());
        let (_, settings) = self.original(Some(kept))?;
        let backup = self.backup().display().to_string();
        let ours = settings.render(nameservers, search, &backup);
        Ok(is_whole && matches!(&found, Original::File { text, .. } if *text == ours.as_bytes()))
    }

    /// Returns what stands at the path, ours thought away.
    pub(super) fn without_us(&self) -> Result<Original, DnsError> {
        let (_, kept) = self.kept()?;
        let found = Original::read(&self.path)?;
        match kept.filter(|kept| kept.path == self.path) {
            Some(kept) if kept.wrote(&found) => Ok(kept.original),
            Some(_) | None => Ok(found),
        }
    }

    /// Returns the files that say whom to forward to while ours stands at the path.
    pub(super) fn sources(&self) -> Vec<PathBuf> {
        let mut sources = vec![self.behind_stub.clone()];
        if let Ok(Original::Symlink { target }) = self.without_us() {
            sources.push(self.path.with_file_name("").join(target));
        }
        sources
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
        StateFile::open(&self.backup(), VERSION).map_err(|e| self.backup_error(e))
    }

    /// Returns where the original is kept: in the state directory, or beside it where that is another
    /// user's. Root must not believe what that user may write; he may read what root keeps.
    fn backup(&self) -> PathBuf {
        let beside = self.folder_beside().join(BACKUP);
        let owner = fs::metadata(&self.state).map(|meta| meta.uid());
        let is_foreign = owner.is_ok_and(|uid| uid != Uid::effective().as_raw());
        if is_foreign || beside.exists() {
            return beside;
        }
        self.state.join(BACKUP)
    }

    fn folder_beside(&self) -> PathBuf {
        let mut folder = self.state.clone().into_os_string();
        folder.push("-dns");
        folder.into()
    }

    /// Makes the folder beside the state directory where it is needed.
    fn make_room(&self) -> Result<(), DnsError> {
        let backup = self.backup();
        let folder = self.folder_beside();
        if !backup.starts_with(&folder) {
            return Ok(());
        }
        let made = DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&folder);
        // The umask of a daemon is narrower.
        let made = made.and_then(|()| fs::set_permissions(&folder, Permissions::from_mode(0o755)));
        made.map_err(|source| DnsError::Unwritable {
            path: folder,
            source,
        })
    }

    /// Lets the daemon's user read what root kept.
    fn show(&self) -> Result<(), DnsError> {
        let backup = self.backup();
        if !backup.starts_with(self.folder_beside()) {
            return Ok(());
        }
        let shown = fs::set_permissions(&backup, Permissions::from_mode(0o644));
        shown.map_err(|source| DnsError::Unwritable {
            path: backup,
            source,
        })
    }

    fn forget(&self) -> Result<(), DnsError> {
        let backup = self.backup();
        let failed = |source| DnsError::Unwritable {
            path: backup.clone(),
            source,
        };
        fs::remove_file(&backup).map_err(failed)?;
        sync_folder(&backup);
        // Goes when it was the last in it, and only then.
        if backup.starts_with(self.folder_beside()) {
            drop(fs::remove_dir(self.folder_beside()));
        }
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

//! What stood at the path before us, and how a file there is replaced.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown, symlink};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use tracing::{debug, warn};

use crate::os::dns::error::DnsError;
use crate::os::dns::settings::is_ours;

/// Longest file taken for a resolv.conf; one in use is below 1 KiB.
pub(super) const LONGEST: u64 = 64 * 1024; // bytes

/// Mode of our file where there was none: every program reads it.
const MODE: u32 = 0o644;

/// What stands, or stood, at the path.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub(super) enum Original {
    File {
        #[serde(with = "base64_text")]
        text: Vec<u8>,
        #[serde(flatten)]
        access: Access,
    },
    Missing,
    Symlink {
        target: PathBuf,
    },
}

/// Whose a file is, and who may use it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Access {
    mode: u32,
    uid: u32,
    gid: u32,
}

impl Original {
    pub(super) fn read(path: &Path) -> Result<Self, DnsError> {
        let failed = |source| DnsError::Unreadable {
            path: path.to_owned(),
            source,
        };
        let meta = match fs::symlink_metadata(path) {
            Ok(meta) => meta,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::Missing),
            Err(error) => return Err(failed(error)),
        };
        if meta.is_symlink() {
            let target = fs::read_link(path).map_err(failed)?;
            return Ok(Self::Symlink { target });
        }
        if !meta.is_file() || meta.len() > LONGEST {
            return Err(DnsError::NoSettings(path.to_owned()));
        }
        Ok(Self::File {
            text: read_bounded(path).map_err(failed)?,
            access: Access {
                mode: meta.mode() & 0o7777,
                uid: meta.uid(),
                gid: meta.gid(),
            },
        })
    }

    /// Returns the settings it holds; a symlink's are wherever it leads now.
    pub(super) fn text(&self, path: &Path) -> Result<Vec<u8>, DnsError> {
        match self {
            Self::File { text, .. } => Ok(text.clone()),
            Self::Missing => Ok(Vec::new()),
            Self::Symlink { target } => {
                let target = path.with_file_name("").join(target);
                match read_bounded(&target) {
                    Ok(text) if is_ours(&text) => Err(DnsError::Orphan(target)),
                    Ok(text) => Ok(text),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
                    Err(source) => Err(DnsError::Unreadable {
                        path: target,
                        source,
                    }),
                }
            }
        }
    }

    pub(super) fn is_ours(&self) -> bool {
        match self {
            Self::File { text, .. } => is_ours(text),
            Self::Missing | Self::Symlink { .. } => false,
        }
    }

    pub(super) const fn access(&self) -> Option<Access> {
        match self {
            Self::File { access, .. } => Some(*access),
            Self::Missing | Self::Symlink { .. } => None,
        }
    }

    pub(super) fn restore(&self, path: &Path) -> Result<(), DnsError> {
        let restored = match self {
            Self::File { text, access } => return put(path, text, Some(*access)),
            Self::Missing => fs::remove_file(path),
            Self::Symlink { target } => {
                let beside = beside(path);
                remove(&beside)
                    .and_then(|()| symlink(target, &beside))
                    .and_then(|()| fs::rename(&beside, path))
            }
        };
        restored.map_err(|source| DnsError::Unwritable {
            path: path.to_owned(),
            source,
        })?;
        sync_folder(path);
        Ok(())
    }
}

/// Makes `text` the file at `path`: at once where it can be replaced, else in place, as where it is
/// a mount of its own (containers) or only the file may be written and not its folder.
pub(super) fn put(path: &Path, text: &[u8], access: Option<Access>) -> Result<(), DnsError> {
    let replaced = replace(path, text, access);
    let Err(error) = replaced else {
        return Ok(());
    };
    let in_place_may_work = matches!(
        Errno::from_raw(error.raw_os_error().unwrap_or(0)),
        Errno::EACCES | Errno::EBUSY | Errno::EPERM | Errno::EROFS | Errno::EXDEV
    );
    let written = if in_place_may_work && rewrite(path, text).is_ok() {
        Ok(())
    } else {
        Err(error)
    };
    written.map_err(|source| DnsError::Unwritable {
        path: path.to_owned(),
        source,
    })
}

fn replace(path: &Path, text: &[u8], access: Option<Access>) -> io::Result<()> {
    let beside = beside(path);
    remove(&beside)?;
    let done = write_new(&beside, text, access).and_then(|()| fs::rename(&beside, path));
    if done.is_err() {
        remove(&beside)?;
    }
    done?;
    sync_folder(path);
    Ok(())
}

fn write_new(path: &Path, text: &[u8], access: Option<Access>) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text)?;
    let made = file.metadata()?;
    if let Some(Access { uid, gid, .. }) = access
        && (made.uid(), made.gid()) != (uid, gid)
    {
        // In a user namespace the owner may have no number; its contents matter more.
        if let Err(error) = fchown(&file, Some(uid), Some(gid)) {
            warn!(%error, path = %path.display(), "The owner of the DNS settings changes");
        }
    }
    let mode = access.map_or(MODE, |access| access.mode);
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()
}

/// Writes through the existing file, whose owner, mode and mount stay; never through a symlink.
fn rewrite(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .truncate(true)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path)?;
    file.write_all(text)?;
    file.sync_all()
}

/// Returns the name of the file that is to take the place of `path`.
fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.agentnet"))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Err(_) | Ok(()) => Ok(()),
    }
}

/// Makes a rename or removal last; some file systems cannot, and then it lasts all the same.
pub(super) fn sync_folder(path: &Path) {
    let synced = path
        .parent()
        .map(|p| File::open(p).and_then(|f| f.sync_all()));
    if let Some(Err(error)) = synced {
        debug!(%error, path = %path.display(), "Cannot sync the folder");
    }
}

pub(super) fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(path)?.take(LONGEST).read_to_end(&mut text)?;
    Ok(text)
}

mod base64_text {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(text: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(text))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        STANDARD.decode(text).map_err(D::Error::custom)
    }
}

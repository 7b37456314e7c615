//! Files that must not be lost: written whole or not at all, private, versioned, and never
//! overwritten when they cannot be understood.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, lchown},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use nix::{
    sys::stat::{Mode, umask},
    unistd::geteuid,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;

/// Largest state file: above what the bounded tables of a node need where every statement is as
/// large as can be, or evil peers could keep a revocation from being written.
const MAX_STATE: u64 = 512 * 1024 * 1024; // bytes

/// Largest text given by a person: a token of nested grants, each at most 16 KiB.
const MAX_TEXT: u64 = 256 * 1024; // bytes

/// Why a file cannot be used; the file is left as it is.
#[derive(Debug, Error)]
pub enum FileError {
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is damaged ({why}); it was left as it is", path.display())]
    Damaged { path: PathBuf, why: String },
    #[error("{} has version {found}, this agentnet knows up to {known}; it was left as it is", path.display())]
    Newer {
        path: PathBuf,
        found: u64,
        known: u32,
    },
    #[error("{} is larger than {limit} bytes; it was left as it is", path.display())]
    TooLarge { path: PathBuf, limit: u64 },
    #[error("{} exists already", .0.display())]
    Exists(PathBuf),
}

impl FileError {
    fn read(path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| Self::Read {
            path: path.to_owned(),
            source,
        }
    }

    fn write(path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| Self::Write {
            path: path.to_owned(),
            source,
        }
    }

    /// Says what a person can do about it; None when the cause says it all.
    pub fn cure(&self) -> Option<String> {
        match self {
            Self::Damaged { path, .. } | Self::TooLarge { path, .. } => Some(format!(
                "restore {0} from a backup, or move it away to start anew without what it held: mv {0} {0}.damaged",
                path.display()
            )),
            Self::Newer { .. } => Some("run the newer agentnet that wrote it".to_owned()),
            Self::Read { source, .. } | Self::Write { source, .. } => {
                trouble(source).map(|(_, cure)| cure.to_owned())
            }
            Self::Exists(_) => Some("name another file, or move that one away".to_owned()),
        }
    }

    /// Returns the cause as programs tell it, never renamed; None when it is not one of the disk.
    pub fn code(&self) -> Option<&'static str> {
        match self {
            Self::Read { source, .. } | Self::Write { source, .. } => {
                trouble(source).map(|(code, _)| code)
            }
            Self::Damaged { .. } => Some("state_damaged"),
            Self::Newer { .. } => Some("state_newer"),
            Self::TooLarge { .. } | Self::Exists(_) => None,
        }
    }
}

/// Tells what is the matter with a disk, by a name that stays and its cure; None when it is something else.
pub fn trouble(error: &io::Error) -> Option<(&'static str, &'static str)> {
    if error.kind() == io::ErrorKind::PermissionDenied {
        let cure = "run as the user who owns it, or name another place with --state";
        return Some(("disk_denied", cure));
    }
    if error.kind() == io::ErrorKind::ReadOnlyFilesystem {
        let cure = "mount it for writing (mount -o remount,rw), or name another place with --state";
        return Some(("disk_read_only", cure));
    }
    let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
    full.contains(&error.kind())
        .then_some(("disk_full", "free some space on that disk, and try again"))
}

/// A state file that was read, or found absent, and may therefore be written.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    version: u32,
}

impl StateFile {
    /// Opens the file at `path`; None when there is none yet.
    ///
    /// A file that cannot be understood gives an error and no `StateFile`, so nothing can be saved over it.
    pub fn open<T: DeserializeOwned>(
        path: &Path,
        version: u32,
    ) -> Result<(Self, Option<T>), FileError> {
        let file = Self::at(path, version);
        match read_bounded(path, MAX_STATE) {
            Ok(bytes) => Ok((file, Some(parse(path, version, &bytes)?))),
            Err(FileError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok((file, None))
            }
            Err(error) => Err(error),
        }
    }

    /// Names a file whose contents are not of interest.
    pub fn at(path: &Path, version: u32) -> Self {
        Self {
            path: path.to_owned(),
            version,
        }
    }

    /// Replaces the file's contents whole, mode 0600; after an error the old contents stand.
    pub fn save<T: Serialize>(&self, value: &T) -> Result<(), FileError> {
        let failed = FileError::write(&self.path);
        let versioned = Versioned {
            v: self.version,
            body: value,
        };
        let mut bytes =
            serde_json::to_vec_pretty(&versioned).map_err(|error| failed(error.into()))?;
        bytes.push(b'\n');
        if bytes.len() as u64 > MAX_STATE {
            return Err(FileError::TooLarge {
                path: self.path.clone(),
                limit: MAX_STATE,
            });
        }
        replace(&self.path, &bytes)
    }

    /// Returns where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[derive(Serialize)]
struct Versioned<'a, T> {
    v: u32,
    #[serde(flatten)]
    body: &'a T,
}

#[derive(Deserialize)]
struct Version {
    v: u64,
}

fn parse<T: DeserializeOwned>(path: &Path, version: u32, bytes: &[u8]) -> Result<T, FileError> {
    let damaged = |error: serde_json::Error| FileError::Damaged {
        path: path.to_owned(),
        why: error.to_string(),
    };
    let Version { v } = serde_json::from_slice(bytes).map_err(damaged)?;
    if v > u64::from(version) {
        return Err(FileError::Newer {
            path: path.to_owned(),
            found: v,
            known: version,
        });
    }
    serde_json::from_slice(bytes).map_err(damaged)
}

/// Writes a new private file (a key, a token) whole, or not at all; an existing one is refused.
pub fn create_private(path: &Path, text: &str) -> Result<(), FileError> {
    let failed = FileError::write(path);
    let temporary = write_beside(path, text.as_bytes()).map_err(&failed)?;
    // link(2) refuses an existing target in one step, which rename(2) does not.
    let linked = fs::hard_link(&temporary, path);
    let removed = fs::remove_file(&temporary);
    match linked {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(FileError::Exists(path.to_owned()));
        }
        linked => linked.and(removed).map_err(&failed)?,
    }
    sync_folder_of(path).map_err(failed)
}

/// Replaces the file at `path` whole, mode 0600; after an error the old contents stand.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let failed = FileError::write(path);
    let temporary = write_beside(path, bytes).map_err(&failed)?;
    let handed = hand_over(&temporary);
    if let Err(error) = handed.and_then(|()| fs::rename(&temporary, path)) {
        // The first error is the one to tell.
        drop(fs::remove_file(&temporary));
        return Err(failed(error));
    }
    sync_folder_of(path).map_err(failed)
}

/// Reads a text that a person gave, without the white space around it.
pub fn read_text(path: &Path) -> Result<String, FileError> {
    let bytes = read_bounded(path, MAX_TEXT)?;
    let text = String::from_utf8(bytes).map_err(|_| FileError::Damaged {
        path: path.to_owned(),
        why: "not text".to_owned(),
    })?;
    Ok(text.trim().to_owned())
}

/// Reads a text from `input` within the bound of [`read_text`].
pub fn read_text_from(input: impl Read) -> io::Result<String> {
    let mut text = String::new();
    input.take(MAX_TEXT + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_TEXT {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("more than {MAX_TEXT} bytes"),
        ));
    }
    Ok(text.trim().to_owned())
}

/// Makes a folder and those above it, mode 0700; existing ones stay as they are.
pub fn create_folder(path: &Path) -> Result<(), FileError> {
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .and_then(|()| hand_over(path))
        .map_err(FileError::write(path))
}

/// Gives what root made in somebody's folder to whom the folder belongs: a daemon that runs as another user
/// must be able to read what a command of the administrator left for it.
pub fn hand_over(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    if !geteuid().is_root() {
        return Ok(());
    }
    let owner = fs::metadata(folder.unwrap_or_else(|| Path::new(".")))?;
    if owner.uid() == 0 {
        return Ok(());
    }
    lchown(path, Some(owner.uid()), Some(owner.gid()))
}

/// Keeps what this process creates from now on from everybody but its user, databases included.
pub fn create_private_by_default() {
    umask(Mode::S_IRWXG | Mode::S_IRWXO);
}

fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, FileError> {
    let failed = FileError::read(path);
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(&failed)?;
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > limit {
        return Err(FileError::TooLarge {
            path: path.to_owned(),
            limit,
        });
    }
    Ok(bytes)
}

/// Writes `bytes` to a new file in the folder of `path` and syncs it.
fn write_beside(path: &Path, bytes: &[u8]) -> io::Result<PathBuf> {
    let (temporary, mut file) = create_beside(path)?;
    if let Err(error) = file.write_all(bytes).and_then(|()| file.sync_all()) {
        drop(fs::remove_file(&temporary));
        return Err(error);
    }
    Ok(temporary)
}

/// Creates a private file of a new name; never follows or opens what somebody left there.
fn create_beside(path: &Path) -> io::Result<(PathBuf, File)> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    loop {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut temporary = std::ffi::OsString::from(".");
        temporary.push(name);
        temporary.push(format!(".{}-{n}.tmp", process::id()));
        let temporary = path.with_file_name(temporary);
        match options.open(&temporary) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            opened => return opened.map(|file| (temporary, file)),
        }
    }
}

/// Makes a rename in the folder of `path` survive a power cut.
fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    File::open(folder.unwrap_or_else(|| Path::new(".")))?.sync_all()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::{collections::BTreeMap, ops::Deref, os::unix::fs::PermissionsExt};

    /// A folder of its own for one test, removed at the end.
    pub(crate) struct Scratch(PathBuf);

    impl Scratch {
        pub(crate) fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("agentnet-{name}-{}", process::id()));
            create_folder(&path).unwrap();
            Self(path)
        }
    }

    impl Deref for Scratch {
        type Target = Path;

        fn deref(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            drop(fs::remove_dir_all(&self.0));
        }
    }

    type Facts = BTreeMap<String, String>;

    #[test]
    fn what_was_saved_is_read_back_private_and_versioned() {
        let folder = Scratch::new("files-saved");
        let path = folder.join("state.json");
        let facts = Facts::from([("key".to_owned(), "value".to_owned())]);

        let (file, nothing) = StateFile::open::<Facts>(&path, 1).unwrap();
        assert!(nothing.is_none());
        file.save(&facts).unwrap();
        file.save(&facts).unwrap();

        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("\"v\": 1"), "{text}");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(fs::read_dir(&*folder).unwrap().count(), 1);
        #[derive(Deserialize)]
        struct Read {
            key: String,
        }
        let (_, read) = StateFile::open::<Read>(&path, 1).unwrap();
        assert_eq!(read.unwrap().key, "value");
    }

    #[test]
    fn a_file_not_understood_cannot_be_saved_over() {
        let folder = Scratch::new("files-damaged");
        let path = folder.join("state.json");
        for (text, why) in [
            ("{\"v\":1,", "damaged"),
            ("", "damaged"),
            ("{}", "damaged"),
            ("{\"v\":1,\"key\":7}", "damaged"),
            ("{\"v\":2}", "has version 2"),
        ] {
            fs::write(&path, text).unwrap();

            let error = StateFile::open::<Facts>(&path, 1).unwrap_err();

            let message = error.to_string();
            assert!(
                message.contains(why) && message.contains("state.json"),
                "{message}"
            );
            assert!(error.cure().is_some());
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn a_failed_write_leaves_the_old_contents() {
        let folder = Scratch::new("files-failed");
        let path = folder.join("state.json");
        let (file, _) = StateFile::open::<Facts>(&path, 1).unwrap();
        fs::create_dir(&path).unwrap();

        let error = file.save(&Facts::new()).unwrap_err();

        assert!(matches!(error, FileError::Write { .. }));
        assert_eq!(fs::read_dir(&*folder).unwrap().count(), 1, "no litter");
    }

    #[test]
    fn a_private_file_is_created_once() {
        let folder = Scratch::new("files-private");
        let path = folder.join("token");

        create_private(&path, "secret\n").unwrap();
        let again = create_private(&path, "other").unwrap_err();

        assert!(matches!(again, FileError::Exists(_)));
        assert_eq!(read_text(&path).unwrap(), "secret");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(fs::read_dir(&*folder).unwrap().count(), 1, "no litter");
    }

    #[test]
    fn oversized_text_is_refused() {
        let long = vec![b'a'; usize::try_from(MAX_TEXT).unwrap() + 1];

        assert!(read_text_from(long.as_slice()).is_err());
        assert_eq!(read_text_from(&b" a\n"[..]).unwrap(), "a");
    }
}

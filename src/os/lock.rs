//! One process at a time in a state directory.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process,
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use thiserror::Error;

use crate::os::files::hand_over;

/// Why a state directory cannot be taken.
#[derive(Debug, Error)]
pub enum LockError {
    #[error("{} is in use by {}", dir.display(), holder(*pid))]
    Held {
        dir: PathBuf,
        /// None when the holder did not get to write it.
        pid: Option<u32>,
    },
    #[error("cannot lock {}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

fn holder(pid: Option<u32>) -> String {
    match pid {
        Some(pid) => format!("process {pid}"),
        None => "another process".to_owned(),
    }
}

/// The right to write in a state directory, held until dropped or the process ends.
#[derive(Debug)]
pub struct StateLock(#[expect(dead_code, reason = "held for its Drop")] Flock<File>);

impl StateLock {
    /// Takes the directory; fails at once when another process has it.
    pub fn take(dir: &Path) -> Result<Self, LockError> {
        let path = dir.join("lock");
        let failed = |source: io::Error| LockError::Io {
            path: path.clone(),
            source,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        hand_over(&path).map_err(failed)?;
        let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((mut file, Errno::EWOULDBLOCK)) => {
                return Err(LockError::Held {
                    dir: dir.to_owned(),
                    pid: read_pid(&mut file),
                });
            }
            Err((_, errno)) => return Err(failed(errno.into())),
        };
        write_pid(&mut file).map_err(failed)?;
        Ok(Self(file))
    }
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(20).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn write_pid(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", process::id())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::files::tests::Scratch;

    #[test]
    fn a_directory_is_held_by_one_until_dropped() {
        let dir = Scratch::new("lock");

        let first = StateLock::take(&dir).unwrap();
        let error = StateLock::take(&dir).unwrap_err().to_string();
        assert!(
            error.ends_with(&format!("in use by process {}", process::id())),
            "{error}"
        );
        drop(first);

        assert!(StateLock::take(&dir).is_ok());
    }
}

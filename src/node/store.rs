use std::path::{Path, PathBuf};

use serde::Serialize;
use thiserror::Error;

use crate::engine::membership::State;
use crate::os::{
    files::{FileError, StateFile, create_folder},
    lock::{LockError, StateLock},
};

/// Version of the state file's contents.
pub(super) const VERSION: u32 = 1;

/// Why a state directory cannot be used.
#[derive(Debug, Error)]
pub enum StoreError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Lock(#[from] LockError),
}

/// The state directory of a node, held by this process alone.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    file: StateFile,
    _lock: StateLock,
}

impl Store {
    /// Takes the directory and reads what is kept there; empty on a new one.
    pub fn open(dir: &Path) -> Result<(Self, State), StoreError> {
        create_folder(dir)?;
        let lock = StateLock::take(dir)?;
        let (file, state) = StateFile::open::<State>(&dir.join("state.json"), VERSION)?;
        let store = Self {
            dir: dir.to_owned(),
            file,
            _lock: lock,
        };
        Ok((store, state.unwrap_or_default()))
    }

    /// Writes everything, as a [`State`] reads it, atomically; after an error the old contents stand.
    pub fn save<S: Serialize>(&self, state: &S) -> Result<(), FileError> {
        self.file.save(state)
    }

    /// Returns the directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

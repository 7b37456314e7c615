use std::{
    fs, io,
    path::{Path, PathBuf},
};

use thiserror::Error;

use crate::engine::{
    kept::Kept,
    membership::{Membership, State},
};
use crate::id::OverlayIp;
use crate::os::{
    files::{FileError, StateFile, create_folder},
    lock::{LockError, StateLock},
};

/// Version of the state file's contents.
const VERSION: u32 = 1;

/// Where agents are kept, below the directory.
const AGENTS: &str = "agents";

/// Why a state directory cannot be used.
#[derive(Debug, Error)]
pub enum StoreError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Lock(#[from] LockError),
}

/// The state directory of a node, held by this process alone.
///
/// `state.json` has what outlives agents, and `agents/ADDRESS.json` each agent: what one says is written
/// without the others.
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
        let (file, mut state) = common(dir)?;
        let store = Self {
            dir: dir.to_owned(),
            file,
            _lock: lock,
        };
        create_folder(&store.dir.join(AGENTS))?;
        if !state.memberships.is_empty() {
            // Older versions kept all in one file.
            for membership in &state.memberships {
                store.save_agent(membership)?;
            }
            store.save(&Kept::from(&state))?;
            state.memberships.clear();
        }
        state.memberships = agents(dir)?;
        Ok((store, state))
    }

    /// Writes what is kept beside agents, atomically; after an error the old contents stand.
    pub fn save(&self, kept: &Kept<'_>) -> Result<(), FileError> {
        self.file.save(kept)
    }

    /// Writes what is kept of an agent, atomically; after an error the old contents stand.
    pub fn save_agent(&self, membership: &Membership) -> Result<(), FileError> {
        let Some(address) = membership.address() else {
            return Ok(());
        };
        StateFile::at(&agent_file(&self.dir, address), VERSION).save(membership)
    }

    /// Forgets an agent.
    pub fn remove_agent(&self, address: OverlayIp) -> Result<(), FileError> {
        let path = agent_file(&self.dir, address);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(FileError::Write { path, source })
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Returns the directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

/// Reads what is kept in a directory that another process may hold.
pub fn read(dir: &Path) -> Result<State, FileError> {
    let (_, mut state) = common(dir)?;
    state.memberships.extend(agents(dir)?);
    Ok(state)
}

fn common(dir: &Path) -> Result<(StateFile, State), FileError> {
    let (file, state) = StateFile::open::<State>(&dir.join("state.json"), VERSION)?;
    Ok((file, state.unwrap_or_default()))
}

fn agent_file(dir: &Path, address: OverlayIp) -> PathBuf {
    dir.join(AGENTS).join(format!("{address}.json"))
}

/// Reads all agents; a damaged file is an error and stays as it is.
fn agents(dir: &Path) -> Result<Vec<Membership>, FileError> {
    let folder = dir.join(AGENTS);
    let failed = |source| FileError::Read {
        path: folder.clone(),
        source,
    };
    let entries = match fs::read_dir(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut paths = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<io::Result<Vec<_>>>()
        .map_err(failed)?;
    // What a crash left of a file that was being written has another end.
    paths.retain(|path| path.extension().is_some_and(|end| end == "json"));
    paths.sort_unstable();
    let mut found = Vec::with_capacity(paths.len());
    for path in paths {
        let (_, membership) = StateFile::open::<Membership>(&path, VERSION)?;
        found.extend(membership);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::testing::membership;
    use crate::os::files::tests::Scratch;

    #[test]
    fn agents_are_kept_each_by_itself_and_found_where_older_versions_kept_them() {
        let dir = Scratch::new("store");
        let (one, other) = (membership(10, "a"), membership(11, "b"));
        let old = State {
            memberships: vec![one.clone()],
            ..State::default()
        };
        let (file, _) = common(&dir).unwrap();
        file.save(&old).unwrap();

        let (store, found) = Store::open(&dir).unwrap();
        assert_eq!(found.memberships.len(), 1);
        store.save_agent(&other).unwrap();
        drop(store);
        let (store, found) = Store::open(&dir).unwrap();
        let found = found.memberships.iter().map(Membership::address);
        let found = found.collect::<std::collections::BTreeSet<_>>();
        assert_eq!(found, [one.address(), other.address()].into());
        let (_, beside) = common(&dir).unwrap();
        assert!(beside.memberships.is_empty());

        store.remove_agent(one.address().unwrap()).unwrap();
        // What is gone is gone.
        store.remove_agent(one.address().unwrap()).unwrap();
        assert_eq!(read(&dir).unwrap().memberships.len(), 1);
    }

    #[test]
    fn a_damaged_agent_is_reported_and_left_alone() {
        let dir = Scratch::new("store-damaged");
        let (store, _) = Store::open(&dir).unwrap();
        drop(store);
        let file = dir.join(AGENTS).join("fd00::1.json");
        fs::write(&file, "{ half").unwrap();

        let error = Store::open(&dir).unwrap_err();

        assert!(error.to_string().contains("fd00::1.json"), "{error}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "{ half");
    }
}

//! What a daemon gives up before it begins: files and capabilities that it never needs (landlock(7),
//! capabilities(7)), and rights by programs it might run.
//!
//! All of it is of threads, which hand it on to those they make: it is to be done before there are any.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    thread,
};

use landlock::{
    ABI, Access, AccessFs, BitFlags, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError,
    RulesetStatus, Scope, make_bitflags, path_beneath_rules,
};
use nix::{errno::Errno, sys::prctl::set_no_new_privs, unistd::geteuid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, remove_capability_from_bounding_set,
    set_capabilities,
};
use thiserror::Error;

/// Where people and other services keep what is theirs; nothing there is read unless it is named.
const PRIVATE: [&str; 7] = ["boot", "home", "lost+found", "media", "mnt", "root", "srv"];

/// Devices that daemons use.
const DEVICES: [&str; 3] = ["/dev/net/tun", "/dev/null", "/dev/urandom"];

/// What the kernel is asked to keep from us. Later versions of landlock know more of it.
const KNOWN: ABI = ABI::V6;

/// Why the daemon keeps more rights than it needs.
#[derive(Debug, Error)]
pub enum SandboxError {
    #[error("cannot give capabilities up: {0}")]
    Capabilities(#[source] io::Error),
    #[error("cannot give files up: {0}")]
    Files(#[from] RulesetError),
    #[error("cannot look at the root directory: {0}")]
    Root(#[source] io::Error),
    #[error("cannot give up rights by programs: {0}")]
    Programs(#[source] Errno),
}

/// How much of what was to be given up is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Enforced {
    /// The kernel has no landlock, or does not let us use it.
    CapabilitiesOnly,
    /// The kernel is older than what we know to ask for.
    Mostly,
    Whole,
}

/// What a daemon keeps.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// Files and folders to be read, beside what every program reads.
    pub reads: Vec<PathBuf>,
    /// Those to be written and read. What is not there yet when the daemon begins stays forbidden.
    pub writes: Vec<PathBuf>,
    pub capabilities: CapabilitySet,
    /// Whether other programs may be run.
    pub runs_programs: bool,
}

impl Sandbox {
    /// Gives up everything else, for this thread and those it makes.
    pub fn enter(&self) -> Result<Enforced, SandboxError> {
        set_no_new_privs().map_err(SandboxError::Programs)?;
        self.drop_capabilities()
            .map_err(SandboxError::Capabilities)?;
        self.restrict_files()
    }

    fn restrict_files(&self) -> Result<Enforced, SandboxError> {
        let reading = make_bitflags!(AccessFs::{ReadFile | ReadDir});
        let all = AccessFs::from_all(KNOWN);
        let running = BitFlags::from(AccessFs::Execute);
        let writing = all & !running & !make_bitflags!(AccessFs::{MakeBlock | MakeChar});
        let device = make_bitflags!(AccessFs::{ReadFile | WriteFile | IoctlDev});
        let public = public().map_err(SandboxError::Root)?;
        let more = if self.runs_programs {
            running
        } else {
            BitFlags::EMPTY
        };
        let restricted = Ruleset::default()
            .handle_access(all)?
            .scope(Scope::Signal)?
            .create()?
            // Who is not there is left out.
            .add_rules(path_beneath_rules(&public, reading | more))?
            .add_rules(path_beneath_rules(&self.reads, reading))?
            .add_rules(path_beneath_rules(&self.writes, writing))?
            .add_rules(path_beneath_rules(DEVICES, device))?
            .restrict_self()?;
        Ok(match restricted.ruleset {
            RulesetStatus::FullyEnforced => Enforced::Whole,
            RulesetStatus::PartiallyEnforced => Enforced::Mostly,
            RulesetStatus::NotEnforced => Enforced::CapabilitiesOnly,
        })
    }

    fn drop_capabilities(&self) -> io::Result<()> {
        let kept = self.kept();
        for capability in (CapabilitySet::all() - kept).iter() {
            // One that only root may close, or that the kernel does not know, is not had either.
            remove_capability_from_bounding_set(capability).ok();
        }
        let had = capabilities(None)?;
        let left = CapabilitySets {
            effective: had.effective & kept,
            permitted: had.permitted & kept,
            inheritable: had.inheritable & kept,
        };
        if left == had {
            return Ok(());
        }
        // Those that are ambient go with them (capabilities(7)).
        Ok(set_capabilities(None, left)?)
    }

    fn kept(&self) -> CapabilitySet {
        let mut kept = self.capabilities;
        if geteuid().is_root() && self.writes.iter().any(|path| is_foreign(path)) {
            // Root's right to what is another user's, and to hand over what it makes there.
            kept |= CapabilitySet::CHOWN | CapabilitySet::DAC_OVERRIDE;
        }
        if geteuid().is_root() && self.reads.iter().any(|path| is_foreign(path)) {
            kept |= CapabilitySet::DAC_READ_SEARCH;
        }
        kept
    }
}

/// Finds out how much of what daemons give up this kernel takes from them, without giving anything up.
pub fn offered() -> Result<Enforced, SandboxError> {
    let everything = Sandbox {
        reads: Vec::new(),
        writes: Vec::new(),
        capabilities: CapabilitySet::all(),
        runs_programs: true,
    };
    // It is the thread's, and gone with it.
    let tried = thread::spawn(move || {
        set_no_new_privs().map_err(SandboxError::Programs)?;
        everything.restrict_files()
    });
    tried.join().unwrap_or(Ok(Enforced::CapabilitiesOnly))
}

/// Tells whether a file is another user's than root's.
pub fn is_foreign(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.uid() != 0)
}

/// Returns the folders of the system that are nobody's in particular.
fn public() -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/")? {
        let entry = entry?;
        if !PRIVATE.iter().any(|name| entry.file_name() == *name) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::files::{create_folder, tests::Scratch};
    use rustix::thread::capability_is_in_ambient_set;
    use std::{fs::File, io::ErrorKind, process::Command};

    const fn nothing() -> Sandbox {
        Sandbox {
            reads: Vec::new(),
            writes: Vec::new(),
            capabilities: CapabilitySet::empty(),
            runs_programs: false,
        }
    }

    /// Does `act` in a thread that gave up what `sandbox` says, and gives up with it.
    fn inside<T: Send>(sandbox: &Sandbox, act: impl FnOnce() -> T + Send) -> Option<T> {
        thread::scope(|scope| {
            let thread = scope.spawn(|| match sandbox.enter().unwrap() {
                Enforced::CapabilitiesOnly => None,
                Enforced::Mostly | Enforced::Whole => Some(act()),
            });
            thread.join().unwrap()
        })
    }

    #[test]
    fn what_is_not_named_is_neither_written_nor_run_and_homes_are_not_read() {
        let dir = Scratch::new("sandbox");
        let (mine, other) = (dir.join("mine"), dir.join("other"));
        create_folder(&mine).unwrap();
        create_folder(&other).unwrap();
        fs::write(other.join("public"), "text").unwrap();
        let sandbox = Sandbox {
            writes: vec![mine.clone(), dir.join("absent")],
            ..nothing()
        };

        let done = inside(&sandbox, || {
            let denied = |result: io::Result<()>| {
                result.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
            };
            assert!(fs::write(mine.join("file"), "text").is_ok());
            assert!(fs::rename(mine.join("file"), mine.join("moved")).is_ok());
            assert!(fs::remove_file(mine.join("moved")).is_ok());
            assert_eq!(fs::read_to_string(other.join("public")).unwrap(), "text");
            assert!(denied(fs::write(other.join("public"), "more")));
            assert!(denied(File::create(other.join("new")).map(drop)));
            assert!(denied(fs::remove_file(other.join("public"))));
            assert!(denied(fs::read_dir("/root").map(drop)));
            assert!(denied(Command::new("/bin/true").status().map(drop)));
        });

        if done.is_none() {
            println!("SKIPPED: this kernel has no landlock");
        }
    }

    #[test]
    fn capabilities_that_are_not_named_are_gone_from_every_set() {
        let sandbox = Sandbox {
            capabilities: CapabilitySet::NET_ADMIN,
            ..nothing()
        };
        let had = capabilities(None).unwrap();

        let left = thread::spawn(move || {
            sandbox.enter().unwrap();
            let ambient = CapabilitySet::all().iter();
            let ambient = ambient.filter(|one| capability_is_in_ambient_set(*one).unwrap_or(false));
            (capabilities(None).unwrap(), ambient.collect())
        });
        let (left, ambient): (_, CapabilitySet) = left.join().unwrap();

        let most = CapabilitySet::NET_ADMIN;
        assert_eq!(left.permitted, had.permitted & most);
        assert_eq!(left.effective, had.effective & most);
        assert!(
            most.contains(left.inheritable | ambient),
            "{left:?} {ambient:?}"
        );
    }
}

//! The processes below one, as /proc tells of them.

use std::{fs, path::Path};

use nix::{
    sys::signal::{Signal, kill},
    sys::wait::{WaitPidFlag, WaitStatus, waitpid},
    unistd::{Pid, getpid},
};

/// Rounds in which processes below are looked for; each round ends those that are found, and their
/// children come to us.
const ROUNDS: u32 = 100;

/// Ends every process below this one that `ours` is true of, and those below them.
///
/// This process must be the one that orphans come to (PR_SET_CHILD_SUBREAPER).
pub(super) fn end_all(ours: impl Fn(Pid) -> bool) {
    for _ in 0..ROUNDS {
        let children = children().into_iter().filter(|pid| ours(*pid));
        let children = children.collect::<Vec<_>>();
        if children.is_empty() {
            return;
        }
        for child in &children {
            // It may have ended by itself.
            let _ended = kill(*child, Signal::SIGKILL);
        }
        for child in children {
            let _ended = waitpid(child, None);
        }
    }
}

/// Takes the status of every child that has ended or changed; says so to `changed`.
pub(super) fn reap(mut changed: impl FnMut(WaitStatus)) {
    let flags = WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED | WaitPidFlag::WCONTINUED;
    loop {
        match waitpid(None, Some(flags)) {
            Ok(WaitStatus::StillAlive) | Err(_) => return,
            Ok(status) => changed(status),
        }
    }
}

/// Returns what names the user namespace of a process; None when it is gone or of another user.
pub(super) fn user_namespace(pid: Pid) -> Option<String> {
    let link = fs::read_link(Path::new("/proc").join(pid.to_string()).join("ns/user")).ok()?;
    Some(link.to_string_lossy().into_owned())
}

fn children() -> Vec<Pid> {
    let Ok(all) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let all = all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let me = getpid().as_raw();
    let is_child = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
        stat.is_ok_and(|stat| parent(&stat) == Some(me))
    };
    all.filter(is_child).map(Pid::from_raw).collect()
}

/// Reads the parent from `/proc/PID/stat`; the name before it may hold anything, brackets too.
fn parent(stat: &str) -> Option<i32> {
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_does_not_hide_the_parent() {
        assert_eq!(parent("12 (a) b) S 7 12 12 0"), Some(7));
        assert_eq!(parent("12 (nonsense"), None);
    }

    #[test]
    fn a_child_is_found_and_ended() {
        let child = std::process::Command::new("sleep").arg("1000").spawn();
        let pid = Pid::from_raw(i32::try_from(child.unwrap().id()).unwrap());

        assert!(children().contains(&pid));
        end_all(|found| found == pid);

        assert!(!children().contains(&pid));
    }
}

//! The processes below one, as /proc tells of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    sys::wait::{WaitPidFlag, WaitStatus, waitpid},
    unistd::{Pid, getpid},
};

/// Rounds in which processes below are looked for. One ends what does not multiply; what does is stopped faster
/// than it grows where something limits it, and a limit is what it has reached then.
const ROUNDS: u32 = 1000;

/// How long those are left alone that have been told to end and have not yet.
const PAUSE: Duration = Duration::from_millis(5);

/// Ends every child of this process that `ours` is true of, and all that is below them.
///
/// This process must be the one that orphans come to (PR_SET_CHILD_SUBREAPER).
pub(super) fn end_all(ours: impl Fn(Pid) -> bool) {
    let mut ended = BTreeSet::new();
    for _ in 0..ROUNDS {
        let found = below(&ours);
        if found.is_empty() {
            return;
        }
        let is_new = |process: &Found| process.is_alive && !ended.contains(&process.pid);
        if found.iter().any(|process| process.is_alive) && !found.iter().any(is_new) {
            thread::sleep(PAUSE);
        }
        // Who is ended and not waited for keeps its place under a limit, so that nobody else gets it. The parents
        // of those that still run are among them.
        for process in found.iter().filter(|process| process.is_alive) {
            // It may have ended by itself.
            let _gone = kill(process.pid, Signal::SIGKILL);
            ended.insert(process.pid);
        }
        if found.iter().all(|process| !process.is_alive) {
            // What ended below others comes to us, and is found in the next round.
            for process in found.iter().filter(|process| process.is_child) {
                let _ended = waitpid(process.pid, None);
            }
        }
    }
}

/// A process below this one.
#[derive(Debug)]
struct Found {
    pid: Pid,
    is_child: bool,
    /// Whether it has not ended yet.
    is_alive: bool,
}

/// Returns the children that `ours` is true of, and all that is below them.
fn below(ours: impl Fn(Pid) -> bool) -> Vec<Found> {
    let mut all = BTreeMap::<_, Vec<_>>::new();
    for stat in self::all() {
        all.entry(stat.parent).or_default().push(stat);
    }
    let me = getpid();
    let mut found = Vec::new();
    let mut parents = vec![me];
    while let Some(parent) = parents.pop() {
        let of_parent = all.remove(&parent).unwrap_or_default().into_iter();
        for stat in of_parent.filter(|stat| parent != me || ours(stat.pid)) {
            parents.push(stat.pid);
            found.push(Found {
                pid: stat.pid,
                is_child: parent == me,
                is_alive: stat.is_alive,
            });
        }
    }
    found
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

/// What `/proc/PID/stat` says of a process.
#[derive(Debug, Eq, PartialEq)]
struct Stat {
    pid: Pid,
    parent: Pid,
    is_alive: bool,
}

fn all() -> Vec<Stat> {
    let Ok(all) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let all = all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    all.filter_map(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
        read(Pid::from_raw(pid), &stat.ok()?)
    })
    .collect()
}

/// Reads `/proc/PID/stat`; the name in it may hold anything, brackets too.
fn read(pid: Pid, stat: &str) -> Option<Stat> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    let is_alive = !matches!(fields.next()?, "X" | "Z");
    let parent = Pid::from_raw(fields.next()?.parse().ok()?);
    Some(Stat {
        pid,
        parent,
        is_alive,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_does_not_hide_the_parent() {
        let pid = Pid::from_raw(12);
        let read = |text| read(pid, text).map(|stat| (stat.parent.as_raw(), stat.is_alive));

        assert_eq!(read("12 (a) b) S 7 12 12 0"), Some((7, true)));
        assert_eq!(read("12 (a) Z 7 12 12 0"), Some((7, false)));
        assert_eq!(read("12 (nonsense"), None);
    }

    #[test]
    fn a_child_is_found_and_ended() {
        let mut shell = std::process::Command::new("sh");
        // One below it too, which is not waited for by anybody here.
        let child = shell.args(["-c", "sleep 1000 & wait"]).spawn();
        let pid = Pid::from_raw(i32::try_from(child.unwrap().id()).unwrap());
        let ours = |found: Pid| found == pid;
        while below(ours).len() < 2 {
            thread::yield_now();
        }

        end_all(ours);

        assert!(below(ours).is_empty());
    }
}

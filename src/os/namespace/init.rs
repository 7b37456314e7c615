//! The process inside once the program runs: it waits for it, and ends what it leaves behind.

use std::{
    ffi::OsString,
    io,
    os::fd::OwnedFd,
    process::{Command, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    sys::wait::WaitStatus,
    unistd::{Pid, dup2_stdin, dup2_stdout, getppid},
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, remove_capability_from_bounding_set, set_capabilities,
};
use serde::{Deserialize, Serialize};
use tokio::net::UnixDatagram;
use tokio::signal::unix::{SignalKind, signal};

use crate::os::namespace::causes::Obstacle;
use crate::os::namespace::talk::{self, Order, Report, tell};
use crate::os::namespace::{processes, signals};

/// How the program ended.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Ending {
    Exit(u8),
    /// By the signal of this number.
    Killed(i32),
    /// It could not be started, by the kernel's error number; None when it has none.
    NotStarted(Option<i32>),
}

/// What would let the program out of what was made for it.
const POWERS: [CapabilitySet; 3] = [
    CapabilitySet::NET_ADMIN,
    CapabilitySet::SYS_ADMIN,
    CapabilitySet::SYS_MODULE,
];

/// Starts the program and stays until it and everything it started have ended.
pub(super) async fn run(
    socket: OwnedFd,
    program: &[OsString],
    more: Vec<(String, String)>,
) -> Result<(), Obstacle> {
    let failed = |error: io::Error| Obstacle::os("wait for the program", &error);
    let parent = getppid();
    let mut children = signal(SignalKind::child()).map_err(failed)?;
    // Taken note of and left at that: what comes from the terminal the program gets itself. A
    // handler, unlike a mask, does not pass to the program.
    for heeded in signals::heeded().map_err(failed)? {
        let _stays = signal(SignalKind::from_raw(heeded as i32)).map_err(failed)?;
    }
    drop_powers().map_err(failed)?;
    let socket = talk::listen(socket).map_err(failed)?;
    let child = match start(program, more) {
        Ok(child) => child,
        Err(error) => {
            let ending = Ending::NotStarted(error.raw_os_error());
            return tell(&socket, &Report::Ended(ending), &[]).map_err(failed);
        }
    };
    tell(&socket, &Report::Started, &[]).map_err(failed)?;
    let mut job = Job {
        program: child,
        parent,
        stops: 0,
        is_stopped: false,
    };
    let ended = loop {
        tokio::select! {
            _ = children.recv() => {
                if let Some(ending) = job.changed(&socket) {
                    break Some(ending);
                }
            }
            order = talk::next::<Order>(&socket) => match order {
                Ok(Some(order)) => {
                    // What became of the program meanwhile decides what the order means.
                    if let Some(ending) = job.changed(&socket) {
                        break Some(ending);
                    }
                    job.obey(&order);
                }
                // Whoever started us is gone, and with it the network.
                Ok(None) | Err(_) => break None,
            },
        }
    };
    if ended.is_none() {
        let _ended = kill(child, Signal::SIGKILL);
    }
    // In a network that is gone, what the program left behind is of no use.
    processes::end_all(|_| true);
    if let Some(ending) = ended {
        tell(&socket, &Report::Ended(ending), &[]).map_err(failed)?;
        // The network stays until the node has let go of it, which is when the socket closes.
        while let Ok(Some(_)) = talk::next::<Order>(&socket).await {}
    }
    Ok(())
}

/// Takes away what even a root of this namespace shall not have; needs nothing to be given up twice.
fn drop_powers() -> io::Result<()> {
    for power in POWERS {
        remove_capability_from_bounding_set(power)?;
    }
    // To end processes of other users that a root program may have started.
    let kept = CapabilitySet::KILL;
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    Ok(set_capabilities(None, sets)?)
}

fn start(program: &[OsString], more: Vec<(String, String)>) -> io::Result<Pid> {
    let Some((program, args)) = program.split_first() else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let mut command = Command::new(program);
    let child = command
        .args(args)
        .envs(more)
        .stdin(Stdio::inherit())
        .spawn()?;
    // Ends of pipes that are closed by the program shall be closed.
    let nothing = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    dup2_stdin(&nothing)?;
    dup2_stdout(&nothing)?;
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    Ok(Pid::from_raw(pid))
}

/// The program and the process outside, which stop and go on together.
struct Job {
    program: Pid,
    parent: Pid,
    /// How often the program stopped.
    stops: u64,
    is_stopped: bool,
}

impl Job {
    fn obey(&self, order: &Order) {
        let signal = match order {
            // One of before the last stop comes too late, and a shell continues all of a job itself.
            Order::Continue(stop) if *stop == self.stops && self.is_stopped => Signal::SIGCONT,
            Order::Signal(number) => match Signal::try_from(*number) {
                Ok(signal) => signal,
                Err(_) => return,
            },
            Order::Begin(_)
            | Order::Continue(_)
            | Order::Identified
            | Order::Furnish(_)
            | Order::Start(_) => return,
        };
        // The program may have ended at the same moment.
        let _ended = kill(self.program, signal);
    }

    /// Takes note of what became of children; returns how the program ended, if it did.
    fn changed(&mut self, socket: &UnixDatagram) -> Option<Ending> {
        let mut ended = None;
        processes::reap(|status| match status {
            WaitStatus::Exited(pid, code) if pid == self.program => {
                ended = Some(Ending::Exit(u8::try_from(code).unwrap_or(u8::MAX)));
            }
            WaitStatus::Signaled(pid, signal, _) if pid == self.program => {
                ended = Some(Ending::Killed(signal as i32));
            }
            // Both are done here, so that they are done in this order. (The kernel does not stop the
            // first process, and nobody would continue it.)
            WaitStatus::Stopped(pid, _) if pid == self.program => {
                self.stops += 1;
                self.is_stopped = true;
                drop(tell(socket, &Report::Stopped(self.stops), &[]));
                let _gone = kill(self.parent, Signal::SIGSTOP);
            }
            WaitStatus::Continued(pid) if pid == self.program => {
                self.is_stopped = false;
                let _gone = kill(self.parent, Signal::SIGCONT);
            }
            WaitStatus::Exited(..)
            | WaitStatus::Signaled(..)
            | WaitStatus::Stopped(..)
            | WaitStatus::PtraceEvent(..)
            | WaitStatus::PtraceSyscall(_)
            | WaitStatus::Continued(_)
            | WaitStatus::StillAlive => {}
        });
        ended
    }
}

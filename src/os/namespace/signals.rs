//! Which signals a wrapper takes note of, so that the program it wraps gets them as if it were alone.

use std::{fs, io, os::fd::AsFd};

use nix::sys::prctl::set_dumpable;
use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, getpid, getsid};
use tokio::net::unix::pipe::Receiver;

use crate::os::namespace::processes;

/// What `ssi_code` says of a signal that the kernel sent by itself, as a terminal does (sigaction(2)).
const SI_KERNEL: i32 = 0x80;

/// Length of a `struct signalfd_siginfo`.
const INFO: usize = 128; // bytes

/// What a person, a terminal or a service manager sends to a job.
pub(super) const OF_A_JOB: [Signal; 11] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGALRM,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
    Signal::SIGTSTP,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
];

/// Those of them by which it is asked to end.
const OF_AN_END: [Signal; 4] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
];

/// Returns those of [`OF_A_JOB`] that whoever started us does not ignore: an ignored signal is
/// ignored by the program too (nohup(1)), and needs nothing.
pub(super) fn heeded() -> io::Result<Vec<Signal>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let ignored = ignored(&status);
    let is_heeded = |signal: &Signal| ignored & (1 << (*signal as u32 - 1)) == 0;
    Ok(OF_A_JOB.into_iter().filter(is_heeded).collect())
}

/// The signals of a job, kept from ending this process; threads that are made from now on have them
/// blocked too.
#[derive(Debug)]
pub struct Blocked(SignalFd);

impl Blocked {
    /// Blocks them; processes that are started from now on would inherit it.
    pub fn new() -> io::Result<Self> {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        // It continues this process all the same.
        mask.add(Signal::SIGCONT);
        for signal in heeded()? {
            mask.add(signal);
        }
        mask.thread_block()?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        Ok(Self(SignalFd::with_flags(&mask, flags)?))
    }

    /// Hears of them from now on, on the current tokio runtime.
    pub fn hear(self) -> io::Result<Signals> {
        // This end of a pipe reads any descriptor that can be waited for.
        let signals = self.0.as_fd().try_clone_to_owned()?;
        Ok(Signals(Receiver::from_owned_fd_unchecked(signals)?))
    }
}

/// Tells of signals that came.
#[derive(Debug)]
pub struct Signals(Receiver);

/// A signal that came.
#[derive(Clone, Copy, Debug)]
pub(super) struct Came {
    signal: Signal,
    /// To the whole job at once.
    by_kernel: bool,
    /// Whoever sent it; 0 for the kernel, and for processes that are not seen from here.
    by: i32,
}

impl Came {
    /// Reads a `struct signalfd_siginfo` (signalfd(2)): number, errno, code, sender, and what we do not
    /// need.
    fn of(info: &[u8; INFO]) -> Option<Self> {
        let [signal, _, code, sender, ..] = info.as_chunks::<4>().0 else {
            return None;
        };
        Some(Self {
            signal: Signal::try_from(i32::from_ne_bytes(*signal)).ok()?,
            by_kernel: i32::from_ne_bytes(*code) == SI_KERNEL,
            by: i32::from_ne_bytes(*sender),
        })
    }

    /// Returns it if the program would not get it otherwise; `inside` is who waits for the program.
    pub(super) fn to_pass_on(self, inside: Pid) -> Option<Signal> {
        // When a terminal hangs up, the kernel tells the first process of the session alone.
        let to_us = self.signal == Signal::SIGHUP && getsid(None) == Ok(getpid());
        let has_it = self.by_kernel && !to_us;
        // That the program goes on is where this one comes from.
        let from_it = self.signal == Signal::SIGCONT && self.by == inside.as_raw();
        (!has_it && !from_it).then_some(self.signal)
    }
}

impl Signals {
    /// Waits for one; children that ended are taken note of on the way.
    ///
    /// # Cancel safety
    ///
    /// Safe: one that was not waited for comes the next time.
    pub(super) async fn next(&self) -> Came {
        loop {
            if self.0.readable().await.is_err() {
                // The runtime ends.
                return std::future::pending().await;
            }
            let mut info = [0; INFO];
            match self.0.try_read(&mut info).map(|_| Came::of(&info)) {
                // As process 1 of a container we get everybody's orphans.
                Ok(Some(came)) if came.signal == Signal::SIGCHLD => processes::reap(drop),
                Ok(Some(came)) => return came,
                Ok(None) | Err(_) => {}
            }
        }
    }

    /// Waits until somebody wants this process to end; returns by which signal.
    ///
    /// # Cancel safety
    ///
    /// Safe, but a signal that does not mean to end is forgotten.
    pub async fn asked_to_end(&self) -> i32 {
        loop {
            let came = self.next().await.signal;
            if OF_AN_END.contains(&came) {
                return came as i32;
            }
        }
    }
}

fn ignored(status: &str) -> u64 {
    let mask = status.lines().find_map(|l| l.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or_default()
}

/// Ends this process by `signal`, as the program was: shells tell that apart from an exit code.
///
/// Returns where the kernel does not do so (process 1 of a container).
pub fn end_by(signal: i32) {
    let Ok(signal) = Signal::try_from(signal) else {
        return;
    };
    // Not with a core file: it would hold the agent's keys.
    if set_dumpable(false).is_err() {
        return;
    }
    let mut mask = SigSet::empty();
    mask.add(signal);
    if mask.thread_unblock().is_ok() {
        let _ignored = raise(signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_status() {
        let status = "Name:\tx\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001003\n";

        let mask = ignored(status);

        assert_eq!(mask & (1 << (Signal::SIGHUP as u32 - 1)), 1);
        assert_ne!(mask & (1 << (Signal::SIGINT as u32 - 1)), 0);
        assert_eq!(mask & (1 << (Signal::SIGTERM as u32 - 1)), 0);
        assert_eq!(ignored("nothing"), 0);
    }
}

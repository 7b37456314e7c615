//! The host's network for a program that has an agent's: what leaves its namespace by a second device
//! is read here and said again by sockets of the host (a userspace network stack, as slirp is).
//!
//! Flows begin at the program alone, and nobody of the overlay has a way here: only packets from the
//! program's own end of that device are looked at.

mod datagram;
mod guard;
mod packet;
mod stack;
mod tcp;
mod work;

use std::{
    io,
    os::fd::OwnedFd,
    thread::{Builder, JoinHandle},
};

use nix::sys::eventfd::{EfdFlags, EventFd};
use tracing::warn;

use crate::id::OverlayIp;
use crate::node::host_net::guard::{INSIDE_V4, INSIDE_V6};
use crate::node::host_net::work::Work;
use crate::node::run::RunError;
use crate::os::namespace::{HostRoutes, Told};
use crate::os::{clock, dns, host, random};

pub(super) use stack::MTU;

/// Carries a program's packets to the host's network until it is dropped.
#[derive(Debug)]
pub(super) struct HostNet {
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl HostNet {
    /// Begins with the device `tun`, for the program of the agent at `local`.
    fn start(tun: OwnedFd, local: OverlayIp) -> io::Result<Self> {
        let stop = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC)?;
        let mut work = Work::new(tun, local, random::seed(), clock::now())?;
        work.stop_at(&stop)?;
        let run = move || {
            if let Err(error) = work.run() {
                warn!(%error, "The host's network is not carried any more");
            }
        };
        let thread = Builder::new().name("host-net".to_owned()).spawn(run)?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for HostNet {
    fn drop(&mut self) {
        // It cannot be full: it is written to once.
        let _woken = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// Begins for the program of a namespace, if it has a device for that.
pub(super) fn of(told: &mut Told, local: OverlayIp) -> Result<Option<HostNet>, RunError> {
    let begun = told.host.take().map(|tun| HostNet::start(tun, local));
    begun.transpose().map_err(RunError::HostNet)
}

/// Returns what the program's device is given: a way for each IP version that the host has.
pub(super) fn routes() -> HostRoutes {
    let (v4, v6) = host::families();
    // A host without any may get one later.
    let neither = !v4 && !v6;
    HostRoutes {
        v4: (v4 || neither).then_some(INSIDE_V4),
        v6: (v6 || neither).then_some(INSIDE_V6),
    }
}

/// Returns where short names are looked up: where the agent's are, then where the host's are.
pub(super) fn search(mut of_agent: Vec<String>, is_shared: bool) -> Vec<String> {
    if is_shared {
        let more = dns::search().into_iter();
        let more = more.filter(|domain| !of_agent.contains(domain));
        of_agent.extend(more.collect::<Vec<_>>());
    }
    of_agent
}

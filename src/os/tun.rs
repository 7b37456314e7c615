//! TUN devices: created here, read and written by the data plane.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use nix::errno::Errno;
use thiserror::Error;
use tun_rs::{DeviceBuilder, SyncDevice};

use crate::os::inspect;

/// The kernel takes the first free number for `%d`.
pub const ANY_NAME: &str = "agn%d";

const NODE: &str = "/dev/net/tun";

/// What stops a device from being created.
#[derive(Debug, Error)]
pub enum TunError {
    #[error("not permitted to create a TUN device (needs CAP_NET_ADMIN)")]
    Denied,
    #[error("a network device `{0}` is there already")]
    NameTaken(String),
    #[error("the kernel offers no TUN devices ({NODE} is missing or its module is not loaded)")]
    NoDevice,
    #[error("cannot create a TUN device")]
    Os(#[source] io::Error),
    #[error("not permitted to open {NODE}, by which TUN devices are created")]
    Unopened,
}

/// A TUN device, down and without address; it goes away when its descriptor is closed.
#[derive(Debug)]
pub struct Tun {
    pub name: String,
    pub index: u32,
    /// Its queues, at least one: nonblocking; each read or write is one IP packet. What is written
    /// to one of them has the kernel put the answers into it.
    pub fds: Vec<OwnedFd>,
    /// Whether a `struct virtio_net_hdr` stands before each packet, and TCP segments of one flow
    /// come and go as one packet of up to 64 KiB.
    pub has_header: bool,
    /// Whether UDP datagrams do too.
    pub has_udp_offload: bool,
}

/// Creates a device named `name` (or [`ANY_NAME`]), with offloads where the kernel has them and
/// `offload` asks for them, and with `queues` queues where it has several.
pub fn create(name: &str, mtu: u16, offload: bool, queues: usize) -> Result<Tun, TunError> {
    // tun-rs would make the device node itself; whether there is one is the host's decision.
    if !Path::new(NODE).exists() {
        return Err(TunError::NoDevice);
    }
    let failed = |error: io::Error| classify(name, error);
    // Not brought up here: addresses and settings come first.
    let is_multi = queues > 1;
    let build = |offload| {
        DeviceBuilder::new()
            .name(name)
            .mtu(mtu)
            .offload(offload)
            .multi_queue(is_multi)
            .inherit_enable_state()
            .build_sync()
    };
    let mut device = build(offload);
    if offload && device.as_ref().is_err_and(|e| is_of(e, Errno::EINVAL)) {
        tracing::info!("The kernel's TUN devices have no offloads");
        device = build(false);
    }
    let device = device.map_err(failed)?;
    let mut fds = vec![opened(&device).map_err(failed)?];
    while is_multi && fds.len() < queues {
        match device.try_clone().and_then(|queue| opened(&queue)) {
            Ok(fd) => fds.push(fd),
            Err(error) => {
                tracing::info!(%error, "A TUN device has fewer queues than asked for");
                break;
            }
        }
    }
    Ok(Tun {
        name: device.name().map_err(failed)?,
        index: device.if_index().map_err(failed)?,
        fds,
        has_header: device.tcp_gso(),
        has_udp_offload: device.udp_gso(),
    })
}

fn opened(queue: &SyncDevice) -> io::Result<OwnedFd> {
    queue.set_nonblocking(true)?;
    queue.as_fd().try_clone_to_owned()
}

fn is_of(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno as i32)
}

fn classify(name: &str, error: io::Error) -> TunError {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EPERM | Errno::EACCES) if !inspect::may_open_tun() => TunError::Unopened,
        Some(Errno::EPERM | Errno::EACCES) => TunError::Denied,
        Some(Errno::EBUSY | Errno::EEXIST) => TunError::NameTaken(name.to_owned()),
        Some(Errno::ENOENT | Errno::ENODEV | Errno::ENXIO) => TunError::NoDevice,
        _ => TunError::Os(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_what_is_missing() {
        let of = |errno: Errno| classify("agn0", io::Error::from(errno)).to_string();

        assert!(of(Errno::EPERM).contains("CAP_NET_ADMIN"));
        assert!(of(Errno::EBUSY).contains("agn0"));
        assert!(of(Errno::ENODEV).contains("/dev/net/tun"));
        assert!(of(Errno::EMFILE).contains("cannot create"));
    }
}

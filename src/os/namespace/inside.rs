//! The process inside: makes the namespaces and what is in them, then starts the program.

use std::{
    ffi::OsString,
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use nix::{
    sched::{CloneFlags, unshare},
    sys::prctl::set_child_subreaper,
    unistd::{Gid, dup2_stdin},
};
use rustix::net::{SocketType, sockopt::socket_type};
use tokio::runtime::Builder;

use crate::os::namespace::causes::{Cause, Obstacle};
use crate::os::namespace::init;
use crate::os::namespace::mounts;
use crate::os::namespace::talk::{Furnishing, Order, Report, Wanted, hear, tell};
use crate::os::route::Routing;
use crate::os::tun::{self, Tun};

/// Port of a name server (RFC 1035 section 4.2).
const DNS_PORT: u16 = 53;

/// Has the namespaces around this process made, by whoever started it, and runs `program` in them.
///
/// Whatever happens is told there; an error is for a person who started this by hand.
pub fn run(program: &[OsString]) -> Result<(), Obstacle> {
    let failed = |error: io::Error| Obstacle::os("hear from agentnet run", &error);
    // Standard input is the one descriptor that a program is given without unsafe means.
    let socket = io::stdin().as_fd().try_clone_to_owned().map_err(failed)?;
    if socket_type(&socket).ok() != Some(SocketType::SEQPACKET) {
        let what = "this command is a part of `agentnet run` and not for people";
        return Err(Obstacle::new(Cause::Os, what));
    }
    match serve(&socket, program) {
        Ok(()) => Ok(()),
        Err(obstacle) => {
            // Whoever started us may be gone too.
            drop(tell(&socket, &Report::Failed(obstacle), &[]));
            Ok(())
        }
    }
}

fn serve(socket: &OwnedFd, program: &[OsString]) -> Result<(), Obstacle> {
    let Some((Order::Begin(wanted), fds)) = next(socket)? else {
        return Ok(());
    };
    if let Some(stdin) = fds.first() {
        dup2_stdin(stdin).map_err(|e| Obstacle::os("take standard input", &e.into()))?;
    }
    drop(fds);
    set_child_subreaper(true).map_err(|e| Obstacle::os("take in orphans", &e.into()))?;
    let Some(tun) = separate(socket, wanted)? else {
        return Ok(());
    };
    let Some((Order::Furnish(with), _)) = next(socket)? else {
        return Ok(());
    };
    // One thread: nothing may run beside what makes namespaces.
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Obstacle::os("start", &e))?;
    runtime.block_on(connect(&tun, &with))?;
    let listener = mounts::furnish(&with)?;
    let places = places(&with)?;
    let places = places
        .iter()
        .flat_map(|(udp, tcp)| [udp.as_fd(), tcp.as_fd()]);
    let fds = listener.iter().map(AsFd::as_fd).chain(places);
    report(socket, &Report::Furnished, &fds.collect::<Vec<_>>())?;
    drop(listener);
    let Some((Order::Start(more), _)) = next(socket)? else {
        return Ok(());
    };
    let own = socket.try_clone().map_err(|e| Obstacle::os("start", &e))?;
    runtime.block_on(async { init::run(own, program, more).await })
}

fn next(socket: &OwnedFd) -> Result<Option<(Order, Vec<OwnedFd>)>, Obstacle> {
    hear(socket).map_err(|error| Obstacle::os("hear from agentnet run", &error))
}

fn report(socket: &OwnedFd, what: &Report, fds: &[BorrowedFd<'_>]) -> Result<(), Obstacle> {
    tell(socket, what, fds).map_err(|error| Obstacle::os("tell agentnet run", &error))
}

/// What the program's device for its host's network is called.
const HOST_DEVICE: &str = "host0";

/// A device without its queues, which are elsewhere.
struct Device {
    name: String,
    index: u32,
    /// That of the device for the host's network; None without one.
    host: Option<u32>,
}

/// Makes the namespaces and the device; None when whoever wants it is gone.
fn separate(socket: &OwnedFd, wanted: Wanted) -> Result<Option<Device>, Obstacle> {
    let failed = |what| {
        move |errno: nix::errno::Errno| Obstacle::unshare(what, &errno.into(), Path::new("/"))
    };
    unshare(CloneFlags::CLONE_NEWUSER).map_err(failed("make a user namespace"))?;
    report(socket, &Report::Nameless, &[])?;
    let Some((Order::Identified, _)) = next(socket)? else {
        return Ok(None);
    };
    // Their own is made first, so that it owns these.
    let others = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
    unshare(others).map_err(failed("make network and mount namespaces"))?;
    let tun = tun::create(tun::ANY_NAME, wanted.mtu, wanted.offload, wanted.queues)?;
    let host = wanted
        .host
        .map(|mtu| tun::create(HOST_DEVICE, mtu, false, 1))
        .transpose()?;
    let workshop = mounts::workshop()?;
    let Tun {
        name,
        index,
        fds,
        has_header,
        has_udp_offload,
    } = tun;
    let made = Report::Device {
        name: name.clone(),
        has_header,
        has_udp_offload,
        has_host: host.is_some(),
    };
    let state = workshop.state.as_fd();
    let of_host = host.iter().flat_map(|host| &host.fds);
    let fds = fds.iter().chain(of_host).map(AsFd::as_fd);
    let fds = std::iter::once(state).chain(fds);
    report(socket, &made, &fds.collect::<Vec<_>>())?;
    let host = host.map(|host| host.index);
    Ok(Some(Device { name, index, host }))
}

/// Gives the device its address and the network its routes.
async fn connect(device: &Device, with: &Furnishing) -> Result<(), Obstacle> {
    let routing = Routing::open()?;
    routing.loopback_up().await?;
    routing
        .attach(&device.name, device.index, with.address)
        .await?;
    if let (Some(index), Some(host)) = (device.host, with.host) {
        let addresses = [host.v4.map(IpAddr::V4), host.v6.map(IpAddr::V6)];
        let addresses = addresses.into_iter().flatten().collect::<Vec<_>>();
        routing.lead_out(HOST_DEVICE, index, &addresses).await?;
    }
    let group = Gid::current();
    for (setting, value) in [
        // In a network of its own any program may be the web server.
        ("net/ipv4/ip_unprivileged_port_start", "0".to_owned()),
        // ping(8) without rights, as most hosts allow it.
        ("net/ipv4/ping_group_range", format!("{group} {group}")),
    ] {
        // Where /proc/sys is read-only, as in containers, the kernel's own values stand.
        if let Err(error) = fs::write(Path::new("/proc/sys").join(setting), value) {
            tracing::debug!(%error, setting, "Not set");
        }
    }
    Ok(())
}

/// Opens the places where names are asked for: where `resolv.conf` says, and where programs ask that
/// find none.
fn places(with: &Furnishing) -> Result<Vec<(UdpSocket, TcpListener)>, Obstacle> {
    let bind = |at: SocketAddr| -> io::Result<(UdpSocket, TcpListener)> {
        let (udp, tcp) = (UdpSocket::bind(at)?, TcpListener::bind(at)?);
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        Ok((udp, tcp))
    };
    let ours = SocketAddr::from((with.nameserver, DNS_PORT));
    let usual = SocketAddr::from((Ipv4Addr::LOCALHOST, DNS_PORT));
    let all = [ours, usual]
        .into_iter()
        .map(|at| bind(at).map_err(|error| Obstacle::os(&format!("answer names at {at}"), &error)));
    all.collect()
}

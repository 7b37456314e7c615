//! What the processes outside and inside tell each other: one message a packet, as JSON.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    os::unix::net,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{io::Interest, net::UnixDatagram};

use crate::id::OverlayIp;
use crate::os::namespace::causes::Obstacle;
use crate::os::namespace::init::Ending;
use crate::os::passing;

/// Longest message; names and paths make a few kilobytes.
const LONGEST: usize = 64 * 1024; // bytes

/// What device is wanted.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Wanted {
    pub mtu: u16,
    pub offload: bool,
    pub queues: usize,
    /// Largest packet of a second device, for the host's network; None without one.
    pub host: Option<u16>,
}

/// What the namespaces are furnished with, once it is known who lives there.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Furnishing {
    pub address: OverlayIp,
    /// Where names are asked for: an address of the namespace.
    pub nameserver: Ipv6Addr,
    pub search: Vec<String>,
    /// A directory that the program shall find empty; None hides none.
    pub hidden: Option<String>,
    /// Whether the program finds a socket of the node's.
    pub has_api: bool,
    /// What the device for the host's network is given; None without one.
    pub host: Option<HostRoutes>,
}

/// Where the host's network is for the program: behind a device with these addresses.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct HostRoutes {
    /// None where the host has no IPv4.
    pub v4: Option<Ipv4Addr>,
    /// None where the host has no IPv6.
    pub v6: Option<Ipv6Addr>,
}

/// What the process outside wants.
#[derive(Debug, Deserialize, Serialize)]
pub(super) enum Order {
    /// Make the namespaces; the program's standard input comes with it.
    Begin(Wanted),
    /// The user namespace has its identities.
    Identified,
    Furnish(Furnishing),
    /// Start the program, with these variables more.
    Start(Vec<(String, String)>),
    /// The job was continued after the program's stop of this number.
    Continue(u64),
    /// Pass this signal on.
    Signal(i32),
}

/// What the process inside did.
#[derive(Debug, Deserialize, Serialize)]
pub(super) enum Report {
    /// It is in a user namespace that has no identities yet.
    Nameless,
    /// The device is made; its queues come with this, and a directory that goes with the last
    /// descriptor of it.
    Device {
        name: String,
        has_header: bool,
        has_udp_offload: bool,
        /// Whether the last descriptor is the device for the host's network.
        has_host: bool,
    },
    /// Address, routes and files are there. A UDP and a TCP socket for each place where names are
    /// asked for come with this, and before them a listening one for the node's API if it was wanted.
    Furnished,
    Started,
    /// The program stopped, for the so-manieth time, and this process is stopped next.
    Stopped(u64),
    Ended(Ending),
    Failed(Obstacle),
}

/// Sends one message.
pub(super) fn tell<T: Serialize>(
    socket: impl AsFd,
    message: &T,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > LONGEST {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    passing::send(socket, &bytes, fds).map(drop)
}

/// Receives one message; None when the other end is gone.
pub(super) fn hear<T: DeserializeOwned>(
    socket: impl AsFd,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; LONGEST];
    let mut fds = Vec::new();
    let length = match passing::receive(socket, &mut bytes, &mut fds) {
        Ok(0) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
        received => received?,
    };
    bytes.truncate(length);
    Ok(Some((serde_json::from_slice(&bytes)?, fds)))
}

/// Has the current tokio runtime wait for messages.
pub(super) fn listen(socket: OwnedFd) -> io::Result<UnixDatagram> {
    // Of packets in order too; whoever is connected receives and sends the same way.
    let socket = net::UnixDatagram::from(socket);
    socket.set_nonblocking(true)?;
    UnixDatagram::from_std(socket)
}

/// Waits for the next message; None when the other end is gone.
///
/// # Cancel safety
///
/// Safe: a message that was not waited for comes the next time.
pub(super) async fn next<T: DeserializeOwned>(socket: &UnixDatagram) -> io::Result<Option<T>> {
    let heard = socket.async_io(Interest::READABLE, || hear::<T>(socket));
    Ok(heard.await?.map(|(message, _)| message))
}

use std::{
    io,
    net::{self, SocketAddr},
    os::fd::AsFd,
};

use tokio::{io::Interest, net::UdpSocket};

use crate::os::udp::{Received, UdpPort};

/// A bound socket.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) local: SocketAddr,
    pub(super) udp: UdpPort,
    /// The same socket, as what tells that it is readable.
    pub(super) readiness: UdpSocket,
}

impl Port {
    /// Takes a socket; must be called within a tokio runtime.
    pub(super) fn new(udp: UdpPort, offload: bool) -> io::Result<Self> {
        if !offload {
            udp.forbid_offload();
        }
        udp.merge_received();
        // Agents ask by probes how long a frame may be: one that comes in fragments would mislead them.
        udp.forbid_fragments();
        let same = net::UdpSocket::from(udp.as_fd().try_clone_to_owned()?);
        Ok(Self {
            local: udp.local()?,
            udp,
            readiness: UdpSocket::from_std(same)?,
        })
    }

    pub(super) fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        let receive = || self.udp.recv_many(buffer);
        self.readiness.try_io(Interest::READABLE, receive)
    }
}

//! The sockets from which a gateway answers STUN beside its own, so that a client learns how its NAT
//! behaves (RFC 5780). Nothing else is taken there.

use std::{
    future::poll_fn,
    io,
    net::{IpAddr, SocketAddr},
    task::Poll,
    time::Instant,
};

use crate::gateway::core::Core;
use crate::gateway::port::Port;
use crate::os::udp::{UdpError, bind_at};
use crate::wire::datagram::Datagram;
use crate::wire::drop::DropReason;
use crate::wire::ecn::Ecn;
use crate::wire::stun::Change;

/// Calls that receive from one socket before others have their turn.
const RECEIVES: usize = 16;

/// Which other endpoints there are.
#[derive(Clone, Debug, Default)]
pub struct AlternatesConfig {
    /// None where there are none; with whether the gateway is not to start without it.
    pub port: Option<(u16, bool)>,
    /// At most one of each IP version.
    pub addresses: Vec<IpAddr>,
}

/// Sockets for STUN alone.
#[derive(Debug)]
pub(super) struct Alternates(Vec<(Change, Port)>);

impl Alternates {
    /// Binds what goes with the gateway's own sockets; an error names the endpoint.
    pub(super) fn bind(
        config: &AlternatesConfig,
        own: &[SocketAddr],
    ) -> Result<Self, (SocketAddr, UdpError)> {
        let mut ports = Vec::new();
        let Some((port, is_required)) = config.port else {
            return Ok(Self(ports));
        };
        for at in own {
            let other = config
                .addresses
                .iter()
                .find(|ip| ip.is_ipv4() == at.is_ipv4());
            let address = Change {
                address: true,
                port: false,
            };
            let with_address = other.map(|ip| {
                let at_other = |port| SocketAddr::new(*ip, port);
                [
                    (address, at_other(at.port())),
                    (Change::BOTH, at_other(port)),
                ]
            });
            let with_port = (Change::PORT, SocketAddr::new(at.ip(), port));
            for (place, at) in with_address.into_iter().flatten().chain([with_port]) {
                match listen(at) {
                    Ok(port) => ports.push((place, port)),
                    Err(error) if is_required => return Err((at, error)),
                    Err(error) => tracing::info!(%at, %error, "No second port for STUN"),
                }
            }
        }
        Ok(Self(ports))
    }

    /// Returns all endpoints, the gateway's own among them.
    pub(super) fn endpoints(&self, own: &[SocketAddr]) -> Vec<(Change, SocketAddr)> {
        let others = self.0.iter().map(|(place, port)| (*place, port.local));
        let own = own.iter().map(|at| (Change::NONE, *at));
        own.chain(others).collect()
    }

    /// Returns a socket that has something. Cancel safe: waits only.
    pub(super) async fn readable(&self) -> usize {
        poll_fn(|context| {
            let mut ports = self.0.iter();
            let ready = ports.position(|(_, port)| {
                let ready = port.readiness.poll_recv_ready(context);
                matches!(ready, Poll::Ready(Ok(())))
            });
            ready.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// Takes what a socket has.
    pub(super) fn receive(&self, socket: usize, core: &mut Core, buffer: &mut [u8], now: Instant) {
        let Some((place, port)) = self.0.get(socket) else {
            return;
        };
        for _ in 0..RECEIVES {
            match port.receive(buffer) {
                Ok(received) => {
                    let bytes = buffer.get(..received.length).unwrap_or_default();
                    for datagram in bytes.chunks(received.stride.max(1)) {
                        if Datagram::classify(datagram) == Some(Datagram::Stun) {
                            core.handle_stun(*place, received.from, datagram, now);
                        } else {
                            core.count_unsent(DropReason::DatagramUnknown, 1);
                        }
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // An error about an earlier datagram; the socket goes on.
                Err(error) => tracing::debug!(%error, "Receive error"),
            }
        }
    }

    /// Sends what waits, or counts what the kernel does not take.
    pub(super) fn transmit(&self, core: &mut Core) {
        while let Some((place, to, bytes)) = core.poll_stun() {
            let is_it =
                |(at, port): &&(Change, Port)| *at == place && port.local.is_ipv4() == to.is_ipv4();
            let port = self.0.iter().find(is_it);
            let sent =
                port.map(|(_, port)| port.udp.send_some(&bytes, bytes.len(), to, Ecn::NotEct));
            if !matches!(sent, Some(Ok(_))) {
                core.count_unsent(DropReason::UdpSend, 1);
            }
        }
    }
}

fn listen(at: SocketAddr) -> Result<Port, UdpError> {
    let port = at.port();
    Port::new(bind_at(at)?, true).map_err(|source| UdpError::Os { port, source })
}

//! The addresses of the host's interfaces, and word when they change, by rtnetlink.

use std::{io, net::IpAddr, pin::Pin};

use futures_util::{FutureExt, Stream, StreamExt, TryStreamExt};
use rtnetlink::{
    Handle, MulticastGroup, new_multicast_connection,
    packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope},
};
use thiserror::Error;
use tokio::task::JoinHandle;

/// What stops the interfaces from being followed.
#[derive(Debug, Error)]
pub enum LinkError {
    #[error("cannot open a netlink socket")]
    Socket(#[source] io::Error),
    #[error("cannot list addresses: {0}")]
    List(#[source] rtnetlink::Error),
}

/// A connection that hears of changes in the network namespace it was opened in.
pub struct Links {
    handle: Handle,
    changes: Pin<Box<dyn Stream<Item = ()> + Send + Sync>>,
    connection: JoinHandle<()>,
}

impl std::fmt::Debug for Links {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Links").finish_non_exhaustive()
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Links {
    /// Opens the connection; it lives on the current tokio runtime.
    pub fn open() -> Result<Self, LinkError> {
        let groups = [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
        let (connection, handle, messages) =
            new_multicast_connection(&groups).map_err(LinkError::Socket)?;
        Ok(Self {
            handle,
            changes: Box::pin(messages.map(drop)),
            connection: tokio::spawn(connection),
        })
    }

    /// Returns the addresses others may reach this host at, in order; link-local ones left out.
    pub async fn addresses(&self) -> Result<Vec<IpAddr>, LinkError> {
        let all = self
            .handle
            .address()
            .get()
            .execute()
            .try_collect::<Vec<_>>();
        let all = all.await.map_err(LinkError::List)?;
        let mut found = all.iter().filter_map(reachable).collect::<Vec<_>>();
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// Waits for a change of addresses; false when no more will be heard of.
    ///
    /// # Cancel safety
    ///
    /// Safe: a change that was not waited for is heard of the next time.
    pub async fn changed(&mut self) -> bool {
        self.changes.next().await.is_some()
    }

    /// Forgets the changes heard of and not waited for.
    pub fn forget(&mut self) {
        while self.changes.next().now_or_never().flatten().is_some() {}
    }
}

/// Returns the address if it is in use and means something beyond its link.
fn reachable(message: &AddressMessage) -> Option<IpAddr> {
    let unfit = AddressHeaderFlags::Tentative
        | AddressHeaderFlags::Deprecated
        | AddressHeaderFlags::Dadfailed;
    if message.header.scope != AddressScope::Universe || message.header.flags.intersects(unfit) {
        return None;
    }
    let local = |attribute: &AddressAttribute| {
        if let AddressAttribute::Local(ip) = attribute {
            Some(*ip)
        } else {
            None
        }
    };
    let address = |attribute: &AddressAttribute| {
        if let AddressAttribute::Address(ip) = attribute {
            Some(*ip)
        } else {
            None
        }
    };
    // On a point-to-point link the other end is the address, and ours the local one.
    let all = &message.attributes;
    let own = all.iter().find_map(local);
    own.or_else(|| all.iter().find_map(address))
}

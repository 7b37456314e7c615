//! The addresses of the host's interfaces and its routes, and word when they change, by rtnetlink.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    pin::Pin,
};

use futures_util::{FutureExt, Stream, StreamExt, TryStreamExt, future::ready};
use rtnetlink::{
    Handle, MulticastGroup, RouteMessageBuilder, new_multicast_connection,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope},
        route::RouteMessage,
    },
};
use thiserror::Error;
use tokio::task::JoinHandle;

use crate::os::underlay::Route;

/// Routes that are compared; beyond it, as on a router of the Internet, default routes alone are.
const MAX_ROUTES: usize = 16_384;

/// What stops the interfaces from being followed.
#[derive(Debug, Error)]
pub enum LinkError {
    #[error("cannot open a netlink socket")]
    Socket(#[source] io::Error),
    #[error("cannot list addresses or routes: {0}")]
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
        let groups = [
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv6Route,
            // The kernel says nothing of IPv4 routes that go with their interface.
            MulticastGroup::Link,
        ];
        let (connection, handle, messages) =
            new_multicast_connection(&groups).map_err(LinkError::Socket)?;
        Ok(Self {
            handle,
            changes: Box::pin(messages.filter_map(|(message, _)| ready(may_matter(&message)))),
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

    /// Returns the routes by which datagrams may leave the host.
    pub async fn routes(&self) -> Result<BTreeSet<Route>, LinkError> {
        let mut found = BTreeSet::new();
        let all = [
            RouteMessageBuilder::<Ipv4Addr>::new().build(),
            RouteMessageBuilder::<Ipv6Addr>::new().build(),
        ];
        for version in all {
            let mut routes = self.handle.route().get(version).execute();
            while let Some(message) = routes.try_next().await.map_err(LinkError::List)? {
                let room = found.len() < MAX_ROUTES;
                found.extend(Route::of(&message).filter(|route| room || route.is_default()));
            }
        }
        if found.len() >= MAX_ROUTES {
            found.retain(Route::is_default);
        }
        Ok(found)
    }

    /// Waits for a change of addresses or routes; false when no more will be heard of.
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

/// Tells whether a message is worth a look at all there is; our own routes are not.
fn may_matter(message: &NetlinkMessage<RouteNetlinkMessage>) -> Option<()> {
    let is_foreign = |route: &RouteMessage| Route::of(route).is_some();
    let NetlinkPayload::InnerMessage(inner) = &message.payload else {
        // Such as word that messages were lost.
        return Some(());
    };
    let (RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route)) = inner
    else {
        return Some(());
    };
    is_foreign(route).then_some(())
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

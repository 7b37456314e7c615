//! Addresses and routes of TUN devices, by rtnetlink.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use futures_util::TryStreamExt;
use nix::errno::Errno;
use rtnetlink::{
    Handle, LinkUnspec, RouteMessageBuilder,
    packet_core::ErrorMessage,
    packet_route::{
        address::{AddressAttribute, AddressFlags, AddressMessage},
        link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage},
        route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteType},
    },
};
use thiserror::Error;
use tokio::task::JoinHandle;

use crate::id::{NetworkPrefix, OverlayIp};
use crate::os::sysctl::{self, SysctlError};

mod rules;

pub use rules::Resident;

/// Marks our routes; not in iproute2's list of known protocols.
pub(super) const OURS: RouteProtocol = RouteProtocol::Other(0x61);

/// The kernel's own metric for IPv6 routes; a second agent of the network takes the next free one.
const FIRST_METRIC: u32 = 1024;

/// Agents of one network on one host; each has a route of its own metric.
const MAX_METRICS: u32 = 4096;

/// A busy kernel takes milliseconds; together the tries last five seconds.
const SETTLE_TRIES: u32 = 1000;
const SETTLE_PAUSE: Duration = Duration::from_millis(5);

/// What stops a device from being wired into the host.
#[derive(Debug, Error)]
pub enum RouteError {
    #[error("address {address} is already on device {device}")]
    AddressTaken { address: OverlayIp, device: String },
    #[error("not permitted to configure network devices (needs CAP_NET_ADMIN)")]
    Denied,
    #[error("cannot {what}: {source}")]
    Kernel {
        what: &'static str,
        source: rtnetlink::Error,
    },
    #[error("prefix {prefix} is already routed through device {device}")]
    PrefixRouted {
        prefix: NetworkPrefix,
        device: String,
    },
    #[error("cannot open a netlink socket")]
    Socket(#[source] io::Error),
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    #[error("too many routes for {0}")]
    TooManyRoutes(NetworkPrefix),
    #[error("the kernel has not taken address {0} into use")]
    Unsettled(OverlayIp),
}

/// A connection to the kernel's routing of the namespace it was opened in.
#[derive(Debug)]
pub struct Routing {
    handle: Handle,
    connection: JoinHandle<()>,
}

impl Drop for Routing {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Routing {
    /// Opens the connection; it lives on the current tokio runtime.
    pub fn open() -> Result<Self, RouteError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(RouteError::Socket)?;
        let connection = tokio::spawn(connection);
        Ok(Self { handle, connection })
    }

    /// Brings up the loopback interface, which in a new namespace is down.
    pub async fn loopback_up(&self) -> Result<(), RouteError> {
        let up = LinkUnspec::new_with_name("lo").up().build();
        let done = self.handle.link().set(up).execute().await;
        done.map_err(|e| failed("bring the loopback interface up", e))
    }

    /// Brings up the device with `address` and routes the address's network through it.
    ///
    /// Nothing is changed when the address or the network's prefix belongs to another device. The
    /// kernel takes all of it back when the device goes away.
    pub async fn attach(
        &self,
        device: &str,
        index: u32,
        address: OverlayIp,
    ) -> Result<(), RouteError> {
        let prefix = address.network();
        self.check_address(index, address).await?;
        let taken = self.clear_way(index, prefix).await?;
        self.device_up(device, index).await?;
        self.add_address(index, address).await?;
        self.add_route(index, address, taken).await?;
        self.settled(address).await
    }

    /// Brings up a device that has no addresses but those it is given.
    async fn device_up(&self, device: &str, index: u32) -> Result<(), RouteError> {
        // Works where /proc/sys is read-only; where it fails the sysctl says what is wrong.
        let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        let mode = LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])]);
        let link = LinkUnspec::new_with_index(index).append_extra_attribute(mode);
        if let Err(error) = self.handle.link().set(link.build()).execute().await {
            tracing::debug!(%error, device, "Address generation not set by netlink");
        }
        sysctl::prepare(device)?;
        let up = LinkUnspec::new_with_index(index).up().build();
        let done = self.handle.link().set(up).execute().await;
        done.map_err(|e| failed("bring the device up", e))
    }

    /// Brings up the device with `addresses`, and has it lead to everywhere else in their families.
    pub async fn lead_out(
        &self,
        device: &str,
        index: u32,
        addresses: &[IpAddr],
    ) -> Result<(), RouteError> {
        self.device_up(device, index).await?;
        for address in addresses {
            let length = if address.is_ipv4() { 32 } else { 128 };
            let mut request = self.handle.address().add(index, *address, length);
            if address.is_ipv6() {
                let flags = AddressFlags::Nodad | AddressFlags::Noprefixroute;
                let attributes = &mut request.message_mut().attributes;
                attributes.push(AddressAttribute::Flags(flags));
            }
            let done = request.execute().await;
            done.map_err(|e| failed("add the address", e))?;
            let route = match address {
                IpAddr::V4(address) => RouteMessageBuilder::<Ipv4Addr>::new()
                    .output_interface(index)
                    .pref_source(*address)
                    .protocol(OURS)
                    .build(),
                IpAddr::V6(address) => RouteMessageBuilder::<Ipv6Addr>::new()
                    .output_interface(index)
                    .pref_source(*address)
                    .protocol(OURS)
                    .build(),
            };
            let done = self.handle.route().add(route).execute().await;
            done.map_err(|e| failed("add the route", e))?;
        }
        Ok(())
    }

    /// Removes the network's route and the address from the device.
    pub async fn detach(&self, index: u32, address: OverlayIp) -> Result<(), RouteError> {
        let prefix = address.network();
        for route in self.routes_within(prefix).await? {
            if route.header.protocol == OURS && oif(&route) == Some(index) {
                self.delete_route(route).await?;
            }
        }
        for found in self.addresses(address).await? {
            if found.header.index == index {
                let done = self.handle.address().del(found).execute().await;
                done.map_err(|e| failed("remove the address", e))?;
            }
        }
        Ok(())
    }

    /// Fails where an address or its network belong to another device than `own`; changes nothing.
    pub async fn check(&self, address: OverlayIp, own: Option<&str>) -> Result<(), RouteError> {
        for found in self.addresses(address).await? {
            let device = self.name(found.header.index).await;
            if own != Some(device.as_str()) {
                return Err(RouteError::AddressTaken { address, device });
            }
        }
        let prefix = address.network();
        for route in self.routes_within(prefix).await? {
            if route.header.protocol != OURS {
                let device = self.name(oif(&route).unwrap_or_default()).await;
                return Err(RouteError::PrefixRouted { prefix, device });
            }
        }
        Ok(())
    }

    async fn addresses(&self, address: OverlayIp) -> Result<Vec<AddressMessage>, RouteError> {
        let all = self.handle.address().get();
        let found = all.set_address_filter(address.ip().into()).execute();
        let found = found.try_collect::<Vec<_>>().await;
        found.map_err(|e| failed("list addresses", e))
    }

    async fn check_address(&self, index: u32, address: OverlayIp) -> Result<(), RouteError> {
        for found in self.addresses(address).await? {
            if found.header.index != index {
                let device = self.name(found.header.index).await;
                return Err(RouteError::AddressTaken { address, device });
            }
        }
        Ok(())
    }

    /// Refuses a prefix that another program routes, removes what a crashed daemon left, and
    /// returns the metrics other agents of the network use.
    async fn clear_way(
        &self,
        index: u32,
        prefix: NetworkPrefix,
    ) -> Result<BTreeSet<u32>, RouteError> {
        let mut stale = Vec::new();
        let mut taken = BTreeSet::new();
        for route in self.routes_within(prefix).await? {
            let device = oif(&route).filter(|device| *device != index);
            if route.header.protocol != OURS {
                let device = self.name(oif(&route).unwrap_or_default()).await;
                return Err(RouteError::PrefixRouted { prefix, device });
            }
            match device {
                Some(device) if self.is_running(device).await => taken.extend(metric(&route)),
                Some(_) | None => stale.push(route),
            }
        }
        for route in stale {
            self.delete_route(route).await?;
        }
        Ok(taken)
    }

    async fn add_address(&self, index: u32, address: OverlayIp) -> Result<(), RouteError> {
        // No duplicate can answer on a point-to-point device, and the /64 is routed below.
        let flags = AddressFlags::Nodad | AddressFlags::Noprefixroute;
        let mut request = self.handle.address().add(index, address.ip().into(), 128);
        let attributes = &mut request.message_mut().attributes;
        attributes.push(AddressAttribute::Flags(flags));
        match request.execute().await {
            Err(error) if errno(&error) == Some(Errno::EEXIST) => Ok(()),
            done => done.map_err(|e| failed("add the address", e)),
        }
    }

    /// Waits until packets to `address` reach this host's sockets: the kernel says that the address
    /// is there before it can receive, and loses what comes in between.
    async fn settled(&self, address: OverlayIp) -> Result<(), RouteError> {
        for _ in 0..SETTLE_TRIES {
            let to = RouteMessageBuilder::<Ipv6Addr>::new();
            let to = to.destination_prefix(address.ip(), 128).build();
            let found = self.handle.route().get(to).execute().try_next().await;
            let found = found.map_err(|e| failed("look up the address", e))?;
            if found.is_some_and(|route| route.header.kind == RouteType::Local) {
                return Ok(());
            }
            tokio::time::sleep(SETTLE_PAUSE).await;
        }
        Err(RouteError::Unsettled(address))
    }

    async fn add_route(
        &self,
        index: u32,
        address: OverlayIp,
        taken: BTreeSet<u32>,
    ) -> Result<(), RouteError> {
        let prefix = address.network();
        let free = (FIRST_METRIC..FIRST_METRIC + MAX_METRICS).filter(|m| !taken.contains(m));
        for metric in free {
            let route = RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(prefix.first(), 64)
                .output_interface(index)
                .pref_source(address.ip())
                .priority(metric)
                .protocol(OURS)
                .build();
            match self.handle.route().add(route).execute().await {
                // Another daemon was quicker.
                Err(error) if errno(&error) == Some(Errno::EEXIST) => {}
                done => return done.map_err(|e| failed("add the route", e)),
            }
        }
        Err(RouteError::TooManyRoutes(prefix))
    }

    /// Returns the routes to the prefix or a part of it; wider ones do not compete with ours.
    async fn routes_within(&self, prefix: NetworkPrefix) -> Result<Vec<RouteMessage>, RouteError> {
        let all = RouteMessageBuilder::<Ipv6Addr>::new().build();
        let all = self.handle.route().get(all).execute();
        let mut found = all
            .try_collect::<Vec<_>>()
            .await
            .map_err(|e| failed("list routes", e))?;
        found.retain(|route| {
            let header = &route.header;
            !is_local(header.kind)
                && !header.flags.contains(RouteFlags::Cloned)
                && header.destination_prefix_length >= 64
                && destination(route).is_some_and(|address| prefix.contains(address))
        });
        Ok(found)
    }

    async fn delete_route(&self, route: RouteMessage) -> Result<(), RouteError> {
        match self.handle.route().del(route).execute().await {
            Err(error) if errno(&error) == Some(Errno::ESRCH) => Ok(()),
            done => done.map_err(|e| failed("remove a stale route", e)),
        }
    }

    async fn link(&self, index: u32) -> Option<LinkMessage> {
        let mut links = self.handle.link().get().match_index(index).execute();
        links.try_next().await.ok().flatten()
    }

    /// Returns the device's name; an index without a device is a route to nowhere.
    async fn name(&self, index: u32) -> String {
        let link = self.link(index).await;
        let name = link.and_then(|link| {
            link.attributes.into_iter().find_map(|attribute| {
                if let LinkAttribute::IfName(name) = attribute {
                    Some(name)
                } else {
                    None
                }
            })
        });
        name.unwrap_or_else(|| format!("#{index}"))
    }

    /// Tells whether a program holds the TUN: without one it has no carrier.
    async fn is_running(&self, index: u32) -> bool {
        let link = self.link(index).await;
        link.is_some_and(|link| {
            let flags = link.header.flags;
            flags.contains(LinkFlags::LowerUp) && !flags.contains(LinkFlags::Loopback)
        })
    }
}

/// Tells whether the route is the kernel's own for an address of this host.
const fn is_local(kind: RouteType) -> bool {
    matches!(
        kind,
        RouteType::Local | RouteType::Anycast | RouteType::Multicast
    )
}

fn oif(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| {
        if let RouteAttribute::Oif(index) = attribute {
            Some(*index)
        } else {
            None
        }
    })
}

fn metric(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| {
        if let RouteAttribute::Priority(metric) = attribute {
            Some(*metric)
        } else {
            None
        }
    })
}

fn destination(route: &RouteMessage) -> Option<Ipv6Addr> {
    route.attributes.iter().find_map(|attribute| {
        if let RouteAttribute::Destination(RouteAddress::Inet6(address)) = attribute {
            Some(*address)
        } else {
            None
        }
    })
}

fn failed(what: &'static str, source: rtnetlink::Error) -> RouteError {
    match errno(&source) {
        Some(Errno::EPERM | Errno::EACCES) => RouteError::Denied,
        _ => RouteError::Kernel { what, source },
    }
}

fn errno(error: &rtnetlink::Error) -> Option<Errno> {
    if let rtnetlink::Error::NetlinkError(ErrorMessage {
        code: Some(code), ..
    }) = error
    {
        return Some(Errno::from_raw(-code.get()));
    }
    None
}

//! systemd-resolved: it asks our resolver for agents' names and addresses, and others for all else.

use std::net::Ipv6Addr;

use nix::libc::AF_INET6;
use tracing::debug;
use zbus::OwnedObjectPath;

use crate::os::dns::bus::{Bus, BusError, Object};

/// Its name on the system bus.
pub(super) const SERVICE: &str = "org.freedesktop.resolve1";

/// Its manager (org.freedesktop.resolve1(5)).
pub(super) const MANAGER: Object<'static> = Object {
    service: SERVICE,
    path: "/org/freedesktop/resolve1",
    interface: "org.freedesktop.resolve1.Manager",
};

const LINK: &str = "org.freedesktop.resolve1.Link";

/// What a link is told: whom to ask for which domains, and for nothing else.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Routing {
    pub link: i32,
    pub nameserver: Ipv6Addr,
    /// Without final dots.
    pub domains: Vec<String>,
}

impl Routing {
    fn servers(&self) -> Vec<(i32, Vec<u8>)> {
        vec![(AF_INET6, self.nameserver.octets().to_vec())]
    }

    /// Routing-only domains: names in them are asked here, and none is completed by them.
    fn routes(&self) -> Vec<(String, bool)> {
        self.domains
            .iter()
            .map(|domain| (domain.clone(), true))
            .collect()
    }
}

/// Tells the link of `routing` so.
pub(super) async fn apply(bus: &Bus, routing: &Routing) -> Result<(), BusError> {
    let link = routing.link;
    bus.call(MANAGER, "SetLinkDNS", &(link, routing.servers()))
        .await?;
    bus.call(MANAGER, "SetLinkDomains", &(link, routing.routes()))
        .await?;
    // What lacks in older ones matters less: they are 246 and before.
    for (method, setting) in [
        ("SetLinkLLMNR", "no"),
        ("SetLinkMulticastDNS", "no"),
        // The zone is local and not signed, and the way to it never leaves the host.
        ("SetLinkDNSSEC", "no"),
        ("SetLinkDNSOverTLS", "no"),
    ] {
        if let Err(error) = bus.call(MANAGER, method, &(link, setting)).await {
            debug!(%error, method, "systemd-resolved does not take a setting");
        }
    }
    if let Err(error) = bus
        .call(MANAGER, "SetLinkDefaultRoute", &(link, false))
        .await
    {
        debug!(%error, "systemd-resolved does not take a setting");
    }
    // What was answered before may be an answer of others: that there is no such name.
    if let Err(error) = bus.call(MANAGER, "FlushCaches", &()).await {
        debug!(%error, "systemd-resolved keeps its cache");
    }
    Ok(())
}

/// Tells whether the link is told so now.
pub(super) async fn stands(bus: &Bus, routing: &Routing) -> Result<bool, BusError> {
    let found = bus.call(MANAGER, "GetLink", &routing.link).await?;
    let found = found.body().deserialize::<OwnedObjectPath>();
    let path = found.map_err(|source| BusError::Failed {
        service: SERVICE,
        method: "GetLink",
        source,
    })?;
    let link = Object {
        path: path.as_str(),
        interface: LINK,
        ..MANAGER
    };
    let servers = bus.property::<Vec<(i32, Vec<u8>)>>(link, "DNS").await?;
    let domains = bus.property::<Vec<(String, bool)>>(link, "Domains").await?;
    let plain =
        |(domain, is_route): (String, bool)| (domain.trim_end_matches('.').to_owned(), is_route);
    let domains = domains.into_iter().map(plain).collect::<Vec<_>>();
    let has_all = routing.routes().iter().all(|route| domains.contains(route));
    Ok(servers == routing.servers() && has_all && domains.len() == routing.domains.len())
}

/// Takes everything back that the link was told.
pub(super) async fn revert(bus: &Bus, link: i32) -> Result<(), BusError> {
    bus.call(MANAGER, "RevertLink", &link).await?;
    Ok(())
}

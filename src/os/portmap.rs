//! A UDP port of the host's router that leads to one of this host: by PCP (RFC 6887), NAT-PMP
//! (RFC 6886) or UPnP-IGD, whichever the router has.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    num::NonZeroU16,
    time::Duration,
};

use crab_nat::{InternetProtocol, PortMapping, PortMappingOptions, PortMappingType, TimeoutConfig};
use igd_next::{
    PortMappingProtocol, SearchOptions,
    aio::{
        Gateway,
        tokio::{Tokio, search_gateway},
    },
};
use thiserror::Error;
use tokio::{net::UdpSocket, time::timeout};

/// How long a mapping is asked for; routers may give less.
const LIFETIME: Duration = Duration::from_secs(3600);

/// The same for one that is taken away at once, should that fail: routers take none that is shorter.
const BRIEFLY: Duration = Duration::from_secs(120);

/// What a router that answers at all answers within: three attempts.
const ATTEMPTS: TimeoutConfig = TimeoutConfig {
    initial_timeout: Duration::from_millis(250),
    max_retries: 2,
    max_retry_timeout: None,
};

/// How long a router may take to be found by UPnP, and to do what it is asked.
const SEARCH: Duration = Duration::from_secs(3);
const CALL: Duration = Duration::from_secs(5);

/// Shortest and longest lifetime that is believed.
const SHORTEST: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// How a router was asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Protocol {
    NatPmp,
    Pcp,
    Upnp,
}

impl Protocol {
    /// Returns the protocol's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NatPmp => "nat-pmp",
            Self::Pcp => "pcp",
            Self::Upnp => "upnp-igd",
        }
    }
}

/// Why there is no mapping: what each protocol said.
#[derive(Debug, Error)]
#[error("PCP and NAT-PMP: {pcp}; UPnP: {upnp}")]
pub struct PortMapError {
    pcp: String,
    upnp: String,
}

/// A mapping that is in force at the router.
pub struct Mapping {
    external: SocketAddrV4,
    lifetime: Duration,
    by: By,
}

enum By {
    /// PCP or NAT-PMP.
    Request(PortMapping),
    Upnp {
        router: Box<Gateway<Tokio>>,
        internal: SocketAddr,
    },
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping")
            .field("external", &self.external)
            .field("protocol", &self.protocol())
            .finish_non_exhaustive()
    }
}

/// Has `router` lead a port of its own to UDP port `port` of this host, the same one if it may be.
pub async fn open(router: Ipv4Addr, port: NonZeroU16) -> Result<Mapping, PortMapError> {
    open_for(router, port, LIFETIME).await
}

/// The same to see whether it does: for two minutes, should nobody close it.
pub async fn open_briefly(router: Ipv4Addr, port: NonZeroU16) -> Result<Mapping, PortMapError> {
    open_for(router, port, BRIEFLY).await
}

async fn open_for(
    router: Ipv4Addr,
    port: NonZeroU16,
    lifetime: Duration,
) -> Result<Mapping, PortMapError> {
    let local = match source(router).await {
        Ok(local) => local,
        Err(error) => {
            let (pcp, upnp) = (error.to_string(), error.to_string());
            return Err(PortMapError { pcp, upnp });
        }
    };
    let pcp = match request((router, local), port, lifetime).await {
        Ok(mapping) => return Ok(mapping),
        Err(pcp) => pcp,
    };
    let upnp = timeout(SEARCH + 4 * CALL, upnp((router, local), port, lifetime)).await;
    let upnp = upnp.unwrap_or_else(|_elapsed| Err("no answer in time".to_owned()));
    upnp.map_err(|upnp| PortMapError { pcp, upnp })
}

impl Mapping {
    /// Returns where the router takes datagrams for us.
    pub const fn external(&self) -> SocketAddr {
        SocketAddr::V4(self.external)
    }

    /// Returns how the router was asked.
    pub fn protocol(&self) -> Protocol {
        match &self.by {
            By::Request(mapping) => match mapping.mapping_type() {
                PortMappingType::NatPmp => Protocol::NatPmp,
                PortMappingType::Pcp { .. } => Protocol::Pcp,
            },
            By::Upnp { .. } => Protocol::Upnp,
        }
    }

    /// Returns how long it lasts from when it was made or renewed.
    pub const fn lifetime(&self) -> Duration {
        self.lifetime
    }

    /// Makes it last longer; where it leads from may be another place then.
    pub async fn renew(self) -> Result<Self, PortMapError> {
        match self.by {
            By::Request(mut mapping) => {
                let renewed = mapping.renew().await;
                let renewed = renewed.map_err(|error| error.to_string());
                let made = match renewed {
                    Ok(()) => made(mapping).await,
                    Err(error) => Err(error),
                };
                made.map_err(|pcp| PortMapError {
                    pcp,
                    upnp: "not asked".to_owned(),
                })
            }
            By::Upnp { router, internal } => {
                let port = self.external.port();
                let renewed = timeout(CALL * 2, add(&router, internal, port, self.lifetime)).await;
                let renewed =
                    renewed.unwrap_or_else(|_elapsed| Err("no answer in time".to_owned()));
                let external = renewed.map_err(|upnp| PortMapError {
                    pcp: "not asked".to_owned(),
                    upnp,
                })?;
                Ok(Self {
                    external,
                    lifetime: self.lifetime,
                    by: By::Upnp { router, internal },
                })
            }
        }
    }

    /// Takes it away; a router that does not answer forgets it when its time is over.
    pub async fn close(self) {
        match self.by {
            By::Request(mapping) => {
                if let Err((error, _)) = mapping.try_drop().await {
                    tracing::debug!(%error, "Port mapping not taken away");
                }
            }
            By::Upnp { router, .. } => {
                let port = self.external.port();
                let removed = router.remove_port(PortMappingProtocol::UDP, port);
                match timeout(CALL, removed).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::debug!(%error, "Port mapping not taken away"),
                    Err(_elapsed) => tracing::debug!("Port mapping not taken away in time"),
                }
            }
        }
    }
}

/// Returns the address by which this host speaks to the router.
pub async fn source(router: Ipv4Addr) -> std::io::Result<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    // Sends nothing: the kernel chooses a route and so a source.
    socket.connect((router, crab_nat::GATEWAY_PORT)).await?;
    match socket.local_addr()?.ip() {
        IpAddr::V4(ip) => Ok(ip),
        IpAddr::V6(_) => Err(std::io::ErrorKind::AddrNotAvailable.into()),
    }
}

async fn request(
    (router, local): (Ipv4Addr, Ipv4Addr),
    port: NonZeroU16,
    lifetime: Duration,
) -> Result<Mapping, String> {
    let options = PortMappingOptions {
        external_port: Some(port),
        lifetime_seconds: u32::try_from(lifetime.as_secs()).ok(),
        timeout_config: Some(ATTEMPTS),
    };
    let udp = InternetProtocol::Udp;
    let pcp = PortMapping::new(router.into(), local.into(), udp, port, options).await;
    let mapping = match pcp {
        Ok(mapping) => mapping,
        // Some routers with NAT-PMP alone answer PCP wrongly or not at all.
        Err(pcp) => crab_nat::natpmp::port_mapping(router.into(), udp, port, options)
            .await
            .map_err(|nat_pmp| format!("{pcp}, {nat_pmp}"))?,
    };
    made(mapping).await
}

async fn made(mapping: PortMapping) -> Result<Mapping, String> {
    let ip = match mapping.mapping_type() {
        PortMappingType::NatPmp => {
            let asked = crab_nat::natpmp::external_address(mapping.gateway(), Some(ATTEMPTS));
            IpAddr::V4(asked.await.map_err(|error| error.to_string())?)
        }
        PortMappingType::Pcp { external_ip, .. } => external_ip,
    };
    Ok(Mapping {
        external: external(ip, mapping.external_port().get())?,
        lifetime: believed(u64::from(mapping.lifetime())),
        by: By::Request(mapping),
    })
}

async fn upnp(
    (router, local): (Ipv4Addr, Ipv4Addr),
    port: NonZeroU16,
    lifetime: Duration,
) -> Result<Mapping, String> {
    let mut options = SearchOptions::default();
    options.bind_addr = SocketAddr::from((local, 0));
    options.timeout = Some(SEARCH);
    options.single_search_timeout = Some(SEARCH);
    let found = search_gateway(options).await.map_err(|e| e.to_string())?;
    // Whoever else on the link says it is a router is none of ours.
    if found.addr.ip() != IpAddr::V4(router) {
        return Err(format!(
            "{} answered, which is not the router",
            found.addr.ip()
        ));
    }
    let internal = SocketAddr::from((local, port.get()));
    let external = add(&found, internal, port.get(), lifetime).await?;
    Ok(Mapping {
        external,
        lifetime,
        by: By::Upnp {
            router: Box::new(found),
            internal,
        },
    })
}

/// Maps `port` of the router, or another one if it does not give that.
async fn add(
    router: &Gateway<Tokio>,
    internal: SocketAddr,
    port: u16,
    lifetime: Duration,
) -> Result<SocketAddrV4, String> {
    let (udp, name) = (PortMappingProtocol::UDP, "agentnet");
    let seconds = u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX);
    let ip = router.get_external_ip().await.map_err(|e| e.to_string())?;
    let same = router.add_port(udp, port, internal, seconds, name).await;
    let port = match same {
        Ok(()) => port,
        Err(_refused) => {
            let other = router.add_any_port(udp, internal, seconds, name);
            other.await.map_err(|error| error.to_string())?
        }
    };
    external(ip, port)
}

fn external(ip: IpAddr, port: u16) -> Result<SocketAddrV4, String> {
    match ip.to_canonical() {
        IpAddr::V4(ip) if !ip.is_unspecified() && port != 0 => Ok(SocketAddrV4::new(ip, port)),
        IpAddr::V4(_) | IpAddr::V6(_) => Err("the router knows no address of its own".to_owned()),
    }
}

fn believed(seconds: u64) -> Duration {
    Duration::from_secs(seconds).clamp(SHORTEST, LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_router_without_an_address_maps_nothing() {
        let at = "203.0.113.7:16200".parse().unwrap();
        assert_eq!(external("203.0.113.7".parse().unwrap(), 16200), Ok(at));
        assert_eq!(
            external("::ffff:203.0.113.7".parse().unwrap(), 16200),
            Ok(at)
        );
        for (ip, port) in [
            ("0.0.0.0", 16200),
            ("203.0.113.7", 0),
            ("2001:db8::1", 16200),
        ] {
            assert!(external(ip.parse().unwrap(), port).is_err(), "{ip} {port}");
        }
    }

    /// A router that gives no time would be asked without end, one that gives years never again.
    #[test]
    fn lifetimes_are_within_reason() {
        for (given, taken) in [(0, 60), (7200, 7200), (u64::MAX, 24 * 3600)] {
            assert_eq!(believed(given), Duration::from_secs(taken));
        }
    }
}

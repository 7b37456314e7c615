//! The end that connects, through a proxy if it must.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use rustls::{ClientConfig, pki_types::ServerName};
use thiserror::Error;
use tokio::{
    net::{TcpStream, lookup_host},
    time::timeout,
};
use tokio_rustls::{TlsConnector, TlsStream};
use tokio_tungstenite::{
    client_async_with_config,
    tungstenite::{Error, client::IntoClientRequest},
};

use crate::os::wss::proxy::{Proxy, authority, host_and_port};
use crate::os::wss::{Receiver, Sender, halves, limits, prepare, tls};

/// Longest time for all steps together.
const PATIENCE: Duration = Duration::from_secs(15);

/// Longest time for one address of a name; the next may answer where this is silent.
const ADDRESS: Duration = Duration::from_secs(4);

/// The port of `wss` (RFC 6455 section 11.1.2).
const DEFAULT_PORT: u16 = 443;

/// Why there is no connection.
#[derive(Debug, Error)]
pub enum ConnectError {
    #[error("the name {0} has no address")]
    NoAddress(String),
    #[error("{0} cannot be reached")]
    Unreachable(String, #[source] io::Error),
    #[error("the proxy {0} cannot be reached")]
    NoProxy(String, #[source] io::Error),
    #[error("the proxy asks for a user name and password")]
    ProxyAsks,
    #[error("the proxy does not take the user name and password")]
    ProxyDenied,
    #[error("the connection to the proxy was lost")]
    ProxyLost(#[source] io::Error),
    #[error("the proxy's answer is no HTTP")]
    ProxyNonsense,
    #[error("the proxy refused (HTTP status {0})")]
    ProxyRefused(u16),
    #[error("there was no answer for too long")]
    Slow,
    #[error("TLS failed")]
    Tls(#[source] io::Error),
    #[error("there is no gateway: {0}")]
    Upgrade(Box<Error>),
}

impl ConnectError {
    /// Returns the name that status carries; it never changes.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NoAddress(_) => "wss_name",
            Self::Unreachable(..) => "wss_unreachable",
            Self::NoProxy(..) | Self::ProxyLost(_) => "proxy_unreachable",
            Self::ProxyAsks | Self::ProxyDenied => "proxy_auth",
            Self::ProxyNonsense | Self::ProxyRefused(_) => "proxy_refused",
            Self::Slow => "wss_timeout",
            Self::Tls(_) => "wss_tls",
            Self::Upgrade(_) => "wss_refused",
        }
    }

    /// Returns what to do about it.
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::NoAddress(_) => {
                "check the host's DNS; where only a proxy resolves names, name it in HTTPS_PROXY"
            }
            Self::Unreachable(..) | Self::Slow => {
                "check that TCP port 443 to the gateway is let through, or name a proxy in HTTPS_PROXY"
            }
            Self::NoProxy(..) | Self::ProxyLost(_) => {
                "check the proxy that HTTPS_PROXY or wss.proxy names"
            }
            Self::ProxyAsks | Self::ProxyDenied => {
                "give the proxy's user name and password in HTTPS_PROXY: http://USER:PASSWORD@HOST:PORT"
            }
            Self::ProxyNonsense | Self::ProxyRefused(_) => {
                "have the proxy let CONNECT to the gateway's host and port through"
            }
            Self::Tls(_) => "something on the way does not let TLS through",
            Self::Upgrade(_) => {
                "something on the way answers for the gateway, as a login page of a network does"
            }
        }
    }
}

/// Where a WebSocket is: `wss://host:port/path`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Target {
    /// Without the brackets of an IPv6 address.
    pub host: String,
    pub port: u16,
    path: String,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "wss://{}{}", authority(&self.host, self.port), self.path)
    }
}

/// A text is no `wss://host:port/path`.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("not an address of the form wss://HOST:PORT/PATH")]
pub struct BadTarget;

impl FromStr for Target {
    type Err = BadTarget;

    fn from_str(text: &str) -> Result<Self, BadTarget> {
        let rest = text.strip_prefix("wss://").ok_or(BadTarget)?;
        let (at, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (host, port) = host_and_port(at, DEFAULT_PORT).ok_or(BadTarget)?;
        let is_path = |c: char| c.is_ascii_alphanumeric() || "/-._~%".contains(c);
        if path.len() > 256 || !path.chars().all(is_path) {
            return Err(BadTarget);
        }
        let path = format!("/{path}");
        Ok(Self { host, port, path })
    }
}

/// Connects; addresses that `is_usable` refuses are not tried.
///
/// The other end is not asked who it is.
pub async fn connect(
    target: &Target,
    proxy: Option<&Proxy>,
    is_usable: &(dyn Fn(IpAddr) -> bool + Sync),
) -> Result<(Sender, Receiver), ConnectError> {
    let connected = timeout(PATIENCE, connect_slowly(target, proxy, is_usable)).await;
    connected.unwrap_or(Err(ConnectError::Slow))
}

async fn connect_slowly(
    target: &Target,
    proxy: Option<&Proxy>,
    is_usable: &(dyn Fn(IpAddr) -> bool + Sync),
) -> Result<(Sender, Receiver), ConnectError> {
    let tcp = match proxy {
        None => {
            let reached = reach(&target.host, target.port, is_usable).await;
            reached.map_err(|failed| match failed {
                None => ConnectError::NoAddress(target.host.clone()),
                Some(error) => {
                    ConnectError::Unreachable(authority(&target.host, target.port), error)
                }
            })?
        }
        Some(proxy) => {
            let reached = reach(&proxy.host, proxy.port, is_usable).await;
            let mut tcp = reached.map_err(|failed| {
                let error = failed.unwrap_or_else(|| io::Error::other("the name has no address"));
                ConnectError::NoProxy(proxy.to_string(), error)
            })?;
            proxy.tunnel(&mut tcp, &target.host, target.port).await?;
            tcp
        }
    };
    let tcp = prepare(tcp).map_err(ConnectError::Tls)?;
    let name = ServerName::try_from(target.host.clone());
    let name = name.map_err(|error| ConnectError::Tls(io::Error::other(error)))?;
    let tls = client_config()?;
    let stream = TlsConnector::from(tls).connect(name, tcp).await;
    let stream = TlsStream::Client(stream.map_err(ConnectError::Tls)?);
    let request = target.to_string().into_client_request();
    let upgrade = |error| ConnectError::Upgrade(Box::new(error));
    let request = request.map_err(upgrade)?;
    let upgraded = client_async_with_config(request, stream, Some(limits())).await;
    let (socket, _response) = upgraded.map_err(upgrade)?;
    Ok(halves(socket))
}

fn client_config() -> Result<Arc<ClientConfig>, ConnectError> {
    tls::client().map_err(|error| ConnectError::Tls(io::Error::other(error)))
}

/// Connects to the first address of a host that answers; the error is None when there is no address.
async fn reach(
    host: &str,
    port: u16,
    is_usable: &(dyn Fn(IpAddr) -> bool + Sync),
) -> Result<TcpStream, Option<io::Error>> {
    let found = lookup_host((host, port)).await.map_err(|_| None)?;
    let mut last = None;
    for address in found.filter(|at: &SocketAddr| is_usable(at.ip())) {
        match timeout(ADDRESS, TcpStream::connect(address)).await {
            Ok(Ok(tcp)) => return Ok(tcp),
            Ok(Err(error)) => last = Some(error),
            Err(_elapsed) => last = Some(io::ErrorKind::TimedOut.into()),
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_read_and_nonsense_is_not() {
        let whole = "wss://gw.example.org:8443/a2g".parse::<Target>().unwrap();
        let short = "wss://[2001:db8::1]".parse::<Target>().unwrap();

        assert_eq!((whole.host.as_str(), whole.port), ("gw.example.org", 8443));
        assert_eq!(whole.to_string(), "wss://gw.example.org:8443/a2g");
        assert_eq!((short.host.as_str(), short.port), ("2001:db8::1", 443));
        for text in [
            "",
            "ws://h/",
            "wss://",
            "wss://:443/",
            "wss://h:0/",
            "wss://u@h/",
            "wss://h/\r\nX: y",
            "wss://h/a b",
        ] {
            assert_eq!(text.parse::<Target>(), Err(BadTarget), "{text}");
        }
    }
}

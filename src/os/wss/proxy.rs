//! HTTP proxies that make tunnels (CONNECT, RFC 9110 section 9.3.6), as the environment names them.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use thiserror::Error;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use zeroize::Zeroizing;

use crate::os::wss::client::ConnectError;

/// Longest answer of a proxy: what servers commonly allow for headers.
const MAX_ANSWER: usize = 8 << 10;

/// The port of a proxy whose URL names none, as curl has it.
const DEFAULT_PORT: u16 = 1080;

/// Why a proxy cannot be used.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum ProxyError {
    #[error("a proxy is written http://HOST:PORT or http://USER:PASSWORD@HOST:PORT")]
    Malformed,
    #[error("only proxies that are spoken to by plain HTTP (http://) are supported")]
    Scheme,
}

/// One proxy.
#[derive(Clone, Eq, PartialEq)]
pub struct Proxy {
    /// Without the brackets of an IPv6 address.
    pub host: String,
    pub port: u16,
    /// `user:password`; None when the proxy asks for none.
    credentials: Option<Zeroizing<String>>,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({self})")
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&authority(&self.host, self.port))
    }
}

impl FromStr for Proxy {
    type Err = ProxyError;

    fn from_str(text: &str) -> Result<Self, ProxyError> {
        let rest = match text.trim().split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
            Some(_) => return Err(ProxyError::Scheme),
            // As curl takes it.
            None => text.trim(),
        };
        let (authority, _path) = rest.split_once('/').unwrap_or((rest, ""));
        let (credentials, at) = match authority.rsplit_once('@') {
            Some((credentials, at)) => (Some(credentials), at),
            None => (None, authority),
        };
        let credentials = credentials.map(decoded).transpose()?;
        let (host, port) = host_and_port(at, DEFAULT_PORT).ok_or(ProxyError::Malformed)?;
        Ok(Self {
            host,
            port,
            credentials: credentials.map(Zeroizing::new),
        })
    }
}

impl Proxy {
    /// Tells whether it has a user name and password.
    pub const fn has_credentials(&self) -> bool {
        self.credentials.is_some()
    }

    /// Returns its URL, credentials included.
    pub fn url(&self) -> Zeroizing<String> {
        let mut url = Zeroizing::new("http://".to_owned());
        if let Some((user, password)) = self.credentials.as_deref().and_then(|c| c.split_once(':'))
        {
            for (part, end) in [(user, ":"), (password, "@")] {
                part.bytes().for_each(|byte| url.push_str(&encoded(byte)));
                url.push_str(end);
            }
        }
        url.push_str(&authority(&self.host, self.port));
        url
    }

    /// Has the proxy at the other end of `tcp` make a tunnel to `host`.
    pub(super) async fn tunnel(
        &self,
        tcp: &mut TcpStream,
        host: &str,
        port: u16,
    ) -> Result<(), ConnectError> {
        tcp.write_all(self.request(host, port).as_bytes())
            .await
            .map_err(ConnectError::ProxyLost)?;
        let mut answer = Vec::new();
        while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
            if answer.len() >= MAX_ANSWER {
                return Err(ConnectError::ProxyNonsense);
            }
            let read = tcp.read_buf(&mut answer).await;
            if read.map_err(ConnectError::ProxyLost)? == 0 {
                return Err(ConnectError::ProxyNonsense);
            }
        }
        match status(&answer).ok_or(ConnectError::ProxyNonsense)? {
            200..300 => Ok(()),
            407 if self.has_credentials() => Err(ConnectError::ProxyDenied),
            407 => Err(ConnectError::ProxyAsks),
            other => Err(ConnectError::ProxyRefused(other)),
        }
    }

    fn request(&self, host: &str, port: u16) -> Zeroizing<String> {
        let to = authority(host, port);
        let mut request = Zeroizing::new(format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n"));
        if let Some(credentials) = &self.credentials {
            // RFC 7617 section 2.
            let encoded = Zeroizing::new(STANDARD.encode(credentials.as_bytes()));
            request.push_str("Proxy-Authorization: Basic ");
            request.push_str(&encoded);
            request.push_str("\r\n");
        }
        request.push_str("\r\n");
        request
    }
}

/// Which proxy is used for which host.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    /// None when none is.
    proxy: Option<Proxy>,
    except: Vec<Exception>,
}

/// Hosts that are reached without a proxy.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Exception {
    All,
    /// A name, and what ends with a dot and it.
    Domain(String),
    /// Addresses that begin with as many bits as this one.
    Network(IpAddr, u32),
}

impl Proxies {
    /// Uses `proxy` for all hosts.
    pub const fn all(proxy: Option<Proxy>) -> Self {
        Self {
            proxy,
            except: Vec::new(),
        }
    }

    /// Reads what `variable` gives for HTTPS_PROXY, ALL_PROXY and NO_PROXY, in lower case or upper.
    pub fn of_environment(variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, ProxyError> {
        let named = |name: &str| {
            let lower = variable(&name.to_lowercase());
            lower
                .or_else(|| variable(name))
                .filter(|text| !text.trim().is_empty())
        };
        let proxy = named("HTTPS_PROXY").or_else(|| named("ALL_PROXY"));
        Ok(Self {
            proxy: proxy.map(|text| text.parse()).transpose()?,
            except: named("NO_PROXY")
                .as_deref()
                .map(exceptions)
                .unwrap_or_default(),
        })
    }

    /// Returns the proxy by which `host` is reached; None when it is reached without one.
    pub fn of(&self, host: &str) -> Option<&Proxy> {
        // Nobody else can reach that.
        let is_own = host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
        let is_excepted = is_own || self.except.iter().any(|except| except.covers(host));
        self.proxy.as_ref().filter(|_| !is_excepted)
    }
}

impl Exception {
    fn covers(&self, host: &str) -> bool {
        match self {
            Self::All => true,
            Self::Domain(name) => {
                let host = host.trim_end_matches('.').to_lowercase();
                let rest = host.strip_suffix(name.as_str());
                rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }
            Self::Network(network, bits) => host
                .parse()
                .is_ok_and(|ip| shares_prefix(*network, ip, *bits)),
        }
    }
}

fn exceptions(text: &str) -> Vec<Exception> {
    let one = |text: &str| {
        if text == "*" {
            return Exception::All;
        }
        let (ip, bits) = text.split_once('/').unwrap_or((text, ""));
        if let Ok(ip) = ip.trim_matches(['[', ']']).parse::<IpAddr>() {
            let most = if ip.is_ipv4() { 32 } else { 128 };
            return Exception::Network(ip, bits.parse().unwrap_or(most));
        }
        // A port is not looked at: what is not to pass a proxy by one passes none by any.
        let (name, _) = text.split_once(':').unwrap_or((text, ""));
        let name = name.trim_start_matches("*.").trim_start_matches('.');
        Exception::Domain(name.to_lowercase())
    };
    let all = text.split([',', ' ']).map(str::trim);
    all.filter(|text| !text.is_empty()).map(one).collect()
}

fn shares_prefix(network: IpAddr, ip: IpAddr, bits: u32) -> bool {
    match (network, ip) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            let differ = Ipv4Addr::to_bits(a) ^ Ipv4Addr::to_bits(b);
            differ.leading_zeros() >= bits
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            let differ = Ipv6Addr::to_bits(a) ^ Ipv6Addr::to_bits(b);
            differ.leading_zeros() >= bits
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

/// Splits `host:port`, `host`, `[v6]:port` or `[v6]`.
pub(super) fn host_and_port(text: &str, default: u16) -> Option<(String, u16)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            host.parse::<Ipv6Addr>().ok()?;
            (
                host,
                rest.strip_prefix(':')
                    .or_else(|| rest.is_empty().then_some(""))?,
            )
        }
        None => text.split_once(':').unwrap_or((text, "")),
    };
    let port = match port {
        "" => default,
        port => port.parse().ok().filter(|port| *port > 0)?,
    };
    let is_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    let is_good = !host.is_empty() && host.len() <= 253 && host.chars().all(is_host);
    is_good.then(|| (host.to_owned(), port))
}

/// Writes a host and port as URLs do.
pub(super) fn authority(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// Puts percent-encoding onto what is not unreserved (RFC 3986 section 2.3).
fn encoded(byte: u8) -> String {
    if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
        char::from(byte).to_string()
    } else {
        format!("%{byte:02X}")
    }
}

/// Takes percent-encoding off (RFC 3986 section 2.1); what makes a line end is refused.
fn decoded(text: &str) -> Result<String, ProxyError> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let (byte, after) = match (first, after) {
            (b'%', [high, low, after @ ..]) => {
                let digit = |c: u8| {
                    char::from(c)
                        .to_digit(16)
                        .and_then(|d| u8::try_from(d).ok())
                };
                let (high, low) = digit(*high).zip(digit(*low)).ok_or(ProxyError::Malformed)?;
                (high << 4 | low, after)
            }
            _ => (*first, after),
        };
        bytes.push(byte);
        rest = after;
    }
    let text = String::from_utf8(bytes).map_err(|_| ProxyError::Malformed)?;
    if text.chars().any(char::is_control) {
        return Err(ProxyError::Malformed);
    }
    // RFC 7617 section 2: a user without a password has an empty one.
    let is_whole = text.contains(':');
    Ok(if is_whole { text } else { format!("{text}:") })
}

/// Returns the status of an answer by HTTP/1.
fn status(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|byte| *byte == b'\r').next()?;
    let line = std::str::from_utf8(line).ok()?;
    let (version, rest) = line.split_once(' ')?;
    let is_http = version.starts_with("HTTP/1.");
    let status = rest.split(' ').next()?;
    status.parse().ok().filter(|_| is_http)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_read_as_environments_write_it() {
        let plain = "http://proxy.corp:3128".parse::<Proxy>().unwrap();
        let bare = "10.1.2.3:8080".parse::<Proxy>().unwrap();
        let v6 = "http://[2001:db8::1]/".parse::<Proxy>().unwrap();
        let user = "HTTP://ag%40nt:p%3Aw@p:1".parse::<Proxy>().unwrap();

        assert_eq!((plain.host.as_str(), plain.port), ("proxy.corp", 3128));
        assert_eq!((bare.host.as_str(), bare.port), ("10.1.2.3", 8080));
        assert_eq!((v6.host.as_str(), v6.port), ("2001:db8::1", DEFAULT_PORT));
        assert!(!plain.has_credentials() && user.has_credentials());
        let sent = STANDARD.encode("ag@nt:p:w");
        let expected = format!(
            "CONNECT [2001:db8::9]:443 HTTP/1.1\r\nHost: [2001:db8::9]:443\r\n\
             Proxy-Authorization: Basic {sent}\r\n\r\n"
        );
        assert_eq!(*user.request("2001:db8::9", 443), expected);
        assert_eq!(*user.url(), "http://ag%40nt:p%3Aw@p:1");
        assert_eq!(*v6.url(), "http://[2001:db8::1]:1080");
        assert_eq!(user.url().parse::<Proxy>().unwrap(), user);
    }

    #[test]
    fn what_cannot_be_a_proxy_is_refused() {
        for text in [
            "",
            "http://",
            "http://:1",
            "http://h:0",
            "http://h:70000",
            "http://h h",
        ] {
            assert_eq!(text.parse::<Proxy>(), Err(ProxyError::Malformed), "{text}");
        }
        for text in ["http://a%0d%0aX: y@h:1", "http://a%zz@h:1", "http://[::1"] {
            assert_eq!(text.parse::<Proxy>(), Err(ProxyError::Malformed), "{text}");
        }
        for text in ["https://h:1", "socks5://h:1"] {
            assert_eq!(text.parse::<Proxy>(), Err(ProxyError::Scheme), "{text}");
        }
    }

    #[test]
    fn a_password_shows_nowhere() {
        let proxy = "http://user:secret@proxy:3128".parse::<Proxy>().unwrap();

        let shown = format!("{proxy} {proxy:?} {:?}", Proxies::all(Some(proxy.clone())));

        assert!(shown.contains("proxy:3128"));
        assert!(!shown.contains("secret") && !shown.contains("user"));
    }

    #[test]
    fn the_environment_says_which_hosts_need_no_proxy() {
        let set = [
            ("https_proxy", "http://lower:1"),
            ("HTTPS_PROXY", "http://upper:1"),
            (
                "NO_PROXY",
                ".corp, example.org:443,10.0.0.0/8 [2001:db8::]/32,192.0.2.1",
            ),
        ];
        let variable = |name: &str| {
            let found = set.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let proxies = Proxies::of_environment(&variable).unwrap();

        for host in [
            "gw.example.net",
            "badexample.org",
            "11.0.0.1",
            "192.0.2.2",
            "2001:db9::1",
        ] {
            assert_eq!(proxies.of(host).unwrap().host, "lower", "{host}");
        }
        for host in [
            "a.corp",
            "corp",
            "example.org",
            "GW.example.org.",
            "10.9.9.9",
            "192.0.2.1",
        ] {
            assert_eq!(proxies.of(host), None, "{host}");
        }
        for host in ["2001:db8::7", "127.0.0.1", "::1", "localhost"] {
            assert_eq!(proxies.of(host), None, "{host}");
        }
        let all = |name: &str| match name {
            "ALL_PROXY" => Some("h:1".to_owned()),
            "no_proxy" => Some("*".to_owned()),
            _ => None,
        };
        assert_eq!(Proxies::of_environment(&all).unwrap().of("h"), None);
        assert!(
            Proxies::of_environment(&|_| None)
                .unwrap()
                .of("h")
                .is_none()
        );
    }

    #[test]
    fn an_answer_without_a_status_is_none() {
        assert_eq!(
            status(b"HTTP/1.1 200 Connection established\r\n\r\n"),
            Some(200)
        );
        assert_eq!(status(b"HTTP/1.0 407\r\n\r\n"), Some(407));
        for answer in [
            &b"\r\n\r\n"[..],
            b"SSH-2.0-x\r\n\r\n",
            b"HTTP/1.1 \xff\r\n\r\n",
            b"",
        ] {
            assert_eq!(status(answer), None);
        }
    }
}

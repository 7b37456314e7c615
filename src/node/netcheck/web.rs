//! What is reached over TCP, and who answers there.

use std::{net::SocketAddr, time::Duration};

use futures_util::future::join_all;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, lookup_host},
    time::timeout,
};

use crate::node::causes::with_causes;
use crate::os::tls::Pin;
use crate::os::wss::{self, Proxies, Target};
use crate::os::{clock, random};
use crate::registry::client::{ClientError, RegistryClient, time_of};
use crate::wire::api::local::{CaptivePortal, NetcheckReach, NetcheckRegistry, Warning};

/// How long one thing may take: a handshake of three round trips by a slow proxy.
const PATIENCE: Duration = Duration::from_secs(6);

/// Statements further ahead are refused (protocol.md section 2).
const MAX_SKEW: Duration = Duration::from_secs(60);

/// The port at which portals of networks answer for everybody.
const HTTP: u16 = 80;

/// Longest answer that is read.
const MAX_ANSWER: usize = 4096; // bytes

/// Connects to WebSockets of gateways.
pub(super) async fn websockets(urls: &[String], proxies: &Proxies) -> Vec<NetcheckReach> {
    join_all(urls.iter().map(|url| websocket(url, proxies))).await
}

async fn websocket(url: &str, proxies: &Proxies) -> NetcheckReach {
    let mut reach = NetcheckReach {
        url: url.to_owned(),
        took_ms: None,
        proxy: None,
        clock_ahead_s: None,
        error: None,
    };
    let target = match url.parse::<Target>() {
        Ok(target) => target,
        Err(error) => {
            let cure = "tell the gateway's operator to correct wss.advertise";
            reach.error = Some(warning("wss_url", error.to_string(), cure));
            return reach;
        }
    };
    let proxy = proxies.of(&target.host);
    reach.proxy = proxy.map(ToString::to_string);
    let begun = clock::now();
    match timeout(PATIENCE, wss::connect(&target, proxy, &|_| true)).await {
        Ok(Ok(_connection)) => reach.took_ms = Some(millis(begun.elapsed())),
        Ok(Err(error)) => {
            let why = with_causes(&error);
            reach.error = Some(warning(error.code(), why, error.hint()));
        }
        Err(_elapsed) => {
            let why = "there was no answer in time".to_owned();
            let cure =
                "check that TCP to the gateway is let through, or name a proxy in HTTPS_PROXY";
            reach.error = Some(warning("wss_timeout", why, cure));
        }
    }
    reach
}

/// Calls registries, each of which proves by its key that it is the one.
pub(super) async fn registries(all: &[NetcheckRegistry]) -> Vec<NetcheckReach> {
    join_all(all.iter().map(registry)).await
}

async fn registry(registry: &NetcheckRegistry) -> NetcheckReach {
    let begun = clock::now();
    let called = call(registry).await;
    let took_ms = millis(begun.elapsed());
    let clock_ahead_s = clock_ahead(registry).await;
    // A clock that is off makes everything else look wrong.
    let error = match (clock_ahead_s, called) {
        (Some(ahead), _) if ahead.unsigned_abs() > MAX_SKEW.as_secs() => Some(warning(
            "clock_off",
            format!("this host's clock is {ahead} s ahead of the registry's"),
            "set the clock of this machine: timedatectl set-ntp true",
        )),
        (_, called) => called.err(),
    };
    NetcheckReach {
        url: registry.url.clone(),
        took_ms: error.is_none().then_some(took_ms),
        proxy: None,
        clock_ahead_s,
        error,
    }
}

/// Returns by how many seconds our clock is ahead of the registry's, as far as whole seconds tell.
async fn clock_ahead(registry: &NetcheckRegistry) -> Option<i64> {
    let pin = registry.pin.parse::<Pin>().ok()?;
    let asked = timeout(PATIENCE, time_of(&registry.url, pin)).await;
    let theirs = asked.ok()?.ok()?.as_secs();
    i64::try_from(clock::unix().as_secs())
        .ok()?
        .checked_sub_unsigned(theirs)
}

async fn call(registry: &NetcheckRegistry) -> Result<(), Warning> {
    let unreachable = |why: String| {
        let cure = "check that the registry runs and that this host can reach it; trust that stands goes on";
        warning("registry_unreachable", why, cure)
    };
    let pin = registry.pin.parse::<Pin>();
    let pin = pin.map_err(|error| unreachable(error.to_string()))?;
    let connect = RegistryClient::connect(&registry.url, pin, registry.domain, clock::unix());
    match timeout(PATIENCE, connect).await {
        Ok(Ok(_client)) => Ok(()),
        Ok(Err(error @ (ClientError::BadPin(_) | ClientError::WrongDomain))) => {
            let cure = "log in to this network by a browser if it asks for that; else ask the registry's operator";
            Err(warning("registry_intercepted", error.to_string(), cure))
        }
        Ok(Err(error)) => Err(unreachable(with_causes(&error))),
        Err(_elapsed) => Err(unreachable("there was no answer in time".to_owned())),
    }
}

/// Asks hosts of ours by plain HTTP for a page that nobody has; returns whoever gives one.
pub(super) async fn portal(hosts: &[String]) -> Option<CaptivePortal> {
    let asked = join_all(hosts.iter().map(|host| timeout(PATIENCE, page(host)))).await;
    asked.into_iter().find_map(|found| found.ok().flatten())
}

async fn page(host: &str) -> Option<CaptivePortal> {
    let number = u64::from_le_bytes(*random::seed().first_chunk()?);
    let path = format!("/agentnet-netcheck-{number:016x}");
    let mut addresses = lookup_host((host, HTTP)).await.ok()?;
    let answer = ask(addresses.next()?, host, &path).await.ok()?;
    let (status, location) = read(&answer)?;
    is_foreign(host, status, location.as_deref()).then(|| CaptivePortal {
        url: format!("http://{}{path}", bracketed(host)),
        status,
        location,
    })
}

async fn ask(at: SocketAddr, host: &str, path: &str) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(at).await?;
    let host = bracketed(host);
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    while answer.len() < MAX_ANSWER && !answer.windows(4).any(|end| end == b"\r\n\r\n") {
        if stream.read_buf(&mut answer).await? == 0 {
            break;
        }
    }
    Ok(answer)
}

fn bracketed(host: &str) -> String {
    if host.contains(':') {
        format!("[{host}]")
    } else {
        host.to_owned()
    }
}

/// Returns status and `Location` of an HTTP answer; None for anything else.
fn read(answer: &[u8]) -> Option<(u16, Option<String>)> {
    let text = String::from_utf8_lossy(answer.get(..MAX_ANSWER).unwrap_or(answer));
    let mut lines = text.lines();
    let status = lines.next()?.strip_prefix("HTTP/1.")?;
    let status = status.split_whitespace().nth(1)?.parse().ok()?;
    let headers = lines.take_while(|line| !line.is_empty());
    let mut named = headers.filter_map(|line| line.split_once(':'));
    let location = named.find(|(name, _)| name.eq_ignore_ascii_case("location"));
    let is_shown = |c: &char| c.is_ascii_graphic();
    let location = location.map(|(_, value)| value.trim().chars().filter(is_shown).collect());
    Some((status, location))
}

/// Tells whether an answer for a page that does not exist is none of `host`'s own.
fn is_foreign(host: &str, status: u16, location: Option<&str>) -> bool {
    match status {
        200..300 => true,
        // To HTTPS on the same host is what its own server may say.
        300..400 => {
            let elsewhere = |to: &str| {
                let rest = to.split_once("://").map(|(_, rest)| rest);
                let own = bracketed(host);
                rest.is_some_and(|rest| {
                    let after = rest.strip_prefix(own.as_str());
                    !after
                        .is_some_and(|after| after.is_empty() || after.starts_with(['/', ':', '?']))
                })
            };
            location.is_some_and(elsewhere)
        }
        // RFC 6585 section 6: Network Authentication Required.
        511 => true,
        _ => false,
    }
}

fn warning(code: &str, text: String, cure: &str) -> Warning {
    Warning {
        code: code.to_owned(),
        text,
        cure: cure.to_owned(),
    }
}

fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_and_nonsense_is_none() {
        let portal =
            b"HTTP/1.1 302 Found\r\nServer: x\r\nlocation:  http://login.test/\x1b[31m\r\n\r\nbody";
        let location = Some("http://login.test/[31m".to_owned());
        assert_eq!(read(portal), Some((302, location)));
        assert_eq!(read(b"HTTP/1.0 404 Not Found\r\n\r\n"), Some((404, None)));
        for nonsense in [
            &b""[..],
            b"SSH-2.0-x\r\n",
            b"HTTP/1.1\r\n",
            b"HTTP/1.1 x y\r\n",
        ] {
            assert_eq!(read(nonsense), None);
        }
    }

    #[test]
    fn whoever_has_a_page_that_nobody_has_is_somebody_else() {
        let host = "gw.example.org";
        for (status, location, foreign) in [
            (200, None, true),
            (511, None, true),
            (302, Some("http://login.test/?to=gw.example.org"), true),
            (302, Some("http://gw.example.org.login.test/"), true),
            (301, Some("https://gw.example.org/agentnet"), false),
            (301, Some("https://gw.example.org:8443/"), false),
            (302, Some("/login"), false),
            (404, None, false),
            (400, None, false),
            (503, None, false),
        ] {
            assert_eq!(
                is_foreign(host, status, location),
                foreign,
                "{status} {location:?}"
            );
        }
        assert!(!is_foreign(
            "2001:db8::1",
            301,
            Some("https://[2001:db8::1]/x")
        ));
    }
}

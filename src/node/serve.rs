//! A server elsewhere (IPv4, loopback, a socket, a neighbour), made reachable at an agent's address.

use std::{
    collections::BTreeMap,
    fmt, io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, copy_bidirectional_with_sizes};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::JoinSet;

use crate::id::OverlayIp;

/// Most connections at once; what comes then waits until one ends.
const MAX_CONNECTIONS: usize = 4096;

/// Descriptors that are not of connections.
const OTHER_FILES: usize = 64;

/// How long the server may take to accept; longer than the two retries of a lost SYN take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Read at once in each direction of a connection.
const PIECE: usize = 64 * 1024; // bytes

/// Silence after which the kernel asks whether the other end still lives, in seconds, and what lies between
/// the questions.
const QUIET: u32 = 60;
const BETWEEN: u32 = 15;

/// Where a server listens.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Upstream {
    /// `host:port`; names are looked up for each connection.
    Tcp(String),
    Unix(PathBuf),
}

impl FromStr for Upstream {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = Some(path).filter(|path| !path.is_empty());
            let path = path.ok_or("expected a path after unix:")?;
            return Ok(Self::Unix(path.into()));
        }
        let bad = || "expected IP:PORT, HOST:PORT, PORT or unix:PATH".to_owned();
        let (host, port) = text.rsplit_once(':').unwrap_or(("127.0.0.1", text));
        let port = port.parse::<u16>().ok().filter(|port| *port > 0);
        let port = port.ok_or_else(bad)?;
        // An address of IPv6 is in brackets, or its end would be taken for a port.
        let is_whole = host.starts_with('[') == host.ends_with(']');
        if host.is_empty() || !is_whole || (host.contains(':') && !host.starts_with('[')) {
            return Err(bad());
        }
        Ok(Self::Tcp(format!("{host}:{port}")))
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(at) => f.write_str(at),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A port of an agent that leads elsewhere.
#[derive(Debug)]
pub struct Served {
    listener: TcpListener,
    own: OverlayIp,
    upstream: Arc<Upstream>,
    /// Whether the server is told who connected, by a line in front (PROXY protocol, version 1).
    proxy_protocol: bool,
}

impl Served {
    /// Listens at the agent's address and nowhere else.
    pub async fn bind(
        own: OverlayIp,
        port: u16,
        upstream: Upstream,
        proxy_protocol: bool,
    ) -> io::Result<Self> {
        Ok(Self {
            listener: TcpListener::bind((own.ip(), port)).await?,
            own,
            upstream: Arc::new(upstream),
            proxy_protocol,
        })
    }

    /// Passes connections on until `stop` ends, and tells `complain` what keeps them from the server, once
    /// until another one got through.
    pub async fn run(self, stop: impl Future<Output = ()>, complain: impl Fn(&str)) {
        let most = most_connections();
        let mut stop = std::pin::pin!(stop);
        let mut open = JoinSet::new();
        let mut shares = BTreeMap::<Ipv6Addr, usize>::new();
        let mut known = None;
        loop {
            tokio::select! {
                () = &mut stop => return,
                Some(ended) = open.join_next() => {
                    let Ok((peer, ended)) = ended else { continue };
                    give_back(&mut shares, peer);
                    let trouble = Result::err(ended).map(|error: NoServer| error.0.to_string());
                    if let Some(trouble) = trouble.as_ref().filter(|now| known.as_ref() != Some(*now)) {
                        complain(trouble);
                    }
                    known = trouble;
                }
                accepted = self.listener.accept(), if open.len() < most => {
                    let Some((stream, from, peer)) = self.taken(accepted, &complain).await else {
                        continue;
                    };
                    let share = shares.entry(peer).or_default();
                    // One peer leaves room for the others; the reset tells it.
                    if *share >= most.div_ceil(4) {
                        continue;
                    }
                    *share += 1;
                    open.spawn(self.pass_on(stream, from, peer));
                }
            }
        }
    }

    /// Returns a connection and whom it is from; None when there is nothing to pass on.
    async fn taken(
        &self,
        accepted: io::Result<(TcpStream, SocketAddr)>,
        complain: &impl Fn(&str),
    ) -> Option<(TcpStream, SocketAddr, Ipv6Addr)> {
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                complain(&format!("cannot take a connection: {error}"));
                // Out of files or memory it would only fail again at once.
                tokio::time::sleep(Duration::from_millis(100)).await;
                return None;
            }
        };
        // Dropped before all was said, by whatever cause, it is reset: nobody takes a part for the whole.
        stream.set_zero_linger().ok()?;
        let IpAddr::V6(ip) = from.ip() else {
            return None;
        };
        // A neighbour on a link of this host may send here past the overlay, with an address of its own.
        let of_network = OverlayIp::new(ip).is_ok_and(|ip| ip.network() == self.own.network());
        of_network.then_some((stream, from, ip))
    }

    fn pass_on(
        &self,
        mut stream: TcpStream,
        from: SocketAddr,
        peer: Ipv6Addr,
    ) -> impl Future<Output = (Ipv6Addr, Result<(), NoServer>)> + Send + 'static {
        let upstream = Arc::clone(&self.upstream);
        let head = self.proxy_protocol.then(|| self.proxy_line(from));
        async move {
            let head = head.unwrap_or_default();
            (peer, relay(&mut stream, &upstream, head.as_bytes()).await)
        }
    }

    /// Says in the PROXY protocol, version 1, who connected to what.
    fn proxy_line(&self, from: SocketAddr) -> String {
        let port = self.listener.local_addr().map_or(0, |at| at.port());
        let (ip, own) = (from.ip(), self.own);
        format!("PROXY TCP6 {ip} {own} {} {port}\r\n", from.port())
    }
}

/// The server was not to be reached, so the other end was cut off.
struct NoServer(io::Error);

async fn relay(stream: &mut TcpStream, upstream: &Upstream, head: &[u8]) -> Result<(), NoServer> {
    // The other end may vanish without a word, and what it holds would be held for ever.
    setsockopt(stream, sockopt::KeepAlive, &true).ok();
    setsockopt(stream, sockopt::TcpKeepIdle, &QUIET).ok();
    setsockopt(stream, sockopt::TcpKeepInterval, &BETWEEN).ok();
    stream.set_nodelay(true).ok();
    let late = |_| NoServer(io::ErrorKind::TimedOut.into());
    match upstream {
        Upstream::Tcp(at) => {
            let connected = tokio::time::timeout(PATIENCE, TcpStream::connect(at)).await;
            let mut server = connected.map_err(late)?.map_err(NoServer)?;
            server.set_nodelay(true).ok();
            server.set_zero_linger().ok();
            if join(stream, &mut server, head).await.is_ok() {
                close_in_peace(stream);
                close_in_peace(&server);
            }
        }
        Upstream::Unix(path) => {
            let connected = tokio::time::timeout(PATIENCE, UnixStream::connect(path)).await;
            let mut server = connected.map_err(late)?.map_err(NoServer)?;
            if join(stream, &mut server, head).await.is_ok() {
                close_in_peace(stream);
            }
        }
    }
    Ok(())
}

/// Carries both directions until each has said its end to the other.
async fn join(
    stream: &mut TcpStream,
    server: &mut (impl AsyncRead + AsyncWrite + Unpin),
    head: &[u8],
) -> io::Result<()> {
    server.write_all(head).await?;
    copy_bidirectional_with_sizes(stream, server, PIECE, PIECE).await?;
    Ok(())
}

/// What was sent is delivered, as both ends have said all.
#[expect(deprecated, reason = "without a time nothing blocks")]
fn close_in_peace(stream: &TcpStream) {
    stream.set_linger(None).ok();
}

fn give_back(shares: &mut BTreeMap<Ipv6Addr, usize>, peer: Ipv6Addr) {
    if let Some(share) = shares.get_mut(&peer) {
        *share -= 1;
        if *share == 0 {
            shares.remove(&peer);
        }
    }
}

/// Takes as many descriptors as the host allows, and returns how many connections they are enough for.
fn most_connections() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let wanted = 2 * MAX_CONNECTIONS + OTHER_FILES;
    let most = limit
        .maximum
        .map_or(wanted as u64, |most| most.min(wanted as u64));
    let more = Rlimit {
        current: Some(most),
        maximum: limit.maximum,
    };
    // With fewer fewer are served.
    setrlimit(Resource::Nofile, more).ok();
    let files = getrlimit(Resource::Nofile).current.unwrap_or(most);
    let files = usize::try_from(files).unwrap_or(wanted).min(wanted);
    (files.saturating_sub(OTHER_FILES) / 2).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_is_an_address_a_name_a_port_or_a_path() {
        for (text, shown) in [
            ("127.0.0.1:3000", "127.0.0.1:3000"),
            ("3000", "127.0.0.1:3000"),
            ("[::1]:80", "[::1]:80"),
            ("db.lan:5432", "db.lan:5432"),
            ("unix:/run/x.sock", "unix:/run/x.sock"),
        ] {
            assert_eq!(text.parse::<Upstream>().unwrap().to_string(), shown);
        }
        for text in [
            "", "unix:", "::1:80", "a:", "a:0", ":80", "a:65536", "[::1:80",
        ] {
            assert!(text.parse::<Upstream>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_share_that_is_given_back_is_forgotten() {
        let peer = Ipv6Addr::LOCALHOST;
        let mut shares = BTreeMap::from([(peer, 2)]);

        give_back(&mut shares, peer);
        assert_eq!(shares.get(&peer), Some(&1));
        give_back(&mut shares, peer);
        give_back(&mut shares, peer);

        assert!(shares.is_empty());
    }
}

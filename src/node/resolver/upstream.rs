use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{io, time::Duration};

use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{debug, warn};

use super::{read_message, write_message};
use crate::engine::names::Zone;
use crate::os::random;
use crate::wire::dns::{Query, ResponseCode, Transport, is_failure, with_id};

/// How long one nameserver has.
const TRY: Duration = Duration::from_secs(2);

/// How long a query waits for its lane. Below [`TRY`], so that a loop through a nameserver that asks
/// us again fills its lane once and then falls back to its beginning.
const WAIT: Duration = Duration::from_secs(1);

/// As many as the C library asks (resolv.conf(5), MAXNS).
const SERVERS: usize = 3;

/// Lanes by question, so that one question cannot take the place of all others.
const LANES: usize = 32;

/// Queries under way in one lane.
const LANE: usize = 16;

/// Longest reply over UDP; no server in use sends more.
const LONGEST_REPLY: usize = 4096; // bytes

/// What happens to names outside of the zone.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Upstream {
    /// They are asked of these nameservers, in order.
    Forward(Vec<SocketAddr>),
    /// They are refused, and the host's own resolver asks elsewhere.
    Refuse,
}

/// Hands queries to other nameservers.
#[derive(Debug)]
pub(super) struct Forwarder {
    servers: Vec<SocketAddr>,
    /// The server that answered last, which is asked first.
    first: AtomicUsize,
    lanes: Vec<Semaphore>,
}

impl Forwarder {
    /// Leaves out ourselves and every address of the overlay, where only resolvers like us listen.
    pub(super) fn new(upstream: Upstream, local: SocketAddr, zone: &Zone) -> Self {
        let mut servers = match upstream {
            Upstream::Forward(servers) => servers,
            Upstream::Refuse => Vec::new(),
        };
        servers.retain(|server| {
            let own = *server == local || is_overlay(server.ip(), zone);
            if own {
                warn!(%server, "Leaving out a nameserver that is an agent's resolver");
            }
            !own
        });
        servers.truncate(SERVERS);
        Self {
            servers,
            first: AtomicUsize::new(0),
            lanes: (0..LANES).map(|_| Semaphore::new(LANE)).collect(),
        }
    }

    /// Returns what the first nameserver that can says to `query`, whose bytes are `message`.
    pub(super) async fn ask(&self, query: &Query, message: &[u8]) -> Vec<u8> {
        if self.servers.is_empty() {
            return query.failure(ResponseCode::Refused);
        }
        let Ok(Ok(_place)) = timeout(WAIT, self.lane(query).acquire()).await else {
            debug!("Too many queries for one question: do the nameservers ask us?");
            return query.failure(ResponseCode::ServFail);
        };
        let mut failure = None;
        let first = self.first.load(Ordering::Relaxed);
        for turn in 0..self.servers.len() {
            let index = (first + turn) % self.servers.len();
            let server = self.servers[index];
            match timeout(TRY, exchange(server, query, message)).await {
                Ok(Ok(reply)) if is_failure(&reply) => failure = Some(reply),
                Ok(Ok(reply)) => {
                    self.first.store(index, Ordering::Relaxed);
                    return query.relayed(&reply);
                }
                Ok(Err(error)) => debug!(%server, %error, "A nameserver cannot be asked"),
                Err(_) => debug!(%server, "A nameserver does not answer"),
            }
        }
        failure.map_or_else(
            || query.failure(ResponseCode::ServFail),
            |reply| query.relayed(&reply),
        )
    }

    fn lane(&self, query: &Query) -> &Semaphore {
        let mut hasher = DefaultHasher::new();
        (query.labels(), u16::from(query.kind())).hash(&mut hasher);
        let lanes = u64::try_from(self.lanes.len()).unwrap_or(1);
        let lane = usize::try_from(hasher.finish() % lanes).unwrap_or(0);
        &self.lanes[lane]
    }
}

fn is_overlay(ip: IpAddr, zone: &Zone) -> bool {
    let IpAddr::V6(ip) = ip else {
        return false;
    };
    let domain = |ip: Ipv6Addr| ip.to_bits() >> 80;
    zone.prefixes
        .iter()
        .any(|p| domain(p.first()) == domain(ip))
}

async fn exchange(server: SocketAddr, query: &Query, message: &[u8]) -> io::Result<Vec<u8>> {
    let [high, low, ..] = random::seed();
    let id = u16::from_be_bytes([high, low]);
    let message = with_id(message, id);
    match query.over() {
        Transport::Tcp => over_tcp(server, query, id, &message).await,
        Transport::Udp => over_udp(server, query, id, &message).await,
    }
}

/// Asks from a port of the kernel's choice; a connected socket hears only `server` (RFC 5452 section 9).
async fn over_udp(
    server: SocketAddr,
    query: &Query,
    id: u16,
    message: &[u8],
) -> io::Result<Vec<u8>> {
    let any = if server.is_ipv4() {
        IpAddr::from(Ipv4Addr::UNSPECIFIED)
    } else {
        IpAddr::from(Ipv6Addr::UNSPECIFIED)
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(message).await?;
    let mut buffer = vec![0; LONGEST_REPLY + 1];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let reply = &buffer[..length];
        if !query.is_answered_by(id, reply) {
            continue;
        }
        if length > LONGEST_REPLY {
            return Ok(query.truncated());
        }
        return Ok(reply.to_vec());
    }
}

async fn over_tcp(
    server: SocketAddr,
    query: &Query,
    id: u16,
    message: &[u8],
) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    write_message(&mut stream, message).await?;
    let reply = read_message(&mut stream, usize::from(u16::MAX)).await?;
    if !query.is_answered_by(id, &reply) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(reply)
}

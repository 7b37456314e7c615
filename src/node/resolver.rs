//! The resolver of one agent: answers its names here, hands foreign ones to the saved nameservers.

mod upstream;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{io, time::Duration};

use async_trait::async_trait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{debug, trace};

use crate::engine::names::{Question, Zone};
use crate::id::{FullName, OverlayIp};
use crate::wire::dns::{ResponseCode, Transport};

pub use upstream::Upstream;

/// Longest wait for the directory. Stub resolvers ask again after 5 s (resolv.conf(5)).
const LOOK_UP: Duration = Duration::from_secs(2);

/// How long a TCP connection may stay without a whole query (RFC 7766 section 6.2.3).
const IDLE: Duration = Duration::from_secs(10);

/// Queries worked on at once; more than a host's programs have open together.
const QUERIES: usize = 256;

/// TCP connections at once. Nearly all queries come over UDP.
const CONNECTIONS: usize = 64;

/// Longest query read: a name of 255 bytes leaves room for every EDNS option in use.
const LONGEST_QUERY: usize = 4096; // bytes

/// How long the listener rests when the kernel has no socket or memory to give.
const REST: Duration = Duration::from_millis(100);

/// Ports tried until one is free for both UDP and TCP, when any will do.
const PORTS_TRIED: usize = 16;

/// What the directory knows of a name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Found {
    /// No such agent, or none that the asker may see.
    No,
    /// Nobody could be asked: the program shall try again (SERVFAIL).
    Unavailable,
    Yes(OverlayIp),
}

/// Finds agents on behalf of one agent, which only sees what it may see.
#[async_trait]
pub trait Directory: Send + Sync + 'static {
    /// Returns the address of `name`; the look-up also wakes that peer.
    async fn by_name(&self, asker: OverlayIp, name: &FullName) -> Found;

    /// Returns the name of the agent at `address`.
    async fn by_address(&self, asker: OverlayIp, address: OverlayIp) -> Option<FullName>;
}

/// What a resolver is to do.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The agent's address and port 53; port 0 takes any.
    pub listen: SocketAddr,
    /// The agent on whose behalf names are looked up.
    pub asker: OverlayIp,
    pub zone: Zone,
    pub upstream: Upstream,
}

/// How often what happened since the start.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Stats {
    pub queries: u64,
    /// Dropped, as more were under way than are worked on at once.
    pub over_limit: u64,
    /// Dropped, as they came from another host or another agent.
    pub strangers: u64,
    /// Look-ups that took too long.
    pub late: u64,
}

/// A running resolver; it stops when dropped.
#[derive(Debug)]
pub struct Resolver {
    local: SocketAddr,
    work: Arc<Work>,
    udp: Arc<UdpSocket>,
    rules: watch::Sender<Arc<Rules>>,
    tasks: JoinSet<()>,
}

impl Resolver {
    /// Binds UDP and TCP, and answers from then on.
    pub async fn start(settings: Settings, directory: Arc<dyn Directory>) -> io::Result<Self> {
        // Bound to every address, replies would leave from another one than was asked.
        if settings.listen.ip().is_unspecified() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the resolver needs one address to listen on",
            ));
        }
        let (udp, tcp) = bind(settings.listen).await?;
        Self::serve(settings, (udp, tcp), directory)
    }

    /// Answers at sockets that were opened elsewhere, from now on; `settings.listen` is not looked at.
    pub fn serve(
        settings: Settings,
        (udp, tcp): (UdpSocket, TcpListener),
        directory: Arc<dyn Directory>,
    ) -> io::Result<Self> {
        let local = udp.local_addr()?;
        let (rules, current) = watch::channel(Rules::new(settings.zone, settings.upstream, local));
        let work = Arc::new(Work {
            rules: current,
            local: local.ip().to_canonical(),
            asker: settings.asker,
            directory,
            slots: Arc::new(Semaphore::new(QUERIES)),
            counters: Counters::default(),
        });
        let udp = Arc::new(udp);
        let mut tasks = JoinSet::new();
        tasks.spawn(serve_udp(Arc::clone(&udp), Arc::clone(&work)));
        tasks.spawn(serve_tcp(tcp, Arc::clone(&work)));
        Ok(Self {
            local,
            work,
            udp,
            rules,
            tasks,
        })
    }

    /// Answers by another zone and asks other nameservers from now on; queries under way end as they began.
    pub fn change(&self, zone: Zone, upstream: Upstream) {
        self.rules
            .send_replace(Rules::new(zone, upstream, self.local));
    }

    /// Stops it; its port is free when this returns, which a mere drop does not promise.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
        // Queries under way are cancelled too, and let go of the socket when they next run.
        while Arc::strong_count(&self.udp) > 1 {
            tokio::task::yield_now().await;
        }
    }

    /// Returns the address it listens on.
    pub const fn local(&self) -> SocketAddr {
        self.local
    }

    /// Returns what happened since the start.
    pub fn stats(&self) -> Stats {
        let counters = &self.work.counters;
        Stats {
            queries: counters.queries.load(Ordering::Relaxed),
            over_limit: counters.over_limit.load(Ordering::Relaxed),
            strangers: counters.strangers.load(Ordering::Relaxed),
            late: counters.late.load(Ordering::Relaxed),
        }
    }
}

/// What is answered here, and whom all else is asked.
#[derive(Debug)]
struct Rules {
    zone: Zone,
    upstream: upstream::Forwarder,
}

impl Rules {
    fn new(zone: Zone, upstream: Upstream, local: SocketAddr) -> Arc<Self> {
        let upstream = upstream::Forwarder::new(upstream, local, &zone);
        Arc::new(Self { zone, upstream })
    }
}

/// What the tasks of a resolver share.
struct Work {
    asker: OverlayIp,
    local: IpAddr,
    rules: watch::Receiver<Arc<Rules>>,
    directory: Arc<dyn Directory>,
    slots: Arc<Semaphore>,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Counters {
    queries: AtomicU64,
    over_limit: AtomicU64,
    strangers: AtomicU64,
    late: AtomicU64,
}

impl std::fmt::Debug for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Work")
            .field("local", &self.local)
            .finish_non_exhaustive()
    }
}

impl Work {
    /// Returns the reply to a message; None when nothing may be sent back.
    async fn reply(&self, message: &[u8], over: Transport) -> Option<Vec<u8>> {
        count(&self.counters.queries);
        let rules = Arc::clone(&self.rules.borrow());
        let Rules { zone, upstream } = &*rules;
        match zone.question(message, over) {
            Question::Foreign(query) => Some(upstream.ask(&query, message).await),
            Question::Ignore => None,
            Question::Name(query, name) => {
                let found = self
                    .in_time(self.directory.by_name(self.asker, &name))
                    .await;
                Some(match found {
                    Some(Found::Yes(address)) => zone.address_answer(&query, Some(address)),
                    Some(Found::No) => zone.address_answer(&query, None),
                    Some(Found::Unavailable) | None => query.failure(ResponseCode::ServFail),
                })
            }
            Question::Reply(reply) => Some(reply),
            Question::Reverse(query, address) => {
                let found = self
                    .in_time(self.directory.by_address(self.asker, address))
                    .await;
                Some(match found {
                    Some(name) => zone.name_answer(&query, name.as_ref()),
                    None => query.failure(ResponseCode::ServFail),
                })
            }
        }
    }

    async fn in_time<T>(&self, look_up: impl Future<Output = T>) -> Option<T> {
        let found = timeout(LOOK_UP, look_up).await.ok();
        if found.is_none() {
            count(&self.counters.late);
        }
        found
    }

    /// Tells whether a query comes from this host, whose kernel gives it our own address as source.
    ///
    /// A peer whose consent covers port 53, or a neighbour on the local network that sends to our
    /// address there, shall not see with this agent's eyes.
    fn is_ours(&self, from: SocketAddr) -> bool {
        let ip = from.ip().to_canonical();
        let ours = ip == self.local || ip.is_loopback();
        if !ours {
            count(&self.counters.strangers);
        }
        ours
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

async fn bind(listen: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let mut tried = 0;
    loop {
        tried += 1;
        let udp = UdpSocket::bind(listen).await?;
        match TcpListener::bind(udp.local_addr()?).await {
            Ok(tcp) => return Ok((udp, tcp)),
            // Another program's TCP port has the number that UDP was given.
            Err(error)
                if listen.port() == 0
                    && error.kind() == io::ErrorKind::AddrInUse
                    && tried < PORTS_TRIED => {}
            Err(error) => return Err(error),
        }
    }
}

async fn serve_udp(socket: Arc<UdpSocket>, work: Arc<Work>) {
    let mut running = JoinSet::new();
    // A longer datagram loses its end, and is then refused as malformed.
    let mut buffer = vec![0; LONGEST_QUERY];
    loop {
        let received = tokio::select! {
            received = socket.recv_from(&mut buffer) => received,
            Some(_) = running.join_next() => continue,
        };
        let (length, from) = match received {
            Ok(received) => received,
            Err(error) => {
                debug!(%error, "Cannot receive queries");
                tokio::time::sleep(REST).await;
                continue;
            }
        };
        if !work.is_ours(from) {
            continue;
        }
        let Ok(slot) = Arc::clone(&work.slots).try_acquire_owned() else {
            count(&work.counters.over_limit);
            continue;
        };
        let message = buffer[..length].to_vec();
        let (socket, work) = (Arc::clone(&socket), Arc::clone(&work));
        running.spawn(async move {
            if let Some(reply) = work.reply(&message, Transport::Udp).await
                && let Err(error) = socket.send_to(&reply, from).await
            {
                trace!(%error, "Cannot send a reply");
            }
            drop(slot);
        });
    }
}

async fn serve_tcp(listener: TcpListener, work: Arc<Work>) {
    let mut running = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = running.join_next() => continue,
        };
        match accepted {
            Ok((_, from)) if !work.is_ours(from) => {}
            Ok(_) if running.len() >= CONNECTIONS => count(&work.counters.over_limit),
            Ok((stream, _)) => {
                running.spawn(serve_connection(stream, Arc::clone(&work)));
            }
            Err(error) => {
                debug!(%error, "Cannot accept connections");
                tokio::time::sleep(REST).await;
            }
        }
    }
}

/// Answers the queries of one connection in turn, until it closes, stalls or sends no DNS.
async fn serve_connection(mut stream: TcpStream, work: Arc<Work>) {
    while let Ok(Ok(message)) = timeout(IDLE, read_message(&mut stream, LONGEST_QUERY)).await {
        let Ok(_slot) = work.slots.acquire().await else {
            return;
        };
        let Some(reply) = work.reply(&message, Transport::Tcp).await else {
            return;
        };
        if !matches!(
            timeout(IDLE, write_message(&mut stream, &reply)).await,
            Ok(Ok(()))
        ) {
            return;
        }
    }
}

/// Reads one message behind its length (RFC 1035 section 4.2.2).
async fn read_message(stream: &mut TcpStream, longest: usize) -> io::Result<Vec<u8>> {
    let length = usize::from(stream.read_u16().await?);
    if length > longest {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// Writes one message behind its length, in one segment (RFC 7766 section 8).
async fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    stream
        .write_all(&[&length.to_be_bytes(), message].concat())
        .await
}

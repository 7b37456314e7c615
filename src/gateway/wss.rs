//! Frames over WebSocket and TLS: the listener, and what stands for its connections.
//!
//! Each connection has two tasks that never wait for the gateway's own: what comes waits here when
//! the gateway is busy, and what is to go is dropped and counted when the other end does not read.

use std::{collections::BTreeMap, io, net, net::SocketAddr, sync::Arc, time::Duration};

use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::JoinSet,
    time::timeout,
};

use crate::engine::limits::Source;
use crate::os::wss::{self, Came, Queue, Receiver, Sender, Total, Waiting};
use crate::wire::carrier;

/// Where the WebSocket is.
pub const PATH: &str = "/a2g";

/// Longest time from connecting to the end of the upgrade, unless tests say otherwise.
pub const HANDSHAKE: Duration = Duration::from_secs(10);

/// Bursts of all connections that wait for the gateway; with a full one 8 MiB.
const MAX_WAITING: usize = 128;

/// Pause after the kernel gave no connection, as when there are no descriptors left.
const REFUSED: Duration = Duration::from_millis(100);

/// What a listener is run with.
#[derive(Clone, Debug)]
pub struct WssConfig {
    pub listen: SocketAddr,
    /// For connections from now on.
    pub tls: watch::Receiver<Arc<ServerConfig>>,
    /// Connections at once, of all sources and of one.
    pub connections: usize,
    pub per_source: usize,
    /// Longest time from connecting to the end of the upgrade.
    pub handshake: Duration,
    /// Silence after which a connection is closed.
    pub idle: Duration,
}

/// What connections have for the gateway.
#[derive(Debug)]
pub(super) enum Event {
    /// It is gone, and nothing goes there any more.
    Closed(SocketAddr),
    /// Datagrams that lie end to end, each but the last `stride` bytes long.
    Came {
        from: SocketAddr,
        bytes: Vec<u8>,
        stride: usize,
    },
    Opened(SocketAddr, Queue),
}

/// The gateway's end of all connections.
#[derive(Debug)]
pub(super) struct Wss {
    local: SocketAddr,
    events: mpsc::Receiver<Event>,
    queues: BTreeMap<SocketAddr, Queue>,
    /// Ends the listener and all connections when dropped.
    _tasks: JoinSet<()>,
}

impl Wss {
    /// Listens; must be called within a tokio runtime.
    pub(super) fn bind(config: &WssConfig) -> io::Result<Self> {
        let listener = net::TcpListener::bind(config.listen)?;
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let local = listener.local_addr()?;
        let (sender, events) = mpsc::channel(MAX_WAITING);
        let mut tasks = JoinSet::new();
        tasks.spawn(listen(listener, config.clone(), sender));
        Ok(Self {
            local,
            events,
            queues: BTreeMap::new(),
            _tasks: tasks,
        })
    }

    /// Returns the address it listens on.
    pub(super) const fn local(&self) -> SocketAddr {
        self.local
    }

    /// Returns how many connections there are.
    pub(super) fn len(&self) -> usize {
        self.queues.len()
    }

    /// Waits until a connection brought datagrams.
    ///
    /// # Cancel safety
    ///
    /// Loses nothing.
    pub(super) async fn receive(&mut self) -> Option<(SocketAddr, Vec<u8>, usize)> {
        loop {
            let event = self.events.recv().await?;
            if let Some(came) = self.take(event) {
                return Some(came);
            }
        }
    }

    /// Returns what connections brought already.
    pub(super) fn receive_now(&mut self) -> Option<(SocketAddr, Vec<u8>, usize)> {
        while let Ok(event) = self.events.try_recv() {
            let came = self.take(event);
            if came.is_some() {
                return came;
            }
        }
        None
    }

    fn take(&mut self, event: Event) -> Option<(SocketAddr, Vec<u8>, usize)> {
        match event {
            Event::Opened(at, queue) => {
                self.queues.insert(at, queue);
                None
            }
            Event::Closed(at) => {
                self.queues.remove(&at);
                None
            }
            Event::Came {
                from,
                bytes,
                stride,
            } => Some((from, bytes, stride)),
        }
    }

    /// Has datagrams sent; false when the connection is gone or too much waits for it.
    pub(super) fn send(&self, to: SocketAddr, bytes: &[u8], stride: usize) -> bool {
        let queue = self.queues.get(&to);
        queue.is_some_and(|queue| queue.offer(bytes, stride))
    }
}

/// What every connection of a listener has.
struct Shared {
    config: WssConfig,
    events: mpsc::Sender<Event>,
    total: Total,
}

/// Takes connections until the gateway is gone.
async fn listen(listener: TcpListener, config: WssConfig, events: mpsc::Sender<Event>) {
    let shared = Arc::new(Shared {
        config,
        events,
        total: Total::default(),
    });
    let mut connections = JoinSet::new();
    let mut sources = BTreeMap::<Source, usize>::new();
    let mut number = 0_u64;
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((tcp, peer)) => {
                    let source = Source::of(peer);
                    let is_full = connections.len() >= shared.config.connections;
                    let of_source = sources.entry(source).or_default();
                    if is_full || *of_source >= shared.config.per_source {
                        tracing::debug!(%peer, "Too many connections");
                        forget(&mut sources, source, 0);
                        continue;
                    }
                    *of_source += 1;
                    number += 1;
                    let at = carrier::endpoint(number, peer);
                    let shared = Arc::clone(&shared);
                    connections.spawn(async move {
                        serve(tcp, at, &shared).await;
                        source
                    });
                }
                Err(error) => {
                    tracing::debug!(%error, "No connection taken");
                    tokio::time::sleep(REFUSED).await;
                }
            },
            Some(ended) = connections.join_next() => match ended {
                Ok(source) => forget(&mut sources, source, 1),
                Err(error) => tracing::error!(%error, "A connection's task failed"),
            },
        }
    }
}

/// Counts `fewer` connections less of a source; one without any is remembered no more.
fn forget(sources: &mut BTreeMap<Source, usize>, source: Source, fewer: usize) {
    if let Some(count) = sources.get_mut(&source) {
        *count = count.saturating_sub(fewer);
        if *count == 0 {
            sources.remove(&source);
        }
    }
}

/// Serves one connection to its end.
async fn serve(tcp: TcpStream, at: SocketAddr, shared: &Shared) {
    let tls = Arc::clone(&shared.config.tls.borrow());
    let (sender, receiver) =
        match timeout(shared.config.handshake, wss::accept(tcp, tls, PATH)).await {
            Ok(Ok(halves)) => halves,
            Ok(Err(error)) => {
                tracing::debug!(%error, "No WebSocket came of a connection");
                return;
            }
            Err(_elapsed) => return,
        };
    let (queue, waiting) = wss::queue(&shared.total);
    let opened = Event::Opened(at, queue);
    if shared.events.send(opened).await.is_err() {
        return;
    }
    // Both at once: one that waits for the other end to read must not keep it from being read.
    tokio::select! {
        () = read(receiver, at, shared) => {}
        () = write(sender, waiting) => {}
    }
    // The gateway may be gone.
    drop(shared.events.send(Event::Closed(at)).await);
}

async fn read(mut receiver: Receiver, from: SocketAddr, shared: &Shared) {
    let mut heard = Vec::new();
    let mut quiet_since = tokio::time::Instant::now();
    loop {
        let until = quiet_since + shared.config.idle;
        let came = tokio::time::timeout_at(until, receiver.receive(&mut heard)).await;
        let stride = match came {
            Ok(Ok(Came::Datagrams { stride })) => stride,
            // A sign of life alone keeps no connection open.
            Ok(Ok(Came::Alive)) => continue,
            Ok(Err(error)) => {
                tracing::debug!(%error, "A connection ended");
                return;
            }
            Err(_elapsed) => return,
        };
        quiet_since = tokio::time::Instant::now();
        let bytes = std::mem::take(&mut heard);
        let came = Event::Came {
            from,
            bytes,
            stride,
        };
        if shared.events.send(came).await.is_err() {
            return;
        }
    }
}

async fn write(mut sender: Sender, mut waiting: Waiting) {
    while let Some(batch) = waiting.next().await {
        if let Err(error) = sender.send(batch, &mut waiting).await {
            tracing::debug!(%error, "A connection ended");
            return;
        }
    }
}

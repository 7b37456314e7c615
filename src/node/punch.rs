//! Many sockets towards a peer whose host guesses which ports our NAT gave them (engine::path::punch).
//!
//! The first that hears the peer stays, as a connection of its own to that endpoint; the others are
//! closed.

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::Poll,
    time::{Duration, Instant},
};

use tokio::{
    io::ReadBuf,
    net::UdpSocket,
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout, timeout_at},
};
use tracing::{debug, info};

use crate::dataplane::DataplaneHandle;
use crate::engine::Punch;
use crate::os::wss::{self, Total, Waiting};
use crate::os::{clock, spare, udp::FEW_HOPS};
use crate::wire::carrier;

/// Sockets of one attempt.
const SOCKETS: usize = 256;

/// Attempts at once, so that a node has no more than 1,024 such sockets.
const MAX_ATTEMPTS: usize = 4;

/// Sockets that were ever kept: the workers remember each.
const MAX_KEPT: u64 = 4096;

/// Between two datagrams of a round: 250 a second.
const PACE: Duration = Duration::from_millis(4);

/// When the second round begins, and when all is over: the peer guesses for some 10 s, and may begin
/// as much later than we.
const SECOND_ROUND: Duration = Duration::from_secs(12);
const OVER: Duration = Duration::from_secs(27);

/// Silence after which a socket that was kept is closed: paths without data are left before.
const IDLE: Duration = Duration::from_secs(200);

/// Bytes of one socket that workers have not looked at: beyond it the kernel keeps them, and drops.
const MAX_UNREAD: usize = 256 << 10;

const MAX_DATAGRAM: usize = 65_535; // bytes

/// Opens sockets for the engine.
#[derive(Debug)]
pub(super) struct Punches {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    plane: DataplaneHandle,
    total: Total,
    attempts: AtomicUsize,
    /// Numbers the sockets that are kept.
    kept: AtomicU64,
}

impl Punches {
    pub(super) fn new(plane: DataplaneHandle) -> Self {
        let shared = Shared {
            plane,
            total: Total::default(),
            attempts: AtomicUsize::new(0),
            kept: AtomicU64::new(0),
        };
        Self {
            shared: Arc::new(shared),
            tasks: JoinSet::new(),
        }
    }

    /// Begins an attempt, unless there are too many.
    pub(super) fn begin(&mut self, punch: Punch) {
        while self.tasks.try_join_next().is_some() {}
        let shared = Arc::clone(&self.shared);
        let is_full = shared.attempts.load(Ordering::Relaxed) >= MAX_ATTEMPTS
            || shared.kept.load(Ordering::Relaxed) >= MAX_KEPT;
        if is_full {
            debug!("Too many sockets are open to try others");
            return;
        }
        shared.attempts.fetch_add(1, Ordering::Relaxed);
        self.tasks.spawn(async move {
            let begun = clock::now();
            let kept = attempt(&punch, begun).await;
            shared.attempts.fetch_sub(1, Ordering::Relaxed);
            if let Some((socket, first)) = kept {
                let took = begun.elapsed();
                info!(?took, sockets = SOCKETS, "A peer guessed a port of our NAT");
                keep(&shared, socket, punch.to, first).await;
            } else {
                info!(sockets = SOCKETS, "No peer guessed a port of our NAT");
            }
        });
    }
}

/// Returns the socket that heard the peer, and what; None when none did.
async fn attempt(punch: &Punch, begun: Instant) -> Option<(UdpSocket, Vec<u8>)> {
    let mut sockets = Vec::<UdpSocket>::new();
    let mut buffer = vec![0; MAX_DATAGRAM];
    // What goes far comes to the peer's NAT once the peer has guessed: whatever came before it may make that NAT
    // give the peer another port, towards us and everybody after us (engine::path::pair). What goes to few hops
    // alone does not come there, but may not come to ours either, if that is a carrier's.
    let rounds = [(Duration::ZERO, Some(FEW_HOPS)), (SECOND_ROUND, None)];
    for ((at, hops), datagram) in rounds.into_iter().zip(&punch.datagrams) {
        let found = timeout_at((begun + at).into(), heard(&sockets, punch.to, &mut buffer)).await;
        if let Ok((place, first)) = found {
            return Some((sockets.swap_remove(place), first));
        }
        for place in 0..SOCKETS {
            if sockets.len() <= place {
                match spare::open().and_then(UdpSocket::from_std) {
                    Ok(socket) => sockets.push(socket),
                    Err(error) => {
                        debug!(%error, "No more sockets");
                        break;
                    }
                }
            }
            if let Some(socket) = sockets.get(place)
                && let Err(error) = send_as_far(socket, datagram, punch.to, hops).await
            {
                debug!(%error, "Not sent");
            }
            if let Ok((place, first)) = timeout(PACE, heard(&sockets, punch.to, &mut buffer)).await
            {
                return Some((sockets.swap_remove(place), first));
            }
        }
    }
    let (place, first) = timeout_at(
        (begun + OVER).into(),
        heard(&sockets, punch.to, &mut buffer),
    )
    .await
    .ok()?;
    Some((sockets.swap_remove(place), first))
}

/// Sends a datagram that goes as many hops; as many as any where none are named.
async fn send_as_far(
    socket: &UdpSocket,
    datagram: &[u8],
    to: SocketAddr,
    hops: Option<u8>,
) -> io::Result<usize> {
    let Some(hops) = hops else {
        return socket.send_to(datagram, to).await;
    };
    let usual = socket.ttl()?;
    socket.set_ttl(u32::from(hops))?;
    let sent = socket.send_to(datagram, to).await;
    socket.set_ttl(usual)?;
    sent
}

/// Waits until one of the sockets hears `peer`; returns which, and what it heard.
async fn heard(sockets: &[UdpSocket], peer: SocketAddr, bytes: &mut [u8]) -> (usize, Vec<u8>) {
    poll_fn(|context| {
        for (place, socket) in sockets.iter().enumerate() {
            let mut buffer = ReadBuf::new(bytes);
            while let Poll::Ready(received) = socket.poll_recv_from(context, &mut buffer) {
                if received.is_ok_and(|from| from == peer) {
                    return Poll::Ready((place, buffer.filled().to_vec()));
                }
                buffer.clear();
            }
        }
        Poll::Pending
    })
    .await
}

/// Carries datagrams between the workers and a peer until it falls silent.
async fn keep(shared: &Shared, socket: UdpSocket, peer: SocketAddr, first: Vec<u8>) {
    let number = shared.kept.fetch_add(1, Ordering::Relaxed);
    let at = carrier::punched(number, peer);
    let (queue, waiting) = wss::queue(&shared.total);
    shared.plane.set_carrier(at, &queue);
    drop(queue);
    tokio::select! {
        () = receive(shared, &socket, (at, peer), first) => {}
        () = send(&socket, peer, waiting) => {}
    }
    debug!("A socket that a peer guessed is closed");
}

async fn receive(
    shared: &Shared,
    socket: &UdpSocket,
    (at, peer): (SocketAddr, SocketAddr),
    first: Vec<u8>,
) {
    let unread = Arc::new(Semaphore::new(MAX_UNREAD));
    let mut next = Some(first);
    let mut buffer = vec![0; MAX_DATAGRAM];
    let mut heard_at = clock::now();
    loop {
        if let Some(bytes) = next.take() {
            let size = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            let Ok(share) = Arc::clone(&unread).acquire_many_owned(size).await else {
                return;
            };
            let stride = bytes.len();
            shared.plane.receive(at, bytes, stride, share);
        }
        match timeout_at((heard_at + IDLE).into(), socket.recv_from(&mut buffer)).await {
            Ok(Ok((length, from))) if from == peer => {
                heard_at = clock::now();
                next = buffer.get(..length).map(<[u8]>::to_vec);
            }
            Ok(Ok(_stranger)) => {}
            Ok(Err(error)) => {
                debug!(%error, "Receive error");
                // It is about an earlier datagram; one that stays must not keep us busy.
                sleep(PACE).await;
            }
            Err(_elapsed) => return,
        }
    }
}

async fn send(socket: &UdpSocket, peer: SocketAddr, mut waiting: Waiting) {
    while let Some(batch) = waiting.next().await {
        for datagram in batch.datagrams() {
            if let Err(error) = socket.send_to(datagram, peer).await {
                debug!(%error, "Not sent");
            }
        }
    }
}

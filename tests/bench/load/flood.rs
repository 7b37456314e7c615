//! Datagrams by the thousand, sent and received 64 at a time.

use std::{
    io::{IoSlice, IoSliceMut},
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    thread,
    time::Duration,
};

use agentnet::os::clock;
use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    sys::socket::{
        MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg, setsockopt, sockopt,
    },
};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

/// Datagrams of one call.
const BURST: usize = 64;

/// How long a sink waits for more.
const SILENCE: Duration = Duration::from_secs(1);

/// What a sink asks the kernel to keep for it: otherwise a burst is lost before the sink has its turn.
const BUFFER: usize = 4 << 20;

fn socket(near: SocketAddr) -> Result<UdpSocket> {
    let any = if near.is_ipv6() {
        "[::]:0"
    } else {
        "0.0.0.0:0"
    };
    Ok(UdpSocket::bind(any)?)
}

/// Sends all datagrams, or as many as the kernel takes at once; returns how many it took.
fn send(socket: &UdpSocket, to: SocketAddr, datagrams: &[Vec<u8>]) -> Result<usize> {
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(datagrams.len(), None);
    let slices = datagrams.iter().map(|bytes| [IoSlice::new(bytes)]);
    let slices = slices.collect::<Vec<_>>();
    let to = vec![Some(SockaddrStorage::from(to)); datagrams.len()];
    let sent = sendmmsg(
        socket.as_raw_fd(),
        &mut headers,
        &slices,
        to,
        [],
        MsgFlags::empty(),
    );
    match sent {
        Ok(sent) => Ok(sent.count()),
        // Whoever was to get them is not there yet, or cannot keep up.
        Err(Errno::ECONNREFUSED | Errno::ENOBUFS | Errno::EAGAIN) => Ok(0),
        Err(errno) => Err(errno).context("cannot send"),
    }
}

/// Sends datagrams of `size` bytes for as long as told.
pub(crate) fn blast(to: SocketAddr, size: usize, time: Duration) -> Result<Value> {
    let socket = socket(to)?;
    let burst = vec![vec![0x5a; size]; BURST];
    let (begun, mut sent) = (clock::now(), 0);
    while begun.elapsed() < time {
        sent += send(&socket, to, &burst)?;
    }
    Ok(json!({ "sent": sent, "seconds": begun.elapsed().as_secs_f64() }))
}

/// Counts datagrams until none comes any more.
pub(crate) fn sink(at: SocketAddr) -> Result<Value> {
    let socket = UdpSocket::bind(at)?;
    // Above net.core.rmem_max only root of the host may go.
    if setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).is_err() {
        setsockopt(&socket, sockopt::RcvBuf, &BUFFER)?;
    }
    let mut buffers = vec![vec![0; 2048]; BURST];
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BURST, None);
    let (mut count, mut bytes, mut first, mut last) = (0_u64, 0, None, None);
    loop {
        let mut slices = buffers
            .iter_mut()
            .map(|buffer| [IoSliceMut::new(buffer)])
            .collect::<Vec<_>>();
        let wait = MsgFlags::MSG_WAITFORONE;
        let came = recvmmsg(socket.as_raw_fd(), &mut headers, &mut slices, wait, None);
        let lengths = match came {
            Ok(came) => came.map(|message| message.bytes).collect::<Vec<_>>(),
            Err(Errno::EINTR) => continue,
            Err(Errno::EAGAIN) => break,
            Err(errno) => return Err(errno).context("cannot receive"),
        };
        let now = clock::now();
        if first.is_none() {
            // From now on it ends by itself; before, whoever started it waits for the sender too.
            socket.set_read_timeout(Some(SILENCE))?;
        }
        first = first.or(Some(now));
        last = Some(now);
        count += lengths.len() as u64;
        bytes += lengths.iter().sum::<usize>();
    }
    let seconds = first
        .zip(last)
        .map(|(first, last)| (last - first).as_secs_f64());
    Ok(json!({ "received": count, "bytes": bytes, "seconds": seconds }))
}

/// Sends `rate` datagrams a second that no key fits: to channels that are and are not there, to sessions
/// that are not there, and handshakes of nobody.
pub(crate) fn garbage(
    to: SocketAddr,
    rate: u32,
    time: Duration,
    channels: &[u32],
) -> Result<Value> {
    let socket = socket(to)?;
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let (begun, mut sent) = (clock::now(), 0);
    let mut due = 0;
    while begun.elapsed() < time {
        if begun.elapsed().as_secs_f64() * f64::from(rate) < f64::from(due) {
            thread::sleep(Duration::from_micros(100));
            continue;
        }
        let burst = (0..BURST).map(|n| nonsense(n, channels, &mut rng));
        sent += send(&socket, to, &burst.collect::<Vec<_>>())?;
        due += u32::try_from(BURST)?;
    }
    Ok(json!({ "sent": sent, "seconds": begun.elapsed().as_secs_f64() }))
}

fn nonsense(n: usize, channels: &[u32], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut datagram = vec![0; 148];
    rng.fill_bytes(&mut datagram);
    let start = match n % 4 {
        // An initiation whose mac1 is wrong, a message of a session, a packet of a channel.
        0 => [1, 0, 0, 0],
        1 => [4, 0, 0, 0],
        _ => [0x20, 0, 0, 0],
    };
    datagram.splice(..4, start);
    if n % 4 == 3
        && let Some(id) = channels.get(n / 4 % channels.len().max(1))
    {
        datagram.splice(4..8, id.to_be_bytes());
    }
    datagram
}

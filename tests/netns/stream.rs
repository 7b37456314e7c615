//! What runs between a and b while something happens to them: a paced stream whose longest silence
//! is the outage, and a download whose bytes must be whole.

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    lab::B,
    process::Proc,
    world::{Host, World, now, wait_within},
};

/// Where the echo answers.
pub(crate) const ECHO_PORT: u16 = 5000;

/// What B must allow A for stream and download.
pub(crate) const ALLOW: &str = "tcp/8000-8001,udp/5000";

/// Where a transfer comes from.
const TRANSFER_PORT: u16 = 8001;

/// What a transfer sends at once.
const CHUNK: u64 = 4096; // bytes

/// Pauses between chunks that make 1 MB/s and 50 kB/s.
pub(crate) const QUICK: Duration = Duration::from_millis(4);
pub(crate) const SLOW: Duration = Duration::from_millis(80);

/// Silence that ends a transfer.
const STALLED: Duration = Duration::from_secs(30);

/// Time between two datagrams of the stream.
const PACE: Duration = Duration::from_millis(10);

/// Echoes in a row, none overdue, that make a stream that flows again.
const STEADY: usize = 30;

/// Pause between two of them beyond which they are not in a row.
const OVERDUE: Duration = Duration::from_millis(100);

/// A datagram from `from` every 10 ms, and its echo by a plain socket on the other host.
pub(crate) struct Stream {
    echoes: Arc<Mutex<Vec<Instant>>>,
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Stream {
    /// Starts to send to the agent at `address`, whose host is `to`.
    pub(crate) fn start(from: &Host, to: &Host, address: &str) -> Self {
        let stream = Self::toward(from, address);
        stream.answered_by(to)
    }

    /// Starts to send to an address; nothing answers until [`Stream::answered_by`].
    pub(crate) fn toward(from: &Host, address: &str) -> Self {
        let socket = from.udp("[::]:0");
        let (echoes, ended) = (Arc::default(), Arc::<AtomicBool>::default());
        let mut this = Self {
            echoes: Arc::clone(&echoes),
            ended: Arc::clone(&ended),
            threads: Vec::new(),
        };
        let target = format!("[{address}]:{ECHO_PORT}");
        let sender = socket.try_clone().unwrap();
        let end = Arc::clone(&ended);
        let send = move || {
            while !end.load(Ordering::Relaxed) {
                // No route while the device is away: that is part of the outage.
                let _sent = sender.send_to(b"echo", &target);
                thread::sleep(PACE);
            }
        };
        let receive = move || collect(&socket, &echoes, &ended);
        this.threads = vec![thread::spawn(send), thread::spawn(receive)];
        this
    }

    /// Has `host` answer as well.
    pub(crate) fn answered_by(mut self, host: &Host) -> Self {
        let socket = host.udp(&format!("[::]:{ECHO_PORT}"));
        let ended = Arc::clone(&self.ended);
        self.threads
            .push(thread::spawn(move || echo(&socket, &ended)));
        self
    }

    /// Waits until echoes come one after the other.
    #[track_caller]
    pub(crate) fn flows(&self) {
        let since = now();
        self.flows_since(since);
    }

    /// Waits until echoes come one after the other, all of them later than `since`; returns the
    /// longest time without any from then on.
    #[track_caller]
    pub(crate) fn outage_since(&self, since: Instant) -> Duration {
        self.flows_since(since);
        let echoes = self.echoes.lock().unwrap();
        let before = echoes.iter().rev().find(|at| **at <= since).copied();
        let after = echoes.iter().filter(|at| **at > since).copied();
        let all = before.into_iter().chain(after).collect::<Vec<_>>();
        let gaps = all.windows(2).map(|pair| pair[1] - pair[0]);
        gaps.max().unwrap()
    }

    #[track_caller]
    fn flows_since(&self, since: Instant) {
        wait_within(Duration::from_secs(30), "the stream flows", || {
            let echoes = self.echoes.lock().unwrap();
            let last = echoes.last_chunk::<STEADY>()?;
            let is_steady = last.windows(2).all(|pair| pair[1] - pair[0] < OVERDUE);
            let is_current = last[0] > since && last[STEADY - 1].elapsed() < OVERDUE;
            (is_steady && is_current).then_some(())
        });
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic of theirs has been shown; this may run because of another.
            drop(thread.join());
        }
    }
}

fn collect(socket: &UdpSocket, echoes: &Mutex<Vec<Instant>>, ended: &AtomicBool) {
    let mut buffer = [0; 16];
    while !ended.load(Ordering::Relaxed) {
        if socket.recv(&mut buffer).is_ok() {
            echoes.lock().unwrap().push(now());
        }
    }
}

fn echo(socket: &UdpSocket, ended: &AtomicBool) {
    let mut buffer = [0; 16];
    while !ended.load(Ordering::Relaxed) {
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _sent = socket.send_to(&buffer[..length], from);
        }
    }
}

/// A long download of A from B's web server, over one TCP connection.
pub(crate) struct Download {
    process: Proc,
}

impl Download {
    /// Starts one of `size` bytes at 1 MB/s and returns once it runs; B serves /mnt/www.
    pub(crate) fn start(a: &Host, b: &Host, size: u64) -> Self {
        b.ok(&format!("head -c {size} /dev/urandom > /mnt/www/big"));
        let line = format!("exec curl -sS --limit-rate 1M -o /mnt/got http://{B}:8000/big");
        let this = Self {
            process: a.start(&line),
        };
        wait_within(Duration::from_secs(10), "the download runs", || {
            (Self::so_far() > 100_000).then_some(())
        });
        this
    }

    /// Waits until it has gone on by `bytes`.
    #[track_caller]
    pub(crate) fn goes_on(&self, bytes: u64) {
        let before = Self::so_far();
        wait_within(Duration::from_secs(30), "the download goes on", || {
            (Self::so_far() >= before + bytes).then_some(())
        });
    }

    /// Waits for the end; what came must be what was sent.
    #[track_caller]
    pub(crate) fn arrives_whole(self, a: &Host) {
        let ended = self.process.finish(Duration::from_secs(60));
        assert_eq!(ended.code, 0, "{ended}");
        let sums = a.ok("sha256sum < /mnt/got; sha256sum < /mnt/www/big");
        let (got, sent) = sums.split_once('\n').unwrap();
        assert_eq!(got, sent);
    }

    fn so_far() -> u64 {
        fs::metadata(World::path("got")).map_or(0, |file| file.len())
    }
}

/// One TCP connection from A over which B sends until told to end.
pub(crate) struct Transfer {
    received: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
    sender: JoinHandle<u64>,
    receiver: JoinHandle<u64>,
}

impl Transfer {
    /// Starts one from the agent at `address`, whose host is `b`; returns once it runs.
    pub(crate) fn start(a: &Host, b: &Host, address: &str, pace: Duration) -> Self {
        let (received, ended) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let listener = b.enter(|| TcpListener::bind(("::", TRANSFER_PORT)).unwrap());
        let socket = a.enter(|| TcpStream::connect((address, TRANSFER_PORT)).unwrap());
        let (end, count) = (Arc::clone(&ended), Arc::clone(&received));
        let this = Self {
            received,
            ended,
            sender: thread::spawn(move || send(&listener, pace, &end)),
            receiver: thread::spawn(move || receive(socket, &count)),
        };
        this.goes_on(100_000);
        this
    }

    /// Waits until it has gone on by `bytes`.
    #[track_caller]
    pub(crate) fn goes_on(&self, bytes: u64) {
        let before = self.received.load(Ordering::Relaxed);
        wait_within(Duration::from_secs(30), "the transfer goes on", || {
            (self.received.load(Ordering::Relaxed) >= before + bytes).then_some(())
        });
    }

    /// Ends it; every byte that was sent must have arrived, and be the one that was sent.
    #[track_caller]
    pub(crate) fn arrives_whole(self) {
        self.ended.store(true, Ordering::Relaxed);
        let (sent, got) = (self.sender.join().unwrap(), self.receiver.join().unwrap());
        assert!(sent == got && got > 0, "{sent} bytes sent, {got} arrived");
    }
}

/// Returns the byte at a place of the transfer; none like its neighbours 4096 bytes away.
fn byte_at(place: u64) -> u8 {
    (place.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

fn send(listener: &TcpListener, pace: Duration, ended: &AtomicBool) -> u64 {
    let (mut socket, _) = listener.accept().unwrap();
    socket.set_write_timeout(Some(STALLED)).unwrap();
    let mut sent = 0;
    while !ended.load(Ordering::Relaxed) {
        let chunk = (sent..sent + CHUNK).map(byte_at).collect::<Vec<_>>();
        socket.write_all(&chunk).unwrap();
        sent += CHUNK;
        thread::sleep(pace);
    }
    sent
}

fn receive(mut socket: TcpStream, received: &AtomicU64) -> u64 {
    socket.set_read_timeout(Some(STALLED)).unwrap();
    let (mut buffer, mut got) = (vec![0; 65_536], 0);
    loop {
        let length = socket.read(&mut buffer).unwrap();
        if length == 0 {
            return got;
        }
        for byte in &buffer[..length] {
            assert_eq!(*byte, byte_at(got), "the byte at {got}");
            got += 1;
        }
        received.store(got, Ordering::Relaxed);
    }
}

//! Records the frames that pass a host, with the time each was seen.

use std::{
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Instant,
};

use nix::{
    errno::Errno,
    libc,
    sys::{
        socket::{
            AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt,
            socket, sockopt,
        },
        time::TimeVal,
    },
};

use crate::world::{Host, now};

/// Room for bursts between two reads; the kernel cuts it to what the machine allows.
const BUFFER: usize = 16 << 20; // bytes

/// One frame as an interface saw it, from the Ethernet (or, on a TUN, the IP) header on.
#[derive(Clone)]
pub(crate) struct Frame {
    pub(crate) at: Instant,
    pub(crate) bytes: Vec<u8>,
    /// A TUN was given it by its program: not an Ethernet frame, nor what the host's kernel sends.
    pub(crate) into_tun: bool,
}

impl Frame {
    /// Returns true if `bytes` stand anywhere in the frame.
    pub(crate) fn has(&self, bytes: &[u8]) -> bool {
        self.bytes
            .windows(bytes.len())
            .any(|window| window == bytes)
    }

    /// Returns source port, destination port and payload of an IPv4 UDP datagram.
    pub(crate) fn udp(&self) -> Option<(u16, u16, &[u8])> {
        let ip = self
            .bytes
            .strip_prefix(&self.bytes[..12])?
            .strip_prefix(&[8, 0])?;
        let header = usize::from(ip.first()? & 15) * 4;
        if *ip.get(9)? != 17 {
            return None;
        }
        let udp = ip.get(header..)?;
        let word = |at: usize| Some(u16::from_be_bytes([*udp.get(at)?, *udp.get(at + 1)?]));
        Some((word(0)?, word(2)?, udp.get(8..)?))
    }
}

/// A running record; ends when dropped.
pub(crate) struct Capture {
    frames: Arc<Mutex<Vec<Frame>>>,
    ended: Arc<AtomicBool>,
    reader: Option<thread::JoinHandle<()>>,
}

impl Capture {
    pub(crate) fn start(host: &Host) -> Self {
        let open = || {
            let (raw, flags) = (SockType::Raw, SockFlag::SOCK_CLOEXEC);
            socket(AddressFamily::Packet, raw, flags, SockProtocol::EthAll)
        };
        let socket = host
            .enter(open)
            .expect("a packet socket opens in the own network");
        setsockopt(&socket, sockopt::RcvBuf, &BUFFER).unwrap();
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(0, 20_000)).unwrap();
        let (frames, ended) = (Arc::default(), Arc::default());
        let reader = {
            let (frames, ended) = (Arc::clone(&frames), Arc::clone(&ended));
            thread::spawn(move || record(&socket, &frames, &ended))
        };
        Self {
            frames,
            ended,
            reader: Some(reader),
        }
    }

    /// Returns what has been seen so far.
    pub(crate) fn frames(&self) -> Vec<Frame> {
        self.frames.lock().unwrap().clone()
    }

    /// Ends the record and returns all of it.
    pub(crate) fn finish(mut self) -> Vec<Frame> {
        self.end();
        self.frames()
    }

    fn end(&mut self) {
        // The frame that proves something may have arrived this instant: let the socket run dry.
        self.ended.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.end();
    }
}

fn record(socket: &OwnedFd, frames: &Mutex<Vec<Frame>>, ended: &AtomicBool) {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let stop = ended.load(Ordering::Relaxed);
        match recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer) {
            Ok((length, link)) => {
                let into_tun = link.is_some_and(|link| {
                    link.hatype() == libc::ARPHRD_NONE && link.pkttype() != libc::PACKET_OUTGOING
                });
                frames.lock().unwrap().push(Frame {
                    at: now(),
                    bytes: buffer[..length].to_vec(),
                    into_tun,
                });
            }
            Err(Errno::EAGAIN | Errno::EINTR) if stop => return,
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => panic!("capture: {error}"),
        }
    }
}

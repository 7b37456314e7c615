//! TCP flows: what the program says is read here, and said again by a socket of the host.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
};

use nix::{
    libc::linger,
    sys::socket::{setsockopt, sockopt::Linger},
};
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt::socket_error,
};
use smoltcp::{
    iface::{SocketHandle, SocketSet},
    socket::tcp::{RecvError, Socket, SocketBuffer, State},
    wire::IpListenEndpoint,
};

use crate::node::host_net::{
    packet::{Ends, Unreachable},
    stack::Stack,
};

/// What waits each way of a flow: one segment of the largest kind.
const BUFFER: usize = 64 * 1024; // bytes

/// How long nothing may pass before a flow is given up (RFC 5382 REQ-5).
pub(super) const IDLE: Duration = Duration::from_secs(2 * 3600 + 240);

/// What became of a flow.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Fate {
    Goes,
    Over,
}

/// Why a flow never began.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum NoFlow {
    /// The program is told as of a closed port.
    Refused,
    /// The program's own patience says when.
    Silence,
    Unreachable(Unreachable),
}

/// One flow.
pub(super) struct Flow {
    ends: Ends,
    host: TcpStream,
    sockets: SocketSet<'static>,
    /// None while the host's socket connects.
    socket: Option<SocketHandle>,
    /// What began the flow, for when the host's socket is connected.
    syn: Vec<u8>,
    can_read: bool,
    can_write: bool,
    /// Whether the other end has said all.
    host_ended: bool,
    /// Whether the other end knows that the program has.
    program_ended: bool,
    pub(super) last: Instant,
}

impl Flow {
    /// Begins to connect to where the program wants.
    pub(super) fn begin(ends: Ends, syn: &[u8], now: Instant) -> Result<Self, NoFlow> {
        let host = connecting(ends.to).map_err(|error| no_flow(&error))?;
        Ok(Self {
            ends,
            host,
            sockets: SocketSet::new(Vec::new()),
            socket: None,
            syn: syn.to_vec(),
            can_read: false,
            can_write: false,
            host_ended: false,
            program_ended: false,
            last: now,
        })
    }

    pub(super) fn host(&self) -> BorrowedFd<'_> {
        self.host.as_fd()
    }

    pub(super) fn syn(&self) -> &[u8] {
        &self.syn
    }

    pub(super) fn due(&self, stack: &mut Stack, now: Instant) -> Option<Instant> {
        stack.due(&self.sockets, now)
    }

    /// Takes that the host's socket is ready for something.
    pub(super) fn ready(
        &mut self,
        (can_read, can_write): (bool, bool),
        stack: &mut Stack,
        now: Instant,
    ) -> Result<Fate, NoFlow> {
        self.can_read |= can_read;
        self.can_write |= can_write;
        if self.socket.is_none() {
            if !can_write {
                return Ok(Fate::Goes);
            }
            let connected = socket_error(&self.host).map_err(io::Error::from);
            let connected = connected.and_then(|failed| failed.map_err(io::Error::from));
            connected.map_err(|error| no_flow(&error))?;
            self.open(stack, now);
        }
        Ok(self.pump(stack, now))
    }

    /// Answers the program, now that there is somebody at the other end.
    fn open(&mut self, stack: &mut Stack, now: Instant) {
        let buffer = || SocketBuffer::new(vec![0; BUFFER]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        let addr = match self.ends.to {
            SocketAddr::V4(to) => (*to.ip()).into(),
            SocketAddr::V6(to) => (*to.ip()).into(),
        };
        let at = IpListenEndpoint {
            addr: Some(addr),
            port: self.ends.to.port(),
        };
        // It fails for port 0, to which nothing is connected.
        let _heard = socket.listen(at);
        self.socket = Some(self.sockets.add(socket));
        let syn = std::mem::take(&mut self.syn);
        stack.take_again(&syn, &mut self.sockets, now);
    }

    /// Takes the packet that was read last.
    pub(super) fn take(&mut self, stack: &mut Stack, now: Instant) -> Fate {
        if self.socket.is_none() {
            // The program asks again, and is answered when the host's socket is connected.
            return Fate::Goes;
        }
        stack.take(&mut self.sockets, now);
        self.pump(stack, now)
    }

    /// Moves what can be moved, both ways.
    pub(super) fn pump(&mut self, stack: &mut Stack, now: Instant) -> Fate {
        let Some(handle) = self.socket else {
            return Fate::Goes;
        };
        loop {
            let socket = self.sockets.get_mut::<Socket<'_>>(handle);
            if socket.state() == State::Closed {
                return self.close();
            }
            let moved = outward(socket, &mut self.host, &mut self.can_write)
                .and_then(|out| Ok(out | self.inward(handle)?));
            let Ok(moved) = moved else {
                // The other end reset the flow, and so do we.
                self.sockets.get_mut::<Socket<'_>>(handle).abort();
                stack.turn(&mut self.sockets, now);
                return Fate::Over;
            };
            stack.turn(&mut self.sockets, now);
            if !moved {
                break;
            }
            self.last = now;
        }
        let state = self.sockets.get::<Socket<'_>>(handle).state();
        // Both have said all, and heard it.
        if matches!(state, State::Closed | State::TimeWait) {
            return self.close();
        }
        Fate::Goes
    }

    /// Reads of the host what there is room for, and passes its end on both ways.
    fn inward(&mut self, handle: SocketHandle) -> io::Result<bool> {
        let socket = self.sockets.get_mut::<Socket<'_>>(handle);
        let mut moved = false;
        let has_ended = matches!(
            socket.state(),
            State::CloseWait | State::LastAck | State::Closing | State::TimeWait
        );
        if has_ended && socket.recv_queue() == 0 && !self.program_ended {
            self.program_ended = true;
            self.host.shutdown(Shutdown::Write)?;
        }
        while self.can_read && !self.host_ended && socket.can_send() {
            let mut outcome = Ok(0);
            // It is open for sending, as was asked.
            let read = socket.send(|room| {
                outcome = self.host.read(room);
                (*outcome.as_ref().unwrap_or(&0), ())
            });
            let _open = read;
            match outcome {
                Ok(0) => {
                    self.host_ended = true;
                    socket.close();
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.can_read = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            moved |= self.can_read;
        }
        Ok(moved)
    }

    /// Tells the other end by a reset if the program did not end as one does.
    fn close(&self) -> Fate {
        if !(self.program_ended && self.host_ended) {
            let hard = linger {
                l_onoff: 1,
                l_linger: 0,
            };
            let _set = setsockopt(&self.host, Linger, &hard);
        }
        Fate::Over
    }

    /// Gives the flow up, both ways.
    pub(super) fn abort(&mut self, stack: &mut Stack, now: Instant) {
        if let Some(handle) = self.socket {
            self.sockets.get_mut::<Socket<'_>>(handle).abort();
            stack.turn(&mut self.sockets, now);
        }
        self.close();
    }
}

/// Says to the host what the program said; tells whether there was anything.
fn outward(
    socket: &mut Socket<'_>,
    host: &mut TcpStream,
    can_write: &mut bool,
) -> io::Result<bool> {
    let mut moved = false;
    while *can_write && socket.can_recv() {
        let mut outcome = Ok(0);
        let taken = socket.recv(|data| {
            outcome = host.write(data);
            (*outcome.as_ref().unwrap_or(&0), ())
        });
        match taken {
            Ok(()) => {}
            Err(RecvError::Finished | RecvError::InvalidState) => return Ok(moved),
        }
        match outcome {
            Ok(_) => moved = true,
            Err(error) if error.kind() == ErrorKind::WouldBlock => *can_write = false,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(moved)
}

/// Returns a socket of the host's that connects.
fn connecting(to: SocketAddr) -> io::Result<TcpStream> {
    let family = if to.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    match connect(&socket, &to) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn no_flow(error: &io::Error) -> NoFlow {
    let is = |kinds: &[ErrorKind]| kinds.contains(&error.kind());
    if is(&[ErrorKind::TimedOut]) {
        NoFlow::Silence
    } else if is(&[ErrorKind::HostUnreachable]) {
        NoFlow::Unreachable(Unreachable::Host)
    } else if is(&[ErrorKind::NetworkUnreachable, ErrorKind::AddrNotAvailable]) {
        NoFlow::Unreachable(Unreachable::Network)
    } else if is(&[ErrorKind::PermissionDenied]) {
        NoFlow::Unreachable(Unreachable::Prohibited)
    } else {
        NoFlow::Refused
    }
}

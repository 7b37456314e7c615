//! The process outside, as far as namespaces and program are concerned.

use std::{
    cell::Cell,
    ffi::OsString,
    fs::File,
    io,
    net::{TcpListener, UdpSocket},
    os::fd::{AsFd, OwnedFd},
    os::unix::net::UnixListener,
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
    sync::mpsc,
    thread,
};

use nix::{
    sys::prctl::set_child_subreaper,
    sys::signal::Signal,
    unistd::{Pid, dup2_stdin, dup2_stdout},
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::net::UnixDatagram;

use crate::os::namespace::causes::{Cause, Obstacle};
use crate::os::namespace::identity::identify;
use crate::os::namespace::init::Ending;
use crate::os::namespace::mounts;
use crate::os::namespace::processes;
use crate::os::namespace::signals::Signals;
use crate::os::namespace::talk::{self, Furnishing, Order, Report, Wanted, hear, tell};

/// This program, wherever its file is now.
const ITSELF: &str = "/proc/self/exe";

/// Holds what nobody but the node may know; a program is not given it.
const SECRET: &str = "AGENTNET_TOKEN";

/// Namespaces of a program that does not run yet; they go when this is dropped.
#[derive(Debug)]
pub struct Namespace {
    socket: OwnedFd,
    pid: Pid,
    /// Names the user namespace, to know its processes by.
    user: Option<String>,
}

/// The device of a namespace.
#[derive(Debug)]
pub struct Told {
    pub name: String,
    /// Its queues, at least one.
    pub queues: Vec<OwnedFd>,
    pub has_header: bool,
    pub has_udp_offload: bool,
    /// The device for the host's network; None without one, and once somebody took it.
    pub host: Option<OwnedFd>,
    /// An empty directory in memory, seen by nobody else and gone when this is closed; None once
    /// somebody took it.
    pub memory: Option<OwnedFd>,
}

/// What a furnished namespace has for the node.
#[derive(Debug)]
pub struct Furnished {
    /// Where programs inside reach the node's API; None if it was not wanted.
    pub api: Option<UnixListener>,
    /// Where programs inside ask for names: UDP and TCP of each place.
    pub names: Vec<(UdpSocket, TcpListener)>,
}

fn lost() -> Obstacle {
    let what = "the process in the namespace ended unexpectedly";
    Obstacle::new(Cause::EndedInside, what)
}

impl Namespace {
    /// Makes namespaces for `program` with a device as `wanted`.
    ///
    /// Standard input and output of this process are the program's from now on.
    pub fn make(program: &[OsString], wanted: Wanted) -> Result<(Self, Told), Obstacle> {
        let failed = |error: io::Error| Obstacle::os("start a process", &error);
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|error| failed(error.into()))?;
        let stdin = io::stdin().as_fd().try_clone_to_owned().map_err(failed)?;
        // Whatever the process inside leaves behind when it is killed comes to us.
        set_child_subreaper(true).map_err(|errno| failed(errno.into()))?;
        let child = Command::new(ITSELF)
            .arg0("agentnet")
            .args(["inside", "--"])
            .args(program)
            .env_remove(SECRET)
            .stdin(Stdio::from(theirs))
            .spawn()
            .map_err(|error| {
                if error.kind() == io::ErrorKind::NotFound {
                    return Obstacle::new(Cause::Proc, format!("cannot start {ITSELF}: {error}"));
                }
                failed(error)
            })?;
        let pid = i32::try_from(child.id()).map_err(|error| failed(io::Error::other(error)))?;
        let mut this = Self {
            socket: ours,
            pid: Pid::from_raw(pid),
            user: None,
        };
        this.order(&Order::Begin(wanted), Some(&stdin))?;
        drop(stdin);
        leave_streams().map_err(failed)?;
        let Report::Nameless = this.report()?.0 else {
            return Err(lost());
        };
        identify(this.pid)?;
        this.user = processes::user_namespace(this.pid);
        this.order(&Order::Identified, None)?;
        let told = this.device()?;
        Ok((this, told))
    }

    fn device(&self) -> Result<Told, Obstacle> {
        let (
            Report::Device {
                name,
                has_header,
                has_udp_offload,
                has_host,
            },
            mut fds,
        ) = self.report()?
        else {
            return Err(lost());
        };
        let host = if has_host { fds.pop() } else { None };
        let mut fds = fds.into_iter();
        let memory = fds.next().ok_or_else(lost)?;
        Ok(Told {
            name,
            queues: fds.collect(),
            has_header,
            has_udp_offload,
            host,
            memory: Some(memory),
        })
    }

    /// Gives the namespaces address, routes, files and places where names are asked for; blocks.
    pub fn furnish(&self, with: &Furnishing) -> Result<Furnished, Obstacle> {
        self.order(&Order::Furnish(with.clone()), None)?;
        let (Report::Furnished, fds) = self.report()? else {
            return Err(lost());
        };
        let mut fds = fds.into_iter();
        let api = if with.has_api {
            Some(UnixListener::from(fds.next().ok_or_else(lost)?))
        } else {
            None
        };
        let mut names = Vec::new();
        while let (Some(udp), Some(tcp)) = (fds.next(), fds.next()) {
            names.push((UdpSocket::from(udp), TcpListener::from(tcp)));
        }
        Ok(Furnished { api, names })
    }

    /// Has the program started; its signals come by `signals` from now on.
    ///
    /// With `has_api` it is told where the node's API is.
    pub fn start(self, has_api: bool, signals: Signals) -> Result<Running, Obstacle> {
        let api = has_api.then(|| {
            let path = mounts::api().to_string_lossy().into_owned();
            ("AGENTNET_SOCKET".to_owned(), path)
        });
        self.order(&Order::Start(api.into_iter().collect()), None)?;
        let failed = |error: io::Error| Obstacle::os("wait for the program", &error);
        Ok(Running {
            socket: talk::listen(self.socket).map_err(failed)?,
            signals,
            inside: self.pid,
            stops: Cell::new(0),
            user: self.user,
        })
    }

    fn order(&self, order: &Order, fd: Option<&OwnedFd>) -> Result<(), Obstacle> {
        let fds = fd.iter().map(AsFd::as_fd).collect::<Vec<_>>();
        match tell(&self.socket, order, &fds) {
            // What it said before it ended is still to be read.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            told => told.map_err(|error| Obstacle::os("tell the process inside", &error)),
        }
    }

    fn report(&self) -> Result<(Report, Vec<OwnedFd>), Obstacle> {
        match hear(&self.socket) {
            Ok(Some((Report::Failed(obstacle), _))) => Err(obstacle),
            Ok(Some(report)) => Ok(report),
            Ok(None) => Err(lost()),
            Err(error) => Err(Obstacle::os("hear of the process inside", &error)),
        }
    }
}

/// Lets go of the program's standard input and output: whoever is at the other end shall notice
/// when the program closes them.
fn leave_streams() -> io::Result<()> {
    let nothing = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&nothing)?;
    Ok(dup2_stdout(&nothing)?)
}

/// A program that runs; when this is dropped it ends, and everything that it started.
#[derive(Debug)]
pub struct Running {
    socket: UnixDatagram,
    signals: Signals,
    inside: Pid,
    /// How often the program stopped, as far as is known here.
    stops: Cell<u64>,
    user: Option<String>,
}

impl Running {
    /// Waits until the program has ended; signals are passed on to it meanwhile.
    ///
    /// # Cancel safety
    ///
    /// Safe: what was not waited for is heard of the next time.
    pub async fn ended(&self) -> Result<Ending, Obstacle> {
        loop {
            tokio::select! {
                // What is continued is known before that it is continued.
                biased;
                report = talk::next::<Report>(&self.socket) => match report {
                    Ok(Some(Report::Ended(ending))) => return Ok(ending),
                    Ok(Some(Report::Failed(obstacle))) => return Err(obstacle),
                    Ok(Some(Report::Stopped(stops))) => self.stops.set(stops),
                    Ok(Some(
                        Report::Started
                        | Report::Nameless
                        | Report::Device { .. }
                        | Report::Furnished,
                    )) => {}
                    Ok(None) | Err(_) => {
                        self.end_rest();
                        return Err(lost());
                    }
                },
                came = self.signals.next() => match came.to_pass_on(self.inside) {
                    Some(Signal::SIGCONT) => self.order(&Order::Continue(self.stops.get())),
                    Some(signal) => self.order(&Order::Signal(signal as i32)),
                    None => {}
                },
            }
        }
    }

    /// Asks the program to end, as a service manager does.
    pub fn ask_to_end(&self) {
        self.order(&Order::Signal(Signal::SIGTERM as i32));
    }

    fn order(&self, order: &Order) {
        // It fails when the program has just ended, which is heard of next.
        drop(tell(&self.socket, order, &[]));
    }

    /// Ends what the process inside would have ended, had it not been killed.
    fn end_rest(&self) {
        processes::end_all(|pid| {
            self.user.is_some() && processes::user_namespace(pid) == self.user
        });
    }
}

/// Checks that as many threads can be had as a node takes: much of what needs them rather aborts
/// than says so.
pub fn check_threads(count: usize) -> Result<(), Obstacle> {
    let mut started = Vec::new();
    for _ in 0..count {
        let (hold, held) = mpsc::channel::<()>();
        let thread = thread::Builder::new().spawn(move || {
            let _end = held.recv();
        });
        let thread = thread.map_err(|error| Obstacle::os("start a thread", &error))?;
        started.push((hold, thread));
    }
    for (hold, thread) in started {
        drop(hold);
        drop(thread.join());
    }
    Ok(())
}

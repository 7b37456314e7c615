//! Programs with a network of their own whose agents this daemon runs: what `agentnet run` hands over on a
//! socket beside the local API's.

use std::{
    fs,
    net::{TcpListener, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
    os::unix::net::UnixListener,
    path::Path,
    sync::Arc,
    time::Duration,
};

use axum::serve::Listener as _;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::AsyncWriteExt,
    sync::{oneshot, watch},
    task::JoinSet,
    time::timeout,
};
use tracing::{debug, warn};

use crate::dataplane::Device;
use crate::id::OverlayIp;
use crate::node::{
    agent::MTU,
    control::{Scoped, allowed},
    driver::Stopped,
    lent::{self, Lent},
    local_api::{self, Caller, Held, LocalListener, SocketError},
    running::{Change, Node, Visitor},
};
use crate::wire::api::local::{
    MAX_LINE, PROGRAMS, ProgramAgent, ProgramAnswer, ProgramDevice, ProgramHello, Versioned,
};
use crate::wire::api::problem::{Code, Problem};

/// Programs at once of root and the daemon's user, and as many of everybody else.
const MOST: usize = 1024;

/// How long the caller may take to make its namespaces.
const PATIENCE: Duration = Duration::from_secs(60);

/// Binds the socket beside the local API's.
pub(super) fn bind(api: &Path) -> Result<LocalListener, SocketError> {
    local_api::bind_for(&api.with_file_name(PROGRAMS), MOST)
}

/// Carries programs until the sender of `stopped` is dropped.
pub(super) async fn serve(
    mut listener: LocalListener,
    node: Arc<Node>,
    mut stopped: watch::Receiver<()>,
) {
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            ended = stopped.changed() => if ended.is_err() {
                open.shutdown().await;
                return;
            },
            (held, caller) = listener.accept() => {
                open.spawn(carry(held, caller, Arc::clone(&node)));
            }
            Some(_) = open.join_next() => {}
        }
    }
}

async fn carry(held: Held, caller: Caller, node: Arc<Node>) {
    let mut lines = Lines {
        held,
        bytes: Vec::new(),
        fds: Vec::new(),
    };
    if let Err(problem) = visit(&mut lines, caller, &node).await {
        debug!(why = problem.detail, "A program is not carried");
        // It may be gone.
        drop(lines.say(ProgramAnswer::Refused(problem)).await);
    }
}

/// Carries one program until it ends.
async fn visit(lines: &mut Lines, caller: Caller, node: &Arc<Node>) -> Result<(), Problem> {
    let hello = lines.hear::<ProgramHello>().await?;
    let (local, agent) = agent(node, caller, hello.agent).await?;
    lines.say(ProgramAnswer::Agent(agent.clone())).await?;
    let device = lines.hear::<ProgramDevice>().await?;
    let (lent, api) = taken(device, std::mem::take(&mut lines.fds))?;
    let visitor = Box::new(Visitor {
        lent,
        process: caller.process(),
    });
    let (done, answered) = oneshot::channel();
    let change = Change::TakeIn(local, visitor, done);
    node.changes.send(change).await.map_err(|_| Stopped)?;
    let realm = answered.await.map_err(|_| Stopped)??;
    let stayed = stay(lines, local, api, node).await;
    // The daemon that is gone has let go of everything.
    drop(node.changes.send(Change::LetGo(local, realm)).await);
    stayed
}

/// Answers a program's questions until it ends.
async fn stay(
    lines: &mut Lines,
    local: OverlayIp,
    api: Option<UnixListener>,
    node: &Arc<Node>,
) -> Result<(), Problem> {
    let mut inside = JoinSet::new();
    if let Some(api) = api {
        let listener = LocalListener::of(api);
        let listener = listener.map_err(|error| Problem::with(Code::BadRequest, error))?;
        let control = Arc::new(Scoped::new(Arc::clone(node), local));
        inside.spawn(local_api::serve(listener, control, std::future::pending()));
    }
    lines.say(ProgramAnswer::Connected).await?;
    lines.wait_for_end().await;
    inside.shutdown().await;
    Ok(())
}

/// Finds the agent that the caller means and may use.
async fn agent(
    node: &Arc<Node>,
    caller: Caller,
    agent: Option<String>,
) -> Result<(OverlayIp, ProgramAgent), Problem> {
    let may_all = caller.may_change().await;
    let user = caller.user().as_raw();
    let (suffix, offload, queues) = (node.suffix.clone(), node.offload, node.queues);
    let found = node.handle.call(move |core| {
        let local = allowed(core, agent.as_deref(), |placement| {
            may_all || placement.user == Some(user)
        })?;
        let membership = core.engine.membership(local);
        let membership = membership.ok_or_else(|| Problem::new(Code::NotFound))?;
        let name = membership.name().map(|name| name.to_string());
        let agent = ProgramAgent {
            name: name.unwrap_or_default(),
            address: local,
            search: lent::search(membership, &suffix),
            mtu: MTU,
            offload,
            queues,
        };
        Ok::<_, Problem>((local, agent))
    });
    found.await?
}

/// Puts descriptors and what was said of them together.
fn taken(
    device: ProgramDevice,
    fds: Vec<OwnedFd>,
) -> Result<(Lent, Option<UnixListener>), Problem> {
    let bad = |why: &str| Problem::with(Code::BadRequest, why);
    let names = device.names.saturating_mul(2);
    let all = device.queues.saturating_add(names) + usize::from(device.has_api);
    if fds.len() != all || device.queues == 0 {
        return Err(bad("other descriptors than were announced"));
    }
    let mut fds = fds.into_iter();
    let queues = fds.by_ref().take(device.queues).collect::<Vec<_>>();
    if !queues.iter().all(is_tun) {
        return Err(bad("a descriptor that is no TUN device"));
    }
    let mut places = Vec::new();
    for _ in 0..device.names {
        let (Some(udp), Some(tcp)) = (fds.next(), fds.next()) else {
            return Err(bad("too few descriptors"));
        };
        let (udp, tcp) = (UdpSocket::from(udp), TcpListener::from(tcp));
        let is_ready = udp.set_nonblocking(true).is_ok() && tcp.set_nonblocking(true).is_ok();
        if !is_ready {
            return Err(bad("a descriptor that is no socket"));
        }
        places.push((udp, tcp));
    }
    let lent = Lent {
        name: device.name,
        device: Device {
            fds: queues,
            has_header: device.has_header,
            has_udp_offload: device.has_udp_offload,
        },
        names: places,
        is_shared: device.is_shared,
    };
    Ok((lent, fds.next().map(UnixListener::from)))
}

fn is_tun(fd: &OwnedFd) -> bool {
    let opened = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    opened.is_ok_and(|path| path.ends_with("net/tun"))
}

/// A caller, line by line.
struct Lines {
    held: Held,
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Lines {
    /// Waits for the next line; descriptors that came by then are in `fds`.
    async fn hear<T: DeserializeOwned>(&mut self) -> Result<T, Problem> {
        let line = timeout(PATIENCE, self.line()).await;
        let line = line.map_err(|_elapsed| Problem::new(Code::Timeout))??;
        let heard = serde_json::from_slice::<Versioned<T>>(&line);
        Ok(heard
            .map_err(|error| Problem::with(Code::BadRequest, error))?
            .body)
    }

    async fn line(&mut self) -> Result<Vec<u8>, Problem> {
        let mut buffer = [0; 4096];
        loop {
            if let Some(end) = self.bytes.iter().position(|byte| *byte == b'\n') {
                let rest = self.bytes.split_off(end + 1);
                return Ok(std::mem::replace(&mut self.bytes, rest));
            }
            let received = self.held.receive(&mut buffer, &mut self.fds).await;
            match received {
                Ok(0) | Err(_) => {
                    return Err(Problem::with(Code::BadRequest, "the caller is gone"));
                }
                Ok(length) => self.bytes.extend(buffer.get(..length).unwrap_or_default()),
            }
            if self.bytes.len() > MAX_LINE || self.fds.len() > crate::os::passing::MAX_PASSED {
                return Err(Problem::new(Code::TooLarge));
            }
        }
    }

    async fn say(&mut self, answer: impl Serialize) -> Result<(), Problem> {
        let mut line = serde_json::to_vec(&Versioned::new(answer))
            .map_err(|error| Problem::with(Code::Internal, error))?;
        line.push(b'\n');
        let said = self.held.write_all(&line).await;
        said.map_err(|error| Problem::with(Code::Unreachable, error))
    }

    /// Waits until the caller is gone, whatever it still says.
    async fn wait_for_end(&self) {
        let mut buffer = [0; 64];
        loop {
            let mut fds = Vec::new();
            match self.held.receive(&mut buffer, &mut fds).await {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) => {
                    warn!(%error, "A program's connection broke");
                    return;
                }
            }
        }
    }
}

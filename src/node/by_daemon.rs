//! One program with an agent's network of its own, carried by the daemon of the host.

use std::{
    io::{self, BufRead, BufReader, Write},
    os::fd::{AsFd, OwnedFd},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Serialize;
use thiserror::Error;
use tokio::io::Interest;
use tokio::task::{block_in_place, spawn_blocking};
use tracing::{debug, info, warn};

use crate::node::host_net;
use crate::node::run::RunError;
use crate::os::namespace::{Ending, Furnishing, Namespace, Signals, Told, Wanted};
use crate::os::passing;
use crate::wire::api::local::{
    MAX_LINE, PROGRAMS, ProgramAgent, ProgramAnswer, ProgramDevice, ProgramHello, Versioned,
};
use crate::wire::api::problem::Problem;

/// How long the daemon may take to answer; it may be starting, with many agents.
const PATIENCE: Duration = Duration::from_secs(30);

/// Pause before a daemon that went away is looked for again.
const AGAIN: Duration = Duration::from_millis(500);

/// Why the daemon does not carry a program.
#[derive(Debug, Error)]
pub enum CarryError {
    #[error("the daemon does not carry the program: {0}")]
    Refused(Problem),
    #[error("the daemon at {} does not answer as it should", .0.display())]
    Strange(PathBuf, #[source] io::Error),
}

/// A daemon that is to carry a program as one of its agents.
#[derive(Debug)]
pub struct Carrier {
    socket: PathBuf,
    stream: BufReader<UnixStream>,
    agent: ProgramAgent,
}

/// What goes to a daemon, and again to the next one.
#[derive(Debug)]
struct Handed {
    device: ProgramDevice,
    fds: Vec<OwnedFd>,
}

impl Carrier {
    /// Asks the daemon whose local API is at `api` for an agent; None where no daemon runs.
    pub fn ask(api: &Path, agent: Option<&str>) -> Result<Option<Self>, CarryError> {
        let socket = api.with_file_name(PROGRAMS);
        let Ok(stream) = UnixStream::connect(&socket) else {
            return Ok(None);
        };
        let strange = |error| CarryError::Strange(socket.clone(), error);
        let patience = Some(PATIENCE);
        stream.set_read_timeout(patience).map_err(strange)?;
        let mut stream = BufReader::new(stream);
        let agent = agent.map(str::to_owned);
        let said = say(stream.get_ref(), &ProgramHello { agent }, &[]);
        match said.and_then(|()| hear(&mut stream)).map_err(strange)? {
            ProgramAnswer::Agent(agent) => Ok(Some(Self {
                socket,
                stream,
                agent,
            })),
            ProgramAnswer::Refused(problem) => Err(CarryError::Refused(problem)),
            ProgramAnswer::Connected => Err(strange(io::ErrorKind::InvalidData.into())),
        }
    }

    /// Returns the device that is of use.
    pub fn wanted(&self, shares_net: bool) -> Wanted {
        Wanted {
            host: shares_net.then_some(host_net::MTU),
            mtu: self.agent.mtu,
            offload: self.agent.offload,
            queues: self.agent.queues,
        }
    }

    /// Runs the program of `namespace`, until it ends.
    pub async fn run(
        self,
        (namespace, mut told): (Namespace, Told),
        signals: Signals,
    ) -> Result<Ending, RunError> {
        let host_net = host_net::of(&mut told, self.agent.address)?;
        let is_shared = host_net.is_some();
        let with = Furnishing {
            address: self.agent.address,
            nameserver: self.agent.address.ip(),
            search: host_net::search(self.agent.search.clone(), is_shared),
            hidden: None,
            has_api: true,
            host: is_shared.then(host_net::routes),
        };
        let furnished = block_in_place(|| namespace.furnish(&with))?;
        let mut handed = Handed {
            device: ProgramDevice {
                name: told.name,
                has_header: told.has_header,
                has_udp_offload: told.has_udp_offload,
                queues: told.queues.len(),
                names: furnished.names.len(),
                has_api: furnished.api.is_some(),
                is_shared,
            },
            fds: told.queues,
        };
        for (udp, tcp) in furnished.names {
            handed.fds.extend([OwnedFd::from(udp), OwnedFd::from(tcp)]);
        }
        handed.fds.extend(furnished.api.map(OwnedFd::from));
        let (socket, name) = (self.socket.clone(), self.agent.name.clone());
        let mut stream = block_in_place(|| self.hand_over(&handed))?;
        let program = namespace.start(true, signals)?;
        loop {
            tokio::select! {
                ended = program.ended() => return Ok(ended?),
                gone = wait_for_end(stream) => {
                    debug!(?gone, "The daemon is gone");
                    warn!("The node stopped; the program goes on without network until it is back");
                }
            }
            let again = find_again(&socket, &name, &handed);
            stream = tokio::select! {
                ended = program.ended() => return Ok(ended?),
                found = again => found,
            };
            info!("The node is back");
        }
    }

    /// Gives the daemon what it needs to carry the program; blocks.
    fn hand_over(mut self, handed: &Handed) -> Result<UnixStream, CarryError> {
        let strange = |error| CarryError::Strange(self.socket.clone(), error);
        let fds = handed.fds.iter().map(AsFd::as_fd).collect::<Vec<_>>();
        let said = say(self.stream.get_ref(), &handed.device, &fds);
        let answer = said.and_then(|()| hear(&mut self.stream));
        match answer.map_err(strange)? {
            ProgramAnswer::Connected => Ok(self.stream.into_inner()),
            ProgramAnswer::Refused(problem) => Err(CarryError::Refused(problem)),
            ProgramAnswer::Agent(_) => Err(strange(io::ErrorKind::InvalidData.into())),
        }
    }
}

impl Handed {
    fn try_clone(&self) -> io::Result<Self> {
        let fds = self.fds.iter().map(OwnedFd::try_clone);
        Ok(Self {
            device: self.device.clone(),
            fds: fds.collect::<Result<_, _>>()?,
        })
    }
}

/// Waits for the daemon that takes the program up again.
async fn find_again(socket: &Path, agent: &str, handed: &Handed) -> UnixStream {
    let mut last = String::new();
    loop {
        tokio::time::sleep(AGAIN).await;
        let (api, agent, handed) = (socket.to_owned(), agent.to_owned(), handed.try_clone());
        let found = spawn_blocking(move || {
            let handed = handed.map_err(|error| CarryError::Strange(api.clone(), error))?;
            let carrier = Carrier::ask(&api, Some(&agent))?;
            carrier
                .map(|carrier| carrier.hand_over(&handed))
                .transpose()
        });
        match found.await {
            Ok(Ok(Some(stream))) => return stream,
            Ok(Ok(None)) | Err(_) => {}
            Ok(Err(error)) => {
                let said = error.to_string();
                if said != last {
                    warn!(%error, "The node does not take the program up again");
                    last = said;
                }
            }
        }
    }
}

/// Waits until the daemon is gone.
async fn wait_for_end(stream: UnixStream) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    let stream = tokio::net::UnixStream::from_std(stream)?;
    let mut buffer = [0; 64];
    loop {
        let read = stream
            .async_io(Interest::READABLE, || stream.try_read(&mut buffer))
            .await?;
        if read == 0 {
            return Ok(());
        }
    }
}

fn say<T: Serialize>(
    mut stream: &UnixStream,
    what: &T,
    fds: &[std::os::fd::BorrowedFd<'_>],
) -> io::Result<()> {
    let mut line = serde_json::to_vec(&Versioned::new(what))?;
    line.push(b'\n');
    let sent = passing::send(stream, &line, fds)?;
    stream.write_all(line.get(sent..).unwrap_or_default())
}

fn hear(stream: &mut BufReader<UnixStream>) -> io::Result<ProgramAnswer> {
    let mut line = Vec::new();
    io::Read::take(stream, MAX_LINE as u64).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice::<Versioned<ProgramAnswer>>(&line)?.body)
}

//! One program with an agent's network of its own, and the node that carries it.

use std::{io, os::fd::AsRawFd, path::PathBuf, time::Duration};

use thiserror::Error;
use tokio::sync::oneshot;
use tokio::task::block_in_place;
use tracing::{debug, warn};

use crate::config::NodeConfig;
use crate::dataplane::Device;
use crate::engine::membership::Membership;
use crate::id::MemberName;
use crate::node::agent::MTU;
use crate::node::alone::{self, AloneError};
use crate::node::by_daemon::CarryError;
use crate::node::daemon::{self, DaemonError, Guest};
use crate::node::host_net::{self, HostNet};
use crate::node::join::JoinError;
use crate::node::lent::{self, Lent};
use crate::node::settle;
use crate::os::clock;
use crate::os::namespace::{
    Ending, Furnishing, Namespace, Obstacle, Running, Signals, Told, Wanted,
};
use crate::statement::token::JoinToken;

/// How long a program has to end when its node cannot go on.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Why a program did not run to its end.
#[derive(Debug, Error)]
pub enum RunError {
    #[error(transparent)]
    Alone(#[from] AloneError),
    /// A signal asked for the end before the program began.
    #[error("interrupted before the program began")]
    Asked(i32),
    #[error(transparent)]
    Carry(#[from] CarryError),
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    #[error("cannot carry the host's network")]
    HostNet(#[source] io::Error),
    #[error(transparent)]
    Obstacle(#[from] Obstacle),
    #[error("the node stopped before the program ended")]
    Stopped,
}

/// Whose network the program gets.
#[derive(Debug)]
pub enum Entry {
    /// That of an agent that joined before: the one named, or the only one.
    Member(Option<String>),
    /// That of one that joins now.
    Token {
        token: Box<JoinToken>,
        name: Option<MemberName>,
        /// Whether it leaves when the program ends, and nothing is kept.
        is_brief: bool,
    },
}

/// Returns the device that a node of these settings wants, and whether the host's network is wanted.
pub fn wanted(config: &NodeConfig, shares_net: bool) -> Wanted {
    Wanted {
        host: shares_net.then_some(host_net::MTU),
        mtu: MTU,
        offload: config.offload,
        queues: settle::workers(config.dataplane),
    }
}

/// Runs the program of `namespace` with a node of its own, until it ends.
pub async fn run(
    mut config: NodeConfig,
    entry: Entry,
    namespace: (Namespace, Told),
    signals: Signals,
) -> Result<Ending, RunError> {
    let (namespace, mut told) = namespace;
    // Kept until the end for what is in it.
    let memory = told.memory.take();
    let is_brief = matches!(&entry, Entry::Token { is_brief: true, .. });
    if is_brief && let Some(memory) = &memory {
        // It is gone with this process, however that ends.
        config.state = PathBuf::from(format!("/proc/self/fd/{}", memory.as_raw_fd()));
        config.socket = config.state.join("agentnet.sock");
    }
    let membership = unless_asked(&signals, enter(&config, entry)).await??;
    let node = Guesthouse::new(&config, &membership, &namespace, told, is_brief)?;
    let ended = node.run(config.clone(), namespace, signals).await;
    if is_brief && let Err(error) = alone::leave(&config, None, clock::unix()).await {
        warn!(%error, "The registry is not told that the agent left");
    }
    ended
}

async fn enter(config: &NodeConfig, entry: Entry) -> Result<Membership, AloneError> {
    match entry {
        Entry::Member(agent) => alone::find(config, agent.as_deref()),
        Entry::Token { token, name, .. } => {
            match alone::enter_patiently(config, &token, name).await {
                // As when a container starts anew with what it kept.
                Err(AloneError::Join(JoinError::AlreadyMember(name))) => {
                    alone::find(config, Some(&name.to_string()))
                }
                entered => entered,
            }
        }
    }
}

/// Does `work` unless a signal asks for the end first.
async fn unless_asked<T>(signals: &Signals, work: impl Future<Output = T>) -> Result<T, RunError> {
    tokio::select! {
        done = work => Ok(done),
        signal = signals.asked_to_end() => Err(RunError::Asked(signal)),
    }
}

/// What a node for one program begins with.
struct Guesthouse {
    guest: Guest,
    /// Carries packets until the end; None where the host's network is not wanted.
    _host_net: Option<HostNet>,
}

impl Guesthouse {
    fn new(
        config: &NodeConfig,
        membership: &Membership,
        namespace: &Namespace,
        mut told: Told,
        is_brief: bool,
    ) -> Result<Self, RunError> {
        let local = membership
            .address()
            .ok_or_else(|| AloneError::NoSuchAgent(membership.agent.clone()))?;
        let host_net = host_net::of(&mut told, local)?;
        let is_shared = host_net.is_some();
        let hidden = (!is_brief).then(|| config.state.to_string_lossy().into_owned());
        let with = Furnishing {
            address: local,
            nameserver: local.ip(),
            search: host_net::search(lent::search(membership, &config.suffix), is_shared),
            hidden,
            has_api: true,
            host: is_shared.then(host_net::routes),
        };
        let furnished = block_in_place(|| namespace.furnish(&with))?;
        debug!(device = %told.name, "Namespaces ready");
        let lent = Lent {
            name: told.name,
            device: Device {
                fds: told.queues,
                has_header: told.has_header,
                has_udp_offload: told.has_udp_offload,
            },
            names: furnished.names,
            is_shared,
        };
        let api = furnished.api;
        let guest = Guest { local, lent, api };
        Ok(Self {
            guest,
            _host_net: host_net,
        })
    }

    /// Runs the node, and in its care the program.
    async fn run(
        self,
        config: NodeConfig,
        namespace: Namespace,
        signals: Signals,
    ) -> Result<Ending, RunError> {
        let (stop, stopped) = oneshot::channel::<()>();
        let (ready, is_ready) = oneshot::channel();
        let until = async { drop(stopped.await) };
        // Nobody waits for it when a signal came first.
        let tell = || {
            let _gone = ready.send(());
        };
        let node = daemon::run_for(Some(self.guest), (config, None), until, tell);
        let mut node = std::pin::pin!(node);
        tokio::select! {
            ended = &mut node => return Err(ended.err().map_or(RunError::Stopped, Into::into)),
            begun = unless_asked(&signals, is_ready) => drop(begun?),
        }
        let program = namespace.start(true, signals)?;
        let ended = tokio::select! {
            ended = program.ended() => ended.map_err(RunError::from),
            stopped = &mut node => {
                let why = stopped.err().map_or(RunError::Stopped, Into::into);
                return Err(farewell(&program, why).await);
            }
        };
        drop(stop);
        if let Err(error) = node.await {
            warn!(%error, "The node did not end well");
        }
        // The network goes only now, so that the node does not miss it.
        drop(program);
        ended
    }
}

/// Lets a program end whose network is gone; returns what is to be told.
async fn farewell(program: &Running, why: RunError) -> RunError {
    program.ask_to_end();
    let ended = tokio::time::timeout(LAST_WORDS, program.ended()).await;
    debug!(?ended, "The program ended after its node");
    why
}

//! Joining and leaving where no daemon runs; the next one finds the change.

use std::time::Duration;

use thiserror::Error;
use tracing::warn;

use crate::config::NodeConfig;
use crate::engine::kept::Kept;
use crate::engine::membership::Membership;
use crate::engine::placement::Placement;
use crate::id::{MemberName, UnixTime};
use crate::node::join::{self, JoinError};
use crate::node::store::{Store, StoreError};
use crate::node::sync;
use crate::os::clock;
use crate::os::files::FileError;
use crate::statement::token::JoinToken;
use crate::wire::api::local::{Joined, Left};

/// How long leaving waits for the registry before it goes on without.
const FAREWELL: Duration = Duration::from_secs(5);

/// How long a registry may be silent or busy when an agent joins: as when a host starts, its network
/// is not there yet, or a hundred programs begin at once.
const JOIN_PATIENCE: Duration = Duration::from_secs(60);

/// Why it was not done; nothing was changed then, but a key may be kept for another try.
#[derive(Debug, Error)]
pub enum AloneError {
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error("no agent joined here yet")]
    NoAgents,
    #[error("no agent {0} joined here")]
    NoSuchAgent(String),
    #[error("several agents joined here: {0}")]
    Several(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<FileError> for AloneError {
    fn from(error: FileError) -> Self {
        Self::Store(error.into())
    }
}

/// Joins a network by `token` and keeps the agent in the node's state.
pub async fn join(
    config: &NodeConfig,
    token: &JoinToken,
    name: Option<MemberName>,
    placement: Placement,
    now: UnixTime,
) -> Result<Joined, AloneError> {
    let membership = enter(config, token, (name, placement), now).await?;
    Ok(join::joined(&membership, false)?)
}

/// Joins a network by `token`, keeps the agent in the node's state and returns it.
pub(super) async fn enter(
    config: &NodeConfig,
    token: &JoinToken,
    (name, placement): (Option<MemberName>, Placement),
    now: UnixTime,
) -> Result<Membership, AloneError> {
    let (store, mut state) = Store::open(&config.state)?;
    let (name, _) = join::identify(token, name, &mut state)?;
    // Whatever becomes of it, another try is to be by the same key; and a disk without room is told before a
    // use of the token is taken.
    store.save(&Kept::from(&state))?;
    let mut membership = join::join(token, Some(name), &config.suffix, &mut state, now).await?;
    membership.placement = placement;
    join::keep(&store, state, &membership)?;
    Ok(membership)
}

/// Does the same, and tries again for a while where the registry is not there yet.
pub async fn enter_patiently(
    config: &NodeConfig,
    token: &JoinToken,
    name: Option<MemberName>,
) -> Result<Membership, AloneError> {
    let since = clock::now();
    let mut pause = None;
    loop {
        let who = (name.clone(), Placement::default());
        let error = match enter(config, token, who, clock::unix()).await {
            Err(AloneError::Join(JoinError::Registry(error))) => error,
            entered => return entered,
        };
        let waited = clock::now().duration_since(since);
        if !error.is_passing() || waited > JOIN_PATIENCE {
            return Err(JoinError::Registry(error).into());
        }
        if pause.is_none() {
            warn!(%error, "Cannot join yet, trying again");
        }
        let next = sync::next_pause(pause, true);
        tokio::time::sleep(sync::jittered(next)).await;
        pause = Some(next);
    }
}

/// Returns the agent that is called so, or the only one.
pub(super) fn find(config: &NodeConfig, agent: Option<&str>) -> Result<Membership, AloneError> {
    let (_store, mut state) = Store::open(&config.state)?;
    let index = choose(&state.memberships, agent)?;
    Ok(state.memberships.swap_remove(index))
}

/// Returns the agents that joined here.
pub fn list(config: &NodeConfig) -> Result<Vec<Membership>, AloneError> {
    let (_store, state) = Store::open(&config.state)?;
    Ok(state.memberships)
}

/// Tells whether an agent of this name joined here.
pub fn has(config: &NodeConfig, agent: &str) -> Result<bool, AloneError> {
    match find(config, Some(agent)) {
        Ok(_) | Err(AloneError::Several(_)) => Ok(true),
        Err(AloneError::NoSuchAgent(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Leaves the network of `agent`, or of the only one; its key is kept for when it comes back.
pub async fn leave(
    config: &NodeConfig,
    agent: Option<&str>,
    now: UnixTime,
) -> Result<Left, AloneError> {
    let (store, mut state) = Store::open(&config.state)?;
    let index = choose(&state.memberships, agent)?;
    let mut membership = state.memberships.remove(index);
    state.leave(&membership);
    // Forgotten here first: what the registry still lists ends with its lease.
    store.save(&Kept::from(&state))?;
    if let Some(address) = membership.address() {
        store.remove_agent(address)?;
    }
    let told = tokio::time::timeout(FAREWELL, join::leave(&mut membership, now)).await;
    Ok(Left {
        name: name_of(&membership),
        told: matches!(told, Ok(Ok(()))),
    })
}

fn choose(memberships: &[Membership], agent: Option<&str>) -> Result<usize, AloneError> {
    let is = |membership: &Membership| {
        agent.is_none_or(|agent| agent == membership.agent || agent == name_of(membership))
    };
    let fits = (0..memberships.len()).filter(|i| memberships.get(*i).is_some_and(is));
    match (fits.collect::<Vec<_>>().as_slice(), agent) {
        ([one], _) => Ok(*one),
        ([], None) => Err(AloneError::NoAgents),
        ([], Some(agent)) => Err(AloneError::NoSuchAgent(agent.to_owned())),
        (several, _) => {
            let names = several.iter().filter_map(|i| memberships.get(*i));
            let mut names = names.map(name_of).collect::<Vec<_>>();
            names.sort_unstable();
            Err(AloneError::Several(names.join(", ")))
        }
    }
}

fn name_of(membership: &Membership) -> String {
    let name = membership.name().map(|name| name.to_string());
    name.unwrap_or_else(|| membership.agent.clone())
}

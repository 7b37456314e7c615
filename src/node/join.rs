//! Joining and leaving a network, with or without a running daemon.

use thiserror::Error;

use crate::engine::kept::Kept;
use crate::engine::membership::{LEASE, Membership, Refused, Start, State};
use crate::id::{IdentityKey, MemberName, NetworkId, Suffix, TunnelSecret, UnixTime};
use crate::node::store::{Store, StoreError};
use crate::os::{clock, random, tls::Pin};
use crate::registry::client::{Caller, ClientError, RegistryClient};
use crate::statement::{
    Chain, ChainError, NamePatterns, Record, Revocations, Statement, StatementError, issue,
    token::{JoinToken, TokenError},
};
use crate::wire::api::local::Joined;

/// Why an agent did not become a member.
#[derive(Debug, Error)]
pub enum JoinError {
    #[error("the token allows several names ({0}); choose one")]
    NameNeeded(NamePatterns),
    #[error("the token does not allow the name {name}, only {allowed}")]
    NameNotAllowed {
        name: MemberName,
        allowed: NamePatterns,
    },
    #[error("{0} is a member of this network already")]
    AlreadyMember(MemberName),
    #[error("the registry enrols by another key than the token names")]
    WrongRegistry,
    #[error("the token's registry pin is damaged")]
    BadPin,
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("this clock is behind: the token was signed at {0}")]
    ClockBehind(UnixTime),
    #[error(transparent)]
    Chain(ChainError),
    #[error(transparent)]
    Statement(#[from] StatementError),
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(transparent)]
    Registry(Box<ClientError>),
}

impl From<ChainError> for JoinError {
    fn from(error: ChainError) -> Self {
        if let ChainError::Statement(StatementError::FromFuture(signed)) = error {
            return Self::ClockBehind(signed);
        }
        Self::Chain(error)
    }
}

impl From<ClientError> for JoinError {
    fn from(error: ClientError) -> Self {
        Self::Registry(Box::new(error))
    }
}

/// Chooses the agent's name and puts its identity into `state`.
///
/// The caller keeps it before [`join`]: the registry may take it and its answer be lost, or not find room on our
/// disk, and then the name is that key's.
pub fn identify(
    token: &JoinToken,
    name: Option<MemberName>,
    state: &mut State,
) -> Result<(MemberName, IdentityKey), JoinError> {
    let name = choose_name(&token.open_chain()?, name)?;
    let agent = name.to_string();
    let mut others = state.memberships.iter();
    if others.any(|m| m.agent == agent && m.network == token.network) {
        return Err(JoinError::AlreadyMember(name));
    }
    let identity = state.identities.entry(agent);
    let identity = identity.or_insert_with(|| IdentityKey::from_seed(random::seed()));
    Ok((name, identity.clone()))
}

/// Makes an agent a member by `token`; nothing is kept until the caller keeps what is returned.
pub async fn join(
    token: &JoinToken,
    name: Option<MemberName>,
    suffix: &Suffix,
    state: &mut State,
    unix: UnixTime,
) -> Result<Membership, JoinError> {
    let chain = token.open_chain()?;
    let (name, identity) = identify(token, name, state)?;
    let agent = name.to_string();
    let links = grant_self(token, &chain, &identity, &name, unix)?;
    let pin = token.pin.parse::<Pin>().map_err(|_| JoinError::BadPin)?;
    let client = RegistryClient::connect(&token.url, pin, token.domain, unix).await?;
    let mut membership = Membership::new(Start {
        agent,
        identity,
        tunnel: TunnelSecret::from_seed(random::seed()),
        network: token.network,
        prefix: token.prefix,
        url: token.url.clone(),
        pin: token.pin.clone(),
        domain: token.domain,
        registry: client.registry(),
        chain: links.links(),
        suffix: suffix.clone(),
    });
    let mut left = state.left.iter();
    if let Some(left) = left.find(|left| left.is_of(&membership.agent, &token.network)) {
        membership.recall(left);
    }
    enrol(&client, &mut membership, links, unix).await?;
    for gateway in client.gateways() {
        // One that does not verify leaves the others; the watch brings them again.
        drop(membership.take_gateway(gateway.text(), unix));
    }
    Ok(membership)
}

/// Asks the registry for the admission and completes the chain with it.
async fn enrol(
    client: &RegistryClient,
    membership: &mut Membership,
    links: Chain,
    unix: UnixTime,
) -> Result<(), JoinError> {
    let nothing = Revocations::default();
    let member = links.verify_pending(&membership.network, &nothing, unix)?;
    let gate = member.authority.token.as_ref();
    if gate.is_some_and(|gate| gate.claims.enrol != client.registry()) {
        return Err(JoinError::WrongRegistry);
    }
    let record = record(membership, &member.name, unix, member.expires)?;
    let identity = membership.identity.clone();
    let caller = Caller::member(&identity, membership.network, unix);
    let joined = client.join(&caller, &record).await?;
    if let Some(admission) = joined.admission {
        membership.chain = links.with_admission(admission).links();
    }
    membership.member(unix)?;
    Ok(())
}

/// Tells the registry that the agent leaves; its name stays bound to its key, unless it is ephemeral.
pub async fn leave(membership: &mut Membership, unix: UnixTime) -> Result<(), JoinError> {
    let record = membership.sign_farewell(unix)?;
    let pin = membership
        .pin
        .parse::<Pin>()
        .map_err(|_| JoinError::BadPin)?;
    let client = RegistryClient::connect(&membership.url, pin, membership.domain, unix).await?;
    let caller = Caller::member(&membership.identity, membership.network, unix);
    Ok(client.leave(&caller, &record).await?)
}

fn record(
    membership: &mut Membership,
    name: &MemberName,
    unix: UnixTime,
    expires: UnixTime,
) -> Result<Statement<Record>, StatementError> {
    let now = membership.clock(unix);
    membership.seq = now.as_millis().max(membership.seq + 1);
    let claims = Record {
        name: name.clone(),
        tunnel: membership.tunnel.public(),
        gateways: Vec::new(),
        chain: membership.chain.clone(),
        ttl: LEASE.as_secs(),
    };
    let (key, network) = (&membership.identity, membership.network);
    issue::record(key, network, membership.seq, now, expires, claims)
}

fn choose_name(chain: &Chain, name: Option<MemberName>) -> Result<MemberName, JoinError> {
    let grant = chain.grants().last().map(Statement::claims);
    let allowed = NamePatterns(grant.map_or_else(Vec::new, |grant| grant.names.clone()));
    match (name, allowed.0.as_slice()) {
        (None, [one]) => one.exact().ok_or(JoinError::NameNeeded(allowed)),
        (None, _) => Err(JoinError::NameNeeded(allowed)),
        (Some(name), patterns) if patterns.iter().any(|p| p.matches(&name)) => Ok(name),
        (Some(name), _) => Err(JoinError::NameNotAllowed { name, allowed }),
    }
}

/// Signs our own grant with the token's key, to last as long as the links above the token.
fn grant_self(
    token: &JoinToken,
    chain: &Chain,
    identity: &IdentityKey,
    name: &MemberName,
    unix: UnixTime,
) -> Result<Chain, JoinError> {
    let network: NetworkId = token.network;
    let above = chain.authority(&network, &Revocations::default(), unix)?;
    let parent = chain.grants().last().ok_or(ChainError::Length)?;
    let did = identity.did();
    let grant = issue::agent_grant(&token.key, parent, did, name, unix, above.expires)?;
    let mut grants = chain.grants().to_vec();
    grants.push(grant);
    Ok(Chain::new(grants, None))
}

/// Tells what joining brought.
pub fn joined(membership: &Membership, running: bool) -> Result<Joined, JoinError> {
    let member = membership.member(clock::unix())?;
    Ok(Joined {
        name: member
            .name
            .full(&member.label, &membership.suffix)
            .to_string(),
        id: member.agent,
        address: member.address,
        network: member.label,
        network_id: member.network,
        expires: member.expires,
        running,
    })
}

/// Keeps a membership made without a daemon.
pub fn keep(store: &Store, mut state: State, membership: &Membership) -> Result<(), StoreError> {
    state
        .identities
        .insert(membership.agent.clone(), membership.identity.clone());
    state
        .left
        .retain(|left| !left.is_of(&membership.agent, &membership.network));
    store.save(&Kept::from(&state))?;
    Ok(store.save_agent(membership)?)
}

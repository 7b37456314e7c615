//! Making the statements that people, agents and registries issue, with the usual claims.

use std::{collections::BTreeSet, time::Duration};

use crate::id::{
    Did, IdentityKey, Label, MemberName, NamePattern, NetworkId, NetworkPrefix, UnixTime,
};
use crate::statement::{
    Admission, Gate, Grant, Head, Record, Role, RootClaims, Statement, StatementError, TokenClaims,
};

/// How long a network's root grant lasts; renewing it means every token is made anew.
pub const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 86_400);

/// How many grants may follow the root: admin, token, agent and a few generations of sub-agents.
const ROOT_DEPTH: u8 = 7;

/// What a token lets its holders become.
#[derive(Clone, Debug)]
pub struct TokenTerms {
    pub names: Vec<NamePattern>,
    pub tags: BTreeSet<Label>,
    pub ephemeral: bool,
    pub uses: u32,
    /// Last moment to join.
    pub closes: UnixTime,
    /// Longest admission.
    pub life: Duration,
    /// The registry's enrolment key.
    pub enrol: Did,
}

/// Signs the grant that an open network begins with: its owner holds every name.
pub fn root_grant(
    root: &IdentityKey,
    label: Label,
    prefix: NetworkPrefix,
    now: UnixTime,
) -> Result<Statement<Grant>, StatementError> {
    let claims = RootClaims {
        prefix,
        label,
        border: false,
    };
    root_grant_of(root, claims, now)
}

/// Signs the grant that a network with these claims begins with.
pub fn root_grant_of(
    root: &IdentityKey,
    claims: RootClaims,
    now: UnixTime,
) -> Result<Statement<Grant>, StatementError> {
    let network = NetworkId::from(root.did());
    let claims = Grant {
        role: Role::Owner,
        names: vec![NamePattern::any()],
        tags: BTreeSet::new(),
        depth: ROOT_DEPTH,
        ephemeral: false,
        ports: None,
        peers: None,
        root: Some(claims),
        token: None,
    };
    Statement::sign(
        root,
        head(root.did(), network, now, now + ROOT_LIFE),
        claims,
    )
}

/// Signs the grant of a join token by one who may make tokens; `parent` is the issuer's own grant.
pub fn token_grant(
    issuer: &IdentityKey,
    parent: &Statement<Grant>,
    token: Did,
    terms: TokenTerms,
    now: UnixTime,
) -> Result<Statement<Grant>, StatementError> {
    let network = network_of(parent)?;
    let claims = Grant {
        role: Role::Token,
        names: terms.names,
        tags: terms.tags,
        depth: parent.claims().depth.saturating_sub(1),
        ephemeral: terms.ephemeral,
        ports: None,
        peers: None,
        root: None,
        token: Some(TokenClaims {
            uses: terms.uses,
            life: terms.life.as_secs(),
            enrol: terms.enrol,
        }),
    };
    Statement::sign(issuer, head(token, network, now, terms.closes), claims)
}

/// Signs an agent's grant by a token (or admin, or parent agent) whose own grant is `parent`.
///
/// `expires` is the end of the links above a token, since the token's own end is only the last
/// moment to join.
pub fn agent_grant(
    issuer: &IdentityKey,
    parent: &Statement<Grant>,
    agent: Did,
    name: &MemberName,
    now: UnixTime,
    expires: UnixTime,
) -> Result<Statement<Grant>, StatementError> {
    let network = network_of(parent)?;
    let above = parent.claims();
    let claims = Grant {
        role: Role::Member,
        names: vec![NamePattern::exactly(name)],
        tags: above.tags.clone(),
        depth: above.depth.saturating_sub(1),
        ephemeral: above.ephemeral,
        ports: None,
        peers: None,
        root: None,
        token: None,
    };
    Statement::sign(issuer, head(agent, network, now, expires), claims)
}

/// Signs the registry's half of a membership; `until` bounds it from the links above the token.
pub fn admission(
    registry: &IdentityKey,
    network: NetworkId,
    gate: &Gate,
    first: UnixTime,
    now: UnixTime,
    until: UnixTime,
) -> Result<Statement<Admission>, StatementError> {
    let Some((agent, name)) = gate.holder.clone() else {
        return Err(StatementError::Malformed(
            "the chain ends in a token".to_owned(),
        ));
    };
    let claims = Admission {
        token: gate.token,
        name,
        first,
    };
    let expires = until.min(now + Duration::from_secs(gate.claims.life));
    Statement::sign(registry, head(agent, network, now, expires), claims)
}

/// Signs an agent's record of itself.
pub fn record(
    agent: &IdentityKey,
    network: NetworkId,
    seq: u64,
    now: UnixTime,
    expires: UnixTime,
    claims: Record,
) -> Result<Statement<Record>, StatementError> {
    let head = Head {
        seq,
        ..head(agent.did(), network, now, expires)
    };
    Statement::sign(agent, head, claims)
}

fn head(subject: Did, network: NetworkId, now: UnixTime, expires: UnixTime) -> Head {
    Head {
        subject,
        network: Some(network),
        issued: now,
        expires,
        seq: now.as_millis(),
    }
}

fn network_of(parent: &Statement<Grant>) -> Result<NetworkId, StatementError> {
    let missing = || StatementError::Malformed("the parent grant names no network".to_owned());
    parent.network().ok_or_else(missing)
}

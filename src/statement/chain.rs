//! The chain check: who holds what authority in a network, decided from signatures alone.

use std::collections::BTreeSet;

use thiserror::Error;

use crate::id::{
    AddressError, AgentId, Did, Label, MemberName, NamePattern, NetworkId, NetworkPrefix,
    OverlayIp, UnixTime,
};
use crate::statement::{
    Admission, Grant, Record, Revocations, Role, RootClaims, Scope, Statement, StatementError,
    TokenClaims,
};

/// Most links of a chain, admission included: root, admin, token, agent and a few sub-agents.
const MAX_LINKS: usize = 10;

/// Most names, tags or peers one grant may list.
const MAX_LIST: usize = 32;

/// Most gateways of a record (protocol.md section 5: multi-homing to 3).
const MAX_GATEWAYS: usize = 3;

/// Why a chain gives no authority.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum ChainError {
    #[error(transparent)]
    Statement(#[from] StatementError),
    #[error(
        "a chain has 1 to {MAX_LINKS} links and a grant at most {MAX_LIST} names, tags or peers"
    )]
    Length,
    #[error("the chain does not start at the network's root key")]
    WrongRoot,
    #[error("the statement is about another network")]
    WrongNetwork,
    #[error("link {0} is not issued by the key before it")]
    Broken(usize),
    #[error("link {0} takes more than the key before it has: {1}")]
    Exceeds(usize, &'static str),
    #[error("link {0} was revoked")]
    Revoked(usize),
    #[error("the join token expired at {0}")]
    TokenExpired(UnixTime),
    #[error("the chain goes through a join token and has no admission by the registry")]
    NotAdmitted,
    #[error("the admission is for another token, agent or name, or lasts too long")]
    WrongAdmission,
    #[error("the last grant of an agent names exactly one agent")]
    NotAnAgent,
    #[error(transparent)]
    Address(#[from] AddressError),
    #[error("the record does not match its chain: {0}")]
    WrongRecord(&'static str),
}

/// Grants root first, and the registry's admission if they go through a join token.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Chain {
    grants: Vec<Statement<Grant>>,
    admission: Option<Statement<Admission>>,
}

/// What the last key of a chain holds.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Authority {
    pub key: Did,
    pub role: Role,
    pub network: NetworkId,
    pub root: RootClaims,
    pub names: Vec<NamePattern>,
    pub tags: BTreeSet<Label>,
    pub depth: u8,
    pub ephemeral: bool,
    /// Narrowings along the chain, all of which hold.
    pub ports: Vec<Scope>,
    /// Narrowings along the chain, all of which hold.
    pub peers: Vec<Vec<NamePattern>>,
    pub expires: UnixTime,
    /// The token the chain goes through; None without one.
    pub token: Option<Gate>,
}

/// The token a chain goes through.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Gate {
    pub token: Did,
    pub claims: TokenClaims,
    /// Last moment to join.
    pub closes: UnixTime,
    /// The key and name the token was used for; None while the chain ends in the token.
    pub holder: Option<(Did, MemberName)>,
    /// When the admission ends; None before admission.
    pub admitted_until: Option<UnixTime>,
    /// First admission; None before admission.
    pub first: Option<UnixTime>,
}

/// An agent of a network, as its chain proves it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Member {
    pub agent: AgentId,
    pub name: MemberName,
    pub address: OverlayIp,
    pub network: NetworkId,
    pub label: Label,
    pub prefix: NetworkPrefix,
    /// When the membership lapses unless renewed.
    pub expires: UnixTime,
    pub authority: Authority,
}

impl Chain {
    /// Makes a chain of opened links.
    pub const fn new(
        grants: Vec<Statement<Grant>>,
        admission: Option<Statement<Admission>>,
    ) -> Self {
        Self { grants, admission }
    }

    /// Opens the links of a chain; the last may be an admission.
    pub fn parse(links: &[String]) -> Result<Self, ChainError> {
        Self::parse_beside(links, &[])
    }

    /// Does what [`Chain::parse`] does; links that `known` chains have were opened before.
    pub fn parse_beside(links: &[String], known: &[&Self]) -> Result<Self, ChainError> {
        if links.is_empty() || links.len() > MAX_LINKS {
            return Err(ChainError::Length);
        }
        let mut grants = Vec::with_capacity(links.len());
        for (i, link) in links.iter().enumerate() {
            let mut opened = known.iter().flat_map(|chain| &chain.grants);
            if let Some(grant) = opened.find(|grant| grant.text() == link) {
                grants.push(grant.clone());
                continue;
            }
            match Statement::<Grant>::open(link) {
                Ok(grant) => grants.push(grant),
                Err(StatementError::WrongKind { .. }) if i > 0 && i + 1 == links.len() => {
                    let admission = Statement::<Admission>::open(link)?;
                    return Ok(Self::new(grants, Some(admission)));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Self::new(grants, None))
    }

    /// Returns the links as they travel.
    pub fn links(&self) -> Vec<String> {
        let grants = self.grants.iter().map(|g| g.text().to_owned());
        grants
            .chain(self.admission.iter().map(|a| a.text().to_owned()))
            .collect()
    }

    /// Returns the grants, root first.
    pub fn grants(&self) -> &[Statement<Grant>] {
        &self.grants
    }

    /// Returns the admission; None without one.
    pub const fn admission(&self) -> Option<&Statement<Admission>> {
        self.admission.as_ref()
    }

    /// Returns this chain with its admission exchanged.
    #[must_use]
    pub fn with_admission(mut self, admission: Statement<Admission>) -> Self {
        self.admission = Some(admission);
        self
    }

    /// Checks the chain and returns the agent it makes.
    pub fn verify(
        &self,
        root: &NetworkId,
        revoked: &Revocations,
        now: UnixTime,
    ) -> Result<Member, ChainError> {
        self.authority(root, revoked, now)?.member()
    }

    /// Checks the chain of one who asks for an admission: all but the admission itself.
    pub fn verify_pending(
        &self,
        root: &NetworkId,
        revoked: &Revocations,
        now: UnixTime,
    ) -> Result<Member, ChainError> {
        let authority = self.walk(root, revoked, now)?;
        if let Some(gate) = &authority.token {
            if now >= gate.closes {
                return Err(ChainError::TokenExpired(gate.closes));
            }
            if revoked
                .of(&gate.token, Role::Token, &[])
                .is_some_and(|at| now > at)
            {
                return Err(ChainError::Revoked(self.grants.len() - 2));
            }
        }
        authority.member()
    }

    /// Checks the chain and returns what its last key holds.
    pub fn authority(
        &self,
        root: &NetworkId,
        revoked: &Revocations,
        now: UnixTime,
    ) -> Result<Authority, ChainError> {
        let mut authority = self.walk(root, revoked, now)?;
        match (&mut authority.token, &self.admission) {
            (None, None) => {}
            (None, Some(_)) => return Err(ChainError::WrongAdmission),
            (Some(_), None) if authority.role == Role::Token => {}
            (Some(_), None) => return Err(ChainError::NotAdmitted),
            (Some(gate), Some(admission)) => {
                gate.admit(admission, root, revoked, now)?;
                authority.expires = authority.expires.min(admission.expires());
            }
        }
        Ok(authority)
    }

    /// Walks the grants from the root; the admission, if one is needed, is not looked at.
    fn walk(
        &self,
        root: &NetworkId,
        revoked: &Revocations,
        now: UnixTime,
    ) -> Result<Authority, ChainError> {
        if self.grants.len() > MAX_LINKS {
            return Err(ChainError::Length);
        }
        let (first, rest) = self.grants.split_first().ok_or(ChainError::Length)?;
        let mut held = Authority::of_root(first, root, now)?;
        let mut ancestors = vec![root.did()];
        self.check_revoked(0, &held, &ancestors, revoked)?;
        for (i, grant) in rest.iter().enumerate() {
            ancestors.push(held.key);
            held = held.hand_down(i + 1, grant, now)?;
            self.check_revoked(i + 1, &held, &ancestors, revoked)?;
        }
        Ok(held)
    }

    fn check_revoked(
        &self,
        at: usize,
        held: &Authority,
        ancestors: &[Did],
        revoked: &Revocations,
    ) -> Result<(), ChainError> {
        // A revoked token voids later admissions only, which the admission's check sees to.
        let key_gone =
            held.role != Role::Token && revoked.of(&held.key, held.role, ancestors).is_some();
        let grant = self.grants.get(at).ok_or(ChainError::Length)?;
        if key_gone || revoked.has_grant(&grant.hash(), held.role, ancestors) {
            return Err(ChainError::Revoked(at));
        }
        Ok(())
    }
}

impl Authority {
    fn of_root(
        grant: &Statement<Grant>,
        root: &NetworkId,
        now: UnixTime,
    ) -> Result<Self, ChainError> {
        let claims = grant.claims();
        if grant.issuer() != root.did() {
            return Err(ChainError::WrongRoot);
        }
        check_link(grant, root, now)?;
        let fixed = claims.root.clone().filter(|r| r.prefix.number() != 0);
        let (Some(fixed), Role::Owner, None) = (fixed, claims.role, &claims.token) else {
            return Err(ChainError::Exceeds(
                0,
                "a root grant makes an owner and fixes the prefix",
            ));
        };
        Ok(Self {
            key: grant.subject(),
            role: claims.role,
            network: *root,
            root: fixed,
            names: claims.names.clone(),
            tags: claims.tags.clone(),
            depth: claims.depth,
            ephemeral: claims.ephemeral,
            ports: claims.ports.iter().cloned().collect(),
            peers: claims.peers.iter().cloned().collect(),
            expires: grant.expires(),
            token: None,
        })
    }

    /// Returns what the next grant hands down; an error when it takes more than this key has.
    fn hand_down(
        mut self,
        at: usize,
        grant: &Statement<Grant>,
        now: UnixTime,
    ) -> Result<Self, ChainError> {
        let claims = grant.claims();
        if grant.issuer() != self.key {
            return Err(ChainError::Broken(at));
        }
        check_link(grant, &self.network, now)?;
        if let Some(what) = self.exceeded_by(claims) {
            return Err(ChainError::Exceeds(at, what));
        }
        if self.role == Role::Token {
            let name = exactly_one(&claims.names).ok_or(ChainError::NotAnAgent)?;
            if let Some(gate) = &mut self.token {
                gate.holder = Some((grant.subject(), name));
            }
        }
        if let Some(token) = &claims.token {
            self.token = Some(Gate {
                token: grant.subject(),
                claims: token.clone(),
                closes: grant.expires(),
                holder: None,
                admitted_until: None,
                first: None,
            });
        } else {
            // The end of a token's grant is the last moment to join, not the end of a membership.
            self.expires = self.expires.min(grant.expires());
        }
        self.ports.extend(claims.ports.clone());
        self.peers.extend(claims.peers.clone());
        Ok(Self {
            key: grant.subject(),
            role: claims.role,
            names: claims.names.clone(),
            tags: claims.tags.clone(),
            depth: claims.depth,
            ephemeral: claims.ephemeral,
            ..self
        })
    }

    /// Returns in what `child` takes more than this key has; None when it is within.
    fn exceeded_by(&self, child: &Grant) -> Option<&'static str> {
        let name_held = |name: &NamePattern| match self.role {
            // An agent manages the names below its own, and cannot give its own away.
            Role::Member => exactly_one(&self.names).is_some_and(|own| name.is_child_of(&own)),
            Role::Owner | Role::Admin | Role::Auditor | Role::Token => {
                self.names.iter().any(|held| held.covers(name))
            }
        };
        let peers_held = |peers: &Vec<NamePattern>| {
            self.peers
                .iter()
                .all(|held| peers.iter().all(|peer| held.iter().any(|h| h.covers(peer))))
        };
        [
            (!self.role.may_grant(child.role), "role"),
            (child.role == Role::Owner, "role"),
            (self.depth == 0 || child.depth >= self.depth, "depth"),
            (!child.names.iter().all(name_held), "names"),
            (
                self.role != Role::Owner && !child.tags.is_subset(&self.tags),
                "tags",
            ),
            (self.ephemeral && !child.ephemeral, "ephemeral"),
            (child.root.is_some(), "root"),
            (
                child.token.is_some() != (child.role == Role::Token),
                "token",
            ),
            (
                !child
                    .ports
                    .iter()
                    .all(|p| self.ports.iter().all(|held| held.covers(p))),
                "ports",
            ),
            (!child.peers.iter().all(peers_held), "peers"),
        ]
        .into_iter()
        .find_map(|(exceeds, what)| exceeds.then_some(what))
    }

    fn member(self) -> Result<Member, ChainError> {
        if !matches!(self.role, Role::Member | Role::Admin | Role::Auditor) {
            return Err(ChainError::NotAnAgent);
        }
        let name = exactly_one(&self.names).ok_or(ChainError::NotAnAgent)?;
        let agent = AgentId::from(self.key);
        Ok(Member {
            agent,
            name,
            address: self.root.prefix.address_of(&agent)?,
            network: self.network,
            label: self.root.label.clone(),
            prefix: self.root.prefix,
            expires: self.expires,
            authority: self,
        })
    }
}

impl Gate {
    fn admit(
        &mut self,
        admission: &Statement<Admission>,
        root: &NetworkId,
        revoked: &Revocations,
        now: UnixTime,
    ) -> Result<(), ChainError> {
        let claims = admission.claims();
        admission.check_time(now)?;
        if admission.network() != Some(*root) {
            return Err(ChainError::WrongNetwork);
        }
        let life = std::time::Duration::from_secs(self.claims.life);
        let fits = admission.issuer() == self.claims.enrol
            && self.holder == Some((admission.subject(), claims.name.clone()))
            && claims.token == self.token
            && claims.first <= self.closes
            && admission.expires() <= admission.issued() + life;
        if !fits {
            return Err(ChainError::WrongAdmission);
        }
        if revoked
            .of(&self.token, Role::Token, &[])
            .is_some_and(|at| claims.first > at)
        {
            return Err(ChainError::Revoked(0));
        }
        self.admitted_until = Some(admission.expires());
        self.first = Some(claims.first);
        Ok(())
    }
}

/// Checks a record against its chain and returns the agent it is of.
pub fn verify_record(
    record: &Statement<Record>,
    root: &NetworkId,
    revoked: &Revocations,
    now: UnixTime,
) -> Result<Member, ChainError> {
    let chain = Chain::parse(&record.claims().chain)?;
    verify_record_of(record, &chain, root, revoked, now)
}

/// Does what [`verify_record`] does for one whose `chain` was opened before.
pub fn verify_record_of(
    record: &Statement<Record>,
    chain: &Chain,
    root: &NetworkId,
    revoked: &Revocations,
    now: UnixTime,
) -> Result<Member, ChainError> {
    let member = chain.verify(root, revoked, now)?;
    check_record(record, &member, now)?;
    Ok(member)
}

/// Checks the record of one who asks for an admission, and whose `chain` was opened before.
pub fn verify_pending_record_of(
    record: &Statement<Record>,
    chain: &Chain,
    root: &NetworkId,
    revoked: &Revocations,
    now: UnixTime,
) -> Result<Member, ChainError> {
    let member = chain.verify_pending(root, revoked, now)?;
    check_record(record, &member, now)?;
    Ok(member)
}

fn check_record(
    record: &Statement<Record>,
    member: &Member,
    now: UnixTime,
) -> Result<(), ChainError> {
    record.check_time(now)?;
    let claims = record.claims();
    if record.network() != Some(member.network) {
        return Err(ChainError::WrongNetwork);
    }
    let own = record.issuer() == member.agent.did() && record.subject() == member.agent.did();
    [
        (!own, "it is signed by another key"),
        (claims.name != member.name, "it has another name"),
        (record.expires() > member.expires, "it outlives its chain"),
        (
            claims.gateways.len() > MAX_GATEWAYS,
            "it lists more than 3 gateways",
        ),
    ]
    .into_iter()
    .find_map(|(bad, what)| bad.then_some(Err(ChainError::WrongRecord(what))))
    .unwrap_or(Ok(()))
}

fn check_link(grant: &Statement<Grant>, root: &NetworkId, now: UnixTime) -> Result<(), ChainError> {
    let claims = grant.claims();
    if grant.network() != Some(*root) {
        return Err(ChainError::WrongNetwork);
    }
    let peers = claims.peers.as_ref().map_or(0, Vec::len);
    if claims.names.len().max(claims.tags.len()).max(peers) > MAX_LIST {
        return Err(ChainError::Length);
    }
    match grant.check_time(now) {
        // Whoever was admitted in time stays; who joins now is checked by `verify_pending`.
        Err(StatementError::Expired(_)) if claims.role == Role::Token => Ok(()),
        checked => Ok(checked?),
    }
}

fn exactly_one(names: &[NamePattern]) -> Option<MemberName> {
    match names {
        [one] => one.exact(),
        _ => None,
    }
}

#[cfg(test)]
mod attenuation;
#[cfg(test)]
mod tests;

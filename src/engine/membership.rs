//! What one agent must not forget of one network: keys, statements, consents and requests.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::engine::{
    path::Mode, placement::Placement, proven::ProvenChains, revoked::RevocationLog, twin::Signed,
    wireguard::WireGuard,
};
use crate::id::{
    AgentId, Did, DomainId, FullName, IdentityKey, Label, MemberName, NamePattern, NetworkId,
    NetworkPrefix, OverlayIp, Suffix, TunnelKey, TunnelSecret, UnixTime, hash,
};
use crate::statement::{
    Admission, Chain, ChainError, Claims, Consent, Gateway, Grant, Head, Member, Record, Replayed,
    Request, Revocation, Scope, Seen, Statement, StatementError, issue, verify_record_of,
};

/// No correct clock is before the day this code was written; a clock reset to 1970 is not believed.
const BUILT: UnixTime = UnixTime::from_secs(1_793_491_200);

/// How much the clocks of others, which raise ours, may run ahead (protocol.md section 2).
const OTHERS_AHEAD: Duration = Duration::from_secs(60);

/// Registry lease of a record; refreshed at a third of it.
pub const LEASE: Duration = Duration::from_secs(600);

/// How often the record is refreshed, so that two refreshes may fail before the lease ends.
pub const REFRESH: Duration = Duration::from_secs(200);

/// Most records, consents or requests kept of others, so that no registry can fill the disk.
pub(crate) const MAX_KEPT: usize = 4096;

/// Most gateways kept; a domain has a few, and its registry could name any number.
const MAX_GATEWAYS: usize = 64;

/// Most networks remembered after they were left.
const MAX_LEFT: usize = 64;

/// Why a membership does not take a statement.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum Refused {
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error(transparent)]
    Statement(#[from] StatementError),
    #[error(transparent)]
    Replayed(#[from] Replayed),
    #[error("the statement is not about this agent")]
    NotForUs,
    #[error("another key holds the name {0} with a valid chain")]
    NameHeld(MemberName),
    #[error("nobody here asked for or gave a consent that this belongs to")]
    Unasked,
    #[error("too many are kept already")]
    Full,
}

impl Refused {
    /// Tells whether no honest end would have passed the statement on: it checked it first, and
    /// only time or what else was revoked can have made it invalid since.
    pub(crate) const fn is_forgery(&self) -> bool {
        match self {
            Self::Chain(error) => !matches!(
                error,
                ChainError::Length
                    | ChainError::NotAdmitted
                    | ChainError::Revoked(_)
                    | ChainError::TokenExpired(_)
                    | ChainError::Statement(
                        StatementError::Expired(_)
                            | StatementError::FromFuture(_)
                            | StatementError::WrongVersion(_)
                    )
            ),
            Self::Statement(error) => !matches!(
                error,
                StatementError::Expired(_)
                    | StatementError::FromFuture(_)
                    | StatementError::WrongVersion(_)
            ),
            Self::NotForUs => true,
            Self::Full | Self::NameHeld(_) | Self::Replayed(_) | Self::Unasked => false,
        }
    }
}

/// Answers requests without a person: who asks from a matching name or tag gets the scope.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct AutoRule {
    pub from: Selector,
    pub allow: Scope,
}

/// Whom an automatic answer is for.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Selector {
    Name(NamePattern),
    Tag(Label),
}

impl Selector {
    /// Tells whether a member that says it has `name` may be meant, its chain not looked at.
    pub(crate) fn may_select(&self, name: &MemberName) -> bool {
        match self {
            Self::Name(pattern) => pattern.matches(name),
            Self::Tag(_) => true,
        }
    }

    /// Tells whether `member` is meant.
    pub fn selects(&self, member: &Member) -> bool {
        match self {
            Self::Name(pattern) => pattern.matches(&member.name),
            Self::Tag(tag) => member.authority.tags.contains(tag),
        }
    }
}

/// A statement for the registry that it has not taken yet.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "kind", content = "statement", rename_all = "lowercase")]
pub enum Outgoing {
    Consent(Statement<Consent>),
    Request(Statement<Request>),
}

impl Outgoing {
    /// Returns its sequence number.
    pub fn seq(&self) -> u64 {
        match self {
            Self::Consent(consent) => consent.seq(),
            Self::Request(request) => request.seq(),
        }
    }

    /// Tells whether the registry has no more use for `older` once it has this one.
    fn supersedes(&self, older: &Self) -> bool {
        match (self, older) {
            (Self::Consent(new), Self::Consent(old)) => new.subject() == old.subject(),
            (Self::Request(new), Self::Request(old)) => new.claims().to == old.claims().to,
            (Self::Consent(_), Self::Request(_)) | (Self::Request(_), Self::Consent(_)) => false,
        }
    }
}

/// One agent in one network, as it is kept on disk.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Membership {
    /// Name of the identity on this host.
    pub agent: String,
    pub identity: IdentityKey,
    pub tunnel: TunnelSecret,
    pub network: NetworkId,
    pub prefix: NetworkPrefix,
    pub url: String,
    pub pin: String,
    pub domain: DomainId,
    /// The registry's key, which signs admissions and gateways.
    pub registry: Did,
    /// Grants root first, then the admission.
    pub chain: Vec<String>,
    pub suffix: Suffix,
    /// Highest sequence number used.
    pub seq: u64,
    /// Highest sequence number that the registry took.
    #[serde(default)]
    pub taken: u64,
    /// Newest moment proven by statements of others.
    pub floor: UnixTime,
    pub seen: Seen,
    /// Our consents by peer.
    #[serde(default)]
    pub given: BTreeMap<Did, Statement<Consent>>,
    /// Peers' consents to us.
    #[serde(default)]
    pub received: BTreeMap<Did, Statement<Consent>>,
    #[serde(default)]
    pub records: BTreeMap<Did, Statement<Record>>,
    /// Requests that wait for an answer here, by requester.
    #[serde(default)]
    pub incoming: BTreeMap<Did, Statement<Request>>,
    /// Our requests that wait for an answer, by name asked.
    #[serde(default)]
    pub outgoing: BTreeMap<String, Statement<Request>>,
    #[serde(default)]
    pub auto: Vec<AutoRule>,
    #[serde(default)]
    pub revocations: RevocationLog,
    #[serde(default)]
    pub gateways: BTreeMap<Did, Statement<Gateway>>,
    #[serde(default)]
    pub outbox: VecDeque<Outgoing>,
    #[serde(default)]
    pub placement: Placement,
    /// Peers that speak only WireGuard, by the word of this node's operator.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wireguard: Vec<WireGuard>,
    /// Records signed since the start of the daemon.
    #[serde(skip)]
    pub signed: Signed,
    #[serde(skip)]
    pub proven: ProvenChains,
}

/// What a membership begins with.
#[derive(Clone, Debug)]
pub struct Start {
    /// Name of the identity on this host.
    pub agent: String,
    pub identity: IdentityKey,
    pub tunnel: TunnelSecret,
    pub network: NetworkId,
    pub prefix: NetworkPrefix,
    pub url: String,
    pub pin: String,
    pub domain: DomainId,
    /// The registry's key.
    pub registry: Did,
    /// Grants root first, then the admission.
    pub chain: Vec<String>,
    pub suffix: Suffix,
}

/// A peer with whom consent stands both ways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trusted {
    pub member: Member,
    pub tunnel: TunnelKey,
    /// What the peer may reach here; all must allow.
    pub inbound: Vec<Scope>,
    /// What we may reach there, as the peer's consent says.
    pub outbound: Scope,
    /// Pre-shared key that binds both identities and the network.
    pub psk: [u8; 32],
    /// When the first of consents and chains ends.
    pub until: UnixTime,
}

impl Membership {
    /// Makes the membership of an agent that trusts nobody yet.
    pub fn new(start: Start) -> Self {
        Self {
            agent: start.agent,
            identity: start.identity,
            tunnel: start.tunnel,
            network: start.network,
            prefix: start.prefix,
            url: start.url,
            pin: start.pin,
            domain: start.domain,
            registry: start.registry,
            chain: start.chain,
            suffix: start.suffix,
            seq: 0,
            taken: 0,
            floor: UnixTime::default(),
            seen: Seen::default(),
            given: BTreeMap::new(),
            received: BTreeMap::new(),
            records: BTreeMap::new(),
            incoming: BTreeMap::new(),
            outgoing: BTreeMap::new(),
            auto: Vec::new(),
            revocations: RevocationLog::default(),
            gateways: BTreeMap::new(),
            outbox: VecDeque::new(),
            placement: Placement::default(),
            wireguard: Vec::new(),
            signed: Signed::default(),
            proven: ProvenChains::default(),
        }
    }

    /// Takes up what was seen and said before the network was left.
    pub fn recall(&mut self, left: &Left) {
        self.seq = self.seq.max(left.seq);
        self.taken = self.taken.max(left.taken);
        self.floor = self.floor.max(left.floor);
        self.seen = left.seen.clone();
        self.given = left.given.clone();
        self.records = left.records.clone();
        self.outbox.clone_from(&left.outbox);
    }

    /// Returns the time to check statements against (protocol.md section 2).
    pub fn clock(&self, unix: UnixTime) -> UnixTime {
        unix.max(self.floor).max(BUILT)
    }

    /// Returns our identity.
    pub fn id(&self) -> AgentId {
        self.identity.did().into()
    }

    /// Returns what our chain proves at `unix`.
    pub fn member(&self, unix: UnixTime) -> Result<Member, ChainError> {
        let (network, held) = (&self.network, self.revocations.held());
        let now = self.clock(unix);
        match self.proven.own(&self.chain) {
            Some(chain) => chain.verify(network, held, now),
            None => Chain::parse(&self.chain)?.verify(network, held, now),
        }
    }

    /// Returns our address, which follows from key and prefix.
    pub fn address(&self) -> Option<OverlayIp> {
        self.prefix.address_of(&self.id()).ok()
    }

    /// Returns our name, as the last grant of our chain says.
    pub fn name(&self) -> Option<FullName> {
        let chain = Chain::parse(&self.chain).ok()?;
        let root = chain.grants().first()?.claims().root.clone()?;
        let name = chain.grants().last()?.claims().names.first()?.exact()?;
        Some(name.full(&root.label, &self.suffix))
    }

    /// Returns which paths data may go where the node wishes `mode`: a border network lets it decide
    /// nothing.
    pub(crate) fn path_mode(&self, mode: Mode) -> Mode {
        let root = self.chain.first();
        let root = root.and_then(|link| Statement::<Grant>::open(link).ok());
        let claims = root.and_then(|grant| grant.claims().root.clone());
        let is_border = claims.is_some_and(|claims| claims.border);
        if is_border { Mode::Border } else { mode }
    }

    /// Signs claims about `subject` with the next sequence number.
    pub(crate) fn sign<C: Claims>(
        &mut self,
        subject: Did,
        unix: UnixTime,
        expires: UnixTime,
        claims: C,
    ) -> Result<Statement<C>, StatementError> {
        let now = self.clock(unix);
        let seq = self.next_seq(now);
        let network = Some(self.network);
        let head = Head {
            subject,
            network,
            issued: now,
            expires,
            seq,
        };
        Statement::sign(&self.identity, head, claims)
    }

    /// Returns the next sequence number: the time, and more than the last.
    ///
    /// Numbers ahead of the time are of a clock that was, and nobody took them. What the registry took
    /// was right, though it be ahead of a clock that is behind now.
    fn next_seq(&mut self, now: UnixTime) -> u64 {
        let is_behind = self.seq > (now + OTHERS_AHEAD).as_millis();
        let last = if is_behind { self.taken } else { self.seq };
        self.seq = now.as_millis().max(last + 1);
        if is_behind {
            self.taken = self.seq;
        }
        self.seq
    }

    /// Takes that the registry took a statement of ours with this sequence number.
    pub(crate) fn note_taken(&mut self, seq: u64) {
        self.taken = self.taken.max(seq);
    }

    /// Takes up a number of ours that is not ahead of the time and may be newer than we remember.
    pub(crate) fn adopt_seq(&mut self, seq: u64) {
        self.seq = self.seq.max(seq);
        self.note_taken(seq);
    }

    /// Signs our record as it is now; `gateways` are those we are attached to.
    pub fn sign_record(
        &mut self,
        gateways: Vec<Did>,
        unix: UnixTime,
    ) -> Result<Statement<Record>, Refused> {
        let member = self.member(unix)?;
        let now = self.clock(unix);
        let seq = self.next_seq(now);
        self.signed.note(seq);
        let claims = Record {
            name: member.name,
            tunnel: self.tunnel.public(),
            gateways,
            chain: self.chain.clone(),
            ttl: LEASE.as_secs(),
        };
        Ok(issue::record(
            &self.identity,
            self.network,
            seq,
            now,
            member.expires,
            claims,
        )?)
    }

    /// Takes a renewed admission; tells whether it was exchanged.
    pub fn set_admission(&mut self, text: &str, unix: UnixTime) -> Result<bool, Refused> {
        let admission = Statement::<Admission>::open(text)?;
        let chain = Chain::parse(&self.chain)?;
        if chain
            .admission()
            .is_some_and(|old| old.expires() >= admission.expires())
        {
            return Ok(false);
        }
        let renewed = chain.with_admission(admission);
        renewed.verify(&self.network, self.revocations.held(), self.clock(unix))?;
        self.chain = renewed.links();
        self.proven.follow_own(&self.chain);
        self.learn_chain_time();
        Ok(true)
    }

    /// Checks a record of another agent of this network.
    pub(crate) fn check_record(
        &self,
        record: &Statement<Record>,
        unix: UnixTime,
    ) -> Result<Member, ChainError> {
        let (network, held) = (&self.network, self.revocations.held());
        let now = self.clock(unix);
        match self.proven.of(record) {
            Some(chain) => verify_record_of(record, chain, network, held, now),
            None => verify_record_of(record, &self.proven.parse(record)?, network, held, now),
        }
    }

    /// Raises the clock's floor by a statement of another whose signature was checked.
    pub(crate) fn learn_time<C>(&mut self, statement: &Statement<C>) {
        self.learn_moment(statement.dated());
    }

    /// Raises the clock's floor by what others signed last of our own chain, so that a clock set back
    /// does not make it one of the future.
    pub(crate) fn learn_chain_time(&mut self) {
        let Ok(chain) = Chain::parse(&self.chain) else {
            return;
        };
        let admitted = chain.admission().map(Statement::dated);
        let granted = chain.grants().last().map(Statement::dated);
        if let Some(dated) = admitted.or(granted) {
            self.learn_moment(dated);
        }
    }

    fn learn_moment(&mut self, dated: UnixTime) {
        self.floor = self.floor.max(dated.before(OTHERS_AHEAD));
    }

    /// Takes a gateway's statement, signed by the registry or the domain root.
    pub fn take_gateway(&mut self, text: &str, unix: UnixTime) -> Result<bool, Refused> {
        let statement = Statement::<Gateway>::open_at(text, self.clock(unix))?;
        let signer = statement.issuer();
        if signer != self.registry && signer != self.domain.did() {
            return Err(Refused::NotForUs);
        }
        let subject = statement.subject();
        // Not among what was seen: the signer itself could fill that with gateways it makes up.
        match self.gateways.get(&subject) {
            Some(known) if known.seq() >= statement.seq() => return Ok(false),
            None => self.make_room_for_gateway(unix)?,
            Some(_) => {}
        }
        let known = self.gateways.insert(subject, statement.clone());
        Ok(known.is_none_or(|old| old.claims() != statement.claims()))
    }

    fn make_room_for_gateway(&mut self, unix: UnixTime) -> Result<(), Refused> {
        let now = self.clock(unix);
        if self.gateways.len() >= MAX_GATEWAYS {
            self.gateways.retain(|_, gateway| now < gateway.expires());
        }
        if self.gateways.len() >= MAX_GATEWAYS {
            return Err(Refused::Full);
        }
        Ok(())
    }

    /// Takes a revocation; tells whether it was new.
    pub fn take_revocation(&mut self, text: &str, unix: UnixTime) -> Result<bool, Refused> {
        let statement = Statement::<Revocation>::open_at(text, self.clock(unix))?;
        let now = self.clock(unix);
        Ok(self.revocations.add(statement, &self.network, now)?)
    }

    /// Queues a statement for the registry in place of those it supersedes.
    ///
    /// So no more wait than consents are kept and requests are open, and none is dropped for
    /// others, a revocation least of all.
    pub(crate) fn send(&mut self, outgoing: Outgoing) {
        self.outbox.retain(|waiting| !outgoing.supersedes(waiting));
        self.outbox.push_back(outgoing);
    }

    /// Returns the key that binds both identities and the network into a session.
    pub(crate) fn psk(&self, peer: &AgentId) -> [u8; 32] {
        let own = self.id();
        let (low, high) = if own < *peer {
            (&own, peer)
        } else {
            (peer, &own)
        };
        let parts: [&[u8]; 4] = [
            b"agentnet psk 1",
            self.network.as_bytes(),
            low.as_bytes(),
            high.as_bytes(),
        ];
        hash(&parts)
    }
}

/// Everything a node keeps on disk.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct State {
    /// Identities of this host by label; they outlive memberships, so that a name can be taken again.
    #[serde(default)]
    pub identities: BTreeMap<String, IdentityKey>,
    #[serde(default)]
    pub memberships: Vec<Membership>,
    /// What was seen and said in networks that were left.
    #[serde(default)]
    pub left: Vec<Left>,
}

impl State {
    /// Remembers what must outlive the membership of an agent that leaves.
    pub fn leave(&mut self, membership: &Membership) {
        remember(&mut self.left, membership);
    }
}

/// What an agent must not forget of a network it left: were it to come back, a registry could else
/// bring back a consent that was revoked.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Left {
    agent: String,
    network: NetworkId,
    seq: u64,
    #[serde(default)]
    taken: u64,
    floor: UnixTime,
    seen: Seen,
    given: BTreeMap<Did, Statement<Consent>>,
    /// Of those consented to, by whose names consents are taken back.
    #[serde(default)]
    records: BTreeMap<Did, Statement<Record>>,
    /// Consents, and their ends, that the registry was not told of.
    #[serde(default)]
    outbox: VecDeque<Outgoing>,
}

impl Left {
    /// Tells whether this is of `agent` in `network`.
    pub fn is_of(&self, agent: &str, network: &NetworkId) -> bool {
        self.agent == agent && self.network == *network
    }
}

/// Keeps what `membership` leaves behind; the oldest gives way.
pub(crate) fn remember(left: &mut Vec<Left>, membership: &Membership) {
    left.retain(|known| !known.is_of(&membership.agent, &membership.network));
    if left.len() >= MAX_LEFT {
        left.remove(0);
    }
    let given = &membership.given;
    let records = membership.records.iter();
    let records = records.filter(|(did, _)| given.contains_key(did));
    let untold = membership.outbox.iter();
    let untold = untold.filter(|waiting| matches!(waiting, Outgoing::Consent(_)));
    left.push(Left {
        agent: membership.agent.clone(),
        network: membership.network,
        seq: membership.seq,
        taken: membership.taken,
        floor: membership.floor,
        seen: membership.seen.clone(),
        given: given.clone(),
        records: records.map(|(did, r)| (*did, r.clone())).collect(),
        outbox: untold.cloned().collect(),
    });
}

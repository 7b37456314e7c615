use crate::id::{AgentId, Did, Label, MemberName, NetworkId, OverlayIp, UnixTime};
use crate::statement::{Claims, Role, Statement};
use crate::wire::api::registry::EventKind;

/// A statement's place in its issuer's sequence.
#[derive(Clone, Debug)]
pub struct Sequence {
    pub kind: &'static str,
    pub issuer: Did,
    pub subject: Did,
    pub seq: u64,
    pub hash: String,
    /// Until when an older statement could be replayed.
    pub keep: UnixTime,
}

impl Sequence {
    /// Returns the place of `statement`.
    pub fn of<C: Claims>(statement: &Statement<C>) -> Self {
        Self {
            kind: C::TYP,
            issuer: statement.issuer(),
            subject: statement.subject(),
            seq: statement.seq(),
            hash: statement.hash().to_string(),
            keep: statement.expires(),
        }
    }
}

/// What became of a statement handed to the store.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Kept {
    /// There is no room for more of this kind.
    Full,
    /// The name is another key's.
    NameTaken,
    /// It is new, and says something new.
    New,
    /// It is newer, and says what the one before said.
    Refreshed,
    /// It is the one already held.
    Same,
    /// One with a higher number is held.
    Stale { seen: u64 },
}

/// How much there is, whoever it is of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Counts {
    pub networks: u64,
    /// Records whose lease runs.
    pub records: u64,
    pub gateways: u64,
}

/// A network to be created.
#[derive(Clone, Debug)]
pub struct NewNetwork {
    pub network: NetworkId,
    pub label: Label,
    pub operator: Did,
}

/// What became of a network to be created.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Creation {
    /// The number of the network, new or as before.
    Created(u16),
    /// The label, or this root key under another label or operator, is in use.
    Taken,
    /// All 65,535 numbers are given away.
    Full,
}

/// A network as stored.
#[derive(Clone, Debug)]
pub struct NetworkRow {
    pub network: NetworkId,
    pub label: Label,
    pub number: u16,
    pub operator: Did,
    /// The root grant; None until the owner hands it in.
    pub grant: Option<String>,
    /// How many revocations the network has.
    pub revoked: u64,
}

/// An agent that joins.
#[derive(Clone, Debug)]
pub struct Joining {
    pub network: NetworkId,
    pub agent: AgentId,
    pub name: MemberName,
    pub address: OverlayIp,
    pub ephemeral: bool,
    /// When the agent's own grant was made.
    pub granted: UnixTime,
    /// Whether an owner or admin made that grant, which moves the name from an earlier holder.
    pub moves: bool,
    /// The name's holder, if it was revoked and so keeps nobody from it; else None.
    pub revoked: Option<AgentId>,
    /// None when the chain goes through no token.
    pub token: Option<NewToken>,
}

/// What became of a join.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum JoinOutcome {
    AddressTaken,
    /// Admitted, for the first time at `first`.
    Admitted {
        first: UnixTime,
    },
    Full,
    NameTaken,
    UsedUp,
}

/// An agent's record to be kept.
#[derive(Clone, Debug)]
pub struct NewRecord {
    pub network: NetworkId,
    pub row: RecordRow,
    pub ephemeral: bool,
    /// When the agent's own grant was made.
    pub granted: UnixTime,
    pub sequence: Sequence,
    /// Hash of what the record says, without its number and times.
    pub content: String,
    pub lease: UnixTime,
    /// Keys and grant hashes of the chain, by which a revocation finds the record.
    pub links: Vec<String>,
}

/// An agent's record as stored.
#[derive(Clone, Debug)]
pub struct RecordRow {
    pub agent: AgentId,
    pub name: MemberName,
    pub address: OverlayIp,
    pub role: Role,
    pub text: String,
}

/// An agent's word that it leaves its network.
#[derive(Clone, Debug)]
pub struct Farewell {
    pub network: NetworkId,
    pub sequence: Sequence,
    /// The record with `ttl` 0 that says so.
    pub text: String,
}

/// What became of a farewell.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Departure {
    pub kept: Kept,
    /// Who had to do with the agent, and is told that nothing of it stays.
    pub told: Vec<AgentId>,
}

/// By what a record is looked up.
#[derive(Clone, Debug)]
pub enum Whom {
    Address(OverlayIp),
    Name(MemberName),
}

/// A trust request to be kept.
#[derive(Clone, Debug)]
pub struct NewRequest {
    pub network: NetworkId,
    pub target: MemberName,
    pub text: String,
    pub expires: UnixTime,
    pub sequence: Sequence,
}

/// A consent to be kept.
#[derive(Clone, Debug)]
pub struct NewConsent {
    pub network: NetworkId,
    pub active: bool,
    pub text: String,
    pub sequence: Sequence,
}

/// A join token to be made known.
#[derive(Clone, Debug)]
pub struct NewToken {
    pub network: NetworkId,
    pub token: Did,
    pub grant: String,
    /// Keys above the token, root first.
    pub ancestors: Vec<Did>,
    pub uses: u32,
    pub closes: UnixTime,
}

/// A join token as stored.
#[derive(Clone, Debug)]
pub struct TokenRow {
    pub id: u64,
    pub token: Did,
    pub grant: String,
    /// Keys above the token, root first.
    pub ancestors: Vec<Did>,
    pub uses: u32,
    pub used: u32,
}

/// A revocation to be kept.
#[derive(Clone, Debug)]
pub struct NewRevocation {
    pub network: NetworkId,
    pub author: Did,
    /// Whether the author speaks for the network: its owner or an admin.
    pub manages: bool,
    pub text: String,
    pub hash: String,
}

/// A gateway's statement to be kept.
#[derive(Clone, Debug)]
pub struct NewGateway {
    pub gateway: Did,
    pub text: String,
    pub lease: UnixTime,
    /// Hash of what the statement says, without its number and times.
    pub content: String,
}

/// Something a watcher is shown.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Change {
    pub at: u64,
    pub kind: EventKind,
    /// None for statements of the domain.
    pub network: Option<NetworkId>,
    pub text: String,
}

/// Changes in the order of their versions.
#[derive(Clone, Debug, Default)]
pub struct Page {
    pub changes: Vec<Change>,
    /// Every change up to this version is in this page or an earlier one.
    pub upto: u64,
    /// Whether there was more than fits a page.
    pub more: bool,
}

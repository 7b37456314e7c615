use std::{collections::BTreeSet, fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::id::{Did, Label, MemberName, NamePattern, NetworkPrefix, TunnelKey, UnixTime};
use crate::statement::{Claims, Scope, envelope::StatementHash};

/// How long an ephemeral agent's name stays its own after it was last seen; it is free at once when the agent
/// leaves (protocol.md section 1).
pub const EPHEMERAL_NAME: Duration = Duration::from_secs(86_400);

/// What a grant's subject may do in the network.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Admin,
    Auditor,
    Member,
    Owner,
    Token,
}

impl Role {
    /// Tells whether a holder of this role acts for the network, not for itself alone.
    pub const fn manages(self) -> bool {
        match self {
            Self::Owner | Self::Admin => true,
            Self::Auditor | Self::Member | Self::Token => false,
        }
    }

    /// Tells whether a holder of this role may grant `child`.
    pub const fn may_grant(self, child: Self) -> bool {
        match self {
            Self::Owner => true,
            Self::Admin => !matches!(child, Self::Owner),
            Self::Member | Self::Token => matches!(child, Self::Member),
            Self::Auditor => false,
        }
    }
}

/// Hands part of the issuer's authority to the subject.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Grant {
    pub role: Role,
    pub names: Vec<NamePattern>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub tags: BTreeSet<Label>,
    /// How many more grants may follow this one.
    pub depth: u8,
    /// Whether nothing of the subject stays once it left, its name least of all.
    #[serde(default)]
    pub ephemeral: bool,
    /// Narrows the ports the subject may use or be reached at; None inherits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<Scope>,
    /// Narrows whom the subject may talk to; None inherits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peers: Option<Vec<NamePattern>>,
    /// The network's prefix and label; in the root grant, and only there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<RootClaims>,
    /// What bounds joining through this grant; in a token's grant, and only there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<TokenClaims>,
}

/// What the root grant fixes for the whole network.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct RootClaims {
    pub prefix: NetworkPrefix,
    pub label: Label,
    /// Whether only gateways are ever given as locators: members tell and probe no endpoint of theirs,
    /// and answer nothing that comes to one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub border: bool,
}

/// What bounds joining through a token; the grant's `exp` is the last moment to join.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct TokenClaims {
    pub uses: u32,
    /// Longest admission in seconds.
    pub life: u64,
    /// The registry's enrolment key.
    pub enrol: Did,
}

/// The registry's half of a membership through a token.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Admission {
    pub token: Did,
    pub name: MemberName,
    /// When the agent was first admitted.
    pub first: UnixTime,
}

/// Where and by which key an agent is reached, by itself.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Record {
    pub name: MemberName,
    pub tunnel: TunnelKey,
    /// Identities of the gateways it is attached to, nearest first, at most 3.
    pub gateways: Vec<Did>,
    /// Grants root first, then the admission if it came through a token.
    pub chain: Vec<String>,
    /// Registry lease in seconds; 0 takes the record back.
    pub ttl: u64,
}

/// Asks an agent, known only by name, for its consent.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Request {
    pub to: MemberName,
    /// What the requester offers: what the other may reach at it.
    pub inbound: Scope,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The requester's record.
    pub record: String,
}

/// Whether a consent stands or takes an earlier one back.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ConsentState {
    Active,
    Revoked,
}

/// Lets the subject reach the issuer. Two of them, one each way, are trust.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Consent {
    pub inbound: Scope,
    #[serde(default)]
    pub children: bool,
    pub state: ConsentState,
    /// The request this answers; None when nobody asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub re: Option<StatementHash>,
}

/// Takes authority back; grow-only.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Revocation {
    #[serde(default)]
    pub keys: Vec<RevokedKey>,
    #[serde(default)]
    pub grants: Vec<StatementHash>,
    /// The grants of the issuer, root first.
    pub chain: Vec<String>,
}

/// A key that lost its authority.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct RevokedKey {
    pub key: Did,
    /// For a token: admissions after this moment are void.
    pub at: UnixTime,
}

/// Where a gateway is and by which key it is reached; signed by the registry or the domain root.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Gateway {
    pub tunnel: TunnelKey,
    /// `host:port` of its UDP socket, at most 8.
    pub udp: Vec<String>,
    /// `wss://host:port/path` of its WebSockets, at most 8.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wss: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    pub features: Vec<String>,
    /// Registry lease in seconds.
    pub ttl: u64,
}

/// Names the key that runs a domain's registry; signed by the domain root.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Registry {
    /// SHA-256 of the registry's TLS SubjectPublicKeyInfo, base64url.
    pub pin: String,
}

/// Authenticates one HTTP request to the registry, in the manner of RFC 9449.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Auth {
    /// The registry's key.
    pub aud: Did,
    /// The HTTP method.
    pub htm: String,
    /// Path and query.
    pub htu: String,
    /// SHA-256 of the body, base64url.
    pub bh: String,
}

macro_rules! kinds {
    ($($name:ident $typ:literal)*) => {$(
        impl Claims for $name {
            const TYP: &'static str = $typ;
        }
    )*};
}

kinds! {
    Admission "agn-admission+jwt"
    Auth "agn-auth+jwt"
    Consent "agn-consent+jwt"
    Gateway "agn-gateway+jwt"
    Grant "agn-grant+jwt"
    Record "agn-record+jwt"
    Registry "agn-registry+jwt"
    Request "agn-request+jwt"
    Revocation "agn-revocation+jwt"
}

/// A list of patterns as people read it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NamePatterns(pub Vec<NamePattern>);

impl fmt::Display for NamePatterns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts = self
            .0
            .iter()
            .map(NamePattern::to_string)
            .collect::<Vec<_>>();
        f.write_str(&texts.join(", "))
    }
}

use serde::{Deserialize, Serialize};

use crate::id::{
    AgentId, Did, DomainId, Label, MemberName, NamePattern, NetworkId, NetworkPrefix, UnixTime,
};

/// A network whose root key is here.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Network {
    pub label: Label,
    pub id: NetworkId,
    pub prefix: NetworkPrefix,
    pub domain: DomainId,
    pub registry: String,
    /// Whether only gateways are given as locators.
    #[serde(default)]
    pub border: bool,
}

/// `network list`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Networks {
    pub networks: Vec<Network>,
}

/// `token create`; the secret itself goes to a file, or to standard output alone.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct TokenCreated {
    pub now: UnixTime,
    pub network: Label,
    /// The token's public key, by which it is listed and revoked.
    pub token: Did,
    pub names: Vec<NamePattern>,
    pub uses: u32,
    /// Last moment to join.
    pub closes: UnixTime,
    /// Longest membership of who joins by it and is not seen again, in seconds.
    pub member_for: u64,
    /// Where the secret was written; None when `secret` carries it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The secret, `agn1_...`; only with `--json` and without a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
}

/// `token list`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Tokens {
    pub now: UnixTime,
    pub network: Label,
    pub tokens: Vec<Token>,
}

/// One token of a network.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Token {
    pub token: Did,
    pub names: Vec<NamePattern>,
    pub tags: Vec<Label>,
    pub used: u32,
    pub uses_left: u32,
    pub closes: UnixTime,
    pub ephemeral: bool,
    pub revoked: bool,
}

/// `token revoke`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct TokenRevoked {
    pub network: Label,
    pub token: Did,
    /// Joins after this moment are void.
    pub at: UnixTime,
}

/// `agent revoke`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct AgentRevoked {
    pub network: Label,
    pub agent: AgentId,
    /// Every name the agent had.
    pub names: Vec<MemberName>,
    pub at: UnixTime,
}

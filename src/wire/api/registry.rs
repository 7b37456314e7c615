use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::id::{
    AgentId, Did, DomainId, Label, MemberName, NetworkId, NetworkPrefix, OverlayIp, TunnelKey,
};

/// Largest body the registry reads.
pub const MAX_BODY: usize = 256 * 1024; // bytes, protocol.md section 3

/// Largest event of the watch: the largest statement in JSON, with room for its frame.
pub const MAX_EVENT: usize = 24 * 1024; // bytes

/// Most hosts a gateway lists for its UDP socket.
pub const MAX_ENDPOINTS: usize = 8;

/// Answer of `GET /v1/domain`: who runs this domain, provable from its root key.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct DomainInfo {
    pub v: u8,
    /// The domain's root key.
    #[schema(value_type = String)]
    pub domain: DomainId,
    /// The domain root's statement that names the registry's key and pin.
    pub registry: String,
    /// Gateway statements that are current.
    pub gateways: Vec<String>,
    /// The deployment profile, `P0` to `P3`.
    pub profile: String,
    /// Protocol versions this registry speaks.
    pub versions: Vec<u8>,
    pub url: String,
}

/// Body of `POST /v1/networks`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct CreateNetwork {
    /// The network's root key, held by its owner.
    #[schema(value_type = String)]
    pub root: NetworkId,
    #[schema(value_type = String)]
    pub label: Label,
}

/// Answer of `POST /v1/networks`: the prefix the owner then signs into the root grant.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct NetworkCreated {
    #[schema(value_type = String)]
    pub prefix: NetworkPrefix,
}

/// Body of `PUT /v1/networks/{net}`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct ActivateNetwork {
    /// The root grant.
    pub grant: String,
}

/// Answer of `GET /v1/networks`: the networks this operator key created, lowest prefix first.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct NetworkList {
    pub networks: Vec<NetworkEntry>,
    /// Cursor of the next page; None on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
}

/// One network of the list.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct NetworkEntry {
    #[schema(value_type = String)]
    pub network: NetworkId,
    #[schema(value_type = String)]
    pub label: Label,
    #[schema(value_type = String)]
    pub prefix: NetworkPrefix,
    /// Whether the owner has handed in the root grant.
    pub active: bool,
}

/// Query of paged lists.
#[derive(Clone, Debug, Default, Deserialize, Eq, IntoParams, PartialEq, Serialize)]
pub struct Page {
    /// The `next` of the page before; None for the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
}

/// Body of join, refresh and leave: the agent's own record.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct RecordBody {
    pub record: String,
}

/// Answer of `POST /v1/networks/{net}/join`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Joined {
    /// The registry's half of the membership; None when the chain has no token in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admission: Option<String>,
    #[schema(value_type = String)]
    pub address: OverlayIp,
    /// Seconds until the agent must have put its record.
    pub lease: u64,
}

/// Answer of `PUT /v1/networks/{net}/record`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Refreshed {
    /// Seconds until the record disappears unless it is put again; 0 after leaving.
    pub lease: u64,
    /// A new admission; None while the one in the record has more than half of its life left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admission: Option<String>,
}

/// Body of `POST /v1/networks/{net}/requests`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct RequestBody {
    pub request: String,
}

/// Body of `POST /v1/networks/{net}/consents`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct ConsentBody {
    pub consent: String,
}

/// Query of `GET /v1/networks/{net}/resolve`: exactly one of the two.
#[derive(Clone, Debug, Default, Deserialize, Eq, IntoParams, PartialEq, Serialize)]
pub struct Resolve {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>)]
    pub name: Option<MemberName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>)]
    pub address: Option<OverlayIp>,
}

/// Answer of `GET /v1/networks/{net}/resolve`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Resolved {
    pub record: String,
}

/// Query of `GET /v1/networks/{net}/names`: exactly one of the two.
#[derive(Clone, Debug, Default, Deserialize, Eq, IntoParams, PartialEq, Serialize)]
pub struct FindHolder {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>)]
    pub name: Option<MemberName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>)]
    pub agent: Option<AgentId>,
}

/// Answer of `GET /v1/networks/{net}/names`: a key and every name it holds, seen lately or not.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Holder {
    #[schema(value_type = String)]
    pub agent: AgentId,
    #[schema(value_type = Vec<String>)]
    pub names: Vec<MemberName>,
    /// The record that proves it; None while the agent is not connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<String>,
}

/// Body of `POST /v1/networks/{net}/grants`: makes a token known before its first use.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct GrantBody {
    /// Root grant to the token's grant.
    pub chain: Vec<String>,
}

/// Answer of `GET /v1/networks/{net}/tokens`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct TokenList {
    pub tokens: Vec<TokenEntry>,
    /// Cursor of the next page; None on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
}

/// One token of the list.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct TokenEntry {
    /// The token's public key.
    #[schema(value_type = String)]
    pub token: Did,
    /// The grant to the token.
    pub grant: String,
    pub uses_left: u32,
    pub used: u32,
    pub revoked: bool,
}

/// Body of `POST /v1/networks/{net}/revocations`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct RevocationBody {
    pub revocation: String,
}

/// Body of `POST /v1/gateways` and `PUT /v1/gateways/{did}/record`: where a gateway is.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct GatewayBody {
    #[schema(value_type = String)]
    pub gateway: Did,
    #[schema(value_type = String)]
    pub tunnel: TunnelKey,
    /// `host:port` of its UDP socket, at most 8.
    pub udp: Vec<String>,
    /// `wss://host:port/path` of its WebSockets, at most 8.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wss: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    #[serde(default)]
    pub features: Vec<String>,
}

/// Answer of the gateway calls: the statement agents are shown.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct GatewayEnrolled {
    pub statement: String,
}

/// Query of `GET /v1/watch`: a member names its network, a gateway says `gateway`.
#[derive(Clone, Debug, Default, Deserialize, Eq, IntoParams, PartialEq, Serialize)]
pub struct Watch {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>)]
    pub network: Option<NetworkId>,
    /// Present (and empty) when a gateway asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
}

/// The `event:` of one message of the watch.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    Consent,
    Gateway,
    /// Everything current has been sent; what follows is new.
    Live,
    Network,
    Record,
    Request,
    /// What follows is everything current; what is not in it is gone.
    Reset,
    Revocation,
}

impl EventKind {
    /// Returns the `event:` field.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Consent => "consent",
            Self::Gateway => "gateway",
            Self::Live => "live",
            Self::Network => "network",
            Self::Record => "record",
            Self::Request => "request",
            Self::Reset => "reset",
            Self::Revocation => "revocation",
        }
    }

    /// Returns the kind an `event:` field names; None for kinds of newer registries.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "consent" => Self::Consent,
            "gateway" => Self::Gateway,
            "live" => Self::Live,
            "network" => Self::Network,
            "record" => Self::Record,
            "request" => Self::Request,
            "reset" => Self::Reset,
            "revocation" => Self::Revocation,
            _ => return None,
        })
    }
}

/// The `data:` of every event that carries a statement.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct StatementEvent {
    /// The network the statement is of; None for statements of the domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub network: Option<NetworkId>,
    pub statement: String,
}

/// The `data:` of a `network` event, which tells a gateway whom it serves.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct NetworkEvent {
    #[schema(value_type = String)]
    pub network: NetworkId,
    /// The root grant.
    pub grant: String,
    #[schema(value_type = String)]
    pub prefix: NetworkPrefix,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_kind_survives_its_name() {
        for kind in [
            EventKind::Consent,
            EventKind::Gateway,
            EventKind::Live,
            EventKind::Network,
            EventKind::Record,
            EventKind::Request,
            EventKind::Reset,
            EventKind::Revocation,
        ] {
            assert_eq!(EventKind::from_name(kind.name()), Some(kind));
        }
        assert_eq!(EventKind::from_name("policy"), None);
    }
}

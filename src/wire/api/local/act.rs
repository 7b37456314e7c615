use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::{AgentId, Label, MemberName, NetworkId, OverlayIp, UnixTime};
use crate::wire::api::local::PathKind;
use crate::wire::binding::Binding;

/// Why a server on the host may refuse what the overlay lets through.
pub const BIND_HINT: &str = "a server bound to 0.0.0.0 or 127.0.0.1 is not reachable over IPv6; \
                             bind it to [::] or to the agent's address";

/// `POST /v1/ping`: one probe.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct PingRequest {
    /// Name of the local agent; None when there is but one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    pub name: String,
    /// Port to connect to; None for an ICMPv6 echo.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<u16>,
    /// How long to wait for the answer.
    pub timeout_ms: u64,
}

/// Answer of `POST /v1/ping`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct PingReply {
    /// Full name of the other agent.
    pub name: String,
    pub address: OverlayIp,
    pub outcome: PingOutcome,
    /// None when nothing came back.
    pub rtt_ms: Option<f64>,
    /// The way probe and answer took: direct when both did; None when nothing came back.
    pub path: Option<PathKind>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// What a probe met.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PingOutcome {
    /// The echo came back.
    Answered,
    /// Nothing came back in time: unreachable, or filtered by the other's consent.
    NoAnswer,
    /// The port accepts connections.
    Open,
    /// The host answers, but nobody listens on the port over IPv6.
    Refused,
}

impl PingOutcome {
    /// Returns the hint that goes with the outcome; None when it says it all.
    pub const fn hint(self) -> Option<&'static str> {
        match self {
            Self::Refused => Some(BIND_HINT),
            Self::Answered | Self::NoAnswer | Self::Open => None,
        }
    }
}

/// `POST /v1/join`.
#[derive(Clone, Deserialize, Eq, PartialEq, Serialize)]
pub struct JoinRequest {
    /// The join token, `agn1_...`.
    pub token: String,
    /// None when the token allows exactly one name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<MemberName>,
    /// Whether programs have the agent by `agentnet run` and not otherwise.
    #[serde(default)]
    pub apart: bool,
    /// Number of the user who may run programs as the agent, beside those who may change the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<u32>,
    /// Whose programs alone may use it on the host's own network; None is everybody's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound: Option<Binding>,
}

impl fmt::Debug for JoinRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinRequest({:?})", self.name)
    }
}

/// Answer of `POST /v1/join`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Joined {
    pub name: String,
    pub id: AgentId,
    pub address: OverlayIp,
    pub network: Label,
    pub network_id: NetworkId,
    pub expires: UnixTime,
    /// Whether a daemon carries the agent already.
    pub running: bool,
}

/// Answer of `POST /v1/leave`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Left {
    pub name: String,
    /// Whether the registry has forgotten the agent; false when its lease will end by itself.
    pub told: bool,
}

/// Answer of `POST /v1/down`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Down {
    pub stopping: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_does_not_show_in_debug() {
        let request = JoinRequest {
            token: "agn1_secret".to_owned(),
            name: None,
            apart: false,
            user: None,
            bound: None,
        };

        assert!(!format!("{request:?}").contains("secret"));
    }
}

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::id::{AgentId, Label, NameError, NamePattern, OverlayIp, UnixTime};
use crate::statement::Scope;

/// `POST /v1/trust/request`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct TrustRequest {
    /// Name of the local agent; None when there is but one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// Short (`b`) or full name (`b.acme.agent`).
    pub name: String,
    /// What the other may reach here once it approves.
    pub allow: Scope,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// `POST /v1/trust/approve`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct TrustApprove {
    /// Name of the local agent; None when there is but one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    pub name: String,
    /// What the other may reach here.
    pub allow: Scope,
}

/// `POST /v1/trust/deny` and `/v1/trust/revoke`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct TrustName {
    /// Name of the local agent; None when there is but one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    pub name: String,
}

/// `POST /v1/trust/await`: whether consent stands both ways, as soon as it does or the time is over.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct TrustAwait {
    /// Name of the local agent; None when there is but one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// Short (`b`) or full name (`b.acme.agent`).
    pub name: String,
    /// How long to wait, at most 20 s; who wants longer asks again.
    pub timeout_ms: u64,
}

/// Answer to a wait for trust.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct TrustStands {
    /// Full name of the other agent.
    pub name: String,
    /// Whether consent stands both ways; the name resolves then.
    pub stands: bool,
}

/// Answer to every change of trust: it holds here when this is returned.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct TrustChanged {
    /// Full name of the other agent.
    pub name: String,
    pub change: TrustChange,
    /// What the other may reach here now or once it approves; None after deny and revoke.
    pub inbound: Option<Scope>,
    /// Whether the registry has taken the news; false when it will be told once it is reachable.
    pub told: bool,
}

/// What a trust command did.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TrustChange {
    Approved,
    Denied,
    Requested,
    Revoked,
}

/// `GET /v1/trust/pending`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Pending {
    pub now: UnixTime,
    /// Requests that wait for an answer here.
    pub incoming: Vec<PendingRequest>,
    /// Requests of ours that nobody answered yet.
    pub outgoing: Vec<PendingRequest>,
}

/// A request without an answer.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct PendingRequest {
    /// Full name of the other agent.
    pub name: String,
    /// The requester, proven by its chain; None for our own requests, which know a name only.
    pub id: Option<AgentId>,
    pub address: Option<OverlayIp>,
    /// Full name of the local agent.
    pub agent: String,
    /// What the requester offers: what the other may reach at it.
    pub offers: Scope,
    pub reason: Option<String>,
    pub since: UnixTime,
    pub expires: UnixTime,
}

/// `GET /v1/trust`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct TrustList {
    pub now: UnixTime,
    pub trust: Vec<Trust>,
}

/// The consents between one of our agents and another.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Trust {
    /// Full name of the other agent; its key when no record of it is known.
    pub name: String,
    pub id: AgentId,
    /// Full name of the local agent.
    pub agent: String,
    /// Our consent: what it may reach here.
    pub given: Option<ConsentView>,
    /// Its consent: what we may reach there.
    pub received: Option<ConsentView>,
}

/// One active consent.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ConsentView {
    pub scope: Scope,
    pub since: UnixTime,
    pub expires: UnixTime,
}

/// Whom an automatic rule is about, as `worker-*` or `tag:build`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AutoFrom {
    Name(NamePattern),
    Tag(Label),
}

impl FromStr for AutoFrom {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.strip_prefix("tag:") {
            Some(tag) => Ok(Self::Tag(tag.parse()?)),
            None => Ok(Self::Name(text.parse()?)),
        }
    }
}

impl fmt::Display for AutoFrom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(pattern) => fmt::Display::fmt(pattern, f),
            Self::Tag(tag) => write!(f, "tag:{tag}"),
        }
    }
}

impl Serialize for AutoFrom {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AutoFrom {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// A rule that approves requests without a person.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct AutoRule {
    /// Name of the local agent; None in a request when there is but one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    pub from: AutoFrom,
    /// What those it selects may reach here.
    pub allow: Scope,
}

/// `POST /v1/trust/auto/remove`: takes the rules about `from` away.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct AutoRemove {
    /// Name of the local agent; None when there is but one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    pub from: AutoFrom,
}

/// `GET /v1/trust/auto`, and the answer to every change of the rules.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct AutoRules {
    pub rules: Vec<AutoRule>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_about_names_or_a_tag() {
        for text in ["worker-*", "tag:build"] {
            assert_eq!(text.parse::<AutoFrom>().unwrap().to_string(), text);
        }
        assert!("tag:".parse::<AutoFrom>().is_err() && "role:x".parse::<AutoFrom>().is_err());
    }
}

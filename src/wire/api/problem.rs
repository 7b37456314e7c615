use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::id::UnixTime;

/// What went wrong, as programs tell errors apart; never renamed once published.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The address is of no network of the agent.
    AddressOutside,
    /// The address of the agent is another agent's.
    AddressTaken,
    /// The record's, request's or consent's chain of grants does not hold.
    BadChain,
    /// The body or query is not what this call takes.
    BadRequest,
    /// A statement in the body does not hold.
    BadStatement,
    /// The clock of the caller is too far off for its signature to be believed.
    ClockSkew,
    /// The caller is who it says, and may not do this.
    Forbidden,
    /// A program has the agent's network already.
    InUse,
    /// Something inside the registry broke; its log says what.
    Internal,
    /// The key is another peer's.
    KeyTaken,
    /// The network's label is another network's.
    LabelTaken,
    /// The method is not one of this path.
    MethodNotAllowed,
    /// The name is another key's.
    NameTaken,
    /// What was asked for is not there, or not for the caller's eyes.
    NotFound,
    /// The domain has no room for more.
    NoRoom,
    /// What was to be kept could not be written.
    StateUnsaved,
    /// A statement with a higher sequence number was seen before.
    StaleSeq,
    /// The request took too long to arrive or to be answered.
    Timeout,
    /// A join was tried after the token's last moment.
    TokenExpired,
    /// The token or the agent's key was revoked.
    Revoked,
    /// Every use of the token is taken.
    TokenUsedUp,
    /// The body is larger than the registry reads.
    TooLarge,
    /// The caller asks for more than its share; see `Retry-After`.
    TooManyRequests,
    /// The request does not prove who sent it.
    Unauthorized,
    /// Another part of the overlay that is needed for this cannot be reached now.
    Unreachable,
    /// A code of a newer registry.
    #[serde(other)]
    Unknown,
}

impl Code {
    /// Returns the HTTP status that goes with the code.
    pub const fn status(self) -> u16 {
        match self {
            Self::AddressOutside | Self::BadRequest | Self::BadStatement => 400,
            Self::ClockSkew | Self::Unauthorized => 401,
            Self::BadChain | Self::Forbidden | Self::Revoked => 403,
            Self::TokenExpired | Self::TokenUsedUp => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::Timeout => 408,
            Self::AddressTaken | Self::KeyTaken | Self::LabelTaken | Self::NameTaken => 409,
            Self::InUse => 409,
            Self::StaleSeq => 409,
            Self::TooLarge => 413,
            Self::TooManyRequests => 429,
            Self::Internal | Self::Unknown => 500,
            Self::Unreachable => 503,
            Self::NoRoom | Self::StateUnsaved => 507,
        }
    }

    /// Returns the summary that is the same for every problem of this code (RFC 9457 `title`).
    pub const fn title(self) -> &'static str {
        match self {
            Self::AddressOutside => "the address is outside the network",
            Self::AddressTaken => "the address is taken",
            Self::BadChain => "the chain of grants does not hold",
            Self::BadRequest => "the request is not understood",
            Self::BadStatement => "a statement does not hold",
            Self::ClockSkew => "the clocks differ too much",
            Self::Forbidden => "not allowed",
            Self::InUse => "in use",
            Self::Internal => "the registry has a fault",
            Self::KeyTaken => "the key is taken",
            Self::LabelTaken => "the network name is taken",
            Self::MethodNotAllowed => "no such method here",
            Self::NameTaken => "the name is taken",
            Self::NotFound => "not found",
            Self::NoRoom => "no room for more",
            Self::Revoked => "the authority was revoked",
            Self::StateUnsaved => "not on disk",
            Self::StaleSeq => "a newer statement is known",
            Self::Timeout => "the request took too long",
            Self::TokenExpired => "the join token expired",
            Self::TokenUsedUp => "the join token is used up",
            Self::TooLarge => "the body is too large",
            Self::TooManyRequests => "too many requests",
            Self::Unauthorized => "not authenticated",
            Self::Unreachable => "not reachable now",
            Self::Unknown => "an unknown problem",
        }
    }

    /// Returns what the caller can do about it.
    pub const fn hint(self) -> &'static str {
        match self {
            Self::AddressOutside => "choose an address of the agent's network",
            Self::AddressTaken => "make a new identity key and join with it",
            Self::BadChain => "join again with a token of the network's owner or admin",
            Self::BadRequest | Self::MethodNotAllowed => "see /v1/openapi.json",
            Self::BadStatement => "sign the statement again; if it persists, update agentnet",
            Self::ClockSkew => "set the clock of this machine (server_time is the registry's)",
            Self::Forbidden => "ask the network's owner or admin, or the operator",
            Self::InUse => "wait until it ends, or end it",
            Self::Internal => "try again; if it persists, tell the operator",
            Self::KeyTaken => "use another key, or remove the peer that has it",
            Self::LabelTaken => "choose another network name",
            Self::NameTaken => "choose another name, or have an admin grant exactly this one",
            Self::NotFound => "check the name, and that its owner consented",
            Self::NoRoom => "tell the operator",
            Self::Revoked => "ask the network's owner or admin for a new token",
            Self::StateUnsaved => "free space or mend the disk, and try again",
            Self::StaleSeq => "fetch the newest statement and sign with a higher number",
            Self::Timeout => "try again",
            Self::TokenExpired | Self::TokenUsedUp => "ask the network's owner for a new token",
            Self::TooLarge => "send less",
            Self::TooManyRequests => "wait as long as Retry-After says",
            Self::Unauthorized => "sign the request with the key it is made for",
            Self::Unreachable => "try again once it is up",
            Self::Unknown => "update agentnet",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// An error answer (RFC 9457, `application/problem+json`).
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Problem {
    /// `urn:agentnet:problem:` and the code.
    #[serde(rename = "type")]
    pub kind: String,
    pub title: String,
    pub status: u16,
    pub code: Code,
    /// What the caller can do about it.
    pub hint: String,
    /// What happened this time; None when the title says it all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The registry's time in Unix milliseconds; with `clock_skew` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>)]
    pub server_time: Option<UnixTime>,
}

impl Problem {
    /// Makes the problem of `code`.
    pub fn new(code: Code) -> Self {
        Self {
            kind: format!("urn:agentnet:problem:{code}"),
            title: code.title().to_owned(),
            status: code.status(),
            code,
            hint: code.hint().to_owned(),
            detail: None,
            server_time: None,
        }
    }

    /// Makes the problem of `code` with what happened this time.
    pub fn with(code: Code, detail: impl fmt::Display) -> Self {
        // Details quote input; what they quote is cut so that an answer never outgrows a request.
        let detail = detail.to_string().chars().take(300).collect();
        Self {
            detail: Some(detail),
            ..Self::new(code)
        }
    }

    /// Makes the problem of a caller whose clock is off.
    pub fn clock_skew(server: UnixTime) -> Self {
        Self {
            server_time: Some(server),
            ..Self::with(
                Code::ClockSkew,
                format_args!("the registry's time is {server}"),
            )
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.title)?;
        match &self.detail {
            Some(detail) => write!(f, ": {detail}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_carries_code_and_hint() {
        let problem = Problem::with(Code::NameTaken, "planner");

        let json = serde_json::to_value(&problem).unwrap();

        assert_eq!(json["type"], "urn:agentnet:problem:name_taken");
        assert_eq!(
            (&json["code"], &json["status"]),
            (&"name_taken".into(), &409.into())
        );
        assert!(json["hint"].as_str().is_some_and(|h| !h.is_empty()));
        assert_eq!(serde_json::from_value::<Problem>(json).unwrap(), problem);
    }

    #[test]
    fn a_code_of_a_newer_registry_is_unknown() {
        assert_eq!(
            serde_json::from_str::<Code>("\"on_fire\"").unwrap(),
            Code::Unknown
        );
    }
}

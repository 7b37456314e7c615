use std::{error::Error, io};

use thiserror::Error;

use crate::id::UnixTime;
use crate::os::tls::TlsError;
use crate::statement::StatementError;
use crate::wire::api::problem::{Code, Problem};

/// Why a call to the registry brought nothing.
#[derive(Debug, Error)]
pub enum ClientError {
    #[error("the registry at {url} is unreachable: {why}")]
    Unreachable { url: String, why: String },
    #[error("the server at {0} does not hold the registry's pinned key")]
    BadPin(String),
    #[error("`{0}` is not a registry URL (expected https://host:port)")]
    BadUrl(String),
    #[error("this clock is off: the registry's time is {server}")]
    ClockSkew { server: UnixTime },
    /// Refused by the caller's standing (401, 403).
    #[error("{0}")]
    Denied(Problem),
    /// Not there, or not for the caller's eyes.
    #[error("{0}")]
    NotFound(Problem),
    /// Refused for any other reason.
    #[error("{0}")]
    Problem(Problem),
    #[error("the server is not the registry that the domain's root key names")]
    WrongDomain,
    #[error("the domain root's statement about its registry lapsed at {0}")]
    Lapsed(UnixTime),
    #[error("the registry's answer makes no sense: {0}")]
    Malformed(String),
    #[error(transparent)]
    Tls(TlsError),
}

impl ClientError {
    /// Returns the problem the registry told; None when it told none.
    pub const fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Denied(problem) | Self::NotFound(problem) | Self::Problem(problem) => {
                Some(problem)
            }
            Self::Unreachable { .. }
            | Self::BadPin(_)
            | Self::BadUrl(_)
            | Self::ClockSkew { .. }
            | Self::WrongDomain
            | Self::Lapsed(_)
            | Self::Malformed(_)
            | Self::Tls(_) => None,
        }
    }

    /// Tells whether trying again later, unchanged, may help.
    pub fn is_passing(&self) -> bool {
        let code = self.problem().map(|problem| problem.code);
        let passing = [Code::Internal, Code::Timeout, Code::TooManyRequests];
        matches!(self, Self::Unreachable { .. }) || code.is_some_and(|c| passing.contains(&c))
    }

    pub(super) fn unreachable(url: &str, error: &reqwest::Error) -> Self {
        if is_wrong_key(error) {
            return Self::BadPin(url.to_owned());
        }
        let mut why = error.to_string();
        let mut cause = error.source();
        while let Some(next) = cause {
            // The innermost cause is the one a person can act on: refused, no route, no such host.
            why = next.to_string();
            cause = next.source();
        }
        Self::Unreachable {
            url: url.to_owned(),
            why,
        }
    }

    pub(super) fn silent(url: &str) -> Self {
        Self::Unreachable {
            url: url.to_owned(),
            why: "no answer in time".to_owned(),
        }
    }

    pub(super) fn malformed(why: &str) -> Self {
        Self::Malformed(why.chars().take(200).collect())
    }

    pub(super) fn refused(problem: Problem) -> Self {
        match (problem.status, problem.code, problem.server_time) {
            (_, Code::ClockSkew, Some(server)) => Self::ClockSkew { server },
            (401 | 403, ..) => Self::Denied(problem),
            (404, ..) => Self::NotFound(problem),
            _ => Self::Problem(problem),
        }
    }
}

impl From<StatementError> for ClientError {
    fn from(error: StatementError) -> Self {
        Self::malformed(&error.to_string())
    }
}

/// Tells whether a cause, however deep, is that the server showed another key than the pinned one.
fn is_wrong_key(error: &(dyn Error + 'static)) -> bool {
    if let Some(tls) = error.downcast_ref::<rustls::Error>() {
        return matches!(tls, rustls::Error::InvalidCertificate(_));
    }
    // What an io::Error wraps is not its source but stands beside it.
    let wrapped = error
        .downcast_ref::<io::Error>()
        .and_then(io::Error::get_ref);
    wrapped.is_some_and(|inner| is_wrong_key(inner)) || error.source().is_some_and(is_wrong_key)
}

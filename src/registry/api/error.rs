use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tracing::error;

use crate::id::UnixTime;
use crate::registry::auth::AuthError;
use crate::registry::enroll::EnrolError;
use crate::registry::store::{Kept, StoreError};
use crate::statement::{ChainError, StatementError};
use crate::wire::api::problem::{Code, Problem};

/// A refusal on its way to the caller.
#[derive(Debug)]
pub(super) struct ApiError {
    problem: Box<Problem>,
    /// None unless waiting helps.
    retry_after: Option<Duration>,
}

impl ApiError {
    /// Makes a refusal that says what happened this time.
    pub(super) fn with(code: Code, detail: impl std::fmt::Display) -> Self {
        Problem::with(code, detail).into()
    }

    /// Refuses one who asks for more than its share.
    pub(super) fn too_many(wait: Duration) -> Self {
        Self {
            problem: Box::new(Problem::new(Code::TooManyRequests)),
            retry_after: Some(wait),
        }
    }

    /// Refuses one who did not prove who it is; `now` helps a clock that is off.
    pub(super) fn unauthorized(error: &AuthError, now: UnixTime) -> Self {
        match error {
            AuthError::ClockSkew(_) => Problem::clock_skew(now).into(),
            AuthError::Missing
            | AuthError::Statement(_)
            | AuthError::TooLong
            | AuthError::Other(_) => Self::with(Code::Unauthorized, error),
        }
    }

    /// Returns the refusal that goes with what became of a statement; nothing when it was kept.
    pub(super) fn unless_kept(kept: &Kept) -> Result<(), Self> {
        match kept {
            Kept::New | Kept::Refreshed | Kept::Same => Ok(()),
            Kept::Full => Err(Code::NoRoom.into()),
            Kept::NameTaken => Err(Code::NameTaken.into()),
            Kept::Stale { seen } => Err(Self::with(
                Code::StaleSeq,
                format_args!("the newest known has seq {seen}"),
            )),
        }
    }
}

impl From<Problem> for ApiError {
    fn from(problem: Problem) -> Self {
        Self {
            problem: Box::new(problem),
            retry_after: None,
        }
    }
}

impl From<Code> for ApiError {
    fn from(code: Code) -> Self {
        Problem::new(code).into()
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        if error.is_full() {
            error!(code = "disk_full", reason = %error, "The store has no room");
            return Self::with(Code::Internal, "its disk is full");
        }
        error!(code = "store_failed", reason = %error, "The store failed");
        Code::Internal.into()
    }
}

impl From<StatementError> for ApiError {
    fn from(error: StatementError) -> Self {
        Self::with(Code::BadStatement, error)
    }
}

impl From<ChainError> for ApiError {
    fn from(error: ChainError) -> Self {
        let code = match &error {
            ChainError::TokenExpired(_) => Code::TokenExpired,
            ChainError::Revoked(_) => Code::Revoked,
            ChainError::Statement(_)
            | ChainError::Length
            | ChainError::WrongRoot
            | ChainError::WrongNetwork
            | ChainError::Broken(_)
            | ChainError::Exceeds(..)
            | ChainError::NotAdmitted
            | ChainError::WrongAdmission
            | ChainError::NotAnAgent
            | ChainError::Address(_)
            | ChainError::WrongRecord(_) => Code::BadChain,
        };
        Self::with(code, error)
    }
}

impl From<EnrolError> for ApiError {
    fn from(error: EnrolError) -> Self {
        match error {
            EnrolError::Chain(error) => error.into(),
            EnrolError::Statement(error) => error.into(),
            EnrolError::WrongRoot | EnrolError::WrongRegistry | EnrolError::NotAToken => {
                Self::with(Code::BadChain, error)
            }
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.problem.status);
        let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self.problem)).into_response();
        let headers = response.headers_mut();
        let kind = HeaderValue::from_static("application/problem+json");
        headers.insert(header::CONTENT_TYPE, kind);
        if let Some(wait) = self.retry_after {
            let secs = wait.as_secs() + 1;
            headers.insert(header::RETRY_AFTER, secs.into());
        }
        response
    }
}

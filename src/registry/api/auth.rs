use std::sync::Arc;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{FromRequest, Query, Request};
use axum::http::{HeaderMap, Uri, header, request::Parts};
use serde::de::DeserializeOwned;

use crate::id::{NetworkId, UnixTime};
use crate::os::clock;
use crate::registry::api::App;
use crate::registry::api::error::ApiError;
use crate::registry::auth::{self, AuthError, Proven, Signed};
use crate::statement::{Auth, Claims, Statement};
use crate::wire::api::problem::Code;
use crate::wire::api::registry::MAX_BODY;

/// A request whose sender is proven, with its body as sent.
#[derive(Debug)]
pub(super) struct Authed {
    pub(super) proven: Proven,
    pub(super) now: UnixTime,
    uri: Uri,
    body: Bytes,
}

impl Authed {
    /// Reads the body as JSON.
    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        serde_json::from_slice(&self.body).map_err(|error| ApiError::with(Code::BadRequest, error))
    }

    /// Reads the query.
    pub(super) fn query<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        let read = Query::<T>::try_from_uri(&self.uri);
        let Query(query) =
            read.map_err(|error| ApiError::with(Code::BadRequest, error.body_text()))?;
        Ok(query)
    }

    /// Opens a statement that the caller itself signed for `network`, and that holds now.
    pub(super) fn own<C: Claims>(
        &self,
        text: &str,
        network: &NetworkId,
    ) -> Result<Statement<C>, ApiError> {
        let statement = Statement::<C>::open_at(text, self.now)?;
        if statement.network() != Some(*network) {
            return Err(ApiError::with(
                Code::BadStatement,
                "the statement is for another network",
            ));
        }
        // Identity comes from the proven key alone, never from what a field says.
        if statement.issuer() != self.proven.key {
            return Err(ApiError::with(
                Code::BadStatement,
                "the statement is signed by another key than the request",
            ));
        }
        Ok(statement)
    }
}

impl FromRequest<Arc<App>> for Authed {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let now = clock::unix();
        let refused = |error: AuthError| ApiError::unauthorized(&error, now);
        let proof = opened(&parts.headers, now).map_err(refused)?;
        let body = bounded(&parts, body).await?;
        let target = parts.uri.path_and_query().map_or("/", |p| p.as_str());
        let signed = Signed {
            registry: app.parts.key.did(),
            method: parts.method.as_str(),
            target,
            body: &body,
        };
        let proven = auth::check(&proof, &signed).map_err(refused)?;
        app.take_key(proven.key, clock::now())
            .map_err(ApiError::too_many)?;
        Ok(Self {
            proven,
            now,
            uri: parts.uri,
            body,
        })
    }
}

fn opened(headers: &HeaderMap, now: UnixTime) -> Result<Statement<Auth>, AuthError> {
    let bearer = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "));
    auth::open(bearer.ok_or(AuthError::Missing)?, now)
}

async fn bounded(parts: &Parts, body: Body) -> Result<Bytes, ApiError> {
    let told = parts
        .headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if told.is_some_and(|length| length > MAX_BODY) {
        return Err(Code::TooLarge.into());
    }
    // The body is cut where it grows too large or breaks off; both are told as too large.
    to_bytes(body, MAX_BODY)
        .await
        .map_err(|_| Code::TooLarge.into())
}

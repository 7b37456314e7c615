//! The registry's HTTP interface (protocol.md section 3).

mod app;
mod auth;
mod authority;
mod domain;
mod error;
mod hub;
mod members;
mod networks;
mod openapi;
mod trust;
mod watch;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};

use crate::os::clock;
use crate::wire::api::problem::{Code, Problem};

pub use app::{App, AppParts};
use error::ApiError;

/// Longest a request may take from its head to the head of its answer, its body included.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Returns the routes of a registry.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/healthz", get(domain::healthz))
        .route("/readyz", get(domain::readyz))
        .route("/v1/domain", get(domain::domain))
        .route("/v1/openapi.json", get(openapi::document))
        .route("/v1/gateways", post(domain::enrol_gateway))
        .route(
            "/v1/gateways/{gateway}/record",
            put(domain::refresh_gateway),
        )
        .route("/v1/watch", get(watch::watch))
        // Not nested: nesting would cut the path that the caller's proof is about.
        .route("/v1/networks", post(networks::create).get(networks::list))
        .route("/v1/networks/{network}", put(networks::activate))
        .route("/v1/networks/{network}/join", post(members::join))
        .route(
            "/v1/networks/{network}/record",
            put(members::put_record).delete(members::leave),
        )
        .route("/v1/networks/{network}/requests", post(trust::request))
        .route("/v1/networks/{network}/consents", post(trust::consent))
        .route("/v1/networks/{network}/resolve", get(trust::resolve))
        .route(
            "/v1/networks/{network}/grants",
            post(authority::register_token),
        )
        .route("/v1/networks/{network}/names", get(authority::find_holder))
        .route("/v1/networks/{network}/tokens", get(authority::tokens))
        .route(
            "/v1/networks/{network}/revocations",
            post(authority::revoke),
        )
        .fallback(async || ApiError::from(Code::NotFound))
        .method_not_allowed_fallback(async || ApiError::from(Code::MethodNotAllowed))
        .layer(from_fn_with_state(app.clone(), guard))
        .with_state(app)
}

/// Holds every request, authenticated or not, to its source's share and to its time.
async fn guard(
    State(app): State<Arc<App>>,
    ConnectInfo(source): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    let answer = match app.take_source(source.ip(), clock::now()) {
        Err(wait) => ApiError::too_many(wait).into_response(),
        Ok(()) => match tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await {
            Ok(response) => response,
            Err(_) => ApiError::from(Problem::new(Code::Timeout)).into_response(),
        },
    };
    app.answers().count(answer.status());
    answer
}

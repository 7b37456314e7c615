//! The local API: HTTP on a Unix socket, authorised by who is at the other end (protocol.md
//! section 10). It decides nothing; a [`Control`] does.

mod listen;

use std::{convert::Infallible, io, path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use axum::{
    Json, Router,
    body::{self, Bytes},
    extract::{ConnectInfo, DefaultBodyLimit, FromRequest, Query, Request, State},
    http::{HeaderValue, StatusCode, header::CONTENT_TYPE},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures_util::stream::StreamExt;
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::oneshot;
use tracing::info;

use crate::node::capture::Pieces;
use crate::wire::api::local::{
    AutoRemove, AutoRule, AutoRules, CaptureQuery, Dns, Down, JoinRequest, Joined, Left, LogLines,
    MAX_BODY, Metrics, NetcheckTargets, OfAgent, PathQuery, PathReport, Peers, Pending, PingReply,
    PingRequest, Status, TrustApprove, TrustAwait, TrustChanged, TrustList, TrustName,
    TrustRequest, TrustStands, Version, Versioned, Whois, WhoisQuery, WireGuardAdd, WireGuardAdded,
    WireGuardPeers, WireGuardRemove, WireGuardRemoved,
};
use crate::wire::api::problem::{Code, Problem};

pub(crate) use listen::make_folder;
pub use listen::{Caller, Held, LocalListener, SocketError};

/// How long answers under way may take once the daemon stops; nobody may hold it up longer.
const GRACE: Duration = Duration::from_secs(2);

/// What the local API can ask of the daemon; the problem of a refusal reaches the caller as it is.
#[async_trait]
pub trait Control: Send + Sync + 'static {
    /// Returns the node as its operator sees it.
    async fn status(&self) -> Result<Status, Problem>;

    /// Returns whom `agentnet netcheck` may ask.
    async fn netcheck(&self) -> Result<NetcheckTargets, Problem>;

    /// Returns how the host's programs are told of our names.
    async fn dns(&self) -> Result<Dns, Problem>;

    /// Has the host's programs told, also after a revert.
    async fn dns_apply(&self) -> Result<Dns, Problem>;

    /// Takes the host's DNS settings back until they are asked for again.
    async fn dns_revert(&self) -> Result<Dns, Problem>;

    /// Returns the agents with a consent to or from ours.
    async fn peers(&self, of: OfAgent) -> Result<Peers, Problem>;

    /// Returns who has an overlay address.
    async fn whois(&self, query: WhoisQuery) -> Result<Whois, Problem>;

    /// Returns the requests nobody answered yet.
    async fn trust_pending(&self, of: OfAgent) -> Result<Pending, Problem>;

    /// Returns the consents that stand.
    async fn trust_list(&self, of: OfAgent) -> Result<TrustList, Problem>;

    /// Asks another agent for its consent.
    async fn trust_request(&self, request: TrustRequest) -> Result<TrustChanged, Problem>;

    /// Waits until consent stands both ways with another agent.
    async fn trust_await(&self, wait: TrustAwait) -> Result<TrustStands, Problem>;

    /// Consents to another agent.
    async fn trust_approve(&self, approve: TrustApprove) -> Result<TrustChanged, Problem>;

    /// Drops a request unanswered.
    async fn trust_deny(&self, deny: TrustName) -> Result<TrustChanged, Problem>;

    /// Takes a consent back; when this returns, nothing passes any more.
    async fn trust_revoke(&self, revoke: TrustName) -> Result<TrustChanged, Problem>;

    /// Returns the rules that approve without a person.
    async fn auto_list(&self, of: OfAgent) -> Result<AutoRules, Problem>;

    /// Adds a rule.
    async fn auto_add(&self, rule: AutoRule) -> Result<AutoRules, Problem>;

    /// Removes the rules about one selector.
    async fn auto_remove(&self, remove: AutoRemove) -> Result<AutoRules, Problem>;

    /// Returns the peers that speak only WireGuard.
    async fn wireguard_list(&self, of: OfAgent) -> Result<WireGuardPeers, Problem>;

    /// Lets a peer in that speaks only WireGuard.
    async fn wireguard_add(&self, add: WireGuardAdd) -> Result<WireGuardAdded, Problem>;

    /// Forgets such a peer; when this returns, nothing passes any more.
    async fn wireguard_remove(&self, remove: WireGuardRemove) -> Result<WireGuardRemoved, Problem>;

    /// Returns every path to another agent, and why the one in use is.
    async fn path(&self, query: PathQuery) -> Result<PathReport, Problem>;

    /// Probes another agent once.
    async fn ping(&self, ping: PingRequest) -> Result<PingReply, Problem>;

    /// Begins to show agents' packets.
    async fn capture(&self, query: CaptureQuery) -> Result<Pieces, Problem>;

    /// Returns the last lines of the log.
    async fn log(&self) -> Result<LogLines, Problem>;

    /// Returns the node's metrics.
    async fn metrics(&self) -> Result<Metrics, Problem>;

    /// Joins a network by a token.
    async fn join(&self, join: JoinRequest) -> Result<Joined, Problem>;

    /// Leaves a network and forgets the agent.
    async fn leave(&self, leave: OfAgent) -> Result<Left, Problem>;

    /// Begins to stop the daemon.
    async fn down(&self) -> Result<Down, Problem>;
}

type Shared = Arc<dyn Control>;

/// Serves the local API until `shutdown` ends, then removes the socket.
pub async fn serve(
    listener: LocalListener,
    control: Arc<dyn Control>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let socket = listener.file();
    if let Some(socket) = &socket {
        info!(socket = %socket.path().display(), "Local API ready");
    }
    let app = router(control).into_make_service_with_connect_info::<Caller>();
    let (stopping, stopped) = oneshot::channel::<()>();
    let serving = axum::serve(listener, app).with_graceful_shutdown(async move {
        shutdown.await;
        drop(stopping);
    });
    tokio::select! {
        result = serving => result,
        () = async {
            drop(stopped.await);
            tokio::time::sleep(GRACE).await;
        } => Ok(()),
    }
}

/// Binds the socket at `path`; a dead daemon's file is replaced, a live one's refused.
pub fn bind(path: &Path) -> Result<LocalListener, SocketError> {
    LocalListener::bind(path, listen::CONNECTIONS)
}

/// Binds the same for so many connections at once.
pub fn bind_for(path: &Path, connections: usize) -> Result<LocalListener, SocketError> {
    LocalListener::bind(path, connections)
}

fn router(control: Shared) -> Router {
    let reads = Router::new()
        .route("/v1/version", get(version))
        .route(
            "/v1/status",
            get(|State(c): State<Shared>| async move { answer(c.status().await) }),
        )
        .route(
            "/v1/netcheck",
            get(|State(c): State<Shared>| async move { answer(c.netcheck().await) }),
        )
        .route(
            "/v1/dns",
            get(|State(c): State<Shared>| async move { answer(c.dns().await) }),
        )
        .route(
            "/v1/metrics",
            get(|State(c): State<Shared>| async move { answer(c.metrics().await) }),
        )
        .route("/v1/path", get(path))
        .route("/v1/peers", get(peers))
        .route("/v1/whois", get(whois))
        .route("/v1/trust", get(trust_list))
        .route("/v1/trust/pending", get(trust_pending))
        .route("/v1/trust/auto", get(auto_list))
        .route("/v1/wireguard", get(wireguard_list))
        .route("/v1/trust/await", post(trust_await))
        .route("/v1/ping", post(ping));
    // What is read there is not everybody's either.
    let changes = Router::new()
        .route("/v1/capture", get(capture))
        .route(
            "/v1/log",
            get(|State(c): State<Shared>| async move { answer(c.log().await) }),
        )
        .route("/v1/trust/request", post(trust_request))
        .route("/v1/trust/approve", post(trust_approve))
        .route("/v1/trust/deny", post(trust_deny))
        .route("/v1/trust/revoke", post(trust_revoke))
        .route("/v1/trust/auto/add", post(auto_add))
        .route("/v1/trust/auto/remove", post(auto_remove))
        .route("/v1/wireguard/add", post(wireguard_add))
        .route("/v1/wireguard/remove", post(wireguard_remove))
        .route(
            "/v1/dns/apply",
            post(|State(c): State<Shared>| async move { answer(c.dns_apply().await) }),
        )
        .route(
            "/v1/dns/revert",
            post(|State(c): State<Shared>| async move { answer(c.dns_revert().await) }),
        )
        .route("/v1/join", post(join))
        .route("/v1/leave", post(leave))
        .route(
            "/v1/down",
            post(|State(c): State<Shared>| async move { answer(c.down().await) }),
        )
        .route_layer(middleware::from_fn(changers_only));
    reads
        .merge(changes)
        .fallback(|| async { problem(&Problem::with(Code::NotFound, "no such call")) })
        .method_not_allowed_fallback(|| async { problem(&Problem::new(Code::MethodNotAllowed)) })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(control)
}

/// Lets only those pass who may change the node.
async fn changers_only(
    ConnectInfo(caller): ConnectInfo<Caller>,
    request: Request,
    next: Next,
) -> Response {
    if caller.may_change().await {
        return next.run(request).await;
    }
    let mut denied = Problem::with(
        Code::Forbidden,
        "only root and group agentnet change a node",
    );
    "run it as root, or add this user to the group: usermod -aG agentnet USER"
        .clone_into(&mut denied.hint);
    problem(&denied)
}

async fn version() -> Response {
    answer(Ok(Version {
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }))
}

async fn capture(State(control): State<Shared>, Params(query): Params<CaptureQuery>) -> Response {
    match control.capture(query).await {
        Ok(pieces) => {
            let body = body::Body::from_stream(pieces.map(Ok::<_, Infallible>));
            ([(CONTENT_TYPE, "application/x-pcapng")], body).into_response()
        }
        Err(error) => problem(&error),
    }
}

macro_rules! query_calls {
    ($($name:ident($query:ty))*) => {$(
        async fn $name(State(control): State<Shared>, Params(query): Params<$query>) -> Response {
            answer(control.$name(query).await)
        }
    )*};
}

macro_rules! body_calls {
    ($($name:ident($body:ty))*) => {$(
        async fn $name(State(control): State<Shared>, Body(body): Body<$body>) -> Response {
            answer(control.$name(body).await)
        }
    )*};
}

query_calls! {
    path(PathQuery)
    peers(OfAgent)
    whois(WhoisQuery)
    trust_list(OfAgent)
    trust_pending(OfAgent)
    auto_list(OfAgent)
    wireguard_list(OfAgent)
}

body_calls! {
    trust_request(TrustRequest)
    trust_await(TrustAwait)
    trust_approve(TrustApprove)
    trust_deny(TrustName)
    trust_revoke(TrustName)
    auto_add(AutoRule)
    auto_remove(AutoRemove)
    wireguard_add(WireGuardAdd)
    wireguard_remove(WireGuardRemove)
    ping(PingRequest)
    join(JoinRequest)
    leave(OfAgent)
}

/// Puts an answer or the problem of a refusal onto the wire.
pub(in crate::node) fn answer<T: Serialize>(result: Result<T, Problem>) -> Response {
    match result {
        Ok(body) => Json(Versioned::new(body)).into_response(),
        Err(error) => problem(&error),
    }
}

fn problem(problem: &Problem) -> Response {
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = (status, Json(problem)).into_response();
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/problem+json"),
    );
    response
}

/// A JSON body; what does not parse is a problem, not axum's plain text.
struct Body<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let bytes = Bytes::from_request(request, state)
            .await
            .map_err(|_| problem(&Problem::new(Code::TooLarge)))?;
        serde_json::from_slice(&bytes)
            .map(Self)
            .map_err(|error| problem(&Problem::with(Code::BadRequest, error)))
    }
}

/// Query parameters; what does not parse is a problem.
struct Params<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Params<T> {
    type Rejection = Response;

    async fn from_request(request: Request, _: &S) -> Result<Self, Response> {
        Query::try_from_uri(request.uri())
            .map(|Query(query)| Self(query))
            .map_err(|error| problem(&Problem::with(Code::BadRequest, error.body_text())))
    }
}

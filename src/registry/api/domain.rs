use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use tracing::info;

use crate::id::UnixTime;
use crate::os::clock;
use crate::os::wss::Target;
use crate::registry::api::App;
use crate::registry::api::auth::Authed;
use crate::registry::api::authority::too_long;
use crate::registry::api::error::ApiError;
use crate::registry::authorize::Call;
use crate::registry::enroll;
use crate::registry::store::NewGateway;
use crate::statement::{Gateway, Head, Statement};
use crate::wire::api::problem::{Code, Problem};
use crate::wire::api::registry::{DomainInfo, GatewayBody, GatewayEnrolled, MAX_ENDPOINTS};

/// How long a gateway is listed after it was last heard of.
const GATEWAY_LEASE: Duration = Duration::from_secs(3600);

/// How long a gateway's statement holds, so that agents use it while the registry is down.
const GATEWAY_LIFE: Duration = Duration::from_secs(30 * 86_400);

/// Longest text a gateway says of itself: host names are at most 253 bytes (RFC 1035).
const MAX_TEXT: usize = 262; // bytes, with a port

/// Most features a gateway names.
const MAX_FEATURES: usize = 16;

/// Tells who runs this domain.
#[utoipa::path(get, path = "/v1/domain", tag = "public",
    responses((status = 200, body = DomainInfo), (status = "default", body = Problem)))]
pub(super) async fn domain(State(app): State<Arc<App>>) -> Result<Json<DomainInfo>, ApiError> {
    Ok(Json(DomainInfo {
        v: 1,
        domain: app.domain(),
        registry: app.parts.statement.text().to_owned(),
        gateways: app.store().gateways(clock::unix()).await?,
        profile: "P1".to_owned(),
        versions: vec![1],
        url: app.parts.url.clone(),
    }))
}

/// Says that the process lives.
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// Says that the store answers.
pub(super) async fn readyz(State(app): State<Arc<App>>) -> Result<&'static str, ApiError> {
    app.store().check().await?;
    Ok("ready\n")
}

/// Enrols a gateway as the operator.
#[utoipa::path(post, path = "/v1/gateways", tag = "operator", request_body = GatewayBody,
    responses((status = 200, body = GatewayEnrolled), (status = "default", body = Problem)))]
pub(super) async fn enrol_gateway(
    State(app): State<Arc<App>>,
    authed: Authed,
) -> Result<Json<GatewayEnrolled>, ApiError> {
    app.admit(Call::EnrolGateway, &authed.proven).await?;
    let body = authed.json::<GatewayBody>()?;
    info!(gateway = %body.gateway, "Gateway enrolled");
    list(&app, body, authed.now).await
}

/// Keeps a gateway listed, as the gateway itself.
#[utoipa::path(put, path = "/v1/gateways/{gateway}/record", tag = "gateway",
    params(("gateway" = String, Path)), request_body = GatewayBody,
    responses((status = 200, body = GatewayEnrolled), (status = "default", body = Problem)))]
pub(super) async fn refresh_gateway(
    State(app): State<Arc<App>>,
    Path(gateway): Path<String>,
    authed: Authed,
) -> Result<Json<GatewayEnrolled>, ApiError> {
    app.admit(Call::RefreshGateway, &authed.proven).await?;
    let body = authed.json::<GatewayBody>()?;
    let key = authed.proven.key;
    if body.gateway != key || gateway != key.to_string() {
        return Err(ApiError::with(
            Code::Forbidden,
            "the record of another gateway",
        ));
    }
    list(&app, body, authed.now).await
}

async fn list(
    app: &App,
    body: GatewayBody,
    now: UnixTime,
) -> Result<Json<GatewayEnrolled>, ApiError> {
    check(&body)?;
    let head = Head {
        subject: body.gateway,
        network: None,
        issued: now,
        expires: now + GATEWAY_LIFE,
        seq: now.as_millis(),
    };
    let claims = Gateway {
        tunnel: body.tunnel,
        udp: body.udp,
        wss: body.wss,
        region: body.region,
        features: body.features,
        ttl: GATEWAY_LEASE.as_secs(),
    };
    // Agents are told of changes at once, and of a mere new date once a day.
    let day = UnixTime::from_secs(now.as_secs() / 86_400 * 86_400);
    let content = enroll::content(&claims, day);
    let statement = Statement::sign(&app.parts.key, head, claims)?;
    let new = NewGateway {
        gateway: body.gateway,
        text: statement.text().to_owned(),
        lease: now + GATEWAY_LEASE,
        content,
    };
    app.store().put_gateway(&new).await?;
    app.hub.publish_gateway();
    Ok(Json(GatewayEnrolled {
        statement: statement.text().to_owned(),
    }))
}

fn check(body: &GatewayBody) -> Result<(), ApiError> {
    let is_endpoint = |text: &String| {
        let (host, port) = text.rsplit_once(':').unwrap_or_default();
        text.len() <= MAX_TEXT && !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0)
    };
    if body.udp.is_empty() || body.udp.len() > MAX_ENDPOINTS || !body.udp.iter().all(is_endpoint) {
        return Err(ApiError::with(
            Code::BadRequest,
            format_args!("`udp` lists 1 to {MAX_ENDPOINTS} of host:port"),
        ));
    }
    let is_target = |text: &String| text.len() <= 2 * MAX_TEXT && text.parse::<Target>().is_ok();
    if body.wss.len() > MAX_ENDPOINTS || !body.wss.iter().all(is_target) {
        return Err(ApiError::with(
            Code::BadRequest,
            format_args!("`wss` lists at most {MAX_ENDPOINTS} of wss://host:port/path"),
        ));
    }
    if body.features.len() > MAX_FEATURES || body.features.iter().any(|f| f.len() > 32) {
        return Err(too_long("features"));
    }
    if body.region.as_ref().is_some_and(|region| region.len() > 64) {
        return Err(too_long("regions"));
    }
    Ok(())
}

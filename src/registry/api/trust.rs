use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::id::AgentId;
use crate::registry::api::App;
use crate::registry::api::auth::Authed;
use crate::registry::api::error::ApiError;
use crate::registry::api::networks::network_of;
use crate::registry::authorize::Call;
use crate::registry::store::{Kept, NewConsent, NewRequest, Sequence, Whom};
use crate::registry::watch::Hint;
use crate::statement::{Consent, ConsentState, Record, Request, Statement};
use crate::wire::api::problem::{Code, Problem};
use crate::wire::api::registry::{ConsentBody, RequestBody, Resolve, Resolved};

/// Longest a request waits for its target; one that nobody answered in a week is asked again.
const REQUEST_LIFE: Duration = Duration::from_secs(7 * 86_400);

/// The one answer to whatever was taken in.
const ACCEPTED: StatusCode = StatusCode::ACCEPTED;

/// Takes a trust request for a name; the answer is the same whether or not anybody has it.
#[utoipa::path(post, path = "/v1/networks/{network}/requests", tag = "agent",
    params(("network" = String, Path)), request_body = RequestBody,
    responses((status = 202), (status = "default", body = Problem)))]
pub(super) async fn request(
    State(app): State<Arc<App>>,
    Path(network): Path<String>,
    authed: Authed,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let network = network_of(&network)?;
    let caller = (&authed.proven, authed.now);
    app.admit_to(&network, Call::Request, caller).await?;
    let request = authed.own::<Request>(&authed.json::<RequestBody>()?.request, &network)?;
    let record = Statement::<Record>::open_at(&request.claims().record, authed.now)?;
    if record.issuer() != request.issuer() {
        return Err(ApiError::with(
            Code::BadStatement,
            "the request holds another agent's record",
        ));
    }
    // Kept by name and not by agent: a name that nobody has costs the same work.
    let target = request.claims().to.clone();
    let new = NewRequest {
        network,
        target: target.clone(),
        text: request.text().to_owned(),
        expires: request.expires().min(authed.now + REQUEST_LIFE),
        sequence: Sequence::of(&request),
    };
    let kept = app.store().put_request(&new, authed.now).await?;
    ApiError::unless_kept(&kept)?;
    if kept == Kept::New {
        app.hub.publish(&network, Hint::Request { target });
    }
    Ok((ACCEPTED, Json(json!({}))))
}

/// Takes a consent, an approval or its revocation toward another key.
#[utoipa::path(post, path = "/v1/networks/{network}/consents", tag = "agent",
    params(("network" = String, Path)), request_body = ConsentBody,
    responses((status = 202), (status = "default", body = Problem)))]
pub(super) async fn consent(
    State(app): State<Arc<App>>,
    Path(network): Path<String>,
    authed: Authed,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let network = network_of(&network)?;
    let caller = (&authed.proven, authed.now);
    let (_, standing) = app.admit_to(&network, Call::Consent, caller).await?;
    let consent = authed.own::<Consent>(&authed.json::<ConsentBody>()?.consent, &network)?;
    let issuer = AgentId::from(consent.issuer());
    let active = consent.claims().state == ConsentState::Active;
    // Taking consent back must not fail because a lease ran out meanwhile.
    let known = standing.role.is_some()
        || !active && !app.store().names_of(&network, &issuer).await?.is_empty();
    if !known {
        return Err(ApiError::with(Code::Forbidden, "not a member"));
    }
    let subject = AgentId::from(consent.subject());
    if subject == issuer {
        return Err(ApiError::with(Code::BadStatement, "a consent to oneself"));
    }
    let new = NewConsent {
        network,
        active,
        text: consent.text().to_owned(),
        sequence: Sequence::of(&consent),
    };
    let kept = app.store().put_consent(&new, authed.now).await?;
    ApiError::unless_kept(&kept)?;
    if kept == Kept::New {
        app.hub.publish(&network, Hint::Consent { issuer, subject });
    }
    Ok((ACCEPTED, Json(json!({}))))
}

/// Finds the record of an agent that consented to the caller.
#[utoipa::path(get, path = "/v1/networks/{network}/resolve", tag = "agent",
    params(("network" = String, Path), Resolve),
    responses((status = 200, body = Resolved), (status = "default", body = Problem)))]
pub(super) async fn resolve(
    State(app): State<Arc<App>>,
    Path(network): Path<String>,
    authed: Authed,
) -> Result<Json<Resolved>, ApiError> {
    let network = network_of(&network)?;
    let caller = (&authed.proven, authed.now);
    app.admit_to(&network, Call::Resolve, caller).await?;
    let whom = match authed.query::<Resolve>()? {
        Resolve {
            name: Some(name),
            address: None,
        } => Whom::Name(name),
        Resolve {
            name: None,
            address: Some(address),
        } => Whom::Address(address),
        Resolve { .. } => {
            return Err(ApiError::with(
                Code::BadRequest,
                "resolve takes `name` or `address`",
            ));
        }
    };
    let (me, now) = (AgentId::from(authed.proven.key), authed.now);
    let visible = app.store().visible_record(&network, &whom, &me, now);
    let record = visible.await?.ok_or(Code::NotFound)?;
    Ok(Json(Resolved { record }))
}

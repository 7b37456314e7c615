use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};
use tracing::info;

use crate::id::NetworkId;
use crate::registry::api::App;
use crate::registry::api::auth::Authed;
use crate::registry::api::error::ApiError;
use crate::registry::authorize::Call;
use crate::registry::enroll;
use crate::registry::store::{Creation, Kept, NewNetwork, Sequence};
use crate::registry::watch::Hint;
use crate::statement::{Grant, Revocations};
use crate::wire::api::problem::{Code, Problem};
use crate::wire::api::registry::{
    ActivateNetwork, CreateNetwork, NetworkCreated, NetworkEntry, NetworkList, Page,
};

/// Entries of one page of any list.
pub(super) const PAGE: usize = 100;

/// Creates a network for an owner's root key and answers its prefix.
#[utoipa::path(post, path = "/v1/networks", tag = "operator", request_body = CreateNetwork,
    responses((status = 200, body = NetworkCreated), (status = "default", body = Problem)))]
pub(super) async fn create(
    State(app): State<Arc<App>>,
    authed: Authed,
) -> Result<Json<NetworkCreated>, ApiError> {
    app.admit(Call::CreateNetwork, &authed.proven).await?;
    let body = authed.json::<CreateNetwork>()?;
    let new = NewNetwork {
        network: body.root,
        label: body.label,
        operator: authed.proven.key,
    };
    let number = match app.store().create_network(&new).await? {
        Creation::Created(number) => number,
        Creation::Taken => return Err(Code::LabelTaken.into()),
        Creation::Full => return Err(Code::NoRoom.into()),
    };
    info!(network = %new.network, number, "Network created");
    Ok(Json(NetworkCreated {
        prefix: app.prefix(number),
    }))
}

/// Lists the networks the calling operator created.
#[utoipa::path(get, path = "/v1/networks", tag = "operator", params(Page),
    responses((status = 200, body = NetworkList), (status = "default", body = Problem)))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    authed: Authed,
) -> Result<Json<NetworkList>, ApiError> {
    app.admit(Call::ListNetworks, &authed.proven).await?;
    let after = authed.query::<Page>()?.after.unwrap_or(0);
    let limit = u32::try_from(PAGE).expect("a page is small");
    let rows = app
        .store()
        .networks(&authed.proven.key, after, limit)
        .await?;
    let next = (rows.len() == PAGE).then(|| rows.last().map(|row| row.number.into()));
    let networks = rows.into_iter().map(|row| NetworkEntry {
        network: row.network,
        prefix: app.prefix(row.number),
        active: row.grant.is_some(),
        label: row.label,
    });
    Ok(Json(NetworkList {
        networks: networks.collect(),
        next: next.flatten(),
    }))
}

/// Takes the owner's root grant, which makes the network live.
#[utoipa::path(put, path = "/v1/networks/{network}", tag = "owner",
    params(("network" = String, Path)), request_body = ActivateNetwork,
    responses((status = 200), (status = "default", body = Problem)))]
pub(super) async fn activate(
    State(app): State<Arc<App>>,
    Path(network): Path<String>,
    authed: Authed,
) -> Result<Json<Value>, ApiError> {
    let network = network_of(&network)?;
    let caller = (&authed.proven, authed.now);
    let (row, _) = app.admit_to(&network, Call::Activate, caller).await?;
    let body = authed.json::<ActivateNetwork>()?;
    let grant = authed.own::<Grant>(&body.grant, &network)?;
    enroll::root(
        &grant,
        &app.ground(&row, &Revocations::default(), authed.now),
    )?;
    let kept = app
        .store()
        .activate_network(&network, grant.text(), &Sequence::of(&grant))
        .await?;
    ApiError::unless_kept(&kept)?;
    if kept == Kept::New {
        app.hub.publish(&network, Hint::Network);
    }
    Ok(Json(json!({})))
}

/// Reads the network of a path; one that is no key is no network.
pub(super) fn network_of(text: &str) -> Result<NetworkId, ApiError> {
    text.parse::<NetworkId>()
        .map_err(|error| ApiError::with(Code::NotFound, error))
}

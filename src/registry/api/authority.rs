use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::{Value, json};
use tracing::info;

use crate::id::UnixTime;
use crate::registry::api::App;
use crate::registry::api::auth::Authed;
use crate::registry::api::error::ApiError;
use crate::registry::api::networks::{PAGE, network_of};
use crate::registry::authorize::Call;
use crate::registry::enroll;
use crate::registry::store::{Kept, NetworkRow, NewRevocation};
use crate::registry::watch::Hint;
use crate::statement::{Chain, Record, Revocation, Revocations, Role, Statement, verify_record};
use crate::wire::api::problem::{Code, Problem};
use crate::wire::api::registry::{
    FindHolder, GrantBody, Holder, Page, RevocationBody, TokenEntry, TokenList,
};

/// Makes a join token known before its first use.
#[utoipa::path(post, path = "/v1/networks/{network}/grants", tag = "owner",
    params(("network" = String, Path)), request_body = GrantBody,
    responses((status = 200), (status = "default", body = Problem)))]
pub(super) async fn register_token(
    State(app): State<Arc<App>>,
    Path(network): Path<String>,
    authed: Authed,
) -> Result<Json<Value>, ApiError> {
    let network = network_of(&network)?;
    let caller = (&authed.proven, authed.now);
    let (row, _) = app.admit_to(&network, Call::RegisterToken, caller).await?;
    let chain = Chain::parse(&authed.json::<GrantBody>()?.chain)?;
    let revoked = app.revocations(&row).await?;
    let ground = app.ground(&row, &revoked, authed.now);
    let token = enroll::token(&chain, authed.proven.key, &ground)?;
    ApiError::unless_kept(&app.store().put_token(&token).await?)?;
    Ok(Json(json!({})))
}

/// Lists the network's join tokens and what is left of them.
#[utoipa::path(get, path = "/v1/networks/{network}/tokens", tag = "owner",
    params(("network" = String, Path), Page),
    responses((status = 200, body = TokenList), (status = "default", body = Problem)))]
pub(super) async fn tokens(
    State(app): State<Arc<App>>,
    Path(network): Path<String>,
    authed: Authed,
) -> Result<Json<TokenList>, ApiError> {
    let network = network_of(&network)?;
    let caller = (&authed.proven, authed.now);
    let (row, _) = app.admit_to(&network, Call::ListTokens, caller).await?;
    let after = authed.query::<Page>()?.after.unwrap_or(0);
    let limit = u32::try_from(PAGE).expect("a page is small");
    let rows = app.store().tokens(&network, after, limit).await?;
    let revoked = app.revocations(&row).await?;
    let next = (rows.len() == PAGE).then(|| rows.last().map(|row| row.id));
    let tokens = rows.into_iter().map(|row| TokenEntry {
        revoked: revoked
            .of(&row.token, Role::Token, &row.ancestors)
            .is_some(),
        token: row.token,
        grant: row.grant,
        uses_left: row.uses.saturating_sub(row.used),
        used: row.used,
    });
    Ok(Json(TokenList {
        tokens: tokens.collect(),
        next: next.flatten(),
    }))
}

/// Finds the key that holds a name, or the names of a key, for who may revoke it.
#[utoipa::path(get, path = "/v1/networks/{network}/names", tag = "owner",
    params(("network" = String, Path), FindHolder),
    responses((status = 200, body = Holder), (status = "default", body = Problem)))]
pub(super) async fn find_holder(
    State(app): State<Arc<App>>,
    Path(network): Path<String>,
    authed: Authed,
) -> Result<Json<Holder>, ApiError> {
    let network = network_of(&network)?;
    let caller = (&authed.proven, authed.now);
    app.admit_to(&network, Call::FindHolder, caller).await?;
    let agent = match authed.query::<FindHolder>()? {
        FindHolder {
            name: Some(name),
            agent: None,
        } => app.store().holder(&network, &name).await?,
        FindHolder {
            name: None,
            agent: Some(agent),
        } => Some(agent),
        FindHolder { .. } => {
            return Err(ApiError::with(
                Code::BadRequest,
                "names takes `name` or `agent`",
            ));
        }
    };
    let agent = agent.ok_or(Code::NotFound)?;
    let names = app.store().names_of(&network, &agent).await?;
    if names.is_empty() {
        return Err(Code::NotFound.into());
    }
    let live = app.store().record(&network, &agent, authed.now).await?;
    Ok(Json(Holder {
        agent,
        names,
        record: live.map(|record| record.text),
    }))
}

/// Takes a revocation, which every member and gateway is told of at once.
#[utoipa::path(post, path = "/v1/networks/{network}/revocations", tag = "owner",
    params(("network" = String, Path)), request_body = RevocationBody,
    responses((status = 202), (status = "default", body = Problem)))]
pub(super) async fn revoke(
    State(app): State<Arc<App>>,
    Path(network): Path<String>,
    authed: Authed,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let network = network_of(&network)?;
    let caller = (&authed.proven, authed.now);
    let (row, _) = app.admit_to(&network, Call::Revoke, caller).await?;
    let body = authed.json::<RevocationBody>()?;
    let revocation = authed.own::<Revocation>(&body.revocation, &network)?;
    let before = app.revocations(&row).await?;
    let chain = Chain::parse(&revocation.claims().chain)?;
    let author = chain.authority(&network, &before, authed.now)?;
    let mut revoked = Revocations::clone(&before);
    revoked.add(&revocation, &network, authed.now)?;
    let new = NewRevocation {
        network,
        author: author.key,
        manages: matches!(author.role, Role::Owner | Role::Admin),
        text: revocation.text().to_owned(),
        hash: revocation.hash().to_string(),
    };
    let kept = app.store().add_revocation(&new, authed.now).await?;
    ApiError::unless_kept(&kept)?;
    if kept == Kept::New {
        info!(%network, author = %author.key, "Revocation accepted");
        drop_void(&app, &row, (&revocation, &revoked), authed.now).await?;
        app.hub.publish(&network, Hint::Revocation);
    }
    Ok((StatusCode::ACCEPTED, Json(json!({}))))
}

/// Drops the records whose chain the revocation broke.
async fn drop_void(
    app: &App,
    row: &NetworkRow,
    (revocation, revoked): (&Statement<Revocation>, &Revocations),
    now: UnixTime,
) -> Result<(), ApiError> {
    let claims = revocation.claims();
    let keys = claims.keys.iter().map(|revoked| revoked.key.to_string());
    let links = keys.chain(claims.grants.iter().map(ToString::to_string));
    let touched = app
        .store()
        .records_through(&row.network, &links.collect::<Vec<_>>())
        .await?;
    let holds = |text: &str| {
        Statement::<Record>::open(text)
            .is_ok_and(|record| verify_record(&record, &row.network, revoked, now).is_ok())
    };
    let void = touched.iter().filter(|record| !holds(&record.text));
    let void = void.map(|record| record.agent).collect::<Vec<_>>();
    app.store().drop_records(&row.network, &void).await?;
    Ok(())
}

/// Refuses what a page says of itself in too many words.
pub(super) fn too_long(what: &str) -> ApiError {
    ApiError::with(
        Code::BadRequest,
        format_args!("too many or too long {what}"),
    )
}

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use tracing::debug;

use crate::id::{AgentId, NetworkId, UnixTime};
use crate::registry::api::App;
use crate::registry::api::auth::Authed;
use crate::registry::api::error::ApiError;
use crate::registry::api::networks::network_of;
use crate::registry::authorize::Call;
use crate::registry::enroll::{self, Enrolled};
use crate::registry::store::{Farewell, JoinOutcome, Kept, NetworkRow, Sequence};
use crate::registry::watch::Hint;
use crate::statement::{Record, Statement};
use crate::wire::api::problem::{Code, Problem};
use crate::wire::api::registry::{Joined, RecordBody, Refreshed};

/// Joins a network: takes name, address and a use of the token, and answers the admission.
#[utoipa::path(post, path = "/v1/networks/{network}/join", tag = "agent",
    params(("network" = String, Path)), request_body = RecordBody,
    responses((status = 200, body = Joined), (status = "default", body = Problem)))]
pub(super) async fn join(
    State(app): State<Arc<App>>,
    Path(network): Path<String>,
    authed: Authed,
) -> Result<Json<Joined>, ApiError> {
    let network = network_of(&network)?;
    let caller = (&authed.proven, authed.now);
    let (row, _) = app.admit_to(&network, Call::Join, caller).await?;
    let record = authed.own::<Record>(&authed.json::<RecordBody>()?.record, &network)?;
    let revoked = app.revocations(&row).await?;
    let ground = app.ground(&row, &revoked, authed.now);
    let (joined, mut joining) = enroll::join(&record, &ground)?;
    let member = &joined.member;
    let holder = app.store().holder(&network, &member.name).await?;
    joining.revoked = holder.filter(|holder| enroll::is_revoked(holder, &revoked));
    let first = match app.store().join(&joining, authed.now).await? {
        JoinOutcome::Admitted { first } => first,
        JoinOutcome::AddressTaken => return Err(Code::AddressTaken.into()),
        JoinOutcome::Full => return Err(Code::NoRoom.into()),
        JoinOutcome::NameTaken => return Err(ApiError::with(Code::NameTaken, &member.name)),
        JoinOutcome::UsedUp => return Err(Code::TokenUsedUp.into()),
    };
    debug!(agent = %member.agent, name = %member.name, "Joined");
    let admission = match &member.authority.token {
        Some(gate) => {
            let key = &app.parts.key;
            let signed = enroll::admission(key, member, gate, first, authed.now)?;
            Some(signed.text().to_owned())
        }
        None => {
            keep(&app, &record, &joined, authed.now).await?;
            None
        }
    };
    Ok(Json(Joined {
        admission,
        address: member.address,
        lease: lease_of(&app, &record),
    }))
}

/// Keeps the agent's record for a lease, and renews its admission in time.
#[utoipa::path(put, path = "/v1/networks/{network}/record", tag = "agent",
    params(("network" = String, Path)), request_body = RecordBody,
    responses((status = 200, body = Refreshed), (status = "default", body = Problem)))]
pub(super) async fn put_record(
    State(app): State<Arc<App>>,
    Path(network): Path<String>,
    authed: Authed,
) -> Result<Json<Refreshed>, ApiError> {
    let network = network_of(&network)?;
    let caller = (&authed.proven, authed.now);
    let (row, _) = app.admit_to(&network, Call::PutRecord, caller).await?;
    let record = authed.own::<Record>(&authed.json::<RecordBody>()?.record, &network)?;
    if record.claims().ttl == 0 {
        return forget(&app, &network, &record, authed.now).await;
    }
    refresh(&app, &row, &record, authed.now).await
}

/// Takes the agent's record back. Its name stays its own, unless it is ephemeral.
#[utoipa::path(delete, path = "/v1/networks/{network}/record", tag = "agent",
    params(("network" = String, Path)), request_body = RecordBody,
    responses((status = 200, body = Refreshed), (status = "default", body = Problem)))]
pub(super) async fn leave(
    State(app): State<Arc<App>>,
    Path(network): Path<String>,
    authed: Authed,
) -> Result<Json<Refreshed>, ApiError> {
    let network = network_of(&network)?;
    let caller = (&authed.proven, authed.now);
    app.admit_to(&network, Call::Leave, caller).await?;
    let record = authed.own::<Record>(&authed.json::<RecordBody>()?.record, &network)?;
    if record.claims().ttl != 0 {
        return Err(ApiError::with(
            Code::BadStatement,
            "a record that takes itself back has ttl 0",
        ));
    }
    forget(&app, &network, &record, authed.now).await
}

async fn refresh(
    app: &App,
    row: &NetworkRow,
    record: &Statement<Record>,
    now: UnixTime,
) -> Result<Json<Refreshed>, ApiError> {
    let revoked = app.revocations(row).await?;
    let refreshed = enroll::refresh(record, &app.ground(row, &revoked, now))?;
    keep(app, record, &refreshed, now).await?;
    let renewed = enroll::renewal(&app.parts.key, &refreshed, now)?;
    Ok(Json(Refreshed {
        lease: lease_of(app, record),
        admission: renewed.map(|admission| admission.text().to_owned()),
    }))
}

async fn keep(
    app: &App,
    record: &Statement<Record>,
    of: &Enrolled,
    now: UnixTime,
) -> Result<(), ApiError> {
    let member = &of.member;
    let lease = std::time::Duration::from_secs(lease_of(app, record));
    let until = (now + lease).min(record.expires());
    let new = enroll::kept(record, of, until);
    let kept = app.store().put_record(&new, now).await?;
    ApiError::unless_kept(&kept)?;
    if kept == Kept::New {
        let toward = app.store().consented(&member.network, &member.agent, now);
        let hint = Hint::Record {
            agent: member.agent,
            toward: toward.await?,
        };
        app.hub.publish(&member.network, hint);
    }
    Ok(())
}

async fn forget(
    app: &App,
    network: &NetworkId,
    record: &Statement<Record>,
    now: UnixTime,
) -> Result<Json<Refreshed>, ApiError> {
    let farewell = Farewell {
        network: *network,
        sequence: Sequence::of(record),
        text: record.text().to_owned(),
    };
    let departure = app.store().leave(&farewell, now).await?;
    ApiError::unless_kept(&departure.kept)?;
    // The watch of one who left ends, as it finds itself no member.
    let hint = Hint::Record {
        agent: AgentId::from(record.issuer()),
        toward: departure.told,
    };
    app.hub.publish(network, hint);
    Ok(Json(Refreshed {
        lease: 0,
        admission: None,
    }))
}

fn lease_of(app: &App, record: &Statement<Record>) -> u64 {
    let bounds = &app.parts.lease;
    enroll::lease(record.claims().ttl, bounds.shortest(), bounds.longest()).as_secs()
}

use axum::Json;
use utoipa::OpenApi;

use crate::registry::api::{authority, domain, members, networks, trust, watch};

/// The interface as an OpenAPI document.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "agentnet registry",
        description = "Every call but the public ones carries `Authorization: Bearer` with an \
                       agn-auth statement (protocol.md section 2). Errors are RFC 9457 problems \
                       with a stable `code` and a `hint`."
    ),
    paths(
        authority::find_holder,
        authority::register_token,
        authority::revoke,
        authority::tokens,
        domain::domain,
        domain::enrol_gateway,
        domain::refresh_gateway,
        members::join,
        members::leave,
        members::put_record,
        networks::activate,
        networks::create,
        networks::list,
        trust::consent,
        trust::request,
        trust::resolve,
        watch::watch,
    )
)]
struct Document;

/// Answers the OpenAPI document.
pub(super) async fn document() -> Json<utoipa::openapi::OpenApi> {
    Json(Document::openapi())
}

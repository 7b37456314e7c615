use std::io;

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use tokio::sync::{mpsc, oneshot};

use crate::gateway::metrics;
use crate::gateway::server::GatewayCommand;
use crate::gateway::status::GatewayStatus;
use crate::node::local_api::{LocalListener, answer};
use crate::wire::api::problem::{Code, Problem};

/// Serves `GET /v1/status` on the gateway's socket until `shutdown` ends.
pub(super) async fn serve(
    listener: LocalListener,
    commands: mpsc::Sender<GatewayCommand>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let app = Router::new()
        .route("/v1/status", get(status))
        .with_state(commands);
    axum::serve(listener, app)
        .with_graceful_shutdown(shutdown)
        .await
}

async fn status(State(commands): State<mpsc::Sender<GatewayCommand>>) -> Response {
    answer(ask(&commands).await)
}

async fn ask(commands: &mpsc::Sender<GatewayCommand>) -> Result<GatewayStatus, Problem> {
    let (reply, told) = oneshot::channel();
    let stopping = || Problem::with(Code::Internal, "the gateway is stopping");
    let command = GatewayCommand::Status(reply);
    commands.send(command).await.map_err(|_| stopping())?;
    told.await.map_err(|_| stopping())
}

/// Returns the metrics of this moment; None when the gateway is stopping.
pub(super) async fn metrics(commands: mpsc::Sender<GatewayCommand>) -> Option<String> {
    let status = ask(&commands).await.ok()?;
    Some(metrics::text(&status, &metrics::drops(&status)))
}

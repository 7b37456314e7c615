//! One page over plain HTTP, on a listener of its own: a daemon's metrics.

use std::io;
use std::net::SocketAddr;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use crate::wire::metrics::CONTENT_TYPE;

/// Binds the listener; a port that is taken is told before the daemon works.
pub async fn bind(at: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(at).await
}

/// Serves `GET /metrics`, which `read` makes anew each time; None from it means that the daemon ends.
pub async fn serve<F>(
    listener: TcpListener,
    read: impl Fn() -> F + Clone + Send + Sync + 'static,
) -> io::Result<()>
where
    F: Future<Output = Option<String>> + Send + 'static,
{
    let page = move || {
        let text = read();
        async move { answer(text.await) }
    };
    axum::serve(listener, Router::new().route("/metrics", get(page))).await
}

fn answer(text: Option<String>) -> Response {
    match text {
        Some(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        None => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

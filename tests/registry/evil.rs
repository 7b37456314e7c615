//! A server that holds the registry's pinned key and says what it likes.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use agentnet::os::tls::ServerKey;
use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use axum_server::Handle;
use axum_server::tls_rustls::RustlsConfig;

/// What it answers; the body may have no end.
pub(crate) type Answer = dyn Fn(&Request) -> Response + Send + Sync;

/// An evil registry; it is gone when dropped.
pub(crate) struct Evil {
    pub(crate) at: SocketAddr,
    handle: Handle<SocketAddr>,
}

impl Evil {
    /// Answers at `at` with the key that those who know the registry expect.
    pub(crate) fn start(at: SocketAddr, key: &ServerKey, answer: Arc<Answer>) -> Self {
        let tls = key.server_config(&["localhost".to_owned()]).unwrap();
        let listener = TcpListener::bind(at).unwrap();
        listener.set_nonblocking(true).unwrap();
        let at = listener.local_addr().unwrap();
        let handle = Handle::new();
        let server = axum_server::from_tcp_rustls(listener, RustlsConfig::from_config(tls));
        let server = server.unwrap().handle(handle.clone());
        let routes = Router::new().fallback(async move |request: Request| answer(&request));
        tokio::spawn(server.serve(routes.into_make_service()));
        Self { at, handle }
    }
}

impl Drop for Evil {
    fn drop(&mut self) {
        self.handle.shutdown();
    }
}

/// Answers `body` as what it is not.
pub(crate) fn answered(status: u16, body: impl Into<Body>) -> Response {
    let answer = Response::builder().status(status);
    let answer = answer.header("content-type", "application/json");
    answer.body(body.into()).unwrap()
}

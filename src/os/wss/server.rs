//! The end that is connected to.

use std::{io, sync::Arc};

use rustls::ServerConfig;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsStream};
use tokio_tungstenite::{
    accept_hdr_async_with_config,
    tungstenite::handshake::server::{Callback, ErrorResponse, Request, Response},
};

use crate::os::wss::{Receiver, Sender, halves, limits, prepare};

/// Why somebody who connected is no peer.
#[derive(Debug, Error)]
pub enum AcceptError {
    #[error("no TLS: {0}")]
    Tls(#[from] io::Error),
    #[error("no WebSocket: {0}")]
    Upgrade(Box<tokio_tungstenite::tungstenite::Error>),
}

/// Makes a connection to us a WebSocket at `path`; how long that may take is the caller's to say.
pub async fn accept(
    tcp: TcpStream,
    tls: Arc<ServerConfig>,
    path: &'static str,
) -> Result<(Sender, Receiver), AcceptError> {
    let stream = TlsAcceptor::from(tls).accept(prepare(tcp)?).await?;
    let stream = TlsStream::Server(stream);
    let upgraded = accept_hdr_async_with_config(stream, Only(path), Some(limits())).await;
    let socket = upgraded.map_err(|error| AcceptError::Upgrade(Box::new(error)))?;
    Ok(halves(socket))
}

/// Upgrades requests of one path.
struct Only(&'static str);

impl Callback for Only {
    fn on_request(self, request: &Request, response: Response) -> Result<Response, ErrorResponse> {
        if request.uri().path() == self.0 {
            return Ok(response);
        }
        let mut refused = ErrorResponse::new(None);
        *refused.status_mut() = tokio_tungstenite::tungstenite::http::StatusCode::NOT_FOUND;
        Err(refused)
    }
}

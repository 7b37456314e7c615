//! Datagrams in the binary messages of a WebSocket (RFC 6455) over TLS, each in one.

mod client;
mod prompt;
mod proxy;
mod queue;
mod server;
mod tls;

use std::io;

use futures_util::{
    FutureExt, SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Bytes, Message, protocol::WebSocketConfig},
};

use crate::os::wss::prompt::Prompt;

pub use client::{BadTarget, ConnectError, Target, connect};
pub use proxy::{Proxies, Proxy, ProxyError};
pub use queue::{Batch, Queue, Total, Waiting, queue};
pub use server::{AcceptError, accept};
pub use tls::{CertificateError, self_signed, server_of};

/// Longest message taken: the largest frame a gateway asks for is 9,008 bytes.
const MAX_MESSAGE: usize = 16 << 10;

/// What one call takes in at most, as with UDP.
const MAX_BURST: usize = 64 << 10;

/// Bytes that a connection reads and writes at once: a TLS record (RFC 8446 section 5.1).
const RECORD: usize = 16 << 10;

/// Time after which a connection ends whose other end acknowledges nothing of what was sent.
const UNACKNOWLEDGED: u32 = 5000; // milliseconds

type Socket = WebSocketStream<TlsStream<Prompt>>;

/// Why a connection ended.
#[derive(Debug, Error)]
pub enum WssError {
    #[error("the other end closed the connection")]
    Closed,
    #[error("a message that is not binary")]
    NotBinary,
    #[error(transparent)]
    Socket(Box<tokio_tungstenite::tungstenite::Error>),
}

impl From<tokio_tungstenite::tungstenite::Error> for WssError {
    fn from(error: tokio_tungstenite::tungstenite::Error) -> Self {
        Self::Socket(Box::new(error))
    }
}

/// What came.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Came {
    /// Datagrams that lie end to end, each but the last so many bytes long.
    Datagrams { stride: usize },
    /// Nothing but a sign of life.
    Alive,
}

/// The half of a connection that sends.
#[derive(Debug)]
pub struct Sender(SplitSink<Socket, Message>);

/// The half of a connection that receives.
#[derive(Debug)]
pub struct Receiver {
    stream: SplitStream<Socket>,
    /// A message that did not go with those before it; None when there is none.
    next: Option<Bytes>,
}

impl Sender {
    /// Takes datagrams that lie end to end, each but the last `stride` bytes long; they wait for
    /// [`Sender::flush`] when they are few.
    pub async fn feed(&mut self, bytes: Vec<u8>, stride: usize) -> Result<(), WssError> {
        let bytes = Bytes::from(bytes);
        let mut start = 0;
        while start < bytes.len() {
            let end = bytes.len().min(start + stride.max(1));
            let message = Message::Binary(bytes.slice(start..end));
            self.0.feed(message).await?;
            start = end;
        }
        Ok(())
    }

    /// Sends what waits.
    pub async fn flush(&mut self) -> Result<(), WssError> {
        Ok(self.0.flush().await?)
    }

    /// Sends a batch, and with it what waits behind it.
    pub async fn send(&mut self, first: Batch, waiting: &mut Waiting) -> Result<(), WssError> {
        let mut next = Some(first);
        while let Some(Batch { bytes, stride, .. }) = next.take() {
            self.feed(bytes, stride).await?;
            next = waiting.next_now();
        }
        self.flush().await
    }

    /// Asks for a sign of life.
    pub async fn ping(&mut self) -> Result<(), WssError> {
        Ok(self.0.send(Message::Ping(Bytes::new())).await?)
    }

    /// Says that nothing more comes.
    pub async fn close(&mut self) -> Result<(), WssError> {
        Ok(self.0.close().await?)
    }
}

impl Receiver {
    /// Waits for datagrams and puts those into `bytes` that are there already and of one length.
    ///
    /// # Cancel safety
    ///
    /// What was received and not returned comes with the next call.
    pub async fn receive(&mut self, bytes: &mut Vec<u8>) -> Result<Came, WssError> {
        bytes.clear();
        let first = match self.next.take() {
            Some(first) => first,
            None => match payload(self.stream.next().await)? {
                Some(first) => first,
                None => return Ok(Came::Alive),
            },
        };
        let stride = first.len();
        bytes.extend_from_slice(&first);
        while bytes.len() + stride <= MAX_BURST && stride > 0 {
            let Some(came) = self.stream.next().now_or_never() else {
                break;
            };
            let Some(next) = payload(came)? else {
                continue;
            };
            if next.is_empty() || next.len() > stride {
                self.next = Some(next);
                break;
            }
            bytes.extend_from_slice(&next);
            if next.len() < stride {
                break;
            }
        }
        Ok(Came::Datagrams { stride })
    }
}

/// Returns what a message brought; None when it was about the connection itself.
fn payload(
    came: Option<Result<Message, tokio_tungstenite::tungstenite::Error>>,
) -> Result<Option<Bytes>, WssError> {
    match came.ok_or(WssError::Closed)?? {
        Message::Binary(bytes) => Ok(Some(bytes)),
        // The library answers pings.
        Message::Ping(_) | Message::Pong(_) => Ok(None),
        Message::Close(_) => Err(WssError::Closed),
        Message::Text(_) | Message::Frame(_) => Err(WssError::NotBinary),
    }
}

fn halves(socket: Socket) -> (Sender, Receiver) {
    let (sink, stream) = socket.split();
    (Sender(sink), Receiver { stream, next: None })
}

fn limits() -> WebSocketConfig {
    WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE))
        .read_buffer_size(RECORD)
        .write_buffer_size(2 * RECORD)
}

/// Sets what every connection has: no waiting for more to send, and an end when nothing arrives.
fn prepare(tcp: TcpStream) -> io::Result<Prompt> {
    use nix::sys::socket::{setsockopt, sockopt::TcpUserTimeout};
    tcp.set_nodelay(true)?;
    setsockopt(&tcp, TcpUserTimeout, &UNACKNOWLEDGED)?;
    Ok(Prompt::new(tcp))
}

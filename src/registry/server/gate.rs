use std::collections::BTreeMap;
use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready as poll_ready};
use std::time::Duration;

use axum_server::accept::Accept;
use nix::sys::socket::{setsockopt, sockopt::TcpUserTimeout};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

use crate::config::LimitSettings;
use crate::registry::limits::SourcePrefix;

/// A client that takes nothing for so long has its connection cut; a watch then resumes.
const STALL: Duration = Duration::from_secs(30);

/// A host that acknowledges nothing for so long is gone (RFC 5482).
const GONE: u32 = 60_000; // milliseconds

/// Lets connections in while there is room, for all and for each source.
#[derive(Clone, Debug)]
pub(super) struct Gate {
    taken: Arc<Mutex<Taken>>,
    most: usize,
    most_of_source: usize,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    sources: BTreeMap<SourcePrefix, usize>,
}

impl Gate {
    pub(super) fn new(limits: &LimitSettings) -> Self {
        Self {
            taken: Arc::default(),
            most: limits.connections,
            most_of_source: limits.source_connections,
        }
    }

    fn seat(&self, source: SourcePrefix) -> Option<Seat> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let of_source = taken.sources.get(&source).copied().unwrap_or(0);
        if taken.all >= self.most || of_source >= self.most_of_source {
            return None;
        }
        taken.all += 1;
        taken.sources.insert(source, of_source + 1);
        Some(Seat {
            taken: self.taken.clone(),
            source,
        })
    }

    fn enter(&self, stream: TcpStream) -> io::Result<Guarded> {
        let source = SourcePrefix::of(stream.peer_addr()?.ip());
        let seat = self.seat(source).ok_or(io::ErrorKind::QuotaExceeded)?;
        stream.set_nodelay(true)?;
        setsockopt(&stream, TcpUserTimeout, &GONE)?;
        Ok(Guarded {
            stream,
            patience: STALL,
            stalled: None,
            _seat: seat,
        })
    }
}

impl<S> Accept<TcpStream, S> for Gate {
    type Stream = Guarded;
    type Service = S;
    type Future = Ready<io::Result<(Guarded, S)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        ready(self.enter(stream).map(|guarded| (guarded, service)))
    }
}

/// A place among the connections, free again when dropped.
#[derive(Debug)]
struct Seat {
    taken: Arc<Mutex<Taken>>,
    source: SourcePrefix,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all -= 1;
        match taken.sources.get_mut(&self.source) {
            Some(count) if *count > 1 => *count -= 1,
            Some(_) | None => {
                taken.sources.remove(&self.source);
            }
        }
    }
}

/// A connection that is cut when its other end stops reading.
#[derive(Debug)]
pub(super) struct Guarded {
    stream: TcpStream,
    /// How long a write may wait.
    patience: Duration,
    /// Runs while a write waits; None while writes go through.
    stalled: Option<Pin<Box<Sleep>>>,
    _seat: Seat,
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(written) = Pin::new(&mut self.stream).poll_write(cx, bytes) {
            self.stalled = None;
            return Poll::Ready(written);
        }
        let patience = self.patience;
        let stalled = self
            .stalled
            .get_or_insert_with(|| Box::pin(sleep(patience)));
        poll_ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    /// A slow reader is cut off instead of being buffered for.
    #[tokio::test]
    async fn a_connection_whose_end_stops_reading_is_cut() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let silent = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let mut guarded = Gate::new(&LimitSettings::default()).enter(stream).unwrap();
        guarded.patience = Duration::from_millis(50);

        let written = loop {
            if let Err(error) = guarded.write_all(&[0; 65_536]).await {
                break error;
            }
        };

        assert_eq!(written.kind(), io::ErrorKind::TimedOut);
        drop(silent);
    }

    #[test]
    fn seats_are_bounded_for_all_and_for_each_source() {
        let gate = Gate {
            taken: Arc::default(),
            most: 3,
            most_of_source: 2,
        };
        let source = |text: &str| SourcePrefix::of(text.parse().unwrap());
        let (a, b) = (source("192.0.2.1"), source("198.51.100.1"));

        let held = [gate.seat(a), gate.seat(a)];
        assert!(held.iter().all(Option::is_some) && gate.seat(a).is_none());
        let other = gate.seat(b);
        assert!(other.is_some() && gate.seat(b).is_none());
        drop(held);

        assert!(gate.seat(a).is_some());
        assert_eq!(gate.taken.lock().unwrap().all, 1);
        drop(other);
        assert!(gate.taken.lock().unwrap().sources.is_empty());
    }
}

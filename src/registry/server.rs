//! Running a registry: its socket, its database and its upkeep.

mod gate;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use axum_server::Handle;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use hyper_util::rt::TokioTimer;
use rustix::thread::CapabilitySet;
use thiserror::Error;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::config::{MetricsSettings, RegistryConfig, RegistrySettings};
use crate::os::clock;
use crate::os::files::FileError;
use crate::os::lock::{LockError, StateLock};
use crate::os::page;
use crate::os::sandbox::Sandbox;
use crate::os::tls::TlsError;
use crate::registry::api::{App, AppParts, router};
use crate::registry::init::{Files, host_of, load};
use crate::registry::metrics;
use crate::registry::store::sqlite::SqliteStore;
use crate::registry::store::{Store, StoreError};

use gate::Gate;

/// A handshake takes two round trips; who needs longer holds a seat for nothing.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a connection may be idle, or take over the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Room for the largest proof and the other headers, and for a piece of a body.
const MAX_HEAD: usize = 64 * 1024; // bytes

/// Requests in flight get this long to finish when the registry stops.
const GRACE: Duration = Duration::from_secs(3);

/// Why a registry does not run.
#[derive(Debug, Error)]
pub enum ServeError {
    #[error("cannot listen on {at}")]
    Listen {
        at: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("the server stopped")]
    Server(#[source] io::Error),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Returns what a registry keeps of its rights: its directory and ports.
pub fn sandbox(config: &RegistryConfig) -> Sandbox {
    Sandbox {
        reads: Vec::new(),
        writes: vec![config.dir.clone()],
        capabilities: CapabilitySet::NET_BIND_SERVICE,
        runs_programs: false,
    }
}

/// Runs a registry until `shutdown` resolves; calls `ready` with its address once it listens.
///
/// Its operators are those of `settings_now`, at any time.
pub async fn serve(
    config: RegistryConfig,
    settings_now: watch::Receiver<RegistrySettings>,
    shutdown: impl Future<Output = ()> + Send,
    ready: impl FnOnce(SocketAddr) + Send,
) -> Result<(), ServeError> {
    let files = Files::in_dir(&config.dir);
    let identity = load(&files)?;
    let _lock = StateLock::take(&config.dir)?;
    let store = Arc::new(SqliteStore::open(&files.database()).await?);
    let settings = config.settings;
    let (listener, at) = listen(settings.listen)?;
    let url = settings.url.unwrap_or_else(|| format!("https://{at}"));
    let tls = identity
        .tls
        .server_config(&host_of(&url).into_iter().collect::<Vec<_>>())?;
    let (stop, stopped) = watch::channel(false);
    let app = App::new(AppParts {
        key: identity.key,
        statement: identity.statement,
        url: url.clone(),
        settings: settings_now,
        lease: settings.lease,
        limits: settings.limits,
        store: store.clone(),
        stop: stopped.clone(),
    });
    let app = Arc::new(app);
    let metrics = metrics_page(&settings.metrics, &app).await?;
    let handle = Handle::new();
    let acceptor = RustlsAcceptor::new(RustlsConfig::from_config(tls))
        .handshake_timeout(HANDSHAKE_TIMEOUT)
        .acceptor(Gate::new(&settings.limits));
    let mut server = axum_server::from_tcp(listener)
        .map_err(ServeError::Server)?
        .acceptor(acceptor)
        .handle(handle.clone())
        .http1_only();
    server
        .http_builder()
        .http1()
        .timer(TokioTimer::new())
        .max_buf_size(MAX_HEAD)
        .header_read_timeout(HEAD_TIMEOUT);
    let routes = router(app).into_make_service_with_connect_info::<SocketAddr>();
    let upkeep = tokio::spawn(keep_up(store.clone(), settings.lease.shortest(), stopped));
    info!(%at, url, "The registry listens");
    ready(at);
    let mut serving = std::pin::pin!(server.serve(routes));
    let served = tokio::select! {
        served = &mut serving => served,
        () = shutdown => {
            stop.send_replace(true);
            handle.graceful_shutdown(Some(GRACE));
            serving.await
        }
    };
    stop.send_replace(true);
    drop(metrics);
    if upkeep.await.is_err() {
        warn!("The upkeep of the store broke off");
    }
    store.close().await;
    served.map_err(ServeError::Server)
}

/// Serves metrics, if they are wanted, for as long as what is returned is kept.
async fn metrics_page(
    settings: &MetricsSettings,
    app: &Arc<App>,
) -> Result<JoinSet<io::Result<()>>, ServeError> {
    let mut serving = JoinSet::new();
    if let Some(at) = settings.listen {
        let listener = page::bind(at).await;
        let listener = listener.map_err(|source| ServeError::Listen { at, source })?;
        let app = Arc::clone(app);
        serving.spawn(page::serve(listener, move || {
            metrics::read(Arc::clone(&app))
        }));
    }
    Ok(serving)
}

fn listen(at: SocketAddr) -> Result<(TcpListener, SocketAddr), ServeError> {
    let failed = |source| ServeError::Listen { at, source };
    let listener = TcpListener::bind(at).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// Forgets what is over when it is, until the registry stops.
async fn keep_up(store: Arc<SqliteStore>, shortest: Duration, mut stop: watch::Receiver<bool>) {
    loop {
        let now = clock::unix();
        let next = store.expire(now).await.unwrap_or_else(|error| {
            warn!(%error, "The store failed to forget what is over");
            None
        });
        // What comes in meanwhile ends after the shortest lease at the earliest.
        let wait = next.map_or(shortest, |next| next.since(now).min(shortest));
        let wait = wait.max(Duration::from_secs(1));
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

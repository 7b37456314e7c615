//! Connections to gateways for networks that let no UDP through: frames in WebSockets over TLS.
//!
//! Each gateway has one, for all agents of the node. It is made once something is to go there, by
//! which the engine says that UDP gave no answer, and closed when nothing goes any more.

mod connection;

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::timeout,
};
use tracing::{debug, warn};

use crate::config::{NodeWssSettings, WssMode};
use crate::dataplane::DataplaneHandle;
use crate::id::{Did, DomainPrefix};
use crate::node::driver::{Core, Handle, now};
use crate::os::files;
use crate::os::wss::{self, Proxies, Proxy, Target, Total};
use crate::wire::carrier;

use connection::Connection;

/// Gateways that have a connection of their own: those of more networks than a node is in.
const MAX_CARRIERS: usize = 256;

/// WebSockets of one gateway that are tried in turn (protocol.md section 2).
const MAX_TARGETS: usize = 8;

/// Connections that were lost and of which the engine does not know yet.
const MAX_LOST: usize = 64;

/// How long what was said last may take to leave when the daemon stops.
const FAREWELL: Duration = Duration::from_secs(1);

/// How a connection stands.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) enum State {
    Connected {
        /// The gateway, `wss://host:port`.
        target: String,
        /// None where there is none between.
        proxy: Option<String>,
    },
    Connecting,
    Failed {
        /// Stable name of the cause.
        code: &'static str,
        text: String,
        cure: &'static str,
    },
    /// Nothing is to go.
    #[default]
    Idle,
}

/// What all connections share.
#[derive(Debug)]
struct Shared {
    plane: DataplaneHandle,
    proxies: Proxies,
    /// Takes the endpoints whose connection was lost.
    lost: mpsc::Sender<SocketAddr>,
}

/// The connections of a node.
#[derive(Debug)]
pub struct Carriers {
    mode: WssMode,
    shared: Arc<Shared>,
    total: Total,
    known: BTreeMap<Did, Known>,
    tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Known {
    at: SocketAddr,
    targets: watch::Sender<Vec<Target>>,
    state: watch::Receiver<State>,
}

impl Carriers {
    /// Makes none yet; the receiver is for [`follow`].
    pub fn new(
        plane: DataplaneHandle,
        mode: WssMode,
        proxies: Proxies,
    ) -> (Self, mpsc::Receiver<SocketAddr>) {
        let (lost, told) = mpsc::channel(MAX_LOST);
        let shared = Shared {
            plane,
            proxies,
            lost,
        };
        let this = Self {
            mode,
            shared: Arc::new(shared),
            total: Total::default(),
            known: BTreeMap::new(),
            tasks: JoinSet::new(),
        };
        (this, told)
    }

    /// Returns where datagrams for a gateway are to go whose statement names `wss`: its endpoints
    /// for UDP, and the one that stands for its connection, in the order they are to be tried.
    pub(super) fn endpoints(
        &mut self,
        gateway: Did,
        wss: &[String],
        udp: Vec<SocketAddr>,
        domain: DomainPrefix,
    ) -> Vec<SocketAddr> {
        let carrier = match self.mode {
            WssMode::Off => None,
            WssMode::Auto | WssMode::Only => self.endpoint(gateway, wss, domain),
        };
        let Some(carrier) = carrier else {
            return udp;
        };
        if self.mode == WssMode::Only {
            return vec![carrier];
        }
        let mut all = udp;
        // Second: what else is there of UDP most likely fails for the same reason.
        all.insert(all.len().min(1), carrier);
        all
    }

    fn endpoint(
        &mut self,
        gateway: Did,
        wss: &[String],
        domain: DomainPrefix,
    ) -> Option<SocketAddr> {
        let parsed = wss.iter().filter_map(|text| text.parse().ok());
        let targets = parsed.take(MAX_TARGETS).collect::<Vec<Target>>();
        if let Some(known) = self.known.get(&gateway) {
            known.targets.send_replace(targets.clone());
            return (!targets.is_empty()).then_some(known.at);
        }
        if targets.is_empty() || self.known.len() >= MAX_CARRIERS {
            return None;
        }
        let number = self.known.len() as u64 + 1;
        let at = carrier::endpoint(number, SocketAddr::from(([0; 4], 0)));
        let (queue, waiting) = wss::queue(&self.total);
        self.shared.plane.set_carrier(at, &queue);
        let (targets, wanted) = watch::channel(targets);
        let (told, state) = watch::channel(State::Idle);
        let shared = Arc::clone(&self.shared);
        let connection = Connection::new((at, domain), shared, (wanted, waiting), told);
        self.tasks.spawn(connection.run());
        let known = Known { at, targets, state };
        self.known.insert(gateway, known);
        Some(at)
    }

    /// Returns how the connection to a gateway stands; None when it has none.
    pub(super) fn state(&self, gateway: &Did) -> Option<State> {
        let known = self.known.get(gateway)?;
        Some(known.state.borrow().clone())
    }

    /// Waits a moment until what the workers still had to send is sent.
    pub(super) async fn close(mut self) {
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(FAREWELL, all).await.is_err() {
            debug!("Not all was sent before the end");
        }
    }
}

/// Tells the engine of connections that were lost, until the daemon stops.
pub(super) async fn follow(handle: Handle, mut lost: mpsc::Receiver<SocketAddr>) {
    while let Some(at) = lost.recv().await {
        let tell = move |core: &mut Core| core.engine.handle_carrier_lost(at, now());
        if handle.call(tell).await.is_err() {
            return;
        }
    }
}

/// Returns which proxies connections go through: as the settings say, else as the environment does.
pub(super) fn proxies(settings: &NodeWssSettings) -> Result<Proxies, String> {
    if let Some(file) = &settings.proxy_file {
        let text = files::read_text(file).map_err(|error| error.to_string())?;
        let proxy = text.trim().parse::<Proxy>();
        let proxy = proxy.map_err(|error| format!("{}: {error}", file.display()))?;
        return Ok(Proxies::all(Some(proxy)));
    }
    match settings.proxy.as_str() {
        "none" => Ok(Proxies::default()),
        "environment" => {
            let read = Proxies::of_environment(&|name| std::env::var(name).ok());
            // It was not written for us alone.
            Ok(read.unwrap_or_else(|error| {
                warn!(%error, "The proxy that the environment names is not used");
                Proxies::default()
            }))
        }
        given => {
            let proxy = given.parse::<Proxy>();
            let proxy = proxy.map_err(|error| format!("wss.proxy: {error}"))?;
            Ok(Proxies::all(Some(proxy)))
        }
    }
}

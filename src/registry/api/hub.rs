use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{broadcast, oneshot};

use crate::id::{Did, NetworkId};
use crate::registry::watch::Hint;

/// Hints held for one who is busy; who misses some looks into the store, which misses nothing.
const BACKLOG: usize = 64;

/// Watches one key may have open on one network; a reconnecting client leaves dead ones behind.
const MAX_WATCHES: usize = 4;

/// Tells watchers in this process that something changed.
#[derive(Debug)]
pub(super) struct Hub {
    networks: Mutex<BTreeMap<NetworkId, broadcast::Sender<Hint>>>,
    /// For gateways: what concerns the whole domain.
    domain: broadcast::Sender<Hint>,
    /// For members: new gateways.
    gateways: broadcast::Sender<Hint>,
    open: Mutex<BTreeMap<(Option<NetworkId>, Did), VecDeque<oneshot::Sender<()>>>>,
}

/// What a watcher hears.
#[derive(Debug)]
pub(super) struct Ears {
    pub(super) hints: broadcast::Receiver<Hint>,
    pub(super) gateways: broadcast::Receiver<Hint>,
    /// Resolves when this watch has to make room for a newer one.
    pub(super) ended: oneshot::Receiver<()>,
}

impl Hub {
    pub(super) fn new() -> Self {
        Self {
            networks: Mutex::default(),
            domain: broadcast::Sender::new(BACKLOG),
            gateways: broadcast::Sender::new(BACKLOG),
            open: Mutex::default(),
        }
    }

    /// Tells a network's watchers, and gateways where it concerns them.
    pub(super) fn publish(&self, network: &NetworkId, hint: Hint) {
        if matches!(hint, Hint::Revocation | Hint::Network) {
            send(&self.domain, hint.clone());
        }
        let mut networks = lock(&self.networks);
        let Some(sender) = networks.get(network) else {
            return;
        };
        if sender.receiver_count() == 0 {
            networks.remove(network);
        } else {
            send(sender, hint);
        }
    }

    /// Tells everybody of a gateway.
    pub(super) fn publish_gateway(&self) {
        send(&self.domain, Hint::Gateway);
        send(&self.gateways, Hint::Gateway);
    }

    /// Returns how many ears are open.
    pub(super) fn open(&self) -> usize {
        let open = lock(&self.open);
        let all = open.values().flatten();
        all.filter(|end| !end.is_closed()).count()
    }

    /// Opens the ears of `key`: on one network, or (None) on the domain.
    pub(super) fn listen(&self, network: Option<NetworkId>, key: Did) -> Ears {
        let hints = match network {
            Some(network) => lock(&self.networks)
                .entry(network)
                .or_insert_with(|| broadcast::Sender::new(BACKLOG))
                .subscribe(),
            None => self.domain.subscribe(),
        };
        let (end, ended) = oneshot::channel();
        let mut open = lock(&self.open);
        open.retain(|_, ends| {
            ends.retain(|end| !end.is_closed());
            !ends.is_empty()
        });
        let ends = open.entry((network, key)).or_default();
        ends.push_back(end);
        if ends.len() > MAX_WATCHES {
            // The oldest is the likeliest to be dead; it ends as its sender is dropped.
            drop(ends.pop_front());
        }
        Ears {
            hints,
            gateways: self.gateways.subscribe(),
            ended,
        }
    }
}

/// Sends to whoever listens; nobody is fine.
fn send(sender: &broadcast::Sender<Hint>, hint: Hint) {
    drop(sender.send(hint));
}

/// Locks a map that no panic can leave half changed.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

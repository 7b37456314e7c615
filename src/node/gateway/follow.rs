use std::{collections::BTreeSet, path::Path, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use crate::gateway::server::GatewayCommand;
use crate::id::NetworkId;
use crate::node::gateway::GatewayError;
use crate::node::gateway::setup::{Keys, Reach};
use crate::os::clock;
use crate::os::files::{FileError, StateFile};
use crate::registry::client::{Caller, ClientError, RegistryClient, WatchEvent};
use crate::statement::{Chain, Grant, Revocation, Revocations, Statement};
use crate::wire::api::registry::EventKind;

/// Version of the file of networks.
const VERSION: u32 = 1;

/// Most revocations kept over a restart; the registry brings the others again.
const MAX_REVOCATIONS: usize = 4096;

/// How often the gateway's statement is refreshed, so that two refreshes may fail.
const REFRESH: Duration = Duration::from_secs(200);

/// First pause after the registry was lost; doubled up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// Longest pause between attempts to reach the registry.
const MAX_PAUSE: Duration = Duration::from_secs(15);

/// The gateway's connection to its registry, over all reconnections.
pub(super) struct Follow {
    keys: Keys,
    /// What the registry hands out.
    reach: Reach,
    region: Option<String>,
    commands: mpsc::Sender<GatewayCommand>,
    known: Known,
}

/// What the registry told, kept so that agents are served while it is away.
#[derive(Debug, Default, Deserialize, Serialize)]
struct Served {
    networks: BTreeSet<NetworkId>,
    #[serde(default)]
    revocations: Vec<Statement<Revocation>>,
}

/// [`Served`] and its file.
pub(super) struct Known {
    file: StateFile,
    served: Served,
}

impl Known {
    /// Reads what an earlier run was told.
    pub(super) fn open(dir: &Path) -> Result<Self, FileError> {
        let (file, served) = StateFile::open::<Served>(&dir.join("networks.json"), VERSION)?;
        Ok(Self {
            file,
            served: served.unwrap_or_default(),
        })
    }

    /// Keeps what a command tells; one that tells nothing new is not written.
    fn keep(&mut self, command: &GatewayCommand) {
        let is_new = match command {
            GatewayCommand::AddNetwork(network) => self.served.networks.insert(*network),
            GatewayCommand::Revoke(statement) => {
                let known = &mut self.served.revocations;
                let is_new = known.len() < MAX_REVOCATIONS && !known.contains(statement);
                if is_new {
                    known.push((**statement).clone());
                }
                is_new
            }
            GatewayCommand::SetNetworks(_) | GatewayCommand::Status(_) => false,
        };
        if is_new && let Err(error) = self.file.save(&self.served) {
            warn!(%error, "Cannot keep what the registry told");
        }
    }
}

impl Follow {
    pub(super) const fn new(
        keys: Keys,
        reach: Reach,
        region: Option<String>,
        commands: mpsc::Sender<GatewayCommand>,
        known: Known,
    ) -> Self {
        Self {
            keys,
            reach,
            region,
            commands,
            known,
        }
    }

    /// Follows the registry until the server is gone.
    pub(super) async fn run(mut self) {
        self.recall().await;
        let mut cursor = None;
        let mut pause = FIRST_PAUSE;
        let mut is_lost = false;
        loop {
            let since = clock::now();
            match self.connection(&mut cursor).await {
                Ok(()) => return,
                Err(error) if is_lost => debug!(%error, "Registry still lost"),
                Err(error) => warn!(%error, "Registry lost; agents attached are served on"),
            }
            let lasted = clock::now().duration_since(since) > MAX_PAUSE;
            is_lost = !lasted;
            pause = if lasted {
                FIRST_PAUSE
            } else {
                (pause * 2).min(MAX_PAUSE)
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Serves from the start whom an earlier run served.
    async fn recall(&self) {
        let networks = self
            .known
            .served
            .networks
            .iter()
            .map(|n| GatewayCommand::AddNetwork(*n));
        let revoked = self.known.served.revocations.iter().cloned().map(Box::new);
        for command in networks.chain(revoked.map(GatewayCommand::Revoke)) {
            if self.commands.send(command).await.is_err() {
                return;
            }
        }
    }

    /// Follows one connection; Ok when the server is gone.
    async fn connection(&mut self, cursor: &mut Option<String>) -> Result<(), GatewayError> {
        let client = self.keys.connect().await?;
        self.refresh(&client).await?;
        let caller = Caller::domain(&self.keys.identity, clock::unix());
        let mut events = client.watch(&caller, cursor.as_deref()).await?;
        info!("Registry connected");
        let mut refresh = tokio::time::interval(REFRESH);
        refresh.reset();
        loop {
            tokio::select! {
                event = events.next() => {
                    let event = event?;
                    let id = event.id.clone();
                    if !self.handle(&event).await {
                        return Ok(());
                    }
                    if id.is_some() {
                        *cursor = id;
                    }
                }
                _ = refresh.tick() => self.refresh(&client).await?,
            }
        }
    }

    async fn refresh(&self, client: &RegistryClient) -> Result<(), ClientError> {
        let caller = Caller::domain(&self.keys.identity, clock::unix());
        let body = self.keys.body(self.reach.clone(), self.region.clone());
        client.refresh_gateway(&caller, &body).await?;
        Ok(())
    }

    /// Tells the server what changed; false when it is gone.
    async fn handle(&mut self, event: &WatchEvent) -> bool {
        let command = match event.kind {
            EventKind::Network => network_of(event).map(GatewayCommand::AddNetwork),
            EventKind::Revocation => Statement::<Revocation>::open(&event.statement)
                .ok()
                .map(|statement| GatewayCommand::Revoke(Box::new(statement))),
            EventKind::Consent
            | EventKind::Gateway
            | EventKind::Live
            | EventKind::Record
            | EventKind::Request
            | EventKind::Reset => None,
        };
        match command {
            Some(command) => {
                self.known.keep(&command);
                self.commands.send(command).await.is_ok()
            }
            None => !self.commands.is_closed(),
        }
    }
}

/// Returns the network an event tells of, if its root grant holds.
fn network_of(event: &WatchEvent) -> Option<NetworkId> {
    let network = event.network?;
    let grant = Statement::<Grant>::open(&event.statement).ok()?;
    let chain = Chain::new(vec![grant], None);
    chain
        .authority(&network, &Revocations::default(), clock::unix())
        .ok()?;
    Some(network)
}

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use crate::gateway::core::Signers;
use crate::gateway::server::GatewayCommand;
use crate::id::{Did, DomainPrefix, NetworkId};
use crate::node::gateway::GatewayError;
use crate::node::gateway::others;
use crate::node::gateway::setup::{Keys, Reach};
use crate::os::clock;
use crate::os::files::{FileError, StateFile};
use crate::registry::client::{Caller, ClientError, RegistryClient, WatchEvent};
use crate::statement::{Chain, Gateway, Grant, Revocation, Revocations, Statement};
use crate::wire::api::registry::EventKind;

/// Version of the file of networks.
const VERSION: u32 = 1;

/// Most revocations kept over a restart; the registry brings the others again.
const MAX_REVOCATIONS: usize = 4096;

/// A statement that was renewed is kept once it lasts longer by so much.
const DAY: Duration = Duration::from_secs(86_400);

/// Most other gateways kept over a restart.
const MAX_GATEWAYS: usize = 256;

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
    /// The registry's key; None before it was first reached.
    #[serde(default)]
    registry: Option<Did>,
    /// The newest statement of every gateway of the domain, this one among them.
    #[serde(default)]
    gateways: BTreeMap<Did, Statement<Gateway>>,
}

/// [`Served`] and its file.
pub(super) struct Known {
    file: StateFile,
    served: Served,
}

impl Served {
    /// Keeps a gateway's statement if it is newer than the one that is known.
    fn keep_gateway(&mut self, statement: &Statement<Gateway>) -> bool {
        let gateway = statement.subject();
        let known = self.gateways.get(&gateway);
        let is_new = known.map_or(self.gateways.len() < MAX_GATEWAYS, |known| {
            // A mere new date is of no use to anybody before long.
            let is_later = known.expires() + DAY < statement.expires();
            known.seq() < statement.seq() && (is_later || known.claims() != statement.claims())
        });
        if is_new {
            self.gateways.insert(gateway, statement.clone());
        }
        is_new
    }
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
            GatewayCommand::AddGateway(statement, _) => self.served.keep_gateway(statement),
            GatewayCommand::SetDomain(signers, own) => {
                let is_new = self.served.registry != signers.registry;
                self.served.registry = signers.registry;
                let own = own.as_ref().map(|own| self.served.keep_gateway(own));
                is_new || own == Some(true)
            }
            GatewayCommand::Discover(..)
            | GatewayCommand::SetNetworks(_)
            | GatewayCommand::SetPeerings(_)
            | GatewayCommand::SetQuota(_)
            | GatewayCommand::Status(_) => false,
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
        if self.known.served.registry.is_some() {
            let own = self.known.served.gateways.get(&self.keys.identity.did());
            let own = own.cloned().map(Box::new);
            let domain = GatewayCommand::SetDomain(self.signers(), own);
            // A server that is gone is noticed soon.
            drop(self.commands.send(domain).await);
            self.introduce(self.known.served.gateways.values().cloned().collect());
        }
    }

    const fn signers(&self) -> Signers {
        Signers {
            domain: self.keys.domain,
            registry: self.known.served.registry,
        }
    }

    /// Has the server meet other gateways, once it is known where they are.
    fn introduce(&self, mut gateways: Vec<Statement<Gateway>>) {
        let own = self.keys.identity.did();
        gateways.retain(|gateway| gateway.subject() != own);
        let domain = DomainPrefix::of(&self.keys.domain);
        let commands = self.commands.clone();
        // It ends by itself: look-ups have their time, and the server may be gone.
        drop(tokio::spawn(others::introduce(gateways, domain, commands)));
    }

    /// Follows one connection; Ok when the server is gone.
    async fn connection(&mut self, cursor: &mut Option<String>) -> Result<(), GatewayError> {
        let client = self.keys.connect().await?;
        if !self.refresh(&client).await? {
            return Ok(());
        }
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
                    if !self.handle(&client, &event).await {
                        return Ok(());
                    }
                    if id.is_some() {
                        *cursor = id;
                    }
                }
                _ = refresh.tick() => {
                    if !self.refresh(&client).await? {
                        return Ok(());
                    }
                    // Host names may lead elsewhere by now.
                    self.introduce(self.known.served.gateways.values().cloned().collect());
                }
            }
        }
    }

    /// Keeps the gateway listed, and shows other gateways what the registry says of it; false when the
    /// server is gone.
    async fn refresh(&mut self, client: &RegistryClient) -> Result<bool, ClientError> {
        let caller = Caller::domain(&self.keys.identity, clock::unix());
        let body = self.keys.body(self.reach.clone(), self.region.clone());
        let own = client.refresh_gateway(&caller, &body).await?;
        let signers = Signers {
            domain: self.keys.domain,
            registry: Some(client.registry()),
        };
        let command = GatewayCommand::SetDomain(signers, Some(Box::new(own)));
        self.known.keep(&command);
        Ok(self.commands.send(command).await.is_ok())
    }

    /// Tells the server what changed; false when it is gone.
    async fn handle(&mut self, client: &RegistryClient, event: &WatchEvent) -> bool {
        let command = match event.kind {
            EventKind::Network => network_of(event).map(GatewayCommand::AddNetwork),
            EventKind::Revocation => Statement::<Revocation>::open(&event.statement)
                .ok()
                .map(|statement| GatewayCommand::Revoke(Box::new(statement))),
            EventKind::Gateway => {
                match client.open_gateway(&event.statement) {
                    Ok(statement) => {
                        let found = GatewayCommand::AddGateway(Box::new(statement.clone()), vec![]);
                        self.known.keep(&found);
                        self.introduce(vec![statement]);
                    }
                    Err(error) => debug!(%error, "Gateway statement refused"),
                }
                None
            }
            EventKind::Consent
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

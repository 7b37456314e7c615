use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use agentnet::config::{RegistryConfig, RegistrySettings};
use agentnet::id::{
    AgentId, Did, IdentityKey, Label, MemberName, NetworkId, TunnelSecret, UnixTime,
};
use agentnet::os::{clock, random};
use agentnet::registry::client::{
    Caller, ClientError, EventStream, Lease, Membership, RegistryClient, WatchEvent,
};
use agentnet::registry::init::{Initialised, Plan, init};
use agentnet::registry::server::serve;
use agentnet::statement::issue::{self, TokenTerms};
use agentnet::statement::token::OperatorToken;
use agentnet::statement::{
    Chain, Claims, Consent, ConsentState, Grant, Head, Record, Request, Revocation, RevokedKey,
    Scope, Statement,
};
use agentnet::wire::api::problem::Code;
use agentnet::wire::api::registry::EventKind;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

pub(crate) const HOUR: Duration = Duration::from_secs(3600);
pub(crate) const DAY: Duration = Duration::from_secs(86_400);

/// Far above what anything here takes, and far below the test's own limit.
pub(crate) const SOON: Duration = Duration::from_secs(10);

pub(crate) fn key() -> IdentityKey {
    IdentityKey::from_seed(random::seed())
}

pub(crate) fn now() -> UnixTime {
    clock::unix()
}

/// Returns a sequence number above every one before.
pub(crate) fn seq() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let now = now().as_millis();
    let last = LAST.fetch_max(now, Ordering::SeqCst);
    if last < now {
        return now;
    }
    LAST.fetch_add(1, Ordering::SeqCst) + 1
}

/// A directory that goes when the test does.
#[derive(Debug)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("agentnet-registry-{}-{n}", std::process::id());
        let path = std::env::temp_dir().join(name);
        drop(std::fs::remove_dir_all(&path));
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// A registry that runs in this process.
pub(crate) struct World {
    _folder: Folder,
    pub(crate) made: Initialised,
    pub(crate) operator: OperatorToken,
    pub(crate) at: SocketAddr,
    settings: RegistrySettings,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut RegistrySettings)) -> Self {
        let folder = Folder::new();
        let plan = Plan {
            dir: folder.path().to_owned(),
            listen: "127.0.0.1:0".parse().unwrap(),
            url: Some("https://registry.test:8443".to_owned()),
        };
        let made = init(&plan).await.unwrap();
        let token = std::fs::read_to_string(made.files.operator()).unwrap();
        let text = std::fs::read_to_string(made.files.settings()).unwrap();
        let mut settings = toml::from_str::<RegistrySettings>(&text).unwrap();
        settings.limits.key_burst = 2000;
        change(&mut settings);
        let mut world = Self {
            _folder: folder,
            made,
            operator: token.parse().unwrap(),
            at: plan.listen,
            settings,
            running: None,
        };
        world.run().await;
        world
    }

    pub(crate) async fn run(&mut self) {
        let config = RegistryConfig::new(self.settings.clone(), &self.made.files.settings());
        let fixed = watch::channel(self.settings.clone()).1;
        let (stop, stopped) = oneshot::channel::<()>();
        let (tell, told) = oneshot::channel();
        let task = tokio::spawn(async move {
            let stopped = async {
                drop(stopped.await);
            };
            let ready = |at| tell.send(at).unwrap();
            serve(config, fixed, stopped, ready).await.unwrap();
        });
        self.at = told.await.unwrap();
        self.running = Some((stop, task));
    }

    pub(crate) async fn stop(&mut self) {
        let (stop, task) = self.running.take().unwrap();
        stop.send(()).unwrap();
        task.await.unwrap();
    }

    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.at)
    }

    pub(crate) async fn client(&self) -> RegistryClient {
        RegistryClient::connect(&self.url(), self.made.pin, self.made.domain, now())
            .await
            .unwrap()
    }

    pub(crate) fn operator(&self) -> Caller<'_> {
        Caller::domain(&self.operator.key, now())
    }

    /// Creates and activates a network.
    pub(crate) async fn network(&self, label: &str) -> Net {
        let client = self.client().await;
        let root = key();
        let id = NetworkId::from(root.did());
        let label = label.parse::<Label>().unwrap();
        let created = client
            .create_network(&self.operator(), id, label.clone())
            .await;
        let grant = issue::root_grant(&root, label, created.unwrap(), now()).unwrap();
        let net = Net {
            root,
            id,
            grant,
            registry: client.registry(),
        };
        client.activate(&net.owner(), &net.grant).await.unwrap();
        net
    }
}

/// A network and its owner.
pub(crate) struct Net {
    pub(crate) root: IdentityKey,
    pub(crate) id: NetworkId,
    pub(crate) grant: Statement<Grant>,
    pub(crate) registry: Did,
}

impl Net {
    pub(crate) fn owner(&self) -> Caller<'_> {
        Caller::member(&self.root, self.id, now())
    }

    pub(crate) fn terms(&self, names: &str, uses: u32) -> TokenTerms {
        TokenTerms {
            names: vec![names.parse().unwrap()],
            tags: BTreeSet::new(),
            ephemeral: false,
            uses,
            closes: now() + HOUR,
            life: 90 * DAY,
            enrol: self.registry,
        }
    }

    pub(crate) fn token(&self, terms: TokenTerms) -> Token {
        let secret = key();
        let grant = issue::token_grant(&self.root, &self.grant, secret.did(), terms, now());
        Token {
            secret,
            root: self.grant.clone(),
            grant: grant.unwrap(),
        }
    }

    /// Joins an agent by a token of its own, with its record put.
    pub(crate) async fn agent(&self, client: &RegistryClient, name: &str) -> Agent {
        let mut agent = self.token(self.terms(name, 1)).agent(name);
        agent.join(client).await.unwrap();
        agent.put(client).await.unwrap();
        agent
    }

    pub(crate) fn revocation(&self, of: Did, at: UnixTime) -> Statement<Revocation> {
        let claims = Revocation {
            keys: vec![RevokedKey { key: of, at }],
            grants: vec![],
            chain: vec![self.grant.text().to_owned()],
        };
        sign(&self.root, self.id, self.id.did(), claims)
    }
}

/// A join token.
pub(crate) struct Token {
    pub(crate) secret: IdentityKey,
    pub(crate) root: Statement<Grant>,
    pub(crate) grant: Statement<Grant>,
}

impl Token {
    pub(crate) fn chain(&self) -> Chain {
        Chain::new(vec![self.root.clone(), self.grant.clone()], None)
    }

    pub(crate) fn agent(&self, name: &str) -> Agent {
        self.agent_of(key(), name)
    }

    pub(crate) fn agent_of(&self, key: IdentityKey, name: &str) -> Agent {
        let name = name.parse::<MemberName>().unwrap();
        let end = self.root.expires();
        let own = issue::agent_grant(&self.secret, &self.grant, key.did(), &name, now(), end);
        let grants = vec![self.root.clone(), self.grant.clone(), own.unwrap()];
        Agent {
            network: self.root.network().unwrap(),
            key,
            name,
            chain: Chain::new(grants, None),
        }
    }
}

/// An agent with its keys.
#[derive(Clone)]
pub(crate) struct Agent {
    pub(crate) key: IdentityKey,
    pub(crate) name: MemberName,
    pub(crate) network: NetworkId,
    pub(crate) chain: Chain,
}

impl Agent {
    pub(crate) fn id(&self) -> AgentId {
        self.key.did().into()
    }

    pub(crate) fn caller(&self) -> Caller<'_> {
        Caller::member(&self.key, self.network, now())
    }

    pub(crate) fn record(&self, ttl: u64) -> Statement<Record> {
        self.record_with(ttl, 7)
    }

    pub(crate) fn record_with(&self, ttl: u64, tunnel: u8) -> Statement<Record> {
        let claims = Record {
            name: self.name.clone(),
            tunnel: TunnelSecret::from_seed([tunnel; 32]).public(),
            gateways: vec![],
            chain: self.chain.links(),
            ttl,
        };
        let end = match self.chain.admission() {
            Some(admission) => admission.expires(),
            None => now() + DAY,
        };
        issue::record(&self.key, self.network, seq(), now(), end, claims).unwrap()
    }

    pub(crate) async fn join(
        &mut self,
        client: &RegistryClient,
    ) -> Result<Membership, ClientError> {
        let joined = client.join(&self.caller(), &self.record(300)).await?;
        if let Some(admission) = joined.admission.clone() {
            self.chain = self.chain.clone().with_admission(admission);
        }
        Ok(joined)
    }

    pub(crate) async fn put(&self, client: &RegistryClient) -> Result<Lease, ClientError> {
        client.put_record(&self.caller(), &self.record(300)).await
    }

    pub(crate) fn consent(&self, to: &Self, state: ConsentState) -> Statement<Consent> {
        let claims = Consent {
            inbound: "tcp/8000".parse::<Scope>().unwrap(),
            children: false,
            state,
            re: None,
        };
        sign(&self.key, self.network, to.key.did(), claims)
    }

    pub(crate) fn request(&self, to: &str) -> Statement<Request> {
        let claims = Request {
            to: to.parse().unwrap(),
            inbound: Scope::replies_only(),
            reason: Some("to work together".to_owned()),
            record: self.record(300).text().to_owned(),
        };
        sign(&self.key, self.network, self.key.did(), claims)
    }

    pub(crate) async fn watch(&self, client: &RegistryClient, last: Option<&str>) -> Watching {
        let stream = client.watch(&self.caller(), last).await.unwrap();
        Watching(stream)
    }
}

/// Signs claims that hold for an hour.
pub(crate) fn sign<C: Claims>(
    key: &IdentityKey,
    network: NetworkId,
    subject: Did,
    claims: C,
) -> Statement<C> {
    let head = Head {
        subject,
        network: Some(network),
        issued: now(),
        expires: now() + HOUR,
        seq: seq(),
    };
    Statement::sign(key, head, claims).unwrap()
}

/// A watch whose events must come soon.
pub(crate) struct Watching(pub(crate) EventStream);

impl Watching {
    pub(crate) async fn next(&mut self) -> WatchEvent {
        let next = tokio::time::timeout(SOON, self.0.next());
        next.await.unwrap().unwrap()
    }

    /// Returns the events before the next of `kind`, and that one last.
    pub(crate) async fn until(&mut self, kind: EventKind) -> Vec<WatchEvent> {
        let mut events = vec![self.next().await];
        while events.last().unwrap().kind != kind {
            events.push(self.next().await);
        }
        events
    }
}

/// Returns the code of a refusal.
pub(crate) fn code<T: std::fmt::Debug>(result: Result<T, ClientError>) -> Code {
    let error = result.unwrap_err();
    let problem = error.problem();
    problem.unwrap_or_else(|| panic!("{error:?}")).code
}

//! Everything in one process on an embedded store, to try agentnet out.

use std::{collections::BTreeSet, net::IpAddr, path::PathBuf, time::Duration};

use thiserror::Error;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::config::{self, Flags, NodeConfig, REGISTRY_PORT, RegistryConfig, RegistrySettings};
use crate::config::{ConfigError, GatewaySettings};
use crate::id::{Label, MemberName, NamePattern};
use crate::node::daemon::{self, DaemonError};
use crate::node::gateway::{self, GatewayConfig, GatewayError};
use crate::node::join::{self, JoinError};
use crate::node::owner::{Owner, OwnerError, TokenOrder};
use crate::node::store::{Store, StoreError};
use crate::os::clock;
use crate::os::files::{FileError, create_folder, read_text, replace};
use crate::registry::init::{self, Files, InitError};
use crate::registry::server::{self, ServeError};
use crate::statement::token::{JoinToken, OperatorToken, Reveal, TokenError};

/// The gateway's port, as in its own default settings.
const GATEWAY_PORT: u16 = 16201;

/// How long the token for others can be used; a new one is made at every start.
const TOKEN_LIFE: Duration = Duration::from_secs(24 * 3600);

/// How long members stay without being seen.
const MEMBER_FOR: Duration = Duration::from_secs(90 * 24 * 3600);

/// Joins by one start's token.
const TOKEN_USES: u32 = 100;

/// Why the domain in one process does not run.
#[derive(Debug, Error)]
pub enum DevError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Gateway(#[from] GatewayError),
    #[error(transparent)]
    Init(#[from] InitError),
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error(transparent)]
    Owner(#[from] OwnerError),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("the registry or the gateway ended before it answered")]
    Ended,
}

/// What is to run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where all of it is kept.
    pub dir: PathBuf,
    /// The address of this host that others use.
    pub ip: IpAddr,
    pub network: Label,
    /// Name of the agent here.
    pub name: MemberName,
    /// The node's settings; its state is below `dir`.
    pub node: NodeConfig,
}

/// What others need to join.
#[derive(Clone, Debug)]
pub struct Running {
    pub network: Label,
    pub name: String,
    pub token_file: PathBuf,
}

/// Runs registry, gateway and one node until `shutdown` ends; calls `ready` once names are answered.
pub async fn run(
    plan: Plan,
    shutdown: impl Future<Output = ()> + Send,
    ready: impl FnOnce(Running) + Send,
) -> Result<(), DevError> {
    create_folder(&plan.dir)?;
    let (stop, stopped) = watch::channel(false);
    let (registry, operator) = start_registry(&plan, stopped.clone()).await?;
    let gateway = start_gateway(&plan, &operator, stopped).await?;
    let token = make_token(&plan, &operator).await?;
    let mut node = plan.node.clone();
    node.state = plan.dir.join("node");
    enter(&node, &token, &plan).await?;
    let running = Running {
        network: plan.network.clone(),
        name: plan.name.full(&plan.network, &node.suffix).to_string(),
        token_file: plan.dir.join("join.token"),
    };
    let ran = daemon::run(node, None, shutdown, || ready(running)).await;
    stop.send_replace(true);
    // Each logs its own errors; the node's are the answer.
    drop(tokio::join!(registry, gateway));
    Ok(ran?)
}

async fn ended(mut stopped: watch::Receiver<bool>) {
    // An error means that whoever stops us is gone, which stops us as well.
    drop(stopped.wait_for(|stop| *stop).await);
}

async fn start_registry(
    plan: &Plan,
    stopped: watch::Receiver<bool>,
) -> Result<(JoinHandle<Result<(), ServeError>>, OperatorToken), DevError> {
    let dir = plan.dir.join("registry");
    let files = Files::in_dir(&dir);
    if !files.settings().exists() {
        let listen = (plan.ip, REGISTRY_PORT).into();
        init::init(&init::Plan {
            dir,
            listen,
            url: None,
        })
        .await?;
    }
    let settings = files.settings();
    let found = config::load::<RegistrySettings>(Some(&settings), &|_| None, Flags::default())?;
    let (ready, answers) = oneshot::channel();
    let fixed = watch::channel(found.clone()).1;
    let serving = server::serve(
        RegistryConfig::new(found, &settings),
        fixed,
        ended(stopped),
        |at| {
            // Nobody waits any more when the start was given up.
            let _gone = ready.send(at);
        },
    );
    let task = tokio::spawn(serving);
    if answers.await.is_err() {
        // It never called `ready`, so it has ended with the reason.
        return Err(task
            .await
            .ok()
            .and_then(Result::err)
            .map_or(DevError::Ended, DevError::Serve));
    }
    let operator = read_text(&files.operator())?.parse::<OperatorToken>()?;
    Ok((task, operator))
}

async fn start_gateway(
    plan: &Plan,
    operator: &OperatorToken,
    stopped: watch::Receiver<bool>,
) -> Result<JoinHandle<Result<(), GatewayError>>, DevError> {
    let dir = plan.dir.join("gateway");
    let settings = dir.join("gateway.toml");
    if !settings.exists() {
        let listen = (plan.ip, GATEWAY_PORT).into();
        let new = gateway::Plan {
            dir,
            listen,
            advertise: Vec::new(),
            region: None,
            wss: None,
        };
        gateway::init(&new, operator).await?;
    }
    let found = config::load::<GatewaySettings>(Some(&settings), &|_| None, Flags::default())?;
    let (ready, answers) = oneshot::channel();
    let fixed = watch::channel(found.clone()).1;
    let config = GatewayConfig::new(found, &settings);
    let serving = gateway::serve(config, fixed, ended(stopped), |at| {
        // Nobody waits any more when the start was given up.
        drop(ready.send(at));
    });
    let task = tokio::spawn(serving);
    if answers.await.is_err() {
        let why = task.await.ok().and_then(Result::err);
        return Err(why.map_or(DevError::Ended, DevError::Gateway));
    }
    Ok(task)
}

/// Creates the network at the first start, and a token for others at every start.
async fn make_token(plan: &Plan, operator: &OperatorToken) -> Result<JoinToken, DevError> {
    let owner = Owner::new(&plan.dir);
    if !owner
        .list()?
        .iter()
        .any(|known| known.label == plan.network)
    {
        owner
            .create((plan.network.clone(), false), operator, clock::unix())
            .await?;
    }
    let order = TokenOrder {
        names: vec![NamePattern::any()],
        tags: BTreeSet::new(),
        ephemeral: false,
        uses: TOKEN_USES,
        expires: TOKEN_LIFE,
        member_for: MEMBER_FOR,
    };
    let token = owner
        .create_token(&plan.network, order, clock::unix())
        .await?;
    let text = zeroize::Zeroizing::new(format!("{}\n", token.reveal()));
    replace(&plan.dir.join("join.token"), text.as_bytes())?;
    Ok(token)
}

/// Joins with the agent here, unless an earlier start did.
async fn enter(node: &NodeConfig, token: &JoinToken, plan: &Plan) -> Result<(), DevError> {
    let (store, mut state) = Store::open(&node.state)?;
    let is_member = state.memberships.iter().any(|m| m.network == token.network);
    if !is_member {
        let name = Some(plan.name.clone());
        let joined = join::join(token, name, &node.suffix, &mut state, clock::unix()).await?;
        join::keep(&store, state, &joined)?;
    }
    Ok(())
}

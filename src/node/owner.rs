//! The owner's side of a network: its root key, its join tokens, and the revocation of both tokens
//! and agents.
//!
//! The root key never leaves the state directory; the registry sees what it signs.

use std::{
    collections::BTreeSet,
    fmt, fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::id::{
    AgentId, Did, DomainId, DomainPrefix, IdentityKey, Label, MemberName, NamePattern, NetworkId,
    NetworkPrefix, UnixTime,
};
use crate::os::files::{FileError, StateFile, create_folder};
use crate::os::lock::{LockError, StateLock};
use crate::os::random;
use crate::os::tls::TlsError;
use crate::registry::client::{Caller, ClientError, RegistryClient};
use crate::statement::issue::{TokenTerms, root_grant_of, token_grant};
use crate::statement::token::{JoinToken, OperatorToken};
use crate::statement::{
    Chain, ChainError, Grant, Head, Record, Revocation, Revocations, RevokedKey, RootClaims,
    Statement, StatementError, verify_record,
};
use crate::wire::api::local::{AgentRevoked, Network, Token};
use crate::wire::api::registry::{Holder, TokenEntry};

/// Version of a network's file.
const VERSION: u32 = 1;

/// Why an owner's command is not done.
#[derive(Debug, Error)]
pub enum OwnerError {
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error("network {0} exists already, and its root key is here")]
    Exists(Label),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("the root key of network {0} is not here")]
    NoNetwork(Label),
    #[error("network {0} was begun and not finished")]
    Unfinished(Label),
    #[error("the registry knows no agent {0} of network {1}")]
    NoAgent(Whom, Label),
    #[error(
        "{0} is not connected, so nothing proves that {1} holds the name, as the registry says"
    )]
    Unproven(MemberName, AgentId),
    #[error("the registry has no token {0} of this network")]
    NoToken(Did),
    #[error(transparent)]
    Registry(Box<ClientError>),
    #[error(transparent)]
    Statement(#[from] StatementError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("the registry answered the prefix {0}, which is not of its domain")]
    WrongPrefix(NetworkPrefix),
}

impl From<ClientError> for OwnerError {
    fn from(error: ClientError) -> Self {
        Self::Registry(Box::new(error))
    }
}

/// Which agent an owner means.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Whom {
    Key(AgentId),
    /// Whoever holds the name now.
    Name(MemberName),
}

impl fmt::Display for Whom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(key) => key.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// What a new token lets its holders become.
#[derive(Clone, Debug)]
pub struct TokenOrder {
    pub names: Vec<NamePattern>,
    pub tags: BTreeSet<Label>,
    pub ephemeral: bool,
    pub uses: u32,
    /// How long one can join by it.
    pub expires: Duration,
    /// How long a member by it stays one without being seen.
    pub member_for: Duration,
}

/// A network as its owner keeps it.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Kept {
    label: Label,
    root: IdentityKey,
    url: String,
    pin: String,
    domain: DomainId,
    /// None until the registry gave one.
    prefix: Option<NetworkPrefix>,
    /// None until signed.
    grant: Option<Statement<Grant>>,
    /// Whether the registry has the root grant.
    active: bool,
    /// Whether only gateways are given as locators.
    #[serde(default)]
    border: bool,
}

/// The networks whose root keys are in one state directory.
#[derive(Clone, Debug)]
pub struct Owner {
    folder: PathBuf,
}

impl Owner {
    /// Returns the owner whose networks are kept below `state`.
    pub fn new(state: &Path) -> Self {
        Self {
            folder: state.join("networks"),
        }
    }

    /// Creates a network, with gateways as its only locators where it is a `border` one, or finishes one
    /// that was interrupted.
    pub async fn create(
        &self,
        (label, border): (Label, bool),
        operator: &OperatorToken,
        now: UnixTime,
    ) -> Result<Network, OwnerError> {
        create_folder(&self.folder)?;
        let _lock = StateLock::take(&self.folder)?;
        let (file, found) = StateFile::open::<Kept>(&self.path(&label), VERSION)?;
        let mut kept = match found {
            Some(kept) if kept.active => return Err(OwnerError::Exists(label)),
            Some(kept) if kept.domain == operator.domain => kept,
            Some(_) | None => Kept::new(label, operator),
        };
        // What was signed already stays as it is.
        if kept.grant.is_none() {
            kept.border = border;
        }
        let pin = operator.pin.parse()?;
        let registry = RegistryClient::connect(&operator.url, pin, operator.domain, now).await?;
        // Kept before the registry hears of it: a key whose network exists must not be lost.
        file.save(&kept)?;
        let answer = registry
            .create_network(
                &Caller::domain(&operator.key, now),
                kept.id(),
                kept.label.clone(),
            )
            .await;
        let prefix = match answer {
            Ok(prefix) => prefix,
            Err(error) => {
                if error.problem().is_some() && !error.is_passing() && kept.prefix.is_none() {
                    self.forget(&kept.label)?;
                }
                return Err(error.into());
            }
        };
        if prefix.domain() != DomainPrefix::of(&operator.domain) || prefix.number() == 0 {
            return Err(OwnerError::WrongPrefix(prefix));
        }
        let grant = kept.sign(prefix, now)?;
        file.save(&kept)?;
        let root = Caller::member(&kept.root, kept.id(), now);
        registry.activate(&root, &grant).await?;
        kept.active = true;
        file.save(&kept)?;
        Ok(kept.facts(prefix))
    }

    /// Returns the finished networks, by label.
    pub fn list(&self) -> Result<Vec<Network>, OwnerError> {
        let unreadable = |source| FileError::Read {
            path: self.folder.clone(),
            source,
        };
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(unreadable)?,
        };
        let mut labels = BTreeSet::new();
        for entry in entries {
            let path = entry.map_err(unreadable)?.path();
            let stem = path.file_stem().and_then(|s| s.to_str());
            let json = path.extension().is_some_and(|e| e == "json");
            labels.extend(stem.filter(|_| json).and_then(|s| s.parse::<Label>().ok()));
        }
        let mut networks = Vec::new();
        for label in labels {
            let (_, kept) = StateFile::open::<Kept>(&self.path(&label), VERSION)?;
            let finished = kept.filter(|kept| kept.active);
            networks.extend(finished.and_then(|kept| Some(kept.facts(kept.prefix?))));
        }
        Ok(networks)
    }

    /// Makes a join token and makes it known to the registry.
    pub async fn create_token(
        &self,
        label: &Label,
        order: TokenOrder,
        now: UnixTime,
    ) -> Result<JoinToken, OwnerError> {
        let (kept, prefix, root) = self.open(label)?;
        let registry = kept.connect(now).await?;
        let key = IdentityKey::from_seed(random::seed());
        let terms = TokenTerms {
            names: order.names,
            tags: order.tags,
            ephemeral: order.ephemeral,
            uses: order.uses,
            closes: now + order.expires,
            life: order.member_for,
            enrol: registry.registry(),
        };
        let grant = token_grant(&kept.root, &root, key.did(), terms, now)?;
        let chain = Chain::new(vec![root, grant], None);
        // What no joiner could use is better refused here than handed out.
        chain.authority(&kept.id(), &Revocations::default(), now)?;
        let caller = Caller::member(&kept.root, kept.id(), now);
        registry.register_token(&caller, &chain).await?;
        Ok(JoinToken {
            chain: chain.links(),
            key,
            url: kept.url.clone(),
            pin: kept.pin.clone(),
            domain: kept.domain,
            network: kept.id(),
            prefix,
        })
    }

    /// Returns the tokens the registry knows, newest last as it lists them.
    pub async fn tokens(&self, label: &Label, now: UnixTime) -> Result<Vec<Token>, OwnerError> {
        let (kept, ..) = self.open(label)?;
        let registry = kept.connect(now).await?;
        let caller = Caller::member(&kept.root, kept.id(), now);
        let entries = registry.tokens(&caller).await?;
        Ok(entries.iter().filter_map(|e| kept.token(e)).collect())
    }

    /// Revokes a token: joins after `now` are void.
    pub async fn revoke_token(
        &self,
        label: &Label,
        token: Did,
        now: UnixTime,
    ) -> Result<(), OwnerError> {
        let (kept, _, root) = self.open(label)?;
        let registry = kept.connect(now).await?;
        let caller = Caller::member(&kept.root, kept.id(), now);
        let known = registry.tokens(&caller).await?;
        if !known.iter().any(|entry| entry.token == token) {
            return Err(OwnerError::NoToken(token));
        }
        let revocation = kept.revocation(token, &root, now)?;
        registry.revoke(&caller, &revocation).await?;
        Ok(())
    }

    /// Revokes an agent: it is no member any more, under any of its names, and its key never will be.
    pub async fn revoke_agent(
        &self,
        label: &Label,
        whom: Whom,
        now: UnixTime,
    ) -> Result<AgentRevoked, OwnerError> {
        let (kept, _, root) = self.open(label)?;
        let registry = kept.connect(now).await?;
        let caller = Caller::member(&kept.root, kept.id(), now);
        let found = match &whom {
            Whom::Key(key) => registry.names(&caller, key).await,
            Whom::Name(name) => registry.holder(&caller, name).await,
        };
        let holder = match found {
            Err(ClientError::NotFound(_)) => return Err(OwnerError::NoAgent(whom, label.clone())),
            found => found?,
        };
        let agent = match whom {
            Whom::Key(key) => key,
            Whom::Name(name) => kept.proven(&name, &holder, now)?,
        };
        let revocation = kept.revocation(agent.did(), &root, now)?;
        registry.revoke(&caller, &revocation).await?;
        Ok(AgentRevoked {
            network: label.clone(),
            agent,
            names: holder.names,
            at: now,
        })
    }

    fn path(&self, label: &Label) -> PathBuf {
        self.folder.join(format!("{label}.json"))
    }

    /// Opens a finished network with its prefix and root grant.
    fn open(&self, label: &Label) -> Result<(Kept, NetworkPrefix, Statement<Grant>), OwnerError> {
        let (_, kept) = StateFile::open::<Kept>(&self.path(label), VERSION)?;
        let kept = kept.ok_or_else(|| OwnerError::NoNetwork(label.clone()))?;
        match (kept.prefix, kept.grant.clone()) {
            (Some(prefix), Some(grant)) if kept.active => Ok((kept, prefix, grant)),
            _ => Err(OwnerError::Unfinished(label.clone())),
        }
    }

    /// Forgets a network that the registry refused.
    fn forget(&self, label: &Label) -> Result<(), OwnerError> {
        let path = self.path(label);
        fs::remove_file(&path).map_err(|source| FileError::Write { path, source }.into())
    }
}

impl Kept {
    fn new(label: Label, operator: &OperatorToken) -> Self {
        Self {
            label,
            root: IdentityKey::from_seed(random::seed()),
            url: operator.url.clone(),
            pin: operator.pin.clone(),
            domain: operator.domain,
            prefix: None,
            grant: None,
            active: false,
            border: false,
        }
    }

    fn id(&self) -> NetworkId {
        self.root.did().into()
    }

    /// Signs the root grant for `prefix`, or returns the one that was signed for it.
    fn sign(
        &mut self,
        prefix: NetworkPrefix,
        now: UnixTime,
    ) -> Result<Statement<Grant>, StatementError> {
        if let Some(grant) = self.grant.clone().filter(|_| self.prefix == Some(prefix)) {
            return Ok(grant);
        }
        let claims = RootClaims {
            prefix,
            label: self.label.clone(),
            border: self.border,
        };
        let grant = root_grant_of(&self.root, claims, now)?;
        self.prefix = Some(prefix);
        self.grant = Some(grant.clone());
        Ok(grant)
    }

    /// Returns the key whose record proves that it holds `name`: the registry's word is not enough
    /// to take an agent out of the network.
    fn proven(
        &self,
        name: &MemberName,
        holder: &Holder,
        now: UnixTime,
    ) -> Result<AgentId, OwnerError> {
        let unproven = || OwnerError::Unproven(name.clone(), holder.agent);
        let record = holder.record.as_deref().ok_or_else(unproven)?;
        let record = Statement::<Record>::open(record)?;
        let member = verify_record(&record, &self.id(), &Revocations::default(), now);
        let member = member.ok().filter(|member| member.name == *name);
        Ok(member.ok_or_else(unproven)?.agent)
    }

    /// Signs the revocation of one key.
    fn revocation(
        &self,
        key: Did,
        root: &Statement<Grant>,
        now: UnixTime,
    ) -> Result<Statement<Revocation>, StatementError> {
        let head = Head {
            subject: self.id().did(),
            network: Some(self.id()),
            issued: now,
            expires: root.expires(),
            seq: now.as_millis(),
        };
        let claims = Revocation {
            keys: vec![RevokedKey { key, at: now }],
            grants: Vec::new(),
            chain: vec![root.text().to_owned()],
        };
        Statement::sign(&self.root, head, claims)
    }

    async fn connect(&self, now: UnixTime) -> Result<RegistryClient, OwnerError> {
        let pin = self.pin.parse()?;
        Ok(RegistryClient::connect(&self.url, pin, self.domain, now).await?)
    }

    fn facts(&self, prefix: NetworkPrefix) -> Network {
        Network {
            label: self.label.clone(),
            id: self.id(),
            prefix,
            domain: self.domain,
            registry: self.url.clone(),
            border: self.border,
        }
    }

    /// Reads a listed token; None for what this network's root did not sign.
    fn token(&self, entry: &TokenEntry) -> Option<Token> {
        let grant = Statement::<Grant>::open(&entry.grant).ok()?;
        if grant.issuer() != self.root.did() || grant.subject() != entry.token {
            return None;
        }
        let claims = grant.claims();
        Some(Token {
            token: entry.token,
            names: claims.names.clone(),
            tags: claims.tags.iter().cloned().collect(),
            used: entry.used,
            uses_left: entry.uses_left,
            closes: grant.expires(),
            ephemeral: claims.ephemeral,
            revoked: entry.revoked,
        })
    }
}

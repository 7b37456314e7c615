use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::warn;

use crate::config::{LeaseSettings, LimitSettings, RegistrySettings};
use crate::id::{Did, DomainId, IdentityKey, NetworkId, UnixTime};
use crate::id::{DomainPrefix, NetworkPrefix};
use crate::registry::api::error::ApiError;
use crate::registry::api::hub::{Hub, lock};
use crate::registry::auth::Proven;
use crate::registry::authorize::{Call, Standing, may};
use crate::registry::enroll::Ground;
use crate::registry::limits::{Buckets, Rate, SourcePrefix};
use crate::registry::metrics::Answers;
use crate::registry::store::{Counts, NetworkRow, Store, StoreError};
use crate::statement::{Grant, Registry, Revocation, Revocations, Statement};
use crate::wire::api::problem::Code;

/// Sources whose rate is kept; at 64 bytes each this is a few megabytes.
const MAX_SOURCES: usize = 65_536;

/// Keys whose rate is kept.
const MAX_KEYS: usize = 65_536;

/// Networks whose revocations are kept ready.
const MAX_READY: usize = 256;

/// What a registry is made of.
#[derive(Debug)]
pub struct AppParts {
    pub key: IdentityKey,
    /// The domain root's statement that names the key.
    pub statement: Statement<Registry>,
    pub url: String,
    pub settings: watch::Receiver<RegistrySettings>,
    pub lease: LeaseSettings,
    pub limits: LimitSettings,
    pub store: Arc<dyn Store>,
    /// Becomes true when the registry stops.
    pub stop: watch::Receiver<bool>,
}

/// Everything the handlers share.
#[derive(Debug)]
pub struct App {
    pub(super) parts: AppParts,
    pub(super) hub: Hub,
    answers: Answers,
    sources: Mutex<Buckets<SourcePrefix>>,
    keys: Mutex<Buckets<Did>>,
    /// Revocations by network, good while the network has as many as stands beside them.
    revoked: Mutex<BTreeMap<NetworkId, (u64, Arc<Revocations>)>>,
}

impl App {
    /// Puts the parts together.
    pub fn new(parts: AppParts) -> Self {
        let limits = &parts.limits;
        let source = Rate {
            per_second: limits.source_per_second,
            burst: limits.source_burst,
        };
        let key = Rate {
            per_second: limits.key_per_second,
            burst: limits.key_burst,
        };
        Self {
            hub: Hub::new(),
            answers: Answers::default(),
            sources: Mutex::new(Buckets::new(source, MAX_SOURCES)),
            keys: Mutex::new(Buckets::new(key, MAX_KEYS)),
            revoked: Mutex::default(),
            parts,
        }
    }

    /// Returns how often requests were answered, and how.
    pub const fn answers(&self) -> &Answers {
        &self.answers
    }

    /// Returns how many event streams are open.
    pub fn watches(&self) -> usize {
        self.hub.open()
    }

    /// Returns how much there is.
    pub async fn counts(&self, now: UnixTime) -> Result<Counts, StoreError> {
        self.store().counts(now).await
    }

    pub(super) fn store(&self) -> &dyn Store {
        &*self.parts.store
    }

    pub(super) fn domain(&self) -> DomainId {
        self.parts.statement.issuer().into()
    }

    /// Returns the prefix of the domain's network `number`.
    pub(super) fn prefix(&self, number: u16) -> NetworkPrefix {
        DomainPrefix::of(&self.domain()).network(number)
    }

    /// Counts a request of a source nobody has authenticated yet.
    pub(super) fn take_source(&self, source: IpAddr, now: Instant) -> Result<(), Duration> {
        lock(&self.sources).take(SourcePrefix::of(source), now)
    }

    /// Counts a request of a proven key.
    pub(super) fn take_key(&self, key: Did, now: Instant) -> Result<(), Duration> {
        lock(&self.keys).take(key, now)
    }

    /// Tells whether the settings name the key, as they are now.
    fn is_operator(&self, key: &Did) -> bool {
        self.parts.settings.borrow().operators.contains(key)
    }

    /// Checks that a caller may make a call about the domain.
    pub(super) async fn admit(&self, call: Call, proven: &Proven) -> Result<(), ApiError> {
        if proven.network.is_some() {
            return Err(ApiError::with(Code::Forbidden, "signed for a network"));
        }
        let standing = Standing {
            operator: self.is_operator(&proven.key),
            gateway: self.store().is_gateway(&proven.key).await?,
            ..Standing::default()
        };
        if may(call, &standing) {
            return Ok(());
        }
        Err(Code::Forbidden.into())
    }

    /// Checks that a caller may make a call about a network, and returns what is known of both.
    ///
    /// A network that is not there, or not active yet, has no members and nothing to find.
    pub(super) async fn admit_to(
        &self,
        network: &NetworkId,
        call: Call,
        (proven, now): (&Proven, UnixTime),
    ) -> Result<(NetworkRow, Standing), ApiError> {
        if proven.network != Some(*network) {
            return Err(ApiError::with(
                Code::Forbidden,
                "signed for another network",
            ));
        }
        let row = self.store().network(network).await?;
        let caller = proven.key.into();
        let record = self.store().record(network, &caller, now).await?;
        let grant = row.as_ref().and_then(|row| row.grant.as_deref());
        let named = grant.and_then(|grant| Statement::<Grant>::open(grant).ok());
        let standing = Standing {
            owner: proven.key == network.did()
                || named.is_some_and(|grant| grant.subject() == proven.key),
            role: record.map(|record| record.role),
            ..Standing::default()
        };
        if !may(call, &standing) {
            return Err(Code::Forbidden.into());
        }
        let known = row.filter(|row| row.grant.is_some() || call == Call::Activate);
        let row = known.ok_or_else(|| ApiError::with(Code::NotFound, "no such network here"))?;
        Ok((row, standing))
    }

    /// Returns the network's revocations.
    pub(super) async fn revocations(&self, row: &NetworkRow) -> Result<Arc<Revocations>, ApiError> {
        let ready = lock(&self.revoked).get(&row.network).cloned();
        if let Some((count, ready)) = ready
            && count == row.revoked
        {
            return Ok(ready);
        }
        let mut all = Revocations::default();
        let stored = self.store().revocations(&row.network).await?;
        let count = u64::try_from(stored.len()).unwrap_or(u64::MAX);
        for (accepted, text) in stored {
            // Its author's chain held when it was accepted, and need not hold for ever.
            let added = Statement::<Revocation>::open(&text)
                .map_err(ApiError::from)
                .and_then(|s| Ok(all.add(&s, &row.network, accepted)?));
            if added.is_err() {
                warn!(network = %row.network, "A stored revocation does not hold");
            }
        }
        let all = Arc::new(all);
        let mut ready = lock(&self.revoked);
        if ready.len() >= MAX_READY {
            ready.pop_first();
        }
        ready.insert(row.network, (count, all.clone()));
        Ok(all)
    }

    /// Returns what enrolment is checked against.
    pub(super) fn ground<'a>(
        &self,
        row: &'a NetworkRow,
        revoked: &'a Revocations,
        now: UnixTime,
    ) -> Ground<'a> {
        Ground {
            network: &row.network,
            prefix: self.prefix(row.number),
            label: &row.label,
            registry: self.parts.key.did(),
            revoked,
            now,
        }
    }
}

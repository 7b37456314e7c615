//! A network that signs its agents' records, on whatever clock the thread has.

use std::time::Duration;

use agentnet::id::{
    Did, DomainPrefix, IdentityKey, NetworkId, NetworkPrefix, OverlayIp, TunnelSecret,
};
use agentnet::os::clock;
use agentnet::statement::{Grant, Record, Statement, issue};

/// A network with its owner's key.
pub(crate) struct Network {
    pub(crate) root: IdentityKey,
    pub(crate) prefix: NetworkPrefix,
    pub(crate) grant: Statement<Grant>,
}

impl Network {
    pub(crate) fn new(n: u16) -> Self {
        Self::of(n, 200)
    }

    /// Makes network `n` of the domain of root key `domain`.
    pub(crate) fn of(n: u16, domain: u16) -> Self {
        let root = key(n);
        let prefix = DomainPrefix::of(&key(domain).did().into()).network(n);
        let label = format!("net{n}").parse().unwrap();
        let grant = issue::root_grant(&root, label, prefix, clock::unix()).unwrap();
        Self {
            root,
            prefix,
            grant,
        }
    }

    pub(crate) fn id(&self) -> NetworkId {
        self.root.did().into()
    }

    pub(crate) fn address(&self, agent: u16) -> OverlayIp {
        let agent = key(agent).did().into();
        self.prefix.address_of(&agent).unwrap()
    }

    /// Returns the record of agent `n` for `life`, which lists no gateway.
    pub(crate) fn record(&self, n: u16, life: Duration) -> String {
        self.record_at(n, life, vec![])
    }

    /// Returns the record of agent `n` that lists these gateways.
    pub(crate) fn record_at(&self, n: u16, life: Duration, gateways: Vec<Did>) -> String {
        let (now, agent) = (clock::unix(), key(n));
        let name = format!("agent{n}").parse().unwrap();
        let until = now + life;
        let grant =
            issue::agent_grant(&self.root, &self.grant, agent.did(), &name, now, until).unwrap();
        let claims = Record {
            name,
            tunnel: tunnel(n).public(),
            gateways,
            chain: vec![self.grant.text().to_owned(), grant.text().to_owned()],
            ttl: 600,
        };
        let seq = now.as_millis();
        let record = issue::record(&agent, self.id(), seq, now, until, claims).unwrap();
        record.text().to_owned()
    }
}

pub(crate) fn key(n: u16) -> IdentityKey {
    IdentityKey::from_seed(seed(n, 1))
}

pub(crate) fn tunnel(n: u16) -> TunnelSecret {
    TunnelSecret::from_seed(seed(n, 2))
}

fn seed(n: u16, fill: u8) -> [u8; 32] {
    let mut seed = [fill; 32];
    seed[..2].copy_from_slice(&n.to_be_bytes());
    seed
}

//! A network of agents for the unit tests of the engine.

use std::time::Duration;

use crate::engine::membership::{Membership, Start};
use crate::id::{DomainPrefix, IdentityKey, MemberName, NetworkId, Suffix, TunnelSecret, UnixTime};
use crate::statement::{
    Chain, Grant, Revocations, Statement,
    issue::{self, TokenTerms},
};

pub(crate) const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

pub(crate) fn key(n: u8) -> IdentityKey {
    IdentityKey::from_seed([n; 32])
}

pub(crate) fn network() -> NetworkId {
    key(1).did().into()
}

/// The grants of the test network: owner 1, token 2 for every name, domain root 9, registry 4.
fn grants(ephemeral: bool) -> (Statement<Grant>, Statement<Grant>) {
    let prefix = DomainPrefix::of(&key(9).did().into()).network(7);
    let root = issue::root_grant(&key(1), "acme".parse().unwrap(), prefix, NOW).unwrap();
    let terms = TokenTerms {
        names: vec!["*".parse().unwrap()],
        tags: ["gpu".parse().unwrap()].into(),
        ephemeral,
        uses: 100,
        closes: NOW + Duration::from_secs(3600),
        life: Duration::from_secs(90 * 86_400),
        enrol: key(4).did(),
    };
    let token = issue::token_grant(&key(1), &root, key(2).did(), terms, NOW).unwrap();
    (root, token)
}

/// Returns the membership of agent `n` under `name`.
pub(crate) fn membership(n: u8, name: &str) -> Membership {
    joined(n, name, false)
}

/// Returns the membership of agent `n`, which is ephemeral, under `name`.
pub(crate) fn ephemeral(n: u8, name: &str) -> Membership {
    joined(n, name, true)
}

fn joined(n: u8, name: &str, ephemeral: bool) -> Membership {
    let (root, token) = grants(ephemeral);
    let name = name.parse::<MemberName>().unwrap();
    let agent =
        issue::agent_grant(&key(2), &token, key(n).did(), &name, NOW, root.expires()).unwrap();
    let chain = Chain::new(vec![root.clone(), token, agent], None);
    let member = chain
        .verify_pending(&network(), &Revocations::default(), NOW)
        .unwrap();
    let gate = member.authority.token.clone().unwrap();
    let admission = issue::admission(&key(4), network(), &gate, NOW, NOW, root.expires()).unwrap();
    Membership::new(Start {
        agent: "default".to_owned(),
        identity: key(n),
        tunnel: TunnelSecret::from_seed([n ^ 0x80; 32]),
        network: network(),
        prefix: member.prefix,
        url: "https://registry.test:8443".to_owned(),
        pin: String::new(),
        domain: key(9).did().into(),
        registry: key(4).did(),
        chain: chain.with_admission(admission).links(),
        suffix: Suffix::default(),
    })
}

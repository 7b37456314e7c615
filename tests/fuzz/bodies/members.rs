//! A network of signed members for the state machines, made once: signing costs more than a run.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::OnceLock;

use agentnet::engine::membership::{Membership, Outgoing, Start, State};
use agentnet::gateway::core::{CoreConfig, CoreKeys, MeshConfig};
use agentnet::id::{DomainPrefix, IdentityKey, NetworkId, Suffix, TunnelSecret, UnixTime};
use agentnet::os::clock;
use agentnet::statement::{Gateway, Head, Scope, Statement, issue};

use super::clock::Simulation;

const DOMAIN: u8 = 200;
const REGISTRY: u8 = 201;
pub(super) const GATEWAY: u8 = 202;
pub(super) const OWNER: u8 = 203;
pub(super) const GATEWAY_AT: &str = "203.0.113.1:16201";

pub(super) fn key(n: u8) -> IdentityKey {
    IdentityKey::from_seed([n; 32])
}

pub(super) fn tunnel(n: u8) -> TunnelSecret {
    TunnelSecret::from_seed([n; 32])
}

pub(super) fn network() -> NetworkId {
    key(OWNER).did().into()
}

pub(super) fn gateway_at() -> SocketAddr {
    GATEWAY_AT.parse().expect("it is an endpoint")
}

pub(super) fn gateway_keys() -> CoreKeys {
    CoreKeys {
        gateway: key(GATEWAY).did(),
        tunnel: tunnel(GATEWAY),
        reset: [GATEWAY; 32],
    }
}

pub(super) const fn gateway_config() -> CoreConfig {
    CoreConfig {
        lease: std::time::Duration::from_secs(75),
        mtu: 1452,
        max_attachments: 4,
        max_handshakes: 4,
        handshakes_per_second: 8,
        per_source: 4,
        burst: 6,
        mesh: MeshConfig {
            max_gateways: 4,
            max_routes: 64,
        },
    }
}

/// What the members of the network keep at the epoch of simulations.
pub(super) struct Members {
    /// Agent 10, `a`: it and `b` trust each other.
    pub(super) a: Membership,
    /// Agent 11, `b`.
    pub(super) b: Membership,
    /// Agent 12, `c`: nobody trusts it.
    pub(super) c: Membership,
}

impl Members {
    /// Returns the members; to be called while a simulation runs.
    pub(super) fn get() -> &'static Self {
        static MEMBERS: OnceLock<Members> = OnceLock::new();
        MEMBERS.get_or_init(|| {
            // Its own simulation: the time of signing is the epoch for every run.
            let made = std::thread::spawn(|| {
                let _simulation = Simulation::start(0);
                Self::make(clock::unix())
            });
            made.join().expect("members are made")
        })
    }

    fn make(unix: UnixTime) -> Self {
        let (mut a, mut b, c) = (
            membership(10, "a", unix),
            membership(11, "b", unix),
            membership(12, "c", unix),
        );
        let (name_a, name_b) = ("a".parse().expect("a name"), "b".parse().expect("a name"));
        b.request(name_a, Scope::Any, None, unix).expect("b asks");
        let Some(Outgoing::Request(request)) = b.outbox.pop_front() else {
            panic!("no request");
        };
        a.take_request(request.text(), unix).expect("a is asked");
        a.approve(&name_b, Scope::Any, unix).expect("a consents");
        let Some(Outgoing::Consent(consent)) = a.outbox.pop_front() else {
            panic!("no consent");
        };
        let record = a.sign_record(vec![], unix).expect("a is a member");
        b.take_record(record.text(), unix).expect("b asked a");
        b.take_consent(consent.text(), unix).expect("it is for b");
        b.settle(unix).expect("b is a member");
        let Some(Outgoing::Consent(consent)) = b.outbox.pop_front() else {
            panic!("no consent");
        };
        a.take_consent(consent.text(), unix).expect("it is for a");
        assert!(a.trusted(unix).len() == 1 && b.trusted(unix).len() == 1);
        Self { a, b, c }
    }
}

/// Returns what a node keeps that has this one agent.
pub(super) fn state(membership: &Membership) -> State {
    State {
        identities: BTreeMap::new(),
        memberships: vec![membership.clone()],
        left: vec![],
    }
}

fn membership(n: u8, name: &str, unix: UnixTime) -> Membership {
    let prefix = DomainPrefix::of(&key(DOMAIN).did().into()).network(1);
    let label = "acme".parse().expect("a label");
    let root = issue::root_grant(&key(OWNER), label, prefix, unix).expect("it is short");
    let (member, did) = (name.parse().expect("a name"), key(n).did());
    let until = unix + issue::ROOT_LIFE;
    let grant = issue::agent_grant(&key(OWNER), &root, did, &member, unix, until);
    let grant = grant.expect("it is short");
    let gateway = gateway(unix);
    Membership {
        gateways: BTreeMap::from([(gateway.subject(), gateway)]),
        ..Membership::new(Start {
            agent: name.to_owned(),
            identity: key(n),
            tunnel: tunnel(n),
            network: network(),
            prefix,
            url: String::new(),
            pin: String::new(),
            domain: key(DOMAIN).did().into(),
            registry: key(REGISTRY).did(),
            chain: vec![root.text().to_owned(), grant.text().to_owned()],
            suffix: Suffix::default(),
        })
    }
}

fn gateway(unix: UnixTime) -> Statement<Gateway> {
    let claims = Gateway {
        tunnel: tunnel(GATEWAY).public(),
        udp: vec![GATEWAY_AT.to_owned()],
        wss: vec![],
        region: None,
        features: vec![],
        ttl: 600,
    };
    let head = Head {
        subject: key(GATEWAY).did(),
        network: None,
        issued: unix,
        expires: unix + issue::ROOT_LIFE,
        seq: unix.as_millis(),
    };
    Statement::sign(&key(REGISTRY), head, claims).expect("it is short")
}

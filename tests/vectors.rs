//! The test vectors in `tests/vectors`: other implementations check theirs against these bytes.
//!
//! `AGENTNET_WRITE_VECTORS=1 cargo test --test vectors` writes them anew after a deliberate change.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{path::PathBuf, time::Duration};

use agentnet::{
    id::{
        AgentId, DomainPrefix, IdentityKey, NetworkId, NetworkPrefix, TunnelSecret, UnixTime, hash,
    },
    statement::{
        Chain, Claims, Consent, ConsentState, Grant, Head, Record, Request, Revocation,
        Revocations, RevokedKey, Statement,
        issue::{self, TokenTerms},
        verify_record,
    },
};
use serde_json::{Value, json};

const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

fn key(n: u8) -> IdentityKey {
    IdentityKey::from_seed([n; 32])
}

fn network() -> NetworkId {
    key(1).did().into()
}

fn prefix() -> NetworkPrefix {
    DomainPrefix::of(&key(9).did().into()).network(7)
}

fn identities() -> Value {
    let one = |n: u8| {
        let agent = AgentId::from(key(n).did());
        json!({
            "seed": hex(&[n; 32]),
            "did": key(n).did(),
            "address": prefix().address_of(&agent).unwrap(),
        })
    };
    json!({
        "domain_root": key(9).did(),
        "network_number": 7,
        "network_prefix": prefix(),
        "agents": [one(3), one(10), one(11)],
        "tunnel": {
            "secret": hex(&[3; 32]),
            "public": TunnelSecret::from_seed([3; 32]).public(),
        },
        "hash": {
            "parts": ["a", "", "bc"],
            "sha256": hex(&hash(&[b"a", b"", b"bc"])),
        },
    })
}

struct Made {
    root: Statement<Grant>,
    token: Statement<Grant>,
    record: Statement<Record>,
}

fn member() -> Made {
    let root = issue::root_grant(&key(1), "acme".parse().unwrap(), prefix(), NOW).unwrap();
    let terms = TokenTerms {
        names: vec!["worker-*".parse().unwrap()],
        tags: ["gpu".parse().unwrap()].into(),
        ephemeral: false,
        uses: 10,
        closes: NOW + Duration::from_secs(3600),
        life: Duration::from_secs(90 * 86_400),
        enrol: key(4).did(),
    };
    let token = issue::token_grant(&key(1), &root, key(2).did(), terms, NOW).unwrap();
    let name = "worker-1".parse().unwrap();
    let agent =
        issue::agent_grant(&key(2), &token, key(3).did(), &name, NOW, root.expires()).unwrap();
    let chain = Chain::new(vec![root.clone(), token.clone(), agent], None);
    let pending = chain
        .verify_pending(&network(), &Revocations::default(), NOW)
        .unwrap();
    let gate = pending.authority.token.unwrap();
    let admission = issue::admission(&key(4), network(), &gate, NOW, NOW, root.expires()).unwrap();
    let expires = admission.expires();
    let claims = Record {
        name,
        tunnel: TunnelSecret::from_seed([3; 32]).public(),
        gateways: vec![key(5).did()],
        chain: chain.with_admission(admission).links(),
        ttl: 600,
    };
    let record = issue::record(&key(3), network(), NOW.as_millis(), NOW, expires, claims).unwrap();
    Made {
        root,
        token,
        record,
    }
}

fn signed<C: Claims>(by: u8, about: u8, claims: C) -> Statement<C> {
    let head = Head {
        subject: key(about).did(),
        network: Some(network()),
        issued: NOW,
        expires: NOW + Duration::from_secs(86_400),
        seq: NOW.as_millis(),
    };
    Statement::sign(&key(by), head, claims).unwrap()
}

fn entry<C: Claims>(what: &str, statement: &Statement<C>) -> Value {
    json!({ "what": what, "typ": C::TYP, "text": statement.text(), "hash": statement.hash() })
}

fn statements() -> Value {
    let made = member();
    let request = signed(
        3,
        3,
        Request {
            to: "db".parse().unwrap(),
            inbound: "tcp/8000".parse().unwrap(),
            reason: Some("nightly report".to_owned()),
            record: made.record.text().to_owned(),
        },
    );
    let consent = signed(
        10,
        3,
        Consent {
            inbound: "tcp/5432,udp/5000-5010".parse().unwrap(),
            children: false,
            state: ConsentState::Active,
            re: Some(request.hash()),
        },
    );
    let revocation = signed(
        1,
        1,
        Revocation {
            keys: vec![RevokedKey {
                key: key(3).did(),
                at: NOW,
            }],
            grants: vec![],
            chain: vec![made.root.text().to_owned()],
        },
    );
    let links = made.record.claims().chain.clone();
    json!({
        "now": NOW.as_secs(),
        "statements": [
            entry("the owner's root grant", &made.root),
            entry("a join token's grant", &made.token),
            json!({ "what": "the chain of a member: grants, then the admission", "chain": links }),
            entry("the member's record", &made.record),
            entry("its request to db", &request),
            entry("the consent that answers it", &consent),
            entry("the owner revokes the member", &revocation),
        ],
    })
}

fn check(name: &str, made: &Value) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/vectors")
        .join(name);
    if std::env::var_os("AGENTNET_WRITE_VECTORS").is_some() {
        let text = serde_json::to_string_pretty(made).unwrap() + "\n";
        std::fs::write(&path, text).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap();
    assert_eq!(
        &serde_json::from_str::<Value>(&kept).unwrap(),
        made,
        "{name}"
    );
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// P-001: keys, prefixes and addresses are these for everyone.
#[test]
fn identities_and_addresses_are_as_published() {
    check("identities.json", &identities());
}

/// F-012: statements are these bytes, and they verify.
#[test]
fn statements_are_as_published() {
    check("statements.json", &statements());

    let record = member().record;
    let verified = verify_record(&record, &network(), &Revocations::default(), NOW);
    assert_eq!(verified.unwrap().name.to_string(), "worker-1");
}

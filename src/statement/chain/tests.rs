use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::id::{DomainPrefix, IdentityKey, TunnelSecret};
use crate::statement::{
    Head, Revocation, RevokedKey,
    issue::{self, TokenTerms},
    token::{JoinToken, Reveal, TokenError},
};

pub(super) const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

pub(super) fn key(n: u8) -> IdentityKey {
    IdentityKey::from_seed([n; 32])
}

/// A network of owner 1 with token 2, agent 3 (`worker-1`), registry 4 and admin 5.
pub(super) struct Net {
    pub(super) root: Statement<Grant>,
    token: Statement<Grant>,
    agent: Statement<Grant>,
    admission: Statement<Admission>,
}

pub(super) fn network() -> NetworkId {
    key(1).did().into()
}

fn terms() -> TokenTerms {
    TokenTerms {
        names: vec!["worker-*".parse().unwrap()],
        tags: BTreeSet::from(["gpu".parse().unwrap()]),
        ephemeral: false,
        uses: 10,
        closes: NOW + HOUR,
        life: 90 * DAY,
        enrol: key(4).did(),
    }
}

pub(super) fn net() -> Net {
    let prefix = DomainPrefix::of(&key(9).did().into()).network(7);
    let root = issue::root_grant(&key(1), "acme".parse().unwrap(), prefix, NOW).unwrap();
    let token = issue::token_grant(&key(1), &root, key(2).did(), terms(), NOW).unwrap();
    let name = "worker-1".parse().unwrap();
    let agent =
        issue::agent_grant(&key(2), &token, key(3).did(), &name, NOW, root.expires()).unwrap();
    let chain = Chain::new(vec![root.clone(), token.clone(), agent.clone()], None);
    let member = chain
        .verify_pending(&network(), &Revocations::default(), NOW)
        .unwrap();
    let gate = member.authority.token.unwrap();
    let admission = issue::admission(&key(4), network(), &gate, NOW, NOW, root.expires()).unwrap();
    Net {
        root,
        token,
        agent,
        admission,
    }
}

fn chain(net: &Net) -> Chain {
    let grants = vec![net.root.clone(), net.token.clone(), net.agent.clone()];
    Chain::new(grants, Some(net.admission.clone()))
}

fn check(chain: &Chain, now: UnixTime) -> Result<Member, ChainError> {
    chain.verify(&network(), &Revocations::default(), now)
}

/// Signs `claims` from `issuer` to `subject` in the test network.
pub(super) fn grant(issuer: u8, subject: u8, claims: Grant) -> Statement<Grant> {
    let head = Head {
        subject: key(subject).did(),
        network: Some(network()),
        issued: NOW,
        expires: NOW + 365 * DAY,
        seq: NOW.as_millis(),
    };
    Statement::sign(&key(issuer), head, claims).unwrap()
}

/// Z-012, F-012: membership is proven by signatures alone, offline.
#[test]
fn a_member_is_proven_by_its_chain() {
    let net = net();

    let member = check(&chain(&net), NOW).unwrap();

    assert_eq!(member.name.to_string(), "worker-1");
    assert_eq!(member.agent, key(3).did().into());
    assert_eq!(
        member.address,
        member.prefix.address_of(&member.agent).unwrap()
    );
    assert_eq!(member.expires, NOW + 90 * DAY);
    assert!(member.authority.tags.contains(&"gpu".parse().unwrap()));
    assert_eq!(Chain::parse(&chain(&net).links()).unwrap(), chain(&net));
}

/// The end of a token is the last moment to join, not the end of the memberships it made.
#[test]
fn a_membership_outlives_its_token_and_ends_with_its_admission() {
    let net = net();

    assert!(check(&chain(&net), NOW + 2 * HOUR).is_ok());
    assert!(matches!(
        check(&chain(&net), NOW + 90 * DAY),
        Err(ChainError::Statement(StatementError::Expired(_)))
    ));
    let pending = Chain::new(chain(&net).grants().to_vec(), None);
    let late = pending.verify_pending(&network(), &Revocations::default(), NOW + HOUR);
    assert_eq!(late, Err(ChainError::TokenExpired(NOW + HOUR)));
}

/// Architecture section 4: token holder and registry are both needed, neither suffices.
#[test]
fn neither_token_nor_registry_alone_makes_a_member() {
    let net = net();
    let alone = Chain::new(chain(&net).grants().to_vec(), None);
    let other = key(8);
    let claims = net.admission.claims().clone();
    let head = |subject| Head {
        subject,
        network: Some(network()),
        issued: NOW,
        expires: NOW + DAY,
        seq: NOW.as_millis(),
    };
    let self_made = Statement::sign(&key(2), head(key(3).did()), claims.clone()).unwrap();
    let of_another = Statement::sign(&key(4), head(other.did()), claims).unwrap();

    assert_eq!(check(&alone, NOW), Err(ChainError::NotAdmitted));
    for admission in [self_made, of_another] {
        let forged = alone.clone().with_admission(admission);
        assert_eq!(check(&forged, NOW), Err(ChainError::WrongAdmission));
    }
}

#[test]
fn an_admission_lasts_no_longer_than_its_token_says() {
    let net = net();
    let head = Head {
        subject: key(3).did(),
        network: Some(network()),
        issued: NOW,
        expires: NOW + 91 * DAY,
        seq: NOW.as_millis(),
    };
    let long = Statement::sign(&key(4), head, net.admission.claims().clone()).unwrap();

    let checked = check(&chain(&net).with_admission(long), NOW);

    assert_eq!(checked, Err(ChainError::WrongAdmission));
}

#[test]
fn links_of_another_network_or_order_are_refused() {
    let net = net();
    let strangers = key(6).did().into();
    let swapped = Chain::new(vec![net.root.clone(), net.agent.clone()], None);

    assert_eq!(
        chain(&net).verify(&strangers, &Revocations::default(), NOW),
        Err(ChainError::WrongRoot)
    );
    assert_eq!(check(&swapped, NOW), Err(ChainError::Broken(1)));
}

/// What is taken over from another chain is what was opened there, to the byte.
#[test]
fn links_that_were_opened_before_are_those_and_no_others() {
    let net = net();
    let known = chain(&net);
    let links = known.links();

    let again = Chain::parse_beside(&links, &[&known]).unwrap();

    assert_eq!(again.links(), links);
    assert_eq!(check(&again, NOW), check(&known, NOW));
    for link in 0..links.len() {
        let mut forged = links.clone();
        let signature = forged[link].rfind('.').unwrap() + 1;
        let other = if forged[link][signature..].starts_with('A') {
            "B"
        } else {
            "A"
        };
        forged[link].replace_range(signature..=signature, other);
        let opened = Chain::parse_beside(&forged, &[&known]);
        assert!(opened.is_err(), "{link}");
    }
}

/// P-028, P-079: what a child may take of every claim, one row a claim.
#[test]
fn a_child_never_exceeds_its_parent() {
    let net = net();
    let base = net.agent.claims().clone();
    let name = |text: &str| vec![text.parse::<NamePattern>().unwrap()];
    let token = net.token.claims().token.clone();
    let rows: Vec<(&str, Grant)> = vec![
        (
            "role",
            Grant {
                role: Role::Admin,
                ..base.clone()
            },
        ),
        (
            "role",
            Grant {
                role: Role::Token,
                token,
                ..base.clone()
            },
        ),
        (
            "depth",
            Grant {
                depth: net.token.claims().depth,
                ..base.clone()
            },
        ),
        (
            "names",
            Grant {
                names: name("boss"),
                ..base.clone()
            },
        ),
        (
            "names",
            Grant {
                names: name("x.worker-1"),
                ..base.clone()
            },
        ),
        (
            "tags",
            Grant {
                tags: BTreeSet::from(["root".parse().unwrap()]),
                ..base.clone()
            },
        ),
        (
            "root",
            Grant {
                root: net.root.claims().root.clone(),
                ..base
            },
        ),
    ];
    for (what, claims) in rows {
        let forged = Chain::new(
            vec![net.root.clone(), net.token.clone(), grant(2, 3, claims)],
            None,
        );
        let checked = forged.verify_pending(&network(), &Revocations::default(), NOW);
        assert_eq!(checked, Err(ChainError::Exceeds(2, what)));
    }
}

#[test]
fn a_narrowing_holds_for_all_below() {
    let net = net();
    let narrow = Grant {
        role: Role::Admin,
        ports: Some("tcp/80".parse().unwrap()),
        peers: Some(vec!["db-*".parse().unwrap()]),
        ephemeral: true,
        depth: 5,
        names: vec!["*".parse().unwrap()],
        ..net.agent.claims().clone()
    };
    let narrow = Grant {
        tags: BTreeSet::new(),
        ..narrow
    };
    let admin = grant(1, 5, narrow.clone());
    let below = Grant {
        role: Role::Member,
        names: vec!["db-1".parse().unwrap()],
        depth: 4,
        ports: None,
        peers: None,
        ..narrow
    };
    let verify = |claims: Grant| {
        let links = vec![net.root.clone(), admin.clone(), grant(5, 3, claims)];
        check(&Chain::new(links, None), NOW)
    };

    let member = verify(below.clone()).unwrap();

    assert_eq!(member.authority.ports, vec!["tcp/80".parse().unwrap()]);
    assert_eq!(member.authority.peers.len(), 1);
    let wider = Grant {
        ports: Some("tcp/80-81".parse().unwrap()),
        ..below.clone()
    };
    assert_eq!(verify(wider), Err(ChainError::Exceeds(2, "ports")));
    let wider = Grant {
        peers: Some(vec!["*".parse().unwrap()]),
        ..below.clone()
    };
    assert_eq!(verify(wider), Err(ChainError::Exceeds(2, "peers")));
    let lasting = Grant {
        ephemeral: false,
        ..below
    };
    assert_eq!(verify(lasting), Err(ChainError::Exceeds(2, "ephemeral")));
}

/// Z-030: a sub-agent has a name in its parent's namespace and no other.
#[test]
fn a_parent_grants_names_below_its_own_only() {
    let net = net();
    let sub = |name: &str| Grant {
        names: vec![name.parse().unwrap()],
        depth: net.agent.claims().depth - 1,
        ..net.agent.claims().clone()
    };
    let verify = |name: &str| {
        let mut links = chain(&net).grants().to_vec();
        links.push(grant(3, 6, sub(name)));
        check(&Chain::new(links, Some(net.admission.clone())), NOW)
    };

    assert_eq!(verify("x.worker-1").unwrap().agent, key(6).did().into());
    for name in ["worker-1", "worker-2", "x.worker-2", "y.x.worker-1"] {
        assert_eq!(verify(name), Err(ChainError::Exceeds(3, "names")), "{name}");
    }
}

fn revocation(
    author: u8,
    chain: &[Statement<Grant>],
    of: u8,
    at: UnixTime,
) -> Statement<Revocation> {
    let head = Head {
        subject: network().did(),
        network: Some(network()),
        issued: NOW,
        expires: NOW + 365 * DAY,
        seq: NOW.as_millis(),
    };
    let claims = Revocation {
        keys: vec![RevokedKey {
            key: key(of).did(),
            at,
        }],
        grants: vec![],
        chain: chain.iter().map(|g| g.text().to_owned()).collect(),
    };
    Statement::sign(&key(author), head, claims).unwrap()
}

/// P-014: the owner's revocation ends a membership.
#[test]
fn a_revoked_agent_is_no_member() {
    let net = net();
    let mut revoked = Revocations::default();
    let statement = revocation(1, std::slice::from_ref(&net.root), 3, NOW);

    assert!(revoked.add(&statement, &network(), NOW).unwrap());
    assert!(!revoked.add(&statement, &network(), NOW).unwrap());

    let checked = chain(&net).verify(&network(), &revoked, NOW);
    assert_eq!(checked, Err(ChainError::Revoked(2)));
}

/// Learnt from nebula's GHSA-69x3-g4r3-p962: it is the key that is revoked, whatever grant comes with it.
#[test]
fn a_revoked_key_is_out_by_every_grant() {
    let net = net();
    let mut revoked = Revocations::default();
    let statement = revocation(1, std::slice::from_ref(&net.root), 3, NOW);
    assert!(revoked.add(&statement, &network(), NOW).unwrap());

    let name = "db-1".parse().unwrap();
    let later = NOW + HOUR;
    let until = net.root.expires();
    let again = issue::agent_grant(&key(1), &net.root, key(3).did(), &name, later, until).unwrap();
    let other = issue::agent_grant(&key(1), &net.root, key(6).did(), &name, later, until).unwrap();
    let verify = |grant: Statement<Grant>| {
        let chain = Chain::new(vec![net.root.clone(), grant], None);
        chain.verify(&network(), &revoked, later)
    };

    assert_eq!(verify(again), Err(ChainError::Revoked(1)));
    assert!(verify(other).is_ok());
}

#[test]
fn a_revoked_token_voids_later_admissions_only() {
    let net = net();
    let with = |at| {
        let mut revoked = Revocations::default();
        revoked
            .add(
                &revocation(1, std::slice::from_ref(&net.root), 2, at),
                &network(),
                NOW,
            )
            .unwrap();
        revoked
    };
    let pending = Chain::new(chain(&net).grants().to_vec(), None);
    let later = with(NOW + Duration::from_secs(1));

    assert!(chain(&net).verify(&network(), &later, NOW).is_ok());
    assert!(
        pending
            .verify_pending(&network(), &later, NOW + HOUR / 2)
            .is_err()
    );
    let earlier = with(NOW.before(Duration::from_secs(1)));
    assert!(chain(&net).verify(&network(), &earlier, NOW).is_err());
}

/// P-079: a member cannot revoke another, nor the owner.
#[test]
fn one_without_authority_revokes_nothing() {
    let net = net();
    let mut revoked = Revocations::default();
    let links = chain(&net).links();
    for of in [1, 8] {
        let mut statement = revocation(3, &[], of, NOW).claims().clone();
        statement.chain.clone_from(&links);
        let head = Head {
            subject: network().did(),
            network: Some(network()),
            issued: NOW,
            expires: NOW + DAY,
            seq: NOW.as_millis(),
        };
        let statement = Statement::sign(&key(3), head, statement).unwrap();
        assert!(revoked.add(&statement, &network(), NOW).unwrap());
        assert_eq!(
            revoked.of(&key(of).did(), Role::Member, &[key(1).did()]),
            None
        );
    }
    assert!(chain(&net).verify(&network(), &revoked, NOW).is_ok());
    let stranger = revocation(8, std::slice::from_ref(&net.root), 3, NOW);
    assert!(revoked.add(&stranger, &network(), NOW).is_err());
}

fn record_of(net: &Net, name: &str, expires: UnixTime) -> Statement<Record> {
    let claims = Record {
        name: name.parse().unwrap(),
        tunnel: TunnelSecret::from_seed([3; 32]).public(),
        gateways: vec![],
        chain: chain(net).links(),
        ttl: 300,
    };
    issue::record(&key(3), network(), NOW.as_millis(), NOW, expires, claims).unwrap()
}

#[test]
fn a_record_says_what_its_chain_says() {
    let net = net();
    let verify = |record| verify_record(&record, &network(), &Revocations::default(), NOW);
    let end = net.admission.expires();

    assert!(verify(record_of(&net, "worker-1", end)).is_ok());
    assert!(verify(record_of(&net, "worker-2", end)).is_err());
    assert!(verify(record_of(&net, "worker-1", end + HOUR)).is_err());
    let fits = record_of(&net, "worker-1", end).text().len();
    assert!(fits < 6000, "a record is {fits} bytes");
}

#[test]
fn a_join_token_holds_its_own_chain() {
    let net = net();
    let token = JoinToken {
        chain: vec![net.root.text().to_owned(), net.token.text().to_owned()],
        key: key(2),
        url: "https://198.51.100.1:8443".to_owned(),
        pin: "pin".to_owned(),
        domain: key(9).did().into(),
        network: network(),
        prefix: net.root.claims().root.as_ref().unwrap().prefix,
    };
    let text = token.reveal();
    let stolen = JoinToken {
        key: key(8),
        ..token
    }
    .reveal();

    let read = text.parse::<JoinToken>().unwrap();

    assert_eq!(read.key.did(), key(2).did());
    assert_eq!(
        stolen.parse::<JoinToken>().unwrap_err(),
        TokenError::WrongKey
    );
    assert_eq!(
        text[..60].parse::<JoinToken>().unwrap_err(),
        TokenError::Damaged
    );
    assert!(matches!(
        "agno1_e30".parse::<JoinToken>(),
        Err(TokenError::WrongPrefix("agn1_"))
    ));
}

/// Changes one claim of a JSON object, whatever it is.
fn change(value: &mut serde_json::Value, at: usize) -> String {
    let object = value.as_object_mut().unwrap();
    let name = object.keys().nth(at % object.len()).unwrap().clone();
    let new = match &object[&name] {
        serde_json::Value::String(text) => serde_json::json!(format!("{text}x")),
        serde_json::Value::Number(n) => serde_json::json!(n.as_u64().unwrap() + 1),
        serde_json::Value::Bool(b) => serde_json::json!(!b),
        serde_json::Value::Array(all) if all.is_empty() => serde_json::json!(["x"]),
        serde_json::Value::Array(_) => serde_json::json!([]),
        serde_json::Value::Object(_) | serde_json::Value::Null => serde_json::json!(null),
    };
    object.insert(name.clone(), new);
    name
}

proptest! {
    /// F-012: no chain verifies after any one field of any link was changed.
    #[test]
    fn no_chain_verifies_after_a_change(link in 0_usize..4, part in 0_usize..2, at in 0_usize..20) {
        use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
        let mut links = chain(&net()).links();
        let mut parts = links[link].split('.').map(str::to_owned).collect::<Vec<_>>();
        let json = URL_SAFE_NO_PAD.decode(&parts[part]).unwrap();
        let mut json = serde_json::from_slice::<serde_json::Value>(&json).unwrap();
        let field = change(&mut json, at);
        parts[part] = URL_SAFE_NO_PAD.encode(json.to_string());
        links[link] = parts.join(".");

        let verified = Chain::parse(&links).and_then(|chain| check(&chain, NOW));

        prop_assert!(verified.is_err(), "link {} without its {}", link, field);
    }

    /// F-012: nor after links were left out, doubled or reordered.
    #[test]
    fn no_other_order_of_links_verifies(order in prop::collection::vec(0_usize..4, 0..6)) {
        prop_assume!(order != [0, 1, 2, 3]);
        let links = chain(&net()).links();
        let other = order.iter().map(|i| links[*i].clone()).collect::<Vec<_>>();

        prop_assert!(Chain::parse(&other).and_then(|chain| check(&chain, NOW)).is_err());
    }
}

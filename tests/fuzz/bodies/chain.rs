//! Chains of grants that people with keys could sign, right or wrong, and what they may prove.

use std::collections::BTreeSet;
use std::time::Duration;

use agentnet::id::{DomainPrefix, IdentityKey, Label, NamePattern, NetworkId, UnixTime};
use agentnet::statement::{
    Admission, Chain, Grant, Head, Member, Revocation, Revocations, RevokedKey, Role, RootClaims,
    Scope, Statement, TokenClaims,
};

use super::input::Input;

const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);
const HOUR: Duration = Duration::from_secs(3600);

const NAMES: [&str; 8] = [
    "*",
    "p*",
    "planner",
    "x.planner",
    "*.planner",
    "y",
    "pl*r",
    "a*",
];
const TAGS: [&str; 3] = ["gpu", "ci", "x"];

fn key(n: u8) -> IdentityKey {
    IdentityKey::from_seed([n; 32])
}

fn network() -> NetworkId {
    key(1).did().into()
}

/// A chain of at most eleven links, of which every field may be wrong, and revocations.
pub(super) fn chain(data: &[u8]) {
    let mut input = Input::new(data);
    let count = 1 + input.byte() % 11;
    let (mut texts, mut issuer) = (Vec::new(), 1);
    for place in 0..count {
        let (link, subject) = link(&mut input, place, issuer);
        texts.push(link);
        issuer = subject;
    }
    let Ok(chain) = Chain::parse(&texts) else {
        assert!(texts.len() > 10 || texts.iter().any(|t| Statement::<Grant>::open(t).is_err()));
        return;
    };
    assert_eq!(chain.links(), texts);
    let mut revoked = Revocations::default();
    let pending = chain.verify_pending(&network(), &revoked, NOW);
    if let Ok(member) = chain.verify(&network(), &revoked, NOW) {
        holds(&chain, &member);
        assert!(pending.is_ok() || member.authority.token.is_some());
        for grant in chain.grants().iter().skip(1) {
            let mut without = Revocations::default();
            let by_owner = revocation(1, &texts[..1], grant.subject().to_string().as_str());
            // The root may also be a key further down; then there is nobody above it.
            if without.add(&by_owner, &network(), NOW).is_ok() && grant.claims().role != Role::Token
            {
                assert!(chain.verify(&network(), &without, NOW).is_err(), "revoked");
            }
        }
        assert!(
            chain.verify(&key(9).did().into(), &revoked, NOW).is_err(),
            "another network"
        );
    }
    while !input.is_empty() && revoked.len() < 16 {
        let (author, links) = (1 + input.byte() % 5, usize::from(input.byte() % 11));
        let target = key(1 + input.byte() % 5).did().to_string();
        let by = revocation(author, &texts[..links.min(texts.len())], &target);
        if revoked.add(&by, &network(), NOW).is_ok() {
            // One who revoked itself says nothing any more.
            assert_ne!(
                revoked.add(&by, &network(), NOW),
                Ok(true),
                "it is known now"
            );
        }
        let after = chain.verify(&network(), &revoked, NOW);
        assert!(
            after.is_err()
                || chain
                    .verify(&network(), &Revocations::default(), NOW)
                    .is_ok()
        );
    }
}

/// What a chain that holds must say, whoever made it.
fn holds(chain: &Chain, member: &Member) {
    let grants = chain.grants();
    assert!(chain.links().len() <= 10);
    assert_eq!(grants[0].issuer(), network().did());
    assert!(grants[0].claims().root.is_some() && grants[0].claims().role == Role::Owner);
    for pair in grants.windows(2) {
        let (above, below) = (pair[0].claims(), pair[1].claims());
        assert_eq!(pair[1].issuer(), pair[0].subject());
        assert!(above.role.may_grant(below.role) && below.depth < above.depth);
        assert!(below.root.is_none());
        assert!(above.role == Role::Owner || below.tags.is_subset(&above.tags));
        assert!(below.ephemeral || !above.ephemeral);
        assert_eq!(below.token.is_some(), below.role == Role::Token);
        let is_given = |name: &NamePattern| above.names.iter().any(|held| held.covers(name));
        assert!(above.role == Role::Member || below.names.iter().all(is_given));
    }
    let last = grants.last().expect("it proves somebody");
    assert_eq!(last.subject(), member.agent.did());
    assert_eq!(last.claims().names, [NamePattern::exactly(&member.name)]);
    assert_eq!(member.prefix.address_of(&member.agent), Ok(member.address));
    assert!(member.expires > NOW && member.expires <= last.expires());
    let token = grants.iter().find(|g| g.claims().role == Role::Token);
    assert_eq!(
        token.is_some(),
        chain.admission().is_some(),
        "neither alone"
    );
    if let (Some(token), Some(admission)) = (token, chain.admission()) {
        let claims = token.claims().token.as_ref().expect("checked above");
        assert_eq!(
            (admission.issuer(), admission.claims().token),
            (claims.enrol, token.subject())
        );
        assert!(admission.claims().first <= token.expires());
        assert!(member.expires <= admission.expires());
    }
}

/// Signs the link at `place`; returns it and the number of the key it is for.
fn link(input: &mut Input<'_>, place: u8, issuer: u8) -> (String, u8) {
    let wrong = input.byte();
    let subject = if place == 0 { 1 } else { 2 + input.byte() % 4 };
    let issuer = if wrong & 1 == 0 {
        issuer
    } else {
        1 + input.byte() % 5
    };
    let net = if wrong & 2 == 0 {
        network()
    } else {
        key(7).did().into()
    };
    let (age, life) = (u64::from(input.byte()), u64::from(input.byte()));
    let head = Head {
        subject: key(subject).did(),
        network: (wrong & 4 == 0).then_some(net),
        issued: NOW.before(HOUR * age as u32 / 8),
        expires: NOW.before(HOUR) + HOUR * life as u32,
        seq: NOW.as_millis(),
    };
    let text = if wrong & 8 == 0 {
        let claims = grant(input, place);
        Statement::sign(&key(issuer), head, claims).map(|s| s.text().to_owned())
    } else {
        let claims = Admission {
            token: key(2 + input.byte() % 4).did(),
            name: "planner".parse().expect("a name"),
            first: NOW.before(HOUR * u32::from(input.byte())),
        };
        Statement::sign(&key(6), head, claims).map(|s| s.text().to_owned())
    };
    (text.expect("it is short"), subject)
}

fn grant(input: &mut Input<'_>, place: u8) -> Grant {
    let kind = input.byte();
    let roles = [
        Role::Owner,
        Role::Admin,
        Role::Auditor,
        Role::Member,
        Role::Token,
    ];
    let role = if place == 0 && kind < 250 {
        Role::Owner
    } else {
        roles[usize::from(kind % 5)]
    };
    let chosen = input.byte();
    let names = (0..8).filter(|n| chosen >> n & 1 == 1).map(|n| NAMES[n]);
    let names = names
        .map(|name| name.parse().expect("a pattern"))
        .collect::<Vec<NamePattern>>();
    let more = input.byte();
    let tags = (0..3).filter(|n| more >> n & 1 == 1).map(|n| TAGS[n]);
    let tags = tags
        .map(|tag| tag.parse().expect("a label"))
        .collect::<BTreeSet<Label>>();
    let root = (place == 0) != (more & 0x10 != 0);
    let token = (role == Role::Token) != (more & 0x20 != 0);
    Grant {
        role,
        peers: (more & 0x40 != 0).then(|| names.clone()),
        names,
        tags,
        depth: input.byte() % 12,
        ephemeral: more & 8 != 0,
        ports: (more & 0x80 != 0).then_some(Scope::Any),
        root: root.then(|| RootClaims {
            prefix: DomainPrefix::of(&key(8).did().into()).network(7),
            label: "acme".parse().expect("a label"),
            border: false,
        }),
        token: token.then(|| TokenClaims {
            uses: 1,
            life: 86_400,
            enrol: key(6).did(),
        }),
    }
}

fn revocation(author: u8, chain: &[String], target: &str) -> Statement<Revocation> {
    let claims = Revocation {
        keys: vec![RevokedKey {
            key: target.parse().expect("a did"),
            at: NOW.before(HOUR),
        }],
        grants: vec![],
        chain: chain.to_vec(),
    };
    let head = Head {
        subject: network().did(),
        network: Some(network()),
        issued: NOW,
        expires: NOW + HOUR,
        seq: NOW.as_millis(),
    };
    Statement::sign(&key(author), head, claims).expect("ten short grants fit")
}

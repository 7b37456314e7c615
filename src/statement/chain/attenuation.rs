use std::collections::BTreeSet;

use proptest::prelude::*;

use crate::id::NamePattern;
use crate::statement::chain::tests::{NOW, grant, net, network};
use crate::statement::{Chain, Grant, Protocol, Revocations, Role, Scope};

/// A grant by chance, of few names, tags and ports, so that covering and exceeding both happen.
fn any_grant() -> impl Strategy<Value = Grant> {
    let some = |of: &'static [&'static str]| prop::sample::subsequence(of, 0..=of.len());
    let names = some(&["*", "a*", "ab", "x.ab"]);
    let ports = prop::option::of(prop::sample::select(&["any", "tcp/1-9", "tcp/2", ""][..]));
    let peers = prop::option::of(some(&["*", "b*", "bc"]));
    let roles = [Role::Admin, Role::Auditor, Role::Member, Role::Owner];
    let role = prop::sample::select(roles.to_vec());
    let rest = (some(&["s", "t"]), 0_u8..8, any::<bool>());
    (role, names, ports, peers, rest).prop_map(|(role, names, ports, peers, rest)| {
        let patterns = |all: Vec<&str>| {
            all.iter()
                .map(|n| n.parse().unwrap())
                .collect::<Vec<NamePattern>>()
        };
        let (tags, depth, ephemeral) = rest;
        Grant {
            role,
            names: patterns(names),
            tags: tags.iter().map(|t| t.parse().unwrap()).collect(),
            depth,
            ephemeral,
            ports: ports.map(|p| p.parse().unwrap()),
            peers: peers.map(patterns),
            root: None,
            token: None,
        }
    })
}

/// A grant and one below it that mostly takes what the first has, and by chance something else.
fn two_grants() -> impl Strategy<Value = (Grant, Grant)> {
    let same = prop::collection::vec(prop::bool::weighted(0.85), 7);
    (any_grant(), any_grant(), same).prop_map(|(above, other, same)| {
        let mut below = above.clone();
        below.depth = if same[0] {
            above.depth.saturating_sub(1)
        } else {
            other.depth
        };
        below.role = if same[1] { Role::Member } else { other.role };
        below.names = if same[2] { below.names } else { other.names };
        below.tags = if same[3] { below.tags } else { other.tags };
        below.ephemeral = if same[4] {
            below.ephemeral
        } else {
            other.ephemeral
        };
        below.ports = if same[5] { below.ports } else { other.ports };
        below.peers = if same[6] { below.peers } else { other.peers };
        (above, below)
    })
}

/// Every name of up to three letters that a list of patterns gives.
fn given(patterns: &[NamePattern]) -> BTreeSet<String> {
    let all = ["a", "ab", "abc", "b", "bc", "c", "x.ab", "y.ab"];
    let names = all
        .iter()
        .filter(|name| patterns.iter().any(|p| p.matches(&name.parse().unwrap())));
    names.map(|name| (*name).to_owned()).collect()
}

proptest! {
    /// P-079, F-012: whatever two grants say, one that verifies below another takes no more than it.
    #[test]
    fn no_grant_that_verifies_exceeds_the_one_above((above, below) in two_grants()) {
        let net = net();
        let links = [grant(1, 5, above.clone()), grant(5, 3, below.clone())];
        let chain = Chain::new([&[net.root], &links[..]].concat(), None);
        let Ok(held) = chain.authority(&network(), &Revocations::default(), NOW) else {
            return Ok(());
        };

        prop_assert!(below.role != Role::Owner && above.role.may_grant(below.role));
        prop_assert!(below.depth < above.depth);
        prop_assert!(below.tags.is_subset(&above.tags));
        prop_assert!(below.ephemeral || !above.ephemeral);
        if above.role != Role::Member {
            prop_assert!(given(&below.names).is_subset(&given(&above.names)));
        }
        for port in [1, 2, 9, 10] {
            let open = |scope: &Scope| scope.allows(Protocol::Tcp, port);
            let holds = |grant: &Grant| grant.ports.as_ref().is_none_or(open);
            let narrowed = held.ports.iter().all(open);
            prop_assert_eq!(narrowed, holds(&above) && holds(&below));
        }
        for peers in above.peers.iter().zip(&below.peers) {
            prop_assert!(given(peers.1).is_subset(&given(peers.0)));
        }
    }
}

use super::*;
use crate::id::IdentityKey;
use crate::statement::Gateway;

fn consent_of(stranger: u64) -> Statement<Consent> {
    let mut seed = [99; 32];
    seed[..8].copy_from_slice(&stranger.to_be_bytes());
    let head = Head {
        subject: key(10).did(),
        network: Some(network()),
        issued: NOW,
        expires: NOW + SECOND,
        seq: NOW.as_millis(),
    };
    let claims = Consent {
        inbound: Scope::Any,
        children: false,
        state: ConsentState::Active,
        re: None,
    };
    Statement::sign(&IdentityKey::from_seed(seed), head, claims).unwrap()
}

fn gateway(n: u16, seq: u64, signer: u8, life: Duration) -> Statement<Gateway> {
    let mut seed = [77; 32];
    seed[..2].copy_from_slice(&n.to_be_bytes());
    let claims = Gateway {
        tunnel: TunnelSecret::from_seed(seed).public(),
        udp: vec![format!("192.0.2.1:{seq}")],
        wss: vec![],
        region: None,
        features: vec![],
        ttl: 600,
    };
    let head = Head {
        subject: IdentityKey::from_seed(seed).did(),
        network: None,
        issued: NOW,
        expires: NOW + life,
        seq,
    };
    Statement::sign(&key(signer), head, claims).unwrap()
}

/// A registry that makes up consents of keys nobody knows fills neither memory nor disk.
#[test]
fn consents_of_strangers_are_few_and_end() {
    let mut a = membership(10, "a");
    let kept = (0..300).filter(|n| a.take_consent(consent_of(*n).text(), NOW).is_ok());
    assert_eq!(kept.count(), MAX_STRANGE);

    let later = NOW + SECOND;
    assert!(a.settle(later).unwrap());

    assert!(a.received.is_empty() && a.trusted(later).is_empty());
    let seen = serde_json::to_string(&a.seen).unwrap();
    assert_eq!(
        seen,
        serde_json::to_string(&membership(10, "a").seen).unwrap()
    );
}

/// A consent taken back before its agent was known here stays so.
#[test]
fn what_was_revoked_before_we_met_stays_revoked() {
    let (mut a, mut b) = (membership(10, "a"), membership(11, "b"));
    let claims = consent_of(1).claims().clone();
    let own = a.identity.did();
    let active = b.sign(own, NOW, NOW + 60 * SECOND, claims.clone()).unwrap();
    let state = ConsentState::Revoked;
    let revoked = Consent { state, ..claims };
    let revoked = b.sign(own, NOW, NOW + 60 * SECOND, revoked).unwrap();
    a.take_consent(revoked.text(), NOW).unwrap();
    b.request("a".parse().unwrap(), Scope::Any, None, NOW)
        .unwrap();
    deliver(&mut b, &mut a, NOW);
    a.approve(&"b".parse().unwrap(), Scope::Any, NOW).unwrap();

    assert!(a.take_consent(active.text(), NOW).is_err());
    assert!(a.trusted(NOW).is_empty());
}

/// A backup from before trust takes it up again, whichever of the two consents comes first.
#[test]
fn a_restored_backup_takes_up_its_trust_in_any_order() {
    let (a, mut b) = trusting();
    let (own, theirs) = (a.given.values().next(), a.received.values().next());
    let (own, theirs) = (own.unwrap().text(), theirs.unwrap().text());
    let record = b.sign_record(vec![], NOW).unwrap();
    for order in [[own, theirs], [theirs, own]] {
        let mut restored = membership(10, "a");
        for consent in order {
            restored.take_consent(consent, NOW).unwrap();
        }
        restored.take_record(record.text(), NOW).unwrap();

        assert_eq!(restored.trusted(NOW).len(), 1);
    }
}

/// Architecture: a gateway is one by the word of the registry or the domain root.
#[test]
fn a_gateway_of_a_foreign_signer_or_of_yesterday_is_refused() {
    let mut a = membership(10, "a");
    let (registry, domain, network_owner) = (4, 9, 1);
    let hour = 3600 * SECOND;

    for foreign in [network_owner, 2, 10, 50] {
        let statement = gateway(1, 1, foreign, hour);
        assert_eq!(
            a.take_gateway(statement.text(), NOW),
            Err(Refused::NotForUs)
        );
    }
    let expired = gateway(1, 1, registry, hour);
    assert!(a.take_gateway(expired.text(), NOW + hour).is_err());
    assert!(a.gateways.is_empty());

    assert_eq!(
        a.take_gateway(gateway(1, 2, registry, hour).text(), NOW),
        Ok(true)
    );
    assert_eq!(
        a.take_gateway(gateway(1, 1, registry, hour).text(), NOW),
        Ok(false)
    );
    let held = a.gateways.values().next().unwrap();
    assert_eq!(
        held.claims().udp,
        ["192.0.2.1:2"],
        "an older one changes nothing"
    );
    assert_eq!(
        a.take_gateway(gateway(2, 1, domain, hour).text(), NOW),
        Ok(true)
    );
}

/// A registry that makes up gateways is bounded, and forgotten once it stops.
#[test]
fn gateways_without_number_are_refused_and_make_room_when_they_end() {
    let mut a = membership(10, "a");
    let taken = (0..200).filter(|n| {
        let statement = gateway(*n, 1, 4, 60 * SECOND);
        a.take_gateway(statement.text(), NOW).is_ok()
    });
    assert_eq!(taken.count(), 64);

    let (later, honest) = (NOW + 60 * SECOND, gateway(300, 1, 4, 3600 * SECOND));
    assert_eq!(a.take_gateway(honest.text(), later), Ok(true));
    assert_eq!(a.gateways.len(), 1);
}

/// P-015: whatever waits for the registry, a revocation is never dropped for it.
#[test]
fn what_waits_for_the_registry_is_superseded_and_never_dropped() {
    let (_, mut b) = trusting();
    let name = "a".parse::<MemberName>().unwrap();
    b.outbox.clear();
    b.revoke(&name, NOW + SECOND).unwrap();
    for n in 0..3000_u32 {
        let to = format!("x{}", n % 200).parse().unwrap();
        b.request(to, Scope::Any, None, NOW + SECOND).unwrap();
    }

    assert_eq!(b.outbox.len(), 201, "one a name, and the revocation");
    let Some(Outgoing::Consent(first)) = b.outbox.front() else {
        panic!("the revocation was dropped");
    };
    assert_eq!(first.claims().state, ConsentState::Revoked);
}

/// What was asked and taken back while the registry was away is not sent, and fills nothing.
#[test]
fn a_request_that_was_withdrawn_or_ended_does_not_wait_for_the_registry() {
    let mut a = membership(10, "a");
    for n in 0..300_u32 {
        let to = format!("x{n}").parse::<MemberName>().unwrap();
        a.request(to.clone(), Scope::Any, None, NOW).unwrap();
        a.revoke(&to, NOW).unwrap();
        settle(&mut [&mut a], NOW);
        assert!(a.outbox.is_empty(), "{n}");
    }
    a.request("b".parse().unwrap(), Scope::Any, None, NOW)
        .unwrap();
    settle(&mut [&mut a], NOW);
    assert_eq!(a.outbox.len(), 1);

    settle(&mut [&mut a], NOW + REQUEST_LIFE);

    assert!(a.outbox.is_empty() && a.outgoing.is_empty());
}

/// Whatever is done while the registry is away, no more waits for it than a state file holds.
#[test]
fn the_outbox_holds_no_more_than_is_kept_anyway() {
    let (_, mut b) = trusting();
    let name = "a".parse::<MemberName>().unwrap();
    b.outbox.clear();
    for n in 0..400_u32 {
        let later = NOW + SECOND * n;
        let scope = format!("tcp/{}", 1 + n % 60_000).parse().unwrap();
        b.approve(&name, scope, later).unwrap();
        let to = format!("x{}", n % 300).parse().unwrap();
        let asked = b.request(to, Scope::Any, None, later);
        assert!(matches!(asked, Ok(()) | Err(TrustError::Full)));
        settle(&mut [&mut b], later);
        assert!(b.outbox.len() <= b.given.len() + b.outgoing.len());
    }

    assert_eq!(b.outbox.len(), 1 + MAX_PENDING);
}

/// A scope changed often while the registry is away waits once, as it is last.
#[test]
fn a_consent_changed_often_waits_once() {
    let (_, mut b) = trusting();
    let name = "a".parse::<MemberName>().unwrap();
    for n in 1..100_u16 {
        let scope = format!("tcp/{n}").parse().unwrap();
        b.approve(&name, scope, NOW + SECOND).unwrap();
    }

    let waiting = b.outbox.iter().collect::<Vec<_>>();
    let [Outgoing::Consent(last)] = waiting.as_slice() else {
        panic!("{}", waiting.len());
    };
    assert_eq!(last.claims().inbound, "tcp/99".parse().unwrap());
}

/// Asking the same name again takes the place of the request before, however many wait.
#[test]
fn a_request_is_repeated_where_no_more_names_fit() {
    let mut a = membership(10, "a");
    for n in 0..MAX_PENDING {
        let to = format!("x{n}").parse().unwrap();
        a.request(to, Scope::Any, None, NOW).unwrap();
    }
    let mut ask = |name: &str| a.request(name.parse().unwrap(), Scope::Any, None, NOW);

    assert_eq!(ask("one-more"), Err(TrustError::Full));
    assert_eq!(ask("x7"), Ok(()));
    assert_eq!(a.outgoing.len(), MAX_PENDING);
}

/// Both ask at once and one approves: trust stands and nothing waits, in whatever order it arrives.
#[test]
fn two_requests_that_cross_are_both_answered_by_one_approval() {
    for late in [false, true] {
        let (mut a, mut b) = (membership(10, "a"), membership(11, "b"));
        let (to_a, to_b) = ("a".parse::<MemberName>().unwrap(), "b".parse().unwrap());
        a.request(to_b, Scope::replies_only(), None, NOW).unwrap();
        b.request(to_a.clone(), Scope::replies_only(), None, NOW)
            .unwrap();
        let from_b = b.outbox.clone();
        if late {
            b.outbox.clear();
        }
        deliver(&mut b, &mut a, NOW);
        deliver(&mut a, &mut b, NOW);
        b.approve(&to_a, "tcp/8000".parse().unwrap(), NOW).unwrap();
        for _ in 0..2 {
            deliver(&mut b, &mut a, NOW);
            settle(&mut [&mut a], NOW);
            deliver(&mut a, &mut b, NOW);
            settle(&mut [&mut b], NOW);
        }
        if late {
            b.outbox = from_b;
            deliver(&mut b, &mut a, NOW);
            settle(&mut [&mut a], NOW);
        }

        assert_eq!((a.trusted(NOW).len(), b.trusted(NOW).len()), (1, 1));
        assert!(a.incoming.is_empty() && a.outgoing.is_empty(), "{late}");
        assert!(b.incoming.is_empty() && b.outgoing.is_empty(), "{late}");
        let given = b.given.values().next().unwrap();
        assert_eq!(given.claims().inbound, "tcp/8000".parse().unwrap());
    }
}

/// P-012: both asked for the other, so both consent, each to what it offered and nothing more.
#[test]
fn two_requests_that_cross_are_two_consents() {
    for late in [false, true] {
        let (mut a, mut b) = (membership(10, "a"), membership(11, "b"));
        let offered = "tcp/8000".parse::<Scope>().unwrap();
        a.request("b".parse().unwrap(), offered.clone(), None, NOW)
            .unwrap();
        b.request("a".parse().unwrap(), Scope::replies_only(), None, NOW)
            .unwrap();
        deliver(&mut b, &mut a, NOW);
        if late {
            // a has answered by its consent before b hears of a's request.
            settle(&mut [&mut a], NOW);
        }
        for _ in 0..3 {
            deliver(&mut a, &mut b, NOW);
            settle(&mut [&mut b], NOW);
            deliver(&mut b, &mut a, NOW);
            settle(&mut [&mut a], NOW);
        }

        assert_eq!(
            (a.trusted(NOW).len(), b.trusted(NOW).len()),
            (1, 1),
            "{late}"
        );
        assert_eq!(a.trusted(NOW)[0].inbound[0], offered);
        assert!(b.trusted(NOW)[0].inbound[0].is_replies_only());
        for member in [&a, &b] {
            assert!(member.incoming.is_empty() && member.outgoing.is_empty());
            assert!(member.outbox.is_empty());
        }
    }
}

/// Requests of others, of another key of the name, withdrawn or denied ones cross with nothing.
#[test]
fn only_requests_of_each_other_cross() {
    let (mut a, mut b, mut c) = (
        membership(10, "a"),
        membership(11, "b"),
        membership(12, "c"),
    );
    let ask = |who: &mut Membership, whom: &str| {
        who.request(whom.parse().unwrap(), Scope::Any, None, NOW)
            .unwrap();
    };
    ask(&mut a, "b");
    ask(&mut c, "a");
    deliver(&mut c, &mut a, NOW);
    settle(&mut [&mut a], NOW);
    assert!(
        a.given.is_empty() && a.incoming.len() == 1,
        "c was not asked"
    );

    ask(&mut b, "a");
    a.revoke(&"b".parse().unwrap(), NOW).unwrap();
    deliver(&mut b, &mut a, NOW);
    settle(&mut [&mut a], NOW);
    assert!(
        a.given.is_empty() && a.incoming.len() == 2,
        "it was withdrawn"
    );

    let late = NOW + REQUEST_LIFE;
    settle(&mut [&mut a], late);
    ask(&mut a, "b");
    settle(&mut [&mut a], late);
    assert!(a.given.is_empty(), "theirs ended");
}

/// One that asks again while trust stands offers something else, and is asked for an answer.
#[test]
fn a_request_after_trust_stands_waits_for_its_answer() {
    let (mut a, mut b) = trusting();
    let later = NOW + SECOND;
    let wider = "tcp/9".parse::<Scope>().unwrap();
    a.request("b".parse().unwrap(), wider.clone(), None, later)
        .unwrap();
    deliver(&mut a, &mut b, later);
    settle(&mut [&mut a, &mut b], later);
    assert_eq!((a.outgoing.len(), b.incoming.len()), (1, 1));

    b.approve(&"a".parse().unwrap(), Scope::Any, later).unwrap();
    deliver(&mut b, &mut a, later);
    settle(&mut [&mut a], later);

    assert_eq!(a.trusted(later)[0].inbound[0], wider);
    assert!(a.outgoing.is_empty());
}

/// A rule that matches everybody consents to no more agents than are kept.
#[test]
fn a_rule_for_everybody_stops_when_no_more_fit() {
    let (mut a, mut b) = (membership(10, "a"), membership(11, "b"));
    let given = b.sign(
        key(12).did(),
        NOW,
        NOW + SECOND,
        consent_of(1).claims().clone(),
    );
    let given = given.unwrap();
    for n in 0..MAX_KEPT as u64 {
        let mut seed = [55; 32];
        seed[..8].copy_from_slice(&n.to_be_bytes());
        b.given
            .insert(IdentityKey::from_seed(seed).did(), given.clone());
    }
    let from = Selector::Name("*".parse().unwrap());
    b.auto_add(AutoRule {
        from,
        allow: Scope::Any,
    })
    .unwrap();
    a.request("b".parse().unwrap(), Scope::Any, None, NOW)
        .unwrap();
    deliver(&mut a, &mut b, NOW);

    assert!(b.settle(NOW).is_ok());
    assert_eq!((b.given.len(), b.incoming.len()), (MAX_KEPT, 1));
}

/// A request that was held back does not bring back a record that was superseded.
#[test]
fn a_request_held_back_brings_no_older_record() {
    let (mut a, mut b) = (membership(10, "a"), membership(11, "b"));
    a.request("b".parse().unwrap(), Scope::Any, None, NOW)
        .unwrap();
    let held = a.outgoing.values().next().unwrap().clone();
    a.tunnel = TunnelSecret::from_seed([42; 32]);
    let newer = a.sign_record(vec![], NOW + SECOND).unwrap();
    b.seen.admit(&newer).unwrap();

    assert!(b.take_request(held.text(), NOW + SECOND).is_err());
    assert!(b.records.is_empty() && b.incoming.is_empty());
}

/// Members who revoke as much as they can leave room for the owner, in memory and on disk.
#[test]
fn revocations_by_members_are_bounded_in_bytes_too() {
    let mut a = membership(10, "a");
    let owners = revocation_of(200);
    let mut kept = 0;
    let keys = (100..190).map(|k| RevokedKey {
        key: key(k).did(),
        at: NOW,
    });
    let keys = keys.collect::<Vec<_>>();
    for n in 20..40 {
        let mut member = membership(n, &format!("x{n}"));
        for turn in 0..16 {
            let claims = Revocation {
                keys: keys[turn..].to_vec(),
                grants: vec![],
                chain: member.chain.clone(),
            };
            let expires = NOW + 3600 * SECOND;
            let revocation = member.sign(network().did(), NOW, expires, claims).unwrap();
            if a.take_revocation(revocation.text(), NOW).is_ok() {
                kept += revocation.text().len();
            }
        }
    }

    assert!((3 << 20..=4 << 20).contains(&kept), "{kept} bytes");
    assert_eq!(a.take_revocation(owners.text(), NOW), Ok(true));
    let written = serde_json::to_string(&a).unwrap();
    let again = serde_json::from_str::<Membership>(&written).unwrap();
    assert_eq!(again.revocations.summary(), a.revocations.summary());
}

/// A chain that was proven once is judged anew each time: by the clock, by what is revoked, and by
/// the very record it is in.
#[test]
fn a_proven_chain_ends_when_it_is_revoked_expires_or_is_exchanged() {
    let (mut a, mut b) = trusting();
    settle(&mut [&mut a], NOW);
    let held = a.records.values().next().unwrap().clone();
    assert!(a.proven.of(&held).is_some() && a.trusted(NOW).len() == 1);
    let newer = b.sign_record(vec![], NOW + SECOND).unwrap();
    assert!(a.proven.of(&newer).is_none(), "it was not looked at");

    let end = a.trusted(NOW)[0].until;
    assert!(a.trusted(end).is_empty());
    a.take_revocation(revocation_of(11).text(), NOW).unwrap();
    assert!(a.trusted(NOW).is_empty());

    let (mut a, _) = trusting();
    settle(&mut [&mut a], NOW);
    let did = *a.records.keys().next().unwrap();
    a.take_record(newer.text(), NOW + SECOND).unwrap();
    settle(&mut [&mut a], NOW + SECOND);
    assert!(a.proven.of(&newer).is_some() && a.proven.of(&held).is_none());
    a.given.clear();
    a.received.clear();
    for _ in 0..2 {
        settle(&mut [&mut a], NOW + SECOND);
    }
    assert!(!a.records.contains_key(&did) && a.proven.of(&newer).is_none());
}

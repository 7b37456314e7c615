mod bounds;
mod gone;

use super::*;
use crate::engine::{
    membership::{Selector, State},
    testing::{NOW, key, membership, network},
};
use crate::id::TunnelSecret;
use crate::statement::{Head, Revocation, RevokedKey, issue};

const SECOND: Duration = Duration::from_secs(1);

/// A registry that forwards everything at once: takes what waits at `from`, gives it to `to`.
fn deliver(from: &mut Membership, to: &mut Membership, unix: UnixTime) {
    let record = from.sign_record(vec![], unix).unwrap();
    for outgoing in std::mem::take(&mut from.outbox) {
        match outgoing {
            Outgoing::Request(request) => drop(to.take_request(request.text(), unix)),
            Outgoing::Consent(consent) => drop(to.take_consent(consent.text(), unix)),
        }
    }
    drop(to.take_record(record.text(), unix));
}

fn settle(members: &mut [&mut Membership], unix: UnixTime) {
    for member in members {
        member.settle(unix).unwrap();
    }
}

/// Agents a and b, who agreed: a may reach tcp/8000 at b, b nothing at a.
fn trusting() -> (Membership, Membership) {
    let (mut a, mut b) = (membership(10, "a"), membership(11, "b"));
    a.request("b".parse().unwrap(), Scope::replies_only(), None, NOW)
        .unwrap();
    deliver(&mut a, &mut b, NOW);
    b.approve(&"a".parse().unwrap(), "tcp/8000".parse().unwrap(), NOW)
        .unwrap();
    deliver(&mut b, &mut a, NOW);
    settle(&mut [&mut a, &mut b], NOW);
    deliver(&mut a, &mut b, NOW);
    (a, b)
}

/// P-012, P-045: trust is two consents, each by its own agent.
#[test]
fn a_request_and_an_approval_make_trust_both_ways() {
    let (a, b) = trusting();

    let (at_a, at_b) = (a.trusted(NOW), b.trusted(NOW));

    assert_eq!((at_a.len(), at_b.len()), (1, 1));
    assert_eq!(at_a[0].member.name.to_string(), "b");
    assert_eq!(at_a[0].psk, at_b[0].psk);
    assert_eq!(at_b[0].inbound, vec!["tcp/8000".parse().unwrap()]);
    assert!(at_a[0].inbound[0].is_replies_only());
    assert_eq!(at_a[0].outbound, "tcp/8000".parse().unwrap());
    assert_eq!(at_a[0].tunnel, b.tunnel.public());
}

/// P-013: one consent alone installs nothing on either side.
#[test]
fn one_consent_is_no_trust() {
    let (mut a, mut b) = (membership(10, "a"), membership(11, "b"));
    a.request("b".parse().unwrap(), Scope::Any, None, NOW)
        .unwrap();
    deliver(&mut a, &mut b, NOW);
    assert!(a.trusted(NOW).is_empty() && b.trusted(NOW).is_empty());

    b.approve(&"a".parse().unwrap(), Scope::Any, NOW).unwrap();

    assert!(a.trusted(NOW).is_empty() && b.trusted(NOW).is_empty());
}

/// P-014, P-015: either side takes its consent back alone, at once and for good.
#[test]
fn a_revoked_consent_ends_trust_and_stays_revoked() {
    let (mut a, mut b) = trusting();
    let old = b.given.values().next().unwrap().clone();
    b.revoke(&"a".parse().unwrap(), NOW + SECOND).unwrap();

    assert!(b.trusted(NOW + SECOND).is_empty());
    deliver(&mut b, &mut a, NOW + SECOND);
    assert!(a.trusted(NOW + SECOND).is_empty());
    assert!(matches!(
        a.take_consent(old.text(), NOW + SECOND),
        Err(Refused::Replayed(_))
    ));
    assert_eq!(b.take_consent(old.text(), NOW + SECOND), Ok(Taken::Known));
    let mut again =
        serde_json::from_str::<Membership>(&serde_json::to_string(&b).unwrap()).unwrap();
    again.settle(NOW + SECOND).unwrap();
    assert!(again.trusted(NOW + SECOND).is_empty());
}

/// An agent that left and joined again takes up the trust that stands, as the registry tells it.
#[test]
fn who_comes_back_is_told_what_it_saw_before() {
    let (mut a, mut b) = trusting();
    let registrys_copy = a.sign_record(vec![], NOW).unwrap();
    let mut state = State::default();
    assert_eq!(b.take_record(registrys_copy.text(), NOW), Ok(Taken::Kept));
    state.leave(&b);

    let mut again = membership(11, "b");
    again.recall(&state.left[0]);
    let consent = a.given[&b.identity.did()].clone();
    again.take_record(registrys_copy.text(), NOW).unwrap();
    let taken = again.take_consent(consent.text(), NOW);

    assert_eq!(taken, Ok(Taken::Kept));
    assert_eq!(again.trusted(NOW).len(), 1);
    assert_eq!(again.take_consent(consent.text(), NOW), Ok(Taken::Known));
}

/// A consent given before can be taken back by name though its subject does not show itself.
#[test]
fn who_comes_back_can_take_its_consents_back() {
    let (_, b) = trusting();
    let mut state = State::default();
    state.leave(&b);
    let kept = serde_json::to_string(&state).unwrap();
    let state = serde_json::from_str::<State>(&kept).unwrap();
    let mut again = membership(11, "b");
    again.recall(&state.left[0]);
    again.settle(NOW + SECOND).unwrap();

    let revoked = again.revoke(&"a".parse().unwrap(), NOW + SECOND);

    assert!(revoked.is_ok(), "{revoked:?}");
}

/// protocol.md section 2: a clock set back is not believed below what others' statements proved, the
/// admission among them.
#[test]
fn a_clock_set_back_leaves_the_own_membership_valid() {
    let mut a = membership(10, "a");
    let early = UnixTime::from_millis(NOW.as_millis() - 3_600_000);
    assert!(a.member(early).is_err());

    a.learn_chain_time();

    assert!(a.member(early).is_ok());
}

/// The registry's copy of a record is commonly older than the one in a request, which was denied.
#[test]
fn a_request_that_was_denied_keeps_nobody_from_asking_in_turn() {
    let (mut a, mut b) = (membership(10, "a"), membership(11, "b"));
    let registrys_copy = a.sign_record(vec![], NOW).unwrap();
    a.request("b".parse().unwrap(), Scope::Any, None, NOW + SECOND)
        .unwrap();
    deliver(&mut a, &mut b, NOW + SECOND);
    b.deny(&"a".parse().unwrap()).unwrap();
    b.settle(NOW + SECOND).unwrap();

    b.request("a".parse().unwrap(), Scope::Any, None, NOW + SECOND)
        .unwrap();

    let taken = b.take_record(registrys_copy.text(), NOW + SECOND);
    assert_eq!(taken, Ok(Taken::Kept));
}

/// P-014: a name that moved to another key is revoked for every key that had it.
#[test]
fn revoking_a_name_takes_back_every_consent_to_it() {
    let name = "b".parse::<MemberName>().unwrap();
    let mut a = membership(10, "a");
    for other in [11, 12] {
        let mut b = membership(other, "b");
        let record = b.sign_record(vec![], NOW).unwrap();
        // As after the first key's chain ended: both are kept, only one of them still holds.
        a.records.insert(b.identity.did(), record);
        let did = b.identity.did();
        a.consent(did, Scope::Any, ConsentState::Active, None, NOW)
            .unwrap();
    }

    a.revoke(&name, NOW + SECOND).unwrap();

    assert!(
        a.given
            .values()
            .all(|c| c.claims().state == ConsentState::Revoked)
    );
    assert!(matches!(
        a.revoke(&name, NOW + SECOND),
        Err(TrustError::NoConsent(_))
    ));
}

/// P-045: a scope changed before the requester saw the approval still answers its request.
#[test]
fn an_approval_changed_while_the_requester_was_away_completes_its_request() {
    let (mut a, mut b) = (membership(10, "a"), membership(11, "b"));
    let name = "a".parse::<MemberName>().unwrap();
    a.request("b".parse().unwrap(), Scope::replies_only(), None, NOW)
        .unwrap();
    deliver(&mut a, &mut b, NOW);
    b.approve(&name, "tcp/8000".parse().unwrap(), NOW).unwrap();
    b.approve(&name, "tcp/9000".parse().unwrap(), NOW).unwrap();
    // The registry is told of the newest consent alone.
    assert_eq!(b.outbox.len(), 1);

    deliver(&mut b, &mut a, NOW);
    settle(&mut [&mut a], NOW);

    assert_eq!(a.trusted(NOW).len(), 1);
}

/// A registry cannot bring a revoked consent back to an agent that left and came back.
#[test]
fn what_was_revoked_stays_revoked_over_leaving_and_joining_again() {
    let (_, mut b) = trusting();
    let old = b.given.values().next().unwrap().clone();
    b.revoke(&"a".parse().unwrap(), NOW + SECOND).unwrap();
    let mut state = State::default();
    state.leave(&b);
    let kept = serde_json::to_string(&state).unwrap();
    let state = serde_json::from_str::<State>(&kept).unwrap();

    let mut again = membership(11, "b");
    let mut left = state.left.iter();
    let left = left.find(|left| left.is_of(&again.agent, &again.network));
    again.recall(left.unwrap());

    assert_eq!(
        again.take_consent(old.text(), NOW + SECOND),
        Ok(Taken::Known)
    );
    assert!(again.trusted(NOW + SECOND).is_empty());
}

/// P-076: with a rule nobody needs to be at hand; without one the answer waits.
#[test]
fn a_rule_answers_by_name_or_tag_and_by_nothing_else() {
    let rules = [
        (Selector::Name("a*".parse().unwrap()), true),
        (Selector::Name("worker-*".parse().unwrap()), false),
        (Selector::Tag("gpu".parse().unwrap()), true),
        (Selector::Tag("prod".parse().unwrap()), false),
    ];
    for (from, answers) in rules {
        let (mut a, mut b) = (membership(10, "a"), membership(11, "b"));
        b.auto_add(AutoRule {
            from,
            allow: "udp/53".parse().unwrap(),
        })
        .unwrap();
        a.request("b".parse().unwrap(), Scope::replies_only(), None, NOW)
            .unwrap();
        for _ in 0..2 {
            deliver(&mut a, &mut b, NOW);
            settle(&mut [&mut b], NOW);
            deliver(&mut b, &mut a, NOW);
            settle(&mut [&mut a], NOW);
        }
        assert_eq!(b.trusted(NOW).len(), usize::from(answers));
        assert_eq!(a.trusted(NOW).len(), usize::from(answers));
        assert_eq!(b.incoming.is_empty(), answers);
    }
}

/// A registry that hands out another agent's answer gains it nothing.
#[test]
fn only_the_agent_that_was_named_completes_a_request() {
    let (mut a, mut evil) = (membership(10, "a"), membership(12, "evil"));
    a.request("b".parse().unwrap(), Scope::Any, None, NOW)
        .unwrap();
    let request = a.outgoing.values().next().unwrap().clone();
    let claims = Consent {
        inbound: Scope::Any,
        children: false,
        state: ConsentState::Active,
        re: Some(request.hash()),
    };
    let answer = evil
        .sign(a.identity.did(), NOW, NOW + 60 * SECOND, claims)
        .unwrap();
    a.take_consent(answer.text(), NOW).unwrap();
    let record = evil.sign_record(vec![], NOW).unwrap();
    a.take_record(record.text(), NOW).unwrap();

    a.settle(NOW).unwrap();

    assert!(a.given.is_empty() && a.trusted(NOW).is_empty());
}

/// A consent to our old request, or to none, does not make us consent.
#[test]
fn nothing_is_completed_that_was_not_asked() {
    let (mut a, mut b) = (membership(10, "a"), membership(11, "b"));
    a.request("b".parse().unwrap(), Scope::Any, None, NOW)
        .unwrap();
    deliver(&mut a, &mut b, NOW);
    a.revoke(&"b".parse().unwrap(), NOW).unwrap();
    b.approve(&"a".parse().unwrap(), Scope::Any, NOW).unwrap();
    deliver(&mut b, &mut a, NOW);

    a.settle(NOW).unwrap();

    assert!(a.given.is_empty());
}

#[test]
fn a_request_to_another_by_another_or_again_is_refused() {
    let (mut a, mut b, mut c) = (
        membership(10, "a"),
        membership(11, "b"),
        membership(12, "c"),
    );
    a.request("b".parse().unwrap(), Scope::Any, None, NOW)
        .unwrap();
    let text = a.outgoing.values().next().unwrap().text().to_owned();
    let claims = a.outgoing.values().next().unwrap().claims().clone();
    let stolen = c
        .sign(c.identity.did(), NOW, NOW + 60 * SECOND, claims)
        .unwrap();

    assert_eq!(c.take_request(&text, NOW), Err(Refused::NotForUs));
    assert_eq!(b.take_request(stolen.text(), NOW), Err(Refused::NotForUs));
    assert_eq!(b.take_request(&text, NOW), Ok(Taken::Pending));
    assert_eq!(b.take_request(&text, NOW), Ok(Taken::Known));
    b.deny(&"a".parse().unwrap()).unwrap();
    assert_eq!(b.take_request(&text, NOW), Ok(Taken::Known));
    assert!(b.incoming.is_empty());
    let late = NOW + REQUEST_LIFE;
    assert!(membership(11, "b").take_request(&text, late).is_err());
}

/// Claims that another key of the name answers our request to it with.
fn answer_by_second_key(a: &mut Membership) -> Consent {
    let again = NOW + SECOND;
    a.request("b".parse().unwrap(), Scope::Any, None, again)
        .unwrap();
    Consent {
        inbound: Scope::Any,
        children: false,
        state: ConsentState::Active,
        re: a.outgoing.values().next().map(Statement::hash),
    }
}

/// innernet#207: a name is not silently given to another key while the first one's chain holds.
#[test]
fn a_second_key_for_a_name_is_refused() {
    let (mut a, _) = trusting();
    let mut second = membership(13, "b");
    let claims = answer_by_second_key(&mut a);
    let consent = second
        .sign(a.identity.did(), NOW, NOW + 60 * SECOND, claims)
        .unwrap();
    a.take_consent(consent.text(), NOW).unwrap();

    let record = second.sign_record(vec![], NOW).unwrap();

    assert_eq!(
        a.take_record(record.text(), NOW),
        Err(Refused::NameHeld("b".parse().unwrap()))
    );
}

fn revocation_of(key_of: u8) -> Statement<Revocation> {
    let prefix = membership(10, "a").prefix;
    let root = issue::root_grant(&key(1), "acme".parse().unwrap(), prefix, NOW).unwrap();
    let head = Head {
        subject: network().did(),
        network: Some(network()),
        issued: NOW,
        expires: NOW + 3600 * SECOND,
        seq: NOW.as_millis(),
    };
    let claims = Revocation {
        keys: vec![RevokedKey {
            key: key(key_of).did(),
            at: NOW,
        }],
        grants: vec![],
        chain: vec![root.text().to_owned()],
    };
    Statement::sign(&key(1), head, claims).unwrap()
}

/// A record that came before the revocation of its name's former key is taken after it.
#[test]
fn a_name_moves_once_its_former_key_is_revoked_and_that_is_kept() {
    let (mut a, _) = trusting();
    let mut second = membership(13, "b");
    let claims = answer_by_second_key(&mut a);
    let consent = second.sign(a.identity.did(), NOW, NOW + 60 * SECOND, claims);
    a.take_consent(consent.unwrap().text(), NOW).unwrap();
    let record = second.sign_record(vec![], NOW).unwrap();
    assert!(a.take_record(record.text(), NOW).is_err());

    assert_eq!(a.take_revocation(revocation_of(11).text(), NOW), Ok(true));

    assert!(a.trusted(NOW).is_empty());
    assert_eq!(a.take_record(record.text(), NOW), Ok(Taken::Kept));
    let kept = serde_json::to_string(&a).unwrap();
    let again = serde_json::from_str::<Membership>(&kept).unwrap();
    assert!(again.trusted(NOW).is_empty());
    assert_eq!(again.revocations.held().len(), 1);
}

/// P-004: a peer that moves or changes its tunnel key keeps its trust; an older record changes nothing.
#[test]
fn a_newer_record_replaces_the_tunnel_key_and_an_older_does_not() {
    let (mut a, mut b) = trusting();
    let old = b.sign_record(vec![], NOW + SECOND).unwrap();
    b.tunnel = TunnelSecret::from_seed([77; 32]);
    let new = b.sign_record(vec![], NOW + 2 * SECOND).unwrap();

    assert_eq!(a.take_record(new.text(), NOW + 2 * SECOND), Ok(Taken::Kept));

    assert!(a.take_record(old.text(), NOW + 2 * SECOND).is_err());
    assert_eq!(a.trusted(NOW + 2 * SECOND)[0].tunnel, b.tunnel.public());
}

#[test]
fn trust_ends_when_a_chain_or_consent_ends() {
    let (a, b) = trusting();
    let end = a.trusted(NOW)[0].until;

    assert_eq!(end, NOW + Duration::from_secs(90 * 86_400));
    assert!(a.trusted(end).is_empty() && b.trusted(end).is_empty());
}

#[test]
fn a_consent_is_renewed_at_half_of_its_life() {
    let (mut a, _) = trusting();
    let half = NOW + CONSENT_LIFE / 2 + SECOND;
    a.outbox.clear();

    assert!(!a.settle(NOW + SECOND).unwrap());
    assert!(a.settle(half).unwrap());

    assert!(matches!(a.outbox.front(), Some(Outgoing::Consent(c)) if c.issued() == half));
}

#[test]
fn a_scope_is_changed_by_approving_again() {
    let (mut a, mut b) = trusting();

    b.approve(
        &"a".parse().unwrap(),
        "tcp/9000".parse().unwrap(),
        NOW + SECOND,
    )
    .unwrap();
    deliver(&mut b, &mut a, NOW + SECOND);

    assert_eq!(
        b.trusted(NOW + SECOND)[0].inbound[0],
        "tcp/9000".parse().unwrap()
    );
    assert_eq!(
        a.trusted(NOW + SECOND)[0].outbound,
        "tcp/9000".parse().unwrap()
    );
    assert!(b.approve(&"x".parse().unwrap(), Scope::Any, NOW).is_err());
}

/// The clock set back to 1970 does not bring expired statements back to life.
#[test]
fn the_clock_never_falls_behind_what_others_proved() {
    let (mut a, mut b) = trusting();
    let late = NOW + Duration::from_secs(50 * 86_400);
    let record = b.sign_record(vec![], late).unwrap();
    a.take_record(record.text(), late).unwrap();

    assert_eq!(
        a.clock(UnixTime::from_secs(0)),
        late.before(Duration::from_secs(60))
    );
}

/// What was signed while a clock was ahead nobody took: it does not count once the clock is right.
#[test]
fn a_clock_that_was_ahead_leaves_no_mark() {
    let (mut a, mut b) = trusting();
    let record = a.sign_record(vec![], NOW).unwrap();
    a.note_taken(record.seq());
    let ahead = NOW + 5 * 86_400 * SECOND;
    let wrong = a.sign_record(vec![], ahead).unwrap();
    assert!(b.take_record(wrong.text(), NOW).is_err());

    let later = NOW + 300 * SECOND;
    let right = a.sign_record(vec![], later).unwrap();

    assert_eq!(right.seq(), later.as_millis());
    assert!(b.take_record(right.text(), later).is_ok());
}

/// A clock that went back leads to no number below those that were taken, and none twice.
#[test]
fn a_clock_that_went_back_repeats_no_number() {
    let mut a = membership(10, "a");
    let day = NOW + 86_400 * SECOND;
    let record = a.sign_record(vec![], day).unwrap();
    a.note_taken(record.seq());

    let mut last = record.seq();
    for _ in 0..3 {
        let next = a.sign_record(vec![], NOW).unwrap();
        assert!(next.seq() > last);
        last = next.seq();
    }
    let right = day + 60 * SECOND;
    assert_eq!(
        a.sign_record(vec![], right).unwrap().seq(),
        right.as_millis()
    );
}

/// A number that was taken stays taken after leaving and joining again, and in a restored backup.
#[test]
fn what_was_taken_is_not_forgotten_with_the_membership() {
    let mut a = membership(10, "a");
    let day = NOW + 86_400 * SECOND;
    let backup = serde_json::to_string(&a).unwrap();
    let record = a.sign_record(vec![], day).unwrap();
    a.note_taken(record.seq());
    let mut state = State::default();
    state.leave(&a);

    let mut again = membership(10, "a");
    again.recall(&state.left[0]);
    let mut restored = serde_json::from_str::<Membership>(&backup).unwrap();
    restored.take_record(record.text(), day).unwrap();

    for mut of in [again, restored] {
        let next = of.sign_record(vec![], NOW).unwrap();
        assert!(next.seq() > record.seq(), "{}", next.seq());
    }
}

/// P-014: what the registry was not told before the network was left, it is told by who comes back.
#[test]
fn a_consent_taken_back_before_leaving_is_still_told() {
    let (_, mut b) = trusting();
    b.request("c".parse().unwrap(), Scope::Any, None, NOW)
        .unwrap();
    b.revoke(&"a".parse().unwrap(), NOW + SECOND).unwrap();
    let revoked = b.given.values().next().unwrap().clone();
    let mut state = State::default();
    state.leave(&b);

    let kept = serde_json::to_string(&state).unwrap();
    let state = serde_json::from_str::<State>(&kept).unwrap();
    let mut again = membership(11, "b");
    again.recall(&state.left[0]);
    again.settle(NOW + 2 * SECOND).unwrap();

    assert_eq!(again.outbox, [Outgoing::Consent(revoked)]);
}

use agentnet::statement::ConsentState;
use agentnet::wire::api::problem::Code;
use agentnet::wire::api::registry::{EventKind, Resolve};

use crate::support::{World, code, key, now, sign};

pub(crate) fn name(text: &str) -> Resolve {
    Resolve {
        name: Some(text.parse().unwrap()),
        address: None,
    }
}

/// P-021, P-059, P-061: nobody is found before it consented to the one who asks.
#[tokio::test]
async fn an_agent_is_found_by_those_it_consented_to() {
    let world = World::start().await;
    let net = world.network("acme").await;
    let client = world.client().await;
    let (a, b) = (net.agent(&client, "a").await, net.agent(&client, "b").await);
    let of_b = Resolve {
        name: None,
        address: Some(
            net.grant
                .claims()
                .root
                .as_ref()
                .unwrap()
                .prefix
                .address_of(&b.id())
                .unwrap(),
        ),
    };

    let before = client.resolve(&a.caller(), &name("b")).await;
    let consent = b.consent(&a, ConsentState::Active);
    client.consent(&b.caller(), &consent).await.unwrap();
    let by_name = client.resolve(&a.caller(), &name("b")).await.unwrap();
    let by_address = client.resolve(&a.caller(), &of_b).await.unwrap();
    let other_way = client.resolve(&b.caller(), &name("a")).await;
    let revoked = b.consent(&a, ConsentState::Revoked);
    client.consent(&b.caller(), &revoked).await.unwrap();
    let after = client.resolve(&a.caller(), &name("b")).await;

    assert_eq!(code(before), Code::NotFound);
    assert_eq!(by_name.issuer(), b.key.did());
    assert_eq!(by_name, by_address);
    assert_eq!(code(other_way), Code::NotFound);
    assert_eq!(code(after), Code::NotFound);
}

#[tokio::test]
async fn a_replayed_consent_changes_nothing_and_an_older_one_is_stale() {
    let world = World::start().await;
    let net = world.network("acme").await;
    let client = world.client().await;
    let (a, b) = (net.agent(&client, "a").await, net.agent(&client, "b").await);
    let active = b.consent(&a, ConsentState::Active);
    let revoked = b.consent(&a, ConsentState::Revoked);
    client.consent(&b.caller(), &active).await.unwrap();
    client.consent(&b.caller(), &revoked).await.unwrap();

    let again = client.consent(&b.caller(), &revoked).await;
    let older = client.consent(&b.caller(), &active).await;

    assert!(again.is_ok());
    assert_eq!(code(older), Code::StaleSeq);
    let found = client.resolve(&a.caller(), &name("b")).await;
    assert_eq!(code(found), Code::NotFound);
}

/// A trust request reaches a node that is online at once (pushed, not polled).
#[tokio::test]
async fn a_request_reaches_its_target_within_two_seconds() {
    let world = World::start().await;
    let net = world.network("acme").await;
    let client = world.client().await;
    let (a, b) = (net.agent(&client, "a").await, net.agent(&client, "b").await);
    let mut watch = b.watch(&client, None).await;
    watch.until(EventKind::Live).await;
    let request = a.request("b");

    let sent = now();
    client.request(&a.caller(), &request).await.unwrap();
    let event = watch.next().await;

    assert!(now().since(sent).as_millis() < 2000);
    assert_eq!(
        (event.kind, event.network),
        (EventKind::Request, Some(net.id))
    );
    assert_eq!(event.statement, request.text());
}

#[tokio::test]
async fn a_request_waits_for_its_target_and_the_newest_counts() {
    let world = World::start().await;
    let net = world.network("acme").await;
    let client = world.client().await;
    let (a, b) = (net.agent(&client, "a").await, net.agent(&client, "b").await);
    let (first, second) = (a.request("b"), a.request("b"));

    client.request(&a.caller(), &first).await.unwrap();
    client.request(&a.caller(), &second).await.unwrap();
    let events = b.watch(&client, None).await.until(EventKind::Live).await;

    let requests = events.iter().filter(|e| e.kind == EventKind::Request);
    let texts = requests.map(|e| e.statement.as_str()).collect::<Vec<_>>();
    assert_eq!(texts, [second.text()]);
}

/// Every table has a bound: the oldest requests of one agent make room for its newest.
#[tokio::test]
async fn requests_of_one_agent_are_bounded() {
    let world = World::start().await;
    let net = world.network("acme").await;
    let client = world.client().await;
    let a = net.agent(&client, "a").await;
    let first = net.agent(&client, "t0").await;
    let last = net.agent(&client, "t70").await;

    for n in 0..=70 {
        let request = a.request(&format!("t{n}"));
        client.request(&a.caller(), &request).await.unwrap();
    }

    let held = async |agent: &crate::support::Agent| {
        let events = agent
            .watch(&client, None)
            .await
            .until(EventKind::Live)
            .await;
        events.iter().any(|e| e.kind == EventKind::Request)
    };
    assert!(!held(&first).await);
    assert!(held(&last).await);
}

#[tokio::test]
async fn only_members_consent_and_only_for_themselves() {
    let world = World::start().await;
    let net = world.network("acme").await;
    let client = world.client().await;
    let (a, b) = (net.agent(&client, "a").await, net.agent(&client, "b").await);
    let stranger = net.token(net.terms("*", 1)).agent("x");

    let not_member = client
        .consent(
            &stranger.caller(),
            &stranger.consent(&a, ConsentState::Active),
        )
        .await;
    let of_another = client
        .consent(&a.caller(), &b.consent(&a, ConsentState::Active))
        .await;
    let forged = sign(
        &key(),
        net.id,
        a.key.did(),
        b.consent(&a, ConsentState::Active).claims().clone(),
    );
    let by_nobody = client.consent(&b.caller(), &forged).await;
    let to_self = client
        .consent(&a.caller(), &a.consent(&a, ConsentState::Active))
        .await;

    assert_eq!(code(not_member), Code::Forbidden);
    assert_eq!(code(of_another), Code::BadStatement);
    assert_eq!(code(by_nobody), Code::BadStatement);
    assert_eq!(code(to_self), Code::BadStatement);
}

/// Taking consent back does not depend on a lease.
#[tokio::test]
async fn one_who_left_can_still_take_consent_back() {
    let world = World::start().await;
    let net = world.network("acme").await;
    let client = world.client().await;
    let (a, b) = (net.agent(&client, "a").await, net.agent(&client, "b").await);
    client
        .consent(&b.caller(), &b.consent(&a, ConsentState::Active))
        .await
        .unwrap();
    client.leave(&b.caller(), &b.record(0)).await.unwrap();

    let revoked = b.consent(&a, ConsentState::Revoked);
    assert!(client.consent(&b.caller(), &revoked).await.is_ok());
    let active = b.consent(&a, ConsentState::Active);
    assert_eq!(
        code(client.consent(&b.caller(), &active).await),
        Code::Forbidden
    );
}

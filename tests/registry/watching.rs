use agentnet::registry::client::{Caller, WatchEvent};
use agentnet::statement::{Consent, ConsentState, Record, Scope, Statement};
use agentnet::wire::api::problem::Code;
use agentnet::wire::api::registry::EventKind;

use crate::support::{SOON, World, code, key, now, sign};

fn kinds(events: &[WatchEvent]) -> Vec<EventKind> {
    events.iter().map(|event| event.kind).collect()
}

#[tokio::test]
async fn a_fresh_watch_is_told_everything_current() {
    let world = World::start().await;
    let net = world.network("acme").await;
    let client = world.client().await;
    let (a, b) = (net.agent(&client, "a").await, net.agent(&client, "b").await);
    client
        .consent(&b.caller(), &b.consent(&a, ConsentState::Active))
        .await
        .unwrap();
    client
        .consent(&a.caller(), &a.consent(&b, ConsentState::Active))
        .await
        .unwrap();
    client.request(&b.caller(), &b.request("a")).await.unwrap();

    let events = a.watch(&client, None).await.until(EventKind::Live).await;

    let told = kinds(&events);
    assert_eq!(
        (told.first(), told.last()),
        (Some(&EventKind::Reset), Some(&EventKind::Live))
    );
    let count = |kind| told.iter().filter(|k| **k == kind).count();
    assert_eq!(count(EventKind::Record), 2, "its own and b's");
    assert_eq!(count(EventKind::Consent), 2, "its own and b's");
    assert_eq!(count(EventKind::Request), 1);
    assert_eq!(events.len(), 7);
}

/// P-022, P-023: a consent brings the record with it, to its subject alone.
#[tokio::test]
async fn a_consent_brings_the_record_to_its_subject_alone() {
    let world = World::start().await;
    let net = world.network("acme").await;
    let client = world.client().await;
    let (a, b, c) = (
        net.agent(&client, "a").await,
        net.agent(&client, "b").await,
        net.agent(&client, "c").await,
    );
    let mut of_a = a.watch(&client, None).await;
    let mut of_c = c.watch(&client, None).await;
    of_a.until(EventKind::Live).await;
    of_c.until(EventKind::Live).await;

    let consent = b.consent(&a, ConsentState::Active);
    client.consent(&b.caller(), &consent).await.unwrap();
    let first = [of_a.next().await, of_a.next().await];
    let moved = b.record_with(300, 8);
    client.put_record(&b.caller(), &moved).await.unwrap();
    let second = of_a.next().await;
    let revoked = b.consent(&a, ConsentState::Revoked);
    client.consent(&b.caller(), &revoked).await.unwrap();
    let third = of_a.next().await;
    client
        .put_record(&b.caller(), &b.record_with(300, 9))
        .await
        .unwrap();
    client.request(&b.caller(), &b.request("a")).await.unwrap();
    client.request(&b.caller(), &b.request("c")).await.unwrap();

    assert!(first.iter().any(|e| e.statement == consent.text()));
    let record = first.iter().find(|e| e.kind == EventKind::Record).unwrap();
    let record = Statement::<Record>::open(&record.statement).unwrap();
    assert_eq!(record.issuer(), b.key.did());
    assert_eq!(second.statement, moved.text());
    assert_eq!(third.statement, revoked.text());
    // After the revocation b's next record is not a's to see; and c saw none of it all.
    assert_eq!(of_a.next().await.kind, EventKind::Request);
    assert_eq!(of_c.next().await.kind, EventKind::Request);
}

/// An update costs what changed: a mere refresh is nobody's news.
#[tokio::test]
async fn a_mere_refresh_is_not_told() {
    let world = World::start().await;
    let net = world.network("acme").await;
    let client = world.client().await;
    let (a, b) = (net.agent(&client, "a").await, net.agent(&client, "b").await);
    let consent = b.consent(&a, ConsentState::Active);
    client.consent(&b.caller(), &consent).await.unwrap();
    let mut watch = a.watch(&client, None).await;
    watch.until(EventKind::Live).await;

    b.put(&client).await.unwrap();
    client.request(&b.caller(), &b.request("a")).await.unwrap();

    assert_eq!(watch.next().await.kind, EventKind::Request);
}

#[tokio::test]
async fn a_watch_resumes_after_the_last_event_it_saw() {
    let world = World::start().await;
    let net = world.network("acme").await;
    let client = world.client().await;
    let (a, b) = (net.agent(&client, "a").await, net.agent(&client, "b").await);
    let live = a.watch(&client, None).await.until(EventKind::Live).await;
    let last = live.last().unwrap().id.clone().unwrap();
    let request = b.request("a");
    client.request(&b.caller(), &request).await.unwrap();

    let missed = a
        .watch(&client, Some(&last))
        .await
        .until(EventKind::Live)
        .await;
    let unknown = a.watch(&client, Some("0.7.7")).await.next().await;

    assert_eq!(kinds(&missed), [EventKind::Request, EventKind::Live]);
    assert_eq!(missed[0].statement, request.text());
    assert_eq!(unknown.kind, EventKind::Reset);
}

/// More than a page comes whole, in order, and can be taken up anywhere.
#[tokio::test]
async fn a_long_snapshot_comes_whole_from_wherever_it_broke_off() {
    let world = World::start().await;
    let net = world.network("acme").await;
    let client = world.client().await;
    let a = net.agent(&client, "a").await;
    for _ in 0..50 {
        let claims = Consent {
            inbound: Scope::Any,
            children: false,
            state: ConsentState::Active,
            re: None,
        };
        let consent = sign(&a.key, net.id, key().did(), claims);
        client.consent(&a.caller(), &consent).await.unwrap();
    }

    let all = a.watch(&client, None).await.until(EventKind::Live).await;
    let middle = all[20].id.clone().unwrap();
    let rest = a
        .watch(&client, Some(&middle))
        .await
        .until(EventKind::Live)
        .await;

    let told = |events: &[WatchEvent]| {
        let consents = events.iter().filter(|e| e.kind == EventKind::Consent);
        consents.map(|e| e.statement.clone()).collect::<Vec<_>>()
    };
    assert_eq!(told(&all).len(), 50);
    assert_eq!(told(&rest), told(&all[21..]));
}

#[tokio::test]
async fn only_members_watch_and_no_longer_than_they_are() {
    let world = World::start().await;
    let net = world.network("acme").await;
    let client = world.client().await;
    let (a, stranger) = (net.agent(&client, "a").await, key());

    let caller = Caller::member(&stranger, net.id, now());
    assert_eq!(code(client.watch(&caller, None).await), Code::Forbidden);
    let domain = Caller::domain(&a.key, now());
    assert_eq!(code(client.watch(&domain, None).await), Code::Forbidden);

    let mut watch = a.watch(&client, None).await;
    watch.until(EventKind::Live).await;
    client.leave(&a.caller(), &a.record(0)).await.unwrap();
    let ended = tokio::time::timeout(SOON, watch.0.next()).await.unwrap();
    assert!(ended.is_err());
    assert_eq!(code(client.watch(&a.caller(), None).await), Code::Forbidden);
}

#[tokio::test]
async fn the_oldest_watch_of_a_key_makes_room_for_the_newest() {
    let world = World::start().await;
    let net = world.network("acme").await;
    let client = world.client().await;
    let a = net.agent(&client, "a").await;
    let mut watches = Vec::new();
    for _ in 0..5 {
        let mut watch = a.watch(&client, None).await;
        watch.until(EventKind::Live).await;
        watches.push(watch);
    }

    let oldest = tokio::time::timeout(SOON, watches[0].0.next())
        .await
        .unwrap();
    net.agent(&client, "b").await;
    let b = net.agent(&client, "c").await;
    client.request(&b.caller(), &b.request("a")).await.unwrap();

    assert!(oldest.is_err());
    for watch in &mut watches[1..] {
        assert_eq!(watch.next().await.kind, EventKind::Request);
    }
}

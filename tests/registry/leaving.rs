use agentnet::registry::client::WatchEvent;
use agentnet::statement::{ConsentState, Record, Statement};
use agentnet::wire::api::problem::Code;
use agentnet::wire::api::registry::EventKind;

use sqlx::{Connection as _, sqlite::SqliteConnectOptions, sqlite::SqliteConnection};

use crate::support::{Agent, Net, Token, World, code};
use crate::trust::name;

/// A token by which ephemeral agents join under any name.
fn for_jobs(net: &Net) -> Token {
    let mut terms = net.terms("*", 10);
    terms.ephemeral = true;
    net.token(terms)
}

/// Returns the farewells among events.
fn farewells(events: &[WatchEvent]) -> Vec<Statement<Record>> {
    let records = events.iter().filter(|e| e.kind == EventKind::Record);
    let records = records.map(|e| Statement::<Record>::open(&e.statement).unwrap());
    records.filter(|record| record.claims().ttl == 0).collect()
}

async fn agree(world: &World, (one, other): (&Agent, &Agent)) {
    let client = world.client().await;
    for (from, to) in [(one, other), (other, one)] {
        let consent = from.consent(to, ConsentState::Active);
        client.consent(&from.caller(), &consent).await.unwrap();
    }
}

/// K9, A-077: an ephemeral agent that leaves is gone at once, for the registry and for its peers.
#[tokio::test]
async fn an_ephemeral_agent_that_leaves_frees_its_name() {
    let world = World::start().await;
    let net = world.network("acme").await;
    let client = world.client().await;
    let (build, other) = (
        net.agent(&client, "build").await,
        net.agent(&client, "other").await,
    );
    let token = for_jobs(&net);
    let mut job = token.agent("job");
    job.join(&client).await.unwrap();
    job.put(&client).await.unwrap();
    let mut next = token.agent("job");
    assert_eq!(code(next.join(&client).await), Code::NameTaken);
    agree(&world, (&build, &job)).await;
    let mut watch = build.watch(&client, None).await;
    watch.until(EventKind::Live).await;
    let mut strangers = other.watch(&client, None).await;
    strangers.until(EventKind::Live).await;
    let late = job.record(300);

    let farewell = job.record(0);
    client.leave(&job.caller(), &farewell).await.unwrap();

    let told = watch.until(EventKind::Record).await;
    assert_eq!(farewells(&told), vec![farewell.clone()]);
    next.join(&client).await.unwrap();
    next.put(&client).await.unwrap();
    // Neither said again nor late does the first get the name back.
    client.leave(&job.caller(), &farewell).await.unwrap();
    let late = client.put_record(&job.caller(), &late).await;
    assert_eq!(code(late), Code::StaleSeq);
    assert_eq!(code(job.put(&client).await), Code::NameTaken);
    // Nothing of the first is the second's, and a stranger hears of neither.
    let asked = build.request("other");
    client.request(&build.caller(), &asked).await.unwrap();
    let heard = strangers.until(EventKind::Request).await;
    assert!(heard.iter().all(|event| event.kind != EventKind::Record));
    let found = client.resolve(&build.caller(), &name("job")).await;
    assert_eq!(code(found), Code::NotFound);
}

/// Who was away, or was only asked, is told as well, once.
#[tokio::test]
async fn who_was_away_is_told_later() {
    let world = World::start().await;
    let net = world.network("acme").await;
    let client = world.client().await;
    let build = net.agent(&client, "build").await;
    let mut before = build.watch(&client, None).await;
    let cursor = before.until(EventKind::Live).await;
    let cursor = cursor.last().unwrap().id.clone();
    drop(before);
    let mut job = for_jobs(&net).agent("job");
    job.join(&client).await.unwrap();
    job.put(&client).await.unwrap();
    let asked = job.request("build");
    client.request(&job.caller(), &asked).await.unwrap();

    let farewell = job.record(0);
    client.leave(&job.caller(), &farewell).await.unwrap();

    let mut watch = build.watch(&client, cursor.as_deref()).await;
    let told = watch.until(EventKind::Live).await;
    assert_eq!(farewells(&told), vec![farewell]);
    assert!(told.iter().all(|event| event.kind != EventKind::Request));
    let cursor = told.last().unwrap().id.clone();
    let mut again = build.watch(&client, cursor.as_deref()).await;
    assert!(farewells(&again.until(EventKind::Live).await).is_empty());
}

/// A lasting agent that leaves has its name and its peers when it comes back.
#[tokio::test]
async fn of_a_lasting_agent_nothing_is_forgotten() {
    let world = World::start().await;
    let net = world.network("acme").await;
    let client = world.client().await;
    let (a, b) = (net.agent(&client, "a").await, net.agent(&client, "b").await);
    agree(&world, (&a, &b)).await;
    client.leave(&b.caller(), &b.record(0)).await.unwrap();

    let mut watch = a.watch(&client, None).await;
    assert!(farewells(&watch.until(EventKind::Live).await).is_empty());
    b.put(&client).await.unwrap();

    let told = watch.until(EventKind::Record).await;
    let last = &told.last().unwrap().statement;
    assert_eq!(
        Statement::<Record>::open(last).unwrap().issuer(),
        b.key.did()
    );
}

/// A database that was made before farewells were kept is brought up to date, and keeps what it has.
#[tokio::test]
async fn an_older_database_learns_of_farewells() {
    let mut world = World::start().await;
    let net = world.network("acme").await;
    let client = world.client().await;
    let build = net.agent(&client, "build").await;
    let token = for_jobs(&net);
    let mut job = token.agent("job");
    job.join(&client).await.unwrap();
    job.put(&client).await.unwrap();
    agree(&world, (&build, &job)).await;
    world.stop().await;
    let options = SqliteConnectOptions::new().filename(world.made.files.database());
    let mut database = SqliteConnection::connect_with(&options).await.unwrap();
    let before = "DROP TABLE farewells; DROP TABLE farewells_to; PRAGMA user_version = 1";
    sqlx::raw_sql(before).execute(&mut database).await.unwrap();
    database.close().await.unwrap();

    world.run().await;

    let client = world.client().await;
    let farewell = job.record(0);
    client.leave(&job.caller(), &farewell).await.unwrap();
    let mut watch = build.watch(&client, None).await;
    assert_eq!(
        farewells(&watch.until(EventKind::Live).await),
        vec![farewell]
    );
    token.agent("job").join(&client).await.unwrap();
}

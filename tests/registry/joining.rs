use agentnet::registry::client::ClientError;
use agentnet::registry::client::RegistryClient;
use agentnet::statement::{Revocations, verify_record};
use agentnet::wire::api::problem::Code;

use crate::support::{Agent, DAY, HOUR, World, code, key, now};

/// P-042, X-012: one string is enough to get a name, an address and a membership others verify.
#[tokio::test]
async fn an_agent_joins_by_a_token() {
    let world = World::start().await;
    let net = world.network("acme").await;
    let client = world.client().await;
    let mut agent = net.token(net.terms("worker-*", 1)).agent("worker-1");

    let joined = agent.join(&client).await.unwrap();
    let lease = agent.put(&client).await.unwrap();

    let prefix = net.grant.claims().root.as_ref().unwrap().prefix;
    assert_eq!(joined.address, prefix.address_of(&agent.id()).unwrap());
    assert_eq!(lease.lease.as_secs(), 300);
    assert!(lease.admission.is_none(), "the admission is fresh");
    let member = verify_record(&agent.record(300), &net.id, &Revocations::default(), now());
    assert_eq!(member.unwrap().name, agent.name);
}

/// The token is used in the transaction that takes the name: never once more than allowed.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_fifty_joins_by_a_token_of_ten_uses_ten_succeed() {
    let world = World::start().await;
    let net = world.network("acme").await;
    let client = world.client().await;
    let token = net.token(net.terms("*", 10));
    let agents = (0..50).map(|n| token.agent(&format!("a{n}")));

    let mut joins = tokio::task::JoinSet::new();
    for mut agent in agents {
        let client = client.clone();
        joins.spawn(async move { agent.join(&client).await.map(|_| ()) });
    }
    let outcomes = joins.join_all().await;

    let (admitted, refused) = outcomes.into_iter().partition::<Vec<_>, _>(Result::is_ok);
    assert_eq!(admitted.len(), 10);
    assert!(refused.into_iter().all(|r| code(r) == Code::TokenUsedUp));
    let tokens = client.tokens(&net.owner()).await.unwrap();
    let left = tokens.iter().map(|t| (t.used, t.uses_left));
    assert_eq!(left.collect::<Vec<_>>(), [(10, 0)]);
}

/// innernet#207: a name is its first holder's, whoever else asks and however often.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_keys_that_race_for_a_name_one_gets_it() {
    let world = World::start().await;
    let net = world.network("acme").await;
    let client = world.client().await;
    let token = net.token(net.terms("*", 100));

    let mut joins = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let (client, mut agent) = (client.clone(), token.agent("planner"));
        joins.spawn(async move { agent.join(&client).await.map(|_| ()) });
    }
    let outcomes = joins.join_all().await;

    let (admitted, refused) = outcomes.into_iter().partition::<Vec<_>, _>(Result::is_ok);
    assert_eq!(admitted.len(), 1);
    assert!(refused.into_iter().all(|r| code(r) == Code::NameTaken));
    let tokens = client.tokens(&net.owner()).await.unwrap();
    assert_eq!(tokens[0].used, 1, "refused joins use nothing up");
}

#[tokio::test]
async fn one_who_joins_again_takes_no_second_use() {
    let world = World::start().await;
    let net = world.network("acme").await;
    let client = world.client().await;
    let mut agent = net.token(net.terms("*", 1)).agent("planner");

    let first = agent.clone().join(&client).await.unwrap();
    let again = agent.join(&client).await.unwrap();

    let since = |joined: &agentnet::registry::client::Membership| {
        joined.admission.as_ref().unwrap().claims().first
    };
    assert_eq!(since(&first), since(&again));
}

/// A name stays its key's after the lease, and after leaving.
#[tokio::test]
async fn a_name_outlives_its_record() {
    let world = World::start().await;
    let net = world.network("acme").await;
    let client = world.client().await;
    let planner = net.agent(&client, "planner").await;
    client
        .leave(&planner.caller(), &planner.record(0))
        .await
        .unwrap();

    let mut other = net.token(net.terms("*", 1)).agent("planner");
    let taken = code(other.join(&client).await.map(|_| ()));
    let back = planner.put(&client).await;

    assert_eq!(taken, Code::NameTaken);
    assert!(back.is_ok());
}

/// Only a later grant of exactly this name, by owner or admin, moves it.
#[tokio::test]
async fn an_owner_moves_a_name_by_granting_it() {
    let world = World::start().await;
    let net = world.network("acme").await;
    let client = world.client().await;
    let old = net.agent(&client, "planner").await;
    let new = key();
    let later = now() + std::time::Duration::from_secs(2);
    let end = net.grant.expires();
    let granted = agentnet::statement::issue::agent_grant(
        &net.root,
        &net.grant,
        new.did(),
        &old.name,
        later,
        end,
    );
    let mut moved = Agent {
        key: new,
        chain: agentnet::statement::Chain::new(vec![net.grant.clone(), granted.unwrap()], None),
        ..old.clone()
    };

    let joined = moved.join(&client).await.unwrap();
    let lost = code(old.put(&client).await.map(|_| ()));

    assert!(joined.admission.is_none(), "no token, no admission");
    assert_eq!(lost, Code::NameTaken);
    assert!(moved.put(&client).await.is_ok());
}

#[tokio::test]
async fn expired_forged_and_foreign_tokens_are_refused() {
    let world = World::start().await;
    let (net, other) = (world.network("acme").await, world.network("other").await);
    let client = world.client().await;
    let join = async |mut agent: Agent| code(agent.join(&client).await.map(|_| ()));

    let mut terms = net.terms("*", 1);
    terms.closes = now().before(HOUR);
    assert_eq!(join(net.token(terms).agent("a")).await, Code::TokenExpired);

    let mut forged = net.token(net.terms("*", 1));
    forged.secret = key();
    assert_eq!(join(forged.agent("a")).await, Code::BadChain);

    let mut elsewhere = net.token(net.terms("*", 1)).agent("a");
    elsewhere.network = other.id;
    assert_eq!(join(elsewhere).await, Code::BadChain);

    let mut terms = net.terms("*", 1);
    terms.enrol = key().did();
    assert_eq!(join(net.token(terms).agent("a")).await, Code::BadChain);

    let narrow = net.token(net.terms("worker-*", 1)).agent("planner");
    assert_eq!(join(narrow).await, Code::BadChain);
}

#[tokio::test]
async fn a_clock_a_day_off_is_told_the_time() {
    let world = World::start().await;
    let net = world.network("acme").await;
    let client = world.client().await;
    let agent = net.token(net.terms("*", 1)).agent("a");
    let off = agentnet::registry::client::Caller {
        now: now() + DAY,
        ..agent.caller()
    };

    let refused = client.join(&off, &agent.record(300)).await.unwrap_err();

    let ClientError::ClockSkew { server } = refused else {
        panic!("{refused:?}");
    };
    assert!(now().since(server) < HOUR);
}

/// P-054, X-180: a pinned registry is believed by its pin and by its domain's root, or not at all.
#[tokio::test]
async fn another_server_or_domain_is_not_believed() {
    let (world, other) = (World::start().await, World::start().await);

    let wrong_pin =
        RegistryClient::connect(&world.url(), other.made.pin, world.made.domain, now()).await;
    let wrong_domain =
        RegistryClient::connect(&world.url(), world.made.pin, other.made.domain, now()).await;
    let nobody = RegistryClient::connect(
        "https://127.0.0.1:1",
        world.made.pin,
        world.made.domain,
        now(),
    )
    .await;

    assert!(
        matches!(wrong_pin, Err(ClientError::BadPin(_))),
        "{wrong_pin:?}"
    );
    assert!(matches!(wrong_domain, Err(ClientError::WrongDomain)));
    assert!(
        matches!(nobody, Err(ClientError::Unreachable { .. })),
        "{nobody:?}"
    );
}

use agentnet::id::MemberName;
use agentnet::registry::client::Caller;
use agentnet::statement::{Chain, ConsentState, Record, Revocation, RevokedKey, Statement, issue};
use agentnet::wire::api::problem::Code;
use agentnet::wire::api::registry::{EventKind, Resolve};

use crate::support::{World, code, key, now, sign};

#[tokio::test]
async fn a_network_is_created_once_for_a_root_key_and_a_label() {
    let world = World::start().await;
    let client = world.client().await;
    let (one, two) = (key().did().into(), key().did().into());
    let create = async |root, label: &str| {
        let label = label.parse().unwrap();
        client.create_network(&world.operator(), root, label).await
    };

    let first = create(one, "acme").await.unwrap();
    let again = create(one, "acme").await.unwrap();
    let other = create(two, "other").await.unwrap();

    assert_eq!((first, first.number()), (again, 1));
    assert_eq!(other.number(), 2);
    assert_eq!(first.domain(), world.made.prefix);
    assert_eq!(
        code(create(key().did().into(), "acme").await),
        Code::LabelTaken
    );
    let listed = client.networks(&world.operator()).await.unwrap();
    let listed = listed.iter().map(|n| (n.label.as_str(), n.active));
    assert_eq!(
        listed.collect::<Vec<_>>(),
        [("acme", false), ("other", false)]
    );
}

/// P-072: creating networks and enrolling gateways is the operator's alone.
#[tokio::test]
async fn only_an_operator_creates_networks() {
    let world = World::start().await;
    let client = world.client().await;
    let stranger = key();

    let caller = Caller::domain(&stranger, now());
    let label = "acme".parse().unwrap();
    let created = client
        .create_network(&caller, key().did().into(), label)
        .await;

    assert_eq!(code(created), Code::Forbidden);
    assert_eq!(code(client.networks(&caller).await), Code::Forbidden);
}

#[tokio::test]
async fn a_root_grant_has_the_prefix_and_label_the_registry_gave() {
    let world = World::start().await;
    let client = world.client().await;
    let root = key();
    let id = root.did().into();
    let label = "acme".parse::<agentnet::id::Label>().unwrap();
    let operator = world.operator();
    let created = client.create_network(&operator, id, label.clone());
    let prefix = created.await.unwrap();
    let owner = Caller::member(&root, id, now());
    let wrong_prefix = world.made.prefix.network(prefix.number() + 1);
    let activate = async |prefix, label| {
        let grant = issue::root_grant(&root, label, prefix, now()).unwrap();
        client.activate(&owner, &grant).await
    };

    assert_eq!(
        code(activate(wrong_prefix, label.clone()).await),
        Code::BadChain
    );
    let other = "other".parse().unwrap();
    assert_eq!(code(activate(prefix, other).await), Code::BadChain);
    assert!(activate(prefix, label).await.is_ok());
}

/// P-079: a member does nothing that is the owner's.
#[tokio::test]
async fn a_member_does_nothing_that_is_the_owners() {
    let world = World::start().await;
    let net = world.network("acme").await;
    let client = world.client().await;
    let (a, b) = (net.agent(&client, "a").await, net.agent(&client, "b").await);
    let token = net.token(net.terms("*", 1));
    let root = issue::root_grant(
        &a.key,
        "acme".parse().unwrap(),
        net.grant.claims().root.as_ref().unwrap().prefix,
        now(),
    );

    let list = client.tokens(&a.caller()).await;
    let register = client.register_token(&a.caller(), &token.chain()).await;
    let activate = client.activate(&a.caller(), &root.unwrap()).await;
    assert_eq!(code(list), Code::Forbidden);
    assert_eq!(code(register), Code::Forbidden);
    assert_eq!(code(activate), Code::Forbidden);

    // A revocation proves its own authority, and a member's reaches itself and below only.
    let claims = |chain: &Chain| Revocation {
        keys: vec![RevokedKey {
            key: b.key.did(),
            at: now(),
        }],
        grants: vec![],
        chain: chain.links(),
    };
    let own = sign(&a.key, net.id, net.id.did(), claims(&a.chain));
    client.revoke(&a.caller(), &own).await.unwrap();
    let borrowed = Chain::new(vec![net.grant.clone()], None);
    let stolen = sign(&a.key, net.id, net.id.did(), claims(&borrowed));
    assert_eq!(
        code(client.revoke(&a.caller(), &stolen).await),
        Code::BadChain
    );
    assert!(b.put(&client).await.is_ok(), "b is a member still");
}

#[tokio::test]
async fn an_owner_sees_its_tokens_before_and_after_use() {
    let world = World::start().await;
    let net = world.network("acme").await;
    let client = world.client().await;
    let token = net.token(net.terms("*", 3));

    client
        .register_token(&net.owner(), &token.chain())
        .await
        .unwrap();
    let before = client.tokens(&net.owner()).await.unwrap();
    token.agent("a").join(&client).await.unwrap();
    let after = client.tokens(&net.owner()).await.unwrap();
    let revocation = net.revocation(token.secret.did(), now());
    client.revoke(&net.owner(), &revocation).await.unwrap();
    let revoked = client.tokens(&net.owner()).await.unwrap();

    let told = |list: &[agentnet::wire::api::registry::TokenEntry]| {
        list.iter()
            .map(|t| (t.token, t.uses_left, t.used, t.revoked))
            .collect::<Vec<_>>()
    };
    let did = token.secret.did();
    assert_eq!(told(&before), [(did, 3, 0, false)]);
    assert_eq!(told(&after), [(did, 2, 1, false)]);
    assert_eq!(told(&revoked), [(did, 2, 1, true)]);
    // Its member stays; nobody new comes in.
    let late = token.agent("b").join(&client).await.map(|_| ());
    assert_eq!(code(late), Code::Revoked);
}

/// P-014, P-015: a revoked agent is out at once, and those who watch are told at once.
#[tokio::test]
async fn a_revoked_agent_is_out_at_once() {
    let world = World::start().await;
    let net = world.network("acme").await;
    let client = world.client().await;
    let (a, b) = (net.agent(&client, "a").await, net.agent(&client, "b").await);
    let consent = b.consent(&a, ConsentState::Active);
    client.consent(&b.caller(), &consent).await.unwrap();
    let mut watch = a.watch(&client, None).await;
    watch.until(EventKind::Live).await;
    let mut own = b.watch(&client, None).await;
    own.until(EventKind::Live).await;
    let revocation = net.revocation(b.key.did(), now());

    client.revoke(&net.owner(), &revocation).await.unwrap();
    let told = own.next().await;
    assert_eq!(told.statement, revocation.text(), "b learns it, last");
    assert!(own.0.next().await.is_err(), "and is told no more");
    let event = watch.next().await;
    let again = client.revoke(&net.owner(), &revocation).await;

    assert_eq!(event.kind, EventKind::Revocation);
    assert_eq!(event.statement, revocation.text());
    assert!(again.is_ok(), "a replay changes nothing");
    assert_eq!(code(b.put(&client).await), Code::Revoked);
    let whom = Resolve {
        name: Some("b".parse().unwrap()),
        address: None,
    };
    assert_eq!(
        code(client.resolve(&a.caller(), &whom).await),
        Code::NotFound
    );
    assert_eq!(
        code(client.resolve(&b.caller(), &whom).await),
        Code::Forbidden
    );
    let request = client.request(&b.caller(), &b.request("a")).await;
    assert_eq!(code(request), Code::Forbidden);
}

/// Only who may revoke is told who holds a name; the answer proves itself while the agent is there.
#[tokio::test]
async fn who_manages_finds_the_holder_of_a_name_and_nobody_else_does() {
    let world = World::start().await;
    let net = world.network("acme").await;
    let client = world.client().await;
    let (a, b) = (net.agent(&client, "a").await, net.agent(&client, "b").await);
    let name = |text: &str| text.parse::<MemberName>().unwrap();

    let found = client.holder(&net.owner(), &name("b")).await.unwrap();
    assert_eq!((found.agent, &found.names), (b.id(), &vec![name("b")]));
    let record = Statement::<Record>::open(&found.record.unwrap()).unwrap();
    assert_eq!(record.issuer(), b.key.did());
    let by_key = client.names(&net.owner(), &b.id()).await.unwrap();
    assert_eq!(by_key.names, found.names);
    client.leave(&b.caller(), &b.record(0)).await.unwrap();
    let gone = client.holder(&net.owner(), &name("b")).await.unwrap();
    assert_eq!((gone.agent, gone.record), (b.id(), None));

    let absent = client.holder(&net.owner(), &name("zz")).await;
    assert_eq!(code(absent), Code::NotFound);
    let nobody = client.names(&net.owner(), &key().did().into()).await;
    assert_eq!(code(nobody), Code::NotFound);
    let (hidden, absent) = (
        client.holder(&a.caller(), &name("b")).await,
        client.holder(&a.caller(), &name("zz")).await,
    );
    assert_eq!(
        (code(hidden), code(absent)),
        (Code::Forbidden, Code::Forbidden)
    );
}

/// A revoked key keeps nobody from its name, and never gets it back.
#[tokio::test]
async fn the_name_of_a_revoked_agent_is_free_for_another_key() {
    let world = World::start().await;
    let net = world.network("acme").await;
    let client = world.client().await;
    let token = net.token(net.terms("*", 10));
    let mut first = token.agent("planner");
    first.join(&client).await.unwrap();
    first.put(&client).await.unwrap();
    let mut second = token.agent("planner");
    let early = second.clone().join(&client).await.map(|_| ());
    assert_eq!(code(early), Code::NameTaken);

    let revocation = net.revocation(first.key.did(), now());
    client.revoke(&net.owner(), &revocation).await.unwrap();

    second.join(&client).await.unwrap();
    second.put(&client).await.unwrap();
    assert_eq!(code(first.put(&client).await), Code::Revoked);
    let again = token
        .agent_of(first.key.clone(), "planner")
        .join(&client)
        .await;
    assert_eq!(code(again.map(|_| ())), Code::Revoked);
    let third = token.agent("planner").join(&client).await.map(|_| ());
    assert_eq!(code(third), Code::NameTaken, "it has a holder again");
}

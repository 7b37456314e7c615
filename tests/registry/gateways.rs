use agentnet::id::{IdentityKey, TunnelSecret};
use agentnet::registry::client::Caller;
use agentnet::wire::api::problem::Code;
use agentnet::wire::api::registry::{EventKind, GatewayBody};

use crate::support::{Watching, World, code, key, now};

fn body(gateway: &IdentityKey, port: u16) -> GatewayBody {
    GatewayBody {
        gateway: gateway.did(),
        tunnel: TunnelSecret::from_seed([5; 32]).public(),
        udp: vec![format!("198.51.100.7:{port}")],
        wss: vec![],
        region: Some("eu".to_owned()),
        features: vec![],
    }
}

#[tokio::test]
async fn a_gateway_is_enrolled_and_listed_and_told_to_members() {
    let world = World::start().await;
    let net = world.network("acme").await;
    let client = world.client().await;
    let a = net.agent(&client, "a").await;
    let mut watch = a.watch(&client, None).await;
    watch.until(EventKind::Live).await;
    let gateway = key();

    let enrolled = client
        .enrol_gateway(&world.operator(), &body(&gateway, 1))
        .await
        .unwrap();
    let told = watch.next().await;
    let caller = Caller::domain(&gateway, now());
    client
        .refresh_gateway(&caller, &body(&gateway, 2))
        .await
        .unwrap();
    let moved = watch.next().await;

    assert_eq!(enrolled.subject(), gateway.did());
    assert_eq!(
        (told.kind, told.statement.as_str()),
        (EventKind::Gateway, enrolled.text())
    );
    let moved = client.open_gateway(&moved.statement).unwrap();
    assert_eq!(moved.claims().udp, ["198.51.100.7:2"]);
    let listed = world.client().await.gateways();
    assert_eq!(
        listed.iter().map(|g| g.subject()).collect::<Vec<_>>(),
        [gateway.did()]
    );
}

/// A gateway serves networks by their root grants, and hears of revocations at once.
#[tokio::test]
async fn a_gateway_watches_networks_and_revocations() {
    let world = World::start().await;
    let net = world.network("acme").await;
    let client = world.client().await;
    let gateway = key();
    client
        .enrol_gateway(&world.operator(), &body(&gateway, 1))
        .await
        .unwrap();
    let caller = Caller::domain(&gateway, now());
    let mut watch = Watching(client.watch(&caller, None).await.unwrap());

    let start = watch.until(EventKind::Live).await;
    let late = world.network("late").await;
    let created = watch.next().await;
    let agent = net.agent(&client, "a").await;
    let revocation = net.revocation(agent.key.did(), now());
    client.revoke(&net.owner(), &revocation).await.unwrap();
    let revoked = watch.next().await;

    let network = start.iter().find(|e| e.kind == EventKind::Network).unwrap();
    assert_eq!(
        (network.network, network.statement.as_str()),
        (Some(net.id), net.grant.text())
    );
    assert_eq!(
        (created.kind, created.network),
        (EventKind::Network, Some(late.id))
    );
    assert_eq!(
        (revoked.kind, revoked.network),
        (EventKind::Revocation, Some(net.id))
    );
    assert_eq!(revoked.statement, revocation.text());
    let last = revoked.id.clone();
    let again = client.watch(&caller, last.as_deref()).await.unwrap();
    assert_eq!(Watching(again).next().await.kind, EventKind::Live);
}

#[tokio::test]
async fn only_the_operator_enrols_and_only_the_gateway_refreshes() {
    let world = World::start().await;
    let net = world.network("acme").await;
    let client = world.client().await;
    let (gateway, other) = (key(), key());
    let enrol = async |caller: &Caller<'_>, body| client.enrol_gateway(caller, &body).await;

    let own = Caller::domain(&gateway, now());
    assert_eq!(code(enrol(&own, body(&gateway, 1)).await), Code::Forbidden);
    assert_eq!(
        code(enrol(&net.owner(), body(&gateway, 1)).await),
        Code::Forbidden
    );
    enrol(&world.operator(), body(&gateway, 1)).await.unwrap();
    enrol(&world.operator(), body(&other, 1)).await.unwrap();
    let of_other = client.refresh_gateway(&own, &body(&other, 1)).await;
    assert_eq!(code(of_other), Code::Forbidden);
    let stranger = key();
    let unknown = Caller::domain(&stranger, now());
    let refresh = client.refresh_gateway(&unknown, &body(&stranger, 1)).await;
    assert_eq!(code(refresh), Code::Forbidden);
}

#[tokio::test]
async fn a_gateway_that_lists_nonsense_is_refused() {
    let world = World::start().await;
    let client = world.client().await;
    let good = body(&key(), 1);
    let with = |udp: &[&str]| GatewayBody {
        udp: udp.iter().map(|u| (*u).to_owned()).collect(),
        wss: vec![],
        ..good.clone()
    };
    let by_wss = |wss: &[&str]| GatewayBody {
        wss: wss.iter().map(|w| (*w).to_owned()).collect(),
        ..good.clone()
    };
    let long = format!("{}:1", "a".repeat(300));

    for bad in [
        with(&[]),
        with(&["198.51.100.7"]),
        with(&["198.51.100.7:0"]),
        with(&[":1"]),
        with(&["a:1"; 9]),
        with(&[long.as_str()]),
        by_wss(&["http://h:443/"]),
        by_wss(&["wss://h:0/"]),
        by_wss(&["wss://h/a b"]),
        by_wss(&["wss://h/"; 9]),
        GatewayBody {
            features: vec!["x".to_owned(); 17],
            ..good.clone()
        },
        GatewayBody {
            region: Some("x".repeat(65)),
            ..good.clone()
        },
    ] {
        let refused = client.enrol_gateway(&world.operator(), &bad).await;
        assert_eq!(code(refused), Code::BadRequest, "{bad:?}");
    }
}

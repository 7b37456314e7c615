use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use agentnet::id::{IdentityKey, NetworkId};
use agentnet::os::tls::pinned_client;
use agentnet::registry::auth::{self, Signed};
use agentnet::wire::api::problem::{Code, Problem};
use agentnet::wire::api::registry::{MAX_BODY, RecordBody};
use futures_util::stream::{pending, repeat_with};
use reqwest::{Method, RequestBuilder, Response};

use crate::support::{Agent, HOUR, SOON, World, now};

fn http(world: &World) -> reqwest::Client {
    reqwest::Client::builder()
        .tls_backend_preconfigured(pinned_client(world.made.pin).unwrap())
        .no_proxy()
        .build()
        .unwrap()
}

/// A request that is signed for one thing and may be sent as another.
struct Forged<'a> {
    world: &'a World,
    key: &'a IdentityKey,
    network: Option<NetworkId>,
}

impl Forged<'_> {
    fn proof(&self, method: &str, target: &str, body: &[u8]) -> String {
        let request = Signed {
            registry: self.world.made.registry,
            method,
            target,
            body,
        };
        let proof = auth::sign(self.key, self.network, &request, now()).unwrap();
        proof.text().to_owned()
    }

    fn send(&self, method: Method, path: &str, proof: &str, body: Vec<u8>) -> RequestBuilder {
        let url = format!("{}{path}", self.world.url());
        let request = http(self.world).request(method, url);
        request.bearer_auth(proof).body(body)
    }

    async fn honest(&self, method: Method, path: &str, body: &[u8]) -> Response {
        let proof = self.proof(method.as_str(), path, body);
        let request = self.send(method, path, &proof, body.to_vec());
        request.send().await.unwrap()
    }
}

fn as_agent<'a>(world: &'a World, agent: &'a Agent) -> Forged<'a> {
    Forged {
        world,
        key: &agent.key,
        network: Some(agent.network),
    }
}

async fn problem(response: Response) -> Problem {
    let status = response.status().as_u16();
    let kind = response.headers()["content-type"]
        .to_str()
        .unwrap()
        .to_owned();
    assert_eq!(kind, "application/problem+json");
    let problem = response.json::<Problem>().await.unwrap();
    assert_eq!(problem.status, status);
    assert!(!problem.hint.is_empty());
    problem
}

#[tokio::test]
async fn a_proof_for_anything_else_is_refused() {
    let world = World::start().await;
    let net = world.network("acme").await;
    let agent = net.agent(&world.client().await, "a").await;
    let forged = as_agent(&world, &agent);
    let path = format!("/v1/networks/{}/record", net.id);
    let body = serde_json::to_vec(&RecordBody {
        record: agent.record(300).text().to_owned(),
    })
    .unwrap();
    let other_registry = Signed {
        registry: agent.key.did(),
        method: "PUT",
        target: &path,
        body: &body,
    };
    let aud = auth::sign(&agent.key, Some(net.id), &other_registry, now()).unwrap();
    let here = Signed {
        registry: world.made.registry,
        ..other_registry
    };
    let old = auth::sign(&agent.key, Some(net.id), &here, now().before(HOUR)).unwrap();

    for (proof, expected) in [
        (forged.proof("POST", &path, &body), Code::Unauthorized),
        (
            forged.proof("PUT", "/v1/networks", &body),
            Code::Unauthorized,
        ),
        (forged.proof("PUT", &path, b"{}"), Code::Unauthorized),
        (aud.text().to_owned(), Code::Unauthorized),
        (old.text().to_owned(), Code::ClockSkew),
        ("garbage".to_owned(), Code::Unauthorized),
        (agent.record(300).text().to_owned(), Code::Unauthorized),
    ] {
        let sent = forged.send(Method::PUT, &path, &proof, body.clone());
        let refused = problem(sent.send().await.unwrap()).await;
        assert_eq!(refused.code, expected, "{refused:?}");
    }
    let bare = http(&world).put(format!("{}{path}", world.url()));
    let refused = problem(bare.body(body).send().await.unwrap()).await;
    assert_eq!(refused.code, Code::Unauthorized);
}

#[tokio::test]
async fn a_replayed_request_changes_nothing() {
    let world = World::start().await;
    let net = world.network("acme").await;
    let client = world.client().await;
    let agent = net.agent(&client, "a").await;
    let forged = as_agent(&world, &agent);
    let path = format!("/v1/networks/{}/record", net.id);
    let body = serde_json::to_vec(&RecordBody {
        record: agent.record(300).text().to_owned(),
    })
    .unwrap();
    let proof = forged.proof("PUT", &path, &body);
    let send = async || {
        let sent = forged.send(Method::PUT, &path, &proof, body.clone());
        sent.send().await.unwrap()
    };

    assert_eq!(send().await.status(), 200);
    assert_eq!(send().await.status(), 200);
    client
        .leave(&agent.caller(), &agent.record(0))
        .await
        .unwrap();
    let back = problem(send().await).await;

    assert_eq!(back.code, Code::StaleSeq, "who left is not brought back");
}

/// P-059, P-060: hidden and absent are the same bytes.
#[tokio::test]
async fn hidden_and_absent_look_the_same() {
    let world = World::start().await;
    let net = world.network("acme").await;
    let client = world.client().await;
    let (a, b) = (
        net.agent(&client, "a").await,
        net.agent(&client, "bb").await,
    );
    let forged = as_agent(&world, &a);
    let prefix = net.grant.claims().root.as_ref().unwrap().prefix;
    let hidden = prefix.address_of(&b.id()).unwrap();
    let absent = prefix.address(0x1234_5678_9abc_def0);
    let bytes = async |query: String| {
        let path = format!("/v1/networks/{}/resolve?{query}", net.id);
        let response = forged.honest(Method::GET, &path, b"").await;
        let headers = response.headers().clone();
        let names = headers.iter().filter(|(name, _)| *name != "date");
        let names = names
            .map(|(n, v)| format!("{n}: {v:?}"))
            .collect::<Vec<_>>();
        (response.status(), names, response.bytes().await.unwrap())
    };

    let by_name = (
        bytes("name=bb".to_owned()).await,
        bytes("name=zz".to_owned()).await,
    );
    let by_address = (
        bytes(format!("address={hidden}")).await,
        bytes(format!("address={absent}")).await,
    );

    assert_eq!(by_name.0, by_name.1);
    assert_eq!(by_address.0, by_address.1);
    assert_eq!(by_name.0, by_address.0);
    assert_eq!(by_name.0.0, 404);
    let ask = async |name: &str| {
        let path = format!("/v1/networks/{}/requests", net.id);
        let body = serde_json::json!({ "request": a.request(name).text() });
        let body = serde_json::to_vec(&body).unwrap();
        let response = forged.honest(Method::POST, &path, &body).await;
        (response.status(), response.bytes().await.unwrap())
    };
    assert_eq!(ask("bb").await, ask("zz").await);
}

#[tokio::test]
async fn a_member_of_one_network_is_nobody_in_another() {
    let world = World::start().await;
    let (net, other) = (world.network("acme").await, world.network("other").await);
    let client = world.client().await;
    let a = net.agent(&client, "a").await;
    other.agent(&client, "b").await;
    let path = format!("/v1/networks/{}/resolve?name=b", other.id);
    let nowhere = format!("/v1/networks/{}/resolve?name=b", a.key.did());
    let at = |network| Forged {
        network: Some(network),
        ..as_agent(&world, &a)
    };

    let signed_for_own = at(net.id).honest(Method::GET, &path, b"").await;
    let signed_for_it = at(other.id).honest(Method::GET, &path, b"").await;
    let no_network = at(a.key.did().into())
        .honest(Method::GET, &nowhere, b"")
        .await;

    assert_eq!(problem(signed_for_own).await.code, Code::Forbidden);
    let (member, absent) = (problem(signed_for_it).await, problem(no_network).await);
    // Only the key that would own such a network may tell that there is none.
    assert_eq!(
        (member.code, absent.code),
        (Code::Forbidden, Code::Forbidden)
    );
    assert_eq!(member, absent);
}

#[tokio::test]
async fn oversize_bodies_are_refused() {
    let world = World::start().await;
    let net = world.network("acme").await;
    let agent = net.agent(&world.client().await, "a").await;
    let forged = as_agent(&world, &agent);
    let path = format!("/v1/networks/{}/record", net.id);
    let large = vec![b'a'; MAX_BODY + 1];
    let proof = forged.proof("PUT", &path, &large);

    let told = forged.send(Method::PUT, &path, &proof, large).send().await;
    assert_eq!(problem(told.unwrap()).await.code, Code::TooLarge);

    let endless = repeat_with(|| Ok::<_, std::io::Error>(vec![b'a'; 8192]));
    let request = forged.send(Method::PUT, &path, &proof, Vec::new());
    let streamed = request.body(reqwest::Body::wrap_stream(endless)).send();
    // The answer may be lost to the closed connection, but the connection is closed.
    if let Ok(answer) = tokio::time::timeout(SOON, streamed).await.unwrap() {
        assert_eq!(problem(answer).await.code, Code::TooLarge);
    }
}

#[tokio::test]
async fn every_error_has_a_code_and_a_hint() {
    let world = World::start().await;
    let net = world.network("acme").await;
    let agent = net.agent(&world.client().await, "a").await;
    let forged = as_agent(&world, &agent);
    let of = |rest: &str| format!("/v1/networks/{}{rest}", net.id);

    for (method, path, body, expected) in [
        (Method::GET, "/nothing".to_owned(), "", Code::NotFound),
        (
            Method::GET,
            "/v1/networks/x/resolve?name=a".to_owned(),
            "",
            Code::NotFound,
        ),
        (
            Method::DELETE,
            "/v1/domain".to_owned(),
            "",
            Code::MethodNotAllowed,
        ),
        (Method::PUT, of("/record"), "{", Code::BadRequest),
        (Method::PUT, of("/record"), "{}", Code::BadRequest),
        (
            Method::PUT,
            of("/record"),
            r#"{"record":"x"}"#,
            Code::BadStatement,
        ),
        (Method::GET, of("/resolve"), "", Code::BadRequest),
        (Method::GET, of("/resolve?name=UPPER"), "", Code::BadRequest),
        (
            Method::GET,
            of("/resolve?name=a&address=fd00::1"),
            "",
            Code::BadRequest,
        ),
        (Method::GET, "/v1/watch".to_owned(), "", Code::BadRequest),
        (
            Method::POST,
            "/v1/networks".to_owned(),
            "{}",
            Code::Forbidden,
        ),
    ] {
        let refused = problem(forged.honest(method, &path, body.as_bytes()).await).await;
        assert_eq!(refused.code, expected, "{path}: {refused:?}");
    }
}

#[tokio::test]
async fn sources_and_keys_have_their_share() {
    let world = World::with(|settings| {
        settings.limits.source_burst = 40;
        settings.limits.source_per_second = 1;
    })
    .await;
    let url = format!("{}/v1/domain", world.url());
    let client = http(&world);
    let limited = async {
        loop {
            let response = client.get(&url).send().await.unwrap();
            if response.status() != 200 {
                break response;
            }
        }
    };
    let refused = tokio::time::timeout(SOON, limited).await.unwrap();
    let wait = refused.headers()["retry-after"]
        .to_str()
        .unwrap()
        .to_owned();
    assert!(wait.parse::<u64>().unwrap() >= 1);
    assert_eq!(problem(refused).await.code, Code::TooManyRequests);

    let world = World::with(|settings| {
        settings.limits.key_burst = 10;
        settings.limits.key_per_second = 1;
    })
    .await;
    let net = world.network("acme").await;
    let client = world.client().await;
    let (loud, calm) = (net.agent(&client, "a").await, net.agent(&client, "b").await);
    let put = async |agent: &Agent| agent.put(&client).await;
    let limited = async {
        loop {
            if let Err(error) = put(&loud).await {
                break error;
            }
        }
    };
    let refused = tokio::time::timeout(SOON, limited).await.unwrap();
    assert_eq!(refused.problem().unwrap().code, Code::TooManyRequests);
    assert!(put(&calm).await.is_ok(), "another key has its own share");
}

/// Connections that ask for nothing are closed, and keep nobody out.
#[tokio::test(flavor = "multi_thread")]
async fn those_who_dawdle_are_cut_off() {
    let world = World::start().await;
    let net = world.network("acme").await;
    let agent = net.agent(&world.client().await, "a").await;
    let forged = as_agent(&world, &agent);
    let path = format!("/v1/networks/{}/record", net.id);
    let proof = forged.proof("PUT", &path, b"");
    let slow = forged.send(Method::PUT, &path, &proof, Vec::new());
    let slow = slow.body(reqwest::Body::wrap_stream(pending::<
        std::io::Result<Vec<u8>>,
    >()));
    let at = world.at;
    let until_closed = |mut stream: Box<dyn Read + Send>| {
        tokio::task::spawn_blocking(move || {
            let mut byte = [0; 512];
            while stream.read(&mut byte).is_ok_and(|n| n > 0) {}
        })
    };
    let silent = TcpStream::connect(at).unwrap();
    let mut half = tls_stream(&world);
    half.write_all(b"GET /v1/domain HTTP/1.1\r\nhost: x\r\n")
        .unwrap();
    let garbage = {
        let mut stream = TcpStream::connect(at).unwrap();
        stream.write_all(&[0x55; 600]).unwrap();
        stream
    };

    let cut = async {
        tokio::join!(
            until_closed(Box::new(silent)),
            until_closed(Box::new(half)),
            until_closed(Box::new(garbage)),
            slow.send(),
        )
    };
    let (.., answer) = tokio::time::timeout(Duration::from_secs(18), cut)
        .await
        .unwrap();

    if let Ok(answer) = answer {
        assert_eq!(problem(answer).await.code, Code::Timeout);
    }
    assert!(agent.put(&world.client().await).await.is_ok());
}

/// NATs and clients take a stream that says nothing for a dead one.
#[tokio::test]
async fn a_quiet_watch_has_a_heartbeat() {
    let world = World::start().await;
    let net = world.network("acme").await;
    let agent = net.agent(&world.client().await, "a").await;
    let path = format!("/v1/watch?network={}", net.id);
    let mut response = as_agent(&world, &agent)
        .honest(Method::GET, &path, b"")
        .await;

    let beaten = async {
        let mut told = String::new();
        while !told.lines().any(|line| line.starts_with(':')) {
            let piece = response.chunk().await.unwrap().unwrap();
            told.push_str(std::str::from_utf8(&piece).unwrap());
        }
        told
    };
    let told = tokio::time::timeout(Duration::from_secs(18), beaten).await;

    assert!(told.unwrap().contains("event: live"));
}

#[tokio::test(flavor = "multi_thread")]
async fn older_tls_is_refused() {
    let world = World::start().await;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = "registry.test".try_into().unwrap();
    let mut tls = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = TcpStream::connect(world.at).unwrap();

    let refused = tls.complete_io(&mut stream).unwrap_err();

    let alert = refused
        .get_ref()
        .and_then(|e| e.downcast_ref::<rustls::Error>());
    let expected = rustls::Error::AlertReceived(rustls::AlertDescription::ProtocolVersion);
    assert_eq!(alert, Some(&expected));
}

fn tls_stream(world: &World) -> rustls::StreamOwned<rustls::ClientConnection, TcpStream> {
    let config = Arc::new(pinned_client(world.made.pin).unwrap());
    let name = "registry.test".try_into().unwrap();
    let tls = rustls::ClientConnection::new(config, name).unwrap();
    rustls::StreamOwned::new(tls, TcpStream::connect(world.at).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_has_its_share_of_connections() {
    let world = World::with(|settings| settings.limits.source_connections = 2).await;
    let held = [(); 2].map(|()| TcpStream::connect(world.at).unwrap());

    let refused = async {
        let url = format!("{}/healthz", world.url());
        // The two are let in by a task of the server, which may come after this.
        while http(&world).get(&url).send().await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, refused).await.unwrap();
    drop(held);
    let free = async {
        let url = format!("{}/healthz", world.url());
        while http(&world).get(&url).send().await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, free).await.unwrap();
}

#[tokio::test]
async fn the_public_calls_need_no_proof_and_tell_no_secret() {
    let world = World::start().await;
    let net = world.network("acme").await;
    net.agent(&world.client().await, "secret-agent").await;
    let get = async |path: &str| {
        let response = http(&world)
            .get(format!("{}{path}", world.url()))
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), 200, "{path}");
        response.text().await.unwrap()
    };

    assert_eq!(get("/healthz").await, "ok\n");
    assert_eq!(get("/readyz").await, "ready\n");
    let domain = get("/v1/domain").await;
    assert!(!domain.contains("acme") && !domain.contains("secret-agent"));
    let document = serde_json::from_str::<serde_json::Value>(&get("/v1/openapi.json").await);
    let document = document.unwrap();
    for path in [
        "/v1/domain",
        "/v1/gateways",
        "/v1/gateways/{gateway}/record",
        "/v1/networks",
        "/v1/networks/{network}",
        "/v1/networks/{network}/consents",
        "/v1/networks/{network}/grants",
        "/v1/networks/{network}/join",
        "/v1/networks/{network}/names",
        "/v1/networks/{network}/record",
        "/v1/networks/{network}/requests",
        "/v1/networks/{network}/resolve",
        "/v1/networks/{network}/revocations",
        "/v1/networks/{network}/tokens",
        "/v1/watch",
    ] {
        assert!(document["paths"][path].is_object(), "{path}");
    }
    let schemas = document["components"]["schemas"].as_object().unwrap();
    assert!(schemas.contains_key("Problem") && schemas.contains_key("Joined"));
}

//! Clients of a registry that has the pinned key and is evil.

use std::sync::Arc;
use std::time::Duration;

use agentnet::os::tls::ServerKey;
use agentnet::registry::client::{ClientError, RegistryClient};
use agentnet::registry::init::load;
use agentnet::statement::{Gateway, Head, Statement, issue};
use agentnet::wire::api::registry::{DomainInfo, EventKind};
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::response::Response;
use futures_util::stream::{iter, repeat_with};

use crate::evil::{Answer, Evil, answered};
use crate::support::{Agent, HOUR, Net, SOON, World, key, now};

/// A world whose registry is stopped, and what it said of its domain.
struct Captured {
    world: World,
    net: Net,
    agent: Agent,
    info: DomainInfo,
    tls: ServerKey,
}

impl Captured {
    async fn take() -> Self {
        let mut world = World::start().await;
        let net = world.network("acme").await;
        let agent = net.agent(&world.client().await, "a").await;
        let info = DomainInfo {
            v: 1,
            domain: world.made.domain,
            registry: load(&world.made.files).unwrap().statement.text().to_owned(),
            gateways: vec![],
            profile: "P1".to_owned(),
            versions: vec![1],
            url: world.url(),
        };
        let tls = load(&world.made.files).unwrap().tls;
        world.stop().await;
        Self {
            world,
            net,
            agent,
            info,
            tls,
        }
    }

    /// Starts an evil registry that tells the truth of the domain and `answer`s all else.
    fn turn(&self, answer: impl Fn(&Request) -> Response + Send + Sync + 'static) -> Evil {
        let info = serde_json::to_string(&self.info).unwrap();
        let all = move |request: &Request| match request.uri().path() {
            "/v1/domain" => answered(200, info.clone()),
            _ => answer(request),
        };
        self.start(Arc::new(all))
    }

    fn start(&self, answer: Arc<Answer>) -> Evil {
        Evil::start("127.0.0.1:0".parse().unwrap(), &self.tls, answer)
    }

    async fn connect(&self, evil: &Evil) -> Result<RegistryClient, ClientError> {
        let (pin, domain) = (self.world.made.pin, self.world.made.domain);
        let url = format!("https://{}", evil.at);
        let connected = RegistryClient::connect(&url, pin, domain, now());
        tokio::time::timeout(SOON, connected).await.unwrap()
    }
}

/// A body without end, in pieces.
fn endless(piece: &'static [u8]) -> Body {
    Body::from_stream(repeat_with(move || {
        Ok::<_, std::io::Error>(Bytes::from_static(piece))
    }))
}

/// The key proves the server; the domain's word proves the registry, and is checked as ever.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_registry_says_of_its_domain_is_bounded_and_proven() {
    let captured = Captured::take().await;
    let mut other = captured.info.clone();
    let stranger = issue::root_grant(
        &key(),
        "acme".parse().unwrap(),
        captured.world.made.prefix.network(1),
        now(),
    );
    other.registry = stranger.unwrap().text().to_owned();
    let other = serde_json::to_string(&other).unwrap();
    let redirect = || {
        let answer = Response::builder().status(302);
        answer
            .header("location", "https://127.0.0.1:1/v1/domain")
            .body(Body::empty())
            .unwrap()
    };
    let answers: Vec<Arc<Answer>> = vec![
        Arc::new(|_| answered(200, endless(&[b'['; 4096]))),
        Arc::new(|_| answered(500, endless(&[b'x'; 4096]))),
        Arc::new(|_| answered(200, "{}")),
        Arc::new(|_| answered(200, "[".repeat(100_000))),
        Arc::new(|_| answered(204, "")),
        Arc::new(|_| answered(418, "<html>")),
        Arc::new(move |_| redirect()),
        Arc::new(move |_| answered(200, other.clone())),
    ];

    for (n, answer) in answers.into_iter().enumerate() {
        let evil = captured.start(answer);
        let refused = captured.connect(&evil).await.unwrap_err();
        let is_refusal = matches!(
            refused,
            ClientError::Malformed(_) | ClientError::WrongDomain
        );
        assert!(is_refusal, "{n}: {refused}");
    }
}

/// Gateways and admissions are the registry's by signature, not by who hands them over.
#[tokio::test(flavor = "multi_thread")]
async fn statements_of_foreign_signers_are_not_taken_over() {
    let mut captured = Captured::take().await;
    let gateway = |by: &agentnet::id::IdentityKey| {
        let claims = Gateway {
            tunnel: agentnet::id::TunnelSecret::from_seed([6; 32]).public(),
            udp: vec!["192.0.2.66:16201".to_owned()],
            wss: vec![],
            region: None,
            features: vec![],
            ttl: 600,
        };
        let head = Head {
            subject: key().did(),
            network: None,
            issued: now(),
            expires: now() + HOUR,
            seq: 1,
        };
        Statement::sign(by, head, claims).unwrap().text().to_owned()
    };
    let registry = load(&captured.world.made.files).unwrap().key;
    let own = gateway(&registry);
    captured.info.gateways = vec![
        gateway(&key()),
        gateway(&captured.net.root),
        own.clone(),
        gateway(&captured.agent.key),
        "nonsense".to_owned(),
    ];
    let foreign = captured.agent.chain.admission().unwrap().text().to_owned();
    let joined = serde_json::json!({
        "admission": resigned(&foreign),
        "address": "fd00::1",
        "lease": 600,
    });
    let joined = joined.to_string();
    let evil = captured.turn(move |_| answered(200, joined.clone()));
    let client = captured.connect(&evil).await.unwrap();

    let listed = client.gateways().into_iter().map(|g| g.text().to_owned());
    assert_eq!(listed.collect::<Vec<_>>(), [own]);
    let mut agent = captured.agent.clone();
    assert!(agent.join(&client).await.is_err());
}

/// Returns the words of a statement under another signature.
fn resigned(text: &str) -> String {
    let (words, signature) = text.rsplit_once('.').unwrap();
    let other = if signature.starts_with('A') { "B" } else { "A" };
    format!("{words}.{other}{}", &signature[1..])
}

/// An event stream is read within bounds, and what makes no sense in it is left out.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_nonsense_ends_or_is_left_out() {
    let captured = Captured::take().await;
    let watch = async |body: fn() -> Body| {
        let evil = captured.turn(move |_| answered(200, body()));
        let client = captured.connect(&evil).await.unwrap();
        let mut stream = client.watch(&captured.agent.caller(), None).await.unwrap();
        let read = async {
            let mut kinds = Vec::new();
            loop {
                match stream.next().await {
                    Ok(event) => kinds.push((event.kind, event.id)),
                    Err(error) => return (kinds, error),
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(30), read)
            .await
            .unwrap()
    };

    for body in [
        || endless(&[b'x'; 4096]),
        || endless(b"data: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\n"),
        || endless(b"event: record\ndata: {\"statement\": \"\xff\"}\n\n"),
        || endless(b"event: consent\nevent: consent\ndata:"),
    ] {
        let (kinds, error) = watch(body).await;
        assert_eq!(kinds, []);
        assert!(matches!(error, ClientError::Malformed(_)), "{error}");
    }
    let (kinds, _) = watch(|| {
        let pieces: [&'static [u8]; 7] = [
            b"event: unknown\ndata: {}\n\n",
            b"event: record\ndata: {\n\n",
            b"event: record\ndata: []\n\n",
            b"retry: 0\nfoo\n:comment\n\n",
            b"id: \x01\nevent: live\ndata: {}\n\n",
            b"id: a b\nevent: live\ndata: {}\n\n",
            b"id: ok\nevent: live\ndata: {}\n\n",
        ];
        let pieces = pieces.map(|piece| Ok::<_, std::io::Error>(Bytes::from_static(piece)));
        Body::from_stream(iter(pieces))
    })
    .await;
    // An id that no header can carry back would keep the watch from ever being opened again.
    let live = |id: Option<&str>| (EventKind::Live, id.map(str::to_owned));
    assert_eq!(kinds, [live(None), live(None), live(Some("ok"))]);
}

/// Lists that never end are cut, so that an owner's command ends too.
#[tokio::test(flavor = "multi_thread")]
async fn lists_without_end_are_cut() {
    let captured = Captured::take().await;
    let evil = captured.turn(|request| {
        let after = request.uri().query().unwrap_or_default().len();
        answered(200, format!("{{\"tokens\": [], \"next\": {after}}}"))
    });
    let client = captured.connect(&evil).await.unwrap();

    let listed = tokio::time::timeout(Duration::from_secs(30), async {
        client.tokens(&captured.net.owner()).await
    });

    assert_eq!(listed.await.unwrap().unwrap(), []);
}

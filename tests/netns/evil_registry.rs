//! A registry that turned evil, with its own keys, against nodes that know it by these.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

use agentnet::{
    id::{IdentityKey, NetworkId},
    os::clock,
    registry::init::{Files, load},
    statement::{Consent, ConsentState, Gateway, Head, Scope, Statement},
};
use axum::{
    body::{Body, Bytes},
    extract::Request,
    response::Response,
};
use futures_util::stream::unfold;
use serde_json::{Value, json};
use tokio::{runtime::Builder, sync::oneshot};

use crate::{
    evil::{Evil, answered},
    lab::{A, B, Lab, in_lab},
    services::REGISTRY,
    world::{Host, wait_for},
};

const FOLDER: &str = "/var/lib/registry";

/// The statements of a membership, by the event that brings each.
const KEPT: [(&str, &str); 5] = [
    ("given", "consent"),
    ("received", "consent"),
    ("records", "record"),
    ("incoming", "request"),
    ("outgoing", "request"),
];

/// An evil registry that runs in the honest one's place until it is dropped.
struct Turned {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Turned {
    fn drop(&mut self) {
        drop(self.stop.take());
        drop(self.thread.take().map(JoinHandle::join));
    }
}

/// What the evil one knows and hears.
#[derive(Clone)]
struct Script {
    domain: String,
    network: String,
    /// Events that every watch begins with.
    flood: Arc<Vec<(&'static str, String)>>,
    /// Requests that agents handed in, which it passes on.
    heard: Arc<Mutex<Vec<String>>>,
}

impl Script {
    fn answer(&self, request: &Request) -> Response {
        match (request.method().as_str(), request.uri().path()) {
            (_, "/v1/domain") => answered(200, self.domain.clone()),
            (_, "/v1/watch") => answered(200, self.watch()),
            ("PUT", _) => answered(200, r#"{"lease": 600}"#),
            (_, path) if path.ends_with("/requests") => answered(500, "{}"),
            _ => answered(202, "{}"),
        }
    }

    /// Streams the flood, tells that this is all, and then what it hears.
    fn watch(&self) -> Body {
        let flood = self.flood.iter().cloned().collect::<VecDeque<_>>();
        let script = self.clone();
        Body::from_stream(unfold((flood, 0), move |(mut flood, told)| {
            let script = script.clone();
            async move {
                let (event, told) = match flood.pop_front() {
                    Some((kind, text)) => (script.event(kind, &text), told),
                    None if told == 0 => ("event: live\nid: x\ndata: {}\n\n".to_owned(), 1),
                    None => loop {
                        let next = script.heard.lock().unwrap().get(told - 1).cloned();
                        if let Some(text) = next {
                            break (script.event("request", &text), told + 1);
                        }
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    },
                };
                Some((Ok::<_, std::io::Error>(Bytes::from(event)), (flood, told)))
            }
        }))
    }

    fn event(&self, kind: &str, text: &str) -> String {
        let data = json!({ "network": self.network, "statement": text });
        format!("event: {kind}\ndata: {data}\n\n")
    }
}

/// Puts an evil registry in the place of the one that was stopped.
fn turn(public: &Host, script: Script) -> Turned {
    let (stop, stopped) = oneshot::channel::<()>();
    let (ready, is_ready) = mpsc::channel();
    let thread = public.enter(move || {
        thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let key = load(&Files::in_dir(FOLDER.as_ref())).unwrap().tls;
                let answer = Arc::new(move |request: &Request| script.answer(request));
                let evil = Evil::start(REGISTRY.parse().unwrap(), &key, answer);
                ready.send(evil.at).unwrap();
                drop(stopped.await);
                drop(evil);
            });
        })
    });
    assert_eq!(is_ready.recv().unwrap().to_string(), REGISTRY);
    Turned {
        stop: Some(stop),
        thread: Some(thread),
    }
}

/// Returns what a node keeps of its membership.
fn state(host: &Host) -> Value {
    let state = host.ok("cat /var/lib/agentnet/agents/*.json");
    serde_json::from_str(&state).unwrap()
}

/// Returns every statement of others and its own that a node keeps, as events.
fn kept(state: &Value) -> Vec<(&'static str, String)> {
    let of = |(field, event): (&str, &'static str)| {
        let all = state[field].as_object().into_iter().flatten();
        let texts = all.map(|(_, text)| text.as_str().unwrap().to_owned());
        texts.map(|text| (event, text)).collect::<Vec<_>>()
    };
    KEPT.into_iter().flat_map(of).collect()
}

fn key(n: u16) -> IdentityKey {
    let mut seed = [9; 32];
    seed[..2].copy_from_slice(&n.to_be_bytes());
    IdentityKey::from_seed(seed)
}

/// Consents of strangers to `to`, and gateways that strangers signed.
fn made_up(network: NetworkId, to: &IdentityKey) -> Vec<(&'static str, String)> {
    let unix = clock::unix();
    let head = |subject, network| Head {
        subject,
        network,
        issued: unix,
        expires: unix + Duration::from_secs(3600),
        seq: unix.as_millis(),
    };
    let one = |n: u16| {
        let claims = Consent {
            inbound: Scope::Any,
            children: false,
            state: ConsentState::Active,
            re: None,
        };
        let consent = Statement::sign(&key(n), head(to.did(), Some(network)), claims).unwrap();
        let claims = Gateway {
            tunnel: agentnet::id::TunnelSecret::from_seed([7; 32]).public(),
            udp: vec!["198.51.100.99:16201".to_owned()],
            wss: vec![],
            region: None,
            features: vec![],
            ttl: 600,
        };
        let gateway = Statement::sign(&key(n), head(key(n).did(), None), claims).unwrap();
        [
            ("consent", consent.text().to_owned()),
            ("gateway", gateway.text().to_owned()),
            ("record", format!("nonsense {n}")),
        ]
    };
    (0..150).flat_map(one).collect()
}

fn peers(host: &Host) -> String {
    host.ok("agentnet peers --json")
}

/// P-014, P-015, P-074: with its keys a registry replays, makes up and withholds, and that is all.
#[test]
fn one_with_the_registrys_keys_brings_no_revoked_trust_back() {
    in_lab(|lab| {
        lab.trust("tcp/8000");
        let _server = lab.serve_page();
        lab.page_within(Duration::from_secs(5), "the page");
        let (at_a, at_b) = (state(&lab.site.a), state(&lab.site.b));
        lab.site.b.ok(&format!("agentnet trust revoke {A}"));
        wait_for("a loses it", || !peers(&lab.site.a).contains(B));

        let script = script(lab, &[at_a, at_b]);
        drop(lab.registry.take());
        let evil = turn(&lab.site.public, script.clone());
        lab.site
            .a
            .ok(&format!("agentnet trust request {B} --reason again"));
        let asked = || {
            let asked = kept(&state(&lab.site.a));
            asked.into_iter().find(|(kind, _)| *kind == "request")
        };
        wait_for("a keeps its request", || asked().is_some());
        script.heard.lock().unwrap().push(asked().unwrap().1);

        // It comes after everything else, and so everything else was looked at.
        wait_for("the new request arrives by the evil one", || {
            lab.site.b.ok("agentnet trust pending").contains("again")
        });
        assert!(!peers(&lab.site.b).contains(A) && !peers(&lab.site.a).contains(B));
        lab.site.a.fails(2, &format!("getent ahosts {B}"));
        assert!(!lab.page_arrives());
        let attached = lab.site.a.ok("agentnet status --json");
        assert!(attached.contains("connected"), "{attached}");

        drop(evil);
        lab.start_registry();
        assert!(!lab.page_arrives());
        lab.site
            .b
            .ok(&format!("agentnet trust approve {A} --allow tcp/8000"));
        lab.page_within(Duration::from_secs(20), "the page, agreed anew");
    });
}

/// The evil one knows all that both nodes ever kept, and the domain's truth.
fn script(lab: &Lab, states: &[Value]) -> Script {
    let statement = lab
        .site
        .public
        .ok(&format!("curl -sfk https://{REGISTRY}/v1/domain"));
    let network = states[0]["network"].as_str().unwrap().to_owned();
    let id = network.parse::<NetworkId>().unwrap();
    let mut flood = Vec::new();
    for state in states {
        let own = serde_json::from_value::<IdentityKey>(state["identity"].clone()).unwrap();
        flood.extend(kept(state));
        flood.extend(made_up(id, &own));
        flood.extend(kept(state).into_iter().rev());
    }
    Script {
        domain: statement,
        network,
        flood: Arc::new(flood),
        heard: Arc::default(),
    }
}

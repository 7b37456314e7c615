use agentnet::config::{RegistryConfig, RegistrySettings};
use agentnet::registry::client::ClientError;
use agentnet::registry::init::{InitError, Plan, init};
use agentnet::registry::server::{ServeError, serve};
use agentnet::statement::ConsentState;
use agentnet::wire::api::problem::Code;
use agentnet::wire::api::registry::{EventKind, Resolve};
use tokio::sync::watch;

use crate::support::{Folder, SOON, World, code, now};

fn name(text: &str) -> Resolve {
    Resolve {
        name: Some(text.parse().unwrap()),
        address: None,
    }
}

#[tokio::test]
async fn a_restart_keeps_everything() {
    let mut world = World::start().await;
    let net = world.network("acme").await;
    let client = world.client().await;
    let (a, b) = (net.agent(&client, "a").await, net.agent(&client, "b").await);
    let token = net.token(net.terms("*", 2));
    token.agent("c").join(&client).await.unwrap();
    let consent = b.consent(&a, ConsentState::Active);
    client.consent(&b.caller(), &consent).await.unwrap();
    let mut watch = a.watch(&client, None).await;
    let last = watch.until(EventKind::Live).await.pop().unwrap().id;

    world.stop().await;
    let down = client.resolve(&a.caller(), &name("b")).await;
    assert!(matches!(down, Err(ClientError::Unreachable { .. })));
    world.run().await;

    let client = world.client().await;
    assert!(client.resolve(&a.caller(), &name("b")).await.is_ok());
    let taken = net.token(net.terms("*", 1)).agent("c").join(&client).await;
    assert_eq!(code(taken), Code::NameTaken);
    let tokens = client.tokens(&net.owner()).await.unwrap();
    assert!(
        tokens
            .iter()
            .any(|t| t.token == token.secret.did() && t.used == 1)
    );
    // A watch resumes where it was: nothing is told twice, nothing is reset.
    let events = a
        .watch(&client, last.as_deref())
        .await
        .until(EventKind::Live)
        .await;
    assert_eq!(events.len(), 1, "{events:?}");
}

/// Soft state: a record that is not refreshed disappears.
#[tokio::test]
async fn a_record_disappears_when_its_lease_ends() {
    let world = World::with(|settings| settings.lease.shortest = 1).await;
    let net = world.network("acme").await;
    let client = world.client().await;
    let (a, b) = (net.agent(&client, "a").await, net.agent(&client, "b").await);
    let consent = b.consent(&a, ConsentState::Active);
    client.consent(&b.caller(), &consent).await.unwrap();
    let short = client.put_record(&b.caller(), &b.record(1)).await.unwrap();
    assert_eq!(short.lease.as_secs(), 1);

    let gone = async {
        while client.resolve(&a.caller(), &name("b")).await.is_ok() {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(SOON, gone).await.unwrap();

    assert!(b.put(&client).await.is_ok(), "its name is its own still");
    assert!(client.resolve(&a.caller(), &name("b")).await.is_ok());
}

#[tokio::test]
async fn init_overwrites_nothing_and_leaves_nothing_half_done() {
    let folder = Folder::new();
    let plan = Plan {
        dir: folder.path().to_owned(),
        listen: "127.0.0.1:8443".parse().unwrap(),
        url: None,
    };
    let made = init(&plan).await.unwrap();
    let key = std::fs::read(made.files.key()).unwrap();

    let again = init(&plan).await;
    assert!(matches!(again, Err(InitError::Exists(_))), "{again:?}");
    assert_eq!(std::fs::read(made.files.key()).unwrap(), key);
    assert_eq!(made.url, "https://127.0.0.1:8443");

    let other = Folder::new();
    let nowhere = Plan {
        dir: other.path().to_owned(),
        listen: "0.0.0.0:8443".parse().unwrap(),
        url: None,
    };
    assert!(matches!(init(&nowhere).await, Err(InitError::NeedsUrl(_))));
    assert!(!other.path().exists());
}

#[tokio::test]
async fn secrets_are_for_their_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::start().await;
    let files = &world.made.files;

    for path in [
        files.domain_root(),
        files.key(),
        files.tls(),
        files.operator(),
        files.database(),
    ] {
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", path.display());
    }
}

/// A damaged file is reported and never overwritten.
#[tokio::test]
async fn damaged_files_are_reported_and_left_alone() {
    let mut world = World::start().await;
    world.stop().await;
    let files = world.made.files.clone();
    for path in [
        files.key(),
        files.tls(),
        files.statement(),
        files.database(),
    ] {
        let whole = std::fs::read(&path).unwrap();
        let damaged = [b"damage".as_slice(), &whole[..whole.len() / 2]].concat();
        std::fs::write(&path, &damaged).unwrap();

        let refused = start(&world).await;

        let (ServeError::File(_) | ServeError::Store(_)) = &refused else {
            panic!("{refused:?}");
        };
        assert!(refused.to_string().contains("is damaged"), "{refused}");
        assert_eq!(std::fs::read(&path).unwrap(), damaged);
        std::fs::write(&path, whole).unwrap();
    }
    std::fs::remove_file(files.database()).unwrap();
    let missing = start(&world).await;
    assert!(missing.to_string().contains("is missing"), "{missing}");
    assert!(!files.database().exists());
}

#[tokio::test]
async fn a_port_in_use_and_a_second_process_are_named() {
    let mut world = World::start().await;
    let locked = start(&world).await;
    assert!(matches!(locked, ServeError::Lock(_)), "{locked:?}");

    world.stop().await;
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = holder.local_addr().unwrap();
    let in_use = start_at(&world, at).await;
    assert!(in_use.to_string().contains(&at.to_string()), "{in_use}");
}

/// An ephemeral agent that joined and has not put its record yet is not forgotten.
#[tokio::test]
async fn an_ephemeral_agent_keeps_its_name_for_a_day() {
    let world = World::with(|settings| settings.lease.shortest = 1).await;
    let net = world.network("acme").await;
    let client = world.client().await;
    let mut terms = net.terms("*", 2);
    terms.ephemeral = true;
    let token = net.token(terms);
    let mut agent = token.agent("job");
    agent.join(&client).await.unwrap();

    let other = token.agent("job").join(&client).await;

    assert_eq!(code(other), Code::NameTaken);
    assert!(agent.put(&client).await.is_ok());
    assert!(now() > agent.chain.admission().unwrap().issued());
}

async fn start(world: &World) -> ServeError {
    start_at(world, "127.0.0.1:0".parse().unwrap()).await
}

async fn start_at(world: &World, at: std::net::SocketAddr) -> ServeError {
    let settings = RegistrySettings {
        listen: at,
        ..RegistrySettings::default()
    };
    let fixed = watch::channel(settings.clone()).1;
    let config = RegistryConfig::new(settings, &world.made.files.settings());
    let served = serve(config, fixed, std::future::pending(), |_| {
        panic!("it listens")
    });
    tokio::time::timeout(SOON, served)
        .await
        .unwrap()
        .unwrap_err()
}

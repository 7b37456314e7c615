//! What the registry's database is asked, as its own log of statements tells.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use agentnet::wire::api::problem::Code;
use agentnet::wire::api::registry::Resolve;
use serde_json::Value;
use tracing_subscriber::EnvFilter;

use crate::support::{World, code};

/// Set in the process that runs the test alone: the log is of the whole process.
const ALONE: &str = "AGENTNET_TEST_ALONE";

const ROUNDS: usize = 20;

static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

/// Appends to the log.
struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOG.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Returns how often each statement was made since the last call.
fn statements() -> BTreeMap<String, usize> {
    let log = std::mem::take(&mut *LOG.lock().unwrap_or_else(PoisonError::into_inner));
    let mut counted = BTreeMap::new();
    for line in log.split(|byte| *byte == b'\n').filter(|l| !l.is_empty()) {
        let line = serde_json::from_slice::<Value>(line).unwrap();
        let fields = &line["fields"];
        let text = |name: &str| fields[name].as_str().unwrap_or_default().trim().to_owned();
        let statement = [text("summary"), text("db.statement")].join(" ");
        // How many connections are opened follows the load, and each begins with settings.
        if !statement.contains("PRAGMA") {
            *counted.entry(statement).or_default() += 1;
        }
    }
    counted
}

/// Returns the statements of a registry's whole life in which a member looks for `name`, and asks
/// it for its consent.
async fn asked_for(name: &str) -> BTreeMap<String, usize> {
    // No lease ends meanwhile, so that the upkeep comes once.
    let mut world = World::with(|settings| settings.lease.shortest = settings.lease.longest).await;
    let net = world.network("acme").await;
    let client = world.client().await;
    let a = net.agent(&client, "a").await;
    let hidden = net.agent(&client, "bb").await;
    let prefix = net.grant.claims().root.as_ref().unwrap().prefix;
    let address = if name == "bb" {
        prefix.address_of(&hidden.id()).unwrap()
    } else {
        prefix.address(0x1234_5678_9abc_def0)
    };
    for _ in 0..ROUNDS {
        let by_name = Resolve {
            name: Some(name.parse().unwrap()),
            address: None,
        };
        let by_address = Resolve {
            name: None,
            address: Some(address),
        };
        for whom in [by_name, by_address] {
            let found = client.resolve(&a.caller(), &whom).await;
            assert_eq!(code(found.map(|_| ())), Code::NotFound);
        }
        client.request(&a.caller(), &a.request(name)).await.unwrap();
    }
    // The statements of a closed database are all logged.
    world.stop().await;
    statements()
}

/// P-059, P-060: an agent that hides costs the work of one that does not exist, so that no
/// stop-watch tells them apart.
#[tokio::test]
async fn hidden_and_absent_take_the_same_work() {
    if std::env::var_os(ALONE).is_none() {
        let test = "work::hidden_and_absent_take_the_same_work";
        let run = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(ALONE, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&run.stdout);
        assert!(run.status.success() && said.contains("1 passed"), "{run:?}");
        return;
    }
    tracing_subscriber::fmt()
        .json()
        .with_env_filter(EnvFilter::new("off,sqlx::query=debug"))
        .with_writer(|| Log)
        .init();

    let (hidden, absent) = (asked_for("bb").await, asked_for("zz").await);

    let look_ups = hidden.iter().filter(|(sql, _)| sql.contains("EXISTS"));
    let look_ups = look_ups.map(|(_, count)| *count).collect::<Vec<_>>();
    assert_eq!(look_ups, [ROUNDS, ROUNDS], "by name and by address");
    assert!(hidden.values().sum::<usize>() > 10 * ROUNDS, "{hidden:#?}");
    assert_eq!(hidden, absent);
}

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{Ran, Scratch, program, run};

/// A registry that runs as a process of its own.
struct Registry {
    scratch: Scratch,
    child: Child,
}

impl Registry {
    fn start() -> Self {
        let scratch = Scratch::new();
        let at = free_address();
        let dir = path(&scratch.join("registry"));
        let made = run(&[
            "registry",
            "init",
            "--dir",
            &dir,
            "--listen",
            &at.to_string(),
        ]);
        assert_eq!((made.code, made.err.as_str()), (0, ""), "{made:?}");
        let config = format!("{dir}/registry.toml");
        let child = program()
            .args(["registry", "serve", "--config", &config, "--quiet"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = now() + Duration::from_secs(10);
        while TcpStream::connect(at).is_err() {
            assert!(now() < deadline, "the registry does not listen at {at}");
            std::thread::yield_now();
        }
        Self { scratch, child }
    }

    fn operator(&self) -> String {
        path(&self.scratch.join("registry/operator.token"))
    }

    fn owner(&self, args: &[&str]) -> Ran {
        run(&[args, &["--state", &self.scratch.state()]].concat())
    }

    fn create(&self, network: &str) -> Ran {
        let operator = self.operator();
        self.owner(&[
            "network",
            "create",
            network,
            "--operator-token-file",
            &operator,
        ])
    }

    /// Stops the process as a service manager does; returns its exit code.
    fn stop(&mut self) -> Option<i32> {
        let id = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        kill(id, Signal::SIGTERM).unwrap();
        self.child.wait().unwrap().code()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // Stopped already in tests that do so.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[expect(clippy::disallowed_methods, reason = "a deadline for a real process")]
fn now() -> Instant {
    Instant::now()
}

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

fn path(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn mode(path: impl AsRef<Path>) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn an_owner_makes_a_network_and_its_tokens() {
    let mut registry = Registry::start();

    let created = registry.create("acme");
    assert_eq!((created.code, created.err.as_str()), (0, ""), "{created:?}");
    let networks = registry.owner(&["network", "list", "--json"]).json();
    let [network] = networks["networks"].as_array().unwrap().as_slice() else {
        panic!("{networks}");
    };
    assert_eq!(network["label"], "acme");
    assert!(
        created.out.contains(network["prefix"].as_str().unwrap()),
        "{created:?}"
    );
    assert!(
        created.out.contains(network["id"].as_str().unwrap()),
        "{created:?}"
    );

    let piped = registry.owner(&[
        "token", "create", "acme", "--name", "worker-*", "--uses", "3",
    ]);
    assert_eq!(piped.code, 0, "{piped:?}");
    assert!(
        piped.out.starts_with("agn1_") && piped.out.lines().count() == 1,
        "{piped:?}"
    );
    let file = path(&registry.scratch.join("planner.token"));
    let filed = registry.owner(&[
        "token", "create", "acme", "--name", "planner", "--out", &file, "--json",
    ]);
    assert_eq!(filed.json()["file"], file.as_str());
    assert!(
        !filed.out.contains("agn1_") && fs::read_to_string(&file).unwrap().starts_with("agn1_")
    );

    let tokens = registry.owner(&["token", "list", "acme", "--json"]).json();
    let left = tokens["tokens"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| t["uses_left"].as_u64().unwrap());
    assert_eq!(left.collect::<Vec<_>>(), [3, 1], "{tokens}");

    let planner = filed.json()["token"].as_str().unwrap().to_owned();
    assert_eq!(
        registry.owner(&["token", "revoke", "acme", &planner]).code,
        0
    );
    let tokens = registry.owner(&["token", "list", "acme", "--json"]).json();
    assert_eq!(
        (
            &tokens["tokens"][0]["revoked"],
            &tokens["tokens"][1]["revoked"]
        ),
        (&false.into(), &true.into())
    );

    assert_eq!(registry.stop(), Some(0));
    let unreachable = registry.owner(&["token", "list", "acme"]);
    assert_eq!(unreachable.code, 5, "{unreachable:?}");
    assert!(
        unreachable.err.contains("unreachable: Connection refused"),
        "{unreachable:?}"
    );
}

#[test]
fn keys_and_tokens_are_for_their_owner_alone() {
    let registry = Registry::start();
    assert_eq!(registry.create("acme").code, 0);
    let token = registry.scratch.join("token");
    let args = [
        "token",
        "create",
        "acme",
        "--name",
        "a",
        "--out",
        token.to_str().unwrap(),
    ];
    assert_eq!(registry.owner(&args).code, 0);

    assert_eq!(mode(&token), 0o600);
    assert_eq!(mode(registry.scratch.join("state")), 0o700);
    assert_eq!(
        mode(registry.scratch.join("state/networks/acme.json")),
        0o600
    );
    for file in [
        "domain-root.key",
        "registry.key",
        "tls.key",
        "operator.token",
        "registry.db",
    ] {
        assert_eq!(
            mode(registry.scratch.join("registry").join(file)),
            0o600,
            "{file}"
        );
    }
    let again = registry.owner(&args);
    assert_eq!(again.code, 1, "{again:?}");
    assert!(again.err.contains("exists already"), "{again:?}");
}

#[test]
fn a_network_is_made_once_and_finished_when_interrupted() {
    let registry = Registry::start();
    assert_eq!(registry.create("acme").code, 0);
    let id = |ran: &Ran| ran.json()["networks"][0]["id"].clone();
    let first = registry.owner(&["network", "list", "--json"]);

    let again = registry.create("acme");
    assert_eq!(again.code, 1, "{again:?}");
    assert!(
        again.err.contains("network acme exists already"),
        "{again:?}"
    );

    // What a power cut between signing and activating leaves behind.
    let file = registry.scratch.join("state/networks/acme.json");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("\"active\": true", "\"active\": false")).unwrap();
    let unfinished = registry.owner(&["token", "list", "acme"]);
    assert!(
        unfinished.err.contains("begun and not finished"),
        "{unfinished:?}"
    );
    assert_eq!(registry.create("acme").code, 0);
    assert_eq!(
        id(&registry.owner(&["network", "list", "--json"])),
        id(&first)
    );
}

#[test]
fn who_is_no_operator_makes_no_network() {
    let (registry, other) = (Registry::start(), Registry::start());
    // The key of one operator with the address of another registry.
    let stranger = registry
        .scratch
        .write("stranger", &mixed(&other.operator(), &registry.operator()));

    let ran = registry.owner(&[
        "network",
        "create",
        "acme",
        "--operator-token-file",
        &stranger,
    ]);

    assert_eq!((ran.code, ran.out.as_str()), (3, ""), "{ran:?}");
    assert!(
        !registry.scratch.join("state/networks/acme.json").exists(),
        "nothing half done"
    );
    assert_eq!(registry.create("acme").code, 0, "the name is still free");
}

/// Returns the token of `place` with the secret of `key`.
fn mixed(key: &str, place: &str) -> String {
    use agentnet::statement::token::{OperatorToken, Reveal};
    let token = |file: &str| {
        fs::read_to_string(file)
            .unwrap()
            .parse::<OperatorToken>()
            .unwrap()
    };
    let mixed = OperatorToken {
        key: token(key).key,
        ..token(place)
    };
    mixed.reveal()
}

#[test]
fn a_registry_is_set_up_once_and_says_why_it_cannot_run() {
    let scratch = Scratch::new();
    let dir = path(&scratch.join("registry"));
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap().to_string();
    let init = ["registry", "init", "--dir", &dir, "--listen", &at];
    assert_eq!(run(&init).code, 0);
    let key = fs::read(scratch.join("registry/registry.key")).unwrap();

    let again = run(&init);
    assert_eq!(again.code, 1, "{again:?}");
    assert_eq!(
        fs::read(scratch.join("registry/registry.key")).unwrap(),
        key
    );

    let config = format!("{dir}/registry.toml");
    let busy = run(&["registry", "serve", "--config", &config]);
    assert_eq!(busy.code, 1, "{busy:?}");
    assert!(
        busy.err
            .contains(&format!("cannot listen on {at}: Address already in use")),
        "{busy:?}"
    );
    assert!(
        busy.err.contains("\n  hint: another program has that port"),
        "{busy:?}"
    );

    let any = run(&[
        "registry",
        "init",
        "--dir",
        &format!("{dir}2"),
        "--listen",
        "0.0.0.0:8443",
    ]);
    assert_eq!(any.code, 2, "{any:?}");
    assert!(
        any.err.contains("--url https://") && !scratch.join("registry2").exists(),
        "{any:?}"
    );
}

#[test]
fn an_agent_joins_and_leaves_where_no_daemon_runs() {
    let registry = Registry::start();
    assert_eq!(registry.create("acme").code, 0);
    let token = path(&registry.scratch.join("token"));
    let make = [
        "token", "create", "acme", "--name", "*", "--uses", "2", "--out", &token,
    ];
    assert_eq!(registry.owner(&make).code, 0);
    let join = |name| registry.owner(&["join", "--token-file", &token, "--name", name, "--json"]);

    let nobody = registry.owner(&["leave"]);
    assert_eq!(nobody.code, 4, "{nobody:?}");
    let a = join("a").json();
    assert_eq!((&a["v"], &a["name"]), (&1.into(), &"a.acme.agent".into()));
    assert_eq!(mode(registry.scratch.join("state/state.json")), 0o600);
    let taken = join("a");
    assert_eq!(taken.code, 3, "{taken:?}");
    assert_eq!(join("b").code, 0);
    let used_up = join("c");
    assert_eq!(used_up.code, 3, "{used_up:?}");

    let which = registry.owner(&["leave"]);
    assert_eq!(which.code, 2, "{which:?}");
    assert!(
        which.err.contains("a.acme.agent, b.acme.agent"),
        "{which:?}"
    );
    let left = registry.owner(&["leave", "--agent", "a", "--json"]).json();
    assert_eq!(
        (&left["name"], &left["told"]),
        (&"a.acme.agent".into(), &true.into())
    );
    assert_eq!(registry.owner(&["leave"]).code, 0);
    assert_eq!(registry.owner(&["leave"]).code, 4);
}

/// P-014: the owner takes an agent out, by a key that something proves.
#[test]
fn an_owner_revokes_an_agent() {
    let registry = Registry::start();
    assert_eq!(registry.create("acme").code, 0);
    let token = path(&registry.scratch.join("token"));
    let make = [
        "token", "create", "acme", "--name", "*", "--uses", "9", "--out", &token,
    ];
    assert_eq!(registry.owner(&make).code, 0);
    let join = |state: &str| {
        let state = path(&registry.scratch.join(state));
        run(&[
            "join",
            "--token-file",
            &token,
            "--name",
            "a",
            "--state",
            &state,
            "--json",
        ])
    };
    assert_eq!(join("first").code, 0);
    assert_eq!(join("second").code, 3, "the name is taken");

    let revoke = |agent: &str| registry.owner(&["agent", "revoke", "acme", agent, "--json"]);
    let nobody = revoke("zz");
    assert_eq!(nobody.code, 4, "{nobody:?}");
    assert!(nobody.err.contains("\n  hint: "), "{nobody:?}");
    assert_eq!(revoke("a.other.agent").code, 2);
    // Without a daemon it put no record, and the registry's word alone is not enough.
    let unproven = revoke("a.acme.agent");
    assert_eq!(
        (unproven.code, unproven.out.as_str()),
        (1, ""),
        "{unproven:?}"
    );
    assert!(unproven.err.contains("revoke by the key"), "{unproven:?}");
    let key = unproven.err.split_whitespace();
    let key = key
        .clone()
        .find(|word| word.starts_with("did:key:"))
        .unwrap();

    let revoked = revoke(key).json();
    assert_eq!(
        (
            &revoked["v"],
            &revoked["network"],
            &revoked["agent"],
            &revoked["names"][0]
        ),
        (&1.into(), &"acme".into(), &key.into(), &"a".into())
    );
    let again = join("first");
    assert_ne!(again.code, 0, "{again:?}");
    assert_eq!(join("second").code, 0, "the name is free");
    let text = registry.owner(&["agent", "revoke", "acme", key]);
    assert_eq!(text.code, 4, "its key has no name any more: {text:?}");
}

use std::{
    path::Path,
    process::{Command, Stdio},
};

use crate::Ran;
use crate::fake::FakeDaemon;
use crate::finish;
use crate::program;
use crate::run;

/// A public key as `wg pubkey` prints it.
const KEY: &str = "pOCSkrZRwni5dyxWn1+puxPZBrRqtoyd+dwrRAn4ogk=";

fn ask(daemon: &FakeDaemon, args: &[&str]) -> Ran {
    run(&[args, &["--socket", &daemon.socket]].concat())
}

#[test]
fn status_tells_what_is_wrong_and_what_to_do() {
    let daemon = FakeDaemon::start();

    let ran = ask(&daemon, &["status"]);

    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    for line in [
        "agentnet 0.1.0, up for 3 h, process 812, UDP 0.0.0.0:16200, DNS resolv-conf",
        "planner.acme.agent",
        "  registry    unreachable for 5 min  https://registry.test:8443: connection refused",
        "  gateway     connected for 2 h  203.0.113.7:16201, 12.3 ms, sees us at 198.51.100.4:40000",
        "  membership  renews itself, else ends in 10 d",
        "  peers       1, 1 waiting for an answer (agentnet trust pending)",
        "dropped packets: filter_scope 3",
        "  cure: check that this host can reach https://registry.test:8443",
    ] {
        assert!(ran.out.lines().any(|l| l == line), "{line}\n{}", ran.out);
    }
}

#[test]
fn every_fact_is_json_with_its_version() {
    let daemon = FakeDaemon::start();
    for args in [
        ["status"].as_slice(),
        &["peers"],
        &["version"],
        &["trust", "pending"],
        &["trust", "list"],
        &["trust", "auto", "list"],
        &[
            "trust",
            "auto",
            "add",
            "--from",
            "tag:build",
            "--allow",
            "tcp/8000",
        ],
        &["trust", "auto", "remove", "--from", "worker-*"],
        &["trust", "request", "b", "--reason", "why not"],
        &["trust", "request", "b", "--wait", "9s"],
        &[
            "trust", "approve", "b", "--allow", "tcp/8000", "--allow", "udp/53",
        ],
        &["trust", "deny", "b"],
        &["ping", "b", "--count", "1"],
        &["ping", "b", "tcp/8000"],
        &["ping", "near", "--until-direct"],
        &["path", "b"],
        &["wireguard", "list"],
        &["wireguard", "add", KEY, "--allow", "any"],
        &["wireguard", "remove", KEY],
    ] {
        let ran = ask(&daemon, &[args, &["--json"]].concat());

        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{args:?} {ran:?}");
        assert_eq!(ran.json()["v"], 1, "{args:?}");
        assert_eq!(ran.out.lines().count(), 1, "{args:?}");
    }
    let approved = ask(
        &daemon,
        &["trust", "approve", "b", "--allow", "udp/53", "--json"],
    )
    .json();
    assert_eq!(approved["inbound"], serde_json::json!(["udp/53"]));
    assert_eq!(approved["change"], "approved");
}

#[test]
fn tables_are_aligned_and_strangers_do_not_steer_the_terminal() {
    let daemon = FakeDaemon::start();

    let peers = ask(&daemon, &["peers"]).out;
    let [head, row, "", plain_head, plain] = peers.lines().collect::<Vec<_>>()[..] else {
        panic!("{peers}");
    };
    assert_eq!(plain_head.find("ENDPOINT"), plain.find("192.0.2.5:51820"));
    assert_eq!(head.find("LAST IN"), row.find("3 s ago"), "{peers}");
    assert!(row.contains("relay") && row.contains("replies only") && row.contains("1.2 MB"));

    let pending = ask(&daemon, &["trust", "pending"]).out;
    assert!(
        pending.contains("read your page") && !pending.contains('\u{1b}'),
        "{pending:?}"
    );
}

#[test]
fn refusals_have_their_exit_codes_and_say_what_to_do() {
    let daemon = FakeDaemon::start();
    for (args, code, text) in [
        (["whois", "fd00::1"].as_slice(), 4, "not found"),
        (&["trust", "revoke", "b"], 4, "no consent to b stands"),
        (&["leave"], 5, "not reachable"),
        (
            &["ping", "silent", "--count", "1"],
            5,
            "no answer from silent",
        ),
        (&["ping", "b", "tcp/8001"], 5, "bind it to [::]"),
        (
            &["ping", "b", "--until-direct", "--timeout", "1s"],
            5,
            "no direct path to b within 1 s: no endpoint of the peer answers (no_answer)",
        ),
        (
            &["trust", "request", "c", "--wait", "1s"],
            1,
            "c.acme.agent has not agreed within 1 s",
        ),
        (&["ping", "stranger", "--until-direct"], 4, "no trust"),
        (&["path", "stranger"], 4, "no trust"),
    ] {
        let ran = ask(&daemon, args);

        assert_eq!(ran.code, code, "{ran:?}");
        assert!(
            ran.err.contains(text) && ran.err.contains("\n  hint: "),
            "{ran:?}"
        );
    }
}

#[test]
fn no_daemon_is_exit_code_5() {
    let scratch = crate::Scratch::new();

    let ran = run(&["status", "--state", &scratch.state()]);

    assert_eq!((ran.code, ran.out.as_str()), (5, ""), "{ran:?}");
    assert!(
        ran.err.contains("state/agentnet.sock") && ran.err.contains("agentnet up"),
        "{ran:?}"
    );
}

#[test]
fn a_token_comes_by_file_standard_input_or_environment() {
    let daemon = FakeDaemon::start();
    let scratch = crate::Scratch::new();
    let file = scratch.write("token", "agn1_token\n");
    let join = |args: &[&str]| {
        let mut command = program();
        command
            .args(["join", "--socket", &daemon.socket])
            .args(args);
        command
    };

    for ran in [
        finish(&mut join(&["--token-file", &file, "--name", "planner"]), ""),
        finish(
            &mut join(&["--token-file", "-", "--name", "planner"]),
            "agn1_token\n",
        ),
        finish(
            join(&["--name", "planner"]).env("AGENTNET_TOKEN", "agn1_token"),
            "",
        ),
        finish(
            join(&["--name", "planner"]).env("AGENTNET_TOKEN_FILE", &file),
            "",
        ),
    ] {
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
        assert!(
            ran.out.starts_with("joined acme as planner.acme.agent\n"),
            "{ran:?}"
        );
    }
    let wrong = finish(&mut join(&["--token-file", "-"]), "agn1_other");
    assert_eq!(wrong.code, 3, "{wrong:?}");
    assert!(wrong.err.contains("the join token expired") && !wrong.err.contains("agn1_other"));
}

#[test]
fn down_waits_until_the_daemon_is_gone() {
    let daemon = FakeDaemon::start();

    let ran = ask(&daemon, &["down"]);

    assert_eq!(
        (ran.code, ran.out.trim()),
        (0, "the daemon has stopped"),
        "{ran:?}"
    );
    assert!(!Path::new(&daemon.socket).exists());
    assert_eq!(ask(&daemon, &["down"]).code, 5);
}

#[test]
fn a_reader_that_has_enough_is_no_failure() {
    let daemon = FakeDaemon::start();
    let mut child = program()
        .args(["status", "--socket", &daemon.socket])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());

    let output = child.wait_with_output().unwrap();

    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}

/// protocol.md section 10: root and group agentnet change things, everybody reads status
#[test]
fn a_user_of_no_standing_reads_and_does_not_change() {
    if !nix::unistd::Uid::effective().is_root() {
        return; // Another user is needed, and only root can become one.
    }
    let daemon = FakeDaemon::start();
    let nobody = |args: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]);
        command.arg(env!("CARGO_BIN_EXE_agentnet")).args(args);
        finish(command.args(["--socket", &daemon.socket]), "")
    };

    assert_eq!(nobody(&["status"]).code, 0);
    assert_eq!(nobody(&["ping", "b", "--count", "1"]).code, 0);
    for args in [
        ["down"].as_slice(),
        &["capture", "--count", "1"],
        &["leave"],
        &["trust", "deny", "b"],
        &["trust", "approve", "b"],
        &["trust", "auto", "add", "--from", "*"],
    ] {
        let ran = nobody(args);

        assert_eq!(ran.code, 3, "{args:?} {ran:?}");
        assert!(ran.err.contains("only root and group agentnet"), "{ran:?}");
    }
}

/// Issue 3: a person sees every path, what it is worth and why the one in use is.
#[test]
fn paths_are_shown_with_what_is_known_of_each() {
    let daemon = FakeDaemon::start();

    let ran = ask(&daemon, &["path", "b"]);

    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    for part in [
        "relay, through 203.0.113.7:16201, since 60 s ago",
        "why: nothing nearer has answered yet (first)",
        "not direct: no endpoint of the peer answers (no_answer); open the UDP port",
        "named to the peer: 198.51.100.4:40000 (reflexive)",
        "in use, answering",
        "203.0.113.7:16201 (gateway)",
        "12.3 ms  0 %",
        "[2001:db8::7]:16200 (host)",
        "100 %",
    ] {
        assert!(ran.out.contains(part), "{part}\n{}", ran.out);
    }
}

/// Issue 3: `ping --until-direct` shows each ping's path and says what it waits for in vain.
#[test]
fn a_search_for_a_direct_path_ends_with_it_or_with_the_time() {
    let daemon = FakeDaemon::start();

    let found = ask(&daemon, &["ping", "near", "--until-direct"]);
    assert_eq!((found.code, found.err.as_str()), (0, ""), "{found:?}");
    assert!(found.out.contains("answered, 4.20 ms, direct"), "{found:?}");

    let vain = ["ping", "b", "--until-direct", "--timeout", "1s", "--json"];
    let vain = ask(&daemon, &vain);
    assert_eq!(vain.code, 5, "{vain:?}");
    let json = vain.json();
    assert_eq!(
        (
            &json["direct"],
            &json["not_direct"]["code"],
            &json["replies"][0]["path"]
        ),
        (&false.into(), &"no_answer".into(), &"relay".into())
    );
    assert_eq!(
        ask(&daemon, &["ping", "b", "tcp/1", "--until-direct"]).code,
        2
    );
}

/// What `add` prints is a file for `wg addconf` of the other end.
#[test]
fn a_wireguard_peer_is_told_what_its_end_needs() {
    let daemon = FakeDaemon::start();
    let scratch = crate::Scratch::new();
    let psk = scratch.write("psk", &format!("{KEY}\n"));

    let ran = ask(
        &daemon,
        &[
            "wireguard",
            "add",
            KEY,
            "--endpoint",
            "192.0.2.5:51820",
            "--allow",
            "tcp/8000",
            "--preshared-key-file",
            &psk,
        ],
    );

    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    let lines = ran.out.lines().filter(|line| !line.starts_with('#'));
    let lines = lines.collect::<Vec<_>>();
    let [section, key, allowed, endpoint] = lines.as_slice() else {
        panic!("{lines:?}");
    };
    assert_eq!(*section, "[Peer]");
    assert!(key.starts_with("PublicKey = ") && key.len() == 12 + 44);
    assert!(allowed.starts_with("AllowedIPs = fd00:1:2:3:") && allowed.ends_with("/128"));
    assert_eq!(*endpoint, "Endpoint = 198.51.100.4:16200");
    assert!(ran.out.contains("may reach tcp/8000 of it"), "{}", ran.out);
    assert!(ran.out.contains("# PresharedKey = "), "{}", ran.out);

    let bare = ask(&daemon, &["wireguard", "add", KEY, "--json"]).json();
    assert_eq!(bare["peer"]["inbound"], serde_json::json!([]));
    assert_eq!(bare["peer"]["preshared_key"], false);
    let peers = ask(&daemon, &["peers"]);
    assert!(peers.out.contains("WIREGUARD KEY"), "{}", peers.out);
    let gone = ask(&daemon, &["wireguard", "remove", "fd00:1:2:3::9"]);
    assert_eq!(gone.code, 4, "{gone:?}");
    let bad = ask(&daemon, &["wireguard", "add", "AAAA"]);
    assert!(bad.code == 2 && bad.err.contains("wg pubkey"), "{bad:?}");
}

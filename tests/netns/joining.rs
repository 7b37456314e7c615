//! Joins that must fail: each says why and how, with its exit code, and leaves nothing half done.

use std::fs;

use crate::{
    lab::{Lab, start_node, status},
    world::{Host, World, in_world, wait_for},
};

/// Shifts the wall clock of the program it is preloaded into.
const SKEW: &str = r#"
#define _GNU_SOURCE
#include <time.h>
#include <unistd.h>
#include <sys/syscall.h>
int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = syscall(SYS_clock_gettime, clock, time);
    if (clock == CLOCK_REALTIME) time->tv_sec += SECONDS;
    return result;
}
"#;

/// Asserts that `host` has joined nothing and that a good token still gives it the name `name`.
#[track_caller]
fn nothing_half_done(lab: &Lab, host: &Host, name: &str) {
    lab.token("good", &format!("--name {name}"));
    host.ok(&format!(
        "agentnet join --token-file /mnt/good.token --name {name}"
    ));
    let _node = start_node(host);
    let status = status(host);
    let agents = status["agents"].as_array().unwrap();
    assert_eq!(agents.len(), 1, "{agents:?}");
    assert_eq!(agents[0]["name"], format!("{name}.acme.agent"));
}

/// Asserts that joining `a` by `/mnt/bad.token` ends with `code` and a message with all `words`.
#[track_caller]
fn refused(lab: &Lab, prefix: &str, code: i32, words: &[&str]) {
    let join = format!("{prefix} agentnet join --token-file /mnt/bad.token --name a");
    let said = lab.site.a.fails(code, &join);
    for word in words {
        assert!(said.to_lowercase().contains(word), "no `{word}` in: {said}");
    }
    assert!(!said.contains("agn1_"), "the token is shown: {said}");
    nothing_half_done(lab, &lab.site.a, "a");
}

#[test]
fn by_something_that_is_no_token() {
    in_world(|world| {
        let lab = Lab::services(world);
        fs::write(World::path("bad.token"), "agn1_bm90aGluZw\n").unwrap();
        refused(&lab, "", 2, &["token"]);
    });
}

#[test]
fn by_an_expired_token() {
    in_world(|world| {
        let lab = Lab::services(world);
        lab.token("bad", "--name a --expires 1s");
        wait_for("the token expires", || {
            let tokens = lab.site.public.ok("agentnet token list acme --json");
            let tokens = serde_json::from_str::<serde_json::Value>(&tokens).unwrap();
            tokens["now"].as_u64() > tokens["tokens"][0]["closes"].as_u64()
        });
        refused(&lab, "", 3, &["expired"]);
    });
}

#[test]
fn by_a_used_up_token() {
    in_world(|world| {
        let lab = Lab::services(world);
        lab.token("bad", "--name '*' --uses 1");
        lab.site
            .b
            .ok("agentnet join --token-file /mnt/bad.token --name b");
        refused(&lab, "", 3, &["use"]);
    });
}

#[test]
fn by_a_forged_token() {
    in_world(|world| {
        let lab = Lab::services(world);
        lab.token("bad", "--name a");
        let token = fs::read_to_string(World::path("bad.token")).unwrap();
        // Another byte in the middle: inside the grants or the keys.
        let (head, tail) = token.split_at(token.len() / 2);
        let other = if tail.starts_with('A') { 'B' } else { 'A' };
        fs::write(
            World::path("bad.token"),
            format!("{head}{other}{}", &tail[1..]),
        )
        .unwrap();

        let join = "agentnet join --token-file /mnt/bad.token --name a";
        let output = lab.site.a.run(join);
        assert!([2, 3].contains(&output.code), "{output}");
        nothing_half_done(&lab, &lab.site.a, "a");
    });
}

#[test]
fn by_a_revoked_token() {
    in_world(|world| {
        let lab = Lab::services(world);
        lab.token("bad", "--name a");
        let tokens = lab.site.public.ok("agentnet token list acme --json");
        let tokens = serde_json::from_str::<serde_json::Value>(&tokens).unwrap();
        let id = tokens["tokens"][0]["token"].as_str().unwrap();
        lab.site
            .public
            .ok(&format!("agentnet token revoke acme {id}"));
        refused(&lab, "", 3, &["revoked"]);
    });
}

#[test]
fn under_a_name_that_the_token_does_not_give() {
    in_world(|world| {
        let lab = Lab::services(world);
        lab.token("bad", "--name 'worker-*'");
        refused(&lab, "", 3, &["name", "worker-*"]);
    });
}

#[test]
fn under_a_name_that_is_taken() {
    in_world(|world| {
        let lab = Lab::services(world);
        lab.token("bad", "--name '*' --uses 5");
        lab.site
            .b
            .ok("agentnet join --token-file /mnt/bad.token --name a");

        let said = lab
            .site
            .a
            .fails(3, "agentnet join --token-file /mnt/bad.token --name a");
        assert!(said.contains("taken"), "{said}");
        nothing_half_done(&lab, &lab.site.a, "c");
    });
}

/// Asserts that joining fails while the wall clock of host a is `seconds` off, and why.
#[track_caller]
fn refused_with_clock_off(lab: &Lab, seconds: &str) {
    fs::write(World::path("skew.c"), SKEW).unwrap();
    lab.token("bad", "--name a --expires 7d");
    let compile = format!("cc -shared -fPIC -DSECONDS={seconds} -o /mnt/skew.so /mnt/skew.c");
    lab.site.a.ok(&compile);
    refused(lab, "LD_PRELOAD=/mnt/skew.so", 1, &["clock"]);
}

#[test]
fn with_a_clock_a_day_ahead() {
    in_world(|world| refused_with_clock_off(&Lab::services(world), "86400"));
}

#[test]
fn with_a_clock_a_day_behind() {
    in_world(|world| refused_with_clock_off(&Lab::services(world), "-86400"));
}

#[test]
fn with_the_registry_out_of_reach() {
    in_world(|world| {
        let mut lab = Lab::services(world);
        lab.token("bad", "--name a");
        drop(lab.registry.take());

        let said = lab
            .site
            .a
            .fails(5, "agentnet join --token-file /mnt/bad.token --name a");
        assert!(said.contains("198.51.100.1:8443"), "{said}");

        lab.start_registry();
        nothing_half_done(&lab, &lab.site.a, "a");
    });
}

#[test]
fn with_a_token_on_the_command_line() {
    in_world(|world| {
        let lab = Lab::services(world);
        lab.token("bad", "--name a");
        let said = lab
            .site
            .a
            .fails(2, "agentnet join --token \"$(cat /mnt/bad.token)\"");
        assert!(said.contains("--token-file"), "{said}");
    });
}

use std::fs;

use crate::Scratch;
use crate::finish;
use crate::program;
use crate::run;

#[test]
fn an_unknown_setting_is_refused_with_its_line_and_the_nearest() {
    let scratch = Scratch::new();
    let file = scratch.write("agentnet.toml", "suffix = 'agent'\n\n[udp]\nprt = 1\n");

    let ran = run(&["status", "--config", &file]);

    assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{ran:?}");
    let expected = format!("{file}:4: unknown setting `udp.prt`, did you mean `udp.port`?");
    assert!(ran.err.contains(&expected), "{ran:?}");
}

#[test]
fn a_wrong_setting_is_refused_wherever_it_comes_from() {
    let scratch = Scratch::new();
    let file = scratch.write("agentnet.toml", "\n[dns]\nmode = 'bind'\n");

    let ran = run(&["status", "--config", &file]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(
        ran.err
            .contains(&format!("{file}:3: unknown variant `bind`")),
        "{ran:?}"
    );

    let ran = finish(
        program().arg("status").env("AGENTNET_LOG_LEVEL", "loud"),
        "",
    );
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(
        ran.err
            .contains("environment variable AGENTNET_LOG_LEVEL: "),
        "{ran:?}"
    );

    let ran = run(&["status", "--config", "/nonexistent/agentnet.toml"]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(
        ran.err
            .contains("cannot read /nonexistent/agentnet.toml: No such file"),
        "{ran:?}"
    );
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let scratch = Scratch::new();
    let file = scratch.write("agentnet.toml", "socket = '/nonexistent/file.sock'\n");
    let mut command = program();
    command.args(["status", "--config", &file]);

    let ran = finish(&mut command, "");
    assert!(ran.err.contains("/nonexistent/file.sock"), "{ran:?}");

    let ran = finish(command.env("AGENTNET_SOCKET", "/nonexistent/env.sock"), "");
    assert!(ran.err.contains("/nonexistent/env.sock"), "{ran:?}");

    let ran = finish(command.args(["--socket", "/nonexistent/flag.sock"]), "");
    assert!(ran.err.contains("/nonexistent/flag.sock"), "{ran:?}");
}

#[test]
fn a_state_file_that_is_not_understood_is_named_and_left_as_it_is() {
    let scratch = Scratch::new();
    let state = scratch.state();
    for (text, why) in [
        ("{\"v\":1,\"label\"", "damaged"),
        ("{\"v\":9}", "has version 9"),
    ] {
        let file = scratch.write("state/networks/acme.json", text);
        for args in [
            ["network", "list"].as_slice(),
            &["token", "list", "acme"],
            &["token", "create", "acme", "--name", "a"],
        ] {
            let ran = run(&[args, &["--state", &state]].concat());

            assert_eq!((ran.code, ran.out.as_str()), (1, ""), "{ran:?}");
            assert!(ran.err.contains(&file) && ran.err.contains(why), "{ran:?}");
            assert!(ran.err.contains("\n  hint: "), "{ran:?}");
            assert_eq!(fs::read_to_string(&file).unwrap(), text);
        }
    }
}

#[test]
fn a_network_that_is_not_here_is_exit_code_4() {
    let scratch = Scratch::new();

    let ran = run(&["token", "list", "acme", "--state", &scratch.state()]);

    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(
        ran.err.contains("the root key of network acme is not here"),
        "{ran:?}"
    );
}

#[test]
fn no_networks_are_an_empty_list() {
    let scratch = Scratch::new();
    let state = scratch.state();

    let ran = run(&["network", "list", "--state", &state, "--json"]);

    assert_eq!(ran.json(), serde_json::json!({ "v": 1, "networks": [] }));
    assert!(!scratch.join("state").exists(), "a look changes nothing");
}

use crate::run;

/// Returns every command of the program with its help, found by reading the help as a person does.
pub(crate) fn every_command() -> Vec<(Vec<String>, String)> {
    let mut found = Vec::new();
    let mut open = vec![Vec::<String>::new()];
    while let Some(path) = open.pop() {
        let mut args = path.iter().map(String::as_str).collect::<Vec<_>>();
        args.push("--help");
        let ran = run(&args);
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{path:?}");
        let commands = ran.out.lines().skip_while(|l| *l != "Commands:").skip(1);
        for line in commands.take_while(|l| l.starts_with("  ")) {
            // Long descriptions go on in lines that begin further in.
            if let Some(name) = line.strip_prefix("  ").filter(|l| !l.starts_with(' ')) {
                let name = name.split_whitespace().next().unwrap().to_owned();
                open.push([path.clone(), vec![name]].concat());
            }
        }
        found.push((path, ran.out));
    }
    found
}

#[test]
fn every_command_has_help_with_its_usage() {
    let commands = every_command();

    assert!(commands.len() > 15, "{}", commands.len());
    for (path, help) in commands {
        let usage = [vec!["Usage: agentnet".to_owned()], path]
            .concat()
            .join(" ");
        assert!(help.contains(&usage), "{usage}\n{help}");
        assert!(
            help.contains("--json") && help.contains("--state <DIR>"),
            "{help}"
        );
    }
}

/// spec/field-lessons.md: no secret on the command line
#[test]
fn no_option_takes_a_secret() {
    for (path, help) in every_command() {
        for word in help.split_whitespace().filter(|w| w.starts_with("--")) {
            let secret = ["token", "secret", "key", "password"];
            let named = secret.iter().any(|s| word.contains(s));
            assert!(!named || word.ends_with("-file"), "{path:?}: {word}");
        }
    }
}

#[test]
fn a_token_in_place_of_a_file_is_refused_and_not_repeated() {
    for args in [
        ["join", "--token-file", "agn1_c2VjcmV0"].as_slice(),
        &[
            "network",
            "create",
            "a",
            "--operator-token-file",
            "agno1_c2VjcmV0",
        ],
    ] {
        let ran = run(args);

        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{ran:?}");
        assert!(
            ran.err.contains("takes a file") && !ran.err.contains("c2VjcmV0"),
            "{ran:?}"
        );
    }
}

#[test]
fn wrong_usage_is_exit_code_2() {
    for args in [
        ["frobnicate"].as_slice(),
        &["status", "--nope"],
        &["trust"],
        &["ping", "b", "8000"],
        &["ping", "b", "--interval", "5"],
        &["whois", "10.0.0.1"],
        &["token", "create", "acme", "--name", "UPPER"],
        &["trust", "approve", "b", "--allow", "tcp/0"],
        &["join"],
    ] {
        let ran = run(args);

        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{args:?} {ran:?}");
        assert!(!ran.err.is_empty(), "{args:?}");
    }
}

#[test]
fn a_version_is_told_with_and_without_a_daemon() {
    let scratch = crate::Scratch::new();
    let state = scratch.state();

    let ran = run(&["version", "--state", &state]);
    assert_eq!(
        (ran.code, ran.out.trim()),
        (0, concat!("agentnet ", env!("CARGO_PKG_VERSION")))
    );

    let json = run(&["version", "--json", "--state", &state]).json();
    assert_eq!(json["v"], 1);
    assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
}

//! Man pages and completions, as scripts/package makes them.

use std::{
    collections::BTreeSet,
    process::{Command, Stdio},
};

use clap::ArgMatches;

use crate::Scratch;
use crate::help::every_command;

#[path = "../../scripts/manual.rs"]
#[expect(dead_code, reason = "its main function is for the example")]
mod generator;

const DATE: &str = "2026-01-31";

fn page_names() -> BTreeSet<String> {
    let pages = generator::pages(&agentnet::cli::command(), DATE).unwrap();
    pages.into_iter().map(|page| page.name).collect()
}

/// Runs a program that must succeed, and returns what it said.
fn said(program: &str, args: &[&str]) -> String {
    let ran = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = String::from_utf8_lossy(&ran.stdout).into_owned();
    let err = String::from_utf8_lossy(&ran.stderr);
    assert!(
        ran.status.success() && err.is_empty(),
        "{program}: {text}{err}"
    );
    text
}

/// Returns the words of a command line, as a shell reads it.
fn words(line: &str) -> Vec<String> {
    let text = said("sh", &["-c", &format!("printf '%s\\n' {line}")]);
    text.lines().map(str::to_owned).collect()
}

/// Returns the page of the command that was parsed.
fn page_of(matches: &ArgMatches) -> String {
    let mut name = "agentnet".to_owned();
    let mut at = matches;
    while let Some((inner, below)) = at.subcommand() {
        name = format!("{name}-{inner}");
        at = below;
    }
    name
}

#[test]
fn every_command_that_help_shows_has_a_page() {
    let shown = every_command().into_iter().map(|(path, _)| {
        let name = [vec!["agentnet".to_owned()], path].concat();
        name.join("-")
    });

    assert_eq!(page_names(), shown.collect::<BTreeSet<_>>());
}

#[test]
fn every_example_parses_and_is_on_the_page_of_its_command() {
    let pages = page_names();
    for (page, lines) in generator::EXAMPLES {
        assert!(pages.contains(page), "{page}");
        for line in lines {
            let parsed = agentnet::cli::command().try_get_matches_from(words(line));
            let parsed = parsed.unwrap_or_else(|error| panic!("{line}: {error}"));
            let own = page_of(&parsed);
            assert!(page == "agentnet" || page == own, "{line} on {page}");
        }
    }
}

#[test]
fn pages_are_what_man_expects() {
    let dir = Scratch::new();
    generator::write(&dir, &agentnet::cli::command(), DATE).unwrap();
    for name in page_names() {
        let page = dir.join("man").join(format!("{name}.1"));
        let page = page.to_str().unwrap();
        said("mandoc", &["-T", "lint", "-W", "error", page]);
        let text = said("mandoc", &["-T", "ascii", page]);
        let title = format!("{name}(1)");
        assert!(text.contains(&title) && text.contains("3 denied"), "{text}");
    }
}

#[test]
fn shells_complete_commands_and_options() {
    let dir = Scratch::new();
    generator::write(&dir, &agentnet::cli::command(), DATE).unwrap();
    let file = |name: &str| {
        let path = dir.join("completions").join(name);
        path.to_str().unwrap().to_owned()
    };

    let bash = format!(
        "source {}; for w in tr --sta; do COMP_WORDS=(agentnet $w); COMP_CWORD=1; \
         _agentnet agentnet $w agentnet; echo ${{COMPREPLY[@]}}; done",
        file("agentnet.bash")
    );
    assert_eq!(said("bash", &["-c", &bash]), "trust\n--state\n");
    let fish = format!(
        "source {}; complete -C 'agentnet tr'; complete -C 'agentnet --sta'",
        file("agentnet.fish")
    );
    let fish = said("fish", &["--no-config", "-c", &fish]);
    assert!(
        fish.contains("trust\t") && fish.contains("--state\t"),
        "{fish}"
    );
    said("zsh", &["-n", &file("_agentnet")]);
}

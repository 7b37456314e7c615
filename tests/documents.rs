//! Holds `docs/security.md` and `docs/field-lessons.md` to their word: each line names a test, and each
//! test named exists.

use std::{collections::BTreeSet, fs, path::Path};

/// Sections whose every bullet is a claim.
const CLAIMS: [&str; 5] = [
    "## Who is believed, and why",
    "## What each part can do if it turns evil",
    "## Revocation",
    "## Privacy",
    "## A captured host",
];

/// A test as the document names it.
#[derive(Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Named {
    file: String,
    test: String,
}

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns the tests that `text` names, as "`file`: `test`, `test`", and the files without any.
fn named(text: &str) -> (BTreeSet<Named>, Vec<String>) {
    let (mut tests, mut bare) = (BTreeSet::new(), Vec::new());
    // Every second piece stands between backticks.
    let pieces = text.split('`').collect::<Vec<_>>();
    let mut file = None::<(&str, bool)>;
    for pair in pieces.chunks(2) {
        let [before, code] = pair else { break };
        let goes_on = matches!(before.trim(), ":" | ",");
        if let Some((known, has_test)) = &mut file {
            if goes_on && !code.contains('/') {
                *has_test = true;
                let (file, test) = (known.to_string(), code.to_string());
                tests.insert(Named { file, test });
                continue;
            }
            bare.extend((!*has_test).then(|| known.to_string()));
            file = None;
        }
        if code.ends_with(".rs") {
            file = Some((*code, false));
        }
    }
    bare.extend(
        file.filter(|(_, has)| !has)
            .map(|(known, _)| known.to_owned()),
    );
    (tests, bare)
}

/// Tells whether `source` has a function `test` that a test harness runs.
fn has_test(source: &str, test: &str) -> bool {
    let lines = source.lines().collect::<Vec<_>>();
    let head = format!("fn {test}(");
    lines.iter().enumerate().any(|(at, line)| {
        let attributes = lines[..at].iter().rev();
        let mut attributes = attributes.take_while(|l| l.trim().starts_with(['#', '/']));
        line.contains(&head) && attributes.any(|l| l.contains("test]") || l.contains("test("))
    })
}

/// Asserts that each test that the document names exists, and that it names `least`.
#[track_caller]
fn all_exist(document: &str, least: usize) {
    let (tests, bare) = named(&read(document));
    let missing = tests
        .iter()
        .filter(|named| !has_test(&read(&named.file), &named.test))
        .collect::<Vec<_>>();

    assert!(missing.is_empty(), "{missing:#?}");
    assert!(bare.is_empty(), "files without a test: {bare:?}");
    assert!(tests.len() >= least, "only {} were found", tests.len());
}

#[test]
fn every_test_that_the_security_document_names_exists() {
    all_exist("docs/security.md", 80);
}

#[test]
fn every_test_that_the_field_lessons_name_exists() {
    all_exist("docs/field-lessons.md", 80);
}

/// A line without a test says in so many words that what it is about is not built.
#[test]
fn every_field_lesson_names_a_test() {
    let document = read("docs/field-lessons.md");
    let rows = document.lines().filter(|line| line.starts_with("| "));
    // Of each table the first is its head.
    let lessons = rows.filter(|row| !row.contains("| shown by |"));
    let lessons = lessons.collect::<Vec<_>>();
    let silent = lessons
        .iter()
        .filter(|row| named(row).0.is_empty() && !row.contains("| not built: "))
        .collect::<Vec<_>>();

    assert!(silent.is_empty(), "{silent:#?}");
    assert_eq!(lessons.len(), 24 + 12 + 9 + 10);
}

#[test]
fn every_claim_of_the_security_document_names_a_test() {
    let document = read("docs/security.md");
    let mut without = Vec::new();
    for section in document.split("\n## ").map(|s| format!("## {s}")) {
        if !CLAIMS.iter().any(|title| section.starts_with(title)) {
            continue;
        }
        let paragraphs = section.split("\n\n").map(str::trim_start);
        for list in paragraphs.filter(|p| p.starts_with("- ")) {
            let lines = format!("\n{list}");
            let claims = lines.split("\n- ").flat_map(|claim| claim.split("\n  - "));
            let claims = claims.map(str::trim).filter(|c| !c.is_empty());
            // A headline stands for the claims below it.
            let shown = claims.filter(|c| !is_headline(c));
            without.extend(shown.filter(|c| named(c).0.is_empty()).map(str::to_owned));
        }
    }

    assert!(without.is_empty(), "{without:#?}");
}

fn is_headline(claim: &str) -> bool {
    claim.starts_with("**")
}

#[test]
fn a_test_is_found_by_its_attribute() {
    let source =
        "#[test]\nfn a() {}\n\nfn b() {}\n\n#[tokio::test(flavor = \"x\")]\nasync fn c() {}\n";

    let found = ["a", "b", "c", "d"].map(|test| has_test(source, test));
    let (tests, bare) = named("x (`f.rs`: `a`,\n`b`; `g.rs`) and `c`");

    assert_eq!(found, [true, false, true, false]);
    assert_eq!((tests.len(), bare), (2, vec!["g.rs".to_owned()]));
}

/// Returns all Rust below a folder, as one text.
fn sources(folder: &Path) -> String {
    let mut all = String::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            all.push_str(&sources(&path));
        } else if path.extension().is_some_and(|end| end == "rs") {
            all.push_str(&fs::read_to_string(&path).expect("text"));
        }
    }
    all
}

/// What people are told to look for is what the program says: each code of the tables is one of the program's.
#[test]
fn every_code_of_the_troubleshooting_document_is_told_by_the_program() {
    let document = read("docs/troubleshooting.md");
    let all = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    let rows = document.lines().filter_map(|line| line.strip_prefix("| "));
    let cells = rows.filter_map(|row| row.split('|').nth(2));
    let codes = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2));
    let codes = codes.collect::<BTreeSet<_>>();

    let missing = codes
        .iter()
        .filter(|code| !all.contains(&format!("\"{code}\"")));
    let missing = missing.collect::<Vec<_>>();

    assert!(missing.is_empty(), "{missing:?}");
    assert!(codes.len() > 40, "{codes:?}");
}

/// Returns the codes that sources of the node write, without their tests.
fn codes(files: &[&str]) -> BTreeSet<String> {
    let texts = files
        .iter()
        .map(|file| read(&format!("src/node/{file}.rs")));
    let code = texts.map(|text| text.split("#[cfg(test)]").next().map(str::to_owned));
    let all = code.flatten().collect::<Vec<_>>().join("\n");
    let words = all.split('"').skip(1).step_by(2);
    let is_code = |word: &&str| {
        word.contains('_')
            && !word.ends_with('_')
            && word.chars().all(|c| c.is_ascii_lowercase() || c == '_')
    };
    words.filter(is_code).map(str::to_owned).collect()
}

/// Issue 6: what the doctor finds by itself was seen by a test that made it so.
#[test]
fn every_code_of_the_doctor_is_seen_by_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let judged = read("src/node/doctor/judge.rs");
    let (_, judged) = judged.split_once("#[cfg(test)]").expect("tests");
    let tests = sources(&root.join("tests/netns")) + judged;
    let codes = codes(&["doctor/host", "doctor/judge"]);

    let unseen = codes
        .iter()
        .filter(|code| !tests.contains(&format!("\"{code}\"")));
    let unseen = unseen.collect::<Vec<_>>();

    assert!(unseen.is_empty(), "{unseen:?}");
    assert!(codes.len() > 20, "{codes:?}");
}

/// Each warning and finding with a code that is written in the sources is explained.
#[test]
fn every_code_of_the_doctor_is_in_the_troubleshooting_document() {
    let document = read("docs/troubleshooting.md");
    let codes = codes(&["doctor/host", "doctor/judge", "control/warnings"]);

    let silent = codes
        .iter()
        .filter(|code| !document.contains(&format!("`{code}`")));
    let silent = silent.collect::<Vec<_>>();

    assert!(silent.is_empty(), "{silent:?}");
    assert!(codes.len() > 20, "{codes:?}");
}

/// Returns the calls that a router of the sources has.
fn routes(file: &str) -> BTreeSet<String> {
    let source = read(file);
    let routes = source.split(".route(").skip(1);
    let paths = routes.filter_map(|route| route.split('"').nth(1));
    paths.map(str::to_owned).collect()
}

/// Issue 6: who writes a program for the local API finds every call, and no call that is not there.
#[test]
fn every_call_of_the_local_api_is_in_the_protocol_document() {
    let document = read("docs/protocol.md");
    let (_, section) = document
        .split_once("\n## 10. Local API")
        .expect("section 10");
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| "));
    let cells = rows.filter_map(|row| row.split('|').next());
    let quoted = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2));
    let calls = quoted.filter_map(|call| call.split(' ').next_back());
    let calls = calls.filter(|call| call.starts_with('/'));
    let told = calls.map(str::to_owned).collect::<BTreeSet<_>>();

    let has = routes("src/node/local_api/mod.rs");

    assert_eq!(told, has);
    assert!(has.len() > 25, "{has:?}");
    for path in routes("src/node/gateway/status.rs") {
        assert!(section.contains(&format!("`GET {path}`")), "{path}");
    }
}

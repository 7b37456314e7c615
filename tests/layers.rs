//! Holds the layers of `src/lib.rs`: imports point down, pure layers do no I/O, files stay short.
//!
//! It reads text (comments and literals blanked out), so it guards against drift and proves nothing.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

/// Lowest first; a layer names only those before it.
const LAYERS: [&str; 13] = [
    "id",
    "statement",
    "wire",
    "policy",
    "config",
    "engine",
    "os",
    "dataplane",
    "gateway",
    "registry",
    "node",
    "cli",
    "main",
];

const PURE_LAYERS: [&str; 5] = ["id", "statement", "wire", "policy", "engine"];

/// Parts of impure layers that must declare themselves pure in their first line.
const PURE_PARTS: [&str; 4] = [
    "gateway/mft",
    "registry/enroll",
    "registry/authorize",
    "registry/watch",
];

/// What a pure file may not name: tasks, files, threads, the environment, sockets, locks, the
/// clock, entropy, and the crates that bring them.
const IMPURE: [&str; 37] = [
    "tokio::",
    "std::fs",
    "std::thread",
    "std::env",
    "std::process",
    "std::os",
    "std::sync::mpsc",
    "std::sync::atomic",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "UnixListener",
    "UnixDatagram",
    "Mutex<",
    "Mutex::new",
    "RwLock<",
    "RwLock::new",
    "Condvar",
    "async fn",
    "async move",
    ".await",
    "Instant::now",
    "SystemTime::now",
    ".elapsed()",
    "OsRng",
    "ThreadRng",
    "thread_rng",
    "rand::rng",
    "getrandom::",
    "SystemRandom",
    "nix::",
    "libc::",
    "reqwest::",
    "axum::",
    "sqlx::",
    "rtnetlink::",
];

/// The only files that may name boringtun: the driver of sessions, and the X25519 re-export.
const BORINGTUN: [&str; 2] = ["src/engine/session.rs", "src/id/key.rs"];

/// Most lines of one file, its tests included.
const MAX_LINES: usize = 600;

/// One broken rule, printed as compilers do.
struct Fault {
    path: String,
    line: usize,
    what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.what)
    }
}

/// A source file: its path from the top, its text, and the text without comments and literals.
struct Source {
    path: String,
    text: String,
    code: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        Self {
            path: path.to_owned(),
            text: text.to_owned(),
            code: code_of(text),
        }
    }

    /// Returns the layer's place in `LAYERS`; `None` for `lib.rs`, which names them all.
    fn layer(&self) -> Option<usize> {
        let inside = self.path.strip_prefix("src/")?;
        let name = inside.split('/').next()?.trim_end_matches(".rs");
        LAYERS.iter().position(|layer| *layer == name)
    }

    fn declares_pure(&self) -> bool {
        let first = self.text.lines().next().unwrap_or_default().to_lowercase();
        first.starts_with("//!") && !at_words(&first, "pure").is_empty()
    }

    fn is_pure(&self) -> bool {
        self.declares_pure()
            || self
                .layer()
                .is_some_and(|at| PURE_LAYERS.contains(&LAYERS[at]))
    }

    fn is_outside(&self) -> bool {
        self.path.starts_with("tests/")
    }

    /// Returns what ships: the code before the file's test module.
    fn shipped(&self) -> &str {
        if self.is_outside() || self.path.ends_with("/tests.rs") || self.path.contains("/tests/") {
            return "";
        }
        let end = self.code.match_indices("#[cfg(test)]").find(|(at, mark)| {
            let rest = self.code[at + mark.len()..].trim_start();
            let rest = rest.trim_start_matches("pub ");
            // What stands in a file of its own ends nothing here.
            rest.starts_with("mod ") && rest.find('{') < rest.find(';')
        });
        end.map_or(self.code.as_str(), |(at, _)| &self.code[..at])
    }

    fn fault(&self, at: usize, what: String) -> Fault {
        let line = self.code[..at].matches('\n').count() + 1;
        Fault {
            path: self.path.clone(),
            line,
            what,
        }
    }

    fn faults(&self) -> Vec<Fault> {
        let mut faults = self.upward();
        faults.extend(self.shortcuts());
        faults.extend(self.impurities());
        faults.extend(self.undeclared());
        faults.extend(self.foreign_boringtun());
        faults.extend(self.too_long());
        faults
    }

    /// A layer names only those before it (and itself).
    fn upward(&self) -> Vec<Fault> {
        let Some(own) = self.layer() else {
            return Vec::new();
        };
        let mark = "crate::";
        let mut faults = Vec::new();
        for at in at_words(&self.code, mark) {
            let named = self.code[at + mark.len()..]
                .split(|c: char| !is_word(c))
                .next()
                .unwrap();
            let Some(other) = LAYERS.iter().position(|layer| *layer == named) else {
                continue;
            };
            if other > own {
                faults.push(self.fault(at, format!("`{}` names `{named}` above it", LAYERS[own])));
            }
        }
        faults
    }

    /// Imports are full paths, so that a reader and this test see what is used.
    fn shortcuts(&self) -> Vec<Fault> {
        if self.is_outside() {
            return Vec::new();
        }
        ["crate::{", "crate::*", "super::super"]
            .into_iter()
            .flat_map(|mark| {
                at_words(&self.code, mark)
                    .into_iter()
                    .map(move |at| (at, mark))
            })
            .map(|(at, mark)| self.fault(at, format!("`{mark}` hides what is used")))
            .collect()
    }

    fn impurities(&self) -> Vec<Fault> {
        if !self.is_pure() {
            return Vec::new();
        }
        let shipped = self.shipped();
        let plain = IMPURE
            .into_iter()
            .flat_map(|mark| {
                at_words(shipped, mark)
                    .into_iter()
                    .map(move |at| (at, mark))
            })
            .map(|(at, mark)| self.fault(at, format!("`{mark}` in pure code")));
        let grouped = imports(shipped).into_iter().filter_map(|(at, import)| {
            let mark = IMPURE
                .into_iter()
                .find(|mark| at_words(&import, mark).first() == Some(&0))?;
            let spelled_out = shipped[at..].starts_with(&format!("use {mark}"));
            (!spelled_out).then(|| self.fault(at, format!("`{mark}` in pure code")))
        });
        plain.chain(grouped).collect()
    }

    fn undeclared(&self) -> Vec<Fault> {
        let stem = self.path.trim_start_matches("src/").trim_end_matches(".rs");
        if PURE_PARTS.contains(&stem.trim_end_matches("/mod")) && !self.declares_pure() {
            return vec![self.fault(0, "the first line must say that this is pure".to_owned())];
        }
        Vec::new()
    }

    fn foreign_boringtun(&self) -> Vec<Fault> {
        if self.is_outside() || BORINGTUN.contains(&self.path.as_str()) {
            return Vec::new();
        }
        at_words(&self.code, "boringtun")
            .into_iter()
            .map(|at| {
                self.fault(
                    at,
                    format!("only {} name boringtun", BORINGTUN.join(" and ")),
                )
            })
            .collect()
    }

    fn too_long(&self) -> Vec<Fault> {
        let lines = self.text.lines().count();
        if lines <= MAX_LINES {
            return Vec::new();
        }
        let what = format!("{lines} lines, {MAX_LINES} are allowed: split by idea");
        vec![Fault {
            path: self.path.clone(),
            line: lines,
            what,
        }]
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Returns where `mark` stands in `code` and is not the tail or head of a longer word.
fn at_words(code: &str, mark: &str) -> Vec<usize> {
    let free = |c: Option<char>| !c.is_some_and(is_word);
    code.match_indices(mark)
        .filter(|(at, _)| !mark.starts_with(is_word) || free(code[..*at].chars().next_back()))
        .filter(|(at, _)| !mark.ends_with(is_word) || free(code[at + mark.len()..].chars().next()))
        .map(|(at, _)| at)
        .collect()
}

/// Returns every path that `use` brings in, groups written out, with where its `use` stands.
fn imports(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for at in at_words(code, "use ") {
        let Some((tree, _)) = code[at + 4..].split_once(';') else {
            continue;
        };
        let tree = tree.split_whitespace().collect::<Vec<_>>().join(" ");
        expand("", &tree, &mut |path| found.push((at, path)));
    }
    found
}

/// Calls `found` with each path of the use tree `tree` below `prefix`.
fn expand(prefix: &str, tree: &str, found: &mut dyn FnMut(String)) {
    let Some((head, rest)) = tree.split_once('{') else {
        return found(format!("{prefix}{}", tree.trim()));
    };
    let inner = rest.rsplit_once('}').map_or(rest, |(inner, _)| inner);
    let (mut depth, mut start) = (0_usize, 0);
    for (at, c) in inner.char_indices().chain([(inner.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                expand(
                    &format!("{prefix}{}", head.trim()),
                    &inner[start..at],
                    found,
                );
                start = at + 1;
            }
            _ => {}
        }
    }
}

/// Returns `text` with comments and literals blanked, line breaks kept.
fn code_of(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let in_word = out.chars().next_back().is_some_and(is_word);
        let end = blank_end(rest, in_word);
        if end == 0 {
            out.push(c);
            rest = &rest[c.len_utf8()..];
            continue;
        }
        let (blank, tail) = rest.split_at(end);
        out.extend(blank.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        rest = tail;
    }
    out
}

/// Returns how many bytes of comment or literal `rest` begins with; 0 when it begins with code.
fn blank_end(rest: &str, in_word: bool) -> usize {
    let until = |open: usize, close: &str| {
        rest[open..]
            .find(close)
            .map_or(rest.len(), |at| open + at + close.len())
    };
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return until(2, "*/");
    }
    if rest.starts_with("'\\") {
        return until(3, "'");
    }
    if let Some(c) = rest.strip_prefix('\'').and_then(|rest| rest.chars().next()) {
        let end = 1 + c.len_utf8();
        return if rest[end..].starts_with('\'') {
            end + 1
        } else {
            0
        };
    }
    if let Some(raw) = rest.strip_prefix('r').filter(|_| !in_word) {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        if raw[hashes..].starts_with('"') {
            return until(hashes + 2, &format!("\"{}", "#".repeat(hashes)));
        }
    }
    if !rest.starts_with('"') {
        return 0;
    }
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            '"' if !escaped => return at + 1,
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    rest.len()
}

fn rust_files(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            rust_files(&path, files);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            files.push(path);
        }
    }
}

fn sources() -> Vec<Source> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    rust_files(&top.join("src"), &mut files);
    rust_files(&top.join("tests"), &mut files);
    files.sort();
    files
        .iter()
        .map(|file| {
            let path = file.strip_prefix(top).unwrap().to_str().unwrap();
            Source::new(path, &fs::read_to_string(file).unwrap())
        })
        .collect()
}

#[test]
fn every_file_keeps_the_rules() {
    let sources = sources();
    let faults = sources
        .iter()
        .flat_map(Source::faults)
        .map(|fault| fault.to_string());
    let faults = faults.collect::<Vec<_>>();

    assert!(
        sources.len() > 20,
        "the walk found only {} files",
        sources.len()
    );
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

#[test]
fn every_folder_of_src_is_a_layer() {
    for source in sources().iter().filter(|source| !source.is_outside()) {
        assert!(
            source.layer().is_some() || source.path == "src/lib.rs",
            "{}",
            source.path
        );
    }
}

/// Asserts that `text` as file `path` breaks one rule, at `line`, and that the message has `what`.
#[track_caller]
fn refused(path: &str, text: &str, line: usize, what: &str) {
    let faults = Source::new(path, text).faults();
    assert_eq!(faults.len(), 1, "{path}: {text}");
    assert_eq!(faults[0].line, line, "{}", faults[0]);
    assert!(faults[0].what.contains(what), "{}", faults[0]);
}

#[track_caller]
fn accepted(path: &str, text: &str) {
    let faults = Source::new(path, text).faults();
    assert!(faults.is_empty(), "{}", faults[0]);
}

#[test]
fn an_import_from_above_is_refused() {
    refused(
        "src/wire/ip.rs",
        "use std::fmt;\nuse crate::node::Node;\n",
        2,
        "`node` above",
    );
    refused(
        "src/engine/mod.rs",
        "fn f() -> crate::os::clock::Clock { g() }",
        1,
        "`os` above",
    );
    refused(
        "src/registry/api.rs",
        "use crate::cli::output;",
        1,
        "`cli` above",
    );
    accepted(
        "src/node/mod.rs",
        "use crate::wire::ip::Packet;\nuse crate::node::x;",
    );
    accepted(
        "src/wire/ip.rs",
        "// not crate::node\nconst S: &str = \"crate::node::x\";",
    );
}

#[test]
fn a_shortcut_in_an_import_is_refused() {
    refused(
        "src/cli/mod.rs",
        "use crate::{id::Did, wire};",
        1,
        "crate::{",
    );
    refused("src/cli/mod.rs", "use crate::*;", 1, "crate::*");
    refused(
        "src/cli/a/b.rs",
        "\n\nuse super::super::c;",
        3,
        "super::super",
    );
    accepted("src/cli/a/b.rs", "use super::c::{D, E};");
}

#[test]
fn io_in_a_pure_layer_is_refused() {
    for mark in IMPURE {
        let text = format!("fn f() {{}}\nfn g() {{ let _ = {mark} }}\n");
        refused("src/engine/paths.rs", &text, 2, mark);
        accepted("src/os/udp.rs", &text);
    }
    refused("src/id/key.rs", "use std::{fmt, fs};", 1, "std::fs");
    refused(
        "src/id/key.rs",
        "use std::{\n  fmt,\n  sync::{Arc, mpsc::channel},\n};",
        1,
        "mpsc",
    );
    refused("src/id/key.rs", "use std::fs::File;", 1, "std::fs");
    accepted(
        "src/id/key.rs",
        "use std::{fmt, net::{IpAddr, SocketAddr}, sync::Arc};",
    );
    accepted(
        "src/id/key.rs",
        "/// Unlike `Instant::now`.\nfn not_getrandom() {}",
    );
}

#[test]
fn tests_of_a_pure_file_may_do_io() {
    accepted(
        "src/engine/paths.rs",
        "fn f() {}\n#[cfg(test)]\nmod tests { use std::fs; }",
    );
    accepted("src/engine/paths/tests.rs", "use std::fs;");
    refused(
        "src/engine/paths.rs",
        "#[cfg(test)]\nuse std::fs;",
        2,
        "std::fs",
    );
}

#[test]
fn a_file_that_says_it_is_pure_is_held_to_it() {
    refused(
        "src/gateway/quota.rs",
        "//! Counts; pure.\nuse std::fs;",
        2,
        "std::fs",
    );
    accepted("src/gateway/quota.rs", "//! Counts.\nuse std::fs;");
    refused("src/gateway/mft.rs", "//! Routes frames.\n", 1, "must say");
    refused(
        "src/registry/watch/mod.rs",
        "//! Who hears what.\n",
        1,
        "must say",
    );
    accepted("src/gateway/mft.rs", "//! Routes frames. Pure.\n");
}

#[test]
fn boringtun_outside_its_files_is_refused() {
    refused(
        "src/gateway/attach.rs",
        "\nuse boringtun::noise::Tunn;",
        2,
        "boringtun",
    );
    accepted("src/engine/session.rs", "use boringtun::noise::Tunn;");
}

#[test]
fn a_long_file_is_refused() {
    refused(
        "src/os/udp.rs",
        &"\n".repeat(MAX_LINES + 1),
        MAX_LINES + 1,
        "split by idea",
    );
    refused(
        "tests/netns/world.rs",
        &"\n".repeat(MAX_LINES + 1),
        MAX_LINES + 1,
        "split by idea",
    );
    accepted("src/os/udp.rs", &"\n".repeat(MAX_LINES));
}

#[test]
fn comments_and_literals_are_not_code() {
    let text = "a // b \"c\n\"d \\\" e\" f r#\"g \" h\"# '\"' '\\'' i /* j\n */ k r\"l\" <'m>";
    let seen = code_of(text)
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    assert_eq!(seen, "a f i k <'m>");
}

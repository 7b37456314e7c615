//! Replays the corpus of every fuzz target (`scripts/fuzz`) on stable Rust.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{fs, path::Path};

#[expect(unreachable_pub, reason = "it is the library of the fuzz targets too")]
#[path = "fuzz/bodies/mod.rs"]
mod bodies;

/// Most that all corpora together take in the repository.
const MAX_CORPUS: u64 = 1 << 20; // bytes

fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fuzz/corpus")
        .join(target);
    let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{target}: {error}"));
    let mut inputs = files
        .map(|file| {
            let path = file.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (format!("{target}/{name}"), fs::read(path).unwrap())
        })
        .collect::<Vec<_>>();
    inputs.sort();
    inputs
}

#[track_caller]
fn replay(target: &str) {
    let inputs = corpus(target);
    assert!(!inputs.is_empty(), "{target} has no corpus");
    for (name, input) in inputs {
        let replayed = std::panic::catch_unwind(|| bodies::run(target, &input));
        assert!(replayed.is_ok(), "{name} fails, as told above");
    }
}

macro_rules! targets {
    ($($name:ident)*) => {
        /// The targets that are replayed below.
        const REPLAYED: &[&str] = &[$(stringify!($name)),*];

        $(#[test]
        fn $name() {
            replay(stringify!($name));
        })*
    };
}

targets! {
    chain channel dns engine gateway http message packet session settings state statement stun text tls
}

/// Targets, their files, their corpora and the tests here are the same list, and the whole is small.
#[test]
fn every_target_has_a_corpus_and_is_replayed() {
    let names = bodies::TARGETS
        .iter()
        .map(|(name, _)| *name)
        .collect::<Vec<_>>();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz");
    let mut files = fs::read_dir(folder.join("fuzz_targets"))
        .unwrap()
        .map(|file| {
            file.unwrap()
                .path()
                .file_stem()
                .unwrap()
                .to_string_lossy()
                .into_owned()
        })
        .collect::<Vec<_>>();
    files.sort();

    let inputs = names.iter().flat_map(|name| corpus(name));
    let size = inputs.map(|(_, input)| input.len() as u64).sum::<u64>();

    assert_eq!(REPLAYED, names);
    assert_eq!(files, names);
    assert!(names.iter().all(|name| !corpus(name).is_empty()));
    assert!(size < MAX_CORPUS, "{size} bytes");
}

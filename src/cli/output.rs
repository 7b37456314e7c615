//! The only place that prints.
#![expect(
    clippy::print_stderr,
    reason = "standard error is where a command complains"
)]

use std::io::{self, ErrorKind, Write};

use serde::Serialize;

use crate::cli::failure::{Exit, Failure};
use crate::wire::api::local::Versioned;

/// A fact that can be told to a person; programs get the same type as JSON.
pub(super) trait Show {
    /// Returns the text, without a final line break.
    fn show(&self) -> String;
}

/// How a command tells what it found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Output {
    pub(super) json: bool,
    pub(super) quiet: bool,
}

impl Output {
    /// Prints facts that were asked for.
    pub(super) fn print(self, facts: &(impl Serialize + Show)) -> Result<(), Failure> {
        if self.json {
            return self.json_line(facts);
        }
        line(&facts.show())
    }

    /// Prints what a command did; `--quiet` leaves it out.
    pub(super) fn done(self, facts: &(impl Serialize + Show)) -> Result<(), Failure> {
        if self.quiet && !self.json {
            return Ok(());
        }
        self.print(facts)
    }

    fn json_line(self, facts: &impl Serialize) -> Result<(), Failure> {
        match serde_json::to_string(&Versioned::new(facts)) {
            Ok(text) => line(&text),
            Err(error) => Err(Failure::new(
                Exit::Failed,
                format!("cannot write JSON: {error}"),
            )),
        }
    }

    /// Tells a person something beside the facts, on standard error.
    pub(super) fn note(self, text: &str) {
        if !self.quiet {
            eprintln!("{text}");
        }
    }
}

/// Prints one line of text as it is.
pub(super) fn line(text: &str) -> Result<(), Failure> {
    raw(format!("{text}\n").as_bytes())
}

/// Prints bytes as they are.
pub(super) fn raw(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    let written = out.write_all(bytes).and_then(|()| out.flush());
    written.map_err(|error| {
        if error.kind() == ErrorKind::BrokenPipe {
            return Failure::closed();
        }
        let what = format!("cannot write to standard output: {error}");
        Failure::new(Exit::Failed, what)
    })
}

/// Tells why a command was not done.
pub(super) fn complain(failure: &Failure) {
    if failure.what.is_empty() {
        return;
    }
    let mut text = format!("agentnet: {}", failure.what);
    if let Some(hint) = &failure.hint {
        text.push_str("\n  hint: ");
        text.push_str(hint);
    }
    if let Some(code) = failure.code {
        text.push_str("\n  code: ");
        text.push_str(code);
    }
    // Nobody is left to tell when standard error is gone too.
    drop(writeln!(io::stderr(), "{text}"));
}

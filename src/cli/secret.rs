//! Tokens, and where commands get them from.

use std::{
    io::{self, IsTerminal},
    path::PathBuf,
};

use clap::Args;

use crate::cli::context::env;
use crate::cli::failure::{Exit, Failure};
use crate::cli::output::Output;
use crate::os::files;
use crate::statement::token::OperatorToken;

/// The environment variable that carries a join token itself.
const JOIN: &str = "AGENTNET_TOKEN";

/// A join token; commands say in their own words what they do with it.
#[derive(Args, Clone, Debug)]
pub(super) struct JoinTokenArg {
    /// Join by the token in FILE [env: AGENTNET_TOKEN carries the token itself]
    #[arg(
        long,
        value_name = "FILE",
        env = "AGENTNET_TOKEN_FILE",
        hide_env_values = true
    )]
    token_file: Option<PathBuf>,
}

impl JoinTokenArg {
    /// Returns the file that holds it; None for one in the environment, and where none is given.
    pub(super) fn file(&self) -> Option<PathBuf> {
        self.token_file.clone()
    }

    /// Returns this one, or where no file is named that of `file`.
    pub(super) fn or_else(&self, file: impl FnOnce() -> Option<PathBuf>) -> Self {
        Self {
            token_file: self.file().or_else(file),
        }
    }

    /// Tells whether there is one.
    pub(super) fn is_given(&self) -> bool {
        self.token_file.is_some() || env(JOIN).is_some()
    }

    /// Returns where it is to be read.
    pub(super) fn secret(&self) -> Result<Secret, Failure> {
        Secret::of("--token-file", self.file(), JOIN)
    }
}

/// An operator's token.
#[derive(Args, Debug)]
pub(super) struct OperatorTokenArg {
    /// Read the operator token from FILE, or from standard input when it is - (or set
    /// AGENTNET_OPERATOR_TOKEN to the token itself)
    #[arg(
        long,
        value_name = "FILE",
        env = "AGENTNET_OPERATOR_TOKEN_FILE",
        hide_env_values = true
    )]
    operator_token_file: Option<PathBuf>,
}

impl OperatorTokenArg {
    /// Reads it; blocks on standard input.
    pub(super) fn read(self) -> Result<OperatorToken, Failure> {
        let (option, variable) = ("--operator-token-file", "AGENTNET_OPERATOR_TOKEN");
        let secret = Secret::of(option, self.operator_token_file, variable)?;
        Ok(secret.read()?.parse()?)
    }
}

/// Where a secret comes from: never the command line, which every process of the host can read.
#[derive(Clone, Debug)]
pub(super) enum Secret {
    File(PathBuf),
    Stdin,
    /// The text, from the environment.
    Given(String),
}

impl Secret {
    /// Decides between what an option named and what the environment holds.
    fn of(option: &str, named: Option<PathBuf>, variable: &str) -> Result<Self, Failure> {
        let Some(path) = named else {
            let given = env(variable);
            let missing = || {
                Failure::usage(format!("no token: {option} FILE is needed")).hint(format!(
                    "{option} - reads standard input; {variable} in the environment works too"
                ))
            };
            return given.map(Self::Given).ok_or_else(missing);
        };
        let text = path.as_os_str().as_encoded_bytes();
        if text.starts_with(b"agn1_") || text.starts_with(b"agno1_") {
            return Err(Failure::usage(format!("{option} takes a file, not the token itself"))
                .hint("every process of this host can read a command line: put the token into a file, or pass - and standard input"));
        }
        if text == b"-" {
            return Ok(Self::Stdin);
        }
        Ok(Self::File(path))
    }

    /// Reads the secret; blocks on standard input.
    pub(super) fn read(&self) -> Result<String, Failure> {
        let text = match self {
            Self::File(path) => files::read_text(path)?,
            Self::Given(text) => text.trim().to_owned(),
            Self::Stdin => {
                let stdin = io::stdin();
                if stdin.is_terminal() {
                    Output {
                        json: false,
                        quiet: false,
                    }
                    .note("Paste the token, then press Enter and Ctrl-D:");
                }
                files::read_text_from(stdin.lock()).map_err(|error| {
                    Failure::new(Exit::Failed, format!("cannot read standard input: {error}"))
                })?
            }
        };
        if text.is_empty() {
            return Err(Failure::new(Exit::Failed, "the token is empty"));
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_on_the_command_line_is_refused_and_not_repeated() {
        let failure = Secret::of("--token-file", Some("agn1_secret".into()), "NONE").unwrap_err();

        assert_eq!(failure.exit, Exit::Usage);
        assert!(!format!("{failure:?}").contains("secret"));
    }
}

mod node;

use std::{
    error::Error,
    io::{self, ErrorKind},
    process::ExitCode,
};

use crate::config::ConfigError;
use crate::node::causes::with_causes;
use crate::os::files::{FileError, trouble};
use crate::os::lock::LockError;
use crate::os::paths::PathError;
use crate::registry::client::ClientError;
use crate::statement::token::TokenError;
use crate::wire::api::problem::{Code, Problem};

/// How a command ended, as scripts see it; never renumbered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Exit {
    Done = 0,
    Failed = 1,
    Usage = 2,
    Denied = 3,
    NotFound = 4,
    Unreachable = 5,
    /// `agentnet run` failed before its program could; these three are those of env(1).
    NotRun = 125,
    NotStartable = 126,
    NoProgram = 127,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command was not done: what failed and why, and what to do about it.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) exit: Exit,
    /// Empty when there is nothing to tell.
    pub(super) what: String,
    pub(super) hint: Option<String>,
    /// The cause as scripts tell it, where exit codes do not; never renamed.
    pub(super) code: Option<&'static str>,
}

impl Failure {
    pub(super) fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self {
            exit,
            what: what.into(),
            hint: None,
            code: None,
        }
    }

    pub(super) fn usage(what: impl Into<String>) -> Self {
        Self::new(Exit::Usage, what)
    }

    #[must_use]
    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    #[must_use]
    pub(super) fn code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    /// Adds cure and code of what is the matter with a disk, if that is the cause.
    fn of_disk(mut self, cause: &io::Error) -> Self {
        if cause.kind() == ErrorKind::PermissionDenied {
            self.exit = Exit::Denied;
        }
        match trouble(cause) {
            Some((code, cure)) => self.hint(cure).code(code),
            None => self,
        }
    }

    /// The reader of our output has enough; that is how `| head` ends, and no failure.
    pub(super) fn closed() -> Self {
        Self::new(Exit::Done, "")
    }

    pub(super) fn of(exit: Exit, error: &(dyn Error + 'static)) -> Self {
        Self::new(exit, with_causes(error))
    }
}

fn is_permission(error: &(dyn Error + 'static)) -> bool {
    let io = error.source().and_then(|e| e.downcast_ref::<io::Error>());
    io.is_some_and(|e| e.kind() == ErrorKind::PermissionDenied)
}

impl From<FileError> for Failure {
    fn from(error: FileError) -> Self {
        let exit = if is_permission(&error) {
            Exit::Denied
        } else {
            Exit::Failed
        };
        let hint = error.cure();
        Self {
            hint,
            code: error.code(),
            ..Self::of(exit, &error)
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::of(Exit::Usage, &error)
    }
}

impl From<PathError> for Failure {
    fn from(error: PathError) -> Self {
        let hint = match &error {
            PathError::NoState => "name a state directory with --state DIR",
            PathError::SocketTooLong(_) => "name a shorter one with --socket PATH",
        };
        Self::of(Exit::Usage, &error).hint(hint)
    }
}

impl From<LockError> for Failure {
    fn from(error: LockError) -> Self {
        let failure = Self::of(Exit::Failed, &error);
        match error {
            LockError::Held { .. } => failure
                .hint("an agentnet is running there: stop it (agentnet down), or name another directory")
                .code("node_elsewhere"),
            LockError::Io { ref source, .. } => failure.of_disk(source),
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let exit = match &error {
            ClientError::Unreachable { .. } => Exit::Unreachable,
            ClientError::Denied(_) | ClientError::BadPin(_) | ClientError::WrongDomain => {
                Exit::Denied
            }
            ClientError::NotFound(_) => Exit::NotFound,
            ClientError::BadUrl(_)
            | ClientError::ClockSkew { .. }
            | ClientError::Lapsed(_)
            | ClientError::Malformed(_)
            | ClientError::Problem(_)
            | ClientError::Tls(_) => Exit::Failed,
        };
        let hint = match &error {
            ClientError::Unreachable { .. } => {
                Some("check that the registry runs and that this host can reach it")
            }
            ClientError::ClockSkew { .. } => Some("set the clock of this machine"),
            ClientError::BadPin(_) | ClientError::WrongDomain => Some(
                "somebody else answers at that address, or the registry has a new key: ask its operator for a new token",
            ),
            ClientError::Lapsed(_) => Some("tell the operator to sign the registry's key anew"),
            ClientError::BadUrl(_) | ClientError::Malformed(_) | ClientError::Tls(_) => None,
            ClientError::Denied(p) | ClientError::NotFound(p) | ClientError::Problem(p) => {
                Some(p.hint.as_str())
            }
        };
        let mut failure = Self::of(exit, &error);
        failure.hint = hint.map(str::to_owned);
        failure
    }
}

impl From<TokenError> for Failure {
    fn from(error: TokenError) -> Self {
        Self::of(Exit::Usage, &error).hint("ask for the token again, and keep it in one piece")
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        let exit = match (problem.code, problem.status) {
            (Code::AddressOutside | Code::BadRequest, _) => Exit::Usage,
            (Code::ClockSkew, _) => Exit::Failed,
            (Code::AddressTaken | Code::KeyTaken, _) => Exit::Denied,
            (Code::LabelTaken | Code::NameTaken, _) => Exit::Denied,
            (_, 401 | 403) => Exit::Denied,
            (_, 404) => Exit::NotFound,
            (_, 408 | 502..=504) => Exit::Unreachable,
            _ => Exit::Failed,
        };
        let hint = Some(problem.hint.clone()).filter(|hint| !hint.is_empty());
        Self {
            hint,
            code: (problem.code == Code::StateUnsaved).then_some("state_unsaved"),
            ..Self::new(exit, problem.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_keeps_its_meaning_as_exit_code() {
        for (code, exit) in [
            (Code::Forbidden, Exit::Denied),
            (Code::TokenExpired, Exit::Denied),
            (Code::NotFound, Exit::NotFound),
            (Code::Unreachable, Exit::Unreachable),
            (Code::Timeout, Exit::Unreachable),
            (Code::BadRequest, Exit::Usage),
            (Code::NameTaken, Exit::Denied),
            (Code::ClockSkew, Exit::Failed),
            (Code::Internal, Exit::Failed),
        ] {
            let failure = Failure::from(Problem::new(code));

            assert_eq!(failure.exit, exit, "{code}");
            assert!(failure.hint.is_some());
        }
    }
}

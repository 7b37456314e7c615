use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Longest path of a control group, as of any file (PATH_MAX).
const MAX_PATH: usize = 4096; // bytes

/// Whose programs alone may use an agent that is on the host's own network.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Binding {
    /// Those of the control group and of the groups below it.
    Cgroup(CgroupPath),
    /// Those of the user with this number.
    User(u32),
}

impl fmt::Display for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cgroup(path) => write!(f, "cgroup {path}"),
            Self::User(number) => write!(f, "user {number}"),
        }
    }
}

/// Path of a control group below the root of the unified hierarchy, as in /proc/PID/cgroup:
/// `/system.slice/planner.service`.
#[derive(Clone, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(into = "String", try_from = "String")]
pub struct CgroupPath(String);

impl CgroupPath {
    /// Returns it without the slash it begins with.
    pub fn below_root(&self) -> &str {
        self.0.trim_start_matches('/')
    }
}

impl fmt::Display for CgroupPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What makes a text no path of a control group.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum CgroupPathError {
    #[error("the path of a control group begins with /, as in /proc/PID/cgroup")]
    Relative,
    #[error("every process is below the root of control groups: name one of its groups")]
    Root,
    #[error("the path has a part that is empty, `.` or `..`")]
    Part,
    #[error("the path is longer than {MAX_PATH} bytes")]
    TooLong,
}

impl FromStr for CgroupPath {
    type Err = CgroupPathError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let below = text.strip_prefix('/').ok_or(CgroupPathError::Relative)?;
        let below = below.strip_suffix('/').unwrap_or(below);
        if below.is_empty() {
            return Err(CgroupPathError::Root);
        }
        if below.len() >= MAX_PATH {
            return Err(CgroupPathError::TooLong);
        }
        if below.split('/').any(|part| ["", ".", ".."].contains(&part)) {
            return Err(CgroupPathError::Part);
        }
        Ok(Self(format!("/{below}")))
    }
}

impl TryFrom<String> for CgroupPath {
    type Error = CgroupPathError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<CgroupPath> for String {
    fn from(path: CgroupPath) -> Self {
        path.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_to_one_group_below_the_root() {
        let parse = |text: &str| text.parse::<CgroupPath>().map(String::from);

        assert_eq!(parse("/a.slice/b").as_deref(), Ok("/a.slice/b"));
        assert_eq!(parse("/a.slice/").as_deref(), Ok("/a.slice"));
        assert_eq!(parse("a.slice"), Err(CgroupPathError::Relative));
        assert_eq!(parse("/"), Err(CgroupPathError::Root));
        assert_eq!(parse("//"), Err(CgroupPathError::Root));
        for odd in ["/a/../b", "/a//b", "/./a"] {
            assert_eq!(parse(odd), Err(CgroupPathError::Part), "{odd}");
        }
        let long = format!("/{}", "a".repeat(MAX_PATH));
        assert_eq!(parse(&long), Err(CgroupPathError::TooLong));
    }
}

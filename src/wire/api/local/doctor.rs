use serde::{Deserialize, Serialize};

use crate::id::UnixTime;

/// What `agentnet doctor` says.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Diagnosis {
    pub version: String,
    pub now: UnixTime,
    /// Whether a node runs here.
    pub daemon: bool,
    /// In the order in which one thing rests on another.
    pub checks: Vec<Check>,
}

impl Diagnosis {
    /// Returns what is broken.
    pub fn broken(&self) -> impl Iterator<Item = &Check> {
        let checks = self.checks.iter();
        checks.filter(|check| check.state == CheckState::Broken)
    }
}

/// One thing that was looked at. Something may be found about it more than once, each time with a check of its own.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Check {
    /// What was looked at, as `tun` or `registry`.
    pub check: String,
    pub state: CheckState,
    pub text: String,
    /// Stable name of what was found; None where all is well, or nothing could be found out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cure: Option<String>,
}

/// How one thing stands.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckState {
    /// Agents do not work as they should until somebody acts.
    Broken,
    /// Agents work, and somebody may want to know.
    Odd,
    /// It was not looked at: the text says why.
    Unknown,
    Well,
}

use serde::{Deserialize, Serialize};

/// Query of `GET /v1/capture`, which answers with packets as pcapng until the caller has enough.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct CaptureQuery {
    /// Name of the local agent; None for all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// Name of the agent at the other end; None for everybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// Packets after which it ends; None for no end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
}

/// `GET /v1/log`: the last lines of the daemon's log, of `info` and above.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct LogLines {
    /// Oldest first.
    pub lines: Vec<String>,
}

/// `GET /v1/metrics`: what docs/metrics.md has, as Prometheus reads it.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Metrics {
    pub text: String,
}

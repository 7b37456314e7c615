//! A registry's metrics: numbers, and nothing by which an agent or a network is known; docs/metrics.md has the
//! same table.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::http::StatusCode;

use crate::os::clock;
use crate::registry::api::App;
use crate::registry::store::Counts;
use crate::wire::metrics::{Exposition, Metric, counter, gauge};

const REQUESTS: Metric = counter(
    "agentnet_registry_requests_total",
    "Requests answered, by what the answer was.",
);
const WATCHES: Metric = gauge("agentnet_registry_watches", "Event streams that are open.");
const READY: Metric = gauge("agentnet_registry_ready", "Whether the database answers.");
const NETWORKS: Metric = gauge("agentnet_registry_networks", "Networks.");
const RECORDS: Metric = gauge(
    "agentnet_registry_records",
    "Agents whose record is kept now.",
);
const GATEWAYS: Metric = gauge("agentnet_registry_gateways", "Gateways enrolled.");

/// How answers are told apart.
const ANSWERS: [&str; 4] = ["done", "limited", "refused", "failed"];

/// Counts answers.
#[derive(Debug, Default)]
pub struct Answers([AtomicU64; ANSWERS.len()]);

impl Answers {
    /// Counts one.
    pub fn count(&self, status: StatusCode) {
        let kind = match status.as_u16() {
            429 => 1,
            400..=499 => 2,
            500.. => 3,
            _ => 0,
        };
        if let Some(count) = self.0.get(kind) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn all(&self) -> [(&'static str, u64); ANSWERS.len()] {
        let counts = self.0.each_ref().map(|count| count.load(Ordering::Relaxed));
        std::array::from_fn(|kind| (ANSWERS[kind], counts[kind]))
    }
}

/// Reads a registry.
pub async fn read(app: Arc<App>) -> Option<String> {
    let counts = app.counts(clock::unix()).await.ok();
    Some(text(app.answers(), app.watches(), counts))
}

fn text(answers: &Answers, watches: usize, counts: Option<Counts>) -> String {
    let mut text = Exposition::default();
    text.put_each(REQUESTS, "answer", answers.all());
    text.put(WATCHES, watches as u64);
    text.put(READY, u64::from(counts.is_some()));
    // What is not known is not told as 0.
    if let Some(counts) = counts {
        text.put(NETWORKS, counts.networks);
        text.put(RECORDS, counts.records);
        text.put(GATEWAYS, counts.gateways);
    }
    text.finish()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const COUNTS: Counts = Counts {
        networks: 3,
        records: 20,
        gateways: 2,
    };

    /// Returns what a registry exposes.
    pub(crate) fn sample() -> String {
        let answers = Answers::default();
        for status in [200, 202, 404, 429, 500] {
            answers.count(StatusCode::from_u16(status).unwrap());
        }
        text(&answers, 5, Some(COUNTS))
    }

    #[test]
    fn answers_are_told_apart() {
        let text = sample();

        for line in [
            "agentnet_registry_requests_total{answer=\"done\"} 2",
            "agentnet_registry_requests_total{answer=\"limited\"} 1",
            "agentnet_registry_requests_total{answer=\"refused\"} 1",
            "agentnet_registry_requests_total{answer=\"failed\"} 1",
            "agentnet_registry_ready 1",
            "agentnet_registry_records 20",
        ] {
            assert!(text.lines().any(|of| of == line), "{line}: {text}");
        }
    }

    #[test]
    fn a_database_that_does_not_answer_is_told() {
        let text = text(&Answers::default(), 0, None);

        assert!(text.contains("agentnet_registry_ready 0\n"), "{text}");
        assert!(!text.contains("agentnet_registry_records"), "{text}");
    }
}

//! Metrics in the text format that Prometheus and others read (version 0.0.4).
//!
//! What is exposed is made anew for each reading from what a status tells, so that nothing on the way of
//! a packet knows of metrics.

use std::fmt::Write;

use crate::wire::drop::{Counters, DropReason};

/// The media type of the format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Returns a metric whose value rises and falls.
pub const fn gauge(name: &'static str, help: &'static str) -> Metric {
    let kind = Kind::Gauge;
    Metric { name, kind, help }
}

/// Returns a metric whose value only rises.
pub const fn counter(name: &'static str, help: &'static str) -> Metric {
    let kind = Kind::Counter;
    Metric { name, kind, help }
}

/// What every daemon counts of what it dropped.
pub const DROPPED: Metric = Metric {
    name: "agentnet_dropped_total",
    kind: Kind::Counter,
    help: "Packets, frames and messages dropped, by reason.",
};

/// Whether a value only rises.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    Counter,
    Gauge,
}

/// A metric, whatever its value.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Metric {
    /// With the unit at its end; counters end in `_total`.
    pub name: &'static str,
    pub kind: Kind,
    pub help: &'static str,
}

/// A text under way.
#[derive(Clone, Debug, Default)]
pub struct Exposition(String);

impl Exposition {
    /// Adds a metric without labels.
    pub fn put(&mut self, metric: Metric, value: u64) {
        self.begin(metric);
        self.line(metric.name, None, value);
    }

    /// Adds a metric with one label, whose values are names that need no quoting.
    pub fn put_each(
        &mut self,
        metric: Metric,
        label: &str,
        values: impl IntoIterator<Item = (&'static str, u64)>,
    ) {
        self.begin(metric);
        for (of, value) in values {
            self.line(metric.name, Some((label, of)), value);
        }
    }

    /// Adds a metric with a line for each set of labels; seconds come as fractions.
    pub fn put_rows<const N: usize>(
        &mut self,
        metric: Metric,
        rows: impl IntoIterator<Item = ([(&'static str, String); N], f64)>,
    ) {
        self.begin(metric);
        for (labels, value) in rows {
            let labels = labels.map(|(label, of)| format!("{label}=\"{}\"", quoted(&of)));
            let (name, labels) = (metric.name, labels.join(","));
            self.write(format_args!("{name}{{{labels}}} {value}\n"));
        }
    }

    /// Adds a metric without labels that is a fraction.
    pub fn put_fraction(&mut self, metric: Metric, value: f64) {
        self.begin(metric);
        self.write(format_args!("{} {value}\n", metric.name));
    }

    /// Adds what was dropped, every reason named, since one that never happened is 0 and not unknown.
    pub fn put_drops(&mut self, drops: &Counters) {
        let all = DropReason::ALL.iter();
        self.put_each(DROPPED, "reason", all.map(|of| (of.label(), drops.of(*of))));
    }

    /// Returns the text.
    pub fn finish(self) -> String {
        self.0
    }

    fn begin(&mut self, metric: Metric) {
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        let Metric { name, help, .. } = metric;
        self.write(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    fn line(&mut self, name: &str, label: Option<(&str, &str)>, value: u64) {
        match label {
            Some((label, of)) => self.write(format_args!("{name}{{{label}=\"{of}\"}} {value}\n")),
            None => self.write(format_args!("{name} {value}\n")),
        }
    }

    fn write(&mut self, text: std::fmt::Arguments<'_>) {
        self.0.write_fmt(text).expect("a string takes everything");
    }
}

/// Quotes what a label says, as the format wants it.
fn quoted(text: &str) -> String {
    let text = text.replace('\\', "\\\\").replace('"', "\\\"");
    text.replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_as_the_format_has_it() {
        let (up, frames) = (
            Metric {
                name: "agentnet_up",
                kind: Kind::Gauge,
                help: "Whether it runs.",
            },
            Metric {
                name: "agentnet_frames_total",
                kind: Kind::Counter,
                help: "Frames.",
            },
        );
        let mut text = Exposition::default();

        text.put(up, 1);
        text.put_each(frames, "way", [("in", 2), ("out", 3)]);

        let expected = "# HELP agentnet_up Whether it runs.\n# TYPE agentnet_up gauge\nagentnet_up 1\n\
                        # HELP agentnet_frames_total Frames.\n# TYPE agentnet_frames_total counter\n\
                        agentnet_frames_total{way=\"in\"} 2\nagentnet_frames_total{way=\"out\"} 3\n";
        assert_eq!(text.finish(), expected);
    }

    #[test]
    fn labels_are_quoted_and_seconds_are_fractions() {
        let rtt = Metric {
            name: "agentnet_rtt_seconds",
            kind: Kind::Gauge,
            help: "How long.",
        };
        let mut text = Exposition::default();

        text.put_rows(rtt, [([("of", "a\"b\\c\nd".to_owned())], 0.25)]);

        let text = text.finish();
        let line = text.lines().last().unwrap();
        assert_eq!(line, r#"agentnet_rtt_seconds{of="a\"b\\c\nd"} 0.25"#);
    }

    #[test]
    fn every_reason_is_there_before_it_happens() {
        let (mut text, mut drops) = (Exposition::default(), Counters::default());
        drops.add(DropReason::FrameTag, 7);

        text.put_drops(&drops);

        let text = text.finish();
        assert_eq!(text.lines().count(), 2 + DropReason::ALL.len());
        assert!(text.contains("agentnet_dropped_total{reason=\"frame_tag\"} 7\n"));
        assert!(text.contains("agentnet_dropped_total{reason=\"frame_ttl\"} 0\n"));
    }
}

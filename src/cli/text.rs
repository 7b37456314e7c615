//! Facts as a person reads them: tables, ages, sizes.

use crate::id::UnixTime;
use crate::statement::Scope;

/// Space between the columns of a table.
const GAP: &str = "  ";

/// Rows under a head, columns aligned.
pub(super) struct Table<const N: usize> {
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    pub(super) fn new(head: [&str; N]) -> Self {
        Self {
            rows: vec![head.map(str::to_owned)],
        }
    }

    pub(super) fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells);
    }

    /// Returns the lines, or `empty` when there is no row.
    pub(super) fn text(&self, empty: &str) -> String {
        if self.rows.len() == 1 {
            return empty.to_owned();
        }
        let widths = (0..N).map(|column| {
            let lengths = self.rows.iter().map(|row| row[column].chars().count());
            lengths.max().unwrap_or_default()
        });
        let widths = widths.collect::<Vec<_>>();
        let lines = self.rows.iter().map(|row| {
            let cells = row.iter().zip(&widths).map(|(cell, width)| {
                let room = width - cell.chars().count();
                format!("{cell}{:room$}", "")
            });
            cells.collect::<Vec<_>>().join(GAP).trim_end().to_owned()
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}

/// Returns `text` with every line moved in.
pub(super) fn indented(text: &str) -> String {
    let lines = text.lines().map(|line| format!("  {line}"));
    lines.collect::<Vec<_>>().join("\n")
}

/// Returns how long ago `then` was.
pub(super) fn ago(now: UnixTime, then: UnixTime) -> String {
    match now.since(then).as_secs() {
        0 => "now".to_owned(),
        secs => format!("{} ago", span(secs)),
    }
}

/// Returns how long until `then`.
pub(super) fn until(now: UnixTime, then: UnixTime) -> String {
    match then.since(now).as_secs() {
        0 => "over".to_owned(),
        secs => format!("in {}", span(secs)),
    }
}

/// Returns a number of seconds in its largest whole unit.
pub(super) fn span(secs: u64) -> String {
    match secs {
        _ if secs > 0 && secs.is_multiple_of(86_400) => format!("{} d", secs / 86_400),
        _ if secs > 0 && secs.is_multiple_of(3600) => format!("{} h", secs / 3600),
        0..120 => format!("{secs} s"),
        120..7200 => format!("{} min", secs / 60),
        7200..172_800 => format!("{} h", secs / 3600),
        _ => format!("{} d", secs / 86_400),
    }
}

/// Returns a number of bytes in a unit that keeps it short.
pub(super) fn bytes(n: u64) -> String {
    let units = ["B", "KB", "MB", "GB", "TB"];
    let mut value = n;
    let mut tenths = 0;
    let mut unit = 0;
    while value >= 1000 && unit + 1 < units.len() {
        tenths = value % 1000 / 100;
        value /= 1000;
        unit += 1;
    }
    if unit == 0 {
        return format!("{value} {}", units[unit]);
    }
    format!("{value}.{tenths} {}", units[unit])
}

/// Returns a time that may not have come yet.
pub(super) fn ago_or_never(now: UnixTime, then: Option<UnixTime>) -> String {
    then.map_or_else(|| "never".to_owned(), |then| ago(now, then))
}

/// Returns what a consent lets through, in words.
pub(super) fn scope(scope: &Scope) -> String {
    if scope.is_replies_only() {
        return "replies only".to_owned();
    }
    scope.to_string()
}

/// Returns what a consent lets through, or a dash where there is none.
pub(super) fn consent(given: Option<&Scope>) -> String {
    given.map_or_else(|| "-".to_owned(), scope)
}

/// Returns round-trip time.
pub(super) fn millis(ms: f64) -> String {
    if ms < 10.0 {
        format!("{ms:.2} ms")
    } else {
        format!("{ms:.1} ms")
    }
}

/// Joins names for a sentence or a cell.
pub(super) fn list(items: impl IntoIterator<Item = impl ToString>) -> String {
    let texts = items.into_iter().map(|item| item.to_string());
    texts.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_end_at_their_text() {
        let mut table = Table::new(["NAME", "STATE", "PATH"]);
        table.row(["planner".to_owned(), "up".to_owned(), String::new()]);

        assert_eq!(table.text("none"), "NAME     STATE  PATH\nplanner  up");
        assert_eq!(Table::new(["NAME"]).text("none"), "none");
    }

    #[test]
    fn ages_and_sizes_are_short() {
        let now = UnixTime::from_secs(1_000_000);
        let before = |secs: u64| UnixTime::from_secs(1_000_000 - secs);

        assert_eq!(ago(now, now), "now");
        assert_eq!(ago(now, before(119)), "119 s ago");
        assert_eq!(ago(now, before(150)), "2 min ago");
        assert_eq!(until(before(90_000), now), "in 25 h");
        assert_eq!(until(before(190_000), now), "in 2 d");
        assert_eq!((span(3600), span(86_400)), ("1 h".into(), "1 d".into()));
        assert_eq!(until(now, before(1)), "over");
        assert_eq!(
            (bytes(999), bytes(1_234_567)),
            ("999 B".into(), "1.2 MB".into())
        );
    }
}

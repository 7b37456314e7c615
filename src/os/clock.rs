//! The only place that reads a clock; everything else takes the time as an argument.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::id::UnixTime;

/// Returns the monotonic time.
#[expect(clippy::disallowed_methods, reason = "this is the one reader")]
pub fn now() -> Instant {
    Instant::now()
}

/// Returns the wall-clock time; a clock before 1970 reads as 1970.
#[expect(clippy::disallowed_methods, reason = "this is the one reader")]
pub fn unix() -> UnixTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map(UnixTime::from).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_clocks_go_forward() {
        let (start, unix_start) = (now(), unix());

        assert!(now() >= start);
        assert!(unix() >= unix_start);
        assert!(unix_start > UnixTime::from_secs(1_700_000_000));
    }
}

//! The only place that reads a clock; everything else takes the time as an argument.

use std::{
    sync::OnceLock,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use nix::time::{ClockId, clock_gettime};

use crate::id::UnixTime;

/// Returns the monotonic time.
#[expect(clippy::disallowed_methods, reason = "this is the one reader")]
pub fn now() -> Instant {
    Instant::now()
}

/// Returns the time since boot as a moment of its own: unlike [`now`] it goes on while the host
/// sleeps, so that what ends meanwhile has ended (as WireGuard in the kernel counts).
///
/// Moments of the two clocks are never compared with each other.
pub fn boot() -> Instant {
    static FIRST: OnceLock<(Instant, Option<Duration>)> = OnceLock::new();
    let read = || clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from);
    let (first, since) = FIRST.get_or_init(|| (now(), read().ok()));
    match (since, read()) {
        (Some(since), Ok(boot)) => *first + boot.saturating_sub(*since),
        // A kernel without this clock, which none is that we run on.
        (None, _) | (_, Err(_)) => now(),
    }
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
    fn all_clocks_go_forward() {
        let (start, boot_start, unix_start) = (now(), boot(), unix());

        assert!(now() >= start && boot() >= boot_start);
        assert!(unix() >= unix_start);
        assert!(unix_start > UnixTime::from_secs(1_700_000_000));
    }
}

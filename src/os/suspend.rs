//! Whether the host slept: it keeps one clock that counts sleep and one that does not.

use std::{io, time::Duration};

use nix::{
    errno::Errno,
    sys::{
        time::TimeSpec,
        timer::{Expiration, TimerSetTimeFlags},
        timerfd::{ClockId as TimerClock, TimerFd, TimerFlags},
    },
    time::{ClockId, clock_gettime},
};
use tokio::net::unix::pipe::Receiver;

/// A shorter sleep is a pause like any other: nobody took us for gone meanwhile. Far above what can
/// pass between the readings of two clocks.
const SHORTEST: Duration = Duration::from_secs(1);

/// A moment that never comes: the year 2255.
const NEVER: i64 = 9_000_000_000; // seconds since 1970

/// How long the host has been up, by both clocks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Uptime {
    /// Without sleep (`CLOCK_MONOTONIC`).
    pub awake: Duration,
    /// With sleep (`CLOCK_BOOTTIME`).
    pub whole: Duration,
}

impl Uptime {
    /// Reads both clocks.
    pub fn now() -> io::Result<Self> {
        let read = |clock| clock_gettime(clock).map(Duration::from);
        Ok(Self {
            awake: read(ClockId::CLOCK_MONOTONIC)?,
            whole: read(ClockId::CLOCK_BOOTTIME)?,
        })
    }

    /// Returns how long the host slept since `earlier`; None when it did not, for all that matters.
    pub fn slept_since(self, earlier: Self) -> Option<Duration> {
        let awake = self.awake.saturating_sub(earlier.awake);
        let whole = self.whole.saturating_sub(earlier.whole);
        Some(whole.saturating_sub(awake)).filter(|slept| *slept >= SHORTEST)
    }
}

/// Tells when the host woke up, and costs nothing while it does not sleep.
#[derive(Debug)]
pub struct Wakings {
    timer: Receiver,
    last: Uptime,
}

impl Wakings {
    /// Begins to listen; lives on the current tokio runtime.
    pub fn open() -> io::Result<Self> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(TimerClock::CLOCK_REALTIME, flags)?;
        // The kernel cancels such a timer when wall time jumps against the monotonic clock, as it
        // does on resume (timerfd_create(2)); that is the only notice a program gets.
        let flags =
            TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
        timer.set(Expiration::OneShot(TimeSpec::new(NEVER, 0)), flags)?;
        Ok(Self {
            // This end of a pipe reads any descriptor that can be waited for.
            timer: Receiver::from_owned_fd_unchecked(timer.into())?,
            last: Uptime::now()?,
        })
    }

    /// Waits until the host woke up, and returns how long it slept; clocks that were set are passed
    /// over.
    ///
    /// # Cancel safety
    ///
    /// Safe: a sleep that was not waited for is told the next time.
    pub async fn slept(&mut self) -> io::Result<Duration> {
        loop {
            let now = Uptime::now()?;
            let slept = now.slept_since(self.last);
            self.last = now;
            if let Some(slept) = slept {
                return Ok(slept);
            }
            self.timer.readable().await?;
            match self.timer.try_read(&mut [0; 8]) {
                // Told, or told before.
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(Errno::ECANCELED as i32) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    const fn at(awake_ms: u64, whole_ms: u64) -> Uptime {
        Uptime {
            awake: Duration::from_millis(awake_ms),
            whole: Duration::from_millis(whole_ms),
        }
    }

    #[test]
    fn sleep_is_what_only_one_clock_counted() {
        let before = at(1000, 501_000);

        assert_eq!(at(1000, 501_000).slept_since(before), None);
        assert_eq!(at(90_000, 590_000).slept_since(before), None);
        assert_eq!(
            at(1500, 601_500).slept_since(before),
            Some(Duration::from_secs(100))
        );
    }

    #[test]
    fn what_passes_between_two_readings_is_no_sleep() {
        // Held up for 999 ms between the two clocks, in either reading.
        assert_eq!(at(1000, 1999).slept_since(at(1000, 1000)), None);
        assert_eq!(at(1999, 2998).slept_since(at(1999, 2000)), None);
        // As if one clock went back, which neither does.
        assert_eq!(at(0, 0).slept_since(at(1000, 5000)), None);
        assert_eq!(at(9000, 1000).slept_since(at(1000, 1000)), None);
    }

    #[test]
    fn both_clocks_of_this_host_go_at_one_pace() {
        let before = Uptime::now().unwrap();

        assert_eq!(Uptime::now().unwrap().slept_since(before), None);
    }

    #[tokio::test]
    async fn while_the_host_is_awake_nothing_is_told() {
        let mut wakings = Wakings::open().unwrap();

        assert!(wakings.slept().now_or_never().is_none());
        // As after a resume: the clock that counts sleep is ahead.
        wakings.last.whole -= Duration::from_secs(600);

        let slept = wakings.slept().now_or_never().unwrap().unwrap();
        assert!(slept > Duration::from_secs(599), "{slept:?}");
        assert!(wakings.slept().now_or_never().is_none(), "told once");
    }
}

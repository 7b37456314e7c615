//! A timer that wakes its owner once for each time it is set.
//!
//! tokio's timers lie in wheels of 64 places, so that one that is seconds ahead wakes its thread up two
//! or three times on the way; and they stand still while the host sleeps.

use std::{
    io,
    os::fd::AsFd,
    time::{Duration, Instant},
};

use nix::sys::{
    time::TimeSpec,
    timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
};
use tokio::net::unix::pipe::Receiver;

use crate::os::clock;

/// A later time than the one set is set only if it is so much later: what moves with every packet
/// costs no call a packet, and the owner looks a little too early.
const SLACK: Duration = Duration::from_millis(50);

/// Rings at a moment of [`clock::boot`], also if the host slept meanwhile; at most [`SLACK`] early.
#[derive(Debug)]
pub struct Alarm {
    timer: TimerFd,
    /// The same timer; this end of a pipe reads any descriptor that can be waited for.
    rings: Receiver,
    /// None while it does not ring.
    at: Option<Instant>,
}

impl Alarm {
    /// Makes one that does not ring yet; lives on the current tokio runtime.
    pub fn open() -> io::Result<Self> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_BOOTTIME, flags)?;
        let rings = Receiver::from_owned_fd_unchecked(timer.as_fd().try_clone_to_owned()?)?;
        Ok(Self {
            timer,
            rings,
            at: None,
        })
    }

    /// Has it ring at `at`, or never.
    pub fn set(&mut self, at: Option<Instant>) {
        let is_near = |old: Instant, new: Instant| old <= new && new <= old + SLACK;
        match (self.at, at) {
            (None, None) => return,
            (Some(old), Some(new)) if is_near(old, new) => return,
            (Some(_), None) | (_, Some(_)) => {}
        }
        self.at = at;
        let done = match at {
            Some(at) => {
                let left = at.saturating_duration_since(clock::boot());
                // Zero would mean never.
                let left = TimeSpec::from(left.max(Duration::from_nanos(1)));
                self.timer
                    .set(Expiration::OneShot(left), TimerSetTimeFlags::empty())
            }
            None => self.timer.unset(),
        };
        done.expect("the kernel takes every duration");
    }

    /// Waits until it rings; whoever is woken looks what is due and sets it again.
    ///
    /// # Cancel safety
    ///
    /// Safe: a ring that was not waited for is told the next time.
    pub async fn rings(&mut self) -> io::Result<()> {
        loop {
            self.rings.readable().await?;
            match self.rings.try_read(&mut [0; 8]) {
                Ok(_) => {
                    self.at = None;
                    return Ok(());
                }
                // Set anew in between.
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

    #[tokio::test]
    async fn it_rings_once_and_when_it_is_due() {
        let mut alarm = Alarm::open().unwrap();
        assert!(alarm.rings().now_or_never().is_none());
        let at = clock::boot() + Duration::from_millis(30);

        alarm.set(Some(at));
        alarm.rings().await.unwrap();

        assert!(clock::boot() >= at);
        assert!(alarm.rings().now_or_never().is_none());
        // What was due before rings at once.
        alarm.set(Some(at));
        alarm.rings().await.unwrap();
    }

    #[tokio::test]
    async fn it_is_put_off_forward_and_away() {
        let mut alarm = Alarm::open().unwrap();
        let start = clock::boot();
        alarm.set(Some(start + Duration::from_secs(3600)));

        alarm.set(Some(start + Duration::from_millis(20)));
        // Hardly later, so that it rings early.
        alarm.set(Some(start + Duration::from_millis(60)));
        alarm.rings().await.unwrap();
        assert!(clock::boot() >= start + Duration::from_millis(20));

        alarm.set(Some(clock::boot()));
        alarm.set(Some(clock::boot() + Duration::from_secs(3600)));
        assert!(alarm.rings().now_or_never().is_none());
        alarm.set(Some(clock::boot()));
        alarm.set(None);
        assert!(alarm.rings().now_or_never().is_none());
    }
}

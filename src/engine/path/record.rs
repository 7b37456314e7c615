use std::time::{Duration, Instant};

/// How long a path that answers probes but loses data is not used, doubled each time.
const BAR: Duration = Duration::from_secs(60);
const LONGEST_BAR: Duration = Duration::from_secs(600);

/// Probes whose fate is remembered.
const FATES: u8 = 16;

/// What became of the last probes of a path.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Fates {
    /// Whether each was answered, the newest in the lowest bit.
    bits: u16,
    known: u8,
}

impl Fates {
    pub(super) fn add(&mut self, is_answered: bool) {
        self.bits = self.bits << 1 | u16::from(is_answered);
        self.known = (self.known + 1).min(FATES);
    }

    /// Returns the share that was lost, in percent; None before the first fate.
    pub(super) fn loss(self) -> Option<u8> {
        let answered = u8::try_from(self.bits.count_ones()).unwrap_or(FATES);
        let lost = u16::from(self.known.saturating_sub(answered));
        let percent = (lost * 100).checked_div(u16::from(self.known))?;
        u8::try_from(percent).ok()
    }
}

/// Keeps a path from data for a while: it carried probes and lost data.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bar {
    /// Until when, and for how long; None when never.
    set: Option<(Instant, Duration)>,
}

impl Bar {
    pub(super) fn set(&mut self, now: Instant) {
        let last = self.set.map_or(Duration::ZERO, |(_, span)| span);
        let span = (last * 2).clamp(BAR, LONGEST_BAR);
        self.set = Some((now + span, span));
    }

    /// Lets data pass again, as in another network.
    pub(super) const fn lift(&mut self) {
        self.set = None;
    }

    /// Returns until when it holds; None when it does not.
    pub(super) fn until(self, now: Instant) -> Option<Instant> {
        self.set.map(|(until, _)| until).filter(|at| now < *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_is_of_the_last_sixteen() {
        let mut fates = Fates::default();
        assert_eq!(fates.loss(), None);

        for n in 0..4 {
            fates.add(n % 2 == 0);
        }
        assert_eq!(fates.loss(), Some(50));

        for _ in 0..16 {
            fates.add(true);
        }
        assert_eq!(fates.loss(), Some(0));
    }
}

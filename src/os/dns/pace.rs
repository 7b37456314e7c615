//! How often settings that somebody else takes away are put back; pure.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Times that settings are put back within [`SPAN`]. A DHCP client that renews, changes its mind and renews
/// again needs three.
const TIMES: usize = 5;

/// Two programs that fight do so within milliseconds; leases last minutes.
const SPAN: Duration = Duration::from_secs(60);

/// Counts how often settings were put back; two programs that fight over them shall not spin.
#[derive(Debug, Default)]
pub struct Pace {
    put_back: VecDeque<Instant>,
}

impl Pace {
    /// Tells whether settings may be put back once more, and counts it if so.
    pub fn allows(&mut self, now: Instant) -> bool {
        while self
            .put_back
            .front()
            .is_some_and(|at| now.saturating_duration_since(*at) >= SPAN)
        {
            self.put_back.pop_front();
        }
        if self.put_back.len() >= TIMES {
            return false;
        }
        self.put_back.push_back(now);
        true
    }

    /// Forgets what was, as after a person asked for the settings.
    pub fn clear(&mut self) {
        self.put_back.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::clock;

    #[test]
    fn a_fight_ends_and_a_slow_change_never_does() {
        let start = clock::now();
        let mut fight = Pace::default();
        let mut slow = Pace::default();

        let won = (0..1000_u64).filter(|n| fight.allows(start + Duration::from_millis(*n)));
        assert_eq!(won.count(), TIMES);
        assert!((0..1000).all(|n| slow.allows(start + SPAN * n)));

        assert!(fight.allows(start + SPAN + Duration::from_secs(1)));
        let mut asked = Pace::default();
        assert!((0..TIMES).all(|_| asked.allows(start)) && !asked.allows(start));
        asked.clear();
        assert!(asked.allows(start));
    }
}

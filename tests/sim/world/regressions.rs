//! Scenarios that once failed, as short as they became.

use std::time::Duration;

use crate::world::model::Allow;
use crate::world::scenario::{Source, run};
use crate::world::transition::Transition::{
    self, Approve, Crash, Join, Leave, Pass, Request, Revoke, SetClock,
};

const HOUR: i64 = 3_600_000; // ms

/// Runs transitions with seeds whose agents 0 and 1 are anywhere.
fn holds(steps: &[Transition]) {
    for seed in [1, 3, 42, 57] {
        let played = run(seed, &Source::Given(steps), None);
        let told = played
            .failure
            .map(|(failure, story)| format!("{}\n{story}", failure.what));
        assert_eq!(told, None, "seed {seed}");
    }
}

const ASK: Transition = Request {
    from: 0,
    to: 1,
    offer: Allow::Low,
};
const ANSWER: Transition = Approve {
    at: 1,
    from: 0,
    allow: Allow::Low,
};

/// Who leaves and joins again takes up the trust that stands: its consents were seen, not kept.
#[test]
fn who_left_and_joined_again_is_trusted_again() {
    holds(&[ASK, ANSWER, Leave { agent: 0 }, Join { agent: 0 }]);
    holds(&[ASK, ANSWER, Leave { agent: 1 }, Join { agent: 1 }]);
}

/// A consent of before is taken back by name, though its subject does not show itself any more.
#[test]
fn a_consent_of_before_leaving_can_be_taken_back() {
    let (revoke, again) = (Revoke { at: 0, peer: 1 }, Revoke { at: 1, peer: 0 });
    holds(&[
        ASK,
        ANSWER,
        revoke,
        Leave { agent: 1 },
        Join { agent: 1 },
        again,
    ]);
}

/// A clock that was set back makes one's own admission no statement of the future.
#[test]
fn a_daemon_that_starts_with_a_slow_clock_attaches() {
    let (slow, right) = (
        SetClock {
            host: 0,
            skew: -HOUR,
        },
        SetClock { host: 0, skew: 0 },
    );
    holds(&[ASK, slow, Crash { host: 0 }, ANSWER, right]);
    holds(&[
        ASK,
        ANSWER,
        slow,
        Crash { host: 0 },
        Pass { seconds: 70 },
        right,
    ]);
}

/// One that answered once, and has nothing more to say, keeps its direct path.
#[test]
fn a_lone_answer_is_no_reason_to_leave_a_path() {
    let pass = Pass {
        seconds: Duration::from_secs(9).as_secs(),
    };
    holds(&[ASK, ANSWER, pass, pass, pass]);
}

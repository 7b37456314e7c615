//! Scenarios that once failed, as short as they became.

use std::time::Duration;

use crate::world::model::Allow;
use crate::world::scenario::{Source, run};
use crate::world::transition::Transition::{
    self, Approve, Auto, Crash, CutGateway, CutRegistry, Join, Leave, Pass, RebootNat, Request,
    Revoke, SetClock, Start, StartRegistry, Stop, StopRegistry,
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

/// What a host with a clock that went back says is numbered above what the registry took of it.
#[test]
fn a_slow_clock_takes_a_consent_back() {
    let clock = |skew| SetClock { host: 0, skew };
    let revoke = Revoke { at: 0, peer: 1 };
    holds(&[ASK, ANSWER, clock(-HOUR), revoke, clock(0)]);
    let (leave, join) = (Leave { agent: 0 }, Join { agent: 0 });
    holds(&[ASK, ANSWER, leave, join, clock(-HOUR), revoke, clock(0)]);
}

/// A request lasts as long as the membership of who made it did then.
#[test]
fn a_request_ends_with_the_membership_it_was_made_in() {
    let pass = Pass { seconds: 3600 };
    let (leave, join) = (Leave { agent: 0 }, Join { agent: 0 });
    holds(&[ASK, pass, pass, leave, join, ANSWER]);
}

/// A grant made anew is not known to others before the registry brings it.
#[test]
fn who_joins_again_by_a_new_grant_is_a_member_once_that_is_told() {
    let (leave, join) = (Leave { agent: 0 }, Join { agent: 0 });
    let pass = Pass { seconds: 3600 };
    holds(&[ASK, ANSWER, pass, pass, leave, StopRegistry, join]);
}

/// Requests that crossed twice are answered twice, each with what was offered against it.
#[test]
fn a_request_made_anew_while_another_crosses_is_answered() {
    let ask = |from: usize, offer| Request {
        from,
        to: 1 - from,
        offer,
    };
    holds(&[
        ASK,
        StopRegistry,
        ask(0, Allow::Any),
        ask(1, Allow::Replies),
        StartRegistry,
    ]);
}

/// Who left while the registry was away tells it what it consented to once it came back.
#[test]
fn what_was_consented_to_before_leaving_is_told_later() {
    let theirs = Request {
        from: 1,
        to: 0,
        offer: Allow::Low,
    };
    let (leave, join) = (Leave { agent: 0 }, Join { agent: 0 });
    holds(&[theirs, StopRegistry, ASK, leave, StartRegistry, join]);
}

/// A request that the registry was not told of goes with the membership it was made in.
#[test]
fn a_request_made_before_leaving_is_not_told_later() {
    let (leave, join) = (Leave { agent: 0 }, Join { agent: 0 });
    holds(&[StopRegistry, ASK, leave, StartRegistry, join, ANSWER]);
}

/// With trust goes what was known of the ways to a peer: the next begins by the gateway.
#[test]
fn trust_made_anew_without_a_gateway_knows_no_way() {
    let rule = Auto {
        at: 0,
        from: 1,
        allow: Allow::High,
    };
    let cut = CutGateway {
        host: 1,
        is_cut: true,
    };
    let theirs = Request {
        from: 1,
        to: 0,
        offer: Allow::Low,
    };
    let revoke = Revoke { at: 1, peer: 0 };
    holds(&[ASK, ANSWER, revoke, rule, cut, theirs]);
}

/// An idle host behind a NAT that forgot all is reached once it sent its next heartbeat.
#[test]
fn who_is_idle_behind_a_nat_that_forgot_all_is_reached_again() {
    for seconds in [1, 9, 16, 21] {
        let reboots = (0..3).map(|site| RebootNat { site });
        let start = [ASK, ANSWER, Pass { seconds }];
        holds(&start.into_iter().chain(reboots).collect::<Vec<_>>());
    }
}

/// A rule that was not exchanged, since the daemon did not run, answers as before.
#[test]
fn a_rule_stays_when_a_command_finds_no_daemon() {
    let rule = |allow| Auto {
        at: 1,
        from: 0,
        allow,
    };
    let (stop, start) = (Stop { host: 1 }, Start { host: 1 });
    holds(&[rule(Allow::Replies), stop, rule(Allow::Low), start, ASK]);
}

/// Of a request and a consent that come together the one may answer what the other ends.
#[test]
fn a_request_that_crosses_what_was_answered_meanwhile_is_answered() {
    let ask = |from: usize, offer| Request {
        from,
        to: 1 - from,
        offer,
    };
    let cut = |is_cut| CutRegistry { host: 1, is_cut };
    let start = [ASK, Leave { agent: 0 }, ask(1, Allow::Any)];
    let end = [cut(true), ask(0, Allow::Any), cut(false)];
    holds(&[&start[..], &[Join { agent: 0 }], &end].concat());
}

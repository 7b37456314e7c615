//! Every kind of NAT against every other, in good and bad networks: who connects, who directly, and how soon.

use std::time::Duration;

use agentnet::os::clock;

use crate::world::dice::Dice;
use crate::world::internet::Weather;
use crate::world::model::{Allow, LOW};
use crate::world::nat::{Behaviour, NatKind};
use crate::world::play::Play;
use crate::world::scenario::set_up_at;
use crate::world::transition::Transition::{Approve, Move, Pass, Request};

/// Beyond what the network takes: how late the first byte and the direct path may be (issue 5 section 8).
const FIRST: Duration = Duration::from_millis(50);
const DIRECT: Duration = Duration::from_secs(1);

/// Longest wait for the direct path where datagrams are lost.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often it is looked whether something happened, and data is sent meanwhile.
const STEP: Duration = Duration::from_millis(10);

/// A network between two sites.
#[derive(Clone, Copy, Debug)]
struct Between {
    /// One way between a site and the core.
    delay: Duration,
    weather: Weather,
}

const CALM: Weather = Weather {
    loss: 0,
    duplication: 0,
    reordering: 0,
};

const NEAR: Between = Between {
    delay: Duration::from_millis(10),
    weather: CALM,
};

const FAR: Between = Between {
    delay: Duration::from_millis(100),
    weather: CALM,
};

/// RFC 4787's nine combinations, what Linux does without a filter, and no NAT at all.
fn kinds() -> Vec<Option<NatKind>> {
    let all = Behaviour::ALL;
    let pairs = all
        .iter()
        .flat_map(|mapping| all.map(|filtering| (*mapping, filtering)));
    let kind = |(mapping, filtering)| NatKind {
        mapping,
        filtering,
        preserves_ports: mapping == Behaviour::EndpointIndependent,
        hairpins: false,
        lifetime: Duration::from_secs(120),
        clashes: false,
        is_refreshed_inbound: false,
    };
    let linux = NatKind {
        clashes: true,
        ..kind((
            Behaviour::EndpointIndependent,
            Behaviour::AddressAndPortDependent,
        ))
    };
    let nats = pairs.map(kind).chain([linux]).map(Some);
    nats.chain([None]).collect()
}

/// What came of a pair.
#[derive(Debug)]
struct Met {
    /// Time to the first byte at the other end.
    first: Option<Duration>,
    direct: Option<Duration>,
    must: bool,
}

/// Two agents at two sites that trust each other and have no session, and then talk.
fn meet(sites: [Option<NatKind>; 2], between: Between, seed: u64) -> Met {
    let mut play = set_up_at(&sites, 2, seed, &mut Dice::new(seed));
    play.world.internet.set_delays(between.delay);
    let ask = Request {
        from: 0,
        to: 1,
        offer: Allow::Low,
    };
    let answer = Approve {
        at: 1,
        from: 0,
        allow: Allow::Low,
    };
    let moves = [0, 1].map(|host| Move { host, site: host });
    let pause = |seconds| Pass { seconds };
    let steps = [
        moves[0],
        moves[1],
        pause(10),
        ask,
        pause(10),
        answer,
        pause(400),
    ];
    for step in steps {
        assert_eq!(play.apply(step), Ok(true), "{step}");
    }
    assert!(!play.is_direct(0, 1), "nobody talked");
    play.world.internet.weather = between.weather;
    let must = play.world.internet.permits(0, 1, clock::now());
    talk(&mut play, must)
}

fn talk(play: &mut Play, must: bool) -> Met {
    let start = clock::now();
    let mut said = vec![play.say(0, 1, LOW, true)];
    let (mut first, mut direct) = (None, None);
    while clock::now() < start + PATIENCE && (first.is_none() || (must && direct.is_none())) {
        play.world.pass(STEP);
        let arrived = |said: &u64| {
            play.world
                .ledger
                .said(*said)
                .is_some_and(|s| s.deliveries > 0)
        };
        if first.is_none() && said.iter().any(arrived) {
            first = Some(clock::now() - start);
        }
        if direct.is_none() && play.is_direct(0, 1) {
            direct = Some(clock::now() - start);
        }
        if said.len() < 40 || (clock::now() - start).as_millis().is_multiple_of(100) {
            said.push(play.say(0, 1, LOW, true));
        }
    }
    Met {
        first,
        direct,
        must,
    }
}

/// Plays every kind against every other; returns the pairs, most of them direct, and fails for the first that is not
/// as it must be: `first` and `direct` are the longest times.
fn every_pair(between: Between, first: Duration, direct: Duration) {
    let kinds = kinds();
    let (mut pairs, mut directly) = (0, 0);
    for (n, one) in kinds.iter().enumerate() {
        for (m, other) in kinds.iter().enumerate() {
            let seed = (n * kinds.len() + m) as u64;
            let met = meet([*one, *other], between, seed);
            let who = format!("{one:?}\n{other:?}\n{between:?}\n{met:?}");
            assert!(met.first.is_some_and(|at| at <= first), "{who}");
            if met.must {
                assert!(met.direct.is_some_and(|at| at <= direct), "{who}");
                directly += 1;
            }
            pairs += 1;
        }
    }
    assert_eq!((pairs, directly), (121, DIRECTLY));
}

/// Of the 121 pairs those in which two that name their endpoints and answer where they are heard can meet. The others
/// have a NAT that maps by destination, before one that filters by port or also maps so.
const DIRECTLY: usize = 70;

/// One way by the gateway, with the longest jitter there is: a quarter and 0.1 ms of each part.
fn by_gateway(between: Between) -> Duration {
    let way = between.delay + Duration::from_millis(3);
    2 * (way + way / 4 + Duration::from_micros(100))
}

/// Issue 5 section 8: the first byte after one round trip of a handshake and its own way; direct within a second.
#[test]
fn in_a_good_network_paths_are_direct_within_a_second() {
    every_pair(NEAR, 3 * by_gateway(NEAR) + FIRST, DIRECT);
}

/// The same 200 ms apart: some messages have to go there and back.
#[test]
fn far_apart_paths_are_direct_after_some_round_trips() {
    let way = by_gateway(FAR);
    every_pair(FAR, 3 * way + FIRST, DIRECT + 6 * way);
}

#[test]
fn in_a_bad_network_every_pair_connects_and_goes_directly_where_it_can() {
    for (loss, reordering) in [(3, 5), (10, 20)] {
        let weather = Weather {
            loss,
            duplication: 2,
            reordering,
        };
        let delay = Duration::from_millis(30);
        every_pair(Between { delay, weather }, PATIENCE, PATIENCE);
    }
}

use super::*;
use crate::engine::path::predicted;

/// Where a NAT that maps by destination may have the next endpoint.
const NEXT: &str = "198.51.100.7:20001";

fn candidate(kind: Kind, text: &str) -> Candidate {
    Candidate { kind, ..host(text) }
}

/// A session with a peer, each end with these candidates.
fn meet(ours: &[(Kind, &str)], theirs: &[(Kind, &str)]) -> World {
    let list = |all: &[(Kind, &str)]| {
        let all = all.iter().map(|(kind, text)| candidate(*kind, text));
        all.collect::<Vec<_>>()
    };
    let mut world = World::new(Mode::Auto);
    world.agent.set_candidates(&list(ours), world.now);
    world.agent.handle_session(world.now);
    let theirs = Candidates {
        seq: 1,
        list: list(theirs),
    };
    world.agent.handle_candidates(&theirs, world.now);
    world
}

const EASY: (Kind, &str) = (Kind::Reflexive, "203.0.113.5:16200");
const HARD: (Kind, &str) = (Kind::Predicted, NEXT);

/// Returns when each guess went, and to which port: probes to endpoints that nobody named.
fn guesses(world: &World) -> Vec<(Duration, u16)> {
    let named = [WAN, NEXT].map(direct);
    let to = |path: &Path| match path {
        Path::Direct(at) => at.port(),
        Path::Relay => 0,
    };
    let all = world.sent.iter().filter(|(_, path)| {
        *path != Path::Relay && (!named.contains(path) || world.probes_to(*path) > 20)
    });
    all.map(|(when, path)| (*when, to(path))).collect()
}

/// Issue 5: at most 1,024 probes, at 100 a second, first where the NAT counts, and once.
#[test]
fn ports_of_a_hard_nat_are_guessed_once_and_at_a_bounded_rate() {
    let mut world = meet(&[EASY], &[HARD]);

    world.talk(secs(60));

    let guesses = guesses(&world);
    // The first is the predicted endpoint itself, which was probed before.
    assert_eq!(guesses.len(), 1023);
    let (first, last) = (guesses[0].0, guesses[1022].0);
    assert!(first >= secs(4) && first < secs(5), "{first:?}");
    assert!(
        last - first >= secs(10) && last - first < secs(12),
        "{last:?}"
    );
    for window in guesses.windows(102) {
        assert!(window[101].0 - window[0].0 >= secs(1) - ms(50));
    }
    let near = guesses.iter().take(23).map(|(_, port)| *port);
    assert_eq!(
        near.collect::<Vec<_>>(),
        (20_002..20_025).collect::<Vec<_>>()
    );
    let all = guesses
        .iter()
        .map(|(_, port)| *port)
        .collect::<BTreeSet<_>>();
    assert!(all.len() > 950 && all.iter().all(|port| *port >= 1024));
    assert!(all.first().unwrap() < &5000 && all.last().unwrap() > &60_000);
    assert_eq!(world.agent.poll_opening(), None);

    world.sent.clear();
    world.agent.handle_session(world.now);
    world.talk(secs(60));
    assert!(self::guesses(&world).is_empty());
    world.agent.handle_network_change(world.now);
    world.talk(secs(30));
    assert_eq!(self::guesses(&world).len(), 1023);
}

/// A peer that names one address after another has few strangers written to.
#[test]
fn a_peer_that_names_ever_other_addresses_is_tried_ever_more_seldom() {
    let mut world = meet(&[EASY], &[HARD]);
    let mut sent = 0;
    for n in 0..60 {
        let named = format!("198.51.{n}.9:20001");
        let list = vec![candidate(Kind::Predicted, &named)];
        let candidates = Candidates { seq: 2 + n, list };
        world.agent.handle_candidates(&candidates, world.now);
        world.sent.clear();
        world.talk(secs(60));
        let guesses = world.sent.iter().filter(|(_, path)| match path {
            Path::Direct(at) => *at != named.parse().unwrap(),
            Path::Relay => false,
        });
        sent += guesses.count();
    }

    // In an hour: at 0, 2, 6, 14 and 30 minutes.
    assert!((4 * 1000..=5 * 1024).contains(&sent), "{sent}");
}

/// Who is heard is met; nobody guesses on.
#[test]
fn guessing_ends_with_a_direct_path() {
    let met = "198.51.100.7:41000";
    let mut world = meet(&[EASY], &[HARD]);
    world.talk(secs(6));
    let before = guesses(&world).len();
    world.open(met, ms(30));

    world
        .agent
        .handle_authenticated(direct(met), false, world.now);
    world.talk(secs(10));

    assert_eq!(world.current(), Some(direct(met)));
    let after = guesses(&world);
    let after = after.iter().filter(|(_, port)| *port != 41_000).count();
    assert!(
        (100..1000).contains(&before) && after < before + 30,
        "{before} {after}"
    );
}

/// The other end opens sockets towards the best that the peer named, once, while data flows.
#[test]
fn the_end_with_the_hard_nat_opens_sockets_once() {
    let lan = (Kind::Host, "192.168.1.7:16200");
    let mut world = meet(&[HARD], &[lan, EASY]);
    world.pass(secs(20));
    assert_eq!(
        world.agent.poll_opening(),
        None,
        "nobody has anything to say"
    );

    world.talk(secs(5));

    let opening = world.agent.poll_opening().unwrap();
    assert_eq!(opening.to, at("203.0.113.5:16200"));
    assert_ne!(opening.ids[0], opening.ids[1]);
    world.talk(secs(60));
    assert_eq!(world.agent.poll_opening(), None);
    world.agent.handle_network_change(world.now);
    world.talk(secs(5));
    assert!(world.agent.poll_opening().is_some());
}

/// Of two hard NATs neither port is known to anybody; two others need no guessing.
#[test]
fn nothing_is_guessed_where_it_is_of_no_use() {
    for (ours, theirs) in [
        (HARD, (Kind::Predicted, "203.0.113.5:30001")),
        (EASY, (Kind::Reflexive, WAN)),
    ] {
        let mut world = meet(&[ours], &[theirs]);
        world.talk(secs(30));
        assert_eq!(world.agent.poll_opening(), None);
        assert!(world.sent.len() < 40, "{}", world.sent.len());
    }
    let mut hidden = meet(&[HARD], &[EASY]);
    hidden.agent.set_mode(Mode::Relay, hidden.now);
    hidden.talk(secs(30));
    assert_eq!(hidden.agent.poll_opening(), None);
}

/// RFC 4787 section 4.1: by what servers see a NAT that counts is predicted, another one is told of.
#[test]
fn a_nat_that_maps_by_destination_is_predicted() {
    let all = |texts: &[&str]| texts.iter().map(|text| at(text)).collect::<Vec<_>>();
    let cases: [(&[&str], &[&str]); 7] = [
        (&[], &[]),
        (&["198.51.100.7:20000"], &[]),
        (&["198.51.100.7:20000", "198.51.100.7:20000"], &[]),
        (
            &["198.51.100.7:20002", "198.51.100.7:20000"],
            &[
                "198.51.100.7:20004",
                "198.51.100.7:20006",
                "198.51.100.7:20008",
                "198.51.100.7:20010",
            ],
        ),
        (
            &["198.51.100.7:20000", "198.51.100.7:53123"],
            &["198.51.100.7:53124"],
        ),
        (&["198.51.100.7:20000", "198.51.100.9:20001"], &[]),
        (
            &["198.51.100.7:20000", "[2001:db8::1]:20001", "10.0.0.1:9"],
            &[],
        ),
    ];
    for (seen, next) in cases {
        assert_eq!(predicted(&all(seen)), all(next), "{seen:?}");
    }
    assert_eq!(
        predicted(&all(&["198.51.100.7:65534", "198.51.100.7:65535"])),
        []
    );
}

use super::*;

/// protocol.md section 6: five probes at 0, 100, 300, 700 and 1500 ms; then one after 2, 4, 8 and
/// every 10 minutes, while data flows.
#[test]
fn a_silent_endpoint_gets_five_probes_and_then_few() {
    let mut world = World::up(&[WAN]);

    world.talk(secs(2000));
    world.pass(secs(2000));

    let to_peer = world.sent.iter().filter(|(_, to)| *to == direct(WAN));
    let times = to_peer.map(|(at, _)| *at).collect::<Vec<_>>();
    // The relay is probed first, and probes are 50 ms apart; our NATs are opened before.
    assert_eq!(world.opened, [(ms(50), direct(WAN))]);
    assert_eq!(times[..5], [210, 310, 510, 910, 1710].map(ms));
    assert_eq!(times[5..], [121_710, 361_710, 841_710, 1_441_710].map(ms));
    assert_eq!(world.current(), Some(Path::Relay));
}

#[test]
fn naming_a_silent_endpoint_again_gives_it_no_more_probes() {
    let mut world = World::up(&[WAN]);
    for seq in 2..40 {
        world.pass(secs(2));
        let list: &[&str] = if seq % 2 == 0 { &[] } else { &[WAN] };
        world.agent.handle_candidates(&named(seq, list), world.now);
    }

    world.pass(secs(10));

    assert_eq!(world.probes_to(direct(WAN)), 5);
}

#[test]
fn probes_are_spread_and_all_endpoints_are_asked_before_any_is_asked_twice() {
    let list = (1..=16)
        .map(|n| format!("198.51.100.{n}:9"))
        .collect::<Vec<_>>();
    let list = list.iter().map(String::as_str).collect::<Vec<_>>();
    let mut world = World::up(&list);
    world.close(Path::Relay);

    world.pass(secs(10));

    for pair in world.sent.windows(2) {
        assert!(pair[1].0 - pair[0].0 >= ms(50), "{pair:?}");
    }
    let first = world
        .sent
        .iter()
        .map(|(_, to)| *to)
        .filter(|to| *to != Path::Relay);
    let first = first.take(16).collect::<BTreeSet<_>>();
    assert_eq!(first.len(), 16);
    assert_eq!(world.sent.len(), 17 * 5);
}

/// Near endpoints and those of IPv6 have no NATs before them, nor have those that are heard.
#[test]
fn nats_are_opened_where_there_may_be_some_and_no_way_through_is_known() {
    let far6 = "[2001:db8::7]:16200";
    let mut world = World::up(&[LAN, WAN, far6]);
    world
        .agent
        .handle_authenticated(direct(WAN2), false, world.now);
    world.pass(secs(2));
    assert_eq!(world.opened.len(), 1, "{:?}", world.opened);
    assert_eq!(world.opened[0].1, direct(WAN));

    world.open(WAN, ms(30));
    world.agent.handle_network_change(world.now);
    world.pass(secs(2));

    // Another network of ours: other NATs.
    let opened = world.opened[1..].iter().map(|(_, path)| *path);
    assert_eq!(
        opened.collect::<BTreeSet<_>>(),
        [direct(WAN), direct(WAN2)].into()
    );
    assert_eq!(world.current(), Some(direct(WAN)));
}

/// Who is heard is answered at once: the NATs are open.
#[test]
fn a_probe_that_comes_meanwhile_ends_the_wait() {
    let mut world = World::up(&[WAN]);
    world.open(WAN, ms(30));
    world.pass(ms(100));
    world
        .agent
        .handle_authenticated(direct(WAN), false, world.now);
    world.pass(ms(30));

    assert_eq!(world.current(), Some(direct(WAN)));
}

#[test]
fn an_open_path_is_in_use_after_one_round_trip() {
    let mut world = World::up(&[WAN]);
    world.open(WAN, ms(30));

    world.pass(ms(229));
    assert_eq!(world.current(), Some(Path::Relay));
    world.pass(ms(1));

    assert_eq!(world.current(), Some(direct(WAN)));
}

/// The way out of a NAT that maps by destination: its owner is heard from an endpoint nobody named.
#[test]
fn an_endpoint_that_is_heard_is_probed_at_once() {
    let mut world = World::up(&[]);
    world.open(WAN, ms(30));
    world.pass(secs(5));

    world
        .agent
        .handle_authenticated(direct(WAN), false, world.now);
    world.pass(ms(30));

    assert_eq!(world.current(), Some(direct(WAN)));
}

#[test]
fn being_heard_is_no_reply() {
    let mut world = World::up(&[WAN]);
    for _ in 0..100 {
        world
            .agent
            .handle_authenticated(direct(WAN), true, world.now);
        world.pass(ms(100));
    }

    assert_eq!(world.current(), Some(Path::Relay));
    // Five at first, and five for each fresh start, of which there is one per 5 s.
    assert!(
        world.probes_to(direct(WAN)) <= 15,
        "{}",
        world.probes_to(direct(WAN))
    );
}

#[test]
fn a_reply_on_another_path_proves_nothing() {
    let mut world = World::up(&[WAN]);
    world.close(Path::Relay);
    world.agent.handle_timeout(world.now + ms(50));
    let probe = std::iter::from_fn(|| {
        world.now += ms(50);
        world.agent.handle_timeout(world.now);
        Some(world.agent.poll_probe())
    })
    .flatten()
    .find(|probe| probe.path == direct(WAN))
    .unwrap();

    let reply = world.reply(probe.id);
    world.agent.handle_reply(direct(WAN2), &reply, world.now);
    world.agent.handle_reply(probe.path, &reply, world.now);

    assert_eq!(
        world.current(),
        Some(Path::Relay),
        "an id is good for one reply"
    );
}

#[test]
fn candidates_are_told_three_times_and_on_change() {
    let mut world = World::up(&[]);
    world.pass(secs(60));
    assert_eq!(world.told, [0, 1, 3].map(secs));

    world
        .agent
        .set_candidates(&[host("10.0.0.2:16200")], world.now);
    world.pass(secs(60));
    assert_eq!(world.told.len(), 3);

    world
        .agent
        .set_candidates(&[host("10.0.0.3:16200")], world.now);
    world.pass(secs(60));
    assert_eq!(world.told.len(), 6);
}

#[test]
fn who_hides_tells_nothing_and_probes_nothing() {
    for mode in [Mode::Hidden, Mode::Relay] {
        let mut world = World::new(mode);
        world.open(WAN, ms(1));
        world
            .agent
            .set_candidates(&[host("10.0.0.2:16200")], world.now);
        world.agent.handle_session(world.now);
        world.agent.handle_candidates(&named(1, &[WAN]), world.now);
        world
            .agent
            .handle_authenticated(direct(WAN2), true, world.now);

        world.talk(secs(60));

        assert!(world.sent.is_empty() && world.told.is_empty());
        assert_eq!(world.current(), Some(Path::Relay));
    }
}

#[test]
fn our_own_endpoint_and_useless_ones_are_not_probed() {
    let mut world = World::up(&[]);
    let list = [
        "10.0.0.2:16200",
        "127.0.0.1:5",
        "[fd00::1]:7",
        "224.0.0.1:9",
        WAN,
    ];

    world.agent.handle_candidates(&named(2, &list), world.now);
    world.pass(secs(5));

    let paths = world
        .sent
        .iter()
        .map(|(_, to)| *to)
        .collect::<BTreeSet<_>>();
    assert_eq!(paths, BTreeSet::from([Path::Relay, direct(WAN)]));
}

#[test]
fn without_session_nothing_is_sent_and_nothing_is_due() {
    let mut world = World::up(&[WAN]);
    world.agent.handle_no_session();

    world.talk(secs(10));

    assert!(world.sent.is_empty());
}

/// WireGuard lineage: keys that renew themselves while nobody uses the session are no reason to speak,
/// else each would make the next renewal; whoever uses it then makes up for it.
#[test]
fn a_session_renewed_for_nobody_is_quiet_until_it_is_used() {
    let uses: [fn(&mut World); 4] = [
        |world| world.data(),
        |world| {
            world
                .agent
                .handle_authenticated(Path::Relay, true, world.now);
        },
        |world| world.agent.handle_interest(world.now),
        |world| world.agent.handle_candidates(&named(9, &[WAN]), world.now),
    ];
    for is_used in uses {
        let mut world = World::up(&[WAN]);
        world.open(WAN, ms(30));
        world.talk(secs(10));
        world.pass(secs(300));
        let (sent, told) = (world.sent.len(), world.told.len());

        for _ in 0..10 {
            world.agent.handle_session(world.now);
            let from = direct(WAN);
            world.agent.handle_authenticated(from, false, world.now);
            world.pass(secs(120));
        }
        assert_eq!((world.sent.len(), world.told.len()), (sent, told));

        is_used(&mut world);
        world.pass(secs(5));
        assert_eq!(world.told.len(), told + 3);
        assert!(world.sent.len() > sent);
        assert_eq!(world.current(), Some(direct(WAN)));
    }
}

/// The direct path is kept open every 25 s while it may be needed, and no longer.
#[test]
fn an_unused_path_is_kept_for_three_minutes() {
    let mut world = World::up(&[WAN]);
    world.open(WAN, ms(30));
    world.talk(secs(10));
    world.pass(secs(30));
    let before = world.probes_to(direct(WAN));

    world.pass(secs(100));
    assert_eq!(world.probes_to(direct(WAN)) - before, 4);
    assert_eq!(world.current(), Some(direct(WAN)));

    world.pass(secs(600));
    let after = world.sent.len();
    world.pass(secs(3600));
    assert_eq!(
        (world.sent.len(), world.current()),
        (after, Some(Path::Relay))
    );

    world.data();
    world.pass(ms(300));
    assert_eq!(world.current(), Some(direct(WAN)));
}

#[test]
fn a_near_path_needs_no_keeping() {
    let mut world = World::up(&[LAN]);
    world.open(LAN, ms(1));
    world.talk(secs(10));
    world.pass(secs(30));
    let before = world.sent.len();

    world.pass(secs(100));

    assert_eq!(world.sent.len(), before);
}

/// A network that was opened later is found without anybody's doing.
#[test]
fn an_endpoint_that_was_silent_is_found_when_it_answers() {
    let mut world = World::up(&[WAN]);
    world.talk(secs(10));
    world.open(WAN, ms(30));

    world.talk(secs(100));
    assert_eq!(world.current(), Some(Path::Relay));
    world.talk(secs(20));

    assert_eq!(world.current(), Some(direct(WAN)));
}

/// Who wants to know is told at once, and has a stranger asked no more often than every 10 s.
#[test]
fn a_silent_endpoint_is_asked_again_for_who_wants_to_know() {
    let mut world = World::up(&[WAN]);
    world.talk(secs(10));
    for _ in 0..100 {
        world.agent.handle_interest(world.now);
        world.pass(ms(300));
    }
    assert_eq!(world.probes_to(direct(WAN)), 5 + 3);

    world.open(WAN, ms(30));
    world.pass(secs(10));
    world.agent.handle_interest(world.now);
    world.pass(ms(100));

    assert_eq!(world.current(), Some(direct(WAN)));
}

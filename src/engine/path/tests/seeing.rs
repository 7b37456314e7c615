use super::*;
use crate::engine::path::{Obstacle, PairState, Reason};

fn obstacle(world: &World) -> Option<Obstacle> {
    world.agent.view(world.now).obstacle
}

/// Issue 3: why there is no direct path, at each stage of looking for one.
#[test]
fn what_stands_in_the_way_is_named() {
    let mut world = World::new(Mode::Auto);
    assert_eq!(obstacle(&world), Some(Obstacle::NoSession));

    world.agent.handle_session(world.now);
    assert_eq!(obstacle(&world), Some(Obstacle::NoEndpoint));

    world.agent.handle_candidates(&named(1, &[WAN]), world.now);
    assert_eq!(obstacle(&world), Some(Obstacle::Probing));

    world.pass(secs(5));
    assert_eq!(obstacle(&world), Some(Obstacle::NoAnswer));

    world.agent.handle_candidates(&named(2, &[WAN2]), world.now);
    world.open(WAN2, ms(5));
    world.pass(secs(1));
    assert_eq!(obstacle(&world), None);

    world.pass(secs(200));
    let view = world.agent.view(world.now);
    assert_eq!(
        (view.reason, view.obstacle),
        (Reason::Idle, Some(Obstacle::Idle))
    );
}

#[test]
fn a_wish_is_named_as_obstacle_and_reason() {
    for mode in [Mode::Relay, Mode::Hidden] {
        let mut world = World::new(mode);
        world.agent.handle_session(world.now);

        let view = world.agent.view(world.now);

        assert_eq!(
            (view.reason, view.obstacle),
            (Reason::Mode, Some(Obstacle::Mode))
        );
    }
}

#[test]
fn a_path_that_loses_data_is_named_as_penalized() {
    let mut world = World::up(&[WAN]);
    world.open(WAN, ms(5));
    world.talk(secs(2));
    assert_eq!(obstacle(&world), None);

    world.carries.remove(&direct(WAN));
    world.talk(secs(10));

    assert_eq!(obstacle(&world), Some(Obstacle::Barred));
}

/// `agentnet ping --until-direct` of a peer that was not talked to for long.
#[test]
fn somebody_who_asks_wakes_direct_paths_and_data_is_not_needed() {
    let mut world = World::up(&[WAN]);
    world.open(WAN, ms(5));
    world.talk(secs(2));
    world.pass(secs(300));
    assert_eq!(world.current(), Some(Path::Relay));

    world.agent.handle_interest(world.now);
    world.pass(secs(1));

    assert_eq!(world.current(), Some(direct(WAN)));
    let probes = world.sent.len();
    world.agent.handle_interest(world.now);
    world.pass(ms(500));
    assert_eq!(
        world.sent.len(),
        probes,
        "a path that is there needs no wish"
    );
}

#[test]
fn the_last_authentic_message_of_each_path_is_kept() {
    let mut world = World::up(&[WAN]);
    world.open(WAN, ms(5));
    world.talk(secs(2));
    let last = world.now;
    world.pass(secs(60));
    world
        .agent
        .handle_authenticated(Path::Relay, false, world.now);

    let view = world.agent.view(world.now);
    let of = |path| view.pairs.iter().find(|pair| pair.path == path).unwrap();

    assert_eq!(of(Path::Relay).inbound, Some(world.now));
    assert!(of(direct(WAN)).inbound >= Some(last - secs(1)));
    assert!(matches!(of(direct(WAN)).state, PairState::Alive { .. }));
    assert_eq!(of(direct(WAN)).loss, Some(0));
}

use super::*;

/// Data flows over a path that carries `widest`; returns what is known of it after a while.
fn found(widest: u16) -> Option<u16> {
    let mut world = World::up(&[WAN]);
    world.widest = widest;
    world.open(WAN, ms(20));
    for _ in 0..300 {
        world.data();
        world.pass(ms(100));
    }
    assert_eq!(world.current(), Some(direct(WAN)));
    world.agent.mtu()
}

/// RFC 8899: the size of a path is found whatever it is, to a few bytes.
#[test]
fn the_size_of_a_path_in_use_is_found() {
    for widest in [1440, 1420, 1311, 1300, 1280, 1220, 1160] {
        let found = found(widest).unwrap();
        assert!((widest - 16..=widest).contains(&found), "{widest}: {found}");
    }
}

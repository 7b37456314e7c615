//! Agents of a network that gives no locators but gateways, in simulated time.

use std::net::SocketAddr;
use std::time::Duration;

use agentnet::{
    engine::{
        membership::Membership,
        path::{Mode, Obstacle, Path},
    },
    id::TunnelSecret,
    os::clock,
    statement::{RootClaims, issue},
};

use crate::pair::{OWNER, World, key, membership_by, now, prefix};

const SECOND: Duration = Duration::from_secs(1);

/// Frame header (protocol.md section 5).
const FRAME: usize = 56; // bytes

/// An address of host a's site that nobody else may learn.
const INSIDE: &str = "192.168.7.7:16200";

/// Makes a member of the network as it would be with gateways as its only locators.
fn membership(n: u8, name: &str) -> Membership {
    let (unix, claims) = (
        clock::unix(),
        RootClaims {
            prefix: prefix(),
            label: "acme".parse().unwrap(),
            border: true,
        },
    );
    let (owner, did, member) = (key(OWNER), key(n).did(), name.parse().unwrap());
    let root = issue::root_grant_of(&owner, claims, unix).unwrap();
    let until = unix + issue::ROOT_LIFE;
    let grant = issue::agent_grant(&owner, &root, did, &member, unix, until).unwrap();
    let chain = vec![root.text().to_owned(), grant.text().to_owned()];
    membership_by(chain, name, key(n), TunnelSecret::from_seed([n; 32]))
}

/// Two agents of a border network that trust each other, on hosts that reach each other; each knows an
/// interface of its host, a port of its router and a STUN server.
fn world() -> World {
    let mut world = World::new(7);
    world.is_open = true;
    for (name, n) in [("a", 10), ("b", 11)] {
        world.add_membership(name, n, membership(n, name));
        let engine = &mut world.host(name).engine;
        engine.set_host_candidates(&[INSIDE.parse().unwrap()], now());
        engine.set_mapped_candidate(Some("192.0.2.7:16200".parse().unwrap()), now());
        engine.set_stun_servers(&["192.0.2.99:3478".parse().unwrap()], now());
    }
    world.trust("a", "b", "udp/8000");
    world
}

fn talk(world: &mut World) {
    for _ in 0..100 {
        world.send("a", "b", b"tick");
        world.send("b", "a", b"tock");
        world.pass(SECOND / 10);
        assert_eq!((world.arrived("a"), world.arrived("b")), (1, 1));
    }
}

/// Returns whom a host's datagrams went to.
fn spoken_to(world: &World, name: &str) -> Vec<SocketAddr> {
    let own = world.hosts[name].at;
    let sent = world.wire.iter().filter(|(from, ..)| *from == own);
    let mut to: Vec<_> = sent.map(|(_, to, _)| *to).collect();
    to.sort_unstable();
    to.dedup();
    to
}

/// A-014, F-034, F-047, P-075: whatever the nodes wish, gateways are all that anybody speaks to.
#[test]
fn agents_of_a_border_network_speak_to_gateways_alone() {
    for wish in [Mode::Auto, Mode::Direct, Mode::Relay, Mode::Hidden] {
        let mut world = world();
        for name in ["a", "b"] {
            world.host(name).engine.set_path_mode(wish, now());
        }

        talk(&mut world);

        for name in ["a", "b"] {
            assert_eq!(spoken_to(&world, name), [world.gateway_at], "{wish:?}");
        }
        let (local, peer) = (world.local("a"), world.local("b"));
        let view = world.hosts["a"].engine.paths(local, peer, now()).unwrap();
        assert_eq!((view.mode, view.current), (Mode::Border, Some(Path::Relay)));
        assert_eq!(view.obstacle, Some(Obstacle::Border));
        assert_eq!(view.pairs.len(), 1, "{view:?}");
    }
}

/// The gateway tells no agent where it sees it, so that none can tell another.
#[test]
fn an_agent_of_a_border_network_is_not_told_where_it_is_seen() {
    let world = world();

    let of = |name: &str| {
        let host = &world.hosts[name];
        host.engine.gateway(host.local).unwrap().observed.unwrap()
    };

    assert_eq!((of("a").port(), of("b").port()), (0, 0));
}

/// P-013: what a peer sends to where an agent is, however it came to know, meets silence.
#[test]
fn what_comes_directly_meets_silence() {
    let mut world = world();
    talk(&mut world);
    let (a, b) = (world.hosts["a"].at, world.hosts["b"].at);
    let sent = world.wire.iter().filter(|(from, ..)| *from == b);
    // The same messages without the frame around them: of sessions and channels that a knows.
    let bare = sent.filter_map(|(_, _, bytes)| bytes.get(FRAME..).map(<[u8]>::to_vec));
    let bare = bare.filter(|bare| !bare.is_empty()).collect::<Vec<_>>();
    assert!(bare.len() > 100);
    world.wire.clear();

    for message in bare {
        world.deliver(b, a, message);
    }
    world.pass(SECOND);

    assert_eq!(world.arrived("a"), 0);
    assert!(
        world
            .wire
            .iter()
            .all(|(from, to, _)| *from != a || *to == world.gateway_at)
    );
    talk(&mut world);
}

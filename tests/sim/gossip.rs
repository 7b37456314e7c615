//! What peers tell each other with the registry away: revocations, consents taken back, records.

use std::time::Duration;

use agentnet::{
    engine::Forwarded,
    id::UnixTime,
    os::clock,
    statement::{Grant, Head, Revocation, RevokedKey, Scope, Statement},
    wire::{
        control::Control,
        drop::DropReason,
        have::{Have, Summary},
    },
};

use crate::pair::{OWNER, Weather, World, drops, key, name, now};

const SECOND: Duration = Duration::from_secs(1);
const A: u8 = 10;
const B: u8 = 11;
const C: u8 = 12;

/// Three agents that trust each other and talked, with the registry away from now on.
fn world() -> World {
    let mut world = World::new(1);
    for (name, n) in [("a", A), ("b", B), ("c", C)] {
        world.add(name, n);
    }
    for (from, to) in [("a", "b"), ("a", "c"), ("b", "c")] {
        world.trust(from, to, "udp/8000");
    }
    chat(&mut world);
    world.has_registry = false;
    world
}

/// Has every two agents exchange packets, so that all sessions are in use.
fn chat(world: &mut World) {
    let names = world.hosts.keys().copied().collect::<Vec<_>>();
    for from in &names {
        for to in names.iter().filter(|to| *to != from) {
            world.send(from, to, b"x");
        }
    }
    for name in names {
        world.arrived(name);
    }
}

fn revocation(world: &mut World, n: u8, until: UnixTime) -> Statement<Revocation> {
    revocation_of(world, key(n).did(), until)
}

fn revocation_of(
    world: &mut World,
    key_: agentnet::id::Did,
    until: UnixTime,
) -> Statement<Revocation> {
    let host = world.host("a");
    let membership = host.engine.membership(host.local).unwrap();
    let (network, root) = (membership.network, membership.chain[0].clone());
    assert!(Statement::<Grant>::open(&root).is_ok());
    let now = clock::unix();
    let head = Head {
        subject: network.did(),
        network: Some(network),
        issued: now,
        expires: until,
        seq: now.as_millis(),
    };
    let revoked = RevokedKey { key: key_, at: now };
    let claims = Revocation {
        keys: vec![revoked],
        grants: vec![],
        chain: vec![root],
    };
    Statement::sign(&key(OWNER), head, claims).unwrap()
}

fn later() -> UnixTime {
    clock::unix() + 365 * 86_400 * SECOND
}

/// The registry tells `name` of a revocation, and nobody else.
fn tell(world: &mut World, name: &str, revocation: &Statement<Revocation>) {
    let host = world.host(name);
    let told =
        host.engine
            .handle_statement(host.local, Forwarded::Revocation, revocation.text(), now());
    assert_eq!(told, Ok(()));
    world.run();
}

fn knows(world: &mut World, name: &str, revocation: &Statement<Revocation>) -> bool {
    let host = world.host(name);
    let membership = host.engine.membership(host.local).unwrap();
    membership.revocations.held().has(&revocation.hash())
}

fn count(world: &mut World, name: &str) -> u32 {
    let host = world.host(name);
    let membership = host.engine.membership(host.local).unwrap();
    membership.revocations.summary().count
}

fn trusts(world: &World, name: &str, peer: &str) -> bool {
    let host = &world.hosts[name];
    host.engine.has_peer(host.local, world.local(peer))
}

/// Has `from` send control packets into its session with `to`, as a hostile node may.
fn inject(world: &mut World, from: &str, to: &str, message: &Control, number: u32) {
    let target = world.local(to);
    let host = world.host(from);
    for packet in message.packets(number) {
        host.engine
            .handle_packet(host.local, target, &packet, now());
    }
    world.run();
}

fn statement(text: &str) -> Control {
    let text = text.to_owned();
    Control::Statement { text }
}

/// P-015, K8: an owner's revocation that one agent heard of reaches all of them without the registry.
#[test]
fn a_revocation_spreads_from_peer_to_peer() {
    let mut world = world();
    let revoked = revocation(&mut world, C, later());

    tell(&mut world, "b", &revoked);
    world.pass(SECOND);

    assert!(knows(&mut world, "a", &revoked));
    assert!(!trusts(&world, "b", "c") && !trusts(&world, "a", "c"));
    assert!(trusts(&world, "a", "b"));
    world.send("c", "a", b"after");
    assert_eq!(world.arrived("a"), 0);
    world.restart("a");
    assert!(!trusts(&world, "a", "c"));
}

/// It is told on when a session begins, too: who was away hears of it with its first packets.
#[test]
fn one_who_was_away_hears_of_it_when_it_talks_again() {
    let mut world = world();
    world.host("a").is_online = false;
    let revoked = revocation(&mut world, C, later());
    tell(&mut world, "b", &revoked);
    world.pass(600 * SECOND);
    assert!(trusts(&world, "a", "c"));

    world.host("a").is_online = true;
    world.send("a", "b", b"I am back");
    world.pass(20 * SECOND);
    assert_eq!(world.arrived("b"), 1);

    assert!(!trusts(&world, "a", "c"));
}

/// Lost, doubled and reordered datagrams do not keep peers from agreeing.
#[test]
fn many_revocations_spread_over_a_bad_network() {
    let mut world = world();
    let revoked = (0..20_u8)
        .map(|n| revocation(&mut world, 100 + n, later()))
        .collect::<Vec<_>>();
    world.weather = Some(Weather {
        lose: 15,
        double: 15,
        hold: 15,
        ..Weather::default()
    });

    for (n, one) in revoked.iter().enumerate() {
        tell(&mut world, if n % 2 == 0 { "b" } else { "c" }, one);
    }
    for _ in 0..60 {
        chat(&mut world);
        world.pass(5 * SECOND);
    }

    for name in ["a", "b", "c"] {
        assert_eq!(count(&mut world, name), 20, "{name}");
    }
}

/// What one end cannot take any more is not offered for ever.
#[test]
fn a_difference_that_lasts_ends_in_silence() {
    let talked = |differs: bool| {
        let mut world = world();
        if differs {
            let brief = revocation(&mut world, 100, clock::unix() + 30 * SECOND);
            world.host("b").is_online = false;
            tell(&mut world, "b", &brief);
            world.pass(60 * SECOND);
            world.host("b").is_online = true;
        }
        chat(&mut world);
        world.pass(60 * SECOND);
        world.wire.clear();
        for _ in 0..60 {
            chat(&mut world);
            world.pass(10 * SECOND);
        }
        (
            world.wire.len(),
            count(&mut world, "a"),
            count(&mut world, "b"),
        )
    };

    let (agreeing, ..) = talked(false);
    let (differing, a, b) = talked(true);

    assert_eq!((a, b), (0, 1));
    // A session more or less may fall into the ten minutes; telling without end would be thousands.
    assert!(differing <= agreeing + 150, "{differing} and {agreeing}");
}

/// Nothing is told to a peer without user data for 180 s, whatever is new.
#[test]
fn a_peer_that_is_not_in_use_is_told_nothing() {
    let mut world = world();
    world.pass(170 * SECOND);
    // A ping makes a session and is no user data.
    let (local, peer) = (world.local("b"), world.local("a"));
    world.host("b").engine.probe(local, peer, now());
    world.pass(60 * SECOND);
    let revoked = revocation(&mut world, C, later());
    tell(&mut world, "b", &revoked);
    world.host("b").engine.probe(local, peer, now());
    world.pass(30 * SECOND);
    assert!(trusts(&world, "a", "c"));

    world.send("b", "a", b"now");
    world.pass(SECOND);

    assert!(!trusts(&world, "a", "c"));
}

/// P-015: who is revoked learns it in the session, for good, with the registry away.
#[test]
fn a_consent_taken_back_is_told_before_the_session_ends() {
    let mut world = world();

    world.change("b", |m, unix| m.revoke(&name("a"), unix).map(drop));

    assert!(!trusts(&world, "b", "a") && !trusts(&world, "a", "b"));
    assert!(trusts(&world, "a", "c") && trusts(&world, "b", "c"));
    let before = drops(world.host("a"), DropReason::NoPeer);
    world.send("a", "b", b"to nobody");
    assert_eq!(drops(world.host("a"), DropReason::NoPeer), before + 1);
    world.restart("a");
    assert!(!trusts(&world, "a", "b"));
}

/// The end that heard it by the session takes the registry's copy for what it is: known.
#[test]
fn the_registrys_copy_of_it_changes_nothing() {
    let mut world = world();
    world.change("b", |m, unix| m.revoke(&name("a"), unix).map(drop));
    let given = |world: &mut World| {
        let (host, did) = (world.host("b"), key(A).did());
        host.engine.membership(host.local).unwrap().given[&did].clone()
    };
    let copy = given(&mut world);
    let before = serde_json::to_string(&world.host("a").engine.state()).unwrap();

    let host = world.host("a");
    let told = host
        .engine
        .handle_statement(host.local, Forwarded::Consent, copy.text(), now());

    assert_eq!(told, Ok(()));
    assert_eq!(
        serde_json::to_string(&world.host("a").engine.state()).unwrap(),
        before
    );
}

/// A changed scope reaches the other end with the registry away.
#[test]
fn a_changed_consent_is_told_in_session() {
    let mut world = world();

    world.change("b", |m, unix| {
        m.approve(&name("a"), "udp/9000".parse::<Scope>().unwrap(), unix)
            .map(drop)
    });
    world.pass(SECOND);

    let host = world.host("a");
    let peers = host.engine.peers(host.local, now());
    let b = peers
        .iter()
        .find(|p| p.name.to_string() == "b.acme.agent")
        .unwrap();
    assert_eq!(b.outbound.to_string(), "udp/9000");
}

/// A hostile peer's bad statement is verified once; what follows is not looked at for a minute.
#[test]
fn bad_statements_cost_their_sender_its_budget() {
    let mut world = world();
    let good = revocation(&mut world, C, later());
    let (head, signature) = good.text().rsplit_once('.').unwrap();
    let forged = format!("{head}.{}", signature.chars().rev().collect::<String>());

    for n in 0..500 {
        inject(&mut world, "b", "a", &statement(&format!("{forged}{n}")), n);
    }
    inject(&mut world, "b", "a", &statement(good.text()), 1000);

    let a = world.host("a");
    assert_eq!(drops(a, DropReason::ControlRefused), 1);
    assert_eq!(drops(a, DropReason::ControlLimited), 500);
    assert!(trusts(&world, "a", "c"));
    world.send("b", "a", b"still works");
    assert_eq!(world.arrived("a"), 1);
    world.pass(61 * SECOND);
    inject(&mut world, "b", "a", &statement(good.text()), 1001);
    assert!(!trusts(&world, "a", "c"));
}

/// Good ones have a rate too: verifying them costs as much.
#[test]
fn a_flood_of_good_statements_is_limited() {
    let mut world = world();
    for n in 0..60 {
        let good = revocation(&mut world, 100 + n, later());
        inject(&mut world, "b", "a", &statement(good.text()), n.into());
    }

    let a = world.host("a");
    assert_eq!(drops(a, DropReason::ControlLimited), 60 - 16);
    assert_eq!(count(&mut world, "a"), 16);
}

/// A peer speaks for itself only: others' consents and records out of its mouth are refused.
#[test]
fn a_peer_brings_only_its_own_consent_and_record() {
    let mut world = world();
    // The registry would forward it; b took it from the wire of somebody else.
    let (c_to_a, record) = {
        let host = world.host("a");
        let membership = host.engine.membership(host.local).unwrap();
        let did = key(C).did();
        (
            membership.received[&did].clone(),
            membership.records[&did].clone(),
        )
    };
    let host = world.host("c");
    let newer = host.engine.record(host.local, now()).unwrap();
    let a = world.host("a");
    let refused = drops(a, DropReason::ControlRefused);

    inject(&mut world, "b", "a", &statement(newer.text()), 1);

    assert_eq!(
        drops(world.host("a"), DropReason::ControlRefused),
        refused + 1
    );
    let host = world.host("a");
    let membership = host.engine.membership(host.local).unwrap();
    assert_eq!(membership.records[&key(C).did()], record);
    assert_eq!(membership.received[&key(C).did()], c_to_a);
}

/// A member cannot fill what nodes keep with revocations that are its own.
#[test]
fn a_member_has_room_for_few_revocations() {
    let mut world = world();
    let host = world.host("b");
    let membership = host.engine.membership(host.local).unwrap();
    let (network, chain) = (membership.network, membership.chain.clone());
    for n in 0..40_u8 {
        let head = Head {
            subject: network.did(),
            network: Some(network),
            issued: clock::unix(),
            expires: later(),
            seq: clock::unix().as_millis() + u64::from(n),
        };
        let revoked = RevokedKey {
            key: key(100 + n).did(),
            at: clock::unix(),
        };
        let claims = Revocation {
            keys: vec![revoked],
            grants: vec![],
            chain: chain.clone(),
        };
        let own = Statement::sign(&key(B), head, claims).unwrap();
        inject(&mut world, "b", "a", &statement(own.text()), n.into());
        world.pass(SECOND);
    }

    assert_eq!(count(&mut world, "a"), 16);
    let owners = revocation(&mut world, C, later());
    inject(&mut world, "b", "a", &statement(owners.text()), 1000);
    assert!(!trusts(&world, "a", "c"));
}

/// A peer that claims ever new things to have gets few answers.
#[test]
fn a_flood_of_claims_is_answered_little() {
    let mut world = world();
    let revoked = revocation(&mut world, 100, later());
    tell(&mut world, "a", &revoked);
    world.pass(10 * SECOND);
    let from = world.host("a").at;
    world.wire.clear();

    for n in 0..1000_u32 {
        let revocations = Summary {
            count: n % 3,
            hash: [n.to_be_bytes()[3]; 32],
        };
        let have = Have {
            revocations,
            record: 0,
            consent: 0,
        };
        inject(&mut world, "b", "a", &Control::Have(have), n);
    }

    let answers = world.wire.iter().filter(|(at, _, _)| *at == from).count();
    assert!(answers <= 10, "{answers}");
}

/// what a connected registry keeps back shows, and only that.
#[test]
fn withholding_by_the_registry_shows() {
    let mut world = world();
    let live = |world: &mut World, name: &str, is_live: bool| {
        let host = world.host(name);
        host.engine.set_registry_live(host.local, is_live, now());
    };
    let withheld = |world: &mut World, name: &str| {
        let host = world.host(name);
        let names = host.engine.withheld(host.local, now());
        names
            .into_iter()
            .map(|n| n.unwrap().to_string())
            .collect::<Vec<_>>()
    };
    let (one, two) = (
        revocation(&mut world, 100, later()),
        revocation(&mut world, 101, later()),
    );
    tell(&mut world, "b", &one);
    tell(&mut world, "b", &two);
    world.pass(5 * SECOND);
    assert_eq!(count(&mut world, "a"), 2);
    world.pass(300 * SECOND);
    assert_eq!(withheld(&mut world, "a"), [""; 0], "it is away");

    live(&mut world, "a", true);
    live(&mut world, "b", true);
    tell(&mut world, "a", &two);
    world.pass(59 * SECOND);
    assert_eq!(withheld(&mut world, "a"), [""; 0], "it has a minute");
    world.pass(2 * SECOND);

    assert_eq!(withheld(&mut world, "a"), ["b.acme.agent"]);
    assert_eq!(world.host("a").withheld, 1, "reported once");
    assert_eq!(withheld(&mut world, "b"), [""; 0], "the registry told b");
    tell(&mut world, "a", &one);
    assert_eq!(withheld(&mut world, "a"), [""; 0], "it told after all");
}

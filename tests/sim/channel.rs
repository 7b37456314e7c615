//! The data channel of two engines over time; what a data plane would do is told to them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use agentnet::engine::channel::{ChannelChange, NewChannel, Passed, Route, Volume};
use agentnet::engine::path::Mode;
use agentnet::wire::channel::{Suite, Suites};

use crate::pair::{World, now};

const SECOND: Duration = Duration::from_secs(1);

/// How often a data plane tells what passed.
const REPORT: Duration = Duration::from_millis(200);

const BOTH: [Suite; 2] = [Suite::Aes256Gcm, Suite::ChaCha20Poly1305];

/// What the data plane of one host knows.
#[derive(Default)]
struct Plane {
    channels: BTreeMap<u32, NewChannel>,
    sending: Option<u32>,
    route: Option<Route>,
    /// Channels of the peer by which a packet came.
    used: BTreeSet<u32>,
    made: usize,
}

struct Talk {
    world: World,
    planes: BTreeMap<&'static str, Plane>,
    /// Packets that no channel of the other end opened.
    lost: usize,
}

impl Talk {
    fn new() -> Self {
        let mut world = World::new(7);
        world.is_open = true;
        world.add("a", 10);
        world.add("b", 11);
        for name in ["a", "b"] {
            world.host(name).engine.set_suites(Suites::of(&BOTH));
        }
        world.trust("a", "b", "udp/8000");
        world.send("a", "b", b"first");
        let planes = [("a", Plane::default()), ("b", Plane::default())];
        let mut talk = Self {
            world,
            planes: planes.into(),
            lost: 0,
        };
        talk.pass(SECOND);
        talk
    }

    fn follow(&mut self) {
        for name in ["a", "b"] {
            let plane = self.planes.get_mut(name).unwrap();
            while let Some(event) = self.world.host(name).engine.poll_channel() {
                match event.change {
                    ChannelChange::New(new) => {
                        plane.made += 1;
                        plane.channels.insert(new.id, new);
                    }
                    ChannelChange::Route(route) => plane.route = Some(route),
                    ChannelChange::Send(id) => plane.sending = Some(id),
                    ChannelChange::End(id) => {
                        plane.channels.remove(&id).expect("it was there");
                        plane.sending = plane.sending.filter(|sending| *sending != id);
                    }
                }
            }
        }
    }

    fn pass(&mut self, duration: Duration) {
        self.world.pass(duration);
        self.follow();
    }

    /// Carries a packet of `from` as its data plane would; false when that has no way for it.
    fn send(&mut self, from: &'static str, to: &'static str) -> bool {
        let plane = &self.planes[from];
        let sealed = plane.sending.and_then(|id| plane.channels.get(&id));
        let (Some(sealed), Some(Route::Direct(_))) = (sealed, plane.route) else {
            return false;
        };
        let (remote, key) = (sealed.remote, *sealed.seal.as_bytes());
        let other = self.planes.get_mut(to).unwrap();
        let opens = other.channels.get(&remote);
        if opens.is_none_or(|channel| *channel.open.as_bytes() != key) {
            self.lost += 1;
            return true;
        }
        if other.used.insert(remote) {
            let (local, peer) = (self.world.local(to), self.world.local(from));
            let engine = &mut self.world.host(to).engine;
            engine.handle_channel_used(local, peer, remote, now());
        }
        true
    }

    /// Tells whether what `name` seals goes directly, and the other end has the channel.
    fn has_channel(&self, name: &str) -> bool {
        let plane = &self.planes[name];
        let others = &self.planes[if name == "a" { "b" } else { "a" }];
        let sealed = plane.sending.and_then(|id| plane.channels.get(&id));
        sealed.is_some_and(|sealed| others.channels.contains_key(&sealed.remote))
            && matches!(plane.route, Some(Route::Direct(_)))
    }

    fn report(&mut self, name: &'static str, other: &'static str, sent: u64, received: u64) {
        let volume = |packets| Volume {
            packets,
            bytes: packets * 1000,
        };
        let passed = Passed {
            local: self.world.local(name),
            peer: self.world.local(other),
            sent: volume(sent),
            received: volume(received),
            from: (received > 0).then(|| self.at(other)),
        };
        self.world.host(name).engine.handle_passed(&[passed], now());
    }

    fn at(&self, name: &str) -> SocketAddr {
        self.world.hosts[name].at
    }

    /// A sends every 200 ms, and B too if it `answers`; returns how often there was no channel.
    fn talk(&mut self, duration: Duration, answers: bool) -> usize {
        let mut without = 0;
        for _ in 0..duration.as_millis() / REPORT.as_millis() {
            without += usize::from(!self.send("a", "b"));
            let back = u64::from(answers);
            if answers {
                without += usize::from(!self.send("b", "a"));
            }
            self.report("a", "b", 1, back);
            self.report("b", "a", back, 1);
            self.world.run();
            self.pass(REPORT);
        }
        without
    }

    fn handshakes(&self) -> usize {
        let is_initiation = |bytes: &Vec<u8>| bytes.starts_with(&[1, 0, 0, 0]);
        let direct = self.world.wire.iter();
        direct.filter(|(_, _, bytes)| is_initiation(bytes)).count()
    }
}

#[test]
fn a_direct_path_has_a_channel_within_a_second() {
    let talk = Talk::new();

    for (name, other) in [("a", "b"), ("b", "a")] {
        let plane = &talk.planes[name];
        assert!(plane.sending.is_some(), "{name}");
        assert_eq!(plane.route, Some(Route::Direct(talk.at(other))), "{name}");
        assert_eq!(plane.channels.len(), 1, "{name}");
    }
}

/// Issue 4: rekey with every new session without a lost packet.
#[test]
fn an_hour_of_data_is_rekeyed_every_two_minutes_without_a_lost_packet() {
    let mut talk = Talk::new();

    let without = talk.talk(Duration::from_secs(3600), true);

    assert_eq!((without, talk.lost), (0, 0));
    let made = talk.planes["a"].made;
    assert!((29..=35).contains(&made), "{made} channels");
    assert!(talk.planes["a"].channels.len() <= 2);
}

/// Data that nobody answers is no lost session.
#[test]
fn one_way_data_makes_no_more_handshakes() {
    let mut talk = Talk::new();
    talk.talk(SECOND * 5, true);
    talk.world.wire.clear();

    let without = talk.talk(Duration::from_secs(100), false);

    assert_eq!((without, talk.lost), (0, 0));
    assert_eq!(talk.handshakes(), 0);
}

/// An idle channel costs nothing, and ends with its session's time.
#[test]
fn an_idle_channel_is_not_renewed() {
    let mut talk = Talk::new();
    talk.talk(SECOND * 5, true);

    talk.pass(Duration::from_secs(400));

    let plane = &talk.planes["a"];
    assert!(plane.channels.is_empty() && plane.sending.is_none());
    talk.world.wire.clear();
    talk.pass(Duration::from_secs(400));
    let between = [talk.at("a"), talk.at("b")];
    let mut wire = talk.world.wire.iter();
    assert!(!wire.any(|(from, to, _)| between.contains(from) && between.contains(to)));
}

/// With no data back the session is made anew; the channel comes with it.
#[test]
fn a_peer_that_restarted_gets_a_new_channel() {
    let mut talk = Talk::new();
    talk.talk(SECOND * 5, true);
    talk.world.restart("b");
    talk.world.host("b").engine.set_suites(Suites::of(&BOTH));
    *talk.planes.get_mut("b").unwrap() = Plane::default();

    for _ in 0..150 {
        if talk.send("a", "b") {
            // B opens nothing of what A seals, so nothing comes back.
            talk.report("a", "b", 1, 0);
        } else {
            talk.world.send("a", "b", b"by the session");
            talk.world.send("b", "a", b"by the session");
        }
        talk.world.run();
        talk.pass(REPORT);
        if talk.has_channel("a") && talk.has_channel("b") {
            break;
        }
    }

    talk.lost = 0;
    assert_eq!(talk.talk(SECOND, true), 0);
    assert_eq!(talk.lost, 0);
}

#[test]
fn agents_that_do_not_go_directly_have_no_channel() {
    for mode in [Mode::Relay, Mode::Hidden] {
        let mut talk = Talk::new();
        talk.world.host("b").engine.set_path_mode(mode, now());
        talk.follow();
        assert!(talk.planes["b"].channels.is_empty());

        talk.world.send("a", "b", b"by the gateway");
        talk.pass(SECOND * 200);
        talk.world.send("a", "b", b"by the gateway");
        talk.pass(SECOND * 10);

        assert!(talk.planes["b"].channels.is_empty());
        assert!(talk.planes["a"].channels.is_empty());
    }
}

/// P-014: consent taken back ends the channel in the same breath.
#[test]
fn a_consent_taken_back_ends_the_channel() {
    let mut talk = Talk::new();
    let a = crate::pair::name("a");

    talk.world
        .change("b", |m, unix| m.revoke(&a, unix).map(drop));
    talk.follow();

    assert!(talk.planes["b"].channels.is_empty());
}

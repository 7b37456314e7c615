//! The data channel of two engines over time; what a data plane would do is told to them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use agentnet::dataplane::frame_ids;
use agentnet::engine::channel::{Arrival, ChannelChange, NewChannel, Passed, Route, Volume};
use agentnet::engine::hop::{SharedHop, Slot};
use agentnet::engine::path::Mode;
use agentnet::wire::channel::{Suite, Suites};

use crate::pair::{World, now};

const SECOND: Duration = Duration::from_secs(1);

/// How often a data plane tells what passed.
const REPORT: Duration = Duration::from_millis(200);

const BOTH: [Suite; 2] = [Suite::Aes256Gcm, Suite::ChaCha20Poly1305];

/// By the only hop there is.
const RELAYED: Option<Route> = Some(Route::Relayed(Slot::ALL[0]));

/// What the data plane of one host knows.
#[derive(Default)]
struct Plane {
    channels: BTreeMap<u32, NewChannel>,
    sending: Option<u32>,
    route: Option<Route>,
    hop: Option<SharedHop>,
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
    /// Two hosts that reach each other directly.
    fn new() -> Self {
        Self::where_hosts(true)
    }

    /// Two hosts that reach each other by the gateway, and directly if they `meet`.
    fn where_hosts(meet: bool) -> Self {
        let mut world = World::new(7);
        world.is_open = meet;
        world.add("a", 10);
        world.add("b", 11);
        for name in ["a", "b"] {
            let engine = &mut world.host(name).engine;
            engine.set_suites(Suites::of(&BOTH));
            engine.set_frame_ids(frame_ids);
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
            while let Some(event) = self.world.host(name).engine.poll_hop() {
                plane.hop = event.hop;
            }
            while let Some(event) = self.world.host(name).engine.poll_channel() {
                match event.change {
                    ChannelChange::New(new) => {
                        plane.made += 1;
                        plane.channels.insert(new.id, new);
                    }
                    ChannelChange::Mtu(_) => {}
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
        let Some(sealed) = sealed.filter(|_| plane.goes()) else {
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

    /// Tells whether what `name` seals goes past the engine, and the other end has the channel.
    fn has_channel(&self, name: &str) -> bool {
        let plane = &self.planes[name];
        let others = &self.planes[if name == "a" { "b" } else { "a" }];
        let sealed = plane.sending.and_then(|id| plane.channels.get(&id));
        sealed.is_some_and(|sealed| others.channels.contains_key(&sealed.remote)) && plane.goes()
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
            from: (received > 0).then(|| match self.is_relayed(other) {
                true => Arrival::Relayed(Slot::default()),
                false => Arrival::Direct(self.at(other)),
            }),
            relayed: [
                (
                    if self.is_relayed(name) { sent } else { 0 },
                    if self.is_relayed(other) { received } else { 0 },
                ),
                (0, 0),
                (0, 0),
            ],
            unknown: 0,
        };
        self.world.host(name).engine.handle_passed(&[passed], now());
    }

    fn is_relayed(&self, name: &str) -> bool {
        self.planes[name].route == RELAYED
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

    /// Returns how many handshakes went directly, or to the gateway for a peer.
    fn handshakes(&self) -> usize {
        let is_initiation = |bytes: &&[u8]| bytes.starts_with(&[1, 0, 0, 0]);
        let gateway = self.world.gateway_at;
        let peers = self.world.wire.iter().filter_map(|(from, to, bytes)| {
            let is_framed = *to == gateway && bytes.starts_with(&[0xa2]);
            match is_framed {
                true => bytes.get(56..),
                false => Some(&bytes[..]).filter(|_| ![from, to].contains(&&gateway)),
            }
        });
        peers.filter(is_initiation).count()
    }

    /// Lets A send and B answer for a while, by session where there is no channel; what goes directly
    /// arrives if hosts meet. Returns how many packets of A arrived at last, in a row.
    fn try_to_talk(&mut self, duration: Duration) -> usize {
        let mut row = 0;
        for _ in 0..duration.as_millis() / REPORT.as_millis() {
            let arrives = self.world.is_open || self.is_relayed("a") && self.is_relayed("b");
            if self.send("a", "b") && self.send("b", "a") {
                let got = u64::from(arrives);
                self.report("a", "b", 1, got);
                self.report("b", "a", 1, got);
                row = if arrives { row + 1 } else { 0 };
            } else {
                self.world.send("a", "b", b"by the session");
                self.world.send("b", "a", b"by the session");
                row = 0;
            }
            self.world.run();
            self.pass(REPORT);
        }
        row
    }
}

impl Plane {
    /// Tells whether what is sealed has a way.
    fn goes(&self) -> bool {
        match self.route {
            Some(Route::Direct(_)) => true,
            Some(Route::Relayed(_)) => self.hop.is_some(),
            Some(Route::Engine) | None => false,
        }
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

/// Issue 4: relayed data takes the same short way.
#[test]
fn a_relayed_path_has_a_channel_within_a_second() {
    let talk = Talk::where_hosts(false);

    for name in ["a", "b"] {
        let plane = &talk.planes[name];
        assert_eq!(plane.route, RELAYED, "{name}");
        assert!(plane.hop.is_some() && talk.has_channel(name), "{name}");
    }
}

/// Issue 4: rekey with every new session without a lost packet.
#[test]
fn an_hour_of_data_is_rekeyed_every_two_minutes_without_a_lost_packet() {
    for meet in [true, false] {
        let mut talk = Talk::where_hosts(meet);

        let without = talk.talk(Duration::from_secs(3600), true);

        assert_eq!((without, talk.lost), (0, 0));
        let made = talk.planes["a"].made;
        // By relay now and then both ends begin at once.
        assert!((29..=40).contains(&made), "{made} channels, {meet}");
        assert!(talk.planes["a"].channels.len() <= 2);
        assert_eq!(talk.is_relayed("a"), !meet);
    }
}

/// Data that nobody answers is no lost session, and no lost gateway.
#[test]
fn one_way_data_makes_no_more_handshakes() {
    for meet in [true, false] {
        let mut talk = Talk::where_hosts(meet);
        talk.talk(SECOND * 5, true);
        talk.world.wire.clear();

        let without = talk.talk(Duration::from_secs(100), false);

        assert_eq!((without, talk.lost), (0, 0));
        assert_eq!(talk.handshakes(), 0);
    }
}

/// P-003: the channel goes with the data, from the relay to a direct path and back.
#[test]
fn a_channel_follows_its_path() {
    let mut talk = Talk::where_hosts(false);
    talk.talk(SECOND * 5, true);
    let made = talk.planes["a"].made;

    talk.world.is_open = true;
    for name in ["a", "b"] {
        let time = now();
        talk.world.host(name).engine.handle_network_change(time);
    }
    assert!(talk.try_to_talk(SECOND * 20) > 50);
    assert!(!talk.is_relayed("a") && !talk.is_relayed("b"));
    talk.world.is_open = false;
    let row = talk.try_to_talk(SECOND * 20);

    assert!(talk.is_relayed("a") && talk.is_relayed("b"));
    // Lost data is noticed within three seconds (protocol.md section 6).
    assert!(row >= 80, "{row}");
    assert!(talk.planes["a"].made <= made + 2);
    assert_eq!(talk.lost, 0);
}

/// channels outlive the hop that carries them, and go on by the next one.
#[test]
fn a_gateway_that_restarts_costs_no_channel() {
    let mut talk = Talk::where_hosts(false);
    talk.talk(SECOND * 5, true);
    let (made, before) = (talk.planes["a"].made, talk.planes["a"].hop.clone());

    talk.world.start_gateway();
    talk.try_to_talk(SECOND * 15);

    let after = talk.planes["a"].hop.clone();
    assert_ne!(before.map(|hop| hop.up), after.map(|hop| hop.up));
    assert_eq!(talk.talk(SECOND * 5, true), 0);
    assert!(talk.planes["a"].made <= made + 3);
}

/// A gateway that carries sessions and no packets of channels costs its agents a handshake every five
/// seconds, and no more.
#[test]
fn a_gateway_that_drops_packets_of_channels_costs_little() {
    let mut talk = Talk::where_hosts(false);
    talk.talk(SECOND * 5, true);
    talk.world.wire.clear();

    for _ in 0..300 {
        for (name, other) in [("a", "b"), ("b", "a")] {
            talk.report(name, other, 1, 0);
        }
        talk.world.run();
        talk.pass(REPORT);
    }

    let handshakes = talk.handshakes();
    assert!((5..=40).contains(&handshakes), "{handshakes} in 60 s");
    assert_eq!(talk.talk(SECOND * 5, true), 0);
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
    let engine = &mut talk.world.host("b").engine;
    engine.set_suites(Suites::of(&BOTH));
    engine.set_frame_ids(frame_ids);
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

/// A relayed packet to a channel that was lost with the peer's memory brings a new one, without a wait
/// for silence; a gateway that makes such packets up brings one handshake in five seconds.
#[test]
fn a_peer_that_lost_its_channels_says_so() {
    let mut talk = Talk::where_hosts(false);
    talk.talk(SECOND * 5, true);
    talk.world.restart("b");
    let engine = &mut talk.world.host("b").engine;
    engine.set_suites(Suites::of(&BOTH));
    engine.set_frame_ids(frame_ids);
    *talk.planes.get_mut("b").unwrap() = Plane::default();
    talk.pass(SECOND * 2);
    assert!(!talk.has_channel("a") && talk.planes["b"].hop.is_some());
    let stray = |talk: &mut Talk| {
        let passed = Passed {
            local: talk.world.local("b"),
            peer: talk.world.local("a"),
            sent: Volume::default(),
            received: Volume::default(),
            from: None,
            relayed: [(0, 0); 3],
            unknown: 9,
        };
        let engine = &mut talk.world.host("b").engine;
        engine.handle_passed(&[passed], now());
        talk.world.run();
        talk.pass(REPORT);
    };

    stray(&mut talk);

    assert!(talk.has_channel("a") && talk.has_channel("b"));
    talk.world.wire.clear();
    (0..300).for_each(|_| stray(&mut talk));
    let handshakes = talk.handshakes();
    assert!((6..=13).contains(&handshakes), "{handshakes} in 60 s");
}

/// Whoever hides, or is told to use the relay alone, has channels that nothing direct is sent by.
#[test]
fn agents_that_do_not_go_directly_have_relayed_channels() {
    for mode in [Mode::Relay, Mode::Hidden] {
        let mut talk = Talk::new();
        assert!(!talk.is_relayed("a") && !talk.is_relayed("b"));
        talk.world.host("b").engine.set_path_mode(mode, now());
        talk.follow();
        assert!(talk.is_relayed("b"));

        talk.try_to_talk(SECOND * 200);

        // Who does not hide still answers where it was found before.
        assert!(talk.is_relayed("b") && (talk.is_relayed("a") || mode == Mode::Relay));
        assert_eq!(talk.talk(SECOND * 5, true), 0);
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

//! A consented peer turned evil: it has the keys that trust gave it, and says what it likes.

use std::net::{IpAddr, SocketAddr};

use agentnet::engine::path::Path;
use agentnet::engine::session::{Opened, Session, SessionKeys};
use agentnet::id::{OverlayIp, TunnelSecret};
use agentnet::policy::{Filter, Limits, Pair, Verdict};
use agentnet::statement::issue;
use agentnet::wire::candidate::{Candidate, Candidates, Kind};
use agentnet::wire::control::{Control, Farewell, Part, ProbeReply};
use agentnet::wire::drop::DropReason;
use agentnet::wire::ip::Ipv6View;

use crate::hostile::{Ledger, SECOND};
use crate::pair::{World, drops, membership, now, udp};

/// Agent b gone over: its keys and endpoint, without its engine.
pub(super) struct Evil {
    pub(super) at: SocketAddr,
    pub(super) local: OverlayIp,
    pub(super) victim: SocketAddr,
    keys: SessionKeys,
    session: Session,
    /// How much of the wire was read.
    read: usize,
}

impl Evil {
    /// Takes the place of host b, which trusts a.
    pub(super) fn take_over(world: &mut World) -> Self {
        let b = world.hosts.remove("b").unwrap();
        let a = &world.hosts["a"];
        let trusted = b.engine.membership(b.local).unwrap().trusted(now().unix);
        let trusted = trusted.into_iter().find(|t| t.member.address == a.local);
        let trusted = trusted.unwrap();
        let keys = SessionKeys {
            local: TunnelSecret::from_seed([11; 32]),
            peer: trusted.tunnel,
            psk: Some(trusted.psk),
            index: 1,
        };
        let mut evil = Self {
            at: b.at,
            local: b.local,
            victim: a.at,
            session: Session::new(&keys, now().now),
            keys,
            read: world.wire.len(),
        };
        evil.handshake(world);
        evil
    }

    /// Makes a new session, as after a restart.
    pub(super) fn handshake(&mut self, world: &mut World) {
        // A handshake's timestamp must be later than the last one's.
        world.pass(SECOND / 100);
        self.keys.index += 1;
        self.session = Session::new(&self.keys, now().now);
        let initiation = self.session.initiate(now().now).unwrap();
        self.put(world, self.at, initiation);
        for (_, message) in self.unread(world) {
            if let Opened::Confirmed { reply, .. } = self.session.open(&message, now().now) {
                self.put(world, self.at, reply.unwrap());
            }
        }
        assert!(self.session.is_confirmed(now().now));
    }

    /// Puts a datagram on the wire from any source.
    pub(super) fn put(&self, world: &mut World, from: SocketAddr, bytes: Vec<u8>) {
        world.deliver(from, self.victim, bytes);
        world.run();
    }

    /// Seals a packet and sends it from its own endpoint.
    pub(super) fn say(&mut self, world: &mut World, packet: &[u8]) -> usize {
        self.say_from(world, self.at, packet)
    }

    /// The same from any source; returns the bytes that cost.
    pub(super) fn say_from(&mut self, world: &mut World, from: SocketAddr, packet: &[u8]) -> usize {
        let sealed = self.session.seal(packet, now().now).unwrap();
        let bytes = sealed.len();
        self.put(world, from, sealed);
        bytes
    }

    pub(super) fn control(&mut self, world: &mut World, message: &Control) -> usize {
        self.say(world, &message.packet().unwrap())
    }

    pub(super) fn name(&mut self, world: &mut World, seq: u64, endpoints: &[SocketAddr]) -> usize {
        let list = endpoints.iter().map(|endpoint| Candidate {
            kind: Kind::Host,
            endpoint: *endpoint,
            priority: 9,
        });
        let list = list.collect();
        self.control(world, &Control::Candidates(Candidates { seq, list }))
    }

    /// Returns what the victim sent since the last call, wherever to.
    pub(super) fn unread(&mut self, world: &World) -> Vec<(SocketAddr, Vec<u8>)> {
        let new = world.wire[self.read..].iter();
        self.read = world.wire.len();
        let of_victim = new.filter(|(from, ..)| *from == self.victim);
        of_victim
            .map(|(_, to, bytes)| (*to, bytes.clone()))
            .collect()
    }

    /// Opens what the victim told this session since the last call.
    pub(super) fn heard(&mut self, world: &World) -> Vec<Control> {
        let mut heard = vec![];
        for (to, message) in self.unread(world) {
            if to != self.at {
                continue;
            }
            if let Opened::Packet(packet) = self.session.open(&message, now().now) {
                heard.extend(Control::parse(&packet));
            }
        }
        heard
    }
}

/// a trusts b and c; b is about to turn.
pub(super) fn world() -> (World, Evil) {
    let mut world = World::new(31);
    world.is_open = true;
    for (name, n) in [("a", 10), ("b", 11), ("c", 12)] {
        world.add(name, n);
    }
    world.trust("b", "a", "udp/8000");
    world.trust("c", "a", "udp/8000");
    let evil = Evil::take_over(&mut world);
    (world, evil)
}

/// What stands between them goes on: c and a talk as if b were not there.
pub(super) fn others_talk(world: &mut World) {
    let mut ledger = Ledger::default();
    world.host("a").received.clear();
    ledger.talk(world, &[("a", "c")], 1);
    let (sent, arrived) = ledger.talk(world, &[("a", "c")], 5);
    assert_eq!(sent, arrived);
}

/// How much the engine holds, as far as what it shows of itself tells.
fn size(world: &World) -> usize {
    format!("{:?}", world.hosts["a"].engine).len()
}

pub(super) fn path(world: &World, to: OverlayIp) -> Option<Path> {
    let a = &world.hosts["a"];
    let view = a.engine.paths(a.local, to, now());
    view.and_then(|view| view.current)
}

/// Returns what the filter says of everything that reached a's side since the last call.
fn judge(world: &mut World) -> Vec<Verdict> {
    let mut filter = Filter::new(Limits::default(), now().now);
    let a = world.host("a");
    let tables = a.engine.tables();
    let judged = std::mem::take(&mut a.received).into_iter();
    let judged = judged.map(|(peer, bytes)| {
        let local = a.local;
        let (_, _, scopes) = tables
            .iter()
            .find(|(l, p, _)| (*l, *p) == (local, peer))
            .unwrap();
        match Ipv6View::parse(&bytes) {
            Ok(view) => filter.inbound(Pair { local, peer }, &view, scopes, now().now),
            Err(reason) => Verdict::Drop(reason),
        }
    });
    judged.collect()
}

fn ip6(from: &str, to: &str, next: u8) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 8, next, 64];
    packet.extend(from.parse::<std::net::Ipv6Addr>().unwrap().octets());
    packet.extend(to.parse::<std::net::Ipv6Addr>().unwrap().octets());
    packet.extend([0x13, 0x88, 0x1f, 0x40, 0, 8, 0, 0]);
    packet
}

/// P-063, A-084: a session carries its own two addresses and what the scope allows, nothing else.
#[test]
fn one_that_forges_sources_and_destinations_reaches_no_program() {
    let (mut world, mut evil) = world();
    let second = membership(13, "second", issue::ROOT_LIFE);
    let second = world.host("a").engine.add(second, now()).unwrap();
    let (a, b, c) = (world.local("a"), evil.local, world.local("c"));
    let text = |ip: OverlayIp| ip.ip().to_string();
    evil.say(&mut world, &udp(b, a, b"as allowed"));
    assert_eq!(judge(&mut world), [Verdict::Pass]);

    let mut forged = vec![
        udp(c, a, b"as c"),
        udp(a, a, b"as a itself"),
        udp(b, c, b"to c"),
        udp(b, second, b"to the second agent of the host"),
        udp(c, second, b"as c to the second"),
        vec![0x45; 40],
        vec![0x60; 39],
        vec![],
        vec![0xff; 1280],
    ];
    for (from, to) in [
        ("fe80::1", text(a).as_str()),
        ("fe80::a6:1", &text(a)),
        (&text(b), "fe80::a6:2"),
        ("fe80::a6:1", "fe80::a6:2"),
        (&text(b), "ff02::1"),
        ("::", &text(a)),
        ("::1", &text(a)),
        (&text(b), "::1"),
        ("::ffff:127.0.0.1", &text(a)),
        ("2001:db8::1", &text(a)),
    ] {
        forged.push(ip6(from, to, 17));
    }
    for next in [0, 4, 41, 43, 50, 59, 60, 89, 132, 253, 254, 255] {
        forged.push(ip6(&text(b), &text(a), next));
    }
    for packet in &forged {
        evil.say(&mut world, packet);
    }

    let judged = judge(&mut world);
    assert!(
        judged.iter().all(|verdict| *verdict != Verdict::Pass),
        "{judged:?}"
    );
    assert!(judged.len() > 25, "{}", judged.len());
    others_talk(&mut world);
}

/// The second agent of a host is no peer of its, whatever it knows of the first.
#[test]
fn one_that_speaks_to_the_hosts_second_agent_meets_silence() {
    let (mut world, mut evil) = world();
    let second = membership(13, "second", issue::ROOT_LIFE);
    world.host("a").engine.add(second, now()).unwrap();
    let keys = SessionKeys {
        peer: TunnelSecret::from_seed([13; 32]).public(),
        ..evil.keys.clone()
    };
    let mut session = Session::new(&keys, now().now);
    evil.unread(&world);

    for _ in 0..10 {
        let initiation = session.initiate(now().now).unwrap();
        evil.put(&mut world, evil.at, initiation);
    }

    let answers = evil.unread(&world);
    assert!(
        answers.iter().all(|(to, _)| *to != evil.at),
        "{}",
        answers.len()
    );
}

/// Packets, handshakes, probes, parts and nonsense in floods: answers, memory and the others' share
/// stay within their bounds.
#[test]
fn one_that_floods_gets_few_answers_and_leaves_nothing_behind() {
    let (mut world, mut evil) = world();
    others_talk(&mut world);
    evil.name(&mut world, 1, &[]);
    let before = size(&world);
    evil.unread(&world);

    for n in 0..2000_u32 {
        let probe = Control::Probe {
            id: n.into(),
            path: 9,
        };
        evil.control(&mut world, &probe);
        let part = Control::Part(Part {
            message: n,
            n: 0,
            of: 15,
            bytes: vec![7; 1100],
        });
        evil.control(&mut world, &part);
        evil.control(
            &mut world,
            &Control::Attach {
                record: "x".repeat(200),
            },
        );
        let (from, to) = (evil.local, world.local("a"));
        evil.say(&mut world, &udp(from, to, b"flood"));
    }
    let replies = evil.heard(&world);
    println!("{} answers to 2000 probes at once", replies.len());
    assert!((1..=61).contains(&replies.len()));
    assert_eq!(
        drops(&world.hosts["a"], DropReason::ProbeLimited),
        2000 - 60
    );
    assert_eq!(world.arrived("a"), 2000);

    let mut messages = 0;
    for _ in 0..1000 {
        let initiation = evil.session.initiate(now().now).unwrap();
        evil.put(&mut world, evil.at, initiation);
        world.pass(SECOND / 100);
        messages += evil.unread(&world).len();
    }
    println!("{messages} messages for 1000 handshakes in 10 s");
    assert!(messages <= 10 * (10 + 20), "{messages}");
    others_talk(&mut world);
    world.pass(200 * SECOND);
    let after = size(&world);
    assert!(after < before + 4000, "{before} then {after}");
}

/// protocol.md section 6: types and lengths of no meaning are counted, and the session goes on.
#[test]
fn one_that_sends_control_messages_of_no_meaning_changes_nothing() {
    let (mut world, mut evil) = world();
    let before = drops(&world.hosts["a"], DropReason::ControlMalformed);
    evil.unread(&world);
    let frame = |kind: u16, length: u16, body: &[u8]| {
        let mut packet = ip6("fe80::a6:1", "fe80::a6:2", 253);
        packet.truncate(40);
        packet[4..6].copy_from_slice(&u16::try_from(4 + body.len()).unwrap().to_be_bytes());
        packet.extend(kind.to_be_bytes());
        packet.extend(length.to_be_bytes());
        packet.extend(body);
        packet
    };
    let mut sent = 0;
    for kind in (0..=40).chain([255, 256, 0x7fff, 0xffff]) {
        for (length, body) in [(u16::MAX, 0), (1, 0), (0, 0), (0, 1200)] {
            evil.say(&mut world, &frame(kind, length, &vec![0xff; body]));
            sent += 1;
        }
    }
    evil.say(&mut world, &frame(8, 9, &[0, 0, 0, 0, 0, 0, 0, 9, 255]));
    evil.say(&mut world, &ip6("fe80::a6:1", "fe80::a6:2", 253)[..40]);
    evil.say(&mut world, &ip6("fe80::a6:1", "fe80::a6:2", 253)[..41]);

    let counted = drops(&world.hosts["a"], DropReason::ControlMalformed) - before;
    println!("{counted} of {} counted as malformed", sent + 3);
    assert!(counted > sent * 3 / 4);
    assert_eq!(evil.unread(&world).len(), 0);
    assert_eq!(world.arrived("a"), 0, "a control message reached a TUN");
    evil.control(&mut world, &Control::Probe { id: 5, path: 9 });
    assert!(matches!(
        evil.heard(&world)[..],
        [Control::ProbeReply(ProbeReply { id: 5, .. })]
    ));
}

/// A farewell ends nothing but what is the speaker's own.
#[test]
fn one_that_says_goodbye_ends_nobodys_trust() {
    let (mut world, mut evil) = world();
    let (a, b, c) = (world.local("a"), evil.local, world.local("c"));
    for reason in [Farewell::Leaving, Farewell::Revoked, Farewell::Other(999)] {
        evil.handshake(&mut world);
        evil.control(&mut world, &Control::Goodbye { reason });
    }

    assert!(world.host("a").engine.has_peer(a, b) && world.host("a").engine.has_peer(a, c));
    evil.handshake(&mut world);
    evil.say(&mut world, &udp(b, a, b"still a peer"));
    assert_eq!(world.arrived("a"), 1);
    others_talk(&mut world);
}

/// Beyond what rekeys, retries and lapses take; one entry kept of each takes more than a byte of text.
const RESTARTS: u16 = 800;

/// Dead and back every second, eight hundred times: nothing piles up, and the last session works.
#[test]
fn one_that_restarts_every_second_leaves_nothing_behind() {
    let (mut world, mut evil) = world();
    let mut sizes = vec![];
    let mut messages = 0;
    for second in 0..RESTARTS {
        evil.handshake(&mut world);
        let named = SocketAddr::new(IpAddr::from([203, 0, 113, 13]), 1 + second);
        evil.name(&mut world, 1, &[named]);
        let (a, b) = (world.local("a"), evil.local);
        let packet = udp(a, b, b"are you there");
        world.host("a").engine.handle_packet(a, b, &packet, now());
        world.pass(SECOND);
        messages += evil.unread(&world).len();
        if second % 100 == 99 {
            sizes.push(size(&world));
        }
        world.wire.clear();
        evil.read = 0;
    }

    println!("sizes {sizes:?}, {messages} messages");
    // What grew a little with each would be beyond what differs from one moment to another.
    let (first, last) = (sizes[0], sizes[sizes.len() - 1]);
    assert!(last < first + usize::from(RESTARTS), "{sizes:?}");
    assert!(messages < usize::from(RESTARTS) * 30, "{messages}");
    let words = udp(evil.local, world.local("a"), b"x");
    evil.say(&mut world, &words);
    assert_eq!(world.arrived("a"), 1);
    others_talk(&mut world);
}

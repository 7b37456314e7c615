//! Packets, frames and messages, as they come from a network.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::Ipv6Addr;
use std::time::Duration;

use agentnet::engine::names::{Question, Zone};
use agentnet::id::{FullName, OverlayIp, Suffix};
use agentnet::os::clock;
use agentnet::policy::{Filter, Limits, Pair, Verdict};
use agentnet::statement::{Protocol, Scope};
use agentnet::wire::a2g::{self, Direction, Header, HopKeys, Kind, Reset};
use agentnet::wire::channel;
use agentnet::wire::control::{Control, Part, is_control, is_reserved};
use agentnet::wire::datagram::Datagram;
use agentnet::wire::discover::{Discover, Offer};
use agentnet::wire::dns::{Answer, Query, ResponseCode, Transport, Unfit, is_failure, with_id};
use agentnet::wire::icmp6::{Unreachable, packet_too_big, unreachable};
use agentnet::wire::ip::{self, Ipv6View};
use agentnet::wire::part::Reassembler;
use agentnet::wire::srv;
use agentnet::wire::stun::{self, Message, Origin};

use super::input::Input;
use super::memory::bounded;

/// Local agent and peer of every packet that is made here.
const LOCAL: Ipv6Addr = Ipv6Addr::new(0xfd11, 0x2233, 0x4455, 1, 0, 0, 0, 0xa);
const PEER: Ipv6Addr = Ipv6Addr::new(0xfd11, 0x2233, 0x4455, 1, 0, 0, 0, 0xb);

/// IPv6 packets as they are, and behind a header that is right; then what the filter makes of them.
pub(super) fn packet(data: &[u8]) {
    one_packet(data);
    let mut input = Input::new(data);
    let limits = Limits {
        flows: 8,
        fragments: 2,
        pick_up: Duration::from_secs(input.byte().into()),
    };
    let scopes = [Scope::Ports(vec![(Protocol::Udp, 53, 99)])];
    let mut now = clock::now();
    let mut filter = Filter::new(limits, now);
    let (local, peer) = (overlay(LOCAL), overlay(PEER));
    let pair = Pair { local, peer };
    while !input.is_empty() {
        let choice = input.byte();
        now += Duration::from_millis(u64::from(choice >> 3) * 1000);
        let is_inbound = choice & 1 == 0;
        let ends = if is_inbound {
            (PEER, LOCAL)
        } else {
            (LOCAL, PEER)
        };
        let made = ipv6(ends, input.byte(), input.chunk());
        one_packet(&made);
        let Ok(view) = Ipv6View::parse(&made) else {
            continue;
        };
        let none = [Scope::replies_only()];
        let allowed: &[Scope] = if choice & 2 == 0 { &scopes } else { &none };
        if is_inbound {
            let before = filter.flows(pair);
            let verdict = filter.inbound(pair, &view, allowed, now);
            assert!(verdict != Verdict::Pass || !is_reserved(&made));
            let foreign = is_opening(view.transport()) && before == 0 && choice & 2 != 0;
            assert!(verdict != Verdict::Pass || !foreign, "uninvited");
        } else {
            filter.outbound(pair, &view, allowed, now);
        }
        assert!(filter.flows(pair) <= limits.flows);
        if choice & 4 != 0 {
            filter.narrow(pair, allowed, now);
            filter.expire(now);
        }
    }
}

/// Tells whether a packet can begin something, and nothing else.
fn is_opening(transport: ip::Transport) -> bool {
    matches!(transport, ip::Transport::Tcp(tcp) if tcp.syn && !tcp.ack)
        || matches!(transport, ip::Transport::Udp(_))
}

fn one_packet(bytes: &[u8]) {
    let _ = (is_control(bytes), is_reserved(bytes));
    let parsed = bounded(bytes, 0, 0, || Ipv6View::parse(bytes));
    let Ok(view) = parsed else {
        assert!(unreachable(bytes, Unreachable::Address).is_none());
        return;
    };
    assert_eq!(view.bytes(), bytes);
    for error in [
        unreachable(bytes, Unreachable::NoRoute),
        packet_too_big(bytes, 1280),
    ] {
        let Some(error) = error else { continue };
        assert!(error.len() <= 1280);
        let told = Ipv6View::parse(&error).expect("an error of ours is a packet");
        let ip::Transport::Icmp6Error(quoted) = told.transport() else {
            panic!("{:?}", told.transport());
        };
        assert_eq!(
            (quoted.source, told.destination()),
            (view.source(), view.source())
        );
        assert!(
            unreachable(&error, Unreachable::NoRoute).is_none(),
            "an error about an error"
        );
    }
}

fn overlay(ip: Ipv6Addr) -> OverlayIp {
    OverlayIp::new(ip).expect("it is in fd00::/8")
}

fn ipv6((from, to): (Ipv6Addr, Ipv6Addr), next: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).expect("a chunk is short");
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend(length.to_be_bytes());
    bytes.extend([next, 64]);
    bytes.extend(from.octets());
    bytes.extend(to.octets());
    bytes.extend(payload);
    bytes
}

/// A2G frames and Resets: as they are, and sealed, then changed.
pub(super) fn frame(data: &[u8]) {
    let kind = Datagram::classify(data);
    if let Some(reset) = Reset::parse(data) {
        assert_eq!(reset.encode(), data);
        assert_eq!(kind, Some(Datagram::Frame));
    }
    if a2g::hop_id(data).is_some() {
        assert_eq!(kind, Some(Datagram::Frame));
        assert_eq!(Reset::parse(data), None);
    }
    if channel::parse(data).is_some() {
        assert_eq!(kind, Some(Datagram::Channel));
    }
    if let Some(asked) = bounded(data, 0, 0, || Discover::parse(data)) {
        assert_eq!(asked.encode()[..36], data[..36]);
        assert_eq!(kind, Some(Datagram::Discover));
    }
    if let Some(offer) = bounded(data, 1, 0, || Offer::parse(data)) {
        assert_eq!(offer.encode().as_deref(), Some(data));
        assert_eq!(kind, Some(Datagram::Discover));
    }
    let keys = HopKeys::derive(&secret(data), Direction::Up);
    let opened = bounded(data, 0, 0, || Header::open(&keys, data));
    assert!(
        opened.is_err(),
        "nobody but the holder of the keys makes a frame"
    );

    let mut input = Input::new(data);
    let kinds = [
        Kind::Data,
        Kind::Heartbeat,
        Kind::SessionEnd,
        Kind::Displaced,
    ];
    let header = Header {
        kind: kinds[usize::from(input.byte() % 4)],
        ttl: input.byte(),
        prefix_len: input.byte(),
        hop: u32::from_be_bytes(input.array()),
        message: u64::from_be_bytes(input.array()),
        target: Ipv6Addr::from(input.array::<16>()),
        source: Ipv6Addr::from(input.array::<16>()),
    };
    let flips = [input.number(), input.number()];
    let payload = input.rest();
    let mut frame = header.frame(&keys, payload);
    let is_one = header.prefix_len <= 128 && (header.kind == Kind::Data) != payload.is_empty();
    assert_eq!(Header::open(&keys, &frame).ok(), is_one.then_some(header));
    assert_eq!(a2g::hop_id(&frame), Some(header.hop));

    let covered = frame.len().min(72);
    let sealed = frame.clone();
    for flip in flips.map(usize::from) {
        frame[flip / 8 % covered] ^= 1 << (flip % 8);
    }
    assert!(
        frame == sealed || Header::open(&keys, &frame).is_err(),
        "{flips:?}"
    );
}

/// Makes a hop's secret of the input, since libFuzzer reads along where tags are compared: what it
/// learns so is the tag of another secret.
fn secret(data: &[u8]) -> [u8; 32] {
    let mut hasher = DefaultHasher::new();
    data.hash(&mut hasher);
    let mut secret = [0; 32];
    for part in secret.chunks_exact_mut(8) {
        part.copy_from_slice(&hasher.finish().to_be_bytes());
    }
    secret
}

/// STUN messages; what a gateway answers is no flood, and read by ourselves.
pub(super) fn stun(data: &[u8]) {
    let Some(Message::Request(request)) = bounded(data, 4, 256, || stun::parse(data)) else {
        return;
    };
    for from in ["192.0.2.1:1", "[2001:db8::7]:9"] {
        let from = from.parse().expect("an endpoint");
        let origin = Origin {
            own: Some(from),
            other: Some(from),
        };
        let answer = request.answer(from, origin);
        assert!(answer.len() * 10 <= data.len() * 22, "a flood");
        // A client of before the cookie reads its answers itself.
        let has_cookie = data.get(4..8) == Some(&[0x21, 0x12, 0xa4, 0x42]);
        assert_eq!(stun::parse(&answer).is_some(), has_cookie, "not read");
    }
}

/// Control messages, and the parts of long ones.
pub(super) fn control(data: &[u8]) {
    let decoded = bounded(data, 4, 1024, || Control::decode(data));
    if let Some(message) = decoded {
        one_message(&message);
    }
    let packet = bounded(data, 4, 1024, || Control::parse(data));
    assert!(packet.is_none() || is_control(data));

    let mut input = Input::new(data);
    let (mut parts, mut now) = (Reassembler::default(), clock::now());
    while !input.is_empty() {
        let [message, n, of, pause] = input.array();
        now += Duration::from_millis(u64::from(pause) * 16);
        let bytes = input.chunk().to_vec();
        let part = Part {
            message: message.into(),
            n,
            of,
            bytes,
        };
        let whole = bounded(data, 8, 20_000, || parts.take(part, now));
        assert!(!matches!(whole, Some(Control::Part(_))), "a part of parts");
    }
}

/// What was decoded is encoded and decoded as the same, whole and in parts.
fn one_message(message: &Control) {
    let encoded = message.encode().expect("it came out of as few bytes");
    let again = Control::decode(&encoded);
    assert_eq!(again.as_ref(), Some(message));
    let mut parts = Reassembler::default();
    let mut whole = None;
    for packet in message.packets(7) {
        assert!(is_control(&packet) && packet.len() <= 1280);
        whole = match Control::parse(&packet) {
            Some(Control::Part(part)) if !matches!(message, Control::Part(_)) => {
                parts.take(part, clock::now())
            }
            other => other,
        };
    }
    assert_eq!(whole.as_ref(), Some(message));
}

/// DNS messages: queries of programs, and replies of the host's nameservers.
pub(super) fn dns(data: &[u8]) {
    let mut input = Input::new(data);
    let over = match input.byte() & 1 {
        0 => Transport::Udp,
        _ => Transport::Tcp,
    };
    let asked = input.long_chunk();
    let reply = input.rest();
    let _ = is_failure(reply);
    for question in srv::Question::of("acme.example") {
        let id = reply.first_chunk().map_or(0, |id| u16::from_be_bytes(*id));
        let hosts = bounded(reply, 64, 8192, || question.hosts(id, reply));
        assert!(hosts.is_none_or(|hosts| hosts.len() <= srv::MAX_HOSTS));
    }
    // A compressed name has 127 labels for 2 bytes of input; hickory keeps them apart.
    let query = match bounded(asked, 64, 8192, || Query::read(asked, over)) {
        Ok(query) => query,
        Err(Unfit::Silence) => return,
        Err(Unfit::Reply(error)) => {
            assert!(error.len() <= 512 && error[..2] == asked[..2] && error[2] & 0x80 != 0);
            return;
        }
    };
    let labels = query.labels().len();
    let answers = [
        Answer::Address(LOCAL),
        Answer::NoData,
        Answer::NoName,
        Answer::Pointer("planner.acme.agent"),
        Answer::Servers,
        Answer::Start,
    ];
    for answer in answers {
        for apex in [0, 1, labels] {
            one_reply(&query, over, asked, &query.answer(apex, answer));
        }
    }
    one_reply(&query, over, asked, &query.failure(ResponseCode::Refused));
    one_reply(&query, over, asked, &query.truncated());

    one_question(&query, asked, over);
    let sent = with_id(asked, 77);
    let mut echo = with_id(reply, 77);
    let is_answer = query.is_answered_by(77, &echo);
    assert!(!query.is_answered_by(77, &sent), "a query is no answer");
    let relayed = query.relayed(&echo);
    assert!(relayed.len() <= echo.len().max(512));
    if is_answer && relayed.len() == echo.len() {
        assert_eq!(relayed[..2], asked[..2]);
    }
    if let Some(id) = echo.first_mut() {
        *id ^= 1;
        assert!(!query.is_answered_by(77, &echo), "another id");
    }
}

/// What is asked of the zone of our names never goes to another server.
fn one_question(query: &Query, asked: &[u8], over: Transport) {
    let prefix = overlay(LOCAL).network();
    let zone = Zone {
        suffix: Suffix::default(),
        prefixes: vec![prefix],
        retries: vec!["agent.example".to_owned()],
    };
    let labels = query.labels();
    let ends_in = |end: &[&[u8]]| {
        let tail = labels.iter().rev().take(end.len()).map(Vec::as_slice);
        tail.eq(end.iter().rev().copied())
    };
    let is_ours = ends_in(&[b"agent"]) || ends_in(&[b"agent", b"example"]);
    match zone.question(asked, over) {
        Question::Foreign(_) => assert!(!is_ours, "{labels:?} is told to others"),
        Question::Ignore => panic!("a query that was read is ignored"),
        Question::Name(_, name) => {
            assert!(ends_in(&[b"agent"]));
            let again = FullName::parse(&name.to_string(), &zone.suffix);
            assert_eq!(again.as_ref(), Ok(&name));
            one_reply(query, over, asked, &zone.address_answer(query, None));
        }
        Question::Reply(reply) => one_reply(query, over, asked, &reply),
        Question::Reverse(_, address) => {
            assert!(ends_in(&[b"ip6", b"arpa"]) && prefix.contains(address.ip()));
            one_reply(query, over, asked, &zone.name_answer(query, None));
        }
    }
}

fn one_reply(query: &Query, over: Transport, asked: &[u8], reply: &[u8]) {
    let limit = match over {
        Transport::Udp => 1232,
        Transport::Tcp => usize::from(u16::MAX),
    };
    assert!(reply.len() <= limit, "{} bytes", reply.len());
    assert_eq!(reply[..2], asked[..2]);
    let id = u16::from_be_bytes([reply[0], reply[1]]);
    assert!(query.is_answered_by(id, reply), "our own answers match");
    assert_eq!(
        Query::read(reply, over).err(),
        Some(Unfit::Silence),
        "no loop"
    );
}

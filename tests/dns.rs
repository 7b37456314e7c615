//! The resolver on real sockets, asked by hand-made clients and by dig.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentnet::engine::names::Zone;
use agentnet::id::{FullName, OverlayIp, Suffix};
use agentnet::node::resolver::{Directory, Found, Resolver, Settings, Upstream};
use async_trait::async_trait;
use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType, rdata::A, rdata::TXT};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;

const B: &str = "fd11:2233:4455:1::b";

/// Longest any single answer may take; only reached when something is wrong.
const PATIENCE: Duration = Duration::from_secs(10);

struct Names(BTreeMap<String, OverlayIp>);

#[async_trait]
impl Directory for Names {
    async fn by_name(&self, _asker: OverlayIp, name: &FullName) -> Found {
        match name.to_string().as_str() {
            "late.acme.agent" => std::future::pending().await,
            "away.acme.agent" => Found::Unavailable,
            name => self.0.get(name).map_or(Found::No, |a| Found::Yes(*a)),
        }
    }

    async fn by_address(&self, _asker: OverlayIp, address: OverlayIp) -> Option<FullName> {
        let (name, _) = self.0.iter().find(|(_, a)| **a == address)?;
        FullName::parse(name, &Suffix::default()).ok()
    }
}

fn zone() -> Zone {
    Zone {
        suffix: Suffix::default(),
        prefixes: vec!["fd11:2233:4455:1::/64".parse().unwrap()],
        retries: Vec::new(),
    }
}

async fn resolver(upstream: Upstream) -> Resolver {
    let names = BTreeMap::from([("b.acme.agent".to_owned(), B.parse().unwrap())]);
    let settings = Settings {
        listen: (Ipv4Addr::LOCALHOST, 0).into(),
        asker: "fd11:2233:4455:1::a".parse().unwrap(),
        zone: zone(),
        upstream,
    };
    Resolver::start(settings, Arc::new(Names(names)))
        .await
        .unwrap()
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.metadata.recursion_desired = true;
    message
}

async fn udp(server: SocketAddr, message: &Message) -> Message {
    let bytes = udp_bytes(server, &message.to_vec().unwrap()).await;
    Message::from_vec(&bytes).unwrap()
}

async fn udp_bytes(server: SocketAddr, message: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    socket.connect(server).await.unwrap();
    socket.send(message).await.unwrap();
    let mut buffer = vec![0; 65_535];
    let length = timeout(PATIENCE, socket.recv(&mut buffer))
        .await
        .unwrap()
        .unwrap();
    buffer[..length].to_vec()
}

async fn write(stream: &mut TcpStream, message: &[u8]) {
    let length = u16::try_from(message.len()).unwrap().to_be_bytes();
    stream
        .write_all(&[&length, message].concat())
        .await
        .unwrap();
}

async fn read(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let whole = async {
        let length = stream.read_u16().await.ok()?;
        let mut message = vec![0; usize::from(length)];
        stream.read_exact(&mut message).await.ok()?;
        Some(message)
    };
    timeout(PATIENCE, whole).await.unwrap()
}

async fn tcp(server: SocketAddr, message: &Message) -> Message {
    let mut stream = TcpStream::connect(server).await.unwrap();
    write(&mut stream, &message.to_vec().unwrap()).await;
    Message::from_vec(&read(&mut stream).await.unwrap()).unwrap()
}

fn addresses(reply: &Message) -> Vec<IpAddr> {
    reply
        .answers
        .iter()
        .filter_map(|r| r.data.ip_addr())
        .collect()
}

/// A nameserver that says what `say` says, and remembers what it was asked.
struct Nameserver {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<(u16, String)>>>,
    _tasks: tokio::task::JoinSet<()>,
}

impl Nameserver {
    async fn start(say: impl Fn(&Message, bool) -> Vec<Vec<u8>> + Send + Sync + 'static) -> Self {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = udp.local_addr().unwrap();
        let tcp = TcpListener::bind(address).await.unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let say = Arc::new(say);
        let mut tasks = tokio::task::JoinSet::new();
        let (told, speak) = (Arc::clone(&asked), Arc::clone(&say));
        tasks.spawn(async move {
            let mut buffer = vec![0; 4096];
            loop {
                let (length, from) = udp.recv_from(&mut buffer).await.unwrap();
                let query = note(&told, &buffer[..length]);
                for reply in speak(&query, false) {
                    udp.send_to(&reply, from).await.unwrap();
                }
            }
        });
        let told = Arc::clone(&asked);
        tasks.spawn(async move {
            loop {
                let (mut stream, _) = tcp.accept().await.unwrap();
                let query = note(&told, &read(&mut stream).await.unwrap());
                for reply in say(&query, true) {
                    write(&mut stream, &reply).await;
                }
            }
        });
        Self {
            address,
            asked,
            _tasks: tasks,
        }
    }

    fn asked(&self) -> Vec<(u16, String)> {
        self.asked.lock().unwrap().clone()
    }
}

fn note(asked: &Mutex<Vec<(u16, String)>>, bytes: &[u8]) -> Message {
    let query = Message::from_vec(bytes).unwrap();
    let name = query.queries[0].name().to_ascii();
    asked.lock().unwrap().push((query.id, name));
    query
}

fn reply_to(query: &Message) -> Message {
    let mut reply = Message::response(query.id, query.op_code);
    reply.add_query(query.queries[0].clone());
    reply.metadata.recursion_available = true;
    reply
}

fn address_reply(query: &Message, address: Ipv4Addr) -> Vec<u8> {
    let mut reply = reply_to(query);
    let name = query.queries[0].name().clone();
    reply.add_answer(Record::from_rdata(name, 60, RData::A(A(address))));
    reply.to_vec().unwrap()
}

/// B-005: names below the suffix resolve, over UDP and TCP, with and without EDNS.
#[tokio::test]
async fn agents_names_resolve_over_udp_and_tcp() {
    let resolver = resolver(Upstream::Refuse).await;
    let server = resolver.local();

    for edns in [false, true] {
        let mut message = query("B.acme.AGENT.", RecordType::AAAA);
        if edns {
            message.set_edns(Edns::new());
        }
        for reply in [udp(server, &message).await, tcp(server, &message).await] {
            assert_eq!(addresses(&reply), [B.parse::<IpAddr>().unwrap()]);
            assert_eq!(reply.id, message.id);
            assert!(reply.queries[0].name().eq_case(message.queries[0].name()));
            assert_eq!(
                reply.edns.as_ref().map(Edns::max_payload),
                edns.then_some(1232)
            );
        }
    }
    let reply = udp(server, &query("b.acme.agent.", RecordType::A)).await;
    assert_eq!(
        (reply.response_code, reply.answers.len()),
        (ResponseCode::NoError, 0)
    );
    assert_eq!(reply.authorities[0].record_type(), RecordType::SOA);
    let reply = udp(server, &query("c.acme.agent.", RecordType::AAAA)).await;
    assert_eq!(reply.response_code, ResponseCode::NXDomain);
    let reverse = Name::from(B.parse::<std::net::Ipv6Addr>().unwrap()).to_ascii();
    let reply = udp(server, &query(&reverse, RecordType::PTR)).await;
    assert!(matches!(&reply.answers[0].data, RData::PTR(p) if p.0.to_ascii() == "b.acme.agent."));
    assert_eq!(resolver.stats().strangers, 0);
}

#[tokio::test]
async fn a_look_up_that_fails_or_takes_too_long_is_servfail() {
    let resolver = resolver(Upstream::Refuse).await;

    for name in ["away.acme.agent.", "late.acme.agent."] {
        let reply = udp(resolver.local(), &query(name, RecordType::AAAA)).await;
        assert_eq!(reply.response_code, ResponseCode::ServFail, "{name}");
    }

    assert_eq!(resolver.stats().late, 1);
}

#[tokio::test]
async fn one_connection_carries_several_queries() {
    let resolver = resolver(Upstream::Refuse).await;
    let mut stream = TcpStream::connect(resolver.local()).await.unwrap();
    let both = [
        query("b.acme.agent.", RecordType::AAAA),
        query("b.acme.agent.", RecordType::A),
    ];

    let mut bytes = Vec::new();
    for message in &both {
        let message = message.to_vec().unwrap();
        bytes.extend_from_slice(&u16::try_from(message.len()).unwrap().to_be_bytes());
        bytes.extend_from_slice(&message);
    }
    // The length and its message may come in any pieces.
    for piece in bytes.chunks(7) {
        stream.write_all(piece).await.unwrap();
        stream.flush().await.unwrap();
    }

    for message in &both {
        let reply = Message::from_vec(&read(&mut stream).await.unwrap()).unwrap();
        assert_eq!(reply.id, message.id);
    }
}

#[tokio::test]
async fn garbage_is_refused_or_ignored_and_hurts_nobody() {
    let resolver = resolver(Upstream::Refuse).await;
    let server = resolver.local();
    let good = query("b.acme.agent.", RecordType::AAAA).to_vec().unwrap();
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    socket.connect(server).await.unwrap();

    let mut reply = good.clone();
    reply[2] |= 0x80;
    for bytes in [&b""[..], b"x", &reply] {
        socket.send(bytes).await.unwrap();
    }
    socket.send(&[0; 5000]).await.unwrap();
    for (bytes, code) in [(&good[..20], 1), (&[9; 40], 4)] {
        assert_eq!(udp_bytes(server, bytes).await[3] & 0x0f, code);
    }
    for bytes in [&b"\x00\x00"[..], b"\xff\xffxxxx", b"\x00\x03abc"] {
        let mut stream = TcpStream::connect(server).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        assert_eq!(read(&mut stream).await, None);
    }

    assert_eq!(
        addresses(&udp(server, &query("b.acme.agent.", RecordType::AAAA)).await).len(),
        1
    );
}

#[tokio::test]
async fn queries_beyond_the_bound_are_dropped_and_counted() {
    let resolver = resolver(Upstream::Refuse).await;
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    socket.connect(resolver.local()).await.unwrap();
    let slow = query("late.acme.agent.", RecordType::AAAA)
        .to_vec()
        .unwrap();

    let flood = async {
        while resolver.stats().over_limit == 0 {
            socket.send(&slow).await.unwrap();
            tokio::task::yield_now().await;
        }
    };

    timeout(PATIENCE, flood).await.unwrap();
    assert!(resolver.stats().queries <= 256 + 1);
}

#[tokio::test]
async fn foreign_names_are_refused_without_nameservers() {
    for upstream in [Upstream::Refuse, Upstream::Forward(Vec::new())] {
        let resolver = resolver(upstream).await;
        let reply = udp(resolver.local(), &query("example.com.", RecordType::A)).await;
        assert_eq!(reply.response_code, ResponseCode::Refused);
    }
}

#[tokio::test]
async fn foreign_names_are_forwarded_and_ours_never() {
    let server = Nameserver::start(|q, _| vec![address_reply(q, [192, 0, 2, 1].into())]).await;
    let resolver = resolver(Upstream::Forward(vec![server.address])).await;
    let mut sent = Vec::new();

    for _ in 0..8 {
        let message = query("example.com.", RecordType::A);
        let reply = udp(resolver.local(), &message).await;
        assert_eq!(addresses(&reply), ["192.0.2.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(reply.id, message.id);
        sent.push((message.id, "example.com.".to_owned()));
    }
    for name in ["c.acme.agent.", "agent.", "x.y.z.agent.", "_x.agent."] {
        udp(resolver.local(), &query(name, RecordType::TXT)).await;
    }
    let reverse = Name::from("fd11:2233:4455:9::1".parse::<std::net::Ipv6Addr>().unwrap());
    tcp(
        resolver.local(),
        &query(&reverse.to_ascii(), RecordType::PTR),
    )
    .await;

    let asked = server.asked();
    assert_eq!(asked.len(), sent.len());
    assert!(asked.iter().all(|(_, name)| name == "example.com."));
    assert_ne!(asked, sent, "the ids are ours");
}

#[tokio::test]
async fn a_forged_reply_is_not_believed() {
    let server = Nameserver::start(|query, _| {
        let forged: Ipv4Addr = [203, 0, 113, 66].into();
        let mut other_id = address_reply(query, forged);
        other_id[0] ^= 0xff;
        let mut other_name = query.clone();
        other_name.queries[0].name = Name::from_ascii("example.org.").unwrap();
        let no_reply = query.to_vec().unwrap();
        let junk = vec![0xff; 30];
        let honest = address_reply(query, [192, 0, 2, 1].into());
        vec![
            other_id,
            address_reply(&other_name, forged),
            no_reply,
            junk,
            honest,
        ]
    })
    .await;
    let resolver = resolver(Upstream::Forward(vec![server.address])).await;

    let reply = udp(resolver.local(), &query("example.com.", RecordType::A)).await;

    assert_eq!(addresses(&reply), ["192.0.2.1".parse::<IpAddr>().unwrap()]);
}

#[tokio::test]
async fn the_next_nameserver_is_asked_when_one_fails() {
    let failing = Nameserver::start(|query, _| {
        let mut reply = reply_to(query);
        reply.metadata.response_code = ResponseCode::ServFail;
        vec![reply.to_vec().unwrap()]
    })
    .await;
    let silent = Nameserver::start(|_, _| Vec::new()).await;
    let good = Nameserver::start(|q, _| vec![address_reply(q, [192, 0, 2, 1].into())]).await;
    let servers = vec![failing.address, silent.address, good.address];
    let all = resolver(Upstream::Forward(servers.clone())).await;
    let bad = resolver(Upstream::Forward(servers[..1].to_vec())).await;

    for _ in 0..3 {
        let reply = udp(all.local(), &query("example.com.", RecordType::A)).await;
        assert_eq!(addresses(&reply).len(), 1);
    }

    assert_eq!(
        silent.asked().len(),
        1,
        "the one that answers is asked first from then on"
    );
    let reply = udp(bad.local(), &query("example.com.", RecordType::A)).await;
    assert_eq!(reply.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn a_long_reply_comes_over_tcp() {
    let server = Nameserver::start(|query, over_tcp| {
        let mut reply = reply_to(query);
        reply.metadata.truncation = !over_tcp;
        for line in 0..if over_tcp { 30 } else { 0 } {
            let data = TXT::new(vec![format!("{line} {}", "x".repeat(200))]);
            let name = query.queries[0].name().clone();
            reply.add_answer(Record::from_rdata(name, 60, RData::TXT(data)));
        }
        vec![reply.to_vec().unwrap()]
    })
    .await;
    let resolver = resolver(Upstream::Forward(vec![server.address])).await;
    let message = query("example.com.", RecordType::TXT);

    assert!(udp(resolver.local(), &message).await.truncation);
    assert_eq!(tcp(resolver.local(), &message).await.answers.len(), 30);
}

#[tokio::test]
async fn a_reply_too_long_for_its_client_is_truncated() {
    let server = Nameserver::start(|query, _| {
        let mut reply = reply_to(query);
        let data = TXT::new(vec!["x".repeat(250); 3]);
        let name = query.queries[0].name().clone();
        reply.add_answer(Record::from_rdata(name, 60, RData::TXT(data)));
        vec![reply.to_vec().unwrap()]
    })
    .await;
    let resolver = resolver(Upstream::Forward(vec![server.address])).await;
    let plain = query("example.com.", RecordType::TXT);
    let mut roomy = plain.clone();
    roomy.set_edns(Edns::new().set_max_payload(1232).clone());

    assert!(udp(resolver.local(), &plain).await.truncation);
    assert_eq!(udp(resolver.local(), &roomy).await.answers.len(), 1);
}

#[tokio::test]
async fn a_resolver_is_never_its_own_nameserver() {
    let other = resolver(Upstream::Refuse).await;
    let own = other.local();
    other.stop().await;
    let agent = "[fd11:2233:4455:7::1]:53".parse().unwrap();
    let settings = Settings {
        listen: own,
        asker: B.parse().unwrap(),
        zone: zone(),
        upstream: Upstream::Forward(vec![own, agent]),
    };
    let resolver = Resolver::start(settings, Arc::new(Names(BTreeMap::new())))
        .await
        .unwrap();

    let reply = udp(resolver.local(), &query("example.com.", RecordType::A)).await;

    assert_eq!(reply.response_code, ResponseCode::Refused);
    assert_eq!(resolver.stats().queries, 1);
}

/// netbird#5199: a nameserver that asks us again (127.0.0.53 does) neither storms nor hangs.
#[tokio::test]
async fn a_loop_through_a_nameserver_ends_in_servfail() {
    let stub = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let resolver = resolver(Upstream::Forward(vec![stub.local_addr().unwrap()])).await;
    let back = resolver.local();
    let looping = tokio::spawn(async move {
        let stub = Arc::new(stub);
        let mut buffer = vec![0; 4096];
        let mut turns = tokio::task::JoinSet::new();
        loop {
            let (length, from) = stub.recv_from(&mut buffer).await.unwrap();
            let (stub, message) = (Arc::clone(&stub), buffer[..length].to_vec());
            turns.spawn(async move {
                let reply = udp_bytes(back, &message).await;
                stub.send_to(&reply, from).await.unwrap();
            });
        }
    });

    let reply = udp(back, &query("example.com.", RecordType::A)).await;

    assert_eq!(reply.response_code, ResponseCode::ServFail);
    assert!(resolver.stats().queries <= 20, "{:?}", resolver.stats());
    let reply = udp(back, &query("b.acme.agent.", RecordType::AAAA)).await;
    assert_eq!(addresses(&reply).len(), 1);
    looping.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_resolver_frees_its_port() {
    let first = resolver(Upstream::Refuse).await;
    let listen = first.local();
    let slow = query("late.acme.agent.", RecordType::AAAA)
        .to_vec()
        .unwrap();
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    while first.stats().queries == 0 {
        socket.send_to(&slow, listen).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut open = TcpStream::connect(listen).await.unwrap();

    first.stop().await;

    let settings = Settings {
        listen,
        asker: B.parse().unwrap(),
        zone: zone(),
        upstream: Upstream::Refuse,
    };
    Resolver::start(settings, Arc::new(Names(BTreeMap::new())))
        .await
        .unwrap();
    assert_eq!(read(&mut open).await, None);
}

#[tokio::test]
async fn an_unusable_address_is_refused() {
    let first = resolver(Upstream::Refuse).await;
    let start = async |listen: SocketAddr| {
        let settings = Settings {
            listen,
            asker: B.parse().unwrap(),
            zone: zone(),
            upstream: Upstream::Refuse,
        };
        let started = Resolver::start(settings, Arc::new(Names(BTreeMap::new()))).await;
        started.map(|_| ()).unwrap_err().kind()
    };

    assert_eq!(start(first.local()).await, std::io::ErrorKind::AddrInUse);
    assert_eq!(
        start("[::]:0".parse().unwrap()).await,
        std::io::ErrorKind::InvalidInput
    );
}

/// The same questions by another implementation's client.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dig_reads_what_we_say() {
    if Command::new("dig").arg("-v").output().is_err() {
        println!("skipped: no dig");
        return;
    }
    let resolver = resolver(Upstream::Refuse).await;
    let port = resolver.local().port().to_string();
    let dig = |args: &str| {
        let words = args.split(' ');
        let mut command = Command::new("dig");
        command
            .args(["@127.0.0.1", "-p", &port, "+tries=1", "+time=5"])
            .args(words);
        let output = command.output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };

    for (args, expected) in [
        ("b.acme.agent AAAA +short", "fd11:2233:4455:1::b"),
        ("b.acme.agent AAAA +short +tcp", "fd11:2233:4455:1::b"),
        ("b.acme.agent ANY +short", "fd11:2233:4455:1::b"),
        (
            "b.acme.agent AAAA +cookie +dnssec +nsid",
            "flags: qr aa rd ra; QUERY: 1, ANSWER: 1",
        ),
        ("b.acme.agent A", "status: NOERROR"),
        ("c.acme.agent AAAA", "status: NXDOMAIN"),
        ("acme.agent AAAA", "status: NOERROR"),
        ("agent SOA +short", "agent. nobody.invalid. 1 5 5 5 5"),
        ("agent AXFR", "Transfer failed"),
        ("example.com A", "status: REFUSED"),
        ("b.acme.agent AAAA +edns=1 +noednsneg", "status: BADVERS"),
        ("b.acme.agent AAAA +opcode=NOTIFY", "status: NOTIMP"),
        ("-x fd11:2233:4455:1::b +short", "b.acme.agent."),
        ("CH TXT version.bind", "status: REFUSED"),
    ] {
        let said = dig(args);
        assert!(said.contains(expected), "dig {args}: {said}");
        assert!(
            !said.contains("Warning") && !said.contains("malformed"),
            "dig {args}: {said}"
        );
    }
}

//! Frames by WebSocket over TLS, and those who speak it badly.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use agentnet::engine::attach::{Attachment, Inbound};
use agentnet::gateway::wss::WssConfig;
use agentnet::os::clock;
use agentnet::os::wss::{self, Came, ConnectError, Receiver, Sender, Target, WssError, connect};
use agentnet::wire::carrier;
use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::{SinkExt, StreamExt};
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{
        Message,
        protocol::frame::{
            Frame,
            coding::{Data, OpCode},
        },
    },
};

use crate::{Agent, File, PATIENCE, Running, config, network::Network, until};

/// Silence after which a connection is closed, where that is the claim.
const SHORT: Duration = Duration::from_millis(300);

/// Enough for a handshake on a busy machine, where being cut off after it is the claim.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// A gateway that takes both, and what its clients need.
struct World {
    network: Network,
    gateway: Running,
    at: SocketAddr,
    /// Makes a client that believes the gateway's certificate alone.
    tls: Arc<ClientConfig>,
    _memory: File,
    pem: PathBuf,
}

impl Drop for World {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.pem);
    }
}

impl World {
    async fn new(name: &str, change: impl FnOnce(&mut WssConfig)) -> Self {
        let (network, memory) = (Network::new(1), File::new(&format!("wss-{name}")));
        let pem = memory.0.with_extension("pem");
        std::fs::create_dir_all(&pem).unwrap();
        let made = rcgen::generate_simple_self_signed(vec!["gateway.test".to_owned()]).unwrap();
        let (certificate, key) = (pem.join("cert"), pem.join("key"));
        std::fs::write(&certificate, pem_of("CERTIFICATE", made.cert.der())).unwrap();
        std::fs::write(
            &key,
            pem_of("PRIVATE KEY", &made.signing_key.serialize_der()),
        )
        .unwrap();
        let mut listener = WssConfig {
            listen: "127.0.0.1:0".parse().unwrap(),
            tls: watch::channel(wss::server_of(&certificate, &key).unwrap()).1,
            connections: 100,
            per_source: 50,
            handshake: PATIENCE,
            idle: PATIENCE,
        };
        change(&mut listener);
        let mut settings = config("127.0.0.1:0".parse().unwrap(), &memory.0);
        settings.wss = Some(listener);
        let gateway = Running::start_with(settings, &network).await;
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self {
            at: gateway.wss.unwrap(),
            network,
            gateway,
            tls: Arc::new(tls),
            _memory: memory,
            pem,
        }
    }

    fn target(&self) -> Target {
        format!("wss://{}/a2g", self.at).parse().unwrap()
    }

    async fn connect(&self) -> Result<(Sender, Receiver), ConnectError> {
        connect(&self.target(), None, &|_| true).await
    }

    async fn tls(&self) -> TlsStream<TcpStream> {
        let tcp = TcpStream::connect(self.at).await.unwrap();
        let name = ServerName::try_from("gateway.test").unwrap();
        let connector = TlsConnector::from(Arc::clone(&self.tls));
        connector.connect(name, tcp).await.unwrap()
    }

    /// Speaks WebSocket as the library lets one, which is worse than an agent would.
    async fn raw(&self) -> WebSocketStream<TlsStream<TcpStream>> {
        let url = format!("wss://{}/a2g", self.at);
        client_async(url, self.tls().await).await.unwrap().0
    }

    /// Waits until the gateway dropped `n` datagrams for `reason`.
    async fn dropped(&self, reason: &str, n: u64) {
        self.until(reason, |status| {
            status.drops.get(reason).is_some_and(|have| *have >= n)
        })
        .await;
    }

    /// Waits until as many connections are open.
    async fn open(&self, n: usize) {
        self.until("connections", |status| status.connections == n)
            .await;
    }

    async fn until(
        &self,
        what: &str,
        done: impl Fn(&agentnet::gateway::status::GatewayStatus) -> bool,
    ) {
        let end = clock::now() + PATIENCE;
        loop {
            let status = self.gateway.status().await;
            if done(&status) {
                return;
            }
            assert!(clock::now() < end, "never: {what}: {status:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

fn pem_of(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
}

/// An agent that has a connection instead of a socket.
struct Remote {
    attachment: Attachment,
    gateway: SocketAddr,
    sender: Sender,
    receiver: Receiver,
    received: Vec<Vec<u8>>,
}

impl Remote {
    async fn new(world: &World, n: u16) -> Self {
        let gateway = carrier::endpoint(u64::from(n), "[::]:0".parse().unwrap());
        let agent = Agent::new(&world.network, n, gateway);
        let (sender, receiver) = world.connect().await.unwrap();
        Self {
            attachment: agent.attachment,
            gateway,
            sender,
            receiver,
            received: vec![],
        }
    }

    async fn turn(&mut self) {
        self.attachment.handle_timeout(clock::now());
        while let Some((to, bytes)) = self.attachment.poll_transmit() {
            assert_eq!(to, self.gateway);
            let stride = bytes.len();
            self.sender.feed(bytes, stride).await.unwrap();
        }
        self.sender.flush().await.unwrap();
        let mut bytes = vec![];
        let wait = Duration::from_millis(2);
        while let Ok(came) = timeout(wait, self.receiver.receive(&mut bytes)).await {
            let Came::Datagrams { stride } = came.unwrap() else {
                continue;
            };
            for datagram in bytes.chunks(stride.max(1)) {
                let now = clock::now();
                let inbound = self.attachment.handle_datagram(self.gateway, datagram, now);
                if let Inbound::Received(got) = inbound {
                    self.received.push(datagram[got.payload].to_vec());
                }
            }
        }
    }

    async fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let end = clock::now() + PATIENCE;
        while !done(self) {
            assert!(clock::now() < end, "never: {what}");
            self.turn().await;
        }
    }
}

/// F-058, A-034: who has no UDP attaches by WebSocket, and talks to who has.
#[tokio::test]
async fn an_agent_attaches_and_exchanges_frames_with_one_by_udp() {
    let world = World::new("attach", |_| {}).await;
    let mut far = Remote::new(&world, 10).await;
    let mut near = [Agent::new(&world.network, 11, world.gateway.at)];
    far.until("attached", |far| far.attachment.is_attached())
        .await;
    until(&mut near, "attached", |a| a[0].attachment.is_attached()).await;
    let addresses = [10, 11].map(|n| world.network.address(n));
    let length = |n: u8| if n == 99 { 700 } else { 1300 };
    let payloads = (0..100).map(|n| vec![n; length(n)]).collect::<Vec<_>>();

    near[0].send_many(addresses[0], &payloads[..40]);
    near[0].send_many(addresses[0], &payloads[40..]);
    far.until("frames", |far| far.received.len() == 100).await;
    let (mut all, mut stride) = (vec![], 0);
    for payload in &payloads {
        let wrapped = far.attachment.wrap(addresses[1], payload, clock::now());
        let (to, frame) = wrapped.unwrap();
        assert_eq!(to, far.gateway);
        stride = stride.max(frame.len());
        all.extend(frame);
    }
    far.sender.feed(all, stride).await.unwrap();
    far.sender.flush().await.unwrap();
    until(&mut near, "frames", |a| a[0].received.len() == 100).await;

    assert_eq!((&far.received, &near[0].received), (&payloads, &payloads));
    let status = world.gateway.status().await;
    assert_eq!((status.attached, status.connections), (2, 1));
    let by = status.attachments.iter().map(|one| one.carrier.as_str());
    assert_eq!(by.filter(|by| *by == "wss").count(), 1);
    // Where a connection ends is nothing that peers could send to.
    assert_eq!(far.attachment.hop().unwrap().observed().port(), 0);
}

/// The handshake of an agent that went to the wrong place, and what stands before a listener.
#[tokio::test]
async fn another_path_and_what_is_no_websocket_are_refused() {
    let world = World::new("path", |_| {}).await;
    let elsewhere = format!("wss://{}/", world.at).parse().unwrap();

    let refused = connect(&elsewhere, None, &|_| true).await.unwrap_err();
    let unusable = connect(&world.target(), None, &|_| false)
        .await
        .unwrap_err();
    let mut plain = world.tls().await;
    plain
        .write_all(b"GET /a2g HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let mut answer = vec![];
    let _cut = timeout(PATIENCE, plain.read_to_end(&mut answer))
        .await
        .unwrap();
    let mut tcp = TcpStream::connect(world.at).await.unwrap();
    tcp.write_all(&[0x16, 3, 1, 0xff, 0xff, 0, 0, 0, 0])
        .await
        .unwrap();
    tcp.write_all(&[0xff; 5000]).await.unwrap();
    let _cut = timeout(PATIENCE, tcp.read_to_end(&mut vec![]))
        .await
        .unwrap();

    assert_eq!(
        (refused.code(), unusable.code()),
        ("wss_refused", "wss_name")
    );
    assert!(!answer.starts_with(b"HTTP/1.1 101"));
    world.open(0).await;
}

/// Each binary message is one datagram, in one piece or several; garbage is counted.
#[tokio::test]
async fn garbage_is_counted_and_fragments_are_one_datagram() {
    let world = World::new("garbage", |_| {}).await;
    let mut raw = world.raw().await;

    for length in [0, 1, 55, 1500, 16_384] {
        raw.send(Message::Binary(vec![0xff; length].into()))
            .await
            .unwrap();
    }
    world.dropped("datagram_unknown", 5).await;
    for (opcode, is_final) in [
        (Data::Binary, false),
        (Data::Continue, false),
        (Data::Continue, true),
    ] {
        let part = Frame::message(vec![0xff; 100], OpCode::Data(opcode), is_final);
        raw.send(Message::Frame(part)).await.unwrap();
    }
    world.dropped("datagram_unknown", 6).await;
    raw.send(Message::Ping(vec![7; 100].into())).await.unwrap();
    let pong = timeout(PATIENCE, raw.next()).await.unwrap();

    assert_eq!(pong.unwrap().unwrap(), Message::Pong(vec![7; 100].into()));
    let status = world.gateway.status().await;
    assert_eq!(
        (status.connections, status.drops["datagram_unknown"]),
        (1, 6)
    );
}

/// F-061: what is no datagram ends the connection, before it takes any memory.
#[tokio::test]
async fn text_and_messages_that_are_too_long_end_the_connection() {
    let world = World::new("text", |_| {}).await;
    let piece = |opcode, is_final| {
        let part = Frame::message(vec![0; 16_000], OpCode::Data(opcode), is_final);
        Message::Frame(part)
    };
    let bad: [Vec<Message>; 3] = [
        vec![Message::Text("frame".into())],
        vec![Message::Binary(vec![0; 16_385].into())],
        vec![piece(Data::Binary, false), piece(Data::Continue, true)],
    ];

    for messages in bad {
        let mut raw = world.raw().await;
        world.open(1).await;
        for message in messages {
            // The connection may end before all is sent.
            let _lost = raw.send(message).await;
        }
        world.open(0).await;
    }

    // The header alone, of a message of 4 EiB.
    let mut raw = world.raw().await;
    let header = [0x82, 0xff, 0x40, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4];
    raw.get_mut().write_all(&header).await.unwrap();
    raw.get_mut().flush().await.unwrap();
    world.open(1).await;
    world.open(0).await;
}

/// Connections are bounded for all and for each source, and come free again.
#[tokio::test]
async fn a_source_has_its_share_of_connections() {
    let world = World::new("share", |config| config.per_source = 2).await;
    let held = [
        world.connect().await.unwrap(),
        world.connect().await.unwrap(),
    ];

    let third = world.connect().await;

    assert!(third.is_err());
    world.open(2).await;
    drop(held);
    world.open(0).await;
    assert!(world.connect().await.is_ok());
}

/// Whoever is slow at the handshake, or silent after it, is cut off (slow-loris).
#[tokio::test]
async fn those_who_dawdle_are_cut_off() {
    let world = World::new("slow", |config| {
        (config.handshake, config.idle) = (HANDSHAKE, SHORT);
    })
    .await;

    let mut silent = TcpStream::connect(world.at).await.unwrap();
    let mut half = world.tls().await;
    half.write_all(b"GET /a2g HTTP/1.1\r\nHost: ")
        .await
        .unwrap();
    let (_sender, mut receiver) = world.connect().await.unwrap();

    let mut bytes = vec![];
    let _cut = timeout(PATIENCE, silent.read_to_end(&mut bytes))
        .await
        .unwrap();
    let _cut = timeout(PATIENCE, half.read_to_end(&mut bytes))
        .await
        .unwrap();
    let ended = timeout(PATIENCE, receiver.receive(&mut bytes))
        .await
        .unwrap();
    assert!(
        matches!(ended, Err(WssError::Closed | WssError::Socket(_))),
        "{ended:?}"
    );
    world.open(0).await;
}

/// What waits for an end that does not read is dropped and counted, and holds up nobody.
#[tokio::test]
async fn one_who_does_not_read_holds_up_nobody() {
    let world = World::new("unread", |_| {}).await;
    let mut deaf = Remote::new(&world, 10).await;
    deaf.until("attached", |deaf| deaf.attachment.is_attached())
        .await;
    let mut near = [11, 12].map(|n| Agent::new(&world.network, n, world.gateway.at));
    let attached = |agents: &[Agent]| agents.iter().all(|a| a.attachment.is_attached());
    until(&mut near, "attached", attached).await;
    let (deaf_at, other) = (world.network.address(10), world.network.address(12));
    let payloads = vec![vec![7; 1300]; 40];

    // The kernel's buffers take some first.
    let end = clock::now() + PATIENCE;
    while !world
        .gateway
        .status()
        .await
        .drops
        .contains_key("carrier_queue_full")
    {
        assert!(clock::now() < end, "nothing was dropped");
        near[0].send_many(deaf_at, &payloads);
        until(&mut near, "a turn", |_| true).await;
    }
    near[0].send(other, b"past it");

    until(&mut near, "received", |a| a[1].received == [b"past it"]).await;
    let status = world.gateway.status().await;
    assert_eq!((status.attached, status.connections), (3, 1));
}

/// The gateway's end of a connection goes with its record of who is attached by it.
#[tokio::test]
async fn an_agent_comes_back_by_another_connection() {
    let world = World::new("again", |_| {}).await;
    let mut far = Remote::new(&world, 10).await;
    far.until("attached", |far| far.attachment.is_attached())
        .await;
    let hop = far.attachment.hop().unwrap().up();

    (far.sender, far.receiver) = world.connect().await.unwrap();
    world.open(1).await;
    // Any frame of the hop shows the gateway where the agent is now.
    far.attachment.announce(clock::now());
    far.turn().await;
    let mut near = [Agent::new(&world.network, 11, world.gateway.at)];
    until(&mut near, "attached", |a| a[0].attachment.is_attached()).await;
    near[0].send(world.network.address(10), b"found");

    far.until("found", |far| far.received == [b"found"]).await;
    assert_eq!(far.attachment.hop().unwrap().up(), hop);
    assert_eq!(world.gateway.status().await.attached, 2);
}

#[test]
fn a_certificate_that_cannot_be_read_is_named() {
    let nowhere = PathBuf::from("/nonexistent/agentnet.pem");

    let error = wss::server_of(&nowhere, &nowhere).unwrap_err();

    assert!(error.to_string().contains("/nonexistent/agentnet.pem"));
    assert!(wss::self_signed(&["gateway.test".to_owned()]).is_ok());
}

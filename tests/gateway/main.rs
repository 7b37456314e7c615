//! The gateway's shell on real sockets: attachments, status, and a restart that agents are told of.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "../sim/network.rs"]
mod network;
mod wss;

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use agentnet::engine::attach::{AttachConfig, Attachment, Inbound};
use agentnet::gateway::alternates::AlternatesConfig;
use agentnet::gateway::core::{CoreConfig, MeshConfig};
use agentnet::gateway::server::{
    Gateway, GatewayCommand, GatewayConfig, GatewayError, GatewayKeys,
};
use agentnet::gateway::status::GatewayStatus;
use agentnet::id::OverlayIp;
use agentnet::os::clock;
use agentnet::os::udp::{self, UdpPort};
use agentnet::wire::ecn::Ecn;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use crate::network::{Network, key, tunnel};

const YEAR: Duration = Duration::from_secs(365 * 86_400);

/// Far above what anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running gateway.
struct Running {
    at: SocketAddr,
    /// None where frames come by UDP alone.
    wss: Option<SocketAddr>,
    commands: mpsc::Sender<GatewayCommand>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Running {
    async fn start(listen: SocketAddr, recovery: &Path, network: &Network) -> Self {
        Self::start_with(config(listen, recovery), network).await
    }

    async fn start_with(config: GatewayConfig, network: &Network) -> Self {
        let gateway = Gateway::bind(&config, keys()).unwrap();
        let (at, wss) = (gateway.addresses()[0], gateway.wss_address());
        let (commands, receiver) = mpsc::channel(8);
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(gateway.run(receiver, async move {
            let _stopped = stopped.await;
        }));
        let serve = GatewayCommand::SetNetworks(vec![network.id()]);
        commands.send(serve).await.unwrap();
        Self {
            at,
            wss,
            commands,
            stop,
            task,
        }
    }

    async fn status(&self) -> GatewayStatus {
        let (reply, answer) = oneshot::channel();
        let ask = GatewayCommand::Status(reply);
        self.commands.send(ask).await.unwrap();
        answer.await.unwrap()
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        self.task.await.unwrap();
    }
}

/// An agent with a socket.
struct Agent {
    attachment: Attachment,
    socket: UdpPort,
    received: Vec<Vec<u8>>,
}

impl Agent {
    fn new(network: &Network, n: u16, gateway: SocketAddr) -> Self {
        let config = AttachConfig {
            agent: network.address(n),
            secret: tunnel(n),
            gateway: key(201).did(),
            key: tunnel(201).public(),
            endpoints: vec![gateway],
            index: u32::from(n),
        };
        let mut attachment = Attachment::new(config, [7; 32]).unwrap();
        attachment.set_record(network.record(n, YEAR), clock::now());
        let socket = udp::bind_at("127.0.0.1:0".parse().unwrap()).unwrap();
        Self {
            attachment,
            socket,
            received: vec![],
        }
    }

    fn hop(&self) -> Option<u32> {
        self.attachment.hop().map(|hop| hop.up())
    }

    /// Sends payloads of one length, but for the last, in one call.
    fn send_many(&mut self, to: OverlayIp, payloads: &[Vec<u8>]) {
        let (mut all, mut stride, mut gateway) = (vec![], 0, None);
        for payload in payloads {
            let wrapped = self.attachment.wrap(to, payload, clock::now());
            let (at, frame) = wrapped.expect("it is attached");
            stride = stride.max(frame.len());
            gateway = Some(at);
            all.extend(frame);
        }
        self.socket
            .send_many(&all, stride, gateway.unwrap(), Ecn::NotEct)
            .unwrap();
    }

    fn send(&mut self, to: OverlayIp, payload: &[u8]) {
        let (at, frame) = self
            .attachment
            .wrap(to, payload, clock::now())
            .expect("it is attached");
        self.socket.send_to(&frame, at).unwrap();
    }

    fn turn(&mut self) {
        let mut buffer = [0; 2000];
        loop {
            match self.socket.recv_from(&mut buffer) {
                Ok((length, from)) => {
                    let bytes = &buffer[..length];
                    let inbound = self.attachment.handle_datagram(from, bytes, clock::now());
                    if let Inbound::Received(got) = inbound {
                        self.received.push(bytes[got.payload].to_vec());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        self.attachment.handle_timeout(clock::now());
        while let Some((to, bytes)) = self.attachment.poll_transmit() {
            self.socket.send_to(&bytes, to).unwrap();
        }
    }
}

/// Gives the agents turns until `done`.
async fn until(agents: &mut [Agent], what: &str, done: impl Fn(&[Agent]) -> bool) {
    let end = clock::now() + PATIENCE;
    loop {
        agents.iter_mut().for_each(Agent::turn);
        if done(agents) {
            return;
        }
        assert!(clock::now() < end, "never: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn keys() -> GatewayKeys {
    GatewayKeys {
        gateway: key(201).did(),
        tunnel: tunnel(201),
        reset: [7; 32],
    }
}

fn config(listen: SocketAddr, recovery: &Path) -> GatewayConfig {
    GatewayConfig {
        listen: vec![listen],
        recovery: recovery.to_owned(),
        core: CoreConfig {
            lease: Duration::from_secs(75),
            mtu: 1452,
            max_attachments: 10,
            max_handshakes: 10,
            handshakes_per_second: 100,
            per_source: 100,
            burst: 100,
            mesh: MeshConfig::default(),
        },
        offload: true,
        wss: None,
        stun: AlternatesConfig::default(),
    }
}

/// A file of its own for one test, removed at the end.
struct File(PathBuf);

impl File {
    fn new(name: &str) -> Self {
        let name = format!("agentnet-{name}-{}.json", std::process::id());
        Self(std::env::temp_dir().join(name))
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.0);
    }
}

/// a gateway that restarts has its agents back without a packet of theirs.
#[tokio::test]
async fn agents_exchange_frames_and_survive_a_restart() {
    let (network, file) = (Network::new(1), File::new("restart"));
    let anywhere = "127.0.0.1:0".parse().unwrap();
    let gateway = Running::start(anywhere, &file.0, &network).await;
    let at = gateway.at;
    let mut agents = [10, 11].map(|n| Agent::new(&network, n, at));
    let attached = |agents: &[Agent]| agents.iter().all(|a| a.attachment.is_attached());

    until(&mut agents, "attached", attached).await;
    agents[0].send(network.address(11), b"one");
    until(&mut agents, "received", |a| a[1].received.len() == 1).await;
    let status = gateway.status().await;
    assert_eq!((status.attached, status.forwarded_frames), (2, 1));
    assert_eq!(
        serde_json::from_str::<GatewayStatus>(&serde_json::to_string(&status).unwrap()).unwrap(),
        status
    );

    let old = agents.each_ref().map(Agent::hop);
    gateway.stop().await;
    let metadata = std::fs::metadata(&file.0).unwrap();
    assert_eq!(metadata.mode() & 0o777, 0o600);
    let gateway = Running::start(at, &file.0, &network).await;
    let again = |agents: &[Agent]| {
        agents
            .iter()
            .map(Agent::hop)
            .zip(old)
            .all(|(new, old)| new.is_some() && new != old)
    };
    until(&mut agents, "attached again", again).await;
    agents[1].send(network.address(10), b"two");
    until(&mut agents, "received again", |a| a[0].received.len() == 1).await;
    gateway.stop().await;
}

/// frames that came in one call go on as they are, merged and cut by the kernel or not.
#[tokio::test]
async fn many_frames_at_once_arrive_whole_and_in_order() {
    for offload in [true, false] {
        let (network, file) = (Network::new(1), File::new(&format!("many-{offload}")));
        let config = GatewayConfig {
            offload,
            ..config("127.0.0.1:0".parse().unwrap(), &file.0)
        };
        let gateway = Running::start_with(config, &network).await;
        let mut agents = [10, 11].map(|n| Agent::new(&network, n, gateway.at));
        let attached = |agents: &[Agent]| agents.iter().all(|a| a.attachment.is_attached());
        until(&mut agents, "attached", attached).await;
        let length = |n: u8| if n == 39 { 700 } else { 1300 };
        let payloads = (0..40).map(|n| vec![n; length(n)]).collect::<Vec<_>>();

        agents[0].send_many(network.address(11), &payloads);
        until(&mut agents, "received", |a| a[1].received.len() == 40).await;

        assert_eq!(agents[1].received, payloads);
        let status = gateway.status().await;
        let bytes = payloads.iter().map(|p| p.len() as u64 + 56).sum::<u64>();
        assert_eq!(
            (status.forwarded_frames, status.forwarded_bytes),
            (40, bytes)
        );
        assert!(status.drops.is_empty(), "{:?}", status.drops);
        gateway.stop().await;
    }
}

/// Garbage, truncated and oversized datagrams are counted, and answered by nothing.
#[tokio::test]
async fn garbage_is_counted_and_not_answered() {
    let (network, file) = (Network::new(1), File::new("garbage"));
    let gateway = Running::start("127.0.0.1:0".parse().unwrap(), &file.0, &network).await;
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();

    for length in [0, 1, 3, 4, 31, 32, 55, 147, 148, 149, 1500, 65_507] {
        for first in [1, 2, 3, 4, 0x20, 0xa3, 0xff] {
            let mut bytes = vec![0; length];
            if let Some(byte) = bytes.first_mut() {
                *byte = first;
            }
            socket.send_to(&bytes, gateway.at).unwrap();
        }
    }
    let end = clock::now() + PATIENCE;
    while gateway.status().await.drops.values().sum::<u64>() < 84 {
        assert!(clock::now() < end, "{:?}", gateway.status().await.drops);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }

    let answer = socket.recv_from(&mut [0; 100]).unwrap_err();
    assert_eq!(answer.kind(), io::ErrorKind::WouldBlock);
    gateway.stop().await;
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let file = File::new("port");
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap();

    let error = Gateway::bind(&config(at, &file.0), keys()).unwrap_err();

    assert!(matches!(error, GatewayError::Listen { address, .. } if address == at));
}

/// A damaged memory is reported and left alone; the gateway serves without it.
#[tokio::test]
async fn a_damaged_memory_does_not_stop_the_gateway() {
    let (network, file) = (Network::new(1), File::new("damaged"));
    std::fs::write(&file.0, "{ not json").unwrap();

    let gateway = Running::start("127.0.0.1:0".parse().unwrap(), &file.0, &network).await;
    let mut agents = [Agent::new(&network, 10, gateway.at)];
    until(&mut agents, "attached", |a| a[0].attachment.is_attached()).await;
    gateway.stop().await;

    assert_eq!(std::fs::read_to_string(&file.0).unwrap(), "{ not json");
}

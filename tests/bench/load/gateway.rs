//! A gateway without a registry, and agents as far as a gateway sees them: attachments of one process,
//! each from an address of its own.

use std::{
    collections::BTreeSet,
    fs, io,
    io::Write,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    path::Path,
    process::{Child, Command},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use agentnet::engine::attach::{AttachConfig, Attachment, Inbound, State};
use agentnet::id::{
    DomainId, IdentityKey, NetworkId, NetworkPrefix, OverlayIp, TunnelSecret, hash,
};
use agentnet::os::clock;
use agentnet::os::files::StateFile;
use agentnet::os::udp::{UdpPort, bind_at};
use agentnet::statement::{Grant, Record, Statement, issue};
use agentnet::wire::ecn::Ecn;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The last byte of each agent's address, and its port.
const HOST: u8 = 7;
const PORT: u16 = 16_200;

/// How many begin to attach in a second where no restart is measured.
const PER_SECOND: u32 = 400;

/// How often each of a pair says something to the other.
const SAYS: Duration = Duration::from_millis(200);

/// Far above what anything here takes.
const LONGEST: Duration = Duration::from_secs(120);

/// Frames that leave in one call, as a node's leave.
const BURST: usize = 44;

fn identity(what: &str) -> IdentityKey {
    IdentityKey::from_seed(hash(&[b"identity", what.as_bytes()]))
}

fn tunnel(what: &str) -> TunnelSecret {
    TunnelSecret::from_seed(hash(&[b"tunnel", what.as_bytes()]))
}

/// What `agentnet gateway init` keeps (`node/gateway/setup.rs`).
#[derive(Deserialize, Serialize)]
struct Keys {
    identity: IdentityKey,
    tunnel: TunnelSecret,
    reset: TunnelSecret,
    url: String,
    pin: String,
    domain: DomainId,
}

/// What a gateway keeps of its registry (`node/gateway/follow.rs`).
#[derive(Deserialize, Serialize)]
struct Served {
    networks: BTreeSet<NetworkId>,
}

/// Writes the directory of a gateway that serves the agents here, whose registry is not there.
pub(crate) fn make(directory: &Path, at: SocketAddr) -> Result<Value> {
    fs::create_dir_all(directory)?;
    let keys = Keys {
        identity: identity("gateway"),
        tunnel: tunnel("gateway"),
        reset: tunnel("reset"),
        url: "https://192.0.2.1:8443".to_owned(),
        pin: "0".repeat(64),
        domain: identity("domain").did().into(),
    };
    let (file, _) = StateFile::open::<Keys>(&directory.join("gateway.key"), 1)?;
    file.save(&keys)?;
    let (file, _) = StateFile::open::<Served>(&directory.join("networks.json"), 1)?;
    let networks = [identity("owner").did().into()].into();
    file.save(&Served { networks })?;
    let text = format!("[udp]\nlisten = [\"{at}\"]\n");
    fs::write(directory.join("gateway.toml"), text)?;
    Ok(json!({ "gateway": keys.identity.did().to_string() }))
}

/// The network of all agents.
struct Members {
    prefix: NetworkPrefix,
    root: Statement<Grant>,
    gateway: SocketAddr,
    /// Agents' addresses are of this /10.
    network: Ipv4Addr,
}

struct Agent {
    attachment: Attachment,
    address: OverlayIp,
    at: SocketAddr,
}

impl Members {
    fn new(gateway: SocketAddr, network: Ipv4Addr) -> Result<Self> {
        let prefix = "fdaa:bbcc:ddee:1::/64".parse()?;
        let root = issue::root_grant(&identity("owner"), "acme".parse()?, prefix, clock::unix())?;
        Ok(Self {
            prefix,
            root,
            gateway,
            network,
        })
    }

    fn agent(&self, n: u32) -> Result<Agent> {
        let (name, unix) = (format!("p{n}"), clock::unix());
        let (own, owner) = (identity(&name), identity("owner"));
        // Nobody's record outlives the chain it is by.
        let until = self.root.expires();
        let member = name.parse()?;
        let grant = issue::agent_grant(&owner, &self.root, own.did(), &member, unix, until)?;
        let gateways = vec![identity("gateway").did()];
        let claims = Record {
            name: member,
            tunnel: tunnel(&name).public(),
            gateways,
            chain: vec![self.root.text().to_owned(), grant.text().to_owned()],
            ttl: 600,
        };
        let network = owner.did().into();
        let record = issue::record(&own, network, unix.as_millis(), unix, until, claims)?;
        let address = self.prefix.address_of(&own.did().into())?;
        let config = AttachConfig {
            agent: address,
            secret: tunnel(&name),
            gateway: identity("gateway").did(),
            key: tunnel("gateway").public(),
            endpoints: vec![self.gateway],
            index: n,
        };
        let mut attachment = Attachment::new(config, hash(&[b"seed", name.as_bytes()]))?;
        attachment.set_record(record.text().to_owned(), clock::now());
        let [_, _, high, low] = n.to_be_bytes();
        let [first, second, ..] = self.network.octets();
        let ip = Ipv4Addr::new(first, second.wrapping_add(high), low, HOST);
        Ok(Agent {
            attachment,
            address,
            at: SocketAddr::new(ip.into(), PORT),
        })
    }
}

/// An agent whose socket is asked in turn with all others'.
struct Guest {
    agent: Agent,
    socket: UdpSocket,
    /// The newest of what its partner said: when that was, in milliseconds.
    heard: u64,
}

impl Guest {
    fn new(members: &Members, n: u32) -> Result<Self> {
        let agent = members.agent(n)?;
        // Port 0 would do as well, but a restart is to find it where it was.
        let socket = UdpSocket::bind(agent.at).context("each agent takes a file: ulimit -n")?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            agent,
            socket,
            heard: 0,
        })
    }

    fn turn(&mut self) {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = self.socket.recv_from(&mut buffer) {
            let bytes = buffer.get(..length).unwrap_or_default();
            let attachment = &mut self.agent.attachment;
            if let Inbound::Received(got) = attachment.handle_datagram(from, bytes, clock::now()) {
                let said = bytes.get(got.payload).and_then(<[u8]>::first_chunk);
                let said = said.map_or(0, |said| u64::from_be_bytes(*said));
                self.heard = self.heard.max(said);
            }
        }
        self.agent.attachment.handle_timeout(clock::now());
        while let Some((to, bytes)) = self.agent.attachment.poll_transmit() {
            // What a full queue does not take is said again.
            drop(self.socket.send_to(&bytes, to));
        }
    }

    fn say(&mut self, to: OverlayIp, at: u64) {
        let mut said = [0; 64];
        if let Some(head) = said.first_chunk_mut() {
            *head = at.to_be_bytes();
        }
        if let Some((gateway, frame)) = self.agent.attachment.wrap(to, &said, clock::now()) {
            drop(self.socket.send_to(&frame, gateway));
        }
    }

    fn is_attached(&self) -> bool {
        self.agent.attachment.state() == State::Attached
    }
}

/// Attaches agents, tells once all are, and then only keeps them attached for `time`.
pub(crate) fn attached(
    count: u32,
    gateway: SocketAddr,
    network: Ipv4Addr,
    time: Duration,
) -> Result<Value> {
    let members = Members::new(gateway, network)?;
    let begun = clock::now();
    let mut guests = Vec::new();
    while guests.len() < count as usize || !guests.iter().all(Guest::is_attached) {
        let due = (begun.elapsed().as_secs_f64() * f64::from(PER_SECOND)) as u32;
        while guests.len() < due.min(count) as usize {
            guests.push(Guest::new(&members, guests.len() as u32)?);
        }
        guests.iter_mut().for_each(Guest::turn);
        ensure!(begun.elapsed() < LONGEST, "not all attach");
        thread::sleep(Duration::from_millis(5));
    }
    let told = json!({ "attached": guests.len(), "seconds": begun.elapsed().as_secs_f64() });
    let mut out = io::stdout().lock();
    writeln!(out, "{told}")?;
    out.flush()?;
    let since = clock::now();
    while since.elapsed() < time {
        guests.iter_mut().for_each(Guest::turn);
        thread::sleep(Duration::from_millis(200));
    }
    let lost = guests.iter().filter(|guest| !guest.is_attached()).count();
    Ok(json!({ "attached": guests.len() - lost, "lost": lost }))
}

/// Has pairs talk by a gateway of this process, which is killed and started again at once: how long each
/// pair is without the other.
pub(crate) fn restart(
    pairs: u32,
    gateway: SocketAddr,
    network: Ipv4Addr,
    directory: &Path,
    binary: &Path,
) -> Result<Value> {
    let members = Members::new(gateway, network)?;
    let mut child = serve(binary, directory)?;
    let guests = (0..pairs * 2).map(|n| Guest::new(&members, n));
    let mut guests = guests.collect::<Result<Vec<_>>>()?;
    let begun = clock::now();
    let mut said = begun;
    while !guests.iter().all(|guest| guest.heard > 0) {
        talk(&mut guests, begun, &mut said);
        ensure!(begun.elapsed() < LONGEST, "not all talk");
    }
    let whole = begun.elapsed();
    // What it remembers of them is written by then.
    while begun.elapsed() < whole + Duration::from_secs(3) {
        talk(&mut guests, begun, &mut said);
    }
    child.kill()?;
    child.wait()?;
    let died = begun.elapsed();
    let mut child = serve(binary, directory)?;
    let mut back = vec![None; pairs as usize];
    while back.iter().any(Option::is_none) {
        talk(&mut guests, begun, &mut said);
        let now = begun.elapsed();
        for (back, pair) in back.iter_mut().zip(guests.chunks(2)) {
            let since = died.as_millis() as u64;
            if back.is_none() && pair.iter().all(|guest| guest.heard > since) {
                *back = Some((now - died).as_secs_f64());
            }
        }
        ensure!(now < died + LONGEST, "not all are back");
    }
    child.kill()?;
    child.wait()?;
    let mut back: Vec<f64> = back.into_iter().flatten().collect();
    back.sort_by(f64::total_cmp);
    let at = |percent: usize| back.get((back.len() - 1) * percent / 100).copied();
    Ok(json!({
        "pairs": pairs, "first": at(0), "median": at(50), "p99": at(99), "last": at(100),
        "begin": whole.as_secs_f64(),
    }))
}

fn serve(binary: &Path, directory: &Path) -> Result<Child> {
    let config = directory.join("gateway.toml");
    let mut command = Command::new(binary);
    command.args(["gateway", "serve", "--quiet", "--config"]);
    Ok(command.arg(config).spawn()?)
}

fn talk(guests: &mut [Guest], begun: Instant, said: &mut Instant) {
    guests.iter_mut().for_each(Guest::turn);
    if said.elapsed() >= SAYS {
        *said = clock::now();
        let at = begun.elapsed().as_millis() as u64;
        for pair in guests.chunks_mut(2) {
            if let [a, b] = pair {
                let (to_a, to_b) = (a.agent.address, b.agent.address);
                a.say(to_b, at);
                b.say(to_a, at);
            }
        }
    }
    thread::sleep(Duration::from_millis(2));
}

/// Sends frames with payloads of `size` bytes from one agent to another by the gateway, as fast as it goes.
pub(crate) fn relay(
    gateway: SocketAddr,
    network: Ipv4Addr,
    size: usize,
    time: Duration,
) -> Result<Value> {
    let members = Members::new(gateway, network)?;
    let mut ends = [attach(&members, 0)?, attach(&members, 1)?];
    let [(from, sender), (to, receiver)] = &mut ends;
    let (got, is_over) = (
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let sent = thread::scope(|scope| {
        let sink = scope.spawn(|| count(receiver, &got, &is_over));
        let (payload, begun, mut sent) = (vec![0x5a; size], clock::now(), 0_u64);
        let mut burst = Vec::new();
        while begun.elapsed() < time {
            burst.clear();
            let now = clock::now();
            let mut stride = 0;
            for _ in 0..BURST {
                let wrapped = from.attachment.wrap(to.address, &payload, now);
                let (_, frame) = wrapped.context("the gateway gave the agent up")?;
                stride = frame.len();
                burst.extend(frame);
            }
            match sender.send_many(&burst, stride, gateway, Ecn::NotEct) {
                Ok(()) => sent += BURST as u64,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::yield_now(),
                Err(error) => return Err(error.into()),
            }
        }
        thread::sleep(Duration::from_millis(500));
        is_over.store(true, Ordering::Relaxed);
        sink.join().ok().context("the sink failed")??;
        anyhow::Ok((sent, begun.elapsed()))
    });
    let (sent, _) = sent?;
    let got = got.load(Ordering::Relaxed);
    Ok(json!({ "sent": sent, "received": got, "size": size, "seconds": time.as_secs_f64() }))
}

fn attach(members: &Members, n: u32) -> Result<(Agent, UdpPort)> {
    let mut agent = members.agent(n)?;
    let socket = bind_at(agent.at)?;
    socket.merge_received();
    let (begun, mut buffer) = (clock::now(), [0; 2048]);
    while agent.attachment.state() != State::Attached {
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let bytes = buffer.get(..length).unwrap_or_default();
            agent.attachment.handle_datagram(from, bytes, clock::now());
        }
        agent.attachment.handle_timeout(clock::now());
        while let Some((to, bytes)) = agent.attachment.poll_transmit() {
            socket.send_to(&bytes, to)?;
        }
        ensure!(begun.elapsed() < LONGEST, "the gateway is not there");
        thread::sleep(Duration::from_millis(1));
    }
    Ok((agent, socket))
}

/// Counts frames until it is told to stop.
fn count(socket: &UdpPort, got: &AtomicU64, is_over: &AtomicBool) -> Result<()> {
    let mut buffer = vec![0; 65_535];
    while !is_over.load(Ordering::Relaxed) {
        match socket.recv_many(&mut buffer) {
            Ok(received) => {
                let frames = received.length.div_ceil(received.stride.max(1)) as u64;
                got.fetch_add(frames, Ordering::Relaxed);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                thread::sleep(Duration::from_micros(200));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

//! A node with many consented peers, and the peers: WireGuard sessions of one process, each from an
//! address of its own. No registry and no gateway has a part in it: what the node would have learnt of
//! them stands in its state.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    path::Path,
    thread,
    time::Duration,
};

use agentnet::engine::membership::{Membership, Start};
use agentnet::engine::session::{Opened, Session, SessionKeys};
use agentnet::id::{Did, IdentityKey, NetworkPrefix, OverlayIp, Suffix, TunnelSecret, hash};
use agentnet::node::store::Store;
use agentnet::os::clock;
use agentnet::statement::{Consent, ConsentState, Grant, Head, Scope, Statement, issue};
use anyhow::{Context, Result};
use serde_json::{Value, json};

/// The last byte of each peer's address, its port, and the network prefix of all.
const HOST: u8 = 7;
const PORT: u16 = 16_200;

/// How often a handshake without an answer is begun anew: what a flood of them lost.
const AGAIN: Duration = Duration::from_millis(500);

fn identity(what: &str) -> IdentityKey {
    IdentityKey::from_seed(hash(&[b"identity", what.as_bytes()]))
}

fn tunnel(name: &str) -> TunnelSecret {
    TunnelSecret::from_seed(hash(&[b"tunnel", name.as_bytes()]))
}

fn prefix() -> Result<NetworkPrefix> {
    Ok("fdaa:bbcc:ddee:1::/64".parse()?)
}

/// Returns what agent `name` would have kept of the network after it joined.
fn member(name: &str, root: &Statement<Grant>) -> Result<Membership> {
    let (owner, own, unix) = (identity("owner"), identity(name), clock::unix());
    let until = unix + issue::ROOT_LIFE;
    let grant = issue::agent_grant(&owner, root, own.did(), &name.parse()?, unix, until)?;
    Ok(Membership::new(Start {
        agent: name.to_owned(),
        identity: own,
        tunnel: tunnel(name),
        network: owner.did().into(),
        prefix: prefix()?,
        url: "https://192.0.2.1:8443".to_owned(),
        pin: "0".repeat(64),
        domain: identity("domain").did().into(),
        registry: identity("registry").did(),
        chain: vec![root.text().to_owned(), grant.text().to_owned()],
        suffix: Suffix::default(),
    }))
}

fn consent(from: &IdentityKey, to: Did) -> Result<Statement<Consent>> {
    let unix = clock::unix();
    let head = Head {
        subject: to,
        network: Some(identity("owner").did().into()),
        issued: unix,
        expires: unix + Duration::from_secs(86_400),
        seq: unix.as_millis(),
    };
    let claims = Consent {
        inbound: Scope::Any,
        children: false,
        state: ConsentState::Active,
        re: None,
    };
    Ok(Statement::sign(from, head, claims)?)
}

/// Returns the node's membership with `count` peers, and the peers' numbers.
fn node(count: u32) -> Result<(Membership, BTreeMap<Did, u32>)> {
    let (owner, unix) = (identity("owner"), clock::unix());
    let root = issue::root_grant(&owner, "acme".parse()?, prefix()?, unix)?;
    let mut own = member("node", &root)?;
    let mut numbers = BTreeMap::new();
    for n in 0..count {
        let mut peer = member(&format!("p{n}"), &root)?;
        let did = peer.identity.did();
        numbers.insert(did, n);
        own.records.insert(did, peer.sign_record(vec![], unix)?);
        own.given.insert(did, consent(&own.identity, did)?);
        let given = consent(&peer.identity, own.identity.did())?;
        own.received.insert(did, given);
    }
    Ok((own, numbers))
}

/// Writes the state of a node with `count` peers.
pub(crate) fn state(directory: &Path, count: u32) -> Result<Value> {
    let (own, _) = node(count)?;
    let address = own.address().context("a node without an address")?;
    let (store, _) = Store::open(directory)?;
    store.save_agent(&own)?;
    Ok(json!({ "address": address.to_string(), "peers": count }))
}

struct Peer {
    session: Session,
    socket: UdpSocket,
    address: OverlayIp,
    is_up: bool,
    has_answer: bool,
}

impl Peer {
    /// Takes what came; tells whether its session is new, or something was answered to its packet.
    fn receive(&mut self) -> Result<()> {
        let mut buffer = [0; 2048];
        while let Ok(length) = self.socket.recv(&mut buffer) {
            let datagram = buffer.get(..length).unwrap_or_default();
            match self.session.open(datagram, clock::now()) {
                Opened::Confirmed { reply, .. } => {
                    self.is_up = true;
                    self.say(reply)?;
                }
                Opened::Reply(reply) => self.say(Some(reply))?,
                // What is not of IPv6 is the node's own.
                Opened::Packet(packet) => {
                    self.has_answer |= packet.first().is_some_and(|first| first >> 4 == 6);
                }
                Opened::Nothing | Opened::Dropped(_) => {}
            }
        }
        Ok(())
    }

    /// Makes an echo request to the node, sealed.
    fn echo(&mut self, local: OverlayIp) -> Result<Option<Vec<u8>>> {
        let (from, to) = (self.address.ip().octets(), local.ip().octets());
        let builder = etherparse::PacketBuilder::ipv6(from, to, 64);
        let mut packet = Vec::new();
        builder
            .icmpv6_echo_request(1, 1)
            .write(&mut packet, b"hello")?;
        Ok(self.session.seal(&packet, clock::now()))
    }

    fn say(&self, message: Option<Vec<u8>>) -> Result<()> {
        if let Some(message) = message {
            self.socket.send(&message)?;
        }
        Ok(())
    }
}

/// Makes sessions of all peers with the node at `to`, sends a packet by each, and holds them for `time`.
pub(crate) fn run(count: u32, to: SocketAddr, network: Ipv4Addr, time: Duration) -> Result<Value> {
    let (own, numbers) = node(count)?;
    let local = own.address().context("a node without an address")?;
    let mut peers = Vec::new();
    for trusted in own.trusted(clock::unix()) {
        let n = *numbers
            .get(&trusted.member.agent.did())
            .context("a stranger is trusted")?;
        let [_, _, high, low] = n.to_be_bytes();
        let [first, second, ..] = network.octets();
        let socket = UdpSocket::bind((
            Ipv4Addr::new(first, second.wrapping_add(high), low, HOST),
            PORT,
        ))?;
        socket.connect(to)?;
        socket.set_nonblocking(true)?;
        let keys = SessionKeys {
            local: tunnel(&format!("p{n}")),
            peer: own.tunnel.public(),
            psk: Some(trusted.psk),
            index: n,
        };
        peers.push(Peer {
            session: Session::new(&keys, clock::now()),
            socket,
            address: trusted.member.address,
            is_up: false,
            has_answer: false,
        });
    }
    let up = establish(&mut peers)?;
    let answered = talk(&mut peers, local, time)?;
    Ok(json!({ "peers": peers.len(), "seconds": up.as_secs_f64(), "answered": answered }))
}

/// Returns when the last session was up.
fn establish(peers: &mut [Peer]) -> Result<Duration> {
    let begun = clock::now();
    let mut asked = None;
    while peers.iter().any(|peer| !peer.is_up) {
        let again = asked.is_none_or(|at| clock::now() > at + AGAIN);
        if again {
            asked = Some(clock::now());
        }
        for peer in &mut *peers {
            if again && !peer.is_up {
                let initiation = peer.session.initiate(clock::now());
                peer.say(initiation)?;
            }
            peer.receive()?;
        }
        anyhow::ensure!(
            begun.elapsed() < Duration::from_secs(60),
            "no session comes up"
        );
    }
    Ok(begun.elapsed())
}

/// Sends echoes to the node by all sessions, again to where none is answered, for `time`; returns how many
/// were answered.
fn talk(peers: &mut [Peer], local: OverlayIp, time: Duration) -> Result<usize> {
    let begun = clock::now();
    let mut asked = None;
    while begun.elapsed() < time {
        let again = asked.is_none_or(|at| clock::now() > at + AGAIN);
        if again {
            asked = Some(clock::now());
        }
        for peer in &mut *peers {
            if again && !peer.has_answer {
                let echo = peer.echo(local)?;
                peer.say(echo)?;
            }
            peer.receive()?;
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(peers.iter().filter(|peer| peer.has_answer).count())
}

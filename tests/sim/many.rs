//! A node with hundreds of peers: what it costs while nobody speaks, in wake-ups and in memory.

use std::{collections::BTreeMap, fs, net::SocketAddr, time::Duration};

use agentnet::engine::{
    Engine, PeerState,
    membership::{Membership, State},
    session::{Opened, Session, SessionKeys},
};
use agentnet::id::{Did, IdentityKey, OverlayIp, TunnelSecret, UnixTime, hash};
use agentnet::os::clock;
use agentnet::statement::{Consent, ConsentState, Grant, Head, Scope, Statement, issue};

use crate::clock::Simulation;
use crate::pair::{OWNER, key, membership, membership_by, network, now, root_grant, udp};

const PEERS: u32 = 400;

/// What a consented peer with a session may take (dataplane.md section 2).
const MOST: usize = 40 * 1024; // bytes

/// Another agent: its end of the session, and where it is.
struct Other {
    session: Session,
    address: OverlayIp,
    at: SocketAddr,
}

struct World {
    sim: Simulation,
    engine: Engine,
    local: OverlayIp,
    others: BTreeMap<SocketAddr, Other>,
    /// Calls of the engine's `handle_timeout`, and datagrams it sent.
    wakes: usize,
    sent: usize,
}

fn seed(n: u32, what: &[u8]) -> [u8; 32] {
    hash(&[what, &n.to_be_bytes()])
}

/// Returns the n-th other agent as it would be kept by itself.
fn member(n: u32, root: &Statement<Grant>, unix: UnixTime) -> Membership {
    let identity = IdentityKey::from_seed(seed(n, b"identity"));
    let (name, did) = (format!("p{n}"), identity.did());
    let until = unix + issue::ROOT_LIFE;
    let member = name.parse().unwrap();
    let grant = issue::agent_grant(&key(OWNER), root, did, &member, unix, until).unwrap();
    let chain = vec![root.text().to_owned(), grant.text().to_owned()];
    membership_by(
        chain,
        &name,
        identity,
        TunnelSecret::from_seed(seed(n, b"tunnel")),
    )
}

fn consent(from: &IdentityKey, to: Did, unix: UnixTime) -> Statement<Consent> {
    let head = Head {
        subject: to,
        network: Some(network()),
        issued: unix,
        expires: unix + Duration::from_secs(365 * 86_400),
        seq: unix.as_millis(),
    };
    let claims = Consent {
        inbound: Scope::Any,
        children: false,
        state: ConsentState::Active,
        re: None,
    };
    Statement::sign(from, head, claims).unwrap()
}

/// Returns what this process has in memory.
fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.unwrap().trim().trim_end_matches(" kB");
    kilobytes.parse::<usize>().unwrap() * 1024
}

impl World {
    /// Makes the node and all others, without a session; tells what was in memory before the node.
    fn new() -> (Self, usize) {
        let sim = Simulation::start(5);
        let unix = clock::unix();
        let root = root_grant(unix);
        let mut own = membership(1, "a", issue::ROOT_LIFE);
        let mut numbers = BTreeMap::new();
        for n in 0..PEERS {
            let mut peer = member(n, &root, unix);
            let did = peer.id().did();
            numbers.insert(did, n);
            own.records
                .insert(did, peer.sign_record(vec![], unix).unwrap());
            own.given.insert(did, consent(&own.identity, did, unix));
            let given = consent(&peer.identity, own.id().did(), unix);
            own.received.insert(did, given);
        }
        let trusted = own.trusted(unix);
        assert_eq!(trusted.len(), PEERS as usize);
        let others = trusted.iter().map(|trusted| {
            let n = numbers[&trusted.member.agent.did()];
            let keys = SessionKeys {
                local: TunnelSecret::from_seed(seed(n, b"tunnel")),
                peer: own.tunnel.public(),
                psk: Some(trusted.psk),
                index: n,
            };
            let [_, _, high, low] = n.to_be_bytes();
            let at = SocketAddr::from(([198, 18, high, low], 16200));
            let other = Other {
                session: Session::new(&keys, clock::now()),
                address: trusted.member.address,
                at,
            };
            (at, other)
        });
        let others = others.collect::<BTreeMap<_, _>>();
        let local = own.address().unwrap();
        let state = serde_json::to_string(&State {
            identities: BTreeMap::new(),
            memberships: vec![own],
            left: vec![],
        });
        let before = resident();
        let state = serde_json::from_str::<State>(&state.unwrap()).unwrap();
        let world = Self {
            sim,
            engine: Engine::new(state, [9; 32], now()),
            local,
            others,
            wakes: 0,
            sent: 0,
        };
        (world, before)
    }

    /// Makes all sessions, and sends a packet each way.
    fn talk(&mut self) {
        for at in self.others.keys().copied().collect::<Vec<_>>() {
            let other = self.others.get_mut(&at).unwrap();
            let initiation = other.session.initiate(clock::now()).unwrap();
            let (there, here) = (other.address, self.local);
            self.say(at, &initiation);
            let hello = udp(there, here, b"hello");
            let other = self.others.get_mut(&at).unwrap();
            let sealed = other.session.seal(&hello, clock::now()).unwrap();
            self.say(at, &sealed);
            let answer = udp(here, there, b"you too");
            self.engine.handle_packet(here, there, &answer, now());
            self.drain();
        }
    }

    fn say(&mut self, at: SocketAddr, message: &[u8]) {
        self.engine.handle_datagram(at, message, now());
        self.drain();
    }

    fn drain(&mut self) {
        while self.engine.poll_event().is_some() {}
        while self.engine.poll_packet().is_some() {}
        while let Some(transmit) = self.engine.poll_transmit() {
            self.sent += 1;
            let Some(other) = self.others.get_mut(&transmit.to) else {
                continue;
            };
            let at = other.at;
            match other.session.open(&transmit.bytes, clock::now()) {
                Opened::Confirmed { reply, .. } => {
                    if let Some(reply) = reply {
                        self.engine.handle_datagram(at, &reply, now());
                    }
                }
                Opened::Reply(reply) => self.engine.handle_datagram(at, &reply, now()),
                Opened::Packet(_) | Opened::Nothing | Opened::Dropped(_) => {}
            }
        }
    }

    /// Lets time pass for the node alone: the others are silent, as if they had gone.
    fn run(&mut self, time: Duration) {
        let end = clock::now() + time;
        while let Some((at, _)) = self.engine.poll_timeout().filter(|(at, _)| *at <= end) {
            let left = at.saturating_duration_since(clock::now());
            self.sim.advance(left);
            self.wakes += 1;
            self.engine.handle_timeout(now());
            self.drain();
        }
        self.sim.advance(end - clock::now());
    }
}

/// Issue 4, section 7: hundreds of peers at rest wake nobody, and each takes less than 40 KB.
#[test]
fn hundreds_of_peers_at_rest_cost_nothing() {
    let (mut world, before) = World::new();
    world.talk();
    let peers = world.engine.peers(world.local, now());
    let up = peers.iter().filter(|peer| peer.state == PeerState::Up);
    assert_eq!(up.count(), PEERS as usize);

    let each = (resident() - before) / PEERS as usize;

    assert!(each < MOST, "{each} bytes a peer");
    // Until keepalives, probes and the last renewal are over.
    world.run(Duration::from_secs(1200));
    assert!(world.wakes < 40 * PEERS as usize, "{}", world.wakes);
    (world.wakes, world.sent) = (0, 0);
    world.run(Duration::from_secs(3600));

    // The look for consents that end, each minute.
    assert!(world.wakes <= 62, "{} wake-ups in an hour", world.wakes);
    assert_eq!(world.sent, 0);
}

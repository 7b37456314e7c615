//! The gateway and the peer of an engine that is fuzzed: honest, until told what to say.

use std::net::SocketAddr;

use agentnet::engine::session::{Opened, Session, SessionKeys};
use agentnet::id::OverlayIp;
use agentnet::os::clock;
use agentnet::wire::a2g::{Direction, Header, HopKeys, Kind};
use agentnet::wire::control::{Attached, Control, ProbeReply};
use agentnet::wire::datagram::Datagram;

use super::input::Input;
use super::members::{GATEWAY, gateway_at, tunnel};

/// Datagrams remembered to be replayed.
const MAX_RECORDED: usize = 64;

/// Where the gateway answers STUN beside its own port.
pub(super) const STUN_PORT: u16 = 3478;

/// The hop between agent and gateway, as the gateway holds it.
struct Hop {
    up: u32,
    down: u32,
    keys_up: HopKeys,
    keys_down: HopKeys,
    next: u64,
}

pub(super) struct Others {
    /// The agent that is fuzzed, and its peer.
    ends: (OverlayIp, OverlayIp),
    gateway: Session,
    hop: Option<Hop>,
    hops: u32,
    peer: Session,
    recorded: Vec<Vec<u8>>,
}

impl Others {
    pub(super) fn new(ends: (OverlayIp, OverlayIp), psk: [u8; 32]) -> Self {
        let session = |own: u8, psk| {
            let keys = SessionKeys {
                local: tunnel(own),
                peer: tunnel(10).public(),
                psk,
                index: u32::from(own),
            };
            Session::new(&keys, clock::now())
        };
        Self {
            ends,
            gateway: session(GATEWAY, None),
            hop: None,
            hops: 0,
            peer: session(11, Some(psk)),
            recorded: vec![],
        }
    }

    /// Takes a datagram of the engine; what is answered goes to `out`, with where it comes from.
    pub(super) fn take(
        &mut self,
        to: SocketAddr,
        bytes: &[u8],
        out: &mut Vec<(SocketAddr, Vec<u8>)>,
    ) {
        if to != gateway_at() {
            if let Some(answer) = self.peer_takes(bytes) {
                out.push((to, answer));
            }
            return;
        }
        match Datagram::classify(bytes) {
            Some(Datagram::Frame) => {
                if let Some(answer) = self.take_frame(bytes) {
                    out.push((to, answer));
                }
            }
            Some(_) => {
                if let Some(answer) = self.gateway_takes(bytes) {
                    out.push((to, answer));
                }
            }
            None => panic!("a datagram of no protocol"),
        }
    }

    fn take_frame(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        let hop = self.hop.as_mut()?;
        // One of an earlier hop, or of one we forgot, opens no more.
        let header = Header::open(&hop.keys_up, bytes).ok()?;
        assert_eq!(header.source, self.ends.0.ip());
        match header.kind {
            Kind::Heartbeat => {
                let answer = hop.header(&header).of_kind(Kind::Heartbeat);
                Some(answer.frame(&hop.keys_down, &[]))
            }
            Kind::Data => {
                assert_eq!(header.target, self.ends.1.ip());
                let answer = self.peer_takes(&bytes[56..])?;
                Some(self.wrap(&answer)?.1)
            }
            Kind::SessionEnd => {
                self.hop = None;
                None
            }
            Kind::Displaced => panic!("an agent says what gateways say"),
        }
    }

    /// The peer answers handshakes and probes.
    fn peer_takes(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        match self.peer.open(bytes, clock::now()) {
            Opened::Reply(reply) => Some(reply),
            Opened::Confirmed { reply, packet } => {
                reply.or_else(|| packet.and_then(|packet| self.answer(&packet)))
            }
            Opened::Packet(packet) => self.answer(&packet),
            Opened::Dropped(_) | Opened::Nothing => None,
        }
    }

    fn answer(&mut self, packet: &[u8]) -> Option<Vec<u8>> {
        let Some(Control::Probe { id, .. }) = Control::parse(packet) else {
            return None;
        };
        let reply = Control::ProbeReply(ProbeReply {
            id,
            observed: None,
            received: 0,
        });
        self.seal(&reply.packet()?)
    }

    fn gateway_takes(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        let now = clock::now();
        let packet = match self.gateway.open(bytes, now) {
            Opened::Reply(reply) => return Some(reply),
            Opened::Confirmed { packet, .. } => packet?,
            Opened::Packet(packet) => packet,
            Opened::Dropped(_) | Opened::Nothing => return None,
        };
        let Some(Control::Part(part)) = Control::parse(&packet) else {
            return None;
        };
        if part.n + 1 < part.of {
            return None;
        }
        self.hops += 1;
        let secret = [u8::try_from(self.hops % 256).unwrap_or(0); 32];
        let (up, down) = (self.hops, self.hops + 1000);
        self.hop = Some(Hop {
            up,
            down,
            keys_up: HopKeys::derive(&secret, Direction::Up),
            keys_down: HopKeys::derive(&secret, Direction::Down),
            next: 0,
        });
        let attached = Control::Attached(Attached {
            lease: 75,
            observed: SocketAddr::from(([198, 51, 100, 10], 16200)),
            up,
            down,
            secret,
            mtu: 1452,
            reset_token: [9; 16],
            stun_port: STUN_PORT,
        });
        self.gateway.seal(&attached.packet()?, now)
    }

    /// The gateway restarts: it knows no hop.
    pub(super) fn forget_hop(&mut self) {
        self.hop = None;
    }

    /// Seals a packet of the peer; None without a session.
    pub(super) fn seal(&mut self, packet: &[u8]) -> Option<Vec<u8>> {
        self.peer.seal(packet, clock::now())
    }

    pub(super) fn initiate(&mut self) -> Option<Vec<u8>> {
        self.peer.initiate(clock::now())
    }

    /// Seals a packet of the gateway; None while nobody attaches.
    pub(super) fn gateway_seal(&mut self, packet: &[u8]) -> Option<Vec<u8>> {
        self.gateway.seal(packet, clock::now())
    }

    /// Gives a message of the peer to the gateway, or directly: from where it comes, and its bytes.
    pub(super) fn carry(&mut self, way: u8, message: Vec<u8>) -> (SocketAddr, Vec<u8>) {
        if self.recorded.len() >= MAX_RECORDED {
            self.recorded.remove(0);
        }
        let direct = SocketAddr::from(([198, 51, 100, 20 + way], 16200));
        let framed = if way < 4 { self.wrap(&message) } else { None };
        let (from, bytes) = framed.unwrap_or((direct, message));
        self.recorded.push(bytes.clone());
        (from, bytes)
    }

    /// Returns a datagram that the engine was given before.
    pub(super) fn recorded(&self, which: u8) -> Option<&Vec<u8>> {
        let n = self.recorded.len();
        self.recorded.get(usize::from(which) % n.max(1))
    }

    fn wrap(&mut self, payload: &[u8]) -> Option<(SocketAddr, Vec<u8>)> {
        let (target, source) = self.ends;
        let hop = self.hop.as_mut()?;
        let message = hop.number();
        let header = Header::data(hop.down, message, target, source);
        Some((gateway_at(), header.frame(&hop.keys_down, payload)))
    }

    /// Makes a frame whose header is the input's.
    pub(super) fn frame(&mut self, input: &mut Input<'_>) -> Option<Vec<u8>> {
        let kinds = [
            Kind::Data,
            Kind::Heartbeat,
            Kind::SessionEnd,
            Kind::Displaced,
        ];
        let (target, source) = self.ends;
        let hop = self.hop.as_mut()?;
        let choice = input.byte();
        let message = match choice & 4 {
            0 => hop.number(),
            _ => u64::from(input.number()) << (choice & 0x30),
        };
        let mut header = Header::data(hop.down, message, target, source);
        header.kind = kinds[usize::from(choice & 3)];
        header.ttl = input.byte();
        if choice & 8 != 0 {
            header.source = std::net::Ipv6Addr::from(input.array::<16>());
        }
        let payload = input.chunk();
        let payload = if header.kind == Kind::Data {
            payload
        } else {
            &[]
        };
        Some(header.frame(&hop.keys_down, payload))
    }
}

impl Hop {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Returns the header of an answer.
    fn header(&mut self, asked: &Header) -> Header {
        let message = self.number();
        assert_eq!(asked.hop, self.up);
        Header {
            hop: self.down,
            message,
            target: asked.source,
            source: asked.target,
            ..*asked
        }
    }
}

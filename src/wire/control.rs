//! Control messages inside a session (protocol.md section 6).
//!
//! Each is the payload of an IPv6 packet from `fe80::a6:1` to `fe80::a6:2`, next header 253 (RFC 3692):
//! `type u16 | length u16 | body`.
//!
//! | type | message | body |
//! |---|---|---|
//! | 1 | Part | message u32, n u8, of u8, 1 to 1100 bytes of an encoded message |
//! | 2 | Attach | record (JWT text), always by Part |
//! | 3 | Attached | lease s u32, observed address 16 (IPv4 mapped) and port u16, hop id up u32, hop id down u32, hop secret 32, mtu u16, reset token 16, STUN port u16 |
//! | 4 | AttachRefused | code u16, text |
//! | 5 | Goodbye | reason u16 |
//! | 6 | Probe | id u64, path u16 (0: the one data takes), padding |
//! | 7 | ProbeReply | id u64, observed address 16 (IPv4 mapped) and port u16 (0: relayed), received u32 |
//! | 8 | Candidates | seq u64, n u8 (at most 16), n times: kind u8, address 16, port u16, priority u32 |
//! | 9 | Have | revocations u32, their hash 32, seq u64 of the receiver's record and u64 of its consent |
//! | 10 | Statement | JWT text, by Part when long |
//! | 12..14 | Offer, Accept, Confirm | [`crate::wire::channel`] |
//! | 20..22 | Hello, Delta, Ack | between gateways: [`crate::wire::mesh`] |
//!
//! Types not listed are ignored, and so are bytes after the fields of a known body.

use std::net::{Ipv6Addr, SocketAddr};

use crate::statement::MAX_STATEMENT;
use crate::wire::candidate::{Candidates, put_endpoint, take_endpoint};
use crate::wire::channel;
use crate::wire::have::Have;
use crate::wire::mesh;

/// Source of every control packet.
pub const FROM: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xa6, 1);

/// Destination of every control packet.
pub const TO: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xa6, 2);

/// Next header of control packets: use for experimentation (RFC 3692 section 2.1).
const NEXT_HEADER: u8 = 253;

/// The other experimental next header, kept from passing as well.
const NEXT_HEADER_SPARE: u8 = 254;

/// Bytes of an IPv6 header (RFC 8200 section 3).
const IPV6: usize = 40;

/// Longest text of a refusal; the rest is cut.
const MAX_TEXT: usize = 200; // bytes

/// Most bytes of a message that one Part carries.
pub const MAX_PART: usize = 1100; // protocol.md section 6: fits 1280 with every header around it

/// What two ends of a session tell each other.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Control {
    /// Asks a gateway to forward for the agent of this record.
    Attach {
        record: String,
    },
    /// The gateway does.
    Attached(Attached),
    /// The gateway does not.
    AttachRefused {
        code: Refusal,
        text: String,
    },
    /// The other end ends the session.
    Goodbye {
        reason: Farewell,
    },
    /// A piece of a message longer than one packet.
    Part(Part),
    /// Where the sender may be reached directly.
    Candidates(Candidates),
    /// Which statements the sender has.
    Have(Have),
    /// A statement that the receiver seems not to have.
    Statement {
        text: String,
    },
    /// Asks for a ProbeReply of the same id.
    Probe {
        id: u64,
        /// The sender's number of the path; the reply takes the same way unless it is 0.
        path: u16,
    },
    ProbeReply(ProbeReply),
    /// Sets up a data channel.
    Channel(channel::Message),
    /// Between gateways.
    Mesh(mesh::Message),
}

/// The answer to a Probe.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ProbeReply {
    pub id: u64,
    /// Where the Probe came from; None when a gateway relayed it.
    pub observed: Option<SocketAddr>,
    /// How many packets of user data came from the prober so far, wrapping; so the prober learns
    /// whether a path that carries probes carries data.
    pub received: u32,
}

/// What a gateway gives an agent that attached.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Attached {
    /// Seconds of silence after which the gateway takes the agent for gone.
    pub lease: u32,
    /// Where the gateway sees the agent.
    pub observed: SocketAddr,
    /// The gateway's id of this hop: in frames to the gateway.
    pub up: u32,
    /// The agent's id of this hop: in frames from the gateway.
    pub down: u32,
    pub secret: [u8; 32],
    /// Largest frame the gateway asks for, in bytes of UDP payload.
    pub mtu: u16,
    /// Token of a Reset for `up`.
    pub reset_token: [u8; 16],
    /// Another port of the gateway that answers STUN; 0 when there is none.
    pub stun_port: u16,
}

/// Why a gateway does not forward for an agent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Refusal {
    /// The record is no record, or its chain does not hold.
    BadRecord,
    /// The gateway holds as many attachments as it may.
    Full,
    /// The gateway does not serve the network.
    NotServed,
    /// A newer record of the agent with another tunnel key is attached.
    Outdated,
    /// The record's tunnel key is not the session's.
    WrongKey,
    /// A code of a later version.
    Other(u16),
}

/// Why an end leaves a session.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Farewell {
    /// It ends its work.
    Leaving,
    /// Consent or membership was taken back.
    Revoked,
    /// A code of a later version.
    Other(u16),
}

/// A piece of an encoded message.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Part {
    pub message: u32,
    /// Which piece, from 0.
    pub n: u8,
    /// How many pieces.
    pub of: u8,
    pub bytes: Vec<u8>,
}

impl Control {
    /// Writes the message as one IPv6 packet; None when it is too long for one.
    pub fn packet(&self) -> Option<Vec<u8>> {
        let payload = self.encode()?;
        let limit = 4 + 6 + MAX_PART;
        (payload.len() <= limit).then(|| packet(&payload))
    }

    /// Writes the message as one IPv6 packet of `size` bytes, filled up with zeros after the message; None
    /// when it is longer.
    pub fn padded(&self, size: usize) -> Option<Vec<u8>> {
        let mut payload = self.encode()?;
        let length = size.checked_sub(IPV6)?;
        if payload.len() > length {
            return None;
        }
        payload.resize(length, 0);
        // The length of the body covers the padding.
        let body = u16::try_from(length - 4).ok()?;
        payload
            .get_mut(2..)?
            .first_chunk_mut()
            .map(|field| *field = body.to_be_bytes())?;
        Some(packet(&payload))
    }

    /// Writes the message as the IPv6 packets it takes: one, or Parts numbered `message`.
    pub fn packets(&self, message: u32) -> Vec<Vec<u8>> {
        if let Some(packet) = self.packet() {
            return vec![packet];
        }
        let encoded = self.encode().unwrap_or_default();
        let of = u8::try_from(encoded.len().div_ceil(MAX_PART)).unwrap_or(0);
        let parts = encoded.chunks(MAX_PART).zip(0..of).map(|(bytes, n)| {
            let bytes = bytes.to_vec();
            Self::Part(Part {
                message,
                n,
                of,
                bytes,
            })
        });
        parts.filter_map(|part| part.packet()).collect()
    }

    /// Writes the message without IPv6 header; None when its body is longer than a length field says.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let mut body = Vec::new();
        let kind: u16 = match self {
            Self::Part(part) => {
                body.extend(part.message.to_be_bytes());
                body.extend([part.n, part.of]);
                body.extend(&part.bytes);
                1
            }
            Self::Attach { record } => {
                body.extend(record.as_bytes());
                2
            }
            Self::Attached(attached) => {
                attached.encode(&mut body);
                3
            }
            Self::AttachRefused { code, text } => {
                body.extend(code.code().to_be_bytes());
                body.extend(cut(text).bytes());
                4
            }
            Self::Goodbye { reason } => {
                body.extend(reason.code().to_be_bytes());
                5
            }
            Self::Probe { id, path } => {
                body.extend(id.to_be_bytes());
                body.extend(path.to_be_bytes());
                6
            }
            Self::ProbeReply(reply) => {
                reply.encode(&mut body);
                7
            }
            Self::Candidates(candidates) => {
                candidates.encode(&mut body);
                8
            }
            Self::Have(have) => {
                have.encode(&mut body);
                9
            }
            Self::Statement { text } => {
                body.extend(text.as_bytes());
                10
            }
            Self::Channel(message) => {
                message.encode(&mut body);
                message.kind()
            }
            Self::Mesh(message) => {
                message.encode(&mut body);
                message.kind()
            }
        };
        let length = u16::try_from(body.len()).ok()?;
        let mut out = Vec::with_capacity(4 + body.len());
        out.extend(kind.to_be_bytes());
        out.extend(length.to_be_bytes());
        out.extend(body);
        Some(out)
    }

    /// Parses a control packet; None for other packets, unknown types and wrong lengths.
    pub fn parse(packet: &[u8]) -> Option<Self> {
        if !is_control(packet) {
            return None;
        }
        Self::decode(packet.get(IPV6..)?)
    }

    /// Parses a message without IPv6 header; None for unknown types and wrong lengths.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first_chunk()?;
        let (length, rest) = rest.split_first_chunk()?;
        let body = rest.get(..usize::from(u16::from_be_bytes(*length)))?;
        match u16::from_be_bytes(*kind) {
            1 => Part::decode(body).map(Self::Part),
            2 if body.len() <= MAX_STATEMENT => Some(Self::Attach {
                record: String::from_utf8(body.to_vec()).ok()?,
            }),
            3 => Attached::decode(body).map(Self::Attached),
            4 => {
                let (code, text) = body.split_first_chunk()?;
                // Cut once more, since what stands for bytes that are no text is longer than they are.
                let text = text.get(..MAX_TEXT).unwrap_or(text);
                Some(Self::AttachRefused {
                    code: Refusal::from_code(u16::from_be_bytes(*code)),
                    text: cut(&String::from_utf8_lossy(text)).to_owned(),
                })
            }
            5 => Some(Self::Goodbye {
                reason: Farewell::from_code(u16::from_be_bytes(*body.first_chunk()?)),
            }),
            6 => {
                let (id, rest) = body.split_first_chunk()?;
                Some(Self::Probe {
                    id: u64::from_be_bytes(*id),
                    path: u16::from_be_bytes(*rest.first_chunk()?),
                })
            }
            7 => ProbeReply::decode(body).map(Self::ProbeReply),
            8 => Candidates::decode(body).map(Self::Candidates),
            9 => Have::decode(body).map(Self::Have),
            10 if body.len() <= MAX_STATEMENT => Some(Self::Statement {
                text: String::from_utf8(body.to_vec()).ok()?,
            }),
            kind @ 20.. => mesh::Message::decode(kind, body).map(Self::Mesh),
            kind => channel::Message::decode(kind, body).map(Self::Channel),
        }
    }
}

/// Tells whether an IP packet from a session is a control packet, well formed or not.
pub fn is_control(packet: &[u8]) -> bool {
    let Some(header) = packet.first_chunk::<IPV6>() else {
        return false;
    };
    let (front, addresses) = header.split_at(8);
    let (from, to) = addresses.split_at(16);
    matches!(front, [v, _, _, _, _, _, NEXT_HEADER, _] if v >> 4 == 6)
        && from == FROM.octets()
        && to == TO.octets()
}

/// Tells whether an IP packet may never pass between session and TUN: it has a link-local address or
/// a next header that control messages use, or is no IP packet at all.
pub fn is_reserved(packet: &[u8]) -> bool {
    match packet.first().map(|v| v >> 4) {
        Some(4) => {
            let Some(header) = packet.first_chunk::<20>() else {
                return true;
            };
            let [
                _,
                _,
                _,
                _,
                _,
                _,
                _,
                _,
                _,
                protocol,
                _,
                _,
                from @ ..,
                _,
                _,
                _,
                _,
            ] = header;
            let local = |a: &[u8]| a.starts_with(&[169, 254]);
            let to = packet.get(16..20).unwrap_or_default();
            is_reserved_protocol(*protocol) || local(from) || local(to)
        }
        Some(6) => {
            let Some(header) = packet.first_chunk::<IPV6>() else {
                return true;
            };
            let (front, addresses) = header.split_at(8);
            let (from, to) = addresses.split_at(16);
            let local = |a: &[u8]| matches!(a, [0xfe, second, ..] if second & 0xc0 == 0x80);
            front.get(6).copied().is_none_or(is_reserved_protocol) || local(from) || local(to)
        }
        _ => true,
    }
}

const fn is_reserved_protocol(protocol: u8) -> bool {
    matches!(protocol, NEXT_HEADER | NEXT_HEADER_SPARE)
}

fn packet(payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap_or(u16::MAX);
    let mut packet = Vec::with_capacity(IPV6 + payload.len());
    packet.extend([0x60, 0, 0, 0]);
    packet.extend(length.to_be_bytes());
    packet.extend([NEXT_HEADER, 255]);
    packet.extend(FROM.octets());
    packet.extend(TO.octets());
    packet.extend(payload);
    packet
}

/// Returns as much of a refusal's text as is sent, in whole characters.
fn cut(text: &str) -> &str {
    text.get(..text.floor_char_boundary(MAX_TEXT))
        .unwrap_or_default()
}

impl Part {
    fn decode(body: &[u8]) -> Option<Self> {
        let (message, rest) = body.split_first_chunk()?;
        let ([n, of], bytes) = rest.split_first_chunk()?;
        let fits = n < of && (1..=MAX_PART).contains(&bytes.len());
        fits.then(|| Self {
            message: u32::from_be_bytes(*message),
            n: *n,
            of: *of,
            bytes: bytes.to_vec(),
        })
    }
}

impl ProbeReply {
    fn encode(&self, body: &mut Vec<u8>) {
        let nowhere = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0);
        body.extend(self.id.to_be_bytes());
        put_endpoint(self.observed.unwrap_or(nowhere), body);
        body.extend(self.received.to_be_bytes());
    }

    fn decode(body: &[u8]) -> Option<Self> {
        let (id, rest) = body.split_first_chunk()?;
        let (observed, rest) = take_endpoint(rest)?;
        Some(Self {
            id: u64::from_be_bytes(*id),
            observed: (observed.port() != 0).then_some(observed),
            received: u32::from_be_bytes(*rest.first_chunk()?),
        })
    }
}

impl Attached {
    fn encode(&self, body: &mut Vec<u8>) {
        body.extend(self.lease.to_be_bytes());
        put_endpoint(self.observed, body);
        body.extend(self.up.to_be_bytes());
        body.extend(self.down.to_be_bytes());
        body.extend(self.secret);
        body.extend(self.mtu.to_be_bytes());
        body.extend(self.reset_token);
        body.extend(self.stun_port.to_be_bytes());
    }

    fn decode(body: &[u8]) -> Option<Self> {
        let (lease, rest) = body.split_first_chunk()?;
        let (observed, rest) = take_endpoint(rest)?;
        let (up, rest) = rest.split_first_chunk()?;
        let (down, rest) = rest.split_first_chunk()?;
        let (secret, rest) = rest.split_first_chunk()?;
        let (mtu, rest) = rest.split_first_chunk()?;
        let (reset_token, rest) = rest.split_first_chunk()?;
        Some(Self {
            lease: u32::from_be_bytes(*lease),
            observed,
            up: u32::from_be_bytes(*up),
            down: u32::from_be_bytes(*down),
            secret: *secret,
            mtu: u16::from_be_bytes(*mtu),
            reset_token: *reset_token,
            // Absent is none: the field is younger than the message.
            stun_port: u16::from_be_bytes(rest.first_chunk().copied().unwrap_or_default()),
        })
    }
}

impl Refusal {
    const fn code(self) -> u16 {
        match self {
            Self::BadRecord => 1,
            Self::Full => 2,
            Self::NotServed => 3,
            Self::Outdated => 4,
            Self::WrongKey => 5,
            Self::Other(code) => code,
        }
    }

    const fn from_code(code: u16) -> Self {
        match code {
            1 => Self::BadRecord,
            2 => Self::Full,
            3 => Self::NotServed,
            4 => Self::Outdated,
            5 => Self::WrongKey,
            other => Self::Other(other),
        }
    }
}

impl Farewell {
    const fn code(self) -> u16 {
        match self {
            Self::Leaving => 1,
            Self::Revoked => 2,
            Self::Other(code) => code,
        }
    }

    const fn from_code(code: u16) -> Self {
        match code {
            1 => Self::Leaving,
            2 => Self::Revoked,
            other => Self::Other(other),
        }
    }
}

#[cfg(test)]
mod tests;

//! STUN Binding (RFC 8489): asking where one's datagrams come from, and telling.
//!
//! Only what this needs: no credentials and no TCP. A few lines of our own rather than a crate, since
//! nothing is allocated by what a stranger claims, and answers stay within the bounds of protocol.md
//! section 4.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// RFC 8489 section 5.
const COOKIE: u32 = 0x2112_a442;
const HEADER: usize = 20; // bytes

/// Fixed by RFC 8489 section 14.7 to tell STUN from what shares its port.
const FINGERPRINT_XOR: u32 = 0x5354_554e;

/// Longest message looked at: more than a Binding ever takes on an underlay without fragments.
const MAX_MESSAGE: usize = 1280; // bytes

/// Attributes below this must be understood (RFC 8489 section 14).
const OPTIONAL: u16 = 0x8000;

/// Unknown attributes named in a refusal; more are not worth a longer answer.
const MAX_UNKNOWN: usize = 4;

const REQUEST: u16 = 0x0001;
const SUCCESS: u16 = 0x0101;
const ERROR: u16 = 0x0111;

const MAPPED_ADDRESS: u16 = 0x0001;
const USERNAME: u16 = 0x0006;
const MESSAGE_INTEGRITY: u16 = 0x0008;
const ERROR_CODE: u16 = 0x0009;
const UNKNOWN_ATTRIBUTES: u16 = 0x000a;
const REALM: u16 = 0x0014;
const NONCE: u16 = 0x0015;
const MESSAGE_INTEGRITY_SHA256: u16 = 0x001c;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
const FINGERPRINT: u16 = 0x8028;

/// Tells an answer from one to another request.
pub type Transaction = [u8; 12];

/// A Binding message.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Message {
    /// The server does not answer this request; we do not look why.
    Refused(Transaction),
    Request(Request),
    Success {
        transaction: Transaction,
        /// Where the request came from, as the server saw it.
        mapped: SocketAddr,
    },
}

/// A request to be told one's endpoint.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Request {
    transaction: Transaction,
    /// Whether it carries a fingerprint; the answer then has one.
    has_fingerprint: bool,
    /// Attributes that had to be understood and were not.
    unknown: Vec<u16>,
}

impl Request {
    /// Returns the answer to one that came from `from`.
    ///
    /// At most 2.2 times as long as any request, and 1.9 times one of ours.
    pub fn answer(&self, from: SocketAddr) -> Vec<u8> {
        let mut writer;
        if self.unknown.is_empty() {
            writer = Writer::new(SUCCESS, &self.transaction);
            writer.attribute(XOR_MAPPED_ADDRESS, &xored(from, &self.transaction));
        } else {
            // RFC 8489 section 6.3.1: 420, and which.
            writer = Writer::new(ERROR, &self.transaction);
            writer.attribute(ERROR_CODE, &[0, 0, 4, 20]);
            let unknown = self.unknown.iter().flat_map(|kind| kind.to_be_bytes());
            writer.attribute(UNKNOWN_ATTRIBUTES, &unknown.collect::<Vec<_>>());
        }
        writer.finish(self.has_fingerprint)
    }
}

/// Makes a request.
pub fn request(transaction: &Transaction) -> Vec<u8> {
    Writer::new(REQUEST, transaction).finish(true)
}

/// Reads a Binding message; None for anything else, or with a fingerprint that is wrong.
pub fn parse(bytes: &[u8]) -> Option<Message> {
    let (header, body) = bytes.split_at_checked(HEADER)?;
    let (kind, length) = (word(header, 0)?, word(header, 2)?);
    let cookie = u32::from_be_bytes(*header.get(4..)?.first_chunk()?);
    let is_whole = usize::from(length) == body.len() && length % 4 == 0;
    if cookie != COOKIE || !is_whole || bytes.len() > MAX_MESSAGE {
        return None;
    }
    let transaction = *header.get(8..)?.first_chunk()?;
    let found = Found::read(bytes, &transaction)?;
    match kind {
        REQUEST => Some(Message::Request(Request {
            transaction,
            has_fingerprint: found.has_fingerprint,
            unknown: found.unknown,
        })),
        SUCCESS => Some(Message::Success {
            transaction,
            mapped: found.mapped.filter(|_| found.unknown.is_empty())?,
        }),
        ERROR => Some(Message::Refused(transaction)),
        _ => None,
    }
}

/// What the attributes of a message say.
#[derive(Default)]
struct Found {
    mapped: Option<SocketAddr>,
    has_fingerprint: bool,
    unknown: Vec<u16>,
}

impl Found {
    fn read(message: &[u8], transaction: &Transaction) -> Option<Self> {
        let (mut found, mut at, mut is_signed) = (Self::default(), HEADER, false);
        while at < message.len() {
            let (kind, length) = (word(message, at)?, usize::from(word(message, at + 2)?));
            let value = message.get(at + 4..at + 4 + length)?;
            if kind == FINGERPRINT {
                let is_last = at + 8 == message.len();
                let claimed = u32::from_be_bytes(value.try_into().ok()?);
                let right = crc32(message.get(..at)?) ^ FINGERPRINT_XOR;
                found.has_fingerprint = is_last && claimed == right;
                return found.has_fingerprint.then_some(found);
            }
            // What follows the integrity is not covered by it (RFC 8489 section 14.5).
            if !is_signed {
                found.take(kind, value, transaction)?;
            }
            is_signed |= kind == MESSAGE_INTEGRITY || kind == MESSAGE_INTEGRITY_SHA256;
            at += 4 + length.next_multiple_of(4);
        }
        (at == message.len()).then_some(found)
    }

    fn take(&mut self, kind: u16, value: &[u8], transaction: &Transaction) -> Option<()> {
        match kind {
            XOR_MAPPED_ADDRESS => {
                let mapped = unxored(value, transaction)?;
                self.mapped.get_or_insert(mapped);
            }
            // Of RFC 3489, and credentials that nobody here asks for.
            MAPPED_ADDRESS
            | USERNAME
            | MESSAGE_INTEGRITY
            | MESSAGE_INTEGRITY_SHA256
            | REALM
            | NONCE
            | ERROR_CODE
            | UNKNOWN_ATTRIBUTES => {}
            _ if kind >= OPTIONAL || self.unknown.len() >= MAX_UNKNOWN => {}
            _ => self.unknown.push(kind),
        }
        Some(())
    }
}

struct Writer(Vec<u8>);

impl Writer {
    fn new(kind: u16, transaction: &Transaction) -> Self {
        let mut bytes = kind.to_be_bytes().to_vec();
        bytes.extend([0, 0]);
        bytes.extend(COOKIE.to_be_bytes());
        bytes.extend(transaction);
        Self(bytes)
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.0.extend(kind.to_be_bytes());
        self.0
            .extend(u16::try_from(value.len()).unwrap_or(0).to_be_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn finish(mut self, with_fingerprint: bool) -> Vec<u8> {
        let ahead = if with_fingerprint { 8 } else { 0 };
        let length = u16::try_from(self.0.len() + ahead - HEADER).unwrap_or(0);
        if let Some(place) = self.0.get_mut(2..4) {
            place.copy_from_slice(&length.to_be_bytes());
        }
        if with_fingerprint {
            let sum = crc32(&self.0) ^ FINGERPRINT_XOR;
            self.attribute(FINGERPRINT, &sum.to_be_bytes());
        }
        self.0
    }
}

/// Writes an endpoint so that no NAT between changes it (RFC 8489 section 14.2).
fn xored(endpoint: SocketAddr, transaction: &Transaction) -> Vec<u8> {
    let ip = endpoint.ip().to_canonical();
    let mut bytes = vec![0, if ip.is_ipv4() { 1 } else { 2 }];
    bytes.extend((endpoint.port() ^ (COOKIE >> 16) as u16).to_be_bytes());
    let address = match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    bytes.extend(address.iter().zip(mask(transaction)).map(|(a, b)| a ^ b));
    bytes
}

fn unxored(value: &[u8], transaction: &Transaction) -> Option<SocketAddr> {
    let (family, port) = (*value.get(1)?, word(value, 2)?);
    let address = value.get(4..)?;
    let bytes = address.iter().zip(mask(transaction)).map(|(a, b)| a ^ b);
    let bytes = bytes.collect::<Vec<_>>();
    let ip = match (family, address.len()) {
        (1, 4) => IpAddr::from(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        (2, 16) => IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port ^ (COOKIE >> 16) as u16))
}

fn mask(transaction: &Transaction) -> impl Iterator<Item = u8> {
    COOKIE.to_be_bytes().into_iter().chain(*transaction)
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    let word = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_be_bytes(*word))
}

/// CRC-32 of ITU V.42; messages are short and rare, so there is no table.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
    let byte = |crc, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), step);
    !bytes.iter().fold(u32::MAX, byte)
}

#[cfg(test)]
mod tests;

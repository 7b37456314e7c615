//! STUN Binding (RFC 8489): asking where one's datagrams come from, and telling.
//!
//! With what finds out how a NAT behaves (RFC 5780), and the requests of before there was a cookie
//! (RFC 3489), which some clients still send. Only what this needs: no credentials and no TCP. A few
//! lines of our own rather than a crate, since nothing is allocated by what a stranger claims, and
//! answers stay within the bounds of protocol.md section 4.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// RFC 8489 section 5.
const COOKIE: u32 = 0x2112_a442;
const HEADER: usize = 20; // bytes

/// Fixed by RFC 8489 section 14.7 to tell STUN from what shares its port.
const FINGERPRINT_XOR: u32 = 0x5354_554e;

/// Longest message looked at: what a UDP datagram of one IPv4 packet on Ethernet holds, so that one may
/// find out whether that arrives.
const MAX_MESSAGE: usize = 1472; // bytes

/// Attributes below this must be understood (RFC 8489 section 14).
const OPTIONAL: u16 = 0x8000;

/// Unknown attributes named in a refusal; more are not worth a longer answer.
const MAX_UNKNOWN: usize = 4;

const REQUEST: u16 = 0x0001;
const SUCCESS: u16 = 0x0101;
const ERROR: u16 = 0x0111;

const MAPPED_ADDRESS: u16 = 0x0001;
const CHANGE_REQUEST: u16 = 0x0003;
const SOURCE_ADDRESS: u16 = 0x0004;
const CHANGED_ADDRESS: u16 = 0x0005;
const USERNAME: u16 = 0x0006;
const MESSAGE_INTEGRITY: u16 = 0x0008;
const ERROR_CODE: u16 = 0x0009;
const UNKNOWN_ATTRIBUTES: u16 = 0x000a;
const REALM: u16 = 0x0014;
const NONCE: u16 = 0x0015;
const MESSAGE_INTEGRITY_SHA256: u16 = 0x001c;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
const PADDING: u16 = 0x0026;
const SOFTWARE: u16 = 0x8022;
const FINGERPRINT: u16 = 0x8028;
const RESPONSE_ORIGIN: u16 = 0x802b;
const OTHER_ADDRESS: u16 = 0x802c;

/// What a request that asks for more than an endpoint says of itself, so that the answer may be longer.
const NAME: &[u8] = b"agentnet STUN probe";

/// Tells an answer from one to another request.
pub type Transaction = [u8; 12];

/// One of a server's endpoints, as seen from another of them (RFC 5780 section 7.2).
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub struct Change {
    pub address: bool,
    pub port: bool,
}

impl Change {
    pub const BOTH: Self = Self {
        address: true,
        port: true,
    };
    pub const NONE: Self = Self {
        address: false,
        port: false,
    };
    pub const PORT: Self = Self {
        address: false,
        port: true,
    };

    /// Returns where one comes to who goes on from here by `more`.
    #[must_use]
    pub const fn then(self, more: Self) -> Self {
        Self {
            address: self.address != more.address,
            port: self.port != more.port,
        }
    }
}

/// What a server tells of itself beside the endpoint it sees.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Origin {
    /// Where the answer comes from; None where it is not known or not told.
    pub own: Option<SocketAddr>,
    /// The server's endpoint that has both another address and another port; None when it has none.
    pub other: Option<SocketAddr>,
}

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
        origin: Origin,
    },
}

/// A request to be told one's endpoint.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Request {
    id: Id,
    /// In bytes, with header.
    length: usize,
    /// Where the answer is to come from, as seen from where the request arrived.
    change: Change,
    /// Whether it carries a fingerprint; the answer then has one.
    has_fingerprint: bool,
    /// Attributes that had to be understood and were not.
    unknown: Vec<u16>,
}

impl Request {
    /// Returns where the answer is to come from, as seen from where the request arrived.
    pub const fn change(&self) -> Change {
        self.change
    }

    /// Returns the answer to one that came from `from`; of `origin` it tells what there is room for.
    ///
    /// At most 2.2 times as long as the request.
    pub fn answer(&self, from: SocketAddr, origin: Origin) -> Vec<u8> {
        if !self.unknown.is_empty() {
            return self.refuse(&self.unknown);
        }
        let mut writer = Writer::new(SUCCESS, &self.id);
        let kinds = if self.is_classic() {
            writer.attribute(MAPPED_ADDRESS, &plain(from));
            [CHANGED_ADDRESS, SOURCE_ADDRESS]
        } else {
            writer.attribute(XOR_MAPPED_ADDRESS, &xored(from, &self.id));
            [OTHER_ADDRESS, RESPONSE_ORIGIN]
        };
        let end = if self.has_fingerprint { 8 } else { 0 };
        for (kind, endpoint) in kinds.into_iter().zip([origin.other, origin.own]) {
            let Some(value) = endpoint.map(plain) else {
                continue;
            };
            if (writer.0.len() + 4 + value.len() + end) * 10 <= self.length * 22 {
                writer.attribute(kind, &value);
            }
        }
        writer.finish(self.has_fingerprint)
    }

    /// Returns the answer to one that asks for an answer from where the server is not.
    pub fn refuse_change(&self) -> Vec<u8> {
        self.refuse(&[CHANGE_REQUEST])
    }

    /// RFC 8489 section 6.3.1: 420, and which.
    fn refuse(&self, unknown: &[u16]) -> Vec<u8> {
        let mut writer = Writer::new(ERROR, &self.id);
        writer.attribute(ERROR_CODE, &[0, 0, 4, 20]);
        let unknown = unknown.iter().flat_map(|kind| kind.to_be_bytes());
        writer.attribute(UNKNOWN_ATTRIBUTES, &unknown.collect::<Vec<_>>());
        writer.finish(self.has_fingerprint)
    }

    /// Tells whether it is of RFC 3489, whose clients read no other attributes than those of then.
    fn is_classic(&self) -> bool {
        !self.id.starts_with(&COOKIE.to_be_bytes())
    }
}

/// Makes a request.
pub fn request(transaction: &Transaction) -> Vec<u8> {
    Writer::new(REQUEST, &id(transaction)).finish(true)
}

/// Makes a request that has room for all that a server of RFC 5780 tells, to be answered as `change`
/// says; a server that has no other endpoint, or does not know of them, refuses other than
/// [`Change::NONE`].
pub fn request_from(transaction: &Transaction, change: Change) -> Vec<u8> {
    let mut writer = Writer::new(REQUEST, &id(transaction));
    if change != Change::NONE {
        let flags = u8::from(change.address) << 2 | u8::from(change.port) << 1;
        writer.attribute(CHANGE_REQUEST, &[0, 0, 0, flags]);
    }
    writer.attribute(SOFTWARE, NAME);
    writer.finish(true)
}

/// Makes a request of `length` bytes, as far as that goes, to see whether it arrives: any answer tells.
///
/// A server that does not pad its own answer refuses it, so answers are short (RFC 5780 section 7.6).
pub fn request_of(transaction: &Transaction, length: usize) -> Vec<u8> {
    let mut writer = Writer::new(REQUEST, &id(transaction));
    let around = HEADER + 4 + 8;
    let padding = length.min(MAX_MESSAGE).saturating_sub(around) / 4 * 4;
    writer.attribute(PADDING, &vec![0; padding]);
    writer.finish(true)
}

/// Reads a Binding message; None for anything else, or with a fingerprint that is wrong.
///
/// Answers without the cookie are none: nobody here asks by RFC 3489.
pub fn parse(bytes: &[u8]) -> Option<Message> {
    let (header, body) = bytes.split_at_checked(HEADER)?;
    let (kind, length) = (word(header, 0)?, word(header, 2)?);
    let id: Id = *header.get(4..)?.first_chunk()?;
    let has_cookie = id.starts_with(&COOKIE.to_be_bytes());
    let is_whole = usize::from(length) == body.len() && length % 4 == 0;
    if !(has_cookie || kind == REQUEST) || !is_whole || bytes.len() > MAX_MESSAGE {
        return None;
    }
    let transaction = *id.last_chunk()?;
    let found = Found::read(bytes, &id)?;
    match kind {
        REQUEST => Some(Message::Request(Request {
            id,
            length: bytes.len(),
            change: found.change,
            has_fingerprint: found.has_fingerprint,
            unknown: found.unknown,
        })),
        SUCCESS => Some(Message::Success {
            transaction,
            mapped: found.mapped.filter(|_| found.unknown.is_empty())?,
            origin: found.origin,
        }),
        ERROR => Some(Message::Refused(transaction)),
        _ => None,
    }
}

/// Cookie and transaction, or the longer transaction of RFC 3489.
type Id = [u8; 16];

fn id(transaction: &Transaction) -> Id {
    let mut id = Id::default();
    let (cookie, rest) = id.split_at_mut(4);
    cookie.copy_from_slice(&COOKIE.to_be_bytes());
    rest.copy_from_slice(transaction);
    id
}

/// What the attributes of a message say.
#[derive(Default)]
struct Found {
    mapped: Option<SocketAddr>,
    origin: Origin,
    change: Change,
    has_fingerprint: bool,
    unknown: Vec<u16>,
}

impl Found {
    fn read(message: &[u8], id: &Id) -> Option<Self> {
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
                found.take(kind, value, id)?;
            }
            is_signed |= kind == MESSAGE_INTEGRITY || kind == MESSAGE_INTEGRITY_SHA256;
            at += 4 + length.next_multiple_of(4);
        }
        (at == message.len()).then_some(found)
    }

    fn take(&mut self, kind: u16, value: &[u8], id: &Id) -> Option<()> {
        match kind {
            XOR_MAPPED_ADDRESS => {
                let mapped = unxored(value, id)?;
                self.mapped.get_or_insert(mapped);
            }
            CHANGE_REQUEST => {
                let [.., flags] = <[u8; 4]>::try_from(value).ok()?;
                self.change = Change {
                    address: flags & 4 != 0,
                    port: flags & 2 != 0,
                };
            }
            RESPONSE_ORIGIN => self.origin.own = Some(unplain(value)?),
            OTHER_ADDRESS => self.origin.other = Some(unplain(value)?),
            // Of RFC 3489, and credentials that nobody here asks for.
            MAPPED_ADDRESS
            | SOURCE_ADDRESS
            | CHANGED_ADDRESS
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
    fn new(kind: u16, id: &Id) -> Self {
        let mut bytes = kind.to_be_bytes().to_vec();
        bytes.extend([0, 0]);
        bytes.extend(id);
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

/// Writes an endpoint (RFC 8489 section 14.1).
fn plain(endpoint: SocketAddr) -> Vec<u8> {
    let ip = endpoint.ip().to_canonical();
    let mut bytes = vec![0, if ip.is_ipv4() { 1 } else { 2 }];
    bytes.extend(endpoint.port().to_be_bytes());
    match ip {
        IpAddr::V4(ip) => bytes.extend(ip.octets()),
        IpAddr::V6(ip) => bytes.extend(ip.octets()),
    }
    bytes
}

fn unplain(value: &[u8]) -> Option<SocketAddr> {
    let (family, port) = (*value.get(1)?, word(value, 2)?);
    let address = value.get(4..)?;
    let ip = match (family, address.len()) {
        (1, 4) => IpAddr::from(Ipv4Addr::from(<[u8; 4]>::try_from(address).ok()?)),
        (2, 16) => IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(address).ok()?)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// Writes an endpoint so that no NAT between changes it (RFC 8489 section 14.2).
fn xored(endpoint: SocketAddr, id: &Id) -> Vec<u8> {
    masked(&plain(endpoint), id)
}

fn unxored(value: &[u8], id: &Id) -> Option<SocketAddr> {
    unplain(&masked(value, id))
}

/// Masks port and address, which is its own inverse.
fn masked(value: &[u8], id: &Id) -> Vec<u8> {
    // The port's mask is the cookie's first half, and the address' begins with the cookie anew.
    let mask = [0, 0].iter().chain(&id[..2]).chain(id);
    value.iter().zip(mask).map(|(a, b)| a ^ b).collect()
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

//! Captures as files that tcpdump and Wireshark read: pcapng, as far as one who writes packets needs it
//! (draft-ietf-opsawg-pcapng). Little-endian, times in nanoseconds.

/// Section Header, Interface Description and Enhanced Packet Block.
const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const PACKET: u32 = 6;

const MAGIC: u32 = 0x1a2b_3c4d;

/// Packets begin with their IP header (LINKTYPE_RAW).
const RAW: u16 = 101;

/// The largest that tcpdump reads.
const SNAPLEN: u32 = 262_144; // bytes

// Options, of the block that they stand in.
const COMMENT: u16 = 1;
const NAME: u16 = 2;
const FLAGS: u16 = 2;
const APPLICATION: u16 = 4;
const LOST: u16 = 4;
const RESOLUTION: u16 = 9;

/// Nanoseconds: ten to the power of minus nine.
const NANOSECONDS: u8 = 9;

const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

/// Above any block that is written here; bounds what a reader holds.
const MAX_BLOCK: usize = 1 << 20; // bytes

/// A packet of a capture.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Packet {
    /// What it was seen at.
    pub interface: String,
    /// Unix time.
    pub nanos: u64,
    pub is_inbound: bool,
    /// None when there is nothing to remark.
    pub comment: Option<String>,
    /// Packets lost since the one before.
    pub lost: u64,
    pub bytes: Vec<u8>,
}

/// Writes a capture.
#[derive(Clone, Debug, Default)]
pub struct Writer {
    has_begun: bool,
    interfaces: Vec<String>,
}

impl Writer {
    /// Adds what a capture begins with; once, before all packets.
    pub fn begin(&mut self, out: &mut Vec<u8>) {
        if std::mem::replace(&mut self.has_begun, true) {
            return;
        }
        block(out, SECTION, |body| {
            body.extend(MAGIC.to_le_bytes());
            body.extend(1_u16.to_le_bytes());
            body.extend(0_u16.to_le_bytes());
            // How long the section is, nobody knows yet.
            body.extend((-1_i64).to_le_bytes());
            let name = concat!("agentnet ", env!("CARGO_PKG_VERSION"));
            option(body, APPLICATION, name.as_bytes());
            end_options(body);
        });
    }

    /// Adds a packet, and its interface if it is the first there.
    pub fn packet(&mut self, packet: &Packet, out: &mut Vec<u8>) {
        self.begin(out);
        let mut known = self.interfaces.iter();
        let known = known.position(|name| *name == packet.interface);
        let interface = known.unwrap_or_else(|| {
            self.interfaces.push(packet.interface.clone());
            interface(&packet.interface, out);
            self.interfaces.len() - 1
        });
        let bytes = packet
            .bytes
            .get(..SNAPLEN as usize)
            .unwrap_or(&packet.bytes);
        block(out, PACKET, |body| {
            body.extend(number(interface).to_le_bytes());
            let [high, low] = [packet.nanos >> 32, packet.nanos & 0xffff_ffff];
            body.extend((high as u32).to_le_bytes());
            body.extend((low as u32).to_le_bytes());
            body.extend(number(bytes.len()).to_le_bytes());
            body.extend(number(packet.bytes.len()).to_le_bytes());
            body.extend(bytes);
            pad(body);
            let way = if packet.is_inbound { INBOUND } else { OUTBOUND };
            option(body, FLAGS, &way.to_le_bytes());
            if packet.lost > 0 {
                option(body, LOST, &packet.lost.to_le_bytes());
            }
            if let Some(comment) = &packet.comment {
                option(body, COMMENT, comment.as_bytes());
            }
            end_options(body);
        });
    }
}

fn interface(name: &str, out: &mut Vec<u8>) {
    block(out, INTERFACE, |body| {
        body.extend(RAW.to_le_bytes());
        body.extend(0_u16.to_le_bytes());
        body.extend(SNAPLEN.to_le_bytes());
        option(body, NAME, name.as_bytes());
        option(body, RESOLUTION, &[NANOSECONDS]);
        end_options(body);
    });
}

fn block(out: &mut Vec<u8>, kind: u32, write: impl FnOnce(&mut Vec<u8>)) {
    let mut body = Vec::new();
    write(&mut body);
    let length = number(body.len() + 12).to_le_bytes();
    out.extend(kind.to_le_bytes());
    out.extend(length);
    out.extend(body);
    out.extend(length);
}

fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = value.get(..usize::from(u16::MAX)).unwrap_or(value);
    body.extend(code.to_le_bytes());
    body.extend((value.len() as u16).to_le_bytes());
    body.extend(value);
    pad(body);
}

fn end_options(body: &mut Vec<u8>) {
    body.extend([0; 4]);
}

/// Fills up to 32 bits.
fn pad(body: &mut Vec<u8>) {
    body.resize(body.len().next_multiple_of(4), 0);
}

fn number(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// Reads a capture as it comes; of a section that [`Writer`] wrote.
#[derive(Clone, Debug, Default)]
pub struct Reader {
    waiting: Vec<u8>,
    interfaces: Vec<String>,
}

/// What came is no capture.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("no capture of agentnet's")]
pub struct Malformed;

impl Reader {
    /// Takes more bytes; returns the packets that are whole.
    pub fn take(&mut self, bytes: &[u8]) -> Result<Vec<Packet>, Malformed> {
        self.waiting.extend(bytes);
        let mut found = Vec::new();
        let mut at = 0;
        while let Some(head) = self.waiting.get(at..at + 8) {
            let length = word(head, 4).ok_or(Malformed)? as usize;
            if !(12..=MAX_BLOCK).contains(&length) || !length.is_multiple_of(4) {
                return Err(Malformed);
            }
            let kind = word(head, 0).ok_or(Malformed)?;
            let Some(whole) = self.waiting.get(at..at + length) else {
                break;
            };
            let body = whole.get(8..length - 4).ok_or(Malformed)?;
            match kind {
                INTERFACE => {
                    let options = options(body.get(8..).ok_or(Malformed)?);
                    let name = options.into_iter().find(|(code, _)| *code == NAME);
                    let name = name.map(|(_, name)| text(name));
                    self.interfaces.push(name.unwrap_or_default());
                }
                PACKET => found.push(self.packet(body).ok_or(Malformed)?),
                _ => {}
            }
            at += length;
        }
        self.waiting.drain(..at);
        Ok(found)
    }

    fn packet(&self, body: &[u8]) -> Option<Packet> {
        let length = word(body, 12)? as usize;
        let interface = self.interfaces.get(word(body, 0)? as usize)?;
        let mut packet = Packet {
            interface: interface.clone(),
            nanos: (u64::from(word(body, 4)?) << 32) | u64::from(word(body, 8)?),
            bytes: body.get(20..)?.get(..length)?.to_vec(),
            ..Packet::default()
        };
        let rest = body.get(20 + length.checked_next_multiple_of(4)?..)?;
        for (code, value) in options(rest) {
            match code {
                COMMENT => packet.comment = Some(text(value)),
                FLAGS => packet.is_inbound = word(value, 0)? & 3 == INBOUND,
                LOST => packet.lost = u64::from_le_bytes(value.try_into().ok()?),
                _ => {}
            }
        }
        Some(packet)
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*word))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Returns the options up to their end, or to one that is cut short.
fn options(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut found = Vec::new();
    while let Some((head, rest)) = bytes.split_first_chunk::<4>() {
        let [a, b, c, d] = *head;
        let (code, length) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
        let length = usize::from(length);
        let (Some(value), true) = (rest.get(..length), code != 0) else {
            break;
        };
        found.push((code, value));
        bytes = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packet(interface: &str, n: u8) -> Packet {
        Packet {
            interface: interface.to_owned(),
            nanos: 1_700_000_000_123_456_789 + u64::from(n),
            is_inbound: n.is_multiple_of(2),
            comment: (n == 3).then(|| "dropped: filter_scope".to_owned()),
            lost: u64::from(n / 2),
            bytes: vec![0x60 | n; 40 + usize::from(n)],
        }
    }

    #[test]
    fn what_is_written_is_read_however_it_is_cut() {
        let packets = [
            packet("a.acme.agent", 1),
            packet("b.acme.agent", 2),
            packet("a.acme.agent", 3),
        ];
        let (mut writer, mut bytes) = (Writer::default(), Vec::new());
        for packet in &packets {
            writer.packet(packet, &mut bytes);
        }
        assert!(bytes.len().is_multiple_of(4));

        for size in [1, 7, 64, bytes.len()] {
            let mut reader = Reader::default();
            let read = bytes
                .chunks(size)
                .flat_map(|piece| reader.take(piece).unwrap());
            assert_eq!(read.collect::<Vec<_>>(), packets, "{size}");
        }
    }

    #[test]
    fn a_capture_begins_as_the_format_has_it() {
        let mut bytes = Vec::new();
        Writer::default().begin(&mut bytes);

        let begin = [0x0a, 0x0d, 0x0d, 0x0a];
        assert!(bytes.starts_with(&begin));
        assert_eq!(word(&bytes, 8), Some(MAGIC));
        assert_eq!(word(&bytes, 4), word(&bytes, bytes.len() - 4));
        assert_eq!(word(&bytes, 4).map(|n| n as usize), Some(bytes.len()));
    }

    proptest! {
        /// Every parser is total (protocol.md).
        #[test]
        fn any_bytes_are_packets_or_an_error(bytes: Vec<u8>, interfaces in 0_usize..3) {
            let mut reader = Reader {
                interfaces: vec![String::new(); interfaces],
                ..Reader::default()
            };
            let _result = reader.take(&bytes);
            let mut reader = Reader::default();
            let head = [PACKET.to_le_bytes(), 64_u32.to_le_bytes()].concat();
            let _result = reader.take(&[head, bytes].concat());
        }
    }
}

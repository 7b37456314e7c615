//! What two gateways tell each other in their session (protocol.md section 5, "Mesh").
//!
//! | type | message | body |
//! |---|---|---|
//! | 20 | Hello | instance u64, hop id u32, hop secret 32, reset token 16, heard hop id u32, epoch u32, upto u64, flags u8 (1: please answer), own statement (JWT text, may be empty) |
//! | 21 | Delta | instance u64, epoch u32, from u64, upto u64, flags u8 (1: that is all), entries |
//! | 22 | Ack | instance u64, epoch u32, upto u64 |
//!
//! An entry of a Delta is `kind u8 | length u16 | body`: 1 an agent's record (JWT text), 2 the address of
//! an agent that is attached no more. Entries of other kinds are skipped.

use crate::id::OverlayIp;

const HELLO: u16 = 20;
const DELTA: u16 = 21;
const ACK: u16 = 22;

const AGENT: u8 = 1;
const GONE: u8 = 2;

/// What gateways tell each other.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Message {
    Ack(Mark),
    Delta(Delta),
    Hello(Hello),
}

/// Gives the receiver what it needs to send frames, and says up to where it was heard.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Hello {
    /// Random; one for each start of the sender.
    pub instance: u64,
    /// In frames to the sender, never 0.
    pub hop: u32,
    pub secret: [u8; 32],
    /// Token of a Reset for `hop`.
    pub reset_token: [u8; 16],
    /// The `hop` of the newest Hello the sender has of the receiver; 0 for none.
    pub heard: u32,
    /// Up to where the sender has what the receiver announced.
    pub epoch: u32,
    pub upto: u64,
    /// Whether the sender does not know yet that it was heard.
    pub asks: bool,
    /// The sender's gateway statement; empty while it has none.
    pub statement: String,
}

/// What changed in the sender's announcements after `from`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Delta {
    /// Up to where the receiver is once it took this.
    pub mark: Mark,
    /// Where it must be for that; 0 is the beginning of an epoch, which announces everything anew.
    pub from: u64,
    /// Whether nothing more follows now.
    pub is_all: bool,
    pub entries: Vec<Entry>,
}

/// A place in the announcements of one gateway.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Mark {
    /// Whose: of which start of it.
    pub instance: u64,
    /// Raised whenever the sender begins anew.
    pub epoch: u32,
    pub upto: u64,
}

/// One announcement.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Entry {
    /// The agent of this record is attached to the sender.
    Agent(String),
    /// This agent is not any more.
    Gone(OverlayIp),
}

impl Message {
    pub(super) const fn kind(&self) -> u16 {
        match self {
            Self::Ack(_) => ACK,
            Self::Delta(_) => DELTA,
            Self::Hello(_) => HELLO,
        }
    }

    pub(super) fn encode(&self, body: &mut Vec<u8>) {
        match self {
            Self::Ack(mark) => mark.encode(body),
            Self::Delta(delta) => delta.encode(body),
            Self::Hello(hello) => hello.encode(body),
        }
    }

    pub(super) fn decode(kind: u16, body: &[u8]) -> Option<Self> {
        match kind {
            ACK => Mark::decode(body).map(|(mark, _)| Self::Ack(mark)),
            DELTA => Delta::decode(body).map(Self::Delta),
            HELLO => Hello::decode(body).map(Self::Hello),
            _ => None,
        }
    }
}

impl Entry {
    /// Returns how many bytes of a Delta it takes.
    pub const fn size(&self) -> usize {
        3 + match self {
            Self::Agent(record) => record.len(),
            Self::Gone(_) => 16,
        }
    }

    fn encode(&self, body: &mut Vec<u8>) {
        let address;
        let (kind, bytes) = match self {
            Self::Agent(record) => (AGENT, record.as_bytes()),
            Self::Gone(agent) => {
                address = agent.ip().octets();
                (GONE, &address[..])
            }
        };
        body.push(kind);
        body.extend(u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes());
        body.extend(bytes);
    }

    fn decode(kind: u8, bytes: &[u8]) -> Option<Self> {
        match kind {
            AGENT => Some(Self::Agent(String::from_utf8(bytes.to_vec()).ok()?)),
            GONE => {
                let address: [u8; 16] = bytes.try_into().ok()?;
                Some(Self::Gone(OverlayIp::new(address.into()).ok()?))
            }
            _ => None,
        }
    }
}

impl Mark {
    fn encode(self, body: &mut Vec<u8>) {
        body.extend(self.instance.to_be_bytes());
        body.extend(self.epoch.to_be_bytes());
        body.extend(self.upto.to_be_bytes());
    }

    fn decode(body: &[u8]) -> Option<(Self, &[u8])> {
        let (instance, rest) = body.split_first_chunk()?;
        let (epoch, rest) = rest.split_first_chunk()?;
        let (upto, rest) = rest.split_first_chunk()?;
        let mark = Self {
            instance: u64::from_be_bytes(*instance),
            epoch: u32::from_be_bytes(*epoch),
            upto: u64::from_be_bytes(*upto),
        };
        Some((mark, rest))
    }
}

impl Delta {
    fn encode(&self, body: &mut Vec<u8>) {
        self.mark.encode(body);
        body.extend(self.from.to_be_bytes());
        body.push(u8::from(self.is_all));
        for entry in &self.entries {
            entry.encode(body);
        }
    }

    fn decode(body: &[u8]) -> Option<Self> {
        let (mark, rest) = Mark::decode(body)?;
        let (from, rest) = rest.split_first_chunk()?;
        let (flags, mut rest) = rest.split_first()?;
        let mut entries = Vec::new();
        while let Some((kind, tail)) = rest.split_first() {
            let (length, tail) = tail.split_first_chunk()?;
            let (bytes, tail) = tail.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
            entries.extend(Entry::decode(*kind, bytes));
            rest = tail;
        }
        Some(Self {
            mark,
            from: u64::from_be_bytes(*from),
            is_all: flags & 1 != 0,
            entries,
        })
    }
}

impl Hello {
    /// Takes the statement out.
    pub fn split(mut self) -> (String, Self) {
        let statement = std::mem::take(&mut self.statement);
        (statement, self)
    }

    fn encode(&self, body: &mut Vec<u8>) {
        body.extend(self.instance.to_be_bytes());
        body.extend(self.hop.to_be_bytes());
        body.extend(self.secret);
        body.extend(self.reset_token);
        body.extend(self.heard.to_be_bytes());
        body.extend(self.epoch.to_be_bytes());
        body.extend(self.upto.to_be_bytes());
        body.push(u8::from(self.asks));
        body.extend(self.statement.as_bytes());
    }

    fn decode(body: &[u8]) -> Option<Self> {
        let (instance, rest) = body.split_first_chunk()?;
        let (hop, rest) = rest.split_first_chunk()?;
        let (secret, rest) = rest.split_first_chunk()?;
        let (reset_token, rest) = rest.split_first_chunk()?;
        let (heard, rest) = rest.split_first_chunk()?;
        let (epoch, rest) = rest.split_first_chunk()?;
        let (upto, rest) = rest.split_first_chunk()?;
        let (flags, statement) = rest.split_first()?;
        let hop = u32::from_be_bytes(*hop);
        Some(Self {
            instance: u64::from_be_bytes(*instance),
            hop: Some(hop).filter(|hop| *hop != 0)?,
            secret: *secret,
            reset_token: *reset_token,
            heard: u32::from_be_bytes(*heard),
            epoch: u32::from_be_bytes(*epoch),
            upto: u64::from_be_bytes(*upto),
            asks: flags & 1 != 0,
            statement: String::from_utf8(statement.to_vec()).ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statement::MAX_STATEMENT;
    use crate::wire::control::Control;
    use crate::wire::part::Reassembler;
    use proptest::prelude::*;

    #[expect(clippy::disallowed_methods, reason = "tests need an epoch")]
    fn start() -> std::time::Instant {
        std::time::Instant::now()
    }

    fn mark() -> Mark {
        Mark {
            instance: 1 << 60 | 5,
            epoch: 6,
            upto: 1 << 40 | 7,
        }
    }

    fn hello(statement: &str) -> Hello {
        Hello {
            instance: 1,
            hop: 2,
            secret: [3; 32],
            reset_token: [4; 16],
            heard: 0,
            epoch: 5,
            upto: 6,
            asks: true,
            statement: statement.to_owned(),
        }
    }

    fn delta(entries: Vec<Entry>) -> Delta {
        Delta {
            mark: mark(),
            from: 3,
            is_all: true,
            entries,
        }
    }

    #[test]
    fn messages_survive_the_wire() {
        let gone = "fd00::1".parse().unwrap();
        let entries = vec![Entry::Agent("a.b.c".to_owned()), Entry::Gone(gone)];
        for message in [
            Message::Ack(mark()),
            Message::Delta(delta(vec![])),
            Message::Delta(delta(entries)),
            Message::Hello(hello("")),
            Message::Hello(hello("a.b.c")),
        ] {
            let message = Control::Mesh(message);

            let packet = message.packet().unwrap();

            assert_eq!(Control::parse(&packet), Some(message));
        }
    }

    #[test]
    fn unknown_entries_are_skipped_and_cut_ones_refused() {
        let gone = "fd00::1".parse().unwrap();
        let mut body = vec![];
        delta(vec![Entry::Gone(gone)]).encode(&mut body);
        let mut unknown = body.clone();
        unknown.extend([99, 0, 2, 7, 7]);

        assert_eq!(
            Delta::decode(&unknown),
            Some(delta(vec![Entry::Gone(gone)]))
        );
        assert_eq!(Delta::decode(&unknown[..unknown.len() - 1]), None);
        assert_eq!(
            Hello::decode(&{
                let mut body = vec![];
                Hello {
                    hop: 0,
                    ..hello("")
                }
                .encode(&mut body);
                body
            }),
            None
        );
    }

    #[test]
    fn the_longest_statements_come_whole() {
        let long = "s".repeat(MAX_STATEMENT);
        let now = start();
        for message in [
            Message::Hello(hello(&long)),
            Message::Delta(delta(vec![Entry::Agent(long.clone())])),
        ] {
            let (message, mut reassembler) = (Control::Mesh(message), Reassembler::default());

            let parts = message.packets(1).into_iter().map(|p| Control::parse(&p));
            let mut whole = parts.filter_map(|part| match part {
                Some(Control::Part(part)) => reassembler.take(part, now),
                other => panic!("{other:?}"),
            });

            assert_eq!(whole.next(), Some(message));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_none(
            kind in 20_u16..23,
            body in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            if let Some(message) = Message::decode(kind, &body) {
                let mut again = vec![];
                message.encode(&mut again);
                prop_assert_eq!(Message::decode(kind, &again), Some(message));
            }
        }
    }
}

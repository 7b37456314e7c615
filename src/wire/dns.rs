//! DNS messages as far as the resolver of one zone needs them (RFC 1035, RFC 6891, RFC 7766).

use std::net::Ipv6Addr;

pub use hickory_proto::op::ResponseCode;
pub use hickory_proto::rr::RecordType;

use hickory_proto::op::{Edns, Header, Message, Metadata, Query as Asked};
use hickory_proto::rr::rdata::{AAAA, NS, PTR, SOA};
use hickory_proto::rr::{DNSClass, Name, RData, Record};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

/// Time to live of every answer. Consent can end at any moment, and asking again costs one local packet.
pub const TTL: u32 = 5; // seconds

/// Longest message of ours over UDP, below every path MTU (DNS flag day 2020).
pub const UDP_PAYLOAD: u16 = 1232; // bytes

/// Longest message a client without EDNS takes over UDP (RFC 1035 section 2.3.4).
const PLAIN_UDP: u16 = 512; // bytes

/// Length of the header (RFC 1035 section 4.1.1).
const HEADER: usize = 12; // bytes

/// What a message came over, and its reply leaves by.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Transport {
    Tcp,
    Udp,
}

/// What to do about bytes that are no query to look at.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Unfit {
    /// The error to send back.
    Reply(Vec<u8>),
    /// Not even a query's header, or a reply: any answer could start a loop.
    Silence,
}

/// What a zone says to a question.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Answer<'a> {
    Address(Ipv6Addr),
    /// The name exists, with nothing of the asked type (RFC 2308 section 2.2).
    NoData,
    /// Neither the name nor anything below it exists (RFC 8020).
    NoName,
    /// The name a PTR record points to, as text.
    Pointer(&'a str),
    /// The zone's name server: itself, as in the empty zones of RFC 6303 section 3.
    Servers,
    /// The zone's SOA record.
    Start,
}

/// One well-formed query of class IN.
#[derive(Clone, Debug)]
pub struct Query {
    metadata: Metadata,
    asked: Asked,
    /// What the client says of itself by EDNS; None without.
    edns: Option<Client>,
    over: Transport,
}

#[derive(Clone, Copy, Debug)]
struct Client {
    payload: u16,
    dnssec_ok: bool,
}

impl Query {
    /// Reads a query, or says what to do about it instead.
    pub fn read(bytes: &[u8], over: Transport) -> Result<Self, Unfit> {
        let head = Head::read(bytes).ok_or(Unfit::Silence)?;
        if head.is_reply() {
            return Err(Unfit::Silence);
        }
        if head.op_code() != 0 {
            return Err(Unfit::Reply(head.failure(ResponseCode::NotImp)));
        }
        let malformed = || Unfit::Reply(head.failure(ResponseCode::FormErr));
        // Checked before decoding, which would allocate for as many as the header promises.
        if head.questions() != 1 {
            return Err(malformed());
        }
        let mut message = Message::from_vec(bytes).map_err(|_| malformed())?;
        let asked = message.queries.pop().ok_or_else(malformed)?;
        let query = Self {
            metadata: message.metadata,
            asked,
            edns: message.edns.as_ref().map(|edns| Client {
                payload: edns.max_payload(),
                dnssec_ok: edns.flags().dnssec_ok,
            }),
            over,
        };
        if message.edns.is_some_and(|edns| edns.version() > 0) {
            return Err(Unfit::Reply(query.failure(ResponseCode::BADVERS)));
        }
        if query.asked.query_class() != DNSClass::IN {
            return Err(Unfit::Reply(query.failure(ResponseCode::Refused)));
        }
        Ok(query)
    }

    /// Returns the labels of the name asked for, in lower case, most specific first.
    pub fn labels(&self) -> Vec<Vec<u8>> {
        let name = self.asked.name();
        name.iter().map(<[u8]>::to_ascii_lowercase).collect()
    }

    /// Returns the type asked for.
    pub const fn kind(&self) -> RecordType {
        self.asked.query_type
    }

    /// Returns what the query came over.
    pub const fn over(&self) -> Transport {
        self.over
    }

    /// Returns the authoritative reply; the zone starts at the last `apex` labels of the name.
    pub fn answer(&self, apex: usize, answer: Answer<'_>) -> Vec<u8> {
        let mut reply = self.reply(ResponseCode::NoError);
        reply.metadata.authoritative = true;
        reply.metadata.recursion_available = true;
        let zone = self.asked.name().trim_to(apex);
        let data = match answer {
            Answer::Address(address) => RData::AAAA(AAAA(address)),
            Answer::NoData => return self.negative(reply, zone),
            Answer::NoName => {
                reply.metadata.response_code = ResponseCode::NXDomain;
                return self.negative(reply, zone);
            }
            Answer::Pointer(text) => match absolute(text) {
                Some(name) => RData::PTR(PTR(name)),
                None => return self.failure(ResponseCode::ServFail),
            },
            Answer::Servers => RData::NS(NS(zone)),
            Answer::Start => start_of(zone),
        };
        let owner = self.asked.name().clone();
        reply.add_answer(Record::from_rdata(owner, TTL, data));
        self.bytes(&reply)
    }

    /// Returns a reply that is only an error code.
    pub fn failure(&self, code: ResponseCode) -> Vec<u8> {
        self.bytes(&self.reply(code))
    }

    /// Tells whether `reply` answers this query when it was sent on with `id`.
    pub fn is_answered_by(&self, id: u16, reply: &[u8]) -> bool {
        let Some(head) = Head::read(reply) else {
            return false;
        };
        if !head.is_reply() || head.id() != id || head.op_code() != 0 {
            return false;
        }
        match head.questions() {
            // A server that understands nothing of a query may not even repeat it.
            0 => head.is_failure(),
            1 => {
                let mut decoder = BinDecoder::new(reply);
                Header::read(&mut decoder).is_ok()
                    && Asked::read(&mut decoder).is_ok_and(|asked| asked == self.asked)
            }
            _ => false,
        }
    }

    /// Returns somebody else's reply under the id this query came with, cut to what its client takes.
    pub fn relayed(&self, reply: &[u8]) -> Vec<u8> {
        let limit = match (self.over, self.edns) {
            (Transport::Tcp, _) => u16::MAX,
            (Transport::Udp, None) => PLAIN_UDP,
            (Transport::Udp, Some(client)) => client.payload.max(PLAIN_UDP),
        };
        if reply.len() > usize::from(limit) {
            return self.truncated();
        }
        with_id(reply, self.metadata.id)
    }

    fn negative(&self, mut reply: Message, zone: Name) -> Vec<u8> {
        let data = start_of(zone.clone());
        reply.add_authority(Record::from_rdata(zone, TTL, data));
        self.bytes(&reply)
    }

    fn reply(&self, code: ResponseCode) -> Message {
        let metadata = Metadata::response_from_request(&self.metadata);
        let mut reply = Message::response(metadata.id, metadata.op_code);
        reply.metadata = metadata;
        reply.metadata.response_code = code;
        reply.add_query(self.asked.clone());
        if let Some(client) = self.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_PAYLOAD);
            edns.set_dnssec_ok(client.dnssec_ok);
            reply.set_edns(edns);
        }
        reply
    }

    fn bytes(&self, reply: &Message) -> Vec<u8> {
        let limit = match (self.over, self.edns) {
            (Transport::Tcp, _) => u16::MAX,
            (Transport::Udp, None) => PLAIN_UDP,
            (Transport::Udp, Some(client)) => client.payload.clamp(PLAIN_UDP, UDP_PAYLOAD),
        };
        match reply.to_vec() {
            Ok(bytes) if bytes.len() <= usize::from(limit) => bytes,
            Ok(_) => self.truncated(),
            Err(_) => self.head().failure(ResponseCode::ServFail),
        }
    }

    /// Returns the reply that makes the client ask again over TCP.
    pub fn truncated(&self) -> Vec<u8> {
        let mut reply = self.reply(ResponseCode::NoError);
        reply.metadata.truncation = true;
        // A header, one question and an empty OPT are below every limit: at most 282 bytes.
        let failed = |_| self.head().failure(ResponseCode::ServFail);
        reply.to_vec().unwrap_or_else(failed)
    }

    fn head(&self) -> Head {
        let rd = u8::from(self.metadata.recursion_desired);
        let [high, low] = self.metadata.id.to_be_bytes();
        Head([high, low, rd, 0, 0, 1, 0, 0, 0, 0, 0, 0])
    }
}

/// Returns `message` with another id; a message without one stays as it is.
pub fn with_id(message: &[u8], id: u16) -> Vec<u8> {
    let mut bytes = message.to_vec();
    if let Some(place) = bytes.first_chunk_mut::<2>() {
        *place = id.to_be_bytes();
    }
    bytes
}

/// Tells whether a reply says that another server should be asked.
pub fn is_failure(reply: &[u8]) -> bool {
    Head::read(reply).is_some_and(Head::is_failure)
}

/// The header, read without trusting its counts.
#[derive(Clone, Copy)]
struct Head([u8; HEADER]);

impl Head {
    fn read(bytes: &[u8]) -> Option<Self> {
        bytes.first_chunk().copied().map(Self)
    }

    const fn id(self) -> u16 {
        u16::from_be_bytes([self.0[0], self.0[1]])
    }

    const fn is_reply(self) -> bool {
        self.0[2] & 0x80 != 0
    }

    const fn op_code(self) -> u8 {
        (self.0[2] >> 3) & 0x0f
    }

    const fn questions(self) -> u16 {
        u16::from_be_bytes([self.0[4], self.0[5]])
    }

    /// FORMERR, SERVFAIL, NOTIMP or REFUSED.
    const fn is_failure(self) -> bool {
        matches!(self.0[3] & 0x0f, 1 | 2 | 4 | 5)
    }

    /// Returns the bare header as an error reply.
    fn failure(self, code: ResponseCode) -> Vec<u8> {
        let [high, low, flags, ..] = self.0;
        let flags = 0x80 | (flags & 0x79);
        [high, low, flags, code.low(), 0, 0, 0, 0, 0, 0, 0, 0].to_vec()
    }
}

fn absolute(text: &str) -> Option<Name> {
    let mut name = Name::from_ascii(text).ok()?;
    name.set_fqdn(true);
    Some(name)
}

/// Returns an SOA in the form of RFC 6303 section 3, whose last field bounds negative caching.
fn start_of(zone: Name) -> RData {
    let contact = Name::from_ascii("nobody.invalid.").unwrap_or_else(|_| zone.clone());
    let ttl = i32::try_from(TTL).unwrap_or(i32::MAX);
    RData::SOA(SOA::new(zone, contact, 1, ttl, ttl, ttl, TTL))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A query for `name`, which is given without its final dot.
    fn query(name: &str, kind: u16, additional: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        bytes[11] = u8::from(!additional.is_empty());
        for label in name.split('.') {
            bytes.push(u8::try_from(label.len()).unwrap());
            bytes.extend_from_slice(label.as_bytes());
        }
        bytes.push(0);
        bytes.extend_from_slice(&kind.to_be_bytes());
        bytes.extend_from_slice(&[0, 1]);
        bytes.extend_from_slice(additional);
        bytes
    }

    fn opt(payload: u16, version: u8) -> Vec<u8> {
        let [high, low] = payload.to_be_bytes();
        vec![0, 0, 41, high, low, 0, version, 0x80, 0, 0, 0]
    }

    fn read(bytes: &[u8]) -> Query {
        Query::read(bytes, Transport::Udp).unwrap()
    }

    fn refusal(bytes: &[u8]) -> Message {
        match Query::read(bytes, Transport::Udp) {
            Err(Unfit::Reply(reply)) => Message::from_vec(&reply).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_answer_repeats_id_flags_and_the_case_of_the_question() {
        let query = read(&query("Planner.ACME.agent", 28, &[]));

        let bytes = query.answer(1, Answer::Address(Ipv6Addr::LOCALHOST));

        let reply = Message::from_vec(&bytes).unwrap();
        assert_eq!((reply.id, reply.recursion_desired), (0x1234, true));
        assert!(reply.authoritative && !reply.truncation && reply.edns.is_none());
        assert!(reply.queries[0].name().eq_case(query.asked.name()));
        assert_eq!(
            reply.answers[0].data,
            RData::AAAA(AAAA(Ipv6Addr::LOCALHOST))
        );
        assert_eq!(reply.answers[0].ttl, TTL);
        assert!(bytes.windows(12).any(|w| w == b"Planner\x04ACME"));
    }

    #[test]
    fn a_negative_answer_carries_the_soa_of_its_zone() {
        let query = read(&query("x.acme.agent", 28, &[]));

        let reply = Message::from_vec(&query.answer(1, Answer::NoName)).unwrap();

        assert_eq!(reply.response_code, ResponseCode::NXDomain);
        assert_eq!(reply.authorities[0].name.to_ascii(), "agent.");
        let RData::SOA(soa) = &reply.authorities[0].data else {
            panic!("no SOA");
        };
        assert_eq!((soa.minimum, reply.authorities[0].ttl), (TTL, TTL));
    }

    #[test]
    fn edns_is_answered_by_edns() {
        let query = read(&query("x.agent", 28, &opt(4096, 0)));

        let reply = Message::from_vec(&query.answer(1, Answer::NoData)).unwrap();

        let edns = reply.edns.unwrap();
        assert_eq!((edns.max_payload(), edns.version()), (UDP_PAYLOAD, 0));
        assert!(edns.flags().dnssec_ok);
    }

    #[test]
    fn what_is_not_understood_is_named() {
        let good = query("x.agent", 28, &[]);
        let mut update = good.clone();
        update[2] = 5 << 3;
        let mut two = good.clone();
        two[5] = 2;
        let mut many = good[..12].to_vec();
        many[4..6].copy_from_slice(&[0xff, 0xff]);
        let mut chaos = good.clone();
        *chaos.last_mut().unwrap() = 3;

        assert_eq!(refusal(&update).response_code, ResponseCode::NotImp);
        assert_eq!(refusal(&two).response_code, ResponseCode::FormErr);
        assert_eq!(refusal(&many).response_code, ResponseCode::FormErr);
        assert_eq!(refusal(&good[..20]).response_code, ResponseCode::FormErr);
        assert_eq!(refusal(&chaos).response_code, ResponseCode::Refused);
        let two_opts = [opt(512, 0), opt(512, 0)].concat();
        let mut doubled = query("x.agent", 28, &two_opts);
        doubled[11] = 2;
        assert_eq!(refusal(&doubled).response_code, ResponseCode::FormErr);
    }

    #[test]
    fn another_edns_version_is_badvers() {
        let reply = refusal(&query("x.agent", 28, &opt(1232, 1)));

        assert_eq!(u16::from(reply.response_code), 16);
        assert_eq!(reply.edns.unwrap().version(), 0);
    }

    #[test]
    fn replies_and_fragments_are_met_with_silence() {
        let mut reply = query("x.agent", 28, &[]);
        reply[2] |= 0x80;

        for bytes in [&reply[..], &reply[..11], &[]] {
            let read = Query::read(bytes, Transport::Udp);
            assert_eq!(read.err(), Some(Unfit::Silence));
        }
    }

    #[test]
    fn only_the_reply_to_this_query_counts() {
        let sent = query("x.example", 28, &[]);
        let asked = read(&sent);
        let answer = |name: &str, kind| {
            let mut reply = query(name, kind, &[]);
            reply[2] |= 0x80;
            reply
        };

        assert!(asked.is_answered_by(0x1234, &answer("X.example", 28)));
        assert!(!asked.is_answered_by(0x1235, &answer("x.example", 28)));
        assert!(!asked.is_answered_by(0x1234, &answer("y.example", 28)));
        assert!(!asked.is_answered_by(0x1234, &answer("x.example", 1)));
        assert!(!asked.is_answered_by(0x1234, &sent));
        assert!(!asked.is_answered_by(0x1234, &answer("x.example", 28)[..14]));
        let bare = |code| [0x12, 0x34, 0x80, code, 0, 0, 0, 0, 0, 0, 0, 0];
        assert!(asked.is_answered_by(0x1234, &bare(1)));
        assert!(!asked.is_answered_by(0x1234, &bare(0)));
    }

    #[test]
    fn what_the_client_cannot_take_is_truncated() {
        let long = [vec![0; 2], vec![0xaa; 700]].concat();
        let plain = read(&query("x.example", 28, &[]));
        let roomy = read(&query("x.example", 28, &opt(1232, 0)));
        let stream = Query::read(&query("x.example", 28, &[]), Transport::Tcp).unwrap();

        let cut = Message::from_vec(&plain.relayed(&long)).unwrap();

        assert!(cut.truncation && cut.answers.is_empty());
        assert_eq!((cut.id, cut.queries.len()), (0x1234, 1));
        for whole in [roomy.relayed(&long), stream.relayed(&long)] {
            assert_eq!((whole.len(), &whole[..2]), (702, &[0x12, 0x34][..]));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_query_or_a_verdict(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            check(&bytes)?;
        }

        #[test]
        fn any_damaged_query_gives_a_query_or_a_verdict(
            place in 0_usize..60, value: u8, end in 0_usize..60, version: u8,
        ) {
            let mut bytes = query("planner.acme.agent", 28, &opt(1232, version));
            if let Some(byte) = bytes.get_mut(place) {
                *byte = value;
            }
            bytes.truncate(end.max(12));
            check(&bytes)?;
        }
    }

    fn check(bytes: &[u8]) -> Result<(), TestCaseError> {
        for over in [Transport::Udp, Transport::Tcp] {
            match Query::read(bytes, over) {
                Ok(query) => {
                    let labels = query.labels().len();
                    for apex in 0..=labels {
                        for answer in [Answer::NoName, Answer::Servers, Answer::Pointer("a.b")] {
                            let reply = query.answer(apex, answer);
                            prop_assert!(Message::from_vec(&reply).is_ok());
                            prop_assert!(reply.len() <= usize::from(PLAIN_UDP));
                        }
                    }
                    prop_assert!(
                        query.is_answered_by(
                            query.metadata.id,
                            &query.failure(ResponseCode::ServFail)
                        )
                    );
                }
                Err(Unfit::Reply(reply)) => {
                    prop_assert_eq!(&reply[..2], &bytes[..2]);
                    prop_assert!(Message::from_vec(&reply).is_ok());
                }
                Err(Unfit::Silence) => {}
            }
        }
        Ok(())
    }
}

//! The question which hosts serve as gateways of a domain: `_a2g._udp` SRV (RFC 2782).

use hickory_proto::op::{Message, MessageType, Query};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};

/// Hosts taken from one answer.
pub const MAX_HOSTS: usize = 8;

/// A host of an answer.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Host {
    priority: u16,
    /// Heavier ones come first: all are asked, so that nothing has to be drawn.
    lightness: u16,
    name: String,
    port: u16,
}

/// The question for the gateways of one domain.
#[derive(Clone, Debug)]
pub struct Question {
    name: Name,
}

impl Question {
    /// Asks for the gateways of `domain`; None when that is no domain name.
    pub fn of(domain: &str) -> Option<Self> {
        let domain = domain.trim_end_matches('.');
        let is_fit = !domain.is_empty() && domain.is_ascii();
        let name = Name::from_ascii(format!("_a2g._udp.{domain}.")).ok();
        name.filter(|_| is_fit).map(|name| Self { name })
    }

    /// Writes the message.
    pub fn encode(&self, id: u16) -> Option<Vec<u8>> {
        let mut message = Message::query();
        message.metadata.id = id;
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(self.name.clone(), RecordType::SRV));
        message.to_vec().ok()
    }

    /// Returns the hosts of an answer as `host:port`, best first; None for what answers something else,
    /// or fails.
    pub fn hosts(&self, id: u16, bytes: &[u8]) -> Option<Vec<String>> {
        let message = Message::from_vec(bytes).ok()?;
        let is_answer = message.metadata.id == id
            && message.metadata.message_type == MessageType::Response
            && !message.metadata.truncation;
        let asked = message.queries.first()?;
        let is_ours = *asked.name() == self.name
            && asked.query_type() == RecordType::SRV
            && asked.query_class() == DNSClass::IN;
        if !is_answer || !is_ours {
            return None;
        }
        let answers = message.answers.iter().filter_map(|record| {
            let RData::SRV(srv) = &record.data else {
                return None;
            };
            // A single dot: decidedly not here (RFC 2782).
            let is_here = !srv.target.is_root() && srv.port != 0;
            is_here.then(|| Host {
                priority: srv.priority,
                lightness: u16::MAX - srv.weight,
                name: srv.target.to_ascii(),
                port: srv.port,
            })
        });
        let mut hosts = answers.collect::<Vec<_>>();
        hosts.sort();
        let hosts = hosts.into_iter().take(MAX_HOSTS);
        Some(
            hosts
                .map(|host| format!("{}:{}", host.name, host.port))
                .collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::{Record, rdata::SRV};
    use proptest::prelude::*;

    fn question() -> Question {
        Question::of("acme.example").unwrap()
    }

    fn answer(id: u16, asked: &Question, records: &[(u16, u16, u16, &str)]) -> Vec<u8> {
        let mut message = Message::from_vec(&asked.encode(id).unwrap()).unwrap();
        message.metadata.message_type = MessageType::Response;
        for (priority, weight, port, target) in records {
            let target = Name::from_ascii(target).unwrap();
            let data = RData::SRV(SRV::new(*priority, *weight, *port, target));
            let record = Record::from_rdata(asked.name.clone(), 60, data);
            message.add_answer(record);
        }
        message.to_vec().unwrap()
    }

    /// hosts come in the order of RFC 2782, the heavier of one priority first.
    #[test]
    fn hosts_come_best_first() {
        let records = [
            (20, 0, 16201, "far.acme.example."),
            (10, 1, 16201, "light.acme.example."),
            (10, 9, 443, "heavy.acme.example."),
            (0, 0, 1, "."),
        ];

        let hosts = question().hosts(7, &answer(7, &question(), &records));

        let expected = [
            "heavy.acme.example.:443",
            "light.acme.example.:16201",
            "far.acme.example.:16201",
        ];
        assert_eq!(hosts.unwrap(), expected);
    }

    #[test]
    fn answers_to_something_else_are_none() {
        let bytes = answer(7, &question(), &[(1, 1, 1, "a.example.")]);
        let other = Question::of("other.example").unwrap();

        assert!(question().hosts(8, &bytes).is_none());
        assert!(other.hosts(7, &bytes).is_none());
        assert!(
            question()
                .hosts(7, &question().encode(7).unwrap())
                .is_none()
        );
        assert_eq!(
            question().hosts(7, &answer(7, &question(), &[])),
            Some(vec![])
        );
    }

    #[test]
    fn hosts_are_bounded() {
        let records = [(1, 1, 1, "a.example."); 100];

        let hosts = question().hosts(7, &answer(7, &question(), &records));

        assert_eq!(hosts.unwrap().len(), MAX_HOSTS);
    }

    #[test]
    fn what_is_no_domain_is_not_asked_for() {
        for text in [
            "",
            ".",
            "b\u{fc}ro.example",
            &"x".repeat(64),
            &"a.".repeat(200),
        ] {
            assert!(Question::of(text).is_none(), "{text}");
        }
        assert!(Question::of("acme.example.").is_some());
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_answer_or_none(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let hosts = question().hosts(7, &bytes);
            prop_assert!(hosts.is_none_or(|hosts| hosts.len() <= MAX_HOSTS));
        }
    }
}

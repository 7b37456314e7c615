//! The questions which hosts serve as gateways of a domain: `_a2g._udp` SRV (RFC 2782) and `_a2g` SVCB (RFC 9460).

use hickory_proto::op::{Message, MessageType, Query};
use hickory_proto::rr::{
    DNSClass, Name, RData, RecordType,
    rdata::svcb::{SVCB, SvcParamKey, SvcParamValue},
};

/// Hosts taken from one answer.
pub const MAX_HOSTS: usize = 8;

/// Where gateways listen unless an SVCB record says otherwise.
const PORT: u16 = 16201;

/// A host of an answer.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Host {
    priority: u16,
    /// Heavier ones come first: all are asked, so that nothing has to be drawn.
    lightness: u16,
    name: String,
    port: u16,
}

/// A question for the gateways of one domain.
#[derive(Clone, Debug)]
pub struct Question {
    name: Name,
    kind: RecordType,
}

impl Question {
    /// Asks for SRV and SVCB records of the gateways of `domain`; none when that is no domain name.
    pub fn of(domain: &str) -> Vec<Self> {
        let domain = domain.trim_end_matches('.');
        if domain.is_empty() || !domain.is_ascii() {
            return Vec::new();
        }
        let both = [("_a2g._udp", RecordType::SRV), ("_a2g", RecordType::SVCB)];
        let questions = both.into_iter().filter_map(|(service, kind)| {
            let name = Name::from_ascii(format!("{service}.{domain}.")).ok()?;
            Some(Self { name, kind })
        });
        questions.collect()
    }

    /// Writes the message.
    pub fn encode(&self, id: u16) -> Option<Vec<u8>> {
        let mut message = Message::query();
        message.metadata.id = id;
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(self.name.clone(), self.kind));
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
            && asked.query_type() == self.kind
            && asked.query_class() == DNSClass::IN;
        if !is_answer || !is_ours {
            return None;
        }
        let answers = message
            .answers
            .iter()
            .filter(|record| record.record_type() == self.kind);
        let answers = answers.filter_map(|record| host(&record.data, &record.name));
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

/// Returns the host that a record of `owner` names; None if it names none.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "a foreign list of all record types there are"
)]
fn host(data: &RData, owner: &Name) -> Option<Host> {
    match data {
        // A single dot: decidedly not here (RFC 2782).
        RData::SRV(srv) => {
            let is_here = !srv.target.is_root() && srv.port != 0;
            is_here.then(|| Host {
                priority: srv.priority,
                lightness: u16::MAX - srv.weight,
                name: srv.target.to_ascii(),
                port: srv.port,
            })
        }
        // Priority 0 is an alias, which resolvers follow; a single dot is the owner (RFC 9460 section 2.4).
        RData::SVCB(svcb) if svcb.svc_priority > 0 => {
            let port = port(svcb)?;
            let is_owner = svcb.target_name.is_root();
            let target = if is_owner { owner } else { &svcb.target_name };
            Some(Host {
                priority: svcb.svc_priority,
                lightness: 0,
                name: target.to_ascii(),
                port,
            })
        }
        _ => None,
    }
}

/// Returns the port of a service; None where the record asks for what we do not know (section 8).
fn port(svcb: &SVCB) -> Option<u16> {
    let is_known = |key: &SvcParamKey| *key == SvcParamKey::Port;
    let mut port = PORT;
    for (_, value) in &svcb.svc_params {
        if let SvcParamValue::Mandatory(keys) = value
            && !keys.0.iter().all(is_known)
        {
            return None;
        }
        if let SvcParamValue::Port(named) = value {
            port = *named;
        }
    }
    (port != 0).then_some(port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::{Record, rdata::SRV, rdata::svcb::Mandatory};
    use proptest::prelude::*;

    fn question() -> Question {
        Question::of("acme.example").swap_remove(0)
    }

    /// SVCB records: priority, target and parameters.
    fn service(records: Vec<(u16, &str, Vec<(SvcParamKey, SvcParamValue)>)>) -> Vec<String> {
        let asked = Question::of("acme.example").swap_remove(1);
        let mut message = Message::from_vec(&asked.encode(7).unwrap()).unwrap();
        message.metadata.message_type = MessageType::Response;
        for (priority, target, params) in records {
            let data = RData::SVCB(SVCB::new(
                priority,
                Name::from_ascii(target).unwrap(),
                params,
            ));
            message.add_answer(Record::from_rdata(asked.name.clone(), 60, data));
        }
        asked.hosts(7, &message.to_vec().unwrap()).unwrap()
    }

    /// RFC 9460's services, with the port of gateways unless they name one.
    #[test]
    fn services_name_hosts_too() {
        let port = |port| (SvcParamKey::Port, SvcParamValue::Port(port));
        let mandatory = |key| {
            let keys = SvcParamValue::Mandatory(Mandatory(vec![key]));
            (SvcParamKey::Mandatory, keys)
        };
        let hosts = service(vec![
            (2, "far.acme.example.", vec![port(443)]),
            (1, "near.acme.example.", vec![]),
            (3, ".", vec![]),
            (0, "alias.acme.example.", vec![]),
            (4, "zero.acme.example.", vec![port(0)]),
            (
                5,
                "fit.acme.example.",
                vec![mandatory(SvcParamKey::Port), port(9)],
            ),
            (
                6,
                "odd.acme.example.",
                vec![mandatory(SvcParamKey::Key(65_280)), port(9)],
            ),
        ]);

        let expected = [
            "near.acme.example.:16201",
            "far.acme.example.:443",
            "_a2g.acme.example.:16201",
            "fit.acme.example.:9",
        ];
        assert_eq!(hosts, expected);
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
        let other = Question::of("other.example").swap_remove(0);

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
            assert!(Question::of(text).is_empty(), "{text}");
        }
        assert_eq!(Question::of("acme.example.").len(), 2);
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_answer_or_none(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let hosts = question().hosts(7, &bytes);
            prop_assert!(hosts.is_none_or(|hosts| hosts.len() <= MAX_HOSTS));
        }
    }
}

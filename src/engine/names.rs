//! What the resolver says to a question: the zone of agents' names and the reverse zones of their addresses.
//!
//! What an asker may not see and what does not exist are the same to every function here, so they
//! give the same bytes.

use std::net::Ipv6Addr;

use crate::id::{FullName, Label, NetworkPrefix, OverlayIp, Suffix};
use crate::wire::dns::{Answer, Query, RecordType, ResponseCode, Transport, Unfit};

/// Nibbles of a domain's /48: a reverse zone is a whole domain's, so nothing of it goes upstream.
const DOMAIN_NIBBLES: usize = 12;

/// Nibbles of an address.
const ADDRESS_NIBBLES: usize = 32;

/// The names and addresses that are answered here and never asked of another server.
#[derive(Clone, Debug)]
pub struct Zone {
    pub suffix: Suffix,
    /// The networks whose addresses have names; the rest of their domains' /48 does not exist.
    pub prefixes: Vec<NetworkPrefix>,
    /// What [`Zone::retries`] returned: domains that do not exist either.
    pub retries: Vec<String>,
}

/// What a message asks.
#[derive(Clone, Debug)]
pub enum Question {
    /// A name outside of the zone, for another server.
    Foreign(Query),
    /// Nothing may be sent back.
    Ignore,
    /// An agent's name: look it up, then [`Zone::address_answer`].
    Name(Query, FullName),
    /// The reply, known at once.
    Reply(Vec<u8>),
    /// An agent's address: look it up, then [`Zone::name_answer`].
    Reverse(Query, OverlayIp),
}

impl Zone {
    /// Returns the domains below which the C library asks again for a name of ours that it did not
    /// find: our search domains before each of the host's.
    ///
    /// Such a question would tell the host's nameservers the name, and let them give it an address.
    pub fn retries(ours: &[String], hosts: &[String]) -> Vec<String> {
        let bare = |domain: &str| domain.trim_end_matches('.').to_ascii_lowercase();
        let mut retries = Vec::new();
        for host in hosts.iter().map(|h| bare(h)).filter(|h| !h.is_empty()) {
            retries.extend(ours.iter().map(|own| format!("{}.{host}", bare(own))));
        }
        retries
    }

    /// Returns the domains whose names are answered here: the suffix, and each domain's reverse zone.
    pub fn domains(&self) -> Vec<String> {
        let mut domains = vec![self.suffix.to_string()];
        for prefix in &self.prefixes {
            let bits = prefix.first().to_bits();
            let nibbles = (0..DOMAIN_NIBBLES).rev();
            let nibbles = nibbles.map(|n| format!("{:x}.", bits >> (124 - 4 * n) & 0xf));
            let zone = format!("{}ip6.arpa", nibbles.collect::<String>());
            if !domains.contains(&zone) {
                domains.push(zone);
            }
        }
        domains
    }

    /// Tells what `message` asks.
    pub fn question(&self, message: &[u8], over: Transport) -> Question {
        let query = match Query::read(message, over) {
            Ok(query) => query,
            Err(Unfit::Reply(reply)) => return Question::Reply(reply),
            Err(Unfit::Silence) => return Question::Ignore,
        };
        // There is no zone transfer, of our names least of all.
        if matches!(query.kind(), RecordType::AXFR | RecordType::IXFR) {
            return Question::Reply(query.failure(ResponseCode::Refused));
        }
        let labels = query.labels();
        if let Some(inside) = self.inside_suffix(&labels) {
            return self.forward_question(query, &labels[..inside]);
        }
        if let Some((domain, nibbles)) = self.inside_domain(&labels) {
            return self.reverse_question(query, domain, nibbles);
        }
        if let Some(domain) = self.retries.iter().find(|domain| is_below(&labels, domain)) {
            return Question::Reply(query.answer(domain.split('.').count(), Answer::NoName));
        }
        Question::Foreign(query)
    }

    /// Answers the query for an agent's name; None when there is none that the asker may see.
    pub fn address_answer(&self, query: &Query, found: Option<OverlayIp>) -> Vec<u8> {
        let answer = match found {
            None => Answer::NoName,
            Some(address) if wants(query, RecordType::AAAA) => Answer::Address(address.ip()),
            Some(_) => Answer::NoData,
        };
        query.answer(self.suffix_labels(), answer)
    }

    /// Answers the query for the name of an address; None when the asker may see no agent there.
    pub fn name_answer(&self, query: &Query, found: Option<&FullName>) -> Vec<u8> {
        let text = found.map(FullName::to_string);
        let answer = match &text {
            None => Answer::NoName,
            Some(text) if wants(query, RecordType::PTR) => Answer::Pointer(text),
            Some(_) => Answer::NoData,
        };
        query.answer(DOMAIN_NIBBLES + 2, answer)
    }

    /// Answers what lies below the suffix: itself, a network, an agent.
    fn forward_question(&self, query: Query, inside: &[Vec<u8>]) -> Question {
        let apex = self.suffix_labels();
        let Some(labels) = inside.iter().map(|l| label(l)).collect::<Option<Vec<_>>>() else {
            return Question::Reply(query.answer(apex, Answer::NoName));
        };
        match labels.as_slice() {
            [] => apex_reply(&query, apex),
            // Every network exists for every asker: there are names below it, or they are hidden.
            [_] => Question::Reply(query.answer(apex, Answer::NoData)),
            labels => {
                let text = format!("{}.{}", labels.join("."), self.suffix);
                match FullName::parse(&text, &self.suffix) {
                    Ok(name) => Question::Name(query, name),
                    Err(_) => Question::Reply(query.answer(apex, Answer::NoName)),
                }
            }
        }
    }

    /// Answers what lies below a domain's reverse zone; `nibbles` are the rest, highest last.
    fn reverse_question(&self, query: Query, domain: Ipv6Addr, nibbles: &[Vec<u8>]) -> Question {
        let apex = DOMAIN_NIBBLES + 2;
        let no_name = |query: &Query| Question::Reply(query.answer(apex, Answer::NoName));
        if nibbles.is_empty() {
            return apex_reply(&query, apex);
        }
        let Some(low) = number(nibbles) else {
            return no_name(&query);
        };
        let known = DOMAIN_NIBBLES + nibbles.len();
        let unknown_bits = 4 * (ADDRESS_NIBBLES - known);
        let address = Ipv6Addr::from_bits(domain.to_bits() | (low << unknown_bits));
        if known < ADDRESS_NIBBLES {
            // What leads to an address of ours, or may: as with networks, never tell which do.
            let shared = unknown_bits.max(64);
            let leads =
                |p: &NetworkPrefix| p.first().to_bits() >> shared == address.to_bits() >> shared;
            return if self.prefixes.iter().any(leads) {
                Question::Reply(query.answer(apex, Answer::NoData))
            } else {
                no_name(&query)
            };
        }
        match OverlayIp::new(address) {
            Ok(address) if self.prefixes.contains(&address.network()) => {
                Question::Reverse(query, address)
            }
            _ => no_name(&query),
        }
    }

    /// Returns how many labels stand before the suffix; None for a name outside of it.
    fn inside_suffix(&self, labels: &[Vec<u8>]) -> Option<usize> {
        is_below(labels, &self.suffix.to_string()).then(|| labels.len() - self.suffix_labels())
    }

    /// Returns the domain whose reverse zone the name is in, and the labels before that zone.
    fn inside_domain<'a>(&self, labels: &'a [Vec<u8>]) -> Option<(Ipv6Addr, &'a [Vec<u8>])> {
        let nibbles = labels.strip_suffix(&[b"ip6".to_vec(), b"arpa".to_vec()])?;
        let rest = nibbles.len().checked_sub(DOMAIN_NIBBLES)?;
        let (rest, zone) = nibbles.split_at(rest);
        let zone = Ipv6Addr::from_bits(number(zone)? << 80);
        let ours = |p: &NetworkPrefix| p.domain().network(0).first() == zone;
        self.prefixes.iter().any(ours).then_some((zone, rest))
    }

    fn suffix_labels(&self) -> usize {
        self.suffix.to_string().split('.').count()
    }
}

/// Tells whether the labels end in those of `domain`.
fn is_below(labels: &[Vec<u8>], domain: &str) -> bool {
    let mut labels = labels.iter().rev();
    domain
        .rsplit('.')
        .all(|label| labels.next().is_some_and(|l| l == label.as_bytes()))
}

fn apex_reply(query: &Query, apex: usize) -> Question {
    let answer = if query.kind() == RecordType::NS {
        Answer::Servers
    } else if wants(query, RecordType::SOA) {
        Answer::Start
    } else {
        Answer::NoData
    };
    Question::Reply(query.answer(apex, answer))
}

/// Tells whether a record of `kind` answers the query; to ANY, one record is enough (RFC 8482).
fn wants(query: &Query, kind: RecordType) -> bool {
    query.kind() == kind || query.kind() == RecordType::ANY
}

fn label(bytes: &[u8]) -> Option<&str> {
    let text = str::from_utf8(bytes).ok()?;
    text.parse::<Label>().is_ok().then_some(text)
}

/// Reads nibbles of a reverse name, lowest first; None for anything else or too many.
fn number(labels: &[Vec<u8>]) -> Option<u128> {
    if labels.len() > ADDRESS_NIBBLES - DOMAIN_NIBBLES {
        return None;
    }
    labels
        .iter()
        .rev()
        .try_fold(0, |sum, label| match label.as_slice() {
            [digit] => Some(sum << 4 | u128::from(char::from(*digit).to_digit(16)?)),
            _ => None,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::{Message, Query as Asked};
    use hickory_proto::rr::{Name, RData};
    use proptest::prelude::*;

    const B: &str = "fd11:2233:4455:1::b";

    fn zone() -> Zone {
        Zone {
            suffix: Suffix::default(),
            prefixes: vec!["fd11:2233:4455:1::/64".parse().unwrap()],
            retries: Zone::retries(&["acme.agent".to_owned()], &["Corp.example.".to_owned()]),
        }
    }

    fn ask(name: &str, kind: RecordType) -> Question {
        let mut message = Message::query();
        message.add_query(Asked::query(Name::from_ascii(name).unwrap(), kind));
        zone().question(&message.to_vec().unwrap(), Transport::Udp)
    }

    fn said(name: &str, kind: RecordType) -> (ResponseCode, usize, usize) {
        let question = ask(name, kind);
        let Question::Reply(reply) = &question else {
            panic!("{name}: {question:?}");
        };
        counts(reply)
    }

    fn counts(reply: &[u8]) -> (ResponseCode, usize, usize) {
        let reply = Message::from_vec(reply).unwrap();
        (
            reply.response_code,
            reply.answers.len(),
            reply.authorities.len(),
        )
    }

    const NO_DATA: (ResponseCode, usize, usize) = (ResponseCode::NoError, 0, 1);
    const NO_NAME: (ResponseCode, usize, usize) = (ResponseCode::NXDomain, 0, 1);
    const DATA: (ResponseCode, usize, usize) = (ResponseCode::NoError, 1, 0);
    const DOMAIN: &str = "5.5.4.4.3.3.2.2.1.1.d.f.ip6.arpa.";

    fn reverse(address: &str) -> String {
        let address = address.parse::<Ipv6Addr>().unwrap();
        Name::from(address).to_ascii()
    }

    /// B-005: whoever routes by domain is told all of the zone, and nothing else.
    #[test]
    fn its_domains_are_the_suffix_and_the_reverse_zones() {
        let mut zone = zone();
        zone.prefixes.push("fd11:2233:4455:2::/64".parse().unwrap());

        let domains = zone.domains();

        assert_eq!(domains, ["agent", DOMAIN.trim_end_matches('.')]);
        for inside in [reverse(B), "b.acme.agent.".to_owned()] {
            let inside = inside.trim_end_matches('.');
            assert!(
                domains.iter().any(|domain| inside.ends_with(domain)),
                "{inside}"
            );
        }
    }

    /// B-005: an agent's name has an AAAA record and no other.
    #[test]
    fn a_name_has_one_aaaa_record() {
        for (kind, expected) in [
            (RecordType::AAAA, DATA),
            (RecordType::ANY, DATA),
            (RecordType::A, NO_DATA),
            (RecordType::HTTPS, NO_DATA),
            (RecordType::SOA, NO_DATA),
        ] {
            let Question::Name(query, name) = ask("B.Acme.AGENT.", kind) else {
                panic!("not a name");
            };
            let reply = zone().address_answer(&query, B.parse().ok());

            assert_eq!(name.to_string(), "b.acme.agent");
            assert_eq!(counts(&reply), expected, "{kind}");
            assert_eq!(counts(&zone().address_answer(&query, None)), NO_NAME);
        }
    }

    #[test]
    fn an_address_has_one_ptr_record() {
        let name = FullName::parse("b.acme.agent", &Suffix::default()).unwrap();

        let Question::Reverse(query, address) = ask(&reverse(B), RecordType::PTR) else {
            panic!("not an address");
        };
        let reply = Message::from_vec(&zone().name_answer(&query, Some(&name))).unwrap();

        assert_eq!(address, B.parse().unwrap());
        let RData::PTR(pointer) = &reply.answers[0].data else {
            panic!("no PTR");
        };
        assert_eq!(pointer.0.to_ascii(), "b.acme.agent.");
        let denied = Message::from_vec(&zone().name_answer(&query, None)).unwrap();
        assert_eq!(denied.response_code, ResponseCode::NXDomain);
        assert_eq!(denied.authorities[0].name.to_ascii(), DOMAIN);
    }

    #[test]
    fn the_way_to_a_name_exists_without_data() {
        for name in ["acme.agent.", "other.agent."] {
            assert_eq!(said(name, RecordType::AAAA), NO_DATA, "{name}");
        }
        assert_eq!(said("agent.", RecordType::AAAA), NO_DATA);
        assert_eq!(said("agent.", RecordType::DS), NO_DATA);
        for kind in [RecordType::SOA, RecordType::NS, RecordType::ANY] {
            assert_eq!(said("agent.", kind), DATA, "{kind}");
            assert_eq!(said(DOMAIN, kind), DATA, "{kind}");
        }
        for name in [format!("0.{DOMAIN}"), format!("a.1.0.0.0.{DOMAIN}")] {
            assert_eq!(said(&name, RecordType::PTR), NO_DATA, "{name}");
        }
    }

    #[test]
    fn what_cannot_be_a_name_does_not_exist() {
        for name in ["_tcp.agent.", "_x.b.acme.agent.", "a\\.b.acme.agent."] {
            assert_eq!(said(name, RecordType::AAAA), NO_NAME, "{name}");
        }
        let too_deep = format!("{}acme.agent.", "a.".repeat(40));
        assert_eq!(said(&too_deep, RecordType::AAAA), NO_NAME);
        for name in [
            format!("1.{DOMAIN}"),
            format!("x.{DOMAIN}"),
            format!("11.{DOMAIN}"),
            format!("0.{}", reverse(B)),
            reverse("fd11:2233:4455:2::b"),
        ] {
            assert_eq!(said(&name, RecordType::PTR), NO_NAME, "{name}");
        }
    }

    /// A foreign ULA keeps its own reverse zone.
    #[test]
    fn only_the_suffix_and_our_domain_are_ours() {
        for name in [
            "example.com.",
            "agent.example.",
            "myagent.",
            ".",
            "ip6.arpa.",
            "d.f.ip6.arpa.",
            "1.0.0.127.in-addr.arpa.",
            &reverse("fd11:2233:4456:1::b"),
        ] {
            let question = ask(name, RecordType::PTR);
            assert!(
                matches!(question, Question::Foreign(_)),
                "{name}: {question:?}"
            );
        }
    }

    /// The C library asks again below each search domain when it did not find a name.
    #[test]
    fn our_names_are_not_retried_below_foreign_domains() {
        for name in ["c.acme.agent.corp.example.", "x.c.ACME.agent.CORP.example."] {
            assert_eq!(said(name, RecordType::A), NO_NAME, "{name}");
        }
        for name in [
            "www.corp.example.",
            "ci.agent.corp.example.",
            "c.acme.agent.example.",
        ] {
            assert!(
                matches!(ask(name, RecordType::A), Question::Foreign(_)),
                "{name}"
            );
        }
    }

    #[test]
    fn a_zone_is_not_transferred() {
        for name in ["agent.", "example.com."] {
            assert_eq!(said(name, RecordType::AXFR).0, ResponseCode::Refused);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered_or_ignored(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            drop(zone().question(&bytes, Transport::Udp));
        }

        /// Whatever is written before our zones, in whatever case, stays here.
        #[test]
        fn nothing_of_our_zones_goes_upstream(
            labels in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 0..6),
            reversed: bool, upper: bool,
        ) {
            let zone_name = if reversed { DOMAIN } else { "agent." };
            let zone_name = if upper { zone_name.to_uppercase() } else { zone_name.to_owned() };
            let below = Name::from_labels(labels.iter().map(Vec::as_slice)).unwrap();
            let name = below.append_name(&Name::from_ascii(&zone_name).unwrap()).unwrap();
            let mut message = Message::query();
            message.add_query(Asked::query(name, RecordType::AAAA));

            let question = zone().question(&message.to_vec().unwrap(), Transport::Tcp);

            prop_assert!(!matches!(question, Question::Foreign(_)), "{:?}", question);
        }

        #[test]
        fn every_address_of_our_network_is_looked_up(interface: u64) {
            let address = zone().prefixes[0].address(interface);
            let question = ask(&reverse(&address.to_string()), RecordType::PTR);

            prop_assert!(matches!(question, Question::Reverse(_, a) if a == address));
        }
    }
}

//! How a gateway is found by who knows none: GW-DISCOVER and GW-OFFER (protocol.md section 5).
//!
//! ```text
//! 0  0xA3     1  version 1 (high 4 bits) | kind (low 4 bits)     2  two zero bytes     4  nonce, 16 bytes
//! GW-DISCOVER, kind 0:  20  asker, 16 bytes     36  zeros up to 1,200 bytes in all
//! GW-OFFER, kind 1:     20  the gateway's statement, to the end
//! ```
//!
//! The asker is the first 16 bytes of H("discover" || nonce || identity), each part preceded by its
//! length: who hears it and does not know the agent learns nothing of it.

use crate::id::{Did, hash};

/// Length of a GW-DISCOVER, and the most of a GW-OFFER: so nobody is made to send more than came.
pub const DISCOVER: usize = 1200; // bytes

/// Port on which gateways listen for GW-DISCOVER that is sent to [`GROUP`]; to an address of a
/// gateway's own it goes to the port of frames.
pub const PORT: u16 = 16_203;

/// The group of gateways of one link: IPv6 link-local and transient (RFC 4291 section 2.7), "agnt".
pub const GROUP: std::net::Ipv6Addr =
    std::net::Ipv6Addr::new(0xff12, 0, 0, 0, 0, 0, 0x6167, 0x6e74);

const MAGIC: u8 = 0xa3;
const VERSION: u8 = 1;
const DISCOVER_KIND: u8 = 0;
const OFFER_KIND: u8 = 1;
const NONCE_AT: usize = 4;
const BODY_AT: usize = 20;
const ASKER_END: usize = 36;

/// Ties an offer to the question it answers.
pub type Nonce = [u8; 16];

/// Asks whoever hears it for a gateway.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Discover {
    pub nonce: Nonce,
    pub asker: [u8; 16],
}

impl Discover {
    /// Asks on behalf of an agent.
    pub fn of(agent: Did, nonce: Nonce) -> Self {
        let identity = agent.to_string();
        let all = hash(&[b"discover", &nonce, identity.as_bytes()]);
        let mut asker = [0; 16];
        for (to, from) in asker.iter_mut().zip(all) {
            *to = from;
        }
        Self { nonce, asker }
    }

    /// Writes the message.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = head(DISCOVER_KIND, &self.nonce);
        out.extend(self.asker);
        out.resize(DISCOVER, 0);
        out
    }

    /// Parses the message; None for anything else, and for what is not as long as it must be.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let nonce = nonce(bytes, DISCOVER_KIND)?;
        let asker = bytes.get(BODY_AT..ASKER_END)?.try_into().ok()?;
        (bytes.len() == DISCOVER).then_some(Self { nonce, asker })
    }
}

/// Names a gateway.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Offer {
    pub nonce: Nonce,
    /// The gateway's statement; nothing of it is checked yet.
    pub statement: String,
}

impl Offer {
    /// Writes the message; None if it were longer than the question.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let mut out = head(OFFER_KIND, &self.nonce);
        out.extend_from_slice(self.statement.as_bytes());
        (out.len() <= DISCOVER).then_some(out)
    }

    /// Parses the message; None for anything else.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let nonce = nonce(bytes, OFFER_KIND)?;
        let statement = bytes.get(BODY_AT..).filter(|_| bytes.len() <= DISCOVER)?;
        let statement = std::str::from_utf8(statement).ok()?;
        let is_text = !statement.is_empty() && statement.bytes().all(|b| b.is_ascii_graphic());
        is_text.then(|| Self {
            nonce,
            statement: statement.to_owned(),
        })
    }
}

fn head(kind: u8, nonce: &Nonce) -> Vec<u8> {
    let mut out = vec![MAGIC, VERSION << 4 | kind, 0, 0];
    out.extend(nonce);
    out
}

fn nonce(bytes: &[u8], kind: u8) -> Option<Nonce> {
    let front = bytes.get(..NONCE_AT)?;
    let nonce = bytes.get(NONCE_AT..BODY_AT)?.try_into().ok()?;
    (*front == [MAGIC, VERSION << 4 | kind, 0, 0]).then_some(nonce)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::IdentityKey;
    use proptest::prelude::*;

    fn agent(n: u8) -> Did {
        IdentityKey::from_seed([n; 32]).did()
    }

    /// A-044: the question carries identity and nonce, the identity as a hash.
    #[test]
    fn a_question_names_its_agent_to_nobody_else() {
        let asked = Discover::of(agent(1), [7; 16]);

        let bytes = asked.encode();

        assert_eq!(bytes.len(), 1200);
        assert_eq!(Discover::parse(&bytes), Some(asked));
        assert_ne!(asked.asker, Discover::of(agent(1), [8; 16]).asker);
        assert_ne!(asked.asker, Discover::of(agent(2), [7; 16]).asker);
        assert!(Offer::parse(&bytes).is_none());
    }

    #[test]
    fn a_question_of_another_length_is_none() {
        let bytes = Discover::of(agent(1), [7; 16]).encode();

        assert!(Discover::parse(&bytes[..1199]).is_none());
        assert!(Discover::parse(&[&bytes[..], &[0]].concat()).is_none());
        assert!(Discover::parse(&bytes[..36]).is_none());
    }

    #[test]
    fn an_offer_is_never_longer_than_a_question() {
        let offer = |length| Offer {
            nonce: [3; 16],
            statement: "x".repeat(length),
        };

        let longest = offer(1180).encode().unwrap();
        assert_eq!(longest.len(), DISCOVER);
        assert_eq!(Offer::parse(&longest), Some(offer(1180)));
        assert!(offer(1181).encode().is_none());
        assert!(Discover::parse(&longest).is_none());
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_none(mut bytes in prop::collection::vec(any::<u8>(), 0..1300)) {
            for kind in [0x10, 0x11, 0x12] {
                if let Some(front) = bytes.get_mut(..4) {
                    front.copy_from_slice(&[MAGIC, kind, 0, 0]);
                }
                if let Some(asked) = Discover::parse(&bytes) {
                    prop_assert_eq!(asked.encode().len(), bytes.len());
                }
                if let Some(offer) = Offer::parse(&bytes) {
                    prop_assert_eq!(offer.encode().unwrap(), bytes.clone());
                }
            }
        }
    }
}

//! Pure: which change concerns which watcher, and where a watch resumes.

use std::fmt;

use crate::id::{AgentId, MemberName};

/// Longest cursor that is read; longer ones are nobody's.
const MAX_CURSOR: usize = 100; // bytes

/// A hint that something changed; the store says what.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Hint {
    Consent {
        issuer: AgentId,
        subject: AgentId,
    },
    Gateway,
    Network,
    Record {
        agent: AgentId,
        /// Whom the agent has an active consent toward.
        toward: Vec<AgentId>,
    },
    Request {
        target: MemberName,
    },
    Revocation,
}

/// One who watches.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Watcher {
    Gateway,
    Member {
        agent: AgentId,
        /// The names bound to it.
        names: Vec<MemberName>,
    },
}

impl Watcher {
    /// Tells whether a change may be for this watcher's eyes.
    pub fn is_concerned(&self, hint: &Hint) -> bool {
        match (self, hint) {
            (_, Hint::Gateway | Hint::Revocation) => true,
            (Self::Gateway, Hint::Network) => true,
            (Self::Member { .. }, Hint::Network) => false,
            (Self::Gateway, Hint::Consent { .. } | Hint::Record { .. } | Hint::Request { .. }) => {
                false
            }
            (Self::Member { agent, .. }, Hint::Consent { issuer, subject }) => {
                agent == issuer || agent == subject
            }
            (Self::Member { agent, .. }, Hint::Record { agent: of, toward }) => {
                agent == of || toward.contains(agent)
            }
            (Self::Member { names, .. }, Hint::Request { target }) => names.contains(target),
        }
    }
}

/// Up to where a watcher has seen; opaque text to clients.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Cursor {
    /// Tells one database from another.
    pub epoch: String,
    /// Version of the network; 0 for a watcher of the domain.
    pub network: u64,
    /// Version of the domain.
    pub domain: u64,
}

impl Cursor {
    /// Returns the cursor of one who has seen nothing.
    pub fn start(epoch: &str) -> Self {
        Self {
            epoch: epoch.to_owned(),
            network: 0,
            domain: 0,
        }
    }

    /// Reads a cursor that this database gave out; None for every other text.
    pub fn parse(text: &str, epoch: &str) -> Option<Self> {
        let mut parts = Some(text).filter(|t| t.len() <= MAX_CURSOR)?.split('.');
        let (of, network, domain) = (parts.next()?, parts.next()?, parts.next()?);
        if of != epoch || parts.next().is_some() {
            return None;
        }
        Some(Self {
            epoch: of.to_owned(),
            network: network.parse().ok()?,
            domain: domain.parse().ok()?,
        })
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.epoch, self.network, self.domain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::IdentityKey;
    use proptest::prelude::*;

    fn agent(n: u8) -> AgentId {
        IdentityKey::from_seed([n; 32]).did().into()
    }

    fn member(n: u8, name: &str) -> Watcher {
        Watcher::Member {
            agent: agent(n),
            names: vec![name.parse().unwrap()],
        }
    }

    /// P-059: what others do among themselves wakes nobody else.
    #[test]
    fn a_change_concerns_its_two_ends_only() {
        let (a, b, c) = (member(1, "a"), member(2, "b"), member(3, "c"));
        let consent = Hint::Consent {
            issuer: agent(1),
            subject: agent(2),
        };
        let request = Hint::Request {
            target: "b".parse().unwrap(),
        };
        let record = Hint::Record {
            agent: agent(1),
            toward: vec![agent(2)],
        };

        for (hint, concerned) in [
            (&consent, [true, true, false]),
            (&request, [false, true, false]),
            (&record, [true, true, false]),
            (&Hint::Revocation, [true, true, true]),
            (&Hint::Network, [false, false, false]),
        ] {
            assert_eq!([&a, &b, &c].map(|w| w.is_concerned(hint)), concerned);
            let domain = matches!(hint, Hint::Revocation | Hint::Network);
            assert_eq!(Watcher::Gateway.is_concerned(hint), domain);
        }
    }

    #[test]
    fn a_cursor_of_another_database_is_unknown() {
        let cursor = Cursor {
            epoch: "abc".to_owned(),
            network: 7,
            domain: 9,
        };

        assert_eq!(
            Cursor::parse(&cursor.to_string(), "abc"),
            Some(cursor.clone())
        );
        assert_eq!(Cursor::parse(&cursor.to_string(), "abd"), None);
        for text in ["", "abc", "abc.1", "abc.1.2.3", "abc.-1.2", "abc.x.y"] {
            assert_eq!(Cursor::parse(text, "abc"), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_cursor_or_none(text in "\\PC{0,120}") {
            if let Some(cursor) = Cursor::parse(&text, "e") {
                prop_assert_eq!(Cursor::parse(&cursor.to_string(), "e"), Some(cursor));
            }
        }
    }
}

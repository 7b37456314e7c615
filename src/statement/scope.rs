use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use thiserror::Error;

/// Most port ranges one scope may list; more are better said as `any` or a range.
const MAX_RANGES: usize = 64;

/// What is wrong with a scope.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum ScopeError {
    #[error("`{0}` is not a scope (expected `tcp/8000`, `udp/5000-5010` or `any`)")]
    Malformed(String),
    #[error("a scope lists at most {MAX_RANGES} port ranges")]
    TooMany,
}

/// A transport protocol that scopes can name.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// What a peer may reach: port ranges per protocol, everything, or (empty) replies only.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Scope {
    Any,
    /// Inclusive port ranges; empty means replies only.
    Ports(Vec<(Protocol, u16, u16)>),
}

impl Scope {
    /// Returns the scope that lets nothing in but replies.
    pub const fn replies_only() -> Self {
        Self::Ports(Vec::new())
    }

    /// Tells whether nothing but replies is let in.
    pub const fn is_replies_only(&self) -> bool {
        matches!(self, Self::Ports(ranges) if ranges.is_empty())
    }

    /// Tells whether `port` of `protocol` is let in.
    pub fn allows(&self, protocol: Protocol, port: u16) -> bool {
        match self {
            Self::Any => true,
            Self::Ports(ranges) => ranges
                .iter()
                .any(|(p, from, to)| *p == protocol && (*from..=*to).contains(&port)),
        }
    }

    /// Tells whether everything `other` lets in is let in by this scope, range by range.
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Any, _) => true,
            (Self::Ports(_), Self::Any) => false,
            (Self::Ports(ours), Self::Ports(theirs)) => theirs.iter().all(|(p, from, to)| {
                ours.iter()
                    .any(|(q, low, high)| p == q && low <= from && to <= high)
            }),
        }
    }

    /// Joins several scopes, as repeated `--allow` options do.
    pub fn union(scopes: impl IntoIterator<Item = Self>) -> Result<Self, ScopeError> {
        let mut all = Vec::new();
        for scope in scopes {
            match scope {
                Self::Any => return Ok(Self::Any),
                Self::Ports(ranges) => all.extend(ranges),
            }
        }
        all.sort_unstable();
        all.dedup();
        if all.len() > MAX_RANGES {
            return Err(ScopeError::TooMany);
        }
        Ok(Self::Ports(all))
    }

    fn elements(&self) -> Vec<String> {
        match self {
            Self::Any => vec!["any".to_owned()],
            Self::Ports(ranges) => ranges.iter().map(range_text).collect(),
        }
    }
}

/// Parses elements separated by commas; the empty text is replies only.
impl FromStr for Scope {
    type Err = ScopeError;

    fn from_str(text: &str) -> Result<Self, ScopeError> {
        Self::union(
            text.split(',')
                .filter(|t| !t.is_empty())
                .map(element)
                .collect::<Result<Vec<_>, _>>()?,
        )
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.elements().join(","))
    }
}

impl Serialize for Scope {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.elements())
    }
}

impl<'de> Deserialize<'de> for Scope {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        if texts.len() > MAX_RANGES {
            return Err(D::Error::custom(ScopeError::TooMany));
        }
        let scopes = texts
            .iter()
            .map(|text| element(text))
            .collect::<Result<Vec<_>, _>>();
        scopes.and_then(Self::union).map_err(D::Error::custom)
    }
}

fn element(text: &str) -> Result<Scope, ScopeError> {
    let bad = || ScopeError::Malformed(text.chars().take(40).collect());
    if text == "any" {
        return Ok(Scope::Any);
    }
    let (protocol, ports) = text.split_once('/').ok_or_else(bad)?;
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => return Err(bad()),
    };
    let (from, to) = ports.split_once('-').unwrap_or((ports, ports));
    let (from, to) = (port(from).ok_or_else(bad)?, port(to).ok_or_else(bad)?);
    if from > to {
        return Err(bad());
    }
    Ok(Scope::Ports(vec![(protocol, from, to)]))
}

/// Parses a port of 1..=65535 in its only decimal form.
fn port(text: &str) -> Option<u16> {
    let port = text.parse::<u16>().ok().filter(|p| *p > 0)?;
    (port.to_string() == text).then_some(port)
}

fn range_text((protocol, from, to): &(Protocol, u16, u16)) -> String {
    if from == to {
        format!("{protocol}/{from}")
    } else {
        format!("{protocol}/{from}-{to}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn scope(text: &str) -> Scope {
        text.parse().unwrap()
    }

    #[test]
    fn a_scope_lets_in_what_it_lists() {
        let narrow = scope("tcp/8000,udp/5000-5010");

        assert!(narrow.allows(Protocol::Tcp, 8000) && narrow.allows(Protocol::Udp, 5010));
        assert!(!narrow.allows(Protocol::Tcp, 8001) && !narrow.allows(Protocol::Udp, 8000));
        assert!(Scope::Any.covers(&narrow) && !narrow.covers(&Scope::Any));
        assert!(narrow.covers(&scope("udp/5001-5002")) && !narrow.covers(&scope("udp/4999-5001")));
        assert!(scope("").is_replies_only() && !scope("").allows(Protocol::Tcp, 1));
    }

    #[test]
    fn other_texts_are_not_scopes() {
        for text in [
            "tcp",
            "tcp/",
            "tcp/0",
            "tcp/08",
            "tcp/9-8",
            "tcp/65536",
            "icmp/1",
            "any/1",
        ] {
            assert!(text.parse::<Scope>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn scopes_survive_text_and_json(ranges in prop::collection::vec(
            (any::<bool>(), 1_u16.., 0_u16..100), 0..9,
        )) {
            let parts = ranges.iter().map(|(udp, from, more)| {
                let protocol = if *udp { Protocol::Udp } else { Protocol::Tcp };
                Scope::Ports(vec![(protocol, *from, from.saturating_add(*more))])
            });
            let scope = Scope::union(parts).unwrap();

            prop_assert_eq!(&scope.to_string().parse::<Scope>().unwrap(), &scope);
            let json = serde_json::to_string(&scope).unwrap();
            prop_assert_eq!(serde_json::from_str::<Scope>(&json).unwrap(), scope);
        }
    }
}

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use thiserror::Error;

/// Longest name in text form without the final dot (RFC 1035 section 2.3.4).
const MAX_NAME: usize = 253; // bytes

/// Deepest member name: an agent and its sub-agents, far above use and far below [`MAX_NAME`].
const MAX_LABELS: usize = 8;

/// What is wrong with a name.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum NameError {
    #[error("`{0}` is not a label (1 to 63 of a-z, 0-9 and inner hyphens)")]
    BadLabel(String),
    #[error("a name has 1 to {MAX_LABELS} labels and at most {MAX_NAME} bytes")]
    BadLength,
    #[error("`{0}` is not of the form AGENT.NETWORK.{1}")]
    NotInSuffix(String, Suffix),
    #[error("`{0}` is not a name pattern (labels with at most one * each)")]
    BadPattern(String),
}

/// One DNS label: lower-case LDH, 1..=63 bytes (RFC 1035 section 2.3.1, RFC 5891 section 2.3.1).
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Label(String);

impl Label {
    /// Returns the label.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Label {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let ldh = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let inner = !text.starts_with('-') && !text.ends_with('-');
        if (1..=63).contains(&text.len()) && inner && text.bytes().all(ldh) {
            return Ok(Self(text.to_owned()));
        }
        Err(NameError::BadLabel(shortened(text)))
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An agent's name inside its network, sub-agent first: `planner`, `child.planner`.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct MemberName(Vec<Label>);

impl MemberName {
    /// Returns the labels, most specific first.
    pub fn labels(&self) -> &[Label] {
        &self.0
    }

    /// Returns the name of the agent whose namespace this name is directly in; None at the top.
    pub fn parent(&self) -> Option<Self> {
        match self.0.as_slice() {
            [] | [_] => None,
            [_, rest @ ..] => Some(Self(rest.to_vec())),
        }
    }

    /// Returns the whole name.
    pub fn full(&self, network: &Label, suffix: &Suffix) -> FullName {
        FullName {
            member: self.clone(),
            network: network.clone(),
            suffix: suffix.clone(),
        }
    }
}

impl FromStr for MemberName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Ok(Self(labels(text)?))
    }
}

impl fmt::Display for MemberName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_labels(&self.0, f)
    }
}

impl fmt::Debug for MemberName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The DNS suffix of a deployment, `agent` unless configured.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Suffix(Vec<Label>);

impl Default for Suffix {
    fn default() -> Self {
        Self(vec![Label("agent".to_owned())])
    }
}

impl FromStr for Suffix {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Ok(Self(labels(text)?))
    }
}

impl fmt::Display for Suffix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_labels(&self.0, f)
    }
}

impl fmt::Debug for Suffix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An agent's whole name: `planner.acme.agent`.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct FullName {
    member: MemberName,
    network: Label,
    suffix: Suffix,
}

impl FullName {
    /// Parses a name below `suffix`; case and one final dot do not matter (RFC 4343).
    pub fn parse(text: &str, suffix: &Suffix) -> Result<Self, NameError> {
        let lower = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let inside = lower
            .strip_suffix(&suffix.to_string())
            .and_then(|t| t.strip_suffix('.'));
        let (member, network) = inside
            .and_then(|t| t.rsplit_once('.'))
            .ok_or_else(|| NameError::NotInSuffix(shortened(text), suffix.clone()))?;
        if lower.len() > MAX_NAME {
            return Err(NameError::BadLength);
        }
        Ok(member
            .parse::<MemberName>()?
            .full(&network.parse()?, suffix))
    }

    /// Returns the name inside the network.
    pub const fn member(&self) -> &MemberName {
        &self.member
    }

    /// Returns the network's label.
    pub const fn network(&self) -> &Label {
        &self.network
    }
}

impl fmt::Display for FullName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.member, self.network, self.suffix)
    }
}

impl fmt::Debug for FullName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A pattern of member names: labels in which one `*` stands for any characters of that label.
///
/// A pattern never spans labels: `*` covers `planner` and not `child.planner`, whose namespace
/// belongs to `planner`.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct NamePattern(Vec<LabelPattern>);

#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
struct LabelPattern {
    start: String,
    /// What must follow the `*`; None without one.
    end: Option<String>,
}

impl NamePattern {
    /// Returns the pattern that covers every name of one label.
    pub fn any() -> Self {
        Self(vec![LabelPattern {
            start: String::new(),
            end: Some(String::new()),
        }])
    }

    /// Returns the pattern that covers exactly `name`.
    pub fn exactly(name: &MemberName) -> Self {
        Self(
            name.0
                .iter()
                .map(|l| LabelPattern {
                    start: l.0.clone(),
                    end: None,
                })
                .collect(),
        )
    }

    /// Tells whether every name that `other` covers is covered by this one.
    pub fn covers(&self, other: &Self) -> bool {
        self.0.len() == other.0.len() && self.0.iter().zip(&other.0).all(|(a, b)| a.covers(b))
    }

    /// Tells whether `name` matches.
    pub fn matches(&self, name: &MemberName) -> bool {
        self.covers(&Self::exactly(name))
    }

    /// Returns the one name this pattern covers; None when it has a `*`.
    pub fn exact(&self) -> Option<MemberName> {
        self.to_string().parse().ok()
    }

    /// Tells whether every covered name is one label below `parent` (the slice a parent manages).
    pub fn is_child_of(&self, parent: &MemberName) -> bool {
        match self.0.as_slice() {
            [_, rest @ ..] => rest == Self::exactly(parent).0.as_slice(),
            [] => false,
        }
    }
}

impl LabelPattern {
    fn covers(&self, other: &Self) -> bool {
        let Some(end) = &self.end else {
            return self == other;
        };
        let fits = |text: &str| {
            text.len() >= self.start.len() + end.len()
                && text.starts_with(&self.start)
                && text.ends_with(end.as_str())
        };
        match &other.end {
            // Whatever the other's star stands for, its two ends already satisfy ours.
            Some(other_end) => other.start.starts_with(&self.start) && other_end.ends_with(end),
            None => fits(&other.start),
        }
    }
}

impl FromStr for NamePattern {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let bad = || NameError::BadPattern(shortened(text));
        let label = |part: &str| {
            // A star may stand for something, so any valid label proves the rest of it valid.
            part.replacen('*', "0", 1)
                .parse::<Label>()
                .map_err(|_| bad())?;
            Ok(match part.split_once('*') {
                Some((start, end)) => LabelPattern {
                    start: start.to_owned(),
                    end: Some(end.to_owned()),
                },
                None => LabelPattern {
                    start: part.to_owned(),
                    end: None,
                },
            })
        };
        if text.len() > MAX_NAME || text.split('.').count() > MAX_LABELS {
            return Err(NameError::BadLength);
        }
        Ok(Self(
            text.split('.').map(label).collect::<Result<Vec<_>, _>>()?,
        ))
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, label) in self.0.iter().enumerate() {
            let dot = if i == 0 { "" } else { "." };
            write!(f, "{dot}{}", label.start)?;
            if let Some(end) = &label.end {
                write!(f, "*{end}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

macro_rules! serde_as_text {
    ($($name:ident)*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
            }
        }
    )*};
}

serde_as_text!(Label MemberName Suffix NamePattern);

fn labels(text: &str) -> Result<Vec<Label>, NameError> {
    if text.len() > MAX_NAME || text.split('.').count() > MAX_LABELS {
        return Err(NameError::BadLength);
    }
    text.split('.').map(str::parse).collect()
}

fn write_labels(labels: &[Label], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for (i, label) in labels.iter().enumerate() {
        let dot = if i == 0 { "" } else { "." };
        write!(f, "{dot}{label}")?;
    }
    Ok(())
}

/// Returns what of a bad name may stand in an error message.
fn shortened(text: &str) -> String {
    text.chars()
        .take(80)
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn member(text: &str) -> MemberName {
        text.parse().unwrap()
    }

    fn pattern(text: &str) -> NamePattern {
        text.parse().unwrap()
    }

    #[test]
    fn a_full_name_has_agent_network_and_suffix() {
        let name = FullName::parse("Planner.ACME.agent.", &Suffix::default()).unwrap();

        assert_eq!(name.to_string(), "planner.acme.agent");
        assert_eq!(
            (name.member(), name.network().as_str()),
            (&member("planner"), "acme")
        );
        for text in [
            "acme.agent",
            "agent",
            ".acme.agent",
            "a.b.example",
            "a..acme.agent",
            "",
        ] {
            assert!(FullName::parse(text, &Suffix::default()).is_err(), "{text}");
        }
    }

    #[test]
    fn labels_are_lower_case_ldh() {
        for text in ["", "-a", "a-", "a_b", "A", "ä", "a b", &"a".repeat(64)] {
            assert!(text.parse::<Label>().is_err(), "{text}");
        }
        assert!("xn--bcher-kva".parse::<Label>().is_ok());
    }

    #[test]
    fn a_pattern_stays_within_its_label() {
        assert!(pattern("worker-*").matches(&member("worker-7")));
        assert!(pattern("worker-*").covers(&pattern("worker-a*z")));
        assert!(!pattern("worker-*").matches(&member("x.worker-7")));
        assert!(!pattern("worker-*").covers(&pattern("*")));
        assert!(!pattern("ab*ba").matches(&member("aba")));
        assert!(pattern("*.planner").is_child_of(&member("planner")));
        assert!(!pattern("*.*.planner").is_child_of(&member("planner")));
        assert_eq!(pattern("a.b").exact(), Some(member("a.b")));
        assert_eq!(pattern("a*").exact(), None);
    }

    proptest! {
        #[test]
        fn what_a_covered_pattern_matches_the_covering_one_matches(
            a in "[ab]{0,2}\\*?[ab]{0,2}", b in "[ab]{0,2}\\*?[ab]{0,2}", name in "[ab]{1,5}",
        ) {
            let (Ok(a), Ok(b)) = (a.parse::<NamePattern>(), b.parse::<NamePattern>()) else {
                return Ok(());
            };
            if a.covers(&b) && b.matches(&member(&name)) {
                prop_assert!(a.matches(&member(&name)));
            }
        }

        #[test]
        fn names_and_patterns_survive_text(text in "[a-z0-9-]{1,9}(\\.[a-z0-9*-]{1,9}){0,3}") {
            if let Ok(name) = text.parse::<MemberName>() {
                prop_assert_eq!(name.to_string(), text.clone());
            }
            if let Ok(pattern) = text.parse::<NamePattern>() {
                prop_assert_eq!(pattern.to_string(), text);
            }
        }

        #[test]
        fn any_text_gives_a_name_or_an_error(text in "\\PC{0,300}") {
            drop(text.parse::<MemberName>());
            drop(text.parse::<NamePattern>());
            drop(FullName::parse(&text, &Suffix::default()));
        }
    }
}

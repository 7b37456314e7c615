//! Names, keys, addresses, scopes and tokens, as people and files give them.

use std::{fmt, str::FromStr};

use agentnet::id::{
    Did, FullName, Label, MemberName, NamePattern, NetworkPrefix, OverlayIp, Suffix, TunnelKey,
};
use agentnet::registry::watch::Cursor;
use agentnet::statement::{
    Protocol, Scope, StatementHash,
    token::{JoinToken, OperatorToken, Reveal},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Serialize, de::DeserializeOwned};

use super::input::Input;
use super::memory::bounded;

/// One of the types with a text form, by the first byte.
pub(super) fn text(data: &[u8]) {
    let mut input = Input::new(data);
    let kind = input.byte();
    let Ok(text) = std::str::from_utf8(input.rest()) else {
        return;
    };
    match kind % 12 {
        0 => one_form::<Did>(text),
        1 => one_form::<TunnelKey>(text),
        2 => one_form::<Label>(text),
        3 => one_form::<MemberName>(text),
        4 => one_form::<Suffix>(text),
        5 => one_form::<NamePattern>(text),
        6 => {
            survives::<NetworkPrefix>(text);
        }
        7 => {
            survives::<OverlayIp>(text);
        }
        8 => scope(text),
        9 => full_name(text),
        10 => patterns(text),
        _ => {
            let cursor = Cursor::parse(text, "epoch");
            let told = cursor.as_ref().map(ToString::to_string);
            assert_eq!(told.and_then(|t| Cursor::parse(&t, "epoch")), cursor);
            let quoted = serde_json::to_string(text).expect("a text is JSON");
            if let Ok(hash) = serde_json::from_str::<StatementHash>(&quoted) {
                assert_eq!(hash.to_string(), text);
            }
        }
    }
}

/// What a text means is written as a text that means the same; also in JSON.
fn survives<T>(text: &str) -> Option<T>
where
    T: FromStr + fmt::Display + fmt::Debug + PartialEq + Serialize + DeserializeOwned,
{
    let read = bounded(text.as_bytes(), 64, 4096, || text.parse::<T>().ok());
    let quoted = serde_json::to_string(text).expect("a text is JSON");
    assert_eq!(serde_json::from_str::<T>(&quoted).ok(), read);
    let value = read?;
    assert_eq!(value.to_string().parse::<T>().ok().as_ref(), Some(&value));
    let json = serde_json::to_string(&value).expect("it came out of JSON");
    assert_eq!(serde_json::from_str::<T>(&json).ok().as_ref(), Some(&value));
    Some(value)
}

/// There is one text for each value.
fn one_form<T>(text: &str)
where
    T: FromStr + fmt::Display + fmt::Debug + PartialEq + Serialize + DeserializeOwned,
{
    if let Some(value) = survives::<T>(text) {
        assert_eq!(value.to_string(), text);
    }
}

fn scope(text: &str) {
    let Ok(scope) = bounded(text.as_bytes(), 64, 4096, || text.parse::<Scope>()) else {
        return;
    };
    assert_eq!(scope.to_string().parse::<Scope>().as_ref(), Ok(&scope));
    let json = serde_json::to_vec(&scope).expect("a scope is JSON");
    let again = serde_json::from_slice::<Scope>(&json).expect("and is read again");
    assert_eq!(again, scope);
    assert!(Scope::Any.covers(&scope) && scope.covers(&scope));
    assert!(!scope.is_replies_only() || !scope.allows(Protocol::Tcp, 80));
    assert!(!scope.allows(Protocol::Udp, 0) || scope == Scope::Any);
}

fn full_name(text: &str) {
    let suffix = Suffix::default();
    let Ok(name) = FullName::parse(text, &suffix) else {
        return;
    };
    assert_eq!(
        FullName::parse(&name.to_string(), &suffix).as_ref(),
        Ok(&name)
    );
    let again = name.member().full(name.network(), &suffix);
    assert_eq!(again, name);
}

/// Two patterns and a name, on lines of their own.
fn patterns(text: &str) {
    let mut lines = text.lines();
    let mut pattern = || {
        lines
            .next()
            .and_then(|line| line.parse::<NamePattern>().ok())
    };
    let (Some(wide), Some(narrow)) = (pattern(), pattern()) else {
        return;
    };
    assert!(wide.covers(&wide) && NamePattern::any().covers(&NamePattern::any()));
    if let Some(exact) = narrow.exact() {
        assert!(narrow.matches(&exact));
        assert_eq!(wide.covers(&narrow), wide.matches(&exact));
    }
    let Some(name) = lines
        .next()
        .and_then(|line| line.parse::<MemberName>().ok())
    else {
        return;
    };
    let child = narrow.is_child_of(&name);
    assert!(
        !child
            || narrow
                .exact()
                .and_then(|n| n.parent())
                .is_none_or(|p| p == name)
    );
    assert!(
        !(wide.covers(&narrow) && narrow.matches(&name)) || wide.matches(&name),
        "what covers a pattern matches all it matches"
    );
}

/// Token strings as they are, and the JSON inside of one.
pub(super) fn token(data: &[u8]) {
    let mut input = Input::new(data);
    let kind = input.byte();
    let rest = input.rest();
    let text = match kind % 4 {
        0 => format!("agn1_{}", URL_SAFE_NO_PAD.encode(rest)),
        1 => format!("agno1_{}", URL_SAFE_NO_PAD.encode(rest)),
        _ => String::from_utf8_lossy(rest).into_owned(),
    };
    if let Some(token) = read::<JoinToken>(&text) {
        let shown = token.reveal();
        assert_eq!(read::<JoinToken>(&shown).map(|t| t.reveal()), Some(shown));
        assert!(
            token
                .open_chain()
                .is_ok_and(|chain| chain.grants().len() <= 10)
        );
    }
    if let Some(token) = read::<OperatorToken>(&text) {
        let shown = token.reveal();
        assert_eq!(
            read::<OperatorToken>(&shown).map(|t| t.reveal()),
            Some(shown)
        );
    }
}

/// The grants of a token are parsed too, each into its claims.
fn read<T: FromStr>(text: &str) -> Option<T> {
    bounded(text.as_bytes(), 64, 64 * 1024, || text.parse().ok())
}

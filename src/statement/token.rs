//! The strings people hand over: a join token and an operator token hold all that is needed.

use std::{fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;

use crate::id::{DomainId, IdentityKey, NetworkId, NetworkPrefix};
use crate::statement::{Chain, ChainError, MAX_STATEMENT};

const JOIN: &str = "agn1_";
const OPERATOR: &str = "agno1_";

/// Why a text is not a token.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum TokenError {
    #[error("not a token (expected one that starts with `{0}`)")]
    WrongPrefix(&'static str),
    #[error("the token is damaged; copy it again, whole")]
    Damaged,
    #[error("the token's secret is not the key its grants end in")]
    WrongKey,
    #[error(transparent)]
    Chain(#[from] ChainError),
}

/// Everything a joiner needs in one string: `agn1_...`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct JoinToken {
    /// Grants from the root to the token.
    pub chain: Vec<String>,
    /// The token's secret key.
    pub key: IdentityKey,
    /// Registry URL, `https://host:port`.
    pub url: String,
    /// SHA-256 of the registry's TLS SubjectPublicKeyInfo, base64url.
    pub pin: String,
    pub domain: DomainId,
    pub network: NetworkId,
    pub prefix: NetworkPrefix,
}

impl JoinToken {
    /// Opens the chain and checks that it ends in this token's key.
    pub fn open_chain(&self) -> Result<Chain, TokenError> {
        let chain = Chain::parse(&self.chain)?;
        let last = chain.grants().last().map(|grant| grant.subject());
        if last != Some(self.key.did()) {
            return Err(TokenError::WrongKey);
        }
        Ok(chain)
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let token = decode::<Self>(text, JOIN)?;
        token.open_chain()?;
        Ok(token)
    }
}

/// Everything an operator's tool needs in one string: `agno1_...`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct OperatorToken {
    /// The operator's secret key.
    pub key: IdentityKey,
    /// Registry URL, `https://host:port`.
    pub url: String,
    /// SHA-256 of the registry's TLS SubjectPublicKeyInfo, base64url.
    pub pin: String,
    pub domain: DomainId,
}

impl FromStr for OperatorToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        decode(text, OPERATOR)
    }
}

/// A token as text. There is no `Display` on tokens, so that none is printed by accident.
pub trait Reveal {
    /// Returns the secret text.
    fn reveal(&self) -> String;
}

impl Reveal for JoinToken {
    fn reveal(&self) -> String {
        encode(self, JOIN)
    }
}

impl Reveal for OperatorToken {
    fn reveal(&self) -> String {
        encode(self, OPERATOR)
    }
}

fn encode<T: Serialize + fmt::Debug>(token: &T, prefix: &str) -> String {
    let json = serde_json::to_vec(token).expect("a token is plain strings");
    format!("{prefix}{}", URL_SAFE_NO_PAD.encode(json))
}

fn decode<T: DeserializeOwned>(text: &str, prefix: &'static str) -> Result<T, TokenError> {
    let text = text.trim();
    let body = text
        .strip_prefix(prefix)
        .ok_or(TokenError::WrongPrefix(prefix))?;
    if body.len() > 2 * MAX_STATEMENT {
        return Err(TokenError::Damaged);
    }
    let json = URL_SAFE_NO_PAD
        .decode(body)
        .map_err(|_| TokenError::Damaged)?;
    serde_json::from_slice(&json).map_err(|_| TokenError::Damaged)
}

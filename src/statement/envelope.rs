use std::{fmt, sync::Arc};

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize, Serializer, de::DeserializeOwned};
use thiserror::Error;

use crate::id::{Did, IdentityKey, NetworkId, UnixTime};

/// Largest statement; bounds what a stranger can make a receiver hold (protocol.md section 2).
pub const MAX_STATEMENT: usize = 16 * 1024; // bytes

/// The one version of claims this code knows.
const VERSION: u8 = 1;

/// How far ahead of the receiver's clock a statement may be dated.
const AHEAD: std::time::Duration = std::time::Duration::from_secs(60);

/// PKCS#8 v1 around an Ed25519 seed (RFC 8410 section 7).
const PKCS8_ED25519: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// Why bytes are not a statement that can be believed now.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum StatementError {
    #[error("the statement is larger than {MAX_STATEMENT} bytes")]
    TooLarge,
    #[error("not a statement: {0}")]
    Malformed(String),
    #[error("the statement is a `{found}`, expected `{expected}`")]
    WrongKind {
        expected: &'static str,
        found: String,
    },
    #[error("the statement has version {0}, this agentnet knows {VERSION}")]
    WrongVersion(u8),
    #[error("the signature does not match")]
    BadSignature,
    #[error("the statement is dated {0}, ahead of this clock")]
    FromFuture(UnixTime),
    #[error("the statement expired at {0}")]
    Expired(UnixTime),
}

/// A kind of statement: its claims beyond the common ones.
pub trait Claims: Clone + fmt::Debug + Serialize + DeserializeOwned {
    /// The JWT header's `typ`.
    const TYP: &'static str;
}

/// The common claims a signer chooses.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Head {
    pub subject: Did,
    /// None only for statements about the domain.
    pub network: Option<NetworkId>,
    pub issued: UnixTime,
    pub expires: UnixTime,
    /// Unix milliseconds at signing, above the issuer's last.
    pub seq: u64,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
struct Body<C> {
    iss: Did,
    sub: Did,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    net: Option<NetworkId>,
    iat: u64,
    exp: u64,
    seq: u64,
    v: u8,
    #[serde(flatten)]
    claims: C,
}

/// A signed claim whose signature, kind, version and size hold.
#[derive(Clone)]
pub struct Statement<C> {
    text: Arc<str>,
    body: Body<C>,
}

impl<C: Claims> Statement<C> {
    /// Signs `claims`; fails only when they do not fit a statement.
    pub fn sign(key: &IdentityKey, head: Head, claims: C) -> Result<Self, StatementError> {
        let mut header = Header::new(Algorithm::EdDSA);
        header.typ = Some(C::TYP.to_owned());
        let body = Body {
            iss: key.did(),
            sub: head.subject,
            net: head.network,
            iat: head.issued.as_secs(),
            exp: head.expires.as_secs(),
            seq: head.seq,
            v: VERSION,
            claims,
        };
        let mut der = PKCS8_ED25519.to_vec();
        der.extend(key.seed());
        let signer = EncodingKey::from_ed_der(&der);
        zeroize::Zeroize::zeroize(&mut der);
        let text = jsonwebtoken::encode(&header, &body, &signer)
            .map_err(|error| StatementError::Malformed(error.to_string()))?;
        if text.len() > MAX_STATEMENT {
            return Err(StatementError::TooLarge);
        }
        Ok(Self {
            text: text.into(),
            body,
        })
    }

    /// Opens a statement and checks everything but time.
    pub fn open(text: &str) -> Result<Self, StatementError> {
        if text.len() > MAX_STATEMENT {
            return Err(StatementError::TooLarge);
        }
        let header = jsonwebtoken::decode_header(text).map_err(|error| malformed(&error))?;
        // RFC 7515 section 4.1.11: an extension that must be understood is not.
        if header.extras.inner().contains_key("crit") {
            return Err(StatementError::Malformed(
                "the header has `crit`".to_owned(),
            ));
        }
        let found = header.typ.unwrap_or_default();
        if found != C::TYP {
            let found = found.chars().take(40).collect::<String>();
            return Err(StatementError::WrongKind {
                expected: C::TYP,
                found,
            });
        }
        let Claimed { iss, v } = jsonwebtoken::dangerous::insecure_decode_claims(text)
            .map_err(|error| malformed(&error))?;
        if v != VERSION {
            return Err(StatementError::WrongVersion(v));
        }
        let key = DecodingKey::from_ed_der(iss.as_bytes());
        let body = jsonwebtoken::decode::<Body<C>>(text, &key, &signature_only())
            .map_err(|error| {
                let forged = matches!(
                    error.kind(),
                    jsonwebtoken::errors::ErrorKind::InvalidSignature
                );
                if forged {
                    StatementError::BadSignature
                } else {
                    malformed(&error)
                }
            })?
            .claims;
        Ok(Self {
            text: text.into(),
            body,
        })
    }

    /// Opens a statement that must also hold at `now`.
    pub fn open_at(text: &str, now: UnixTime) -> Result<Self, StatementError> {
        let statement = Self::open(text)?;
        statement.check_time(now)?;
        Ok(statement)
    }

    /// Checks that the statement is neither expired nor from the future.
    pub fn check_time(&self, now: UnixTime) -> Result<(), StatementError> {
        let dated = self.dated();
        if dated > now + AHEAD {
            return Err(StatementError::FromFuture(dated));
        }
        if now >= self.expires() {
            return Err(StatementError::Expired(self.expires()));
        }
        Ok(())
    }

    /// Returns the hash that names this statement: SHA-256 of `header.payload`.
    ///
    /// The signature is outside, so nobody can give one statement two hashes.
    pub fn hash(&self) -> StatementHash {
        StatementHash::of(&self.text)
    }
}

impl<C> Statement<C> {
    /// Returns when it was signed: its sequence number tells that to the millisecond.
    pub fn dated(&self) -> UnixTime {
        UnixTime::from_millis(self.body.seq).max(self.issued())
    }

    /// Returns the compact JWT.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns the signer.
    pub const fn issuer(&self) -> Did {
        self.body.iss
    }

    /// Returns whom the claim is about.
    pub const fn subject(&self) -> Did {
        self.body.sub
    }

    /// Returns the network; None for statements about the domain.
    pub const fn network(&self) -> Option<NetworkId> {
        self.body.net
    }

    /// Returns when it was signed, by the signer's clock.
    pub const fn issued(&self) -> UnixTime {
        UnixTime::from_secs(self.body.iat)
    }

    /// Returns the moment from which it no longer holds.
    pub const fn expires(&self) -> UnixTime {
        UnixTime::from_secs(self.body.exp)
    }

    /// Returns the sequence number.
    pub const fn seq(&self) -> u64 {
        self.body.seq
    }

    /// Returns the claims of this kind.
    pub const fn claims(&self) -> &C {
        &self.body.claims
    }
}

impl<C> fmt::Debug for Statement<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Statement({} about {}, seq {})",
            self.body.iss, self.body.sub, self.body.seq
        )
    }
}

impl<C> PartialEq for Statement<C> {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl<C> Eq for Statement<C> {}

impl<C> Serialize for Statement<C> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

/// Reads a statement back and checks everything but time, as [`Statement::open`] does.
impl<'de, C: Claims> Deserialize<'de> for Statement<C> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::open(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// SHA-256 of a statement's header and payload; text form base64url without padding.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct StatementHash([u8; 32]);

impl StatementHash {
    /// Returns the hash of a compact JWT, whatever it says and whoever signed it.
    pub fn of(text: &str) -> Self {
        let signed = text.rsplit_once('.').map_or("", |(signed, _)| signed);
        let mut out = [0; 32];
        out.copy_from_slice(digest(&SHA256, signed.as_bytes()).as_ref());
        Self(out)
    }

    /// Returns the 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for StatementHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for StatementHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for StatementHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for StatementHash {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = URL_SAFE_NO_PAD.decode(String::deserialize(deserializer)?);
        let bytes = bytes.ok().and_then(|b| b.try_into().ok());
        bytes
            .map(Self)
            .ok_or_else(|| serde::de::Error::custom("not a statement hash"))
    }
}

#[derive(Deserialize)]
struct Claimed {
    iss: Did,
    v: u8,
}

/// Returns the kind that a statement says it is, its `typ`; nothing of it is checked.
pub fn kind_of(text: &str) -> Result<String, StatementError> {
    if text.len() > MAX_STATEMENT {
        return Err(StatementError::TooLarge);
    }
    let header = jsonwebtoken::decode_header(text).map_err(|error| malformed(&error))?;
    Ok(header.typ.unwrap_or_default())
}

/// Returns the rules by which jsonwebtoken checks the signature and reads no clock.
fn signature_only() -> Validation {
    let mut validation = Validation::new(Algorithm::EdDSA);
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    validation
}

fn malformed(error: &jsonwebtoken::errors::Error) -> StatementError {
    StatementError::Malformed(error.to_string().chars().take(120).collect())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::statement::{Consent, ConsentState, Grant, Scope};
    use proptest::prelude::*;

    const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

    fn key(n: u8) -> IdentityKey {
        IdentityKey::from_seed([n; 32])
    }

    fn head() -> Head {
        Head {
            subject: key(2).did(),
            network: Some(key(3).did().into()),
            issued: NOW,
            expires: NOW + Duration::from_secs(60),
            seq: NOW.as_millis(),
        }
    }

    fn consent() -> Statement<Consent> {
        let claims = Consent {
            inbound: "tcp/8000".parse::<Scope>().unwrap(),
            children: false,
            state: ConsentState::Active,
            re: None,
        };
        Statement::sign(&key(1), head(), claims).unwrap()
    }

    #[test]
    fn a_statement_survives_its_text() {
        let signed = consent();

        let opened = Statement::<Consent>::open_at(signed.text(), NOW).unwrap();

        assert_eq!(opened, signed);
        assert_eq!(opened.issuer(), key(1).did());
        assert_eq!(opened.claims().inbound, signed.claims().inbound);
        assert_eq!(opened.hash(), signed.hash());
    }

    #[test]
    fn another_kind_expired_early_or_oversize_is_refused() {
        let text = consent().text().to_owned();

        let kind = Statement::<Grant>::open(&text);
        let late = Statement::<Consent>::open_at(&text, NOW + Duration::from_secs(60));
        let early = Statement::<Consent>::open_at(&text, NOW.before(Duration::from_secs(61)));
        let large = Statement::<Consent>::open(&"a".repeat(MAX_STATEMENT + 1));

        assert!(matches!(kind, Err(StatementError::WrongKind { .. })));
        assert!(matches!(late, Err(StatementError::Expired(_))));
        assert!(matches!(early, Err(StatementError::FromFuture(_))));
        assert!(matches!(large, Err(StatementError::TooLarge)));
    }

    /// Learnt from nebula's GHSA-69x3-g4r3-p962: no statement has a second text under which it could be
    /// taken for another (RFC 8032 section 5.1.7 wants S below the group's order).
    #[test]
    fn a_signature_has_one_form() {
        const ORDER: [u8; 16] = [
            0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9,
            0xde, 0x14,
        ];
        let text = consent().text().to_owned();
        let (signed, signature) = text.rsplit_once('.').unwrap();
        let mut bytes = URL_SAFE_NO_PAD.decode(signature).unwrap();
        let order = ORDER.into_iter().chain([0; 15]).chain([0x10]);
        let mut carry = 0;
        for (byte, add) in bytes[32..].iter_mut().zip(order) {
            let sum = u16::from(*byte) + u16::from(add) + carry;
            (*byte, carry) = (sum.to_le_bytes()[0], sum >> 8);
        }
        assert_eq!(carry, 0, "it is another writing of the same number");

        let opened =
            Statement::<Consent>::open(&format!("{signed}.{}", URL_SAFE_NO_PAD.encode(bytes)));

        assert!(
            matches!(opened, Err(StatementError::BadSignature)),
            "{opened:?}"
        );
    }

    #[test]
    fn a_sequence_number_far_ahead_is_refused() {
        let ahead = Head {
            seq: NOW.as_millis() + 61_000,
            ..head()
        };
        let claims = consent().claims().clone();

        let signed = Statement::sign(&key(1), ahead, claims).unwrap();

        assert!(matches!(
            signed.check_time(NOW),
            Err(StatementError::FromFuture(_))
        ));
    }

    #[test]
    fn an_unknown_version_says_so() {
        let signed = consent();
        let (header, rest) = signed.text().split_once('.').unwrap();
        let (payload, signature) = rest.split_once('.').unwrap();
        let payload = String::from_utf8(URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap();
        let payload = URL_SAFE_NO_PAD.encode(payload.replace("\"v\":1", "\"v\":2"));

        let opened = Statement::<Consent>::open(&format!("{header}.{payload}.{signature}"));

        assert_eq!(opened.unwrap_err(), StatementError::WrongVersion(2));
    }

    proptest! {
        /// nothing of a statement can be changed by one who has not its key.
        #[test]
        fn a_statement_changed_anywhere_is_refused(at in 0_usize..2000, to in 33_u8..127) {
            let mut text = consent().text().as_bytes().to_vec();
            let at = at % text.len();
            prop_assume!(text[at] != to);
            text[at] = to;

            let opened = Statement::<Consent>::open(std::str::from_utf8(&text).unwrap());

            prop_assert!(opened.is_err());
        }

        #[test]
        fn any_text_gives_a_statement_or_an_error(text in "\\PC{0,400}") {
            prop_assert!(Statement::<Consent>::open(&text).is_err());
        }
    }
}

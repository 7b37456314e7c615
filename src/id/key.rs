use std::{fmt, str::FromStr};

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use boringtun::x25519::{PublicKey, StaticSecret};
use ed25519_dalek::{SigningKey, VerifyingKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use thiserror::Error;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Multicodec ed25519-pub (0xed) as an unsigned varint, the prefix of a did:key payload.
const ED25519_PUB: [u8; 2] = [0xed, 0x01];
const DID_KEY: &str = "did:key:z";

/// What is wrong with a key in text or bytes.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum KeyError {
    #[error("not a did:key of an Ed25519 key (expected did:key:z6Mk...)")]
    NotDidKey,
    #[error("the bytes are not a point of the Ed25519 curve, or of small order")]
    NotAPoint,
    #[error("not 32 bytes of unpadded base64url")]
    NotBase64,
    #[error(
        "not a key of WireGuard (expected 44 characters of base64, as `wg pubkey` prints them)"
    )]
    NotWireGuard,
    #[error("the key is of small order: everybody could speak for it")]
    SmallOrder,
}

/// An Ed25519 public key, checked to decompress and not of small order; text form `did:key:z6Mk...`.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Did([u8; 32]);

impl Did {
    /// Checks and takes a public key.
    pub fn from_bytes(bytes: [u8; 32]) -> Result<Self, KeyError> {
        let key = VerifyingKey::from_bytes(&bytes).map_err(|_| KeyError::NotAPoint)?;
        if key.is_weak() {
            return Err(KeyError::NotAPoint);
        }
        Ok(Self(bytes))
    }

    /// Returns the public key.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Did {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = ED25519_PUB.to_vec();
        bytes.extend(self.0);
        write!(f, "{DID_KEY}{}", bs58::encode(bytes).into_string())
    }
}

impl fmt::Debug for Did {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Did {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        // 34 bytes are at most 48 base58 digits; longer text is refused before it is decoded.
        let digits = text.strip_prefix(DID_KEY).filter(|t| t.len() <= 48);
        let bytes = digits
            .and_then(|t| bs58::decode(t).into_vec().ok())
            .ok_or(KeyError::NotDidKey)?;
        let key = bytes
            .strip_prefix(&ED25519_PUB)
            .ok_or(KeyError::NotDidKey)?;
        Self::from_bytes(key.try_into().map_err(|_| KeyError::NotDidKey)?)
    }
}

impl Serialize for Did {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Did {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

macro_rules! role_of_a_key {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Did);

        impl $name {
            /// Returns the key itself.
            pub const fn did(&self) -> Did {
                self.0
            }

            /// Returns the public key.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                self.0.as_bytes()
            }
        }

        impl From<Did> for $name {
            fn from(did: Did) -> Self {
                Self(did)
            }
        }

        impl FromStr for $name {
            type Err = KeyError;

            fn from_str(text: &str) -> Result<Self, KeyError> {
                text.parse().map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

role_of_a_key! {
    /// An agent: the identity key that its address and every claim about it follow from.
    AgentId
}
role_of_a_key! {
    /// A network: its root key, held by the owner.
    NetworkId
}
role_of_a_key! {
    /// A domain: the operator's root key, kept offline.
    DomainId
}

/// An Ed25519 secret key: an agent, network root, domain root, token or operator.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct IdentityKey {
    seed: [u8; 32],
    #[zeroize(skip)]
    did: Did,
}

impl IdentityKey {
    /// Makes the key that `seed` (32 random bytes) determines.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        let did = Did(SigningKey::from_bytes(&seed).verifying_key().to_bytes());
        Self { seed, did }
    }

    /// Returns the secret seed.
    pub const fn seed(&self) -> &[u8; 32] {
        &self.seed
    }

    /// Returns the public half.
    pub const fn did(&self) -> Did {
        self.did
    }
}

impl fmt::Debug for IdentityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IdentityKey({})", self.did)
    }
}

impl Serialize for IdentityKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&to_base64(&self.seed))
    }
}

impl<'de> Deserialize<'de> for IdentityKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        from_base64(&text)
            .map(Self::from_seed)
            .map_err(D::Error::custom)
    }
}

/// An X25519 public key: the WireGuard static key of one agent in one network, or of a gateway.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct TunnelKey([u8; 32]);

impl TunnelKey {
    /// Takes a public key; every 32 bytes are one (RFC 7748 section 5).
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the public key.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns the key as boringtun takes it.
    pub fn x25519(&self) -> PublicKey {
        PublicKey::from(self.0)
    }
}

impl fmt::Display for TunnelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_base64(&self.0))
    }
}

impl fmt::Debug for TunnelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for TunnelKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        from_base64(text).map(Self)
    }
}

impl Serialize for TunnelKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TunnelKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

/// An X25519 secret key, wiped when dropped.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct TunnelSecret([u8; 32]);

impl TunnelSecret {
    /// Makes the key that `seed` (32 random bytes) determines.
    pub const fn from_seed(seed: [u8; 32]) -> Self {
        Self(seed)
    }

    /// Returns the public half.
    pub fn public(&self) -> TunnelKey {
        TunnelKey(PublicKey::from(&self.x25519()).to_bytes())
    }

    /// Returns the key as boringtun takes it.
    pub fn x25519(&self) -> StaticSecret {
        StaticSecret::from(self.0)
    }

    /// Returns what only the holders of this key and of `other`'s secret can know (RFC 7748 section
    /// 6.1); None when `other` is of small order, so that everybody knew it.
    pub fn agree(&self, other: &TunnelKey) -> Option<Zeroizing<[u8; 32]>> {
        let shared = self.x25519().diffie_hellman(&other.x25519());
        shared
            .was_contributory()
            .then(|| Zeroizing::new(shared.to_bytes()))
    }
}

impl fmt::Debug for TunnelSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TunnelSecret({})", self.public())
    }
}

impl Serialize for TunnelSecret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&to_base64(&self.0))
    }
}

impl<'de> Deserialize<'de> for TunnelSecret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        from_base64(&text).map(Self).map_err(D::Error::custom)
    }
}

/// An X25519 public key in the text of WireGuard's tools, checked not to be of small order.
#[derive(Clone, Copy, Eq, Ord, PartialEq, PartialOrd)]
pub struct WireGuardKey(TunnelKey);

impl WireGuardKey {
    /// Returns the public half of `secret`.
    pub fn of(secret: &TunnelSecret) -> Self {
        Self(secret.public())
    }

    /// Returns the key itself.
    pub const fn tunnel(&self) -> TunnelKey {
        self.0
    }
}

impl fmt::Display for WireGuardKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0.as_bytes()))
    }
}

impl fmt::Debug for WireGuardKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for WireGuardKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let key = TunnelKey::from_bytes(from_wireguard(text)?);
        // Any secret tells: what a key of small order is agreed on with is the same for all.
        let agreed = TunnelSecret::from_seed([1; 32]).agree(&key);
        agreed.map(|_| Self(key)).ok_or(KeyError::SmallOrder)
    }
}

impl Serialize for WireGuardKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for WireGuardKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// A key that two ends of WireGuard share besides their own, as `wg genpsk` makes one.
#[derive(Clone, Eq, PartialEq, Zeroize, ZeroizeOnDrop)]
pub struct PresharedKey([u8; 32]);

impl PresharedKey {
    /// Returns the key.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresharedKey")
    }
}

impl FromStr for PresharedKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        from_wireguard(text).map(Self)
    }
}

impl Serialize for PresharedKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(self.0))
    }
}

impl<'de> Deserialize<'de> for PresharedKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// Reads 32 bytes as WireGuard's tools write them.
fn from_wireguard(text: &str) -> Result<[u8; 32], KeyError> {
    let bytes = Some(text)
        .filter(|t| t.len() == 44)
        .and_then(|t| STANDARD.decode(t).ok());
    let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or(KeyError::NotWireGuard)
}

fn to_base64(bytes: &[u8; 32]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn from_base64(text: &str) -> Result<[u8; 32], KeyError> {
    // 32 bytes are exactly 43 digits.
    let text = Some(text)
        .filter(|t| t.len() == 43)
        .ok_or(KeyError::NotBase64)?;
    let bytes = URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|_| KeyError::NotBase64)?;
    bytes.try_into().map_err(|_| KeyError::NotBase64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Z-012: the identity is the key. Vector: did:key of RFC 8032 section 7.1 test 1.
    #[test]
    fn a_key_has_one_did_key_text() {
        let seed = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
        let seed: Vec<u8> = (0..64)
            .step_by(2)
            .map(|i| u8::from_str_radix(&seed[i..i + 2], 16).unwrap())
            .collect::<Vec<_>>();
        let key = IdentityKey::from_seed(seed.try_into().unwrap());

        let text = key.did().to_string();

        assert_eq!(
            text,
            "did:key:z6MktwupdmLXVVqTzCw4i46r4uGyosGXRnR3XjN4Zq7oMMsw"
        );
        assert_eq!(text.parse::<Did>().unwrap(), key.did());
    }

    #[test]
    fn other_texts_are_not_keys() {
        for text in [
            "",
            "did:key:",
            "did:key:z6Mk",
            "did:key:zQ3s",
            "did:web:example.com",
        ] {
            assert_eq!(text.parse::<Did>(), Err(KeyError::NotDidKey), "{text}");
        }
        assert_eq!(Did::from_bytes([0; 32]), Err(KeyError::NotAPoint));
    }

    /// Vector: RFC 7748 section 6.1.
    #[test]
    fn two_keys_agree_unless_one_is_of_small_order() {
        let hex = |text: &str| -> [u8; 32] {
            let digits = (0..64).step_by(2).map(|i| &text[i..i + 2]);
            let bytes = digits.map(|two| u8::from_str_radix(two, 16).unwrap());
            bytes.collect::<Vec<_>>().try_into().unwrap()
        };
        let bob = "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb";
        let alice = "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a";
        let both = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742";
        let bob = TunnelSecret::from_seed(hex(bob));

        let shared = bob.agree(&TunnelKey::from_bytes(hex(alice))).unwrap();

        assert_eq!(*shared, hex(both));
        assert!(bob.agree(&TunnelKey::from_bytes([0; 32])).is_none());
    }

    #[test]
    fn secrets_do_not_show_in_debug() {
        let key = IdentityKey::from_seed([7; 32]);
        let secret = TunnelSecret::from_seed([7; 32]);
        let shared = PresharedKey([7; 32]);

        let shown = format!("{key:?}{secret:?}{shared:?}");

        assert!(
            !shown.contains(&to_base64(&[7; 32])) && !shown.contains(&STANDARD.encode([7; 32]))
        );
    }

    #[test]
    fn a_key_of_wireguard_is_base64_and_of_no_small_order() {
        // `wg pubkey` of the secret 1, 1, 1 ...
        let secret = TunnelSecret::from_seed([1; 32]);
        let text = "pOCSkrZRwni5dyxWn1+puxPZBrRqtoyd+dwrRAn4ogk=";
        assert_eq!(WireGuardKey::of(&secret).to_string(), text);
        assert_eq!(text.parse(), Ok(WireGuardKey::of(&secret)));

        let small = STANDARD.encode([0; 32]).parse::<WireGuardKey>();
        assert_eq!(small, Err(KeyError::SmallOrder));
        for other in ["", &text[1..], &secret.public().to_string(), "wg0"] {
            let read = other.parse::<WireGuardKey>();
            assert_eq!(read, Err(KeyError::NotWireGuard), "{other}");
            assert!(other.parse::<PresharedKey>().is_err(), "{other}");
        }
    }

    proptest! {
        #[test]
        fn keys_survive_text(seed: [u8; 32]) {
            let did = IdentityKey::from_seed(seed).did();
            let tunnel = TunnelSecret::from_seed(seed).public();

            prop_assert_eq!(did.to_string().parse::<Did>().unwrap(), did);
            prop_assert_eq!(tunnel.to_string().parse::<TunnelKey>().unwrap(), tunnel);
        }

        #[test]
        fn any_text_gives_a_key_or_an_error(text in ".{0,80}") {
            let _ = text.parse::<Did>();
            let _ = text.parse::<TunnelKey>();
        }
    }
}

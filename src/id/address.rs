use std::{fmt, net::Ipv6Addr, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use thiserror::Error;

use crate::id::{AgentId, DomainId, WireGuardKey, hash};

/// What is wrong with an address or prefix.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum AddressError {
    #[error("not an IPv6 address of an overlay (expected fdxx:...)")]
    NotOverlay,
    #[error("not a prefix of the form fdxx:xxxx:xxxx:n::/64")]
    NotPrefix,
    #[error("the interface id is zero")]
    ZeroInterface,
}

/// The /48 of a domain: `fd` and 40 bits of the hash of its root key (RFC 4193 form).
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct DomainPrefix([u8; 6]);

impl DomainPrefix {
    /// Derives the prefix of a domain from its root key.
    pub fn of(domain: &DomainId) -> Self {
        let h = hash(&[b"agentnet domain", domain.as_bytes()]);
        Self([0xfd, h[0], h[1], h[2], h[3], h[4]])
    }

    /// Tells whether `address` is of this domain.
    pub fn contains(self, address: Ipv6Addr) -> bool {
        address.octets()[..6] == self.0
    }

    /// Returns the prefix as its lowest address.
    pub fn first(self) -> Ipv6Addr {
        self.network(0).first()
    }

    /// Returns the /64 number `number` of this domain; 0 is infrastructure.
    pub const fn network(self, number: u16) -> NetworkPrefix {
        let [a, b, c, d, e, f] = self.0;
        let [g, h] = number.to_be_bytes();
        NetworkPrefix([a, b, c, d, e, f, g, h])
    }
}

/// The /64 of a network, of which its agents' addresses are.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct NetworkPrefix([u8; 8]);

impl NetworkPrefix {
    /// Returns the address whose lower half is `interface`.
    pub fn address(self, interface: u64) -> OverlayIp {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.0);
        bytes[8..].copy_from_slice(&interface.to_be_bytes());
        OverlayIp(Ipv6Addr::from(bytes))
    }

    /// Derives the address of `agent` in this network; an all-zero interface id is refused.
    pub fn address_of(self, agent: &AgentId) -> Result<OverlayIp, AddressError> {
        self.address_by(hash(&[b"agentnet iid", &self.0, agent.as_bytes()]))
    }

    /// Derives an address for a peer that has a WireGuard key and no identity.
    pub fn address_of_wireguard(self, key: &WireGuardKey) -> Result<OverlayIp, AddressError> {
        let key = key.tunnel();
        let h = hash(&[b"agentnet wireguard iid", &self.0, key.as_bytes()]);
        self.address_by(h)
    }

    fn address_by(self, hash: [u8; 32]) -> Result<OverlayIp, AddressError> {
        let [a, b, c, d, e, f, g, h, ..] = hash;
        match u64::from_be_bytes([a, b, c, d, e, f, g, h]) {
            0 => Err(AddressError::ZeroInterface),
            interface => Ok(self.address(interface)),
        }
    }

    /// Tells whether `address` is of this network.
    pub fn contains(self, address: Ipv6Addr) -> bool {
        address.octets()[..8] == self.0
    }

    /// Returns the /48 this network is of.
    pub const fn domain(self) -> DomainPrefix {
        let [a, b, c, d, e, f, ..] = self.0;
        DomainPrefix([a, b, c, d, e, f])
    }

    /// Returns the network's number in its domain.
    pub const fn number(self) -> u16 {
        u16::from_be_bytes([self.0[6], self.0[7]])
    }

    /// Returns the prefix as its lowest address.
    pub fn first(self) -> Ipv6Addr {
        self.address(0).ip()
    }
}

impl fmt::Display for NetworkPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/64", self.first())
    }
}

impl fmt::Debug for NetworkPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for NetworkPrefix {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let address = text
            .strip_suffix("/64")
            .and_then(|t| t.parse::<Ipv6Addr>().ok());
        let bytes = address.ok_or(AddressError::NotPrefix)?.octets();
        if bytes[0] != 0xfd || bytes[8..] != [0; 8] {
            return Err(AddressError::NotPrefix);
        }
        let mut prefix = [0; 8];
        prefix.copy_from_slice(&bytes[..8]);
        Ok(Self(prefix))
    }
}

/// An agent's virtual IPv6 address: network prefix and 64 bits of the hash of its key.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct OverlayIp(Ipv6Addr);

impl OverlayIp {
    /// Takes an address of the overlay range fd00::/8 (RFC 4193).
    pub fn new(address: Ipv6Addr) -> Result<Self, AddressError> {
        match address.octets() {
            [0xfd, ..] => Ok(Self(address)),
            _ => Err(AddressError::NotOverlay),
        }
    }

    /// Returns the plain address.
    pub const fn ip(self) -> Ipv6Addr {
        self.0
    }

    /// Returns the network this address is of.
    pub fn network(self) -> NetworkPrefix {
        let mut prefix = [0; 8];
        prefix.copy_from_slice(&self.0.octets()[..8]);
        NetworkPrefix(prefix)
    }
}

impl fmt::Display for OverlayIp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for OverlayIp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for OverlayIp {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        Self::new(text.parse().map_err(|_| AddressError::NotOverlay)?)
    }
}

macro_rules! serde_as_text {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?
                    .parse()
                    .map_err(D::Error::custom)
            }
        }
    };
}

serde_as_text!(NetworkPrefix);
serde_as_text!(OverlayIp);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::IdentityKey;
    use proptest::prelude::*;

    fn agent(seed: [u8; 32]) -> AgentId {
        IdentityKey::from_seed(seed).did().into()
    }

    /// P-001, P-005: the address follows from key and network alone.
    #[test]
    fn an_address_follows_from_key_and_network() {
        let domain = DomainPrefix::of(&IdentityKey::from_seed([1; 32]).did().into());
        let (one, two) = (domain.network(1), domain.network(2));

        let address = one.address_of(&agent([9; 32])).unwrap();

        assert_eq!(address, one.address_of(&agent([9; 32])).unwrap());
        assert!(one.contains(address.ip()) && !two.contains(address.ip()));
        assert_eq!(address.network(), one);
        assert_ne!(address, one.address_of(&agent([8; 32])).unwrap());
    }

    #[test]
    fn only_ula_addresses_are_overlay() {
        assert_eq!(
            "2001:db8::1".parse::<OverlayIp>(),
            Err(AddressError::NotOverlay)
        );
        assert_eq!(
            "fc00::1".parse::<OverlayIp>(),
            Err(AddressError::NotOverlay)
        );
        assert_eq!(
            "fd00::1/64".parse::<NetworkPrefix>(),
            Err(AddressError::NotPrefix)
        );
        assert_eq!(
            "fd00::/48".parse::<NetworkPrefix>(),
            Err(AddressError::NotPrefix)
        );
    }

    proptest! {
        #[test]
        fn prefixes_and_addresses_survive_text(root: [u8; 32], key: [u8; 32], number: u16) {
            let domain = DomainPrefix::of(&IdentityKey::from_seed(root).did().into());
            let prefix = domain.network(number);
            let address = prefix.address_of(&agent(key)).unwrap();

            prop_assert_eq!(prefix.to_string().parse::<NetworkPrefix>().unwrap(), prefix);
            prop_assert_eq!(address.to_string().parse::<OverlayIp>().unwrap(), address);
            prop_assert_eq!((prefix.domain(), prefix.number()), (domain, number));
        }
    }
}

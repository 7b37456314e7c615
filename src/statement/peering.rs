//! What one domain hands to another so that their gateways peer: a chain from its root key to gateways.

use std::net::Ipv6Addr;

use ipnet::Ipv6Net;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::id::{Did, DomainId, DomainPrefix, UnixTime};
use crate::statement::{Gateway, Registry, Statement, StatementError};

/// Gateways, and prefixes, that one domain's file may name.
const MAX_NAMED: usize = 64;

/// Why a file of another domain says nothing that can be believed.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum PeeringError {
    #[error("it is no file of `agentnet gateway peering`: {0}")]
    Malformed(String),
    #[error("the registry's statement is not signed by the root key of the domain")]
    WrongRoot,
    #[error("a gateway's statement is signed by neither root key nor registry of the domain")]
    WrongSigner,
    #[error("{0} is not the /48 of the domain or a /64 in it")]
    WrongPrefix(String),
    #[error("it names no gateway, or more than {MAX_NAMED}, or as many prefixes")]
    Length,
}

/// Another domain, as far as gateways here carry frames of it.
#[derive(Clone, Debug)]
pub struct Peering {
    domain: DomainId,
    registry: Statement<Registry>,
    gateways: Vec<Statement<Gateway>>,
    prefixes: Vec<Ipv6Net>,
}

/// A file as operators exchange it.
#[derive(Debug, Deserialize, Serialize)]
struct File {
    /// The domain's root key: what its operator vouches for by handing the file over.
    domain: DomainId,
    /// The root key's statement that names the registry's key.
    registry: Statement<Registry>,
    /// Statements of the domain's gateways.
    gateways: Vec<Statement<Gateway>>,
    /// What is carried of the domain, `fd00:1:2::/48` or `fd00:1:2:3::/64`; absent means all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    prefixes: Vec<String>,
}

impl Peering {
    /// Reads a file; every signature and link in it is checked, its times are not.
    pub fn parse(text: &str) -> Result<Self, PeeringError> {
        let file = serde_json::from_str::<File>(text);
        let file = file.map_err(|error| PeeringError::Malformed(error.to_string()))?;
        if file.registry.issuer() != file.domain.did() {
            return Err(PeeringError::WrongRoot);
        }
        let counts = [file.gateways.len(), file.prefixes.len()];
        if file.gateways.is_empty() || counts.into_iter().any(|count| count > MAX_NAMED) {
            return Err(PeeringError::Length);
        }
        let whole = Ipv6Net::new_assert(DomainPrefix::of(&file.domain).first(), 48);
        let is_part = |net: &Ipv6Net| {
            let is_whole_or_network = net.prefix_len() == 48 || net.prefix_len() == 64;
            is_whole_or_network && whole.contains(net) && *net == net.trunc()
        };
        let part = |text: &String| {
            let net = text.parse::<Ipv6Net>().ok().filter(is_part);
            net.ok_or_else(|| PeeringError::WrongPrefix(text.clone()))
        };
        let parts: Vec<_> = file.prefixes.iter().map(part).collect::<Result<_, _>>()?;
        let peering = Self {
            domain: file.domain,
            registry: file.registry,
            gateways: file.gateways,
            prefixes: if parts.is_empty() { vec![whole] } else { parts },
        };
        let mut signers = peering.gateways.iter().map(Statement::issuer);
        if !signers.all(|by| peering.is_signer(by)) {
            return Err(PeeringError::WrongSigner);
        }
        Ok(peering)
    }

    /// Writes the file that makes others peer with a domain, all of which is carried.
    pub fn write(
        domain: DomainId,
        registry: Statement<Registry>,
        gateways: Vec<Statement<Gateway>>,
    ) -> String {
        let file = File {
            domain,
            registry,
            gateways,
            prefixes: Vec::new(),
        };
        serde_json::to_string_pretty(&file).expect("statements are strings")
    }

    /// Tells whether this is the domain of a root key.
    pub fn is_of(&self, domain: &DomainId) -> bool {
        self.domain == *domain
    }

    /// Returns the /48 of the domain.
    pub fn prefix(&self) -> DomainPrefix {
        DomainPrefix::of(&self.domain)
    }

    /// Returns what is carried: from there frames come, and to there they go.
    pub fn prefixes(&self) -> &[Ipv6Net] {
        &self.prefixes
    }

    /// Returns the gateways that the file names.
    pub fn gateways(&self) -> &[Statement<Gateway>] {
        &self.gateways
    }

    /// Checks a statement about a gateway of the domain; None when it is by nobody of this domain.
    pub fn check(
        &self,
        statement: &Statement<Gateway>,
        unix: UnixTime,
    ) -> Option<Result<(), StatementError>> {
        let by = statement.issuer();
        if !self.is_signer(by) {
            return None;
        }
        // The root key needs nobody's word.
        let chain = if by == self.domain.did() {
            Ok(())
        } else {
            self.registry.check_time(unix)
        };
        Some(chain.and_then(|()| statement.check_time(unix)))
    }

    fn is_signer(&self, by: Did) -> bool {
        by == self.domain.did() || by == self.registry.subject()
    }
}

/// Tells whether some prefix has an address in it.
pub fn covers(prefixes: &[Ipv6Net], address: Ipv6Addr) -> bool {
    prefixes.iter().any(|net| net.contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{IdentityKey, TunnelSecret};
    use crate::statement::Head;
    use std::time::Duration;

    const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

    fn key(n: u8) -> IdentityKey {
        IdentityKey::from_seed([n; 32])
    }

    fn head(subject: Did, life: u64) -> Head {
        Head {
            subject,
            network: None,
            issued: NOW,
            expires: NOW + Duration::from_secs(life),
            seq: NOW.as_millis(),
        }
    }

    fn registry(by: &IdentityKey) -> Statement<Registry> {
        let claims = Registry {
            pin: "p".to_owned(),
        };
        Statement::sign(by, head(key(2).did(), 1000), claims).unwrap()
    }

    fn gateway(by: &IdentityKey) -> Statement<Gateway> {
        let claims = Gateway {
            tunnel: TunnelSecret::from_seed([3; 32]).public(),
            udp: vec!["192.0.2.1:16201".to_owned()],
            wss: vec![],
            region: None,
            features: vec![],
            ttl: 600,
        };
        Statement::sign(by, head(key(3).did(), 2000), claims).unwrap()
    }

    fn file(by: &IdentityKey) -> String {
        Peering::write(key(1).did().into(), registry(&key(1)), vec![gateway(by)])
    }

    /// F-057, F-058: by root key or registry, and each only while its statement lasts.
    #[test]
    fn gateways_are_believed_by_the_chain_from_the_root_key() {
        let peering = Peering::parse(&file(&key(2))).unwrap();
        let at = |seconds| NOW + Duration::from_secs(seconds);

        assert_eq!(peering.check(&gateway(&key(2)), at(999)), Some(Ok(())));
        assert!(peering.check(&gateway(&key(2)), at(1000)).unwrap().is_err());
        assert_eq!(peering.check(&gateway(&key(1)), at(1000)), Some(Ok(())));
        assert!(peering.check(&gateway(&key(1)), at(2000)).unwrap().is_err());
        assert_eq!(peering.check(&gateway(&key(9)), NOW), None);
        let whole = Ipv6Net::new(peering.prefix().first(), 48).unwrap();
        assert_eq!(peering.prefixes(), [whole]);
    }

    /// F-059.
    #[test]
    fn a_file_whose_chain_breaks_is_refused() {
        let other = Peering::write(
            key(9).did().into(),
            registry(&key(1)),
            vec![gateway(&key(2))],
        );
        let none = Peering::write(key(1).did().into(), registry(&key(1)), vec![]);
        let mut forged = file(&key(2));
        let at = forged.rfind('.').unwrap() + 5;
        forged.replace_range(at..at + 4, "AAAA");

        let refused = |text: &str| Peering::parse(text).unwrap_err();
        assert_eq!(refused(&other), PeeringError::WrongRoot);
        assert_eq!(refused(&file(&key(9))), PeeringError::WrongSigner);
        assert_eq!(refused(&none), PeeringError::Length);
        assert!(matches!(refused(&forged), PeeringError::Malformed(_)));
        assert!(matches!(refused("{}"), PeeringError::Malformed(_)));
    }

    #[test]
    fn only_parts_of_the_domain_are_carried() {
        let domain = DomainPrefix::of(&key(1).did().into());
        let with = |prefix: &str| {
            let mut file: serde_json::Value = serde_json::from_str(&file(&key(2))).unwrap();
            file["prefixes"] = vec![prefix].into();
            Peering::parse(&file.to_string())
        };
        let part = domain.network(7).to_string();

        assert_eq!(with(&part).unwrap().prefixes()[0].to_string(), part);
        let wide = Ipv6Net::new(domain.first(), 32).unwrap().trunc();
        for wrong in [
            wide.to_string(),
            "fd00::/48".to_owned(),
            "fd00:0:0:1::/64".to_owned(),
        ] {
            assert!(matches!(with(&wrong), Err(PeeringError::WrongPrefix(_))));
        }
    }
}

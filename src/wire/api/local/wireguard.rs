use std::{fmt, net::SocketAddr, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::id::{KeyError, OverlayIp, PresharedKey, UnixTime, WireGuardKey};
use crate::statement::Scope;
use crate::wire::api::local::SessionState;

/// `POST /v1/wireguard/add`: lets a peer in that speaks WireGuard and nothing else.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct WireGuardAdd {
    /// Name of the local agent; None when there is but one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    pub key: WireGuardKey,
    /// The one address it sends from and is sent what goes to; None for the one that follows from
    /// its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<OverlayIp>,
    /// Where it is reached; None when it begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<SocketAddr>,
    /// What it may reach here.
    pub allow: Scope,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preshared_key: Option<PresharedKey>,
}

/// Answer of `POST /v1/wireguard/add`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct WireGuardAdded {
    pub peer: WireGuardPeer,
    /// What its own configuration needs.
    pub own: WireGuardOwn,
}

/// An agent of this node as a peer needs it that speaks only WireGuard.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct WireGuardOwn {
    /// Full name of the agent.
    pub agent: String,
    pub key: WireGuardKey,
    pub address: OverlayIp,
    /// UDP port of this node.
    pub port: u16,
    /// Where this node is seen or has addresses, the most likely first.
    pub endpoints: Vec<SocketAddr>,
}

/// `POST /v1/wireguard/remove`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct WireGuardRemove {
    /// Name of the local agent; None when there is but one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    pub peer: WireGuardRef,
}

/// Which peer is meant: its key or its address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum WireGuardRef {
    Address(OverlayIp),
    Key(WireGuardKey),
}

impl FromStr for WireGuardRef {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        match text.parse() {
            Ok(address) => Ok(Self::Address(address)),
            Err(_) => text.parse().map(Self::Key),
        }
    }
}

impl fmt::Display for WireGuardRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => fmt::Display::fmt(address, f),
            Self::Key(key) => fmt::Display::fmt(key, f),
        }
    }
}

impl Serialize for WireGuardRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for WireGuardRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// Answer of `POST /v1/wireguard/remove`: nothing of it passes any more.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct WireGuardRemoved {
    pub key: WireGuardKey,
    pub address: OverlayIp,
}

/// `GET /v1/wireguard`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct WireGuardPeers {
    pub now: UnixTime,
    pub own: Vec<WireGuardOwn>,
    pub peers: Vec<WireGuardPeer>,
}

/// A peer that speaks WireGuard and nothing else: it is no agent and has no name.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct WireGuardPeer {
    pub key: WireGuardKey,
    /// The one address it may send from.
    pub address: OverlayIp,
    /// Full name of the local agent.
    pub agent: String,
    pub state: SessionState,
    /// Where it was last heard from, or is looked for; None when it has to begin.
    pub endpoint: Option<SocketAddr>,
    /// Whether a pre-shared key is in use besides.
    pub preshared_key: bool,
    pub last_handshake: Option<UnixTime>,
    /// Last authenticated message from it.
    pub last_inbound: Option<UnixTime>,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    /// What it may reach here.
    pub inbound: Scope,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_meant_by_key_or_address() {
        for text in [
            "fd00:1:2:3::7",
            "pOCSkrZRwni5dyxWn1+puxPZBrRqtoyd+dwrRAn4ogk=",
        ] {
            assert_eq!(text.parse::<WireGuardRef>().unwrap().to_string(), text);
        }
        assert!("planner".parse::<WireGuardRef>().is_err());
        assert!("10.0.0.1".parse::<WireGuardRef>().is_err());
    }
}

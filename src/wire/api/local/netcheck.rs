use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::id::{Did, DomainId, UnixTime};
use crate::wire::api::local::{PortMappingStatus, Warning};

/// `GET /v1/netcheck`: whom `agentnet netcheck` may ask about the network this node is in.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct NetcheckTargets {
    pub gateways: Vec<NetcheckGateway>,
    /// STUN servers of the settings.
    pub stun: Vec<SocketAddr>,
    pub registries: Vec<NetcheckRegistry>,
}

/// Where a gateway is.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct NetcheckGateway {
    /// None where only the settings name it.
    pub id: Option<Did>,
    /// `host:port`.
    pub udp: Vec<String>,
    /// `wss://host:port/path`.
    pub wss: Vec<String>,
}

/// Where a registry is, and how it proves to be it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct NetcheckRegistry {
    pub url: String,
    /// Of its TLS key.
    pub pin: String,
    pub domain: DomainId,
}

/// What `agentnet netcheck` found out about the network this host is in.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Netcheck {
    pub now: UnixTime,
    /// Whether a running node told whom to ask; else the settings and the state on disk did.
    pub daemon: bool,
    /// How long the check took.
    pub took_ms: f64,
    pub ipv4: NetcheckFamily,
    pub ipv6: NetcheckFamily,
    /// All that were asked by STUN, the nearest first, silent ones last.
    pub servers: Vec<NetcheckServer>,
    /// WebSockets of gateways.
    pub wss: Vec<NetcheckReach>,
    pub registries: Vec<NetcheckReach>,
    /// What the host's router does when asked for a port; None when it was not asked.
    pub port_mapping: Option<PortMappingStatus>,
    /// Who answers in place of others; None when nobody was seen to.
    pub captive_portal: Option<CaptivePortal>,
    /// The HTTP proxy that WebSockets go through; None where there is none.
    pub proxy: Option<String>,
    /// What keeps agents from good paths, most urgent first.
    pub findings: Vec<Warning>,
}

/// What one IP version is good for here. Where a field is None it could not be found out.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct NetcheckFamily {
    /// From where datagrams to servers leave; None without a way to them.
    pub address: Option<IpAddr>,
    /// Whether any server answered by UDP; None when there was none to ask.
    pub udp: Option<bool>,
    /// Where the nearest server sees us.
    pub observed: Option<SocketAddr>,
    /// Whether a NAT is between.
    pub nat: Option<bool>,
    /// How it maps our endpoint (RFC 4787 section 4.1).
    pub mapping: Option<NatMappingKind>,
    /// Whether it keeps our port where it can.
    pub port_kept: Option<bool>,
    /// Whom it, or a firewall, lets answer (RFC 4787 section 5).
    pub filtering: Option<NatFiltering>,
    /// Whether a host behind it reaches another one there by the outer endpoint (RFC 4787 section 6).
    pub hairpin: Option<bool>,
    /// Largest IP packet that reached a gateway, in bytes, of those tried: at most 1500.
    pub mtu: Option<u16>,
}

/// How a NAT maps an endpoint (RFC 4787 section 4.1).
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NatMappingKind {
    EndpointIndependent,
    AddressDependent,
    AddressAndPortDependent,
    /// One of the last two: servers that tell them apart were not found.
    EndpointDependent,
}

/// Whom a NAT lets in (RFC 4787 section 5).
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NatFiltering {
    EndpointIndependent,
    AddressDependent,
    AddressAndPortDependent,
    /// One of the first two: the server has one address only.
    NotPortDependent,
}

/// A server that was asked by STUN.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct NetcheckServer {
    pub at: SocketAddr,
    /// As settings or the gateway name it.
    pub name: String,
    /// None for other STUN servers, and for gateways that only the settings name.
    pub gateway: Option<Did>,
    /// None when it did not answer.
    pub rtt_ms: Option<f64>,
    /// Where it sees us.
    pub observed: Option<SocketAddr>,
    /// Its other endpoint, if it has one (RFC 5780).
    pub other: Option<SocketAddr>,
}

/// Whether something is reached over TCP.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct NetcheckReach {
    pub url: String,
    /// How long it took; None when it failed.
    pub took_ms: Option<f64>,
    /// The HTTP proxy between; None where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<String>,
    /// By how many seconds this host's clock is ahead of its; None where it does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_ahead_s: Option<i64>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Warning>,
}

/// Somebody who answers HTTP in place of others, as the login page of a network does.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct CaptivePortal {
    /// What was asked for.
    pub url: String,
    /// HTTP status of the answer.
    pub status: u16,
    /// Where it sends browsers to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
}

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::wire::api::local::Warning;

/// `GET /v1/dns`, and what `POST /v1/dns/apply` and `/v1/dns/revert` answer: how the host's programs are told
/// of the node's resolvers.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Dns {
    /// The setting `dns.mode`.
    pub mode: String,
    /// `resolved`, `networkmanager`, `resolvconf`, `openresolv`, `resolv-conf` or `none`.
    pub owner: String,
    /// What shows that it is the owner.
    pub why: String,
    pub state: DnsState,
    /// Why the state is not as it should be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cure: Option<String>,
    /// The agents' addresses where names are answered, at port 53.
    pub nameservers: Vec<Ipv6Addr>,
    /// Whether they are answered at 127.65.78.53 too, for Debian's resolvconf.
    #[serde(default)]
    pub on_loopback: bool,
    /// Domains that complete short names, where the owner has such a list.
    pub search: Vec<String>,
    /// The suffix and the reverse zones: all that an owner who routes by domain is told.
    pub domains: Vec<String>,
    /// The network device that systemd-resolved is told of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Whom names are asked that are not agents'; empty where none such come, and refused then.
    pub upstream: Vec<SocketAddr>,
}

/// How it stands with the host's DNS settings.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DnsState {
    /// Programs ask the node's resolvers.
    Applied,
    /// Another program takes the settings away again and again; the node gave up.
    Contended,
    Failed,
    /// There is nothing to set: no agent has an address yet.
    #[default]
    Idle,
    /// The node was told to leave the host's settings alone.
    Off,
    /// Somebody had the settings taken back.
    Reverted,
    /// The node may not set them; `agentnet dns apply` as root does.
    Waiting,
}

impl fmt::Display for DnsState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Applied => "applied",
            Self::Contended => "contended",
            Self::Failed => "failed",
            Self::Idle => "idle",
            Self::Off => "off",
            Self::Reverted => "reverted",
            Self::Waiting => "waiting",
        })
    }
}

/// What `agentnet dns status` says: how names are looked up on this host, and what hinders it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct DnsCheck {
    /// None where no node runs.
    pub node: Option<Dns>,
    /// Who owns the host's DNS, as in [`Dns`]; without a node as the command itself finds, or `unknown`.
    pub owner: String,
    pub why: String,
    /// Whom `/etc/resolv.conf` names.
    pub nameservers: Vec<SocketAddr>,
    /// Names of the node's own agents, looked up as programs do it.
    pub lookups: Vec<DnsLookup>,
    /// What needs a person, most urgent first.
    pub findings: Vec<Warning>,
}

/// A name looked up by getaddrinfo(3).
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct DnsLookup {
    pub name: String,
    pub expected: Ipv6Addr,
    /// Empty when nothing was found.
    pub found: Vec<IpAddr>,
    /// Why nothing was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Whether the resolver at the agent's address takes connections.
    pub answers: bool,
}

impl DnsLookup {
    /// Tells whether the look-up came to the node, which alone knows the address.
    pub fn is_ours(&self) -> bool {
        self.found.contains(&IpAddr::V6(self.expected))
    }
}

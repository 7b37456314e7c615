//! What the daemon's local API and the CLI's `--json` say (protocol.md section 10).
//!
//! Every answer travels as [`Versioned`], so that `"v":1` stands at the top. Times are Unix
//! milliseconds by the daemon's clock, which each answer that tells ages carries as `now`.

mod act;
mod dns;
mod doctor;
mod netcheck;
mod owner;
mod path;
mod program;
mod seeing;
mod trust;
mod wireguard;

use std::{
    collections::BTreeMap,
    fmt,
    net::{Ipv6Addr, SocketAddr},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::id::{AgentId, Did, Label, NetworkId, OverlayIp, UnixTime};
use crate::statement::Scope;
use crate::wire::binding::Binding;
use crate::wire::carrier::Carrier;
use crate::wire::channel::Suite;

pub use act::{BIND_HINT, Down, JoinRequest, Joined, Left, PingOutcome, PingReply, PingRequest};
pub use dns::{Dns, DnsCheck, DnsLookup, DnsState};
pub use doctor::{Check, CheckState, Diagnosis};
pub use netcheck::{
    CaptivePortal, NatFiltering, NatMappingKind, Netcheck, NetcheckFamily, NetcheckGateway,
    NetcheckReach, NetcheckRegistry, NetcheckServer, NetcheckTargets,
};
pub use owner::{AgentRevoked, Network, Networks, Token, TokenCreated, TokenRevoked, Tokens};
pub use path::{Endpoint, EndpointKind, Family, PairState, PathPair, PathQuery, PathReport, Why};
pub use program::{MAX_LINE, PROGRAMS, ProgramAgent, ProgramAnswer, ProgramDevice, ProgramHello};
pub use seeing::{CaptureQuery, LogLines, Metrics};
pub use trust::{
    AutoFrom, AutoRemove, AutoRule, AutoRules, ConsentView, Pending, PendingRequest, Trust,
    TrustApprove, TrustAwait, TrustChange, TrustChanged, TrustList, TrustName, TrustRequest,
    TrustStands,
};
pub use wireguard::{
    WireGuardAdd, WireGuardAdded, WireGuardOwn, WireGuardPeer, WireGuardPeers, WireGuardRef,
    WireGuardRemove, WireGuardRemoved,
};

/// The version of every type here.
pub const VERSION: u8 = 1;

/// Largest body of a request: a join token with room for its wrapping.
pub const MAX_BODY: usize = 64 * 1024; // bytes

/// An answer with its version at the top.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Versioned<T> {
    pub v: u8,
    #[serde(flatten)]
    pub body: T,
}

impl<T> Versioned<T> {
    /// Puts the version onto `body`.
    pub const fn new(body: T) -> Self {
        Self { v: VERSION, body }
    }
}

/// `GET /v1/version`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Version {
    pub version: String,
}

/// `GET /v1/status`: the node as its operator sees it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Status {
    pub version: String,
    pub now: UnixTime,
    pub started: UnixTime,
    pub pid: u32,
    /// UDP sockets as bound, ports resolved.
    pub udp: Vec<SocketAddr>,
    /// Who owns the host's DNS settings: `resolved`, `networkmanager`, `resolvconf`, `openresolv`, `resolv-conf`
    /// or `none`.
    pub dns: String,
    pub agents: Vec<AgentStatus>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stun: Vec<StunStatus>,
    /// None while the router was not asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_mapping: Option<PortMappingStatus>,
    /// None while fewer than two, gateways and STUN servers, told where they see this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nat_mapping: Option<NatMapping>,
    /// Dropped packets by reason, zeros left out.
    pub drops: BTreeMap<String, u64>,
    /// What needs a person, most urgent first.
    pub warnings: Vec<Warning>,
}

/// What the host's router does for the node.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct PortMappingStatus {
    /// Where it takes datagrams for this node; None when it maps no port.
    pub external: Option<SocketAddr>,
    /// `pcp`, `nat-pmp` or `upnp-igd`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// What it answered instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// One agent of the node.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct AgentStatus {
    /// Full name, `planner.acme.agent`.
    pub name: String,
    pub id: AgentId,
    pub address: OverlayIp,
    pub network: Label,
    pub network_id: NetworkId,
    pub membership: MembershipStatus,
    pub registry: RegistryStatus,
    /// The best of `gateways` now; None before the first is known.
    pub gateway: Option<GatewayStatus>,
    /// All that it attaches to, in order of preference; older nodes do not say.
    #[serde(default)]
    pub gateways: Vec<GatewayStatus>,
    /// Name of its network device; None while there is none.
    pub device: Option<String>,
    /// The process of `agentnet run` whose program has the device; None where it is the host's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<u32>,
    /// Whether programs have it by `agentnet run` and not otherwise.
    #[serde(default)]
    pub apart: bool,
    /// Whose programs alone may use it on the host; None is everybody's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound: Option<Binding>,
    /// Agents both consents stand with.
    pub peers: u32,
    /// Requests that wait for an answer here.
    pub pending: u32,
}

/// How long an agent stays a member.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct MembershipStatus {
    /// When the current proof was signed.
    pub since: UnixTime,
    pub expires: UnixTime,
    /// Whether the registry renews it while the agent is seen.
    pub renews: bool,
}

impl MembershipStatus {
    /// A week gives a person time to fetch a new grant.
    const NOTICE: Duration = Duration::from_secs(7 * 86_400);

    /// Tells whether a person should look: less than a quarter left (renewal comes at half), or
    /// less than the notice when nobody renews it.
    pub fn lapses_soon(&self, now: UnixTime) -> bool {
        let left = self.expires.since(now);
        left < self.expires.since(self.since) / 4 || (!self.renews && left < Self::NOTICE)
    }
}

/// How a connection of the node stands.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkState {
    Connected,
    Connecting,
    /// Another host has it: the same agent attached from there later.
    Displaced,
    /// The other end answers and does not accept us.
    Refused,
    Unreachable,
}

impl fmt::Display for LinkState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connected => "connected",
            Self::Connecting => "connecting",
            Self::Displaced => "displaced",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
        })
    }
}

/// The registry as an agent sees it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct RegistryStatus {
    pub url: String,
    pub state: LinkState,
    /// When it came into this state.
    pub since: UnixTime,
    /// Why it is not connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A gateway an agent attaches to.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct GatewayStatus {
    pub id: Did,
    /// `host:port` or `wss://host:port/path` in use, else the one that the gateway announces.
    pub endpoint: String,
    /// What carries frames; `udp` while nothing does.
    #[serde(default)]
    pub carrier: Carrier,
    /// The HTTP proxy between; None where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<String>,
    pub state: LinkState,
    /// When it came into this state.
    pub since: UnixTime,
    /// This node's address as the gateway sees it; None before the first attach.
    pub observed: Option<SocketAddr>,
    /// None before the first measurement.
    pub rtt_ms: Option<f64>,
}

/// A STUN server of the settings.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct StunStatus {
    pub server: SocketAddr,
    /// This node's address as it sees it; None while it did not answer.
    pub observed: Option<SocketAddr>,
}

/// How the NAT before this node maps its endpoint (RFC 4787 section 4.1).
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NatMapping {
    /// Otherwise for each destination.
    EndpointDependent,
    EndpointIndependent,
}

/// Something that needs a person.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Warning {
    /// Stable name of the cause.
    pub code: String,
    pub text: String,
    /// What to do about it.
    pub cure: String,
}

/// `GET /v1/peers`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Peers {
    pub now: UnixTime,
    pub peers: Vec<Peer>,
    /// Those that speak WireGuard and nothing else.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wireguard: Vec<WireGuardPeer>,
}

/// An agent with a consent to or from one of ours.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Peer {
    /// Full name of the peer.
    pub name: String,
    pub id: AgentId,
    pub address: OverlayIp,
    /// Full name of the local agent.
    pub agent: String,
    pub state: SessionState,
    /// None without a session.
    pub path: Option<PathKind>,
    /// What our packets are sealed with past the session; None where the session itself seals them.
    pub suite: Option<Suite>,
    pub last_handshake: Option<UnixTime>,
    /// Last authenticated packet from it: the health of the data path, whatever control says.
    pub last_inbound: Option<UnixTime>,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    /// What it may reach here; None without our consent.
    pub inbound: Option<Scope>,
    /// What we may reach there; None without its consent.
    pub outbound: Option<Scope>,
}

/// How the encrypted session with a peer stands.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionState {
    /// Both consents stand, nothing to say yet.
    None,
    Handshaking,
    Up,
}

impl fmt::Display for SessionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "idle",
            Self::Handshaking => "handshaking",
            Self::Up => "up",
        })
    }
}

/// Which way packets of a session take.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PathKind {
    Direct,
    Relay,
}

impl fmt::Display for PathKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Direct => "direct",
            Self::Relay => "relay",
        })
    }
}

/// Query of `GET /v1/whois`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct WhoisQuery {
    pub address: Ipv6Addr,
    /// Our end of the connection, where the host has several agents; None asks for all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<Ipv6Addr>,
}

/// `GET /v1/whois`: who has an overlay address, as proven by its key.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Whois {
    pub name: String,
    pub id: AgentId,
    pub address: OverlayIp,
    pub network: Label,
    pub network_id: NetworkId,
    /// Whether it is an agent of this node.
    pub local: bool,
    pub tags: Vec<Label>,
    pub membership_expires: UnixTime,
    /// What it may reach here; None without our consent.
    pub inbound: Option<Scope>,
    /// What we may reach there; None without its consent.
    pub outbound: Option<Scope>,
}

/// Query of lists: narrows them to one local agent.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct OfAgent {
    /// Name of the local agent; None for all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_stands_at_the_top() {
        let answer = Versioned::new(Down { stopping: true });

        let json = serde_json::to_value(&answer).unwrap();

        assert_eq!(json, serde_json::json!({ "v": 1, "stopping": true }));
        assert_eq!(
            serde_json::from_value::<Versioned<Down>>(json).unwrap(),
            answer
        );
    }

    #[test]
    fn a_membership_warns_ahead_of_its_end() {
        let days = |n: u64| UnixTime::from_secs(n * 86_400);
        let renewed = MembershipStatus {
            since: days(0),
            expires: days(4),
            renews: true,
        };
        assert!(
            !renewed.lapses_soon(days(2))
                && renewed.lapses_soon(UnixTime::from_secs(3 * 86_400 + 1))
        );

        let fixed = MembershipStatus {
            since: days(0),
            expires: days(20),
            renews: false,
        };
        assert!(!fixed.lapses_soon(days(13)) && fixed.lapses_soon(days(14)));
    }
}

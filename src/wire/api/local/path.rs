use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::id::{Did, OverlayIp, UnixTime};
use crate::wire::api::local::{PathKind, SessionState, Warning};
use crate::wire::carrier::Carrier;

/// Query of `GET /v1/path`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct PathQuery {
    /// Name of the local agent; None when there is but one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    pub name: String,
}

/// `GET /v1/path`: every path to a peer, and why the one in use is.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct PathReport {
    pub now: UnixTime,
    /// Full name of the peer.
    pub name: String,
    pub address: OverlayIp,
    /// Full name of the local agent.
    pub agent: String,
    /// How the session with the peer is.
    pub state: SessionState,
    /// `auto`, `direct`, `relay` or `hidden`.
    pub mode: String,
    /// None without a session, or while no path may carry data.
    pub path: Option<PathKind>,
    /// Since when packets go this way.
    pub since: UnixTime,
    /// Why they go this way.
    pub why: Why,
    /// What keeps packets from a direct path, and what to do about it; None when they take one.
    pub not_direct: Option<Warning>,
    /// Our own endpoints, as the peer is told them.
    pub local: Vec<Endpoint>,
    /// The relay first.
    pub pairs: Vec<PathPair>,
}

/// A cause with a stable name.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Why {
    /// `faster`, `first`, `idle`, `lost`, `mode`, `nearer` or `network_changed`.
    pub code: String,
    pub text: String,
}

/// One end of a path on the underlay.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Endpoint {
    pub at: SocketAddr,
    pub kind: EndpointKind,
}

/// How an endpoint is known.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EndpointKind {
    /// The gateway's.
    Gateway,
    /// An address of an interface.
    Host,
    /// Opened on a router.
    Mapped,
    /// Nobody named it: packets came from there, or the peer saw us there.
    Observed,
    /// Guessed from how a NAT counts.
    Predicted,
    /// As a gateway or STUN server sees it.
    Reflexive,
}

impl EndpointKind {
    /// Returns the name that `--json` carries; it never changes.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Host => "host",
            Self::Mapped => "mapped",
            Self::Observed => "observed",
            Self::Predicted => "predicted",
            Self::Reflexive => "reflexive",
        }
    }
}

/// One path to a peer.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct PathPair {
    pub path: PathKind,
    pub in_use: bool,
    pub state: PairState,
    /// `ipv4` or `ipv6` on the underlay; None for a relay that is not attached to.
    pub family: Option<Family>,
    /// Where the other end sees us; None before it told.
    pub local: Option<Endpoint>,
    /// Where packets go; None for a relay that is not attached to, or is by a connection.
    pub remote: Option<Endpoint>,
    /// What carries frames of a relayed path; None when direct, or no gateway is attached to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carrier: Option<Carrier>,
    /// The gateway of a relayed path; None when direct, or none is attached to.
    pub gateway: Option<Did>,
    /// Smoothed round-trip time of our probes; None unless they are answered.
    pub rtt_ms: Option<f64>,
    /// Percent lost of the last 16 probes; None before the first was answered or lost.
    pub loss_percent: Option<u8>,
    /// The largest packet of a program that passes whole, in bytes; None while that is not known.
    pub mtu: Option<u16>,
    /// Last authentic message of the peer on this path; None before the first.
    pub last_inbound: Option<UnixTime>,
    /// Until when it is kept from data because it lost some; None when it is not.
    pub penalized_until: Option<UnixTime>,
}

/// How a path is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PairState {
    /// Our probes are answered.
    Answering,
    /// Our probes are not answered any more, or never were.
    Failed,
    /// Our probes are answered, but data was lost.
    Penalized,
    /// Probes are on their way.
    Probing,
    /// It was not probed.
    Unprobed,
}

impl PairState {
    /// Returns the name that `--json` carries; it never changes.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Answering => "answering",
            Self::Failed => "failed",
            Self::Penalized => "penalized",
            Self::Probing => "probing",
            Self::Unprobed => "unprobed",
        }
    }
}

/// Version of the Internet Protocol on the underlay.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    IPv4,
    IPv6,
}

impl Family {
    /// Returns the version an endpoint is of.
    pub const fn of(endpoint: SocketAddr) -> Self {
        match endpoint {
            SocketAddr::V4(_) => Self::IPv4,
            SocketAddr::V6(_) => Self::IPv6,
        }
    }

    /// Returns the name that `--json` carries; it never changes.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::IPv4 => "ipv4",
            Self::IPv6 => "ipv6",
        }
    }
}

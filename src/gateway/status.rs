//! Pure: what a gateway shows its operator.

use std::{collections::BTreeMap, fmt, net::SocketAddr};

use serde::{Deserialize, Serialize};

use crate::gateway::rate::Rate;
use crate::id::{Did, NetworkId, OverlayIp};
use crate::wire::carrier::Carrier;

/// Most attachments listed one by one.
pub const MAX_LISTED: usize = 1000;

/// A gateway's state at one moment; `--json` prints it as it is.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct GatewayStatus {
    pub gateway: Did,
    /// Networks served.
    pub networks: usize,
    pub attached: usize,
    /// Agents whose handshake is under way.
    pub attaching: usize,
    pub routes: usize,
    /// By WebSocket, whoever uses them.
    #[serde(default)]
    pub connections: usize,
    pub forwarded_frames: u64,
    pub forwarded_bytes: u64,
    /// What is sent on to agents now.
    #[serde(default)]
    pub forwarding: Rate,
    /// Dropped datagrams and frames by reason; reasons that never happened are left out.
    pub drops: BTreeMap<String, u64>,
    /// The first thousand attachments, by hop id.
    pub attachments: Vec<AttachmentStatus>,
    /// The other gateways of the domain.
    #[serde(default)]
    pub peers: Vec<PeerStatus>,
}

/// Another gateway.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct PeerStatus {
    pub gateway: Did,
    pub state: Standing,
    /// Where it was last heard; None before that.
    pub endpoint: Option<SocketAddr>,
    /// Its last answer took so long, in microseconds; None before the first.
    pub rtt_us: Option<u64>,
    /// Ways to agents by it.
    pub routes: usize,
    /// What is carried of its domain, as `fd00:1:2::/48`; empty for gateways of our own.
    #[serde(default)]
    pub prefixes: Vec<String>,
}

/// Whether another gateway is there.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// It does not answer, or said farewell.
    Down,
    /// There is a session, and it did not say yet how frames get to it.
    Greeting,
    Up,
}

/// One attached agent, without its name.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct AttachmentStatus {
    pub agent: OverlayIp,
    pub network: NetworkId,
    /// Of an agent that came by a connection over IPv6, the /64 it is in.
    pub endpoint: SocketAddr,
    #[serde(default)]
    pub carrier: Carrier,
    /// Silent for more than a lease.
    pub stale: bool,
    /// What it sends and is sent now.
    #[serde(default)]
    pub sent: Rate,
    #[serde(default)]
    pub received: Rate,
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Down => "down",
            Self::Greeting => "greeting",
            Self::Up => "up",
        })
    }
}

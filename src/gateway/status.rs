//! Pure: what a gateway shows its operator.

use std::{collections::BTreeMap, net::SocketAddr};

use serde::{Deserialize, Serialize};

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
    /// Dropped datagrams and frames by reason; reasons that never happened are left out.
    pub drops: BTreeMap<String, u64>,
    /// The first thousand attachments, by hop id.
    pub attachments: Vec<AttachmentStatus>,
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
}

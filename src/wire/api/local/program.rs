//! How `agentnet run` has the daemon carry a program with a network of its own.
//!
//! Lines of JSON on the Unix socket [`PROGRAMS`] beside the local API's. The caller says [`ProgramHello`]
//! and is answered; then it says [`ProgramDevice`], whose descriptors come with the line (SCM_RIGHTS of
//! unix(7)), and is answered again. The agent is the program's until the connection ends.

use serde::{Deserialize, Serialize};

use crate::id::OverlayIp;
use crate::wire::api::problem::Problem;

/// The socket's name, in the folder of the local API's.
pub const PROGRAMS: &str = "programs.sock";

/// Longest line, the line feed counted.
pub const MAX_LINE: usize = 64 * 1024; // bytes

/// Whose network the program is to have.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct ProgramHello {
    /// Short or full name; None for the only agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
}

/// What the daemon says.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum ProgramAnswer {
    /// To the hello.
    Agent(ProgramAgent),
    /// To the device: its packets are carried, and its names answered.
    Connected,
    /// It ends here.
    Refused(Problem),
}

/// What the program's network is to be like.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ProgramAgent {
    /// Full name.
    pub name: String,
    pub address: OverlayIp,
    /// Domains that complete short names.
    pub search: Vec<String>,
    pub mtu: u16,
    /// Whether the device may have offloads.
    pub offload: bool,
    /// Most queues that are of use.
    pub queues: usize,
}

/// The program's network device and sockets, whose descriptors come with this in the order of the fields.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ProgramDevice {
    /// Its name in the program's namespace.
    pub name: String,
    /// Whether a `struct virtio_net_hdr` stands before each packet.
    pub has_header: bool,
    /// Whether UDP datagrams of one flow come and go as one packet.
    pub has_udp_offload: bool,
    /// Queues of the device, one descriptor each.
    pub queues: usize,
    /// Places where names are asked for: a UDP and a listening TCP socket each.
    pub names: usize,
    /// Whether a listening Unix socket comes last, where the program reaches the local API.
    pub has_api: bool,
    /// Whether the program has the host's network too, and names of the world are to be answered.
    #[serde(default)]
    pub is_shared: bool,
}

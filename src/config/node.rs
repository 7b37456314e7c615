use std::{net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::Settings;
use crate::id::Suffix;
use crate::policy::Pair;

/// The node's UDP port: fixed, so that a peer's last known endpoint survives a restart, and below
/// the range the kernel hands to outgoing sockets (32768 on Linux), which could have it in use.
const UDP_PORT: u16 = 16200;

/// Most workers of the data plane: as many as there are lanes of pairs (protocol.md section 7).
pub const MAX_WORKERS: u8 = Pair::LANES / 2;

/// Gateways of the settings that are asked; each costs a packet.
const MAX_DISCOVER: usize = 8;

/// What `agentnet.toml` may say.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct NodeSettings {
    /// Where keys and memory are (`--state`); by default `/var/lib/agentnet` where that can be written, else
    /// `$XDG_STATE_HOME/agentnet`.
    pub state: Option<PathBuf>,
    /// Where commands find the daemon (`--socket`); by default the place that belongs to the state directory.
    pub socket: Option<PathBuf>,
    /// The end of every name: `planner.acme.agent`.
    #[cfg_attr(test, schemars(with = "String"))]
    pub suffix: Suffix,
    pub udp: UdpSettings,
    pub dns: DnsSettings,
    pub path: PathSettings,
    pub wss: NodeWssSettings,
    pub gateway: SearchSettings,
    pub channel: ChannelSettings,
    pub dataplane: DataplaneSettings,
    pub metrics: NodeMetricsSettings,
    pub log: LogSettings,
}

/// Where an agent looks for a gateway while it is attached to none, beside the registry's list.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct SearchSettings {
    /// Up to 8 gateways, or anycast addresses of several, as `host:port`.
    pub discover: Vec<String>,
    /// Whether gateways on the links of this host are asked.
    pub multicast: bool,
    /// The domain whose `_a2g._udp` SRV records name gateways; by default no nameserver is asked.
    pub dns: Option<String>,
    /// A file of hints, as a DHCP client's hook writes it; by default none is read.
    pub hints: Option<PathBuf>,
}

impl SearchSettings {
    /// Tells whether there is nowhere to look.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The socket towards the underlay.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct UdpSettings {
    /// For encrypted packets over IPv4 and IPv6; 0 takes any free one (`--port`).
    pub port: u16,
    /// Whether the kernel may merge datagrams that arrive (UDP_GRO) and cut those that leave
    /// (UDP_SEGMENT), and do the same for segments at the TUN; without, each costs a call.
    pub offload: bool,
}

impl Default for UdpSettings {
    fn default() -> Self {
        Self {
            port: UDP_PORT,
            offload: true,
        }
    }
}

/// How names reach the node's resolver.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct DnsSettings {
    /// Who tells the host's programs of the node's resolver (`--dns`; [dns.md](dns.md)).
    pub mode: DnsMode,
}

/// Who tells the host's programs of the node's resolver.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum DnsMode {
    /// Whoever is found to own the host's DNS (docs/dns.md).
    #[default]
    Auto,
    /// NetworkManager, by a section of its settings of this boot.
    #[serde(rename = "networkmanager")]
    NetworkManager,
    /// Nobody; the resolver listens, the host's settings stay as they are.
    None,
    /// The node, in `/etc/resolv.conf`, restored on exit.
    ResolvConf,
    /// The program resolvconf, of either kind.
    Resolvconf,
    /// systemd-resolved, over the system bus.
    Resolved,
}

impl DnsMode {
    /// Returns the mode's name as settings write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::NetworkManager => "networkmanager",
            Self::None => "none",
            Self::ResolvConf => "resolv-conf",
            Self::Resolvconf => "resolvconf",
            Self::Resolved => "resolved",
        }
    }
}

/// Which ways packets to peers may take.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct PathSettings {
    /// Which ways packets to peers may take, and so whether peers learn where this host is (`--path`); a border
    /// network (`network create --border`) is hidden whatever this says.
    pub mode: PathMode,
    /// Up to 4 STUN servers, address and port, that are asked where they see this host.
    pub stun: Vec<SocketAddr>,
    /// Whether the router is asked, by PCP, NAT-PMP or UPnP-IGD, to lead a port of its own here; never with `relay` and
    /// `hidden`.
    pub port_mapping: bool,
}

impl Default for PathSettings {
    fn default() -> Self {
        Self {
            mode: PathMode::default(),
            stun: Vec::new(),
            port_mapping: true,
        }
    }
}

/// Which paths a node wants, and so whether peers learn where it is.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum PathMode {
    /// The best there is.
    #[default]
    Auto,
    /// Data goes directly or not at all.
    Direct,
    /// Like `Relay`, and what comes directly is ignored.
    Hidden,
    /// Only the gateways; no peer is told an address of this host.
    Relay,
}

impl PathMode {
    /// Returns the mode's name as settings write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Direct => "direct",
            Self::Hidden => "hidden",
            Self::Relay => "relay",
        }
    }
}

/// WebSocket over TLS to the gateways, for networks that let no UDP through.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct NodeWssSettings {
    /// When gateways are reached by WebSocket over TLS.
    pub mode: WssMode,
    /// The HTTP proxy for that: `environment`, `none` or `http://host:port`, without a password.
    pub proxy: String,
    /// A file that holds the proxy's URL, password included: `http://user:password@host:port`; by default what
    /// `wss.proxy` says.
    pub proxy_file: Option<PathBuf>,
}

impl Default for NodeWssSettings {
    fn default() -> Self {
        Self {
            mode: WssMode::default(),
            proxy: "environment".to_owned(),
            proxy_file: None,
        }
    }
}

/// When gateways are reached by WebSocket.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum WssMode {
    /// While UDP gives no answer.
    #[default]
    Auto,
    Off,
    /// Always.
    Only,
}

/// How packets to peers are sealed once a session is there.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct ChannelSettings {
    /// What packets to peers are sealed with once a session is there.
    pub suite: SuiteChoice,
}

/// Which suites of the data channel a node offers and accepts.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum SuiteChoice {
    /// The fastest that both ends have: AES-256-GCM where both processors do it, else the other.
    #[default]
    Auto,
    #[serde(rename = "chacha20-poly1305")]
    ChaCha20Poly1305,
    /// No data channel: packets go as WireGuard transport, which is slower.
    Off,
}

impl SuiteChoice {
    /// Returns the choice's name as settings write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::ChaCha20Poly1305 => "chacha20-poly1305",
            Self::Off => "off",
        }
    }
}

/// The threads that carry packets.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct DataplaneSettings {
    /// Threads that carry packets, 1 to 8; by default one for each processor.
    pub workers: Option<u8>,
    /// Whether they go before all ordinary programs of the host; takes CAP_SYS_NICE.
    pub realtime: bool,
}

/// What programs that watch the node are told.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct NodeMetricsSettings {
    /// The address where [metrics](metrics.md) are served over plain HTTP, to whoever reaches it; by default nowhere.
    pub listen: Option<SocketAddr>,
    /// Whether metrics tell of each peer by its name; without, of how many there are.
    pub peers: bool,
}

impl Default for NodeMetricsSettings {
    fn default() -> Self {
        Self {
            listen: None,
            peers: true,
        }
    }
}

/// What is logged, and how.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct LogSettings {
    /// The least important message that is logged (`-v`, `-q`).
    pub level: LogLevel,
    /// The shape of the log (`--log-format`; [logs.md](logs.md)).
    pub format: LogFormat,
}

/// The least important message still logged.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

impl LogLevel {
    /// Returns the level's name as settings write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// The shape of a log line.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// `journald` where systemd has standard error lead to its journal, else `text`.
    #[default]
    Auto,
    /// systemd's journal, with a field for each fact.
    Journald,
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

impl Settings for NodeSettings {
    const ENV: &'static str = "AGENTNET_";
    const LIVE: &'static [&'static str] = &[
        "channel.suite",
        "dns.mode",
        "log.level",
        "path.mode",
        "path.stun",
    ];
    const KEYS: &'static [&'static str] = &[
        "state",
        "socket",
        "suffix",
        "udp.port",
        "udp.offload",
        "dns.mode",
        "path.mode",
        "path.stun",
        "path.port_mapping",
        "wss.mode",
        "wss.proxy",
        "wss.proxy_file",
        "gateway.discover",
        "gateway.multicast",
        "gateway.dns",
        "gateway.hints",
        "channel.suite",
        "dataplane.workers",
        "dataplane.realtime",
        "metrics.listen",
        "metrics.peers",
        "log.level",
        "log.format",
    ];

    fn log(&self) -> LogSettings {
        self.log
    }

    fn check(&self) -> Result<(), String> {
        let workers = self.dataplane.workers;
        if workers.is_some_and(|n| !(1..=MAX_WORKERS).contains(&n)) {
            return Err("dataplane.workers is 1 to 8".to_owned());
        }
        if self.wss.proxy.contains('@') {
            let text = "wss.proxy holds no password: name a file with the URL in wss.proxy_file";
            return Err(text.to_owned());
        }
        if self.gateway.discover.len() > MAX_DISCOVER {
            return Err("gateway.discover has at most 8 of host:port".to_owned());
        }
        Ok(())
    }
}

/// What the daemon runs with: settings whose places are known.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeConfig {
    pub state: PathBuf,
    pub socket: PathBuf,
    pub suffix: Suffix,
    /// UDP port of the underlay.
    pub port: u16,
    /// Whether the kernel may merge and cut packets.
    pub offload: bool,
    pub dns: DnsMode,
    pub path: PathSettings,
    pub wss: NodeWssSettings,
    pub search: SearchSettings,
    pub suite: SuiteChoice,
    pub dataplane: DataplaneSettings,
    pub metrics: NodeMetricsSettings,
    pub log: LogSettings,
}

impl NodeConfig {
    /// Completes settings by the places they left to the machine.
    pub fn new(settings: NodeSettings, state: PathBuf, socket: PathBuf) -> Self {
        Self {
            state,
            socket,
            suffix: settings.suffix,
            port: settings.udp.port,
            offload: settings.udp.offload,
            dns: settings.dns.mode,
            path: settings.path,
            wss: settings.wss,
            search: settings.gateway,
            suite: settings.channel.suite,
            dataplane: settings.dataplane,
            metrics: settings.metrics,
            log: settings.log,
        }
    }
}

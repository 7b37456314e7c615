use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use crate::config::{LogSettings, Settings};

/// The gateway's UDP port: the one after a node's, so that both run on one host.
const UDP_PORT: u16 = 16201;

/// Where STUN is answered too unless another program has it.
const STUN_PORT: u16 = 16203;

/// Endpoints an agent is told of; more are not tried (protocol.md section 3).
const MAX_ADVERTISED: usize = 8;

/// Other domains peered with; each is asked for by every frame of a gateway.
const MAX_DOMAINS: usize = 256;

/// Three heartbeats of 25 s: two may be lost.
const LEASE: u64 = 75; // seconds

/// A relayed packet as long as the TUN takes: agents find out by probes what the way carries.
const MTU: u16 = 8920 + 32 + 56; // bytes of UDP payload

/// A relayed 1280-byte packet: IPv6 minimum, WireGuard and A2G headers around it.
const MIN_MTU: u16 = 1280 + 32 + 56; // bytes of UDP payload

/// What `gateway.toml` may say.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct GatewaySettings {
    /// Where keys and what outlives a restart are kept; by default the directory of the file.
    pub state: Option<PathBuf>,
    pub udp: GatewayUdpSettings,
    pub wss: WssSettings,
    pub attach: AttachSettings,
    pub mesh: MeshSettings,
    pub stun: StunSettings,
    pub peering: PeeringSettings,
    pub discover: DiscoverSettings,
    pub quota: QuotaSettings,
    pub metrics: MetricsSettings,
    pub log: LogSettings,
}

/// The sockets towards agents.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct GatewayUdpSettings {
    /// Addresses to listen on, at most one of each IP version. A host with several addresses of a
    /// version names the one agents use, so that answers come from it.
    pub listen: Vec<SocketAddr>,
    /// `host:port` by which agents reach the gateway, best first; empty means the listening
    /// addresses, which are then no wildcards.
    pub advertise: Vec<String>,
    /// Free text by which agents may prefer near gateways.
    pub region: Option<String>,
    /// Largest frame agents are asked to send, in bytes of UDP payload.
    pub mtu: u16,
    /// Whether the kernel may merge datagrams that arrive (UDP_GRO) and cut those that leave
    /// (UDP_SEGMENT); without, each costs a call.
    pub offload: bool,
}

impl Default for GatewayUdpSettings {
    fn default() -> Self {
        let any: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        Self {
            listen: any.map(|ip| SocketAddr::new(ip, UDP_PORT)).to_vec(),
            advertise: Vec::new(),
            region: None,
            mtu: MTU,
            offload: true,
        }
    }
}

/// How agents find the gateway that know none.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct DiscoverSettings {
    /// Whether agents that ask on a link of this host are answered.
    pub multicast: bool,
}

/// WebSocket over TLS, for agents in networks that let nothing else through.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct WssSettings {
    /// The address where frames are taken by WebSocket over TLS; by default nowhere. `[::]` takes IPv4 too.
    pub listen: Option<SocketAddr>,
    /// `wss://host:port/path` by which agents reach it, best first; empty means the hosts of UDP, at
    /// this port.
    pub advertise: Vec<String>,
    /// A PEM file, as `wss.key` is; by default the gateway makes a certificate at each start. Agents look at neither,
    /// since the gateway proves itself inside.
    pub certificate: Option<PathBuf>,
    /// The key of `wss.certificate`.
    pub key: Option<PathBuf>,
    /// Connections at once: a node has one for all its agents.
    pub connections: usize,
    /// The same from one IPv4 address or IPv6 /64: all nodes behind one proxy.
    pub connections_per_source: usize,
}

impl Default for WssSettings {
    fn default() -> Self {
        Self {
            listen: None,
            advertise: Vec::new(),
            certificate: None,
            key: None,
            // At rest each costs some 60 KB.
            connections: 10_000,
            connections_per_source: 1000,
        }
    }
}

impl WssSettings {
    /// Returns what is wrong; None when nothing is.
    fn fault(&self) -> Option<&'static str> {
        let is_wss = |text: &String| text.starts_with("wss://");
        if self.advertise.len() > MAX_ADVERTISED || !self.advertise.iter().all(is_wss) {
            Some("wss.advertise has at most 8 of wss://host:port/path")
        } else if self.certificate.is_some() != self.key.is_some() {
            Some("wss.certificate and wss.key go together")
        } else if self.connections == 0 || self.connections_per_source == 0 {
            Some("wss.connections and wss.connections_per_source are at least 1")
        } else {
            None
        }
    }
}

/// From where else STUN is answered, so that a host learns how its NAT behaves (RFC 5780).
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct StunSettings {
    /// A second UDP port of the same addresses, from which STUN is answered too (RFC 5780); 0 means that there is
    /// none, by default 16203 is taken if it is free.
    pub alternate_port: Option<u16>,
    /// Second addresses, at most one of each IP version, with both ports.
    pub alternate_addresses: Vec<IpAddr>,
}

impl StunSettings {
    /// Returns the second port, if there is to be one, and whether a gateway listens there or not at all.
    pub fn port(&self) -> Option<(u16, bool)> {
        match self.alternate_port {
            None => Some((STUN_PORT, false)),
            Some(0) => None,
            Some(port) => Some((port, true)),
        }
    }

    /// Returns what is wrong beside these listening addresses; None when nothing is.
    fn fault(&self, listen: &[SocketAddr]) -> Option<&'static str> {
        let others = &self.alternate_addresses;
        let v4 = others.iter().filter(|ip| ip.is_ipv4()).count();
        // With a wildcard the kernel chooses from where an answer comes.
        let is_second = |ip: &IpAddr| {
            let mut own = listen.iter().filter(|at| at.is_ipv4() == ip.is_ipv4());
            own.all(|at| !at.ip().is_unspecified() && at.ip() != *ip)
        };
        let is_own = |port| port != 0 && listen.iter().any(|at| at.port() == port);
        let has_none = self.alternate_port.is_none_or(|port| port == 0);
        if v4 > 1 || others.len() - v4 > 1 {
            Some("stun.alternate_addresses has one address, or one of each IP version")
        } else if has_none && !others.is_empty() {
            Some("stun.alternate_addresses needs stun.alternate_port")
        } else if self.alternate_port.is_some_and(is_own) {
            Some("stun.alternate_port is another port than those of udp.listen")
        } else if others
            .iter()
            .any(|ip| ip.is_unspecified() || !is_second(ip))
        {
            Some("stun.alternate_addresses are others than those that udp.listen has to name")
        } else {
            None
        }
    }
}

/// How many agents may attach, and how fast.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct AttachSettings {
    /// Seconds of silence after which an agent is taken for gone; after twice that it is removed.
    pub lease: u64,
    /// Agents attached at once.
    pub max_agents: usize,
    /// Agents whose handshake is under way at once; each costs 11 KB.
    pub max_handshakes: usize,
    /// Handshakes a second beyond which every agent must first prove its address by a cookie.
    pub handshakes_per_second: u32,
    /// Handshakes a second from one IPv4 address or IPv6 /64: all agents behind one router.
    pub handshakes_per_source: u32,
    /// Handshakes at once from one such source.
    pub burst_per_source: u32,
}

impl Default for AttachSettings {
    fn default() -> Self {
        Self {
            lease: LEASE,
            max_agents: 100_000,
            max_handshakes: 2048,
            // A handshake takes 0.3 ms of one core: an eighth of it.
            handshakes_per_second: 400,
            // A node of 1,000 agents is back within seconds of a restart.
            handshakes_per_source: 200,
            burst_per_source: 1000,
        }
    }
}

/// How much agents and networks may do at the gateway; 0 is without a limit.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct QuotaSettings {
    /// Frames a second, and at once, of each agent.
    pub packets: u64,
    /// Bytes of frames a second, and at once, of each agent.
    pub bytes: u64,
    /// Frames a second, and at once, of all agents of one network together.
    pub network_packets: u64,
    /// Bytes of frames of all agents of one network together.
    pub network_bytes: u64,
    /// Agents of one network that may be attached.
    pub network_agents: usize,
    /// Agents that may be attached from one IPv4 address or IPv6 /64.
    pub source_agents: usize,
    /// Frames a second, and at once, of each agent to targets that nobody is known by, before they are
    /// counted as `frame_scan`.
    pub unknown: u64,
}

/// What programs that watch a server are told.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct MetricsSettings {
    /// The address where [metrics](metrics.md) are served over plain HTTP, to whoever reaches it; by default nowhere.
    pub listen: Option<SocketAddr>,
}

/// How much of a mesh with the domain's other gateways there may be.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct MeshSettings {
    /// Other gateways; each costs 15 KB and two packets a second.
    pub max_gateways: usize,
    /// Ways to agents of others; each costs as much as an agent's record, some 3 KB.
    pub max_routes: usize,
}

impl Default for MeshSettings {
    fn default() -> Self {
        Self {
            max_gateways: 256,
            max_routes: 100_000,
        }
    }
}

/// Other domains whose gateways this one peers with.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct PeeringSettings {
    /// What their operators handed over, as `agentnet gateway peering` prints it; one file a domain.
    pub files: Vec<PathBuf>,
}

impl Settings for GatewaySettings {
    const ENV: &'static str = "AGENTNET_GATEWAY_";
    const LIVE: &'static [&'static str] = &[
        "log.level",
        "peering.files",
        "quota",
        "wss.certificate",
        "wss.key",
    ];
    const KEYS: &'static [&'static str] = &[
        "state",
        "udp.listen",
        "udp.advertise",
        "udp.region",
        "udp.mtu",
        "udp.offload",
        "wss.listen",
        "wss.advertise",
        "wss.certificate",
        "wss.key",
        "wss.connections",
        "wss.connections_per_source",
        "attach.lease",
        "attach.max_agents",
        "attach.max_handshakes",
        "attach.handshakes_per_second",
        "attach.handshakes_per_source",
        "attach.burst_per_source",
        "mesh.max_gateways",
        "mesh.max_routes",
        "stun.alternate_port",
        "stun.alternate_addresses",
        "peering.files",
        "discover.multicast",
        "quota.packets",
        "quota.bytes",
        "quota.network_packets",
        "quota.network_bytes",
        "quota.network_agents",
        "quota.source_agents",
        "quota.unknown",
        "metrics.listen",
        "log.level",
        "log.format",
    ];

    fn log(&self) -> LogSettings {
        self.log
    }

    fn check(&self) -> Result<(), String> {
        let listen = &self.udp.listen;
        let v4 = listen.iter().filter(|at| at.is_ipv4()).count();
        let attach = &self.attach;
        let least = [
            u64::from(attach.handshakes_per_second),
            u64::from(attach.handshakes_per_source),
            u64::from(attach.burst_per_source),
            attach.max_agents as u64,
            attach.max_handshakes as u64,
        ];
        let mesh = [self.mesh.max_gateways, self.mesh.max_routes];
        let faults = [
            (
                listen.is_empty() || v4 > 1 || listen.len() - v4 > 1,
                "udp.listen has one address, or one of each IP version",
            ),
            (
                self.udp.advertise.len() > MAX_ADVERTISED,
                "udp.advertise has at most 8 endpoints",
            ),
            (
                !(MIN_MTU..).contains(&self.udp.mtu),
                "udp.mtu is at least 1368, which relays a 1280-byte packet",
            ),
            (
                !(30..=3600).contains(&attach.lease),
                "attach.lease is 30 to 3600 seconds (agents send a heartbeat every 25)",
            ),
            (least.contains(&0), "the limits of [attach] are at least 1"),
            (mesh.contains(&0), "the limits of [mesh] are at least 1"),
            (
                self.peering.files.len() > MAX_DOMAINS,
                "peering.files has at most 256 files",
            ),
        ];
        let fault = faults.into_iter().find(|(bad, _)| *bad);
        let fault = fault.map(|(_, text)| text).or_else(|| self.wss.fault());
        let fault = fault.or_else(|| self.stun.fault(listen));
        fault.map_or(Ok(()), |text| Err(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Flags, load};

    #[test]
    fn the_defaults_are_sound() {
        let settings: GatewaySettings = load(None, &|_| None, Flags::default()).unwrap();

        assert_eq!(settings, GatewaySettings::default());
        assert_eq!(settings.udp.listen.len(), 2);
    }

    #[test]
    fn every_key_is_a_setting() {
        let value = toml::Value::try_from(GatewaySettings {
            state: Some("/s".into()),
            udp: GatewayUdpSettings {
                region: Some("eu".to_owned()),
                ..Default::default()
            },
            wss: WssSettings {
                listen: Some("[::]:443".parse().unwrap()),
                certificate: Some("/c".into()),
                key: Some("/k".into()),
                ..Default::default()
            },
            metrics: MetricsSettings {
                listen: Some("[::1]:9464".parse().unwrap()),
            },
            stun: StunSettings {
                alternate_port: Some(16204),
                ..Default::default()
            },
            ..Default::default()
        });
        let value = value.unwrap();
        let mut keys = vec![];
        for (name, value) in value.as_table().unwrap() {
            match value.as_table() {
                Some(section) => keys.extend(section.keys().map(|key| format!("{name}.{key}"))),
                None => keys.push(name.clone()),
            }
        }
        keys.sort();
        let mut known = GatewaySettings::KEYS.to_vec();
        known.sort_unstable();

        assert_eq!(keys, known);
    }

    #[test]
    fn settings_that_cannot_work_are_refused() {
        let twice = vec![
            "192.0.2.1:1".parse().unwrap(),
            "192.0.2.2:1".parse().unwrap(),
        ];
        let second = || vec!["192.0.2.2".parse().unwrap()];
        let changes: [&dyn Fn(&mut GatewaySettings); 12] = [
            &|s| s.udp.listen.clone_from(&twice),
            &|s| s.udp.listen.clear(),
            &|s| s.udp.mtu = 1280,
            &|s| s.attach.lease = 20,
            &|s| s.attach.max_agents = 0,
            &|s| s.wss.advertise = vec!["gw.example.org:443".to_owned()],
            &|s| s.wss.certificate = Some("/c".into()),
            &|s| s.wss.connections = 0,
            &|s| s.stun.alternate_port = Some(UDP_PORT),
            &|s| s.stun.alternate_addresses = second(),
            &|s| {
                s.stun.alternate_port = Some(16204);
                s.stun.alternate_addresses = second();
            },
            &|s| {
                s.udp.listen = vec!["192.0.2.2:16201".parse().unwrap()];
                s.stun.alternate_port = Some(16204);
                s.stun.alternate_addresses = second();
            },
        ];

        for change in changes {
            let mut settings = GatewaySettings::default();
            change(&mut settings);
            assert!(settings.check().is_err(), "{settings:?}");
        }
    }
}

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::{LogSettings, MetricsSettings, Settings};
use crate::id::Did;

/// The registry's port: HTTPS beside whatever else the host serves on 443.
pub const REGISTRY_PORT: u16 = 8443;

/// What `registry.toml` may say.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct RegistrySettings {
    /// Where keys and database are; by default the directory of the file.
    pub dir: Option<PathBuf>,
    /// The address for HTTPS; port 0 takes any free one (`--listen`).
    pub listen: SocketAddr,
    /// Where callers find it, `https://host:port`; by default the listening address.
    pub url: Option<String>,
    /// Public keys that may create networks and enrol gateways.
    #[cfg_attr(test, schemars(with = "Vec<String>"))]
    pub operators: Vec<Did>,
    pub lease: LeaseSettings,
    pub limits: LimitSettings,
    pub metrics: MetricsSettings,
    pub log: LogSettings,
}

impl Default for RegistrySettings {
    fn default() -> Self {
        Self {
            dir: None,
            listen: SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), REGISTRY_PORT),
            url: None,
            operators: Vec::new(),
            lease: LeaseSettings::default(),
            limits: LimitSettings::default(),
            metrics: MetricsSettings::default(),
            log: LogSettings::default(),
        }
    }
}

/// For how long records are kept, in seconds, whatever their agents ask for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct LeaseSettings {
    /// Seconds that a record is kept at least, whatever its agent asks for.
    pub shortest: u64,
    /// Seconds that it is kept at most.
    pub longest: u64,
}

impl LeaseSettings {
    /// Returns the shortest lease.
    pub const fn shortest(&self) -> Duration {
        Duration::from_secs(self.shortest)
    }

    /// Returns the longest lease.
    pub const fn longest(&self) -> Duration {
        Duration::from_secs(self.longest)
    }
}

impl Default for LeaseSettings {
    fn default() -> Self {
        Self {
            shortest: 30,
            longest: 3600,
        }
    }
}

/// How much one caller may ask; a source is a /24 of IPv4 or a /56 of IPv6.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct LimitSettings {
    /// Requests a second from one /24 of IPv4 or /56 of IPv6.
    pub source_per_second: u32,
    /// The same at once.
    pub source_burst: u32,
    /// Requests a second of one key.
    pub key_per_second: u32,
    /// The same at once.
    pub key_burst: u32,
    /// Connections at once, of all sources.
    pub connections: usize,
    /// Connections at once of one source.
    pub source_connections: usize,
}

impl Default for LimitSettings {
    fn default() -> Self {
        Self {
            // A thousand agents behind one address come back within seconds of a restart.
            source_per_second: 500,
            source_burst: 4000,
            // A node refreshes, resolves and consents; a loop gone wild does more.
            key_per_second: 20,
            key_burst: 200,
            connections: 16_384,
            source_connections: 4096,
        }
    }
}

impl Settings for RegistrySettings {
    const ENV: &'static str = "AGENTNET_REGISTRY_";
    const LIVE: &'static [&'static str] = &["log.level", "operators"];
    const KEYS: &'static [&'static str] = &[
        "dir",
        "listen",
        "url",
        "operators",
        "lease.shortest",
        "lease.longest",
        "limits.source_per_second",
        "limits.source_burst",
        "limits.key_per_second",
        "limits.key_burst",
        "limits.connections",
        "limits.source_connections",
        "metrics.listen",
        "log.level",
        "log.format",
    ];

    fn log(&self) -> LogSettings {
        self.log
    }

    fn check(&self) -> Result<(), String> {
        let (lease, limits) = (&self.lease, &self.limits);
        if lease.shortest == 0 || lease.shortest > lease.longest {
            return Err("lease.shortest is at least 1 and at most lease.longest".to_owned());
        }
        if limits.source_burst == 0 || limits.key_burst == 0 || limits.connections == 0 {
            return Err("limits of 0 would let nobody in".to_owned());
        }
        match &self.url {
            Some(url) if !url.starts_with("https://") => Err("url begins with https://".to_owned()),
            Some(_) | None => Ok(()),
        }
    }
}

/// What the registry runs with: settings whose places are known.
#[derive(Clone, Debug, PartialEq)]
pub struct RegistryConfig {
    pub dir: PathBuf,
    pub settings: RegistrySettings,
}

impl RegistryConfig {
    /// Completes settings by the directory of the file they came from.
    pub fn new(settings: RegistrySettings, file: &Path) -> Self {
        let beside = || file.parent().unwrap_or_else(|| Path::new("."));
        Self {
            dir: settings.dir.clone().unwrap_or_else(|| beside().to_owned()),
            settings,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::check_sample;

    #[test]
    fn the_sample_of_the_registry_is_true() {
        check_sample::<RegistrySettings>(include_str!("../../config/registry.toml"));
    }

    #[test]
    fn the_state_is_beside_the_file_unless_said_otherwise() {
        let mut settings = RegistrySettings::default();
        let file = Path::new("/etc/r/registry.toml");

        let beside = RegistryConfig::new(settings.clone(), file).dir;
        settings.dir = Some("/var/r".into());
        let elsewhere = RegistryConfig::new(settings, file).dir;

        assert_eq!((beside, elsewhere), ("/etc/r".into(), "/var/r".into()));
    }
}

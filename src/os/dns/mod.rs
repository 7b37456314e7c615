//! Who tells the host's programs of our resolver, one file per owner of the host's DNS settings.

mod original;
mod resolv_conf;
mod settings;

use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::config::DnsMode;

pub use resolv_conf::{DnsError, ResolvConf};
pub use settings::{Nameserver, Settings};

/// Where the C library looks (resolv.conf(5)).
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// What the host's DNS was before us.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Applied {
    /// The nameservers that foreign names are forwarded to, ours never among them.
    pub upstream: Vec<SocketAddr>,
    /// The domains that were searched.
    pub search: Vec<String>,
}

/// What became of the host's DNS settings when ours were taken back.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reverted {
    /// Somebody else changed them after us; they stay as they are.
    LeftTheirs,
    /// They were not ours.
    Nothing,
    Restored,
}

/// Returns the nameservers that programs of the host ask, our own among them where they do.
pub fn nameservers() -> Vec<SocketAddr> {
    // Without the file the C library asks this host's own (resolv.conf(5)), and nobody may be there.
    let text = original::read_bounded(Path::new(RESOLV_CONF)).unwrap_or_default();
    let servers = Settings::parse(&text).nameservers;
    servers.iter().filter_map(resolv_conf::socket).collect()
}

/// The owner of the host's DNS settings that was configured.
#[derive(Clone, Debug)]
pub enum Owner {
    Nobody,
    ResolvConf(ResolvConf),
}

impl Owner {
    /// Returns the owner for `mode`, which keeps what must survive a crash in `state`.
    pub fn new(mode: DnsMode, state: &Path) -> Self {
        match mode {
            DnsMode::None => Self::Nobody,
            DnsMode::ResolvConf => {
                Self::ResolvConf(ResolvConf::new(PathBuf::from(RESOLV_CONF), state))
            }
        }
    }

    /// Returns what [`Self::apply`] will find, so that the resolvers can listen before they are asked.
    pub fn look(&self, nameservers: &[Ipv6Addr]) -> Result<Applied, DnsError> {
        match self {
            Self::Nobody => Ok(Applied::default()),
            Self::ResolvConf(owner) => owner.look(nameservers),
        }
    }

    /// Makes programs ask `nameservers` and search `search` first; again after every change.
    pub fn apply(&self, nameservers: &[Ipv6Addr], search: &[String]) -> Result<Applied, DnsError> {
        match self {
            Self::Nobody => Ok(Applied::default()),
            Self::ResolvConf(owner) => owner.apply(nameservers, search),
        }
    }

    /// Takes our settings back.
    pub fn revert(&self) -> Result<Reverted, DnsError> {
        match self {
            Self::Nobody => Ok(Reverted::Nothing),
            Self::ResolvConf(owner) => owner.revert(),
        }
    }
}

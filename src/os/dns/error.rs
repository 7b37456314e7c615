use std::io;
use std::path::PathBuf;

use nix::errno::Errno;
use thiserror::Error;

use crate::os::dns::bus::BusError;
use crate::os::dns::original::LONGEST;
use crate::os::files::FileError;

/// Why the host's DNS settings cannot be changed.
#[derive(Debug, Error)]
pub enum DnsError {
    #[error("cannot change {}", path.display())]
    Unwritable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot read {}", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is no file of at most {LONGEST} bytes", .0.display())]
    NoSettings(PathBuf),
    #[error("{} was written by an agentnet that kept the original in another place", .0.display())]
    Orphan(PathBuf),
    #[error("the original of {} is not to be had", path.display())]
    Backup {
        path: PathBuf,
        #[source]
        source: FileError,
    },
    #[error(transparent)]
    Bus(#[from] BusError),
    #[error("there is no program resolvconf here")]
    NoResolvconf,
    #[error("resolvconf can be run by root only")]
    NotRoot,
    #[error("resolvconf failed: {0}")]
    Resolvconf(String),
    #[error("{owner} took our settings, and /etc/resolv.conf does not name us first")]
    Outranked { owner: &'static str },
    #[error("no agent has a network device whose DNS could be set")]
    NoLink,
}

impl DnsError {
    /// Tells whether somebody with more rights could do it.
    pub fn is_lack_of_rights(&self) -> bool {
        match self {
            Self::Unwritable { source, .. } => matches!(
                source.raw_os_error().map(Errno::from_raw),
                Some(Errno::EACCES | Errno::EPERM | Errno::EROFS)
            ),
            Self::NotRoot | Self::Bus(BusError::Denied { .. }) => true,
            Self::Unreadable { .. }
            | Self::NoSettings(_)
            | Self::Orphan(_)
            | Self::Backup { .. }
            | Self::Bus(BusError::Failed { .. } | BusError::NoBus(_))
            | Self::NoResolvconf
            | Self::Resolvconf(_)
            | Self::Outranked { .. }
            | Self::NoLink => false,
        }
    }

    /// Tells whether it may be cured while the daemon runs, by the other program.
    pub const fn may_pass(&self) -> bool {
        match self {
            Self::Bus(_) | Self::Resolvconf(_) | Self::Outranked { .. } | Self::NoLink => true,
            Self::Unwritable { .. }
            | Self::Unreadable { .. }
            | Self::NoSettings(_)
            | Self::Orphan(_)
            | Self::Backup { .. }
            | Self::NoResolvconf
            | Self::NotRoot => false,
        }
    }

    /// Says what a person can do about it.
    pub fn cure(&self) -> String {
        match self {
            Self::Unwritable { .. } | Self::Unreadable { .. } | Self::NoSettings(_) => {
                "run as root where the file can be written, or leave it alone: --dns none"
                    .to_owned()
            }
            Self::Orphan(path) => format!(
                "stop the other agentnet first; if there is none, write your nameservers into {}",
                path.display()
            ),
            Self::Backup { source, .. } => source
                .cure()
                .unwrap_or_else(|| "leave the file alone: --dns none".to_owned()),
            Self::Bus(BusError::Denied { .. }) => {
                "run `agentnet dns apply` as root, or install agentnet's polkit rule (docs/dns.md)"
                    .to_owned()
            }
            Self::Bus(BusError::Failed { .. } | BusError::NoBus(_)) => {
                "see that the program runs, or name another owner: --dns resolv-conf".to_owned()
            }
            Self::NoResolvconf => "name another owner: --dns resolv-conf".to_owned(),
            Self::NotRoot => "run `agentnet dns apply` as root".to_owned(),
            Self::Resolvconf(_) => {
                "mend resolvconf, or name another owner: --dns resolv-conf".to_owned()
            }
            Self::Outranked { .. } => {
                "see which nameserver it puts before ours (fixed ones, a local cache), or \
                 name another owner: --dns resolv-conf"
                    .to_owned()
            }
            Self::NoLink => "join a network: agentnet join --token-file FILE".to_owned(),
        }
    }
}

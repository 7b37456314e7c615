//! Who tells the host's programs of our resolver, one file per owner of the host's DNS settings.

mod bus;
mod detect;
mod error;
mod facts;
mod network_manager;
mod original;
mod pace;
mod resolv_conf;
mod resolvconf;
mod resolved;
mod settings;
mod watch;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use tokio::time::timeout;
use tracing::{debug, warn};

use crate::config::DnsMode;
use crate::os::dns::bus::Bus;
use crate::os::dns::resolved::Routing;
use crate::os::dns::watch::{Files, changed};

pub use bus::BusError;
pub use detect::{Facts, Flavour, Found, NetworkManager, Owner, Place, Service, detect};
pub use error::DnsError;
pub use pace::Pace;
pub use resolv_conf::ResolvConf;
pub use settings::{Nameserver, Settings};
pub use watch::Watch;

/// Where the C library looks (resolv.conf(5)).
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Where a resolver answers beside the agents' addresses for Debian's resolvconf, which lets a nameserver
/// stand alone if it is a loopback address. One that nobody else has: AN, in ASCII.
pub const LOOPBACK: Ipv4Addr = Ipv4Addr::new(127, 65, 78, 53);

/// What the host's programs are to be told.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Wanted {
    /// The agents' resolvers.
    pub nameservers: Vec<Ipv6Addr>,
    /// Whether one of them answers at [`LOOPBACK`] too.
    pub on_loopback: bool,
    /// Domains that complete short names.
    pub search: Vec<String>,
    /// Domains that are ours: the suffix and the reverse zones.
    pub domains: Vec<String>,
    /// The device that has the first of `nameservers`; None without one.
    pub device: Option<String>,
}

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

/// Returns the domains by which programs of the host complete short names.
pub fn search() -> Vec<String> {
    let text = original::read_bounded(Path::new(RESOLV_CONF)).unwrap_or_default();
    Settings::parse(&text).search
}

/// Returns the folders in which root sets the host's DNS as `mode` says, and whether it runs programs for it.
pub fn needs(mode: DnsMode) -> (Vec<PathBuf>, bool) {
    let [etc, run] = ["/etc", "/run"].map(PathBuf::from);
    match mode {
        DnsMode::None | DnsMode::Resolved => (Vec::new(), false),
        DnsMode::ResolvConf => (vec![etc], false),
        DnsMode::NetworkManager => (vec![run], false),
        DnsMode::Resolvconf => (vec![etc, run], true),
        DnsMode::Auto => (vec![etc, run], resolvconf::flavour().is_some()),
    }
}

/// The host's DNS settings, in the hands of whoever owns them.
#[derive(Debug)]
pub struct HostDns {
    mode: DnsMode,
    file: ResolvConf,
    /// None until somebody on it is to be asked, and where there is none.
    bus: Option<Bus>,
}

impl HostDns {
    /// Takes the settings in hand as `mode` says; what must survive a crash is kept in or beside `state`.
    pub fn new(mode: DnsMode, state: &Path) -> Self {
        Self {
            mode,
            file: ResolvConf::new(PathBuf::from(RESOLV_CONF), state),
            bus: None,
        }
    }

    /// Begins to watch whatever says who owns the settings and what they are.
    pub fn watch(&self) -> Watch {
        let on_bus = match self.mode {
            DnsMode::Auto | DnsMode::NetworkManager | DnsMode::Resolved => true,
            DnsMode::None | DnsMode::ResolvConf | DnsMode::Resolvconf => false,
        };
        Watch::start(self.file.clone(), on_bus)
    }

    /// Returns who owns the settings now.
    pub async fn find(&mut self) -> Result<Found, DnsError> {
        let set = |owner| Found {
            owner,
            why: "the settings of the node say so (dns.mode)",
        };
        match self.mode {
            DnsMode::None => Ok(set(Owner::Nobody)),
            DnsMode::NetworkManager => Ok(set(Owner::NetworkManager)),
            DnsMode::ResolvConf => Ok(set(Owner::ResolvConf)),
            DnsMode::Resolved => Ok(set(Owner::Resolved)),
            DnsMode::Resolvconf => {
                let flavour = resolvconf::flavour().ok_or(DnsError::NoResolvconf)?;
                Ok(set(Owner::Resolvconf(flavour)))
            }
            DnsMode::Auto => Ok(detect(&self.facts().await?)),
        }
    }

    /// Returns what is observed on the host.
    pub async fn facts(&mut self) -> Result<Facts, DnsError> {
        let original = self.file.without_us()?;
        let bus = self.bus().await.ok();
        Ok(facts::gather(Path::new(RESOLV_CONF), &original, bus.as_ref()).await)
    }

    /// Returns what [`Self::apply`] will find, and changes nothing.
    pub async fn look(&mut self, owner: Owner, own: &[Ipv6Addr]) -> Result<Applied, DnsError> {
        match owner {
            // What is routed to us by domain is ours to answer.
            Owner::Nobody | Owner::Resolved => Ok(Applied::default()),
            Owner::NetworkManager => {
                let bus = self.bus().await?;
                Ok(network_manager::look(&bus, &all(own)).await?)
            }
            Owner::ResolvConf => self.file.look(own),
            Owner::Resolvconf(flavour) => Ok(resolvconf::look(flavour, &all(own))),
        }
    }

    /// Tells whether programs are told so now.
    pub async fn stands(&mut self, owner: Owner, wanted: &Wanted) -> Result<bool, DnsError> {
        match owner {
            Owner::Nobody => Ok(true),
            Owner::NetworkManager => Ok(names_first(&wanted.servers(owner))),
            Owner::ResolvConf => self.file.stands(&wanted.nameservers, &wanted.search),
            Owner::Resolvconf(flavour) => {
                let servers = wanted.servers(owner);
                let recorded = resolvconf::stands(flavour, &servers, &wanted.search);
                Ok(recorded && names_first(&servers))
            }
            Owner::Resolved => {
                let routing = wanted.routing()?;
                Ok(resolved::stands(&self.bus().await?, &routing).await?)
            }
        }
    }

    /// Makes programs ask our resolvers; again after every change.
    pub async fn apply(&mut self, owner: Owner, wanted: &Wanted) -> Result<(), DnsError> {
        match owner {
            Owner::Nobody => {}
            Owner::NetworkManager => {
                let bus = self.bus().await?;
                let theirs = network_manager::look(&bus, &all(&wanted.nameservers)).await?;
                let search = joined(&wanted.search, &theirs.search);
                let servers = wanted.servers(owner);
                network_manager::apply(&bus, &servers, &search).await?;
                named_in_time("NetworkManager", &servers, &self.file).await?;
            }
            Owner::ResolvConf => {
                self.file.apply(&wanted.nameservers, &wanted.search)?;
            }
            Owner::Resolvconf(flavour) => {
                let servers = wanted.servers(owner);
                resolvconf::apply(flavour, &servers, &wanted.search).await?;
                named_in_time("resolvconf", &servers, &self.file).await?;
            }
            Owner::Resolved => {
                let routing = wanted.routing()?;
                resolved::apply(&self.bus().await?, &routing).await?;
            }
        }
        self.clear_others(owner).await;
        Ok(())
    }

    /// Takes our settings back from whoever has them; `device` is the one that systemd-resolved was told of.
    pub async fn revert(&mut self, device: Option<&str>) -> Result<Reverted, DnsError> {
        if matches!(self.mode, DnsMode::Auto | DnsMode::Resolved)
            && let Some(link) = device.and_then(index)
            && let Ok(bus) = self.bus().await
            && bus.service(resolved::SERVICE).await.ok() == Some(Service::Running)
            && let Err(error) = resolved::revert(&bus, link).await
        {
            // They go with the device.
            debug!(%error, "systemd-resolved keeps our settings");
        }
        let mut had = self.revert_network_manager().await?;
        had |= resolvconf::revert().await?;
        let reverted = self.file.revert()?;
        let only_others = had && reverted == Reverted::Nothing;
        Ok(if only_others {
            Reverted::Restored
        } else {
            reverted
        })
    }

    async fn revert_network_manager(&mut self) -> Result<bool, DnsError> {
        if !network_manager::is_applied() {
            return Ok(false);
        }
        let bus = self.bus().await.ok();
        network_manager::revert(bus.as_ref()).await
    }

    /// Takes back what an earlier owner, or a daemon that crashed, was told.
    async fn clear_others(&mut self, owner: Owner) {
        let mut cleared = Vec::new();
        if owner != Owner::NetworkManager {
            cleared.push(self.revert_network_manager().await.map(drop));
        }
        if !matches!(owner, Owner::Resolvconf(_)) {
            cleared.push(resolvconf::revert().await.map(drop));
        }
        if owner != Owner::ResolvConf {
            cleared.push(self.file.revert().map(drop));
        }
        for error in cleared.into_iter().filter_map(Result::err) {
            warn!(%error, "DNS settings of an earlier owner stay behind");
        }
    }

    async fn bus(&mut self) -> Result<Bus, BusError> {
        if let Some(bus) = self.bus.as_ref().filter(|bus| !bus.is_closed()) {
            return Ok(bus.clone());
        }
        let bus = Bus::open().await?;
        self.bus = Some(bus.clone());
        Ok(bus)
    }
}

impl Wanted {
    /// Returns whom programs are to ask.
    pub fn servers(&self, owner: Owner) -> Vec<IpAddr> {
        match owner {
            Owner::Resolvconf(Flavour::Debian) if self.on_loopback => vec![LOOPBACK.into()],
            Owner::NetworkManager
            | Owner::Nobody
            | Owner::ResolvConf
            | Owner::Resolvconf(_)
            | Owner::Resolved => self.nameservers.iter().map(|ip| IpAddr::V6(*ip)).collect(),
        }
    }

    /// Returns what systemd-resolved is told: one link suffices, as each resolver answers for all agents.
    fn routing(&self) -> Result<Routing, DnsError> {
        let device = self.device.as_deref().and_then(index);
        let (Some(link), Some(nameserver)) = (device, self.nameservers.first()) else {
            return Err(DnsError::NoLink);
        };
        Ok(Routing {
            link,
            nameserver: *nameserver,
            domains: self.domains.clone(),
        })
    }
}

/// Returns every address that a resolver of ours has.
fn all(own: &[Ipv6Addr]) -> Vec<IpAddr> {
    let own = own.iter().map(|ip| IpAddr::V6(*ip));
    own.chain([LOOPBACK.into()]).collect()
}

fn index(device: &str) -> Option<i32> {
    let index = nix::net::if_::if_nametoindex(device).ok()?;
    i32::try_from(index).ok()
}

/// Tells whether `/etc/resolv.conf` names one of `servers` first.
fn names_first(servers: &[IpAddr]) -> bool {
    nameservers()
        .first()
        .is_some_and(|first| servers.contains(&first.ip()))
}

/// Waits until `/etc/resolv.conf` names us, which its owner writes on its own time.
async fn named_in_time(
    owner: &'static str,
    servers: &[IpAddr],
    file: &ResolvConf,
) -> Result<(), DnsError> {
    /// For a busy host.
    const PATIENCE: std::time::Duration = std::time::Duration::from_secs(3);
    let named = async {
        loop {
            // Before the look, so that nothing happens between the two.
            let files = Files::watch(file);
            if names_first(servers) {
                return;
            }
            changed(files.as_ref()).await;
        }
    };
    // A file that cannot be watched is looked at once more.
    let is_in_time = timeout(PATIENCE, named).await.is_ok() || names_first(servers);
    is_in_time
        .then_some(())
        .ok_or(DnsError::Outranked { owner })
}

fn joined(ours: &[String], theirs: &[String]) -> Vec<String> {
    let mut all = ours.to_vec();
    all.extend(
        theirs
            .iter()
            .filter(|domain| !ours.contains(domain))
            .cloned(),
    );
    all
}

//! Keeps the host's programs told of the node's resolvers, whoever else changes the host's DNS settings.

use std::fs;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};

use tokio::sync::watch;
use tracing::{debug, error, info, warn};

use crate::config::DnsMode;
use crate::node::causes::with_causes;
use crate::os::clock;
use crate::os::dns::{Applied, DnsError, Flavour, Found, HostDns, Owner, Pace, Wanted, Watch};
use crate::wire::api::local::{Dns, DnsState};

/// Name of the file that calls root.
const CALL: &str = "dns-apply";

/// Cure of a lack of rights.
const AS_ROOT: &str =
    "run as root: agentnet dns apply (systemd's ExecStartPost=+ does, see docs/dns.md)";

/// The host's DNS settings as far as they are the node's concern.
#[derive(Debug)]
pub(super) struct HostNames {
    settings: HostDns,
    /// None where the settings are left alone.
    watch: Option<Watch>,
    pace: Pace,
    found: Found,
    /// None while no agent has an address.
    wanted: Option<Wanted>,
    /// A file that changes when root is to set what we may not: systemd can watch it.
    call: PathBuf,
    state: PathBuf,
    told: watch::Sender<Dns>,
}

impl HostNames {
    /// Takes the settings in hand; what becomes of them is seen in the receiver. Root is called by a file in the
    /// folder of `socket`.
    pub(super) fn new(mode: DnsMode, state: &Path, socket: &Path) -> (Self, watch::Receiver<Dns>) {
        let is_off = mode == DnsMode::None;
        let (told, seen) = watch::channel(Dns {
            mode: mode.as_str().to_owned(),
            owner: Owner::Nobody.to_string(),
            state: if is_off {
                DnsState::Off
            } else {
                DnsState::Idle
            },
            ..Dns::default()
        });
        let settings = HostDns::new(mode, state);
        let names = Self {
            watch: (!is_off).then(|| settings.watch()),
            settings,
            pace: Pace::default(),
            found: Found {
                owner: Owner::Nobody,
                why: "",
            },
            wanted: None,
            call: socket.with_file_name(CALL),
            state: state.to_owned(),
            told,
        };
        (names, seen)
    }

    /// Leaves the settings to another owner; false where it is the same.
    pub(super) async fn set_mode(&mut self, mode: DnsMode) -> bool {
        if self.report().mode == mode.as_str() {
            return false;
        }
        self.take_back().await;
        let settings = HostDns::new(mode, &self.state);
        let is_off = mode == DnsMode::None;
        self.watch = (!is_off).then(|| settings.watch());
        self.settings = settings;
        self.pace.clear();
        self.found = Found {
            owner: Owner::Nobody,
            why: "",
        };
        self.set(
            if is_off {
                DnsState::Off
            } else {
                DnsState::Idle
            },
            None,
        );
        self.told
            .send_modify(|dns| mode.as_str().clone_into(&mut dns.mode));
        true
    }

    /// Waits until somebody may have changed the settings.
    ///
    /// # Cancel safety
    ///
    /// A change that nobody waited for is told to the next who waits.
    pub(super) async fn changed(&self) {
        match &self.watch {
            Some(watch) => watch.changed().await,
            None => std::future::pending().await,
        }
    }

    /// Tells whether the owner needs a resolver at a loopback address.
    pub(super) fn wants_loopback(&self) -> bool {
        self.found.owner == Owner::Resolvconf(Flavour::Debian)
    }

    /// Finds out who owns the settings, and what they are without us; `own` are our resolvers.
    pub(super) async fn look(&mut self, own: &[Ipv6Addr]) -> Result<Applied, DnsError> {
        let found = self.settings.find().await?;
        if found != self.found {
            info!(owner = %found.owner, why = found.why, "The owner of the host's DNS");
            self.found = found;
        }
        let applied = match self.settings.look(found.owner, own).await {
            Ok(applied) => applied,
            Err(error) if error.may_pass() => {
                warn!(%error, "The host's nameservers are not known");
                Applied::default()
            }
            Err(error) => return Err(error),
        };
        self.told.send_modify(|dns| {
            dns.owner = found.owner.to_string();
            found.why.clone_into(&mut dns.why);
            dns.upstream.clone_from(&applied.upstream);
        });
        Ok(applied)
    }

    /// Has programs told so; fails only where nobody but the operator can help.
    pub(super) async fn tell(&mut self, wanted: Wanted) -> Result<(), DnsError> {
        self.told.send_modify(|dns| {
            dns.nameservers.clone_from(&wanted.nameservers);
            dns.on_loopback = wanted.on_loopback;
            dns.search.clone_from(&wanted.search);
            dns.domains.clone_from(&wanted.domains);
            dns.device.clone_from(&wanted.device);
        });
        self.wanted = Some(wanted);
        self.pace.clear();
        if self.is_held() {
            return Ok(());
        }
        self.put().await?;
        if self.told.borrow().state == DnsState::Waiting
            && let Err(error) = fs::write(&self.call, "agentnet dns apply\n")
        {
            debug!(%error, path = %self.call.display(), "Root is not called");
        }
        Ok(())
    }

    /// Looks after a change: returns the settings without us, and puts ours back if they are gone.
    pub(super) async fn again(&mut self) -> Option<Applied> {
        let own = self.wanted.as_ref()?.nameservers.clone();
        let applied = match self.look(&own).await {
            Ok(applied) => applied,
            Err(error) => {
                warn!(%error, "The host's DNS settings cannot be read");
                return None;
            }
        };
        if !self.is_held() {
            self.put_back().await;
        }
        Some(applied)
    }

    /// Wants the settings again that were taken back or given up; [`Self::again`] sets them.
    pub(super) fn resume(&mut self) {
        self.pace.clear();
        let state = self.told.borrow().state;
        if matches!(state, DnsState::Contended | DnsState::Reverted) {
            self.set(DnsState::Idle, None);
        }
    }

    /// Returns how it stands.
    pub(super) fn report(&self) -> Dns {
        self.told.borrow().clone()
    }

    /// Takes the settings back until they are asked for again.
    pub(super) async fn hold(&mut self) {
        if self.take_back().await && self.watch.is_some() {
            self.set(DnsState::Reverted, None);
        }
    }

    /// Takes the settings back, as no agent has an address any more.
    pub(super) async fn forget(&mut self) {
        if self.take_back().await && !self.is_held() {
            self.set(DnsState::Idle, None);
        }
        self.wanted = None;
        // Where it never was there is nothing to remove.
        drop(fs::remove_file(&self.call));
    }

    async fn take_back(&mut self) -> bool {
        let device = self
            .wanted
            .as_ref()
            .and_then(|wanted| wanted.device.as_deref());
        match self.settings.revert(device).await {
            Ok(_) => true,
            Err(error) if error.is_lack_of_rights() => {
                debug!(%error, "DNS settings that root applied are for root to take back");
                true
            }
            Err(error) => {
                error!(%error, "The host's DNS settings are not restored");
                self.set(DnsState::Failed, Some(&error));
                false
            }
        }
    }

    async fn put_back(&mut self) {
        let Some(wanted) = &self.wanted else {
            return;
        };
        let owner = self.found.owner;
        let stands = self.settings.stands(owner, wanted).await;
        let state = self.told.borrow().state;
        match stands {
            Ok(true) if state == DnsState::Contended => {}
            Ok(true) => self.set_well(),
            Ok(false) | Err(_) if state == DnsState::Contended => {}
            // Nothing is changed by who may change nothing.
            Ok(false) | Err(_) if state != DnsState::Waiting && !self.pace.allows(clock::now()) => {
                if state == DnsState::Applied {
                    let code = "dns_contended";
                    warn!(code, %owner, "Another program takes our DNS settings away again and again; giving up");
                    self.set(DnsState::Contended, None);
                }
            }
            // What failed is told by the state.
            Ok(false) | Err(_) => drop(self.put().await),
        }
    }

    async fn put(&mut self) -> Result<(), DnsError> {
        let Some(wanted) = &self.wanted else {
            return Ok(());
        };
        let owner = self.found.owner;
        let put = match self.settings.stands(owner, wanted).await {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => self.settings.apply(owner, wanted).await,
        };
        match put {
            Ok(()) => {
                self.set_well();
                Ok(())
            }
            Err(error) if error.is_lack_of_rights() => {
                if self.told.borrow().state != DnsState::Waiting {
                    let code = "dns_waiting";
                    info!(code, reason = %error, "The host's DNS settings wait for `agentnet dns apply`");
                }
                self.set(DnsState::Waiting, Some(&error));
                self.told
                    .send_modify(|dns| dns.cure = Some(AS_ROOT.to_owned()));
                Ok(())
            }
            Err(error) => {
                let (code, cure) = ("dns_failed", error.cure());
                warn!(code, reason = %error, cure, "The host's programs are not told of our names");
                self.set(DnsState::Failed, Some(&error));
                if error.may_pass() { Ok(()) } else { Err(error) }
            }
        }
    }

    fn set_well(&self) {
        let is_off = self.found.owner == Owner::Nobody;
        self.set(
            if is_off {
                DnsState::Off
            } else {
                DnsState::Applied
            },
            None,
        );
    }

    fn set(&self, state: DnsState, error: Option<&DnsError>) {
        self.told.send_modify(|dns| {
            dns.state = state;
            dns.error = error.map(|error| with_causes(error));
            dns.cure = error.map(DnsError::cure);
        });
    }

    fn is_held(&self) -> bool {
        self.told.borrow().state == DnsState::Reverted
    }
}

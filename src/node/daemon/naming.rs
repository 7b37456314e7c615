use std::net::SocketAddr;
use std::sync::Arc;

use tracing::{error, warn};

use super::{Daemon, DaemonError};
use crate::engine::names::Zone;
use crate::node::causes::with_causes;
use crate::node::driver::HOST;
use crate::node::lent;
use crate::node::names::Names;
use crate::node::resolver::{Resolver, Settings, Upstream};
use crate::os::dns::{Applied, LOOPBACK, Wanted};

/// Port of a name server (RFC 1035 section 4.2).
const DNS_PORT: u16 = 53;

impl Daemon {
    /// Starts the resolvers anew for the agents there are, and tells the host's programs of them.
    pub(super) async fn renew_names(&mut self) -> Result<(), DaemonError> {
        self.settle_residents().await;
        for running in self.running.values_mut() {
            if let Some(resolver) = running.resolver.take() {
                resolver.stop().await;
            }
        }
        if let Some(resolver) = self.loopback.take() {
            resolver.stop().await;
        }
        let with_device = self
            .running
            .iter()
            .filter(|(_, running)| running.is_on_host());
        let servers = with_device.map(|(local, _)| local.ip()).collect::<Vec<_>>();
        if servers.is_empty() {
            self.names.forget().await;
            return Ok(());
        }
        // The resolvers listen before anybody is told to ask them.
        let before = self.names.look(&servers).await?;
        let started = self.start_resolvers(&before).await;
        self.publish_facts();
        started?;
        let zone = self.zone(&before);
        let answers = self
            .running
            .iter()
            .filter(|(_, running)| running.resolver.is_some());
        let wanted = Wanted {
            nameservers: answers.clone().map(|(local, _)| local.ip()).collect(),
            on_loopback: self.loopback.is_some(),
            search: self.search(),
            domains: zone.domains(),
            device: answers
                .clone()
                .find_map(|(_, running)| running.facts.device.clone()),
        };
        self.names.tell(wanted).await?;
        Ok(())
    }

    /// Does the same for one more agent. Where the host cannot be told it is a member and runs all the same;
    /// `agentnet dns status` has the cure.
    pub(super) async fn add_names(&mut self) -> Result<(), DaemonError> {
        match self.renew_names().await {
            Err(DaemonError::Dns(error)) => {
                let (code, reason) = ("dns_failed", with_causes(&error));
                warn!(code, reason, "The host is not told of an agent's names");
                Ok(())
            }
            renewed => renewed,
        }
    }

    /// Takes up what somebody else changed of the host's DNS, and puts our part back.
    pub(super) async fn follow_host_dns(&mut self) {
        let Some(before) = self.names.again().await else {
            return;
        };
        if self.names.wants_loopback() != self.loopback.is_some() {
            if let Err(failed) = self.renew_names().await {
                error!(%failed, "Names are not answered");
            }
            return;
        }
        let (zone, upstream) = (self.zone(&before), upstream(&before));
        let agents = self
            .running
            .values()
            .filter_map(|running| running.resolver.as_ref());
        for resolver in agents.chain(&self.loopback) {
            resolver.change(zone.clone(), upstream.clone());
        }
    }

    /// Returns the domains that complete short names: one for each network.
    fn search(&self) -> Vec<String> {
        let names = self
            .running
            .values()
            .filter(|running| running.realm == HOST)
            .flat_map(|running| lent::search(&running.membership, &self.suffix));
        let mut search = names.collect::<Vec<_>>();
        search.dedup();
        search
    }

    fn zone(&self, before: &Applied) -> Zone {
        Zone {
            suffix: self.suffix.clone(),
            prefixes: self.running.values().map(|r| r.membership.prefix).collect(),
            retries: Zone::retries(&self.search(), &before.search),
        }
    }

    async fn start_resolvers(&mut self, before: &Applied) -> Result<(), DaemonError> {
        let (zone, upstream) = (self.zone(before), upstream(before));
        let directory = || Arc::new(Names::new(self.handle.clone()));
        let mut refused = None;
        for (local, running) in &mut self.running {
            if !running.is_on_host() {
                continue;
            }
            let listen = SocketAddr::new(local.ip().into(), DNS_PORT);
            let mut settings = Settings {
                listen,
                asker: *local,
                zone: zone.clone(),
                upstream: upstream.clone(),
            };
            match Resolver::start(settings.clone(), directory()).await {
                Ok(resolver) => {
                    running.resolver = Some(resolver);
                    running.facts.deaf = None;
                }
                Err(error) => {
                    let code = "no_resolver";
                    error!(code, reason = %error, "Names are not answered at an agent's address");
                    running.facts.deaf = Some(error.to_string());
                    refused = Some(DaemonError::Resolver(listen, error));
                }
            }
            if self.names.wants_loopback() && self.loopback.is_none() {
                settings.listen = SocketAddr::new(LOOPBACK.into(), DNS_PORT);
                match Resolver::start(settings, directory()).await {
                    Ok(resolver) => self.loopback = Some(resolver),
                    Err(error) => error!(%error, at = %LOOPBACK, "Names are not answered there"),
                }
            }
        }
        // Each resolver answers for all agents of the host.
        let answers = self.running.values().any(|r| r.resolver.is_some());
        refused.filter(|_| !answers).map_or(Ok(()), Err)
    }
}

fn upstream(before: &Applied) -> Upstream {
    match before.upstream.as_slice() {
        [] => Upstream::Refuse,
        servers => Upstream::Forward(servers.to_vec()),
    }
}

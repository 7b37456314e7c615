use std::{sync::Arc, time::Duration};

use nix::net::if_::if_nametoindex;
use tracing::{debug, error, warn};

use super::Daemon;
use crate::dataplane::Bound;
use crate::node::agent;
use crate::node::causes::with_causes;
use crate::node::driver::{Core, HOST, Stopped};
use crate::os::route::{Resident, RouteError, Routing};

/// Pause before a device that could not be made anew is tried again.
const DEVICE_RETRY: Duration = Duration::from_secs(5);

impl Daemon {
    /// Brings the host's routing in line with the agents that are on it, of which some may be bound.
    ///
    /// One that is bound and whose rules the kernel refuses loses its device: everybody could use it.
    pub(super) async fn settle_residents(&mut self) {
        let residents = self.residents();
        let bound = residents.iter().filter_map(|resident| {
            let binding = resident.binding.clone()?;
            let device = resident.index;
            Some((resident.address, Bound { binding, device }))
        });
        let bound = bound.collect();
        let told = self.handle.call(|core| core.set_bound(bound)).await;
        if told.is_err() {
            // The engine is gone only when the daemon stops.
            return;
        }
        let Err(failed) = settle(&residents).await else {
            return;
        };
        let bound = residents
            .iter()
            .filter(|resident| resident.binding.is_some());
        let bound = bound.map(|resident| resident.address).collect::<Vec<_>>();
        if bound.is_empty() {
            debug!(%failed, "Routing rules not looked at");
            return;
        }
        for local in bound {
            let reason = with_causes(&failed);
            error!(
                code = "no_device",
                reason, "An agent cannot be bound, and has no network device"
            );
            self.close_device(local).await;
            if let Some(running) = self.running.get_mut(&local) {
                running.facts.device = None;
            }
        }
        self.publish_facts();
    }

    /// Makes those devices anew that somebody took away.
    pub(super) async fn restore_devices(&mut self) -> Result<(), Stopped> {
        let lost = self.handle.call(|core| core.lost_devices()).await?;
        for local in lost {
            let running = self.running.get(&local);
            if running.is_some_and(|running| running.realm != HOST) {
                // It went with its program.
                continue;
            }
            match agent::bring_up(&self.handle, local, self.offload).await {
                Ok(device) => {
                    if let Some(running) = self.running.get_mut(&local) {
                        running.facts.device = Some(device);
                    }
                    let back = move |core: &mut Core| core.device_is_back(local);
                    self.handle.call(back).await?;
                }
                Err(error) => {
                    let code = "no_device";
                    error!(code, reason = %error, "A network device that was removed cannot be made anew");
                    let again = Arc::clone(&self.device_lost);
                    tokio::spawn(async move {
                        tokio::time::sleep(DEVICE_RETRY).await;
                        again.notify_one();
                    });
                }
            }
        }
        if let Err(failed) = self.renew_names().await {
            warn!(%failed, "Names are not answered");
        }
        self.publish_facts();
        Ok(())
    }

    /// Leaves the host's routing as if no agent had been bound.
    pub(super) async fn unsettle_residents(&self) {
        if let Err(failed) = settle(&[]).await {
            debug!(%failed, "Routing rules not looked at");
        }
    }

    fn residents(&self) -> Vec<Resident> {
        let on_host = self
            .running
            .iter()
            .filter(|(_, running)| running.is_on_host());
        let residents = on_host.filter_map(|(local, running)| {
            let device = running.facts.device.clone()?;
            Some(Resident {
                // It was taken away meanwhile, of which we hear.
                index: if_nametoindex(device.as_str()).ok()?,
                device,
                address: *local,
                binding: running.membership.placement.bound.clone(),
            })
        });
        residents.collect()
    }
}

async fn settle(residents: &[Resident]) -> Result<(), RouteError> {
    Routing::open()?.settle(residents).await
}

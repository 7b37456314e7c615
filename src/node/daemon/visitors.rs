use tracing::{error, info, warn};

use super::{Daemon, DaemonError};
use crate::dataplane::Realm;
use crate::id::OverlayIp;
use crate::node::agent;
use crate::node::causes::with_causes;
use crate::node::driver::{Core, HOST};
use crate::node::lent::{self, Lent};
use crate::node::running::Visitor;
use crate::wire::api::problem::{Code, Problem};

impl Daemon {
    /// Has an agent live in a program's namespace.
    pub(super) async fn take_in(
        &mut self,
        local: OverlayIp,
        lent: Lent,
        realm: Realm,
    ) -> Result<(), DaemonError> {
        let Some(running) = self.running.get_mut(&local) else {
            return Ok(());
        };
        let who = (&running.membership, &self.suffix);
        let taken = lent::take_in(&self.handle, who, (local, realm), lent).await?;
        running.facts.device = Some(taken.0);
        running.apart = taken.1;
        running.realm = realm;
        self.publish_facts();
        Ok(())
    }

    /// Has an agent live with a program until that is let go, and not on the host; returns where.
    pub(super) async fn welcome(
        &mut self,
        local: OverlayIp,
        visitor: Visitor,
    ) -> Result<Realm, Problem> {
        let Some(running) = self.running.get_mut(&local) else {
            return Err(Problem::new(Code::NotFound));
        };
        if running.realm != HOST {
            let what = "a program has this agent's network already";
            let mut problem = Problem::with(Code::InUse, what);
            "one program at a time: see `agentnet status`, or have several in one container"
                .clone_into(&mut problem.hint);
            return Err(problem);
        }
        let was_on_host = running.facts.device.take().is_some();
        if let Some(resolver) = running.resolver.take() {
            resolver.stop().await;
        }
        self.realm = Realm(self.realm.0.wrapping_add(1).max(1));
        let realm = self.realm;
        self.close_device(local).await;
        if let Err(failed) = self.take_in(local, visitor.lent, realm).await {
            let what = with_causes(&failed);
            if let Some(running) = self.running.get_mut(&local) {
                running.realm = realm;
            }
            self.let_go(local, realm).await;
            return Err(Problem::with(Code::Internal, what));
        }
        if let Some(running) = self.running.get_mut(&local) {
            running.facts.program = visitor.process;
        }
        self.publish_facts();
        if was_on_host && let Err(failed) = self.renew_names().await {
            warn!(%failed, "Names are not answered");
        }
        Ok(realm)
    }

    /// Takes an agent back whose program ended; on the host it has a device again, unless it is for programs alone.
    pub(super) async fn let_go(&mut self, local: OverlayIp, realm: Realm) {
        let Some(running) = self
            .running
            .get_mut(&local)
            .filter(|running| running.realm == realm)
        else {
            return;
        };
        for resolver in std::mem::take(&mut running.apart) {
            resolver.stop().await;
        }
        let is_apart = running.membership.placement.apart;
        running.realm = HOST;
        (running.facts.device, running.facts.program) = (None, None);
        self.close_device(local).await;
        info!("A program let its agent go");
        if !is_apart {
            match agent::bring_up(&self.handle, local, self.offload).await {
                Ok(device) => {
                    if let Some(running) = self.running.get_mut(&local) {
                        running.facts.device = Some(device);
                    }
                }
                Err(error) => error!(%error, "An agent has no network device"),
            }
            if let Err(failed) = self.renew_names().await {
                warn!(%failed, "Names are not answered");
            }
        }
        self.publish_facts();
    }

    /// Closes the device of an agent, wherever it is.
    pub(super) async fn close_device(&self, local: OverlayIp) {
        let closed = self.handle.call(move |core: &mut Core| {
            core.set_realm(local, HOST);
            core.device_is_back(local);
            core.dataplane().clone()
        });
        // The engine is gone only when the daemon stops.
        if let Ok(plane) = closed.await {
            plane.remove_tun(local).await;
        }
    }
}

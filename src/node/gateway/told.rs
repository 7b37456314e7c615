//! What the settings say that may change while a gateway runs.

use std::sync::Arc;

use rustls::ServerConfig;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tracing::error;

use crate::config::GatewaySettings;
use crate::gateway::server::GatewayCommand;
use crate::id::DomainId;
use crate::node::causes::with_causes;
use crate::node::gateway::{GatewayConfig, peering, setup};
use crate::statement::peering::Peering;

/// The running gateway, as its settings reach it.
pub(super) struct Told {
    pub(super) config: GatewayConfig,
    pub(super) domain: DomainId,
    pub(super) commands: mpsc::Sender<GatewayCommand>,
    /// None where there are no WebSockets.
    pub(super) certificate: Option<watch::Sender<Arc<ServerConfig>>>,
}

/// The task that looks up other domains' gateways; it ends when this is dropped.
struct Introduction(AbortHandle);

impl Drop for Introduction {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Told {
    /// Tells the gateway what the settings say, now and whenever they change.
    pub(super) async fn follow(
        mut self,
        peerings: Vec<Peering>,
        mut settings: watch::Receiver<GatewaySettings>,
    ) {
        let mut introduction = self.introduce(peerings).await;
        self.tell(GatewayCommand::SetQuota(self.config.quota()))
            .await;
        while settings.changed().await.is_ok() {
            self.config.settings = settings.borrow_and_update().clone();
            self.tell(GatewayCommand::SetQuota(self.config.quota()))
                .await;
            match peering::load(&self.config, &self.domain) {
                Ok(peerings) => introduction = self.introduce(peerings).await,
                Err(failed) => error!(error = with_causes(&failed), "Peerings stay as they were"),
            }
            self.renew_certificate();
        }
        // Nobody changes them any more, and those that are hold.
        std::future::pending::<()>().await;
        drop(introduction);
    }

    async fn introduce(&self, peerings: Vec<Peering>) -> Introduction {
        self.tell(GatewayCommand::SetPeerings(peerings.clone()))
            .await;
        let task = tokio::spawn(peering::introduce(peerings, self.commands.clone()));
        Introduction(task.abort_handle())
    }

    async fn tell(&self, command: GatewayCommand) {
        // A gateway that is gone does as it was told last.
        drop(self.commands.send(command).await);
    }

    /// Shows another certificate from now on, where files hold it.
    fn renew_certificate(&self) {
        let wss = &self.config.settings.wss;
        let Some(shown) = self
            .certificate
            .as_ref()
            .filter(|_| wss.certificate.is_some())
        else {
            return;
        };
        match setup::certificate(wss) {
            Ok(certificate) => drop(shown.send_replace(certificate)),
            Err(failed) => {
                error!(
                    error = with_causes(&failed),
                    "The certificate stays as it was"
                );
            }
        }
    }
}

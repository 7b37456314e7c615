use clap::Args;
use serde::Serialize;

use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::cli::output::Show;
use crate::wire::api::local::Version;

/// Print the version of this program, and of the daemon if one runs
#[derive(Args, Debug)]
pub(super) struct VersionArgs {}

#[derive(Debug, Serialize)]
struct Versions {
    version: &'static str,
    /// None when no daemon answers.
    daemon: Option<String>,
}

impl VersionArgs {
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        let daemon = client.get::<Version>("/v1/version", &()).await.ok();
        context.out.print(&Versions {
            version: env!("CARGO_PKG_VERSION"),
            daemon: daemon.map(|d| d.version),
        })
    }
}

impl Show for Versions {
    fn show(&self) -> String {
        match &self.daemon {
            Some(daemon) if daemon != self.version => format!(
                "agentnet {}\ndaemon {daemon} (restart it to run this version)",
                self.version
            ),
            Some(_) | None => format!("agentnet {}", self.version),
        }
    }
}

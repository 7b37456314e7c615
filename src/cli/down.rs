use std::time::Duration;

use clap::Args;

use crate::cli::context::Context;
use crate::cli::failure::{Exit, Failure};
use crate::cli::output::Show;
use crate::wire::api::local::Down;

/// How long a daemon may take to put the host back as it was.
const PATIENCE: Duration = Duration::from_secs(15);

/// Between two looks whether it is gone.
const LOOK: Duration = Duration::from_millis(50);

/// Stop the daemon and wait until it is gone
#[derive(Args, Debug)]
pub(super) struct DownArgs {}

impl DownArgs {
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        client.post::<Down>("/v1/down", &()).await?;
        let gone = async {
            while client.is_up() {
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::time::timeout(PATIENCE, gone).await.map_err(|_| {
            Failure::new(
                Exit::Failed,
                "the daemon was told to stop and is still there",
            )
            .hint("its log says what it waits for")
        })?;
        context.out.done(&Down { stopping: false })
    }
}

impl Show for Down {
    fn show(&self) -> String {
        "the daemon has stopped".to_owned()
    }
}

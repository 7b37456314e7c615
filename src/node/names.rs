use async_trait::async_trait;

use crate::id::{FullName, OverlayIp};
use crate::node::{
    driver::{Handle, now},
    resolver::{Directory, Found},
};

/// Finds names in the engine, for the agents of this host.
///
/// Programs in one network namespace can use each of its agents' addresses, so they may see what
/// any of those agents may see; the agent whose resolver was asked comes first. A program in a
/// namespace of its own sees what its agent may see.
#[derive(Debug)]
pub(super) struct Names {
    handle: Handle,
    is_shared: bool,
}

impl Names {
    /// Makes a directory over the engine behind `handle`.
    pub(super) const fn new(handle: Handle) -> Self {
        Self {
            handle,
            is_shared: true,
        }
    }

    /// Makes a directory of what the asking agent alone may see.
    pub(super) const fn of_one(handle: Handle) -> Self {
        Self {
            handle,
            is_shared: false,
        }
    }
}

#[async_trait]
impl Directory for Names {
    async fn by_name(&self, asker: OverlayIp, name: &FullName) -> Found {
        let name = name.clone();
        let is_shared = self.is_shared;
        let found = self.handle.call(move |core| {
            let others = core.engine.locals();
            let others =
                others.filter(|local| is_shared && *local != asker && core.is_on_host(*local));
            let askers = std::iter::once(asker).chain(others).collect::<Vec<_>>();
            askers
                .into_iter()
                .find_map(|asker| core.engine.by_name(asker, &name, now()))
        });
        match found.await {
            Ok(Some(address)) => Found::Yes(address),
            Ok(None) => Found::No,
            Err(_) => Found::Unavailable,
        }
    }

    async fn by_address(&self, asker: OverlayIp, address: OverlayIp) -> Option<FullName> {
        let is_shared = self.is_shared;
        let found = self.handle.call(move |core| {
            let others = core.engine.locals();
            let others =
                others.filter(|local| is_shared && *local != asker && core.is_on_host(*local));
            let mut askers = std::iter::once(asker).chain(others);
            askers.find_map(|asker| core.engine.by_address(asker, address))
        });
        found.await.ok().flatten()
    }
}

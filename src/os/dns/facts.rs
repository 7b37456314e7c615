//! Observes what [`detect()`](crate::os::dns::detect()) judges.

use std::path::Path;

use tracing::debug;

use crate::os::dns::bus::Bus;
use crate::os::dns::detect::{Facts, Place, Service};
use crate::os::dns::original::Original;
use crate::os::dns::{network_manager, resolvconf, resolved};

/// Looks at the host; `original` is what stands at `path`, ours thought away. Without a bus nobody is on it.
pub(super) async fn gather(path: &Path, original: &Original, bus: Option<&Bus>) -> Facts {
    let mut facts = Facts {
        place: match original {
            Original::File { .. } => Place::File,
            Original::Missing => Place::Missing,
            Original::Symlink { target } => Place::Symlink(target.clone()),
        },
        text: original.text(path).unwrap_or_default(),
        resolvconf: resolvconf::flavour(),
        ..Facts::default()
    };
    let Some(bus) = bus else {
        return facts;
    };
    match bus.service(resolved::SERVICE).await {
        Ok(service) => facts.resolved = service,
        Err(error) => debug!(%error, "Cannot tell whether systemd-resolved is there"),
    }
    if bus.service(network_manager::SERVICE).await.ok() == Some(Service::Running) {
        match network_manager::facts(bus).await {
            Ok(found) => facts.network_manager = Some(found),
            Err(error) => debug!(%error, "Cannot tell how NetworkManager deals with DNS"),
        }
    }
    facts
}

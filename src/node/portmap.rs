//! Keeps a port of the host's router mapped to the node's while it runs.

use std::{net::Ipv4Addr, num::NonZeroU16, time::Duration};

use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
};
use tracing::{debug, error, info};

use crate::node::driver::{Handle, Stopped, now};
use crate::os::{
    link::Links,
    portmap::{self, Mapping},
    underlay,
};

/// Pause before a router that maps nothing is asked again; doubled up to [`MAX_PAUSE`]. One that
/// can be asked answers at once.
const FIRST_PAUSE: Duration = Duration::from_secs(60);
const MAX_PAUSE: Duration = Duration::from_secs(3600);

/// One change of network comes as several messages; they are taken together.
const TOGETHER: Duration = Duration::from_millis(300);

/// How long taking the mapping away may hold up the end of the daemon.
const FAREWELL: Duration = Duration::from_secs(1);

/// What the router does for us, as operators see it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) enum PortMap {
    /// It was not asked: mappings are not wanted, or there is no router.
    #[default]
    None,
    /// What the protocols answered.
    Refused(String),
    /// Where it takes datagrams for us, and by which protocol it was asked.
    Mapped(std::net::SocketAddr, &'static str),
}

/// A mapping being kept.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) told: watch::Receiver<PortMap>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

/// Begins to keep `port` mapped; without `is_wanted` no router is ever asked.
pub(super) fn keep(handle: Handle, port: u16, is_wanted: bool) -> Kept {
    let (tell, told) = watch::channel(PortMap::None);
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(async move {
        if is_wanted {
            follow(handle, port, tell, stopped).await;
        }
    });
    Kept { told, stop, task }
}

impl Kept {
    /// Takes the mapping away.
    pub(super) async fn end(self) {
        drop(self.stop);
        if let Err(failed) = self.task.await {
            error!(%failed, "The keeper of port mappings failed");
        }
    }
}

/// Follows the router until `stop` is done or dropped; then takes the mapping away.
async fn follow(
    handle: Handle,
    port: u16,
    told: watch::Sender<PortMap>,
    mut stop: oneshot::Receiver<()>,
) {
    let (Some(port), Ok(mut links)) = (NonZeroU16::new(port), Links::open()) else {
        return;
    };
    let mut keeper = Keeper {
        handle,
        port,
        told,
        router: None,
        mapping: None,
        pause: FIRST_PAUSE,
    };
    loop {
        let step = keeper.step(&links);
        let wait = tokio::select! {
            biased;
            _ = &mut stop => break,
            wait = step => match wait {
                Ok(wait) => wait,
                Err(Stopped) => break,
            },
        };
        tokio::select! {
            _ = &mut stop => break,
            () = tokio::time::sleep(wait) => {}
            is_open = links.changed() => {
                if !is_open {
                    break;
                }
                tokio::time::sleep(TOGETHER).await;
                links.forget();
                keeper.pause = FIRST_PAUSE;
            }
        }
    }
    if let Some(mapping) = keeper.mapping.take()
        && tokio::time::timeout(FAREWELL, mapping.close())
            .await
            .is_err()
    {
        debug!("The router did not take the port mapping away in time");
    }
}

struct Keeper {
    handle: Handle,
    port: NonZeroU16,
    told: watch::Sender<PortMap>,
    /// The router asked last.
    router: Option<Ipv4Addr>,
    mapping: Option<Mapping>,
    pause: Duration,
}

impl Keeper {
    /// Does what is due, and returns when to look again unless the network changes.
    async fn step(&mut self, links: &Links) -> Result<Duration, Stopped> {
        let router = match links.routes().await {
            Ok(routes) => underlay::default_router(&routes),
            Err(error) => {
                debug!(%error, "Routes not looked at");
                return Ok(self.pause);
            }
        };
        // A mapping at another router leads nowhere any more, nor can it be taken away from here.
        let kept = self.mapping.take().filter(|_| router == self.router);
        self.router = router;
        let Some(router) = router else {
            self.tell(PortMap::None).await?;
            return Ok(MAX_PAUSE);
        };
        let renewed = match kept {
            Some(mapping) => mapping.renew().await,
            None => portmap::open(router, self.port).await,
        };
        let opened = match renewed {
            // A router that restarted may speak otherwise than before.
            Err(error) if self.is_mapped() => {
                debug!(%error, "Port mapping not renewed");
                portmap::open(router, self.port).await
            }
            opened => opened,
        };
        match opened {
            Ok(mapping) => {
                let found = PortMap::Mapped(mapping.external(), mapping.protocol().as_str());
                let wait = mapping.lifetime() / 2;
                self.mapping = Some(mapping);
                self.pause = FIRST_PAUSE;
                self.tell(found).await?;
                Ok(wait)
            }
            Err(error) => {
                debug!(%router, %error, "No port mapping");
                self.tell(PortMap::Refused(error.to_string())).await?;
                let pause = self.pause;
                self.pause = (pause * 2).min(MAX_PAUSE);
                Ok(pause)
            }
        }
    }

    fn is_mapped(&self) -> bool {
        matches!(*self.told.borrow(), PortMap::Mapped(..))
    }

    /// Tells peers and operators what is so now.
    async fn tell(&self, found: PortMap) -> Result<(), Stopped> {
        let is_news = self.told.send_if_modified(|told| {
            let is_news = *told != found;
            told.clone_from(&found);
            is_news
        });
        if !is_news {
            return Ok(());
        }
        let endpoint = match found {
            PortMap::Mapped(endpoint, protocol) => {
                info!(%endpoint, protocol, "The router maps a port to this node");
                Some(endpoint)
            }
            PortMap::None | PortMap::Refused(_) => None,
        };
        let set = move |core: &mut crate::node::driver::Core| {
            core.engine.set_mapped_candidate(endpoint, now());
        };
        self.handle.call(set).await
    }
}

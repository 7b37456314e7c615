//! Keeps a port of the host's router mapped to the node's while it runs.

use std::{
    net::Ipv4Addr,
    num::NonZeroU16,
    pin::pin,
    time::{Duration, Instant},
};

use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
};
use tracing::{debug, error, info};

use crate::node::driver::{Handle, Stopped, now};
use crate::os::{
    clock,
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

/// How long an answer under way is waited for at the end: routers answer within milliseconds or not.
const LAST_ANSWER: Duration = Duration::from_millis(250);

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
        schedule: Schedule::new(clock::now()),
        mapping: None,
    };
    loop {
        let is_over = {
            let mut step = pin!(keeper.step(&links));
            let told = tokio::select! {
                told = &mut step => Some(told),
                _ = &mut stop => None,
            };
            match told {
                Some(told) => told.is_err(),
                // What was asked may be granted yet, and is then to be taken away.
                None => {
                    drop(tokio::time::timeout(LAST_ANSWER, step).await);
                    true
                }
            }
        };
        if is_over {
            break;
        }
        let wait = keeper.schedule.wait(clock::now());
        tokio::select! {
            _ = &mut stop => break,
            () = tokio::time::sleep(wait) => {}
            is_open = links.changed() => {
                if !is_open {
                    break;
                }
                tokio::time::sleep(TOGETHER).await;
                links.forget();
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

/// A router, and the address by which this host speaks to it.
type Place = (Ipv4Addr, Ipv4Addr);

/// Pure: when which router is asked. A change of network that leaves both as they were asks nobody.
#[derive(Debug)]
struct Schedule {
    /// Who was asked last; None where there is no router.
    place: Option<Place>,
    due: Instant,
    pause: Duration,
}

impl Schedule {
    const fn new(now: Instant) -> Self {
        Self {
            place: None,
            due: now,
            pause: FIRST_PAUSE,
        }
    }

    /// Takes where we are now; true if that is another place than before.
    fn move_to(&mut self, place: Option<Place>, now: Instant) -> bool {
        if self.place == place {
            return false;
        }
        *self = Self {
            place,
            ..Self::new(now)
        };
        true
    }

    /// Returns the router to ask now; None while nothing is due.
    fn asked(&self, now: Instant) -> Option<Ipv4Addr> {
        let (router, _) = self.place.filter(|_| now >= self.due)?;
        Some(router)
    }

    /// Takes that the router mapped a port for so long: it is renewed at half of that.
    fn mapped(&mut self, lifetime: Duration, now: Instant) {
        self.pause = FIRST_PAUSE;
        self.due = now + lifetime / 2;
    }

    /// Takes that the router maps nothing: it is asked again after ever longer pauses.
    fn refused(&mut self, now: Instant) {
        self.due = now + self.pause;
        self.pause = (self.pause * 2).min(MAX_PAUSE);
    }

    /// Returns how long nothing is due.
    fn wait(&self, now: Instant) -> Duration {
        match self.place {
            Some(_) => self.due.saturating_duration_since(now),
            None => MAX_PAUSE,
        }
    }
}

struct Keeper {
    handle: Handle,
    port: NonZeroU16,
    told: watch::Sender<PortMap>,
    schedule: Schedule,
    mapping: Option<Mapping>,
}

impl Keeper {
    /// Does what is due.
    async fn step(&mut self, links: &Links) -> Result<(), Stopped> {
        let router = match links.routes().await {
            Ok(routes) => underlay::default_router(&routes),
            Err(error) => {
                debug!(%error, "Routes not looked at");
                self.schedule.refused(clock::now());
                return Ok(());
            }
        };
        let place = match router {
            Some(router) => portmap::source(router).await.ok().map(|own| (router, own)),
            None => None,
        };
        if self.schedule.move_to(place, clock::now()) {
            // It leads nowhere any more, nor can it be taken away from here.
            self.mapping = None;
            self.tell(PortMap::None).await?;
        }
        let Some(router) = self.schedule.asked(clock::now()) else {
            return Ok(());
        };
        let seeks = |core: &mut crate::node::driver::Core| core.engine.seeks();
        if !self.handle.call(seeks).await? {
            // Nobody would be told of the port.
            self.schedule.refused(clock::now());
            return Ok(());
        }
        let renewed = match self.mapping.take() {
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
                self.schedule.mapped(mapping.lifetime(), clock::now());
                self.mapping = Some(mapping);
                self.tell(found).await
            }
            Err(error) => {
                debug!(%router, %error, "No port mapping");
                self.schedule.refused(clock::now());
                self.tell(PortMap::Refused(error.to_string())).await
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

#[cfg(test)]
mod tests {
    use super::*;

    fn place(router: u8, own: u8) -> Place {
        (
            Ipv4Addr::new(10, 0, 1, router),
            Ipv4Addr::new(10, 0, 1, own),
        )
    }

    /// What containers do to interfaces is no reason to ask again; another router or address is.
    #[test]
    fn a_router_is_asked_when_due_or_when_we_are_elsewhere() {
        let start = clock::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut schedule = Schedule::new(start);
        assert_eq!(
            (schedule.asked(start), schedule.wait(start)),
            (None, MAX_PAUSE)
        );

        assert!(schedule.move_to(Some(place(1, 2)), start));
        assert_eq!(schedule.asked(start), Some(Ipv4Addr::new(10, 0, 1, 1)));
        schedule.mapped(Duration::from_secs(3600), start);

        assert!(!schedule.move_to(Some(place(1, 2)), at(10)));
        assert_eq!(schedule.asked(at(10)), None);
        assert_eq!(schedule.wait(at(10)), Duration::from_secs(1790));
        assert!(schedule.asked(at(1800)).is_some());
        for other in [place(1, 3), place(9, 3)] {
            assert!(schedule.move_to(Some(other), at(20)));
            assert_eq!(schedule.asked(at(20)), Some(other.0));
            schedule.mapped(Duration::from_secs(3600), at(20));
        }
        assert!(schedule.move_to(None, at(30)));
        assert_eq!(schedule.asked(at(99_999)), None);
    }

    #[test]
    fn a_router_that_maps_nothing_is_asked_ever_more_seldom() {
        let mut now = clock::now();
        let mut schedule = Schedule::new(now);
        schedule.move_to(Some(place(1, 2)), now);
        let mut pauses = Vec::new();
        for _ in 0..9 {
            schedule.refused(now);
            pauses.push(schedule.wait(now).as_secs());
            now += schedule.wait(now);
            assert!(schedule.asked(now).is_some());
        }
        assert_eq!(pauses, [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]);

        schedule.move_to(Some(place(9, 2)), now);
        assert!(schedule.asked(now).is_some());
        schedule.refused(now);
        assert_eq!(schedule.wait(now), FIRST_PAUSE);
    }
}

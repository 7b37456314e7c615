//! What the engine does about its agents' gateways.

use std::net::SocketAddr;

use crate::engine::{
    Engine, Event, Time,
    attach::{AttachConfig, Attachment},
    homes::Place,
    membership::Refused,
    unused_index,
};
use crate::id::{Did, OverlayIp};

impl Engine {
    /// Attaches an agent to `gateway`, of whom a statement is kept, at its resolved `endpoints`.
    pub fn set_gateway(
        &mut self,
        local: OverlayIp,
        gateway: Did,
        endpoints: Vec<SocketAddr>,
        time: Time,
    ) -> Result<(), Refused> {
        self.set_gateways(local, vec![(gateway, endpoints)], time)
    }

    /// Takes where gateways are, of whom statements are kept; the agent attaches to the best of them.
    ///
    /// Others that were named before stay for as long as their statements hold.
    pub fn set_gateways(
        &mut self,
        local: OverlayIp,
        gateways: Vec<(Did, Vec<SocketAddr>)>,
        time: Time,
    ) -> Result<(), Refused> {
        let Some(found) = self.locals.get_mut(&local) else {
            return Ok(());
        };
        let kept = &found.membership.gateways;
        let now = found.membership.clock(time.unix);
        let is_current = |gateway: &Did| kept.get(gateway).is_some_and(|g| now < g.expires());
        found.homes.retain(is_current, time.now);
        for (gateway, endpoints) in gateways {
            let Some(statement) = kept.get(&gateway).filter(|_| is_current(&gateway)) else {
                continue;
            };
            let place = Place {
                gateway,
                key: statement.claims().tunnel,
                endpoints,
            };
            found.homes.learn(place, time.now);
        }
        self.settle_gateways(local, time)
    }

    /// Attaches an agent where there is a place free, or a better gateway than one of its own.
    fn settle_gateways(&mut self, local: OverlayIp, time: Time) -> Result<(), Refused> {
        let mut used = self.used_indices();
        let Some(found) = self.locals.get_mut(&local) else {
            return Ok(());
        };
        let (secret, frame_ids) = (found.membership.tunnel.clone(), self.frame_ids);
        let rng = &mut self.rng;
        let fresh = |place: Place| {
            let seed = rng.draw();
            let config = AttachConfig {
                agent: local,
                secret: secret.clone(),
                gateway: place.gateway,
                key: place.key,
                endpoints: place.endpoints,
                index: unused_index(rng.plain(), &mut used),
            };
            let mut attachment = Attachment::new(config, *seed).ok()?;
            attachment.set_frame_ids(frame_ids);
            Some(attachment)
        };
        let is_other = found.homes.settle(fresh, time.now);
        let presented = if is_other {
            // The record's sequence number is used up before anybody sees it.
            self.out.event(Event::Changed { local });
            self.out.event(Event::Outbox { local });
            found.present(time)
        } else {
            Ok(())
        };
        found.drain_gateways(&mut self.out);
        found.follow_gateways(time, &mut self.out);
        presented
    }

    /// Gives the places of gateways that are not reached, or are far, to others.
    pub(crate) fn exchange_gateways(&mut self, time: Time) {
        let unsettled = self.locals.iter();
        let unsettled = unsettled.filter(|(_, local)| local.homes.is_unsettled(time.now));
        for local in unsettled.map(|(local, _)| *local).collect::<Vec<_>>() {
            // A membership that does not hold has no record, with this gateway or that.
            drop(self.settle_gateways(local, time));
        }
    }

    /// Tells whether the registry is to be given an agent's record, since that lists other gateways now.
    pub fn is_record_due(&self, local: OverlayIp) -> bool {
        let found = self.locals.get(&local);
        found.is_some_and(|found| found.homes.is_unpublished())
    }

    /// Returns whether any gateway carries an agent's frames.
    pub fn is_attached(&self, local: OverlayIp) -> bool {
        let found = self.locals.get(&local);
        found.is_some_and(|found| found.homes.is_attached())
    }

    /// Tells every gateway that we leave.
    pub fn detach(&mut self, time: Time) {
        for local in self.locals.values_mut() {
            for attachment in local.homes.iter_mut() {
                attachment.detach(time.now);
            }
            local.drain_gateways(&mut self.out);
        }
    }
}

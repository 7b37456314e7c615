//! Between UDP and the connection that stands in for it.

use std::{net::SocketAddr, time::Instant};

use crate::engine::attach::{Attachment, Phase};
use crate::engine::hop::Hop;
use crate::wire::carrier::is_carrier;

impl Attachment {
    /// Returns where UDP to the gateway is to be tried again: nowhere unless it is reached by a
    /// connection now.
    pub(crate) fn missed(&self) -> impl Iterator<Item = SocketAddr> {
        let at = self.hop.as_ref().map(Hop::endpoint);
        let all = at.filter(|at| is_carrier(*at)).map(|_| self.endpoints());
        let all = all.into_iter().flatten().copied();
        all.filter(|at| !is_carrier(*at))
    }

    /// Attaches anew at an endpoint that answered, while the hop carries on; an attempt by a
    /// connection, as after a change of network, is given up for it.
    pub(crate) fn move_to(&mut self, endpoint: SocketAddr, now: Instant) {
        let place = self.endpoints().iter().position(|at| *at == endpoint);
        let is_given_up = matches!(self.phase, Phase::Detached | Phase::Displaced { .. });
        if let Some(place) = place.filter(|_| self.hop.is_some() && !is_given_up) {
            self.endpoint = place;
            self.begin(now);
        }
    }
}

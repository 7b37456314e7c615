//! The gateways an agent is attached to: which they are, which is best, and which are left when one
//! fails (protocol.md section 5).
//!
//! Of those that are known the agent attaches to a few at once, so that relayed data goes on by another
//! when one dies. Agents of one network begin with the same ones, since two agents of one gateway need
//! no other; how long the way to each takes decides then.

mod engine;
mod home;
mod survey;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::engine::{
    attach::{Attachment, Inbound, MAX_ENDPOINTS, State},
    homes::{home::Home, survey::Survey},
    hop::{Hop, MAX_HOPS, SharedHop, Slot},
};
use crate::id::{Did, NetworkId, OverlayIp, TunnelKey, hash};

/// Least time between two changes of the order: each is signed, and told to registry and peers.
const REORDER: Duration = Duration::from_secs(30);

/// A gateway that is not reached for this long gives its place to one that may be.
const GIVE_UP: Duration = Duration::from_secs(10);

/// One that was given up is not tried again for this long while there are others.
const FAILED: Duration = Duration::from_secs(300);

/// A gateway that frames may go by.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Offer {
    pub(crate) slot: Slot,
    pub(crate) gateway: Did,
    /// Whether nothing speaks against it.
    pub(crate) is_sound: bool,
}

/// What [`Homes::follow`] noticed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Noticed {
    /// Frames may go by others than before.
    pub(crate) ways: bool,
    /// Our record is to list the gateways anew.
    pub(crate) order: bool,
}

/// A gateway that the agent may attach to.
#[derive(Debug)]
struct Known {
    key: TunnelKey,
    endpoints: Vec<SocketAddr>,
    /// Not before this, if there are others; None when it did not fail.
    failed: Option<Instant>,
}

/// Where a gateway is, and by which key it is reached.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) gateway: Did,
    pub(crate) key: TunnelKey,
    pub(crate) endpoints: Vec<SocketAddr>,
}

/// An agent's gateways.
#[derive(Debug)]
pub(crate) struct Homes {
    agent: OverlayIp,
    network: NetworkId,
    /// In order of preference.
    all: Vec<Home>,
    known: BTreeMap<Did, Known>,
    survey: Survey,
    /// When the order was last changed; None before.
    reordered: Option<Instant>,
    /// What the registry was last given as our gateways; None before the first record for it.
    published: Option<Vec<Did>>,
    /// Hops of gateways that were exchanged, of which whoever seals is still to be told.
    closed: Vec<Slot>,
    /// Datagrams of gateways that were exchanged.
    last: Vec<(SocketAddr, Vec<u8>)>,
}

impl Homes {
    pub(crate) const fn new(agent: OverlayIp, network: NetworkId) -> Self {
        Self {
            agent,
            network,
            all: Vec::new(),
            known: BTreeMap::new(),
            survey: Survey::new(),
            reordered: None,
            published: None,
            closed: Vec::new(),
            last: Vec::new(),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Attachment> {
        self.all.iter().map(|home| &home.attachment)
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Attachment> {
        self.all.iter_mut().map(|home| &mut home.attachment)
    }

    /// Returns the attachments, and since when each is as it is.
    pub(crate) fn views(&self) -> impl Iterator<Item = (&Attachment, Instant)> {
        self.all.iter().map(|home| (&home.attachment, home.since))
    }

    /// Returns the gateways of our record, best first.
    pub(crate) fn listed(&self) -> Vec<Did> {
        self.iter().map(Attachment::gateway).collect()
    }

    /// Takes that the registry is given a record that lists our gateways.
    pub(crate) fn publish(&mut self) {
        self.published = Some(self.listed());
    }

    /// Tells whether what the registry was given lists others.
    pub(crate) fn is_unpublished(&self) -> bool {
        let published = self.published.as_ref();
        published.is_some_and(|published| *published != self.listed())
    }

    /// Tells whether any gateway carries frames.
    pub(crate) fn is_attached(&self) -> bool {
        self.iter().any(Attachment::is_attached)
    }

    /// Tells whether any gateway says that the agent attached from elsewhere.
    pub(crate) fn is_displaced(&self) -> bool {
        self.iter().any(|a| a.state() == State::Displaced)
    }

    /// Returns the attachment that is best now: one that works, if any does.
    pub(crate) fn best(&self) -> Option<&Attachment> {
        let by_use = |a: &&Attachment| (!a.is_sound(), !a.is_attached());
        // The first of equals.
        self.iter().min_by_key(by_use)
    }

    /// Returns the hop that is best now; None while not attached.
    pub(crate) fn best_hop(&self) -> Option<&Hop> {
        self.best().and_then(Attachment::hop)
    }

    /// Takes that traffic of the agent flows past its gateways.
    pub(crate) fn note_traffic(&mut self, now: Instant) {
        let best = self.best().map(Attachment::gateway);
        let mut all = self.iter_mut();
        if let Some(best) = all.find(|a| Some(a.gateway()) == best) {
            best.note_traffic(now);
        }
    }

    /// Returns the attachment in a place.
    pub(crate) fn get(&self, slot: Slot) -> Option<&Attachment> {
        let home = self.all.iter().find(|home| home.slot == slot);
        home.map(|home| &home.attachment)
    }

    /// Returns the attachment in a place, to be changed.
    pub(crate) fn get_mut(&mut self, slot: Slot) -> Option<&mut Attachment> {
        let home = self.all.iter_mut().find(|home| home.slot == slot);
        home.map(|home| &mut home.attachment)
    }

    /// Returns the attachment whose datagram this is, and its place.
    pub(crate) fn owner(&self, datagram: &[u8]) -> Option<Slot> {
        let home = self.all.iter().find(|home| home.attachment.owns(datagram));
        home.map(|home| home.slot)
    }

    /// Takes a datagram of the gateway in `slot`.
    pub(crate) fn handle_datagram(
        &mut self,
        slot: Slot,
        from: SocketAddr,
        bytes: &[u8],
        now: Instant,
    ) -> Inbound {
        match self.get_mut(slot) {
            Some(attachment) => attachment.handle_datagram(from, bytes, now),
            None => Inbound::Consumed,
        }
    }

    /// Returns what frames may go by, best first.
    pub(crate) fn offers(&self, now: Instant) -> Vec<Offer> {
        let attached = self.all.iter().filter(|home| home.attachment.is_attached());
        attached.map(|home| home.offer(now)).collect()
    }

    /// Takes where a gateway is; the agent attaches to it if it has a place free.
    pub(crate) fn learn(&mut self, place: Place, now: Instant) {
        let Place {
            gateway,
            key,
            mut endpoints,
        } = place;
        endpoints.truncate(MAX_ENDPOINTS);
        // One that has another key now forgot all it knew of us.
        let is_other = |home: &Home| home.attachment.gateway() == gateway && home.key != key;
        let gone = self.all.iter().position(is_other);
        if let Some(at) = gone {
            self.close(at, now);
        }
        let home = self.all.iter_mut();
        let mut home = home.filter(|home| home.attachment.gateway() == gateway);
        if let Some(home) = home.next() {
            home.attachment.set_endpoints(endpoints.clone(), now);
        }
        let failed = self.known.get(&gateway).and_then(|known| known.failed);
        let known = Known {
            key,
            endpoints,
            failed,
        };
        self.known.insert(gateway, known);
    }

    /// Forgets gateways whose statements do not hold any more.
    pub(crate) fn retain(&mut self, is_kept: impl Fn(&Did) -> bool, now: Instant) {
        self.known.retain(|gateway, _| is_kept(gateway));
        while let Some(at) = self
            .all
            .iter()
            .position(|home| !is_kept(&home.attachment.gateway()))
        {
            self.close(at, now);
        }
    }

    /// Attaches where there is a place free, and in the place of what fails or is far; tells whether our
    /// record is to list others.
    pub(crate) fn settle(
        &mut self,
        mut fresh: impl FnMut(Place) -> Option<Attachment>,
        now: Instant,
    ) -> bool {
        let before = self.listed();
        if let Some(at) = self.failing(now) {
            let gateway = self.all.get(at).map(|home| home.attachment.gateway());
            if let Some(known) = gateway.and_then(|gateway| self.known.get_mut(&gateway)) {
                known.failed = Some(now + FAILED);
            }
            self.close(at, now);
        }
        if let Some(far) = self.farthest() {
            self.close(far, now);
        }
        while self.all.len() < MAX_HOPS {
            let Some(place) = self.candidate(now) else {
                break;
            };
            let key = place.key;
            let Some(attachment) = fresh(place) else {
                break;
            };
            self.open(key, attachment, now);
        }
        self.begin_survey(now);
        self.listed() != before
    }

    /// Returns the gateway to attach to next: near before far, and else the same for the whole network.
    fn candidate(&self, now: Instant) -> Option<Place> {
        let is_used = |gateway: &Did| self.iter().any(|a| a.gateway() == *gateway);
        let free = self.known.iter().filter(|(gateway, _)| !is_used(gateway));
        let next = free.min_by_key(|(gateway, known)| {
            let rtt = self.survey.rtt(gateway).get();
            let is_failed = known.failed.is_some_and(|until| now < until);
            let network = self.network.to_string();
            let share = hash(&[network.as_bytes(), gateway.to_string().as_bytes()]);
            (is_failed, rtt.unwrap_or(Duration::MAX), share)
        });
        next.map(|(gateway, known)| Place {
            gateway: *gateway,
            key: known.key,
            endpoints: known.endpoints.clone(),
        })
    }

    fn open(&mut self, key: TunnelKey, attachment: Attachment, now: Instant) {
        let used = |slot: &Slot| self.all.iter().any(|home| home.slot == *slot);
        let Some(slot) = Slot::ALL.into_iter().find(|slot| !used(slot)) else {
            return;
        };
        // Of what is not measured yet each agent prefers another one.
        let share = self.share(&attachment.gateway());
        let is_measured = self.iter().any(|a| a.rtt().is_some());
        let at = self.all.iter().position(|home| {
            let other = home.attachment.gateway();
            !is_measured && share < self.share(&other)
        });
        let home = Home::new(slot, key, attachment, now);
        self.all.insert(at.unwrap_or(self.all.len()), home);
    }

    fn share(&self, gateway: &Did) -> [u8; 32] {
        let agent = self.agent.ip().octets();
        hash(&[agent.as_slice(), gateway.to_string().as_bytes()])
    }

    fn close(&mut self, at: usize, now: Instant) {
        let mut home = self.all.remove(at);
        home.attachment.detach(now);
        while let Some(datagram) = home.attachment.poll_transmit() {
            self.last.push(datagram);
        }
        self.closed.push(home.slot);
    }

    /// Returns the place of a gateway that is not reached while others might be.
    fn failing(&self, now: Instant) -> Option<usize> {
        let due = |home: &Home| self.gives_up_at(home).is_some_and(|at| now >= at);
        self.all.iter().position(due)
    }

    fn gives_up_at(&self, home: &Home) -> Option<Instant> {
        let is_down = matches!(
            home.attachment.state(),
            State::Attaching | State::Handshaking | State::Waiting
        );
        // First what costs nothing: a node with many agents asks all the time.
        if !is_down || !home.attachment.has_record() {
            return None;
        }
        let at = home.since + GIVE_UP;
        let is_used = |gateway: &Did| self.iter().any(|a| a.gateway() == *gateway);
        let mut others = self.known.iter();
        let has_other = others.any(|(gateway, known)| {
            !is_used(gateway) && known.failed.is_none_or(|until| until <= at)
        });
        has_other.then_some(at)
    }

    /// Returns the place of the farthest gateway, if one that is not ours is much nearer.
    fn farthest(&self) -> Option<usize> {
        let rtt = |home: &Home| self.survey.rtt(&home.attachment.gateway());
        let (at, far) = self
            .all
            .iter()
            .enumerate()
            .max_by_key(|(_, home)| rtt(home).get())?;
        if self.all.len() < MAX_HOPS || !self.survey.is_over() {
            return None;
        }
        let is_used = |gateway: &Did| self.iter().any(|a| a.gateway() == *gateway);
        let mut free = self.known.keys().filter(|gateway| !is_used(gateway));
        let has_nearer = free.any(|gateway| self.survey.rtt(gateway).is_faster_than(rtt(far)));
        has_nearer.then_some(at)
    }

    /// Takes what became of the attachments since the last call.
    pub(crate) fn follow(&mut self, now: Instant) -> Noticed {
        let mut noticed = Noticed::default();
        for home in &mut self.all {
            noticed.ways |= home.follow(now);
        }
        let attached = self.iter().filter(|a| a.is_attached()).count();
        for home in &mut self.all {
            let others = attached - usize::from(home.attachment.is_attached());
            home.attachment.set_spare(others > 0, now);
        }
        noticed.order = self.reorder(now);
        noticed.ways |= noticed.order;
        noticed
    }

    /// Puts a gateway before one to which the way takes much longer; tells whether it did.
    fn reorder(&mut self, now: Instant) -> bool {
        if self.reordered.is_some_and(|at| now < at + REORDER) {
            return false;
        }
        let mut is_other = false;
        // As many passes as there are places: each moves one to where it belongs.
        for _ in 0..MAX_HOPS {
            for at in 1..self.all.len() {
                let rtt = |at: usize| self.all.get(at).map(|h| h.attachment.smoothed());
                let pair = rtt(at).zip(rtt(at - 1));
                if pair.is_some_and(|(new, old)| new.is_faster_than(old)) {
                    self.all.swap(at, at - 1);
                    is_other = true;
                }
            }
        }
        if is_other {
            self.reordered = Some(now);
        }
        is_other
    }

    /// Returns which hops whoever seals knows of that are no more, each once.
    pub(crate) fn poll_closed(&mut self) -> Option<Slot> {
        self.closed.pop()
    }

    /// Returns the next datagram to send.
    pub(crate) fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        let next = self.iter_mut().find_map(Attachment::poll_transmit);
        let next = next.or_else(|| self.last.pop());
        next.or_else(|| self.survey.poll_transmit())
    }

    /// Returns the hops of which whoever seals was told something else than is true now.
    pub(crate) fn poll_shared(&mut self) -> Option<(Slot, Option<SharedHop>)> {
        self.all.iter_mut().find_map(Home::poll_shared)
    }

    /// Returns when something is due and why.
    pub(crate) fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let homes = self.all.iter().flat_map(|home| {
            let given_up = self.gives_up_at(home);
            let given_up = given_up.map(|at| (at, "gateway given up"));
            home.poll_timeout().into_iter().chain(given_up)
        });
        let survey = self.survey_due().map(|at| (at, "gateway survey"));
        homes.chain(survey).min()
    }

    /// Does what is due.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        for attachment in self.iter_mut() {
            attachment.handle_timeout(now);
        }
        self.survey.handle_timeout(now);
        self.begin_survey(now);
    }

    /// Tells whether places are to be given to others now.
    pub(crate) fn is_unsettled(&self, now: Instant) -> bool {
        self.failing(now).is_some() || self.farthest().is_some()
    }
}

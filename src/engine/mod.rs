//! One node's whole behaviour as a pure state machine: no clock, no socket, no task.
//!
//! [`Engine`] has four kinds of methods: getters (`&self`), `handle_*` for input from outside,
//! commands, and `poll_*` for output. After each input or command take out everything of
//! [`Engine::poll_event`], [`Engine::poll_channel`], [`Engine::poll_hop`], [`Engine::poll_packet`],
//! [`Engine::poll_injection`] and [`Engine::poll_transmit`], then wait no longer than [`Engine::poll_timeout`] says.

pub mod attach;
pub mod channel;
mod direct;
mod event;
mod gossip;
mod hear;
mod homes;
pub mod hop;
mod installed;
pub mod kept;
pub(crate) mod limits;
mod local;
pub mod membership;
pub mod names;
mod passed;
pub mod path;
mod peer;
pub mod placement;
pub mod proven;
mod reflexive;
pub mod revoked;
mod rtt;
pub(crate) mod secrets;
pub mod session;
pub mod stun;
#[cfg(test)]
pub(crate) mod testing;
pub mod trust;
pub mod twin;
pub mod view;
pub mod window;
pub mod wireguard;
mod withheld;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use rand::RngCore;
use rand_chacha::ChaCha20Rng;
use zeroize::Zeroizing;

pub use event::{ChannelEvent, Dropped, Event, HopEvent, Packet, Punch, Time, Transmit, Travel};
pub use peer::{PeerState, PeerStats};

use crate::engine::{
    event::Out,
    hop::FrameIds,
    kept::Kept,
    limits::Limits,
    local::Local,
    membership::{Left, Membership, Outgoing, Refused, State, remember},
    path::Mode,
    secrets::Secrets,
    stun::Observers,
    trust::Taken,
};
use crate::id::{FullName, IdentityKey, OverlayIp, UnixTime};
use crate::statement::{Record, Scope, Statement};
use crate::wire::{
    channel::Suites,
    drop::{Counters, DropReason},
    icmp6::{Unreachable, unreachable},
};

/// Longest time between looks for consents, chains and requests that ended.
///
/// Ends are known and looked for at their time; this notices that the wall clock was set.
const SETTLE: Duration = Duration::from_secs(60);

/// ICMPv6 errors told to our own programs per second (RFC 4443 section 2.4 asks for a limit).
const MAX_ERRORS: u32 = 50;

/// A statement the registry forwards, by the name of its event.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Forwarded {
    Consent,
    Gateway,
    Record,
    Request,
    Revocation,
}

/// One node: any number of agents, each in one network.
#[derive(Debug)]
pub struct Engine {
    identities: BTreeMap<String, IdentityKey>,
    left: Vec<Left>,
    locals: BTreeMap<OverlayIp, Local>,
    rng: Secrets,
    out: Out,
    settle_at: Instant,
    errors: (Instant, u32),
    mode: Mode,
    suites: Suites,
    /// Makes what hands out the ids of a hop's frames; None when nobody else makes any.
    frame_ids: Option<fn(u64) -> Arc<dyn FrameIds>>,
    /// Where our interfaces are.
    hosts: Vec<SocketAddr>,
    /// Where the router takes datagrams for our socket.
    mapped: Option<SocketAddr>,
    handshakes: Limits,
    observers: Observers,
}

impl Engine {
    /// Takes up what was kept; `seed` is 32 random bytes.
    pub fn new(state: State, seed: [u8; 32], time: Time) -> Self {
        let mut engine = Self {
            identities: state.identities,
            left: state.left,
            locals: BTreeMap::new(),
            rng: Secrets::new(&Zeroizing::new(seed)),
            out: Out::default(),
            settle_at: time.now,
            errors: (time.now, 0),
            mode: Mode::default(),
            suites: Suites::NONE,
            frame_ids: None,
            hosts: Vec::new(),
            mapped: None,
            handshakes: direct::limits(),
            observers: Observers::default(),
        };
        for membership in state.memberships {
            engine.add(membership, time);
        }
        engine
    }

    /// Adds an agent that joined; one whose chain names no agent is left out.
    pub fn add(&mut self, mut membership: Membership, time: Time) -> Option<OverlayIp> {
        membership.learn_chain_time();
        let (address, name) = (membership.address()?, membership.name()?);
        self.identities
            .insert(membership.agent.clone(), membership.identity.clone());
        self.left
            .retain(|left| !left.is_of(&membership.agent, &membership.network));
        let mut local = Local::new(membership, address, name, self.mode);
        local.set_hosts(&self.hosts, time, &mut self.out);
        local.set_mapped(self.mapped, time, &mut self.out);
        local.set_suites(self.suites, &mut self.out);
        self.locals.insert(address, local);
        self.install(address, time);
        self.out.event(Event::Gateway { local: address });
        self.out.event(Event::Outbox { local: address });
        self.out.event(Event::Tables);
        Some(address)
    }

    /// Removes an agent that left; its gateway is told.
    pub fn remove(&mut self, local: OverlayIp, time: Time) -> Option<Membership> {
        let mut gone = self.locals.remove(&local)?;
        for attachment in gone.homes.iter_mut() {
            attachment.detach(time.now);
        }
        gone.drain_gateways(&mut self.out);
        remember(&mut self.left, &gone.membership);
        self.out.event(Event::Tables);
        self.out.event(Event::Changed { local });
        Some(gone.membership)
    }

    /// Returns what must not be forgotten.
    pub fn state(&self) -> State {
        State {
            identities: self.identities.clone(),
            memberships: self.locals.values().map(|l| l.membership.clone()).collect(),
            left: self.left.clone(),
        }
    }

    /// Takes the identity of an agent that is about to join, unless there is one of that label.
    pub fn keep_identity(&mut self, agent: String, identity: IdentityKey) {
        self.identities.entry(agent).or_insert(identity);
    }

    /// Returns what must not be forgotten beside what each agent must not, by reference, to be written.
    pub fn kept(&self) -> Kept<'_> {
        Kept {
            identities: &self.identities,
            left: &self.left,
        }
    }

    /// Returns the addresses of our agents.
    pub fn locals(&self) -> impl Iterator<Item = OverlayIp> + '_ {
        self.locals.keys().copied()
    }

    /// Returns what is kept of one agent.
    pub fn membership(&self, local: OverlayIp) -> Option<&Membership> {
        self.locals.get(&local).map(|l| &l.membership)
    }

    /// Returns for each agent and installed peer what the peer may reach; all scopes must allow.
    pub fn tables(&self) -> Vec<(OverlayIp, OverlayIp, Vec<Scope>)> {
        let peers = |local: &Local| {
            let own = local.address;
            let one = move |p: &peer::Peer| (own, p.address(), p.trusted().inbound.clone());
            let plain = local.wireguard.values();
            let plain = plain.map(move |p| (own, p.address(), p.inbound().to_vec()));
            local
                .peers
                .values()
                .map(one)
                .chain(plain)
                .collect::<Vec<_>>()
        };
        self.locals.values().flat_map(peers).collect()
    }

    /// Tells whether packets may go between an agent of ours and an installed peer.
    pub fn has_peer(&self, local: OverlayIp, peer: OverlayIp) -> bool {
        let local = self.locals.get(&local);
        local.is_some_and(|l| l.peers.contains_key(&peer) || l.wireguard.contains_key(&peer))
    }

    /// Returns how often what was dropped.
    pub const fn counters(&self) -> &Counters {
        &self.out.counters
    }

    // ---- input

    /// Takes a datagram of the underlay.
    pub fn handle_datagram(&mut self, from: SocketAddr, bytes: &[u8], time: Time) {
        let mut locals = self.locals.values_mut();
        let owner = locals.find_map(|local| Some((local.homes.owner(bytes)?, local)));
        match owner {
            Some((slot, local)) => local.handle_gateway(slot, from, bytes, time, &mut self.out),
            // Only gateways and installed peers speak to us; all others meet silence.
            None => self.handle_direct(from, bytes, time),
        }
        self.hear(time);
        self.follow_twins(time);
        self.follow_observers(time);
    }

    /// Takes a packet of an agent's TUN to an installed peer.
    pub fn handle_packet(&mut self, local: OverlayIp, peer: OverlayIp, packet: &[u8], time: Time) {
        match self.locals.get_mut(&local) {
            Some(found) => found.send(peer, packet, time, &mut self.out),
            None => self.out.drop_packet(local, DropReason::NoPeer, packet),
        }
    }

    /// Takes a packet to an address nobody here may reach, and tells the program so.
    ///
    /// The answer is the same whether the address is hidden or does not exist.
    pub fn handle_unknown(&mut self, local: OverlayIp, packet: &[u8], time: Time) {
        self.out.drop_packet(local, DropReason::NoPeer, packet);
        if time.now >= self.errors.0 + Duration::from_secs(1) {
            self.errors = (time.now, 0);
        }
        if self.errors.1 < MAX_ERRORS
            && let Some(error) = unreachable(packet, Unreachable::NoRoute)
        {
            self.errors.1 += 1;
            self.out.injections.push_back((local, error));
        }
    }

    /// Takes a statement that the registry forwarded to an agent.
    pub fn handle_statement(
        &mut self,
        local: OverlayIp,
        kind: Forwarded,
        text: &str,
        time: Time,
    ) -> Result<(), Refused> {
        let Some(found) = self.locals.get_mut(&local) else {
            return Ok(());
        };
        let membership = &mut found.membership;
        let changed = match kind {
            Forwarded::Consent => membership.take_consent(text, time.unix)? != Taken::Known,
            Forwarded::Record => {
                let taken = membership.take_record(text, time.unix)?;
                if taken == Taken::Twin {
                    found.handle_twin(time.now);
                    self.follow_twins(time);
                }
                !matches!(taken, Taken::Known | Taken::Twin)
            }
            Forwarded::Request => membership.take_request(text, time.unix)? != Taken::Known,
            Forwarded::Revocation => {
                let changed = membership.take_revocation(text, time.unix)?;
                self.note_told(local, text);
                changed
            }
            Forwarded::Gateway => {
                if membership.take_gateway(text, time.unix)? {
                    self.out.event(Event::Gateway { local });
                    self.out.event(Event::Changed { local });
                }
                return Ok(());
            }
        };
        if changed {
            self.out.event(Event::Changed { local });
            self.settle(local, time);
            if kind == Forwarded::Request {
                self.announce_pending(local, text);
            }
        }
        Ok(())
    }

    fn announce_pending(&mut self, local: OverlayIp, text: &str) {
        let Some(found) = self.locals.get(&local) else {
            return;
        };
        let waiting = found
            .membership
            .incoming
            .iter()
            .find(|(_, r)| r.text() == text);
        let name = waiting.and_then(|(did, _)| found.membership.name_of(did));
        if let Some(name) = name {
            let from = found.full_name(&name);
            self.out.event(Event::Pending { local, from });
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, time: Time) {
        let due = time.now >= self.settle_at;
        if due {
            for local in self.locals().collect::<Vec<_>>() {
                self.settle(local, time);
            }
            self.settle_at = time.now + self.until_next_end(time).min(SETTLE);
        }
        for local in self.locals.values_mut() {
            if local.poll_timeout().is_some_and(|(at, _)| at <= time.now) {
                // The record that was refused may have been signed by a clock that was wrong.
                if local.is_refused_record_due(time.now) && local.present(time).is_ok() {
                    self.out.event(Event::Changed {
                        local: local.address,
                    });
                }
                local.handle_timeout(time, &mut self.out);
            }
        }
        self.exchange_gateways(time);
        self.follow_observers(time);
        self.ask_observers(time);
        self.ask_gateways(time);
        self.report_withheld(time);
        self.follow_twins(time);
    }

    /// Returns how long the trust that stands lasts unchanged.
    fn until_next_end(&self, time: Time) -> Duration {
        let ends = self.locals.values().filter_map(Local::next_end);
        // A moment later, since the ends are exclusive.
        ends.min().map_or(SETTLE, |end| {
            end.since(time.unix) + Duration::from_millis(1)
        })
    }

    /// Answers by rules, completes requests and brings the installed peers in line with trust.
    fn settle(&mut self, local: OverlayIp, time: Time) {
        let Some(found) = self.locals.get_mut(&local) else {
            return;
        };
        // What cannot settle, as a membership that lapsed, may have changed before it failed; its
        // peers go with `install` below.
        if found.membership.settle(time.unix).unwrap_or(true) {
            self.out.event(Event::Changed { local });
        }
        if !found.membership.outbox.is_empty() {
            self.out.event(Event::Outbox { local });
        }
        found.present_late(time, &mut self.out);
        self.install(local, time);
    }

    fn install(&mut self, local: OverlayIp, time: Time) {
        let mut used = self.used_indices();
        let Some(found) = self.locals.get_mut(&local) else {
            return;
        };
        let rng = &mut self.rng;
        let fresh = || {
            let seed = rng.draw();
            (unused_index(rng.plain(), &mut used), seed)
        };
        let was_at_rest = found.was_at_rest;
        if found.install(time, fresh, &mut self.out) {
            self.out.event(Event::Tables);
        }
        if found.was_at_rest != was_at_rest {
            self.out.event(Event::Twin { local });
        }
        let next = time.now + self.until_next_end(time);
        self.settle_at = self.settle_at.min(next);
    }

    /// Returns the indices of all sessions of this node.
    fn used_indices(&self) -> BTreeSet<u32> {
        self.locals.values().flat_map(Local::indices).collect()
    }

    // ---- commands

    /// Changes trust of one agent by `change`, and everything that follows from it.
    pub fn change<T, E>(
        &mut self,
        local: OverlayIp,
        time: Time,
        change: impl FnOnce(&mut Membership, UnixTime) -> Result<T, E>,
    ) -> Option<Result<T, E>> {
        let found = self.locals.get_mut(&local)?;
        let changed = change(&mut found.membership, time.unix);
        if changed.is_ok() {
            self.out.event(Event::Changed { local });
            self.settle(local, time);
        }
        Some(changed)
    }

    /// Takes the statements that wait for the registry; give back what it did not take.
    pub fn outbox(&self, local: OverlayIp) -> Vec<Outgoing> {
        self.membership(local)
            .map_or_else(Vec::new, |m| m.outbox.iter().cloned().collect())
    }

    /// Drops a statement from the outbox that the registry took or refused for good.
    pub fn sent(&mut self, local: OverlayIp, outgoing: &Outgoing) {
        if let Some(found) = self.locals.get_mut(&local) {
            found
                .membership
                .outbox
                .retain(|waiting| waiting != outgoing);
            self.out.event(Event::Changed { local });
        }
    }

    /// Signs an agent's record as it is now.
    pub fn record(&mut self, local: OverlayIp, time: Time) -> Option<Statement<Record>> {
        let found = self.locals.get_mut(&local)?;
        let listed = found.homes.listed();
        let record = found.membership.sign_record(listed, time.unix).ok()?;
        found.homes.publish();
        found.note_record(&record, time.now);
        self.out.event(Event::Changed { local });
        Some(record)
    }

    /// Takes that the registry took a statement of an agent with this sequence number.
    pub fn note_taken(&mut self, local: OverlayIp, seq: u64) {
        if let Some(found) = self.locals.get_mut(&local) {
            found.membership.note_taken(seq);
            self.out.event(Event::Changed { local });
        }
    }

    /// Takes a renewed admission.
    pub fn set_admission(
        &mut self,
        local: OverlayIp,
        text: &str,
        time: Time,
    ) -> Result<(), Refused> {
        let Some(found) = self.locals.get_mut(&local) else {
            return Ok(());
        };
        if found.membership.set_admission(text, time.unix)? {
            found.present(time)?;
            self.out.event(Event::Changed { local });
        }
        Ok(())
    }

    /// Sends a probe to an installed peer and returns its id; the answer is [`Event::Pong`].
    pub fn probe(&mut self, local: OverlayIp, peer: OverlayIp, time: Time) -> Option<u64> {
        let id = self.rng.plain().next_u64();
        let found = self
            .locals
            .get_mut(&local)
            .filter(|l| l.peers.contains_key(&peer))?;
        found.probe(peer, id, time, &mut self.out);
        Some(id)
    }

    /// Finds a name on behalf of one of our agents, and wakes the peer it is of.
    pub fn by_name(&mut self, asker: OverlayIp, name: &FullName, time: Time) -> Option<OverlayIp> {
        let local = self.locals.get_mut(&asker)?;
        let found = local.by_name(name)?;
        local.wake(found, time, &mut self.out);
        Some(found)
    }

    /// Finds the name of an address on behalf of one of our agents.
    pub fn by_address(&self, asker: OverlayIp, address: OverlayIp) -> Option<FullName> {
        self.locals.get(&asker)?.by_address(address)
    }

    // ---- output

    /// Returns the next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.out.transmits.pop_front()
    }

    /// Returns the next decrypted packet for a TUN.
    pub fn poll_packet(&mut self) -> Option<Packet> {
        self.out.packets.pop_front()
    }

    /// Returns the next packet of our own making (an ICMPv6 error) for a TUN.
    pub fn poll_injection(&mut self) -> Option<(OverlayIp, Vec<u8>)> {
        self.out.injections.pop_front()
    }

    /// Keeps the packets it drops for [`Engine::poll_dropped`] from now on, or does not; they are counted in any case.
    pub fn keep_dropped(&mut self, keeps: bool) {
        self.out.keeps_dropped = keeps;
    }

    /// Returns the next packet of a program that was dropped.
    pub fn poll_dropped(&mut self) -> Option<Dropped> {
        self.out.dropped.pop_front()
    }

    /// Returns the next change of data channels; none come unless [`Engine::set_suites`] allows any.
    pub fn poll_channel(&mut self) -> Option<ChannelEvent> {
        self.out.channels.pop_front()
    }

    /// Returns the next sockets to open towards a peer.
    pub fn poll_punch(&mut self) -> Option<Punch> {
        self.out.punches.pop_front()
    }

    /// Returns the next thing the driver has to do.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.out.events.pop_front()
    }

    /// Returns when `handle_timeout` is due, and why; None while there is no agent.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let settle = (!self.locals.is_empty()).then_some((self.settle_at, "consents and chains"));
        self.locals
            .values()
            .filter_map(Local::poll_timeout)
            .chain(self.observers_due())
            .chain(self.gateways_due())
            .chain(settle)
            .min()
    }
}

/// Draws a 24-bit session index that no session of this node has.
fn unused_index(rng: &mut ChaCha20Rng, used: &mut BTreeSet<u32>) -> u32 {
    loop {
        let index = rng.next_u32() >> 8;
        if used.insert(index) {
            return index;
        }
    }
}

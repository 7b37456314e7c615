//! Where STUN servers see us: one more endpoint to name to peers, and how our NAT maps.
//!
//! What a gateway sees and what another observer sees are the same where the NAT maps an endpoint alike
//! for all destinations (RFC 4787 section 4.1), and only then is it of use to peers. A gateway's second
//! port is an observer too: it tells a NAT that maps by port from others, with no other server needed.

mod carried;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use rand::RngCore;
use rand_chacha::ChaCha20Rng;

use crate::engine::stun::carried::Carried;
use crate::engine::{Engine, Time, Transmit};
use crate::wire::drop::DropReason;
use crate::wire::stun::{self, Message, Transaction};

/// Servers that are asked; a second observer is enough, and the third may be away.
pub const MAX_SERVERS: usize = 4;

/// Second ports of gateways that are asked.
const MAX_BESIDE: usize = 4;

/// First wait for an answer, doubled each time, and how often is asked (RFC 8489 section 6.2.1).
const FIRST_WAIT: Duration = Duration::from_millis(500);
const TRIES: u32 = 7;

/// Pause before an answer is asked for anew: an endpoint may change without our network's doing so.
const REFRESH: Duration = Duration::from_secs(300);

/// One server, and what it said.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Observer {
    pub server: SocketAddr,
    /// Where it sees us; None before it answered in this network.
    pub observed: Option<SocketAddr>,
}

/// How a NAT maps our endpoint (RFC 4787 section 4.1).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mapping {
    /// Otherwise for each destination: peers cannot be told where to send to.
    EndpointDependent,
    EndpointIndependent,
}

/// Returns how our NAT maps, by what at least two observers saw; None when too few are known.
pub fn mapping(observed: &[SocketAddr]) -> Option<Mapping> {
    let of_family = |v4: bool| observed.iter().filter(move |at| at.is_ipv4() == v4);
    let differs = |v4| {
        let (first, mut rest) = (of_family(v4).next(), of_family(v4).skip(1));
        rest.any(|at| Some(at) != first)
    };
    let is_known = [true, false].map(|v4| of_family(v4).count() > 1);
    if differs(true) || differs(false) {
        Some(Mapping::EndpointDependent)
    } else {
        is_known
            .contains(&true)
            .then_some(Mapping::EndpointIndependent)
    }
}

#[derive(Debug)]
struct Server {
    at: SocketAddr,
    /// The request under way; None while the answer to it is not awaited.
    transaction: Option<Transaction>,
    tries: u32,
    due: Instant,
    observed: Option<SocketAddr>,
}

impl Server {
    const fn new(at: SocketAddr, now: Instant) -> Self {
        Self {
            at,
            transaction: None,
            tries: 0,
            due: now,
            observed: None,
        }
    }
}

/// Asks the servers it is told of.
#[derive(Debug, Default)]
pub(crate) struct Observers {
    servers: Vec<Server>,
    /// Second ports of the gateways.
    beside: Vec<Server>,
    carried: Carried,
}

impl Observers {
    fn set(&mut self, servers: &[SocketAddr], now: Instant) {
        let servers = servers.iter().take(MAX_SERVERS);
        self.servers = servers.map(|at| Server::new(*at, now)).collect();
    }

    /// Takes where else gateways answer; tells whether what is known of one that is gone goes with it.
    fn set_beside(&mut self, beside: impl Iterator<Item = SocketAddr>, now: Instant) -> bool {
        let mut asked = Vec::new();
        for at in beside {
            let is_new = !asked.contains(&at) && self.servers.iter().all(|server| server.at != at);
            if is_new && asked.len() < MAX_BESIDE {
                asked.push(at);
            }
        }
        let is_gone = |server: &mut Server| !asked.contains(&server.at);
        let mut gone = self.beside.extract_if(.., is_gone);
        let lost = gone
            .by_ref()
            .filter(|server| server.observed.is_some())
            .count()
            > 0;
        drop(gone);
        for at in asked {
            if self.beside.iter().all(|server| server.at != at) {
                self.beside.push(Server::new(at, now));
            }
        }
        lost
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Server> {
        self.servers.iter_mut().chain(&mut self.beside)
    }

    /// Begins anew, as in another network.
    fn restart(&mut self, now: Instant) {
        self.carried.hurry(now);
        for server in self.all() {
            (server.transaction, server.tries, server.due) = (None, 0, now);
            server.observed = None;
        }
    }

    /// Asks soon whoever is not being asked, since our endpoint changed.
    fn doubt(&mut self, now: Instant) {
        for server in self.all().filter(|s| s.transaction.is_none()) {
            server.due = now;
        }
    }

    /// Takes an answer; tells whether it was one, and whether it says something new.
    fn handle(&mut self, from: SocketAddr, bytes: &[u8], now: Instant) -> Option<bool> {
        let message = stun::parse(bytes)?;
        let (transaction, observed) = match message {
            Message::Success {
                transaction,
                mapped,
                ..
            } => (transaction, Some(mapped)),
            Message::Refused(transaction) => (transaction, None),
            Message::Request(_) => return None,
        };
        let asked = |s: &&mut Server| s.at == from && s.transaction == Some(transaction);
        let server = self.all().find(asked)?;
        (server.transaction, server.tries, server.due) = (None, 0, now + REFRESH);
        let is_new = server.observed != observed;
        server.observed = observed;
        Some(is_new)
    }

    fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let servers = self.servers.iter().chain(&self.beside);
        let due = servers.map(|server| server.due).min();
        due.map(|at| (at, "stun"))
    }

    fn handle_timeout(&mut self, rng: &mut ChaCha20Rng, now: Instant) -> Vec<Transmit> {
        let mut made = Vec::new();
        for server in self.all().filter(|s| now >= s.due) {
            if server.tries >= TRIES {
                (server.transaction, server.tries, server.due) = (None, 0, now + REFRESH);
                server.observed = None;
                continue;
            }
            let transaction = *server.transaction.get_or_insert_with(|| {
                let mut random = Transaction::default();
                rng.fill_bytes(&mut random);
                random
            });
            server.due = now + FIRST_WAIT * (1 << server.tries);
            server.tries += 1;
            let (to, bytes) = (server.at, stun::request(&transaction));
            made.push(Transmit::new(to, bytes));
        }
        made
    }
}

impl Engine {
    /// Takes which STUN servers are to be asked where they see us; at most [`MAX_SERVERS`].
    pub fn set_stun_servers(&mut self, servers: &[SocketAddr], time: Time) {
        self.observers.set(servers, time.now);
    }

    /// Returns what the STUN servers said.
    pub fn observers(&self) -> Vec<Observer> {
        let view = |server: &Server| Observer {
            server: server.at,
            observed: server.observed,
        };
        self.observers.servers.iter().map(view).collect()
    }

    /// Returns where second ports of gateways see us; alike only where the NAT does not map by port.
    pub fn seen_beside(&self) -> impl Iterator<Item = SocketAddr> {
        let beside = self.observers.beside.iter();
        beside.filter_map(|server| server.observed)
    }

    /// Asks where else our gateways answer, since we are attached to others than before.
    pub(super) fn follow_observers(&mut self, time: Time) {
        if !std::mem::take(&mut self.out.is_seen_anew) {
            return;
        }
        let homes = self.locals.values().flat_map(|local| local.homes.iter());
        let beside = homes.filter_map(|home| home.hop()?.observer());
        if self.observers.set_beside(beside, time.now) {
            self.tell_observed(time);
        }
    }

    /// Takes what may be an answer of a STUN server.
    pub(super) fn handle_stun(&mut self, from: SocketAddr, bytes: &[u8], time: Time) {
        match self.observers.handle(from, bytes, time.now) {
            Some(true) => self.tell_observed(time),
            Some(false) => {}
            None if self.handle_gateway_stun(from, bytes, time) => {}
            None if self.handle_carried_stun(from, bytes, time) => {}
            None => self.out.drop(DropReason::DatagramUnknown),
        }
    }

    /// Asks the servers that are due; one who tells peers nothing has nothing to ask.
    pub(super) fn ask_observers(&mut self, time: Time) {
        if self.seeks() {
            let made = self.observers.handle_timeout(self.rng.plain(), time.now);
            self.out.transmits.extend(made);
        }
    }

    pub(super) fn observers_due(&self) -> Option<(Instant, &'static str)> {
        self.observers.poll_timeout().filter(|_| self.seeks())
    }

    /// Tells whether peers are told where we are; no agent's are where all are of border networks.
    pub fn seeks(&self) -> bool {
        let mut locals = self.locals.values();
        let is_open = self.locals.is_empty() || locals.any(|local| local.mode().seeks());
        self.mode.seeks() && is_open
    }

    /// Asks anew where we are, as in another network.
    pub(super) fn restart_observers(&mut self, time: Time) {
        self.observers.restart(time.now);
        self.tell_observed(time);
        self.ask_observers(time);
    }

    /// Asks anew where we are, since a gateway sees us elsewhere than before.
    pub(super) fn doubt_observers(&mut self, time: Time) {
        self.observers.doubt(time.now);
        self.ask_observers(time);
    }

    fn tell_observed(&mut self, time: Time) {
        let observed = self.observers.servers.iter().filter_map(|s| s.observed);
        let observed = observed.collect::<Vec<_>>();
        let beside = self.seen_beside().collect::<Vec<_>>();
        for local in self.locals.values_mut() {
            local.set_observed(&observed, &beside, time, &mut self.out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::stun::Origin;
    use rand::SeedableRng;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[expect(clippy::disallowed_methods, reason = "tests need an epoch")]
    fn start() -> Instant {
        Instant::now()
    }

    fn answer(sent: &Transmit, seen: &str) -> Vec<u8> {
        let Some(Message::Request(request)) = stun::parse(&sent.bytes) else {
            panic!("no request");
        };
        request.answer(at(seen), Origin::default())
    }

    #[test]
    fn two_observers_tell_how_the_nat_maps() {
        let (one, same) = (at("192.0.2.1:5"), at("192.0.2.1:5"));
        let (other, v6) = (at("192.0.2.1:6"), at("[2001:db8::1]:5"));

        assert_eq!(mapping(&[]), None);
        assert_eq!(mapping(&[one, v6]), None);
        assert_eq!(mapping(&[one, same]), Some(Mapping::EndpointIndependent));
        assert_eq!(mapping(&[one, v6, other]), Some(Mapping::EndpointDependent));
    }

    /// RFC 8489 section 6.2.1: seven requests at 0, 0.5, 1.5, 3.5, 7.5, 15.5 and 31.5 s.
    #[test]
    fn a_silent_server_is_asked_seven_times() {
        let (mut observers, mut rng) = (Observers::default(), ChaCha20Rng::from_seed([3; 32]));
        let begun = start();
        observers.set(&[at("198.51.100.9:3478")], begun);

        let (mut times, mut now) = (Vec::new(), begun);
        while now < begun + Duration::from_secs(200) {
            let made = observers.handle_timeout(&mut rng, now);
            times.extend(made.iter().map(|_| (now - begun).as_millis()));
            now = observers.poll_timeout().unwrap().0;
        }

        assert_eq!(times, [0, 500, 1500, 3500, 7500, 15_500, 31_500]);
    }

    #[test]
    fn an_answer_is_believed_of_the_server_that_was_asked_and_once() {
        let (mut observers, mut rng) = (Observers::default(), ChaCha20Rng::from_seed([3; 32]));
        let (now, server) = (start(), at("198.51.100.9:3478"));
        observers.set(&[server], now);
        let sent = observers.handle_timeout(&mut rng, now).remove(0);
        let told = answer(&sent, "192.0.2.1:41000");

        assert_eq!(observers.handle(at("198.51.100.66:3478"), &told, now), None);
        let forged = forged_answer("192.0.2.66:1");
        assert_eq!(observers.handle(server, &forged, now), None);
        assert_eq!(observers.handle(server, &told, now), Some(true));
        assert_eq!(observers.handle(server, &told, now), None, "again");
        assert_eq!(observers.servers[0].observed, Some(at("192.0.2.1:41000")));
        assert_eq!(observers.poll_timeout().unwrap().0, now + REFRESH);
    }

    #[test]
    fn second_ports_of_gateways_are_asked_while_we_are_attached_there() {
        let (mut observers, mut rng) = (Observers::default(), ChaCha20Rng::from_seed([3; 32]));
        let (now, server) = (start(), at("198.51.100.9:3478"));
        let [one, two] = ["198.51.100.1:16203", "198.51.100.2:16203"].map(at);
        observers.set(&[server], now);
        assert!(!observers.set_beside([one, one, server, two].into_iter(), now));
        let sent = observers.handle_timeout(&mut rng, now);
        let asked = sent.iter().map(|sent| sent.to).collect::<Vec<_>>();
        assert_eq!(asked, [server, one, two], "each once");
        let told = answer(&sent[1], "192.0.2.1:41000");
        assert_eq!(observers.handle(one, &told, now), Some(true));

        assert!(
            !observers.set_beside([one].into_iter(), now),
            "nothing was known"
        );
        assert_eq!(observers.beside[0].observed, Some(at("192.0.2.1:41000")));
        assert!(observers.set_beside([two].into_iter(), now), "it was");

        let all = (1..100).map(|n| SocketAddr::new(one.ip(), n));
        observers.set_beside(all, now);
        assert_eq!(observers.beside.len(), MAX_BESIDE);
    }

    /// An answer to a request that was never made.
    fn forged_answer(seen: &str) -> Vec<u8> {
        let (to, bytes) = (at("198.51.100.9:3478"), stun::request(&[9; 12]));
        answer(&Transmit::new(to, bytes), seen)
    }
}

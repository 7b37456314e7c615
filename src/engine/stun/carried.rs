//! Whether UDP works again, while gateways are reached by connections.
//!
//! A gateway is asked by STUN, which changes nothing there; once it answers, the agents that miss it
//! attach by UDP. All agents of a node have one socket, so each endpoint is asked once for all.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

use rand::RngCore;
use rand_chacha::ChaCha20Rng;

use crate::engine::{Engine, Time, Transmit, event::Out, hop::Hop, local::Local};
use crate::wire::stun::{self, Message, Transaction};

/// Wait before UDP is tried again: it gave no answer just now.
const FIRST: Duration = Duration::from_secs(5);

/// Pause between two tries, and the longest, where UDP answers and does not carry.
const PAUSE: Duration = Duration::from_secs(30);
const LONGEST: Duration = Duration::from_secs(600);

/// Time that attaching by UDP may take.
const SETTLING: Duration = Duration::from_secs(10);

/// Whoever comes back to a connection sooner had no UDP that carries.
const LASTING: Duration = Duration::from_secs(120);

/// Requests of one try, and the wait for an answer.
const TRIES: u32 = 3;
const ANSWER: Duration = Duration::from_secs(1);

/// Endpoints that are asked; each gateway has eight at most.
const MAX_ASKED: usize = 64;

/// An endpoint for UDP that gave no answer.
#[derive(Debug)]
struct Missed {
    /// The request under way; None while no answer is awaited.
    transaction: Option<Transaction>,
    tries: u32,
    due: Instant,
    pause: Duration,
    /// When agents last went back there; None before the first.
    moved: Option<Instant>,
}

/// The endpoints for UDP of gateways that are reached by connections.
#[derive(Debug, Default)]
pub(super) struct Carried {
    missed: BTreeMap<SocketAddr, Missed>,
}

impl Carried {
    /// Takes that agents miss these endpoints.
    fn miss(&mut self, endpoints: &BTreeSet<SocketAddr>, now: Instant) {
        for endpoint in endpoints {
            let is_full = self.missed.len() >= MAX_ASKED;
            match self.missed.get_mut(endpoint) {
                Some(missed) => missed.come_back(now),
                None if is_full => {}
                None => {
                    let missed = Missed {
                        transaction: None,
                        tries: 0,
                        due: now + FIRST,
                        pause: PAUSE,
                        moved: None,
                    };
                    self.missed.insert(*endpoint, missed);
                }
            }
        }
    }

    /// Tries at once, as in another network.
    pub(super) fn hurry(&mut self, now: Instant) {
        for missed in self.missed.values_mut() {
            (missed.transaction, missed.tries) = (None, 0);
            (missed.due, missed.pause) = (now, PAUSE);
        }
    }

    /// Takes an answer; tells whether it was one.
    fn handle(&mut self, from: SocketAddr, message: &Message, now: Instant) -> bool {
        let (Message::Success { transaction, .. } | Message::Refused(transaction)) = message else {
            return false;
        };
        let missed = self.missed.get_mut(&from);
        let asked = missed.filter(|missed| missed.transaction == Some(*transaction));
        let Some(missed) = asked else {
            return false;
        };
        (missed.transaction, missed.tries) = (None, 0);
        (missed.due, missed.moved) = (now + missed.pause, Some(now));
        true
    }

    /// Returns when something is due; None when nothing is missed.
    fn poll_timeout(&self) -> Option<Instant> {
        self.missed.values().map(|missed| missed.due).min()
    }

    /// Asks those that are due; what nobody misses any more is forgotten.
    fn handle_timeout(
        &mut self,
        wanted: &BTreeSet<SocketAddr>,
        rng: &mut ChaCha20Rng,
        now: Instant,
    ) -> Vec<Transmit> {
        let is_over = |missed: &Missed| missed.moved.is_none_or(|at| now >= at + LASTING);
        self.missed
            .retain(|at, missed| now < missed.due || wanted.contains(at) || !is_over(missed));
        let mut made = Vec::new();
        for (at, missed) in self
            .missed
            .iter_mut()
            .filter(|(_, missed)| now >= missed.due)
        {
            if !wanted.contains(at) {
                missed.due = missed.moved.map_or(now, |at| at + LASTING);
            } else if missed.tries >= TRIES {
                (missed.transaction, missed.tries) = (None, 0);
                missed.due = now + missed.pause;
            } else {
                let transaction = *missed.transaction.get_or_insert_with(|| {
                    let mut random = Transaction::default();
                    rng.fill_bytes(&mut random);
                    random
                });
                missed.tries += 1;
                missed.due = now + ANSWER;
                made.push(Transmit::new(*at, stun::request(&transaction)));
            }
        }
        made
    }
}

impl Missed {
    /// Takes that agents are reached by a connection again, if they were not.
    fn come_back(&mut self, now: Instant) {
        let is_settled = |moved: &mut Instant| now >= *moved + SETTLING;
        let Some(moved) = self.moved.take_if(is_settled) else {
            return;
        };
        self.pause = if now < moved + LASTING {
            (self.pause * 2).min(LONGEST)
        } else {
            PAUSE
        };
        let wait = if self.pause == PAUSE {
            FIRST
        } else {
            self.pause
        };
        (self.transaction, self.tries, self.due) = (None, 0, now + wait);
    }
}

impl Engine {
    /// Takes that the connection `at` was lost: agents that are reached by it say where they are as
    /// soon as there is another.
    pub fn handle_carrier_lost(&mut self, at: SocketAddr, time: Time) {
        for local in self.locals.values_mut() {
            local.announce(at, time, &mut self.out);
        }
    }

    /// Asks the gateways that are reached by connections whether UDP works again.
    pub(in crate::engine) fn ask_carried(&mut self, time: Time) {
        let wanted = self.missed();
        let carried = &mut self.observers.carried;
        carried.miss(&wanted, time.now);
        if carried.poll_timeout().is_none_or(|at| time.now < at) {
            return;
        }
        let made = carried.handle_timeout(&wanted, self.rng.plain(), time.now);
        self.out.transmits.extend(made);
    }

    pub(in crate::engine) fn carried_due(&self) -> Option<(Instant, &'static str)> {
        let due = self.observers.carried.poll_timeout();
        due.map(|at| (at, "gateway by UDP again"))
    }

    /// Takes what may say that UDP works again; tells whether it does.
    pub(super) fn handle_carried_stun(
        &mut self,
        from: SocketAddr,
        bytes: &[u8],
        time: Time,
    ) -> bool {
        let message = stun::parse(bytes);
        if !message.is_some_and(|message| self.observers.carried.handle(from, &message, time.now)) {
            return false;
        }
        for local in self.locals.values_mut() {
            local.move_to(from, time, &mut self.out);
        }
        true
    }

    fn missed(&self) -> BTreeSet<SocketAddr> {
        self.locals.values().flat_map(Local::missed).collect()
    }
}

impl Local {
    fn missed(&self) -> impl Iterator<Item = SocketAddr> {
        self.homes.iter().flat_map(|attachment| attachment.missed())
    }

    fn move_to(&mut self, endpoint: SocketAddr, time: Time, out: &mut Out) {
        for attachment in self.homes.iter_mut() {
            if attachment.missed().any(|at| at == endpoint) {
                attachment.move_to(endpoint, time.now);
            }
        }
        self.drain_gateways(out);
    }

    /// Says where we are to the gateways at `endpoint`.
    fn announce(&mut self, endpoint: SocketAddr, time: Time, out: &mut Out) {
        for attachment in self.homes.iter_mut() {
            if attachment.hop().map(Hop::endpoint) == Some(endpoint) {
                attachment.announce(time.now);
            }
        }
        self.drain_gateways(out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[expect(clippy::disallowed_methods, reason = "tests need an epoch")]
    fn start() -> Instant {
        Instant::now()
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    const GATEWAY: &str = "198.51.100.1:16201";

    fn wanted() -> BTreeSet<SocketAddr> {
        BTreeSet::from([at(GATEWAY)])
    }

    fn answer(sent: &Transmit) -> Message {
        let Some(Message::Request(request)) = stun::parse(&sent.bytes) else {
            panic!("no request");
        };
        stun::parse(&request.answer(at("192.0.2.1:41000"), stun::Origin::default())).unwrap()
    }

    /// Returns what is asked until `end`, in milliseconds from the start.
    fn asked(carried: &mut Carried, begun: Instant, end: Duration) -> Vec<(u128, Transmit)> {
        let (mut rng, mut times) = (ChaCha20Rng::from_seed([3; 32]), Vec::new());
        while let Some(due) = carried.poll_timeout().filter(|at| *at <= begun + end) {
            let made = carried.handle_timeout(&wanted(), &mut rng, due);
            times.extend(
                made.into_iter()
                    .map(|sent| ((due - begun).as_millis(), sent)),
            );
        }
        times
    }

    #[test]
    fn udp_is_tried_again_after_seconds_and_then_each_half_minute() {
        let (mut carried, begun) = (Carried::default(), start());
        carried.miss(&wanted(), begun);
        carried.miss(&wanted(), begun + Duration::from_secs(3));

        let asked = asked(&mut carried, begun, Duration::from_secs(50));

        let times = asked.iter().map(|(at, _)| *at).collect::<Vec<_>>();
        assert_eq!(times, [5000, 6000, 7000, 38_000, 39_000, 40_000]);
        carried.hurry(begun + Duration::from_secs(51));
        let due = carried.poll_timeout().unwrap();
        assert_eq!(due, begun + Duration::from_secs(51));
    }

    #[test]
    fn an_answer_is_believed_of_who_was_asked_and_once() {
        let (mut carried, begun) = (Carried::default(), start());
        carried.miss(&wanted(), begun);
        let asked = asked(&mut carried, begun, Duration::from_secs(5));
        let told = answer(&asked[0].1);
        let forged = answer(&Transmit::new(at(GATEWAY), stun::request(&[9; 12])));

        assert!(!carried.handle(at("198.51.100.66:16201"), &told, begun));
        assert!(!carried.handle(at(GATEWAY), &forged, begun));
        assert!(carried.handle(at(GATEWAY), &told, begun));
        assert!(!carried.handle(at(GATEWAY), &told, begun), "again");
    }

    /// UDP that answers STUN and carries nothing is not gone back to every few seconds.
    #[test]
    fn who_comes_back_soon_waits_longer_each_time() {
        let (mut carried, begun) = (Carried::default(), start());
        let (mut now, mut waits) = (begun, Vec::new());
        for _ in 0..7 {
            carried.miss(&wanted(), now);
            let due = carried.poll_timeout().unwrap();
            waits.push((due - now).as_secs());
            let mut rng = ChaCha20Rng::from_seed([3; 32]);
            let sent = carried.handle_timeout(&wanted(), &mut rng, due).remove(0);
            assert!(carried.handle(at(GATEWAY), &answer(&sent), due));
            now = due + Duration::from_secs(20);
        }

        assert_eq!(waits, [5, 60, 120, 240, 480, 600, 600]);
        carried.miss(&wanted(), now + LASTING);
        let due = carried.poll_timeout().unwrap();
        assert_eq!(due, now + LASTING + FIRST);
    }

    #[test]
    fn what_nobody_misses_is_forgotten() {
        let (mut carried, begun) = (Carried::default(), start());
        carried.miss(&wanted(), begun);
        let mut rng = ChaCha20Rng::from_seed([3; 32]);

        let later = begun + LASTING + PAUSE;
        let made = carried.handle_timeout(&BTreeSet::new(), &mut rng, later);

        assert!(made.is_empty() && carried.poll_timeout().is_none());
        let many = (0..100).map(|n| SocketAddr::from(([192, 0, 2, n], 1)));
        carried.miss(&many.collect(), begun);
        assert_eq!(carried.missed.len(), MAX_ASKED);
    }
}

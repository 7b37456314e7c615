//! Where our gateway sees us: what it said when we attached, and what it says when it is asked again.
//!
//! A NAT that rebooted maps our endpoint otherwise than before, and only who is outside of it knows. So
//! the gateway is asked by STUN once direct paths fail. Nothing but a candidate is made of an answer:
//! its transaction id is all that proves it.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use rand::RngCore;
use rand_chacha::ChaCha20Rng;

use crate::engine::{Engine, Time, Transmit, path::Doubt};
use crate::wire::carrier::is_carrier;
use crate::wire::stun::{self, Message, Transaction};

/// First wait for an answer, doubled each time (RFC 8489 section 6.2.1), and how often is asked: there
/// will be a reason to ask again while paths fail.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const TRIES: u32 = 4;

/// Pause between two questions: the first, after a direct path was lost, and the longest, between two
/// that have none for reasons which no answer cures.
const PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A question under way.
#[derive(Debug)]
struct Asked {
    to: SocketAddr,
    transaction: Transaction,
    tries: u32,
    /// When it is repeated or given up.
    due: Instant,
}

/// Where one gateway sees us.
#[derive(Debug)]
pub(crate) struct Reflexive {
    /// None before the first attachment in this network.
    endpoint: Option<SocketAddr>,
    /// None while no answer is awaited.
    asked: Option<Asked>,
    /// Since when there is reason to ask; None when there is none.
    doubted: Option<Instant>,
    /// When the last question began; None before the first.
    begun: Option<Instant>,
    /// Least time from there to the next.
    pause: Duration,
}

impl Default for Reflexive {
    fn default() -> Self {
        Self {
            endpoint: None,
            asked: None,
            doubted: None,
            begun: None,
            pause: PAUSE,
        }
    }
}

impl Reflexive {
    pub(crate) const fn endpoint(&self) -> Option<SocketAddr> {
        self.endpoint
    }

    /// Takes where the gateway sees us; tells whether that is news.
    pub(crate) fn learn(&mut self, endpoint: SocketAddr) -> bool {
        self.endpoint.replace(endpoint) != Some(endpoint)
    }

    /// Takes that there may be another endpoint than the one we know.
    pub(crate) fn doubt(&mut self, doubt: Doubt, now: Instant) {
        if doubt == Doubt::Lost {
            self.pause = PAUSE;
        }
        self.doubted.get_or_insert(now);
    }

    /// Returns when something is due; None when nothing is.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        if let Some(asked) = &self.asked {
            return Some(asked.due);
        }
        let free = self.begun.map(|at| at + self.pause);
        self.doubted.map(|at| free.map_or(at, |free| free.max(at)))
    }

    /// Asks `gateway` if it is time; without one there is nobody to ask, and attaching tells as well.
    pub(crate) fn handle_timeout(
        &mut self,
        gateway: Option<SocketAddr>,
        rng: &mut ChaCha20Rng,
        now: Instant,
    ) -> Option<Transmit> {
        if self.poll_timeout().is_none_or(|at| now < at) {
            return None;
        }
        let mut asked = match (self.asked.take(), gateway) {
            (Some(asked), Some(gateway)) if asked.to == gateway => asked,
            (_, Some(to)) => self.begin(to, rng, now),
            (_, None) => {
                self.doubted = None;
                return None;
            }
        };
        if asked.tries >= TRIES {
            return None;
        }
        asked.due = now + FIRST_WAIT * (1 << asked.tries);
        asked.tries += 1;
        let request = Transmit::new(asked.to, stun::request(&asked.transaction));
        self.asked = Some(asked);
        Some(request)
    }

    fn begin(&mut self, to: SocketAddr, rng: &mut ChaCha20Rng, now: Instant) -> Asked {
        let mut transaction = Transaction::default();
        rng.fill_bytes(&mut transaction);
        if self.begun.replace(now).is_some() {
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        }
        self.doubted = None;
        Asked {
            to,
            transaction,
            tries: 0,
            due: now,
        }
    }

    /// Takes an answer; the outer None when it is none to our question, the inner when it says nothing.
    fn handle(&mut self, from: SocketAddr, message: &Message) -> Option<Option<SocketAddr>> {
        let (transaction, mapped) = match message {
            Message::Success {
                transaction,
                mapped,
                ..
            } => (transaction, Some(*mapped)),
            Message::Refused(transaction) => (transaction, None),
            Message::Request(_) => return None,
        };
        let is_ours = |asked: &mut Asked| asked.to == from && asked.transaction == *transaction;
        self.asked.take_if(is_ours)?;
        self.doubted = None;
        Some(mapped)
    }
}

impl Engine {
    /// Takes what may be an answer of a gateway; tells whether it was one.
    pub(super) fn handle_gateway_stun(
        &mut self,
        from: SocketAddr,
        bytes: &[u8],
        time: Time,
    ) -> bool {
        let Some(message) = stun::parse(bytes) else {
            return false;
        };
        let mut locals = self.locals.values_mut();
        if locals.any(|local| local.homes.handle_stun(from, &message, time.now)) {
            return true;
        }
        let mut locals = self.locals.values_mut();
        let Some(mapped) = locals.find_map(|local| local.reflexive.handle(from, &message)) else {
            return false;
        };
        let Some(mapped) = mapped else {
            return true;
        };
        let mut is_news = false;
        // All agents of a node have one socket.
        for local in self.locals.values_mut() {
            if local.gateway_endpoint() == Some(from) {
                is_news |= local.learn_reflexive(mapped, time, &mut self.out);
            }
        }
        if is_news {
            self.doubt_observers(time);
        }
        true
    }

    /// Asks the gateways that are to be asked; one who tells peers nothing has nothing to ask.
    pub(super) fn ask_gateways(&mut self, time: Time) {
        self.ask_carried(time);
        for local in self.locals.values_mut().filter(|l| l.mode().seeks()) {
            // By a connection, nobody sees us anywhere.
            let gateway = local.gateway_endpoint().filter(|at| !is_carrier(*at));
            let rng = self.rng.plain();
            let request = local.reflexive.handle_timeout(gateway, rng, time.now);
            self.out.transmits.extend(request);
        }
    }

    pub(super) fn gateways_due(&self) -> Option<(Instant, &'static str)> {
        let locals = self.locals.values().filter(|l| l.mode().seeks());
        let due = locals.filter_map(|local| local.reflexive.poll_timeout());
        let due = due.min().map(|at| (at, "gateway stun"));
        due.into_iter().chain(self.carried_due()).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::stun::Origin;
    use rand::SeedableRng;

    const GATEWAY: &str = "198.51.100.1:16201";
    const SEEN: &str = "192.0.2.1:41000";

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[expect(clippy::disallowed_methods, reason = "tests need an epoch")]
    fn start() -> Instant {
        Instant::now()
    }

    fn rng() -> ChaCha20Rng {
        ChaCha20Rng::from_seed([3; 32])
    }

    /// Returns when, in milliseconds from the start, something is asked while `doubt` goes on.
    fn times(doubt: Doubt, seconds: u64, is_answered: bool) -> Vec<u128> {
        let (mut reflexive, mut rng, begun) = (Reflexive::default(), rng(), start());
        let (mut times, mut now) = (Vec::new(), begun);
        while now < begun + Duration::from_secs(seconds) {
            reflexive.doubt(doubt, now);
            let sent = reflexive.handle_timeout(Some(at(GATEWAY)), &mut rng, now);
            if let Some(sent) = sent {
                times.push((now - begun).as_millis());
                if is_answered {
                    let answer = answer(&sent, SEEN);
                    assert_eq!(reflexive.handle(at(GATEWAY), &answer), Some(Some(at(SEEN))));
                }
            }
            now += Duration::from_millis(100);
        }
        times
    }

    fn answer(sent: &Transmit, seen: &str) -> Message {
        let Some(Message::Request(request)) = stun::parse(&sent.bytes) else {
            panic!("no request");
        };
        stun::parse(&request.answer(at(seen), Origin::default())).unwrap()
    }

    #[test]
    fn a_silent_gateway_is_asked_four_times_and_later_again() {
        let times = times(Doubt::Vain, 12, false);

        assert_eq!(times, [0, 500, 1500, 3500, 7600, 8100, 9100, 11_100]);
    }

    #[test]
    fn questions_become_rarer_unless_a_direct_path_was_lost() {
        let vain = times(Doubt::Vain, 300, true);
        let lost = times(Doubt::Lost, 300, true);

        assert_eq!(vain[..5], [0, 5000, 15_000, 35_000, 75_000]);
        assert_eq!(vain[5..], [135_000, 195_000, 255_000]);
        assert!((30..=60).contains(&lost.len()), "{lost:?}");
    }

    #[test]
    fn nothing_is_asked_without_doubt_or_without_a_gateway() {
        let (mut reflexive, mut rng, now) = (Reflexive::default(), rng(), start());
        assert!(reflexive.learn(at(SEEN)) && !reflexive.learn(at(SEEN)));
        assert_eq!(reflexive.poll_timeout(), None);

        reflexive.doubt(Doubt::Lost, now);
        assert_eq!(reflexive.poll_timeout(), Some(now));
        assert!(reflexive.handle_timeout(None, &mut rng, now).is_none());

        assert_eq!(reflexive.poll_timeout(), None);
    }

    #[test]
    fn an_answer_is_believed_of_the_gateway_that_was_asked_and_once() {
        let (mut reflexive, mut rng, now) = (Reflexive::default(), rng(), start());
        reflexive.doubt(Doubt::Lost, now);
        let sent = reflexive.handle_timeout(Some(at(GATEWAY)), &mut rng, now);
        let told = answer(&sent.unwrap(), SEEN);
        let forged = Transmit::new(at(GATEWAY), stun::request(&[9; 12]));
        let forged = answer(&forged, "192.0.2.66:1");

        assert_eq!(reflexive.handle(at("198.51.100.66:16201"), &told), None);
        assert_eq!(reflexive.handle(at(GATEWAY), &forged), None);
        assert_eq!(reflexive.handle(at(GATEWAY), &told), Some(Some(at(SEEN))));
        assert_eq!(reflexive.handle(at(GATEWAY), &told), None, "again");
        assert_eq!(reflexive.poll_timeout(), None);
    }
}

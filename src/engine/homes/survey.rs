use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::engine::{homes::Homes, hop::MAX_HOPS, rtt::Rtt};
use crate::id::{Did, hash};
use crate::wire::carrier::is_carrier;
use crate::wire::stun::{self, Message, Transaction};

/// First wait for an answer, doubled each time (RFC 8489 section 6.2.1), and how often is asked.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const TRIES: u32 = 3;

/// Pause between two surveys: who is near changes seldom, and an idle host is to be silent.
const PAUSE: Duration = Duration::from_secs(1800);

/// A gateway that is asked.
#[derive(Debug)]
struct Asked {
    endpoints: Vec<SocketAddr>,
    transaction: Transaction,
    tries: u32,
    sent: Instant,
}

/// How far the gateways of a domain are, when there are more than an agent attaches to.
///
/// Each is asked by STUN, which costs it no state.
#[derive(Debug)]
pub(super) struct Survey {
    rtts: BTreeMap<Did, Rtt>,
    asked: BTreeMap<Did, Asked>,
    transmit: VecDeque<(SocketAddr, Vec<u8>)>,
    /// When the last one began; None before the first.
    begun: Option<Instant>,
}

impl Survey {
    pub(super) const fn new() -> Self {
        Self {
            rtts: BTreeMap::new(),
            asked: BTreeMap::new(),
            transmit: VecDeque::new(),
            begun: None,
        }
    }

    /// Returns how far a gateway is, as far as that is known.
    pub(super) fn rtt(&self, gateway: &Did) -> Rtt {
        self.rtts.get(gateway).copied().unwrap_or_default()
    }

    /// Tells whether one was made and none is under way.
    pub(super) fn is_over(&self) -> bool {
        self.begun.is_some() && self.asked.is_empty()
    }

    /// Returns when the next one is due; None while nobody asked for any.
    fn due(&self) -> Option<Instant> {
        self.begun.map(|at| at + PAUSE)
    }

    fn begin(&mut self, gateways: Vec<(Did, Vec<SocketAddr>)>, seed: [u8; 32], now: Instant) {
        self.begun = Some(now);
        self.rtts
            .retain(|known, _| gateways.iter().any(|(gateway, _)| gateway == known));
        self.asked.clear();
        for (gateway, endpoints) in gateways {
            let name = gateway.to_string();
            let drawn = hash(&[b"agentnet survey", &seed, name.as_bytes()]);
            let mut transaction = Transaction::default();
            for (to, from) in transaction.iter_mut().zip(drawn) {
                *to = from;
            }
            // By a connection nobody answers STUN.
            let endpoints = endpoints.into_iter().filter(|at| !is_carrier(*at));
            let asked = Asked {
                endpoints: endpoints.collect(),
                transaction,
                tries: 0,
                sent: now,
            };
            self.asked.insert(gateway, asked);
        }
        self.handle_timeout(now);
    }

    /// Takes an answer; tells whether it was one to a question of ours.
    pub(super) fn handle(&mut self, from: SocketAddr, message: &Message, now: Instant) -> bool {
        let transaction = match message {
            Message::Success { transaction, .. } | Message::Refused(transaction) => transaction,
            Message::Request(_) => return false,
        };
        let mut all = self.asked.iter();
        let found = all.find(|(_, asked)| {
            asked.transaction == *transaction && asked.endpoints.contains(&from)
        });
        let Some(gateway) = found.map(|(gateway, _)| *gateway) else {
            return false;
        };
        let Some(asked) = self.asked.remove(&gateway) else {
            return false;
        };
        // An answer to a repeated question may be to any of them: the longest is no flattery.
        let before = FIRST_WAIT * ((1 << asked.tries.saturating_sub(1)) - 1);
        let took = now.saturating_duration_since(asked.sent) + before;
        self.rtts.entry(gateway).or_default().add(took);
        true
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.asked.values().map(Asked::due).min()
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.asked.retain(|_, asked| {
            if now < asked.due() {
                return true;
            }
            let count = asked.endpoints.len().max(1);
            let place = usize::try_from(asked.tries).unwrap_or(0) % count;
            let to = asked.endpoints.get(place);
            if asked.tries >= TRIES {
                return false;
            }
            asked.tries += 1;
            asked.sent = now;
            let request = stun::request(&asked.transaction);
            self.transmit.extend(to.map(|to| (*to, request)));
            true
        });
    }

    pub(super) fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        self.transmit.pop_front()
    }
}

impl Asked {
    fn due(&self) -> Instant {
        match self.tries {
            0 => self.sent,
            tries => self.sent + FIRST_WAIT * (1 << (tries - 1)),
        }
    }
}

impl Homes {
    /// Returns when gateways are asked how far they are; None while there is no choice.
    pub(super) fn survey_due(&self) -> Option<Instant> {
        let is_choice = self.known.len() > MAX_HOPS;
        let next = self.survey.due().filter(|_| is_choice);
        next.into_iter().chain(self.survey.poll_timeout()).min()
    }

    /// Asks how far all gateways are, if there is a choice and it is time.
    pub(super) fn begin_survey(&mut self, now: Instant) {
        if self.known.len() <= MAX_HOPS || self.survey.due().is_some_and(|at| now < at) {
            return;
        }
        self.survey_now(now);
    }

    fn survey_now(&mut self, now: Instant) {
        let known = self.known.iter();
        let gateways = known.map(|(gateway, known)| (*gateway, known.endpoints.clone()));
        let gateways = gateways.collect::<Vec<_>>();
        let seed = self.survey_seed();
        self.survey.begin(gateways, seed, now);
    }

    fn survey_seed(&mut self) -> [u8; 32] {
        let drawn = self.iter_mut().next().map(|a| a.draw());
        drawn.unwrap_or_default()
    }

    /// Takes that our network changed: who was far may be near.
    pub(crate) fn change_network(&mut self, now: Instant) {
        for home in &mut self.all {
            home.lift_bar();
            home.attachment.announce(now);
            home.attachment.renew(now);
        }
        if self.known.len() > MAX_HOPS {
            self.survey_now(now);
        }
    }

    /// Takes what may be an answer of a gateway to how far it is; tells whether it was one.
    pub(crate) fn handle_stun(
        &mut self,
        from: SocketAddr,
        message: &Message,
        now: Instant,
    ) -> bool {
        self.survey.handle(from, message, now)
    }
}

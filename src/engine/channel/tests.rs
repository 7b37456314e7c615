use std::collections::BTreeMap;

use super::*;
use crate::id::{AgentId, IdentityKey, NetworkId, TunnelKey};
use crate::wire::channel::MAC;

const BOTH: fn() -> Suites = || Suites::of(&[Suite::Aes256Gcm, Suite::ChaCha20Poly1305]);

#[expect(clippy::disallowed_methods, reason = "any moment does to begin with")]
fn now() -> Instant {
    Instant::now()
}

fn on_offer(message: &mut Message, change: impl FnOnce(&mut Offer)) {
    if let Message::Offer(offer) = message {
        change(offer);
    }
}

fn on_accept(message: &mut Message, change: impl FnOnce(&mut Accept)) {
    if let Message::Accept(accept) = message {
        change(accept);
    }
}

fn end(n: u8) -> End {
    End {
        identity: AgentId::from(IdentityKey::from_seed([n; 32]).did()),
        tunnel: TunnelSecret::from_seed([n ^ 0x80; 32]).public(),
    }
}

fn ends() -> Ends {
    let network = NetworkId::from(IdentityKey::from_seed([9; 32]).did());
    Ends::new(network, end(1), end(2))
}

fn agent(is_low: bool, suites: Suites, now: Instant) -> ChannelAgent {
    let config = ChannelConfig {
        ends: ends(),
        is_low,
        suites,
        index: if is_low { 0xaaaaaa } else { 0xbbbbbb },
        lane: if is_low { 3 } else { 6 },
        seed: Zeroizing::new([u8::from(is_low); 32]),
    };
    ChannelAgent::new(config, now)
}

/// What the sealing side of one end knows.
#[derive(Default)]
struct Seals {
    channels: BTreeMap<u32, NewChannel>,
    sending: Option<u32>,
}

impl Seals {
    fn follow(&mut self, agent: &mut ChannelAgent) {
        while let Some(change) = agent.poll_change() {
            match change {
                ChannelChange::New(new) => {
                    assert!(self.channels.insert(new.id, new).is_none());
                }
                ChannelChange::Mtu(_) | ChannelChange::Route(_) => {
                    panic!("paths are not known here")
                }
                ChannelChange::Send(id) => {
                    assert!(self.channels.contains_key(&id));
                    self.sending = Some(id);
                }
                ChannelChange::End(id) => {
                    assert!(self.channels.remove(&id).is_some(), "{id} is ended once");
                    self.sending = self.sending.filter(|sending| *sending != id);
                }
            }
        }
    }
}

struct Both {
    low: ChannelAgent,
    high: ChannelAgent,
    at_low: Seals,
    at_high: Seals,
    now: Instant,
}

impl Both {
    fn new() -> Self {
        Self::with(BOTH(), BOTH())
    }

    fn with(low: Suites, high: Suites) -> Self {
        let now = now();
        Self {
            low: agent(true, low, now),
            high: agent(false, high, now),
            at_low: Seals::default(),
            at_high: Seals::default(),
            now,
        }
    }

    /// Carries messages both ways until there are none; `carry` may lose or change them.
    fn carry(&mut self, mut carry: impl FnMut(Message) -> Option<Message>) -> Vec<DropReason> {
        let mut refused = Vec::new();
        loop {
            let up = self.low.poll_message();
            let down = self.high.poll_message();
            if up.is_none() && down.is_none() {
                break;
            }
            if let Some(message) = up.and_then(&mut carry) {
                refused.extend(self.high.handle_message(&message, self.now).err());
            }
            if let Some(message) = down.and_then(&mut carry) {
                refused.extend(self.low.handle_message(&message, self.now).err());
            }
        }
        self.at_low.follow(&mut self.low);
        self.at_high.follow(&mut self.high);
        refused
    }

    fn session(&mut self) {
        self.low.handle_session(self.now);
        self.high.handle_session(self.now);
    }

    fn advance(&mut self, by: Duration) {
        self.now += by;
        for agent in [&mut self.low, &mut self.high] {
            while agent.poll_timeout().is_some_and(|(at, _)| at <= self.now) {
                agent.handle_timeout(self.now);
            }
        }
    }

    /// Asserts that what either end seals by is what the other opens with.
    fn assert_agree(&self) {
        for (from, to) in [(&self.at_low, &self.at_high), (&self.at_high, &self.at_low)] {
            let sealed = &from.channels[&from.sending.expect("a channel is used")];
            let opened = &to.channels[&sealed.remote];
            assert_eq!(opened.remote, sealed.id);
            assert_eq!(opened.suite, sealed.suite);
            assert_eq!(opened.open.as_bytes(), sealed.seal.as_bytes());
            assert_ne!(opened.open.as_bytes(), opened.seal.as_bytes());
        }
    }
}

/// Whoever shares packets out by the low bits of their ids finds all of a pair in one place.
#[test]
fn ids_end_in_their_lane() {
    let mut both = Both::new();
    for _ in 0..20 {
        both.now += Duration::from_secs(120);
        both.low.handle_timeout(both.now);
        both.high.handle_timeout(both.now);
        both.low.handle_session(both.now);
        both.carry(Some);
        for (ends, lane) in [(&both.at_low, 3), (&both.at_high, 6)] {
            assert!(ends.channels.keys().all(|id| id & 15 == lane));
        }
    }
    let ids = both.at_low.channels.keys().copied().collect::<Vec<_>>();
    assert!(!ids.is_empty() && ids.iter().all(|id| id >> 8 == 0xaaaaaa));
}

#[test]
fn both_ends_get_the_same_channel() {
    let mut both = Both::new();

    both.session();
    let refused = both.carry(Some);

    assert_eq!(refused, []);
    both.assert_agree();
    assert_eq!(both.low.suite(), Some(Suite::Aes256Gcm));
    assert_eq!(both.high.suite(), Some(Suite::Aes256Gcm));
}

/// Roles follow from the keys: both begin a handshake at once, and there is one channel.
#[test]
fn only_the_end_with_the_lower_key_offers() {
    let ends = ends();
    assert!(ends.low.tunnel < ends.high.tunnel);
    assert_eq!(ends, Ends::new(ends.network, ends.high, ends.low));
    let mut both = Both::new();

    both.session();
    both.session();
    both.carry(Some);

    both.assert_agree();
    assert_eq!(both.at_low.channels.len(), 1);
}

#[test]
fn an_end_without_a_suite_of_the_other_makes_no_channel() {
    let (aes, chacha) = ([Suite::Aes256Gcm], [Suite::ChaCha20Poly1305]);
    let mut both = Both::with(Suites::of(&aes), Suites::of(&chacha));
    both.session();
    assert_eq!(both.carry(Some), [DropReason::ChannelRefused]);
    assert!(both.at_low.channels.is_empty() && both.at_high.channels.is_empty());

    for (low, high) in [(BOTH(), Suites::NONE), (Suites::NONE, BOTH())] {
        let mut both = Both::with(low, high);
        both.session();
        assert_eq!(both.carry(Some), []);
        assert!(both.at_low.channels.is_empty() && both.at_high.channels.is_empty());
    }
    let mut both = Both::with(BOTH(), Suites::of(&chacha));
    both.session();
    both.carry(Some);
    both.assert_agree();
    assert_eq!(both.low.suite(), Some(Suite::ChaCha20Poly1305));
}

#[test]
fn what_is_lost_is_repeated_in_the_same_bytes() {
    for lost in 0..3 {
        let mut both = Both::new();
        let mut seen: Vec<Message> = Vec::new();
        both.session();

        let kind = |message: &Message| match message {
            Message::Offer(_) => 0,
            Message::Accept(_) => 1,
            Message::Confirm(_) => 2,
        };
        for _ in 0..3 {
            both.carry(|message| {
                let known = seen.iter().find(|known| kind(known) == kind(&message));
                assert!(known.is_none_or(|known| *known == message));
                let is_first = known.is_none();
                seen.push(message);
                (kind(&message) != lost || !is_first).then_some(message)
            });
            both.advance(OFFER_PAUSE);
        }
        // A lost Confirm is not repeated: the first packet says the same.
        if lost == 2 {
            assert_eq!(both.at_high.sending, None);
            let id = *both.at_high.channels.keys().next().unwrap();
            both.high.handle_used(id, both.now);
            both.carry(Some);
        }

        both.assert_agree();
    }
}

#[test]
fn an_offer_is_made_five_times() {
    let mut both = Both::new();
    both.low.handle_session(both.now);
    let mut offers = 0;

    for _ in 0..20 {
        both.carry(|_| {
            offers += 1;
            None
        });
        both.advance(OFFER_PAUSE);
    }

    assert_eq!(offers, OFFERS);
    assert_eq!(both.low.poll_timeout(), None);
}

/// Downgrade, another key, and every other change on the way makes no channel that either uses.
#[test]
fn nothing_of_the_handshake_can_be_changed() {
    let stranger = *TunnelSecret::from_seed([5; 32]).public().as_bytes();
    let chacha = Suite::ChaCha20Poly1305;
    let changes: [&dyn Fn(&mut Message); 7] = [
        &|message| on_offer(message, |offer| offer.suites = Suites::of(&[chacha])),
        &|message| on_offer(message, |offer| offer.ephemeral = stranger),
        &|message| on_accept(message, |accept| accept.terms.suite = chacha),
        &|message| on_accept(message, |accept| accept.terms.high ^= 1),
        &|message| on_accept(message, |accept| accept.terms.ephemeral = stranger),
        &|message| on_accept(message, |accept| accept.mac = [0; MAC]),
        &|message| {
            if let Message::Confirm(confirm) = message {
                confirm.mac = [0; MAC];
            }
        },
    ];
    for (n, change) in changes.into_iter().enumerate() {
        let mut both = Both::new();
        both.session();

        let refused = both.carry(|mut message| {
            change(&mut message);
            Some(message)
        });

        assert_eq!(refused, [DropReason::ChannelRefused], "change {n}");
        assert_eq!(both.at_high.sending, None, "change {n}");
        assert_eq!(both.at_low.sending.is_some(), n == 6, "change {n}");
    }
}

#[test]
fn keys_of_small_order_are_refused() {
    for of in ["offer", "accept"] {
        let mut both = Both::new();
        both.session();
        let refused = both.carry(|mut message| {
            if of == "offer" {
                on_offer(&mut message, |offer| offer.ephemeral = [0; 32]);
            } else {
                on_accept(&mut message, |accept| accept.terms.ephemeral = [0; 32]);
            }
            Some(message)
        });
        assert_eq!(refused, [DropReason::ChannelRefused], "{of}");
        assert!(both.at_low.channels.is_empty(), "{of}");
    }
}

#[test]
fn other_bytes_under_a_known_id_and_messages_of_the_wrong_end_are_dropped() {
    let mut both = Both::new();
    let mut seen = Vec::new();
    both.session();
    both.carry(|message| {
        seen.push(message);
        Some(message)
    });
    let [Message::Offer(offer), accept, confirm] = seen[..] else {
        panic!("three messages");
    };
    let other = Message::Offer(Offer {
        ephemeral: *TunnelSecret::from_seed([5; 32]).public().as_bytes(),
        ..offer
    });
    let refused = Err(DropReason::ChannelRefused);

    assert_eq!(both.high.handle_message(&other, both.now), refused);
    // Reflected to who sent it.
    assert_eq!(both.low.handle_message(&seen[0], both.now), refused);
    assert_eq!(both.low.handle_message(&confirm, both.now), refused);
    assert_eq!(both.high.handle_message(&accept, both.now), refused);
    // Replayed: the offer is over.
    assert_eq!(both.low.handle_message(&accept, both.now), refused);
    both.carry(Some);
    both.assert_agree();
}

#[test]
fn a_rekey_loses_nothing_and_old_channels_end() {
    let mut both = Both::new();
    both.session();
    both.carry(Some);
    let first = (both.at_low.sending, both.at_high.sending);
    both.advance(Duration::from_secs(120));

    both.session();
    both.carry(Some);

    both.assert_agree();
    let second = (both.at_low.sending, both.at_high.sending);
    assert!(first.0 != second.0 && first.1 != second.1);
    assert!(both.at_low.channels.len() == 2 && both.at_high.channels.len() == 2);
    both.advance(DRAIN);
    both.carry(Some);
    assert!(both.at_low.channels.len() == 1 && both.at_high.channels.len() == 1);
    both.assert_agree();
    both.advance(LIFE - DRAIN);
    both.carry(Some);
    assert!(both.at_low.channels.is_empty() && both.at_high.channels.is_empty());
    assert!(both.low.suite().is_none() && both.low.poll_timeout().is_none());
}

#[test]
fn a_channel_that_carried_much_is_replaced() {
    let mut both = Both::new();
    both.session();
    both.carry(Some);
    let first = both.at_low.sending;

    both.low.handle_bytes(MAX_BYTES - 1, both.now);
    both.carry(Some);
    assert_eq!(both.at_low.sending, first);
    both.low.handle_bytes(1, both.now);
    both.carry(Some);

    assert_ne!(both.at_low.sending, first);
    both.assert_agree();
}

/// A consented peer cannot make us agree on keys without end, nor keep channels without end.
#[test]
fn offers_are_limited_and_channels_bounded() {
    let mut both = Both::new();
    let mut taken = 0;
    for n in 0..50_u8 {
        let offer = Message::Offer(Offer {
            low: u32::from(n),
            suites: BOTH(),
            ephemeral: *TunnelSecret::from_seed([n + 1; 32]).public().as_bytes(),
        });
        taken += u32::from(both.high.handle_message(&offer, both.now).is_ok());
    }
    assert_eq!(taken, OFFERS_BURST);
    both.at_high.follow(&mut both.high);
    assert_eq!(both.at_high.channels.len(), 1);

    let mut both = Both::new();
    for _ in 0..20 {
        both.advance(Duration::from_secs(1));
        both.session();
        both.carry(Some);
        assert!(both.at_low.channels.len() <= MAX_LIVE && both.at_high.channels.len() <= MAX_LIVE);
        both.assert_agree();
    }
}

/// A peer that restarted is not spoken to by channels that it lost, once it spoke in a newer session.
#[test]
fn channels_from_before_a_session_are_forgotten() {
    let mut both = Both::new();
    both.session();
    both.carry(Some);
    both.assert_agree();
    let before = both.at_high.sending;

    both.high.forget(both.now);
    both.at_high.follow(&mut both.high);
    assert_eq!(both.at_high.sending, before);

    both.advance(Duration::from_secs(1));
    both.high.forget(both.now);
    both.at_high.follow(&mut both.high);
    assert!(both.at_high.channels.is_empty() && both.high.suite().is_none());

    both.session();
    both.carry(Some);
    both.high.forget(both.now);
    both.assert_agree();
}

#[test]
fn closing_ends_every_channel() {
    let mut both = Both::new();
    both.session();
    both.carry(Some);

    both.low.close();
    both.at_low.follow(&mut both.low);

    assert!(both.at_low.channels.is_empty() && both.at_low.sending.is_none());
}

/// The vector was made by another implementation of protocol.md section 7 (Python).
#[test]
fn the_key_schedule_agrees_with_its_vector() {
    let text = include_str!("../../../tests/vectors/channel.json");
    let vector: serde_json::Value = serde_json::from_str(text).unwrap();
    let bytes = |name: &str| -> Vec<u8> {
        let text = vector[name].as_str().unwrap();
        let digits = (0..text.len()).step_by(2).map(|i| &text[i..i + 2]);
        digits.map(|d| u8::from_str_radix(d, 16).unwrap()).collect()
    };
    let array = |name: &str| -> [u8; 32] { bytes(name).try_into().unwrap() };
    let end = |side: &str| End {
        identity: AgentId::from(
            IdentityKey::from_seed(array(&format!("identity_seed_{side}"))).did(),
        ),
        tunnel: TunnelKey::from_bytes(array(&format!("tunnel_{side}"))),
    };
    let root = IdentityKey::from_seed(array("network_seed")).did();
    let ends = Ends::new(NetworkId::from(root), end("high"), end("low"));
    assert_eq!(ends.low, end("low"));
    let (low, high) = (
        TunnelSecret::from_seed(array("ephemeral_low")),
        TunnelSecret::from_seed(array("ephemeral_high")),
    );
    let offer = Offer {
        low: 0x0102_0304,
        suites: BOTH(),
        ephemeral: *low.public().as_bytes(),
    };
    let terms = Terms {
        low: 0x0102_0304,
        high: 0x0506_0708,
        suite: Suite::Aes256Gcm,
        ephemeral: *high.public().as_bytes(),
    };
    assert_eq!(offer.encode().to_vec(), bytes("offer"));
    assert_eq!(terms.encode().to_vec(), bytes("accept_without_mac"));

    for (secret, other) in [(&low, &terms.ephemeral), (&high, &offer.ephemeral)] {
        let keys = Schedule::derive(secret, other, &ends, &offer, &terms).unwrap();

        assert_eq!(keys.low_to_high.as_bytes(), &array("key_low_to_high"));
        assert_eq!(keys.high_to_low.as_bytes(), &array("key_high_to_low"));
        assert_eq!(keys.mac_low.to_vec(), bytes("mac_low"));
        assert_eq!(keys.mac_high.to_vec(), bytes("mac_high"));
    }
}

/// P-018: nothing that an end holds after an agreement makes the key it agreed with again.
#[test]
fn who_captures_an_end_later_draws_no_ephemeral_key_of_before() {
    let mut both = Both::new();
    let (mut made, mut offers, mut terms) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..3 {
        both.session();
        let refused = both.carry(|message| {
            match &message {
                Message::Offer(offer) => offers.push(*offer),
                Message::Accept(accept) => terms.push(accept.terms),
                Message::Confirm(_) => {}
            }
            Some(message)
        });
        assert_eq!(refused, []);
    }
    made.extend(offers.iter().map(|offer| offer.ephemeral));
    made.extend(terms.iter().map(|terms| terms.ephemeral));
    assert_eq!(made.len(), 6);

    // With the messages in plain, and the keys that both ends keep.
    let keys = both.at_low.channels.values();
    let keys = keys.flat_map(|new| [*new.seal.as_bytes(), *new.open.as_bytes()]);
    let keys = keys.collect::<Vec<_>>();
    for (offer, terms) in offers.iter().zip(&terms) {
        for n in [1, 2] {
            let kept = TunnelSecret::from_seed([n ^ 0x80; 32]);
            let others = made.iter().copied();
            let others = others.chain([end(1), end(2)].map(|end| *end.tunnel.as_bytes()));
            for other in others {
                let derived = Schedule::derive(&kept, &other, &ends(), offer, terms).unwrap();
                let derived = [derived.low_to_high, derived.high_to_low];
                assert!(derived.iter().all(|key| !keys.contains(key.as_bytes())));
            }
        }
    }

    for agent in [&both.low, &both.high] {
        assert_eq!(*agent.config.seed, [0; 32]);
        let captured = agent.rng.captured(2048);
        // Words of four bytes are what the generator makes.
        for window in captured.windows(32).step_by(4) {
            let secret = TunnelSecret::from_seed(window.try_into().unwrap());
            assert!(!made.contains(secret.public().as_bytes()));
        }
    }
}

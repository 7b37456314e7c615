use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::id::hash;

const SECOND: Duration = Duration::from_secs(1);

#[expect(clippy::disallowed_methods, reason = "tests need an epoch")]
fn start() -> Instant {
    Instant::now()
}

/// One end: what it keeps, in the order in which it came, and what it can never take.
#[derive(Default)]
struct End {
    gossip: Gossip,
    kept: Vec<u8>,
    refuses: BTreeSet<u8>,
    consent: u64,
    /// The other end's consent.
    received: u64,
    sent: Vec<(Instant, Say)>,
}

/// What is under way to an end.
enum Message {
    Have(Have),
    Revocation(u8),
    Consent(u64),
}

impl End {
    fn new(kept: &[u8]) -> Self {
        let kept = kept.to_vec();
        Self {
            kept,
            ..Self::default()
        }
    }

    fn settle(&mut self, now: Instant) {
        let set = self.kept.iter().copied().collect::<BTreeSet<_>>();
        let hash = hash(&[&set.into_iter().collect::<Vec<_>>()]);
        let count = u32::try_from(self.kept.len()).unwrap();
        let revocations = Summary { count, hash };
        let have = Have {
            revocations,
            record: 0,
            consent: self.received,
        };
        let ours = Holdings {
            have,
            record: 0,
            consent: self.consent,
        };
        self.gossip.set(ours, now);
    }

    fn poll(&mut self, now: Instant) -> Vec<Message> {
        let mut made = Vec::new();
        while let Some(say) = self.gossip.poll(now) {
            self.sent.push((now, say));
            made.push(match say {
                Say::Have(have) => Message::Have(have),
                Say::Revocation(place) => Message::Revocation(self.kept[place]),
                Say::Consent => Message::Consent(self.consent),
                Say::Record => unreachable!("records do not change here"),
            });
        }
        made
    }

    fn take(&mut self, message: &Message, now: Instant) {
        match message {
            Message::Have(have) => self.gossip.handle_have(have, now),
            Message::Revocation(n) => {
                self.gossip.handle_statement(now);
                if !self.refuses.contains(n) && !self.kept.contains(n) {
                    self.kept.push(*n);
                }
            }
            Message::Consent(seq) => {
                self.gossip.handle_statement(now);
                self.received = self.received.max(*seq);
            }
        }
        self.settle(now);
    }

    fn statements(&self) -> usize {
        let is_statement = |say: &Say| !matches!(say, Say::Have(_));
        self.sent
            .iter()
            .filter(|(_, say)| is_statement(say))
            .count()
    }
}

/// Lets two ends talk for `duration`; `passes` decides which of their messages arrive.
fn talk(
    ends: &mut [End; 2],
    from: Instant,
    duration: Duration,
    mut passes: impl FnMut() -> bool,
) -> Instant {
    let (mut now, end) = (from, from + duration);
    while now < end {
        for _ in 0..10 {
            for (speaker, listener) in [(0, 1), (1, 0)] {
                for message in ends[speaker].poll(now) {
                    if passes() {
                        ends[listener].take(&message, now);
                    }
                }
            }
        }
        let due = ends
            .iter()
            .filter_map(|end| end.gossip.poll_timeout())
            .min();
        now = due.map_or(end, |at| at.max(now + Duration::from_millis(1)).min(end));
    }
    now
}

fn meet(a: &[u8], b: &[u8]) -> ([End; 2], Instant) {
    let (mut ends, now) = ([End::new(a), End::new(b)], start());
    for end in &mut ends {
        end.settle(now);
        end.gossip.handle_session(now);
    }
    (ends, now)
}

fn agree(ends: &[End; 2]) -> bool {
    let set = |end: &End| end.kept.iter().copied().collect::<BTreeSet<_>>();
    set(&ends[0]) == set(&ends[1])
}

/// P-015: the newest revocation is the first that is told, and the only one.
#[test]
fn one_new_revocation_costs_one_statement() {
    let (mut ends, now) = meet(&[1, 2, 3, 4], &[1, 2, 3]);

    talk(&mut ends, now, 60 * SECOND, || true);

    assert!(agree(&ends));
    assert_eq!((ends[0].statements(), ends[1].statements()), (1, 0));
}

#[test]
fn ends_that_agree_say_so_three_times_and_no_more() {
    let (mut ends, now) = meet(&[1, 2], &[2, 1]);

    talk(&mut ends, now, 600 * SECOND, || true);

    assert_eq!((ends[0].sent.len(), ends[1].sent.len()), (3, 3));
}

/// What one end can never take is offered in three rounds, and a new session changes nothing.
#[test]
fn a_lasting_difference_ends_in_silence() {
    let (mut ends, now) = meet(&[1, 2, 3], &[1, 2]);
    ends[1].refuses.insert(3);

    let mut now = talk(&mut ends, now, 120 * SECOND, || true);
    let offered = ends[0].statements();
    for _ in 0..10 {
        ends.iter_mut().for_each(|e| e.gossip.handle_session(now));
        now = talk(&mut ends, now, 120 * SECOND, || true);
    }

    assert_eq!((offered, ends[0].statements()), (9, 9));
    // Beside what a session costs, an answer to each statement of the end that is behind.
    assert!(
        ends[0].sent.len() <= 9 + 3 * 11 + 6,
        "{:?}",
        ends[0].sent.len()
    );
}

/// What was told into silence is told again when the peer is back.
#[test]
fn a_peer_that_was_away_is_told_when_it_is_back() {
    let (mut ends, now) = meet(&[], &[]);
    let now = talk(&mut ends, now, 10 * SECOND, || true);
    ends[0].kept.push(1);
    ends[0].settle(now);
    let now = talk(&mut ends, now, 600 * SECOND, || false);
    assert_eq!(ends[0].statements(), 3);

    ends.iter_mut().for_each(|e| e.gossip.handle_session(now));
    talk(&mut ends, now, SECOND, || true);

    assert_eq!(ends[1].kept, [1]);
}

/// The end with fewer goes too, since more is not all.
#[test]
fn an_end_that_is_behind_still_brings_what_the_other_lacks() {
    let (mut ends, now) = meet(&[1, 2, 3], &[4]);
    ends[1].refuses.extend([1, 2, 3]);

    talk(&mut ends, now, 60 * SECOND, || true);

    assert!(ends[0].kept.contains(&4));
}

#[test]
fn a_later_revocation_is_told_at_once_after_a_difference_that_lasts() {
    let (mut ends, now) = meet(&[1], &[]);
    ends[1].refuses.insert(1);
    let now = talk(&mut ends, now, 600 * SECOND, || true);

    ends[0].kept.push(2);
    ends[0].settle(now);
    talk(&mut ends, now, Duration::from_millis(1), || true);

    assert_eq!(ends[1].kept, [2]);
}

#[test]
fn a_changed_consent_is_told_until_the_peer_has_it() {
    let (mut ends, now) = meet(&[], &[]);
    let now = talk(&mut ends, now, 60 * SECOND, || true);
    ends[0].consent = 7;
    ends[0].settle(now);
    let mut sent = 0;

    // The first copy is lost.
    talk(&mut ends, now, 60 * SECOND, || {
        sent += 1;
        sent > 1
    });

    assert_eq!((ends[1].received, ends[0].statements()), (7, 2));
}

/// A peer that says ever new things gets no more than the pace, and three rounds a session.
#[test]
fn a_peer_that_lies_of_what_it_has_gets_little() {
    let (mut ends, mut now) = meet(&[1, 2, 3, 4, 5, 6, 7, 8], &[]);
    let end = now + 60 * SECOND;
    let mut n = 0_u64;

    while now < end {
        n += 1;
        let revocations = Summary {
            count: u32::try_from(n % 9).unwrap(),
            hash: hash(&[&n.to_be_bytes()]),
        };
        let have = Have {
            revocations,
            record: 0,
            consent: 0,
        };
        ends[0].gossip.handle_have(&have, now);
        ends[0].poll(now);
        now += Duration::from_millis(10);
    }

    let times = ends[0].sent.windows(4).map(|w| w[3].0 - w[0].0).min();
    assert!(times.unwrap() >= PACE, "{times:?}");
    assert!(ends[0].statements() <= 3 * 8, "{}", ends[0].statements());
    assert!(ends[0].sent.len() <= 3 * 8 + 62, "{}", ends[0].sent.len());
}

#[test]
fn a_peer_has_a_budget_and_loses_it_by_a_bad_statement() {
    let (mut gossip, now) = (Gossip::default(), start());

    let burst = (0..100).filter(|_| gossip.admit(now)).count();
    let second = (0..100).filter(|_| gossip.admit(now + SECOND)).count();
    gossip.punish(now + 10 * SECOND);

    assert_eq!((burst, second), (16, 8));
    assert!(!gossip.admit(now + 69 * SECOND));
    assert!(gossip.admit(now + 70 * SECOND));
}

proptest! {
    /// Whatever two ends begin with and whatever gets lost, they come to agree, and then are silent.
    #[test]
    fn ends_come_to_agree(
        a in prop::collection::btree_set(0_u8..40, 0..12),
        b in prop::collection::btree_set(0_u8..40, 0..12),
        fates in prop::collection::vec(0_u8..10, 1..200),
    ) {
        let list = |set: BTreeSet<u8>| set.into_iter().collect::<Vec<_>>();
        let (mut ends, mut now) = meet(&list(a), &list(b));
        let lossy = fates.iter().any(|fate| *fate < 2);
        let mut fates = fates.into_iter().cycle();

        for _ in 0..20 {
            now = talk(&mut ends, now, 120 * SECOND, || fates.next().unwrap() >= 2);
            ends.iter_mut().for_each(|e| e.gossip.handle_session(now));
        }
        // Once what is sent arrives for one session.
        let now = talk(&mut ends, now, 120 * SECOND, || true);

        prop_assert!(agree(&ends) || lossy, "{:?} {:?}", ends[0].kept, ends[1].kept);
        let sent = ends[0].sent.len() + ends[1].sent.len();
        talk(&mut ends, now, 600 * SECOND, || true);
        prop_assert_eq!(sent, ends[0].sent.len() + ends[1].sent.len());
    }
}

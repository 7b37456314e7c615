//! The rules of dataplane.md section 5 that only the passing of time shows.

use std::time::{Duration, Instant};

use agentnet::engine::session::{Opened, Session, SessionKeys};
use agentnet::os::clock;
use agentnet::wire::control::Control;

use crate::clock::Simulation;
use crate::network::tunnel;
use crate::world::dice::Dice;

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Two sessions with nothing between them.
struct Pair {
    sim: Simulation,
    ends: [Session; 2],
    /// Handshake messages sent, by kind.
    sent: [usize; 5],
    /// While true everything sent is lost.
    cut: bool,
}

impl Pair {
    fn new(seed: u64) -> Self {
        let sim = Simulation::start(seed);
        Self {
            sim,
            ends: [session(1, 2, 0xa), session(2, 1, 0xb)],
            sent: [0; 5],
            cut: false,
        }
    }

    fn open(seed: u64) -> Self {
        let mut pair = Self::new(seed);
        pair.initiate(0);
        assert!(pair.is_confirmed());
        pair
    }

    fn initiate(&mut self, from: usize) {
        let initiation = self.ends[from].initiate(clock::now()).unwrap();
        self.carry(from, &initiation);
    }

    fn is_confirmed(&self) -> bool {
        let mut ends = self.ends.iter();
        ends.all(|end| end.is_confirmed(clock::now()))
    }

    /// Sends an IP packet; true when it arrived.
    fn send(&mut self, from: usize) -> bool {
        let sealed = self.ends[from].seal(&packet(), clock::now());
        sealed.is_some_and(|sealed| self.carry(from, &sealed) == Some(packet()))
    }

    /// Carries a message and all that follow from it; returns the packet that came out.
    fn carry(&mut self, from: usize, message: &[u8]) -> Option<Vec<u8>> {
        self.sent[usize::from(message[0])] += 1;
        if self.cut {
            return None;
        }
        match self.ends[1 - from].open(message, clock::now()) {
            Opened::Confirmed { reply, packet } => {
                let inner = reply.and_then(|reply| self.carry(1 - from, &reply));
                packet.or(inner)
            }
            Opened::Reply(reply) => self.carry(1 - from, &reply),
            Opened::Packet(packet) => Some(packet),
            Opened::Nothing | Opened::Dropped(_) => None,
        }
    }

    /// Lets time pass, with every deadline on its moment; returns how many there were.
    fn run(&mut self, time: Duration) -> usize {
        self.run_until(time, |ends| {
            let due = ends.iter().filter_map(Session::poll_timeout).min();
            due.map(|(at, _)| at)
        })
    }

    /// Lets time pass, with the timers looked at each 50 ms whether they are due or not.
    fn run_always(&mut self, time: Duration) {
        let step = Duration::from_millis(50);
        self.run_until(time, |_| Some(clock::now() + step));
    }

    fn run_until(
        &mut self,
        time: Duration,
        due: impl Fn(&[Session; 2]) -> Option<Instant>,
    ) -> usize {
        let end = clock::now() + time;
        let mut count = 0;
        loop {
            let now = clock::now();
            let Some(at) = due(&self.ends).filter(|at| *at <= end) else {
                self.sim.advance(end - now);
                return count;
            };
            count += 1;
            self.sim.advance(at.saturating_duration_since(now));
            for from in [0, 1] {
                for message in self.ends[from].handle_timeout(clock::now()) {
                    self.carry(from, &message);
                }
            }
        }
    }
}

fn session(local: u16, peer: u16, index: u32) -> Session {
    let keys = SessionKeys {
        local: tunnel(local),
        peer: tunnel(peer).public(),
        psk: None,
        index,
    };
    Session::new(&keys, clock::now())
}

fn packet() -> Vec<u8> {
    let mut packet = vec![0; 48];
    packet[0] = 0x60;
    packet[5] = 8;
    packet[6] = 17;
    packet
}

/// Rule 1: a session is usable however long nobody looked at its timers before.
#[test]
fn a_session_made_after_long_silence_is_not_lost() {
    let mut pair = Pair::new(1);
    pair.sim.advance(secs(5000));

    pair.initiate(0);

    assert!(pair.send(0) && pair.send(1));
    pair.sim.advance(secs(100));
    assert!(pair.send(1) && pair.send(0));
}

/// Rule 1: what boringtun calls an expired connection can be opened again.
#[test]
fn an_expired_session_opens_again() {
    let mut pair = Pair::open(2);

    pair.run(secs(3600));
    assert!(!pair.is_confirmed() && !pair.send(0));
    pair.initiate(1);

    assert!(pair.send(0) && pair.send(1));
}

#[test]
fn keys_are_not_used_longer_than_180_s() {
    let mut pair = Pair::open(3);
    pair.cut = true;

    pair.sim.advance(secs(179));
    assert!(pair.ends[0].seal(&packet(), clock::now()).is_some());
    pair.sim.advance(secs(1));

    assert!(pair.ends[0].seal(&packet(), clock::now()).is_none());
    assert!(!pair.ends[0].is_confirmed(clock::now()));
}

/// While packets flow the keys are renewed before they end, and no packet is lost.
#[test]
fn a_session_in_use_never_lapses() {
    for from in [0, 1] {
        let mut pair = Pair::open(4);
        for _ in 0..600 {
            pair.run(secs(1));
            assert!(pair.send(from));
        }
        let handshakes = pair.sent[1];
        assert!((4..=6).contains(&handshakes), "{handshakes}");
    }
}

/// Rule 6: boringtun takes control messages for data, which the engine therefore bounds.
#[test]
fn control_messages_rekey_but_are_no_user_data() {
    let mut pair = Pair::open(5);
    let probe = Control::Probe { id: 1, path: 0 }.packet().unwrap();
    for _ in 0..130 {
        pair.run(secs(1));
        let sealed = pair.ends[0].seal(&probe, clock::now()).unwrap();
        pair.carry(0, &sealed);
    }

    assert_eq!(pair.sent[1], 2);
    assert_eq!(
        (pair.ends[0].last_sent(), pair.ends[1].last_received()),
        (None, None)
    );
}

/// Idle peers do not keep each other awake, and a dead session needs no timer.
#[test]
fn an_idle_session_falls_asleep() {
    let mut pair = Pair::open(6);
    assert!(pair.send(0));
    let sent: usize = pair.sent.iter().sum();

    let first = pair.run(secs(60));
    pair.run(secs(840));

    let later: usize = pair.sent.iter().sum();
    // One keepalive answers the packet, and the initiator renews the keys once.
    assert!(later - sent <= 5, "{:?}", pair.sent);
    // Both ends together, in a minute; 250 ms apart they would be 480.
    assert!(first <= 12, "{first}");
    assert!(pair.ends.iter().all(|end| end.poll_timeout().is_none()));
}

/// What each end said of itself in a random talk: handshakes, answers and keepalives, by moment.
fn talk(seed: u64, is_always: bool) -> (Vec<(u8, u64)>, usize) {
    let mut dice = Dice::new(seed);
    let mut pair = Pair::open(seed);
    let begin = clock::now();
    let (mut said, mut calls) = (Vec::new(), 0);
    while clock::now() < begin + secs(1500) {
        let longest = dice.pick(&[1, 5, 15, 40, 200]);
        let pause = dice.within(secs(longest));
        let before = pair.sent;
        if is_always {
            pair.run_always(pause);
        } else {
            calls += pair.run(pause);
        }
        // What came in this pause of its own accord.
        let at = (clock::now() - begin).as_secs();
        for kind in 1..5_u8 {
            let more = pair.sent[usize::from(kind)] - before[usize::from(kind)];
            said.extend((0..more).map(|_| (kind, at)));
        }
        pair.cut = dice.percent(15);
        let from = dice.below(2);
        if !pair.is_confirmed() && !pair.cut && pair.ends.iter().all(|end| !end.is_initiating()) {
            pair.initiate(from);
        }
        for _ in 0..dice.below(4) {
            pair.send(from);
        }
    }
    (said, calls)
}

/// Timers that are looked at when they are due do what those do that are looked at all the time; what
/// falls on another side of a cut of the wire, up to 50 ms earlier, makes a small difference.
#[test]
fn nothing_is_missed_between_the_deadlines() {
    let (mut same, mut sums) = (0, [[0_usize; 5]; 2]);
    for seed in 100..112 {
        let (always, _) = talk(seed, true);
        let (due, calls) = talk(seed, false);
        same += usize::from(always == due);
        for (sum, said) in sums.iter_mut().zip([always, due]) {
            for (kind, _) in said {
                sum[usize::from(kind)] += 1;
            }
        }
        // All the time, it would be 30,000 times an end.
        assert!(calls < 400, "{calls} in 1500 s");
    }

    assert!(same >= 3, "{same} of 12: {sums:?}");
    for (always, due) in sums[0].iter().zip(sums[1]) {
        assert!(always.abs_diff(due) * 25 <= *always, "{sums:?}");
    }
}

/// WireGuard lineage: a keepalive is due 10 s after the last packet that was *sent*, while packets come;
/// who sends by itself owes none.
#[test]
fn keepalives_count_from_the_last_packet_sent() {
    let mut pair = Pair::open(9);
    // Returns how many messages went besides the packets: end 1 speaks every `every` seconds.
    let mut keepalives = |every: u64| {
        let (before, mut packets) = (pair.sent[4], 0);
        for second in 1..=50 {
            pair.run(secs(1));
            for from in [0, 1] {
                if from == 0 || second % every == 0 {
                    assert!(pair.send(from));
                    packets += 1;
                }
            }
        }
        pair.sent[4] - before - packets
    };

    let silent = keepalives(u64::MAX);
    let speaking = keepalives(8);

    assert!((3..=5).contains(&silent), "{silent} in 50 s");
    assert_eq!(speaking, 0);
}

/// Rule 7: repeated handshakes are spread, and stop after 90 s.
#[test]
fn an_unanswered_handshake_is_repeated_with_jitter_and_given_up() {
    let mut pair = Pair::new(7);
    pair.cut = true;
    pair.initiate(0);

    pair.run(secs(60));
    assert!((10..=13).contains(&pair.sent[1]), "{:?}", pair.sent);
    pair.run(secs(60));

    let given_up = pair.sent[1];
    assert!(!pair.ends[0].is_initiating());
    assert_eq!(pair.ends[0].poll_timeout(), None);
    pair.run(secs(600));
    assert_eq!(pair.sent[1], given_up);
}

/// A peer that restarted is let in, and the old session gives way to the new one.
#[test]
fn a_restarted_peer_is_let_in() {
    let mut pair = Pair::open(8);
    assert!(pair.send(0) && pair.send(1));
    pair.sim.advance(secs(3));
    pair.ends[0] = session(1, 2, 0xc);

    pair.initiate(0);

    assert!(pair.send(0) && pair.send(1));
}

//! Two WireGuard sessions, and a wire between them that does what the input says.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use agentnet::engine::session::{Listener, Opened, Screened, Session, SessionKeys, initiator};
use agentnet::id::TunnelSecret;
use agentnet::os::clock;

use super::clock::Simulation;
use super::input::Input;

/// Messages on the wire at once, and those remembered to be replayed.
const MAX_WIRE: usize = 64;

/// A message counts as a new one only if it differs outside mac2, which nobody checks without load.
const MAC2: usize = 16;

struct Pair {
    sim: Simulation,
    ends: [Session; 2],
    psks: [[u8; 32]; 2],
    /// From whom, and what.
    wire: Vec<(usize, Vec<u8>)>,
    /// What each end sealed, by its number, and the numbers that came out at the other end.
    sealed: [BTreeMap<u32, Vec<u8>>; 2],
    opened: [BTreeSet<u32>; 2],
    next: u32,
}

/// A session each way survives loss, delay, repetition, reordering and forgery, then still works.
pub(super) fn session(data: &[u8]) {
    super::on_a_thread(|| run(data));
}

fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let seed = u64::from(input.byte());
    let psks = [[0; 32], [u8::from(input.byte() == 1); 32]];
    let mut pair = Pair::new(seed, psks);
    for _ in 0..400 {
        if input.is_empty() {
            break;
        }
        pair.step(&mut input);
    }
    if psks[0] == psks[1] {
        pair.still_works();
    } else {
        assert!(
            pair.opened.iter().all(BTreeSet::is_empty),
            "different keys, one session"
        );
    }
}

fn end(local: u8, peer: u8, index: u32, psk: [u8; 32]) -> Session {
    let keys = SessionKeys {
        local: TunnelSecret::from_seed([local; 32]),
        peer: TunnelSecret::from_seed([peer; 32]).public(),
        psk: Some(psk),
        index,
    };
    Session::new(&keys, clock::now())
}

impl Pair {
    fn new(seed: u64, psks: [[u8; 32]; 2]) -> Self {
        let sim = Simulation::start(seed);
        Self {
            sim,
            ends: [end(1, 2, 0xa, psks[0]), end(2, 1, 0xb, psks[1])],
            psks,
            wire: vec![],
            sealed: [BTreeMap::new(), BTreeMap::new()],
            opened: [BTreeSet::new(), BTreeSet::new()],
            next: 0,
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let choice = input.byte();
        let from = usize::from(choice & 1);
        match choice >> 1 & 0xf {
            0 => self.initiate(from),
            1..=3 => self.seal(from, input.byte()),
            4..=6 if !self.wire.is_empty() => {
                let (from, message) = self.wire.remove(0);
                self.arrive(from, &message);
            }
            7 | 8 => self.again(input, None),
            9 => {
                let bit = input.number();
                self.again(input, Some(bit));
            }
            10 if !self.wire.is_empty() => {
                self.wire
                    .remove(usize::from(input.byte()) % self.wire.len());
            }
            11 => self.pass(Duration::from_millis(u64::from(input.byte()))),
            12 => self.pass(Duration::from_secs(u64::from(input.byte()))),
            13 => self.forge(from, input.chunk()),
            14 => self.cookie(from, input.byte()),
            // The daemon starts anew: other index, nothing remembered.
            15 => {
                self.pass(Duration::from_millis(1));
                let n = u32::from(input.byte()) << 8;
                self.ends[from] = end(1 + choice % 2, 2 - choice % 2, n | 0xc, self.psks[from]);
            }
            _ => {}
        }
    }

    fn initiate(&mut self, from: usize) {
        let initiation = self.ends[from].initiate(clock::now());
        let initiation = initiation.expect("a handshake can always begin");
        self.put(from, initiation);
    }

    fn put(&mut self, from: usize, message: Vec<u8>) {
        assert!(message.len() <= 148 || message[0] == 4, "only data is long");
        if self.wire.len() >= MAX_WIRE {
            self.wire.remove(0);
        }
        self.wire.push((from, message));
    }

    fn seal(&mut self, from: usize, length: u8) {
        let number = self.next;
        let mut packet = vec![0; 44 + usize::from(length)];
        packet[0] = 0x60;
        packet[4..6].copy_from_slice(&(4 + u16::from(length)).to_be_bytes());
        packet[6] = 17;
        packet[40..44].copy_from_slice(&number.to_be_bytes());
        let is_confirmed = self.ends[from].is_confirmed(clock::now());
        let sealed = self.ends[from].seal(&packet, clock::now());
        assert!(
            sealed.is_none() || is_confirmed,
            "sealed before it is confirmed"
        );
        if let Some(sealed) = sealed {
            assert_eq!(sealed[0], 4, "nothing but data");
            self.next += 1;
            self.sealed[from].insert(number, packet);
            self.put(from, sealed);
        }
    }

    /// Brings a message once more, out of turn, with a bit changed or not.
    fn again(&mut self, input: &mut Input<'_>, bit: Option<u16>) {
        if self.wire.is_empty() {
            return;
        }
        let (from, mut message) = self.wire[usize::from(input.byte()) % self.wire.len()].clone();
        let Some(bit) = bit.map(usize::from) else {
            self.arrive(from, &message);
            return;
        };
        let at = bit / 8 % message.len();
        message[at] ^= 1 << (bit % 8);
        if matches!(message[0], 1 | 2) && at + MAC2 >= message.len() {
            return;
        }
        let opened = self.ends[1 - from].open(&message, clock::now());
        assert!(
            matches!(opened, Opened::Dropped(_)),
            "{opened:?} of a changed message"
        );
    }

    fn arrive(&mut self, from: usize, message: &[u8]) {
        let to = 1 - from;
        match self.ends[to].open(message, clock::now()) {
            Opened::Confirmed { reply, packet } => {
                if let Some(reply) = reply {
                    self.put(to, reply);
                }
                if let Some(packet) = packet {
                    self.deliver(from, &packet);
                }
            }
            Opened::Reply(reply) => {
                assert!(reply.len() < message.len(), "an answer is shorter");
                self.put(to, reply);
            }
            Opened::Packet(packet) => self.deliver(from, &packet),
            Opened::Dropped(_) | Opened::Nothing => {}
        }
    }

    fn deliver(&mut self, from: usize, packet: &[u8]) {
        let number = packet[40..].first_chunk().expect("it has its number");
        let number = u32::from_be_bytes(*number);
        assert_eq!(
            self.sealed[from].get(&number).map(Vec::as_slice),
            Some(packet)
        );
        assert!(self.opened[from].insert(number), "delivered twice");
    }

    /// Bytes of a stranger's own.
    fn forge(&mut self, to: usize, bytes: &[u8]) {
        let now = clock::now();
        let had = self.ends[to].is_confirmed(now);
        let opened = [
            self.ends[to].open(bytes, now),
            self.ends[to].open_cookie(bytes, now),
        ];
        assert!(
            opened.iter().all(|o| matches!(o, Opened::Dropped(_))),
            "{opened:?}"
        );
        assert_eq!(self.ends[to].is_confirmed(clock::now()), had);
        assert_eq!(initiator(&TunnelSecret::from_seed([1; 32]), bytes), None);
        let listener = Listener::new(&TunnelSecret::from_seed([1; 32]), 0);
        let somewhere = SocketAddr::from(([192, 0, 2, 1], 9));
        assert!(matches!(
            listener.screen(somewhere, bytes),
            Screened::Dropped(_)
        ));
    }

    /// The other end is under load and asks for a cookie.
    fn cookie(&mut self, from: usize, port: u8) {
        let key = TunnelSecret::from_seed([2 - u8::try_from(from).unwrap_or(0); 32]);
        let listener = Listener::new(&key, 0);
        let at = |port: u16| SocketAddr::from(([192, 0, 2, 1], port));
        let now = clock::now();
        let Some(first) = self.ends[from].initiate(now) else {
            return;
        };
        let Screened::Cookie(cookie) = listener.screen(at(port.into()), &first) else {
            panic!("no cookie under load");
        };
        assert!(cookie.len() < first.len(), "an answer is shorter");
        self.ends[from].open_cookie(&cookie, now);
        let second = self.ends[from].initiate(now).expect("it can always begin");
        let screened = listener.screen(at(port.into()), &second);
        assert_eq!(screened, Screened::Pass);
        let elsewhere = listener.screen(at(u16::from(port) + 1), &second);
        assert!(matches!(elsewhere, Screened::Cookie(_)), "the port counts");
        self.put(from, second);
    }

    fn pass(&mut self, time: Duration) {
        let end = clock::now() + time;
        // Each end's timers are 250 ms apart at the least, and one message more may be due.
        let most = 40 + time.as_millis() / 60;
        for _ in 0..most {
            let due = self.ends.iter().filter_map(Session::poll_timeout).min();
            let now = clock::now();
            let Some((at, _)) = due.filter(|(at, _)| *at <= end) else {
                self.sim.advance(end - now);
                return;
            };
            self.sim.advance(at.saturating_duration_since(now));
            for from in [0, 1] {
                for message in self.ends[from].handle_timeout(clock::now()) {
                    self.put(from, message);
                }
            }
        }
        let due = self.ends.iter().filter_map(Session::poll_timeout).min();
        panic!("timers do not rest: {due:?} at {:?}", clock::now());
    }

    /// Whatever happened: with a good wire one handshake makes a session each way.
    fn still_works(&mut self) {
        self.wire.clear();
        self.pass(Duration::from_secs(6));
        self.wire.clear();
        self.initiate(0);
        while !self.wire.is_empty() {
            let (from, message) = self.wire.remove(0);
            self.arrive(from, &message);
        }
        for from in [0, 1] {
            assert!(
                self.ends[from].is_confirmed(clock::now()),
                "end {from} is stuck"
            );
            let before = self.opened[from].len();
            self.seal(from, 1);
            let (from, message) = self.wire.pop().expect("it is confirmed");
            self.arrive(from, &message);
            assert_eq!(
                self.opened[from].len(),
                before + 1,
                "end {from} is not heard"
            );
        }
    }
}

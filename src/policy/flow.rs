use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use crate::wire::ip::Tcp;

/// RFC 5382 REQ-5: an established connection is kept at least 2 h 4 min.
const TCP_ESTABLISHED: Duration = Duration::from_secs(2 * 3600 + 4 * 60);

/// RFC 5382 REQ-5: a connection that opens or closes is kept at least 4 min.
const TCP_TRANSITORY: Duration = Duration::from_secs(4 * 60);

/// Lets a reset that crossed data on its way be followed by the other side's own.
const TCP_RESET: Duration = Duration::from_secs(10);

/// RFC 4787 REQ-5 recommends 5 min and forbids less than 2.
const UDP: Duration = Duration::from_secs(5 * 60);

/// RFC 5508 REQ-2: an ICMP query is kept at least 60 s.
const ECHO: Duration = Duration::from_secs(60);

/// A TCP flow that ended here: what it takes to reset it at the local end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TcpFlow {
    pub local_port: u16,
    pub peer_port: u16,
    /// The sequence number the local end expects next; `None` until it acknowledged anything.
    pub expected: Option<u32>,
    /// The sequence number after what the local end sent; `None` if it sent nothing.
    pub sent: Option<u32>,
}

/// Which flow of a pair a packet is of, seen from the local end.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Key {
    Echo { id: u16 },
    Tcp { local: u16, peer: u16 },
    Udp { local: u16, peer: u16 },
}

/// Who began a flow; decides whether the peer's packets need its scope.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Origin {
    Local,
    Peer,
}

/// How far a flow is; decides how long silence is borne.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum State {
    Closing,
    Echo,
    Established,
    Opening,
    Reset,
    Udp,
}

/// One flow between a local agent and a peer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flow {
    origin: Origin,
    state: State,
    used: Instant,
    /// Used again since the clock of [`Flows::evict`] passed by.
    again: bool,
    expected: Option<u32>,
    sent: Option<u32>,
}

impl Flow {
    /// Makes a flow that begins now.
    pub(super) const fn new(origin: Origin, state: State, now: Instant) -> Self {
        Self {
            origin,
            state,
            used: now,
            again: false,
            expected: None,
            sent: None,
        }
    }

    /// Returns who began it.
    pub(super) const fn origin(&self) -> Origin {
        self.origin
    }

    /// Tells whether a connection has not been answered yet.
    pub(super) fn is_opening(&self) -> bool {
        self.state == State::Opening
    }

    /// Tells whether a connection is about to end, so that its ports may be used again.
    pub(super) fn is_ending(&self) -> bool {
        matches!(self.state, State::Closing | State::Reset)
    }

    /// Notes a packet of a flow without connection.
    pub(super) const fn touch(&mut self, now: Instant) {
        self.used = now;
        self.again = true;
    }

    /// Notes a segment from the local end.
    pub(super) fn sends(&mut self, tcp: &Tcp, now: Instant) {
        if tcp.ack {
            self.expected = Some(later(self.expected, tcp.acknowledgment));
        }
        self.sent = Some(later(self.sent, tcp.next_sequence));
        self.moves(tcp, now);
    }

    /// Notes a segment from the peer.
    pub(super) fn receives(&mut self, tcp: &Tcp, now: Instant) {
        if self.state == State::Opening && tcp.ack {
            self.state = State::Established;
        }
        self.moves(tcp, now);
    }

    fn moves(&mut self, tcp: &Tcp, now: Instant) {
        if tcp.rst {
            self.state = State::Reset;
        } else if tcp.fin && self.state != State::Reset {
            self.state = State::Closing;
        }
        // What follows a reset does not keep the flow alive.
        if self.state != State::Reset || tcp.rst {
            self.touch(now);
        }
    }

    fn is_over(&self, now: Instant) -> bool {
        let patience = match self.state {
            State::Closing | State::Opening => TCP_TRANSITORY,
            State::Echo => ECHO,
            State::Established => TCP_ESTABLISHED,
            State::Reset => TCP_RESET,
            State::Udp => UDP,
        };
        now >= self.used + patience
    }

    fn ended(&self, key: Key) -> Option<TcpFlow> {
        match key {
            Key::Tcp { local, peer } => Some(TcpFlow {
                local_port: local,
                peer_port: peer,
                expected: self.expected,
                sent: self.sent,
            }),
            Key::Echo { .. } | Key::Udp { .. } => None,
        }
    }
}

/// Returns the later of two sequence numbers, which wrap (RFC 9293 section 3.4).
fn later(known: Option<u32>, new: u32) -> u32 {
    match known {
        Some(old) if old.wrapping_sub(new) < 1 << 31 => old,
        Some(_) | None => new,
    }
}

/// The flows of one pair, bounded; a full table forgets what was not used for longest.
#[derive(Debug, Default)]
pub(super) struct Flows {
    flows: BTreeMap<Key, Flow>,
    /// Exactly the keys of `flows`, in the order of [`Flows::evict`].
    order: VecDeque<Key>,
}

impl Flows {
    /// Returns the flow if it has not been silent for too long.
    pub(super) fn live(&mut self, key: Key, now: Instant) -> Option<&mut Flow> {
        self.flows.get_mut(&key).filter(|flow| !flow.is_over(now))
    }

    /// Begins a flow, in place of one of the same key, or of the least used one beyond `limit`.
    pub(super) fn begin(&mut self, key: Key, flow: Flow, limit: usize) -> &mut Flow {
        if !self.flows.contains_key(&key) {
            while self.flows.len() >= limit.max(1) {
                self.evict(flow.used);
            }
            self.order.push_back(key);
        }
        let slot = self.flows.entry(key).or_insert(flow);
        *slot = flow;
        slot
    }

    /// Removes one flow by the clock algorithm: a flow used again since the last round gets
    /// another, so a peer's flood of new flows evicts itself before what is in use.
    fn evict(&mut self, now: Instant) {
        while let Some(key) = self.order.pop_front() {
            match self.flows.get_mut(&key) {
                Some(flow) if flow.again && !flow.is_over(now) => {
                    flow.again = false;
                    self.order.push_back(key);
                }
                Some(_) | None => {
                    self.flows.remove(&key);
                    return;
                }
            }
        }
    }

    /// Removes the flows for which `keep` says no and returns those of TCP.
    pub(super) fn retain(&mut self, keep: impl Fn(Key, &Flow) -> bool) -> Vec<TcpFlow> {
        let mut ended = Vec::new();
        self.flows.retain(|key, flow| {
            let stays = keep(*key, flow);
            if !stays {
                ended.extend(flow.ended(*key));
            }
            stays
        });
        self.order.retain(|key| self.flows.contains_key(key));
        ended
    }

    /// Frees what has been silent for too long.
    pub(super) fn expire(&mut self, now: Instant) {
        self.retain(|_, flow| !flow.is_over(now));
    }

    /// Returns the number of flows held, those expired but not yet freed included.
    pub(super) fn len(&self) -> usize {
        self.flows.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ip::Ports;

    #[expect(clippy::disallowed_methods, reason = "an epoch for the test")]
    fn epoch() -> Instant {
        Instant::now()
    }

    const fn tcp(flags: &str, sequence: u32, acknowledgment: u32) -> Tcp {
        let flags = flags.as_bytes();
        let [flag] = flags else {
            panic!("one flag");
        };
        Tcp {
            ports: Ports {
                source: 1,
                destination: 2,
            },
            syn: *flag == b'S',
            ack: *flag != b'S',
            fin: *flag == b'F',
            rst: *flag == b'R',
            sequence,
            acknowledgment,
            next_sequence: sequence.wrapping_add(1),
        }
    }

    const KEY: Key = Key::Tcp { local: 1, peer: 2 };

    #[test]
    fn silence_is_borne_by_state() {
        let start = epoch();
        let mut flow = Flow::new(Origin::Local, State::Opening, start);
        let borne = |flow: &Flow, patience| {
            !flow.is_over(start + patience - Duration::from_secs(1))
                && flow.is_over(start + patience)
        };

        assert!(borne(&flow, TCP_TRANSITORY));
        flow.receives(&tcp("A", 5, 1), start);
        assert!(borne(&flow, TCP_ESTABLISHED));
        flow.sends(&tcp("F", 1, 6), start);
        assert!(borne(&flow, TCP_TRANSITORY));
        flow.receives(&tcp("R", 6, 1), start);
        assert!(borne(&flow, TCP_RESET));
        flow.sends(&tcp("A", 1, 6), start + TCP_RESET / 2);
        assert!(borne(&flow, TCP_RESET));
    }

    #[test]
    fn the_reset_knows_what_the_local_end_expects() {
        let now = epoch();
        let mut flows = Flows::default();

        let flow = flows.begin(KEY, Flow::new(Origin::Local, State::Opening, now), 4);
        flow.sends(&tcp("S", u32::MAX, 0), now);
        flow.receives(&tcp("A", 70, 0), now);
        flow.sends(&tcp("A", 0, 71), now);
        flow.sends(&tcp("A", u32::MAX, 70), now);

        let ended = flows.retain(|_, _| false);
        let expected = TcpFlow {
            local_port: 1,
            peer_port: 2,
            expected: Some(71),
            sent: Some(1),
        };
        assert_eq!(ended, [expected]);
        assert_eq!((flows.len(), flows.order.len()), (0, 0));
    }

    #[test]
    fn a_flood_evicts_itself_before_what_is_in_use() {
        let now = epoch();
        let mut flows = Flows::default();
        let used = Key::Udp { local: 1, peer: 1 };
        flows.begin(used, Flow::new(Origin::Local, State::Udp, now), 8);

        for peer in 2..200 {
            if let Some(flow) = flows.live(used, now) {
                flow.touch(now);
            }
            let flow = Flow::new(Origin::Peer, State::Udp, now);
            flows.begin(Key::Udp { local: 1, peer }, flow, 8);
        }

        assert!(flows.live(used, now).is_some());
        assert_eq!((flows.len(), flows.order.len()), (8, 8));
        flows.expire(now + UDP);
        assert_eq!((flows.len(), flows.order.len()), (0, 0));
    }

    #[test]
    fn sequence_numbers_wrap() {
        assert_eq!(later(Some(u32::MAX), 3), 3);
        assert_eq!(later(Some(3), u32::MAX), 3);
        assert_eq!(later(None, 3), 3);
    }
}

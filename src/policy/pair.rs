use std::time::Instant;

use crate::policy::filter::{Pair, Verdict};
use crate::policy::flow::{Flow, Flows, Key, Origin, State, TcpFlow};
use crate::policy::fragment::Fragments;
use crate::statement::{Protocol, Scope};
use crate::wire::drop::DropReason;
use crate::wire::ip::{
    CONTROL_NEXT_HEADERS, Echo, Fragment, Ports, Quoted, QuotedFlow, Tcp, Transport,
};

/// What the filter remembers of one pair.
#[derive(Debug, Default)]
pub(super) struct PairState {
    flows: Flows,
    fragments: Fragments,
}

/// By what a packet is judged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Context<'a> {
    pub(super) pair: Pair,
    pub(super) scopes: &'a [Scope],
    /// Most flows of the pair.
    pub(super) limit: usize,
    pub(super) now: Instant,
}

impl Context<'_> {
    /// Tells whether every scope lets the peer reach `port`; no scope lets it reach nothing.
    fn allows(&self, protocol: Protocol, port: u16) -> bool {
        allowed(self.scopes, protocol, port)
    }

    fn may_ping(&self) -> bool {
        !self.scopes.is_empty() && !self.scopes.iter().any(Scope::is_replies_only)
    }
}

impl PairState {
    /// Judges a packet of a local program and records its flow.
    pub(super) fn outbound(
        &mut self,
        context: &Context<'_>,
        transport: Transport,
        may_pick_up: bool,
    ) -> Verdict {
        match transport {
            Transport::Tcp(tcp) => self.outbound_tcp(context, &tcp, may_pick_up),
            Transport::Udp(Ports {
                source: local,
                destination: peer,
            }) => self.note(context, Key::Udp { local, peer }, State::Udp),
            Transport::Icmp6Echo {
                kind: Echo::Request,
                id,
            } => self.note(context, Key::Echo { id }, State::Echo),
            Transport::Icmp6Other(_) => Verdict::Drop(DropReason::FilterIcmp),
            Transport::Other(next) if CONTROL_NEXT_HEADERS.contains(&next) => {
                Verdict::Drop(DropReason::ControlInTun)
            }
            Transport::Icmp6Echo {
                kind: Echo::Reply, ..
            }
            | Transport::Icmp6Error(_)
            | Transport::LaterFragment
            | Transport::NoNext
            | Transport::Other(_) => Verdict::Pass,
        }
    }

    fn outbound_tcp(&mut self, context: &Context<'_>, tcp: &Tcp, may_pick_up: bool) -> Verdict {
        let (local, peer) = (tcp.ports.source, tcp.ports.destination);
        let key = Key::Tcp { local, peer };
        let now = context.now;
        if !is_opening(tcp)
            && let Some(flow) = self.flows.live(key, now)
        {
            flow.sends(tcp, now);
            return Verdict::Pass;
        }
        let is_served = context.allows(Protocol::Tcp, local);
        let Some(flow) = begun(tcp, is_served, may_pick_up, now) else {
            return orphan(tcp);
        };
        self.flows.begin(key, flow, context.limit).sends(tcp, now);
        Verdict::Pass
    }

    /// Notes a local packet of a flow without connection; who began it stays who began it.
    fn note(&mut self, context: &Context<'_>, key: Key, state: State) -> Verdict {
        let now = context.now;
        match self.flows.live(key, now) {
            Some(flow) => flow.touch(now),
            None => {
                let flow = Flow::new(Origin::Local, state, now);
                self.flows.begin(key, flow, context.limit);
            }
        }
        Verdict::Pass
    }

    /// Remembers that a first fragment passed.
    pub(super) fn first_fragment(&mut self, first: Fragment, limit: usize, now: Instant) {
        self.fragments.pass(first, limit, now);
    }

    /// Judges a fragment without ports by whether its first one passed.
    pub(super) fn later_fragment(&self, later: Fragment, now: Instant) -> Verdict {
        if self.fragments.follows(later, now) {
            Verdict::Pass
        } else {
            Verdict::Drop(DropReason::FilterFragment)
        }
    }

    /// Ends the connections the peer began that `scopes` no longer allow.
    pub(super) fn narrow(&mut self, scopes: &[Scope]) -> Vec<TcpFlow> {
        self.fragments.clear();
        // Flows of UDP stay: forgotten, the local program's next datagram would begin them anew.
        self.flows.retain(|key, flow| match (key, flow.origin()) {
            (Key::Tcp { local, .. }, Origin::Peer) => allowed(scopes, Protocol::Tcp, local),
            (Key::Tcp { .. }, Origin::Local) | (Key::Echo { .. } | Key::Udp { .. }, _) => true,
        })
    }

    /// Returns the connections that end with the pair.
    pub(super) fn end(mut self) -> Vec<TcpFlow> {
        self.flows.retain(|_, _| false)
    }

    /// Frees what has been silent for too long.
    pub(super) fn expire(&mut self, now: Instant) {
        self.flows.expire(now);
        self.fragments.expire(now);
    }

    /// Tells whether nothing is remembered.
    pub(super) fn is_empty(&self) -> bool {
        self.flows() == 0 && self.fragments.is_empty()
    }

    /// Returns the number of flows remembered.
    pub(super) fn flows(&self) -> usize {
        self.flows.len()
    }

    /// Judges a packet of the peer, fragments apart.
    pub(super) fn inbound(&mut self, context: &Context<'_>, transport: Transport) -> Verdict {
        match transport {
            Transport::Tcp(tcp) => self.inbound_tcp(context, &tcp),
            Transport::Udp(ports) => self.inbound_udp(context, ports),
            Transport::Icmp6Echo {
                kind: Echo::Request,
                ..
            } => match context.may_ping() {
                true => Verdict::Pass,
                false => Verdict::Drop(DropReason::FilterScope),
            },
            Transport::Icmp6Echo {
                kind: Echo::Reply,
                id,
            } => match self.flows.live(Key::Echo { id }, context.now) {
                Some(_) => Verdict::Pass,
                None => Verdict::Drop(DropReason::FilterNoFlow),
            },
            Transport::Icmp6Error(quoted) => match self.is_about_ours(context, &quoted) {
                true => Verdict::Pass,
                false => Verdict::Drop(DropReason::FilterIcmpError),
            },
            Transport::Icmp6Other(_) => Verdict::Drop(DropReason::FilterIcmp),
            Transport::LaterFragment => Verdict::Drop(DropReason::FilterFragment),
            Transport::Other(next) if CONTROL_NEXT_HEADERS.contains(&next) => {
                Verdict::Drop(DropReason::ControlInTun)
            }
            Transport::NoNext | Transport::Other(_) => Verdict::Drop(DropReason::FilterProtocol),
        }
    }

    fn inbound_tcp(&mut self, context: &Context<'_>, tcp: &Tcp) -> Verdict {
        let now = context.now;
        let (local, peer) = (tcp.ports.destination, tcp.ports.source);
        let key = Key::Tcp { local, peer };
        let is_allowed = context.allows(Protocol::Tcp, local);
        let opens = is_opening(tcp);
        if let Some(flow) = self.flows.live(key, now) {
            // Both ends may open at once (RFC 9293 section 3.5); later it would be a new connection.
            let is_ours = flow.origin() == Origin::Local && (!opens || flow.is_opening());
            if is_ours || (is_allowed && !(opens && flow.is_ending())) {
                flow.receives(tcp, now);
                return Verdict::Pass;
            }
        }
        match is_allowed {
            false if opens => return Verdict::Drop(DropReason::FilterScope),
            false => return Verdict::Drop(DropReason::FilterNoFlow),
            true => {}
        }
        let state = match (tcp.syn, tcp.ack) {
            (true, false) => State::Opening,
            (true, true) => return Verdict::Drop(DropReason::FilterNoFlow),
            (false, _) if tcp.rst => return Verdict::Pass,
            (false, _) => State::Established,
        };
        let flow = Flow::new(Origin::Peer, state, now);
        self.flows.begin(key, flow, context.limit);
        Verdict::Pass
    }

    fn inbound_udp(&mut self, context: &Context<'_>, ports: Ports) -> Verdict {
        let now = context.now;
        let (local, peer) = (ports.destination, ports.source);
        let key = Key::Udp { local, peer };
        let is_allowed = context.allows(Protocol::Udp, local);
        match self.flows.live(key, now) {
            Some(flow) if is_allowed || flow.origin() == Origin::Local => flow.touch(now),
            _ if !is_allowed => return Verdict::Drop(DropReason::FilterScope),
            _ => {
                let flow = Flow::new(Origin::Peer, State::Udp, now);
                self.flows.begin(key, flow, context.limit);
            }
        }
        Verdict::Pass
    }

    /// Tells whether an error quotes a packet that the local end sent in a flow still permitted.
    fn is_about_ours(&mut self, context: &Context<'_>, quoted: &Quoted) -> bool {
        if quoted.source != context.pair.local.ip() || quoted.destination != context.pair.peer.ip()
        {
            return false;
        }
        let (key, is_allowed) = match quoted.flow {
            QuotedFlow::Tcp(Ports {
                source: local,
                destination: peer,
            }) => (
                Key::Tcp { local, peer },
                context.allows(Protocol::Tcp, local),
            ),
            QuotedFlow::Udp(Ports {
                source: local,
                destination: peer,
            }) => (
                Key::Udp { local, peer },
                context.allows(Protocol::Udp, local),
            ),
            QuotedFlow::Echo {
                kind: Echo::Request,
                id,
            } => (Key::Echo { id }, false),
            QuotedFlow::Echo {
                kind: Echo::Reply, ..
            }
            | QuotedFlow::Unknown => return false,
        };
        let flow = self.flows.live(key, context.now);
        flow.is_some_and(|flow| is_allowed || flow.origin() == Origin::Local)
    }
}

/// Tells whether a segment asks for a new connection.
const fn is_opening(tcp: &Tcp) -> bool {
    tcp.syn && !tcp.ack && !tcp.rst
}

/// Returns the flow that a local segment without one begins; `None` if its connection is over.
fn begun(tcp: &Tcp, is_served: bool, may_pick_up: bool, now: Instant) -> Option<Flow> {
    if is_opening(tcp) {
        return Some(Flow::new(Origin::Local, State::Opening, now));
    }
    if tcp.rst {
        return None;
    }
    // A server's segment: what the peer sends on it still needs the scope.
    if is_served {
        return Some(Flow::new(Origin::Peer, State::Established, now));
    }
    may_pick_up.then(|| Flow::new(Origin::Local, State::Established, now))
}

/// Judges a local segment of no flow: the kernel's own resets may leave.
const fn orphan(tcp: &Tcp) -> Verdict {
    if tcp.rst {
        Verdict::Pass
    } else {
        Verdict::Drop(DropReason::FilterNoFlow)
    }
}

fn allowed(scopes: &[Scope], protocol: Protocol, port: u16) -> bool {
    !scopes.is_empty() && scopes.iter().all(|scope| scope.allows(protocol, port))
}

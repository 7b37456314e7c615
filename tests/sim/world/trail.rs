//! What happened on the wire: the last of it for the story of a failure, and a hash of all of it.

use std::{
    collections::VecDeque,
    fmt::Write,
    hash::{DefaultHasher, Hash, Hasher},
    net::SocketAddr,
    time::Duration,
};

use agentnet::engine::Event;
use agentnet::wire::datagram::{Datagram, WireGuard};

use crate::world::internet::{Flight, Node};

/// Happenings kept for a story.
const MAX_KEPT: usize = 600;

/// Refusals kept for a story.
const MAX_REFUSALS: usize = 30;

#[derive(Clone, Debug)]
struct Happening {
    at: Duration,
    sender: Node,
    to: SocketAddr,
    kind: &'static str,
    length: usize,
    /// None when it was sent, else who got it.
    arrival: Option<Option<Node>>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Trail {
    last: VecDeque<Happening>,
    /// What was refused, and why: the last of it.
    refusals: VecDeque<(Duration, usize, String)>,
    hash: DefaultHasher,
}

impl Trail {
    pub(crate) fn sent(&mut self, sender: Node, to: SocketAddr, bytes: &[u8], at: Duration) {
        let number = match sender {
            Node::Gateway => usize::MAX,
            Node::Host(host) => host,
        };
        (at, number, to, bytes).hash(&mut self.hash);
        self.keep(Happening {
            at,
            sender,
            to,
            kind: kind(bytes),
            length: bytes.len(),
            arrival: None,
        });
    }

    pub(crate) fn arrived(&mut self, flight: &Flight, receiver: Option<Node>, at: Duration) {
        self.keep(Happening {
            at,
            sender: flight.sender,
            to: flight.to,
            kind: kind(&flight.bytes),
            length: flight.bytes.len(),
            arrival: Some(receiver),
        });
    }

    pub(crate) fn event(&mut self, host: usize, event: &Event, at: Duration) {
        (at, host, std::mem::discriminant(event)).hash(&mut self.hash);
    }

    /// Takes something else that must be the same for the same seed.
    pub(crate) fn note(&mut self, what: impl Hash) {
        what.hash(&mut self.hash);
    }

    /// Takes that something was refused to a host, or by it.
    pub(crate) fn refused(&mut self, host: usize, why: String, at: Duration) {
        self.note((host, &why));
        if self.refusals.len() >= MAX_REFUSALS {
            self.refusals.pop_front();
        }
        self.refusals.push_back((at, host, why));
    }

    /// Tells the last refusals of these hosts.
    pub(crate) fn tell_refusals(&self, hosts: &[usize]) -> String {
        let all = self
            .refusals
            .iter()
            .filter(|(_, host, _)| hosts.contains(host));
        let lines = all.map(|(at, host, why)| {
            let who = name(Node::Host(*host));
            format!("  {:>10.3} s  {who}: {why}\n", at.as_secs_f64())
        });
        lines.collect()
    }

    /// Returns a hash of everything so far.
    pub(crate) fn hash(&self) -> u64 {
        self.hash.finish()
    }

    fn keep(&mut self, happening: Happening) {
        if self.last.len() >= MAX_KEPT {
            self.last.pop_front();
        }
        self.last.push_back(happening);
    }

    /// Tells the last datagrams that these nodes sent or got, `count` at most.
    pub(crate) fn tell(&self, nodes: &[Node], count: usize) -> String {
        let concerns = |h: &&Happening| {
            let got = h
                .arrival
                .flatten()
                .is_some_and(|node| nodes.contains(&node));
            nodes.contains(&h.sender) || got
        };
        let all = self.last.iter().filter(concerns).collect::<Vec<_>>();
        let mut text = String::new();
        for h in &all[all.len().saturating_sub(count)..] {
            let fate = match h.arrival {
                None => "sent".to_owned(),
                Some(None) => "reached nobody".to_owned(),
                Some(Some(node)) => format!("reached {}", name(node)),
            };
            let sender = name(h.sender);
            writeln!(
                text,
                "  {:>10.3} s  {sender} -> {}: {} of {} bytes {fate}",
                h.at.as_secs_f64(),
                h.to,
                h.kind,
                h.length
            )
            .expect("a String takes everything");
        }
        text
    }
}

/// Returns what a story calls a node.
pub(crate) fn name(node: Node) -> String {
    match node {
        Node::Gateway => "gateway".to_owned(),
        Node::Host(host) => {
            let offset = u8::try_from(host).unwrap_or_default();
            char::from(b'a' + offset).to_string()
        }
    }
}

fn kind(bytes: &[u8]) -> &'static str {
    match Datagram::classify(bytes) {
        Some(Datagram::WireGuard(WireGuard::Initiation)) => "initiation",
        Some(Datagram::WireGuard(WireGuard::Response)) => "response",
        Some(Datagram::WireGuard(WireGuard::CookieReply)) => "cookie",
        Some(Datagram::WireGuard(WireGuard::Transport)) => "transport",
        Some(Datagram::Frame) => match bytes.get(56) {
            None => "empty frame",
            Some(1) => "frame with initiation",
            Some(2) => "frame with response",
            Some(_) => "frame",
        },
        Some(Datagram::Channel | Datagram::Discover | Datagram::Stun) | None => "garbage",
    }
}

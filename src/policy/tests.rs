//! The filter against a model that remembers everything, and what its tests share.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use etherparse::PacketBuilder;
use proptest::prelude::*;

use crate::id::OverlayIp;
use crate::policy::{Filter, Limits, Pair, Verdict};
use crate::statement::{Protocol, Scope};
use crate::wire::ip::Ipv6View;

#[expect(clippy::disallowed_methods, reason = "an epoch for the tests")]
pub(super) fn epoch() -> Instant {
    Instant::now()
}

pub(super) fn ip(last: u16) -> OverlayIp {
    format!("fd11:0:0:1::{last:x}").parse().unwrap()
}

/// Agent 1 is the local end.
pub(super) fn pair(peer: u16) -> Pair {
    Pair {
        local: ip(1),
        peer: ip(peer),
    }
}

pub(super) fn scope(text: &str) -> [Scope; 1] {
    [text.parse().unwrap()]
}

/// Builds a packet: `kind` is the flags of TCP as letters, else udp, ping or pong.
pub(super) fn packet(from: OverlayIp, to: OverlayIp, kind: &str, ports: (u16, u16)) -> Vec<u8> {
    let step = PacketBuilder::ipv6(from.ip().octets(), to.ip().octets(), 64);
    let mut bytes = Vec::new();
    let done = match kind {
        "udp" => step.udp(ports.0, ports.1).write(&mut bytes, b"x"),
        "ping" => step.icmpv6_echo_request(ports.0, 1).write(&mut bytes, b"x"),
        "pong" => step.icmpv6_echo_reply(ports.0, 1).write(&mut bytes, b"x"),
        flags => {
            let mut step = step.tcp(ports.0, ports.1, 1, 1);
            for flag in flags.chars() {
                step = match flag {
                    'S' => step.syn(),
                    'A' => step.ack(1),
                    'F' => step.fin(),
                    'R' => step.rst(),
                    other => panic!("{other}"),
                };
            }
            step.write(&mut bytes, b"")
        }
    };
    done.unwrap();
    bytes
}

/// One step of a random life.
#[derive(Clone, Debug)]
enum Step {
    Hear {
        peer: u16,
        kind: &'static str,
        ports: (u16, u16),
    },
    Narrow {
        peer: u16,
        scope: &'static str,
        /// Whether the filter is told: each packet is judged by the new scope even if not.
        told: bool,
    },
    Send {
        peer: u16,
        kind: &'static str,
        ports: (u16, u16),
    },
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop::sample::select(vec![
        "S", "SA", "A", "FA", "RA", "R", "udp", "udp", "ping", "pong",
    ]);
    let scope = prop::sample::select(vec!["", "tcp/1", "udp/1-2", "tcp/2,udp/1", "any"]);
    let peer = 2..4_u16;
    let ports = (1..4_u16, 1..4_u16);
    prop_oneof![
        6 => (peer.clone(), kind.clone(), ports.clone())
            .prop_map(|(peer, kind, ports)| Step::Hear { peer, kind, ports }),
        6 => (peer.clone(), kind, ports)
            .prop_map(|(peer, kind, ports)| Step::Send { peer, kind, ports }),
        1 => (peer, scope, any::<bool>())
            .prop_map(|(peer, scope, told)| Step::Narrow { peer, scope, told }),
        1 => (1..400_u64).prop_map(Step::Wait),
    ]
}

/// The rules said plainly: nothing is bounded, and of TCP only the beginning is modelled.
#[derive(Default)]
struct Model {
    scopes: BTreeMap<u16, Scope>,
    /// When the local end last sent an echo request of this id.
    pinged: BTreeMap<(u16, u16), Instant>,
    /// Whether the local end began the exchange, and when it was last used.
    udp: BTreeMap<(u16, (u16, u16)), (bool, Instant)>,
    /// When the local end last asked for this connection; `None` once anything followed.
    tcp: BTreeMap<(u16, (u16, u16)), Option<Instant>>,
}

impl Model {
    fn scope(&self, peer: u16) -> Scope {
        let scope = self.scopes.get(&peer).cloned();
        scope.unwrap_or(Scope::replies_only())
    }

    fn send(&mut self, peer: u16, kind: &str, ports: (u16, u16), now: Instant) {
        let key = (peer, ports);
        match kind {
            "ping" => drop(self.pinged.insert((peer, ports.0), now)),
            "pong" => {}
            "udp" => {
                let live = self.udp.get(&key).filter(|f| now < f.1 + secs(300));
                self.udp.insert(key, (live.is_none_or(|f| f.0), now));
            }
            "S" => drop(self.tcp.insert(key, Some(now))),
            _ => drop(self.tcp.get_mut(&key).map(Option::take)),
        }
    }

    /// Returns whether the packet must pass; `None` where the model does not know.
    fn hear(&mut self, peer: u16, kind: &str, ports: (u16, u16), now: Instant) -> Option<bool> {
        let scope = self.scope(peer);
        let key = (peer, (ports.1, ports.0));
        match kind {
            "ping" => Some(!scope.is_replies_only()),
            "pong" => {
                let at = self.pinged.get(&(peer, ports.0));
                Some(at.is_some_and(|at| now < *at + secs(60)))
            }
            "udp" => {
                let live = self.udp.get(&key).filter(|f| now < f.1 + secs(300));
                let is_ours = live.is_some_and(|f| f.0);
                let passes = is_ours || scope.allows(Protocol::Udp, ports.1);
                if passes {
                    self.udp.insert(key, (is_ours, now));
                }
                Some(passes)
            }
            flags => {
                let is_allowed = scope.allows(Protocol::Tcp, ports.1);
                match self.tcp.get_mut(&key).map(Option::take) {
                    None if !is_allowed => Some(false),
                    Some(Some(asked)) if now < asked + secs(240) => Some(true),
                    _ if is_allowed && flags != "SA" => Some(true),
                    _ => None,
                }
            }
        }
    }
}

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// P-015: nothing enters but by scope or as a reply, and by either it does.
    #[test]
    fn the_filter_agrees_with_a_model(steps in prop::collection::vec(step(), 1..80)) {
        let mut now = epoch();
        let limits = Limits { pick_up: Duration::ZERO, ..Limits::default() };
        let mut filter = Filter::new(limits, now);
        let mut model = Model::default();

        for step in steps {
            match step {
                Step::Wait(seconds) => now += secs(seconds),
                Step::Narrow { peer, scope: text, told } => {
                    model.scopes.insert(peer, text.parse().unwrap());
                    if told {
                        filter.narrow(pair(peer), &scope(text), now);
                    }
                }
                Step::Send { peer, kind, ports } => {
                    let bytes = packet(ip(1), ip(peer), kind, ports);
                    let view = Ipv6View::parse(&bytes).unwrap();
                    let verdict = filter.outbound(pair(peer), &view, &[model.scope(peer)], now);
                    model.send(peer, kind, ports, now);
                    if matches!(kind, "S" | "udp" | "ping" | "pong" | "R") {
                        prop_assert_eq!(verdict, Verdict::Pass);
                    }
                }
                Step::Hear { peer, kind, ports } => {
                    let bytes = packet(ip(peer), ip(1), kind, ports);
                    let view = Ipv6View::parse(&bytes).unwrap();
                    let verdict = filter.inbound(pair(peer), &view, &[model.scope(peer)], now);
                    if let Some(passes) = model.hear(peer, kind, ports, now) {
                        prop_assert_eq!(verdict == Verdict::Pass, passes, "{} {:?}", kind, ports);
                    }
                }
            }
        }
    }

    /// Whatever the peers do, what is remembered of each stays within its limit.
    #[test]
    fn memory_is_bounded(steps in prop::collection::vec((2..4_u16, any::<(u16, u16)>()), 1..300)) {
        let now = epoch();
        let limits = Limits { flows: 16, fragments: 4, pick_up: Duration::ZERO };
        let mut filter = Filter::new(limits, now);

        for (peer, ports) in steps {
            let bytes = packet(ip(peer), ip(1), "udp", ports);
            let view = Ipv6View::parse(&bytes).unwrap();
            filter.inbound(pair(peer), &view, &[Scope::Any], now);
            prop_assert!(filter.flows(pair(peer)) <= 16);
        }
        filter.expire(now + secs(300));
        prop_assert_eq!(filter.flows(pair(2)) + filter.flows(pair(3)), 0);
    }
}

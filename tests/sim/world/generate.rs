//! Draws the next transition, mostly one that can be now and that leads somewhere.

use std::time::Duration;

use agentnet::engine::path::Mode;
use agentnet::os::clock;

use crate::world::dice::Dice;
use crate::world::internet::{Node, Weather};
use crate::world::model::Allow;
use crate::world::nat::{Behaviour, NatKind};
use crate::world::play::Play;
use crate::world::transition::Transition;

/// Draws what hosts may be behind: nothing, or a NAT.
pub(crate) fn site(dice: &mut Dice) -> Option<NatKind> {
    if dice.percent(30) {
        return None;
    }
    // Most NATs of homes and offices map by nothing of the destination.
    let mapping = if dice.percent(60) {
        Behaviour::EndpointIndependent
    } else {
        dice.pick(&Behaviour::ALL)
    };
    Some(NatKind {
        mapping,
        filtering: dice.pick(&Behaviour::ALL),
        preserves_ports: dice.percent(50),
        hairpins: dice.percent(30),
        lifetime: Duration::from_secs(dice.pick(&[40, 60, 120, 300])),
        clashes: false,
        is_refreshed_inbound: dice.percent(50),
    })
}

fn allow(dice: &mut Dice) -> Allow {
    dice.pick(&[
        Allow::Any,
        Allow::Both,
        Allow::Low,
        Allow::Low,
        Allow::Low,
        Allow::High,
        Allow::Replies,
    ])
}

/// Draws the next transition.
pub(crate) fn transition(play: &Play, dice: &mut Dice) -> Transition {
    if let Some(repair) = repair(play, dice) {
        return repair;
    }
    match dice.below(100) {
        0..38 => trust(play, dice),
        38..60 => traffic(play, dice),
        60..68 => members(play, dice),
        68..80 => hosts(play, dice),
        _ => surroundings(play, dice),
    }
}

/// What is broken is repaired sooner or later, or nothing would be left to see.
fn repair(play: &Play, dice: &mut Dice) -> Option<Transition> {
    if play.world.gateway.is_none() && dice.percent(30) {
        return Some(Transition::StartGateway);
    }
    if !play.model.is_registry_up && dice.percent(25) {
        return Some(Transition::StartRegistry);
    }
    if play.world.internet.weather != Weather::default() && dice.percent(30) {
        let weather = Weather::default();
        return Some(Transition::SetWeather { weather });
    }
    let host = dice.below(play.world.hosts.len());
    let (found, agent) = (&play.world.hosts[host], &play.model.agents[host]);
    if found.engine.is_none() && dice.percent(60) {
        return Some(Transition::Start { host });
    }
    if found.asleep.is_some() && dice.percent(60) {
        return Some(Transition::Wake { host });
    }
    if agent.skew != 0 && dice.percent(40) {
        return Some(Transition::SetClock { host, skew: 0 });
    }
    if play.gateway_cuts.contains(&host) && dice.percent(50) {
        let is_cut = false;
        return Some(Transition::CutGateway { host, is_cut });
    }
    if play.model.registry_cuts.contains(&host) && dice.percent(50) {
        let is_cut = false;
        return Some(Transition::CutRegistry { host, is_cut });
    }
    let has_lapsed = play.model.holds(host, host, clock::now()) == crate::world::model::Belief::No;
    if agent.is_member && has_lapsed && dice.percent(50) {
        return Some(Transition::Leave { agent: host });
    }
    (!agent.is_member && dice.percent(40)).then_some(Transition::Join { agent: host })
}

/// Draws two different agents.
fn two(play: &Play, dice: &mut Dice) -> (usize, usize) {
    let n = play.world.hosts.len();
    let one = dice.below(n);
    (one, (one + 1 + dice.below(n - 1)) % n)
}

fn trust(play: &Play, dice: &mut Dice) -> Transition {
    let (at, peer) = two(play, dice);
    let waiting = play
        .model
        .asked
        .iter()
        .filter(|(_, asked)| asked.is_waiting);
    let waiting = waiting
        .map(|((from, to), _)| (*from, *to))
        .collect::<Vec<_>>();
    if let Some((from, at)) = dice.choose(&waiting).filter(|_| dice.percent(70)) {
        if dice.percent(12) {
            return Transition::Deny { at, from };
        }
        let allow = allow(dice);
        return Transition::Approve { at, from, allow };
    }
    let standing = play
        .model
        .pairs()
        .filter(|(at, peer)| play.model.allows(*at, *peer).is_some());
    let standing = standing.collect::<Vec<_>>();
    match (dice.below(20), dice.choose(&standing)) {
        (0..4, Some((at, peer))) => Transition::Revoke { at, peer },
        (4..8, Some((at, peer))) => {
            let allow = allow(dice);
            Transition::Rescope { at, peer, allow }
        }
        (8, _) => {
            let allow = allow(dice);
            Transition::Auto {
                at,
                from: peer,
                allow,
            }
        }
        (9, _) if dice.percent(30) => Transition::DropAutos { at },
        // Commands that make no sense are refused without harm.
        (10, _) => Transition::Revoke { at, peer },
        (11, _) => Transition::Deny { at, from: peer },
        _ => {
            let offer = allow(dice);
            Transition::Request {
                from: at,
                to: peer,
                offer,
            }
        }
    }
}

fn traffic(play: &Play, dice: &mut Dice) -> Transition {
    let (mut one, mut other) = two(play, dice);
    let trusting = play.model.pairs().filter(|(a, b)| {
        play.model.allows(*a, *b).is_some() && play.model.allows(*b, *a).is_some()
    });
    if let Some(pair) = dice
        .choose(&trusting.collect::<Vec<_>>())
        .filter(|_| dice.percent(80))
    {
        (one, other) = pair;
    }
    match dice.below(20) {
        0..4 => {
            let count = dice.pick(&[1, 5, 40, 100]);
            Transition::Burst { one, other, count }
        }
        4..6 => {
            let seconds = dice.pick(&[5, 10, 20, 20, 140]);
            Transition::Talk {
                one,
                other,
                seconds,
            }
        }
        6..8 => Transition::Ping {
            from: one,
            to: other,
        },
        8 => Transition::Lookup {
            from: one,
            to: other,
        },
        9..11 => {
            let count = dice.pick(&[1, 10, 64]);
            Transition::Replay { count }
        }
        11 => {
            let count = dice.pick(&[3, 30]);
            Transition::Garbage { host: one, count }
        }
        _ => {
            let seconds = dice.pick(&[1, 3, 10, 30, 70, 130, 190, 250]);
            let seconds = if dice.percent(1) { 3600 } else { seconds };
            Transition::Pass { seconds }
        }
    }
}

fn members(play: &Play, dice: &mut Dice) -> Transition {
    let agent = dice.below(play.world.hosts.len());
    let revoked = play.model.agents.iter().filter(|agent| agent.is_revoked);
    let may_revoke = revoked.count() * 3 < play.world.hosts.len();
    match dice.below(10) {
        0..5 => Transition::Leave { agent },
        5 if may_revoke => Transition::RevokeAgent { agent },
        6 if dice.percent(30) => Transition::RevokeToken,
        _ => Transition::Join { agent },
    }
}

fn hosts(play: &Play, dice: &mut Dice) -> Transition {
    let host = dice.below(play.world.hosts.len());
    match dice.below(12) {
        0..3 => Transition::Crash { host },
        3 => Transition::Stop { host },
        4..6 => Transition::Sleep { host },
        6..8 => {
            let skew = dice.pick(&[
                -3_600_000, -120_000, -20_000, 20_000, 40_000, 150_000, 900_000,
            ]);
            Transition::SetClock { host, skew }
        }
        _ => {
            let modes = [
                Mode::Auto,
                Mode::Auto,
                Mode::Direct,
                Mode::Hidden,
                Mode::Relay,
            ];
            let mode = dice.pick(&modes);
            Transition::SetMode { host, mode }
        }
    }
}

fn surroundings(play: &Play, dice: &mut Dice) -> Transition {
    let (host, other) = two(play, dice);
    let site = dice.below(play.world.internet.sites.len());
    match dice.below(20) {
        0..2 => Transition::StopGateway,
        2..4 => Transition::StopRegistry,
        4 => Transition::RestoreRegistry,
        5..9 => {
            let is_cut = play
                .world
                .internet
                .is_cut(Node::Host(host), Node::Host(other));
            let is_cut = !is_cut;
            Transition::Cut {
                one: host,
                other,
                is_cut,
            }
        }
        9..11 => Transition::CutGateway { host, is_cut: true },
        11..13 => Transition::CutRegistry { host, is_cut: true },
        13..16 => Transition::Move { host, site },
        16..18 => Transition::RebootNat { site },
        _ => {
            let weather = Weather {
                loss: dice.pick(&[0, 5, 15]),
                duplication: dice.pick(&[0, 10, 30]),
                reordering: dice.pick(&[0, 10, 30]),
            };
            Transition::SetWeather { weather }
        }
    }
}

//! What can happen, in words.

use std::fmt;

use agentnet::engine::path::Mode;

use crate::world::internet::{Node, Weather};
use crate::world::model::Allow;
use crate::world::trail::name;

/// One thing that happens to a deployment; agents, hosts and sites by number.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Transition {
    Approve {
        at: usize,
        from: usize,
        allow: Allow,
    },
    Auto {
        at: usize,
        from: usize,
        allow: Allow,
    },
    Burst {
        one: usize,
        other: usize,
        count: usize,
    },
    Crash {
        host: usize,
    },
    Cut {
        one: usize,
        other: usize,
        is_cut: bool,
    },
    CutGateway {
        host: usize,
        is_cut: bool,
    },
    CutRegistry {
        host: usize,
        is_cut: bool,
    },
    Deny {
        at: usize,
        from: usize,
    },
    DropAutos {
        at: usize,
    },
    Garbage {
        host: usize,
        count: usize,
    },
    Join {
        agent: usize,
    },
    Leave {
        agent: usize,
    },
    Lookup {
        from: usize,
        to: usize,
    },
    Move {
        host: usize,
        site: usize,
    },
    Pass {
        seconds: u64,
    },
    Ping {
        from: usize,
        to: usize,
    },
    RebootNat {
        site: usize,
    },
    Replay {
        count: usize,
    },
    Request {
        from: usize,
        to: usize,
        offer: Allow,
    },
    Rescope {
        at: usize,
        peer: usize,
        allow: Allow,
    },
    RestoreRegistry,
    Revoke {
        at: usize,
        peer: usize,
    },
    RevokeAgent {
        agent: usize,
    },
    RevokeToken,
    SetClock {
        host: usize,
        skew: i64,
    },
    SetMode {
        host: usize,
        mode: Mode,
    },
    SetWeather {
        weather: Weather,
    },
    Sleep {
        host: usize,
    },
    Start {
        host: usize,
    },
    StartGateway,
    StartRegistry,
    Stop {
        host: usize,
    },
    StopGateway,
    StopRegistry,
    Talk {
        one: usize,
        other: usize,
        seconds: u64,
    },
    Wake {
        host: usize,
    },
}

impl Transition {
    /// Returns the agents whose relation it is about first of all; None when it is about all.
    pub(crate) const fn pair(&self) -> Option<(usize, usize)> {
        match *self {
            Self::Approve { at, from, .. }
            | Self::Auto { at, from, .. }
            | Self::Deny { at, from } => Some((at, from)),
            Self::Burst { one, other, .. }
            | Self::Cut { one, other, .. }
            | Self::Talk { one, other, .. } => Some((one, other)),
            Self::Lookup { from, to }
            | Self::Ping { from, to }
            | Self::Request { from, to, .. } => Some((from, to)),
            Self::Rescope { at, peer, .. } | Self::Revoke { at, peer } => Some((at, peer)),
            Self::Crash { .. }
            | Self::CutGateway { .. }
            | Self::CutRegistry { .. }
            | Self::DropAutos { .. }
            | Self::Garbage { .. }
            | Self::Join { .. }
            | Self::Leave { .. }
            | Self::Move { .. }
            | Self::Pass { .. }
            | Self::RebootNat { .. }
            | Self::Replay { .. }
            | Self::RestoreRegistry
            | Self::RevokeAgent { .. }
            | Self::RevokeToken
            | Self::SetClock { .. }
            | Self::SetMode { .. }
            | Self::SetWeather { .. }
            | Self::Sleep { .. }
            | Self::Start { .. }
            | Self::StartGateway
            | Self::StartRegistry
            | Self::Stop { .. }
            | Self::StopGateway
            | Self::StopRegistry
            | Self::Wake { .. } => None,
        }
    }
}

/// Names a host or agent.
struct N(usize);

impl fmt::Display for N {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&name(Node::Host(self.0)))
    }
}

impl fmt::Display for Allow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Replies => "replies only",
            Self::Any | Self::Both | Self::High | Self::Low => self.text(),
        })
    }
}

impl fmt::Display for Transition {
    #[expect(clippy::too_many_lines, reason = "one sentence for each kind")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Approve { at, from, allow } => {
                write!(
                    f,
                    "{} approves the request of {} for {allow}",
                    N(at),
                    N(from)
                )
            }
            Self::Auto { at, from, allow } => {
                write!(
                    f,
                    "{} answers requests of {} by itself with {allow}",
                    N(at),
                    N(from)
                )
            }
            Self::Burst { one, other, count } => {
                write!(
                    f,
                    "{} and {} send each other {count} packets at once",
                    N(one),
                    N(other)
                )
            }
            Self::Crash { host } => {
                write!(f, "the daemon of {} is killed and starts again", N(host))
            }
            Self::Cut { one, other, is_cut } => {
                let what = if is_cut { "cut" } else { "open again" };
                write!(
                    f,
                    "UDP between the hosts of {} and {} is {what}",
                    N(one),
                    N(other)
                )
            }
            Self::CutGateway { host, is_cut } => {
                let what = if is_cut { "no more" } else { "again" };
                write!(f, "{} reaches the gateway {what}", N(host))
            }
            Self::CutRegistry { host, is_cut } => {
                let what = if is_cut { "no more" } else { "again" };
                write!(f, "{} reaches the registry {what}", N(host))
            }
            Self::Deny { at, from } => write!(f, "{} denies the request of {}", N(at), N(from)),
            Self::DropAutos { at } => write!(f, "{} removes its rules", N(at)),
            Self::Garbage { host, count } => {
                write!(
                    f,
                    "{count} datagrams of garbage reach {} and the gateway",
                    N(host)
                )
            }
            Self::Join { agent } => write!(f, "{} joins", N(agent)),
            Self::Leave { agent } => write!(f, "{} leaves", N(agent)),
            Self::Lookup { from, to } => write!(f, "{} looks the name of {} up", N(from), N(to)),
            Self::Move { host, site } => write!(f, "the host of {} moves to site {site}", N(host)),
            Self::Pass { seconds } => write!(f, "{seconds} s pass"),
            Self::Ping { from, to } => write!(f, "{} pings {}", N(from), N(to)),
            Self::RebootNat { site } => write!(f, "the NAT of site {site} forgets all"),
            Self::Replay { count } => write!(f, "the last {count} datagrams arrive once more"),
            Self::Request { from, to, offer } => {
                write!(
                    f,
                    "{} asks {} for consent and offers {offer}",
                    N(from),
                    N(to)
                )
            }
            Self::Rescope { at, peer, allow } => {
                write!(f, "{} changes what {} may reach to {allow}", N(at), N(peer))
            }
            Self::RestoreRegistry => {
                f.write_str("the registry's database is another copy of itself")
            }
            Self::Revoke { at, peer } => {
                write!(f, "{} takes its consent to {} back", N(at), N(peer))
            }
            Self::RevokeAgent { agent } => write!(f, "the owner revokes {}", N(agent)),
            Self::RevokeToken => f.write_str("the owner revokes the join token"),
            Self::SetClock { host, skew } => {
                write!(f, "the clock of {} is set {skew} ms off", N(host))
            }
            Self::SetMode { host, mode } => write!(f, "{} is set to path mode {mode:?}", N(host)),
            Self::SetWeather { weather } => write!(
                f,
                "the network loses {} %, doubles {} % and delays {} %",
                weather.loss, weather.duplication, weather.reordering
            ),
            Self::Sleep { host } => write!(f, "the host of {} falls asleep", N(host)),
            Self::Start { host } => write!(f, "the daemon of {} starts", N(host)),
            Self::StartGateway => f.write_str("the gateway starts"),
            Self::StartRegistry => f.write_str("the registry starts"),
            Self::Stop { host } => write!(f, "the daemon of {} is killed", N(host)),
            Self::StopGateway => f.write_str("the gateway is killed"),
            Self::StopRegistry => f.write_str("the registry is stopped"),
            Self::Talk {
                one,
                other,
                seconds,
            } => {
                write!(f, "{} and {} talk for {seconds} s", N(one), N(other))
            }
            Self::Wake { host } => write!(f, "the host of {} wakes up", N(host)),
        }
    }
}

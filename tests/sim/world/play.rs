//! Carries transitions out, in the deployment and in the model.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use agentnet::engine::path::Mode;
use agentnet::os::clock;

use crate::world::check::Failure;
use crate::world::deployment::Deployment;
use crate::world::internet::{Node, Weather};
use crate::world::model::{Life, Model};
use crate::world::owner::Owner;
use crate::world::transition::Transition;

/// Two hosts, the lower first.
pub(crate) type Link = (usize, usize);

/// What is known of direct paths, beside what the NATs permit.
#[derive(Debug, Default)]
pub(crate) struct Paths {
    /// Those where probes may have met silence: what never answered is not asked again.
    pub(crate) spoiled: BTreeSet<Link>,
    /// Those that were seen to be direct at the endpoints of now.
    pub(crate) proven: BTreeSet<Link>,
    /// Hosts that may be seen elsewhere than the gateway last told them, as after their NAT forgot all.
    pub(crate) stale: BTreeSet<usize>,
    /// When the NAT of a host last forgot all.
    pub(crate) rebooted: BTreeMap<usize, Instant>,
    /// When data last went directly, with nothing changed since.
    pub(crate) fresh: BTreeMap<Link, Instant>,
}

impl Paths {
    /// A host is at another endpoint: everything begins anew.
    fn moved(&mut self, host: usize) {
        let is_of = |link: &Link| link.0 == host || link.1 == host;
        self.stale.remove(&host);
        self.spoiled.retain(|link| !is_of(link));
        self.proven.retain(|link| !is_of(link));
        self.doubt(host);
    }

    /// What was known of a host's paths is not sure any more.
    fn doubt(&mut self, host: usize) {
        self.fresh
            .retain(|link, _| link.0 != host && link.1 != host);
    }
}

/// A deployment, the model of it, and what else is known.
#[derive(Debug)]
pub(crate) struct Play {
    pub(crate) world: Deployment,
    pub(crate) model: Model,
    pub(crate) paths: Paths,
    pub(crate) owner: Owner,
    pub(crate) gateway_cuts: BTreeSet<usize>,
    /// Simulated time after which a transition's effects are expected.
    pub(crate) settle: Duration,
    /// Packets that must not arrive, by number.
    pub(crate) forbidden: BTreeSet<u64>,
}

/// What most transitions need: a few turns of the slowest links.
const SOON: Duration = Duration::from_millis(800);

/// What it takes to find a registry that came back.
const RECONNECTED: Duration = Duration::from_secs(5);

/// What it takes to find a gateway that came back.
const ATTACHED: Duration = Duration::from_secs(5);

pub(crate) const fn link(one: usize, other: usize) -> Link {
    if one < other {
        (one, other)
    } else {
        (other, one)
    }
}

impl Play {
    /// Does what a transition says; false when it cannot be in this state.
    pub(crate) fn apply(&mut self, transition: Transition) -> Result<bool, Failure> {
        self.settle = SOON;
        self.model.note_links(clock::now());
        let done = match transition {
            Transition::Approve { .. }
            | Transition::Auto { .. }
            | Transition::Deny { .. }
            | Transition::DropAutos { .. }
            | Transition::Request { .. }
            | Transition::Rescope { .. }
            | Transition::Revoke { .. } => self.change_trust(transition)?,
            Transition::Join { .. }
            | Transition::Leave { .. }
            | Transition::RevokeAgent { .. }
            | Transition::RevokeToken => self.change_members(transition)?,
            Transition::Burst { .. }
            | Transition::Garbage { .. }
            | Transition::Lookup { .. }
            | Transition::Pass { .. }
            | Transition::Ping { .. }
            | Transition::Replay { .. }
            | Transition::Talk { .. } => self.carry_traffic(transition)?,
            Transition::Crash { .. }
            | Transition::SetClock { .. }
            | Transition::SetMode { .. }
            | Transition::Sleep { .. }
            | Transition::Start { .. }
            | Transition::Stop { .. }
            | Transition::Wake { .. } => self.change_host(transition),
            Transition::Cut { .. }
            | Transition::CutGateway { .. }
            | Transition::CutRegistry { .. }
            | Transition::Move { .. }
            | Transition::RebootNat { .. }
            | Transition::RestoreRegistry
            | Transition::SetWeather { .. }
            | Transition::StartGateway
            | Transition::StartRegistry
            | Transition::StopGateway
            | Transition::StopRegistry => self.change_surroundings(transition),
        };
        self.world.check_links();
        Ok(done)
    }

    // ---- hosts

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "`apply` sorts all kinds of transition"
    )]
    fn change_host(&mut self, transition: Transition) -> bool {
        match transition {
            Transition::Crash { host } => {
                self.stop(host) && {
                    self.start(host);
                    true
                }
            }
            Transition::SetClock { host, skew } => {
                self.world.hosts[host].skew = skew;
                self.model.set_clock(host, skew, clock::now());
                self.settle = RECONNECTED;
                true
            }
            Transition::SetMode { host, mode } => self.set_mode(host, mode),
            Transition::Sleep { host } => self.sleep(host),
            Transition::Start { host } => {
                let is_down = self.world.hosts[host].engine.is_none();
                if is_down {
                    self.start(host);
                }
                is_down
            }
            Transition::Stop { host } => self.stop(host),
            Transition::Wake { host } => self.wake(host),
            other => unreachable!("{other} is no change of a host"),
        }
    }

    fn stop(&mut self, host: usize) -> bool {
        if self.world.hosts[host].engine.is_none() {
            return false;
        }
        self.world.hosts[host].stop();
        let agent = &mut self.model.agents[host];
        (agent.is_running, agent.is_awake) = (false, true);
        self.paths.doubt(host);
        true
    }

    fn start(&mut self, host: usize) {
        let at = self.world.internet.places[&host].at;
        let seed = self.world.dice.seed();
        let time = self.world.time_at(host);
        self.world.hosts[host].start(at, seed, time);
        self.world.drain(host);
        self.model.agents[host].is_running = true;
        self.paths.stale.remove(&host);
        self.settle = RECONNECTED;
    }

    fn set_mode(&mut self, host: usize, mode: Mode) -> bool {
        self.world.hosts[host].mode = mode;
        self.world
            .with(host, |engine, _, time| engine.set_path_mode(mode, time));
        self.paths.doubt(host);
        self.spoil(host);
        true
    }

    /// Takes that peers may have probed an endpoint of the host in vain.
    fn spoil(&mut self, host: usize) {
        for other in 0..self.world.hosts.len() {
            if other != host {
                self.paths.spoiled.insert(link(host, other));
            }
        }
    }

    fn sleep(&mut self, host: usize) -> bool {
        let is_up = self.world.hosts[host].running().is_some();
        if is_up {
            self.world.hosts[host].asleep = Some(clock::now());
            self.model.agents[host].is_awake = false;
            self.paths.doubt(host);
        }
        is_up
    }

    fn wake(&mut self, host: usize) -> bool {
        let Some(since) = self.world.hosts[host].asleep.take() else {
            return false;
        };
        self.model.agents[host].is_awake = true;
        self.paths.stale.remove(&host);
        let slept = clock::now() - since;
        self.world.hosts[host].link.is_connected = false;
        self.world.with(host, |engine, local, time| {
            engine.set_registry_live(local, false, time);
            engine.handle_resume(slept, time);
        });
        self.settle = RECONNECTED;
        true
    }

    // ---- surroundings

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "`apply` sorts all kinds of transition"
    )]
    fn change_surroundings(&mut self, transition: Transition) -> bool {
        match transition {
            Transition::Cut { one, other, is_cut } => {
                let (one, other) = (Node::Host(one), Node::Host(other));
                let changes = self.world.internet.is_cut(one, other) != is_cut;
                self.world.internet.set_cut(one, other, is_cut);
                changes
            }
            Transition::CutGateway { host, is_cut } => {
                self.world
                    .internet
                    .set_cut(Node::Gateway, Node::Host(host), is_cut);
                self.settle = ATTACHED;
                toggle(&mut self.gateway_cuts, host, is_cut)
            }
            Transition::CutRegistry { host, is_cut } => {
                toggle(&mut self.world.registry_cuts, host, is_cut);
                self.settle = RECONNECTED;
                toggle(&mut self.model.registry_cuts, host, is_cut)
            }
            Transition::Move { host, site } => self.move_host(host, site),
            Transition::RebootNat { site } => self.reboot_nat(site),
            Transition::RestoreRegistry => {
                self.world.registry.epoch += 1;
                true
            }
            Transition::SetWeather { weather } => {
                let changes = self.world.internet.weather != weather;
                self.world.internet.weather = weather;
                if weather == Weather::default() {
                    self.settle = ATTACHED;
                }
                changes
            }
            Transition::StartGateway => {
                let is_down = self.world.gateway.is_none();
                if is_down {
                    self.world.start_gateway();
                    self.settle = ATTACHED;
                }
                is_down
            }
            Transition::StopGateway => {
                self.world.stop_gateway();
                true
            }
            Transition::StartRegistry => self.set_registry(true),
            Transition::StopRegistry => self.set_registry(false),
            other => unreachable!("{other} is no change of the surroundings"),
        }
    }

    fn set_registry(&mut self, is_up: bool) -> bool {
        let changes = self.world.is_registry_up != is_up;
        self.world.is_registry_up = is_up;
        self.model.is_registry_up = is_up;
        if is_up {
            self.world.wake_gateway();
            self.settle = RECONNECTED;
        }
        changes
    }

    fn move_host(&mut self, host: usize, site: usize) -> bool {
        let at = self.world.internet.place(host, site);
        self.world.with(host, |engine, _, time| {
            engine.set_host_candidates(&[at], time);
            engine.handle_network_change(time);
        });
        self.paths.moved(host);
        self.settle = ATTACHED;
        true
    }

    fn reboot_nat(&mut self, site: usize) -> bool {
        let Some(nat) = &mut self.world.internet.sites[site].nat else {
            return false;
        };
        nat.reboot();
        let there = self.world.internet.places.iter();
        let there = there.filter(|(_, place)| place.site == site);
        for host in there.map(|(host, _)| *host).collect::<Vec<_>>() {
            self.paths.doubt(host);
            self.paths.stale.insert(host);
            self.paths.rebooted.insert(host, clock::now());
            // What was found since and may not be asked again soon is of no use any more.
            self.paths
                .proven
                .retain(|link| link.0 != host && link.1 != host);
        }
        self.settle = ATTACHED;
        true
    }

    // ---- members

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "`apply` sorts all kinds of transition"
    )]
    fn change_members(&mut self, transition: Transition) -> Result<bool, Failure> {
        match transition {
            Transition::Join { agent } => self.join(agent),
            Transition::Leave { agent } => Ok(self.leave(agent)),
            Transition::RevokeAgent { agent } => {
                let key = self.world.hosts[agent].identity.did();
                let done = !self.model.agents[agent].is_revoked && self.revoke_key(key);
                if done {
                    self.model.revoke_agent(agent);
                }
                Ok(done)
            }
            Transition::RevokeToken => {
                let done = !self.model.is_token_revoked && self.revoke_key(self.owner.token_key());
                self.model.is_token_revoked |= done;
                Ok(done)
            }
            other => unreachable!("{other} is no change of members"),
        }
    }

    fn revoke_key(&mut self, key: agentnet::id::Did) -> bool {
        if !self.model.is_registry_up {
            return false;
        }
        let unix = self.world.true_time().unix;
        let revocation = self.owner.revocation(key, unix);
        let taken = self.world.registry.revoke(&revocation, unix);
        self.world.spread();
        taken.is_ok()
    }

    fn leave(&mut self, agent: usize) -> bool {
        let found = &self.model.agents[agent];
        if !(found.is_member && found.is_running && found.is_awake) {
            return false;
        }
        let is_told = self.model.is_linked(agent, clock::now());
        self.world.leave(agent, is_told);
        self.model.leave(agent);
        self.paths.moved(agent);
        true
    }

    fn join(&mut self, agent: usize) -> Result<bool, Failure> {
        let now = clock::now();
        let found = &self.model.agents[agent];
        let can_be = !found.is_member && found.is_running && found.is_awake && !found.is_revoked;
        if !can_be {
            return Ok(false);
        }
        let has_registry = self.model.is_registry_up && !self.model.registry_cuts.contains(&agent);
        match found.life {
            Life::Granted { until } => {
                // The owner grants anew what ended, or soon does.
                let life = Duration::from_secs(3600);
                let until = until.max(now + life);
                self.model.agents[agent].life = Life::Granted { until };
                self.world.join_by_grant(agent, &self.owner, until - now);
            }
            Life::Admitted { .. } => {
                if !has_registry || !self.model.has_good_clock(agent, now) {
                    return Ok(false);
                }
                let joined = self.world.join_by_token(agent, &self.owner);
                if joined.is_ok() == self.model.is_token_revoked {
                    let what = format!("joining ended with {joined:?}");
                    return Err(Failure::of(agent, what));
                }
                if joined.is_err() {
                    return Ok(true);
                }
            }
        }
        self.model.join(agent, now);
        self.paths.moved(agent);
        self.settle = RECONNECTED;
        Ok(true)
    }
}

/// Puts a host into a set or takes it out; tells whether that changed anything.
fn toggle(set: &mut BTreeSet<usize>, host: usize, is_in: bool) -> bool {
    if is_in {
        set.insert(host)
    } else {
        set.remove(&host)
    }
}

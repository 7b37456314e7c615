//! One scenario from a seed: it is drawn and run, or run again from a list of transitions; a failing
//! one is made shorter and told.

use std::{
    cell::Cell,
    collections::BTreeSet,
    fmt::Write,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use agentnet::os::clock;

use crate::world::check::Failure;
use crate::world::deployment::Deployment;
use crate::world::dice::Dice;
use crate::world::faults::Fault;
use crate::world::generate;
use crate::world::internet::Node;
use crate::world::model::{AgentModel, Life, Model};
use crate::world::nat::NatKind;
use crate::world::owner::Owner;
use crate::world::play::{Paths, Play};
use crate::world::trail::name;
use crate::world::transition::Transition;

/// Packets of programs older than this are forgotten; none of them may still arrive.
const KEPT: Duration = Duration::from_secs(300);

/// Last datagrams of the two at odds that a story tells.
const TOLD: usize = 40;

/// What became of a run.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    /// What happened, in order.
    pub(crate) steps: Vec<Transition>,
    /// Of everything that was sent, delivered and decided.
    pub(crate) hash: u64,
    /// None when all agreed.
    pub(crate) failure: Option<(Failure, String)>,
}

/// Where transitions come from.
#[derive(Clone, Debug)]
pub(crate) enum Source<'a> {
    /// So many are drawn.
    Draw(usize),
    Given(&'a [Transition]),
}

thread_local! {
    static IS_WARM: Cell<bool> = const { Cell::new(false) };
}

/// Has libraries seed what they keep for each thread, which takes random bytes once and not again.
fn warm_up() {
    if !IS_WARM.replace(true) {
        let mut dice = Dice::new(0);
        drop(set_up(0, &mut dice));
    }
}

/// Runs a scenario; a panic of the code under test is a failure like any other.
pub(crate) fn run(seed: u64, source: &Source<'_>, fault: Option<Fault>) -> Run {
    warm_up();
    let mut steps = Vec::new();
    let caught = catch_unwind(AssertUnwindSafe(|| play(seed, source, fault, &mut steps)));
    let (hash, failure) = caught.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
        let what = format!("panic: {}", text.unwrap_or_default());
        (0, Some((Failure { what, pair: None }, String::new())))
    });
    Run {
        steps,
        hash,
        failure,
    }
}

fn play(
    seed: u64,
    source: &Source<'_>,
    fault: Option<Fault>,
    steps: &mut Vec<Transition>,
) -> (u64, Option<(Failure, String)>) {
    let mut dice = Dice::new(seed ^ 0x5ce9_a210);
    let mut play = set_up(seed, &mut dice);
    play.world.fault = fault;
    let mut story = setting(&play);
    let count = match source {
        Source::Draw(count) => *count,
        Source::Given(given) => given.len(),
    };
    for number in 0..count {
        let transition = match source {
            Source::Draw(_) => generate::transition(&play, &mut dice),
            Source::Given(given) => given[number],
        };
        steps.push(transition);
        let at = (clock::now() - play.world.start).as_secs_f64();
        writeln!(story, "{:>4}. {at:>10.3} s  {transition}", number + 1).expect("to a String");
        let is_last = number + 1 == count;
        if let Err(failure) = step(&mut play, transition, is_last) {
            end(&play, &mut story, &failure);
            return (play.world.trail.hash(), Some((failure, story)));
        }
    }
    (play.world.trail.hash(), None)
}

/// Makes deployment and model, with all agents members that know nobody.
fn set_up(seed: u64, dice: &mut Dice) -> Play {
    let hosts = dice.pick(&[2, 2, 3, 3, 3, 4, 4, 5, 6, 8]);
    let sites = (0..3 + dice.below(2))
        .map(|_| generate::site(dice))
        .collect::<Vec<_>>();
    set_up_at(&sites, hosts, seed, dice)
}

/// The same with these sites, and so many agents anywhere in them.
pub(crate) fn set_up_at(
    sites: &[Option<NatKind>],
    hosts: usize,
    seed: u64,
    dice: &mut Dice,
) -> Play {
    let mut world = Deployment::new(seed, hosts, sites);
    let (start, life) = (
        world.start,
        Duration::from_secs(2400 + 60 * dice.below(80) as u64),
    );
    let owner = Owner::new(life);
    let agents = (0..hosts).map(|_| AgentModel {
        life: if dice.percent(30) {
            let until = Duration::from_secs(1200 + 60 * dice.below(100) as u64);
            Life::Granted {
                until: start + until,
            }
        } else {
            Life::Admitted { length: life }
        },
        is_member: false,
        is_running: true,
        is_awake: true,
        is_revoked: false,
        joins: 0,
        ends: (start, start),
        skew: 0,
        past_skew: (0, start),
        ahead_until: None,
        autos: Vec::new(),
    });
    let model = Model::new(agents.collect(), start);
    for host in 0..hosts {
        let at = world.internet.place(host, dice.below(sites.len()));
        let time = world.time_at(host);
        let seed = world.dice.seed();
        world.hosts[host].start(at, seed, time);
    }
    let mut play = Play {
        world,
        model,
        paths: Paths::default(),
        owner,
        gateway_cuts: BTreeSet::new(),
        settle: Duration::ZERO,
        forbidden: BTreeSet::new(),
    };
    for agent in 0..hosts {
        let joined = play.apply(Transition::Join { agent });
        assert_eq!(joined, Ok(true), "who never joined can");
    }
    play.agree().expect("nothing has happened yet");
    play
}

fn setting(play: &Play) -> String {
    let mut story = String::new();
    for (n, site) in play.world.internet.sites.iter().enumerate() {
        let nat = site.nat.as_ref();
        let what = nat.map_or_else(|| "public".to_owned(), |nat| nat.kind().text());
        writeln!(story, "   site {n}: {what}").expect("to a String");
    }
    for (host, place) in &play.world.internet.places {
        let (who, site, at) = (name(Node::Host(*host)), place.site, place.at);
        let life = match play.model.agents[*host].life {
            Life::Granted { until } => {
                format!("granted for {} s", (until - play.world.start).as_secs())
            }
            Life::Admitted { length } => format!("admitted for {} s", length.as_secs()),
        };
        writeln!(story, "   {who}: {at} at site {site}, {life}").expect("to a String");
    }
    story
}

/// Does one transition, and looks whether deployment and model agree then.
fn step(play: &mut Play, transition: Transition, is_last: bool) -> Result<(), Failure> {
    play.look()?;
    if !play.apply(transition)? && !is_last {
        return Ok(());
    }
    play.agree()?;
    let mut pairs = play.model.pairs().collect::<Vec<_>>();
    if !is_last {
        let touched = transition.pair().map(|(a, b)| [(a, b), (b, a)]);
        let dice = &mut play.world.dice;
        let some = (0..3)
            .filter_map(|_| dice.choose(&pairs))
            .collect::<Vec<_>>();
        pairs = touched.into_iter().flatten().chain(some).collect();
    }
    play.exchange(&pairs)?;
    let before = clock::now() - KEPT;
    play.world.ledger.forget_before(before);
    Ok(())
}

/// Tells how things stand between the two at odds.
fn end(play: &Play, story: &mut String, failure: &Failure) {
    let now = clock::now();
    let at = (now - play.world.start).as_secs_f64();
    writeln!(story, "      {at:>10.3} s  FAILED: {}", failure.what).expect("to a String");
    let Some((one, other)) = failure.pair else {
        return;
    };
    let nodes = [Node::Host(one), Node::Host(other)];
    let mut ways = vec![(one, other), (other, one)];
    ways.dedup();
    for (from, to) in ways.into_iter().filter(|(from, to)| from != to) {
        let host = &play.world.hosts[from];
        let has = host.peers().contains(&play.world.hosts[to].local);
        let (believed, path) = (play.model.trusts(from, to, now), play.path(from, to));
        let allow = play.model.allows(from, to);
        writeln!(
            story,
            "   {} to {}: installed {has}, in the model {believed:?}; it lets in {allow:?}; path {path:?}",
            name(nodes[usize::from(from == other)]),
            name(nodes[usize::from(to == other)]),
        )
        .expect("to a String");
        let gateway = host
            .engine
            .as_ref()
            .and_then(|engine| engine.gateway(host.local));
        let state = gateway.map(|view| (view.state, view.refused));
        writeln!(
            story,
            "   gateway {state:?}, mode {:?}, clock {} ms off",
            host.mode, host.skew
        )
        .expect("to a String");
        let view = host.engine.as_ref().and_then(|engine| {
            let time = play.world.time_at(from);
            engine.paths(host.local, play.world.hosts[to].local, time)
        });
        let ago = |at: std::time::Instant| (at - play.world.start).as_secs_f64();
        if let Some(view) = view {
            let (reason, since) = (view.reason, ago(view.since));
            writeln!(story, "     {reason:?} since {since:.3} s").expect("to a String");
            for pair in view.pairs {
                let bar = pair
                    .barred_until
                    .map(|until| (until - play.world.start).as_secs_f64());
                let (path, state) = (pair.path, &pair.state);
                writeln!(story, "     {path:?}: {state:?}, barred until {bar:?}")
                    .expect("to a String");
            }
        }
    }
    writeln!(story, "   the last refusals of the two:").expect("to a String");
    story.push_str(&play.world.trail.tell_refusals(&[one, other]));
    writeln!(story, "   the last datagrams of the two:").expect("to a String");
    story.push_str(&play.world.trail.tell(&nodes, TOLD));
}

/// Most runs spent on making a failing scenario shorter.
const MAX_RUNS: usize = 300;

/// Leaves out of a failing scenario what it fails without: halves, quarters, and so on.
pub(crate) fn shrink(seed: u64, failing: Run, fault: Option<Fault>) -> Run {
    let mut best = failing;
    let mut size = best.steps.len().div_ceil(2);
    let mut runs = 0;
    while size > 0 && runs < MAX_RUNS {
        let mut from = 0;
        let mut any = false;
        while from < best.steps.len() && runs < MAX_RUNS {
            let mut fewer = best.steps.clone();
            fewer.drain(from..(from + size).min(fewer.len()));
            runs += 1;
            let again = run(seed, &Source::Given(&fewer), fault);
            if again.failure.is_some() {
                best = again;
                any = true;
            } else {
                from += size;
            }
        }
        if size == 1 && !any {
            break;
        }
        size = if size == 1 { 1 } else { size / 2 };
    }
    best
}

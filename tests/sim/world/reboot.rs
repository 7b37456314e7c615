//! Two agents behind NATs that let in only who was sent to from there, as most do: what a direct path
//! survives, and how soon it is back.

use std::{net::SocketAddr, time::Duration};

use agentnet::engine::path::Path;
use agentnet::os::clock;

use crate::world::dice::Dice;
use crate::world::model::Allow;
use crate::world::nat::{Behaviour, NatKind};
use crate::world::play::Play;
use crate::world::scenario::set_up_at;
use crate::world::transition::Transition::{
    self, Approve, Cut, Move, Pass, RebootNat, Request, Talk,
};

/// The NAT of most homes and offices, which gives other ports after a reboot.
const PORT_RESTRICTED: NatKind = NatKind {
    mapping: Behaviour::EndpointIndependent,
    filtering: Behaviour::AddressAndPortDependent,
    preserves_ports: false,
    hairpins: false,
    lifetime: Duration::from_secs(120),
    clashes: false,
    is_refreshed_inbound: false,
};

const TALK: Transition = Talk {
    one: 0,
    other: 1,
    seconds: 1,
};

fn does(play: &mut Play, steps: &[Transition]) {
    for step in steps {
        assert_eq!(play.apply(*step), Ok(true), "{step}");
        assert_eq!(play.agree(), Ok(()), "{step}");
    }
}

/// Agents 0 and 1 at sites 0 and 1, whose data goes directly.
fn direct() -> Play {
    let sites = [Some(PORT_RESTRICTED); 2];
    let mut play = set_up_at(&sites, 2, 7, &mut Dice::new(7));
    let (host, site) = (1, 1);
    let ask = Request {
        from: 0,
        to: 1,
        offer: Allow::Low,
    };
    let answer = Approve {
        at: 1,
        from: 0,
        allow: Allow::Low,
    };
    does(&mut play, &[Move { host: 0, site: 0 }, Move { host, site }]);
    does(&mut play, &[ask, answer]);
    within(5, &mut play, |play| play.is_direct(0, 1));
    play
}

/// Returns where each sends what goes directly to the other, agent 1's first: where the NAT of agent 0
/// is seen, and of agent 1; None while it does not go directly.
fn seen(play: &Play) -> [Option<SocketAddr>; 2] {
    [(1, 0), (0, 1)].map(|(from, to)| match play.path(from, to) {
        Some(Path::Direct(endpoint)) => Some(endpoint),
        Some(Path::Relay) | None => None,
    })
}

/// Lets the two talk until `is_so`, at most so many seconds.
#[track_caller]
fn within(most: u64, play: &mut Play, is_so: impl Fn(&Play) -> bool) {
    let begun = clock::now();
    while !is_so(play) {
        let taken = clock::now() - begun;
        assert!(taken < Duration::from_secs(most), "not within {most} s");
        does(play, &[TALK]);
    }
}

/// Has these NATs forget all, and the two talk after a pause, until their data goes directly between
/// the endpoints of then.
#[track_caller]
fn survives(play: &mut Play, sites: &[usize], pause: u64, most: u64) {
    let before = seen(play);
    assert!(before.iter().all(Option::is_some), "{before:?}");
    for site in sites {
        does(play, &[RebootNat { site: *site }]);
    }
    does(play, &[Pass { seconds: pause }]);
    within(most, play, |play| {
        let now = seen(play);
        let is_new = |site: &usize| now[*site] != before[*site];
        now.iter().all(Option::is_some) && sites.iter().all(is_new)
    });
}

/// Issue 3, direct whenever the NAT pair permits: only the gateway can tell a node that its NAT maps it
/// otherwise, and only when the peer knows can either get through.
#[test]
fn a_direct_path_is_back_soon_after_a_nat_forgot_all() {
    for sites in [&[0][..], &[1], &[0, 1]] {
        // Data is lost for two seconds before a path is left.
        survives(&mut direct(), sites, 1, 6);
        // After this long keepalives went unanswered.
        survives(&mut direct(), sites, 70, 6);
        // After this long the path was given up for being idle.
        survives(&mut direct(), sites, 240, 15);
    }
}

/// Again and again: who asks rarely while nothing helps asks at once when a path was lost.
#[test]
fn a_direct_path_is_back_after_each_of_many_reboots() {
    let mut play = direct();
    for round in 0..12 {
        survives(&mut play, &[round % 2], 1, 12);
    }
}

/// The NAT forgets all while nothing goes directly anyway, so that no lost path tells of it.
#[test]
fn a_nat_that_forgot_all_behind_a_cut_does_no_harm_later() {
    let cut = |is_cut| Cut {
        one: 0,
        other: 1,
        is_cut,
    };
    let mut play = direct();
    let talk = Talk {
        one: 0,
        other: 1,
        seconds: 20,
    };
    does(&mut play, &[cut(true), talk, RebootNat { site: 0 }, talk]);
    assert_eq!(seen(&play), [None, None]);

    does(&mut play, &[cut(false)]);
    within(130, &mut play, |play| {
        seen(play).iter().all(Option::is_some)
    });
}

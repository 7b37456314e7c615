use super::*;
use crate::engine::attach::AttachConfig;
use crate::engine::testing::{key, network};
use crate::id::{DomainPrefix, TunnelSecret};

#[expect(clippy::disallowed_methods, reason = "tests need an epoch")]
fn start() -> Instant {
    Instant::now()
}

fn place(n: u8) -> Place {
    Place {
        gateway: key(n).did(),
        key: TunnelSecret::from_seed([n; 32]).public(),
        endpoints: vec![SocketAddr::new([203, 0, 113, n].into(), 16201)],
    }
}

fn attach(agent: OverlayIp, place: Place) -> Option<Attachment> {
    let config = AttachConfig {
        agent,
        secret: TunnelSecret::from_seed([99; 32]),
        gateway: place.gateway,
        key: place.key,
        endpoints: place.endpoints,
        index: 7,
    };
    Attachment::new(config, [3; 32]).ok()
}

/// Agent `n` of the network, who knows gateways.
fn homes(n: u16, gateways: std::ops::Range<u8>) -> Homes {
    let prefix = DomainPrefix::of(&key(9).did().into()).network(7);
    let mut seed = [0; 32];
    seed[..2].copy_from_slice(&n.to_be_bytes());
    let agent = crate::id::IdentityKey::from_seed(seed).did().into();
    let agent = prefix.address_of(&agent).unwrap();
    let (mut homes, now) = (Homes::new(agent, network()), start());
    for gateway in gateways {
        homes.learn(place(gateway), now);
    }
    assert!(homes.settle(|place| attach(agent, place), now));
    homes
}

/// netbird#4540: after a restart of all, a thousand agents do not begin with the same gateway.
#[test]
fn a_thousand_agents_are_spread_over_their_gateways() {
    let mut first = BTreeMap::<Did, u32>::new();
    for n in 0..1000 {
        let listed = homes(n, 100..103).listed();
        assert_eq!(listed.len(), 3);
        *first.entry(listed[0]).or_default() += 1;
    }

    assert_eq!(first.len(), 3);
    assert!(first.values().all(|n| (270..400).contains(n)), "{first:?}");
}

/// However many are known, no more than three are attached to, and the same by all of a network.
#[test]
fn three_of_many_are_chosen_alike() {
    let chosen = |n| {
        let mut listed = homes(n, 100..160).listed();
        listed.sort();
        listed
    };

    assert_eq!(chosen(1).len(), MAX_HOPS);
    for n in 2..20 {
        assert_eq!(chosen(n), chosen(1));
    }
}

/// A gateway that was enrolled anew has another key, and nothing of what the old one gave holds.
#[test]
fn a_gateway_with_another_key_is_attached_to_anew() {
    let (mut homes, now) = (homes(1, 100..102), start());
    let before = homes.listed();
    let other = Place {
        key: TunnelSecret::from_seed([55; 32]).public(),
        ..place(100)
    };

    homes.learn(other, now);
    assert_eq!(homes.listed().len(), 1);
    assert!(homes.settle(|place| attach(homes_agent(), place), now));

    let mut after = homes.listed();
    let mut before = before;
    after.sort();
    before.sort();
    assert_eq!(after, before);
    assert!(homes.poll_closed().is_some() && homes.poll_closed().is_none());
}

fn homes_agent() -> OverlayIp {
    "fd11:0:0:1::1".parse().unwrap()
}

/// Statements that end take their gateways along.
#[test]
fn what_is_not_kept_is_left() {
    let (mut homes, now) = (homes(1, 100..103), start());

    homes.retain(|gateway| *gateway == key(101).did(), now);

    assert_eq!(homes.listed(), [key(101).did()]);
    assert!(!homes.settle(|place| attach(homes_agent(), place), now));
}

use super::*;
use crate::gateway::rate::Rate;
use crate::id::{DomainPrefix, IdentityKey};
use crate::wire::a2g::HEADER;

pub(crate) const LEASE: Duration = Duration::from_secs(75);
pub(crate) const UNIX: UnixTime = UnixTime::from_secs(1_800_000_000);

#[expect(clippy::disallowed_methods, reason = "tests need an epoch")]
pub(crate) fn start() -> Instant {
    Instant::now()
}

pub(crate) fn address(network: u16, n: u64) -> OverlayIp {
    let domain = IdentityKey::from_seed([9; 32]).did().into();
    DomainPrefix::of(&domain).network(network).address(n)
}

pub(crate) fn endpoint(n: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, n], 1))
}

/// Agent n of network 1 (2 for n over 9) by hop id n, with secret [n; 32].
pub(crate) fn new(n: u8) -> NewHop {
    let network = if n > 9 { 2 } else { 1 };
    NewHop {
        agent: address(network, u64::from(n)),
        network: IdentityKey::from_seed([network as u8; 32]).did().into(),
        key: TunnelKey::from_bytes([n; 32]),
        seq: 1,
        record: String::new(),
        gateways: vec![],
        expires: UNIX + Duration::from_secs(1000),
        gateway: address(0, 1),
        up: u32::from(n),
        down: 100 + u32::from(n),
        secret: [n; 32],
        endpoint: endpoint(n),
    }
}

fn hops(now: Instant) -> Hops {
    let mut hops = Hops::new(IdentityKey::from_seed([1; 32]).did(), LEASE, 1000, [5; 16]);
    for n in [1, 2, 10] {
        assert!(hops.insert(new(n), now).is_none());
    }
    hops
}

pub(crate) fn frame(n: u8, header: &Header) -> Vec<u8> {
    let keys = HopKeys::derive(&[n; 32], Direction::Up);
    let payload: &[u8] = if header.kind == Kind::Data {
        b"hi"
    } else {
        b""
    };
    header.frame(&keys, payload)
}

pub(crate) fn data(n: u8, message: u64) -> Header {
    Header::data(u32::from(n), message, new(2).agent, new(n).agent)
}

/// Returns why a frame of agent 1 was dropped.
fn reason(hops: &mut Hops, header: &Header, now: Instant) -> DropReason {
    let outcome = hops.handle_frame(endpoint(1), &mut frame(1, header), now, UNIX);
    let Outcome::Dropped(reason) = outcome else {
        panic!("{outcome:?}");
    };
    reason
}

/// the header is made anew, the payload is what it was.
#[test]
fn a_frame_goes_on_under_the_receivers_hop() {
    let now = start();
    let mut hops = hops(now);

    let mut sent = frame(1, &data(1, 7));

    let outcome = hops.handle_frame(endpoint(1), &mut sent, now, UNIX);

    let Outcome::Forward(to) = outcome else {
        panic!("{outcome:?}");
    };
    let keys = HopKeys::derive(&[2; 32], Direction::Down);
    let header = Header::open(&keys, &sent).unwrap();
    assert_eq!((to, &sent[HEADER..]), (endpoint(2), &b"hi"[..]));
    assert_eq!((header.hop, header.ttl, header.message), (102, 7, 0));
    assert_eq!(header.source, new(1).agent.ip());
}

#[test]
fn frames_that_may_not_pass_are_dropped_with_their_reason() {
    let now = start();
    let mut hops = hops(now);
    let ok = data(1, 1);
    let other = new(2).agent.ip();
    let cases = [
        (Header { ttl: 0, ..ok }, DropReason::FrameTtl),
        (
            Header {
                source: other,
                ..ok
            },
            DropReason::FrameSource,
        ),
        (
            Header {
                target: address(1, 99).ip(),
                ..ok
            },
            DropReason::FrameTarget,
        ),
        (
            Header {
                prefix_len: 64,
                ..ok
            },
            DropReason::FrameTarget,
        ),
        (
            Header {
                target: new(10).agent.ip(),
                ..ok
            },
            DropReason::FrameNetwork,
        ),
        (ok.of_kind(Kind::Heartbeat), DropReason::FrameTarget),
        (
            Header {
                target: address(0, 1).ip(),
                ..ok
            }
            .of_kind(Kind::Displaced),
            DropReason::FrameMalformed,
        ),
        (
            Header {
                message: MAX_FRAMES,
                ..ok
            },
            DropReason::FrameReplayed,
        ),
    ];

    for (message, (header, expected)) in (10..).zip(cases) {
        let message = header.message.max(message);
        let header = Header { message, ..header };
        assert_eq!(reason(&mut hops, &header, now), expected, "{header:?}");
    }
}

#[test]
fn a_frame_under_another_hops_keys_is_dropped() {
    let now = start();
    let mut hops = hops(now);

    let outcome = hops.handle_frame(endpoint(2), &mut frame(2, &data(1, 1)), now, UNIX);

    assert!(matches!(outcome, Outcome::Dropped(DropReason::FrameTag)));
    let mut short = frame(1, &data(1, 1));
    short.truncate(HEADER - 1);
    let outcome = hops.handle_frame(endpoint(1), &mut short, now, UNIX);
    assert!(matches!(
        outcome,
        Outcome::Dropped(DropReason::FrameMalformed)
    ));
}

#[test]
fn only_the_newest_frame_moves_an_agent() {
    let now = start();
    let mut hops = hops(now);
    let at = |hops: &Hops| hops.of(new(1).agent).map(|hop| hop.new.endpoint);

    hops.handle_frame(endpoint(7), &mut frame(1, &data(1, 5)), now, UNIX);
    assert_eq!(at(&hops), Some(endpoint(7)));
    hops.handle_frame(endpoint(8), &mut frame(1, &data(1, 4)), now, UNIX);
    assert_eq!(at(&hops), Some(endpoint(7)));
    let forged = data(1, 6);
    let mut forged = frame(2, &forged);
    hops.handle_frame(endpoint(9), &mut forged, now, UNIX);
    assert_eq!(at(&hops), Some(endpoint(7)));
}

/// silence makes stale, and then gone; frames are tried meanwhile.
#[test]
fn a_silent_agent_is_stale_and_then_gone() {
    let now = start();
    let mut hops = hops(now);
    let heard = now + Duration::from_secs(10);
    hops.handle_frame(endpoint(1), &mut frame(1, &data(1, 1)), heard, UNIX);

    hops.handle_timeout(now + LEASE, UNIX);
    let stale = |hops: &Hops, n| hops.of(new(n).agent).map(|hop| hop.stale);
    assert_eq!(
        (stale(&hops, 1), stale(&hops, 2)),
        (Some(false), Some(true))
    );
    let later = now + LEASE + Duration::from_secs(1);
    let outcome = hops.handle_frame(endpoint(1), &mut frame(1, &data(1, 2)), later, UNIX);
    assert!(matches!(outcome, Outcome::Forward(_)));
    hops.handle_timeout(now + LEASE * 2, UNIX);
    assert_eq!((stale(&hops, 1), stale(&hops, 2)), (Some(false), None));
    assert_eq!((hops.len(), hops.routes()), (1, 1));
}

#[test]
fn an_attachment_ends_with_its_membership_or_its_secret() {
    let now = start();
    let mut first = hops(now);
    let mut second = hops(now);

    let lapsed = UNIX + Duration::from_secs(1000);
    let outcome = first.handle_frame(endpoint(1), &mut frame(1, &data(1, 1)), now, lapsed);
    assert!(matches!(outcome, Outcome::Unknown(1)));
    let worn = now + LIFE;
    let outcome = second.handle_frame(endpoint(1), &mut frame(1, &data(1, 1)), worn, UNIX);
    assert!(matches!(outcome, Outcome::Unknown(1)));
}

/// An agent beyond its quota loses its own frames, and stays attached; another one's all pass.
#[test]
fn one_over_its_quota_does_not_hurt_another() {
    let now = start();
    let mut hops = hops(now);
    hops.quota.agent.packets = 50;
    let mut pass = |n: u8, count: u64, target: u8, now: Instant| {
        let sent = (0..count).map(|message| {
            let header = Header {
                target: new(target).agent.ip(),
                ..data(n, message)
            };
            hops.handle_frame(endpoint(n), &mut frame(n, &header), now, UNIX)
        });
        sent.filter(|outcome| matches!(outcome, Outcome::Forward(_)))
            .count()
    };

    assert_eq!(pass(1, 1000, 2, now), 50);
    assert_eq!(pass(2, 50, 1, now), 50);
    let beat = Header::data(1, 2000, new(1).gateway, new(1).agent).of_kind(Kind::Heartbeat);
    let answer = hops.handle_frame(endpoint(1), &mut frame(1, &beat), now, UNIX);
    assert!(matches!(answer, Outcome::Answer(..)));
}

/// A network beyond its quota loses its own frames; another network's all pass.
#[test]
fn a_network_over_its_quota_does_not_hurt_another() {
    let now = start();
    let mut hops = hops(now);
    assert!(hops.insert(new(11), now).is_none());
    hops.quota.network.packets = 60;
    let mut pass = |n: u8, target: u8| {
        let sent = (0..50).map(|message| {
            let header = Header {
                target: new(target).agent.ip(),
                source: new(n).agent.ip(),
                ..data(n, message)
            };
            hops.handle_frame(endpoint(n), &mut frame(n, &header), now, UNIX)
        });
        sent.filter(|outcome| matches!(outcome, Outcome::Forward(_)))
            .count()
    };

    assert_eq!((pass(1, 2), pass(2, 1)), (50, 10));
    assert_eq!((pass(10, 11), pass(11, 10)), (50, 10));
}

/// Who tries addresses is told apart from who looks for one that just left; others are not concerned.
#[test]
fn who_tries_addresses_is_told_apart() {
    let now = start();
    let mut hops = hops(now);
    hops.quota.unknown = 5;
    let nobody = address(1, 99).ip();
    let mut to_nobody = |message: u64, now: Instant| {
        let header = Header {
            target: nobody,
            ..data(1, message)
        };
        reason(&mut hops, &header, now)
    };

    let reasons: Vec<_> = (0..8).map(|message| to_nobody(message, now)).collect();
    assert_eq!(reasons[..5], [DropReason::FrameTarget; 5]);
    assert_eq!(reasons[5..], [DropReason::FrameScan; 3]);
    let later = now + Duration::from_secs(1);
    assert_eq!(to_nobody(8, later), DropReason::FrameTarget);
    let sent = hops.handle_frame(endpoint(1), &mut frame(1, &data(1, 9)), later, UNIX);
    assert!(matches!(sent, Outcome::Forward(_)));
}

/// Rates are of each attachment, both ways; who moves counts where it is.
#[test]
fn what_agents_send_and_get_is_measured() {
    let now = start();
    let mut hops = hops(now);
    let at = |n: u64| now + Duration::from_millis(n * 100);
    for n in 0..50 {
        let sent = hops.handle_frame(endpoint(7), &mut frame(1, &data(1, n)), at(n), UNIX);
        assert!(matches!(sent, Outcome::Forward(_)));
    }

    let rate = |n: u32| {
        (
            hops.hops[&n].sent.rate(at(50)),
            hops.hops[&n].received.rate(at(50)),
        )
    };
    let size = HEADER as u64 + 2;
    let ten = Rate {
        packets: 10,
        bytes: 10 * size,
    };
    assert_eq!(
        (rate(1), rate(2)),
        ((ten, Rate::default()), (Rate::default(), ten))
    );
    let of = |n| hops.tenants.of_source(Source::of(endpoint(n)));
    assert_eq!((of(1), of(7), of(2)), (0, 1, 1));
}

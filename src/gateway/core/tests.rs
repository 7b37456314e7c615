use proptest::prelude::*;

use super::*;
use crate::gateway::forward::NewHop;
use crate::gateway::forward::tests::{LEASE, UNIX, data, endpoint, frame, new, start};
use crate::id::IdentityKey;
use crate::wire::a2g::{Direction, HEADER, Header, HopKeys, Kind};
use crate::wire::stun;

/// Agents 1 and 2 are of one network, 10 is of another; 3 has the same endpoint as 2.
const AGENTS: [u8; 4] = [1, 2, 3, 10];

fn core(now: Instant) -> Core {
    let config = CoreConfig {
        lease: LEASE,
        mtu: 1452,
        max_attachments: 10,
        max_handshakes: 10,
        handshakes_per_second: 100,
        per_source: 5,
        burst: 5,
        mesh: MeshConfig::default(),
    };
    let keys = CoreKeys {
        gateway: IdentityKey::from_seed([1; 32]).did(),
        tunnel: TunnelSecret::from_seed([2; 32]),
        reset: [3; 32],
    };
    let mut core = Core::new(config, keys, [4; 32]);
    for n in AGENTS {
        let at = if n == 3 { 2 } else { n };
        let endpoint = endpoint(at);
        let new = NewHop { endpoint, ..new(n) };
        assert!(core.hops.insert(new, now).is_none());
    }
    core
}

/// Makes a frame of agent 1 to `to` with a payload of `size` bytes.
fn to(to: u8, message: u64, size: usize) -> Vec<u8> {
    let header = Header::data(1, message, new(to).agent, new(1).agent);
    let keys = HopKeys::derive(&[1; 32], Direction::Up);
    header.frame(&keys, &vec![to; size])
}

/// Hands the datagrams over in one batch, and returns the runs that go on, cut.
fn pass(core: &mut Core, datagrams: &[Vec<u8>], now: Instant) -> Vec<(SocketAddr, Vec<Vec<u8>>)> {
    let stride = datagrams.first().map_or(0, Vec::len);
    let mut bytes = datagrams.concat();
    core.handle_batch(endpoint(1), &mut bytes, stride, now, UNIX);
    let runs = std::iter::from_fn(|| core.poll_run());
    let cut = runs.map(|run| {
        let frames = bytes[run.place].chunks(run.stride).map(<[u8]>::to_vec);
        (run.to, frames.collect())
    });
    cut.collect()
}

/// Opens what went to agent `n`, and returns its message id, TTL and payload.
fn open(n: u8, frame: &[u8]) -> (u64, u8, Vec<u8>) {
    let header = Header::open(&HopKeys::derive(&[n; 32], Direction::Down), frame).unwrap();
    assert_eq!(
        (header.hop, header.source),
        (100 + u32::from(n), new(1).agent.ip())
    );
    (header.message, header.ttl, frame[HEADER..].to_vec())
}

fn drops(core: &Core) -> Vec<(DropReason, u64)> {
    core.drops.nonzero().collect()
}

/// frames of one batch go on together by next hop, whatever is between them.
#[test]
fn a_batch_goes_on_in_runs_of_one_next_hop() {
    let now = start();
    let mut core = core(now);
    let mut spoilt = to(2, 2, 100);
    spoilt[HEADER - 1] ^= 1;
    let spent = Header {
        ttl: 0,
        ..data(1, 50)
    };
    let spent = spent.frame(&HopKeys::derive(&[1; 32], Direction::Up), &[0; 100]);
    let batch = [
        to(2, 0, 100),
        to(2, 1, 100),
        spoilt,
        to(2, 3, 100),
        to(2, 3, 100),
        // At the same endpoint, so in the same call.
        to(3, 4, 100),
        to(2, 5, 100),
        to(10, 6, 100),
        spent,
        vec![0; 100 + HEADER],
        to(2, 7, 40),
    ];

    let runs = pass(&mut core, &batch, now);

    let sizes = runs.iter().map(|(to, frames)| (*to, frames.len()));
    let two = endpoint(2);
    assert_eq!(
        sizes.collect::<Vec<_>>(),
        [(two, 2), (two, 1), (two, 2), (two, 1)]
    );
    assert_eq!(open(2, &runs[0].1[1]), (1, 7, vec![2; 100]));
    assert_eq!(open(2, &runs[1].1[0]), (2, 7, vec![2; 100]));
    assert_eq!(open(3, &runs[2].1[0]), (0, 7, vec![3; 100]));
    assert_eq!(open(2, &runs[3].1[0]), (4, 7, vec![2; 40]));
    let expected = [
        (DropReason::DatagramUnknown, 1),
        (DropReason::FrameNetwork, 1),
        (DropReason::FrameReplayed, 1),
        (DropReason::FrameTag, 1),
        (DropReason::FrameTtl, 1),
    ];
    assert_eq!(drops(&core), expected);
    let status = core.status(now);
    assert_eq!(
        (status.forwarded_frames, status.forwarded_bytes),
        (6, 5 * 156 + 96)
    );
}

/// What does not go on in place is answered as ever, and a batch forgets the one before.
#[test]
fn heartbeats_unknown_hops_and_nothing_at_all_are_taken_in_batches_too() {
    let now = start();
    let mut core = core(now);
    let beat = Header::data(1, 1, new(1).gateway, new(1).agent).of_kind(Kind::Heartbeat);
    let stranger = Header { hop: 99, ..beat };
    assert_eq!(pass(&mut core, &[to(2, 0, 0)], now), []);

    core.handle_batch(endpoint(1), &mut to(2, 2, 10), 66, now, UNIX);
    let runs = pass(&mut core, &[frame(1, &beat), frame(1, &stranger)], now);
    core.handle_batch(endpoint(1), &mut [], 0, now, UNIX);

    assert_eq!(runs, []);
    let answers = std::iter::from_fn(|| core.poll_transmit());
    let lengths = answers.map(|(to, bytes)| (to, bytes.len()));
    let expected = [
        (endpoint(1), HEADER),
        (endpoint(1), crate::wire::a2g::RESET),
    ];
    assert_eq!(lengths.collect::<Vec<_>>(), expected);
    assert_eq!(core.drops.of(DropReason::DatagramUnknown), 1);
    assert_eq!(core.drops.of(DropReason::FrameHopUnknown), 1);
}

/// Makes one datagram of the kind and number drawn.
fn drawn(kind: u8, message: u64) -> Vec<u8> {
    match kind {
        0..4 => to([2, 2, 3, 10][usize::from(kind)], message, 30),
        4 => {
            let mut spoilt = to(2, message, 30);
            spoilt[20] ^= 4;
            spoilt
        }
        5 => {
            let unknown = Header {
                hop: 77,
                ..data(1, message)
            };
            unknown.frame(&HopKeys::derive(&[1; 32], Direction::Up), &[0; 30])
        }
        // STUN, WireGuard and noise, of one length with the frames.
        6 => [&[0, 1, 0, 66, 0x21, 0x12, 0xa4, 0x42][..], &[0; 78]].concat(),
        7 => [&[1, 0, 0, 0][..], &[9; 82]].concat(),
        _ => vec![kind; 86],
    }
}

proptest! {
    /// A batch is what its datagrams are one by one: the same frames in the same order, the same
    /// answers, the same counts.
    #[test]
    fn a_batch_is_what_its_datagrams_are(
        drawn_of in prop::collection::vec((0_u8..9, 0_u64..40), 1..64),
        short in 0_usize..86,
    ) {
        let now = start();
        let (mut whole, mut single) = (core(now), core(now));
        let mut datagrams = drawn_of.iter().map(|(kind, n)| drawn(*kind, *n)).collect::<Vec<_>>();
        // The last may be shorter, and so cut off.
        if let [_, .., last] = &mut datagrams[..] {
            last.truncate(86 - short);
        }

        let mut runs = vec![];
        for (to, frames) in pass(&mut whole, &datagrams, now) {
            runs.extend(frames.into_iter().map(|frame| (to, frame)));
        }
        for datagram in datagrams {
            single.handle_datagram(endpoint(1), datagram, now, UNIX);
        }

        let mut one_by_one = std::iter::from_fn(|| single.poll_transmit()).collect::<Vec<_>>();
        let is_answer = |(to, _): &(SocketAddr, Vec<u8>)| *to == endpoint(1);
        let answers = one_by_one.extract_if(.., |sent| is_answer(sent)).collect::<Vec<_>>();
        prop_assert_eq!(runs, one_by_one);
        prop_assert_eq!(std::iter::from_fn(|| whole.poll_transmit()).collect::<Vec<_>>(), answers);
        prop_assert_eq!(drops(&whole), drops(&single));
        prop_assert_eq!(whole.forwarded, single.forwarded);
    }
}

/// connections of one host share its limits, and nothing of them is told or outlives us.
#[test]
fn connections_count_as_the_host_they_are_from() {
    let now = start();
    let mut core = core(now);
    let from = |number| carrier::endpoint(number, "192.0.2.200:40000".parse().unwrap());
    let unknown = |hop: u8| Header {
        hop: u32::from(hop) + 1000,
        ..data(1, 50)
    };

    for n in 0..20 {
        let frame = unknown(n).frame(&HopKeys::derive(&[1; 32], Direction::Up), &[]);
        core.handle_datagram(from(u64::from(n)), frame, now, UNIX);
    }
    let resets = std::iter::from_fn(|| core.poll_transmit()).count();
    let request = stun::request(&[7; 12]);
    core.handle_datagram(from(1), request.clone(), now, UNIX);
    let of_connection = core.poll_transmit();
    core.handle_datagram(endpoint(9), request, now, UNIX);
    let of_socket = core.poll_transmit();
    let hop = NewHop {
        endpoint: from(1),
        ..new(4)
    };
    core.hops.insert(hop, now);

    assert_eq!(resets, 5);
    assert!(of_connection.is_none() && of_socket.is_some());
    assert_eq!(core.recovery().hops.len(), AGENTS.len());
    let status = core.status(now);
    let listed = status.attachments.iter().map(|one| one.carrier);
    assert_eq!(listed.filter(|by| *by == Carrier::Wss).count(), 1);
}

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::dataplane::aead::Library;
use crate::dataplane::channels::{Channels, Opened, Unopened};
use crate::dataplane::ids::frame_ids;
use crate::engine::channel::{Arrival, ChannelChange, NewChannel, Route, data_key};
use crate::engine::hop::Hop;
use crate::wire::a2g::{Direction, FIRST_TTL, Reset};
use crate::wire::channel::Suite;
use crate::wire::control::Attached;

/// Agents 1 and 2 have a channel: its id is 20 at 1, and 30 at 2.
fn a() -> Pair {
    let (local, peer) = (ip(1), ip(2));
    Pair { local, peer }
}

fn b() -> Pair {
    let (local, peer) = (ip(2), ip(1));
    Pair { local, peer }
}

fn ip(n: u16) -> OverlayIp {
    format!("fd11:0:0:1::{n:x}").parse().unwrap()
}

fn gateway_at() -> SocketAddr {
    "192.0.2.9:16201".parse().unwrap()
}

/// Agent n's hop: ids n and 100 + n, secret [n; 32].
fn hop(n: u8) -> SharedHop {
    SharedHop {
        up: u32::from(n),
        down: 100 + u32::from(n),
        keys_up: HopKeys::derive(&[n; 32], Direction::Up),
        keys_down: HopKeys::derive(&[n; 32], Direction::Down),
        endpoint: gateway_at(),
        ids: frame_ids(0),
    }
}

fn event(n: u8, hop: Option<SharedHop>) -> HopEvent {
    let local = ip(u16::from(n));
    let slot = Slot::default();
    HopEvent { local, slot, hop }
}

/// One end of the channel, which seals by `seal` and opens by `open`.
fn end(pair: Pair, (id, remote): (u32, u32), (seal, open): (u8, u8)) -> Channels {
    let mut channels = Channels::new(Library::AwsLc);
    let new = NewChannel {
        id,
        remote,
        suite: Suite::Aes256Gcm,
        seal: data_key([seal; 32]),
        open: data_key([open; 32]),
    };
    for change in [
        ChannelChange::New(new),
        ChannelChange::Route(Route::Relayed(Slot::default())),
        ChannelChange::Send(id),
    ] {
        channels.change(pair, change);
    }
    channels
}

fn ends() -> (Channels, Channels) {
    let (mut one, mut two) = (end(a(), (20, 30), (7, 8)), end(b(), (30, 20), (8, 7)));
    one.change_hop(event(1, Some(hop(1))));
    two.change_hop(event(2, Some(hop(2))));
    (one, two)
}

fn seal(channels: &mut Channels, pair: Pair, plain: &[u8]) -> Vec<u8> {
    let (sealer, way) = channels.sealer(&pair).unwrap();
    assert!(way.slot().is_some() && way.to() == gateway_at());
    let mut out = vec![0; plain.len() + way.overhead()];
    assert!(way.seal(sealer, plain, &mut out));
    out
}

/// Makes what the gateway sends to agent 2 of a frame of agent 1.
fn pass(frame: &[u8], message: u64) -> Vec<u8> {
    let header = Header::open(&hop(1).keys_up, frame).unwrap();
    let onward = Header {
        hop: 102,
        message,
        ttl: header.ttl - 1,
        ..header
    };
    onward.frame(&hop(2).keys_down, &frame[HEADER..])
}

fn open(channels: &mut Channels, frame: &[u8]) -> Result<Vec<u8>, Unopened> {
    assert!(carries_channel(frame));
    let mut frame = frame.to_vec();
    let (Opened { pair, place, .. }, _) = channels.open_frame(&mut frame)?;
    assert_eq!(pair, b());
    Ok(frame[place].to_vec())
}

fn refused(channels: &mut Channels, frame: &[u8]) -> DropReason {
    match open(channels, frame) {
        Err(Unopened::Dropped(reason)) => reason,
        other => panic!("{other:?}"),
    }
}

/// Protocol.md section 5 and 7: one frame of the hop, in it one packet of the channel.
#[test]
fn a_relayed_packet_is_a_frame_of_the_hop_and_opens_at_the_other_end() {
    let (mut one, mut two) = ends();

    for message in 0..3 {
        let frame = seal(&mut one, a(), b"plain");

        assert_eq!(frame.len(), 5 + 16 + 16 + 56);
        let header = Header::open(&hop(1).keys_up, &frame).unwrap();
        let expected = Header::data(1, message, ip(2), ip(1));
        assert_eq!((header, header.ttl), (expected, FIRST_TTL));
        assert_eq!(open(&mut two, &pass(&frame, message)).unwrap(), b"plain");
    }
    two.note_received(b(), 5, Arrival::Relayed(Slot::default()));
    two.note_unknown(b());
    let told = two.take_passed();
    assert_eq!(
        (told[0].relayed, told[0].from, told[0].unknown),
        (
            [(0, 1), (0, 0), (0, 0)],
            Some(Arrival::Relayed(Slot::default())),
            1
        )
    );
}

/// Engine and workers make frames of one hop: a gateway sees each id once.
#[test]
fn ids_are_shared_with_the_engine() {
    let (mut one, _) = ends();
    let told = Attached {
        lease: 75,
        observed: gateway_at(),
        up: 1,
        down: 101,
        secret: [1; 32],
        mtu: 1452,
        reset_token: [0; 16],
        stun_port: 0,
    };
    #[expect(clippy::disallowed_methods, reason = "tests need an epoch")]
    let now = Instant::now();
    let mut engines = Hop::new(&told, gateway_at(), Duration::ZERO, now);
    engines.share_ids(frame_ids);
    one.change_hop(event(1, engines.share()));

    let mut seen = vec![];
    for _ in 0..3 {
        let (_, frame) = engines.wrap(ip(1), ip(2), b"engine's", now).unwrap();
        for frame in [frame, seal(&mut one, a(), b""), seal(&mut one, a(), b"")] {
            seen.push(Header::open(&hop(1).keys_up, &frame).unwrap().message);
        }
    }

    assert_eq!(seen, (0..9).collect::<Vec<_>>());
}

/// What a gateway may do with what it gets, it can do once: deliver it as it is.
#[test]
fn what_a_gateway_replays_changes_or_forges_does_not_open() {
    let (mut one, mut two) = ends();
    let keys = hop(2).keys_down;
    let first = seal(&mut one, a(), b"first");
    let passed = pass(&first, 0);
    let payload = &first[HEADER..];
    let header = Header::data(102, 1, ip(2), ip(1));
    assert_eq!(open(&mut two, &passed).unwrap(), b"first");

    assert_eq!(refused(&mut two, &passed), DropReason::FrameReplayed);
    // Again in another frame, which only a gateway can make.
    assert_eq!(
        refused(&mut two, &pass(&first, 1)),
        DropReason::ChannelInvalid
    );
    let second = seal(&mut one, a(), b"second");
    for at in HEADER + 8..second.len() {
        let mut changed = second.clone();
        changed[at] ^= 1;
        let changed = header_of(&header, 1 + at as u64).frame(&keys, &changed[HEADER..]);
        assert_eq!(
            refused(&mut two, &changed),
            DropReason::ChannelInvalid,
            "{at}"
        );
    }
    let mut spoilt = pass(&second, 200);
    spoilt[40] ^= 1;
    assert_eq!(refused(&mut two, &spoilt), DropReason::FrameTag);
    let mut elsewhere = pass(&second, 201);
    elsewhere[7] ^= 1;
    assert_eq!(refused(&mut two, &elsewhere), DropReason::FrameHopUnknown);
    let turned = Header {
        target: ip(3).ip(),
        ..header_of(&header, 202)
    };
    let turned = turned.frame(&keys, payload);
    assert_eq!(refused(&mut two, &turned), DropReason::FrameTarget);
    let claimed = Header {
        source: ip(3).ip(),
        ..header_of(&header, 203)
    };
    let claimed = claimed.frame(&keys, &seal(&mut one, a(), b"third")[HEADER..]);
    assert_eq!(refused(&mut two, &claimed), DropReason::FrameSource);
    let mut unknown = payload.to_vec();
    unknown[4..8].copy_from_slice(&[0, 0, 0, 99]);
    let unknown = header_of(&header, 204).frame(&keys, &unknown);
    assert_eq!(open(&mut two, &unknown), Err(Unopened::Stray(b())));
    // Turned back to who sent it.
    let mut back = Header::data(101, 0, ip(1), ip(2)).frame(&hop(1).keys_down, payload);
    assert_eq!(one.open_frame(&mut back).unwrap_err(), Unopened::Stray(a()));
    assert_eq!(open(&mut two, &pass(&second, 205)).unwrap(), b"second");
}

const fn header_of(header: &Header, message: u64) -> Header {
    Header { message, ..*header }
}

/// A hop that is no more relays nothing, and takes nothing; the engine has what there is.
#[test]
fn without_a_hop_nothing_is_framed_or_opened() {
    let (mut one, mut two) = ends();
    let frame = seal(&mut one, a(), b"plain");

    one.change_hop(event(1, None));
    two.change_hop(event(2, None));

    assert!(one.sealer(&a()).is_none());
    assert_eq!(
        refused(&mut two, &pass(&frame, 0)),
        DropReason::FrameHopUnknown
    );
    two.change_hop(event(2, Some(hop(2))));
    assert_eq!(open(&mut two, &pass(&frame, 0)).unwrap(), b"plain");
}

/// Gateways draw the ids, each for itself: one that repeats another's does not harm it.
#[test]
fn two_hops_of_one_id_do_not_disturb_each_other() {
    let (mut one, mut two) = ends();
    let copy = SharedHop {
        down: 102,
        ..hop(3)
    };
    two.change_hop(event(3, Some(copy)));

    let frame = seal(&mut one, a(), b"plain");

    assert_eq!(open(&mut two, &pass(&frame, 0)).unwrap(), b"plain");
    two.change_hop(event(3, None));
    let frame = seal(&mut one, a(), b"plain");
    assert_eq!(open(&mut two, &pass(&frame, 1)).unwrap(), b"plain");
}

/// All other frames are the engine's.
#[test]
fn only_frames_with_packets_of_channels_are_opened_here() {
    let header = Header::data(102, 0, ip(2), ip(1));
    let keys = hop(2).keys_down;
    let reset = Reset {
        hop: 0x2000_0000,
        token: [0x20; 16],
    };

    assert!(carries_channel(&header.frame(&keys, &[0x20, 0, 0, 0])));
    for other in [
        header.frame(&keys, &[4, 0, 0, 0, 1]),
        header.frame(&keys, &[0x20, 0, 0]),
        header.of_kind(Kind::Heartbeat).frame(&keys, &[]),
        reset.encode().to_vec(),
        [&[0x20, 0, 0, 0][..], &[0x20; 80]].concat(),
        vec![],
    ] {
        assert!(!carries_channel(&other), "{other:?}");
    }
}

proptest! {
    /// Lost, late and repeated in any order: each packet opens once at most, and as it was sealed.
    #[test]
    fn each_packet_opens_once_whatever_the_gateway_does(
        deeds in prop::collection::vec((0_usize..60, any::<bool>()), 1..200),
    ) {
        let (mut one, mut two) = ends();
        let sealed = (0..60_u8).map(|n| seal(&mut one, a(), &[n; 9])).collect::<Vec<_>>();
        let mut opened = [false; 60];

        for (message, (n, same_frame)) in (60..).zip(deeds) {
            // The very frame it sent before, or the packet in a new one.
            let message = if same_frame { n as u64 } else { message };
            let result = open(&mut two, &pass(&sealed[n], message));
            prop_assert_eq!(result.is_ok(), !opened[n]);
            if let Ok(plain) = result {
                prop_assert_eq!(plain, [n as u8; 9]);
                opened[n] = true;
            }
        }
    }
}

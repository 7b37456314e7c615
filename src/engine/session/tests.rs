//! The rules of dataplane.md section 5 that need no passing of time; the others are in tests/sim.

use super::*;
use crate::wire::control::Control;
use proptest::prelude::*;

#[expect(clippy::disallowed_methods, reason = "tests need an epoch")]
fn start() -> Instant {
    Instant::now()
}

fn secret(seed: u8) -> TunnelSecret {
    TunnelSecret::from_seed([seed; 32])
}

fn session(local: u8, peer: u8, index: u32, now: Instant) -> Session {
    let keys = SessionKeys {
        local: secret(local),
        peer: secret(peer).public(),
        psk: Some([9; 32]),
        index,
    };
    Session::new(&keys, now)
}

/// Two ends, of which the first has begun and heard the answer.
fn half_open(now: Instant) -> (Session, Session, Vec<u8>) {
    let (mut a, mut b) = (session(1, 2, 0xa, now), session(2, 1, 0xb, now));
    let initiation = a.initiate(now).unwrap();
    let Opened::Reply(response) = b.open(&initiation, now) else {
        panic!("no response");
    };
    (a, b, response)
}

fn open_pair(now: Instant) -> (Session, Session) {
    let (mut a, mut b, response) = half_open(now);
    confirm(&mut a, &mut b, &response, now);
    (a, b)
}

fn confirm(a: &mut Session, b: &mut Session, response: &[u8], now: Instant) {
    let opened = a.open(response, now);
    let Opened::Confirmed {
        reply: Some(reply),
        packet: None,
    } = opened
    else {
        panic!("{opened:?}");
    };
    assert_eq!(reply.len(), 32);
    let confirmed = Opened::Confirmed {
        reply: None,
        packet: None,
    };
    assert_eq!(b.open(&reply, now), confirmed);
}

fn packet(length: usize) -> Vec<u8> {
    let mut packet = vec![0; 40 + length];
    packet[0] = 0x60;
    packet[4..6].copy_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
    packet[6] = 17;
    packet[8] = 0xfd;
    packet[24] = 0xfd;
    packet
}

/// Rule 3: the initiator may seal once a response opened, the responder once it heard from it.
#[test]
fn nothing_is_sealed_before_the_session_is_confirmed() {
    let now = start();
    let (mut a, mut b, response) = half_open(now);

    let early = (a.seal(&packet(8), now), b.seal(&packet(8), now));
    confirm(&mut a, &mut b, &response, now);

    assert_eq!(early, (None, None));
    assert!(!b.is_initiating() && b.handle_timeout(now).is_empty());
    for (from, to) in [(0, 1), (1, 0)] {
        let ends = [&mut a, &mut b];
        let sealed = ends[from].seal(&packet(8), now).unwrap();
        assert_eq!(ends[to].open(&sealed, now), Opened::Packet(packet(8)));
    }
}

/// Rule 3: the responder's first packet in may be data.
#[test]
fn a_first_packet_confirms_and_is_delivered() {
    let now = start();
    let (mut a, mut b, response) = half_open(now);
    assert!(matches!(a.open(&response, now), Opened::Confirmed { .. }));
    let sealed = a.seal(&packet(8), now).unwrap();

    let opened = b.open(&sealed, now);

    let packet = Some(packet(8));
    assert_eq!(
        opened,
        Opened::Confirmed {
            reply: None,
            packet
        }
    );
    assert!(b.is_confirmed(now));
}

#[test]
fn handshakes_from_both_ends_at_once_make_a_session() {
    let now = start();
    let (mut a, mut b) = (session(1, 2, 0xa, now), session(2, 1, 0xb, now));
    let from_a = a.initiate(now).unwrap();
    let from_b = b.initiate(now).unwrap();

    let Opened::Reply(to_a) = b.open(&from_a, now) else {
        panic!();
    };
    let Opened::Reply(to_b) = a.open(&from_b, now) else {
        panic!();
    };
    confirm(&mut a, &mut b, &to_a, now);
    confirm(&mut b, &mut a, &to_b, now);

    for (from, to) in [(0, 1), (1, 0)] {
        let ends = [&mut a, &mut b];
        let sealed = ends[from].seal(&packet(1), now).unwrap();
        assert_eq!(ends[to].open(&sealed, now), Opened::Packet(packet(1)));
    }
}

/// Rule 3: while a new handshake runs, the old keys serve.
#[test]
fn a_rekey_does_not_interrupt_sealing() {
    let now = start();
    let (mut a, mut b) = open_pair(now);

    let initiation = a.initiate(now).unwrap();
    let Opened::Reply(response) = b.open(&initiation, now) else {
        panic!();
    };
    let from_b = b.seal(&packet(1), now).unwrap();
    assert_eq!(a.open(&from_b, now), Opened::Packet(packet(1)));
    confirm(&mut a, &mut b, &response, now);

    let old = word(&from_b, 4);
    let from_b = b.seal(&packet(2), now).unwrap();
    assert_eq!(a.open(&from_b, now), Opened::Packet(packet(2)));
    assert_ne!(word(&from_b, 4), old);
}

/// Rule 3: a ring full of unconfirmed answers never lends unconfirmed keys.
#[test]
fn answers_that_nobody_confirms_are_not_sealed_with() {
    let now = start();
    let (mut a, mut b) = open_pair(now);

    for _ in 0..RING {
        let initiation = a.initiate(now).unwrap();
        assert!(matches!(b.open(&initiation, now), Opened::Reply(_)));
    }

    assert!(!b.is_confirmed(now) && b.seal(&packet(1), now).is_none());
}

/// Rule 2: no datagram is too long or too short for boringtun.
#[test]
fn a_datagram_of_any_length_is_survived() {
    let now = start();
    let (mut a, mut b) = open_pair(now);
    let mut longest = vec![0; MAX_DATAGRAM];
    longest[0] = 4;
    longest[8] = 100; // a counter not seen yet
    longest[4..8].copy_from_slice(&0xb01_u32.to_le_bytes());

    assert_eq!(
        b.open(&longest, now),
        Opened::Dropped(DropReason::SessionInvalid)
    );
    longest.push(0);
    assert_eq!(
        b.open(&longest, now),
        Opened::Dropped(DropReason::DatagramMalformed)
    );
    for length in 0..200 {
        for kind in 0..6 {
            let mut bytes = vec![0; length];
            if let Some(first) = bytes.first_mut() {
                *first = kind;
            }
            assert!(matches!(b.open(&bytes, now), Opened::Dropped(_)));
            assert!(matches!(b.open_cookie(&bytes, now), Opened::Dropped(_)));
        }
    }
    let sealed = a.seal(&packet(1000), now).unwrap();
    assert_eq!(b.open(&sealed, now), Opened::Packet(packet(1000)));
}

/// Rule 4: the listening path and the session count apart.
#[test]
fn a_screened_handshake_is_counted_once_by_each_limiter() {
    let now = start();
    let listener = Listener::new(&secret(2), 10);
    let from = "192.0.2.1:9".parse().unwrap();
    let (mut a, mut b) = (session(1, 2, 0xa, now), session(2, 1, 0xb, now));

    for _ in 0..10 {
        let initiation = a.initiate(now).unwrap();
        assert_eq!(listener.screen(from, &initiation), Screened::Pass);
        assert!(matches!(b.open(&initiation, now), Opened::Reply(_)));
    }

    let eleventh = a.initiate(now).unwrap();
    assert!(matches!(
        listener.screen(from, &eleventh),
        Screened::Cookie(_)
    ));
    let opened = b.open(&eleventh, now);
    assert_eq!(opened, Opened::Dropped(DropReason::HandshakeLimited));
}

/// Rules 7 and 8: a cookie counts for one address and port, and is taken only where it is due.
#[test]
fn a_cookie_proves_address_and_port() {
    let now = start();
    let listener = Listener::new(&secret(2), 0);
    let (here, other) = (
        "192.0.2.1:9".parse().unwrap(),
        "192.0.2.1:10".parse().unwrap(),
    );
    let mut a = session(1, 2, 0xa, now);
    let initiation = a.initiate(now).unwrap();
    let Screened::Cookie(cookie) = listener.screen(here, &initiation) else {
        panic!("no cookie");
    };

    assert!(cookie.len() < initiation.len());
    assert_eq!(
        a.open(&cookie, now),
        Opened::Dropped(DropReason::CookieReply)
    );
    assert_eq!(a.open_cookie(&cookie, now), Opened::Nothing);
    let proven = a.initiate(now).unwrap();
    assert_eq!(listener.screen(here, &proven), Screened::Pass);
    assert!(matches!(
        listener.screen(other, &proven),
        Screened::Cookie(_)
    ));
}

/// Rule 5: messages find their session by the 24 bits that it was given.
#[test]
fn the_index_in_every_message_is_the_sessions_own() {
    let now = start();
    let (mut a, mut b, response) = half_open(now);

    assert_eq!(
        receiver_index(&response).map(|i| (a.owns(i), b.owns(i))),
        Some((true, false))
    );
    confirm(&mut a, &mut b, &response, now);
    let sealed = a.seal(&packet(1), now).unwrap();
    assert_eq!(
        receiver_index(&sealed).map(|i| (a.owns(i), b.owns(i))),
        Some((false, true))
    );
    assert_eq!(receiver_index(&a.initiate(now).unwrap()), None);
    assert_eq!(session(1, 2, 0xff00_0001, now).index(), 1);
}

/// Rule 6: control messages keep no session alive.
#[test]
fn control_messages_are_not_user_data() {
    let now = start();
    let (mut a, mut b) = open_pair(now);

    let probe = Control::Probe { id: 1, path: 0 }.packet().unwrap();
    let sealed = a.seal(&probe, now).unwrap();
    assert_eq!(b.open(&sealed, now), Opened::Packet(probe));
    assert_eq!((a.last_sent(), b.last_received()), (None, None));

    let sealed = a.seal(&packet(1), now).unwrap();
    b.open(&sealed, now);
    assert_eq!((a.last_sent(), b.last_received()), (Some(now), Some(now)));
}

/// Rule 7: keys that sealed as many messages as they may seal no more.
#[test]
fn nonces_are_not_exhausted() {
    let now = start();
    let (mut a, mut b) = open_pair(now);
    a.sealed = REJECT_AFTER_MESSAGES;

    assert_eq!(a.seal(&packet(1), now), None);
    let initiation = a.initiate(now).unwrap();
    let Opened::Reply(response) = b.open(&initiation, now) else {
        panic!();
    };
    confirm(&mut a, &mut b, &response, now);
    assert!(a.seal(&packet(1), now).is_some());
}

/// Rule 8: a handshake seen before is refused, and the session it made lives on.
#[test]
fn a_replayed_handshake_does_not_kill_a_session() {
    let now = start();
    let (mut a, mut b) = (session(1, 2, 0xa, now), session(2, 1, 0xb, now));
    let initiation = a.initiate(now).unwrap();
    let Opened::Reply(response) = b.open(&initiation, now) else {
        panic!();
    };
    confirm(&mut a, &mut b, &response, now);

    let replayed = b.open(&initiation, now);

    assert_eq!(replayed, Opened::Dropped(DropReason::HandshakeReplayed));
    let sealed = a.seal(&packet(1), now).unwrap();
    assert_eq!(b.open(&sealed, now), Opened::Packet(packet(1)));
    assert_eq!(
        b.open(&sealed, now),
        Opened::Dropped(DropReason::SessionInvalid)
    );
}

/// Rule 9: one key is tried per call; a handshake to another key is told from its MAC.
#[test]
fn an_initiation_tells_its_key_to_the_one_it_is_for() {
    let now = start();
    let mut a = session(1, 2, 0xa, now);
    let initiation = a.initiate(now).unwrap();

    assert_eq!(initiator(&secret(2), &initiation), Some(secret(1).public()));
    assert_eq!(initiator(&secret(3), &initiation), None);
    assert_eq!(initiator(&secret(2), &initiation[1..]), None);
}

#[test]
fn a_session_without_life_needs_no_timer() {
    let now = start();
    let (mut a, b) = (session(1, 2, 0xa, now), session(2, 1, 0xb, now));

    let before = (a.poll_timeout(), b.poll_timeout());
    a.initiate(now);

    assert_eq!(before, (None, None));
    let again = now + Duration::from_secs(5);
    assert_eq!(a.poll_timeout(), Some((again, "wireguard timers")));
}

#[test]
fn another_psk_makes_no_session() {
    let now = start();
    let mut a = session(1, 2, 0xa, now);
    let keys = SessionKeys {
        local: secret(2),
        peer: secret(1).public(),
        psk: None,
        index: 0xb,
    };
    let mut b = Session::new(&keys, now);
    let initiation = a.initiate(now).unwrap();
    let Opened::Reply(response) = b.open(&initiation, now) else {
        panic!();
    };

    let opened = a.open(&response, now);

    assert_eq!(opened, Opened::Dropped(DropReason::SessionInvalid));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_leave_a_session_working(
        noise in prop::collection::vec((0_u8..6, prop::collection::vec(any::<u8>(), 0..200)), 0..20),
    ) {
        let now = start();
        let (mut a, mut b) = open_pair(now);
        for (kind, bytes) in noise {
            let mut datagram = vec![kind, 0, 0, 0, 1, 0xb, 0, 0];
            datagram.extend(bytes);
            prop_assert!(matches!(b.open(&datagram, now), Opened::Dropped(_)));
        }
        let sealed = a.seal(&packet(1), now).unwrap();
        prop_assert_eq!(b.open(&sealed, now), Opened::Packet(packet(1)));
    }
}

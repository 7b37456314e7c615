use super::*;
use proptest::prelude::*;

fn attached() -> Attached {
    Attached {
        lease: 75,
        observed: "198.51.100.7:4242".parse().unwrap(),
        up: 1,
        down: 2,
        secret: [3; 32],
        mtu: 1452,
        reset_token: [4; 16],
        stun_port: 3478,
    }
}

/// A gateway of before the field names no second port.
#[test]
fn an_answer_without_a_second_port_is_read() {
    let mut packet = Control::Attached(attached()).packet().unwrap();
    packet.truncate(packet.len() - 2);
    let length = u16::from_be_bytes([packet[4], packet[5]]) - 2;
    packet[4..6].copy_from_slice(&length.to_be_bytes());
    let body = u16::from_be_bytes([packet[42], packet[43]]) - 2;
    packet[42..44].copy_from_slice(&body.to_be_bytes());

    let expected = Attached {
        stun_port: 0,
        ..attached()
    };
    assert_eq!(Control::parse(&packet), Some(Control::Attached(expected)));
}

#[test]
fn messages_survive_the_wire() {
    let messages = [
        Control::Attach {
            record: "a.b.c".to_owned(),
        },
        Control::Attached(attached()),
        Control::AttachRefused {
            code: Refusal::Other(999),
            text: "no".to_owned(),
        },
        Control::Goodbye {
            reason: Farewell::Leaving,
        },
        Control::Part(Part {
            message: 9,
            n: 1,
            of: 2,
            bytes: vec![7; MAX_PART],
        }),
        Control::Probe { id: 5, path: 9 },
        Control::ProbeReply(ProbeReply {
            id: u64::MAX,
            observed: None,
            received: 7,
        }),
        Control::ProbeReply(ProbeReply {
            id: 1,
            observed: Some("192.0.2.7:16200".parse().unwrap()),
            received: u32::MAX,
        }),
        Control::Candidates(Candidates::default()),
        Control::Have(Have::default()),
        Control::Statement {
            text: "a.b.c".to_owned(),
        },
    ];

    for message in messages {
        let packet = message.packet().unwrap();

        assert!(is_control(&packet) && is_reserved(&packet) && packet.len() <= 1280);
        assert_eq!(Control::parse(&packet), Some(message));
    }
}

#[test]
fn unknown_types_are_ignored_and_later_fields_skipped() {
    let probe = Control::Probe { id: 5, path: 2 }.encode().unwrap();
    let mut unknown = probe.clone();
    unknown[1] = 99;
    let mut longer = probe.clone();
    longer.extend([1, 2, 3]);
    longer[3] += 3;

    assert_eq!(Control::decode(&unknown), None);
    assert_eq!(
        Control::decode(&longer),
        Some(Control::Probe { id: 5, path: 2 })
    );
    assert_eq!(Control::decode(&probe[..probe.len() - 1]), None);
}

/// Found by fuzzing: what stands for a byte that is no text has three, and was cut in two.
#[test]
fn a_refusals_text_is_cut_in_whole_characters() {
    for text in [vec![0xff; 250], "\u{e9}".repeat(125).into_bytes()] {
        let mut bytes = vec![0, 4, 0, u8::try_from(text.len() + 2).unwrap(), 0, 2];
        bytes.extend(text);

        let refused = Control::decode(&bytes).unwrap();

        assert_eq!(Control::decode(&refused.encode().unwrap()), Some(refused));
    }
}

#[test]
fn a_long_message_goes_in_parts() {
    let attach = Control::Attach {
        record: "x".repeat(MAX_STATEMENT),
    };

    let packets = attach.packets(7);

    assert_eq!(attach.packet(), None);
    assert_eq!(packets.len(), 15);
    assert!(packets.iter().all(|p| p.len() <= 1280 && is_control(p)));
}

#[test]
fn what_control_uses_never_passes_to_the_tun() {
    let ip = |from: &str, to: &str, next: u8| {
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, next, 64];
        packet.extend(from.parse::<Ipv6Addr>().unwrap().octets());
        packet.extend(to.parse::<Ipv6Addr>().unwrap().octets());
        packet
    };
    let mut v4 = vec![0x45; 20];
    v4[9] = 6;

    assert!(!is_reserved(&ip("fd00::1", "fd00::2", 6)) && !is_reserved(&v4));
    assert!(is_reserved(&ip("fd00::1", "fd00::2", 253)));
    assert!(is_reserved(&ip("fd00::1", "fd00::2", 254)));
    assert!(is_reserved(&ip("fe80::1", "fd00::2", 6)));
    assert!(is_reserved(&ip("fd00::1", "febf::2", 6)));
    assert!(is_reserved(b"") && is_reserved(&[0x60; 39]) && is_reserved(&[0x10; 60]));
    for at in [12, 16] {
        let mut local = v4.clone();
        local[at..at + 2].copy_from_slice(&[169, 254]);
        assert!(is_reserved(&local), "{at}");
    }
}

proptest! {
    #[test]
    fn any_bytes_give_a_message_or_none(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = (Control::parse(&bytes).is_some(), is_reserved(&bytes));
        if let Some(message) = Control::decode(&bytes) {
            prop_assert_eq!(Control::decode(&message.encode().unwrap()), Some(message));
        }
    }
}

use super::*;
use proptest::prelude::*;

/// RFC 5769 sections 2.1 to 2.3: a request with credentials, and answers over IPv4 and IPv6.
const VECTOR_REQUEST: &str = "000100582112a442b7e7a701bc34d686fa87dfae80220010\
    5354554e207465737420636c69656e74002400046e0001ff80290008932ff9b151263b36\
    000600096576746a3a68367659202020000800149aeaa70cbfd8cb56781ef2b5b2d3f249\
    c1b571a280280004e57a3bcf";
const VECTOR_V4: &str = "0101003c2112a442b7e7a701bc34d686fa87dfae8022000b\
    7465737420766563746f7220002000080001a147e112a643000800142b91f599fd9e90c3\
    8c7489f92af9ba53f06be7d780280004c07d4c96";
const VECTOR_V6: &str = "010100482112a442b7e7a701bc34d686fa87dfae8022000b\
    7465737420766563746f7220002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d9\
    00080014a382954e4be67bf11784c97c8292c275bfe3ed4180280004c8fb0b4c";

const TRANSACTION: Transaction = [
    0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa, 0x87, 0xdf, 0xae,
];

fn bytes(hex: &str) -> Vec<u8> {
    let digits = hex.as_bytes().chunks(2);
    let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.map(byte).collect()
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn the_answers_of_rfc_5769_are_read() {
    for (vector, mapped) in [
        (VECTOR_V4, "192.0.2.1:32853"),
        (VECTOR_V6, "[2001:db8:1234:5678:11:2233:4455:6677]:32853"),
    ] {
        let (transaction, mapped) = (TRANSACTION, at(mapped));
        let expected = Message::Success {
            transaction,
            mapped,
            origin: Origin::default(),
        };
        assert_eq!(parse(&bytes(vector)), Some(expected));
    }
}

/// Its PRIORITY is of ICE, which is not spoken here: a server that does not know it must say so.
#[test]
fn the_request_of_rfc_5769_is_answered_by_what_is_unknown() {
    let Some(Message::Request(request)) = parse(&bytes(VECTOR_REQUEST)) else {
        panic!("no request");
    };
    assert_eq!(request.unknown, [0x0024]);

    let answer = request.answer(at("192.0.2.1:1"), Origin::default());

    assert_eq!(answer[..2], [0x01, 0x11]);
    assert_eq!(answer[20..28], [0, 9, 0, 4, 0, 0, 4, 20]);
    assert_eq!(answer[28..34], [0, 0x0a, 0, 2, 0, 0x24]);
    assert_eq!(parse(&answer), Some(Message::Refused(TRANSACTION)));
}

#[test]
fn an_answer_tells_where_the_request_came_from() {
    let Some(Message::Request(asked)) = parse(&request(&TRANSACTION)) else {
        panic!("no request");
    };
    for from in ["192.0.2.1:32853", "[2001:db8::7]:9", "[::ffff:192.0.2.9]:1"] {
        let from = at(from);
        let answer = asked.answer(from, Origin::default());

        let mapped = SocketAddr::new(from.ip().to_canonical(), from.port());
        let transaction = TRANSACTION;
        let told = Message::Success {
            transaction,
            mapped,
            origin: Origin::default(),
        };
        assert_eq!(parse(&answer), Some(told));
    }
}

/// protocol.md section 4: at most 2.2 times what came in, whatever that was.
#[test]
fn no_answer_is_much_longer_than_its_request() {
    let mut bare = request(&TRANSACTION);
    bare.truncate(20);
    bare[3] = 0;
    let mut strange = request(&TRANSACTION);
    strange.truncate(20);
    for n in 0..4 {
        strange.extend([0, 0x70 + n, 0, 0]);
        strange[3] = 4 * (n + 1);
        check_length(&strange);
    }
    check_length(&bare);
    let classic = [&[0, 1, 0, 0][..], &[7; 16]].concat();
    check_length(&classic);
    for change in [Change::NONE, Change::PORT, Change::BOTH] {
        check_length(&request_from(&TRANSACTION, change));
    }
    check_length(&request(&TRANSACTION));
}

/// All that a server may tell, at its longest.
fn full() -> Origin {
    Origin {
        own: Some(at("[2001:db8::1]:1")),
        other: Some(at("[2001:db8::2]:2")),
    }
}

/// RFC 5780 sections 7.3 and 7.4: our requests have room for what servers of it tell.
#[test]
fn a_server_with_other_endpoints_tells_of_them() {
    for change in [Change::NONE, Change::PORT, Change::BOTH] {
        let Some(Message::Request(asked)) = parse(&request_from(&TRANSACTION, change)) else {
            panic!("no request");
        };
        assert_eq!(asked.change(), change);

        let answer = asked.answer(at("[2001:db8::7]:9"), full());

        let Some(Message::Success { origin, .. }) = parse(&answer) else {
            panic!("no answer");
        };
        assert_eq!(origin, full());
        assert_eq!(
            parse(&asked.refuse_change()),
            Some(Message::Refused(TRANSACTION))
        );
    }
}

/// RFC 5780 section 7.6: a long request arrives or not, and its answer is short either way.
#[test]
fn a_request_of_any_length_is_read_and_refused() {
    for length in [32, 1232, 1252, 1472] {
        let bytes = request_of(&TRANSACTION, length);
        assert_eq!(bytes.len(), length);
        let Some(Message::Request(asked)) = parse(&bytes) else {
            panic!("no request");
        };

        let answer = asked.answer(at("[2001:db8::7]:9"), full());

        assert_eq!(parse(&answer), Some(Message::Refused(TRANSACTION)));
        assert!(answer.len() < 64);
    }
}

/// RFC 8489 section 11: a request without the cookie is of RFC 3489, and so is its answer.
#[test]
fn a_client_of_before_the_cookie_is_answered_in_its_words() {
    let mut classic = vec![0, 1, 0, 8];
    classic.extend([7; 16]);
    classic.extend([0, 3, 0, 4, 0, 0, 0, 6]);
    let Some(Message::Request(asked)) = parse(&classic) else {
        panic!("no request");
    };
    assert_eq!(asked.change(), Change::BOTH);
    let origin = Origin {
        own: Some(at("198.51.100.2:2")),
        other: Some(at("198.51.100.1:1")),
    };

    let answer = asked.answer(at("192.0.2.1:258"), origin);

    let expected = [
        &[1, 1, 0, 36][..],
        &[7; 16],
        &[0, 1, 0, 8, 0, 1, 1, 2, 192, 0, 2, 1],
        &[0, 5, 0, 8, 0, 1, 0, 1, 198, 51, 100, 1],
        &[0, 4, 0, 8, 0, 1, 0, 2, 198, 51, 100, 2],
    ];
    assert_eq!(answer, expected.concat());
    assert_eq!(parse(&answer), None, "nobody here asks so");
}

fn check_length(asked: &[u8]) {
    let Some(Message::Request(request)) = parse(asked) else {
        panic!("no request: {asked:?}");
    };
    for from in ["192.0.2.1:1", "[2001:db8::7]:9"] {
        let answer = request.answer(at(from), full());
        assert!(answer.len() * 10 <= asked.len() * 22, "{}", answer.len());
    }
}

#[test]
fn a_message_changed_on_the_way_is_not_read() {
    for vector in [VECTOR_REQUEST, VECTOR_V4, VECTOR_V6] {
        let whole = bytes(vector);
        // Without its own two bytes of type there is no fingerprint to be wrong.
        let kind = whole.len() - 8..whole.len() - 6;
        for place in (0..whole.len()).filter(|place| !kind.contains(place)) {
            let mut changed = whole.clone();
            changed[place] ^= 0x04;
            assert_eq!(parse(&changed), None, "byte {place}");
        }
        for length in 0..whole.len() {
            assert_eq!(parse(&whole[..length]), None, "{length} bytes");
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(
        kind in prop::sample::select(vec![REQUEST, SUCCESS, ERROR, 7]),
        body in prop::collection::vec(any::<u8>(), 0..80),
    ) {
        let mut message = Writer::new(kind, &id(&TRANSACTION)).0;
        message.extend(&body);
        message[3] = body.len() as u8;
        drop(parse(&body));
        if let Some(Message::Request(request)) = parse(&message) {
            let answer = request.answer(at("[2001:db8::7]:9"), full());
            prop_assert!(answer.len() * 10 <= message.len() * 22);
        }
    }

    #[test]
    fn attributes_in_any_order_are_read_or_refused(
        attributes in prop::collection::vec((any::<u16>(), prop::collection::vec(any::<u8>(), 0..24)), 0..6),
    ) {
        let mut writer = Writer::new(SUCCESS, &id(&TRANSACTION));
        for (kind, value) in &attributes {
            writer.attribute(*kind, value);
        }
        drop(parse(&writer.finish(true)));
    }
}

//! Garbage, truncated, oversized and replayed datagrams on every port.

use std::{net::UdpSocket, time::Duration};

use crate::{
    lab::{GATEWAY, GATEWAY_PORT, Lab, in_lab, status},
    site::{PUB, RB},
    world::wait_for,
};

/// Datagrams of every kind's first bytes and every length that matters, with bytes that differ.
fn garbage() -> Vec<Vec<u8>> {
    let heads: [&[u8]; 8] = [
        &[1, 0, 0, 0],
        &[2, 0, 0, 0],
        &[3, 0, 0, 0],
        &[4, 0, 0, 0],
        &[0xa2, 1, 8, 128],
        &[0xa3],
        &[0x20, 0, 0, 0],
        &[0, 1, 0, 8, 0x21, 0x12, 0xa4, 0x42],
    ];
    let mut all = vec![Vec::new()];
    for (number, head) in heads.iter().enumerate() {
        for length in [
            1, 3, 4, 16, 31, 32, 55, 56, 57, 60, 92, 148, 1280, 1500, 9000, 65_507,
        ] {
            let body = (0..length).map(|at: usize| (at * 31 + number * 7) as u8);
            let mut datagram = body.collect::<Vec<_>>();
            let shared = head.len().min(length);
            datagram[..shared].copy_from_slice(&head[..shared]);
            all.push(datagram);
        }
    }
    all
}

/// Sends all of it and asserts that nothing comes back.
fn unanswered(socket: &UdpSocket, target: &str, datagrams: &[Vec<u8>]) {
    for datagram in datagrams {
        // A kernel that refuses to send (too long for the path) is no fault of the target's.
        drop(socket.send_to(datagram, target));
    }
    socket
        .set_read_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    let answer = socket.recv(&mut [0; 2048]);
    assert!(answer.is_err(), "{target} answers a stranger");
}

fn drops(lab: &Lab) -> u64 {
    let status = status(&lab.site.b);
    status["drops"]
        .as_object()
        .unwrap()
        .values()
        .filter_map(serde_json::Value::as_u64)
        .sum()
}

fn everything_runs(lab: &mut Lab) {
    for process in [
        &mut lab.registry,
        &mut lab.gateway,
        &mut lab.node_a,
        &mut lab.node_b,
    ] {
        assert!(process.as_mut().unwrap().is_running());
    }
    lab.page_within(Duration::from_secs(5), "the page after all that");
}

#[test]
fn on_a_nodes_port_is_counted_and_not_answered() {
    in_lab(|lab| {
        lab.trust("tcp/8000");
        let _server = lab.serve_page();
        let before = drops(lab);
        let garbage = garbage();

        unanswered(&lab.site.rb.udp("0.0.0.0:0"), "10.0.2.2:16200", &garbage);

        wait_for("it is counted", || {
            drops(lab) >= before + garbage.len() as u64 / 2
        });
        everything_runs(lab);
    });
}

#[test]
fn on_the_gateways_port_is_counted_and_not_answered() {
    in_lab(|lab| {
        lab.trust("tcp/8000");
        let _server = lab.serve_page();

        // A frame of an unknown hop gets a Reset, shorter than itself; nothing else gets anything.
        let garbage = garbage();
        let frames = |datagram: &Vec<u8>| datagram.len() >= 56 && datagram[0] == 0xa2;
        let (frames, others) = garbage.into_iter().partition::<Vec<_>, _>(frames);
        unanswered(&lab.site.rb.udp("0.0.0.0:0"), GATEWAY, &others);
        let socket = lab.site.rb.udp("0.0.0.0:0");
        for frame in &frames {
            socket.send_to(frame, GATEWAY).unwrap();
            if let Ok(length) = socket.recv(&mut [0; 2048]) {
                assert!(length < 56, "{length} bytes to a stranger");
            }
        }

        everything_runs(lab);
        let counted = lab
            .site
            .public
            .ok("agentnet gateway status --json --config /var/lib/gateway/gateway.toml");
        assert!(counted.contains("drops"), "{counted}");
    });
}

#[test]
fn replayed_datagrams_change_nothing() {
    in_lab(|lab| {
        let capture = lab.site.public.capture();
        lab.trust("tcp/8000");
        let _server = lab.serve_page();
        lab.page_within(Duration::from_secs(5), "the page");
        let frames = capture.finish();
        let towards = |port: u16| {
            let udp = frames.iter().filter_map(|frame| frame.udp());
            udp.filter(move |(_, to, _)| *to == port)
                .map(|(_, _, data)| data.to_vec())
        };
        let to_gateway = towards(GATEWAY_PORT).collect::<Vec<_>>();
        assert!(to_gateway.len() > 10);

        let at_b = lab.site.b.capture();
        let stranger = lab.site.public.udp(&format!("{PUB}:0"));
        for datagram in &to_gateway {
            stranger.send_to(datagram, GATEWAY).unwrap();
            let bare = datagram.get(56..).filter(|bare| !bare.is_empty());
            if let Some(bare) = bare {
                stranger.send_to(bare, GATEWAY).unwrap();
                lab.site
                    .rb
                    .enter(|| drop(stranger.send_to(bare, (RB, 16200))));
            }
        }

        // Frames have passed once; none is forwarded again, and the sessions are as they were.
        everything_runs(lab);
        let inner = at_b.finish();
        let pages = inner
            .iter()
            .filter(|frame| frame.has(b"GET / HTTP") && frame.bytes[0] >> 4 == 6);
        assert!(pages.count() <= 2, "an old request came again");
    });
}

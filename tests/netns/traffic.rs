//! Plain programs over plain sockets; the scope of consent; what the underlay shows.

use std::{fs, net::UdpSocket, time::Duration};

use crate::{
    lab::{A, B, GATEWAY_PORT, Lab, MARKER, address, in_lab, serve},
    world::{Host, World, wait_for, wait_within},
};

/// Longest wait for something that must not come: a SYN and its first repetition.
const NO_ANSWER: &str = "--max-time 2.5";

#[test]
fn curl_fetches_a_page_by_name() {
    in_lab(|lab| {
        lab.trust("tcp/8000");
        let _server = lab.serve_page();

        let page = lab
            .site
            .a
            .ok(&format!("curl -sS --max-time 5 http://{B}:8000/"));

        assert!(page.contains(MARKER));
        assert!(
            lab.site
                .a
                .ok(&format!("agentnet ping {B} tcp/8000"))
                .contains("open")
        );
    });
}

#[test]
fn a_large_file_arrives_whole() {
    in_lab(|lab| {
        lab.trust("tcp/8000");
        let _server = lab.serve_page();
        let (a, b) = (&lab.site.a, &lab.site.b);
        b.ok("head -c 8000000 /dev/urandom > /mnt/www/big");

        a.ok(&format!(
            "curl -sS --max-time 15 -o /mnt/got http://{B}:8000/big"
        ));

        a.ok("cmp /mnt/got /mnt/www/big");
    });
}

#[test]
fn two_plain_udp_sockets_talk() {
    in_lab(|lab| {
        lab.trust("udp/5000");
        let (ours, theirs) = (lab.site.a.udp("[::]:0"), lab.site.b.udp("[::]:5000"));
        let b = address(&lab.site.b);

        let (question, from) = delivered(&ours, &format!("[{b}]:5000"), &theirs);
        assert_eq!(question, b"ping");
        assert!(from.contains(&address(&lab.site.a)));

        theirs.send_to(b"pong", &from).unwrap();
        let mut buffer = [0; 16];
        ours.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        assert_eq!(ours.recv(&mut buffer).unwrap(), 4);
    });
}

/// Sends `ping` until it comes out of `there`; UDP may lose the first ones.
fn delivered(here: &UdpSocket, to: &str, there: &UdpSocket) -> (Vec<u8>, String) {
    wait_within(Duration::from_secs(5), "a datagram is delivered", || {
        here.send_to(b"ping", to).unwrap();
        let mut buffer = [0; 16];
        let (length, from) = there.recv_from(&mut buffer).ok()?;
        Some((buffer[..length].to_vec(), from.to_string()))
    })
}

#[test]
fn netcat_and_ping_work() {
    in_lab(|lab| {
        lab.trust("tcp/7000");
        let (a, b) = (&lab.site.a, &lab.site.b);
        let server = b.start("exec nc -6 -l 7000");
        wait_for("nc listens", || b.ok("ss -ltn").contains(":7000 "));

        a.ok(&format!("echo {MARKER} | nc -N {B} 7000"));
        assert_eq!(server.finish(Duration::from_secs(5)).stdout.trim(), MARKER);

        let ping = a.ok(&format!("ping -c 3 -i 0.2 -W 2 {B}"));
        assert!(ping.contains(" 3 received"), "{ping}");
    });
}

#[test]
fn what_was_not_allowed_does_not_answer() {
    in_lab(|lab| {
        lab.trust("tcp/8000");
        let (a, b) = (&lab.site.a, &lab.site.b);
        let _servers = (lab.serve_page(), serve(b, 8001), serve(a, 8000));
        assert!(lab.page_arrives() || lab.page_arrives());

        // 28: no answer at all until the time was up.
        a.fails(28, &format!("curl -sS {NO_ANSWER} http://{B}:8001/"));
        b.fails(
            28,
            &format!("curl -sS {NO_ANSWER} http://[{}]:8000/", address(a)),
        );
        let by_name = b.run(&format!("curl -sS {NO_ANSWER} http://{A}:8000/"));
        assert_ne!(by_name.code, 0, "{by_name}");
        a.fails(5, &format!("agentnet ping {B} tcp/8001"));

        assert!(lab.page_arrives());
    });
}

#[test]
fn b_reaches_a_once_a_allows_it() {
    in_lab(|lab| {
        let (a, b) = (&lab.site.a, &lab.site.b);
        fs::create_dir_all(World::path("www")).unwrap();
        let _server = serve(a, 9000);

        a.ok(&format!("agentnet trust request {B} --allow tcp/9000"));
        wait_for("the request arrives", || {
            b.ok("agentnet trust pending").contains(A)
        });
        b.ok(&format!("agentnet trust approve {A}"));

        wait_for("b reaches a", || {
            b.run(&format!("curl -sS --max-time 1 http://{A}:9000/"))
                .code
                == 0
        });
        a.fails(
            28,
            &format!("curl -sS {NO_ANSWER} http://[{}]:9000/", address(b)),
        );
    });
}

/// Joins agent `y` on host b, beside `b`; returns its address.
fn second_agent(lab: &Lab) -> String {
    lab.site
        .b
        .ok("agentnet join --token-file /mnt/all.token --name y");
    wait_within(Duration::from_secs(10), "y is up", || {
        let status = crate::lab::status(&lab.site.b);
        let agents = status["agents"].as_array().unwrap();
        let y = agents
            .iter()
            .find(|agent| agent["name"] == "y.acme.agent")?;
        let attached = y["gateway"]["state"] == "connected";
        attached.then(|| y["address"].as_str().unwrap().to_owned())
    })
}

#[test]
fn one_agent_of_a_host_is_no_way_to_another() {
    in_lab(|lab| {
        let y = second_agent(lab);
        let (a, b) = (&lab.site.a, &lab.site.b);
        a.ok(&format!("agentnet trust request {B}"));
        let pending = "agentnet trust pending --agent b.acme.agent";
        wait_for("the request arrives", || b.ok(pending).contains(A));
        b.ok(&format!(
            "agentnet trust approve {A} --allow any --agent b.acme.agent"
        ));
        let _server = lab.serve_page();
        lab.page_within(Duration::from_secs(5), "the page of b");

        let at_b = b.capture();
        let to_y = format!("curl -sS {NO_ANSWER} http://[{y}]:8000/");
        assert_ne!(a.run(&to_y).code, 0);
        a.fails(1, &format!("ping -c 1 -W 1 {y}"));
        // Even when a's kernel is told to send y's packets down b's way.
        a.ok(&format!(
            "ip -6 route replace {y}/128 via {} dev agn0 onlink",
            octets_of(b)
        ));
        assert_ne!(a.run(&to_y).code, 0);

        let y = y.parse::<std::net::Ipv6Addr>().unwrap().octets();
        let reached = at_b
            .finish()
            .into_iter()
            .filter(|frame| frame.has(&y))
            .count();
        assert_eq!(reached, 0);
        assert!(lab.page_arrives());
    });
}

/// Returns the address of agent `b`, the first of its host.
fn octets_of(b: &Host) -> String {
    let status = crate::lab::status(b);
    let agents = status["agents"].as_array().unwrap();
    let agent = agents.iter().find(|agent| agent["name"] == B).unwrap();
    agent["address"].as_str().unwrap().to_owned()
}

#[test]
fn the_underlay_shows_no_payload_no_name_and_no_address() {
    in_lab(|lab| {
        let capture = lab.site.public.capture();
        lab.trust("tcp/8000");
        let _server = lab.serve_page();
        lab.page_within(Duration::from_secs(5), "the page");
        lab.site.a.ok(&format!("ping -c 1 -W 2 {B}"));

        let frames = capture.finish();
        let relayed = frames.iter().filter_map(|frame| frame.udp());
        let relayed = relayed.filter(|(from, to, _)| [*from, *to].contains(&GATEWAY_PORT));
        let relayed = relayed.map(|(_, _, data)| data).collect::<Vec<_>>();
        assert!(relayed.len() > 10, "{} datagrams", relayed.len());
        let address = |host| {
            address(host)
                .parse::<std::net::Ipv6Addr>()
                .unwrap()
                .octets()
        };
        let (a, b) = (address(&lab.site.a), address(&lab.site.b));
        for secret in [
            MARKER.as_bytes(),
            b"acme",
            b"b\x04acme\x05agent",
            &a,
            &b,
            &a[..8],
        ] {
            let seen = frames.iter().filter(|frame| frame.has(secret)).count();
            assert_eq!(seen, 0, "{:?}", String::from_utf8_lossy(secret));
        }
        // protocol.md section 4: WireGuard messages (attach) and A2G frames with such or packets of a data
        // channel, nothing else.
        for data in relayed {
            let known = matches!(data, [1..=4, 0, 0, 0, ..] | [0xa2, ..]);
            assert!(known, "{data:02x?}");
            let payload = data.get(56..60).filter(|_| data[0] == 0xa2);
            assert!(
                payload.is_none_or(|head| matches!(head, [1..=4 | 0x20, 0, 0, 0])),
                "{data:02x?}"
            );
        }
    });
}

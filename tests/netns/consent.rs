//! Nothing before consent; asking, answering, and automatic answers.

use std::{thread, time::Duration};

use crate::{
    capture::Frame,
    lab::{A, B, address, in_lab, sent, serve},
    site::RB,
    world::{wait_for, wait_within},
};

/// How long silence is listened to: longer than any reaction takes.
const SILENCE: Duration = Duration::from_secs(3);
/// Within what time a request must be on the other agent's table.
const PUSHED: Duration = Duration::from_secs(2);

#[test]
fn before_consent_a_name_does_not_exist() {
    in_lab(|lab| {
        let (a, b) = (&lab.site.a, &lab.site.b);
        let comments = "dig +noall +comments +tries=1";

        let hidden = a.ok(&format!("{comments} {B} AAAA"));
        let absent = a.ok(&format!("{comments} nobody.acme.agent AAAA"));
        let reverse = a.ok(&format!("{comments} -x {}", address(b)));

        for answer in [&hidden, &absent, &reverse] {
            assert!(answer.contains("status: NXDOMAIN"), "{answer}");
        }
        let shape = |answer: &str| answer.lines().last().map(str::to_owned);
        assert_eq!(shape(&hidden), shape(&absent));
        a.fails(2, &format!("getent ahosts {B}"));
        a.fails(4, &format!("agentnet ping {B}"));
    });
}

#[test]
fn before_consent_packets_to_an_address_reach_nobody_and_b_is_silent() {
    in_lab(|lab| {
        let (a, b) = (&lab.site.a, &lab.site.b);
        let hidden = address(b);
        // Another interface id of the same network: nobody's address.
        let absent = format!(
            "{}:1:2:3:4",
            hidden.split(':').take(4).collect::<Vec<_>>().join(":")
        );
        let _server = serve(b, 8000);
        let from_b = b.capture();

        let probe = |address: &str| {
            let ping = a.run(&format!("ping -c 2 -W 1 {address}"));
            assert!(ping.stdout.contains(" 0 received"), "{ping}");
            let page = a.run(&format!("curl -sS --max-time 2 http://[{address}]:8000/"));
            let udp = a.udp("[::]:0");
            udp.send_to(b"anyone there?", format!("[{address}]:5000"))
                .unwrap();
            assert!(udp.recv(&mut [0; 16]).is_err());
            page.code
        };
        assert_ne!(probe(&hidden), 0);
        assert_eq!(
            probe(&hidden),
            probe(&absent),
            "a stranger can tell hidden from absent"
        );
        thread::sleep(SILENCE);

        let frames = from_b.finish();
        assert_eq!(sent(&frames).len(), 0, "b says something to its gateway");
        let reached: Vec<&Frame> = frames.iter().filter(|frame| frame.into_tun).collect();
        assert_eq!(reached.len(), 0, "something of a reached b's device");

        // What consent lets in is seen there.
        let from_b = b.capture();
        lab.trust("tcp/8000");
        let page = format!("curl -sS --max-time 2 http://{B}:8000/");
        wait_for("the page arrives", || a.run(&page).code == 0);
        assert!(from_b.finish().iter().any(|frame| frame.into_tun));
    });
}

#[test]
fn knowing_where_a_node_is_gives_no_answer_either() {
    in_lab(|lab| {
        let from_b = lab.site.b.capture();
        let stranger = lab.site.rb.udp("0.0.0.0:0");

        // From b's own router, so that no filter stands between: handshake, frame, STUN, discover.
        for head in [
            &[1, 0, 0, 0][..],
            &[0xa2, 1],
            &[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42],
            &[0xa3],
        ] {
            let mut datagram = vec![0; 148];
            datagram[..head.len()].copy_from_slice(head);
            stranger.send_to(&datagram, "10.0.2.2:16200").unwrap();
        }
        thread::sleep(SILENCE);

        assert!(stranger.recv(&mut [0; 2048]).is_err());
        let port = stranger.local_addr().unwrap().port();
        let answers = from_b.finish();
        let answers = answers
            .iter()
            .filter(|f| f.udp().is_some_and(|(_, to, _)| to == port));
        assert_eq!(answers.count(), 0, "{RB} answered");
    });
}

#[test]
fn a_request_is_shown_within_two_seconds_with_who_asks_and_why() {
    in_lab(|lab| {
        let (a, b) = (&lab.site.a, &lab.site.b);

        a.ok(&format!(
            "agentnet trust request {B} --allow tcp/9000 --reason 'to fetch the plan'"
        ));

        let pending = wait_within(PUSHED, "the request is pending", || {
            let shown = b.ok("agentnet trust pending");
            shown.contains(A).then_some(shown)
        });
        assert!(
            pending.contains("to fetch the plan") && pending.contains("tcp/9000"),
            "{pending}"
        );
        assert!(b.ok("agentnet trust pending --json").contains(&address(a)));
        a.fails(2, &format!("getent ahosts {B}"));
    });
}

#[test]
fn approval_makes_trust_both_ways_and_both_see_it() {
    in_lab(|lab| {
        lab.trust("tcp/8000");

        let (a, b) = (&lab.site.a, &lab.site.b);
        let seen = a.ok(&format!("getent ahosts {B}"));
        assert!(seen.contains(&address(b)), "{seen}");
        for (host, other) in [(a, B), (b, A)] {
            assert!(host.ok("agentnet trust list").contains(other));
            assert!(!host.ok("agentnet trust pending").contains(other));
            assert!(host.ok("agentnet peers").contains(other));
        }
        assert!(a.ok(&format!("agentnet whois {}", address(b))).contains(B));
        a.ok(&format!("agentnet ping {B}"));
    });
}

#[test]
fn deny_and_silence_look_the_same() {
    in_lab(|lab| {
        let (a, b) = (&lab.site.a, &lab.site.b);
        a.ok(&format!("agentnet trust request {B}"));
        let asked = a.ok("agentnet trust pending --json");
        wait_for("the request arrives", || {
            b.ok("agentnet trust pending").contains(A)
        });

        let from_b = b.capture();
        b.ok(&format!("agentnet trust deny {A}"));
        thread::sleep(SILENCE);

        assert_eq!(sent(&from_b.finish()).len(), 0);
        assert!(!b.ok("agentnet trust pending").contains(A));
        let outgoing = |json: &str| {
            let json = serde_json::from_str::<serde_json::Value>(json).unwrap();
            json["outgoing"].clone()
        };
        assert_eq!(
            outgoing(&a.ok("agentnet trust pending --json")),
            outgoing(&asked)
        );
        a.fails(2, &format!("getent ahosts {B}"));
        a.fails(4, &format!("agentnet ping {B}"));
    });
}

#[test]
fn a_request_to_nobody_is_taken_like_any_other() {
    in_lab(|lab| {
        let ask = |name: &str| lab.site.a.ok(&format!("agentnet trust request {name}"));

        let known = ask(B).replace(B, "NAME");
        let unknown = ask("nobody.acme.agent").replace("nobody.acme.agent", "NAME");

        assert_eq!(known, unknown);
    });
}

#[test]
fn with_a_rule_for_it_nobody_needs_to_approve() {
    in_lab(|lab| {
        let (a, b) = (&lab.site.a, &lab.site.b);
        b.ok("agentnet trust auto add --from 'a' --allow tcp/8000");
        assert!(b.ok("agentnet trust auto list").contains("tcp/8000"));

        a.ok(&format!("agentnet trust request {B}"));

        let _server = lab.serve_page();
        lab.page_within(PUSHED * 2, "the rule answers and the page arrives");

        b.ok("agentnet trust auto remove --from 'a'");
        assert!(!b.ok("agentnet trust auto list").contains("tcp/8000"));
    });
}

/// P-012: who asks for the other and names what it offers has said yes; when both did, trust stands.
#[test]
fn two_who_ask_each_other_need_no_approval() {
    in_lab(|lab| {
        let _server = lab.serve_page();
        let (a, b) = (&lab.site.a, &lab.site.b);
        b.ok(&format!("agentnet trust request {A} --allow tcp/8000"));
        wait_for("a is asked", || a.ok("agentnet trust pending").contains(B));
        assert!(!lab.page_arrives());

        a.ok(&format!("agentnet trust request {B}"));

        lab.page_within(Duration::from_secs(20), "the page");
        for (host, other) in [(a, B), (b, A)] {
            wait_for("nothing waits", || {
                !host.ok("agentnet trust pending").contains(other)
            });
        }
        assert!(b.ok("agentnet trust list").contains("tcp/8000"));
        assert!(!a.ok("agentnet trust list").contains("any"));
    });
}

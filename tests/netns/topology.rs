//! The worlds themselves: what the scenarios take for granted is so.

use std::{fs, net::UdpSocket, time::Duration};

use crate::site::{PUB, RA, RB, Site};
use crate::world::{Host, in_world, now, wait_for};

/// Returns what arrives at `socket` within its time-out, and from where.
fn heard(socket: &UdpSocket) -> Option<(Vec<u8>, String)> {
    let mut buffer = [0; 2048];
    let (length, from) = socket.recv_from(&mut buffer).ok()?;
    Some((buffer[..length].to_vec(), from.to_string()))
}

fn reaches(from: &Host, address: &str) -> bool {
    from.run(&format!("ping -c 1 -W 1 -q {address}")).code == 0
}

#[test]
fn a_world_of_five_hosts_is_made_within_two_seconds() {
    in_world(|world| {
        let start = now();

        let site = Site::new(world);

        // Half a second on an idle machine; the bound leaves room for a busy one.
        assert!(
            start.elapsed() < Duration::from_secs(2),
            "{:?}",
            start.elapsed()
        );
        assert_eq!(site.a.ok("hostname"), "a");
    });
}

#[test]
fn both_hosts_reach_the_public_one_and_not_each_other() {
    in_world(|world| {
        let site = Site::new(world);

        assert!(reaches(&site.a, PUB) && reaches(&site.b, PUB));
        assert!(!reaches(&site.a, "10.0.2.2") && !reaches(&site.b, "10.0.1.2"));
        assert!(!reaches(&site.a, RB) && !reaches(&site.public, RA));
        assert!(reaches(&site.rb, PUB));
    });
}

#[test]
fn a_router_keeps_the_source_port_and_drops_what_nobody_asked_for() {
    in_world(|world| {
        let site = Site::new(world);
        let public = site.public.udp(&format!("{PUB}:3478"));
        let (a, b) = (site.a.udp("0.0.0.0:41641"), site.b.udp("0.0.0.0:41641"));

        public.send_to(b"unsolicited", (RA, 41641)).unwrap();
        assert_eq!(heard(&a), None);

        a.send_to(b"hello", (PUB, 3478)).unwrap();
        assert_eq!(
            heard(&public),
            Some((b"hello".to_vec(), format!("{RA}:41641")))
        );
        public.send_to(b"answer", (RA, 41641)).unwrap();
        assert_eq!(heard(&a), Some((b"answer".to_vec(), format!("{PUB}:3478"))));

        b.send_to(b"stranger", (RA, 41641)).unwrap();
        assert_eq!(heard(&a), None);
    });
}

#[test]
fn two_hosts_that_send_to_each_other_punch_through_both_routers() {
    in_world(|world| {
        let site = Site::new(world);
        let (a, b) = (site.a.udp("0.0.0.0:41641"), site.b.udp("0.0.0.0:41641"));

        b.send_to(b"first", (RA, 41641)).unwrap();
        a.send_to(b"second", (RB, 41641)).unwrap();

        assert_eq!(heard(&b), Some((b"second".to_vec(), format!("{RA}:41641"))));
    });
}

#[test]
fn a_host_has_its_own_etc_run_state_and_interfaces() {
    let before = fs::read("/etc/resolv.conf").ok();
    in_world(|world| {
        let (a, b) = (world.host("a"), world.host("b"));

        a.ok("echo nameserver 192.0.2.1 > /etc/.r && mv /etc/.r /etc/resolv.conf");
        a.ok("echo x > /run/x && echo y > /var/lib/y && ip tuntap add dev agn0 mode tun");

        assert_eq!(a.ok("cat /etc/resolv.conf"), "nameserver 192.0.2.1");
        assert_eq!(
            b.ok("cat /etc/resolv.conf; ls /run /var/lib; ls /sys/class/net")
                .matches('x')
                .count(),
            0
        );
        assert!(a.ok("ls /sys/class/net").contains("agn0"));
        assert!(!b.ok("ls /sys/class/net").contains("agn0"));
    });
    assert_eq!(fs::read("/etc/resolv.conf").ok(), before);
}

#[test]
fn a_capture_shows_what_passed() {
    in_world(|world| {
        let site = Site::new(world);
        let capture = site.public.capture();
        let server = site.public.start(&format!("exec nc -l {PUB} 7000"));
        wait_for("nc listens", || site.public.ok("ss -ltn").contains(":7000"));

        site.a
            .ok(&format!("echo marker-in-the-clear | nc -N {PUB} 7000"));
        let marked = capture
            .finish()
            .iter()
            .filter(|frame| frame.has(b"marker-in-the"))
            .count();
        assert!(marked > 0);
        assert_eq!(
            server.finish(Duration::from_secs(5)).stdout,
            "marker-in-the-clear\n"
        );
    });
}

#[test]
fn a_capture_reads_udp_and_when_it_passed() {
    in_world(|world| {
        let site = Site::new(world);
        let (router, start) = (site.ra.capture(), now());

        site.a
            .udp("0.0.0.0:41641")
            .send_to(b"knock", (PUB, 3478))
            .unwrap();
        wait_for("the datagram passes", || !router.frames().is_empty());

        let frames = router.finish();
        let knock = frames
            .iter()
            .find(|frame| frame.udp() == Some((41641, 3478, b"knock")));
        assert!(knock.unwrap().at.duration_since(start) < Duration::from_secs(5));
    });
}

#[test]
fn a_process_ends_with_its_handle() {
    in_world(|world| {
        let a = world.host("a");
        let is_there = || a.run("pgrep -x sleep").code == 0;

        let dropped = a.start("exec sleep 1000");
        wait_for("it runs", is_there);
        drop(dropped);
        assert!(!is_there());

        assert_eq!(a.start("exec sleep 1000").stop().code, 128 + 15);
        a.start("exec sleep 1000").kill();
        assert!(!is_there());
        assert!(a.fails(3, "echo said; exit 3").contains("said"));
    });
}

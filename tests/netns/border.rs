//! A network that gives no locators but gateways, on the kernel.

use std::{net::Ipv4Addr, time::Duration};

use crate::{
    capture::Frame,
    lab::{B, Lab, status},
    path_command::report,
    site::{PUB, RA, RB},
    world::{World, in_world},
};

const LONGEST: Duration = Duration::from_secs(30);

/// Returns the ends of an IPv4 packet.
fn ends(frame: &Frame) -> Option<[Ipv4Addr; 2]> {
    let ip = frame
        .bytes
        .strip_prefix(&frame.bytes[..12])?
        .strip_prefix(&[8, 0])?;
    let end = |at: usize| Some(Ipv4Addr::from_octets(ip.get(at..at + 4)?.try_into().ok()?));
    Some([end(12)?, end(16)?])
}

/// A-014, F-034, F-047: nothing that either host or its router sends goes to the other, or to any place
/// but the public host, though both could reach each other directly.
#[test]
fn agents_of_a_border_network_are_known_by_their_gateway_alone() {
    in_world(|world: &World| {
        let mut lab = Lab::services_with(world, "", "--border");
        lab.join();
        let [a, b] = [&lab.site.ra, &lab.site.rb].map(|router| router.capture());
        lab.start_nodes();
        lab.trust("any");
        let server = lab.serve_page();
        lab.page_within(LONGEST, "the page comes by the gateway");
        let ping = lab.site.a.ok(&format!("ping -6 -c 25 -i 0.2 -W 5 {B}"));
        assert!(ping.contains(" 0% packet loss"), "{ping}");

        let seen = report(&lab.site.a, "b");
        let shown = status(&lab.site.a);
        let (a, b) = (a.finish(), b.finish());
        let public: Ipv4Addr = PUB.parse().unwrap();
        for (frames, own, other) in [(&a, "10.0.1.2", RB), (&b, "10.0.2.2", RA)] {
            let all = frames.iter().filter_map(ends).collect::<Vec<_>>();
            let own: Ipv4Addr = own.parse().unwrap();
            let other: Ipv4Addr = other.parse().unwrap();
            assert!(all.contains(&[own, public]));
            let strange = all.iter().find(|ends| !ends.contains(&public));
            assert_eq!(strange, None, "{other} is the other's");
            // Nor does any datagram of the gateway's tell one where it is: outside of all sessions, that
            // would be in clear.
            let spells = |ip: Ipv4Addr| {
                let told = frames.iter().filter_map(Frame::udp);
                let mut told = told.map(|(_, _, data)| data.windows(4).any(|w| w == ip.octets()));
                told.any(|found| found)
            };
            assert!(!spells(other), "{other}");
        }
        let seen_at = (&seen["mode"], &seen["not_direct"]["code"], &seen["path"]);
        let expected = (&"border".into(), &"border".into(), &"relay".into());
        assert_eq!(seen_at, expected, "{seen:#}");
        assert!(
            shown["agents"][0]["gateway"]["observed"].is_null(),
            "{shown:#}"
        );
        drop(server);
    });
}

//! What other programs of a host take away or have taken already.

use std::time::Duration;

use crate::{
    lab::{A, B, address, in_lab, start_node, status, wait_attached},
    stream::{ALLOW, QUICK, Stream, Transfer},
    world::{now, recovered, wait_for},
};

/// Somebody deletes the network device: it is made anew at once, and connections go on.
#[test]
fn a_device_that_was_deleted_is_made_anew() {
    in_lab(|lab| {
        lab.trust(ALLOW);
        let (a, b) = (&lab.site.a, &lab.site.b);
        let before = (address(b), b.ok("cat /etc/resolv.conf"));
        let stream = Stream::start(a, b, &address(b));
        stream.flows();
        let transfer = Transfer::start(a, b, &address(b), QUICK);

        let since = now();
        b.ok("ip link del agn0");
        let outage = stream.outage_since(since);

        recovered("a deleted device", outage);
        assert!(outage < Duration::from_secs(5), "{outage:?}");
        transfer.goes_on(100_000);
        transfer.arrives_whole();
        wait_for("the device is shown", || {
            status(b)["agents"][0]["device"] == "agn0"
        });
        assert_eq!((address(b), b.ok("cat /etc/resolv.conf")), before);
        wait_for("names are answered", || {
            b.run(&format!("getent ahosts {A}")).code == 0
        });
    });
}

/// Of several agents on one host, one whose port 53 another program has: the others' names are
/// answered, and `status` tells.
#[test]
fn a_name_server_in_the_way_of_one_agent_is_none_to_the_others() {
    in_lab(|lab| {
        lab.trust("tcp/8000");
        let a = &lab.site.a;
        a.ok("agentnet join --token-file /mnt/all.token --name second");
        let all = status(a);
        let second = all["agents"].as_array().unwrap().iter();
        let mut second = second.filter(|agent| agent["name"] == "second.acme.agent");
        let second = second.next().unwrap()["address"]
            .as_str()
            .unwrap()
            .to_owned();
        lab.node_a.take().unwrap().stop();
        // Bound before the address is there, as a program that starts first may be.
        let other = a.start(&format!(
            "exec python3 -c 'import socket, time; \
             s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); \
             s.setsockopt(socket.IPPROTO_IPV6, 78, 1); \
             s.bind((\"{second}\", 53)); print(\"bound\"); time.sleep(1000)'"
        ));
        wait_for("the other program is there", || {
            other.stdout().contains("bound")
        });

        lab.node_a = Some(start_node(a));
        wait_attached(a);

        wait_for("names are answered", || {
            a.run(&format!("getent ahosts {B}")).code == 0
        });
        let resolv = a.ok("cat /etc/resolv.conf");
        assert!(!resolv.contains(&second), "{resolv}");
        let text = a.ok("agentnet status");
        assert!(
            text.contains("names are not answered at the address of second.acme.agent"),
            "{text}"
        );
    });
}

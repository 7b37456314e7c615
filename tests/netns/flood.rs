//! Handshakes of strangers by the thousand at a gateway that two agents use.

use std::{
    net::UdpSocket,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use agentnet::{
    engine::session::{Session, SessionKeys},
    id::TunnelKey,
    os::clock,
    statement::{Gateway, Statement},
};
use serde_json::Value;

use crate::{
    lab::{GATEWAY, Lab, address},
    network::tunnel,
    relayed::relay_only,
    world::{in_world, measured, wait_for},
};

const CONFIG: &str = "--config /var/lib/gateway/gateway.toml";

/// Keys that nobody knows, and addresses they come from: within the limit of each source.
const STRANGERS: u16 = 1000;
const SOURCES: usize = 50;

/// Handshakes a second, far more than the 400 from which on a gateway asks for cookies.
const FLOOD: u32 = 3000;

/// What the agents' programs send a second, and for how long.
const RATE: u32 = 500;
const LENGTH: usize = 1000;
const LASTING: Duration = Duration::from_secs(4);

/// What a flood may cost a gateway: its queues are bounded.
const MOST: u64 = 32 << 10; // KiB

fn gateway_key(lab: &Lab) -> TunnelKey {
    let file = lab
        .site
        .public
        .ok(&format!("agentnet gateway peering {CONFIG}"));
    let file: Value = serde_json::from_str(&file).unwrap();
    let statement = file["gateways"][0].as_str().unwrap();
    Statement::<Gateway>::open(statement)
        .unwrap()
        .claims()
        .tunnel
}

fn gateway_status(lab: &Lab) -> Value {
    let status = lab
        .site
        .public
        .ok(&format!("agentnet gateway status --json {CONFIG}"));
    serde_json::from_str(&status).unwrap()
}

fn drops(lab: &Lab) -> u64 {
    let status = gateway_status(lab);
    let drops = status["drops"].as_object().unwrap();
    drops.values().filter_map(Value::as_u64).sum()
}

/// Returns what the gateway's memory holds, in KiB.
fn resident(lab: &Lab) -> u64 {
    let pid = lab.gateway.as_ref().unwrap().id();
    let line = lab
        .site
        .public
        .ok(&format!("grep VmRSS /proc/{pid}/status"));
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// First messages of handshakes, each with a key of its own, that begin as any agent's do.
fn handshakes(gateway: TunnelKey) -> Vec<Vec<u8>> {
    let one = |n| {
        let keys = SessionKeys {
            local: tunnel(n),
            peer: gateway,
            psk: None,
            index: u32::from(n),
        };
        let mut session = Session::new(&keys, clock::now());
        session.initiate(clock::now()).expect("it can begin")
    };
    (100..100 + STRANGERS).map(one).collect()
}

/// Does `act` so many times a second until `is_over`; tells how often.
fn pace(rate: u32, mut is_over: impl FnMut(Instant) -> bool, mut act: impl FnMut(u32)) -> u32 {
    let (begun, mut done) = (clock::now(), 0);
    while !is_over(begun) {
        let due = begun.elapsed().as_secs_f64() * f64::from(rate);
        while f64::from(done) < due {
            act(done);
            done += 1;
        }
        thread::sleep(Duration::from_millis(1));
    }
    done
}

/// Sends datagrams from A's program to B's at a steady rate; returns how many of a hundred arrive.
fn arriving(from: &UdpSocket, to: &UdpSocket) -> f64 {
    let at = to.local_addr().unwrap();
    let is_sent = AtomicBool::new(false);
    thread::scope(|scope| {
        let count = scope.spawn(|| {
            let (mut buffer, mut count) = ([0; 2 * LENGTH], 0_u32);
            loop {
                match to.recv(&mut buffer) {
                    Ok(_) => count += 1,
                    Err(_) if is_sent.load(Ordering::Relaxed) => return count,
                    Err(_) => {}
                }
            }
        });
        let is_over = |begun: Instant| begun.elapsed() > LASTING;
        let sent = pace(RATE, is_over, |_| {
            from.send_to(&[0x5a; LENGTH], at).unwrap();
        });
        is_sent.store(true, Ordering::Relaxed);
        f64::from(count.join().unwrap()) * 100.0 / f64::from(sent)
    })
}

/// Issue 5: an attach flood with random keys leaves established agents nine tenths of what they send, in
/// bounded memory, and those who come later attach.
#[test]
fn a_flood_of_handshakes_leaves_agents_their_rate() {
    in_world(|world| {
        let lab = &mut Lab::up(world);
        relay_only(lab);
        lab.trust("udp/9000");
        let sources = (100..100 + SOURCES).map(|n| format!("198.51.100.{n}"));
        let outside = world.host("s");
        lab.site.public.link("ps", &outside, "eth0");
        lab.site.public.ok("ip link set ps master br0");
        let strangers = sources.map(|ip| {
            outside.ok(&format!("ip addr add {ip}/24 dev eth0 nodad"));
            outside.udp(&format!("{ip}:0"))
        });
        let strangers = strangers.collect::<Vec<_>>();
        let handshakes = handshakes(gateway_key(lab));
        let from = lab.site.a.udp(&format!("[{}]:0", address(&lab.site.a)));
        let to = lab.site.b.udp(&format!("[{}]:9000", address(&lab.site.b)));
        wait_for("data arrives", || arrives(&from, &to));
        let (alone, held, dropped) = (arriving(&from, &to), resident(lab), drops(lab));

        let is_over = AtomicBool::new(false);
        let (kept, sent) = thread::scope(|scope| {
            let flood = scope.spawn(|| {
                let over = |_| is_over.load(Ordering::Relaxed);
                pace(FLOOD, over, |n| {
                    let n = n as usize;
                    let handshake = &handshakes[n % handshakes.len()];
                    // The kernel's queue may be full: nothing that a flood would mind.
                    drop(strangers[n % SOURCES].send_to(handshake, GATEWAY));
                })
            });
            wait_for("the flood arrives", || {
                drops(lab) > dropped + u64::from(FLOOD) / 5
            });
            let kept = arriving(&from, &to);
            is_over.store(true, Ordering::Relaxed);
            (kept, flood.join().unwrap())
        });

        let more = resident(lab).saturating_sub(held);
        let refused = drops(lab) - dropped;
        measured(&format!(
            "an agent at {RATE} datagrams a second by the gateway: {alone:.1} of 100 arrive alone, {kept:.1} \
             beside a flood of {sent} handshakes, {refused} of which the gateway dropped or refused; it \
             takes {more} KiB more"
        ));
        assert!(alone > 98.0, "{alone}");
        assert!(kept >= alone * 0.9, "{kept} of {alone}");
        assert!(more < MOST, "{more} KiB");
        assert!(lab.gateway.as_mut().unwrap().is_running());
        relay_only(lab);
        wait_for("data arrives again", || arrives(&from, &to));
    });
}

/// Tells whether a datagram of A's program comes to B's.
fn arrives(from: &UdpSocket, to: &UdpSocket) -> bool {
    from.send_to(b"hello", to.local_addr().unwrap()).unwrap();
    to.recv(&mut [0; 16]).is_ok()
}

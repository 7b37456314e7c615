//! Micro-benchmarks of what every packet, frame and statement costs: `cargo bench --bench micro`.

use std::{hint::black_box, net::Ipv6Addr, time::Duration};

use agentnet::dataplane::measure::{Coalescer, Loop, coalesce, split};
use agentnet::engine::window::ReplayWindow;
use agentnet::gateway::measure::Table;
use agentnet::id::{IdentityKey, NetworkId, OverlayIp};
use agentnet::os::clock;
use agentnet::policy::{Filter, Limits, Pair};
use agentnet::statement::{Chain, Revocations, Scope, issue};
use agentnet::wire::a2g::{Direction, Header, HopKeys};
use agentnet::wire::channel::Suite;
use agentnet::wire::ip::Ipv6View;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use etherparse::PacketBuilder;
use ipnet::Ipv6Net;

/// A packet on a path of Ethernet frames, and what TCP gives a device at once.
const PACKET: usize = 1440;
const SUPER: usize = 44 * (PACKET - HEADERS) + HEADERS;
const HEADERS: usize = 60;

fn ip(n: u16) -> OverlayIp {
    let address = Ipv6Addr::new(0xfdaa, 0xbbcc, 0xddee, 1, 0, 0, 0, n);
    OverlayIp::new(address).expect("an overlay address")
}

fn pair() -> Pair {
    Pair {
        local: ip(1),
        peer: ip(2),
    }
}

/// Makes a TCP segment of `length` bytes.
fn segment(from: u16, to: u16, sequence: u32, length: usize) -> Vec<u8> {
    let step = PacketBuilder::ipv6(ip(from).ip().octets(), ip(to).ip().octets(), 64);
    let step = step.tcp(40_000, 8000, sequence, 65_000).ack(1);
    let mut packet = Vec::new();
    let payload = vec![0x5a; length - HEADERS];
    step.write(&mut packet, &payload).expect("a segment");
    packet
}

fn channel(criterion: &mut Criterion) {
    for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
        for length in [104, PACKET] {
            let plain = segment(1, 2, 1, length);
            let mut group = criterion.benchmark_group(format!("channel {suite:?} {length}"));
            group.throughput(Throughput::Bytes(length as u64));
            let mut channel = Loop::new(suite);
            let mut out = vec![0; length + Loop::OVERHEAD];
            group.bench_function("seal", |bencher| {
                bencher.iter(|| channel.seal(black_box(&plain), &mut out));
            });
            group.bench_function("open", |bencher| {
                let sealed = || {
                    let mut out = vec![0; length + Loop::OVERHEAD];
                    assert!(channel.seal(&plain, &mut out));
                    out
                };
                // Two channels would need two keys; what one seals it opens too.
                let packets = std::iter::repeat_with(sealed)
                    .take(100_000)
                    .collect::<Vec<_>>();
                let mut next = packets.into_iter().cycle();
                let mut channel = Loop::new(suite);
                bencher.iter_batched_ref(
                    || next.next().expect("a packet"),
                    |packet| channel.open(packet),
                    BatchSize::SmallInput,
                );
            });
            group.finish();
        }
    }
}

fn offloads(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("offload");
    group.throughput(Throughput::Bytes(SUPER as u64));
    // VIRTIO 1.2 section 5.1.6: a checksum to make, TCP over IPv6, header length, size, start, offset.
    let mut read = vec![1, 4];
    for field in [HEADERS, PACKET - HEADERS, 40, 16] {
        read.extend(u16::try_from(field).expect("a small field").to_ne_bytes());
    }
    read.extend(segment(1, 2, 1, SUPER));
    group.bench_function("split", |bencher| {
        bencher.iter_batched_ref(
            || read.clone(),
            |read| {
                split(read, PACKET, |piece| {
                    black_box(piece);
                })
            },
            BatchSize::SmallInput,
        );
    });
    let mut pieces = Vec::new();
    assert!(split(&mut read.clone(), PACKET, |piece| pieces.extend(piece)));
    let mut merger = Coalescer::default();
    assert_eq!(coalesce(&mut merger, ip(2), &pieces, PACKET), 1);
    group.bench_function("coalesce", |bencher| {
        bencher.iter(|| coalesce(&mut merger, ip(2), black_box(&pieces), PACKET));
    });
    group.finish();
}

fn filter(criterion: &mut Criterion) {
    let now = clock::now();
    let mut filter = Filter::new(Limits::default(), now);
    let packet = segment(2, 1, 1, 104);
    let view = Ipv6View::parse(&packet).expect("a packet");
    criterion.bench_function("filter inbound", |bencher| {
        bencher.iter(|| filter.inbound(pair(), black_box(&view), &[Scope::Any], now));
    });
}

fn window(criterion: &mut Criterion) {
    let (mut window, mut id) = (ReplayWindow::new(), 0);
    criterion.bench_function("replay window", |bencher| {
        bencher.iter(|| {
            id += 1;
            // As ids come by two ways: some older than the newest.
            window.take(black_box(id ^ 7))
        });
    });
}

fn frame(criterion: &mut Criterion) {
    let keys = HopKeys::derive(&[7; 32], Direction::Up);
    let header = Header::data(1, 1, ip(2), ip(1));
    let mut frame = header.frame(&keys, &segment(1, 2, 1, PACKET));
    criterion.bench_function("frame seal", |bencher| {
        bencher.iter(|| header.seal(&keys, black_box(&mut frame)));
    });
    criterion.bench_function("frame open", |bencher| {
        bencher.iter(|| Header::open(&keys, black_box(&frame)).is_ok());
    });
}

/// The forwarding table: an agent attached here, as with the addresses of keys, and one behind a prefix.
fn table(criterion: &mut Criterion) {
    let agents: Vec<OverlayIp> = (0..100_000_u64)
        .map(|n| {
            let interface = n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
            let [a, b, c, d] = *interface.as_chunks::<2>().0 else {
                unreachable!("8 bytes are four times 2");
            };
            let [a, b, c, d] = [a, b, c, d].map(u16::from_be_bytes);
            let address = Ipv6Addr::new(0xfdaa, 0xbbcc, 0xddee, 1, a, b, c, d);
            OverlayIp::new(address).expect("an overlay address")
        })
        .collect();
    let prefixes: Vec<_> = (0..1000)
        .map(|n| Ipv6Net::new_assert(Ipv6Addr::new(0xfd01, n, 0, 0, 0, 0, 0, 0), 48))
        .collect();
    let far = OverlayIp::new(Ipv6Addr::new(0xfd01, 500, 0, 7, 1, 2, 3, 4));
    let far = far.expect("an overlay address");
    let table = Table::new(&agents, &prefixes);
    let mut group = criterion.benchmark_group("mft 100000 agents");
    let mut next = agents.iter().cycle().step_by(7919);
    group.bench_function("exact", |bencher| {
        bencher.iter(|| table.finds(*black_box(next.next().expect("an agent"))));
    });
    group.bench_function("longest prefix", |bencher| {
        bencher.iter(|| table.finds(black_box(far)));
    });
    group.finish();
}

fn chain(criterion: &mut Criterion) {
    let (owner, agent) = (
        IdentityKey::from_seed([1; 32]),
        IdentityKey::from_seed([2; 32]),
    );
    let unix = clock::unix();
    let prefix = "fdaa:bbcc:ddee:1::/64".parse().expect("a prefix");
    let network = NetworkId::from(owner.did());
    let label = "acme".parse().expect("a name");
    let root = issue::root_grant(&owner, label, prefix, unix).expect("a root grant");
    let name = "a".parse().expect("a name");
    let until = unix + Duration::from_secs(3600);
    let grant = issue::agent_grant(&owner, &root, agent.did(), &name, unix, until);
    let grant = grant.expect("a grant");
    let links = [root.text().to_owned(), grant.text().to_owned()];
    let none = Revocations::default();
    criterion.bench_function("chain check", |bencher| {
        bencher.iter(|| {
            let chain = Chain::parse(black_box(&links)).expect("a chain");
            chain.verify(&network, &none, unix).expect("a member")
        });
    });
}

criterion_group!(
    benches, channel, offloads, filter, window, frame, table, chain
);
criterion_main!(benches);

//! `agentnet run --share-net`: a program with its agent's network and its host's.

use std::{fs, time::Duration};

use crate::{
    host_dns::{lease, nameserver},
    lab::{B, MARKER},
    process::Proc,
    run::{USER, befriend, open_house, wait_for_the_end},
    site::PUB,
    surroundings::changes,
    world::{Host, World, in_world, measured, wait_for},
};

/// Where servers of the world listen: a file, an end after the beginning, a reset, datagrams.
const SERVERS: &str = r#"
import socket, socketserver, struct, threading, os

def serve(port, handle, host="::"):
    class Handler(socketserver.BaseRequestHandler):
        def handle(self): handle(self.request)
    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address, address_family, request_queue_size = True, socket.AF_INET6, 512
    threading.Thread(target=Server((host, port), Handler).serve_forever).start()

def count(peer):
    length = 0
    while data := peer.recv(65536): length += len(data)
    peer.sendall(b"%d bytes" % length)

def reset(peer):
    peer.recv(1)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()

def big(peer):
    with open("/mnt/big", "rb") as file: peer.sendfile(file)

serve(9000, big)
serve(9001, count)
serve(9002, reset)
serve(9003, lambda peer: peer.sendall(peer.recv(100)))
echo = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
echo.bind(("::", 9000))
print("there")
while True:
    data, peer = echo.recvfrom(65536)
    echo.sendto(data, peer)
"#;

/// Asks those servers, and says what does not hold.
const PROGRAM: &str = r#"
import errno, hashlib, socket, sys, threading, time

world, closed = sys.argv[1], sys.argv[2]

def dial(port, host=world): return socket.create_connection((host, port), 20)

def whole(peer):
    digest, length = hashlib.sha256(), 0
    while data := peer.recv(1 << 20):
        digest.update(data)
        length += len(data)
    return length, digest.hexdigest()

start = time.monotonic()
with dial(9000) as peer: found = whole(peer)
print("big", *found, int(1000 * (time.monotonic() - start)), "ms")

with dial(9001) as peer:
    peer.sendall(bytes(3_000_000))
    peer.shutdown(socket.SHUT_WR)
    print("half closed:", peer.recv(100).decode())

with dial(9002) as peer:
    peer.sendall(b"x")
    try: print("not reset:", peer.recv(1))
    except ConnectionResetError: print("reset passed on")

start = time.monotonic()
try: dial(9, closed)
except ConnectionRefusedError: print("refused", "at once" if time.monotonic() - start < 2 else "late")

peers = []
def one(number):
    peer = dial(9003)
    peer.sendall(b"%d" % number)
    if peer.recv(100) == b"%d" % number: peers.append(peer)
threads = [threading.Thread(target=one, args=(n,)) for n in range(200)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print("at once:", len(peers))
for peer in peers: peer.close()

with socket.socket(socket.AF_INET6 if ":" in world else socket.AF_INET, socket.SOCK_DGRAM) as peer:
    peer.settimeout(20)
    for size in (1, 1400, 30000):
        peer.sendto(bytes(size), (world, 9000))
        assert len(peer.recv(65536)) == size, size
    print("datagrams came back")
    peer.connect((closed, 9))
    peer.send(b"x")
    try: peer.recv(1)
    except ConnectionRefusedError: print("nobody hears datagrams there")
"#;

/// Writes packets as root may: to the host's loopback, and as if from it.
const FORGE: &str = r#"
import socket, struct

out = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))

def sum16(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16: total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff

def forge(source, to):
    ends = socket.inet_aton(source) + socket.inet_aton(to)
    tcp = struct.pack("!HHIIBBHHH", 4000, 8181, 1, 0, 0x50, 2, 9000, 0, 0)
    check = sum16(ends + struct.pack("!HH", 6, 20) + tcp)
    tcp = tcp[:16] + struct.pack("!H", check) + tcp[18:]
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 40, 1, 0, 64, 6, 0) + ends
    ip = ip[:10] + struct.pack("!H", sum16(ip)) + ip[12:]
    out.sendto(ip + tcp, ("host0", 0x0800, 0, 0, b""))

for to in ("127.0.0.1", "0.0.0.0", "127.0.0.2"): forge("192.0.0.2", to)
forge("127.0.0.1", "10.0.1.2")
"#;

fn servers(host: &Host) -> Proc {
    fs::write(World::path("servers.py"), SERVERS).unwrap();
    host.ok("head -c 67108864 /dev/urandom > /mnt/big");
    let servers = host.start("exec python3 /mnt/servers.py");
    wait_for("the servers listen", || servers.stdout().contains("there"));
    servers
}

/// Issue 6: with `--share-net` a program reaches the world by its host, TCP and UDP of both IP
/// versions, while agents are reached by the overlay; names of both kinds are found.
#[test]
fn a_program_has_its_hosts_network_too() {
    in_world(|world| {
        let (lab, _page) = open_house(world);
        let a = &lab.site.a;
        lab.site.ra.ok("ip addr add 2001:db8:1::1/64 dev lan nodad");
        a.ok("ip addr add 2001:db8:1::2/64 dev eth0 nodad && \
              echo '0 0' > /proc/sys/net/ipv4/ping_group_range");
        let _servers = [servers(&lab.site.public), servers(&lab.site.ra)];
        let _names = nameserver(a, "192.0.2.53", PUB);
        lease(a, "192.0.2.53");
        let before = changes(a);
        fs::write(World::path("program.py"), PROGRAM).unwrap();
        let digest = a.ok("sha256sum /mnt/big | cut -d' ' -f1");
        let inside = format!(
            "{}; (until test -e /mnt/stop; do curl -sS --max-time 20 http://{B}:8000/; done) & \
             python3 /mnt/program.py {PUB} {PUB}; echo v6; \
             python3 /mnt/program.py 2001:db8:1::1 2001:db8:1::1; touch /mnt/stop; wait; \
             getent ahosts www.example.com; getent hosts {B}; getent hosts nobody.acme.agent; \
             echo nobody $?; ping -c 1 -W 5 -q {PUB}; ping -c 1 -W 5 -q 2001:db8:1::1; \
             ip -o addr show dev host0; ip route; ip -6 route",
            befriend()
        );

        let ran = a
            .start(&format!(
                "exec {USER} agentnet run --share-net --token-file /mnt/all.token --name worker -- \
                 sh -c '{inside}'"
            ))
            .finish(Duration::from_secs(100));

        let said = ran.to_string();
        assert_eq!(ran.code, 0, "{said}");
        let (v4, v6) = ran.stdout.split_once("\nv6\n").unwrap();
        for said in [v4, v6] {
            for wanted in [
                &format!("big 67108864 {digest} "),
                "half closed: 3000000 bytes",
                "reset passed on",
                "refused at once",
                "at once: 200",
                "datagrams came back",
                "nobody hears datagrams there",
            ] {
                assert!(said.contains(wanted), "no `{wanted}` in: {ran}");
            }
        }
        for wanted in [
            MARKER,
            &format!("{PUB} "),
            "STREAM www.example.com",
            "nobody 2\n",
            "inet 192.0.0.2/32",
            "default dev host0",
        ] {
            assert!(said.contains(wanted), "no `{wanted}` in: {said}");
        }
        assert_eq!(said.matches(" 1 received").count(), 2, "{said}");
        let took = v4.split_once(&digest).unwrap().1.trim_start();
        let took = took.split_once(" ms").unwrap().0;
        measured(&format!("64 MiB of the host's network came in {took} ms"));
        assert_eq!(changes(a), before);
        wait_for_the_end(a);
    });
}

/// Issue 6: what listens on the host's loopback alone is out of reach, by whatever address and from
/// whatever packet; peers of the overlay get no further than to the program.
#[test]
fn the_hosts_loopback_is_not_shared() {
    in_world(|world| {
        let (lab, _page) = open_house(world);
        let a = &lab.site.a;
        let _local = [
            a.start("exec python3 -m http.server 8181 --bind 127.0.0.1 --directory /mnt/www"),
            a.start("exec python3 -m http.server 8181 --bind ::1 --directory /mnt/www"),
            a.start("exec python3 -m http.server 8182 --bind 10.0.1.2 --directory /mnt/www"),
        ];
        wait_for("the servers listen", || {
            a.ok("ss -Htln '( sport = 8181 or sport = 8182 )'")
                .lines()
                .count()
                == 3
        });
        fs::write(World::path("forge.py"), FORGE).unwrap();
        let capture = a.capture();
        let inside = "for at in 127.0.0.1:8181 [::1]:8181 [::ffff:127.0.0.1]:8181 0.0.0.0:8181; do \
                        curl -sS --max-time 5 http://$at/; done; \
                      curl -sS --max-time 20 http://10.0.1.2:8182/; python3 /mnt/forge.py && \
                      echo forged; curl -sS --max-time 20 http://10.0.1.2:8182/";

        let ran = a
            .start(&format!(
                "exec agentnet run --share-net --token-file /mnt/all.token --name root -- \
                 sh -c '{inside}'"
            ))
            .finish(Duration::from_secs(60));

        // The two pages of the address that others reach too.
        assert_eq!(ran.stdout.matches(MARKER).count(), 2, "{ran}");
        assert!(ran.stdout.contains("forged"), "{ran}");
        let frames = capture.finish();
        let is_to = |to: u8, port: u16| {
            let passed = |bytes: &[u8]| bytes[0] == to && bytes[6..] == port.to_be_bytes();
            frames
                .iter()
                .any(|frame| frame.bytes.windows(8).any(passed))
        };
        assert!(is_to(10, 8182) && !is_to(127, 8181), "{ran}");

        // A peer that sends to the program's host by way of the program.
        let held = a.start(&format!(
            "exec {USER} agentnet run --share-net --token-file /mnt/all.token --name open -- \
             sh -c '{} >/dev/null; echo up; exec sleep 1000'",
            befriend()
        ));
        wait_for("it runs", || held.stdout().contains("up"));
        let b = &lab.site.b;
        let open = b.ok("getent hosts open.acme.agent | cut -d' ' -f1");
        b.ok(&format!(
            "ip route add 10.0.1.0/24 dev agn0 || true; \
                       ip -6 route add 2001:db8:1::/64 via {open} dev agn0 onlink || true"
        ));
        let said = b.run("curl -sS --max-time 3 http://10.0.1.2:8182/");
        assert_ne!(said.code, 0, "{said}");
        let said = b.run(&format!("curl -sS --max-time 3 'http://[{open}]:8182/'"));
        assert_ne!(said.code, 0, "{said}");
        assert_eq!(held.stop().code, 128 + 15);
    });
}
